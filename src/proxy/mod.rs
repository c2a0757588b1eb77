//! Dispatch on the request-target: authority-form (`CONNECT`), absolute-form, origin-form (RFC 9112, 3.2).

mod forward;
mod intercept;
mod reverse;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::TcpStream;

use crate::body::Body;
use crate::clients::{Caller, Clients};
use crate::drain::Drain;
use crate::error::Error;
use crate::exchange::Exchange;
use crate::metrics::Metrics;
use crate::origin::dial::{Dialer, Target};
use crate::patient::Patient;
use crate::tls::authority::Authority;
use crate::tunnel::{self, Passed};
pub use reverse::Reverse;

/// How long clients may take.
#[derive(Clone, Debug)]
pub struct Patience {
    /// For a request head, on a connection to the proxy itself; and for an answer that is not read.
    pub head: Duration,
    /// For the ClientHello and the TLS handshake, each.
    pub handshake: Duration,
    /// Between two requests on an intercepted connection.
    pub idle: Duration,
    /// For a tunnel through which nothing moves.
    pub tunnel: Duration,
}

/// The proxy: what every connection shares.
pub struct Proxy {
    pub exchange: Arc<Exchange>,
    pub authority: Arc<Authority>,
    pub dialer: Arc<Dialer>,
    pub metrics: Arc<Metrics>,
    /// The hosts that are intercepted, lower case.
    pub hosts: Vec<Arc<str>>,
    pub tunnel_ports: Vec<u16>,
    pub patience: Patience,
    pub clients: Arc<Clients>,
    /// Where requests for our own address go.
    pub reverse: Reverse,
    /// Where the ledger is: what it occupies is a metric.
    pub ledger: PathBuf,
}

/// Request heads larger than this are refused with 431.
const MAX_HEAD: usize = 128 << 10;

/// A tunnel that is quiet for this long while we drain is closed.
const DRAINED_SILENCE: Duration = Duration::from_secs(1);

/// What a connection becomes after a `CONNECT`.
enum Next {
    Terminate { target: Target, caller: Caller },
    Tunnel { stream: TcpStream, authority: String },
}

impl Proxy {
    /// Serves a connection to the proxy's own address until it ends, or has drained.
    pub async fn serve(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, mut drain: Drain) {
        let next: Arc<Mutex<Option<(OnUpgrade, Next)>>> = Arc::default();
        let service = {
            let (proxy, next) = (self.clone(), next.clone());
            service_fn(move |request: Request<Incoming>| {
                let (proxy, next) = (proxy.clone(), next.clone());
                async move { Ok::<_, Infallible>(proxy.dispatch(request, peer, &next).await) }
            })
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.patience.head)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(Patient::new(stream, self.patience.head)), service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = drain.begun() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = served {
            self.refuse(reason(&error));
            tracing::debug!(%error, %peer, "a connection ended badly");
            return;
        }
        let Some((upgrade, next)) = next.lock().take() else { return };
        let Ok(upgraded) = upgrade.await else { return };
        let Ok(parts) = upgraded.downcast::<TokioIo<Patient<TcpStream>>>() else { return };
        let (stream, begun) = (parts.io.into_inner().into_inner(), parts.read_buf);
        match next {
            Next::Terminate { target, caller } => {
                self.terminate(stream, begun, Some(target), caller, peer, drain).await
            }
            Next::Tunnel { stream: origin, authority } => self.tunnel(stream, begun, origin, &authority, drain).await,
        }
    }

    /// Serves a connection of a client that knows no proxy: TLS at once, by server name.
    pub async fn serve_tls(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, drain: Drain) {
        let caller = match self.clients.identify(None, peer.ip()).await {
            Ok(caller) => caller,
            Err(_) => {
                // There is no 407 without a proxy request: an address rule has to let it in.
                self.refuse("client");
                tracing::warn!(%peer, "closed: not a known client; an address rule can let it in: --client NETWORK=NAME");
                return;
            }
        };
        self.terminate(stream, Bytes::new(), None, caller, peer, drain).await;
    }

    async fn dispatch(
        &self,
        mut request: Request<Incoming>,
        peer: SocketAddr,
        next: &Mutex<Option<(OnUpgrade, Next)>>,
    ) -> Response<Body> {
        let answer = if request.method() == Method::CONNECT {
            self.connect(&mut request, peer).await.map(|n| {
                *next.lock() = Some((hyper::upgrade::on(&mut request), n));
                Response::new(Body::Empty)
            })
        } else if request.uri().scheme().is_some() {
            match self.caller(peer, &request).await {
                Ok(caller) => self.absolute(request, caller).await,
                Err(error) => Err(error),
            }
        } else {
            self.reverse(request, peer).await
        };
        answer.unwrap_or_else(|error| {
            tracing::info!(%peer, %error, "refused");
            self.refuse(if matches!(error, Error::UnknownClient(_) | Error::Unauthenticated(_)) {
                "client"
            } else {
                "request"
            });
            error.response()
        })
    }

    async fn caller(&self, peer: SocketAddr, request: &Request<Incoming>) -> Result<Caller, Error> {
        Ok(self.clients.identify(Some(request.headers()), peer.ip()).await?)
    }

