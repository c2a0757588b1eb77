//! What GitHub's answer comes to, when it is not a 304: taken in, passed on, or stood in for.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use hyper::body::Body as _;

use super::answer::{Answer, Marks, OFFLINE_MISS, Shared, error_name, stand_in_name};
use super::asked::Asked;
use super::cached::{Chosen, missed};
use super::reuse::not_modified_for;
use super::{Exchange, SMALL, broken_off, now_ms};
use crate::body::{self, Body, Tee};
use crate::cache::key::{Key, KeyId};
use crate::cache::policy::{self, Means, Unavailable};
use crate::cache::store::Loaded;
use crate::cache::stored::{Entry, Validator};
use crate::calls::Outcome;
use crate::error::Error;
use crate::fields;
use crate::github::credentials::Credentials;
use crate::github::limits::{self, Refusal};
use crate::github::routes::is_at_full_commit;
use crate::origin::{self, UpstreamBody};

impl Exchange {
    /// What an answer other than a 304 comes to.
    pub(super) async fn answered(
        &self,
        asked: &Asked,
        key: &Key,
        id: KeyId,
        loaded: Option<Arc<Loaded>>,
        response: Response<UpstreamBody>,
    ) -> Answer {
        let (parts, body) = response.into_parts();
        let status = parts.status;
        let is_get = asked.method == Method::GET;
        let fits = body.size_hint().exact().is_none_or(|length| length <= self.settings.max_object_bytes);
        let storable = is_get && fits && policy::storable(status, &parts.headers, body.is_framed()).is_ok();
        let passed = |parts, body| {
            let mut answer = Answer::passed(parts, body, Outcome::Miss);
            answer.marks.forwarded = Some(missed(loaded.as_deref()));
            answer.marks.x_cache = Some("ONLINE_MISS");
            answer
        };
        let whole = match body::collect(body, SMALL).await {
            Ok(Ok(whole)) => whole,
            Ok(Err((first, rest))) => {
                // What is stored so far is not current any more, whether or not this one comes to be stored.
                self.revoke_if_refused(asked, id, loaded.as_ref(), Means::Revoked);
                let expected =
                    rest.size_hint().exact().map_or(self.settings.max_object_bytes, |left| left + first.len() as u64);
                let room = if storable { self.keeper.room(expected) } else { None };
                let max = if room.is_some() { self.settings.max_object_bytes } else { 0 };
                let keeping = self.keeping(asked, key, id, &parts.headers, loaded.clone());
                let keeper = self.keeper.clone();
                let tee = Tee::new(first, rest, max, move |whole| {
                    keeper.keep_later(keeping, whole);
                    drop(room);
                });
                return passed(parts, Body::Tee(Box::new(tee)));
            }
            Err(error) => match broken_off(error) {
                Error::Origin(error) => return self.unavailable(asked, id, loaded, Err(error)).await,
                error => return Answer::failed(error),
            },
        };
        let message = &whole[..whole.len().min(4096)];
        let means = policy::means(status, limits::is_rate_limited(status, &parts.headers, message));
        let content = if is_get { Body::Full(whole.clone()) } else { Body::Empty };
        let refusal = asked.pooled.as_ref().and_then(|_| Refusal::of(status, &parts.headers, message, now_ms()));
        if let Means::Unavailable(why) = means {
            let mut answer = passed(parts, content);
            answer.marks.x_cache = error_name(why);
            answer.refusal = refusal;
            return self.unavailable(asked, id, loaded.clone(), Ok((answer, why))).await;
        }
        self.revoke_if_refused(asked, id, loaded.as_ref(), means);
        if status.is_success() && Credentials::teaches(&asked.method, asked.path()) {
            self.learn(asked, &parts.headers, &whole);
        }
        let is_gzip = parts.headers.get(header::CONTENT_ENCODING).is_some_and(|v| v == "gzip");
        let kept = match storable && whole.len() as u64 <= self.settings.max_object_bytes {
            true => {
                let keeping = self.keeping(asked, key, id, &parts.headers, loaded.clone());
                let keeper = self.keeper.clone();
                let size = whole.len() as u64 + if is_gzip { body::claimed_len(&whole) } else { 0 };
                self.keeper.off_thread(size, move || keeper.keep(keeping, whole)).await.unwrap_or_default()
            }
            false => Default::default(),
        };
        if status == StatusCode::OK && is_get && !kept.stored {
            // Something newer, which is not stored: what is stored is this credential's no longer.
            self.revoke_if_refused(asked, id, loaded.as_ref(), Means::Revoked);
        }
        let mut answer = passed(parts, content);
        answer.marks.stored = kept.stored;
        answer.elements = kept.elements;
        answer.refusal = refusal;
        if status == StatusCode::NOT_FOUND
            && is_get
            && !self.settings.not_found_ttl.is_zero()
            && is_at_full_commit(asked.target_form())
        {
            self.remember_missing(asked, id, &answer);
        }
        if status == StatusCode::OK { unless_current(asked, answer) } else { answer }
    }

    fn remember_missing(&self, asked: &Asked, id: KeyId, answer: &Answer) {
        let mut copy = answer.share().map(Shared::answer);
        if let Some(copy) = &mut copy {
            copy.headers = fields::to_store(&copy.headers);
        }
        if let Some(shared) = copy.and_then(|c| c.share()) {
            self.missing.insert((id, self.seer(asked), asked.accepts_gzip), (asked.at, shared));
        }
    }

