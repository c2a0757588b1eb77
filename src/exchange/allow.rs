//! Serving only those whom the operator named: logins, installations, Apps (`--allow-user`).
//!
//! Whose a credential is, GitHub says: `GET /user` for a person's token, `GET /app` for an App's JWT, both through the
//! cache; of an installation's token the answer that minted it, where that came through here.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use http::header;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use moka::sync::Cache;

use super::answer::Answer;
use super::asked::Asked;
use super::tally::Trace;
use super::{AGENT, Exchange};
use crate::body::Body;
use crate::error::Error;
use crate::github::credentials::{CredentialId, api_path};
use crate::github::limits;

/// Who is served.
pub struct Allowed {
    /// `user:LOGIN`, `installation:ID`, `app:SLUG`, in lower case.
    names: HashSet<String>,
    /// What was found of a credential.
    verdicts: Cache<CredentialId, Verdict>,
    /// How long that is so, in milliseconds.
    ttl: u64,
}

#[derive(Clone)]
struct Verdict {
    served: bool,
    name: Arc<str>,
    /// Milliseconds since 1970.
    at: u64,
}

impl Allowed {
    /// None: everybody is served.
    pub fn new(names: impl IntoIterator<Item = String>, ttl: Duration) -> Option<Allowed> {
        let names: HashSet<String> = names.into_iter().collect();
        let ttl = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        (!names.is_empty()).then(|| Allowed { names, verdicts: Cache::new(20_000), ttl })
    }

    fn has(&self, name: &str) -> bool {
        self.names.contains(&name.to_ascii_lowercase())
    }
}

impl Exchange {
    /// Whether a caller has a name at all, where one is needed.
    pub(super) fn is_named(&self, asked: &Asked) -> Result<(), Error> {
        match self.allowed.is_some() && !asked.headers.contains_key(header::AUTHORIZATION) {
            true => Err(Error::Unauthenticated(
                "this tap serves known users only: send Authorization with a token of theirs".into(),
            )),
            false => Ok(()),
        }
    }

    /// Whether a caller is served; the answer if not.
    pub(super) async fn admit(&self, asked: &Asked, trace: &Trace<'_>) -> Result<(), Answer> {
        let Some(allowed) = &self.allowed else { return Ok(()) };
        if mints_for(asked).is_some_and(|id| allowed.has(&format!("installation:{id}"))) {
            return Ok(());
        }
        let verdict = self.verdict(allowed, asked, trace).await?;
        match verdict.served {
            true => Ok(()),
            false => Err(Answer::failed(Error::Forbidden(format!(
                "{} is not among those whom this tap serves (--allow-user)",
                verdict.name
            )))),
        }
    }

    async fn verdict(&self, allowed: &Allowed, asked: &Asked, trace: &Trace<'_>) -> Result<Verdict, Answer> {
        let before = allowed.verdicts.get(&asked.credential);
        if let Some(verdict) = &before
            && asked.at.saturating_sub(verdict.at) < allowed.ttl
        {
            return Ok(verdict.clone());
        }
        // While GitHub cannot say, what it said last holds, as long as a stored response would.
        let stale = u64::try_from(self.settings.stale_max_age.as_millis()).unwrap_or(u64::MAX);
        let holds = before.filter(|v| asked.at.saturating_sub(v.at) <= stale);
        if let Some(verdict) = &holds
            && self.outages.is_offline(&asked.target)
        {
            return Ok(verdict.clone());
        }
        match (self.whose(asked, trace).await, holds) {
            (Ok(name), _) => {
                let served = allowed.has(&name) || self.app_of(&name).is_some_and(|app| allowed.has(&app));
                let verdict = Verdict { served, name: name.into(), at: asked.at };
                allowed.verdicts.insert(asked.credential, verdict.clone());
                Ok(verdict)
            }
            (Err(answer), Some(verdict)) if answer.status.is_server_error() || is_limited(&answer) => Ok(verdict),
            (Err(answer), _) => Err(answer),
        }
    }

    /// Whose a credential is; GitHub's own answer if it does not say.
    async fn whose(&self, asked: &Asked, trace: &Trace<'_>) -> Result<String, Answer> {
        if let Some(principal) =
            self.credentials.principal(asked.credential).filter(|p| p.name().starts_with("installation:"))
        {
            return Ok(principal.name().to_string());
        }
        let is_jwt = asked.headers.get(header::AUTHORIZATION).is_some_and(|v| is_jwt(v.as_bytes()));
        let path = if is_jwt { "/app" } else { "/user" };
        let base = asked.api_base();
        let Some(mut question) = asked.for_page(self, &format!("{base}{path}")) else {
            return Err(Answer::failed(Error::BadRequest("the path is not valid".into())));
        };
        question.headers = own_fields(&asked.headers);
        question.is_plain_only();
        let answer = Box::pin(self.through_cache(&question, trace)).await;
        match answer.status {
            StatusCode::OK => match self.credentials.principal(asked.credential) {
                Some(principal) => Ok(principal.name().to_string()),
                None => Err(Answer::failed(Error::Forbidden("GitHub did not say whose this credential is".into()))),
            },
            // Not asked about again at once: this is the answer that it gives of every installation's token.
            StatusCode::FORBIDDEN if !is_jwt && !is_limited(&answer) => Ok(UNNAMED.to_owned()),
            _ => Err(answer),
        }
    }

    /// `app:SLUG` of an installation, where an answer told.
    fn app_of(&self, name: &str) -> Option<String> {
        let id = name.strip_prefix("installation:")?.parse().ok()?;
        Some(format!("app:{}", self.credentials.app_of(id)?))
    }
}

/// Whether GitHub has only limited the asker.
fn is_limited(answer: &Answer) -> bool {
    let message: &[u8] = match &answer.body {
        Body::Full(body) => &body[..body.len().min(4096)],
        _ => b"",
    };
    limits::is_rate_limited(answer.status, &answer.headers, message)
}

/// Whoever GitHub does not name.
const UNNAMED: &str = "an installation whose token was not minted through this tap";

/// The installation that a request mints a token for.
fn mints_for(asked: &Asked) -> Option<&str> {
    let path = api_path(asked.path());
    let id = path.strip_prefix("/app/installations/")?.strip_suffix("/access_tokens")?;
    (asked.method == Method::POST).then_some(id)
}

/// A JWT begins with `{"` in base64.
fn is_jwt(authorization: &[u8]) -> bool {
    let token = authorization.splitn(2, |b| *b == b' ').nth(1).unwrap_or_default();
    token.starts_with(b"eyJ") && token.iter().filter(|b| **b == b'.').count() == 2
}

/// The fields of a question of our own with another's credential.
pub(super) fn own_fields(theirs: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for name in [header::HOST, header::AUTHORIZATION, header::COOKIE] {
        headers.extend(theirs.get_all(&name).iter().map(|v| (name.clone(), v.clone())));
    }
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/vnd.github+json"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(AGENT));
    headers
}
