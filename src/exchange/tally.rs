//! Counting a call: in the log, the metrics and the ledger, once, whatever happens to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::{Method, Response};
use hyper::body::Body as _;

use super::answer::Answer;
use super::asked::Asked;
use super::{Exchange, now_ms};
use crate::body::Body;
use crate::calls::live::Call;
use crate::calls::row::{Counts, Dimensions, Times};
use crate::calls::{self, Outcome};
use crate::clients::Caller;
use crate::github::limits::Quota;
use crate::github::routes::Route;
use crate::origin::{self, UpstreamBody};

/// GitHub answers within this, or not at all.
const LONG: Duration = Duration::from_secs(12);

/// A call under way. Dropped without an end, it counts as abandoned.
pub(super) struct Trace<'a> {
    exchange: &'a Exchange,
    caller: Caller,
    host: Arc<str>,
    method: Method,
    route: Route,
    of_registered: bool,
    /// The last that it was asked with.
    credential_name: parking_lot::Mutex<Arc<str>>,
    /// What it is, if it is for GraphQL.
    operation: parking_lot::Mutex<Option<String>>,
    /// What the last answer cost, in points.
    points: AtomicU64,
    started: Instant,
    sent: AtomicU32,
    charged: AtomicU32,
    /// `X-RateLimit-Remaining`; the maximum: not said.
    remaining: AtomicU64,
    resource: parking_lot::Mutex<&'static str>,
    ended: bool,
}

impl<'a> Trace<'a> {
    pub fn begin(exchange: &'a Exchange, asked: &Asked) -> Trace<'a> {
        Trace {
            exchange,
            caller: asked.caller.clone(),
            host: asked.target.host.clone(),
            method: asked.method.clone(),
            route: asked.route,
            of_registered: asked.of_registered,
            credential_name: parking_lot::Mutex::new(asked.credential_name.clone()),
            operation: parking_lot::Mutex::new(None),
            points: AtomicU64::new(0),
            started: Instant::now(),
            sent: AtomicU32::new(0),
            charged: AtomicU32::new(0),
            remaining: AtomicU64::new(u64::MAX),
            resource: parking_lot::Mutex::new(""),
            ended: false,
        }
    }

    /// It is asked with another credential.
    pub fn asks_as(&self, name: &Arc<str>) {
        *self.credential_name.lock() = name.clone();
    }

    /// It is a GraphQL operation.
    pub fn is_operation(&self, label: &str) {
        *self.operation.lock() = Some(label.to_owned());
    }

    /// What its last answer cost, by its rate-limit fields.
    pub fn points(&self) -> u64 {
        self.points.load(Ordering::Relaxed)
    }

    /// A request is about to leave.
    pub fn sending<'t>(&'t self, asked: &'t Asked) -> Sending<'t> {
        Sending { exchange: self.exchange, trace: self, asked, started: Instant::now(), done: false }
    }

    /// Ends the call with its answer.
    pub fn end(mut self, answer: Answer) -> Response<Body> {
        let length = answer.body.size_hint().exact().unwrap_or(0);
        let name = self.credential_name.lock().clone();
        let took = self.started.elapsed().as_secs_f64();
        let metrics = &self.exchange.metrics;
        let user = if self.of_registered { &self.caller.client } else { &name };
        metrics.mirrored(answer.marks.x_cache, answer.status, &self.method, user, took);
        if answer.outcome == Outcome::Refused {
            let reason = match answer.status.as_u16() {
                401 => "client",
                403 => "forbidden",
                429 => "pool",
                _ => "request",
            };
            metrics.refused.with_label_values(&[reason]).inc();
        }
        self.record(answer.status.as_u16(), answer.outcome, length);
        answer.into_response(&self.exchange.via)
    }

    fn record(&mut self, status: u16, outcome: Outcome, bytes: u64) {
        self.ended = true;
        let exchange = self.exchange;
        let credential_name = self.credential_name.lock().clone();
        let (caller, route) = (&self.caller, self.route);
        let took = self.started.elapsed();
        let (sent, charged) = (self.sent.load(Ordering::Relaxed), self.charged.load(Ordering::Relaxed));
        let remaining = self.remaining.load(Ordering::Relaxed);
        tracing::info!(
            client = &*caller.client,
            run = (!caller.run.is_empty()).then_some(&*caller.run),
            method = self.method.as_str(),
            route = route.name,
            operation = self.operation.lock().as_deref(),
            status,
            outcome = outcome.as_str(),
            charged,
            remaining = (remaining != u64::MAX).then_some(remaining),
            ms = took.as_secs_f64() * 1000.0,
            "call"
        );
        exchange.metrics.called(&self.host, outcome.as_str(), took.as_secs_f64());
        let now = now_ms();
        let resource = *self.resource.lock();
        let row = dimensions(caller, &self.host, route, credential_name.clone(), status, outcome, resource);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let mut counts =
            Counts { calls: 1, sent: sent.into(), charged: charged.into(), bytes, micros, times: Times::default() };
        counts.times.add(micros);
        exchange.ledger.add(row, &caller.run, &counts, now);
        exchange.live.publish(Call {
            at: now,
            client: caller.client.clone(),
            run: caller.run.clone(),
            host: self.host.clone(),
            route: route.name,
            credential: credential_name,
            status,
            outcome: outcome.as_str(),
            charged,
            remaining: (remaining != u64::MAX).then_some(remaining),
            ms: took.as_secs_f64() * 1000.0,
        });
    }
}

impl Drop for Trace<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.record(0, Outcome::Abandoned, 0);
        }
    }
}

