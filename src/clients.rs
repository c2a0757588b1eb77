//! Who is calling: the client and the run that its proxy URL names, else its address.

use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine;
use http::{HeaderMap, header};

/// A client, and the run of it that a call belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub client: Arc<str>,
    /// Empty if it named none.
    pub run: Arc<str>,
}

/// Names are labels: longer ones are cut.
const MAX_NAME: usize = 64;

impl Caller {
    /// The caller of a connection from `address` that sent these fields to the proxy: by the user part of
    /// `Proxy-Authorization: Basic` (`client+run`), else by address.
    pub fn of(headers: &HeaderMap, address: IpAddr) -> Caller {
        match user(headers) {
            Some(user) => {
                let (client, run) = user.split_once('+').unwrap_or((&user, ""));
                let client = if client.is_empty() { address.to_string() } else { label(client) };
                Caller { client: client.into(), run: label(run).into() }
            }
            None => Caller::at(address),
        }
    }

    /// A caller that gave no name.
    pub fn at(address: IpAddr) -> Caller {
        Caller { client: address.to_canonical().to_string().into(), run: "".into() }
    }
}

fn user(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::PROXY_AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let user = text.split_once(':').map_or(text.as_str(), |(user, _)| user);
    (!user.is_empty()).then(|| user.to_owned())
}

/// A name that is safe in a log, a label and a table: anything unusual becomes `_`.
fn label(name: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || "._:/@#-".contains(c) { c } else { '_' };
    name.chars().take(MAX_NAME).map(safe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers() {
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let basic = |text: &str| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text));
        for (value, client, run) in [
            (basic("packit-worker+run-4711:x"), "packit-worker", "run-4711"),
            (basic("packit-worker:x"), "packit-worker", ""),
            (basic("packit-worker"), "packit-worker", ""),
            (basic("+7:x"), "10.0.0.1", "7"),
            (basic("a b\n+c\"d:x"), "a_b_", "c_d"),
            (basic(":x"), "10.0.0.1", ""),
            ("Bearer x".into(), "10.0.0.1", ""),
            ("Basic !!!".into(), "10.0.0.1", ""),
        ] {
            let headers = HeaderMap::from_iter([(header::PROXY_AUTHORIZATION, value.parse().unwrap())]);
            let caller = Caller::of(&headers, address);
            assert_eq!((&*caller.client, &*caller.run), (client, run), "{value}");
        }
        assert_eq!(&*Caller::of(&HeaderMap::new(), "::ffff:10.0.0.2".parse().unwrap()).client, "10.0.0.2");
    }
}
