//! What was written through us, and when: a write ends fresh responses, remembered 404s, and joining.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::github::credentials::api_path;
use crate::github::routes;

/// Repositories whose last write is remembered; past that, all count as written to at the same time.
const MAX_REPOSITORIES: usize = 10_000;

#[derive(Default)]
pub(super) struct Writes {
    generation: AtomicU64,
    /// Milliseconds since 1970, by repository.
    by_repository: Mutex<HashMap<String, u64, foldhash::fast::RandomState>>,
    /// The last write that was to no known repository.
    anywhere: AtomicU64,
    last: AtomicU64,
}

impl Writes {
    /// Notes a write, when GitHub has answered it.
    pub fn note(&self, path: &str, now: u64) {
        let path = api_path(path);
        // Minting a token changes nothing that anyone reads.
        if path.starts_with("/app/installations/") && path.ends_with("/access_tokens") {
            return;
        }
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.last.fetch_max(now, Ordering::AcqRel);
        match routes::repository(path).filter(|r| !r.starts_with("id/")) {
            Some(repository) => {
                let mut all = self.by_repository.lock();
                if all.len() >= MAX_REPOSITORIES {
                    all.clear();
                    self.anywhere.fetch_max(now, Ordering::AcqRel);
                }
                all.insert(repository, now);
            }
            None => {
                self.anywhere.fetch_max(now, Ordering::AcqRel);
            }
        }
    }

    /// Counts writes.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// When anything was last written through us, in milliseconds since 1970.
    pub fn latest(&self) -> u64 {
        self.last.load(Ordering::Acquire)
    }

    /// When what is at a path may last have been changed through us, in milliseconds since 1970.
    pub fn last(&self, path: &str) -> u64 {
        let anywhere = self.anywhere.load(Ordering::Acquire);
        match routes::repository(api_path(path)) {
            // Which repository has this number is not known: any write may have been to it.
            Some(id) if id.starts_with("id/") => self.last.load(Ordering::Acquire),
            Some(repository) => self.by_repository.lock().get(&repository).copied().unwrap_or(0).max(anywhere),
            None => self.last.load(Ordering::Acquire),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_reaches_what_it_may_have_changed() {
        let writes = Writes::default();
        writes.note("/repos/O/r/issues", 5);
        assert_eq!(writes.last("/repos/o/R/pulls"), 5);
        assert_eq!(writes.last("/repos/o/other"), 0);
        assert_eq!(writes.last("/repositories/7/issues"), 5);
        assert_eq!(writes.last("/orgs/o/repos"), 5);
        writes.note("/graphql", 6);
        assert_eq!(writes.last("/repos/o/other"), 6);
        assert_eq!(writes.generation(), 2);
        writes.note("/app/installations/1/access_tokens", 7);
        assert_eq!((writes.generation(), writes.last("/user")), (2, 6));
    }
}
