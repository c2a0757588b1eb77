//! Through the cache: look up, ask with our validator, answer.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use hyper::body::Body as _;

use super::answer::{Answer, Marks, Shared, stand_in_name};
use super::asked::Asked;
use super::keep::validator;
use super::tally::Trace;
use super::{Exchange, SMALL, broken_off, now_ms, off_thread};
use crate::body::{self, Body, RequestBody, Tee, gunzip};
use crate::cache::collapse::Role;
use crate::cache::key::{Key, KeyId};
use crate::cache::listing::Confirmation;
use crate::cache::policy::{self, Ask, Asker, Means, Unavailable};
use crate::cache::precondition::Precondition;
use crate::cache::store::Loaded;
use crate::cache::stored::{Coding, Entry};
use crate::calls::Outcome;
use crate::error::Error;
use crate::fields;
use crate::github::credentials::{CredentialId, Credentials, Principal};
use crate::github::etag::{Recipe, compact, opaque};
use crate::github::limits;
use crate::github::routes::is_at_full_commit;
use crate::origin::{self, UpstreamBody};

/// Who is given the same 404s: a principal, where it is known.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Seer {
    Principal(Principal),
    Credential(CredentialId),
}

/// A stored representation that was chosen, its content at hand.
struct Chosen {
    loaded: Arc<Loaded>,
    i: usize,
    body: Bytes,
}

impl Exchange {
    /// Serves an eligible request: fresh or remembered where the operator wants it, else by asking,
    /// together with those who ask the same at the same time.
    pub(super) async fn cached(&self, asked: &Asked, trace: &Trace<'_>) -> Answer {
        if let Some(answer) = self.unasked(asked).await {
            return answer;
        }
        self.through_cache(asked, trace).await
    }

    /// Asks GitHub, or joins a request that does.
    pub(super) async fn through_cache(&self, asked: &Asked, trace: &Trace<'_>) -> Answer {
        let key = asked.key();
        let id = key.id();
        if asked.method != Method::GET {
            return self.ask(asked, trace, &key, id).await;
        }
        loop {
            match self.in_flight.join(asked.identity(id, self.writes.generation())) {
                Role::Leader(leader) => {
                    let answer = self.ask(asked, trace, &key, id).await;
                    if leader.has_followers() {
                        leader.publish(answer.share());
                    }
                    return answer;
                }
                Role::Follower(follower) => match follower.answer().await {
                    Some(Some(shared)) => {
                        let mut answer = shared.answer();
                        answer.outcome = Outcome::Collapsed;
                        answer.marks.collapsed = true;
                        return answer;
                    }
                    Some(None) => return self.ask(asked, trace, &key, id).await,
                    None => continue,
                },
            }
        }
    }

    /// An answer that the operator lets us give without asking.
    async fn unasked(&self, asked: &Asked) -> Option<Answer> {
        let settings = &self.settings;
        if settings.not_found_ttl.is_zero() && settings.freshness == policy::Freshness::Revalidate {
            return None;
        }
        let (id, written) = (asked.key().id(), self.writes.last(asked.path()));
        if !settings.not_found_ttl.is_zero()
            && asked.method == Method::GET
            && let Some((at, shared)) = self.missing.get(&(id, self.seer(asked)))
            && at > written
        {
            let mut answer = shared.answer();
            answer.outcome = Outcome::NotFound;
            answer.marks =
                Marks { hit: true, x_cache: Some("ONLINE_HIT"), detail: Some("not-found"), ..Marks::default() };
            return Some(answer);
        }
        if settings.freshness == policy::Freshness::Revalidate {
            return None;
        }
        let loaded = self.store.load(id, asked.at).await?;
        let (i, own) = loaded.entry.own(asked.credential)?;
        if !policy::is_fresh(settings.freshness, own, &asked.headers, written, asked.at) {
            return None;
        }
        let (age, max_age) = (asked.at.saturating_sub(own.confirmed_at) / 1000, own.max_age);
        let lifetime = match settings.freshness {
            policy::Freshness::For(duration) => duration.as_secs(),
            _ => u64::from(max_age),
        };
        let body = self.store.body(id, &loaded, i).await?;
        let chosen = Chosen { loaded: loaded.clone(), i, body };
        let ttl = i64::try_from(lifetime.saturating_sub(age)).ok();
        let marks = Marks { hit: true, ttl, x_cache: Some("ONLINE_HIT"), ..Marks::default() };
        let mut answer = self.stored_answer(asked, &chosen, &HeaderMap::new(), Outcome::Hit, marks).await?;
        answer.headers.insert(header::AGE, age.into());
        Some(answer)
    }

