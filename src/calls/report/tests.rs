use super::*;
use crate::calls::Outcome;
use crate::calls::ledger::Keep;
use crate::calls::row::{Counts, Dimensions};

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

fn dimensions(client: &str, route: &'static str, in_run: bool) -> Dimensions {
    Dimensions {
        client: client.into(),
        host: "api.github.com".into(),
        route: route.into(),
        credential: "anonymous".into(),
        status: 200,
        outcome: Outcome::Miss,
        resource: "core".into(),
        in_run,
    }
}

fn call(ledger: &Ledger, client: &str, run: &str, seconds: u64) {
    let counts = Counts { calls: 1, sent: 1, charged: 1, bytes: 10, ..Counts::default() };
    let run: Arc<str> = run.into();
    ledger.add(dimensions(client, "GET /x", !run.is_empty()), &run, &counts, seconds * 1000);
}

fn calls(ledger: &Ledger, question: &Question, now: u64) -> Vec<(String, u64)> {
    ledger.flush().unwrap();
    let report = answer(ledger, question, now).unwrap();
    if question.top.is_none() {
        assert_eq!(report.total.calls, report.lines.iter().map(|l| l.calls).sum::<u64>());
    }
    report.lines.into_iter().map(|l| (l.name, l.calls)).collect()
}

fn open(dir: &std::path::Path) -> Ledger {
    Ledger::open(dir, Keep::default()).unwrap()
}

#[test]
fn counts_survive_minutes_restarts_and_repeated_flushes() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    call(&ledger, "a", "", 60);
    assert_eq!(ledger.flush().unwrap(), 1);
    call(&ledger, "a", "", 61);
    call(&ledger, "b", "", 62);
    call(&ledger, "a", "", 120);
    ledger.flush().unwrap();
    assert_eq!(ledger.flush().unwrap(), 0);
    let by_client = Question::by(By::Client);
    assert_eq!(calls(&ledger, &by_client, 200), [("a".to_owned(), 3), ("b".to_owned(), 1)]);
    drop(ledger);
    // A process that starts within the same minute adds to it; a clock that is set back loses nothing.
    let ledger = open(dir.path());
    call(&ledger, "a", "", 121);
    call(&ledger, "a", "", 30);
    assert_eq!(calls(&ledger, &by_client, 200), [("a".to_owned(), 5), ("b".to_owned(), 1)]);
    // So does one that was far ahead, and was put right: the minute is counted a second time, beside the first.
    call(&ledger, "a", "", 12_000);
    ledger.flush().unwrap();
    call(&ledger, "c", "", 122);
    let expected = [("a", 6), ("b", 1), ("c", 1)].map(|(name, calls)| (name.to_owned(), calls));
    assert_eq!(calls(&ledger, &by_client, 13_000), expected);
    let by_client = Question { until: Some(180), ..by_client };
    let late = Question { since: Some(120), until: Some(180), ..by_client.clone() };
    assert_eq!(calls(&ledger, &late, 200), [("a".to_owned(), 3), ("c".to_owned(), 1)]);
    assert_eq!(calls(&ledger, &by_client.clone().only(By::Client, "b"), 200), [("b".to_owned(), 1)]);
    assert_eq!(calls(&ledger, &Question { top: Some(1), ..by_client }, 200).len(), 1);
}

#[test]
fn hours_and_days_add_up_to_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    let start = 20_000 * DAY;
    // A call every 20 minutes for 40 days, two on the last.
    let mut made = 0;
    for i in 0..40 * 72 {
        call(&ledger, if i % 3 == 0 { "a" } else { "b" }, "", start + i * 1200);
        made += 1;
    }
    // Long enough after midnight that the last day is summed up, too.
    let now = start + 40 * DAY + 130;
    call(&ledger, "a", "", now);
    ledger.flush().unwrap();
    let before = calls(&ledger, &Question::by(By::Client), now);
    assert_eq!(before.iter().map(|(_, n)| n).sum::<u64>(), made + 1);
    while ledger.tidy(now * 1000).unwrap() {}
    assert_eq!(calls(&ledger, &Question::by(By::Client), now), before, "summed up");
    // What is left is small: 2 days of minutes, 28 of hours, all days.
    let rows = |tier, from, to| {
        let mut n = 0;
        let minute = |s: u64| u32::try_from(s / 60).unwrap();
        ledger.rows((tier, minute(from), minute(to)), |_, _, _| n += 1).unwrap();
        n
    };
    assert_eq!(rows(Tier::Minute, 0, start + 38 * DAY), 0);
    assert_eq!(rows(Tier::Minute, start + 38 * DAY, now + 60), 2 * 72 + 1);
    assert_eq!(rows(Tier::Hour, 0, start + 10 * DAY), 0);
    assert_eq!(rows(Tier::Day, 0, now), 2 * 40);
    let question = |since: u64, by| Question { since: Some(since), ..Question::by(by) };
    let sum = |all: Vec<(String, u64)>| all.iter().map(|(_, n)| n).sum::<u64>();
    assert_eq!(sum(calls(&ledger, &question(now - 3600, By::Client), now)), 3);
    assert_eq!(sum(calls(&ledger, &question(start + 35 * DAY, By::Client), now)), 5 * 72 + 1);
    assert_eq!(sum(calls(&ledger, &question(start + 20 * DAY, By::Route), now)), 20 * 72 + 1);
    let hours = calls(&ledger, &question(start + 39 * DAY, By::Hour), now);
    assert_eq!((hours.len(), hours[0].1, hours[0].0.len()), (25, 3, "2026-11-21T10:00Z".len()));
    // Long ago there are days only.
    let days = calls(&ledger, &Question { until: Some(start + 2 * DAY), ..question(start, By::Hour) }, now);
    assert_eq!((days.len(), days[0].1, days[0].0.len()), (2, 72, "2026-11-21".len()));
}

