//! The cache key (RFC 9111, 2): what has to be the same for a stored response to be a candidate.

use aws_lc_rs::digest;
use http::{HeaderMap, header};
use serde::{Deserialize, Serialize};

use crate::github;

/// `X-GitHub-Api-Version`: not in GitHub's `Vary`, although bodies depend on it.
pub const API_VERSION: &str = "x-github-api-version";

/// The digest of a [`Key`]: 128 bits of sha256, so that nobody can make two requests share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KeyId(pub [u8; 16]);

/// Host, target and the fields that choose a body. Not the credential: representations under one key are
/// told apart by entity tag, and shared only when GitHub says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    pub host: String,
    /// Path and query, byte for byte.
    pub target: String,
    /// All `Accept` lines, joined; none is not the same as an empty one.
    pub accept: Option<String>,
    pub api_version: Option<String>,
    /// Whether the User-Agent makes GitHub pretty-print.
    pub pretty: bool,
}

impl Key {
    /// The key of a request for `target` (path and query) at `host`.
    pub fn of(host: &str, target: &str, headers: &HeaderMap) -> Key {
        Key {
            host: host.to_ascii_lowercase(),
            target: target.to_owned(),
            accept: joined(headers, header::ACCEPT.as_str()),
            api_version: joined(headers, API_VERSION),
            pretty: headers.get(header::USER_AGENT).is_some_and(|v| github::pretty_prints(v.as_bytes())),
        }
    }

    /// The digest under which this key is stored.
    pub fn id(&self) -> KeyId {
        let mut context = digest::Context::new(&digest::SHA256);
        let mut part = |tag: u8, text: &str| {
            context.update(&[tag]);
            context.update(&(text.len() as u64).to_be_bytes());
            context.update(text.as_bytes());
        };
        part(0, &self.host);
        part(1, &self.target);
        if let Some(accept) = &self.accept {
            part(2, accept);
        }
        if let Some(version) = &self.api_version {
            part(3, version);
        }
        if self.pretty {
            part(4, "");
        }
        let mut id = [0; 16];
        id.copy_from_slice(&context.finish().as_ref()[..16]);
        KeyId(id)
    }
}

fn joined(headers: &HeaderMap, name: &str) -> Option<String> {
    let mut values = headers.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes()));
    let mut all = values.next()?.into_owned();
    for value in values {
        all.push_str(", ");
        all.push_str(&value);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(host: &str, target: &str, fields: &[(&'static str, &'static str)]) -> KeyId {
        let headers = fields.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect();
        Key::of(host, target, &headers).id()
    }

    #[test]
    fn what_makes_another_key() {
        let base = id("api.github.com", "/a?b=1", &[("accept", "x"), ("user-agent", "ogr")]);
        let same = [
            id("API.github.com", "/a?b=1", &[("accept", "x"), ("user-agent", "ogr")]),
            id("api.github.com", "/a?b=1", &[("accept", "x"), ("user-agent", "octokit")]),
            id("api.github.com", "/a?b=1", &[("accept", "x"), ("authorization", "token t")]),
        ];
        let other = [
            id("ghe.example", "/a?b=1", &[("accept", "x")]),
            id("api.github.com", "/a?b=2", &[("accept", "x")]),
            id("api.github.com", "/a?b=1&", &[("accept", "x")]),
            id("api.github.com", "/A?b=1", &[("accept", "x")]),
            id("api.github.com", "/a?b=1", &[("accept", "y")]),
            id("api.github.com", "/a?b=1", &[("accept", "")]),
            id("api.github.com", "/a?b=1", &[]),
            id("api.github.com", "/a?b=1", &[("accept", "x"), ("x-github-api-version", "2022-11-28")]),
            id("api.github.com", "/a?b=1", &[("accept", "x"), ("user-agent", "curl/8")]),
        ];
        assert!(same.iter().all(|k| *k == base));
        assert!(other.iter().all(|k| *k != base));
    }
}
