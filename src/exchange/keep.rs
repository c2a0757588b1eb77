//! Taking in a 200: what is learned from it, and what of it is stored.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, header};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Exchange;
use super::asked::Asked;
use crate::body::gunzip;
use crate::cache::key::{Key, KeyId};
use crate::cache::listing;
use crate::cache::policy;
use crate::cache::store::{Loaded, Store};
use crate::cache::stored::{BodyId, Coding, Entry, Representation, Validator, write_head};
use crate::fields;
use crate::github::credentials::{CredentialId, Principal};
use crate::github::etag::{self, Recipe};
use crate::metrics::Metrics;

/// What is needed to store a response once its content is whole.
pub(super) struct Keeping {
    pub id: KeyId,
    pub key: Key,
    pub request: HeaderMap,
    pub credential: CredentialId,
    pub principal: Option<Principal>,
    pub at: u64,
    pub headers: HeaderMap,
    pub seen: Option<Arc<Loaded>>,
    /// What must not be stored: the credential of the pool that it was asked with.
    pub secret: Option<Arc<[u8]>>,
}

/// Stores responses, and does the heavy work with them elsewhere.
pub(super) struct Keeper {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    max_object_bytes: u64,
    /// The runtime whose threads do what takes long, and how much of it at once.
    house: Handle,
    heavy: Semaphore,
    /// Bytes that large responses may hold while they pass through, in KiB.
    passing: Arc<Semaphore>,
}

/// Bytes that are hashed and unzipped within a fraction of a millisecond.
const FEW: usize = 64 << 10;
/// All large responses that are kept while they pass, together.
const MAX_PASSING_KIB: usize = 128 << 10;

impl Exchange {
    pub(super) fn keeping(
        &self,
        asked: &Asked,
        key: &Key,
        id: KeyId,
        headers: &HeaderMap,
        seen: Option<Arc<Loaded>>,
    ) -> Keeping {
        Keeping {
            id,
            key: key.clone(),
            request: asked.headers.clone(),
            credential: asked.credential,
            principal: asked.principal.clone(),
            at: asked.at,
            headers: headers.clone(),
            seen,
            secret: asked.pooled.as_ref().map(|p| p.secret.token.clone()),
        }
    }
}

impl Keeper {
    /// Must be called within the runtime that is to do the heavy work.
    pub fn new(store: Arc<Store>, metrics: Arc<Metrics>, max_object_bytes: u64) -> Keeper {
        let (house, heavy) = (Handle::current(), Semaphore::new(2));
        let passing = Arc::new(Semaphore::new(MAX_PASSING_KIB));
        Keeper { store, metrics, max_object_bytes, house, heavy, passing }
    }

    /// Does work whose cost grows with `size` bytes: at once if they are few, else elsewhere, two at a time.
    /// None if it panicked.
    pub async fn off_thread<T: Send + 'static>(
        &self,
        size: u64,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        if size <= FEW as u64 {
            return Some(work());
        }
        let _permit = self.heavy.acquire().await.ok()?;
        self.house.spawn_blocking(work).await.ok()
    }

    /// Room for a large response that is kept while it passes; none if too many are.
    pub fn room(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes.div_ceil(1024)).ok()?;
        self.passing.clone().try_acquire_many_owned(kib).ok()
    }

    /// Stores a large 200 that has gone by, when there is time.
    pub(super) fn keep_later(self: Arc<Self>, keeping: Keeping, body: Bytes) {
        let house = self.house.clone();
        house.spawn(async move {
            let keeper = self.clone();
            self.off_thread(u64::MAX, move || keeper.keep(keeping, body)).await;
        });
    }

    /// Stores a whole 200. Gives the number of its elements; none also if its coding is broken, and it was
    /// not stored.
    pub(super) fn keep(&self, keeping: Keeping, body: Bytes) -> Kept {
        let Keeping { id, key, request, credential, principal, at, headers, seen, secret } = keeping;
        let coding = match headers.get(header::CONTENT_ENCODING) {
            Some(v) if v == "gzip" => Coding::Gzip,
            _ => Coding::Identity,
        };
        let plain = match coding {
            Coding::Identity => None,
            Coding::Gzip => match gunzip(&body, self.max_object_bytes) {
                Some(plain) => Some(plain),
                None => return Kept::default(),
            },
        };
        let plain = plain.as_deref().unwrap_or(&body);
        let echoes = |secret: &[u8]| {
            let within = |text: &[u8]| memchr::memmem::find(text, secret).is_some();
            within(plain) || headers.values().any(|v| within(v.as_bytes()))
        };
        if secret.is_some_and(|s| echoes(&s)) {
            return Kept::default();
        }
        let json =
            headers.get(header::CONTENT_TYPE).is_none_or(|v| memchr::memmem::find(v.as_bytes(), b"json").is_some());
        let elements = if json { listing::elements(plain) } else { None };
        let tag = headers.get(header::ETAG).and_then(|v| v.to_str().ok());
        let recipe = tag.and_then(|tag| {
            let vary = policy::vary(&headers);
            let learned = match key.pretty {
                true => Recipe::learn(&request, &vary, &etag::compact(plain), tag)
                    .or_else(|| Recipe::learn(&request, &vary, plain, tag)),
                false => Recipe::learn(&request, &vary, plain, tag),
            };
            self.metrics.recipe(learned.is_some());
            learned
        });
        let validator = validator(credential, principal, &headers, at);
        let body_id = BodyId::of(&body);
        // What came off the wire is a slice of a larger buffer, which the store would keep alive.
        let body = Bytes::copy_from_slice(&body);
        let representation = Representation {
            body: body_id,
            body_len: body.len() as u64,
            plain_len: plain.len() as u64,
            coding,
            head: write_head(&fields::to_store(&headers)),
            recipe,
            elements,
            stored_at: at,
            validators: Vec::new(),
        };
        self.store.update(
            id,
            seen.as_ref(),
            || Entry::new(key),
            Some((body_id, body.clone())),
            true,
            |entry| entry.put(representation, validator),
        );
        Kept { stored: true, elements }
    }
}

/// What became of a 200.
#[derive(Clone, Copy, Default)]
pub(super) struct Kept {
    pub stored: bool,
    pub elements: Option<u32>,
}

/// What an answer tells its credential.
pub(super) fn validator(
    credential: CredentialId,
    principal: Option<Principal>,
    headers: &HeaderMap,
    at: u64,
) -> Validator {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    Validator {
        credential,
        principal,
        etag: text(header::ETAG),
        last_modified: text(header::LAST_MODIFIED),
        confirmed_at: at,
        max_age: policy::max_age(headers),
    }
}
