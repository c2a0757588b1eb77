//! Serving only those whom the operator named: logins, installations, Apps (`--allow-user`).
//!
//! Whose a credential is, GitHub says: `GET /user` for a person's token, `GET /app` for an App's JWT, both through the
//! cache; of an installation's token the answer that minted it, where that came through here.

use std::collections::HashSet;
use std::time::Duration;

use http::header;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use moka::sync::Cache;

use super::answer::Answer;
use super::asked::Asked;
use super::tally::Trace;
use super::{AGENT, Exchange};
use crate::error::Error;
use crate::github::credentials::{CredentialId, api_path};

/// Who is served.
pub struct Allowed {
    /// `user:LOGIN`, `installation:ID`, `app:SLUG`, in lower case.
    names: HashSet<String>,
    /// What was found of a credential.
    verdicts: Cache<CredentialId, Verdict>,
}

#[derive(Clone, PartialEq, Eq)]
enum Verdict {
    Served,
    /// And what it is called.
    Refused(String),
}

impl Allowed {
    /// None: everybody is served.
    pub fn new(names: impl IntoIterator<Item = String>, ttl: Duration) -> Option<Allowed> {
        let names: HashSet<String> = names.into_iter().collect();
        let verdicts = Cache::builder().max_capacity(20_000).time_to_live(ttl.max(Duration::from_millis(1))).build();
        (!names.is_empty()).then_some(Allowed { names, verdicts })
    }

    fn has(&self, name: &str) -> bool {
        self.names.contains(&name.to_ascii_lowercase())
    }
}

impl Exchange {
    /// Whether a caller is served; the answer if not.
    pub(super) async fn admit(&self, asked: &Asked, trace: &Trace<'_>) -> Result<(), Answer> {
        let Some(allowed) = &self.allowed else { return Ok(()) };
        let refuse = |error| Err(Answer::failed(error));
        if asked.credential.is_anonymous() || !asked.headers.contains_key(header::AUTHORIZATION) {
            return refuse(Error::Unauthenticated(
                "this tap serves known users only: send Authorization with a token of theirs".into(),
            ));
        }
        if mints_for(asked).is_some_and(|id| allowed.has(&format!("installation:{id}"))) {
            return Ok(());
        }
        let verdict = match allowed.verdicts.get(&asked.credential) {
            Some(verdict) => verdict,
            None => {
                let name = self.whose(asked, trace).await?;
                let served = allowed.has(&name) || self.app_of(&name).is_some_and(|app| allowed.has(&app));
                let verdict = if served { Verdict::Served } else { Verdict::Refused(name) };
                allowed.verdicts.insert(asked.credential, verdict.clone());
                verdict
            }
        };
        match verdict {
            Verdict::Served => Ok(()),
            Verdict::Refused(name) => {
                refuse(Error::Forbidden(format!("{name} is not among those whom this tap serves (--allow-user)")))
            }
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
        let base = if asked.path().starts_with("/api/v3/") || asked.path() == "/api/graphql" { "/api/v3" } else { "" };
        let Some(mut question) = asked.for_page(self, &format!("{base}{path}")) else {
            return Err(Answer::failed(Error::BadRequest("the path is not valid".into())));
        };
        question.headers = own_fields(&asked.headers);
        question.accepts_gzip = false;
        question.accept_encoding = None;
        let answer = Box::pin(self.through_cache(&question, trace)).await;
        match answer.status {
            StatusCode::OK => match self.credentials.principal(asked.credential) {
                Some(principal) => Ok(principal.name().to_string()),
                None => Err(Answer::failed(Error::Forbidden("GitHub did not say whose this credential is".into()))),
            },
            StatusCode::FORBIDDEN if answer.refusal.is_none() && !is_jwt => Err(Answer::failed(Error::Forbidden(
                "GitHub does not say whose this credential is; an installation's token is known when it was minted \
                 through this tap"
                    .into(),
            ))),
            _ => Err(answer),
        }
    }

    /// `app:SLUG` of an installation, where an answer told.
    fn app_of(&self, name: &str) -> Option<String> {
        let id = name.strip_prefix("installation:")?.parse().ok()?;
        Some(format!("app:{}", self.credentials.app_of(id)?))
    }
}

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
fn own_fields(theirs: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for name in [header::HOST, header::AUTHORIZATION, header::COOKIE] {
        headers.extend(theirs.get_all(&name).iter().map(|v| (name.clone(), v.clone())));
    }
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/vnd.github+json"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(AGENT));
    headers
}
