//! Who may ask: this machine, or who knows the token; by our own name; and no page of another site.

use std::net::SocketAddr;
use std::sync::Arc;

use aws_lc_rs::{constant_time, digest};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use base64::Engine;

use super::{Admin, refusal};

/// What lets a caller in.
#[derive(Clone, Default)]
pub struct Access {
    /// None: only this machine may ask.
    pub token: Option<String>,
    /// Our names besides our address, lower case.
    pub hosts: Vec<String>,
}

/// The field that a request which changes something must carry: no page of another site can send it.
pub const INTENT: &str = "x-ghtap";

/// What pages may load: our own style and script, and nothing else.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// All but health and metrics is guarded. A page whose name was rebound to our address asks by its own name, and is
/// refused (DNS rebinding).
pub(super) async fn guard(
    State(admin): State<Arc<Admin>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    if let Err(response) = check(&admin, peer, &request) {
        return *response;
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

fn check(admin: &Admin, peer: SocketAddr, request: &Request) -> Result<(), Box<Response>> {
    let refuse = |status, message| Err(Box::new(refusal(status, message)));
    let headers = request.headers();
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
    if !is_ours(host, admin) {
        return refuse(
            StatusCode::MISDIRECTED_REQUEST,
            "this address answers only to its own name: use its IP address or localhost, or name it with --admin-host",
        );
    }
    if headers.contains_key(header::VIA) {
        return refuse(StatusCode::FORBIDDEN, "this address does not answer through a proxy");
    }
    match &admin.access.token {
        Some(token) if !knows(headers, token) => {
            let mut response = refusal(
                StatusCode::UNAUTHORIZED,
                "the admin token is missing or wrong: send it as a Bearer token, or as the password of any user",
            );
            let basic = HeaderValue::from_static("Basic realm=\"ghtap admin token\", charset=\"UTF-8\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, basic);
            return Err(Box::new(response));
        }
        None if !peer.ip().to_canonical().is_loopback() => {
            return refuse(
                StatusCode::FORBIDDEN,
                "reports are for this machine only; /metrics, /healthz and /readyz are for all",
            );
        }
        _ => {}
    }
    if !matches!(request.method().as_str(), "GET" | "HEAD") && !headers.contains_key(INTENT) {
        return refuse(StatusCode::FORBIDDEN, "a request that changes something needs the field X-Ghtap: 1");
    }
    Ok(())
}

fn is_ours(host: &str, admin: &Admin) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, port)| if port.ends_with(']') { host } else { name });
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let ip = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    match ip {
        // No name leads to an address that is asked by its number.
        Ok(ip) => ip.is_loopback() || ip == admin.listen.ip() || admin.listen.ip().is_unspecified(),
        Err(_) => name == "localhost" || admin.access.hosts.contains(&name),
    }
}

/// Whether a request carries the token: as a Bearer token (RFC 6750), or as a password, which browsers ask for.
fn knows(headers: &HeaderMap, token: &str) -> bool {
    let Some(value) = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()) else { return false };
    let Some((scheme, given)) = value.split_once(' ') else { return false };
    let given = match scheme.to_ascii_lowercase().as_str() {
        "bearer" => given.trim().as_bytes().to_vec(),
        "basic" => {
            let Ok(decoded) = base64::engine::general_purpose::STANDARD.decode(given.trim()) else { return false };
            match decoded.iter().position(|b| *b == b':') {
                Some(colon) => decoded[colon + 1..].to_vec(),
                None => return false,
            }
        }
        _ => return false,
    };
    // Of digests: the time that it takes says nothing of the token, nor of its length.
    let digest = |bytes: &[u8]| digest::digest(&digest::SHA256, bytes);
    constant_time::verify_slices_are_equal(digest(&given).as_ref(), digest(token.as_bytes()).as_ref()).is_ok()
}
