//! Calls as they end: the last ones, and a stream of those that come (server-sent events, WHATWG HTML 9.2).

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use tokio_stream::wrappers::BroadcastStream;

use super::api::Parameters;
use super::{Admin, refusal};
use crate::calls::live::Call;

/// Who may watch at once.
const MAX_WATCHERS: usize = 32;
static WATCHERS: AtomicUsize = AtomicUsize::new(0);

/// Which calls are wanted: those that have all of these.
struct Filter(Vec<(String, String)>);

impl Filter {
    fn of(query: Option<String>) -> Filter {
        Filter(Parameters::of(query).0)
    }

    fn wants(&self, call: &Call) -> bool {
        self.0.iter().all(|(name, value)| match name.as_str() {
            "client" => *call.client == **value,
            "run" => *call.run == **value,
            "host" => *call.host == **value,
            "route" => call.route == value,
            "credential" => *call.credential == **value,
            "outcome" => call.outcome == value,
            "status" => call.status.to_string() == *value,
            "charged" => (call.charged > 0).to_string() == *value,
            _ => true,
        })
    }
}

pub(super) async fn recent(State(admin): State<Arc<Admin>>, RawQuery(query): RawQuery) -> Json<Vec<Call>> {
    let filter = Filter::of(query);
    let mut calls = admin.exchange.live.recent();
    calls.retain(|call| filter.wants(call));
    Json(calls)
}

/// Somebody who watches.
struct Watcher;

impl Watcher {
    fn new() -> Option<Watcher> {
        let before = WATCHERS.fetch_add(1, Ordering::Relaxed);
        let watcher = Watcher;
        (before < MAX_WATCHERS).then_some(watcher)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        WATCHERS.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) async fn events(State(admin): State<Arc<Admin>>, RawQuery(query): RawQuery) -> Response {
    let Some(watcher) = Watcher::new() else {
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "too many are watching already");
    };
    let filter = Filter::of(query);
    let calls = BroadcastStream::new(admin.exchange.live.watch()).filter_map(move |call| {
        let _watcher = &watcher;
        let event = match call {
            Ok(call) if filter.wants(&call) => Event::default().event("call").json_data(&call).ok(),
            Ok(_) => None,
            // Who falls behind is told so.
            Err(behind) => Some(Event::default().event("missed").data(behind.to_string())),
        };
        std::future::ready(event.map(Ok::<_, Infallible>))
    });
    let mut drain = admin.drain.clone();
    let until_drained = calls.take_until(Box::pin(async move { drain.begun().await }));
    Sse::new(until_drained).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response()
}
