//! Counting a call: in the log, the metrics and the ledger, once, whatever happens to it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use http::Response;
use hyper::body::Body as _;

use super::answer::Answer;
use super::asked::Asked;
use super::{Exchange, now_ms};
use crate::body::Body;
use crate::calls::live::Call;
use crate::calls::row::{Counts, Dimensions, Times};
use crate::calls::{self, Outcome};
use crate::github::limits::Quota;
use crate::origin::{self, UpstreamBody};

/// A call under way. Dropped without an end, it counts as abandoned.
pub(super) struct Trace<'a> {
    exchange: &'a Exchange,
    asked: &'a Asked,
    started: Instant,
    sent: AtomicU32,
    charged: AtomicU32,
    /// `X-RateLimit-Remaining`; the maximum: not said.
    remaining: AtomicU64,
    resource: parking_lot::Mutex<&'static str>,
    ended: bool,
}

impl<'a> Trace<'a> {
    pub fn begin(exchange: &'a Exchange, asked: &'a Asked) -> Trace<'a> {
        Trace {
            exchange,
            asked,
            started: Instant::now(),
            sent: AtomicU32::new(0),
            charged: AtomicU32::new(0),
            remaining: AtomicU64::new(u64::MAX),
            resource: parking_lot::Mutex::new(""),
            ended: false,
        }
    }

    /// A request is about to leave.
    pub fn sending<'t>(&'t self, asked: &'t Asked) -> Sending<'t> {
        Sending { exchange: self.exchange, trace: self, asked, started: Instant::now(), done: false }
    }

    /// Ends the call with its answer.
    pub fn end(mut self, answer: Answer) -> Response<Body> {
        let length = answer.body.size_hint().exact().unwrap_or(0);
        self.record(answer.status.as_u16(), answer.outcome, length);
        answer.into_response(&self.exchange.via)
    }

    fn record(&mut self, status: u16, outcome: Outcome, bytes: u64) {
        self.ended = true;
        let (exchange, asked) = (self.exchange, self.asked);
        let took = self.started.elapsed();
        let (sent, charged) = (self.sent.load(Ordering::Relaxed), self.charged.load(Ordering::Relaxed));
        let remaining = self.remaining.load(Ordering::Relaxed);
        tracing::info!(
            client = &*asked.caller.client,
            run = (!asked.caller.run.is_empty()).then_some(&*asked.caller.run),
            method = asked.method.as_str(),
            route = asked.route.name,
            status,
            outcome = outcome.as_str(),
            charged,
            remaining = (remaining != u64::MAX).then_some(remaining),
            ms = took.as_secs_f64() * 1000.0,
            "call"
        );
        exchange.metrics.called(&asked.target.host, outcome.as_str(), took.as_secs_f64());
        let now = now_ms();
        let row = dimensions(asked, status, outcome, *self.resource.lock());
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let mut counts =
            Counts { calls: 1, sent: sent.into(), charged: charged.into(), bytes, micros, times: Times::default() };
        counts.times.add(micros);
        exchange.ledger.add(row, &asked.caller.run, &counts, now);
        exchange.live.publish(Call {
            at: now,
            client: asked.caller.client.clone(),
            run: asked.caller.run.clone(),
            host: asked.target.host.clone(),
            route: asked.route.name,
            credential: asked.credential_name.clone(),
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

fn dimensions(asked: &Asked, status: u16, outcome: Outcome, resource: &'static str) -> Dimensions {
    Dimensions {
        client: asked.caller.client.clone(),
        host: asked.target.host.clone(),
        route: asked.route.name.into(),
        credential: asked.credential_name.clone(),
        status,
        outcome,
        resource: resource.into(),
        in_run: !asked.caller.run.is_empty(),
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
        self.exchange.ledger.quotas.observe(&self.asked.credential_name, &quota, charged, now_ms());
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
            let row = dimensions(asked, status, Outcome::Confirm, resource);
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
            self.count(0, "none", true, "");
        }
    }
}