    fn seer(&self, asked: &Asked) -> Seer {
        asked.principal.clone().map_or(Seer::Credential(asked.credential), Seer::Principal)
    }

    /// The exchange with GitHub.
    async fn ask(&self, asked: &Asked, trace: &Trace<'_>, key: &Key, id: KeyId) -> Answer {
        let loaded = self.store.load(id, asked.at).await;
        let entry = loaded.as_ref().map(|l| &l.entry);
        let asker = Asker {
            credential: asked.credential,
            principal: asked.principal.as_ref(),
            precondition: &asked.precondition,
            may_be_empty_list: asked.route.array && !key.pretty && asks_for_json(&asked.headers),
            expected_etag: self.settings.expected_etag,
        };
        let question = policy::ask(entry, &asker);
        let chosen = match (&question, &loaded) {
            (Ask::Own(i) | Ask::Expected(i) | Ask::Since(i), Some(loaded)) => {
                let body = self.store.body(id, loaded, *i).await;
                body.map(|body| Chosen { loaded: loaded.clone(), i: *i, body })
            }
            _ => None,
        };
        let needs = chosen.as_ref().map_or(Confirmation::NotNeeded, |c| self.confirmation(asked, &c.loaded, c.i));
        let offer = self.offer(asked, key, &question, chosen.as_ref(), &needs).await;
        let Some((name, value)) = offer else {
            return self.ask_plainly(asked, trace, key, id, loaded, &question).await;
        };
        let mut request = asked.request(&self.via, RequestBody::Empty);
        let tag = (name == header::IF_NONE_MATCH).then(|| opaque(value.to_str().unwrap_or_default()).to_owned());
        request.headers_mut().insert(name, value);
        accept_gzip(asked, request.headers_mut());
        // A client whose own copy is the one we ask about is told so, and needs no page confirmed.
        let own_copy = asked.precondition.is_met_by(tag.as_deref(), None);
        let main = self.send(asked, trace, request);
        let (main, confirmed) = match &needs {
            Confirmation::Ask(claims) if !own_copy => tokio::join!(main, self.confirm(asked, trace, claims)),
            _ => (main.await, true),
        };
        let response = match main {
            Ok(response) => response,
            Err(error) => return self.unavailable(asked, id, loaded, Err(error)).await,
        };
        if response.status() != StatusCode::NOT_MODIFIED {
            return self.answered(asked, key, id, loaded, response).await;
        }
        let (parts, _) = response.into_parts();
        let answers_ours = match (&tag, parts.headers.get(header::ETAG).and_then(|v| v.to_str().ok())) {
            (Some(ours), Some(theirs)) => ours == opaque(theirs),
            _ => true,
        };
        if !answers_ours || !confirmed {
            return self.ask_plainly(asked, trace, key, id, loaded, &Ask::Plain).await;
        }
        match chosen {
            Some(chosen) => {
                self.note_confirmed(asked, id, &chosen, &parts.headers, tag);
                match self.stored_answer(asked, &chosen, &parts.headers, Outcome::Revalidated, Marks::REVALIDATED).await
                {
                    Some(answer) => answer,
                    None => self.ask_plainly(asked, trace, key, id, loaded, &Ask::Plain).await,
                }
            }
            None => empty_list(asked, parts.headers),
        }
    }

