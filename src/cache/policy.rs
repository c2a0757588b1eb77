//! The decisions of the cache, as pure questions with enum answers: may this request use it, what is asked
//! of GitHub, may this response be stored, is a stored one fresh, may it stand in for an error.

use std::time::Duration;

use http::{HeaderMap, Method, StatusCode, header};

use super::precondition::Precondition;
use super::stored::{Entry, Validator};
use crate::github::credentials::{CredentialId, Principal};

/// Why a request goes past the cache. Closed: it feeds the log, `Cache-Status` and the metric alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bypass {
    Method,
    Range,
    RateLimit,
    NoStore,
    Precondition,
    /// A field that GitHub varies on and that the key does not have.
    Varies,
    Body,
    /// A path of a GitHub Enterprise Server that is not its API's.
    NotApi,
}

impl Bypass {
    pub fn as_str(self) -> &'static str {
        match self {
            Bypass::Method => "method",
            Bypass::Range => "range",
            Bypass::RateLimit => "rate-limit",
            Bypass::NoStore => "no-store",
            Bypass::Precondition => "precondition",
            Bypass::Varies => "varies",
            Bypass::Body => "body",
            Bypass::NotApi => "not-api",
        }
    }
}

/// Fields that GitHub names in `Vary`; the rest of it (`Accept`, `Authorization`, `Cookie`,
/// `Accept-Encoding`) is covered by the key, the entity tag and the stored coding.
const VARIES: [&str; 2] = ["x-github-otp", "x-requested-with"];
const COVERED: [&str; 4] = ["accept", "authorization", "cookie", "accept-encoding"];

/// Whether a request may use the cache.
pub fn eligible(
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    has_body: bool,
    precondition: &Precondition,
) -> Result<(), Bypass> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Err(Bypass::Method);
    }
    if has_body {
        return Err(Bypass::Body);
    }
    if headers.contains_key(header::RANGE) {
        return Err(Bypass::Range);
    }
    if path == "/rate_limit" || path == "/api/v3/rate_limit" {
        return Err(Bypass::RateLimit);
    }
    if directive(headers, "no-store").is_some() {
        return Err(Bypass::NoStore);
    }
    if *precondition == Precondition::Other {
        return Err(Bypass::Precondition);
    }
    if VARIES.iter().any(|name| headers.contains_key(*name)) {
        return Err(Bypass::Varies);
    }
    Ok(())
}

/// Why a response is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotStored {
    Status,
    NoValidator,
    NoStore,
    /// A `Vary` that names what the key does not cover.
    Varies,
    Coding,
    TooLarge,
    /// The end of the body was the end of the connection: nothing says that it is whole.
    Unframed,
}

/// Whether a response to an eligible GET may be stored, by its head. `framed`: its length is known, or it
/// came in chunks.
pub fn storable(status: StatusCode, headers: &HeaderMap, framed: bool) -> Result<(), NotStored> {
    if status != StatusCode::OK {
        return Err(NotStored::Status);
    }
    if !headers.contains_key(header::ETAG) && !headers.contains_key(header::LAST_MODIFIED) {
        return Err(NotStored::NoValidator);
    }
    if directive(headers, "no-store").is_some() {
        return Err(NotStored::NoStore);
    }
    let vary = vary(headers);
    let mut varies = vary.split(',').map(str::trim).filter(|v| !v.is_empty());
    if varies.any(|v| !COVERED.iter().chain(&VARIES).any(|known| v.eq_ignore_ascii_case(known))) {
        return Err(NotStored::Varies);
    }
    match headers.get(header::CONTENT_ENCODING).map(|v| v.as_bytes()) {
        None | Some(b"gzip" | b"identity") => {}
        Some(_) => return Err(NotStored::Coding),
    }
    if !framed { Err(NotStored::Unframed) } else { Ok(()) }
}

/// All lines of `Vary`, joined.
pub fn vary(headers: &HeaderMap) -> String {
    let lines: Vec<_> = headers.get_all(header::VARY).iter().filter_map(|v| v.to_str().ok()).collect();
    lines.join(", ")
}

/// `max-age` of a response, in seconds; zero if it has none or says `no-cache`.
pub fn max_age(headers: &HeaderMap) -> u32 {
    if directive(headers, "no-cache").is_some() {
        return 0;
    }
    directive(headers, "max-age").and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// A directive of `Cache-Control` and its argument, if it is there.
pub fn directive(headers: &HeaderMap, name: &str) -> Option<String> {
    let lines = headers.get_all(header::CACHE_CONTROL).iter().filter_map(|v| v.to_str().ok());
    lines.flat_map(|line| line.split(',')).find_map(|part| {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"').to_owned())
    })
}

/// What is asked of GitHub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Without a precondition.
    Plain,
    /// With the client's own, as it is.
    AsClient,
    /// `If-None-Match` with the tag that this credential was given for representation `.0`.
    Own(usize),
    /// `If-None-Match` with the tag that GitHub would compute for representation `.0`.
    Expected(usize),
    /// `If-None-Match` with the tag that GitHub would compute for `[]`.
    EmptyList,
    /// `If-Modified-Since` with the date that this credential was given for representation `.0`.
    Since(usize),
}

