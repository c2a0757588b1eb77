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
    /// The API that it is for: host, and port where that is unusual.
    pub realm: Arc<str>,
    /// The one installation that the operator named; else they are found by owner.
    pub fixed: bool,
    /// Held by who looks an installation up.
    pub finding: tokio::sync::Mutex<()>,
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
    /// The API that is asked.
    pub realm: Arc<str>,
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
/// How long who could not be looked up is left alone.
const FAILED_FOR: Duration = Duration::from_secs(30);
/// An owner without an installation may get one.
const OWNER_FOR: Duration = Duration::from_secs(600);

impl Wanted {
    /// Reads a request's target, without GHES's prefix.
    pub fn of(realm: &Arc<str>, method: &Method, path: &str, route: &'static str) -> Wanted {
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
        Wanted { realm: realm.clone(), resource, owner, repository, route }
    }

    fn sight(&self) -> Option<String> {
        self.repository.as_ref().map(|repository| format!("{repository} {}", self.route))
    }
}

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
                finding: tokio::sync::Mutex::new(()),
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

    pub fn is_empty(&self) -> bool {
        self.accounts.read().is_empty() && self.apps.is_empty()
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
        let mut best: Option<((u8, u64), Arc<Account>)> = None;
        let mut back: Option<u64> = None;
        let suits = |a: &&Arc<Account>| a.realm == wanted.realm && !tried.contains(&a.id);
        for account in self.accounts.read().iter().filter(suits) {
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

    /// Whether an account's word that something is not there, or not for it, is to be believed, and no other asked: nobody
    /// was given such a thing lately, and it sees the repository, or nobody does.
    pub fn is_final(&self, account: &Account, wanted: &Wanted) -> bool {
        let (Some(repository), Some(sight)) = (&wanted.repository, wanted.sight()) else { return true };
        let sees = self.sees.contains_key(&(account.id, repository.clone()));
        if sees {
            self.nowhere.contains_key(&sight)
        } else {
            self.nowhere.contains_key(repository) && !self.is_seen(repository)
        }
    }

    fn is_seen(&self, repository: &String) -> bool {
        self.accounts.read().iter().any(|a| self.sees.contains_key(&(a.id, repository.clone())))
    }

    /// In how many milliseconds somebody is back who is known to see the repository, if none of those who were asked is.
    pub fn seer_is_back_in(&self, wanted: &Wanted, asked: &[u64], now: u64) -> Option<u64> {
        let repository = wanted.repository.as_ref()?;
        let accounts = self.accounts.read();
        let seers =
            accounts.iter().filter(|a| a.realm == wanted.realm && self.sees.contains_key(&(a.id, repository.clone())));
        let (done, left): (Vec<_>, Vec<_>) = seers.partition(|a| asked.contains(&a.id));
        let back = left.iter().map(|a| a.rests_until(wanted.resource, now).saturating_sub(now)).min()?;
        done.is_empty().then_some(back)
    }

    /// No account was given it.
    pub fn nobody_saw(&self, wanted: &Wanted) {
        if let (Some(repository), Some(sight)) = (&wanted.repository, wanted.sight()) {
            self.nowhere.insert(sight, ());
            if !self.is_seen(repository) {
                self.nowhere.insert(repository.clone(), ());
            }
        }
    }

    /// An account was given it.
    pub fn saw(&self, account: &Account, wanted: &Wanted) {
        if let (Some(repository), Some(sight)) = (&wanted.repository, wanted.sight()) {
            let key = (account.id, repository.clone());
            if !self.sees.contains_key(&key) {
                self.sees.insert(key, ());
            }
            self.blind.invalidate(&(account.id, sight));
        }
    }

    /// Accounts were refused what another was given.
    pub fn did_not_see(&self, accounts: &[u64], wanted: &Wanted) {
        if let Some(sight) = wanted.sight().filter(|_| !accounts.is_empty()) {
            accounts.iter().for_each(|id| self.blind.insert((*id, sight.clone()), ()));
            // Somebody does see such things.
            self.nowhere.invalidate(&sight);
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
mod tests {
    use super::*;
    use crate::github::limits::Quota;

    fn pool(names: &[&str]) -> Pool {
        let token = |n: &&str| FoundToken { name: (*n).into(), token: format!("ghp_{n}"), host: None };
        let tokens = names.iter().map(token).collect();
        Pool::new(Found { tokens, apps: Vec::new() }, "api.github.com", Duration::ZERO).unwrap()
    }

    fn wanted(path: &str) -> Wanted {
        Wanted::of(&"api.github.com".into(), &Method::GET, path, "GET /x")
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
        let elsewhere = Wanted::of(&"ghe.example".into(), &Method::GET, "/repos/o/r", "GET /x");
        assert_eq!(name(pool.choose(&elsewhere, &[], 2000)), "none", "credentials are for one API");
    }

    #[test]
    fn a_404_is_believed_when_nobody_knows_better() {
        let pool = pool(&["a", "b"]);
        let all = pool.accounts();
        let (file, hook) =
            (wanted("/repos/o/r/contents/x"), Wanted { route: "GET /hooks", ..wanted("/repos/o/r/hooks") });
        assert!(!pool.is_final(&all[0], &file) && pool.is_final(&all[0], &wanted("/user")));
        pool.saw(&all[0], &file);
        assert!(!pool.is_final(&all[0], &file), "the other may be given more");
        pool.nobody_saw(&file);
        assert!(pool.is_final(&all[0], &file) && !pool.is_final(&all[0], &hook));
        assert!(!pool.is_final(&all[1], &file), "it may not see the repository at all");
        pool.saw(&all[0], &file);
        assert!(pool.is_final(&all[0], &file), "another file that is there changes nothing");
        pool.did_not_see(&[all[0].id], &file);
        assert!(!pool.is_final(&all[0], &file), "somebody was given what it was not");
        // Of a repository that nobody sees, once all were asked.
        let nowhere = wanted("/repos/o/nowhere");
        pool.nobody_saw(&nowhere);
        assert!(pool.is_final(&all[0], &nowhere) && pool.is_final(&all[1], &nowhere));
    }

    #[test]
    fn who_sees_it_is_waited_for() {
        let pool = pool(&["a", "b"]);
        let all = pool.accounts();
        let there = wanted("/repos/o/r");
        assert_eq!(pool.seer_is_back_in(&there, &[1], 1000), None);
        pool.saw(&all[0], &there);
        all[0].rest(Some("core"), 5000);
        assert_eq!(pool.seer_is_back_in(&there, &[1], 1000), Some(4000));
        assert_eq!(pool.seer_is_back_in(&there, &[0, 1], 1000), None);
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
