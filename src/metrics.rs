//! The Prometheus metrics. Each label's values are bounded, whatever clients send.

use std::collections::HashSet;
use std::hash::BuildHasher;
use std::sync::Arc;

use http::{Method, StatusCode};
use parking_lot::Mutex;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry, TextEncoder,
};

use crate::cache::store;
use crate::calls::quota::Window;
use crate::calls::runs::Ended;

/// What has series of its own; the rest is `other`, and of quotas left out. With all of them, `/metrics` has less than 5,000 series.
const MAX_CLIENTS: usize = 200;
const MAX_RUN_CLIENTS: usize = 40;
const MAX_CREDENTIALS: usize = 100;
const MAX_ROUTES: usize = 500;
const MAX_OPERATIONS: usize = 100;
/// Series of github-mirror's histogram, each of 15 lines.
const MAX_MIRROR: usize = 60;

/// All metrics, and the registry that `/metrics` shows.
pub struct Metrics {
    registry: Registry,
    calls: IntCounterVec,
    upstream: IntCounterVec,
    by_route: IntCounterVec,
    by_client: IntCounterVec,
    duration: HistogramVec,
    quota_limit: GaugeVec,
    quota_remaining: GaugeVec,
    quota_reset: GaugeVec,
    quota_used_here: GaugeVec,
    quota_used_elsewhere: GaugeVec,
    run_calls: HistogramVec,
    run_charged: HistogramVec,
    run_average: GaugeVec,
    pub last_answer: Gauge,
    recipe: IntCounterVec,
    pub refused: IntCounterVec,
    pub connections: IntCounterVec,
    pub connections_open: IntGauge,
    pub tunnels: IntCounterVec,
    pub tunnels_open: IntGauge,
    pub tunnel_bytes: IntCounterVec,
    pub folded: IntCounterVec,
    pub ledger_rows: IntCounter,
    pub ledger_errors: IntCounter,
    pub ledger_bytes: Gauge,
    pub head_wait: Histogram,
    store: [Gauge; 3],
    store_totals: [IntCounter; 3],
    store_up: Gauge,
    offline: GaugeVec,
    pool_rests: GaugeVec,
    operations: IntCounterVec,
    points: IntCounterVec,
    /// github-mirror's, by its names: its dashboard keeps working.
    mirror: Mirror,
    operation_names: Bounded,
    clients: Bounded,
    run_clients: Bounded,
    routes: Bounded,
}

/// What github-mirror has in its `/metrics`.
struct Mirror {
    requests: IntCounter,
    latency: HistogramVec,
    objects: Gauge,
    size: Gauge,
    /// Digests of the label values that have a series.
    seen: Mutex<HashSet<u64>>,
    digest: foldhash::fast::RandomState,
}

/// A set of label values that stops growing.
struct Bounded {
    seen: Mutex<HashSet<String, foldhash::fast::RandomState>>,
    max: usize,
    label: &'static str,
}

impl Bounded {
    fn new(label: &'static str, max: usize) -> Bounded {
        Bounded { seen: Mutex::default(), max, label }
    }

