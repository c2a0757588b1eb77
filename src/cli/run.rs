//! `ghtap run`: a command through the tap, and the inventory of its calls.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use http::Method;

use super::report::over_http;
use super::tap::{self, Apart, Listeners, Serving};
use super::{Failure, child, env, logging, place, say};
use crate::admin::client::{ask, encoded};
use crate::calls::compare::Comparison;
use crate::calls::render::{Format, render};
use crate::calls::report::{self, By, Question, Report};
use crate::clients::Caller;
use crate::config::{LogFormat, ReportFormat, Run, StoreKind};
use crate::exchange::now_ms;
use crate::github::etag::hex;
use crate::tls::files::random;

/// How long calls that a command left behind may take to be counted.
const LINGER: Duration = Duration::from_millis(200);
/// The exit code when the command succeeded, but cost more than it may.
const OVER_BUDGET: u8 = 3;

pub fn run(config: &Run) -> Result<ExitCode, Failure> {
    let _logging = logging::start(LogFormat::Human, "warn")?;
    let baseline = config.baseline.as_deref().map(read_inventory).transpose()?;
    if let Some(path) = &config.save {
        // Before the command runs, not after.
        std::fs::OpenOptions::new().create(true).append(true).open(path).map_err(|e| cannot_save(path, &e))?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::new)?;
    let (code, mut report) = runtime.block_on(async {
        let data_dir = config.tap.places.data_dir();
        match place::hold(&data_dir)? {
            Some(held) => alone(config, Some(held)).await,
            None => match place::running(&data_dir).filter(|t| t.shared && config.tap.store != StoreKind::Memory) {
                Some(tap) => beside(config, &tap).await,
                // With --store memory: it is to start cold, whoever runs.
                // Another run holds the store: this one goes without.
                None => alone(config, None).await,
            },
        }
    })?;
    report.lines.retain(|l| l.calls + l.sent > 0);
    let over = tell(config, &report, baseline.as_ref());
    if let Some(path) = &config.save {
        std::fs::write(path, render(&report, Format::Json)).map_err(|e| cannot_save(path, &e))?;
    }
    Ok(ExitCode::from(if code == 0 && over { OVER_BUDGET } else { code }))
}

fn cannot_save(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format_args!("--save {}: {error}; give a file that can be written", path.display()))
}

/// Prints the inventory, and what of it is too much. Whether anything is.
fn tell(config: &Run, report: &Report, baseline: Option<&Report>) -> bool {
    let (format, markdown) = match config.report {
        ReportFormat::Table => (Format::Table, false),
        ReportFormat::Json => (Format::Json, false),
        ReportFormat::Markdown => (Format::Markdown, true),
    };
    say(&render(report, format));
    let mut over = Vec::new();
    let charged = report.total.charged;
    if report.total.calls == 0 {
        say("ghtap: no call went through the tap; does the command use HTTPS_PROXY? ghtap doctor tells\n");
    }
    if let Some(budget) = config.budget.filter(|budget| charged > *budget) {
        over.push(format!("{charged} charged calls, {} more than the budget of {budget}", charged - budget));
    }
    if let Some(baseline) = baseline {
        let comparison = Comparison::of(baseline, report);
        say(&if markdown { format!("\n{}", comparison.markdown()) } else { comparison.text() });
        let growth = comparison.growth();
        if growth <= config.tolerance {
            let told = format!(
                "{} charged calls, {} in the baseline: within the tolerance",
                comparison.now, comparison.before
            );
            say(&if markdown { format!("\n{told}\n") } else { format!("ghtap: {told}\n") });
        } else {
            let by = if growth.is_finite() { format!("by {growth:.1} %") } else { "from nothing".into() };
            over.push(format!("charged calls grew {by}, more than the {} % of --tolerance", config.tolerance));
        }
    }
    for line in &over {
        say(&if markdown { format!("\n**{line}**\n") } else { format!("ghtap: {line}\n") });
    }
    !over.is_empty()
}

