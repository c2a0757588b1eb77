//! One credential of the pool: what it authenticates with, and what is known of its quota.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderValue;
use parking_lot::Mutex;

use super::App;
use crate::github::limits::Quota;

/// One credential.
pub struct Account {
    pub id: u64,
    /// `pat:NAME` or `installation:ID`.
    pub name: Arc<str>,
    /// The API that it is for.
    pub realm: Arc<str>,
    pub kind: Kind,
    /// Whose it is, lower case, where that is known.
    owner: Mutex<Option<String>>,
    state: Mutex<State>,
    under_way: AtomicU64,
}

/// What it authenticates with.
pub enum Kind {
    Token(Secret),
    Installation(Installation),
}

/// An App's installation; its token comes and goes.
pub struct Installation {
    pub app: Arc<App>,
    pub number: u64,
    minted: Mutex<Option<Minted>>,
    /// When minting last failed, in milliseconds since 1970.
    failed_at: AtomicU64,
    /// Held by who mints.
    pub minting: tokio::sync::Mutex<()>,
}

/// A token, as it goes upstream. Never shown.
#[derive(Clone)]
pub struct Secret {
    pub authorization: HeaderValue,
    pub token: Arc<[u8]>,
}

#[derive(Clone)]
struct Minted {
    secret: Secret,
    /// Milliseconds since 1970.
    at: u64,
    expires: u64,
}

#[derive(Default)]
struct State {
    /// What is left, and until when that is so, in milliseconds since 1970.
    windows: HashMap<&'static str, (u64, u64)>,
    rests: HashMap<&'static str, u64>,
    /// In all resources.
    rests_all: u64,
    /// GitHub does not take it.
    refused: u64,
}

/// A token is replaced when it has less than this left, in milliseconds: five minutes.
const RENEW_BEFORE: u64 = 300_000;
/// How long after a failure nobody tries to mint again, in milliseconds.
const FAILED_FOR: u64 = 10_000;

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl Secret {
    /// # Errors
    /// It cannot be sent.
    pub fn new(token: &str) -> Result<Secret, String> {
        let mut authorization = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| "a token has characters that no token has".to_owned())?;
        authorization.set_sensitive(true);
        Ok(Secret { authorization, token: token.as_bytes().into() })
    }
}

impl Kind {
    pub(super) fn token(token: &str) -> Result<Kind, String> {
        Secret::new(token).map(Kind::Token)
    }

    pub(super) fn installation(app: Arc<App>, number: u64) -> Kind {
        Kind::Installation(Installation {
            app,
            number,
            minted: Mutex::default(),
            failed_at: AtomicU64::new(0),
            minting: tokio::sync::Mutex::new(()),
        })
    }
}

impl Installation {
    /// Its token, if it has one that lives for a while yet.
    pub fn current(&self, now: u64) -> Option<Secret> {
        self.minted.lock().as_ref().filter(|m| m.expires > now + RENEW_BEFORE).map(|m| m.secret.clone())
    }

    /// Minting failed: those who waited for it need not try, too.
    pub fn failed(&self, now: u64) {
        self.failed_at.store(now, Ordering::Relaxed);
    }

    /// Whether minting has failed a moment ago.
    pub fn has_failed(&self, now: u64) -> bool {
        now.saturating_sub(self.failed_at.load(Ordering::Relaxed)) < FAILED_FOR
    }

    /// A token was minted. `expires` in milliseconds since 1970.
    pub fn keep(&self, secret: Secret, now: u64, expires: u64) {
        *self.minted.lock() = Some(Minted { secret, at: now, expires });
    }

    /// GitHub does not take it any more. Says whether it was older than a minute, so that a new one may help.
    pub fn forget(&self, refused: &Secret, now: u64) -> bool {
        let mut minted = self.minted.lock();
        match &*minted {
            Some(m) if m.secret.token == refused.token => {
                let old = now.saturating_sub(m.at) > 60_000;
                *minted = None;
                old
            }
            // Another has replaced it already.
            _ => true,
        }
    }
}

impl Account {
    pub(super) fn new(id: u64, name: String, realm: Arc<str>, kind: Kind, owner: Option<String>) -> Account {
        Account {
            id,
            name: name.into(),
            realm,
            kind,
            owner: Mutex::new(owner),
            state: Mutex::default(),
            under_way: AtomicU64::new(0),
        }
    }

    /// Whose it is, if that is known.
    pub fn owner(&self) -> Option<String> {
        self.owner.lock().clone()
    }

    pub fn belongs_to(&self, owner: &str) {
        *self.owner.lock() = Some(owner.to_ascii_lowercase());
    }

    /// What an answer said of its quota. `now` in milliseconds since 1970.
    pub fn observe(&self, quota: &Quota, now: u64) {
        let (Some(remaining), Some(reset)) = (quota.remaining, quota.reset) else { return };
        let (resource, reset) = (quota.resource.unwrap_or("core"), reset.saturating_mul(1000));
        let mut state = self.state.lock();
        let window = state.windows.entry(resource).or_insert((remaining, reset));
        // Answers overtake each other: within an hour, what is left only shrinks.
        *window =
            if reset > window.1 || window.1 <= now { (remaining, reset) } else { (window.0.min(remaining), window.1) };
    }

    /// Not to be used until then, in one resource or in all. Milliseconds since 1970.
    pub fn rest(&self, resource: Option<&'static str>, until: u64) {
        let mut state = self.state.lock();
        let rests = match resource {
            Some(resource) => state.rests.entry(resource).or_default(),
            None => &mut state.rests_all,
        };
        *rests = until.max(*rests);
    }

    /// GitHub does not take it: it is not asked until then.
    pub fn refused(&self, until: u64) {
        self.rest(None, until);
        self.state.lock().refused = until;
    }

    /// Whether it rests because GitHub does not take it.
    pub fn is_refused(&self, now: u64) -> bool {
        self.state.lock().refused > now
    }

    /// Until when it rests in any resource that it was used for; the past: it does not. In milliseconds since 1970.
    pub fn rests(&self, now: u64) -> u64 {
        let resources: Vec<&str> = {
            let state = self.state.lock();
            state.windows.keys().chain(state.rests.keys()).copied().collect()
        };
        resources.iter().map(|r| self.rests_until(r, now)).max().unwrap_or(0).max(self.state.lock().rests_all)
    }

    /// Until when it rests; the past: it does not.
    pub fn rests_until(&self, resource: &str, now: u64) -> u64 {
        let state = self.state.lock();
        let spent = state.windows.get(resource).filter(|(left, reset)| *left == 0 && *reset > now).map_or(0, |w| w.1);
        state.rests_all.max(spent).max(state.rests.get(resource).copied().unwrap_or(0))
    }

    /// What is left, less what is under way; as good as all where nothing is known.
    pub fn left(&self, resource: &str, now: u64) -> u64 {
        let state = self.state.lock();
        let left = state.windows.get(resource).filter(|(_, reset)| *reset > now).map_or(u64::MAX / 2, |w| w.0);
        left.saturating_sub(self.under_way.load(Ordering::Relaxed))
    }

    /// Counts a request while it is under way.
    pub fn begin(self: &Arc<Self>) -> UnderWay {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay(self.clone())
    }
}

/// A request under way with an account.
pub struct UnderWay(Arc<Account>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}
