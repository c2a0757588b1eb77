//! A request, understood: what it is about, who asks, and what goes upstream of it.

use std::sync::Arc;

use aws_lc_rs::digest;
use http::header;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Uri};

use super::graphql::Read;
use super::pooled::Pooled;
use super::{Api, Exchange, now_ms};
use crate::body::RequestBody;
use crate::cache::key::{Key, KeyId};
use crate::cache::precondition::Precondition;
use crate::clients::Caller;
use crate::fields;
use crate::github::credentials::{CredentialId, Principal, api_path};
use crate::github::routes::Route;
use crate::origin::dial::Target;

#[derive(Clone)]
pub(super) struct Asked {
    pub caller: Caller,
    pub target: Target,
    /// Whose quota and logins the API has that is asked.
    pub realm: Arc<str>,
    pub method: Method,
    /// Origin-form.
    pub uri: Uri,
    /// End-to-end fields, without preconditions and codings: those are chosen for each exchange.
    pub headers: HeaderMap,
    pub accept_encoding: Option<HeaderValue>,
    /// The client's own `If-None-Match` and `If-Modified-Since`.
    pub preconditions: Vec<(header::HeaderName, HeaderValue)>,
    pub precondition: Precondition,
    pub accepts_gzip: bool,
    pub route: Route,
    pub credential: CredentialId,
    pub credential_name: Arc<str>,
    pub principal: Option<Principal>,
    /// Milliseconds since 1970.
    pub at: u64,
    /// Asked by ourselves, to confirm a listing.
    pub is_probe: bool,
    /// Whether the path is one of the API's.
    pub is_api: bool,
    /// Whether a client of the registry asks: the pool's credentials do for it.
    pub of_registered: bool,
    /// The credential of the pool that it is asked with.
    pub pooled: Option<Pooled>,
    /// What it is about, if it is for GraphQL.
    pub graphql: Option<Read>,
}

/// What makes two requests in flight identical.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    key: KeyId,
    credential: CredentialId,
    accepts_gzip: bool,
    is_probe: bool,
    /// Counts writes: a request made after one does not join a request from before it.
    generation: u64,
    precondition: [u8; 16],
}

impl Exchange {
    /// Takes a request apart.
    pub(super) fn understand(&self, caller: &Caller, api: &Api, parts: Parts) -> Asked {
        let target = &api.target;
        let mut headers = parts.headers;
        fields::strip_hop_by_hop(&mut headers);
        fields::join_cookies(&mut headers);
        headers.remove(header::EXPECT);
        let precondition = Precondition::of(&headers);
        let mut preconditions = Vec::new();
        if precondition != Precondition::Other {
            for name in [header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE] {
                preconditions.extend(headers.get_all(&name).iter().map(|v| (name.clone(), v.clone())));
                headers.remove(&name);
            }
        }
        let accepts_gzip = fields::accepts_gzip(&headers);
        let accept_encoding = match headers.get_all(header::ACCEPT_ENCODING).iter().count() {
            0 | 1 => headers.remove(header::ACCEPT_ENCODING),
            _ => {
                let lines: Vec<&[u8]> = headers.get_all(header::ACCEPT_ENCODING).iter().map(|v| v.as_bytes()).collect();
                let joined = HeaderValue::from_bytes(&lines.join(&b", "[..])).ok();
                headers.remove(header::ACCEPT_ENCODING);
                joined
            }
        };
        if let Ok(host) = HeaderValue::from_str(&host_field(target)) {
            headers.insert(header::HOST, host);
        }
        let uri = origin_form(&parts.uri);
        let credential = self.credentials.identify(&headers);
        let route = self.routes.find(&parts.method, api_path(uri.path()));
        let mut asked = Asked {
            is_api: uri.path().starts_with(api.prefix),
            caller: caller.clone(),
            target: target.clone(),
            realm: api.realm.clone(),
            route,
            credential,
            credential_name: self.realm_name(&api.realm, &self.credentials.name(credential)),
            principal: self.credentials.principal(credential),
            method: parts.method,
            uri,
            headers,
            accept_encoding,
            preconditions,
            precondition,
            accepts_gzip,
            at: now_ms(),
            is_probe: false,
            of_registered: false,
            pooled: None,
            graphql: None,
        };
        if api.plain {
            asked.is_plain_only();
        }
        asked
    }
}

impl Asked {
    /// What the paths of the API that is asked begin with: `/api/v3` on a server of one's own.
    pub fn api_base(&self) -> &'static str {
        if api_path(self.path()) == self.path() { "" } else { "/api/v3" }
    }

    /// Content is to come without a coding: somebody has to read it on its way.
    pub fn is_plain_only(&mut self) {
        self.accepts_gzip = false;
        self.accept_encoding = None;
    }

    pub fn path(&self) -> &str {
        self.uri.path()
    }

    /// Path and query.
    pub fn target_form(&self) -> &str {
        self.uri.path_and_query().map_or("/", |p| p.as_str())
    }

    pub fn key(&self) -> Key {
        Key::of(&self.target.site(), self.target_form(), &self.headers)
    }

    /// The same request for another page, asked by ourselves.
    pub fn for_page(&self, exchange: &Exchange, target: &str) -> Option<Asked> {
        let uri: Uri = target.parse().ok()?;
        Some(Asked {
            caller: self.caller.clone(),
            target: self.target.clone(),
            realm: self.realm.clone(),
            method: Method::GET,
            route: exchange.routes.find(&Method::GET, api_path(uri.path())),
            uri,
            headers: self.headers.clone(),
            accept_encoding: self.accept_encoding.clone(),
            preconditions: Vec::new(),
            precondition: Precondition::None,
            accepts_gzip: self.accepts_gzip,
            credential: self.credential,
            credential_name: self.credential_name.clone(),
            principal: self.principal.clone(),
            at: now_ms(),
            is_probe: true,
            is_api: true,
            of_registered: self.of_registered,
            pooled: self.pooled.clone(),
            graphql: None,
        })
    }

    pub fn identity(&self, key: KeyId, generation: u64) -> Identity {
        let mut precondition = [0; 16];
        if !self.preconditions.is_empty() {
            let mut context = digest::Context::new(&digest::SHA256);
            for (name, value) in &self.preconditions {
                context.update(name.as_str().as_bytes());
                context.update(b":");
                context.update(value.as_bytes());
                context.update(b"\n");
            }
            precondition.copy_from_slice(&context.finish().as_ref()[..16]);
        }
        Identity {
            key,
            credential: self.credential,
            accepts_gzip: self.accepts_gzip,
            is_probe: self.is_probe,
            generation,
            precondition,
        }
    }

    /// What goes upstream, still without preconditions.
    pub fn request(&self, via: &HeaderValue, body: RequestBody) -> Request<RequestBody> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        *headers = self.headers.clone();
        headers.append(header::VIA, via.clone());
        fields::frame(&mut request);
        request
    }
}

/// The request-target as the origin gets it.
fn origin_form(uri: &Uri) -> Uri {
    match uri.path_and_query() {
        Some(target) if uri.authority().is_some() => Uri::from(target.clone()),
        Some(_) => uri.clone(),
        None => Uri::from_static("/"),
    }
}

pub(super) fn host_field(target: &Target) -> String {
    let default = if target.tls { 443 } else { 80 };
    let host = &target.host;
    match (target.port == default, host.contains(':')) {
        (true, false) => host.to_string(),
        (true, true) => format!("[{host}]"),
        (false, _) => target.authority(),
    }
}
