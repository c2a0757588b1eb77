//! GitHub credentials for the clients of the registry: personal access tokens and Apps.
//!
//! `read` finds them in the environment and in files; `account` is one credential with its quota, as far as answers have
//! told it; here is the choice among them. Nothing here does I/O but [`read`]: minting is `exchange`'s.

pub mod account;
mod read;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::Method;
use moka::sync::Cache;
use parking_lot::RwLock;

pub use account::{Account, Kind};
pub use read::{Found, FoundApp, FoundToken, find};

/// An App: it has a token for each account that it is installed on.
pub struct App {
    pub name: String,
    /// Its id or client id: the issuer of its JWTs.
    pub issuer: String,
    pub key: jsonwebtoken::EncodingKey,
    /// The one installation that the operator named; else they are found by owner.
    pub fixed: bool,
    /// Which installation an owner has; none: it has none.
    by_owner: Cache<String, Option<Arc<Account>>>,
}

/// All credentials.
pub struct Pool {
    accounts: RwLock<Vec<Arc<Account>>>,
    pub apps: Vec<Arc<App>>,
    padding: Duration,
    next: AtomicU64,
    /// Repositories that an account was shown to see.
    sees: Cache<(u64, String), ()>,
    /// What an account was refused, and another was not: a repository and a route.
    blind: Cache<(u64, String), ()>,
    /// What no account was given, lately: a repository, or a repository and a route.
    nowhere: Cache<String, ()>,
}

/// What a request is for, as far as the choice goes.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub resource: &'static str,
    /// Lower case.
    pub owner: Option<String>,
    /// `owner/name`, lower case.
    pub repository: Option<String>,
    pub route: &'static str,
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
const NOWHERE_FOR: Duration = Duration::from_secs(300);
/// An owner without an installation may get one.
const OWNER_FOR: Duration = Duration::from_secs(600);

impl Wanted {
    /// Reads a request's target, without GHES's prefix.
    pub fn of(method: &Method, path: &str, route: &'static str) -> Wanted {
        let mut parts = path.strip_prefix('/').unwrap_or(path).split('/');
        let (owner, repository) = match (parts.next(), parts.next(), parts.next()) {
            (Some("repos"), Some(owner), Some(name)) if !owner.is_empty() && !name.is_empty() => {
                (Some(owner.to_ascii_lowercase()), Some(format!("{owner}/{name}").to_ascii_lowercase()))
            }
            (Some("repositories"), Some(number), _) => (None, Some(format!("id/{number}"))),
            (Some("orgs" | "users"), Some(owner), _) if !owner.is_empty() => (Some(owner.to_ascii_lowercase()), None),
            _ => (None, None),
        };
        let resource = match path {
            "/graphql" => "graphql",
            "/search/code" => "code_search",
            p if p.starts_with("/search/") => "search",
            p if p.starts_with("/app-manifests/") && *method == Method::POST => "integration_manifest",
            _ => "core",
        };
        Wanted { resource, owner, repository, route }
    }

    fn sight(&self) -> Option<String> {
        self.repository.as_ref().map(|repository| format!("{repository} {}", self.route))
    }
}