    /// `CONNECT`: to an intercepted host, the client is to begin TLS with us; to another, a tunnel, whose far
    /// end is connected before the client is told so.
    async fn connect(&self, request: &mut Request<Incoming>, peer: SocketAddr) -> Result<Next, Error> {
        let text = request.uri().authority().map(|a| a.as_str().to_owned()).unwrap_or_default();
        let (host, port) = authority(&text)?;
        let caller = self.caller(peer, request).await?;
        if let Some(host) = self.hosts.iter().find(|h| ***h == *host)
            && port == 443
        {
            let target = Target { host: host.clone(), port, tls: true, guarded: false };
            return Ok(Next::Terminate { target, caller });
        }
        if !self.tunnel_ports.contains(&port) {
            self.metrics.tunnels.with_label_values(&["denied"]).inc();
            return Err(Error::Forbidden(format!(
                "no tunnel to port {port}: --tunnel-ports allows {:?}",
                self.tunnel_ports
            )));
        }
        let target = Target { host: host.as_str().into(), port, tls: false, guarded: true };
        let stream = self.reach(&target).await?;
        Ok(Next::Tunnel { stream, authority: target.authority() })
    }

    /// The far end of a tunnel.
    async fn reach(&self, target: &Target) -> Result<TcpStream, Error> {
        let connected = self.dialer.tcp(target).await;
        let stream = connected.inspect_err(|error| {
            let denied = matches!(error, crate::origin::Error::Denied(_));
            self.metrics.tunnels.with_label_values(&[if denied { "denied" } else { "failed" }]).inc();
        })?;
        Ok(stream)
    }

    async fn tunnel(&self, client: TcpStream, begun: Bytes, origin: TcpStream, authority: &str, mut drain: Drain) {
        self.metrics.tunnels.with_label_values(&["opened"]).inc();
        self.metrics.tunnels_open.inc();
        let passed = Passed::default();
        let running = async {
            let ended = tunnel::run(client, begun, origin, self.patience.tunnel, &passed).await;
            tracing::debug!(authority, error = ended.err().map(tracing::field::display), "tunnel ended");
        };
        let drained = async {
            drain.begun().await;
            // A tunnel may last for hours; one that is in use may finish what it is at.
            tunnel::silence(DRAINED_SILENCE, &passed).await;
        };
        tokio::select! {
            () = running => {}
            () = drained => {}
        }
        self.metrics.tunnels_open.dec();
        for (direction, bytes) in [("up", &passed.up), ("down", &passed.down)] {
            self.metrics.tunnel_bytes.with_label_values(&[direction]).inc_by(bytes.load(Ordering::Relaxed));
        }
    }

    fn refuse(&self, reason: &str) {
        self.metrics.refused.with_label_values(&[reason]).inc();
    }
}

/// Host (lower case, no brackets, no final dot) and port of an authority.
fn authority(text: &str) -> Result<(String, u16), Error> {
    if text.contains('@') {
        // Not repeated: there may be a password in it.
        return Err(Error::BadRequest("CONNECT with a user name; it takes HOST:PORT".into()));
    }
    let wrong = |why: &str| Error::BadRequest(format!("CONNECT {text:?} {why}; it takes HOST:PORT"));
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => return Err(wrong("has no port")),
    };
    let port: u16 = port.parse().map_err(|_| wrong("has no valid port"))?;
    if port == 0 {
        return Err(wrong("has port 0"));
    }
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    if host.is_empty() {
        return Err(wrong("has no host"));
    }
    Ok((host, port))
}

/// A label for how a connection ended badly.
fn reason(error: &hyper::Error) -> &'static str {
    match error {
        e if e.is_timeout() => "head-timeout",
        e if e.is_parse_too_large() => "head-too-large",
        e if e.is_parse() => "malformed",
        _ => "connection",
    }
}

/// Refuses what hyper lets through and what must not be forwarded. (Both `Content-Length` and
/// `Transfer-Encoding`: hyper goes by the latter, drops the former and closes, as RFC 9112, 6.3 has it.)
fn check_host_field(request: &Request<Incoming>) -> Result<(), Error> {
    if request.version() < Version::HTTP_2 && request.headers().get_all(http::header::HOST).iter().count() > 1 {
        return Err(Error::BadRequest("the request has more than one Host".into()));
    }
    let codings = request.headers().get_all(http::header::TRANSFER_ENCODING).iter();
    if codings.into_iter().any(|v| !v.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        return Err(Error::BadRequest("the request has a transfer coding other than chunked".into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities() {
        for (text, host, port) in [
            ("api.github.com:443", "api.github.com", 443),
            ("API.GitHub.com.:443", "api.github.com", 443),
            ("[::1]:8443", "::1", 8443),
        ] {
            assert_eq!(authority(text).unwrap(), (host.to_owned(), port));
        }
        for bad in ["api.github.com", "api.github.com:0", "api.github.com:x", ":443", "[::1]", "u@h:443", "h:70000", ""]
        {
            assert!(authority(bad).is_err(), "{bad}");
        }
    }
}
