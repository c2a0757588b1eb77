//! Whom a credential acts for, as far as it can be learned in passing.
//!
//! Only an HMAC of a credential is ever kept. The key is a local secret, so the digest says nothing to
//! anyone who reads a log, a metric or the store.

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
    pub fn as_str(&self) -> &str {
        &self.name
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

/// Digests credentials, and remembers what passing answers told about them.
pub struct Credentials {
    key: hmac::Key,
    principals: Cache<CredentialId, Principal>,
}

/// How many credentials are remembered by name. An installation token lives for an hour; this is enough
/// for 10,000 of them.
const REMEMBERED: u64 = 10_000;

impl Credentials {
    /// `secret` never leaves the data directory.
    pub fn new(secret: &[u8]) -> Credentials {
        Credentials { key: hmac::Key::new(hmac::HMAC_SHA256, secret), principals: Cache::new(REMEMBERED) }
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
        match self.principal(id) {
            _ if id.is_anonymous() => "anonymous".into(),
            Some(principal) => principal.name,
            None => format!("credential:{}", hex(&id.0[..4])).into(),
        }
    }

    /// Whether [`learn`](Self::learn) would read the body of this answer: ask before keeping it.
    pub fn teaches(method: &Method, path: &str) -> bool {
        match *method {
            Method::POST => installation(path).is_some(),
            Method::GET => path == "/user",
            _ => false,
        }
    }

    /// Learns from an answer that GitHub gave: `POST /app/installations/ID/access_tokens` names the tokens
    /// of an installation, `GET /user` the login of a personal token.
    pub fn learn(&self, method: &Method, path: &str, asked_with: CredentialId, body: &[u8]) {
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
        if let (&Method::POST, Some(id)) = (method, installation(path)) {
            let Ok(minted) = serde_json::from_slice::<Minted>(body) else { return };
            let repositories: Option<std::collections::BTreeSet<u64>> =
                minted.repositories.map(|all| all.iter().map(|r| r.id).collect());
            let granted = format!("{:?} {:?} {repositories:?}", minted.permissions, minted.repository_selection);
            let mut grant = [0; 16];
            grant.copy_from_slice(&hmac::sign(&self.key, granted.as_bytes()).as_ref()[..16]);
            let principal = Principal { name: format!("installation:{id}").into(), grant: Some(grant) };
            // Clients put a token behind either word; each is a credential of its own to GitHub's tags.
            for scheme in ["token", "Bearer", "bearer"] {
                let mut headers = HeaderMap::new();
                if let Ok(value) = format!("{scheme} {}", minted.token).parse() {
                    headers.insert(header::AUTHORIZATION, value);
                    self.principals.insert(self.identify(&headers), principal.clone());
                }
            }
        } else if path == "/user"
            && !asked_with.is_anonymous()
            && let Ok(user) = serde_json::from_slice::<User>(body)
            && user.login.len() <= 100
        {
            self.principals.insert(asked_with, Principal::named(&format!("user:{}", user.login)));
        }
    }
}

fn installation(path: &str) -> Option<&str> {
    let id = path.strip_prefix("/app/installations/")?.strip_suffix("/access_tokens")?;
    (!id.is_empty() && id.len() <= 20 && id.bytes().all(|b| b.is_ascii_digit())).then_some(id)
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
