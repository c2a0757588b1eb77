//! The dashboard: pages made here, that need no JavaScript but for the live part.

use std::sync::{Arc, LazyLock};

use axum::extract::{Path, RawQuery, State};
use axum::http::header;
use axum::response::{Html, IntoResponse, Response};
use minijinja::{Environment, Value, context};

use super::api::{self, ClientLine, Failed, Parameters, ask, ratio};
use super::{Admin, chart};
use crate::calls::render::time_of;
use crate::calls::report::{self, By, Line, Question};
use crate::exchange::now_ms;

static TEMPLATES: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut env = Environment::new();
    for (name, source) in [
        ("base.html", include_str!("assets/base.html")),
        ("overview.html", include_str!("assets/overview.html")),
        ("list.html", include_str!("assets/list.html")),
        ("show.html", include_str!("assets/show.html")),
        ("tables.html", include_str!("assets/tables.html")),
    ] {
        env.add_template(name, source).expect("the templates are well-formed");
    }
    env.add_filter("number", number);
    env.add_filter("bytes", |bytes: u64| bytesize::ByteSize(bytes).display().iec().to_string());
    env.add_filter("percent", |part: f64| format!("{:.1} %", part * 100.0));
    env.add_filter("time", |at: u64| time_of(at));
    env.add_filter("from_now", from_now);
    env.add_filter("round1", |n: f64| format!("{n:.1}"));
    env
});

/// `1234567` as `1,234,567`.
fn number(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().map(|g| std::str::from_utf8(g).unwrap_or("")).collect();
    groups.join(",")
}

/// How far from `now` a moment is, both in seconds since 1970.
fn from_now(at: u64, now: u64) -> String {
    let text = |seconds: u64| match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d", seconds / 86_400),
    };
    if at >= now { format!("in {}", text(at - now)) } else { format!("{} ago", text(now - at)) }
}

/// A value for a template.
fn shown<T: serde::Serialize>(value: &T) -> Value {
    Value::from(minijinja::value::Serde(value))
}

fn page(name: &str, context: Value) -> Response {
    match TEMPLATES.get_template(name).and_then(|t| t.render(context)) {
        Ok(text) => Html(text).into_response(),
        Err(error) => {
            tracing::error!(%error, name, "a page could not be made");
            super::refusal(axum::http::StatusCode::INTERNAL_SERVER_ERROR, "the page could not be made")
        }
    }
}

pub(super) async fn style() -> Response {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], include_str!("assets/style.css")).into_response()
}

pub(super) async fn script() -> Response {
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], include_str!("assets/live.js")).into_response()
}

pub(super) async fn overview(State(admin): State<Arc<Admin>>) -> Response {
    let overview = match api::collect(&admin).await {
        Ok(overview) => overview,
        Err(failed) => return failed.into_response(),
    };
    let chart = Value::from_safe_string(chart::calls_per_minute(&overview.series));
    let calls = admin.exchange.live.recent();
    page(
        "overview.html",
        context! { title => "overview", now => overview.now, o => shown(&overview), chart, calls => shown(&calls) },
    )
}

/// How far back pages look, if it is not said.
const SINCE: &str = "24h";
/// What a list can be sorted by.
const SORTS: [&str; 8] = ["charged", "calls", "from_store", "saved", "errors", "bytes", "p99_ms", "name"];

/// Lines of a list at most.
const MAX_LINES: usize = 500;

pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    Path(by): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Failed> {
    let (by, parameters) = (api::by(&by)?, Parameters::of(query));
    let since = parameters.first("since").unwrap_or(SINCE).to_owned();
    let sort = parameters.first("sort").filter(|s| SORTS.contains(s)).unwrap_or(SORTS[0]).to_owned();
    let question =
        Question { since: Some(report::moment(&since, now_ms() / 1000).map_err(Failed::Query)?), ..Question::by(by) };
    let mut report = ask(&admin, move |ledger, now| report::answer(ledger, &question, now)).await?;
    let found = report.lines.len();
    sort_by(&mut report.lines, &sort);
    report.lines.truncate(MAX_LINES);
    Ok(page(
        "list.html",
        context! {
            title => by.as_str(), by => by.as_str(), since, sort, now => now_ms() / 1000, found,
            lines => shown(&report.lines), total => shown(&report.total),
        },
    ))
}

