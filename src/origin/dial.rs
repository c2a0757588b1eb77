//! Making connections: names, addresses, the corporate proxy, TLS.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine;
use ipnet::IpNet;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Error;

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// Lower case; an IPv6 literal without brackets.
    pub host: Arc<str>,
    pub port: u16,
    pub tls: bool,
    /// Whether the addresses that `--tunnel-deny` names are closed to it: so for what clients choose.
    pub guarded: bool,
}

impl Target {
    /// What responses from here are stored under: the host, and the port unless it is that of `https`.
    pub fn site(&self) -> Cow<'_, str> {
        match self.tls && self.port == 443 {
            true => Cow::Borrowed(&self.host),
            false => Cow::Owned(self.authority()),
        }
    }

    /// `host:port`, with brackets where they are needed.
    pub fn authority(&self) -> String {
        authority(&self.host, self.port)
    }
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// A proxy between us and the world.
#[derive(Clone, Debug)]
pub struct UpstreamProxy {
    pub host: String,
    pub port: u16,
    /// The value of `Proxy-Authorization`.
    pub authorization: Option<String>,
}

impl UpstreamProxy {
    /// Reads `http://[user:password@]host[:port]`.
    ///
    /// # Errors
    /// One line that says what was wrong; it never repeats the password.
    pub fn parse(url: &str) -> Result<UpstreamProxy, String> {
        let rest =
            url.strip_prefix("http://").ok_or("an upstream proxy is given as http://[user:password@]host:port")?;
        let rest = rest.trim_end_matches('/');
        let (user, authority) = rest.rsplit_once('@').map_or((None, rest), |(u, a)| (Some(u), a));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| format!("{port:?} is not a port"))?)
            }
            _ => (authority, 3128),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err("the upstream proxy has no host".into());
        }
        let basic = |user: &str| {
            let decoded = percent_decode(user);
            format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(decoded))
        };
        Ok(UpstreamProxy { host: host.to_owned(), port, authorization: user.map(basic) })
    }
}

/// Undoes percent-encoding; what is not valid stays as it is.
pub fn percent_decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = bytes.get(i + 1..i + 3).and_then(|h| u8::from_str_radix(std::str::from_utf8(h).ok()?, 16).ok());
        match (bytes[i], hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                i += 3;
            }
            (byte, _) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    out
}

/// Makes connections.
pub struct Dialer {
    /// `--resolve`, by host and port.
    pub resolve: HashMap<(String, u16), SocketAddr>,
    /// `--tunnel-deny`
    pub deny: Vec<IpNet>,
    pub proxy: Option<UpstreamProxy>,
    /// Our own listeners, where nothing that a client chooses may lead.
    pub own: Vec<SocketAddr>,
    pub tls: TlsConnector,
    /// The runtime that looks names up.
    pub resolver: tokio::runtime::Handle,
    /// For the name, each address and the handshake, each.
    pub timeout: Duration,
}

impl Dialer {
    /// A connection to an origin, through TLS where the target says so.
    pub async fn connect(&self, target: &Target) -> Result<Stream, Error> {
        let tcp = self.tcp(target).await?;
        if !target.tls {
            return Ok(Stream::Plain(tcp));
        }
        let name = target.authority();
        let server = ServerName::try_from(target.host.to_string());
        let server = server.map_err(|e| Error::Tls(name.clone(), io::Error::other(e)))?;
        match tokio::time::timeout(self.timeout, self.tls.connect(server, tcp)).await {
            Err(_) => Err(Error::ConnectTimeout(name)),
            Ok(Ok(stream)) => Ok(Stream::Tls(Box::new(stream))),
            Ok(Err(error)) if is_certificate(&error) => Err(Error::Certificate(name, error)),
            Ok(Err(error)) => Err(Error::Tls(name, error)),
        }
    }

    /// A plain connection to a target, through the corporate proxy if there is one.
    pub async fn tcp(&self, target: &Target) -> Result<TcpStream, Error> {
        if let Some(proxy) = &self.proxy
            && !self.resolve.contains_key(&(target.host.to_string(), target.port))
        {
            // Names are the proxy's to resolve; what is plainly a denied address is refused here.
            if target.guarded && target.host.parse().is_ok_and(|ip| self.denied(ip)) {
                return Err(Error::Denied(target.authority()));
            }
            let way = Target { host: proxy.host.as_str().into(), port: proxy.port, tls: false, guarded: false };
            let stream = self.direct(&way).await?;
            let far = target.authority();
            let connected = tokio::time::timeout(self.timeout, through(stream, proxy, &far));
            return connected.await.map_err(|_| Error::ConnectTimeout(way.authority()))?;
        }
        self.direct(target).await
    }

