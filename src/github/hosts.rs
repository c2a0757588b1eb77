//! GitHub's hosts: the API at github.com, with data residency, and on a server of one's own.

/// Where GitHub takes uploads: release assets.
pub const UPLOADS_HOST: &str = "uploads.github.com";

/// What the paths of a host's API begin with: nothing where the host is the API (`api.github.com`, `api.TENANT.ghe.com`,
/// `uploads.…`); `/api/` on a GitHub Enterprise Server, which also has pages, repositories and pictures.
pub fn api_prefix(host: &str) -> &'static str {
    let is_api = ["api.", "uploads."].iter().any(|p| host.starts_with(p));
    if is_api { "" } else { "/api/" }
}

/// The host whose quota and logins a host shares: uploads are the API's.
pub fn realm(host: &str) -> &str {
    match host.strip_prefix("uploads.") {
        Some("github.com") => super::API_HOST,
        _ => host,
    }
}

/// The same for an upstream that is named by its URL. GitHub itself speaks TLS: what does not is something before it.
pub fn upstream_realm(tls: bool, host: &str, port: u16, base: &str) -> String {
    match (tls, port, base) {
        (true, 443, _) => realm(host).to_owned(),
        (false, _, "") => super::API_HOST.to_owned(),
        _ => format!("{host}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_the_api() {
        for (host, prefix) in
            [("api.github.com", ""), ("uploads.github.com", ""), ("api.acme.ghe.com", ""), ("ghe.example.com", "/api/")]
        {
            assert_eq!(api_prefix(host), prefix, "{host}");
        }
        assert_eq!((realm("uploads.github.com"), realm("ghe.example.com")), ("api.github.com", "ghe.example.com"));
    }
}