fn sort_by(lines: &mut [Line], column: &str) {
    let most = |value: fn(&Line) -> u64| move |l: &Line| std::cmp::Reverse(value(l));
    match column {
        "calls" => lines.sort_by_key(most(|l| l.calls)),
        "from_store" => lines.sort_by_key(most(|l| l.from_store)),
        "saved" => lines.sort_by_key(most(|l| l.saved)),
        "errors" => lines.sort_by_key(most(|l| l.errors)),
        "bytes" => lines.sort_by_key(most(|l| l.bytes)),
        "p99_ms" => lines.sort_by(|a, b| b.p99_ms.total_cmp(&a.p99_ms)),
        "name" => lines.sort_by(|a, b| a.name.cmp(&b.name)),
        _ => lines.sort_by_key(most(|l| l.charged)),
    }
}

/// One route, client, run, credential or host: what it cost, and what it is made of.
pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    Path(by): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Failed> {
    let (by, parameters) = (api::by(&by)?, Parameters::of(query));
    let Some(name) = parameters.first("name").map(str::to_owned) else {
        return Err(Failed::Query("which one? give its name: ?name=…".into()));
    };
    // A run is short, and told of whole.
    let since = parameters.first("since").unwrap_or(if by == By::Run { "30d" } else { SINCE }).to_owned();
    let from = report::moment(&since, now_ms() / 1000).map_err(Failed::Query)?;
    let wanted = name.clone();
    let asked = ask(&admin, move |ledger, now| {
        let mut parts = Vec::new();
        for part in [By::Route, By::Client, By::Credential, By::Outcome, By::Host].into_iter().filter(|b| *b != by) {
            let question =
                Question { since: Some(from), top: Some(20), ..Question::by(part).only(by, wanted.as_str()) };
            parts.push((part.as_str(), report::answer(ledger, &question, now)?));
        }
        let points = match by {
            By::Run => Vec::new(),
            _ => report::series(ledger, 60, &[(by, wanted.clone())], now)?,
        };
        let runs = match by {
            By::Run => api::newest_runs(ledger, 0, |run| *run.run == *wanted, 20)?,
            By::Client => api::newest_runs(ledger, 0, |run| *run.client == *wanted, 20)?,
            _ => Vec::new(),
        };
        let average = match by {
            By::Client => Some(ClientLine::of(wanted.as_str().into(), ledger.runs.average(&wanted)?)),
            _ => None,
        };
        let quota = match by {
            By::Credential => report::quotas(ledger)?.into_iter().filter(|q| q.credential == wanted).collect(),
            _ => Vec::new(),
        };
        Ok((parts, points, runs, average, quota))
    });
    let (parts, points, runs, average, quota) = asked.await?;
    let total = parts.first().map(|(_, report)| report.total.clone()).unwrap_or_default();
    let chart = if points.is_empty() { String::new() } else { chart::calls_per_minute(&points) };
    Ok(page(
        "show.html",
        context! {
            title => name.clone(), name, by => by.as_str(), since, now => now_ms() / 1000,
            hit_ratio => ratio(total.from_store, total.calls), total => shown(&total),
            parts => shown(&parts), chart => Value::from_safe_string(chart),
            runs => shown(&runs), average => shown(&average),
            quota => shown(&quota),
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!([0, 999, 1000, 1_234_567].map(number), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(from_now(160, 100), "in 1 min");
        assert_eq!(from_now(100, 100 + 7500), "2 h 5 min ago");
    }
}