    /// The precondition that goes upstream; none: ask plainly.
    async fn offer(
        &self,
        asked: &Asked,
        key: &Key,
        question: &Ask,
        chosen: Option<&Chosen>,
        needs: &Confirmation,
    ) -> Option<(header::HeaderName, HeaderValue)> {
        let anonymous = asked.credential.is_anonymous();
        if *needs == Confirmation::Refetch || (anonymous && *needs != Confirmation::NotNeeded) {
            return None;
        }
        let tag = match (question, chosen) {
            (Ask::EmptyList, _) => Recipe::USUAL.expected(&asked.headers, b"[]"),
            (Ask::Own(i), Some(c)) => c.loaded.entry.representations[*i].validator(asked.credential)?.etag.clone()?,
            (Ask::Expected(i), Some(c)) => {
                let representation = &c.loaded.entry.representations[*i];
                let (coding, plain_len, recipe) =
                    (representation.coding, representation.plain_len, representation.recipe?);
                let (body, headers, pretty) = (c.body.clone(), asked.headers.clone(), key.pretty);
                off_thread(body.len(), move || {
                    let unzipped = match coding {
                        Coding::Gzip => Some(gunzip(&body, plain_len)?),
                        Coding::Identity => None,
                    };
                    let plain = unzipped.as_deref().unwrap_or(&body);
                    Some(if pretty {
                        recipe.expected(&headers, &compact(plain))
                    } else {
                        recipe.expected(&headers, plain)
                    })
                })
                .await??
            }
            (Ask::Since(i), Some(c)) => {
                let date = c.loaded.entry.representations[*i].validator(asked.credential)?.last_modified.clone()?;
                return Some((header::IF_MODIFIED_SINCE, HeaderValue::from_str(&date).ok()?));
            }
            _ => return None,
        };
        Some((header::IF_NONE_MATCH, HeaderValue::from_str(&tag).ok()?))
    }

    /// Asks without a validator of ours: with the client's own precondition if that is the question.
    async fn ask_plainly(
        &self,
        asked: &Asked,
        trace: &Trace<'_>,
        key: &Key,
        id: KeyId,
        loaded: Option<Arc<Loaded>>,
        question: &Ask,
    ) -> Answer {
        let mut request = asked.request(&self.via, RequestBody::Empty);
        accept_gzip(asked, request.headers_mut());
        let as_client = *question == Ask::AsClient;
        if as_client {
            for (name, value) in &asked.preconditions {
                request.headers_mut().append(name.clone(), value.clone());
            }
        }
        match self.send(asked, trace, request).await {
            Err(error) => self.unavailable(asked, id, loaded, Err(error)).await,
            Ok(response) if response.status() == StatusCode::NOT_MODIFIED => {
                if !as_client {
                    return Answer::failed(Error::UnaskedNotModified);
                }
                let (parts, _) = response.into_parts();
                let mut answer = Answer::passed(parts, Body::Empty, Outcome::NotModified);
                answer.marks.forwarded = Some(missed(loaded.as_deref()));
                answer.marks.x_cache = Some("ONLINE_HIT");
                answer
            }
            Ok(response) => self.answered(asked, key, id, loaded, response).await,
        }
    }