impl Pool {
    /// # Errors
    /// A key that is none; it names the App.
    pub fn new(found: Found, padding: Duration) -> Result<Pool, String> {
        fn cache<K: std::hash::Hash + Eq + Send + Sync + 'static>(ttl: Duration) -> Cache<K, ()> {
            Cache::builder().max_capacity(20_000).time_to_live(ttl).build()
        }
        let mut pool = Pool {
            accounts: RwLock::default(),
            apps: Vec::new(),
            padding,
            next: AtomicU64::new(0),
            sees: cache(SEEN_FOR),
            blind: cache(BLIND_FOR),
            nowhere: cache(NOWHERE_FOR),
        };
        for FoundToken { name, token } in found.tokens {
            pool.add(name, Kind::token(&token)?, None);
        }
        for FoundApp { name, id, installation, pem } in found.apps {
            let key = jsonwebtoken::EncodingKey::from_rsa_pem(pem.as_bytes())
                .map_err(|_| format!("the private key of the App {name:?} is not an RSA key in PEM"))?;
            let by_owner = Cache::builder().max_capacity(10_000).time_to_live(OWNER_FOR).build();
            let app = Arc::new(App { name, issuer: id, key, fixed: installation.is_some(), by_owner });
            pool.apps.push(app.clone());
            if let Some(number) = installation {
                pool.add(format!("installation:{number}"), Kind::installation(app, number), None);
            }
        }
        Ok(pool)
    }

    pub fn is_empty(&self) -> bool {
        self.accounts.read().is_empty() && self.apps.is_empty()
    }

    fn add(&self, name: String, kind: Kind, owner: Option<String>) -> Arc<Account> {
        let account = Arc::new(Account::new(self.next.fetch_add(1, Ordering::Relaxed), name, kind, owner));
        self.accounts.write().push(account.clone());
        account
    }

    /// All credentials that are known now.
    pub fn accounts(&self) -> Vec<Arc<Account>> {
        self.accounts.read().clone()
    }

    /// What is known of an App's installation for an owner; none: nothing yet.
    pub fn installation(&self, app: &App, owner: &str) -> Option<Option<Arc<Account>>> {
        app.by_owner.get(owner)
    }

    /// Remembers which installation an App has for an owner.
    pub fn found(&self, app: &Arc<App>, owner: &str, number: Option<u64>) {
        let account = number.map(|number| {
            let same = |a: &&Arc<Account>| matches!(&a.kind, Kind::Installation(i) if i.number == number && Arc::ptr_eq(&i.app, app));
            let known = self.accounts.read().iter().find(same).cloned();
            known.unwrap_or_else(|| {
                let kind = Kind::installation(app.clone(), number);
                self.add(format!("installation:{number}"), kind, Some(owner.to_owned()))
            })
        });
        app.by_owner.insert(owner.to_owned(), account);
    }

    /// The account that can see what is wanted and has most left, of those that were not `tried`. `now` in milliseconds
    /// since 1970.
    pub fn choose(&self, wanted: &Wanted, tried: &[u64], now: u64) -> Choice {
        let mut best: Option<((u8, u64), Arc<Account>)> = None;
        let mut back: Option<u64> = None;
        for account in self.accounts.read().iter().filter(|a| !tried.contains(&a.id)) {
            let until = account.rests_until(wanted.resource, now);
            if until > now {
                back = Some(back.map_or(until, |b: u64| b.min(until)));
                continue;
            }
            let rank = (self.sight(account, wanted), account.left(wanted.resource, now));
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
        let sees = wanted.repository.as_ref().is_some_and(|r| self.sees.contains_key(&(account.id, r.clone())));
        let owns = wanted.owner.is_some() && account.owner().as_deref() == wanted.owner.as_deref();
        match (sees || owns, &account.kind) {
            (true, _) => 3,
            (false, Kind::Token(_)) => 2,
            // Somebody else's installation: it sees what is public.
            (false, Kind::Installation(_)) => 1,
        }
    }

    /// Whether an account's word that something is not there (404), or not for it (403), is to be believed, and no other
    /// asked: it sees the repository, or nobody was given this lately.
    pub fn is_final(&self, account: &Account, wanted: &Wanted, is_missing: bool) -> bool {
        let Some(repository) = &wanted.repository else { return true };
        match is_missing {
            true => self.sees.contains_key(&(account.id, repository.clone())) || self.nowhere.contains_key(repository),
            false => wanted.sight().is_none_or(|s| self.nowhere.contains_key(&s)),
        }
    }

    /// No account was given it.
    pub fn nobody_saw(&self, wanted: &Wanted, is_missing: bool) {
        let what = if is_missing { wanted.repository.clone() } else { wanted.sight() };
        if let Some(what) = what {
            self.nowhere.insert(what, ());
        }
    }

    /// An account was answered.
    pub fn saw(&self, account: &Account, wanted: &Wanted) {
        if let Some(repository) = &wanted.repository {
            let key = (account.id, repository.clone());
            if !self.sees.contains_key(&key) {
                self.sees.insert(key, ());
            }
        }
    }

    /// Accounts were refused what another was given.
    pub fn did_not_see(&self, accounts: &[u64], wanted: &Wanted) {
        if let Some(sight) = wanted.sight() {
            accounts.iter().for_each(|id| self.blind.insert((*id, sight.clone()), ()));
        }
    }

    /// How long a credential rests past its reset.
    pub fn padding(&self) -> Duration {
        self.padding
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::github::limits::Quota;

    fn pool(names: &[&str]) -> Pool {
        let tokens = names.iter().map(|n| FoundToken { name: (*n).into(), token: format!("ghp_{n}") }).collect();
        Pool::new(Found { tokens, apps: Vec::new() }, Duration::ZERO).unwrap()
    }

    fn wanted(path: &str) -> Wanted {
        Wanted::of(&Method::GET, path, "GET /x")
    }

    fn name(choice: Choice) -> String {
        match choice {
            Choice::Account(account) => account.name.to_string(),
            Choice::Resting(ms) => format!("resting {ms}"),
            Choice::None => "none".into(),
        }
    }

    fn left(remaining: u64, reset: u64) -> Quota {
        Quota { remaining: Some(remaining), reset: Some(reset), resource: Some("core"), ..Quota::default() }
    }

    #[test]
    fn the_one_with_most_left_that_does_not_rest() {
        let pool = pool(&["a", "b"]);
        let all = pool.accounts();
        let core = wanted("/repos/o/r");
        all[0].observe(&left(10, 100), 1000);
        all[1].observe(&left(20, 100), 1000);
        assert_eq!(name(pool.choose(&core, &[], 2000)), "b");
        all[1].observe(&left(0, 100), 3000);
        assert_eq!(name(pool.choose(&core, &[], 4000)), "a");
        assert_eq!(name(pool.choose(&wanted("/search/issues"), &[], 4000)), "a", "another pool of GitHub's");
        all[0].rest(Some("core"), 50_000);
        assert_eq!(name(pool.choose(&core, &[], 4000)), "resting 46000");
        assert_eq!(name(pool.choose(&core, &[all[0].id], 4000)), "resting 96000");
        assert_eq!(name(pool.choose(&core, &[], 100_001)), "a", "the hour is over");
        all[0].rest(None, 200_000);
        assert_eq!(name(pool.choose(&wanted("/graphql"), &[], 101_000)), "b");
        assert_eq!(name(pool.choose(&core, &[0, 1], 101_000)), "none");
    }

    #[test]
    fn who_sees_comes_before_who_has_most() {
        let pool = pool(&["a", "b"]);
        let all = pool.accounts();
        let there = wanted("/repos/O/r");
        all[0].observe(&left(10, 100), 1000);
        pool.saw(&all[0], &there);
        assert_eq!(name(pool.choose(&wanted("/repos/o/R/pulls"), &[], 2000)), "a");
        assert_eq!(name(pool.choose(&wanted("/repos/o/other"), &[], 2000)), "b");
        pool.did_not_see(&[all[1].id], &wanted("/repos/o/other"));
        assert_eq!(name(pool.choose(&wanted("/repos/o/other"), &[], 2000)), "a");
        assert!(pool.is_final(&all[0], &there, true) && !pool.is_final(&all[1], &there, true));
        assert!(!pool.is_final(&all[0], &there, false));
        pool.nobody_saw(&there, true);
        pool.nobody_saw(&there, false);
        assert!(pool.is_final(&all[1], &there, true) && pool.is_final(&all[1], &there, false));
    }

    #[test]
    fn what_a_request_is_for() {
        for (path, resource, owner, repository) in [
            ("/repos/O/R/pulls", "core", Some("o"), Some("o/r")),
            ("/orgs/Acme/repos", "core", Some("acme"), None),
            ("/search/code", "code_search", None, None),
            ("/search/issues", "search", None, None),
            ("/graphql", "graphql", None, None),
            ("/repositories/7/issues", "core", None, Some("id/7")),
            ("/user", "core", None, None),
        ] {
            let wanted = wanted(path);
            let found = (wanted.resource, wanted.owner.as_deref(), wanted.repository.as_deref());
            assert_eq!(found, (resource, owner, repository), "{path}");
        }
    }
}
