//! The API: every number on the dashboard, as JSON.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::{Admin, ledger_bytes, refusal, seconds_since_upstream_answered, store_stats};
use crate::cache::store::Stats;
use crate::calls::ledger::Ledger;
use crate::calls::report::{self, By, Line, Point, Question, QuotaLine, Report};
use crate::calls::runs::{Average, Run};
use crate::exchange::now_ms;

/// A query that is wrong, or a ledger that cannot be read.
pub(super) enum Failed {
    Query(String),
    Ledger(std::io::Error),
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        match self {
            Failed::Query(why) => refusal(StatusCode::BAD_REQUEST, &why),
            Failed::Ledger(error) => {
                refusal(StatusCode::INTERNAL_SERVER_ERROR, &format!("the ledger cannot be read: {error}"))
            }
        }
    }
}

/// The parameters of a query.
pub(super) struct Parameters(pub Vec<(String, String)>);

impl Parameters {
    pub fn of(query: Option<String>) -> Parameters {
        let query = query.unwrap_or_default();
        Parameters(form_urlencoded::parse(query.as_bytes()).into_owned().filter(|(_, v)| !v.is_empty()).collect())
    }

    pub fn first(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn moment(&self, name: &str) -> Result<Option<u64>, Failed> {
        self.first(name).map(|text| report::moment(text, now_ms() / 1000)).transpose().map_err(Failed::Query)
    }

    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Failed> {
        let number = self.first(name).map(|text| text.parse().map_err(|_| format!("{name}={text:?} is no number")));
        number.transpose().map_err(Failed::Query)
    }

    fn question(&self) -> Result<Question, Failed> {
        let by = match self.first("by") {
            Some(name) => by(name)?,
            None => By::Route,
        };
        let only = self.all("where").map(report::only).collect::<Result<Vec<_>, _>>().map_err(Failed::Query)?;
        let run = self.all("run").map(|run| (By::Run, run.to_owned()));
        Ok(Question {
            by,
            since: self.moment("since")?,
            until: self.moment("until")?,
            only: only.into_iter().chain(run).collect(),
            top: self.number("top")?,
        })
    }
}

/// The dimension of this name.
pub(super) fn by(name: &str) -> Result<By, Failed> {
    let known = By::ALL.map(By::as_str).join(", ");
    By::ALL
        .into_iter()
        .find(|b| b.as_str() == name)
        .ok_or_else(|| Failed::Query(format!("by={name:?} is none of {known}")))
}

/// Asks the ledger, elsewhere, after it has written what it has.
pub(super) async fn ask<T: Send + 'static>(
    admin: &Arc<Admin>,
    question: impl FnOnce(&Ledger, u64) -> std::io::Result<T> + Send + 'static,
) -> Result<T, Failed> {
    let ledger = admin.exchange.ledger.clone();
    let asked = tokio::task::spawn_blocking(move || {
        ledger.flush()?;
        question(&ledger, now_ms() / 1000)
    });
    asked.await.map_err(std::io::Error::other).and_then(|answer| answer).map_err(Failed::Ledger)
}

pub(super) async fn report(State(admin): State<Arc<Admin>>, RawQuery(query): RawQuery) -> Result<Json<Report>, Failed> {
    let question = Parameters::of(query).question()?;
    ask(&admin, move |ledger, now| report::answer(ledger, &question, now)).await.map(Json)
}

pub(super) async fn quota(State(admin): State<Arc<Admin>>) -> Result<Json<Vec<QuotaLine>>, Failed> {
    ask(&admin, current_quotas).await.map(Json)
}

fn current_quotas(ledger: &Ledger, now: u64) -> std::io::Result<Vec<QuotaLine>> {
    let mut all = report::quotas(ledger)?;
    all.retain(|q| q.reset > now);
    Ok(all)
}

/// How many minutes a series has, if it is not said; and at most.
const MINUTES: u32 = 60;
const MAX_MINUTES: u32 = 2 * 24 * 60;