    fn fold<'a>(&self, value: &'a str, folded: &IntCounterVec) -> &'a str {
        let mut seen = self.seen.lock();
        if seen.contains(value) {
            return value;
        }
        if seen.len() < self.max {
            seen.insert(value.to_owned());
            return value;
        }
        folded.with_label_values(&[self.label]).inc();
        "other"
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Metrics {
        let registry = Registry::new();
        let r = &registry;
        let buckets = vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
        let duration =
            HistogramOpts::new("ghtap_call_duration_seconds", "Time from a client's request to its answer's head.");
        let duration = HistogramVec::new(duration.buckets(buckets.clone()), &["outcome"]).expect("valid");
        let wait =
            HistogramOpts::new("ghtap_upstream_response_seconds", "Time from asking GitHub to its answer's head.");
        let head_wait = Histogram::with_opts(wait.buckets(buckets)).expect("valid");
        r.register(Box::new(duration.clone())).expect("registered once");
        r.register(Box::new(head_wait.clone())).expect("registered once");
        let info = gauges(r, "ghtap_build_info", "Always 1; the version is a label.", &["version"]);
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        let gauge = |name: &str, help: &str| {
            let gauge = Gauge::new(name, help).expect("valid");
            r.register(Box::new(gauge.clone())).expect("registered once");
            gauge
        };
        Metrics {
            calls: counters(
                r,
                "ghtap_calls_total",
                "Requests that clients made to an intercepted host.",
                &["host", "outcome"],
            ),
            upstream: counters(
                r,
                "ghtap_upstream_requests_total",
                "Requests that left for GitHub.",
                &["host", "status", "charged"],
            ),
            by_route: counters(
                r,
                "ghtap_route_requests_total",
                "Requests that left for GitHub, by route template.",
                &["route", "charged"],
            ),
            by_client: counters(
                r,
                "ghtap_client_requests_total",
                "Requests that left for GitHub, by client.",
                &["client", "charged"],
            ),
            duration,
            quota_limit: gauges(r, "ghtap_quota_limit", "X-RateLimit-Limit as last seen.", &["credential", "resource"]),
            quota_remaining: gauges(
                r,
                "ghtap_quota_remaining",
                "X-RateLimit-Remaining as last seen.",
                &["credential", "resource"],
            ),
            quota_reset: gauges(
                r,
                "ghtap_quota_reset_timestamp_seconds",
                "X-RateLimit-Reset as last seen.",
                &["credential", "resource"],
            ),
            quota_used_here: gauges(
                r,
                "ghtap_quota_used_here",
                "Charged calls through this tap since the last reset.",
                &["credential", "resource"],
            ),
            quota_used_elsewhere: gauges(
                r,
                "ghtap_quota_used_elsewhere",
                "X-RateLimit-Used less what this tap was charged.",
                &["credential", "resource"],
            ),
            run_calls: runs(r, "ghtap_run_calls", "Calls of a run, by client, when it has ended."),
            run_charged: runs(r, "ghtap_run_charged_calls", "Charged calls of a run, by client, when it has ended."),
            run_average: gauges(
                r,
                "ghtap_run_average_calls",
                "Calls per run over the client's last 100 runs, all or charged.",
                &["client", "kind"],
            ),
            last_answer: gauge(
                "ghtap_upstream_last_answer_timestamp_seconds",
                "When GitHub last answered; 0: not since the start.",
            ),
            recipe: counters(
                r,
                "ghtap_etag_recipe_total",
                "200s whose ETag the known recipe made (match) or not (miss).",
                &["result"],
            ),
            refused: counters(r, "ghtap_refused_total", "Requests and connections that were refused.", &["reason"]),
            connections: counters(r, "ghtap_connections_total", "Connections accepted.", &["listener"]),
            connections_open: open(r, "ghtap_connections_open", "Connections open now."),
            tunnels: counters(r, "ghtap_tunnels_total", "Tunnels to other hosts.", &["result"]),
            tunnels_open: open(r, "ghtap_tunnels_open", "Tunnels open now."),
            tunnel_bytes: counters(r, "ghtap_tunnel_bytes_total", "Bytes through tunnels.", &["direction"]),
            folded: counters(r, "ghtap_folded_total", "Label values that were counted as other.", &["label"]),
            ledger_rows: counter(r, "ghtap_ledger_rows_total", "Rows written to the ledger."),
            ledger_errors: counter(r, "ghtap_ledger_errors_total", "Ledger writes that failed; they are tried again."),
            ledger_bytes: gauge("ghtap_ledger_bytes", "Bytes that the ledger occupies."),
            head_wait,
            store: [
                gauge("ghtap_store_entries", "Keys with a stored response."),
                gauge("ghtap_store_live_bytes", "Bytes of what is stored."),
                gauge("ghtap_store_disk_bytes", "Bytes that the store's directory occupies."),
            ],
            store_totals: [
                counter(r, "ghtap_store_evicted_total", "Keys evicted."),
                counter(r, "ghtap_store_corrupt_total", "Stored responses that failed their check."),
                counter(r, "ghtap_store_errors_total", "Reads and writes of the store that failed."),
            ],
            store_up: gauge("ghtap_store_up", "Whether the store works; 0: it is gone on without."),
            offline: gauges(r, "ghtap_upstream_offline", "Whether GitHub is taken to be offline.", &["host"]),
            pool_rests: gauges(
                r,
                "ghtap_pool_rests_until_timestamp_seconds",
                "Until when a credential of the pool is not asked; 0: it is.",
                &["credential"],
            ),
            operations: counters(r, "ghtap_graphql_requests_total", "GraphQL requests, by operation.", &["operation"]),
            points: counters(
                r,
                "ghtap_graphql_points_total",
                "What GraphQL requests cost, in points, by operation.",
                &["operation"],
            ),
            mirror: Mirror {
                requests: counter(r, "http_request_total", "Requests; github-mirror's name."),
                latency: {
                    let buckets = vec![0.05, 0.075, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0];
                    let opts = HistogramOpts::new("request_latency_seconds", "Latency; github-mirror's name.");
                    let labels = ["cache", "status", "method", "user"];
                    let latency = HistogramVec::new(opts.buckets(buckets), &labels).expect("valid");
                    r.register(Box::new(latency.clone())).expect("registered once");
                    latency
                },
                objects: gauge("github_mirror_cached_objects", "Keys with a stored response; github-mirror's name."),
                size: gauge("github_mirror_cache_size", "Bytes of what is stored; github-mirror's name."),
                seen: Mutex::default(),
                digest: Default::default(),
            },
            operation_names: Bounded::new("operation", MAX_OPERATIONS),
            clients: Bounded::new("client", MAX_CLIENTS),
            run_clients: Bounded::new("run_client", MAX_RUN_CLIENTS),
            routes: Bounded::new("route", MAX_ROUTES),
            registry,
        }
    }

    /// One request of a client's, answered.
    pub fn called(&self, host: &str, outcome: &str, seconds: f64) {
        self.calls.with_label_values(&[host, outcome]).inc();
        self.duration.with_label_values(&[outcome]).observe(seconds);
    }

    /// The same, as github-mirror counts it. `cache` is what `X-Cache` says.
    pub fn mirrored(
        &self,
        cache: Option<&'static str>,
        status: StatusCode,
        method: &Method,
        credential: &str,
        seconds: f64,
    ) {
        self.mirror.requests.inc();
        let cache = cache.unwrap_or("ONLINE_MISS");
        let method = match method.as_str() {
            "GET" => "GET",
            "HEAD" => "HEAD",
            "POST" => "POST",
            "PUT" => "PUT",
            "PATCH" => "PATCH",
            "DELETE" => "DELETE",
            _ => "other",
        };
        let mut user = credential.strip_prefix("user:").unwrap_or(credential);
        let mut status = status;
        let mut seen = self.mirror.seen.lock();
        let key = self.mirror.digest.hash_one((cache, status.as_u16(), method, user));
        if !seen.contains(&key) {
            if seen.len() < MAX_MIRROR {
                seen.insert(key);
            } else {
                // Past the bound: by cache and method, and by the kind of status.
                user = "other";
                status = StatusCode::from_u16(status.as_u16() / 100 * 100).unwrap_or(StatusCode::OK);
                self.folded.with_label_values(&["user"]).inc();
            }
        }
        drop(seen);
        self.mirror.latency.with_label_values(&[cache, status.as_str(), method, user]).observe(seconds);
    }

    /// One GraphQL request, and what it cost.
    pub fn operation(&self, label: &str, points: u64) {
        let label = self.operation_names.fold(label, &self.folded);
        self.operations.with_label_values(&[label]).inc();
        self.points.with_label_values(&[label]).inc_by(points);
    }

    /// Until when each credential of the pool rests, in milliseconds since 1970.
    pub fn pool(&self, all: impl Iterator<Item = (Arc<str>, u64)>) {
        self.pool_rests.reset();
        for (credential, until) in all.take(MAX_CREDENTIALS) {
            self.pool_rests.with_label_values(&[&*credential]).set((until / 1000) as f64);
        }
    }

    /// Whether each host is taken to be offline.
    pub fn offline<'a>(&self, hosts: impl Iterator<Item = (&'a str, bool)>) {
        for (host, offline) in hosts {
            self.offline.with_label_values(&[host]).set(f64::from(u8::from(offline)));
        }
    }

    /// One request that left for GitHub.
    pub fn sent(&self, host: &str, route: &str, client: &str, status: &str, charged: bool) {
        let charged = if charged { "true" } else { "false" };
        self.upstream.with_label_values(&[host, status, charged]).inc();
        self.by_route.with_label_values(&[self.routes.fold(route, &self.folded), charged]).inc();
        self.by_client.with_label_values(&[self.clients.fold(client, &self.folded), charged]).inc();
    }

    /// What is known of quotas now: those with least left first, and none whose hour is over. `now` in milliseconds
    /// since 1970.
    pub fn quotas(&self, all: &[(Arc<str>, &'static str, Window)], now: u64) {
        let gauges = [
            &self.quota_limit,
            &self.quota_remaining,
            &self.quota_reset,
            &self.quota_used_here,
            &self.quota_used_elsewhere,
        ];
        gauges.iter().for_each(|gauge| gauge.reset());
        let current: Vec<_> = all.iter().filter(|(_, _, window)| !window.is_over(now)).collect();
        for (credential, resource, window) in current.iter().take(MAX_CREDENTIALS) {
            let values = [window.limit, window.remaining, window.reset, window.used_by_us, window.used_by_others()];
            for (gauge, value) in gauges.iter().zip(values) {
                gauge.with_label_values(&[&**credential, *resource]).set(value as f64);
            }
        }
        let left_out = current.len().saturating_sub(MAX_CREDENTIALS) as u64;
        let told = self.folded.with_label_values(&["credential"]);
        told.inc_by(left_out.saturating_sub(told.get()));
    }

    /// A run that ended.
    pub fn run_ended(&self, run: &Ended) {
        let client = self.run_clients.fold(&run.client, &self.folded);
        self.run_calls.with_label_values(&[client]).observe(run.calls as f64);
        self.run_charged.with_label_values(&[client]).observe(run.charged as f64);
        if client != "other" {
            self.run_average.with_label_values(&[client, "calls"]).set(run.average.calls_per_run());
            self.run_average.with_label_values(&[client, "charged"]).set(run.average.charged_per_run());
        }
    }

    /// Whether the recipe made a 200's ETag.
    pub fn recipe(&self, matched: bool) {
        self.recipe.with_label_values(&[if matched { "match" } else { "miss" }]).inc();
    }

    /// The text that `/metrics` answers.
    pub fn render(&self, store: &store::Stats) -> String {
        for (gauge, value) in self.store.iter().zip([store.entries, store.live_bytes, store.disk_bytes]) {
            gauge.set(value as f64);
        }
        for (counter, value) in self.store_totals.iter().zip([store.evicted, store.corrupt, store.errors]) {
            counter.inc_by(value.saturating_sub(counter.get()));
        }
        self.store_up.set(f64::from(u8::from(store.trouble.is_none())));
        self.mirror.objects.set(store.entries as f64);
        self.mirror.size.set(store.live_bytes as f64);
        let mut out = Vec::new();
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut out);
        String::from_utf8(out).unwrap_or_default()
    }
}