    /// What an answer other than a 304 comes to.
    async fn answered(
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
                let max = if storable { self.settings.max_object_bytes } else { 0 };
                let keeping = self.keeping(asked, key, id, &parts.headers, loaded.clone());
                let keeper = self.keeper.clone();
                let tee = Tee::new(first, rest, max, move |whole| keeper.keep_later(keeping, whole));
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
        if let Means::Unavailable(why) = means {
            return self.unavailable(asked, id, loaded.clone(), Ok((passed(parts, content), why))).await;
        }
        self.revoke_if_refused(asked, id, loaded.as_ref(), means);
        if status.is_success() && Credentials::teaches(&asked.method, asked.path()) {
            self.learn(asked, &parts.headers, &whole);
        }
        let kept = match storable && whole.len() as u64 <= self.settings.max_object_bytes {
            true => {
                let keeping = self.keeping(asked, key, id, &parts.headers, loaded.clone());
                let keeper = self.keeper.clone();
                off_thread(whole.len(), move || keeper.keep(keeping, whole)).await.unwrap_or_default()
            }
            false => Default::default(),
        };
        let mut answer = passed(parts, content);
        answer.marks.stored = kept.stored;
        answer.elements = kept.elements;
        if status == StatusCode::NOT_FOUND
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
            self.missing.insert((id, self.seer(asked)), (asked.at, shared));
        }
    }

    /// 401, 404, 410 and their like end this credential's right to what is stored, at once.
    fn revoke_if_refused(&self, asked: &Asked, id: KeyId, loaded: Option<&Arc<Loaded>>, means: Means) {
        let holds = |l: &&Arc<Loaded>| l.entry.own(asked.credential).is_some();
        if means == Means::Revoked && loaded.filter(holds).is_some() {
            let fresh = || Entry::new(asked.key());
            self.store.update(id, loaded, fresh, None, true, |entry| {
                entry.revoke(asked.credential);
                Vec::new()
            });
        }
    }

    /// GitHub cannot answer: what this credential has had confirmed stands in, else the error is passed on.
    async fn unavailable(
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
        let stored = async {
            let loaded = loaded?;
            let (i, own) = loaded.entry.own(asked.credential)?;
            if asked.is_probe || !policy::may_serve_stale(own, self.settings.stale_max_age, now_ms()) {
                return None;
            }
            let (etag, age) = (own.etag.clone(), now_ms().saturating_sub(own.confirmed_at) / 1000);
            let body = self.store.body(id, &loaded, i).await?;
            let chosen = Chosen { loaded: loaded.clone(), i, body };
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
            let mut answer = self.stored_answer(asked, &chosen, &HeaderMap::new(), Outcome::Stale, marks).await?;
            if let Some(etag) = etag.and_then(|e| HeaderValue::from_str(&e).ok()) {
                answer.headers.insert(header::ETAG, etag);
            }
            answer.headers.insert(header::AGE, age.into());
            Some(answer)
        };
        match (stored.await, what) {
            (Some(answer), _) => answer,
            (None, Ok((answer, _))) => answer,
            (None, Err(error)) => Answer::failed(error.into()),
        }
    }

    /// Remembers that GitHub has just confirmed a representation to this credential.
    fn note_confirmed(&self, asked: &Asked, id: KeyId, chosen: &Chosen, headers: &HeaderMap, tag: Option<String>) {
        let entry = &chosen.loaded.entry;
        let body = entry.representations[chosen.i].body;
        let known = entry.representations[chosen.i].validator(asked.credential);
        let age = known.map_or(u64::MAX, |v| asked.at.saturating_sub(v.confirmed_at));
        // The hour's thousand confirmations of one answer need not each be noted, on disk even less.
        if age < NOTE_EVERY_MS && self.settings.freshness == policy::Freshness::Revalidate {
            return;
        }
        let mut validator = validator(asked.credential, asked.principal.clone(), headers, asked.at);
        let quoted = tag.map(|t| format!("\"{t}\""));
        validator.etag = validator.etag.or(known.and_then(|v| v.etag.clone())).or(quoted);
        validator.last_modified = validator.last_modified.or(known.and_then(|v| v.last_modified.clone()));
        let on_disk = age > NOTE_ON_DISK_EVERY_MS;
        let fresh = || Entry::new(asked.key());
        self.store.update(id, Some(&chosen.loaded), fresh, None, on_disk, |entry| {
            for representation in &mut entry.representations {
                match representation.body == body {
                    true => representation.confirm(validator.clone()),
                    false => representation.revoke(asked.credential),
                }
            }
            Vec::new()
        });
    }

    /// The stored response as this client gets it; a 304 if its own copy is the same.
    async fn stored_answer(
        &self,
        asked: &Asked,
        chosen: &Chosen,
        not_modified: &HeaderMap,
        outcome: Outcome,
        marks: Marks,
    ) -> Option<Answer> {
        let representation = &chosen.loaded.entry.representations[chosen.i];
        let own = representation.validator(asked.credential);
        let mut headers = fields::freshen(chosen.loaded.headers(chosen.i), not_modified);
        if !headers.contains_key(header::ETAG)
            && let Some(etag) = own.and_then(|v| v.etag.as_deref())
        {
            headers.insert(header::ETAG, HeaderValue::from_str(etag).ok()?);
        }
        let text = |name| headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok());
        if asked.precondition != Precondition::None
            && asked.precondition.is_met_by(text(header::ETAG), text(header::LAST_MODIFIED))
        {
            let answer = Answer {
                status: StatusCode::OK,
                headers,
                body: Body::Empty,
                outcome,
                marks,
                elements: representation.elements,
            };
            return Some(not_modified_for(answer));
        }
        let body = match representation.coding {
            Coding::Gzip if !asked.accepts_gzip => {
                headers.remove(header::CONTENT_ENCODING);
                let (body, plain_len) = (chosen.body.clone(), representation.plain_len);
                off_thread(body.len(), move || gunzip(&body, plain_len)).await??.into()
            }
            _ => chosen.body.clone(),
        };
        let body = if asked.method == Method::HEAD {
            headers.insert(header::CONTENT_LENGTH, body.len().into());
            Body::Empty
        } else {
            Body::Full(body)
        };
        Some(Answer { status: StatusCode::OK, headers, body, outcome, marks, elements: representation.elements })
    }
}