#[test]
fn runs_are_counted_apart_and_averaged() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    for i in 0..3 {
        for _ in 0..=i {
            call(&ledger, "ci", &format!("run-{i}"), 1000 + i);
        }
    }
    call(&ledger, "ci", "", 1000);
    let by_run = Question::by(By::Run);
    let expected = [("run-2", 3), ("run-1", 2), ("-", 1), ("run-0", 1)].map(|(n, c)| (n.to_owned(), c));
    assert_eq!(calls(&ledger, &by_run, 1100), expected);
    let of_run = Question::by(By::Route).only(By::Run, "run-2");
    assert_eq!(calls(&ledger, &of_run, 1100), [("GET /x".to_owned(), 3)]);
    assert_eq!(calls(&ledger, &Question::by(By::Client).only(By::Run, "run-1"), 1100), [("ci".to_owned(), 2)]);
    assert_eq!(ledger.runs.end("run-2", 1_005_000), 1);
    assert_eq!(ledger.runs.end("run-2", 1_005_000), 0);
    // A restart keeps those that are open; they end when they are silent.
    ledger.flush().unwrap();
    assert_eq!(ledger.runs.take_ended().len(), 1);
    drop(ledger);
    let ledger = open(dir.path());
    ledger.tidy(1_100_000).unwrap();
    call(&ledger, "ci", "run-1", 1200);
    ledger.tidy(1_700_000).unwrap();
    ledger.flush().unwrap();
    assert_eq!(ledger.runs.take_ended().len(), 1, "run-0; run-1 was heard of since");
    assert_eq!(calls(&ledger, &Question::by(By::Route).only(By::Run, "run-1"), 2000), [("GET /x".to_owned(), 3)]);
    ledger.tidy(1_900_000).unwrap();
    ledger.flush().unwrap();
    let average = ledger.runs.average("ci").unwrap();
    assert_eq!((average.runs, average.calls, average.charged_per_run()), (3, 7, 7.0 / 3.0));
    assert_eq!(
        calls(&ledger, &by_run, 2000),
        [("run-1", 3), ("run-2", 3), ("-", 1), ("run-0", 1)].map(|(n, c)| (n.to_owned(), c))
    );
    assert_eq!(calls(&ledger, &Question { since: Some(1100), ..by_run.clone() }, 2000)[0].0, "run-1");
    // After a month they are forgotten.
    ledger.tidy((1200 + 31 * DAY) * 1000).unwrap();
    assert!(calls(&ledger, &of_run, 2000 + 31 * DAY).is_empty());
}

#[test]
fn a_minute_and_the_runs_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    for i in 0..20_050 {
        call(&ledger, &i.to_string(), &format!("r{i}"), 60);
    }
    let clients = calls(&ledger, &Question::by(By::Client), 100);
    assert_eq!((clients[0].0.as_str(), clients[0].1, clients.len()), ("other", 50, 20_001));
    let runs = calls(&ledger, &Question { top: None, ..Question::by(By::Run) }, 100);
    assert_eq!(runs.iter().map(|(_, n)| n).sum::<u64>(), 20_050, "no run is lost when others make room");
}

#[test]
fn moments_and_filters() {
    let now = 1_800_000_000;
    assert_eq!(moment("90m", now).unwrap(), now - 5400);
    assert_eq!(moment("2026-11-21", now).unwrap(), 1_795_219_200);
    assert_eq!(moment("2026-11-21T10:00:00Z", now).unwrap(), 1_795_255_200);
    assert!(moment("yesterday", now).unwrap_err().contains("90m"));
    assert_eq!(only("client=a=b").unwrap(), (By::Client, "a=b".to_owned()));
    assert!(only("client").is_err() && only("x=y").is_err());
}
