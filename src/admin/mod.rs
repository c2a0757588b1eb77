//! The admin listener: health, metrics, and the API that the command line asks.

pub mod client;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use tokio::net::TcpListener;

use crate::cache::sled::occupied;
use crate::cache::store::{self, Stats};
use crate::cache::stored::Entry;
use crate::calls::ledger;
use crate::calls::report::{self, By, Line, Question};
use crate::drain::Drain;
use crate::exchange::{Exchange, now_ms};

/// What the admin side shows.
pub struct Admin {
    pub exchange: Arc<Exchange>,
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    /// True once we drain: not ready for more.
    pub drain: Drain,
}

/// The field that a request which changes something must carry: no page of another site can send it.
pub const INTENT: &str = "x-ghtap";

/// Serves the admin address until `drain` turns true.
pub async fn run(listener: TcpListener, admin: Arc<Admin>) -> std::io::Result<()> {
    let mut drain = admin.drain.clone();
    let api = Router::new()
        .route("/", get(overview))
        .route("/api/report", get(report))
        .route("/api/cache", get(cache_list))
        .route("/api/cache/stats", get(cache_stats))
        .route("/api/cache/entry", get(cache_entry))
        .route("/api/cache/purge", post(purge))
        .layer(middleware::from_fn_with_state(admin.clone(), guard));
    let open = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics));
    let app = api.merge(open).with_state(admin).into_make_service_with_connect_info::<SocketAddr>();
    let served = axum::serve(listener, app).with_graceful_shutdown(async move {
        drain.begun().await;
    });
    served.await
}

/// All but health and metrics answers only from this machine and to our own address as `Host`: a page whose
/// name was rebound to it cannot ask (DNS rebinding).
async fn guard(
    State(admin): State<Arc<Admin>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let host = request.headers().get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, port)| if port.ends_with(']') { host } else { name });
    let ip = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    let ours = name.eq_ignore_ascii_case("localhost") || ip.is_ok_and(|ip| ip.is_loopback() || ip == admin.listen.ip());
    if !ours {
        return refusal(
            StatusCode::MISDIRECTED_REQUEST,
            "this address answers only to its own name: use http://127.0.0.1 or http://localhost",
        );
    }
    if request.headers().contains_key(header::VIA) {
        return refusal(StatusCode::FORBIDDEN, "this address does not answer through a proxy");
    }
    if !peer.ip().to_canonical().is_loopback() {
        return refusal(
            StatusCode::FORBIDDEN,
            "reports are for this machine only; /metrics, /healthz and /readyz are for all",
        );
    }
    if request.method() != "GET" && !request.headers().contains_key(INTENT) {
        return refusal(StatusCode::FORBIDDEN, "a request that changes something needs the field X-Ghtap: 1");
    }
    next.run(request).await
}

fn refusal(status: StatusCode, message: &str) -> Response {
    (status, Json(serde_json::json!({ "message": message, "status": status.as_u16().to_string() }))).into_response()
}

async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    let draining = admin.drain.has_begun();
    let status = if draining { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let upstream = admin.exchange.last_upstream_ok();
    let seconds = (upstream > 0).then(|| now_ms().saturating_sub(upstream) / 1000);
    let stats = stats(&admin).await;
    let body = serde_json::json!({
        "ready": !draining,
        "store": { "kind": stats.kind, "errors": stats.errors },
        "seconds_since_upstream_answered": seconds,
    });
    (status, Json(body)).into_response()
}

async fn stats(admin: &Arc<Admin>) -> Stats {
    let store = admin.exchange.store.clone();
    tokio::task::spawn_blocking(move || store.stats()).await.unwrap_or_default()
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    let stats = stats(&admin).await;
    let data_dir = admin.data_dir.join(ledger::DIRECTORY);
    let bytes = tokio::task::spawn_blocking(move || occupied(&data_dir)).await.unwrap_or(0);
    admin.exchange.metrics.ledger_bytes.set(bytes as f64);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], admin.exchange.metrics.render(&stats)).into_response()
}

async fn answer(admin: &Arc<Admin>, question: Question) -> std::io::Result<Vec<Line>> {
    let ledger = admin.exchange.ledger.clone();
    let asked = tokio::task::spawn_blocking(move || {
        ledger.flush()?;
        report::answer(&ledger, &question, now_ms() / 1000)
    });
    asked.await.map_err(std::io::Error::other)?
}

