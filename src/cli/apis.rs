//! Which APIs are served, and which of them the pool's credentials are for.

use crate::config::Upstream;
use crate::github::API_HOST;
use crate::github::hosts::{realm, upstream_realm};

/// The APIs that are served: the same login may be somebody else at another.
pub fn realms(intercept: &[String], upstream: &[Upstream]) -> Vec<String> {
    let all = upstream.iter().map(of).chain(intercept.iter().map(|h| realm(h).to_owned()));
    let mut seen = std::collections::HashSet::new();
    all.filter(|r| seen.insert(r.clone())).collect()
}

fn of(upstream: &Upstream) -> String {
    upstream_realm(upstream.tls, &upstream.host, upstream.port, &upstream.base)
}

/// The API that credentials are for which name none: the upstream that was named, else github.com's, else the first host that
/// is intercepted.
pub fn of_the_pool(intercept: &[String], upstream: &[Upstream]) -> String {
    let named = realms(&[], upstream);
    match named.first() {
        Some(first) if !named.iter().any(|r| r == API_HOST) => first.clone(),
        _ if upstream.len() > 1 || intercept.iter().any(|h| realm(h) == API_HOST) => API_HOST.to_owned(),
        _ => intercept.first().map_or(API_HOST, |h| realm(h)).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(tls: bool, host: &str, base: &str) -> Upstream {
        Upstream { tls, host: host.into(), port: if tls { 443 } else { 8080 }, base: base.into() }
    }

    #[test]
    fn what_the_pool_is_for() {
        let (dotcom, ghe) = (upstream(true, "api.github.com", ""), upstream(true, "ghe.example", "/api/v3"));
        let before = upstream(false, "127.0.0.1", "");
        for (intercept, upstream, pool, realms_there) in [
            (&["api.github.com"][..], vec![dotcom.clone()], "api.github.com", 1),
            (&["api.github.com"], vec![ghe.clone()], "ghe.example", 2),
            (&["api.github.com"], vec![dotcom.clone(), ghe], "api.github.com", 2),
            (&["ghe.example"], vec![dotcom.clone()], "ghe.example", 2),
            (&["api.github.com", "uploads.github.com"], vec![dotcom], "api.github.com", 1),
            (&["api.github.com"], vec![before], "api.github.com", 1),
        ] {
            let intercept: Vec<String> = intercept.iter().map(|h| h.to_string()).collect();
            assert_eq!(of_the_pool(&intercept, &upstream), pool, "{intercept:?} {upstream:?}");
            assert_eq!(realms(&intercept, &upstream).len(), realms_there, "{intercept:?} {upstream:?}");
        }
    }
}
