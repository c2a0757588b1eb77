//! Which servers a `--store` URL names.

use std::fmt;

use ::redis::ConnectionAddr;
use percent::decode;

/// The servers of a store, and how they work together.
#[derive(Clone, PartialEq, Eq)]
pub struct Servers {
    pub kind: Kind,
    pub tls: bool,
    /// Host and port of each.
    pub nodes: Vec<(String, u16)>,
    pub user: Option<String>,
    pub password: Option<String>,
    pub database: i64,
}

/// How they work together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One server, or an address behind which one answers.
    Single,
    /// Redis Cluster: the keys are spread over the nodes.
    Cluster,
    /// The nodes are Sentinels, which know who the master of this name is.
    Sentinel(String),
}

/// Never shows the password.
impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "rediss" } else { "redis" };
        let nodes: Vec<String> = self.nodes.iter().map(|(host, port)| format!("{host}:{port}")).collect();
        let nodes = nodes.join(",");
        match &self.kind {
            Kind::Single => write!(f, "{scheme}://{nodes}"),
            Kind::Cluster => write!(f, "{scheme}-cluster://{nodes}"),
            Kind::Sentinel(master) => write!(f, "{scheme}-sentinel://{nodes}/{master}"),
        }
    }
}

impl Servers {
    /// Reads `redis://[[user]:password@]host[:port][/db]` and its kin; none if the scheme is another.
    ///
    /// # Errors
    /// One line that says what was wrong; it never repeats the password.
    pub fn parse(url: &str) -> Option<Result<Servers, String>> {
        let (scheme, rest) = url.split_once("://")?;
        let scheme = scheme.replace('+', "-");
        let (base, kind) = scheme.split_once('-').unwrap_or((&scheme, ""));
        let tls = match base {
            "redis" | "valkey" => false,
            "rediss" | "valkeys" => true,
            _ => return None,
        };
        Some(Servers::of(tls, kind, rest))
    }

    fn of(tls: bool, kind: &str, rest: &str) -> Result<Servers, String> {
        let (login, rest) = rest.rsplit_once('@').map_or((None, rest), |(login, rest)| (Some(login), rest));
        let (nodes, path) = rest.split_once('/').unwrap_or((rest, ""));
        let usual = if kind == "sentinel" { 26379 } else { 6379 };
        let nodes: Vec<(String, u16)> =
            nodes.split(',').filter(|n| !n.is_empty()).map(|n| node(n, usual)).collect::<Result<_, _>>()?;
        if nodes.is_empty() {
            return Err("the URL has no host; redis://host is expected".into());
        }
        let mut path = path.trim_end_matches('/').split('/').filter(|p| !p.is_empty());
        let kind = match kind {
            "" if nodes.len() > 1 => Kind::Cluster,
            "" => Kind::Single,
            "cluster" => Kind::Cluster,
            "sentinel" => {
                let master =
                    path.next().ok_or("redis-sentinel://host/MASTER is expected: which master do they watch?")?;
                Kind::Sentinel(master.to_owned())
            }
            other => return Err(format!("redis-{other} is not known; redis-cluster and redis-sentinel are")),
        };
        let database = match path.next() {
            None => 0,
            Some(_) if kind == Kind::Cluster => return Err("a cluster has no numbered databases".into()),
            Some(number) => {
                number.parse().map_err(|_| "what follows the host is not a database's number".to_owned())?
            }
        };
        let (user, password) = match login {
            None => (None, None),
            // Without a colon it is the password alone: so Redis's own tools have it.
            Some(login) => match login.split_once(':') {
                Some((user, password)) => ((!user.is_empty()).then(|| decode(user)), Some(decode(password))),
                None => (None, Some(decode(login))),
            },
        };
        Ok(Servers { kind, tls, nodes, user, password, database })
    }

    /// The addresses, as the client takes them.
    pub(super) fn addresses(&self) -> impl Iterator<Item = ConnectionAddr> {
        self.nodes.iter().map(|(host, port)| match self.tls {
            false => ConnectionAddr::Tcp(host.clone(), *port),
            true => ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None },
        })
    }
}

fn node(text: &str, usual: u16) -> Result<(String, u16), String> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            (host, port.parse().map_err(|_| "what follows a host is not a port".to_owned())?)
        }
        _ => (text, usual),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() { Err("the URL has an empty host".into()) } else { Ok((host.to_owned(), port)) }
}

mod percent {
    /// Undoes percent-encoding.
    pub fn decode(text: &str) -> String {
        String::from_utf8_lossy(&crate::origin::dial::percent_decode(text)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let parse = |url| Servers::parse(url).unwrap();
        for (url, shown) in [
            ("redis://cache", "redis://cache:6379"),
            ("valkey://cache:7/3", "redis://cache:7"),
            ("rediss://u:p%40w@[::1]:6380", "rediss://::1:6380"),
            ("redis://a,b:7001", "redis-cluster://a:6379,b:7001"),
            ("rediss-cluster://a", "rediss-cluster://a:6379"),
            ("redis+sentinel://:p@a,b:7/main/2", "redis-sentinel://a:26379,b:7/main"),
        ] {
            let servers = parse(url).unwrap();
            assert_eq!(servers.to_string(), shown);
            assert!(!format!("{servers:?}").contains("p@"));
        }
        let full = parse("rediss://u:p%40w@h/4").unwrap();
        assert_eq!((full.user.as_deref(), full.password.as_deref(), full.database), (Some("u"), Some("p@w"), 4));
        let alone = parse("redis://secret@h").unwrap();
        assert_eq!((alone.user, alone.password.as_deref()), (None, Some("secret")));
        for (bad, said) in [
            ("redis://", "no host"),
            ("redis://h:x", "not a port"),
            ("redis://h/x", "database"),
            ("redis-sentinel://h", "MASTER"),
            ("redis-cluster://h/1", "no numbered"),
            ("redis-ring://h", "not known"),
        ] {
            assert!(parse(bad).unwrap_err().contains(said), "{bad}");
        }
        assert!(Servers::parse("sled:").is_none() && Servers::parse("http://x").is_none());
    }
}