    async fn direct(&self, target: &Target) -> Result<TcpStream, Error> {
        let mut failed = None;
        for address in self.addresses(target).await? {
            match tokio::time::timeout(self.timeout, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    if target.guarded && leads_back(&stream, &self.own) {
                        return Err(Error::Loop(target.authority()));
                    }
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Ok(Err(error)) => failed = Some(Error::Connect(target.authority(), error)),
                Err(_) => failed = Some(Error::ConnectTimeout(target.authority())),
            }
        }
        Err(failed.unwrap_or_else(|| Error::Resolve(target.host.to_string())))
    }

    /// The addresses of a target, after the check that names cannot get round.
    async fn addresses(&self, target: &Target) -> Result<Vec<SocketAddr>, Error> {
        if let Some(address) = self.resolve.get(&(target.host.to_string(), target.port)) {
            return Ok(vec![*address]);
        }
        // Elsewhere: a slow resolver must not keep a worker's few threads from the disk.
        let (host, port) = (target.host.clone(), target.port);
        let lookup =
            self.resolver.spawn(async move { tokio::net::lookup_host((&*host, port)).await.map(Vec::from_iter) });
        let all: Vec<SocketAddr> = match tokio::time::timeout(self.timeout, lookup).await {
            Ok(Ok(Ok(found))) => found,
            _ => return Err(Error::Resolve(target.host.to_string())),
        };
        if target.guarded && all.iter().any(|a| self.denied(a.ip())) {
            return Err(Error::Denied(target.authority()));
        }
        Ok(all)
    }

    fn denied(&self, ip: IpAddr) -> bool {
        let plain = ip.to_canonical();
        self.deny.iter().any(|net| net.contains(&ip) || net.contains(&plain))
    }
}

/// Whether a connection leads to one of our own listeners.
fn leads_back(stream: &TcpStream, own: &[SocketAddr]) -> bool {
    let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else { return false };
    own.iter().any(|o| o.port() == peer.port() && (o.ip() == peer.ip() || peer.ip() == local.ip()))
}

/// Asks a proxy for a tunnel.
async fn through(mut stream: TcpStream, proxy: &UpstreamProxy, authority: &str) -> Result<TcpStream, Error> {
    let mut request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n");
    if let Some(authorization) = &proxy.authorization {
        request.push_str(&format!("Proxy-Authorization: {authorization}\r\n"));
    }
    request.push_str("\r\n");
    let failed = |e| Error::Connect(self::authority(&proxy.host, proxy.port), e);
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    // Byte for byte: what follows the head belongs to the tunnel.
    let mut head = Vec::with_capacity(256);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > 16 << 10 {
            return Err(Error::UpstreamProxy("its answer is too long".into()));
        }
        head.push(stream.read_u8().await.map_err(failed)?);
    }
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut fields);
    match (response.parse(&head), response.code) {
        (Ok(_), Some(200..=299)) => Ok(stream),
        (Ok(_), Some(code)) => Err(Error::UpstreamProxy(format!("it answered {code} to CONNECT {authority}"))),
        _ => Err(Error::UpstreamProxy("its answer is not HTTP".into())),
    }
}

fn is_certificate(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented))
}

/// A connection to an origin.
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Stream::Tls(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Stream::Tls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Stream::Tls(s) => Pin::new(s).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Plain(s) => s.is_write_vectored(),
            Stream::Tls(s) => s.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(s) => Pin::new(s).poll_flush(cx),
            Stream::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Stream::Tls(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstream_proxies() {
        let proxy = UpstreamProxy::parse("http://u%40x:p%3Aw@proxy.corp:8080/").unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port), ("proxy.corp", 8080));
        assert_eq!(proxy.authorization.as_deref(), Some("Basic dUB4OnA6dw=="));
        assert_eq!(UpstreamProxy::parse("http://[::1]:3").unwrap().host, "::1");
        assert_eq!(UpstreamProxy::parse("http://proxy").unwrap().port, 3128);
        for bad in ["https://proxy", "proxy:1", "http://", "http://proxy:x"] {
            assert!(UpstreamProxy::parse(bad).is_err(), "{bad}");
        }
    }
}
