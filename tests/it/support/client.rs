//! A client that sees every byte: HTTP/1.1 through the tap, over TLS or in the clear.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::tap::Tap;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

pub struct Client {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
}

/// One response.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    /// As it came.
    pub raw: Vec<u8>,
    /// Without its coding.
    pub body: Vec<u8>,
    pub trailers: Vec<String>,
}

impl Reply {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|v| v.to_str().unwrap())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    pub fn x_cache(&self) -> &str {
        self.field("x-cache").unwrap_or("-")
    }
}

/// How long a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn connector(root: &Path, alpn: &[&[u8]]) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    for cert in CertificateDer::pem_file_iter(root).unwrap() {
        roots.add(cert.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|a| a.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

impl Client {
    /// A plain connection to the proxy itself.
    pub async fn plain(tap: &Tap) -> Client {
        Client { stream: Box::new(TcpStream::connect(tap.proxy).await.unwrap()), buffer: Vec::new() }
    }

    /// `CONNECT api.github.com:443`, then TLS.
    pub async fn connect(tap: &Tap) -> Client {
        Client::connect_as(tap, "api.github.com", "api.github.com", None).await.unwrap()
    }

    /// The same, where the tap itself is not at hand.
    pub async fn to(proxy: std::net::SocketAddr, ca: &Path) -> Client {
        let mut stream = TcpStream::connect(proxy).await.unwrap();
        stream.write_all(b"CONNECT api.github.com:443 HTTP/1.1\r\nHost: api.github.com:443\r\n\r\n").await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let name = ServerName::try_from("api.github.com").unwrap();
        let stream = connector(ca, &[b"http/1.1"]).connect(name, stream).await.unwrap();
        Client { stream: Box::new(stream), buffer: Vec::new() }
    }

    /// Through a tunnel to the stand-in itself.
    pub async fn tunnelled(tap: &Tap, root: &Path) -> Client {
        let (stream, reply) = Client::open(tap, "api.github.com:443", None).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        let name = ServerName::try_from("api.github.com").unwrap();
        let stream = connector(root, &[b"http/1.1"]).connect(name, stream).await.unwrap();
        Client { stream: Box::new(stream), buffer: Vec::new() }
    }

    /// As a named client: `client+run`.
    pub async fn named(tap: &Tap, user: &str) -> Client {
        Client::connect_as(tap, "api.github.com", "api.github.com", Some(user)).await.unwrap()
    }

    pub async fn connect_as(tap: &Tap, host: &str, server_name: &str, user: Option<&str>) -> std::io::Result<Client> {
        let (stream, reply) = Client::open(tap, &format!("{host}:443"), user).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        let name = ServerName::try_from(server_name.to_owned()).unwrap();
        let stream = connector(&tap.ca(), &[b"http/1.1"]).connect(name, stream).await?;
        Ok(Client { stream: Box::new(stream), buffer: Vec::new() })
    }

    /// What the proxy answers to a CONNECT, and the connection after it.
    pub async fn open(tap: &Tap, authority: &str, user: Option<&str>) -> (TcpStream, Reply) {
        use base64::Engine;
        let mut stream = TcpStream::connect(tap.proxy).await.unwrap();
        let encoded = user.map(|u| base64::engine::general_purpose::STANDARD.encode(format!("{u}:x")));
        let authorization = encoded.map(|e| format!("Proxy-Authorization: Basic {e}\r\n")).unwrap_or_default();
        stream
            .write_all(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{authorization}\r\n").as_bytes())
            .await
            .unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let mut reply = parse(&head);
        let length = reply.field("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        reply.raw = body.clone();
        reply.body = body;
        (stream, reply)
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Sends what may not all be taken.
    pub async fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// GET with `Authorization: token …` and these fields.
    pub async fn get(&mut self, target: &str, token: &str, fields: &[(&str, &str)]) -> Reply {
        self.request("GET", target, token, fields, b"").await
    }

    pub async fn request(
        &mut self,
        method: &str,
        target: &str,
        token: &str,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> Reply {
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: api.github.com\r\n");
        if !token.is_empty() {
            head.push_str(&format!("Authorization: token {token}\r\n"));
        }
        for (name, value) in fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        // In one piece: a second small write would wait for the first one's acknowledgement.
        self.send([head.as_bytes(), body].concat()).await;
        self.reply(method == "HEAD").await
    }

    /// The next response; panics if there is none.
    pub async fn reply(&mut self, head_only: bool) -> Reply {
        let read = tokio::time::timeout(PATIENCE, self.read(head_only)).await.expect("an answer in time");
        read.expect("a response")
    }

    /// The next response, or why there is none. Interim ones are passed over.
    pub async fn read(&mut self, head_only: bool) -> std::io::Result<Reply> {
        loop {
            let end = loop {
                if let Some(i) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                    break i + 4;
                }
                self.more().await?;
            };
            let head: Vec<u8> = self.buffer.drain(..end).collect();
            let mut reply = parse(&head);
            if reply.status == 100 {
                continue;
            }
            if head_only || matches!(reply.status, 204 | 304) {
                return Ok(reply);
            }
            if reply.field("transfer-encoding") == Some("chunked") {
                loop {
                    let line = self.line().await?;
                    let size = usize::from_str_radix(line.trim(), 16).map_err(std::io::Error::other)?;
                    if size == 0 {
                        loop {
                            let line = self.line().await?;
                            if line.is_empty() {
                                break;
                            }
                            reply.trailers.push(line);
                        }
                        break;
                    }
                    while self.buffer.len() < size + 2 {
                        self.more().await?;
                    }
                    reply.raw.extend(self.buffer.drain(..size));
                    self.buffer.drain(..2);
                }
            } else {
                let length: usize = reply.field("content-length").map_or(0, |l| l.parse().unwrap());
                while self.buffer.len() < length {
                    self.more().await?;
                }
                reply.raw = self.buffer.drain(..length).collect();
            }
            reply.body = match reply.field("content-encoding") {
                Some("gzip") => {
                    let mut plain = Vec::new();
                    match flate2::read::GzDecoder::new(&reply.raw[..]).read_to_end(&mut plain) {
                        Ok(_) => plain,
                        Err(_) => Vec::new(),
                    }
                }
                _ => reply.raw.clone(),
            };
            return Ok(reply);
        }
    }

    /// Whether the other side has closed.
    pub async fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        matches!(tokio::time::timeout(PATIENCE, self.stream.read(&mut byte)).await, Ok(Ok(0) | Err(_)))
    }

    async fn line(&mut self) -> std::io::Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            self.more().await?;
        }
    }

    async fn more(&mut self) -> std::io::Result<()> {
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

fn parse(head: &[u8]) -> Reply {
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut response = httparse::Response::new(&mut fields);
    response.parse(head).unwrap_or_else(|e| panic!("{e}: {:?}", String::from_utf8_lossy(head)));
    let mut headers = HeaderMap::new();
    for field in response.headers.iter() {
        headers.append(
            HeaderName::from_bytes(field.name.as_bytes()).unwrap(),
            HeaderValue::from_bytes(field.value).unwrap(),
        );
    }
    Reply { status: response.code.unwrap(), headers, raw: Vec::new(), body: Vec::new(), trailers: Vec::new() }
}
