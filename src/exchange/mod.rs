//! One API request, from an identified client to a counted response.
//!
//! [`Exchange::serve`] is the way of it: understand the request (`asked`), let it past the cache or through
//! it (`cached`), confirm a listing (`pages`), take the answer in (`answered`, `keep`) or reuse what is stored
//! (`reuse`), shape it for the client (`answer`), count (`tally`).

mod answer;
mod answered;
mod asked;
mod cached;
mod keep;
mod pages;
mod reuse;
mod tally;
mod writes;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderValue, Method, Request, Response, header};
use hyper::body::{Body as _, Incoming};
use moka::sync::Cache;

use crate::body::{self, Body, ClientBody, RequestBody};
use crate::cache::collapse::InFlight;
use crate::cache::key::KeyId;
use crate::cache::policy::{self, Bypass, Freshness};
use crate::cache::store::Store;
use crate::calls::Outcome;
use crate::calls::ledger::Ledger;
use crate::calls::live::Live;
use crate::clients::Caller;
use crate::error::Error;
use crate::github::credentials::Credentials;
use crate::github::routes::Routes;
use crate::metrics::Metrics;
use crate::origin::dial::Target;
use crate::origin::{self, Origin};
use answer::{Answer, Shared};
use asked::Asked;
use tally::Trace;

/// The operator's choices.
#[derive(Clone, Debug)]
pub struct Settings {
    pub freshness: Freshness,
    /// How long a 404 for content at a full commit id is remembered; zero: not at all.
    pub not_found_ttl: Duration,
    pub stale_max_age: Duration,
    pub expected_etag: bool,
    pub max_object_bytes: u64,
    /// How long a client may pause within its content.
    pub upload_idle: Duration,
    /// What we are called in `Via`: unlike any other tap's name, so that a loop is seen.
    pub pseudonym: String,
}

/// What all exchanges share.
pub struct Exchange {
    pub settings: Settings,
    pub origin: Arc<Origin>,
    pub store: Arc<Store>,
    pub ledger: Arc<Ledger>,
    pub metrics: Arc<Metrics>,
    /// The calls that just ended.
    pub live: Live,
    pub credentials: Credentials,
    routes: Routes,
    /// What we add to `Via`.
    pub via: HeaderValue,
    in_flight: Arc<InFlight<asked::Identity, Option<Shared>>>,
    writes: writes::Writes,
    /// Pages that were just shown to be there, or not to be.
    confirmed: Cache<pages::Fact, ()>,
    /// 404s that are remembered, and when they were given.
    missing: Cache<(KeyId, cached::Seer, bool), (u64, Shared)>,
    last_upstream_ok: AtomicU64,
    keeper: Arc<keep::Keeper>,
}

/// One confirmation serves all pages of a listing for this long.
const CONFIRMED_FOR: Duration = Duration::from_secs(5);
/// A 404 is remembered for a year at most.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);
/// Bodies up to this size are read whole before they are sent on; larger ones pass through.
const SMALL: usize = 1 << 20;

impl Exchange {
    pub fn new(
        settings: Settings,
        origin: Arc<Origin>,
        store: Arc<Store>,
        ledger: Arc<Ledger>,
        metrics: Arc<Metrics>,
        credentials: Credentials,
    ) -> Exchange {
        let via = HeaderValue::from_str(&format!("1.1 {}", settings.pseudonym)).expect("a token");
        let keeper = Arc::new(keep::Keeper::new(store.clone(), metrics.clone(), settings.max_object_bytes));
        let missing = Cache::builder()
            .max_capacity(100_000)
            .time_to_live(settings.not_found_ttl.clamp(Duration::from_millis(1), LONGEST));
        Exchange {
            via,
            origin,
            store,
            ledger,
            metrics,
            live: Live::default(),
            credentials,
            routes: Routes::new(),
            in_flight: Arc::default(),
            writes: writes::Writes::default(),
            confirmed: Cache::builder().max_capacity(10_000).time_to_live(CONFIRMED_FOR).build(),
            missing: missing.build(),
            last_upstream_ok: AtomicU64::new(0),
            keeper,
            settings,
        }
    }

    /// When GitHub last answered, in milliseconds since 1970; zero: never yet.
    pub fn last_upstream_ok(&self) -> u64 {
        self.last_upstream_ok.load(Ordering::Relaxed)
    }

    /// Answers a request that is for `target`, whose host and credentials were checked.
    pub async fn serve(&self, caller: &Caller, target: &Target, request: Request<Incoming>) -> Response<Body> {
        let (parts, incoming) = request.into_parts();
        let expects = parts.headers.contains_key(header::EXPECT);
        let asked = self.understand(caller, target, parts);
        let trace = Trace::begin(self, &asked);
        if self.is_loop(&asked.headers) {
            return trace.end(Answer::failed(Error::Loop));
        }
        let (body, gate) = if incoming.is_end_stream() {
            (RequestBody::Empty, None)
        } else {
            let (open, gate) = tokio::sync::oneshot::channel();
            let gate = expects.then_some(gate);
            (
                RequestBody::Client(Box::new(ClientBody::new(incoming, self.settings.upload_idle, gate))),
                expects.then_some(open),
            )
        };
        let eligible =
            policy::eligible(&asked.method, asked.path(), &asked.headers, !body.is_empty(), &asked.precondition);
        let answer = match eligible {
            Ok(()) => self.cached(&asked, &trace).await,
            Err(bypass) => self.forward(&asked, &trace, body, gate, bypass).await,
        };
        trace.end(answer)
    }

