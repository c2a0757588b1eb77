//! `ghtap run`: a command through the tap, and the inventory of its calls.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::report::over_http;
use super::tap::{self, Apart, Listeners};
use super::{Failure, child, env, logging, place, say};
use crate::calls::report::{self, By, Format, Line, Question};
use crate::clients::Caller;
use crate::config::{LogFormat, ReportFormat, Run};
use crate::exchange::now_ms;
use crate::github::etag::hex;
use crate::tls::files::random;

/// The exit code when the command succeeded, but cost more than it may.
const OVER_BUDGET: u8 = 3;

pub fn run(config: &Run) -> Result<ExitCode, Failure> {
    let _logging = logging::start(LogFormat::Human, "warn")?;
    let baseline = config.baseline.as_deref().map(read_inventory).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::new)?;
    let (code, mut lines) = runtime.block_on(async {
        let data_dir = config.tap.places.data_dir();
        match place::hold(&data_dir)? {
            Some(held) => alone(config, Some(held)).await,
            None => match place::running(&data_dir).filter(|t| t.shared) {
                Some(tap) => beside(config, &tap).await,
                // Another run holds the store: this one goes without.
                None => alone(config, None).await,
            },
        }
    })?;
    lines.retain(|l| l.calls + l.sent > 0);
    if let Some(path) = &config.save {
        let text = serde_json::to_string_pretty(&lines).map_err(Failure::new)?;
        std::fs::write(path, text).map_err(|e| Failure::new(format_args!("--save {}: {e}", path.display())))?;
    }
    let format = if config.report == ReportFormat::Json { Format::Json } else { Format::Table };
    say(&report::render(&lines, By::Route, format));
    let over = over_budget(config, &lines, baseline.as_deref());
    for line in &over {
        say(&format!("ghtap: {line}\n"));
    }
    Ok(ExitCode::from(if code == 0 && !over.is_empty() { OVER_BUDGET } else { code }))
}

fn names(config: &Run) -> Caller {
    let command =
        Path::new(&config.command[0]).file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let client: String = command.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).take(40).collect();
    let client = if client.is_empty() { "run".into() } else { client };
    Caller { client: client.into(), run: format!("run-{}", hex(&random::<4>())).into() }
}

/// With a tap of our own, on a free port. Without the data directory, nothing of it is kept.
async fn alone(config: &Run, held: Option<place::Held>) -> Result<(u8, Vec<Line>), Failure> {
    let caller = names(config);
    let proxy = tap::bind(([127, 0, 0, 1], 0).into(), "--listen").await?;
    let scratch = held.is_none().then(Scratch::new).transpose().map_err(Failure::new)?;
    let apart = Apart {
        ledger: scratch.as_ref().map(|s| s.0.clone()),
        memory_only: held.is_none(),
        caller: Some(caller.clone()),
    };
    let running = tap::start(&config.tap, Listeners { proxy, admin: None, tls: None }, apart).await?;
    let certs_dir = config.tap.places.certs_dir();
    if let Some(held) = &held {
        held.announce(&place::Tap {
            pid: std::process::id(),
            shared: false,
            proxy: running.proxy,
            admin: None,
            certs_dir: certs_dir.clone(),
        })?;
    }
    let variables = variables(running.proxy, &caller, &certs_dir);
    let status = child::run(&config.command, &variables).await;
    let exchange = running.exchange.clone();
    running.stop(tokio::time::sleep(Duration::from_secs(1))).await;
    let question = Question { by: By::Route, since: None, run: Some(caller.run.to_string()) };
    let lines = report::answer(&exchange.ledger, &question, now_ms() / 1000).map_err(Failure::new)?;
    Ok((child::exit_code(status?), lines))
}

/// Through the tap that runs, under a run label of our own.
async fn beside(config: &Run, tap: &place::Tap) -> Result<(u8, Vec<Line>), Failure> {
    let caller = names(config);
    let variables = variables(place::reachable(tap.proxy), &caller, &tap.certs_dir);
    let status = child::run(&config.command, &variables).await?;
    let admin =
        tap.admin.ok_or_else(|| Failure::new("the running tap has no admin address to ask for the inventory"))?;
    let question = Question { by: By::Route, since: None, run: Some(caller.run.to_string()) };
    let lines = over_http(place::reachable(admin), &question).await?;
    Ok((child::exit_code(status), lines))
}

/// The variables, beside what the environment has already.
fn variables(proxy: std::net::SocketAddr, caller: &Caller, certs_dir: &Path) -> Vec<(&'static str, String)> {
    let user = format!("{}+{}", caller.client, caller.run);
    env::beside_what_is_set(env::variables(proxy, Some(&user), certs_dir))
}

fn read_inventory(path: &Path) -> Result<Vec<Line>, Failure> {
    let failed = |e: &dyn std::fmt::Display| {
        Failure::new(format_args!("--baseline {}: {e}; make one with --save", path.display()))
    };
    let text = std::fs::read(path).map_err(|e| failed(&e))?;
    serde_json::from_slice(&text).map_err(|e| failed(&e))
}

/// What costs more than it may, a line each.
fn over_budget(config: &Run, lines: &[Line], baseline: Option<&[Line]>) -> Vec<String> {
    let mut over = Vec::new();
    let charged = report::total(lines).charged;
    if let Some(budget) = config.budget.filter(|budget| charged > *budget) {
        over.push(format!("{charged} charged calls, {} more than the budget of {budget}", charged - budget));
    }
    let Some(baseline) = baseline else { return over };
    for line in lines {
        let before = baseline.iter().find(|b| b.name == line.name).map_or(0, |b| b.charged);
        if line.charged > before {
            over.push(format!("{}: {} charged calls, {before} in the baseline", line.name, line.charged));
        }
    }
    over
}

/// A directory of our own, removed when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> io::Result<Scratch> {
        use std::os::unix::fs::DirBuilderExt;
        let path = std::env::temp_dir().join(format!("ghtap-{}", hex(&random::<8>())));
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
