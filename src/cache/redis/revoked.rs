//! What credentials have lost: a field of each entry of its own, because records are written whole, by whoever was last, and
//! what was revoked must outlive that.

use std::collections::HashMap;

use ::redis::{Cmd, cmd};
use parking_lot::Mutex;

use crate::cache::key::KeyId;
use crate::cache::stored::Entry;
use crate::github::credentials::CredentialId;

/// The field: credential and time (milliseconds since 1970), for each, the latest last.
pub(super) const FIELD: &[u8] = b"r";
/// Bytes of one, and how many are kept.
const SIZE: usize = 24;
const MAX: usize = 64;
/// Those that Redis has not taken yet.
const MAX_UNSENT: usize = 100_000;

/// Appends, and cuts to the latest: two taps may do so at once.
const APPEND: &str = "local r = (redis.call('HGET', KEYS[1], ARGV[1]) or '') .. ARGV[2] \
                      if #r > tonumber(ARGV[3]) then r = string.sub(r, -tonumber(ARGV[3])) end \
                      redis.call('HSET', KEYS[1], ARGV[1], r) redis.call('EXPIRE', KEYS[1], ARGV[4])";

/// What was revoked, and is not in Redis yet.
#[derive(Default)]
pub(super) struct Revocations(Mutex<HashMap<(KeyId, CredentialId), u64>>);

impl Revocations {
    /// A credential has no right any more to what it had confirmed until `at`.
    pub fn note(&self, id: KeyId, credential: CredentialId, at: u64) {
        let mut unsent = self.0.lock();
        if unsent.len() < MAX_UNSENT {
            unsent.insert((id, credential), at);
        }
    }

    /// Takes out of an entry what was revoked since: by what its field says, and by what is still to be sent.
    pub fn apply(&self, id: KeyId, entry: &mut Entry, field: &[u8]) {
        for one in field.chunks_exact(SIZE) {
            let at = one[16..].try_into().map_or(u64::MAX, u64::from_be_bytes);
            if let Some(credential) = CredentialId::from_bytes(&one[..16]) {
                entry.revoke_before(credential, at);
            }
        }
        let unsent = self.0.lock();
        if unsent.is_empty() {
            return;
        }
        let validators = entry.representations.iter().flat_map(|r| &r.validators);
        let lost: Vec<_> = validators.filter_map(|v| Some((v.credential, *unsent.get(&(id, v.credential))?))).collect();
        for (credential, at) in lost {
            entry.revoke_before(credential, at);
        }
    }

    /// Tells Redis, through `run`; what it does not take stays. `ttl` in seconds.
    pub fn send(&self, run: impl Fn(&Cmd) -> bool, ttl: u64) {
        let waiting: Vec<_> = self.0.lock().iter().map(|(k, at)| (*k, *at)).collect();
        for ((id, credential), at) in waiting {
            let one = [&credential.as_bytes()[..], &at.to_be_bytes()].concat();
            let mut append = cmd("EVAL");
            append.arg(APPEND).arg(1).arg(super::key(id)).arg(FIELD).arg(one).arg(SIZE * MAX).arg(ttl);
            if !run(&append) {
                return;
            }
            let mut unsent = self.0.lock();
            if unsent.get(&(id, credential)) == Some(&at) {
                unsent.remove(&(id, credential));
            }
        }
    }
}