    /// 401, 404, 410 and their like end this credential's right to what is stored, at once.
    fn revoke_if_refused(&self, asked: &Asked, id: KeyId, loaded: Option<&Arc<Loaded>>, means: Means) {
        if means == Means::Revoked {
            self.store.revoke(id, loaded, asked.credential, asked.at);
        }
    }

    /// GitHub cannot answer: what this credential has had confirmed stands in, else the error is passed on.
    pub(super) async fn unavailable(
        &self,
        asked: &Asked,
        id: KeyId,
        loaded: Option<Arc<Loaded>>,
        what: Result<(Answer, Unavailable), origin::Error>,
    ) -> Answer {
        let why = match &what {
            Ok((_, why)) => *why,
            Err(origin::Error::Timeout(_) | origin::Error::ConnectTimeout(_)) => Unavailable::TimedOut,
            Err(_) => Unavailable::Unreachable,
        };
        if let Err(error) = &what {
            tracing::warn!(%error, route = asked.route.name, "GitHub did not answer");
        }
        let may_stand_in = match &what {
            Ok(_) => true,
            Err(error) => error.is_outage(),
        };
        let status = match &what {
            Ok((answer, _)) => Some(answer.status),
            Err(_) => None,
        };
        let marks = Marks {
            hit: true,
            forwarded: Some("stale"),
            forwarded_status: status,
            x_cache: Some(stand_in_name(why)),
            ..Marks::default()
        };
        let stored = match may_stand_in {
            true => self.stand_in(asked, id, loaded, marks).await,
            false => None,
        };
        match (stored, what) {
            (Some(answer), Ok((refused, _))) => Answer { refusal: refused.refusal, ..answer },
            (Some(answer), Err(_)) => answer,
            (None, Ok((answer, _))) => answer,
            (None, Err(error)) => Answer::failed(error.into()),
        }
    }

    /// What this credential has had confirmed, if it is not too old.
    async fn stand_in(&self, asked: &Asked, id: KeyId, loaded: Option<Arc<Loaded>>, marks: Marks) -> Option<Answer> {
        let loaded = loaded?;
        let (i, own) = match loaded.entry.own(asked.credential) {
            Some(own) => own,
            None => self.of_the_pool(asked, &loaded.entry)?,
        };
        if asked.is_probe || !policy::may_serve_stale(own, self.settings.stale_max_age, now_ms()) {
            return None;
        }
        let (etag, age) = (own.etag.clone(), now_ms().saturating_sub(own.confirmed_at) / 1000);
        let body = self.store.body(id, &loaded, i).await?;
        let chosen = Chosen { loaded: loaded.clone(), i, body };
        let mut answer = self.stored_answer(asked, &chosen, &HeaderMap::new(), Outcome::Stale, marks).await?;
        if let Some(etag) = etag.and_then(|e| HeaderValue::from_str(&e).ok()) {
            answer.headers.insert(header::ETAG, etag);
        }
        answer.headers.insert(header::AGE, age.into());
        Some(unless_current(asked, answer))
    }

    /// What any credential of the pool has had confirmed last: its clients could have been given that one, too.
    fn of_the_pool<'e>(&self, asked: &Asked, entry: &'e Entry) -> Option<(usize, &'e Validator)> {
        if !asked.of_registered {
            return None;
        }
        let is_ours = |v: &&Validator| {
            self.pool_ids.contains_key(&v.credential) || v.principal.as_ref().is_some_and(|p| self.pool.has(&p.name()))
        };
        let all = entry.representations.iter().enumerate();
        let ours =
            all.filter_map(|(i, r)| Some((i, r.validators.iter().filter(is_ours).max_by_key(|v| v.confirmed_at)?)));
        ours.max_by_key(|(_, v)| v.confirmed_at)
    }

    /// What is stored and was confirmed, where nobody can be asked; none also for what is not for the cache.
    pub(super) async fn unasked_stand_in(&self, asked: &Asked, marks: Marks) -> Option<Answer> {
        policy::eligible(&asked.method, asked.path(), &asked.headers, false, &asked.precondition).ok()?;
        let id = asked.key().id();
        let loaded = self.store.load(id, asked.at).await;
        self.stand_in(asked, id, loaded, marks).await
    }

    /// GitHub is offline: nobody is asked.
    pub(super) async fn offline(&self, asked: &Asked) -> Answer {
        let readable =
            policy::eligible(&asked.method, asked.path(), &asked.headers, false, &asked.precondition).is_ok();
        let stored = match readable {
            true => {
                let id = asked.key().id();
                let loaded = self.store.load(id, asked.at).await;
                let marks =
                    Marks { hit: true, detail: Some("offline"), x_cache: Some("OFFLINE_HIT"), ..Marks::default() };
                self.stand_in(asked, id, loaded, marks).await
            }
            false => None,
        };
        stored.unwrap_or_else(|| {
            let mut answer = Answer::failed(Error::Offline);
            answer.marks.x_cache = Some(OFFLINE_MISS);
            answer
        })
    }
}

/// A 304 in place of a 200 whose content the client has: its own precondition was not what was asked with.
fn unless_current(asked: &Asked, answer: Answer) -> Answer {
    let text = |name| answer.headers.get(name).and_then(|v| v.to_str().ok());
    match asked.precondition.is_met_by(text(header::ETAG), text(header::LAST_MODIFIED)) {
        true => not_modified_for(answer),
        false => answer,
    }
}
