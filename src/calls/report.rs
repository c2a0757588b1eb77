//! Reports: the ledger summed up by one dimension.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Outcome;
use super::ledger::Ledger;
use super::row::{Counts, Times};

/// The dimension that a report sums up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum By {
    Route,
    Client,
    Run,
    Credential,
    Host,
}

/// How a report is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Table,
    Json,
    Csv,
}

/// What is asked of the ledger.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Question {
    pub by: By,
    /// How far back, in seconds; none: all.
    pub since: Option<u64>,
    /// Only this run.
    pub run: Option<String>,
}

/// One line of a report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// The route, client, … that it is about.
    pub name: String,
    /// Requests that clients made.
    pub calls: u64,
    /// Of these, answered from the store.
    pub from_store: u64,
    /// Requests that left for GitHub.
    pub sent: u64,
    /// Of these, those that cost quota.
    pub charged: u64,
    /// Calls that would have cost quota, and did not: answered from the store, or by a free 304.
    pub saved: u64,
    /// Calls answered with 4xx or 5xx.
    pub errors: u64,
    pub bytes: u64,
    /// Milliseconds that half of the calls, and 99 of 100, took at most: to the next power of two times 64 µs.
    pub median_ms: f64,
    pub p99_ms: f64,
    pub times: Times,
}

/// Answers a question; the lines that cost most first. `now` in seconds since 1970.
pub fn answer(ledger: &Ledger, question: &Question, now: u64) -> io::Result<Vec<Line>> {
    let since = question.since.map_or(0, |s| now.saturating_sub(s) / 60);
    let mut lines: HashMap<String, (Line, Counts)> = HashMap::new();
    ledger.rows(u32::try_from(since).unwrap_or(u32::MAX), |_, dimensions, counts| {
        if question.run.as_ref().is_some_and(|run| **run != *dimensions.run) {
            return;
        }
        let name: &str = match question.by {
            By::Route => &dimensions.route,
            By::Client => &dimensions.client,
            By::Run => &dimensions.run,
            By::Credential => &dimensions.credential,
            By::Host => &dimensions.host,
        };
        let name = if name.is_empty() { "-" } else { name };
        let (line, sum) = match lines.get_mut(name) {
            Some(found) => found,
            None => lines.entry(name.to_owned()).or_default(),
        };
        sum.merge(counts);
        if dimensions.outcome.is_from_store() {
            line.from_store += counts.calls;
        }
        if dimensions.outcome.is_from_store() || dimensions.outcome == Outcome::NotModified {
            line.saved += counts.calls.saturating_sub(counts.charged);
        }
        if dimensions.status >= 400 {
            line.errors += counts.calls;
        }
    })?;
    let mut report: Vec<Line> = lines.into_iter().map(|(name, (line, sum))| finish(name, line, &sum)).collect();
    report.sort_by(|a, b| (b.charged, b.calls, &a.name).cmp(&(a.charged, a.calls, &b.name)));
    Ok(report)
}

fn finish(name: String, line: Line, sum: &Counts) -> Line {
    timed(Line {
        name,
        calls: sum.calls,
        sent: sum.sent,
        charged: sum.charged,
        bytes: sum.bytes,
        times: sum.times.clone(),
        ..line
    })
}

fn timed(line: Line) -> Line {
    let ms = |percent| line.times.quantile(percent) as f64 / 1000.0;
    Line { median_ms: ms(50), p99_ms: ms(99), ..line }
}

/// All lines together.
pub fn total(lines: &[Line]) -> Line {
    let sum = |f: fn(&Line) -> u64| lines.iter().map(f).sum();
    let mut times = Times::default();
    for line in lines {
        times.add_all(&line.times);
    }
    timed(Line {
        name: "total".into(),
        calls: sum(|l| l.calls),
        from_store: sum(|l| l.from_store),
        sent: sum(|l| l.sent),
        charged: sum(|l| l.charged),
        saved: sum(|l| l.saved),
        errors: sum(|l| l.errors),
        bytes: sum(|l| l.bytes),
        times,
        ..Line::default()
    })
}

/// Prints a report.
pub fn render(lines: &[Line], by: By, format: Format) -> String {
    let heading = clap::ValueEnum::to_possible_value(&by).map_or_else(String::new, |v| v.get_name().to_owned());
    match format {
        Format::Json => {
            let report = serde_json::json!({ "by": by, "lines": lines, "total": total(lines) });
            format!("{report:#}\n")
        }
        Format::Csv => {
            let mut out = format!("{heading},calls,from_store,sent,charged,saved,errors,bytes,median_ms,p99_ms\n");
            for l in lines {
                out.push_str(&format!(
                    "{},{},{},{},{},{},{},{},{},{}\n",
                    quoted(&l.name),
                    l.calls,
                    l.from_store,
                    l.sent,
                    l.charged,
                    l.saved,
                    l.errors,
                    l.bytes,
                    l.median_ms,
                    l.p99_ms
                ));
            }
            out
        }
        Format::Table => table(lines, &heading),
    }
}

fn table(lines: &[Line], heading: &str) -> String {
    let total = total(lines);
    let width = lines.iter().map(|l| l.name.len()).chain([heading.len(), 5]).max().unwrap_or(5);
    let mut out = format!(
        "{heading:<width$} {:>8} {:>10} {:>8} {:>8} {:>8} {:>7} {:>10} {:>10}\n",
        "calls", "from_store", "sent", "charged", "saved", "errors", "median ms", "p99 ms"
    );
    for l in lines.iter().chain([&total]) {
        out.push_str(&format!(
            "{:<width$} {:>8} {:>10} {:>8} {:>8} {:>8} {:>7} {:>10} {:>10}\n",
            l.name, l.calls, l.from_store, l.sent, l.charged, l.saved, l.errors, l.median_ms, l.p99_ms
        ));
    }
    out
}

fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

/// Seconds of a `--since`.
pub fn seconds(since: Duration) -> u64 {
    since.as_secs().max(1)
}
