//! Whom a credential acts for, as far as it can be learned in passing.
//!
//! Only an HMAC of a credential is ever kept. The key is a local secret, so the digest says nothing to
//! anyone who reads a log, a metric or the store.

use std::collections::HashMap;
use std::sync::Arc;

use aws_lc_rs::hmac;
use http::{HeaderMap, Method, header};
use moka::sync::Cache;
use serde::{Deserialize, Serialize};

use super::etag::hex;

/// The HMAC of what a request authenticates with: `Authorization`, and `Cookie` where there is one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CredentialId([u8; 16]);

impl CredentialId {
    /// No credential at all.
    pub const ANONYMOUS: CredentialId = CredentialId([0; 16]);

    pub fn is_anonymous(&self) -> bool {
        *self == Self::ANONYMOUS
    }

    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<CredentialId> {
        bytes.try_into().ok().map(CredentialId)
    }

    /// What reports call it until its principal is known.
    pub fn nickname(&self) -> String {
        format!("credential:{}", hex(&self.0[..4]))
    }
}

impl std::fmt::Debug for CredentialId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex(&self.0[..4]))
    }
}

/// Whom a credential acts for, and what it was granted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Principal {
    name: Arc<str>,
    /// A digest of what GitHub said it granted; none: not known. Two tokens of one login need not see alike.
    grant: Option<[u8; 16]>,
}

impl Principal {
    /// `installation:123` or `user:octocat`.
    pub fn name(&self) -> Arc<str> {
        self.name.clone()
    }

    /// A principal by its name: `installation:ID` or `user:LOGIN`.
    pub fn named(name: &str) -> Principal {
        Principal { name: name.into(), grant: None }
    }

    /// Whether all its credentials are shown the same: tokens of one installation, with the same grant.
    pub fn sees_alike(&self) -> bool {
        self.grant.is_some()
    }
}

/// Whose an App's installation is, where an answer told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installation {
    /// The App's slug.
    pub app: Option<String>,
    /// The login of the account that it is installed on.
    pub account: Option<String>,
}

/// What an answer told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Learned {
    Principal(CredentialId, Principal),
    Installation(u64, Installation),
}

/// Digests credentials, and remembers what passing answers told about them.
pub struct Credentials {
    key: hmac::Key,
    principals: Cache<CredentialId, Principal>,
    /// The slug of the App that an installation is of.
    apps: Cache<u64, Arc<str>>,
    /// The operator's names, by the digits of a digest that reports show.
    given: HashMap<String, Arc<str>>,
}

/// How many credentials are remembered by name. An installation token lives for an hour; this is enough
/// for 10,000 of them.
const REMEMBERED: u64 = 10_000;

impl Credentials {
    /// `secret` never leaves the data directory.
    pub fn new(secret: &[u8]) -> Credentials {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        Credentials { key, principals: Cache::new(REMEMBERED), apps: Cache::new(REMEMBERED), given: HashMap::new() }
    }

    /// With names that the operator gave to digests: `1a2b3c4d` is what reports call `credential:1a2b3c4d`.
    pub fn with_names(self, given: impl IntoIterator<Item = (String, String)>) -> Credentials {
        Credentials { given: given.into_iter().map(|(digest, name)| (digest, name.into())).collect(), ..self }
    }

    /// Takes up what an earlier process learned.
    pub fn remember(&self, id: CredentialId, principal: Principal) {
        self.principals.insert(id, principal);
    }

    /// Takes up whose an installation is, as an earlier process learned it.
    pub fn remember_installation(&self, id: u64, installation: &Installation) {
        if let Some(app) = &installation.app {
            self.apps.insert(id, app.as_str().into());
        }
    }

    /// The slug of the App that an installation is of, where an answer told.
    pub fn app_of(&self, installation: u64) -> Option<Arc<str>> {
        self.apps.get(&installation)
    }

    /// The digest of the credential that a request carries.
    pub fn identify(&self, headers: &HeaderMap) -> CredentialId {
        let authorization = headers.get(header::AUTHORIZATION);
        if authorization.is_none() && !headers.contains_key(header::COOKIE) {
            return CredentialId::ANONYMOUS;
        }
        let mut context = hmac::Context::with_key(&self.key);
        for value in headers.get_all(header::AUTHORIZATION) {
            context.update(value.as_bytes());
            context.update(b"\0");
        }
        for value in headers.get_all(header::COOKIE) {
            context.update(b"\0");
            context.update(value.as_bytes());
        }
        let mut id = [0; 16];
        id.copy_from_slice(&context.sign().as_ref()[..16]);
        CredentialId(id)
    }

    /// The principal of a credential, where an answer told.
    pub fn principal(&self, id: CredentialId) -> Option<Principal> {
        if id.is_anonymous() { None } else { self.principals.get(&id) }
    }

