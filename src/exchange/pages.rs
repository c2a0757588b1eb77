//! Confirming a listing: that the pages which a stored `Link` names are still the last ones.

use super::Exchange;
use super::asked::Asked;
use super::tally::Trace;
use crate::cache::key::KeyId;
use crate::cache::listing::{self, Claims, Confirmation, confirmation};
use crate::cache::store::Loaded;
use crate::github::credentials::CredentialId;

/// A page that was shown to have elements, or to have none, to a credential.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Fact {
    key: KeyId,
    credential: CredentialId,
    generation: u64,
    has_elements: bool,
}

impl Exchange {
    /// What the stored page `i` needs besides its own 304.
    pub(super) fn confirmation(&self, asked: &Asked, loaded: &Loaded, i: usize) -> Confirmation {
        if asked.is_probe {
            return Confirmation::NotNeeded;
        }
        let elements = loaded.entry.representations[i].elements;
        let link = loaded.headers(i).get(http::header::LINK).and_then(|v| v.to_str().ok());
        confirmation(asked.target_form(), elements, link, asked.route.paging, asked.route.known)
    }

    /// Asks for the pages that a stored `Link` claims to be there, or not to be.
    pub(super) async fn confirm(&self, asked: &Asked, trace: &Trace<'_>, claims: &Claims) -> bool {
        let exists = self.page(asked, trace, claims.exists.as_deref(), true);
        let empty = self.page(asked, trace, claims.empty.as_deref(), false);
        let (exists, empty) = tokio::join!(exists, empty);
        exists && empty
    }

    async fn page(&self, asked: &Asked, trace: &Trace<'_>, target: Option<&str>, has_elements: bool) -> bool {
        let Some(target) = target else { return true };
        let Some(probe) = self.as_stored(asked, target).await else { return false };
        let key = probe.key().id();
        let fact = Fact { key, credential: asked.credential, generation: self.writes.generation(), has_elements };
        if self.confirmed.contains_key(&fact) {
            return true;
        }
        // A page that is through the cache like any other, except that it is not confirmed itself.
        let answer = Box::pin(self.through_cache(&probe, trace)).await;
        let holds = answer.elements.is_some_and(|n| (n > 0) == has_elements);
        if holds {
            self.confirmed.insert(fact, ());
        }
        holds
    }

    /// The request for a page that a `Link` names, in the form in which it is stored: PyGithub sorts the query
    /// of each link that it follows.
    async fn as_stored(&self, asked: &Asked, target: &str) -> Option<Asked> {
        let named = asked.for_page(self, target)?;
        let sorted = listing::with_sorted_query(target);
        if sorted == target || self.store.load(named.key().id(), asked.at).await.is_some() {
            return Some(named);
        }
        let sorted = asked.for_page(self, &sorted)?;
        let is_stored = self.store.load(sorted.key().id(), asked.at).await.is_some();
        Some(if is_stored { sorted } else { named })
    }
}
