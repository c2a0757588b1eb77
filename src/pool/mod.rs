//! GitHub credentials for the clients of the registry: personal access tokens and Apps.
//!
//! `read` finds them in the environment and in files; `account` is one credential with its quota, as far as answers have
//! told it; here is the choice among them. Nothing here does I/O but [`read`]: minting is `exchange`'s.

pub mod account;
mod read;
mod wanted;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::sync::Cache;
use parking_lot::RwLock;

pub use account::{Account, Kind};
pub use read::{Found, FoundApp, FoundToken, KEYS, find};
pub use wanted::Wanted;

/// An App: it has a token for each account that it is installed on.
pub struct App {
    pub name: String,
    /// Its id or client id: the issuer of its JWTs.
    pub issuer: String,
    pub key: jsonwebtoken::EncodingKey,
    /// The API that it is for: host, and port where that is unusual.
    pub realm: Arc<str>,
    /// The one installation that the operator named; else they are found by owner.
    pub fixed: bool,
    /// Held by who looks an owner's installation up.
    finding: Cache<String, Arc<tokio::sync::Mutex<()>>>,
    /// Owners that could not be looked up just now.
    failed: Cache<String, ()>,
    /// Which installation an owner has; none: it has none.
    by_owner: Cache<String, Option<Arc<Account>>>,
}

/// All credentials.
pub struct Pool {
    accounts: RwLock<Vec<Arc<Account>>>,
    pub apps: Vec<Arc<App>>,
    padding: Duration,
    next: AtomicU64,
    /// Places that an account was shown to see.
    sees: Cache<(u64, String), ()>,
    /// Routes, at a place, by which an account was given something.
    gave: Cache<(u64, String), ()>,
    /// What an account was refused, and another was not: a place and a route.
    blind: Cache<(u64, String), ()>,
    /// What no account was given, a moment ago: path and query.
    nowhere: Cache<String, ()>,
}

/// What was chosen.
#[derive(Debug)]
pub enum Choice {
    Account(Arc<Account>),
    /// All rest; in so many milliseconds the first is back.
    Resting(u64),
    /// There is none, or all were tried.
    None,
}

/// How long it is remembered what an account sees, and what not.
const SEEN_FOR: Duration = Duration::from_secs(3600);
const BLIND_FOR: Duration = Duration::from_secs(600);
const NOWHERE_FOR: Duration = Duration::from_secs(60);
/// How long who could not be looked up is left alone.
const FAILED_FOR: Duration = Duration::from_secs(30);
/// An owner without an installation may get one.
const OWNER_FOR: Duration = Duration::from_secs(600);

