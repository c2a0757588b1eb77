//! Through the cache: look up, ask with our validator, answer.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use super::Exchange;
use super::answer::{Answer, Marks};
use super::asked::Asked;
use super::reuse::empty_list;
use super::tally::Trace;
use crate::body::{Body, RequestBody, gunzip};
use crate::cache::collapse::Role;
use crate::cache::key::{Key, KeyId};
use crate::cache::listing::{self, Confirmation};
use crate::cache::policy::{self, Ask, Asker};
use crate::cache::store::Loaded;
use crate::cache::stored::Coding;
use crate::calls::Outcome;
use crate::error::Error;
use crate::github::credentials::{CredentialId, Credentials, Principal};
use crate::github::etag::{Recipe, compact, opaque};

/// Who is given the same 404s: a principal, where it is known.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Seer {
    Principal(Principal),
    Credential(CredentialId),
}

/// A stored representation that was chosen, its content at hand.
pub(super) struct Chosen {
    pub loaded: Arc<Loaded>,
    pub i: usize,
    pub body: Bytes,
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
            match self.in_flight.join(asked.identity(id, self.writes.generation()), Instant::now()) {
                Role::Leader(leader) => {
                    let answer = self.ask(asked, trace, &key, id).await;
                    if leader.has_followers() {
                        // A failure is the leader's own: the others ask for themselves.
                        let failed = matches!(answer.outcome, Outcome::Failed | Outcome::Refused);
                        leader.publish(if failed { None } else { answer.share() });
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
            && let Some((at, shared)) = self.missing.get(&(id, self.seer(asked), asked.accepts_gzip))
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

    pub(super) fn seer(&self, asked: &Asked) -> Seer {
        match &asked.principal {
            Some(principal) if principal.sees_alike() => Seer::Principal(principal.clone()),
            _ => Seer::Credential(asked.credential),
        }
    }

    /// The exchange with GitHub.
    async fn ask(&self, asked: &Asked, trace: &Trace<'_>, key: &Key, id: KeyId) -> Answer {
        let loaded = self.store.load(id, asked.at).await;
        let entry = loaded.as_ref().map(|l| &l.entry);
        let asker = Asker {
            credential: asked.credential,
            principal: asked.principal.as_ref(),
            precondition: &asked.precondition,
            may_be_empty_list: asked.route.array
                && !key.pretty
                && asks_for_json(&asked.headers)
                && (asked.is_probe || !listing::is_later_page(asked.target_form())),
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
            Confirmation::Ask(claims) if !own_copy => {
                let mut main = std::pin::pin!(main);
                let mut confirm = std::pin::pin!(self.confirm(asked, trace, claims));
                tokio::select! {
                    // Only a 304 is in need of confirmation.
                    main = &mut main => match &main {
                        Ok(response) if response.status() == StatusCode::NOT_MODIFIED => (main, confirm.await),
                        _ => (main, false),
                    },
                    confirmed = &mut confirm => (main.await, confirmed),
                }
            }
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
                if Credentials::teaches(&asked.method, asked.path()) {
                    self.learn(asked, chosen.loaded.headers(chosen.i), &chosen.body);
                }
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
                self.keeper
                    .off_thread(plain_len, move || {
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
}

/// How `Cache-Status` names a lookup that did not suffice.
pub(super) fn missed(loaded: Option<&Loaded>) -> &'static str {
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
