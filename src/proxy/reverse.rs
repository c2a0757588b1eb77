//! Origin-form requests on the proxy's own address: for the API, as github-mirror and github-proxy serve it. What in an
//! answer begins with the API's address begins with ours instead, so that clients follow it to us.

use std::net::SocketAddr;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use hyper::body::Incoming;

use super::{Proxy, check_host_field};
use crate::body::Body;
use crate::clients::Caller;
use crate::error::Error;
use crate::exchange::Api;
use crate::fields;
use crate::github::{API_HOST, hosts};
use crate::origin::dial::Target;
use crate::rewrite::Rule;
use crate::scrape;

/// Where requests for our own address go.
#[derive(Clone, Debug)]
pub struct Reverse {
    /// What is not below `/api/`.
    plain: Upstream,
    /// What is.
    server: Option<Upstream>,
    /// What is below `/api/uploads/`, where uploads are intercepted.
    uploads: Option<Upstream>,
    /// What we are called; none: what the request says.
    public_url: Option<String>,
}

/// An API, and what its paths begin with.
#[derive(Clone, Debug)]
struct Upstream {
    api: Api,
    /// `/api/v3`, or empty.
    base: String,
    /// What its URLs begin with, without the path.
    url: String,
}

impl Upstream {
    fn new(tls: bool, host: &str, port: u16, base: &str) -> Upstream {
        let target = Target { host: host.into(), port, tls, guarded: false };
        let usual = if tls { 443 } else { 80 };
        let authority = match port == usual {
            true if host.contains(':') => format!("[{host}]"),
            true => host.to_owned(),
            false => target.authority(),
        };
        let url = format!("{}://{authority}", if tls { "https" } else { "http" });
        let prefix = if base.is_empty() { "" } else { "/api/" };
        let realm = hosts::upstream_realm(tls, host, port, base).into();
        Upstream { api: Api { target, realm, prefix, plain: true }, base: base.to_owned(), url }
    }
}

/// How one request goes on, and what its answer's URLs become.
struct Way<'a> {
    upstream: &'a Upstream,
    path: String,
    /// URL prefixes there, and what they are here, below our own address.
    urls: Vec<(String, &'static str)>,
}

impl Reverse {
    /// `upstreams`: TLS, host, port and base path of each.
    ///
    /// # Errors
    /// There are two of one kind.
    pub fn new(
        upstreams: &[(bool, String, u16, String)],
        public_url: Option<String>,
        intercepts_uploads: bool,
    ) -> Result<Reverse, String> {
        let (mut plain, mut server) = (None, None);
        for (tls, host, port, base) in upstreams {
            let slot = if base.is_empty() { &mut plain } else { &mut server };
            if slot.replace(Upstream::new(*tls, host, *port, base)).is_some() {
                return Err(
                    "--upstream is given twice for the same paths; one with /api/v3 and one without can be".into()
                );
            }
        }
        // A server of one's own alone answers what is not below /api/, too.
        let plain = plain.or_else(|| server.clone()).ok_or("--upstream is empty")?;
        let uploads = intercepts_uploads.then(|| Upstream::new(true, hosts::UPLOADS_HOST, 443, ""));
        Ok(Reverse { plain, server, uploads, public_url })
    }

    /// Hosts and base paths, to be watched.
    pub fn targets(&self) -> impl Iterator<Item = (Target, String)> {
        [Some(&self.plain), self.server.as_ref()].into_iter().flatten().map(|u| (u.api.target.clone(), u.base.clone()))
    }

    fn way(&self, path: &str) -> Way<'_> {
        let below_api = path.starts_with("/api/v3/") || matches!(path, "/api/v3" | "/api/graphql");
        if let (Some(uploads), Some(rest)) = (&self.uploads, path.strip_prefix("/api/uploads"))
            && self.server.is_none()
        {
            return Way { upstream: uploads, path: rest.to_owned(), urls: self.dotcom("/api/v3") };
        }
        match &self.server {
            Some(server) if below_api || path.starts_with("/api/uploads/") => {
                // As it is: its URLs have the same paths.
                let urls = vec![(format!("{}/api", server.url), "/api")];
                Way { upstream: server, path: path.to_owned(), urls }
            }
            _ if !self.plain.base.is_empty() => {
                let path =
                    if path == "/graphql" { "/api/graphql".to_owned() } else { format!("{}{path}", self.plain.base) };
                let urls = vec![(format!("{}{}", self.plain.url, self.plain.base), "")];
                Way { upstream: &self.plain, path, urls }
            }
            // Clients that were made for a server of one's own ask github.com's API so.
            _ if below_api => {
                let rest = match path {
                    "/api/graphql" => "/graphql",
                    path => &path["/api/v3".len()..],
                };
                let rest = if rest.is_empty() { "/" } else { rest };
                Way { upstream: &self.plain, path: rest.to_owned(), urls: self.dotcom("/api/v3") }
            }
            _ => Way { upstream: &self.plain, path: path.to_owned(), urls: self.dotcom("") },
        }
    }

    fn dotcom(&self, below: &'static str) -> Vec<(String, &'static str)> {
        let mut urls = vec![(self.plain.url.clone(), below)];
        // GitHub itself speaks TLS: what does not is something before it, and shows GitHub's own URLs.
        if !self.plain.api.target.tls {
            urls.push((format!("https://{API_HOST}"), below));
        }
        if self.uploads.is_some() && *self.plain.api.target.host == *API_HOST {
            urls.push((format!("https://{}", hosts::UPLOADS_HOST), "/api/uploads"));
        }
        urls
    }

    /// Our own address, as the client knows it; none if it does not say.
    fn own_url(&self, headers: &HeaderMap) -> Result<Option<String>, Error> {
        if let Some(url) = &self.public_url {
            return Ok(Some(url.clone()));
        }
        let Some(host) = headers.get(header::HOST) else { return Ok(None) };
        // It becomes part of URLs in JSON.
        let safe = |b: u8| b.is_ascii_alphanumeric() || b".-_:[]".contains(&b);
        match host.to_str() {
            Ok(host) if !host.is_empty() && host.len() <= 255 && host.bytes().all(safe) => {
                Ok(Some(format!("http://{host}")))
            }
            _ => Err(Error::BadRequest("the Host is not valid".into())),
        }
    }
}

