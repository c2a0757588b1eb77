//! Asking with a credential of the pool, for a client of the registry: the one that can see what is asked for and has most
//! left; and again with another, where GitHub has refused and so has not acted.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode, header};

use super::answer::{Answer, Marks, stand_in_name};
use super::asked::Asked;
use super::content::Content;
use super::tally::Trace;
use super::{Exchange, now_ms};
use crate::body::Body;
use crate::cache::policy::Unavailable;
use crate::calls::Outcome;
use crate::error::Error;
use crate::github::credentials::api_path;
use crate::github::limits::{Quota, Refusal};
use crate::pool::account::Secret;
use crate::pool::{Account, Choice, Kind, Wanted};
use crate::rewrite::Rule;

/// How often one request is tried at the most, however many credentials there are.
const MAX_TRIES: usize = 200;
/// How long a credential rests that GitHub does not take, in milliseconds.
const REFUSED_REST: u64 = 600_000;
/// How long an App rests for which no token could be minted, in milliseconds.
const MINT_REST: u64 = 30_000;

/// The credential that a request is asked with.
#[derive(Clone)]
pub(super) struct Pooled {
    pub account: Arc<Account>,
    pub secret: Secret,
}

impl Exchange {
    /// Answers with credentials of the pool.
    pub(super) async fn with_pool(&self, asked: &Asked, trace: &Trace<'_>, mut content: Content) -> Answer {
        if self.is_unanswerable(asked) {
            return self.offline(asked).await;
        }
        let wanted = Wanted::of(&asked.realm, &asked.method, api_path(asked.target_form()), asked.route.name);
        let until = now_ms() + u64::try_from(self.pool_wait.as_millis()).unwrap_or(0);
        self.find_installations(asked, trace, &wanted).await;
        // Those that were limited may be asked again, if there is time to wait; those that were not given it, not.
        let mut limited: Vec<u64> = Vec::new();
        let mut unseen: Vec<u64> = Vec::new();
        let mut fallback: Option<Fallback> = None;
        let mut tries = 0;
        while content.is_there() && tries < MAX_TRIES {
            let tried = [&limited[..], &unseen[..]].concat();
            let account = match self.pool.choose(&wanted, &tried, now_ms()) {
                Choice::Account(account) => account,
                Choice::Resting(_) | Choice::None => match self.pool.back_in(&wanted, &unseen, now_ms()) {
                    Some(ms) if now_ms() + ms <= until => {
                        tokio::time::sleep(Duration::from_millis(ms.max(1))).await;
                        limited.clear();
                        continue;
                    }
                    _ => break,
                },
            };
            tries += 1;
            let secret = match self.secret(&account, asked, trace).await {
                Ok(secret) => secret,
                Err(why) => {
                    if !self.outages.is_offline(&asked.target) {
                        tracing::warn!(credential = &*account.name, why, "no token could be minted");
                        account.rest(None, now_ms() + MINT_REST);
                    }
                    limited.push(account.id);
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
                    self.rest(&account, &answer, &wanted, until);
                    limited.push(account.id);
                    fallback = Fallback::better(fallback, Fallback::of(answer, Why::Limited));
                }
                Some(Refusal::Unauthorized) => {
                    let anew = match &account.kind {
                        Kind::Installation(installation) => installation.forget(&pooled.secret, now_ms()),
                        Kind::Token(_) => false,
                    };
                    if anew {
                        // With a new token; whoever refuses that one at once rests.
                        tracing::info!(
                            credential = &*account.name,
                            "GitHub does not take its token any more; a new one is minted"
                        );
                    } else if self.is_taken(&account, &pooled.secret, asked, trace).await {
                        // It was the request that it refused.
                        return answer;
                    } else {
                        tracing::error!(
                            credential = &*account.name,
                            "GitHub does not take this credential of the pool"
                        );
                        account.refused(now_ms() + REFUSED_REST);
                        limited.push(account.id);
                    }
                    fallback = Fallback::better(fallback, Fallback::of(answer, Why::Unauthorized));
                }
                Some(Refusal::Unseen) => {
                    if self.pool.is_final(&account, &wanted) {
                        return answer;
                    }
                    unseen.push(account.id);
                    fallback = Fallback::better(fallback, Fallback::of(answer, Why::Unseen));
                }
            }
        }
        let answer = self.for_want_of_better(&wanted, &limited, &unseen, &content, fallback);
        if answer.status != StatusCode::TOO_MANY_REQUESTS {
            return answer;
        }
        // As for any client that GitHub limits.
        let name = stand_in_name(Unavailable::RateLimited);
        let marks = Marks { hit: true, forwarded: Some("stale"), x_cache: Some(name), ..Marks::default() };
        self.unasked_stand_in(asked, marks).await.unwrap_or(answer)
    }