pub(super) async fn series(
    State(admin): State<Arc<Admin>>,
    RawQuery(query): RawQuery,
) -> Result<Json<Vec<Point>>, Failed> {
    let parameters = Parameters::of(query);
    let minutes = parameters.number("minutes")?.unwrap_or(MINUTES).clamp(1, MAX_MINUTES);
    let only = parameters.question()?.only;
    if only.iter().any(|(by, _)| *by == By::Run) {
        return Err(Failed::Query("runs cannot be told apart by the minute; /api/runs/RUN has their sums".into()));
    }
    ask(&admin, move |ledger, now| report::series(ledger, minutes, &only, now)).await.map(Json)
}

/// A run, as it is told of.
#[derive(Clone, Debug, Serialize)]
pub(super) struct RunLine {
    pub client: Arc<str>,
    pub run: Arc<str>,
    /// Seconds since 1970, as are all times here.
    pub started: u64,
    pub last: u64,
    /// None: it is still on.
    pub ended: Option<u64>,
    #[serde(flatten)]
    pub line: Line,
}

impl RunLine {
    fn of(run: Run) -> RunLine {
        let line = Line::of(run.run.to_string(), &run.sum);
        let seconds = |ms: u64| ms / 1000;
        RunLine {
            client: run.client,
            run: run.run,
            started: seconds(run.started),
            last: seconds(run.last),
            ended: run.ended.map(seconds),
            line,
        }
    }
}

/// The newest runs of a client, or of all.
pub(super) fn newest_runs(
    ledger: &Ledger,
    since: u64,
    only: impl Fn(&Run) -> bool,
    top: usize,
) -> std::io::Result<Vec<RunLine>> {
    let runs = ledger.runs.newest(since.saturating_mul(1000), top, only)?;
    Ok(runs.into_iter().map(RunLine::of).collect())
}

/// Runs that are told of, if it is not said how many; and at most.
const RUNS: usize = 100;
const MAX_RUNS: usize = 10_000;

pub(super) async fn runs(
    State(admin): State<Arc<Admin>>,
    RawQuery(query): RawQuery,
) -> Result<Json<Vec<RunLine>>, Failed> {
    let parameters = Parameters::of(query);
    let (since, top) = (parameters.moment("since")?.unwrap_or(0), parameters.number("top")?.unwrap_or(RUNS));
    let client = parameters.first("client").map(str::to_owned);
    ask(&admin, move |ledger, _| {
        newest_runs(ledger, since, |run| client.as_ref().is_none_or(|c| **c == *run.client), top.min(MAX_RUNS))
    })
    .await
    .map(Json)
}

/// One label's runs, and what they called.
#[derive(Serialize)]
pub(super) struct Inventory {
    pub runs: Vec<RunLine>,
    pub routes: Report,
}

pub(super) async fn run(State(admin): State<Arc<Admin>>, Path(run): Path<String>) -> Response {
    let answer = ask(&admin, move |ledger, now| {
        let runs = newest_runs(ledger, 0, |r| *r.run == *run, RUNS)?;
        let routes = report::answer(ledger, &Question::by(By::Route).only(By::Run, run.as_str()), now)?;
        Ok(Inventory { runs, routes })
    });
    match answer.await {
        Ok(inventory) if inventory.runs.is_empty() => refusal(StatusCode::NOT_FOUND, "there is no such run"),
        Ok(inventory) => Json(inventory).into_response(),
        Err(failed) => failed.into_response(),
    }
}

pub(super) async fn end_run(State(admin): State<Arc<Admin>>, Path(run): Path<String>) -> Response {
    let ended = admin.exchange.ledger.runs.end(&run, now_ms());
    match ended {
        0 => refusal(StatusCode::NOT_FOUND, "no such run is on"),
        _ => Json(serde_json::json!({ "ended": ended })).into_response(),
    }
}