impl Proxy {
    /// A request for our own address.
    pub(super) async fn reverse(&self, request: Request<Incoming>, peer: SocketAddr) -> Result<Response<Body>, Error> {
        check_host_field(&request)?;
        let path = request.uri().path();
        if !path.starts_with('/') {
            return Err(Error::BadRequest(
                "the request-target is none; ask for a path of GitHub's API, or set HTTPS_PROXY to this address".into(),
            ));
        }
        if matches!(*request.method(), Method::GET | Method::HEAD) {
            match path {
                "/healthz" => return Ok(text("text/plain; charset=utf-8", "ok\n".into())),
                "/metrics" => {
                    self.may_see_metrics(&request, peer).await?;
                    let metrics = scrape::metrics(&self.exchange, &self.ledger).await;
                    return Ok(text("text/plain; version=0.0.4", metrics));
                }
                _ => {}
            }
        }
        let caller = self.reverse_caller(&request, peer).await?;
        let own = self.reverse.own_url(request.headers())?;
        let way = self.reverse.way(path);
        let (mut parts, incoming) = request.into_parts();
        let target = match parts.uri.query() {
            Some(query) => format!("{}?{query}", way.path),
            None => way.path.clone(),
        };
        let target = target.parse::<PathAndQuery>().map_err(|_| Error::BadRequest("the path is not valid".into()))?;
        parts.uri = Uri::from(target);
        let is_head = parts.method == Method::HEAD;
        let request = Request::from_parts(parts, incoming);
        let response = self.exchange.serve(&caller, &way.upstream.api, request).await;
        Ok(match own {
            Some(own) => rewritten(response, &own, &way.urls, is_head),
            None => response,
        })
    }

    /// Metrics name clients: where only known ones are served, only they see them. (The admin address shows them to all.)
    async fn may_see_metrics(&self, request: &Request<Incoming>, peer: SocketAddr) -> Result<(), Error> {
        if self.exchange.settings.clients_only && self.clients.registered(request.headers()).is_none() {
            return Err(Error::Unauthenticated("this tap serves registered clients only".into()));
        }
        self.reverse_caller(request, peer).await.map(|_| ())
    }

    /// Who asks: known by a proxy's means, or by the token of a registered client.
    async fn reverse_caller(&self, request: &Request<Incoming>, peer: SocketAddr) -> Result<Caller, Error> {
        match self.caller(peer, request).await {
            Ok(caller) => Ok(caller),
            Err(_) if self.clients.registered(request.headers()).is_some() => Ok(Caller::at(peer.ip())),
            // A 407 would be for a proxy's client.
            Err(error) => Err(Error::Unauthenticated(error.to_string())),
        }
    }
}

