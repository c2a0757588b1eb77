//! Terminating TLS for an intercepted host, and serving the requests inside.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Version, header};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio_rustls::StartHandshake;

use super::{MAX_HEAD, Proxy, check_host_field, reason};
use crate::body::Body;
use crate::clients::{Caller, Unknown};
use crate::drain::Drain;
use crate::error::Error;
use crate::exchange::Api;
use crate::origin::dial::Target;
use crate::patient::Patient;
use crate::tls::hello::{self, Hello};

/// One intercepted connection.
struct Intercepted {
    proxy: Arc<Proxy>,
    api: Api,
    caller: Caller,
    /// The server name, where it is not the host that the client connected to.
    foreign_name: Option<String>,
    /// Whether `Host` may name any port: the client did not say to which it connected.
    any_port: bool,
    activity: Activity,
}

/// Whether anything is asked on a connection: HTTP/2 pings keep one open on which nothing is.
#[derive(Default)]
struct Activity {
    under_way: AtomicUsize,
    served: AtomicUsize,
}

impl Activity {
    /// Ends when nothing was asked for as long as `idle`.
    async fn ceased(&self, idle: Duration) {
        let mut before = self.served.load(Ordering::Relaxed);
        loop {
            tokio::time::sleep(idle).await;
            let served = self.served.load(Ordering::Relaxed);
            if served == before && self.under_way.load(Ordering::Relaxed) == 0 {
                return;
            }
            before = served;
        }
    }
}

/// A request under way.
struct UnderWay<'a>(&'a Activity);

impl<'a> UnderWay<'a> {
    fn begin(activity: &'a Activity) -> UnderWay<'a> {
        activity.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay(activity)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
        self.0.served.fetch_add(1, Ordering::Relaxed);
    }
}

impl Proxy {
    /// Reads the ClientHello and takes the connection over. `target` is what `CONNECT` named; without one the
    /// server name decides, and one that is not ours is passed on.
    pub(super) async fn terminate(
        self: Arc<Self>,
        stream: TcpStream,
        begun: Bytes,
        target: Option<Target>,
        caller: Caller,
        peer: SocketAddr,
        drain: Drain,
    ) {
        let hello = match tokio::time::timeout(self.patience.handshake, hello::read(stream, begun)).await {
            Ok(Ok(hello)) => hello,
            Ok(Err(hello::NotTls::Ended)) => return,
            Ok(Err(error)) => {
                self.refuse("not-tls");
                tracing::warn!(%peer, %error, "closed: what followed CONNECT was not TLS, and is never forwarded");
                return;
            }
            Err(_) => return self.refuse("hello-timeout"),
        };
        let any_port = target.is_none();
        let target = match (target, hello.server_name.as_deref()) {
            (Some(target), _) => target,
            (None, Some(name)) => match self.hosts.iter().find(|h| &***h == name) {
                Some(host) => Target { host: host.clone(), port: 443, tls: true, guarded: false },
                None => return self.pass_on(hello, peer, drain).await,
            },
            (None, None) => {
                self.refuse("no-server-name");
                tracing::warn!(%peer, "closed: a TLS connection without a server name");
                return;
            }
        };
        let foreign_name = hello.server_name.filter(|name| **name != *target.host);
        let handshake = StartHandshake::from_parts(hello.accepted, hello.stream);
        let handshake = handshake.into_stream(self.authority.server_config().clone());
        let stream = match tokio::time::timeout(self.patience.handshake, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                self.refuse("handshake");
                tracing::warn!(%peer, client = &*caller.client, %error, "the TLS handshake failed; does the client trust the CA? run: ghtap doctor");
                return;
            }
            Err(_) => return self.refuse("handshake-timeout"),
        };
        let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let patience = self.patience.clone();
        let proxy = self.clone();
        let connection = Arc::new(Intercepted {
            proxy: self,
            api: Api::intercepted(target),
            caller,
            foreign_name,
            any_port,
            activity: Activity::default(),
        });
        let io = TokioIo::new(Patient::new(stream, patience.head));
        let served = if is_h2 {
            serve_h2(io, connection, patience.idle, drain).await
        } else {
            serve_h1(io, connection, patience.idle, drain).await
        };
        if let Err(error) = served {
            proxy.refuse(reason(&error));
            tracing::debug!(%peer, %error, "an intercepted connection ended badly");
        }
    }

