//! `ghtap report`: what was called, and what it cost.

use std::path::Path;
use std::process::ExitCode;

use http::Method;

use super::{Failure, place, print, small_runtime};
use crate::admin::client::{ask, encoded};
use crate::calls::ledger::Ledger;
use crate::calls::report::{self, Line, Question};
use crate::config::Report;
use crate::exchange::now_ms;

pub fn run(config: &Report) -> Result<ExitCode, Failure> {
    let question = Question { by: config.by, since: config.since.map(report::seconds), run: config.run.clone() };
    let lines = lines(&config.places.data_dir(), &question)?;
    print(report::render(&lines, config.by, config.format))?;
    Ok(ExitCode::SUCCESS)
}

/// The report, from the tap that runs, or from the ledger at rest.
fn lines(data_dir: &Path, question: &Question) -> Result<Vec<Line>, Failure> {
    if let Some(held) = existing(data_dir)? {
        let ledger = Ledger::open(data_dir).map_err(Failure::new)?;
        let lines = report::answer(&ledger, question, now_ms() / 1000).map_err(Failure::new);
        drop((ledger, held));
        return lines;
    }
    let admin = place::running(data_dir).and_then(|t| t.admin);
    let Some(admin) = admin else {
        return Err(Failure::new("a ghtap run holds the data directory; ask again when it has ended"));
    };
    small_runtime()?.block_on(over_http(place::reachable(admin), question))
}

/// Holds a data directory that is there; none if another process does.
pub fn existing(data_dir: &Path) -> Result<Option<place::Held>, Failure> {
    if !data_dir.exists() {
        return Err(Failure::new(format_args!(
            "there is no data directory {}; run ghtap serve first, or give it with --data-dir",
            data_dir.display()
        )));
    }
    place::hold(data_dir)
}

/// The report of a running tap.
pub async fn over_http(admin: std::net::SocketAddr, question: &Question) -> Result<Vec<Line>, Failure> {
    let by = serde_json::to_value(question.by).map_err(Failure::new)?;
    let mut path = format!("/api/report?by={}", by.as_str().unwrap_or_default());
    if let Some(since) = question.since {
        path.push_str(&format!("&since={since}"));
    }
    if let Some(run) = &question.run {
        path.push_str(&format!("&run={}", encoded(run)));
    }
    let body = ask(admin, Method::GET, &path).await.map_err(Failure::new)?;
    serde_json::from_slice(&body).map_err(Failure::new)
}