    /// What reports call this credential: its principal, else a short digest.
    pub fn name(&self, id: CredentialId) -> Arc<str> {
        if id.is_anonymous() {
            return "anonymous".into();
        }
        if !self.given.is_empty()
            && let Some(name) = self.given.get(&hex(&id.0[..4]))
        {
            return name.clone();
        }
        self.principals.get(&id).map_or_else(|| id.nickname().into(), |principal| principal.name)
    }

    /// Whether [`learn`](Self::learn) would read the body of this answer: ask before keeping it.
    pub fn teaches(method: &Method, path: &str) -> bool {
        match *method {
            Method::POST => installation(path).is_some(),
            Method::GET => matches!(api_path(path), "/user" | "/app") || tells_installation(path),
            _ => false,
        }
    }

    /// Learns from an answer that GitHub gave: `POST /app/installations/ID/access_tokens` names the tokens
    /// of an installation, `GET /user` the login of a personal token, `GET /app` an App by its JWT, and
    /// what describes an installation, whose it is. Says what it has learned.
    pub fn learn(&self, method: &Method, path: &str, asked_with: CredentialId, body: &[u8]) -> Vec<Learned> {
        /// A repository that a token was restricted to.
        #[derive(Deserialize)]
        struct Repository {
            id: u64,
        }
        #[derive(Deserialize)]
        struct Minted {
            token: String,
            permissions: Option<std::collections::BTreeMap<String, String>>,
            repository_selection: Option<String>,
            repositories: Option<Vec<Repository>>,
        }
        #[derive(Deserialize)]
        struct User {
            login: String,
        }
        #[derive(Deserialize)]
        struct App {
            slug: String,
        }
        let mut learned = Vec::new();
        if let (&Method::POST, Some(id)) = (method, installation(path)) {
            let Ok(minted) = serde_json::from_slice::<Minted>(body) else { return learned };
            let repositories: Option<std::collections::BTreeSet<u64>> =
                minted.repositories.map(|all| all.iter().map(|r| r.id).collect());
            let granted = format!("{:?} {:?} {repositories:?}", minted.permissions, minted.repository_selection);
            let mut grant = [0; 16];
            grant.copy_from_slice(&hmac::sign(&self.key, granted.as_bytes()).as_ref()[..16]);
            let principal = Principal { name: format!("installation:{id}").into(), grant: Some(grant) };
            if let Some(minter) = self.principal(asked_with)
                && let (Some(app), Ok(number)) = (minter.name.strip_prefix("app:"), id.parse())
            {
                self.apps.insert(number, app.into());
            }
            // Clients put a token behind either word; each is a credential of its own to GitHub's tags.
            for scheme in ["token", "Bearer", "bearer"] {
                let mut headers = HeaderMap::new();
                if let Ok(value) = format!("{scheme} {}", minted.token).parse() {
                    headers.insert(header::AUTHORIZATION, value);
                    learned.push(Learned::Principal(self.identify(&headers), principal.clone()));
                }
            }
        } else if tells_installation(path) {
            learned.extend(installations(body));
        } else if !asked_with.is_anonymous() {
            let name = match api_path(path) {
                "/user" => serde_json::from_slice::<User>(body).ok().map(|user| format!("user:{}", user.login)),
                "/app" => serde_json::from_slice::<App>(body).ok().map(|app| format!("app:{}", app.slug)),
                _ => None,
            };
            let name = name.filter(|n| n.len() <= MAX_NAME && n.bytes().all(|b| b.is_ascii_graphic()));
            learned.extend(name.map(|n| Learned::Principal(asked_with, Principal::named(&n))));
        }
        // What is known already is no news.
        learned.retain(|l| match l {
            Learned::Principal(id, principal) => self.principals.get(id).as_ref() != Some(principal),
            Learned::Installation(..) => true,
        });
        for learned in &learned {
            match learned {
                Learned::Principal(id, principal) => self.principals.insert(*id, principal.clone()),
                Learned::Installation(id, installation) => self.remember_installation(*id, installation),
            }
        }
        learned
    }
}

/// Names that are longer are not GitHub's.
const MAX_NAME: usize = 100;

/// The installation that a token is minted for.
fn installation(path: &str) -> Option<&str> {
    let id = api_path(path).strip_prefix("/app/installations/")?.strip_suffix("/access_tokens")?;
    (!id.is_empty() && id.len() <= 20 && id.bytes().all(|b| b.is_ascii_digit())).then_some(id)
}

/// Whether the answer describes installations: one, or all of an App's.
fn tells_installation(path: &str) -> bool {
    let path = api_path(path);
    let below = path.strip_prefix("/app/installations");
    let one = |rest: &str| rest.strip_prefix('/').is_some_and(|id| id.bytes().all(|b| b.is_ascii_digit()));
    below.is_some_and(|rest| rest.is_empty() || one(rest))
        || (path.ends_with("/installation") && ["/repos/", "/orgs/", "/users/"].iter().any(|p| path.starts_with(p)))
}