    /// The answer when no credential has brought a good one.
    fn for_want_of_better(
        &self,
        wanted: &Wanted,
        limited: &[u64],
        unseen: &[u64],
        content: &Content,
        fallback: Option<Fallback>,
    ) -> Answer {
        let back = self.pool.back_in(wanted, unseen, now_ms());
        let others_may =
            || matches!(self.pool.choose(wanted, &[limited, unseen].concat(), now_ms()), Choice::Account(_));
        match fallback {
            Some(Fallback { why: Why::StandIn, answer }) => answer,
            _ if self.pool.is_refused(wanted, now_ms()) => Answer::failed(Error::NoCredential(
                "GitHub takes none of the pool's credentials (401): they are wrong, expired or revoked".into(),
            )),
            // What was to be sent is gone: the client sends it again, and another is asked.
            Some(Fallback { why, .. }) if !content.is_there() && others_may() => {
                if why == Why::Unseen {
                    self.pool.did_not_see(unseen, wanted);
                }
                exhausted(1000)
            }
            Some(Fallback { why: Why::Unseen, answer }) => match back {
                // It may be there, for one that rests.
                Some(ms) => exhausted(ms),
                None => {
                    if limited.is_empty() {
                        self.pool.nobody_saw(wanted);
                    }
                    answer
                }
            },
            Some(fallback) => back.map_or(fallback.answer, exhausted),
            None => back.map_or_else(no_credential, exhausted),
        }
    }

    /// Lets a credential rest that GitHub has limited. `until` in milliseconds since 1970.
    fn rest(&self, account: &Account, answer: &Answer, wanted: &Wanted, until: Option<u64>) {
        let quota = Quota::read(&answer.headers);
        let padding = u64::try_from(self.pool.padding().as_millis()).unwrap_or(0);
        let reset = quota.reset.filter(|_| quota.remaining == Some(0)).map(|s| s.saturating_mul(1000));
        match (until, reset) {
            // Retry-After: a secondary limit, which is of all that the credential does.
            (Some(until), _) => account.rest(None, until.max(now_ms() + 1000)),
            (None, Some(reset)) if reset > now_ms() => {
                account.rest(Some(quota.resource.unwrap_or(wanted.resource)), reset.saturating_add(padding));
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
        asked.credential_name = exchange.realm_name(&asked.realm, &pooled.account.name);
        exchange.pool_ids.insert(asked.credential, ());
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

fn no_credential() -> Answer {
    Answer::failed(Error::NoCredential(
        "there is no GitHub credential to ask with; set GITHUB_PAT_NAME, or GITHUB_APP_NAME_ID and _PEM".into(),
    ))
}

/// An answer that is given if nobody brings a better one.
struct Fallback {
    answer: Answer,
    why: Why,
}

/// Why an answer is not good; the last is the best.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Why {
    Unauthorized,
    Limited,
    Unseen,
    /// A stored response, in place of a refusal.
    StandIn,
}

impl Fallback {
    fn of(answer: Answer, why: Why) -> Fallback {
        let why = if answer.outcome == Outcome::Stale { Why::StandIn } else { why };
        Fallback { answer, why }
    }

    fn better(before: Option<Fallback>, now: Fallback) -> Option<Fallback> {
        match before {
            Some(before) if before.why >= now.why => Some(before),
            _ => Some(now),
        }
    }
}

/// What no client may see, wherever an answer has it.
fn redact(answer: &mut Answer, token: &[u8]) {
    let found = |value: &HeaderValue| memchr::memmem::find(value.as_bytes(), token).is_some();
    if answer.headers.values().any(found) {
        for value in answer.headers.values_mut().filter(|v| found(v)) {
            *value = HeaderValue::from_static("***");
        }
    }
    let body = std::mem::replace(&mut answer.body, Body::Empty);
    answer.body = body.rewritten(vec![Rule::anywhere(token, "***")]);
    if matches!(answer.body, Body::Rewritten(_)) {
        // It may come to another.
        answer.headers.remove(header::CONTENT_LENGTH);
    }
}
