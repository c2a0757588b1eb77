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
use std::time::Duration;

use axum::extract::{ConnectInfo, State};
use axum::http::{Request, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower::ServiceExt;

use crate::cache::store::Stats;
use crate::calls::ledger;
use crate::drain::Drain;
use crate::exchange::{Exchange, now_ms};
use crate::patient::Patient;
use crate::scrape;
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

/// How long a caller may take over a request head, or over reading an answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// Connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 256;

/// Serves the admin address until `drain` turns true.
pub async fn run(listener: TcpListener, admin: Arc<Admin>) {
    let limit = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut drain = admin.drain.clone();
    let app = router(admin.clone());
    loop {
        let accepted = async {
            let permit = limit.clone().acquire_owned().await.map_err(std::io::Error::other)?;
            let (stream, peer) = listener.accept().await?;
            Ok::<_, std::io::Error>((stream, peer, permit))
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            () = drain.begun() => return,
        };
        let Ok((stream, peer, permit)) = accepted else {
            // Out of descriptors, most likely.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (app, drain) = (app.clone(), drain.clone());
        tokio::spawn(async move {
            serve(stream, peer, app, drain).await;
            drop(permit);
        });
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, app: Router, mut drain: Drain) {
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        app.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(Patient::new(stream, PATIENCE)), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = drain.begun() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, %peer, "a connection to the admin address ended badly");
    }
}

fn router(admin: Arc<Admin>) -> Router {
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
    guarded.merge(open).with_state(admin)
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
    let offline: Vec<&str> =
        admin.exchange.outages.all().filter(|(_, offline)| *offline).map(|(host, _)| host).collect();
    // A store that is away makes everything a miss, and nothing fail: who is taken out of service for it would take all
    // others with him.
    let body = serde_json::json!({
        "ready": !draining,
        "store": { "kind": stats.kind, "errors": stats.errors, "ok": stats.trouble.is_none(), "trouble": stats.trouble },
        "offline": offline,
        "seconds_since_upstream_answered": seconds_since_upstream_answered(&admin),
    });
    (status, Json(body)).into_response()
}

/// What the other pages ask, too.
async fn store_stats(admin: &Arc<Admin>) -> Stats {
    scrape::store_stats(&admin.exchange).await
}

/// Bytes that the ledger occupies on disk.
async fn ledger_bytes(admin: &Arc<Admin>) -> u64 {
    scrape::occupied_by(&admin.data_dir.join(ledger::DIRECTORY)).await
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    let text = scrape::metrics(&admin.exchange, &admin.data_dir.join(ledger::DIRECTORY)).await;
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}
