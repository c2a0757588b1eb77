//! What a room that several taps share asks of the store: a look again, what was lost, what was revoked.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::key::KeyId;
use super::redis::RedisRoom;
use super::store::{Loaded, MAX_WAITING, Pending, Room, Store};
use super::stored::Entry;
use crate::github::credentials::CredentialId;

impl Store {
    /// What memory holds, if it is still what a shared room holds; else that.
    pub(super) async fn checked_again(
        &self,
        room: &RedisRoom,
        id: KeyId,
        loaded: Arc<Loaded>,
        now: u64,
    ) -> Option<Arc<Loaded>> {
        // The others go on with what they have.
        let before = loaded.checked.swap(now, Ordering::Relaxed);
        let found = match room.record(id).await {
            Ok(Some(entry)) if entry == loaded.entry => return Some(loaded),
            Ok(Some(_)) => room.load(id).await,
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        match found {
            // Away: what is in memory has to do.
            Err(_) => Some(loaded),
            Ok(found) => {
                let _guard = self.lock(id);
                // A change that was made meanwhile wins, and what waits to be written.
                let current = self.memory.get(id);
                if self.is_waiting(id) || current.as_ref().is_some_and(|c| !Arc::ptr_eq(c, &loaded)) {
                    return current;
                }
                // A server that has come back may have come back empty.
                if found.is_none() && before < room.connected_at() {
                    self.put_back(id, &loaded);
                    return Some(loaded);
                }
                let newer = found.and_then(|(entry, bodies)| Loaded::new(entry, &bodies, Some(&loaded)));
                match newer.map(Arc::new) {
                    Some(newer) => {
                        newer.touched.store(loaded.touched.load(Ordering::Relaxed), Ordering::Relaxed);
                        self.keep_in_memory(id, newer.clone());
                        Some(newer)
                    }
                    // Expired, purged by another, or broken.
                    None => {
                        self.memory.remove(id);
                        None
                    }
                }
            }
        }
    }

    /// Stores again what the room has lost.
    fn put_back(&self, id: KeyId, loaded: &Arc<Loaded>) {
        let representations = loaded.entry.representations.iter().zip(&loaded.parts);
        let bodies = representations.filter_map(|(r, part)| Some((r.body, part.body.get()?.clone())));
        let pending = Pending { loaded: Some(loaded.clone()), new_bodies: bodies.collect(), dropped: Vec::new() };
        let mut queue = self.queue.0.lock();
        if queue.bytes + pending.bytes() <= MAX_WAITING {
            queue.bytes += pending.bytes();
            queue.waiting.insert(id, pending);
            self.queue.1.notify_one();
        }
    }

    /// Ends a credential's right to what is stored under a key. `at` in milliseconds since 1970.
    pub fn revoke(&self, id: KeyId, seen: Option<&Arc<Loaded>>, credential: CredentialId, at: u64) {
        // Where the room is shared, and also if it could not be read: another tap may know of a right that we do not.
        if let Some(Room::Redis(room)) = &self.room
            && (seen.is_some() || room.trouble().is_some())
        {
            room.revoke(id, credential, at);
            self.queue.1.notify_one();
        }
        let holds = |l: &&Arc<Loaded>| l.entry.own(credential).is_some();
        if let Some(loaded) = seen.filter(holds) {
            let fresh = || Entry::new(loaded.entry.key.clone());
            self.update(id, Some(loaded), fresh, None, true, |entry| {
                entry.revoke(credential);
                Vec::new()
            });
        }
    }
}
