//! What was learned of credentials, for longer than a process lives: whom each acts for, and whose an App's
//! installation is. No credential is here, only its digest.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::github::credentials::{CredentialId, Installation, Learned, Principal};

/// Credentials that are remembered; those that were learned first give way.
const MAX: usize = 20_000;

#[derive(Serialize, Deserialize)]
struct Entry {
    principal: Principal,
    /// Milliseconds since 1970.
    at: u64,
}

pub struct Known {
    principals: sled::Tree,
    installations: sled::Tree,
    /// Names that the operator gave, by the digits that reports show.
    given: sled::Tree,
}

impl Known {
    pub(super) fn open(db: &sled::Db) -> io::Result<Known> {
        Ok(Known {
            principals: db.open_tree("principals")?,
            installations: db.open_tree("installations")?,
            given: db.open_tree("given")?,
        })
    }

    /// Remembers what an answer told.
    pub fn remember(&self, learned: &[Learned], now: u64) -> io::Result<()> {
        for learned in learned {
            match learned {
                Learned::Principal(id, principal) => {
                    let entry = Entry { principal: principal.clone(), at: now };
                    let value = postcard::to_stdvec(&entry).map_err(io::Error::other)?;
                    self.principals.insert(id.as_bytes(), value)?;
                }
                Learned::Installation(id, installation) => {
                    let value = postcard::to_stdvec(installation).map_err(io::Error::other)?;
                    self.installations.insert(id.to_string(), value)?;
                }
            }
        }
        Ok(())
    }

    /// Remembers what the operator calls a credential.
    pub(super) fn give(&self, digits: &str, name: &str) -> io::Result<()> {
        self.given.insert(digits, name)?;
        Ok(())
    }

    /// All credentials whose principal is known; the oldest of too many are forgotten.
    pub fn principals(&self) -> io::Result<Vec<(CredentialId, Principal)>> {
        let mut all = Vec::new();
        for pair in self.principals.iter() {
            let (key, value) = pair?;
            if let (Some(id), Ok(entry)) = (CredentialId::from_bytes(&key), postcard::from_bytes::<Entry>(&value)) {
                all.push((id, entry));
            }
        }
        if all.len() > MAX {
            all.sort_by_key(|(_, entry)| entry.at);
            for (id, _) in all.drain(..all.len() - MAX) {
                self.principals.remove(id.as_bytes())?;
            }
        }
        Ok(all.into_iter().map(|(id, entry)| (id, entry.principal)).collect())
    }

    /// What credentials were called before their principal was known, and are called now.
    pub fn aliases(&self) -> io::Result<HashMap<String, Arc<str>, foldhash::fast::RandomState>> {
        let mut all: HashMap<String, Arc<str>, _> =
            self.principals()?.into_iter().map(|(id, principal)| (id.nickname(), principal.name())).collect();
        for pair in self.given.iter() {
            let (digits, name) = pair?;
            let nickname = format!("credential:{}", String::from_utf8_lossy(&digits));
            all.insert(nickname, String::from_utf8_lossy(&name).into());
        }
        Ok(all)
    }

    /// All installations that are known.
    pub fn installations(&self) -> io::Result<Vec<(u64, Installation)>> {
        let mut all = Vec::new();
        for pair in self.installations.iter() {
            let (key, value) = pair?;
            let id = std::str::from_utf8(&key).ok().and_then(|id| id.parse().ok());
            all.extend(id.zip(postcard::from_bytes(&value).ok()));
        }
        Ok(all)
    }

    /// Whose an installation is.
    pub fn installation(&self, id: &str) -> io::Result<Option<Installation>> {
        Ok(self.installations.get(id)?.and_then(|v| postcard::from_bytes(&v).ok()))
    }
}
