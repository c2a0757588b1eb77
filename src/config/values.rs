//! What the values of options look like, and what is said of those that look otherwise.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::{Allowed, Resolve, StoreKind, Upstream};
use crate::cache::policy::Freshness;
use crate::cache::redis::Servers;
use crate::calls::report;

pub(super) fn host(text: &str) -> Result<String, String> {
    let host = text.trim_end_matches('.').to_ascii_lowercase();
    let label = |l: &str| {
        !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if host.parse::<std::net::IpAddr>().is_ok() || !host.split('.').all(label) {
        return Err("a host name is expected, without scheme or port".into());
    }
    Ok(host)
}

pub(super) fn resolve(text: &str) -> Result<Resolve, String> {
    let wrong = || {
        "HOST:PORT:ADDR is expected, for instance api.github.com:443:127.0.0.1 or api.github.com:443:127.0.0.1:8443"
            .to_owned()
    };
    let mut parts = text.splitn(3, ':');
    let (Some(host), Some(port), Some(address)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(wrong());
    };
    let port: u16 = port.parse().map_err(|_| wrong())?;
    let bare = address.trim_start_matches('[').trim_end_matches(']');
    let address = match (address.parse::<SocketAddr>(), bare.parse()) {
        (Ok(address), _) => address,
        (_, Ok(ip)) => SocketAddr::new(ip, port),
        _ => return Err(wrong()),
    };
    Ok(Resolve { host: host.to_ascii_lowercase(), port, address })
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "a duration is expected, for instance 30s, 10m or 24h".into())
}

pub(super) fn size(text: &str) -> Result<u64, String> {
    let size: bytesize::ByteSize =
        text.parse().map_err(|_| "a size is expected, for instance 512MiB or 1GiB".to_owned())?;
    if size.0 < 1 << 20 {
        return Err("at least 1MiB is needed".into());
    }
    Ok(size.0)
}

pub(super) fn store(text: &str) -> Result<StoreKind, String> {
    match text {
        "sled:" | "sled" => Ok(StoreKind::Sled),
        "memory:" | "memory" => Ok(StoreKind::Memory),
        _ => match Servers::parse(text) {
            // Refused later, by who does not repeat it: there may be a password in it.
            Some(servers) => Ok(servers.map_or_else(StoreKind::Wrong, StoreKind::Redis)),
            None => Err(
                "sled:, memory: or redis://host is expected; also rediss://, redis-cluster:// and redis-sentinel://"
                    .into(),
            ),
        },
    }
}

/// Scheme, host and port, path, of an `http://` or `https://` URL.
pub(super) fn http_url(text: &str) -> Option<(bool, String, u16, &str)> {
    let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
        (Some(rest), _) => (true, rest),
        (_, Some(rest)) => (false, rest),
        _ => return None,
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if path.contains(['?', '#']) || !path.bytes().all(|b| b.is_ascii_graphic()) {
        return None;
    }
    let authority: http::uri::Authority = authority.parse().ok()?;
    if authority.as_str().contains('@') || authority.host().is_empty() {
        return None;
    }
    let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    (port > 0).then(|| (tls, host.to_ascii_lowercase(), port, path.trim_end_matches('/')))
}

pub(super) fn upstream(text: &str) -> Result<Upstream, String> {
    let wrong = || "https://HOST or http://HOST is expected, with /api/v3 for a GitHub Enterprise Server".to_owned();
    let (tls, host, port, path) = http_url(text).ok_or_else(wrong)?;
    match path {
        "" | "/api/v3" => Ok(Upstream { tls, host, port, base: path.to_owned() }),
        _ => Err(wrong()),
    }
}

pub(super) fn public_url(text: &str) -> Result<String, String> {
    let url = http_url(text).ok_or("http://HOST[:PORT] or https://HOST[:PORT] is expected")?;
    Ok(if url.3.is_empty() { text.trim_end_matches('/').to_owned() } else { text.to_owned() })
}