fn dimensions(
    caller: &Caller,
    host: &Arc<str>,
    route: Route,
    credential: Arc<str>,
    status: u16,
    outcome: Outcome,
    resource: &'static str,
) -> Dimensions {
    Dimensions {
        client: caller.client.clone(),
        host: host.clone(),
        route: route.name.into(),
        credential,
        status,
        outcome,
        resource: resource.into(),
        in_run: !caller.run.is_empty(),
    }
}

/// A request that leaves for GitHub. Dropped before its answer came, it counts as charged: it may have
/// been.
pub(super) struct Sending<'a> {
    exchange: &'a Exchange,
    trace: &'a Trace<'a>,
    asked: &'a Asked,
    started: Instant,
    done: bool,
}

impl Sending<'_> {
    pub fn answered(mut self, response: &Response<UpstreamBody>) {
        self.exchange.metrics.head_wait.observe(self.started.elapsed().as_secs_f64());
        let status = response.status();
        let quota = Quota::read(response.headers());
        let resource = quota.resource.unwrap_or("");
        if let Some(remaining) = quota.remaining {
            self.trace.remaining.store(remaining, Ordering::Relaxed);
        }
        let charged = calls::is_charged(self.asked.path(), status.as_u16(), self.asked.credential.is_anonymous());
        self.count(status.as_u16(), status.as_str(), charged, resource);
        let quotas = &self.exchange.ledger.quotas;
        // A GraphQL query costs more than one, as a rule: what the fields say was used since the last answer.
        let cost = match (charged, &self.asked.graphql) {
            (false, _) => 0,
            (true, None) => 1,
            (true, Some(_)) => quotas.used_since(&self.asked.credential_name, &quota).unwrap_or(1).max(1),
        };
        self.trace.points.store(cost, Ordering::Relaxed);
        quotas.observe(&self.asked.credential_name, &quota, cost, now_ms());
    }

    /// No answer. What never reached GitHub is not counted as sent.
    pub fn failed(mut self, error: &origin::Error) {
        use origin::Error as E;
        match error {
            E::Timeout(_) | E::Closed(_) | E::Protocol(_) | E::ClientStalled | E::ClientGone => {
                self.count(0, "none", true, "")
            }
            _ => self.done = true,
        }
    }

    fn count(&mut self, status: u16, label: &str, charged: bool, resource: &'static str) {
        self.done = true;
        let asked = self.asked;
        self.exchange.metrics.sent(&asked.target.host, asked.route.name, &asked.caller.client, label, charged);
        if asked.is_probe {
            let credential = asked.credential_name.clone();
            let host = &asked.target.host;
            let row = dimensions(&asked.caller, host, asked.route, credential, status, Outcome::Confirm, resource);
            let counts = Counts { sent: 1, charged: charged.into(), ..Counts::default() };
            self.exchange.ledger.add(row, &asked.caller.run, &counts, now_ms());
        } else {
            self.trace.sent.fetch_add(1, Ordering::Relaxed);
            *self.trace.resource.lock() = resource;
        }
        self.trace.charged.fetch_add(u32::from(charged && !asked.is_probe), Ordering::Relaxed);
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        if !self.done {
            // The client's patience ended before ours: GitHub ends its own requests after ten seconds.
            let waited = self.started.elapsed();
            if waited >= LONG {
                self.exchange.outages.failed(&self.asked.target, &origin::Error::Timeout(waited));
            }
            self.count(0, "none", true, "");
        }
    }
}