/// What is known of a request when it asks.
pub struct Asker<'a> {
    pub credential: CredentialId,
    pub principal: Option<&'a Principal>,
    pub precondition: &'a Precondition,
    /// The route answers with an array, as JSON that is not pretty-printed, if it is empty.
    pub may_be_empty_list: bool,
    /// `--expected-etag`
    pub expected_etag: bool,
}

/// Chooses the validator, in the order that DESIGN.md gives.
///
/// One exception to "own tag first": where another credential of the same principal has been shown a newer
/// representation since, that one is expected, because the two see the same bodies.
pub fn ask(entry: Option<&Entry>, asker: &Asker<'_>) -> Ask {
    let own = entry.and_then(|e| e.own(asker.credential));
    if let Precondition::Tags(_) = asker.precondition
        && !entry.is_some_and(|e| knows(e, asker.precondition))
    {
        return Ask::AsClient;
    }
    if let (Some(entry), true) = (entry, asker.expected_etag)
        && let Some(i) = expected(entry, asker, own)
    {
        return Ask::Expected(i);
    }
    match own {
        Some((i, Validator { etag: Some(_), .. })) => return Ask::Own(i),
        Some((i, Validator { last_modified: Some(_), .. })) => return Ask::Since(i),
        _ => {}
    }
    if *asker.precondition != Precondition::None {
        return Ask::AsClient;
    }
    let nothing_stored = entry.is_none_or(|e| e.representations.is_empty());
    if nothing_stored && asker.expected_etag && asker.may_be_empty_list && !asker.credential.is_anonymous() {
        return Ask::EmptyList;
    }
    Ask::Plain
}

/// Whether one of the client's tags is one that GitHub gave to somebody here, so that we hold that
/// representation or a newer one.
fn knows(entry: &Entry, precondition: &Precondition) -> bool {
    let mut validators = entry.representations.iter().flat_map(|r| &r.validators);
    validators.any(|v| precondition.is_met_by(v.etag.as_deref(), None))
}

fn expected(entry: &Entry, asker: &Asker<'_>, own: Option<(usize, &Validator)>) -> Option<usize> {
    let computable = |(_, r): &(usize, &super::stored::Representation)| r.recipe.is_some();
    let candidates = entry.representations.iter().enumerate().filter(computable);
    // When this principal last had each confirmed.
    let by_principal = candidates.clone().filter_map(|(i, r)| {
        let same = |v: &&Validator| asker.principal.is_some() && v.principal.as_ref() == asker.principal;
        Some((i, r.validators.iter().filter(same).map(|v| v.confirmed_at).max()?))
    });
    let same_principal = by_principal.max_by_key(|(_, at)| *at);
    match (own, same_principal) {
        (Some((own, validator)), Some((i, at))) if i != own && at > validator.confirmed_at => Some(i),
        (Some(_), _) => None,
        (None, Some((i, _))) => Some(i),
        (None, None) => candidates.max_by_key(|(_, r)| r.confirmed_at()).map(|(i, _)| i),
    }
}

/// `--freshness`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Nothing is served that GitHub has not confirmed in this very exchange.
    Revalidate,
    /// GitHub's own `max-age`, for the credential that it told it to.
    Origin,
    For(Duration),
}

/// Whether a stored response may be served unasked to the credential that has this validator for it.
/// Times in milliseconds since 1970; `written_at` is when the repository was last written to through us.
pub fn is_fresh(freshness: Freshness, validator: &Validator, request: &HeaderMap, written_at: u64, now: u64) -> bool {
    let lifetime = match freshness {
        Freshness::Revalidate => return false,
        Freshness::Origin => u64::from(validator.max_age) * 1000,
        Freshness::For(duration) => u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
    };
    let age = now.saturating_sub(validator.confirmed_at);
    let asked_age = directive(request, "max-age").and_then(|v| v.parse::<u64>().ok()).unwrap_or(u64::MAX);
    age < lifetime
        && age / 1000 < asked_age
        && directive(request, "no-cache").is_none()
        && !request.contains_key(header::PRAGMA)
        && validator.confirmed_at > written_at
}

/// What an answer of GitHub's means for what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// The answer stands.
    Answer,
    /// This credential has no right to the stored response any more.
    Revoked,
    /// GitHub cannot or will not answer now: a stored response may stand in.
    Unavailable(Unavailable),
}

/// Why GitHub did not answer. The names of github-mirror's `X-Cache` follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    ServerError,
    RateLimited,
    TimedOut,
    Unreachable,
}

/// Reads a status. `rate_limited` is [`crate::github::limits::is_rate_limited`]'s answer.
pub fn means(status: StatusCode, rate_limited: bool) -> Means {
    match status.as_u16() {
        _ if rate_limited => Means::Unavailable(Unavailable::RateLimited),
        500..=599 => Means::Unavailable(Unavailable::ServerError),
        401 | 403 | 404 | 410 | 451 => Means::Revoked,
        _ => Means::Answer,
    }
}

/// Whether a stored response may stand in for an error: this credential had it confirmed, and not longer
/// ago than `max_stale`.
pub fn may_serve_stale(validator: &Validator, max_stale: Duration, now: u64) -> bool {
    u128::from(now.saturating_sub(validator.confirmed_at)) <= max_stale.as_millis()
}

#[cfg(test)]
mod tests;