fn text(kind: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(Body::Full(text.into()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// The answer with our URLs for the API's: in `Link` and `Location`, and in content that is JSON.
fn rewritten(response: Response<Body>, own: &str, urls: &[(String, &'static str)], is_head: bool) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    for name in [header::LINK, header::LOCATION] {
        for value in parts.headers.iter_mut().filter(|(n, _)| **n == name).map(|(_, value)| value) {
            let Ok(text) = value.to_str() else { continue };
            let changed = urls.iter().fold(text.to_owned(), |text, (from, to)| in_field(&text, from, own, to));
            if changed != text
                && let Ok(changed) = changed.parse()
            {
                *value = changed;
            }
        }
    }
    // A part of a content is of certain bytes.
    let is_json = parts.headers.get(header::CONTENT_TYPE).is_some_and(fields::is_json)
        && parts.status != StatusCode::PARTIAL_CONTENT;
    let is_plain = parts.headers.get(header::CONTENT_ENCODING).is_none_or(|v| v == "identity");
    if !is_json || !is_plain {
        return Response::from_parts(parts, body);
    }
    if is_head || !matches!(body, Body::Empty) {
        // Of what it was.
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    let rules = urls.iter().map(|(from, to)| Rule::url(from, &format!("{own}{to}"))).collect();
    Response::from_parts(parts, body.rewritten(rules))
}

/// Replaces a URL's beginning in a field: at its start, or after `<`.
fn in_field(value: &str, from: &str, own: &str, to: &str) -> String {
    let begins =
        |rest: &str| rest.strip_prefix(from).is_some_and(|r| r.is_empty() || r.starts_with(['/', '?', '#', '>']));
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    if begins(rest) {
        out.push_str(own);
        out.push_str(to);
        rest = &rest[from.len()..];
    }
    while let Some(i) = rest.find('<') {
        out.push_str(&rest[..=i]);
        rest = &rest[i + 1..];
        if begins(rest) {
            out.push_str(own);
            out.push_str(to);
            rest = &rest[from.len()..];
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reverse(upstreams: &[&str], uploads: bool) -> Reverse {
        let parsed: Vec<_> = upstreams
            .iter()
            .map(|u| {
                let rest = u.trim_start_matches("https://");
                let (host, base) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                (true, host.to_owned(), 443, base.to_owned())
            })
            .collect();
        Reverse::new(&parsed, None, uploads).unwrap()
    }

    #[test]
    fn where_requests_go() {
        let dotcom = reverse(&["https://api.github.com"], true);
        let both = reverse(&["https://api.github.com", "https://ghe.example/api/v3"], false);
        let server = reverse(&["https://ghe.example/api/v3"], false);
        for (reverse, path, host, there, url) in [
            (&dotcom, "/repos/o/r", "api.github.com", "/repos/o/r", "https://api.github.com -> "),
            (&dotcom, "/api/v3/repos/o/r", "api.github.com", "/repos/o/r", "https://api.github.com -> /api/v3"),
            (&dotcom, "/api/v3", "api.github.com", "/", "https://api.github.com -> /api/v3"),
            (&dotcom, "/api/graphql", "api.github.com", "/graphql", "https://api.github.com -> /api/v3"),
            (
                &dotcom,
                "/api/uploads/repos/o/r",
                "uploads.github.com",
                "/repos/o/r",
                "https://api.github.com -> /api/v3",
            ),
            (&both, "/repos/o/r", "api.github.com", "/repos/o/r", "https://api.github.com -> "),
            (&both, "/api/v3/repos/o/r", "ghe.example", "/api/v3/repos/o/r", "https://ghe.example/api -> /api"),
            (&both, "/api/uploads/x", "ghe.example", "/api/uploads/x", "https://ghe.example/api -> /api"),
            (&server, "/repos/o/r", "ghe.example", "/api/v3/repos/o/r", "https://ghe.example/api/v3 -> "),
            (&server, "/graphql", "ghe.example", "/api/graphql", "https://ghe.example/api/v3 -> "),
            (&server, "/api/v3/repos/o/r", "ghe.example", "/api/v3/repos/o/r", "https://ghe.example/api -> /api"),
        ] {
            let way = reverse.way(path);
            let first = format!("{} -> {}", way.urls[0].0, way.urls[0].1);
            assert_eq!(
                (&*way.upstream.api.target.host, way.path.as_str(), first.as_str()),
                (host, there, url),
                "{path}"
            );
        }
        let twice = [(true, "a".to_owned(), 443, String::new()), (true, "b".to_owned(), 443, String::new())];
        assert!(Reverse::new(&twice, None, false).is_err());
    }

    #[test]
    fn fields_are_rewritten_where_a_url_begins() {
        let from = "https://api.github.com";
        for (value, expected) in [
            ("https://api.github.com/repositories/7", "http://tap:1/v3/repositories/7"),
            (
                "https://codeload.github.com/x?u=https://api.github.com/y",
                "https://codeload.github.com/x?u=https://api.github.com/y",
            ),
            (
                "<https://api.github.com/x?page=2>; rel=\"next\", <https://api.github.com/x?page=9>; rel=\"last\"",
                "<http://tap:1/v3/x?page=2>; rel=\"next\", <http://tap:1/v3/x?page=9>; rel=\"last\"",
            ),
            ("https://api.github.com.evil/x", "https://api.github.com.evil/x"),
        ] {
            assert_eq!(in_field(value, from, "http://tap:1", "/v3"), expected);
        }
    }

    #[test]
    fn hosts_that_are_not_are_refused() {
        let reverse = reverse(&["https://api.github.com"], false);
        let own = |host: &str| {
            let headers = HeaderMap::from_iter([(header::HOST, host.parse().unwrap())]);
            reverse.own_url(&headers).map_err(|_| ())
        };
        assert_eq!(own("tap:3128"), Ok(Some("http://tap:3128".into())));
        for bad in ["a\"b", "a/b", "a b", ""] {
            assert_eq!(own(bad), Err(()), "{bad}");
        }
        assert_eq!(reverse.own_url(&HeaderMap::new()).unwrap(), None);
    }
}
