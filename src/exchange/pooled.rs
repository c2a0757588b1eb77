//! Asking with a credential of the pool, for a client of the registry: the one that can see what is asked for and has most
//! left; and again with another, where GitHub has refused and so has not acted.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::answer::Answer;
use super::asked::Asked;
use super::content::Content;
use super::tally::Trace;
use super::{Exchange, now_ms};
use crate::error::Error;
use crate::github::credentials::api_path;
use crate::github::limits::{Quota, Refusal};
use crate::pool::account::Secret;
use crate::pool::{Account, Choice, Kind, Pool, Wanted};
use crate::rewrite::Rule;

/// How many credentials one request is tried with.
const MAX_TRIES: usize = 12;
/// How long a credential rests that GitHub does not take, in milliseconds.
const REFUSED_REST: u64 = 600_000;

/// The credential that a request is asked with.
#[derive(Clone)]
pub(super) struct Pooled {
    pub account: Arc<Account>,
    pub secret: Secret,
}

impl Exchange {
    /// Answers with credentials of the pool.
    pub(super) async fn with_pool(&self, asked: &Asked, trace: &Trace<'_>, mut content: Content) -> Answer {
        let wanted = Wanted::of(&asked.method, api_path(asked.path()), asked.route.name);
        let until = now_ms() + u64::try_from(self.pool_wait.as_millis()).unwrap_or(0);
        self.find_installations(asked, trace, &wanted).await;
        let mut tried = Vec::new();
        let mut unseen: Vec<u64> = Vec::new();
        let mut fallback: Option<Answer> = None;
        while tried.len() < MAX_TRIES && content.is_there() {
            let account = match self.pool.choose(&wanted, &tried, now_ms()) {
                Choice::Account(account) => account,
                Choice::None => break,
                // Somebody has not been given what is there: that is their answer, whoever else may be back soon.
                Choice::Resting(_) if !unseen.is_empty() => break,
                Choice::Resting(ms) if now_ms() + ms <= until => {
                    tokio::time::sleep(Duration::from_millis(ms.max(1))).await;
                    tried.clear();
                    continue;
                }
                Choice::Resting(ms) => return fallback.filter(is_stand_in).unwrap_or_else(|| exhausted(ms)),
            };
            let secret = match self.secret(&account, asked, trace).await {
                Ok(secret) => secret,
                Err(why) => {
                    tracing::warn!(credential = &*account.name, why, "no token could be minted");
                    account.rest(None, now_ms() + 30_000);
                    tried.push(account.id);
                    fallback = fallback
                        .or_else(|| Some(Answer::failed(Error::NoCredential("no token could be minted".into()))));
                    continue;
                }
            };
            let _under_way = account.begin();
            let pooled = Pooled { account: account.clone(), secret };
            let with = asked.with_credential(self, &pooled);
            trace.asks_as(&with.credential_name);
            let mut answer = self.answer(&with, trace, &mut content).await;
            redact(&mut answer, &pooled.secret.token);
            match answer.refusal.take() {
                None => {
                    if answer.is_from_github_or_confirmed() {
                        self.pool.saw(&account, &wanted);
                        self.pool.did_not_see(&unseen, &wanted);
                    }
                    return answer;
                }
                Some(Refusal::Limited { until }) => {
                    self.rest(&self.pool, &account, &answer.headers, until);
                    tried.push(account.id);
                }
                Some(Refusal::Unauthorized) => {
                    let anew = match &account.kind {
                        Kind::Installation(installation) => installation.forget(&pooled.secret, now_ms()),
                        Kind::Token(_) => false,
                    };
                    if !anew || tried.len() + 1 >= MAX_TRIES {
                        tracing::error!(
                            credential = &*account.name,
                            "GitHub does not take this credential of the pool"
                        );
                        account.rest(None, now_ms() + REFUSED_REST);
                        tried.push(account.id);
                    }
                }
                Some(Refusal::Unseen) => {
                    if self.pool.is_final(&account, &wanted, answer.status == StatusCode::NOT_FOUND) {
                        return answer;
                    }
                    tried.push(account.id);
                    unseen.push(account.id);
                    // The first word counts, if nobody knows better.
                    if fallback.as_ref().is_none_or(|f| !is_unseen(f)) {
                        fallback = Some(answer);
                    }
                    continue;
                }
            }
            if fallback.as_ref().is_none_or(|f| !is_unseen(f) && !is_stand_in(f)) {
                fallback = Some(answer);
            }
        }
        match fallback {
            // All that were asked are limited or refused: when is the first back?
            Some(answer) if !is_unseen(&answer) && !is_stand_in(&answer) => {
                match self.pool.choose(&wanted, &[], now_ms()) {
                    Choice::Resting(ms) => exhausted(ms),
                    _ => answer,
                }
            }
            Some(answer) => {
                if is_unseen(&answer) && matches!(self.pool.choose(&wanted, &tried, now_ms()), Choice::None) {
                    self.pool.nobody_saw(&wanted, answer.status == StatusCode::NOT_FOUND);
                }
                answer
            }
            None => Answer::failed(Error::NoCredential(
                "there is no GitHub credential to ask with; set GITHUB_PAT_NAME, or GITHUB_APP_NAME_ID and _PEM".into(),
            )),
        }
    }

