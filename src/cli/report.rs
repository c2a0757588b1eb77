//! `ghtap report`: what was called, and what it cost.

use std::path::Path;
use std::process::ExitCode;

use http::Method;

use super::{Failure, place, print, small_runtime};
use crate::admin::client::{ask, encoded};
use crate::calls::ledger::{Keep, Ledger};
use crate::calls::render::{render, time_of};
use crate::calls::report::{self, By, Question, Report};
use crate::config::Report as Config;
use crate::exchange::now_ms;

pub fn run(config: &Config) -> Result<ExitCode, Failure> {
    let now = now_ms() / 1000;
    let moment = |text: &Option<String>| text.as_deref().map(|t| report::moment(t, now)).transpose();
    let run = config.run.iter().map(|run| (By::Run, run.clone()));
    let question = Question {
        by: config.by,
        since: moment(&config.since).map_err(Failure::new)?,
        until: moment(&config.until).map_err(Failure::new)?,
        only: config.only.iter().cloned().chain(run).collect(),
        top: config.top,
    };
    if let (Some(since), Some(until)) = (question.since, question.until)
        && since >= until
    {
        return Err(Failure::new("--since is not before --until: nothing lies between"));
    }
    let report = report(&config.places.data_dir(), &question)?;
    print(render(&report, config.format))?;
    Ok(ExitCode::SUCCESS)
}

/// The report, from the tap that runs, or from the ledger at rest.
fn report(data_dir: &Path, question: &Question) -> Result<Report, Failure> {
    if let Some(held) = existing(data_dir)? {
        let ledger = Ledger::open(data_dir, Keep::default()).map_err(Failure::new)?;
        let report = report::answer(&ledger, question, now_ms() / 1000).map_err(Failure::new);
        drop((ledger, held));
        return report;
    }
    let tap = place::running(data_dir).filter(|t| t.admin.is_some());
    let Some(tap) = tap else {
        return Err(Failure::new("a ghtap run holds the data directory; ask again when it has ended"));
    };
    small_runtime()?.block_on(over_http(&tap, question))
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
pub async fn over_http(tap: &place::Tap, question: &Question) -> Result<Report, Failure> {
    let mut path = format!("/api/report?by={}", question.by.as_str());
    for (name, moment) in [("since", question.since), ("until", question.until)] {
        path.extend(moment.map(|m| format!("&{name}={}", encoded(&time_of(m)))));
    }
    path.extend(
        question.only.iter().map(|(by, name)| format!("&where={}", encoded(&format!("{}={name}", by.as_str())))),
    );
    path.extend(question.top.map(|top| format!("&top={top}")));
    let body = ask(&tap.admin()?, Method::GET, &path).await.map_err(Failure::new)?;
    serde_json::from_slice(&body).map_err(Failure::new)
}