fn names(config: &Run) -> Caller {
    let command =
        Path::new(&config.command[0]).file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let client: String = command.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).take(40).collect();
    let client = if client.is_empty() { "run".into() } else { client };
    Caller::named(&client, &format!("run-{}", hex(&random::<4>())))
}

/// With a tap of our own, on a free port. Without the data directory, nothing of it is kept.
async fn alone(config: &Run, held: Option<place::Held>) -> Result<(u8, Report), Failure> {
    let caller = names(config);
    let proxy = tap::bind(([127, 0, 0, 1], 0).into(), "--listen").await?;
    let scratch = held.is_none().then(Scratch::new).transpose().map_err(Failure::new)?;
    let apart = Apart {
        ledger: scratch.as_ref().map(|s| s.0.clone()),
        memory_only: held.is_none(),
        caller: Some(caller.clone()),
    };
    let running =
        tap::start(&config.tap, Listeners { proxy, admin: None, tls: None }, apart, Serving::default()).await?;
    let certs_dir = config.tap.places.certs_dir();
    if let Some(held) = &held {
        held.announce(&place::Tap {
            pid: std::process::id(),
            shared: false,
            proxy: running.proxy,
            admin: None,
            certs_dir: certs_dir.clone(),
            admin_token: None,
            own_secret: None,
        })?;
    }
    let variables = variables(running.proxy, &caller, None, &certs_dir);
    let status = child::run(&config.command, &variables).await;
    let exchange = running.exchange.clone();
    running.stop(tokio::time::sleep(Duration::from_secs(1))).await;
    exchange.ledger.runs.end(&caller.run, now_ms());
    exchange.ledger.flush().map_err(Failure::new)?;
    let question = Question::by(By::Route).only(By::Run, &*caller.run);
    let report = report::answer(&exchange.ledger, &question, now_ms() / 1000).map_err(Failure::new)?;
    Ok((child::exit_code(status?), report))
}

/// Through the tap that runs, under a run label of our own.
async fn beside(config: &Run, tap: &place::Tap) -> Result<(u8, Report), Failure> {
    let caller = names(config);
    let variables = variables(place::reachable(tap.proxy), &caller, tap.own_secret.as_deref(), &tap.certs_dir);
    let status = child::run(&config.command, &variables).await?;
    // What the command left behind may still be under way.
    tokio::time::sleep(LINGER).await;
    let report = over_http(tap, &Question::by(By::Route).only(By::Run, &*caller.run)).await;
    let end = format!("/api/runs/{}/end", encoded(&caller.run));
    // One that made no call, or was silent for long, has ended already.
    let _ = ask(&tap.admin()?, Method::POST, &end).await;
    Ok((child::exit_code(status), report.unwrap_or_else(unknown)))
}

/// The command has run: its exit code is worth more than an inventory that cannot be had.
fn unknown(failure: Failure) -> Report {
    say(&format!("ghtap: the inventory cannot be had: {failure}\n"));
    Report { by: By::Route, lines: Vec::new(), total: Default::default() }
}

/// The variables, beside what the environment has already.
fn variables(
    proxy: std::net::SocketAddr,
    caller: &Caller,
    secret: Option<&str>,
    certs_dir: &Path,
) -> Vec<(&'static str, String)> {
    let user = format!("{}+{}:{}", caller.client, caller.run, secret.unwrap_or("x"));
    env::beside_what_is_set(env::variables(proxy, Some(&user), certs_dir))
}

fn read_inventory(path: &Path) -> Result<Report, Failure> {
    let failed = |e: &dyn std::fmt::Display| {
        Failure::new(format_args!("--baseline {}: {e}; make one with --save", path.display()))
    };
    let text = std::fs::read(path).map_err(|e| failed(&e))?;
    serde_json::from_slice(&text).map_err(|e| failed(&e))
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