/// What the last hundred runs of a client came to.
#[derive(Serialize)]
pub(super) struct ClientLine {
    pub client: Arc<str>,
    pub runs: u64,
    pub calls_per_run: f64,
    pub charged_per_run: f64,
}

impl ClientLine {
    pub fn of(client: Arc<str>, average: Average) -> ClientLine {
        let (calls_per_run, charged_per_run) = (average.calls_per_run(), average.charged_per_run());
        ClientLine { client, runs: average.runs, calls_per_run, charged_per_run }
    }
}

pub(super) async fn clients(State(admin): State<Arc<Admin>>) -> Result<Json<Vec<ClientLine>>, Failed> {
    let averages = ask(&admin, |ledger, _| ledger.runs.averages()).await?;
    Ok(Json(averages.into_iter().map(|(client, average)| ClientLine::of(client, average)).collect()))
}

/// What the dashboard's first page shows.
#[derive(Serialize)]
pub(super) struct Overview {
    pub version: &'static str,
    /// Seconds since 1970.
    pub now: u64,
    /// All calls of the last hour.
    pub hour: Line,
    /// Of them, answered from the store: 0 to 1.
    pub hit_ratio: f64,
    /// Calls of the last hour to which GitHub gave no answer.
    pub failed: u64,
    pub series: Vec<Point>,
    pub quota: Vec<QuotaLine>,
    pub routes: Vec<Line>,
    pub clients: Vec<Line>,
    pub runs: Vec<RunLine>,
    pub averages: Vec<ClientLine>,
    pub seconds_since_upstream_answered: Option<u64>,
    pub connections_open: i64,
    pub tunnels_open: i64,
    pub store: Stats,
    pub ledger_bytes: u64,
}

/// Lines of each table on the first page.
const TOP: usize = 10;

pub(super) async fn collect(admin: &Arc<Admin>) -> Result<Overview, Failed> {
    let asked = ask(admin, |ledger, now| {
        let hour = |by| Question { since: Some(now - 3600), top: Some(TOP), ..Question::by(by) };
        let outcomes = report::answer(ledger, &hour(By::Outcome), now)?;
        let failed = outcomes.lines.iter().filter(|l| matches!(l.name.as_str(), "failed" | "stale"));
        let failed = failed.map(|l| l.calls).sum();
        let mut averages = ledger.runs.averages()?;
        averages.sort_by_key(|(_, average)| std::cmp::Reverse(average.charged / average.runs.max(1)));
        averages.truncate(TOP);
        let series = report::series(ledger, MINUTES, &[], now)?;
        let routes = report::answer(ledger, &hour(By::Route), now)?.lines;
        let clients = report::answer(ledger, &hour(By::Client), now)?.lines;
        let runs = newest_runs(ledger, 0, |_| true, TOP)?;
        Ok((outcomes.total, failed, series, current_quotas(ledger, now)?, routes, clients, runs, averages, now))
    });
    let (hour, failed, series, quota, routes, clients, runs, averages, now) = asked.await?;
    let metrics = &admin.exchange.metrics;
    Ok(Overview {
        version: env!("CARGO_PKG_VERSION"),
        now,
        hit_ratio: ratio(hour.from_store, hour.calls),
        hour,
        failed,
        series,
        quota,
        routes,
        clients,
        runs,
        averages: averages.into_iter().map(|(client, average)| ClientLine::of(client, average)).collect(),
        seconds_since_upstream_answered: seconds_since_upstream_answered(admin),
        connections_open: metrics.connections_open.get(),
        tunnels_open: metrics.tunnels_open.get(),
        store: store_stats(admin).await,
        ledger_bytes: ledger_bytes(admin).await,
    })
}

pub(super) fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

pub(super) async fn overview(State(admin): State<Arc<Admin>>) -> Result<Json<Overview>, Failed> {
    collect(&admin).await.map(Json)
}

pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("assets/openapi.json")).into_response()
}