    /// Lets a credential rest that GitHub has limited. `until` in milliseconds since 1970.
    fn rest(&self, pool: &Pool, account: &Account, headers: &HeaderMap, until: Option<u64>) {
        let quota = Quota::read(headers);
        let padding = u64::try_from(pool.padding().as_millis()).unwrap_or(0);
        let reset = quota.reset.filter(|_| quota.remaining == Some(0)).map(|s| s.saturating_mul(1000));
        match (until, reset) {
            // Retry-After: a secondary limit, which is of all that the credential does.
            (Some(until), _) => account.rest(None, until),
            (None, Some(reset)) if reset > now_ms() => {
                account.rest(Some(quota.resource.unwrap_or("core")), reset.saturating_add(padding));
            }
            // "Otherwise, wait for at least one minute."
            _ => account.rest(None, now_ms() + 60_000),
        }
        tracing::info!(credential = &*account.name, "limited by GitHub; another is asked");
    }
}

impl Asked {
    /// The same, asked with a credential of the pool.
    fn with_credential(&self, exchange: &Exchange, pooled: &Pooled) -> Asked {
        let mut asked = self.clone();
        asked.headers.remove(header::COOKIE);
        asked.headers.insert(header::AUTHORIZATION, pooled.secret.authorization.clone());
        asked.credential = exchange.credentials.identify(&asked.headers);
        asked.principal = exchange.credentials.principal(asked.credential);
        asked.credential_name = exchange.realm_name(&asked.target.host, &pooled.account.name);
        asked.pooled = Some(pooled.clone());
        asked
    }
}

/// All rest.
fn exhausted(ms: u64) -> Answer {
    let seconds = ms.div_ceil(1000).max(1);
    let mut answer = Answer::failed(Error::Exhausted(seconds));
    answer.headers.insert(header::RETRY_AFTER, seconds.into());
    answer
}

fn is_stand_in(answer: &Answer) -> bool {
    answer.outcome == crate::calls::Outcome::Stale
}

fn is_unseen(answer: &Answer) -> bool {
    matches!(answer.status, StatusCode::NOT_FOUND | StatusCode::FORBIDDEN | StatusCode::GONE)
        && answer.outcome != crate::calls::Outcome::Refused
}

/// What no client may see, wherever an answer has it.
fn redact(answer: &mut Answer, token: &[u8]) {
    let found = |value: &HeaderValue| memchr::memmem::find(value.as_bytes(), token).is_some();
    if answer.headers.values().any(found) {
        for value in answer.headers.values_mut().filter(|v| found(v)) {
            *value = HeaderValue::from_static("***");
        }
    }
    let body = std::mem::replace(&mut answer.body, crate::body::Body::Empty);
    answer.body = body.rewritten(vec![Rule::anywhere(token, "***")]);
}
