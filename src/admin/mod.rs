//! The admin listener: health, metrics, the API that the command line asks, and the dashboard.
//!
//! `access` says who may ask; `api` answers in JSON, and `pages` shows the same numbers; `live` tells of calls as they
//! end; `stored` is about the cache. `openapi.json` describes the API.

mod access;
mod api;
mod chart;
pub mod client;
mod live;
mod pages;
pub mod stored;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio::net::TcpListener;

use crate::cache::sled::occupied;
use crate::cache::store::Stats;
use crate::calls::ledger;
use crate::drain::Drain;
use crate::exchange::{Exchange, now_ms};
pub use access::{Access, INTENT};

/// What the admin side shows.
pub struct Admin {
    pub exchange: Arc<Exchange>,
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    pub access: Access,
    /// True once we drain: not ready for more.
    pub drain: Drain,
}

/// Serves the admin address until `drain` turns true.
pub async fn run(listener: TcpListener, admin: Arc<Admin>) -> std::io::Result<()> {
    let mut drain = admin.drain.clone();
    let guarded = Router::new()
        .route("/", get(pages::overview))
        .route("/list/{by}", get(pages::list))
        .route("/show/{by}", get(pages::show))
        .route("/style.css", get(pages::style))
        .route("/live.js", get(pages::script))
        .route("/api/overview", get(api::overview))
        .route("/api/report", get(api::report))
        .route("/api/quota", get(api::quota))
        .route("/api/series", get(api::series))
        .route("/api/runs", get(api::runs))
        .route("/api/runs/{run}", get(api::run))
        .route("/api/runs/{run}/end", post(api::end_run))
        .route("/api/clients", get(api::clients))
        .route("/api/calls", get(live::recent))
        .route("/api/events", get(live::events))
        .route("/api/cache", get(stored::list))
        .route("/api/cache/stats", get(stored::stats))
        .route("/api/cache/entry", get(stored::entry))
        .route("/api/cache/purge", post(stored::purge))
        .route("/api/openapi.json", get(api::openapi))
        .fallback(|| async { refusal(StatusCode::NOT_FOUND, "there is no such page; /api/openapi.json names all") })
        .layer(middleware::from_fn_with_state(admin.clone(), access::guard));
    let open = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics));
    let app = guarded.merge(open).with_state(admin).into_make_service_with_connect_info::<SocketAddr>();
    let served = axum::serve(listener, app).with_graceful_shutdown(async move {
        drain.begun().await;
    });
    served.await
}

fn refusal(status: StatusCode, message: &str) -> Response {
    (status, Json(serde_json::json!({ "message": message, "status": status.as_u16().to_string() }))).into_response()
}

/// Seconds since GitHub last answered; none: not since the start.
fn seconds_since_upstream_answered(admin: &Admin) -> Option<u64> {
    let last = admin.exchange.last_upstream_ok();
    (last > 0).then(|| now_ms().saturating_sub(last) / 1000)
}

async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    let draining = admin.drain.has_begun();
    let status = if draining { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let stats = store_stats(&admin).await;
    let body = serde_json::json!({
        "ready": !draining,
        "store": { "kind": stats.kind, "errors": stats.errors },
        "seconds_since_upstream_answered": seconds_since_upstream_answered(&admin),
    });
    (status, Json(body)).into_response()
}

async fn store_stats(admin: &Arc<Admin>) -> Stats {
    let store = admin.exchange.store.clone();
    tokio::task::spawn_blocking(move || store.stats()).await.unwrap_or_default()
}

/// Bytes that the ledger occupies on disk.
async fn ledger_bytes(admin: &Arc<Admin>) -> u64 {
    let path = admin.data_dir.join(ledger::DIRECTORY);
    tokio::task::spawn_blocking(move || occupied(&path)).await.unwrap_or(0)
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    let stats = store_stats(&admin).await;
    let metrics = &admin.exchange.metrics;
    metrics.ledger_bytes.set(ledger_bytes(&admin).await as f64);
    metrics.last_answer.set((admin.exchange.last_upstream_ok() / 1000) as f64);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render(&stats)).into_response()
}
