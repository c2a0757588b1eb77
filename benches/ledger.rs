//! The ledger and the metrics after a long day: memory, series, the time that a scrape and a report take. Prints a table.
//!
//! cargo bench --bench ledger

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a benchmark may panic")]

use std::sync::Arc;
use std::time::Instant;

use ghtap::cache::store::Stats;
use ghtap::calls::Outcome;
use ghtap::calls::ledger::{DIRECTORY, Keep, Ledger};
use ghtap::calls::report::{self, By, Question};
use ghtap::calls::row::{Counts, Dimensions};
use ghtap::metrics::Metrics;

/// Milliseconds since 1970: a midnight.
const DAY_ONE: u64 = 20_700 * 86_400_000;
const MINUTE: u64 = 60_000;

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

fn call(ledger: &Ledger, metrics: &Metrics, names: (&Arc<str>, &Arc<str>, &Arc<str>), outcome: Outcome, now: u64) {
    let (client, run, route) = names;
    let charged = u64::from(outcome == Outcome::Miss);
    let mut counts = Counts { calls: 1, sent: 1, charged, bytes: 6000, micros: 300, ..Counts::default() };
    counts.times.add(now % 5000);
    let host: Arc<str> = "api.github.com".into();
    metrics.sent(&host, route, client, "200", charged == 1);
    metrics.called(&host, outcome.as_str(), 0.001);
    let dimensions = Dimensions {
        client: client.clone(),
        host,
        route: route.to_string().into(),
        credential: "installation:7".into(),
        status: 200,
        outcome,
        resource: "core".into(),
        in_run: !run.is_empty(),
    };
    ledger.add(dimensions, run, &counts, now);
}

fn keep_house(ledger: &Ledger, metrics: &Metrics, now: u64) {
    ledger.flush().unwrap();
    ledger.tidy(now).unwrap();
    ledger.runs.take_ended().iter().for_each(|run| metrics.run_ended(run));
}

/// 10,000 clients, 100,000 runs and 1,000 routes in a day.
fn a_busy_day() {
    let dir = tempfile::tempdir().unwrap();
    let (clients, routes): (Vec<Arc<str>>, Vec<Arc<str>>) = (
        (0..10_000).map(|i| format!("client-{i}").into()).collect(),
        (0..1000).map(|i| format!("GET /route/{i}").into()).collect(),
    );
    let (ledger, metrics) = (Ledger::open(dir.path(), Keep::default()).unwrap(), Metrics::new());
    let before = resident();
    let mut most = 0;
    for run in 0..100_000 {
        let now = DAY_ONE + run * 864;
        let name: Arc<str> = format!("run-{run}").into();
        for i in 0..10 {
            let route = &routes[(run * 7 + i * 13) as usize % routes.len()];
            let outcome = if i == 0 { Outcome::Miss } else { Outcome::Revalidated };
            call(&ledger, &metrics, (&clients[run as usize % clients.len()], &name, route), outcome, now);
        }
        // Each second, if the clock went as fast as this: so, what a busy second leaves waits together.
        if run % 70 == 0 {
            keep_house(&ledger, &metrics, now);
            most = most.max(resident());
        }
    }
    println!("a day of 10,000 clients, 100,000 runs, 1,000 routes: memory grew by {} MiB at most", most - before);
    let begun = Instant::now();
    let text = metrics.render(&Stats::default());
    let took = begun.elapsed();
    let series = text.lines().filter(|l| !l.starts_with('#')).count();
    println!("  /metrics: {series} series, {:.1} ms", took.as_secs_f64() * 1000.0);
    let folded: Vec<&str> = text.lines().filter(|l| l.starts_with("ghtap_folded_total")).collect();
    println!("  {}", folded.join(", "));
    println!("  ledger on disk: {} MiB", ghtap::disk::occupied(&dir.path().join(DIRECTORY)) >> 20);
    ask(&ledger, "  by run, all", &Question { top: Some(20), ..Question::by(By::Run) }, DAY_ONE + 1440 * MINUTE);
}

/// Ten million calls within a week, of 40 clients to 60 routes.
fn ten_million_calls() {
    let dir = tempfile::tempdir().unwrap();
    let (clients, routes): (Vec<Arc<str>>, Vec<Arc<str>>) = (
        (0..40).map(|i| format!("client-{i}").into()).collect(),
        (0..60).map(|i| format!("GET /route/{i}").into()).collect(),
    );
    let (ledger, metrics, none) = (Ledger::open(dir.path(), Keep::default()).unwrap(), Metrics::new(), Arc::from(""));
    let per_minute = 10_000_000 / (7 * 1440) + 1;
    for minute in 0..7 * 1440 {
        let now = DAY_ONE + minute * MINUTE;
        for i in 0..per_minute {
            let n = minute * 31 + i;
            let outcome = if n % 5 == 0 { Outcome::Miss } else { Outcome::Revalidated };
            let (client, route) = (&clients[n as usize % clients.len()], &routes[(n / 3) as usize % routes.len()]);
            call(&ledger, &metrics, (client, &none, route), outcome, now);
        }
        keep_house(&ledger, &metrics, now);
    }
    let now = DAY_ONE + 7 * 1440 * MINUTE;
    println!("ten million calls in a week, {} MiB on disk", ghtap::disk::occupied(&dir.path().join(DIRECTORY)) >> 20);
    for by in [By::Route, By::Client, By::Credential, By::Hour] {
        ask(&ledger, &format!("  by {}, all", by.as_str()), &Question::by(by), now);
    }
    let since = Some(now / 1000 - 86_400);
    ask(
        &ledger,
        "  by route, one client, a day",
        &Question { since, ..Question::by(By::Route).only(By::Client, "client-3") },
        now,
    );
    ask(&ledger, "  by route, an hour", &Question { since: Some(now / 1000 - 3600), ..Question::by(By::Route) }, now);
}

fn ask(ledger: &Ledger, what: &str, question: &Question, now: u64) {
    let begun = Instant::now();
    let report = report::answer(ledger, question, now / 1000).unwrap();
    let took = begun.elapsed().as_secs_f64() * 1000.0;
    println!("{what}: {took:.0} ms, {} calls, {} lines", report.total.calls, report.lines.len());
}

fn main() {
    // `cargo test` runs benches, too, without their arguments: then this is not for it.
    if std::env::args().any(|a| a == "--bench") {
        a_busy_day();
        ten_million_calls();
    }
}