fn runs(registry: &Registry, name: &str, help: &str) -> HistogramVec {
    let buckets = vec![1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 250.0, 500.0, 1000.0, 3000.0];
    let metric = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), &["client"]).expect("a valid name");
    registry.register(Box::new(metric.clone())).expect("registered once");
    metric
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    let metric = IntCounterVec::new(Opts::new(name, help), labels).expect("a valid name");
    registry.register(Box::new(metric.clone())).expect("registered once");
    metric
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    let metric = IntCounter::new(name, help).expect("a valid name");
    registry.register(Box::new(metric.clone())).expect("registered once");
    metric
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
    let metric = GaugeVec::new(Opts::new(name, help), labels).expect("a valid name");
    registry.register(Box::new(metric.clone())).expect("registered once");
    metric
}

fn open(registry: &Registry, name: &str, help: &str) -> IntGauge {
    let metric = IntGauge::new(name, help).expect("a valid name");
    registry.register(Box::new(metric.clone())).expect("registered once");
    metric
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::Outcome;
    use crate::calls::runs::Average;

    #[test]
    fn series_are_bounded_and_what_was_folded_is_told() {
        let metrics = Metrics::new();
        let window = Window { reset: u64::MAX, ..Window::default() };
        let mut windows = Vec::new();
        for i in 0..10_000 {
            let client = format!("client-{i}");
            let route = format!("GET /route/{}", i % 1000);
            for charged in [true, false] {
                metrics.sent("api.github.com", &route, &client, "200", charged);
            }
            metrics.called("api.github.com", Outcome::ALL[i % 12].as_str(), 0.01);
            let status = StatusCode::from_u16(200 + u16::try_from(i % 300).unwrap()).unwrap();
            let method = [Method::GET, Method::POST, Method::OPTIONS][i % 3].clone();
            let cache = ["ONLINE_HIT", "ONLINE_MISS", "API_ERROR_HIT"][i % 3];
            metrics.mirrored(Some(cache), status, &method, &format!("user:{i}"), 0.01);
            metrics.operation(&format!("query Q{i}"), 2);
            windows.push((
                format!("credential:{i}").into(),
                if i % 2 == 0 { "core" } else { "search" },
                window.clone(),
            ));
            let average = Average { runs: 1, calls: 1, charged: 1 };
            metrics.run_ended(&Ended { client: client.into(), calls: 1, charged: 1, average });
        }
        metrics.quotas(&windows, 0);
        let text = metrics.render(&store::Stats::default());
        let series = text.lines().filter(|l| !l.starts_with('#')).count();
        assert!((3000..5000).contains(&series), "{series}");
        assert!(text.contains("ghtap_client_requests_total{charged=\"true\",client=\"other\"} 9800"));
        for label in ["client", "run_client", "credential", "route", "user", "operation"] {
            assert!(text.contains(&format!("ghtap_folded_total{{label=\"{label}\"}}")), "{label}");
        }
    }
}
