//! Fields that belong to one hop, to one credential, or to this intermediary.

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Request};

use crate::body::RequestBody;

/// Fields that are for the next hop only (RFC 9110, 7.6.1), besides those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Fields without which a message would not be what it is: no `Connection` line can name them away.
const KEPT: [HeaderName; 5] =
    [header::HOST, header::CONTENT_LENGTH, header::CACHE_CONTROL, header::AUTHORIZATION, header::COOKIE];

/// Removes what is for one hop only. `TE: trailers` stays: this hop passes trailers on.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .filter(|name| !KEPT.contains(name) && *name != header::TE)
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    if headers.contains_key(header::TE) {
        let te = headers.get_all(header::TE).iter().filter_map(|v| v.to_str().ok());
        let trailers = te.flat_map(|v| v.split(',')).any(|t| t.trim().eq_ignore_ascii_case("trailers"));
        headers.remove(header::TE);
        if trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
}

/// Says that content of unknown length goes in chunks: hyper would leave it out of a GET.
pub fn frame(request: &mut Request<RequestBody>) {
    if !request.body().is_empty() && !request.headers().contains_key(header::CONTENT_LENGTH) {
        request.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// Joins the `Cookie` lines that HTTP/2 may split (RFC 9113, 8.2.3): HTTP/1.1 has one.
pub fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().count() > 1 {
        let crumbs: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
            headers.insert(header::COOKIE, joined);
        }
    }
}

/// Whether a field tells about the credential, and so may come only from an answer to it.
pub fn is_of_credential(name: &HeaderName) -> bool {
    let name = name.as_str();
    ["x-ratelimit-", "x-oauth-", "x-accepted-"].iter().any(|prefix| name.starts_with(prefix))
        || matches!(name, "github-authentication-token-expiration" | "x-github-sso" | "set-cookie" | "retry-after")
}

/// Whether a field describes the stored content, so that a 304 cannot change it.
pub fn is_of_content(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "content-type"
            | "content-encoding"
            | "content-length"
            | "content-language"
            | "content-range"
            | "content-disposition"
            | "link"
            | "x-github-media-type"
            | "trailer"
    )
}

/// What of a 200's fields is stored: not what is of this moment, this connection or this credential.
pub fn to_store(headers: &HeaderMap) -> HeaderMap {
    let mut stored = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let of_the_moment = matches!(
            name.as_str(),
            "content-length"
                | "etag"
                | "date"
                | "age"
                | "x-github-request-id"
                | "via"
                | "cache-status"
                | "x-cache"
                | "trailer"
        );
        if !of_the_moment && !is_of_credential(name) {
            stored.append(name.clone(), value.clone());
        }
    }
    stored
}

/// The fields of a stored response, freshened (RFC 9111, 3.2) by those of the 304.
pub fn freshen(stored: &HeaderMap, not_modified: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(stored.len() + not_modified.len());
    for (name, value) in stored {
        if is_of_content(name) || !not_modified.contains_key(name) {
            headers.append(name.clone(), value.clone());
        }
    }
    for (name, value) in not_modified {
        if !is_of_content(name) {
            headers.append(name.clone(), value.clone());
        }
    }
    headers
}

/// Whether a `Content-Type` says JSON: not where GitHub's media type names a file's own content or another form.
pub fn is_json(content_type: &HeaderValue) -> bool {
    let text = content_type.to_str().unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_json = essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"));
    is_json && !essence.split(['.', '+', '/']).any(|part| ["raw", "diff", "patch", "sha", "base64"].contains(&part))
}

/// Whether the client takes gzip (RFC 9110, 12.5.3).
pub fn accepts_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
    let mut any = false;
    for coding in values.flat_map(|v| v.split(',')) {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let name = name.trim();
        let weight = weight.trim().to_ascii_lowercase();
        let takes = weight.strip_prefix("q=").is_none_or(|q| q.trim().parse() != Ok(0.0));
        if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
            return takes;
        }
        any |= name == "*" && takes;
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        headers.keys().map(HeaderName::as_str).collect()
    }

    #[test]
    fn hop_by_hop_fields_go_and_so_does_what_connection_names() {
        let mut fields = headers(&[
            ("connection", "close, X-Named"),
            ("connection", "x-more, authorization, host"),
            ("x-named", "1"),
            ("x-more", "1"),
            ("host", "h"),
            ("authorization", "token t"),
            ("keep-alive", "1"),
            ("proxy-authorization", "Basic x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("te", "trailers, gzip"),
            ("accept", "x"),
        ]);
        strip_hop_by_hop(&mut fields);
        let mut left = names(&fields);
        left.sort();
        assert_eq!(left, ["accept", "authorization", "host", "te"]);
        assert_eq!(fields["te"], "trailers");
    }

    #[test]
    fn a_304_freshens_but_does_not_change_the_content() {
        let stored = to_store(&headers(&[
            ("content-type", "application/json"),
            ("link", "<x>; rel=\"next\""),
            ("cache-control", "old"),
            ("x-ratelimit-remaining", "7"),
            ("x-oauth-scopes", "repo"),
            ("x-accepted-oauth-scopes", "repo"),
            ("github-authentication-token-expiration", "x"),
            ("x-github-sso", "x"),
            ("set-cookie", "a=b"),
            ("etag", "\"a\""),
            ("vary", "Accept"),
        ]));
        let mut kept = names(&stored);
        kept.sort();
        assert_eq!(kept, ["cache-control", "content-type", "link", "vary"]);
        let fresh = freshen(
            &stored,
            &headers(&[
                ("content-type", "text/plain"),
                ("cache-control", "new"),
                ("etag", "\"b\""),
                ("x-ratelimit-remaining", "9"),
            ]),
        );
        assert_eq!(
            (&fresh["content-type"], &fresh["cache-control"]),
            (&"application/json".parse().unwrap(), &"new".parse().unwrap())
        );
        assert_eq!(
            (&fresh["etag"], &fresh["x-ratelimit-remaining"]),
            (&"\"b\"".parse().unwrap(), &"9".parse().unwrap())
        );
        assert_eq!(fresh["link"], "<x>; rel=\"next\"");
    }

    #[test]
    fn what_is_json() {
        for (value, is) in [
            ("application/json; charset=utf-8", true),
            ("application/vnd.github.v3+json", true),
            ("application/vnd.github.text-match+json", true),
            ("application/vnd.github.raw+json; charset=utf-8", false),
            ("application/vnd.github.v3.raw", false),
            ("application/vnd.github.diff+json", false),
            ("application/x-www-form-urlencoded; x=json", false),
            ("text/json+x", false),
            ("application/octet-stream", false),
        ] {
            assert_eq!(is_json(&HeaderValue::from_static(value)), is, "{value}");
        }
    }

    #[test]
    fn who_takes_gzip() {
        for (value, takes) in [
            ("gzip, deflate", true),
            ("br;q=1.0, gzip;q=0.5", true),
            ("gzip;q=0", false),
            ("*", true),
            ("identity", false),
            ("gzip;q=0, *", false),
            ("*, gzip;Q=0", false),
            ("", false),
        ] {
            assert_eq!(accepts_gzip(&headers(&[("accept-encoding", value)])), takes, "{value}");
        }
    }

    #[test]
    fn cookies_become_one_line() {
        let mut fields = headers(&[("cookie", "a=1"), ("cookie", "b=2")]);
        join_cookies(&mut fields);
        assert_eq!(fields["cookie"], "a=1; b=2");
    }
}