async fn report(State(admin): State<Arc<Admin>>, Query(question): Query<Question>) -> Response {
    match answer(&admin, question).await {
        Ok(lines) => Json(lines).into_response(),
        Err(error) => refusal(StatusCode::INTERNAL_SERVER_ERROR, &format!("the ledger cannot be read: {error}")),
    }
}

async fn cache_stats(State(admin): State<Arc<Admin>>) -> Response {
    Json(stats(&admin).await).into_response()
}

#[derive(Deserialize)]
struct Which {
    #[serde(default)]
    prefix: String,
}

/// What is told of a stored key.
#[derive(Clone, Debug, serde::Serialize, Deserialize)]
pub struct Listed {
    pub url: String,
    pub accept: Option<String>,
    pub representations: usize,
    pub bytes: u64,
    /// Seconds since GitHub last confirmed it to anyone.
    pub confirmed_seconds_ago: u64,
}

impl Listed {
    pub fn of(entry: &Entry) -> Listed {
        let confirmed = entry.representations.iter().map(|r| r.confirmed_at()).max().unwrap_or(0);
        Listed {
            url: store::url(entry),
            accept: entry.key.accept.clone(),
            representations: entry.representations.len(),
            bytes: entry.bodies_len(),
            confirmed_seconds_ago: now_ms().saturating_sub(confirmed) / 1000,
        }
    }
}

/// What is told of all that is stored for one URL. No credential is in it: validators are counted.
pub fn describe(entries: &[Entry]) -> serde_json::Value {
    let described = entries.iter().map(|entry| {
        let representations = entry.representations.iter().map(|r| {
            serde_json::json!({
                "head": String::from_utf8_lossy(&r.head).trim_end(),
                "bytes": r.body_len,
                "elements": r.elements,
                "etag_is_computable": r.recipe.is_some(),
                "stored_seconds_ago": now_ms().saturating_sub(r.stored_at) / 1000,
                "confirmed_seconds_ago": now_ms().saturating_sub(r.confirmed_at()) / 1000,
                "credentials": r.validators.len(),
            })
        });
        serde_json::json!({
            "url": store::url(entry),
            "accept": entry.key.accept,
            "api_version": entry.key.api_version,
            "pretty": entry.key.pretty,
            "representations": representations.collect::<Vec<_>>(),
        })
    });
    serde_json::Value::Array(described.collect())
}

async fn cache_list(State(admin): State<Arc<Admin>>, Query(which): Query<Which>) -> Response {
    let store = admin.exchange.store.clone();
    let listed = tokio::task::spawn_blocking(move || {
        let mut listed = Vec::new();
        store.for_each(|_, entry| {
            if store::url(entry).starts_with(&which.prefix) {
                listed.push(Listed::of(entry));
            }
        });
        listed.sort_by(|a, b| a.url.cmp(&b.url));
        listed
    });
    Json(listed.await.unwrap_or_default()).into_response()
}

#[derive(Deserialize)]
struct One {
    url: String,
}

async fn cache_entry(State(admin): State<Arc<Admin>>, Query(one): Query<One>) -> Response {
    let store = admin.exchange.store.clone();
    let found = tokio::task::spawn_blocking(move || {
        let mut found = Vec::new();
        store.for_each(|_, entry| {
            if store::url(entry) == one.url {
                found.push(entry.clone());
            }
        });
        describe(&found)
    });
    Json(found.await.unwrap_or_default()).into_response()
}

async fn purge(State(admin): State<Arc<Admin>>, Query(which): Query<Which>) -> Response {
    let store = admin.exchange.store.clone();
    let purged = tokio::task::spawn_blocking(move || store.purge(&which.prefix)).await.unwrap_or(0);
    tracing::info!(purged, "the store was purged");
    Json(serde_json::json!({ "purged": purged })).into_response()
}

async fn overview(State(admin): State<Arc<Admin>>, _: HeaderMap) -> Response {
    let question = Question { by: By::Route, since: Some(Duration::from_secs(3600).as_secs()), run: None };
    let lines = answer(&admin, question).await.unwrap_or_default();
    let table = report::render(&lines, By::Route, report::Format::Table);
    let escaped = table.replace('&', "&amp;").replace('<', "&lt;");
    Html(format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"color-scheme\" content=\"light dark\">\
         <title>ghtap</title><h1>ghtap</h1><p>The last hour, by route. \
         More: <code>ghtap report</code>, <a href=\"/metrics\">/metrics</a>, <a href=\"/api/report?by=client\">/api/report</a>.</p>\
         <pre>{escaped}</pre></html>"
    ))
    .into_response()
}
