//! Whether GitHub is offline: told by what happens, and by its status page where that is asked for.
//!
//! Failures in a row make a suspicion. Where nobody could even connect, that is enough; time-outs and 5xx can be one
//! route's own, so a light probe decides: `GET /rate_limit`, which costs no quota. The same probe finds the end.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use http::{HeaderValue, Request, StatusCode, header};
use serde::Deserialize;
use tokio::sync::Notify;

use super::Exchange;
use crate::body::{self, RequestBody};
use crate::origin;
use crate::origin::dial::Target;

/// How often a host that is offline is probed.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// How long a probe may take.
const PROBE_PATIENCE: Duration = Duration::from_secs(5);
/// Polls of the status page that may fail before its last word is forgotten.
const MISSED_POLLS: u32 = 3;

/// All hosts that are watched.
pub struct Outages {
    /// Failures in a row; zero: nobody is ever offline.
    after: u32,
    hosts: Vec<Watched>,
}

struct Watched {
    target: Target,
    /// What the paths of its API begin with.
    base: String,
    failures: AtomicU32,
    offline: AtomicBool,
    /// The status page says so.
    announced: AtomicBool,
    suspected: Notify,
}

impl Outages {
    /// Watches these hosts, each with what its API's paths begin with.
    pub fn new(after: u32, hosts: Vec<(Target, String)>) -> Outages {
        let watched = |(target, base)| Watched {
            target,
            base,
            failures: AtomicU32::new(0),
            offline: AtomicBool::new(false),
            announced: AtomicBool::new(false),
            suspected: Notify::new(),
        };
        Outages { after, hosts: hosts.into_iter().map(watched).collect() }
    }

    fn of(&self, target: &Target) -> Option<&Watched> {
        self.hosts.iter().find(|w| w.target.port == target.port && w.target.host == target.host)
    }

    pub fn is_offline(&self, target: &Target) -> bool {
        self.of(target).is_some_and(Watched::is_offline)
    }

    /// Each host, and whether it is offline.
    pub fn all(&self) -> impl Iterator<Item = (&str, bool)> {
        self.hosts.iter().map(|w| (&*w.target.host, w.is_offline()))
    }

    pub(super) fn answered(&self, target: &Target, status: StatusCode) {
        let Some(watched) = self.of(target) else { return };
        if status.is_server_error() {
            self.suspect(watched, false);
        } else if watched.failures.load(Ordering::Relaxed) != 0 || watched.offline.load(Ordering::Relaxed) {
            watched.answers();
        }
    }

    pub(super) fn failed(&self, target: &Target, error: &origin::Error) {
        if let Some(watched) = self.of(target).filter(|_| error.is_outage()) {
            self.suspect(watched, error.is_unreachable());
        }
    }

    fn suspect(&self, watched: &Watched, for_sure: bool) {
        let failures = watched.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if self.after > 0 && failures >= self.after && !watched.offline.load(Ordering::Relaxed) {
            if for_sure {
                watched.goes_offline("it cannot be reached");
            }
            watched.suspected.notify_one();
        }
    }
}

impl Watched {
    fn is_offline(&self) -> bool {
        self.offline.load(Ordering::Relaxed) || self.announced.load(Ordering::Relaxed)
    }

    fn answers(&self) {
        self.failures.store(0, Ordering::Relaxed);
        if self.offline.swap(false, Ordering::Relaxed) {
            tracing::info!(host = &*self.target.host, "GitHub is back");
        }
    }

    fn goes_offline(&self, why: &str) {
        if !self.offline.swap(true, Ordering::Relaxed) {
            tracing::warn!(host = &*self.target.host, why, "GitHub is offline: GETs are answered from the store");
        }
    }
}

impl Exchange {
    /// Probes the hosts that are suspected or offline, and polls the status page. Never ends.
    pub async fn watch(&self, status_page: Option<(Target, String)>, every: Duration) {
        let probing = self.outages.hosts.iter().map(|watched| self.watch_host(watched));
        let polling = async {
            match status_page {
                Some((target, path)) => self.poll(&target, &path, every).await,
                None => std::future::pending().await,
            }
        };
        tokio::join!(futures_util::future::join_all(probing), polling);
    }

    async fn watch_host(&self, watched: &Watched) {
        loop {
            if !watched.offline.load(Ordering::Relaxed) {
                watched.suspected.notified().await;
            }
            match self.probe(watched).await {
                true => watched.answers(),
                false => watched.goes_offline("a probe failed, too"),
            }
            tokio::time::sleep(PROBE_EVERY).await;
        }
    }

