//! Reusing what is stored: the answer that a 304 stands for.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use super::Exchange;
use super::answer::{Answer, Marks};
use super::asked::Asked;
use super::cached::Chosen;
use super::keep::validator;
use crate::body::{Body, gunzip};
use crate::cache::key::KeyId;
use crate::cache::policy;
use crate::cache::precondition::Precondition;
use crate::cache::stored::{Coding, Entry};
use crate::calls::Outcome;
use crate::fields;

/// A confirmation is noted again after this long, in milliseconds: what may stand in when GitHub cannot answer is
/// told by the hour.
const NOTE_EVERY_MS: u64 = 600_000;

impl Exchange {
    /// Remembers that GitHub has just confirmed a representation to this credential.
    pub(super) fn note_confirmed(
        &self,
        asked: &Asked,
        id: KeyId,
        chosen: &Chosen,
        headers: &HeaderMap,
        tag: Option<String>,
    ) {
        let entry = &chosen.loaded.entry;
        let body = entry.representations[chosen.i].body;
        let known = entry.representations[chosen.i].validator(asked.credential);
        let age = known.map_or(u64::MAX, |v| asked.at.saturating_sub(v.confirmed_at));
        // The hour's thousand confirmations of one answer need not each be noted, unless freshness is told by them.
        if age < NOTE_EVERY_MS && self.settings.freshness == policy::Freshness::Revalidate {
            return;
        }
        let mut validator = validator(asked.credential, asked.principal.clone(), headers, asked.at);
        let quoted = tag.map(|t| format!("\"{t}\""));
        validator.etag = validator.etag.or(known.and_then(|v| v.etag.clone())).or(quoted);
        validator.last_modified = validator.last_modified.or(known.and_then(|v| v.last_modified.clone()));
        let on_disk = age >= NOTE_EVERY_MS;
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
    pub(super) async fn stored_answer(
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
                refusal: None,
            };
            return Some(not_modified_for(answer));
        }
        let body = match representation.coding {
            Coding::Gzip if !asked.accepts_gzip => {
                headers.remove(header::CONTENT_ENCODING);
                let (body, plain_len) = (chosen.body.clone(), representation.plain_len);
                self.keeper.off_thread(plain_len, move || gunzip(&body, plain_len)).await??.into()
            }
            _ => chosen.body.clone(),
        };
        let body = if asked.method == Method::HEAD {
            headers.insert(header::CONTENT_LENGTH, body.len().into());
            Body::Empty
        } else {
            Body::Full(body)
        };
        Some(Answer {
            status: StatusCode::OK,
            headers,
            body,
            outcome,
            marks,
            elements: representation.elements,
            refusal: None,
        })
    }
}

/// A 304 in place of a 200 whose content the client has.
pub(super) fn not_modified_for(mut answer: Answer) -> Answer {
    for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::CONTENT_LENGTH, header::LINK] {
        answer.headers.remove(name);
    }
    answer.headers.remove("x-github-media-type");
    if matches!(answer.outcome, Outcome::Revalidated | Outcome::Miss) {
        answer.outcome = Outcome::NotModified;
    }
    Answer { status: StatusCode::NOT_MODIFIED, body: Body::Empty, ..answer }
}

/// GitHub said 304 to the tag of `[]`: that is the answer.
pub(super) fn empty_list(asked: &Asked, mut headers: HeaderMap) -> Answer {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    let body = if asked.method == Method::HEAD {
        headers.insert(header::CONTENT_LENGTH, 2.into());
        Body::Empty
    } else {
        Body::Full(Bytes::from_static(b"[]"))
    };
    let marks = Marks { forwarded: Some("uri-miss"), ..Marks::REVALIDATED };
    Answer {
        status: StatusCode::OK,
        headers,
        body,
        outcome: Outcome::Revalidated,
        marks,
        elements: Some(0),
        refusal: None,
    }
}
