//! The answer that a client gets, and the marks on it: `Cache-Status` (RFC 9211) and `X-Cache`, whose
//! values are github-mirror's.

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use crate::body::Body;
use crate::cache::policy::{Bypass, Unavailable};
use crate::calls::Outcome;
use crate::error::Error;
use crate::github::limits::Refusal;

pub(super) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Body,
    pub outcome: Outcome,
    pub marks: Marks,
    /// How many elements the content has, where it is known to be an array.
    pub elements: Option<u32>,
    /// Whether another credential might fare better: only for those of the pool.
    pub refusal: Option<Refusal>,
}

/// What `Cache-Status` says.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Marks {
    pub forwarded: Option<&'static str>,
    pub forwarded_status: Option<StatusCode>,
    pub hit: bool,
    /// Seconds until it is stale; negative: since.
    pub ttl: Option<i64>,
    pub stored: bool,
    pub collapsed: bool,
    pub detail: Option<&'static str>,
    pub x_cache: Option<&'static str>,
}

/// An answer that several requests can be given.
#[derive(Clone)]
pub(super) struct Shared {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    outcome: Outcome,
    marks: Marks,
    elements: Option<u32>,
    refusal: Option<Refusal>,
}

impl Answer {
    /// GitHub's answer, passed on.
    pub fn passed(parts: Parts, body: Body, outcome: Outcome) -> Answer {
        let marks = Marks { forwarded_status: Some(parts.status), ..Marks::default() };
        Answer { status: parts.status, headers: parts.headers, body, outcome, marks, elements: None, refusal: None }
    }

    /// Our own answer.
    pub fn failed(error: Error) -> Answer {
        let (parts, body) = error.response().into_parts();
        let outcome = match error {
            Error::Origin(_) | Error::UnaskedNotModified => Outcome::Failed,
            _ => Outcome::Refused,
        };
        Answer {
            status: parts.status,
            headers: parts.headers,
            body,
            outcome,
            marks: Marks::default(),
            elements: None,
            refusal: None,
        }
    }

    pub fn bypassed(mut self, bypass: Bypass) -> Answer {
        self.marks.forwarded = Some(if bypass == Bypass::Method { "method" } else { "bypass" });
        self.marks.detail = (bypass != Bypass::Method).then_some(bypass.as_str());
        self
    }

    /// A copy for others, if the content is all here.
    pub fn share(&self) -> Option<Shared> {
        let body = match &self.body {
            Body::Empty => Bytes::new(),
            Body::Full(bytes) => bytes.clone(),
            Body::Upstream(_) | Body::Tee(_) | Body::Rewritten(_) => return None,
        };
        Some(Shared {
            status: self.status,
            headers: self.headers.clone(),
            body,
            outcome: self.outcome,
            marks: self.marks,
            elements: self.elements,
            refusal: self.refusal,
        })
    }

    /// Whether GitHub has given or confirmed it just now.
    pub fn is_from_github_or_confirmed(&self) -> bool {
        (self.status.is_success() || self.status == StatusCode::NOT_MODIFIED)
            && matches!(
                self.outcome,
                Outcome::Revalidated | Outcome::NotModified | Outcome::Miss | Outcome::Bypass | Outcome::Collapsed
            )
    }

    pub fn into_response(mut self, via: &HeaderValue) -> Response<Body> {
        if let Body::Full(_) = &self.body {
            // hyper writes the length of what is sent.
            self.headers.remove(header::CONTENT_LENGTH);
        }
        self.headers.append(header::VIA, via.clone());
        self.headers.append("cache-status", self.marks.value());
        if let Some(name) = self.marks.x_cache {
            self.headers.insert("x-cache", HeaderValue::from_static(name));
        }
        let mut response = Response::new(self.body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

impl Shared {
    pub fn answer(self) -> Answer {
        Answer {
            status: self.status,
            headers: self.headers,
            body: if self.body.is_empty() { Body::Empty } else { Body::Full(self.body) },
            outcome: self.outcome,
            marks: self.marks,
            elements: self.elements,
            refusal: self.refusal,
        }
    }

    /// Bytes that it holds, about.
    pub fn len(&self) -> usize {
        self.body.len() + self.headers.iter().map(|(n, v)| n.as_str().len() + v.len()).sum::<usize>()
    }
}

impl Marks {
    /// GitHub confirmed what is stored.
    pub const REVALIDATED: Marks = Marks {
        forwarded: Some("stale"),
        forwarded_status: Some(StatusCode::NOT_MODIFIED),
        x_cache: Some("ONLINE_HIT"),
        hit: false,
        ttl: None,
        stored: false,
        collapsed: false,
        detail: None,
    };

    fn value(&self) -> HeaderValue {
        use std::fmt::Write;
        let usual = self.forwarded == Some("stale") && self.forwarded_status == Some(StatusCode::NOT_MODIFIED);
        if usual && !self.hit && !self.collapsed && !self.stored && self.detail.is_none() {
            return HeaderValue::from_static("ghtap; fwd=stale; fwd-status=304");
        }
        let mut text = String::with_capacity(64);
        text.push_str("ghtap");
        if self.hit {
            text.push_str("; hit");
        }
        if let Some(forwarded) = self.forwarded {
            let _ = write!(text, "; fwd={forwarded}");
        }
        if let (Some(status), Some(_)) = (self.forwarded_status, self.forwarded) {
            let _ = write!(text, "; fwd-status={}", status.as_u16());
        }
        if let Some(ttl) = self.ttl {
            let _ = write!(text, "; ttl={ttl}");
        }
        if self.stored {
            text.push_str("; stored");
        }
        if self.collapsed {
            text.push_str("; collapsed");
        }
        if let Some(detail) = self.detail {
            let _ = write!(text, "; detail={detail}");
        }
        HeaderValue::from_str(&text).expect("made of tokens")
    }
}

/// github-mirror's name for what is not there while GitHub is offline.
pub(super) const OFFLINE_MISS: &str = "OFFLINE_MISS";

/// github-mirror's name for an error that nothing stored stands in for.
pub(super) fn error_name(unavailable: Unavailable) -> Option<&'static str> {
    match unavailable {
        Unavailable::ServerError => Some("API_ERROR_MISS"),
        Unavailable::RateLimited => Some("RATE_LIMITED_MISS"),
        Unavailable::TimedOut | Unavailable::Unreachable => None,
    }
}

/// github-mirror's name for a stored answer that stands in for an error.
pub(super) fn stand_in_name(unavailable: Unavailable) -> &'static str {
    match unavailable {
        Unavailable::ServerError => "API_ERROR_HIT",
        Unavailable::RateLimited => "RATE_LIMITED_HIT",
        Unavailable::TimedOut => "API_TIMEOUT_HIT",
        Unavailable::Unreachable => "API_CONNECTION_ERROR_HIT",
    }
}