fn installations(body: &[u8]) -> Vec<Learned> {
    #[derive(Deserialize)]
    struct Account {
        login: Option<String>,
        slug: Option<String>,
    }
    #[derive(Deserialize)]
    struct Described {
        id: u64,
        app_slug: Option<String>,
        account: Option<Account>,
    }
    let one = || serde_json::from_slice::<Described>(body).map(|one| vec![one]);
    let all = serde_json::from_slice::<Vec<Described>>(body).or_else(|_| one()).unwrap_or_default();
    let short = |name: &String| name.len() <= MAX_NAME && name.bytes().all(|b| b.is_ascii_graphic());
    let described = all.into_iter().map(|d| {
        let account = d.account.and_then(|a| a.login.or(a.slug)).filter(short);
        Learned::Installation(d.id, Installation { app: d.app_slug.filter(short), account })
    });
    described.collect()
}

/// The path of an API operation, without what a GitHub Enterprise Server puts before it.
pub fn api_path(path: &str) -> &str {
    for prefix in ["/api/v3", "/api/uploads"] {
        match path.strip_prefix(prefix) {
            Some(rest) if rest.starts_with('/') => return rest,
            _ => {}
        }
    }
    if path == "/api/graphql" { "/graphql" } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())])
    }

    #[test]
    fn learns_installations_and_logins() {
        let credentials = Credentials::new(b"secret");
        let mint = "/app/installations/42/access_tokens";
        credentials.learn(&Method::POST, mint, CredentialId::ANONYMOUS, br#"{"token":"ghs_x"}"#);
        for scheme in ["token", "Bearer"] {
            let id = credentials.identify(&with(&format!("{scheme} ghs_x")));
            assert_eq!(&*credentials.name(id), "installation:42");
        }
        let id = credentials.identify(&with("token pat"));
        assert!(credentials.name(id).starts_with("credential:"));
        credentials.learn(&Method::GET, "/user", id, br#"{"login":"octocat"}"#);
        assert_eq!(&*credentials.name(id), "user:octocat");
        assert_eq!(&*credentials.name(credentials.identify(&HeaderMap::new())), "anonymous");
        let jwt = credentials.identify(&with("Bearer eyJ"));
        credentials.learn(&Method::GET, "/api/v3/app", jwt, br#"{"slug":"packit"}"#);
        assert_eq!(&*credentials.name(jwt), "app:packit");
        let named = Credentials::new(b"secret").with_names([(jwt.nickname()[11..].to_owned(), "release-bot".into())]);
        assert_eq!(&*named.name(jwt), "release-bot");
        let body = br#"{"id":42,"app_slug":"packit","account":{"login":"o"},"target_type":"Organization"}"#;
        let whose = Installation { app: Some("packit".into()), account: Some("o".into()) };
        for path in ["/repos/o/r/installation", "/app/installations/42", "/orgs/o/installation"] {
            assert!(Credentials::teaches(&Method::GET, path));
            assert_eq!(
                credentials.learn(&Method::GET, path, jwt, body),
                [Learned::Installation(42, whose.clone())],
                "{path}"
            );
        }
        assert!(!Credentials::teaches(&Method::GET, "/app/installations/42/repositories"));
        assert_eq!(credentials.learn(&Method::GET, "/app/installations", jwt, b"[{\"id\":1},{\"id\":2}]").len(), 2);
    }

    #[test]
    fn tokens_see_alike_only_with_the_same_grant() {
        let credentials = Credentials::new(b"secret");
        let mint = |token: &str, more: &str| {
            let body = format!(r#"{{"token":"{token}"{more}}}"#);
            credentials.learn(
                &Method::POST,
                "/app/installations/42/access_tokens",
                CredentialId::ANONYMOUS,
                body.as_bytes(),
            );
            credentials.principal(credentials.identify(&with(&format!("token {token}")))).unwrap()
        };
        let all = mint("a", "");
        assert!(all.sees_alike() && all == mint("b", ""));
        assert_ne!(all, mint("c", r#","permissions":{"contents":"read"}"#));
        assert_ne!(mint("d", r#","repositories":[{"id":1}]"#), mint("e", r#","repositories":[{"id":2}]"#));
        assert!(!Principal::named("user:o").sees_alike());
    }

    #[test]
    fn digests_depend_on_the_secret_and_on_every_byte() {
        let (a, b) = (Credentials::new(b"1"), Credentials::new(b"2"));
        assert_ne!(a.identify(&with("token x")), b.identify(&with("token x")));
        assert_ne!(a.identify(&with("token x")), a.identify(&with("token X")));
        assert_ne!(a.identify(&with("token x")), a.identify(&with("Bearer x")));
        let mut cookie = with("token x");
        cookie.insert(header::COOKIE, "c=1".parse().unwrap());
        assert_ne!(a.identify(&with("token x")), a.identify(&cookie));
    }
}