    /// Whether a request with these fields has come through this tap before.
    pub fn is_loop(&self, headers: &http::HeaderMap) -> bool {
        let seen = headers.get_all(header::VIA).iter().filter_map(|v| v.to_str().ok());
        seen.flat_map(|v| v.split([',', ' '])).any(|word| word == self.settings.pseudonym)
    }

    /// Past the cache: as it came, streamed both ways.
    async fn forward(
        &self,
        asked: &Asked,
        trace: &Trace<'_>,
        body: RequestBody,
        gate: Option<tokio::sync::oneshot::Sender<()>>,
        bypass: Bypass,
    ) -> Answer {
        let mut request = asked.request(&self.via, body);
        if let Some(encoding) = &asked.accept_encoding {
            request.headers_mut().insert(header::ACCEPT_ENCODING, encoding.clone());
        }
        if let Some(gate) = gate {
            // The origin's 100 lets the content go; the head went ahead of it.
            request.headers_mut().insert(header::EXPECT, HeaderValue::from_static("100-continue"));
            let gate = parking_lot::Mutex::new(Some(gate));
            hyper::ext::on_informational(&mut request, move |response| {
                if response.status() == http::StatusCode::CONTINUE
                    && let Some(gate) = gate.lock().take()
                {
                    let _ = gate.send(());
                }
            });
        }
        request.headers_mut().extend(asked.preconditions.iter().cloned());
        // Noted also when the client goes away: GitHub may have acted by then.
        let _noted = Noted::of(self, asked);
        let response = match self.send(asked, trace, request).await {
            Ok(response) => response,
            Err(error) => return Answer::failed(error.into()),
        };
        let (parts, body) = response.into_parts();
        if !(parts.status.is_success() && Credentials::teaches(&asked.method, asked.path())) {
            return Answer::passed(parts, Body::Upstream(Box::new(body)), Outcome::Bypass).bypassed(bypass);
        }
        match body::collect(body, SMALL).await {
            Ok(Ok(whole)) => {
                self.learn(asked, &parts.headers, &whole);
                Answer::passed(parts, Body::Full(whole), Outcome::Bypass).bypassed(bypass)
            }
            Ok(Err((first, rest))) => {
                let tee = body::Tee::new(first, rest, 0, |_| {});
                Answer::passed(parts, Body::Tee(Box::new(tee)), Outcome::Bypass).bypassed(bypass)
            }
            Err(error) => Answer::failed(broken_off(error)),
        }
    }

    /// Learns whom a credential acts for.
    fn learn(&self, asked: &Asked, headers: &http::HeaderMap, body: &[u8]) {
        let gzip = headers.get(header::CONTENT_ENCODING).is_some_and(|v| v == "gzip");
        let plain = if gzip { body::gunzip(body, SMALL as u64) } else { None };
        let body = plain.as_deref().unwrap_or(body);
        self.ledger.learn(self.credentials.learn(&asked.method, asked.path(), asked.credential, body));
    }

    /// Sends one request to GitHub, and records it: also when it is cut off.
    async fn send(
        &self,
        asked: &Asked,
        trace: &Trace<'_>,
        request: Request<RequestBody>,
    ) -> Result<Response<origin::UpstreamBody>, origin::Error> {
        let sending = trace.sending(asked);
        let result = self.origin.send(&asked.target, request).await;
        match &result {
            Ok(response) => {
                sending.answered(response);
                self.last_upstream_ok.store(now_ms(), Ordering::Relaxed);
            }
            Err(error) => sending.failed(error),
        }
        result.map(|mut response| {
            crate::fields::strip_hop_by_hop(response.headers_mut());
            response
        })
    }
}

/// Notes a write when it is dropped; what only reads is not one.
struct Noted<'a> {
    exchange: &'a Exchange,
    path: Option<&'a str>,
}

impl<'a> Noted<'a> {
    fn of(exchange: &'a Exchange, asked: &'a Asked) -> Noted<'a> {
        let reads = matches!(asked.method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE);
        Noted { exchange, path: (!reads).then(|| asked.path()) }
    }
}

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.path {
            self.exchange.writes.note(path, now_ms());
        }
    }
}

/// An error within a response's content.
fn broken_off(error: body::Error) -> Error {
    match error.downcast::<origin::Error>() {
        Ok(error) => Error::Origin(*error),
        Err(error) => match error.downcast::<hyper::Error>() {
            Ok(error) => Error::Origin(origin::Error::Closed(*error)),
            Err(_) => Error::Origin(origin::Error::Busy),
        },
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
