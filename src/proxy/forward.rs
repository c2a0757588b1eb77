//! Absolute-form requests, forwarded as any forward proxy does; and those for an intercepted host, which
//! are API requests like any other.

use http::uri::Scheme;
use http::{HeaderValue, Request, Response, header};
use hyper::body::{Body as _, Incoming};

use super::{Proxy, check_host_field};
use crate::body::{Body, ClientBody, RequestBody};
use crate::clients::Caller;
use crate::error::Error;
use crate::exchange::Api;
use crate::fields;
use crate::origin::dial::Target;

impl Proxy {
    pub(super) async fn absolute(&self, request: Request<Incoming>, caller: Caller) -> Result<Response<Body>, Error> {
        check_host_field(&request)?;
        let authority = request.uri().authority().ok_or_else(|| Error::BadRequest("the URL has no host".into()))?;
        if authority.as_str().contains('@') {
            return Err(Error::BadRequest("the URL has a user name; send Authorization instead".into()));
        }
        let tls = match request.uri().scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            _ => return Err(Error::BadRequest("the URL is neither http nor https".into())),
        };
        let host =
            authority.host().trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        if tls
            && port == 443
            && let Some(host) = self.hosts.iter().find(|h| ***h == *host)
        {
            let target = Target { host: host.clone(), port, tls, guarded: false };
            return Ok(self.exchange.serve(&caller, &Api::intercepted(target), request).await);
        }
        if tls {
            return Err(Error::BadRequest(format!("https://{host} is reached with CONNECT {host}:{port}")));
        }
        if host.is_empty() || port == 0 {
            return Err(Error::BadRequest("the URL has no valid host and port".into()));
        }
        let target = Target { host: host.into(), port, tls, guarded: true };
        self.plain(&target, request).await
    }

    /// A request for an `http://` URL of another host: passed on, neither stored nor counted as a call.
    async fn plain(&self, target: &Target, request: Request<Incoming>) -> Result<Response<Body>, Error> {
        let settings = &self.exchange.settings;
        let (parts, incoming) = request.into_parts();
        if self.exchange.is_loop(&parts.headers) {
            return Err(Error::Loop);
        }
        if self.clients.holds_secret(&parts.headers) {
            return Err(Error::BadRequest(
                "a client's token is for https:// URLs of GitHub's API, and goes nowhere else".into(),
            ));
        }
        let body = match incoming.is_end_stream() {
            true => RequestBody::Empty,
            false => RequestBody::Client(Box::new(ClientBody::new(incoming, settings.upload_idle, None))),
        };
        let mut outgoing = Request::new(body);
        *outgoing.method_mut() = parts.method;
        if let Some(path) = parts.uri.path_and_query() {
            *outgoing.uri_mut() = path.clone().into();
        }
        let via = self.exchange.via.clone();
        let headers = outgoing.headers_mut();
        *headers = parts.headers;
        fields::strip_hop_by_hop(headers);
        headers.remove(header::EXPECT);
        let host =
            if target.port == 80 { target.authority().trim_end_matches(":80").to_owned() } else { target.authority() };
        headers.insert(
            header::HOST,
            HeaderValue::from_str(&host).map_err(|_| Error::BadRequest("the URL's host is not valid".into()))?,
        );
        headers.append(header::VIA, via.clone());
        fields::frame(&mut outgoing);
        let response = self.exchange.origin.send(target, outgoing).await?;
        let (mut parts, body) = response.into_parts();
        fields::strip_hop_by_hop(&mut parts.headers);
        parts.headers.append(header::VIA, via);
        Ok(Response::from_parts(parts, Body::Upstream(Box::new(body))))
    }
}
