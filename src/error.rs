//! What we answer ourselves: errors, in GitHub's shape, with `Proxy-Status` (RFC 9209).
//!
//! The statuses are chosen so as not to set off a client's own handling of GitHub's refusals: ogr waits
//! half a minute and more on 401, 403, 429, 500 and 503.

use http::{HeaderValue, Response, StatusCode, header};

use crate::body::Body;
use crate::clients;
use crate::origin;

/// Where the kinds of failure are explained that `Proxy-Status` names.
const DOCUMENTATION: &str = "https://www.rfc-editor.org/rfc/rfc9209#section-2.3";

/// A refusal or a failure that a client is told of.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Origin(#[from] origin::Error),
    #[error("{0}")]
    BadRequest(String),
    #[error("{0}")]
    Forbidden(String),
    #[error(transparent)]
    UnknownClient(#[from] clients::Unknown),
    #[error("{0}")]
    Misdirected(String),
    #[error(
        "this request has come through this tap before: the name of the origin resolves to the tap itself; use --resolve HOST:PORT:ADDR"
    )]
    Loop,
    #[error("GitHub answered 304 to a request without a precondition")]
    UnaskedNotModified,
    #[error("{0}")]
    Unauthenticated(String),
    #[error("GitHub is offline, and nothing that this credential has had confirmed is stored for this")]
    Offline,
    #[error("all GitHub credentials of the pool rest; the first is back in {0} s (--pool-wait waits for it)")]
    Exhausted(u64),
    #[error("{0}")]
    NoCredential(String),
}

impl Error {
    /// The status, and the error type of RFC 9209 (2.3).
    fn kind(&self) -> (StatusCode, &'static str) {
        use origin::Error as O;
        match self {
            Error::BadRequest(_) => (StatusCode::BAD_REQUEST, "http_request_error"),
            Error::Forbidden(_) => (StatusCode::FORBIDDEN, "http_request_denied"),
            Error::UnknownClient(_) => (StatusCode::PROXY_AUTHENTICATION_REQUIRED, "http_request_denied"),
            Error::Misdirected(_) => (StatusCode::MISDIRECTED_REQUEST, "http_request_error"),
            Error::Loop => (StatusCode::LOOP_DETECTED, "proxy_loop_detected"),
            Error::UnaskedNotModified => (StatusCode::BAD_GATEWAY, "http_protocol_error"),
            Error::Unauthenticated(_) => (StatusCode::UNAUTHORIZED, "http_request_denied"),
            Error::Offline => (StatusCode::GATEWAY_TIMEOUT, "destination_unavailable"),
            Error::Exhausted(_) => (StatusCode::TOO_MANY_REQUESTS, "connection_limit_reached"),
            Error::NoCredential(_) => (StatusCode::BAD_GATEWAY, "proxy_configuration_error"),
            Error::Origin(error) => match error {
                O::Resolve(_) => (StatusCode::BAD_GATEWAY, "dns_error"),
                O::Loop(_) => (StatusCode::LOOP_DETECTED, "proxy_loop_detected"),
                O::Denied(_) => (StatusCode::FORBIDDEN, "destination_ip_prohibited"),
                O::Connect(..) => (StatusCode::BAD_GATEWAY, "connection_refused"),
                O::ConnectTimeout(_) => (StatusCode::GATEWAY_TIMEOUT, "connection_timeout"),
                O::Certificate(..) => (StatusCode::BAD_GATEWAY, "tls_certificate_error"),
                O::Tls(..) => (StatusCode::BAD_GATEWAY, "tls_protocol_error"),
                O::UpstreamProxy(_) => (StatusCode::BAD_GATEWAY, "destination_unavailable"),
                O::Timeout(_) => (StatusCode::GATEWAY_TIMEOUT, "http_response_timeout"),
                O::Busy => (StatusCode::GATEWAY_TIMEOUT, "connection_limit_reached"),
                O::Closed(_) => (StatusCode::BAD_GATEWAY, "connection_terminated"),
                O::Protocol(_) => (StatusCode::BAD_GATEWAY, "http_protocol_error"),
                O::ClientStalled => (StatusCode::REQUEST_TIMEOUT, "http_request_error"),
                O::ClientGone => (StatusCode::BAD_REQUEST, "http_request_error"),
            },
        }
    }

    pub fn status(&self) -> StatusCode {
        self.kind().0
    }

    /// The response that a client gets.
    pub fn response(&self) -> Response<Body> {
        let (status, kind) = self.kind();
        let body = serde_json::json!({
            "message": format!("ghtap: {self}"),
            "documentation_url": DOCUMENTATION,
            "status": status.as_u16().to_string(),
        });
        let mut response = Response::new(Body::Full(body.to_string().into()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
        let proxy_status = format!("ghtap; error={kind}");
        if status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            headers.insert(
                header::PROXY_AUTHENTICATE,
                HeaderValue::from_static("Basic realm=\"ghtap\", charset=\"UTF-8\""),
            );
        }
        headers.insert("proxy-status", HeaderValue::from_str(&proxy_status).expect("a token"));
        response
    }
}