/// A confirmation is noted again after this long, in milliseconds; on disk, after the second.
const NOTE_EVERY_MS: u64 = 60_000;
const NOTE_ON_DISK_EVERY_MS: u64 = 600_000;

/// A 304 in place of a 200 whose content the client has: its own precondition was not what was asked with.
fn unless_current(asked: &Asked, answer: Answer) -> Answer {
    let text = |name| answer.headers.get(name).and_then(|v| v.to_str().ok());
    match asked.precondition.is_met_by(text(header::ETAG), text(header::LAST_MODIFIED)) {
        true => not_modified_for(answer),
        false => answer,
    }
}

fn not_modified_for(mut answer: Answer) -> Answer {
    for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::CONTENT_LENGTH, header::LINK] {
        answer.headers.remove(name);
    }
    answer.headers.remove("x-github-media-type");
    if matches!(answer.outcome, Outcome::Revalidated | Outcome::Miss) {
        answer.outcome = Outcome::NotModified;
    }
    Answer { status: StatusCode::NOT_MODIFIED, body: Body::Empty, ..answer }
}

/// How `Cache-Status` names a lookup that did not suffice.
fn missed(loaded: Option<&Loaded>) -> &'static str {
    if loaded.is_some() { "stale" } else { "uri-miss" }
}

fn accept_gzip(asked: &Asked, headers: &mut HeaderMap) {
    if asked.accepts_gzip {
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
    }
}

/// Whether an empty listing would be JSON, as far as the request can tell.
fn asks_for_json(headers: &HeaderMap) -> bool {
    let Some(accept) = headers.get(header::ACCEPT) else { return true };
    let accept = accept.as_bytes();
    accept.is_empty() || accept == b"*/*" || memchr::memmem::find(accept, b"json").is_some()
}

/// GitHub said 304 to the tag of `[]`: that is the answer.
fn empty_list(asked: &Asked, mut headers: HeaderMap) -> Answer {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    let body = if asked.method == Method::HEAD {
        headers.insert(header::CONTENT_LENGTH, 2.into());
        Body::Empty
    } else {
        Body::Full(Bytes::from_static(b"[]"))
    };
    let marks = Marks { forwarded: Some("uri-miss"), ..Marks::REVALIDATED };
    Answer { status: StatusCode::OK, headers, body, outcome: Outcome::Revalidated, marks, elements: Some(0) }
}
