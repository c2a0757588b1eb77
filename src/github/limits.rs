//! GitHub's rate-limit fields, and what a refusal by them looks like.
//!
//! Source: docs.github.com, "Rate limits for the REST API". Primary and secondary limits both come as 403
//! or 429.

use http::{HeaderMap, StatusCode, header};

/// What `X-RateLimit-*` said about the credential that asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Requests per hour.
    pub limit: Option<u64>,
    /// Requests left until `reset`.
    pub remaining: Option<u64>,
    /// Requests counted since the last reset, by whoever made them.
    pub used: Option<u64>,
    /// Seconds since 1970.
    pub reset: Option<u64>,
    /// The pool: `core`, `search`, `graphql`, …
    pub resource: Option<&'static str>,
}

/// The pools that GitHub documents ("REST API endpoints for rate limits").
const RESOURCES: [&str; 13] = [
    "core",
    "search",
    "code_search",
    "graphql",
    "integration_manifest",
    "dependency_snapshots",
    "dependency_sbom",
    "code_scanning_upload",
    "code_scanning_autofix",
    "actions_runner_registration",
    "source_import",
    "scim",
    "audit_log",
];

impl Quota {
    /// Reads the five fields; those that are missing or malformed are none.
    pub fn read(headers: &HeaderMap) -> Quota {
        let number = |name| headers.get(name).and_then(|v| v.to_str().ok()?.trim().parse().ok());
        Quota {
            limit: number("x-ratelimit-limit"),
            remaining: number("x-ratelimit-remaining"),
            used: number("x-ratelimit-used"),
            reset: number("x-ratelimit-reset"),
            resource: headers.get("x-ratelimit-resource").map(|v| Quota::resource(v.to_str().unwrap_or_default())),
        }
    }

    /// The pool of this name; `other` if GitHub documents none.
    pub fn resource(name: &str) -> &'static str {
        RESOURCES.iter().find(|r| **r == name).copied().unwrap_or("other")
    }
}

/// Whether a 403 or 429 is a rate limit, primary or secondary, and not a lack of permission.
///
/// `message` is the start of the body, where it is known. A 403 that says neither `Retry-After` nor
/// `Remaining: 0` is told by its message only.
pub fn is_rate_limited(status: StatusCode, headers: &HeaderMap, message: &[u8]) -> bool {
    match status {
        StatusCode::TOO_MANY_REQUESTS => true,
        StatusCode::FORBIDDEN => {
            let says = ["rate limit", "abuse detection"].iter().any(|words| contains_ignore_case(message, words));
            // The last request of an hour can be refused for another reason: where there is a message, it decides.
            let spent = message.is_empty() && Quota::read(headers).remaining == Some(0);
            headers.contains_key(header::RETRY_AFTER) || spent || says
        }
        _ => false,
    }
}

/// GitHub did not do what was asked, and another credential might fare better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A rate limit; `Retry-After` as milliseconds since 1970, where it says so.
    Limited { until: Option<u64> },
    /// The credential is not taken.
    Unauthorized,
    /// Not there, or not for this credential.
    Unseen,
}

impl Refusal {
    /// Reads an answer; `message` is the start of its content. `now` in milliseconds since 1970.
    pub fn of(status: StatusCode, headers: &HeaderMap, message: &[u8], now: u64) -> Option<Refusal> {
        if is_rate_limited(status, headers, message) {
            let after = headers.get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()?.trim().parse::<u64>().ok());
            return Some(Refusal::Limited { until: after.map(|s| now.saturating_add(s.saturating_mul(1000))) });
        }
        match status {
            StatusCode::UNAUTHORIZED => Some(Refusal::Unauthorized),
            StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => Some(Refusal::Unseen),
            _ => None,
        }
    }

    /// The same for GraphQL, which says so in a 200.
    pub fn in_graphql(status: StatusCode, answer: &[u8]) -> Option<Refusal> {
        #[derive(serde::Deserialize)]
        struct Answer {
            errors: Vec<Error>,
        }
        #[derive(serde::Deserialize)]
        struct Error {
            #[serde(rename = "type")]
            kind: Option<String>,
        }
        let answer: Answer = (status == StatusCode::OK).then(|| serde_json::from_slice(answer).ok()).flatten()?;
        let limited = answer.errors.iter().any(|e| matches!(e.kind.as_deref(), Some("RATE_LIMITED" | "RATE_LIMIT")));
        limited.then_some(Refusal::Limited { until: None })
    }
}

fn contains_ignore_case(text: &[u8], words: &str) -> bool {
    text.windows(words.len()).any(|w| w.eq_ignore_ascii_case(words.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect()
    }

    #[test]
    fn tells_rate_limits_from_refusals() {
        let secondary = br#"{"message":"You have exceeded a secondary rate limit."}"#;
        for (status, fields, body, limited) in [
            (429, vec![], &b""[..], true),
            (403, vec![("x-ratelimit-remaining", "0")], b"", true),
            (403, vec![("retry-after", "60")], b"", true),
            (403, vec![], &secondary[..], true),
            (403, vec![("x-ratelimit-remaining", "7")], br#"{"message":"Resource not accessible"}"#, false),
            (403, vec![("x-ratelimit-remaining", "0")], br#"{"message":"Resource not accessible"}"#, false),
            (404, vec![("x-ratelimit-remaining", "0")], b"", false),
            (200, vec![("x-ratelimit-remaining", "0")], b"", false),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(is_rate_limited(status, &headers(&fields), body), limited, "{status} {fields:?}");
        }
    }

    #[test]
    fn reads_the_five_fields() {
        let quota = Quota::read(&headers(&[
            ("x-ratelimit-limit", "5000"),
            ("x-ratelimit-remaining", "x"),
            ("x-ratelimit-resource", "core"),
        ]));
        assert_eq!((quota.limit, quota.remaining, quota.resource), (Some(5000), None, Some("core")));
    }
}
