//! Reports: the ledger summed up by one dimension.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::ledger::Ledger;
use super::packed::Packed;
use super::row::{Sum, Times};
use super::tiers::Tier;

/// The dimension that a report sums up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum By {
    Route,
    Client,
    Run,
    Credential,
    Host,
    Hour,
    Outcome,
}

impl By {
    pub const ALL: [By; 7] = [By::Route, By::Client, By::Run, By::Credential, By::Host, By::Hour, By::Outcome];

    pub fn as_str(self) -> &'static str {
        match self {
            By::Route => "route",
            By::Client => "client",
            By::Run => "run",
            By::Credential => "credential",
            By::Host => "host",
            By::Hour => "hour",
            By::Outcome => "outcome",
        }
    }
}

/// What is asked of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub by: By,
    /// Seconds since 1970; none: from the beginning.
    pub since: Option<u64>,
    /// Seconds since 1970, not included; none: until now.
    pub until: Option<u64>,
    /// Only what has these names.
    pub only: Vec<(By, String)>,
    /// The lines that cost most, so many.
    pub top: Option<usize>,
}

impl Question {
    /// Everything, by one dimension.
    pub fn by(by: By) -> Question {
        Question { by, since: None, until: None, only: Vec::new(), top: None }
    }

    pub fn only(mut self, by: By, name: impl Into<String>) -> Question {
        self.only.push((by, name.into()));
        self
    }

    fn wanted(&self, by: By) -> impl Iterator<Item = &str> {
        self.only.iter().filter(move |(b, _)| *b == by).map(|(_, name)| name.as_str())
    }
}

/// One line of a report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// The route, client, … that it is about; `-` for calls that have none.
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
    #[serde(default, skip_serializing)]
    pub times: Times,
    /// Of a credential: its quota, in the resource that has least left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<QuotaLine>,
}

/// What is known of a credential's quota.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QuotaLine {
    pub credential: String,
    /// The App's slug and the account, where an answer told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    pub resource: String,
    pub limit: u64,
    pub remaining: u64,
    /// Seconds since 1970.
    pub reset: u64,
    pub used: u64,
    pub used_by_us: u64,
    pub used_by_others: u64,
    /// Lately.
    pub used_per_minute: f64,
    /// Seconds since 1970; none: not before the reset.
    pub exhausted_at: Option<u64>,
}

impl Line {
    pub fn of(name: String, sum: &Sum) -> Line {
        let ms = |percent| sum.counts.times.quantile(percent) as f64 / 1000.0;
        Line {
            name,
            calls: sum.counts.calls,
            from_store: sum.from_store,
            sent: sum.counts.sent,
            charged: sum.counts.charged,
            saved: sum.saved,
            errors: sum.errors,
            bytes: sum.counts.bytes,
            median_ms: ms(50),
            p99_ms: ms(99),
            times: sum.counts.times.clone(),
            quota: None,
        }
    }
}

/// A whole report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub by: By,
    pub lines: Vec<Line>,
    pub total: Line,
}

type Sums = HashMap<Arc<str>, Sum, foldhash::fast::RandomState>;

/// Answers a question; the lines that cost most first, hours in their order. Blocks on the disk. `now` in seconds
/// since 1970.
pub fn answer(ledger: &Ledger, question: &Question, now: u64) -> io::Result<Report> {
    let mut sums = Sums::default();
    let by_run = question.by == By::Run || question.wanted(By::Run).next().is_some();
    match by_run {
        true => sum_runs(ledger, question, now, &mut sums)?,
        false => sum_rows(ledger, question, now, &mut sums)?,
    }
    let mut total = Sum::default();
    sums.values().for_each(|sum| total.merge(sum));
    let mut lines: Vec<Line> = sums.iter().map(|(name, sum)| Line::of(name.to_string(), sum)).collect();
    match question.by {
        By::Hour => lines.sort_by(|a, b| a.name.cmp(&b.name)),
        _ => lines.sort_by(|a, b| (b.charged, b.calls, &a.name).cmp(&(a.charged, a.calls, &b.name))),
    }
    lines.truncate(question.top.unwrap_or(usize::MAX));
    if question.by == By::Credential {
        let quotas = quotas(ledger)?;
        for line in &mut lines {
            line.quota = quotas.iter().find(|q| q.credential == line.name && q.reset > now).cloned();
        }
    }
    Ok(Report { by: question.by, lines, total: Line::of("total".into(), &total) })
}