impl Pool {
    /// `realm` is the API that credentials are for which name none.
    ///
    /// # Errors
    /// A key that is none; it names the App.
    pub fn new(found: Found, realm: &str, padding: Duration) -> Result<Pool, String> {
        fn cache<K: std::hash::Hash + Eq + Send + Sync + 'static>(ttl: Duration) -> Cache<K, ()> {
            Cache::builder().max_capacity(20_000).time_to_live(ttl).build()
        }
        let mut pool = Pool {
            accounts: RwLock::default(),
            apps: Vec::new(),
            padding,
            next: AtomicU64::new(0),
            sees: cache(SEEN_FOR),
            gave: cache(SEEN_FOR),
            blind: cache(BLIND_FOR),
            nowhere: cache(NOWHERE_FOR),
        };
        let of =
            |host: Option<String>| -> Arc<str> { host.map_or_else(|| realm.into(), |h| h.to_ascii_lowercase().into()) };
        for FoundToken { name, token, host } in found.tokens {
            let kind = Kind::token(&token).map_err(|why| format!("{name}: {why}"))?;
            pool.add(&mut pool.accounts.write(), name, of(host), kind, None);
        }
        for FoundApp { name, id, installation, pem, host } in found.apps {
            let key = jsonwebtoken::EncodingKey::from_rsa_pem(pem.as_bytes())
                .map_err(|_| format!("the private key of the App {name:?} is not an RSA key in PEM"))?;
            let by_owner = Cache::builder().max_capacity(10_000).time_to_live(OWNER_FOR).build();
            let app = Arc::new(App {
                name,
                issuer: id,
                key,
                realm: of(host),
                fixed: installation.is_some(),
                by_owner,
                finding: Cache::builder().max_capacity(10_000).time_to_live(OWNER_FOR).build(),
                failed: Cache::builder().max_capacity(10_000).time_to_live(FAILED_FOR).build(),
            });
            pool.apps.push(app.clone());
            if let Some(number) = installation {
                let (name, realm) = (format!("installation:{number}"), app.realm.clone());
                pool.add(&mut pool.accounts.write(), name, realm, Kind::installation(app, number), None);
            }
        }
        Ok(pool)
    }

    fn add(
        &self,
        accounts: &mut Vec<Arc<Account>>,
        name: String,
        realm: Arc<str>,
        kind: Kind,
        owner: Option<String>,
    ) -> Arc<Account> {
        let account = Arc::new(Account::new(self.next.fetch_add(1, Ordering::Relaxed), name, realm, kind, owner));
        accounts.push(account.clone());
        account
    }

    /// All credentials that are known now.
    pub fn accounts(&self) -> Vec<Arc<Account>> {
        self.accounts.read().clone()
    }

    /// Whether it is known which installation an App has for an owner, or not worth asking just now.
    pub fn is_known(&self, app: &App, owner: &str) -> bool {
        app.by_owner.contains_key(owner) || app.failed.contains_key(owner)
    }

    /// What is held by who looks an owner's installation up.
    pub fn finding(&self, app: &App, owner: &str) -> Arc<tokio::sync::Mutex<()>> {
        app.finding.get_with(owner.to_owned(), Arc::default)
    }

    /// An owner's installation could not be looked up.
    pub fn not_found_out(&self, app: &App, owner: &str) {
        app.failed.insert(owner.to_owned(), ());
    }

    /// Remembers which installation an App has for an owner.
    pub fn found(&self, app: &Arc<App>, owner: &str, number: Option<u64>) {
        let account = number.map(|number| {
            let mut accounts = self.accounts.write();
            let same = |a: &&Arc<Account>| matches!(&a.kind, Kind::Installation(i) if i.number == number && Arc::ptr_eq(&i.app, app));
            let known = accounts.iter().find(same).cloned();
            known.unwrap_or_else(|| {
                let kind = Kind::installation(app.clone(), number);
                let (name, owner) = (format!("installation:{number}"), (!owner.is_empty()).then(|| owner.to_owned()));
                self.add(&mut accounts, name, app.realm.clone(), kind, owner)
            })
        });
        app.by_owner.insert(owner.to_owned(), account);
    }

    /// The account that can see what is wanted and has most left, of those that were not `tried`. `now` in milliseconds
    /// since 1970.
    pub fn choose(&self, wanted: &Wanted, tried: &[u64], now: u64) -> Choice {
        let mut best: Option<((u8, bool, u64), Arc<Account>)> = None;
        let mut back: Option<u64> = None;
        let suits = |a: &&Arc<Account>| a.realm == wanted.realm && !tried.contains(&a.id);
        for account in self.accounts.read().iter().filter(suits) {
            let until = account.rests_until(wanted.resource, now);
            if until > now {
                back = Some(back.map_or(until, |b: u64| b.min(until)));
                continue;
            }
            // After one was refused, whose word would be final.
            let is_judge = !tried.is_empty() && self.is_final(account, wanted);
            let rank = (self.sight(account, wanted), is_judge, account.left(wanted.resource, now));
            if best.as_ref().is_none_or(|(r, _)| rank > *r) {
                best = Some((rank, account.clone()));
            }
        }
        match (best, back) {
            (Some((_, account)), _) => Choice::Account(account),
            (None, Some(until)) => Choice::Resting(until - now),
            (None, None) => Choice::None,
        }
    }

    /// How likely an account sees what is wanted.
    fn sight(&self, account: &Account, wanted: &Wanted) -> u8 {
        if wanted.sight().is_some_and(|s| self.blind.contains_key(&(account.id, s))) {
            return 0;
        }
        let sees = wanted.place.as_ref().is_some_and(|p| self.sees.contains_key(&(account.id, p.clone())));
        let owns = wanted.owner.is_some() && account.owner().as_deref() == wanted.owner.as_deref();
        match (sees || owns, &account.kind) {
            (true, _) => 3,
            (false, Kind::Token(_)) => 2,
            // Somebody else's installation: it sees what is public.
            (false, Kind::Installation(_)) => 1,
        }
    }

    /// Whether an account's word that something is not there, or not for it, is to be believed, and no other asked: it was
    /// given such a thing there before, or all were asked for this one a moment ago.
    pub fn is_final(&self, account: &Account, wanted: &Wanted) -> bool {
        match wanted.sight() {
            Some(sight) => self.gave.contains_key(&(account.id, sight)) || self.nowhere.contains_key(&wanted.target),
            None => true,
        }
    }

    /// In how many milliseconds the first is back, of those who do not see what is wanted any less than the `unseen`, who were
    /// not given it; none: nobody who rests is known to know better.
    pub fn back_in(&self, wanted: &Wanted, unseen: &[u64], now: u64) -> Option<u64> {
        let (place, sight) = (wanted.place.clone().unwrap_or_default(), wanted.sight().unwrap_or_default());
        let has = |cache: &Cache<(u64, String), ()>, id: u64, what: &String| cache.contains_key(&(id, what.clone()));
        let was_seen = unseen.iter().any(|id| has(&self.sees, *id, &place));
        let knows_better = |a: &Account| {
            if unseen.is_empty() {
                return true;
            }
            let owns = wanted.owner.is_some() && a.owner() == wanted.owner;
            let gave = has(&self.gave, a.id, &sight) && !(was_seen && wanted.is_code());
            !has(&self.blind, a.id, &sight) && (gave || (!was_seen && (owns || has(&self.sees, a.id, &place))))
        };
        let accounts = self.accounts.read();
        let ours = accounts.iter().filter(|a| a.realm == wanted.realm && !unseen.contains(&a.id) && knows_better(a));
        // Who does not rest and was not asked has refused just now, for another reason.
        ours.map(|a| a.rests_until(wanted.resource, now).saturating_sub(now)).filter(|ms| *ms > 0).min()
    }

    /// Whether GitHub takes none of the credentials for an API.
    pub fn is_refused(&self, wanted: &Wanted, now: u64) -> bool {
        let accounts = self.accounts.read();
        let mut ours = accounts.iter().filter(|a| a.realm == wanted.realm).peekable();
        ours.peek().is_some() && ours.all(|a| a.is_refused(now))
    }

    /// No account was given it.
    pub fn nobody_saw(&self, wanted: &Wanted) {
        self.nowhere.insert(wanted.target.clone(), ());
    }

    /// An account was given it.
    pub fn saw(&self, account: &Account, wanted: &Wanted) {
        let (Some(place), Some(sight)) = (&wanted.place, wanted.sight()) else { return };
        for (cache, what) in [(&self.sees, place.clone()), (&self.gave, sight.clone())] {
            let key = (account.id, what);
            if !cache.contains_key(&key) {
                cache.insert(key, ());
            }
        }
        self.blind.invalidate(&(account.id, sight));
    }

    /// Accounts were refused what another was given, or may be.
    pub fn did_not_see(&self, accounts: &[u64], wanted: &Wanted) {
        if let Some(sight) = wanted.sight().filter(|_| !accounts.is_empty()) {
            accounts.iter().for_each(|id| self.blind.insert((*id, sight.clone()), ()));
            self.nowhere.invalidate(&wanted.target);
        }
    }

    /// Whether an installation is one of the pool's.
    pub fn has(&self, name: &str) -> bool {
        name.starts_with("installation:") && self.accounts.read().iter().any(|a| *a.name == *name)
    }

    /// How long a credential rests past its reset.
    pub fn padding(&self) -> Duration {
        self.padding
    }
}

#[cfg(test)]
mod tests;