/// Logins, `installation:ID` and `app:SLUG`, by commas or, as github-mirror has it, colons.
pub(super) fn allowed(text: &str) -> Result<Allowed, String> {
    let mut parts = text.split([',', ':']).map(str::trim).filter(|p| !p.is_empty());
    let mut names = Vec::new();
    while let Some(part) = parts.next() {
        let (kind, of) = match part {
            "installation" | "app" => (part, parts.next().ok_or("installation:ID or app:SLUG is expected")?),
            login => ("user", login),
        };
        // Bots have brackets in their logins.
        let is_login = |b: u8| b.is_ascii_alphanumeric() || b"-_[]".contains(&b);
        if !of.bytes().all(is_login) || (kind == "installation" && !of.bytes().all(|b| b.is_ascii_digit())) {
            return Err("a login, installation:ID (a number) or app:SLUG is expected".into());
        }
        let name = format!("{kind}:{of}");
        names.push(name.to_ascii_lowercase());
    }
    if names.is_empty() { Err("a login, installation:ID or app:SLUG is expected".into()) } else { Ok(Allowed(names)) }
}

pub(super) fn freshness(text: &str) -> Result<Freshness, String> {
    match text {
        "revalidate" => Ok(Freshness::Revalidate),
        "origin" => Ok(Freshness::Origin),
        other => match duration(other) {
            Ok(duration) if duration.is_zero() => Ok(Freshness::Revalidate),
            Ok(duration) => Ok(Freshness::For(duration)),
            Err(_) => Err("revalidate, origin or a duration is expected".into()),
        },
    }
}

pub(super) fn moment(text: &str) -> Result<String, String> {
    report::moment(text, u64::MAX / 2).map(|_| text.to_owned())
}

pub(super) fn percent(text: &str) -> Result<f64, String> {
    let number = text.trim_end_matches('%').trim().parse::<f64>().ok();
    number.filter(|n| n.is_finite() && *n >= 0.0).ok_or_else(|| "a percentage is expected, for instance 10%".into())
}

pub(super) fn token(text: &str) -> Result<String, String> {
    match text.len() >= 8 && text.bytes().all(|b| b.is_ascii_graphic()) {
        true => Ok(text.to_owned()),
        false => Err("a token is eight or more letters, digits and signs, without blanks".into()),
    }
}

pub(super) fn client_rule(text: &str) -> Result<(IpNet, String), String> {
    let (net, name) = text.split_once('=').ok_or("NETWORK=NAME is expected, for instance 10.2.0.0/16=ci")?;
    if name.is_empty() {
        return Err("the network has no name: NETWORK=NAME is expected".into());
    }
    Ok((network(net)?, name.to_owned()))
}

pub(super) fn credential_name(text: &str) -> Result<(String, String), String> {
    let wrong = || "DIGITS=NAME is expected, for instance 1a2b3c4d=release-bot, where reports show credential:1a2b3c4d";
    let (digits, name) = text.split_once('=').ok_or_else(wrong)?;
    let digits = digits.strip_prefix("credential:").unwrap_or(digits).to_ascii_lowercase();
    let safe = !name.is_empty() && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_graphic());
    match digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_hexdigit()) && safe {
        true => Ok((digits, name.to_owned())),
        false => Err(wrong().into()),
    }
}

pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
    net.map_err(|_| "a network is expected, for instance 10.0.0.0/8".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_allowed() {
        for (text, names) in [
            ("alice:bob", vec!["user:alice", "user:bob"]),
            ("Alice, bob", vec!["user:alice", "user:bob"]),
            ("alice:installation:7:app:packit,carol", vec!["user:alice", "installation:7", "app:packit", "user:carol"]),
        ] {
            assert_eq!(allowed(text).unwrap().0, names, "{text}");
        }
        for bad in ["", ",", "app:", "a b", "@@", "installation:x"] {
            assert!(allowed(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn upstreams() {
        let of = |tls, host: &str, port, base: &str| Upstream { tls, host: host.into(), port, base: base.into() };
        for (text, expected) in [
            ("https://api.github.com", of(true, "api.github.com", 443, "")),
            ("https://GHE.example/api/v3/", of(true, "ghe.example", 443, "/api/v3")),
            ("http://127.0.0.1:8080/", of(false, "127.0.0.1", 8080, "")),
            ("http://[::1]:80", of(false, "::1", 80, "")),
        ] {
            assert_eq!(upstream(text).unwrap(), expected, "{text}");
        }
        for bad in ["ftp://x", "https://", "https://u@h", "https://h/x", "https://h:0", "https://h/api/v3?x"] {
            assert!(upstream(bad).is_err(), "{bad}");
        }
    }
}