    /// A connection that is not ours: on to whom it names, by the tunnel's rules.
    async fn pass_on(&self, hello: Hello, peer: SocketAddr, drain: Drain) {
        let name = hello.server_name.unwrap_or_default();
        if !self.tunnel_ports.contains(&443) {
            return self.refuse("server-name");
        }
        let target = Target { host: name.as_str().into(), port: 443, tls: false, guarded: true };
        match self.reach(&target).await {
            Ok(origin) => self.tunnel(hello.stream, hello.raw, origin, &target.authority(), drain).await,
            Err(error) => {
                self.refuse("server-name");
                tracing::warn!(%peer, %error, "closed: a TLS connection for another host could not be passed on");
            }
        }
    }
}

type Io = TokioIo<Patient<tokio_rustls::server::TlsStream<TcpStream>>>;

async fn serve_h1(io: Io, connection: Arc<Intercepted>, idle: Duration, mut drain: Drain) -> hyper::Result<()> {
    let service = service_fn(move |request| {
        let connection = connection.clone();
        async move { Ok::<_, Infallible>(connection.answer(request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(MAX_HEAD)
        .serve_connection(io, service);
    let mut served = std::pin::pin!(served);
    tokio::select! {
        ended = served.as_mut() => ended,
        () = drain.begun() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    }
}

/// Streams at once on one HTTP/2 connection. GitHub's secondary limit is 100 requests at once.
const MAX_STREAMS: u32 = 128;

/// How long an HTTP/2 connection that is asked to end may take over its goodbye.
const GOODBYE: Duration = Duration::from_secs(5);

async fn serve_h2(io: Io, connection: Arc<Intercepted>, idle: Duration, mut drain: Drain) -> hyper::Result<()> {
    let watched = connection.clone();
    let service = service_fn(move |request| {
        let connection = connection.clone();
        async move {
            let _under_way = UnderWay::begin(&connection.activity);
            Ok::<_, Infallible>(connection.answer(request).await)
        }
    });
    let served = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(64 << 10)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20))
        .serve_connection(io, service);
    let mut served = std::pin::pin!(served);
    tokio::select! {
        ended = served.as_mut() => ended,
        () = drain.begun() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
        () = watched.activity.ceased(idle) => {
            served.as_mut().graceful_shutdown();
            tokio::time::timeout(GOODBYE, served).await.unwrap_or(Ok(()))
        }
    }
}

impl Intercepted {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let version = request.version();
        let known = self.proxy.clients.still_knows(&self.caller);
        let checked = if known { self.check(&request) } else { Err(Unknown::Wrong.into()) };
        match checked {
            Ok(()) => self.proxy.exchange.serve(&self.caller, &self.api, request).await,
            Err(error) => {
                self.proxy.refuse("request");
                tracing::info!(client = &*self.caller.client, %error, "refused");
                let mut response = error.response();
                if version < Version::HTTP_2 {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                response
            }
        }
    }

    fn check(&self, request: &Request<Incoming>) -> Result<(), Error> {
        check_host_field(request)?;
        if let Some(name) = &self.foreign_name {
            return Err(Error::Misdirected(format!("the server name {name:?} is not {}", self.api.target.host)));
        }
        let host = match request.uri().authority() {
            Some(authority) => authority.as_str(),
            None => match request.headers().get(header::HOST) {
                Some(value) => value.to_str().map_err(|_| Error::BadRequest("the Host is not valid".into()))?,
                None if request.version() == Version::HTTP_10 => return Ok(()),
                None => return Err(Error::BadRequest("the request has no Host".into())),
            },
        };
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) => (name, port.parse::<u16>().ok()),
            None => (host, Some(self.api.target.port)),
        };
        let right_port = self.any_port && port.is_some() || port == Some(self.api.target.port);
        if name.strip_suffix('.').unwrap_or(name).eq_ignore_ascii_case(&self.api.target.host) && right_port {
            return Ok(());
        }
        Err(Error::Misdirected(format!("the Host {host:?} is not {}", self.api.target.authority())))
    }
}
