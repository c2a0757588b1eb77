//! What was called, by whom, and what it cost.
//!
//! Two things are counted: a *call* is a request that a client made; a request *sent* is one that left for
//! GitHub on its behalf. A call answered from the store makes no sent request, or a free one; a listing
//! may make more than one. Sent requests are recorded where they leave; one that is cut off is recorded,
//! too.

pub mod compare;
pub mod known;
pub mod ledger;
pub mod live;
mod names;
mod packed;
pub mod quota;
pub mod render;
pub mod report;
pub mod row;
pub mod runs;
mod tiers;

use serde::{Deserialize, Serialize};

/// How a call ended. Closed: it feeds the log, the metric and the ledger alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Outcome {
    /// Served fresh from the store, unasked.
    Hit,
    /// GitHub confirmed what is stored.
    Revalidated,
    /// The client's own copy is current: it got a 304.
    NotModified,
    /// GitHub sent a new answer.
    Miss,
    /// Not for the cache.
    Bypass,
    /// Another request's answer, asked for at the same time by the same credential.
    Collapsed,
    /// GitHub could not answer; a stored response stood in.
    Stale,
    /// A remembered 404.
    NotFound,
    /// A page that was asked for to confirm a listing.
    Confirm,
    /// No answer from GitHub, and none stored.
    Failed,
    /// The client went away first.
    Abandoned,
    /// We would not.
    Refused,
}

impl Outcome {
    pub const ALL: [Outcome; 12] = [
        Outcome::Hit,
        Outcome::Revalidated,
        Outcome::NotModified,
        Outcome::Miss,
        Outcome::Bypass,
        Outcome::Collapsed,
        Outcome::Stale,
        Outcome::NotFound,
        Outcome::Confirm,
        Outcome::Failed,
        Outcome::Abandoned,
        Outcome::Refused,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Hit => "hit",
            Outcome::Revalidated => "revalidated",
            Outcome::NotModified => "not-modified",
            Outcome::Miss => "miss",
            Outcome::Bypass => "bypass",
            Outcome::Collapsed => "collapsed",
            Outcome::Stale => "stale",
            Outcome::NotFound => "not-found",
            Outcome::Confirm => "confirm",
            Outcome::Failed => "failed",
            Outcome::Abandoned => "abandoned",
            Outcome::Refused => "refused",
        }
    }

    /// Whether the client was answered from the store.
    pub fn is_from_store(self) -> bool {
        matches!(self, Outcome::Hit | Outcome::Revalidated | Outcome::Stale | Outcome::NotFound | Outcome::Collapsed)
    }
}

/// Whether GitHub charges a request: not a 304 to an authenticated one, not `/rate_limit`.
/// (docs.github.com, "Best practices for using the REST API": conditional requests.)
pub fn is_charged(path: &str, status: u16, anonymous: bool) -> bool {
    !(path == "/rate_limit" || path == "/api/v3/rate_limit" || (status == 304 && !anonymous))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_charged() {
        for (path, status, anonymous, charged) in [
            ("/repos/o/r", 200, false, true),
            ("/repos/o/r", 404, false, true),
            ("/repos/o/r", 304, false, false),
            ("/repos/o/r", 304, true, true),
            ("/rate_limit", 200, false, false),
        ] {
            assert_eq!(is_charged(path, status, anonymous), charged, "{path} {status} {anonymous}");
        }
    }
}