/// The quota of every credential, that with least left first.
pub fn quotas(ledger: &Ledger) -> io::Result<Vec<QuotaLine>> {
    let all = ledger.quotas.all().into_iter().map(|(credential, resource, window)| {
        let installation = match credential.strip_prefix("installation:") {
            Some(id) => ledger.known.installation(id)?.unwrap_or_default(),
            None => Default::default(),
        };
        Ok(QuotaLine {
            credential: credential.to_string(),
            app: installation.app,
            account: installation.account,
            resource: resource.to_owned(),
            limit: window.limit,
            remaining: window.remaining,
            reset: window.reset,
            used: window.used,
            used_by_us: window.used_by_us,
            used_by_others: window.used_by_others(),
            used_per_minute: window.rate(),
            exhausted_at: window.exhausted_at(),
        })
    });
    all.collect()
}

/// Reads names, and tells which rows are wanted.
struct Reader<'a> {
    question: &'a Question,
    names: HashMap<u32, Arc<str>, foldhash::fast::RandomState>,
    aliases: HashMap<String, Arc<str>, foldhash::fast::RandomState>,
    hours: HashMap<u32, Arc<str>, foldhash::fast::RandomState>,
    unknown: Arc<str>,
}

impl<'a> Reader<'a> {
    fn new(ledger: &Ledger, question: &'a Question) -> io::Result<Reader<'a>> {
        let mut names = ledger.names()?;
        for name in names.values_mut().filter(|n| n.is_empty()) {
            *name = "-".into();
        }
        let aliases = ledger.known.aliases()?;
        Ok(Reader { question, names, aliases, hours: HashMap::default(), unknown: "?".into() })
    }

    fn name(&mut self, by: By, minute: u32, tier: Tier, row: &Packed) -> Arc<str> {
        let number = match by {
            By::Route => row.route,
            By::Client => row.client,
            By::Host => row.host,
            By::Credential => row.credential,
            By::Outcome => return row.outcome.as_str().into(),
            By::Run => return if row.in_run { "(in a run)".into() } else { "-".into() },
            By::Hour => {
                let hour = minute - minute % 60;
                return self.hours.entry(hour).or_insert_with(|| hour_name(hour, tier).into()).clone();
            }
        };
        let name = self.names.get(&number).unwrap_or(&self.unknown);
        match by {
            By::Credential => self.aliases.get(&**name).unwrap_or(name).clone(),
            _ => name.clone(),
        }
    }

    fn wants(&mut self, minute: u32, tier: Tier, row: &Packed, except: By) -> bool {
        let question = self.question;
        question
            .only
            .iter()
            .filter(|(by, _)| *by != except)
            .all(|(by, name)| *self.name(*by, minute, tier, row) == **name)
    }
}

fn sum_rows(ledger: &Ledger, question: &Question, now: u64, sums: &mut Sums) -> io::Result<()> {
    let mut reader = Reader::new(ledger, question)?;
    let minute = |seconds: u64| u32::try_from(seconds / 60).unwrap_or(u32::MAX);
    let since = question.since.map_or(0, minute);
    let until = question.until.map_or(u32::MAX, |s| minute(s.saturating_add(59))).min(minute(now) + 2);
    let by_hour = question.by == By::Hour || question.wanted(By::Hour).next().is_some();
    let coarsest = if by_hour { Tier::Hour } else { Tier::Day };
    for part in ledger.reach().plan(since, until, coarsest) {
        ledger.rows(part, |minute, row, counts| {
            if reader.wants(minute, part.0, &row, By::Run) {
                let name = reader.name(question.by, minute, part.0, &row);
                sums.entry(name).or_default().add(row.outcome, row.status, &counts);
            }
        })?;
    }
    Ok(())
}

/// Runs are counted whole, if they were on in the time that is asked for.
fn sum_runs(ledger: &Ledger, question: &Question, now: u64, sums: &mut Sums) -> io::Result<()> {
    let mut reader = Reader::new(ledger, question)?;
    let since = question.since.unwrap_or(0).saturating_mul(1000);
    let until = question.until.unwrap_or(u64::MAX / 1000).saturating_mul(1000);
    // A run knows its client and its sum; the rest is in its rows.
    let in_rows = question.only.iter().any(|(by, _)| !matches!(by, By::Run | By::Client))
        || !matches!(question.by, By::Run | By::Client);
    let mut failed = None;
    ledger.runs.each(since, until, |id, run| {
        let named = question.wanted(By::Run).all(|name| *run.run == *name)
            && question.wanted(By::Client).all(|name| *run.client == *name);
        if !named {
            return true;
        }
        if !in_rows {
            let name = if question.by == By::Run { run.run } else { run.client };
            sums.entry(name).or_default().merge(&run.sum);
            return true;
        }
        let minute = u32::try_from(run.started / 60_000).unwrap_or(u32::MAX);
        let read = ledger.runs.rows(id, |row, counts| {
            if reader.wants(minute, Tier::Minute, row, By::Run) {
                let name = match question.by {
                    By::Run => run.run.clone(),
                    by => reader.name(by, minute, Tier::Minute, row),
                };
                sums.entry(name).or_default().add(row.outcome, row.status, counts);
            }
        });
        failed = read.err();
        failed.is_none()
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    if question.by == By::Run && question.wanted(By::Run).next().is_none() {
        // What belongs to no run.
        let mut rest = Sums::default();
        sum_rows(ledger, question, now, &mut rest)?;
        rest.retain(|name, _| **name == *"-");
        sums.extend(rest);
    }
    Ok(())
}

/// Calls in one minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Seconds since 1970, at its beginning.
    pub at: u64,
    pub calls: u64,
    pub from_store: u64,
    pub charged: u64,
    pub saved: u64,
    pub errors: u64,
}

/// The calls of each of the last `minutes` minutes, the running one last; only what has these names. `now` in seconds
/// since 1970. Runs cannot be told apart by the minute.
pub fn series(ledger: &Ledger, minutes: u32, only: &[(By, String)], now: u64) -> io::Result<Vec<Point>> {
    let question = Question { only: only.to_vec(), ..Question::by(By::Hour) };
    let mut reader = Reader::new(ledger, &question)?;
    let last = u32::try_from(now / 60).unwrap_or(u32::MAX - 1);
    let first = (last + 1).saturating_sub(minutes);
    let mut sums = vec![Sum::default(); (last + 1 - first) as usize];
    ledger.rows((Tier::Minute, first, last + 1), |minute, row, counts| {
        if reader.wants(minute, Tier::Minute, &row, By::Run) {
            sums[(minute - first) as usize].add(row.outcome, row.status, &counts);
        }
    })?;
    let points = sums.iter().zip(u64::from(first)..).map(|(sum, minute)| Point {
        at: minute * 60,
        calls: sum.counts.calls,
        from_store: sum.from_store,
        charged: sum.counts.charged,
        saved: sum.saved,
        errors: sum.errors,
    });
    Ok(points.collect())
}

fn hour_name(minute: u32, tier: Tier) -> String {
    let at = OffsetDateTime::from_unix_timestamp(i64::from(minute) * 60).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    match tier {
        Tier::Day => at.date().to_string(),
        _ => format!("{}T{:02}:00Z", at.date(), at.hour()),
    }
}

/// A moment: how long ago (`90m`, `2d`), or when (`2026-11-21`, `2026-11-21T10:00:00Z`), in seconds since 1970.
///
/// # Errors
/// One line that says what is expected.
pub fn moment(text: &str, now: u64) -> Result<u64, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return Ok(now.saturating_sub(ago.as_secs()));
    }
    let day = humantime::parse_rfc3339_weak(&format!("{text}T00:00:00Z"));
    let at = humantime::parse_rfc3339_weak(text).or(day);
    let since = at.ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    since.map(|d| d.as_secs()).ok_or_else(|| {
        format!("{text:?} is no moment: give how long ago, as 90m or 2d, or when, as 2026-11-21T10:00:00Z")
    })
}

/// `client=ci`: a dimension, and the name in it that is wanted.
///
/// # Errors
/// One line that says what is expected.
pub fn only(text: &str) -> Result<(By, String), String> {
    let found = text.split_once('=').and_then(|(by, name)| {
        let by = By::ALL.into_iter().find(|b| b.as_str() == by)?;
        Some((by, name.to_owned()))
    });
    found.ok_or_else(|| {
        format!("{text:?}: route=, client=, run=, credential=, host=, hour= or outcome= and a name is expected")
    })
}

#[cfg(test)]
mod tests;