    /// Whether a host answers, however.
    async fn probe(&self, watched: &Watched) -> bool {
        let path = format!("{}/rate_limit", watched.base);
        let sent = tokio::time::timeout(PROBE_PATIENCE, self.fetch(&watched.target, &path)).await;
        let status = match &sent {
            Ok(Ok((status, _))) => status.as_str().to_owned(),
            _ => "none".to_owned(),
        };
        self.metrics.sent(&watched.target.host, "GET /rate_limit", "ghtap", &status, false);
        matches!(sent, Ok(Ok((status, _))) if !status.is_server_error())
    }

    /// A small GET of our own, without a credential.
    async fn fetch(&self, target: &Target, path: &str) -> Result<(StatusCode, bytes::Bytes), body::Error> {
        let mut request = Request::new(RequestBody::Empty);
        *request.uri_mut() = path.parse()?;
        let headers = request.headers_mut();
        headers.insert(header::HOST, HeaderValue::from_str(&super::asked::host_field(target))?);
        headers.insert(header::USER_AGENT, HeaderValue::from_static(super::AGENT));
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let response = self.origin.send_apart(target, request).await?;
        let status = response.status();
        match body::collect(response.into_body(), super::SMALL).await? {
            Ok(whole) => Ok((status, whole)),
            Err(_) => Err("the answer is too long".into()),
        }
    }

    async fn poll(&self, target: &Target, path: &str, every: Duration) {
        let mut missed = 0;
        let mut ticks = tokio::time::interval(every.max(Duration::from_millis(100)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let fetched = tokio::time::timeout(PROBE_PATIENCE, self.fetch(target, path)).await;
            let said = match fetched {
                Ok(Ok((StatusCode::OK, page))) => says_outage(&page),
                _ => None,
            };
            match said {
                Some(outage) => {
                    missed = 0;
                    self.announce(outage);
                }
                // A status page that fails is no outage; one that went on failing is no news either.
                None => {
                    missed += 1;
                    if missed == MISSED_POLLS {
                        tracing::warn!("the status page does not answer as expected; going by what happens");
                        self.announce(false);
                    }
                }
            }
        }
    }

    fn announce(&self, outage: bool) {
        // It speaks for github.com, not for servers of one's own.
        for watched in self.outages.hosts.iter().filter(|w| w.base.is_empty()) {
            if watched.announced.swap(outage, Ordering::Relaxed) != outage {
                let host = &*watched.target.host;
                match outage {
                    true => tracing::warn!(host, "the status page says that the API is out"),
                    false => tracing::info!(host, "the status page says no more that the API is out"),
                }
            }
        }
    }
}

/// Whether a page of components says that the API is out; none if it does not speak of it.
fn says_outage(page: &[u8]) -> Option<bool> {
    #[derive(Deserialize)]
    struct Page {
        components: Vec<Component>,
    }
    #[derive(Deserialize)]
    struct Component {
        name: String,
        status: String,
    }
    let page: Page = serde_json::from_slice(page).ok()?;
    page.components.iter().find(|c| c.name == "API Requests").map(|c| c.status == "major_outage")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_pages() {
        let page = |status| {
            format!(r#"{{"components":[{{"name":"Git","status":"x"}},{{"name":"API Requests","status":"{status}"}}]}}"#)
        };
        assert_eq!(says_outage(page("operational").as_bytes()), Some(false));
        assert_eq!(says_outage(page("major_outage").as_bytes()), Some(true));
        assert_eq!(says_outage(b"{\"components\":[]}"), None);
        assert_eq!(says_outage(b"<html>"), None);
    }

    #[test]
    fn failures_in_a_row_make_an_outage_and_one_answer_ends_it() {
        let target = Target { host: "api.github.com".into(), port: 443, tls: true, guarded: false };
        let outages = Outages::new(3, vec![(target.clone(), String::new())]);
        let unreachable = || origin::Error::Resolve("x".into());
        outages.failed(&target, &unreachable());
        outages.failed(&target, &unreachable());
        outages.answered(&target, StatusCode::NOT_FOUND);
        outages.failed(&target, &unreachable());
        outages.failed(&target, &unreachable());
        assert!(!outages.is_offline(&target));
        outages.failed(&target, &unreachable());
        assert!(outages.is_offline(&target));
        outages.answered(&target, StatusCode::OK);
        assert!(!outages.is_offline(&target));
        for _ in 0..5 {
            outages.answered(&target, StatusCode::BAD_GATEWAY);
        }
        assert!(!outages.is_offline(&target), "a probe has to fail, too");
        let never = Outages::new(0, vec![(target.clone(), String::new())]);
        (0..9).for_each(|_| never.failed(&target, &unreachable()));
        assert!(!never.is_offline(&target));
    }
}
