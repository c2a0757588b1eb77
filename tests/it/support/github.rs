//! A stand-in for GitHub: TLS on a free port, its ETag recipe, its quota, its pages, and a record of all that
//! arrived. It can misbehave on command.

use std::collections::HashMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::digest;
use http::{HeaderMap, HeaderName, HeaderValue};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// One request that arrived.
#[derive(Clone, Debug)]
pub struct Arrived {
    pub method: String,
    pub target: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub status: u16,
    pub charged: bool,
}

/// What it does instead of answering well.
#[derive(Clone, Debug)]
pub enum Misbehaviour {
    /// Answers with this status and message.
    Status(u16, &'static str),
    /// As above, with these fields.
    Refuse(u16, &'static str, Vec<(&'static str, String)>),
    /// Sends half of the content and resets.
    ResetMidBody,
    /// Says a longer length than it sends, and closes.
    LieAboutLength,
    /// 304, although nobody asked.
    UnaskedNotModified,
    /// A 200 whose gzip is broken.
    BrokenGzip,
    /// Reads, and never answers.
    NeverAnswer,
    /// Closes without an answer.
    Close,
    /// Sends these bytes as they are, and closes.
    Raw(Vec<u8>),
    /// Answers well, after this long.
    Late(Duration),
    /// Closes without an answer, after this long.
    LateThenClose(Duration),
    /// Ends the content with the connection, without a length.
    Unframed,
    /// Sends chunks and a trailer.
    Trailer,
    /// Never compresses, always 200: an entity tag that no recipe makes.
    OtherTag,
}

/// One resource.
#[derive(Clone, Debug, Default)]
pub struct Resource {
    pub body: Vec<u8>,
    pub fields: Vec<(String, String)>,
    /// Bodies for certain values of `Authorization`; an empty one is a 404.
    pub by_credential: HashMap<String, Vec<u8>>,
    pub no_etag: bool,
    pub no_last_modified: bool,
    pub cache_control: Option<String>,
    pub content_type: Option<String>,
    pub status: u16,
}

#[derive(Default)]
struct State {
    resources: HashMap<String, Resource>,
    /// Items of a listing, by path.
    listings: HashMap<String, Vec<Value>>,
    misbehaviour: HashMap<String, Misbehaviour>,
    arrived: Vec<Arrived>,
    used: HashMap<String, u64>,
    /// What a credential may use in an hour, where that is not the usual.
    limits: HashMap<String, u64>,
    /// Until when, in seconds since 1970.
    reset: Option<u64>,
    /// Credentials that are not taken.
    refused: Vec<String>,
    /// What a GraphQL request costs.
    points: u64,
    /// Closes whatever comes.
    down: bool,
    minted: u64,
    /// `Last-Modified` of everything, in seconds past a fixed hour.
    modified: u64,
    connections: u64,
}

/// The stand-in.
#[derive(Clone)]
pub struct GitHub {
    pub address: SocketAddr,
    /// Its root, PEM.
    pub ca: PathBuf,
    state: Arc<Mutex<State>>,
    _dir: Arc<tempfile::TempDir>,
}

const LIMIT: u64 = 5000;

/// A connection to the stand-in.
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    async fn read_buf(&mut self, buffer: &mut Vec<u8>) -> std::io::Result<usize> {
        match self {
            Stream::Plain(s) => s.read_buf(buffer).await,
            Stream::Tls(s) => s.read_buf(buffer).await,
        }
    }

    async fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Stream::Plain(s) => s.write_all(bytes).await,
            Stream::Tls(s) => s.write_all(bytes).await,
        }
    }

    async fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Stream::Plain(s) => s.flush().await,
            Stream::Tls(s) => s.flush().await,
        }
    }

    async fn shutdown(&mut self) -> std::io::Result<()> {
        match self {
            Stream::Plain(s) => s.shutdown().await,
            Stream::Tls(s) => s.shutdown().await,
        }
    }
}

impl GitHub {
    pub async fn start() -> GitHub {
        GitHub::start_for(&["api.github.com", "github.com", "ghe.example.com"]).await
    }

    pub async fn start_for(hosts: &[&str]) -> GitHub {
        let dir = tempfile::tempdir().unwrap();
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca_cert = ca.self_signed(&ca_key).unwrap();
        let path = dir.path().join("upstream-ca.pem");
        std::fs::write(&path, ca_cert.pem()).unwrap();
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = hosts.iter().map(|h| h.to_string()).collect();
        let mut leaf = CertificateParams::new(names).unwrap();
        leaf.use_authority_key_identifier_extension = true;
        let cert = leaf.signed_by(&key, &Issuer::from_params(&ca, &ca_key)).unwrap();
        std::fs::write(dir.path().join("leaf.pem"), cert.pem()).unwrap();
        std::fs::write(dir.path().join("leaf.key"), key.serialize_pem()).unwrap();
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config =
            rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_no_client_auth().with_single_cert(vec![cert.der().clone()], private).unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let github =
            GitHub { address: listener.local_addr().unwrap(), ca: path, state: Arc::default(), _dir: Arc::new(dir) };
        let serving = github.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (github, acceptor) = (serving.clone(), acceptor.clone());
                github.state.lock().unwrap().connections += 1;
                if github.state.lock().unwrap().down {
                    continue;
                }
                tokio::spawn(async move {
                    let _ = stream.set_nodelay(true);
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let _ = github.connection(Stream::Tls(Box::new(stream))).await;
                    }
                });
            }
        });
        github
    }

    /// Certificate and key files, for another server that is to be trusted alike.
    pub fn leaf(&self) -> (PathBuf, PathBuf) {
        (self._dir.path().join("leaf.pem"), self._dir.path().join("leaf.key"))
    }

    /// A JSON resource at a path and query.
    pub fn set(&self, target: &str, body: Value) {
        self.put(target, Resource { body: body.to_string().into_bytes(), ..Resource::default() });
    }

    pub fn put(&self, target: &str, resource: Resource) {
        let mut state = self.state.lock().unwrap();
        state.modified += 1;
        state.resources.insert(target.to_owned(), resource);
    }

    pub fn remove(&self, target: &str) {
        self.state.lock().unwrap().resources.remove(target);
    }

    /// A listing of numbered items, paged as GitHub does.
    pub fn list(&self, path: &str, items: usize) {
        let items =
            (1..=items).map(|n| json!({ "number": n, "title": format!("item {n}"), "state": "open" })).collect();
        self.state.lock().unwrap().listings.insert(path.to_owned(), items);
    }

    pub fn misbehave(&self, path: &str, how: Misbehaviour) {
        self.state.lock().unwrap().misbehaviour.insert(path.to_owned(), how);
    }

    pub fn behave(&self) {
        self.state.lock().unwrap().misbehaviour.clear();
    }

    /// All that arrived since the last time it was asked.
    pub fn arrived(&self) -> Vec<Arrived> {
        std::mem::take(&mut self.state.lock().unwrap().arrived)
    }

    pub fn charged(&self) -> u64 {
        self.state.lock().unwrap().used.values().sum()
    }

    /// Somebody else uses a credential's quota, who does not go through the tap.
    pub fn use_quota(&self, token: &str, requests: u64) {
        self.use_quota_of(&format!("token {token}"), requests);
    }

    pub fn use_quota_of(&self, authorization: &str, requests: u64) {
        *self.state.lock().unwrap().used.entry(authorization.to_owned()).or_default() += requests;
    }

    /// A credential may use so many requests.
    pub fn limit(&self, authorization: &str, requests: u64) {
        self.state.lock().unwrap().limits.insert(authorization.to_owned(), requests);
    }

    /// When the hour is over, in seconds since 1970.
    pub fn resets_at(&self, seconds: u64) {
        self.state.lock().unwrap().reset = Some(seconds);
    }

    /// A credential is not taken any more.
    pub fn refuse(&self, authorization: &str) {
        self.state.lock().unwrap().refused.push(authorization.to_owned());
    }

    /// What a credential has used.
    pub fn used(&self, authorization: &str) -> u64 {
        self.state.lock().unwrap().used.get(authorization).copied().unwrap_or(0)
    }

    /// What a GraphQL request costs from now on.
    pub fn points(&self, points: u64) {
        self.state.lock().unwrap().points = points;
    }

    /// Goes away, or comes back: connections are closed as soon as they come.
    pub fn down(&self, down: bool) {
        self.state.lock().unwrap().down = down;
    }

    /// The same without TLS, on another port.
    pub async fn plainly(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let github = serving.clone();
                if github.state.lock().unwrap().down {
                    continue;
                }
                tokio::spawn(async move {
                    let _ = stream.set_nodelay(true);
                    let _ = github.connection(Stream::Plain(stream)).await;
                });
            }
        });
        address
    }

    pub fn forget_quota(&self) {
        self.state.lock().unwrap().used.clear();
    }

    pub fn connections(&self) -> u64 {
        self.state.lock().unwrap().connections
    }

    async fn connection(&self, mut stream: Stream) -> std::io::Result<()> {
        let mut buffer = Vec::new();
        while let Some(request) = read_request(&mut stream, &mut buffer).await? {
            let path = request.target.split('?').next().unwrap().to_owned();
            let how = {
                let state = self.state.lock().unwrap();
                if state.down {
                    return Ok(());
                }
                state.misbehaviour.get(&path).or_else(|| state.misbehaviour.get("*")).cloned()
            };
            if let Some(Misbehaviour::Late(by) | Misbehaviour::LateThenClose(by)) = &how {
                tokio::time::sleep(*by).await;
            }
            let answer = self.answer(request, how.as_ref());
            let close = answer.close;
            stream.write_all(&answer.bytes).await?;
            stream.flush().await?;
            if let Some(Misbehaviour::NeverAnswer) = how {
                tokio::time::sleep(Duration::from_secs(600)).await;
            }
            if let Some(Misbehaviour::ResetMidBody) = how {
                // An abrupt end, without TLS's own goodbye.
                let tcp = match &mut stream {
                    Stream::Plain(tcp) => tcp,
                    Stream::Tls(tls) => tls.get_mut().0,
                };
                let _ = rustix::net::sockopt::set_socket_linger(&*tcp, Some(Duration::ZERO));
                return Ok(());
            }
            if close {
                stream.shutdown().await?;
                return Ok(());
            }
        }
        Ok(())
    }

    fn answer(&self, mut request: Arrived, how: Option<&Misbehaviour>) -> Answer {
        let mut state = self.state.lock().unwrap();
        let credential = text(&request.headers, "authorization").unwrap_or_default();
        let mut reply = match how {
            Some(Misbehaviour::Status(status, message)) => Reply::message(*status, message),
            Some(Misbehaviour::Refuse(status, message, fields)) => {
                let mut reply = Reply::message(*status, message);
                reply.fields.extend(fields.iter().map(|(n, v)| (n.to_string(), v.clone())));
                reply
            }
            Some(Misbehaviour::UnaskedNotModified) => Reply { status: 304, ..Reply::default() },
            _ if state.refused.contains(&credential) => Reply::message(401, "Bad credentials"),
            _ if state.is_spent(&request, &credential) => Reply::message(403, "API rate limit exceeded for user ID 1."),
            _ => state.resource(&request, &credential),
        };
        let anonymous = credential.is_empty();
        let free = request.target == "/rate_limit" || (reply.status == 304 && !anonymous);
        let limit = if anonymous { 60 } else { state.limits.get(&credential).copied().unwrap_or(LIMIT) };
        let is_graphql = request.target.ends_with("/graphql");
        let price = if is_graphql { state.points.max(1) } else { 1 };
        let reset = state.reset.unwrap_or(1_999_999_999);
        let whose = if is_graphql { format!("graphql {credential}") } else { credential.clone() };
        let used = state.used.entry(whose).or_default();
        *used += if free { 0 } else { price };
        let used = *used;
        request.status = reply.status;
        request.charged = !free;
        let head_only = request.method == "HEAD" || reply.status == 304 || reply.status == 204;
        state.arrived.push(request);
        for (name, value) in [
            ("Date", "Tue, 03 Mar 2026 12:00:00 GMT".to_owned()),
            ("X-RateLimit-Limit", limit.to_string()),
            ("X-RateLimit-Remaining", limit.saturating_sub(used).to_string()),
            ("X-RateLimit-Used", used.to_string()),
            ("X-RateLimit-Reset", reset.to_string()),
            ("X-RateLimit-Resource", if is_graphql { "graphql" } else { "core" }.to_owned()),
            ("X-GitHub-Request-Id", format!("R{used}")),
        ] {
            if !reply.fields.iter().any(|(n, _)| n.eq_ignore_ascii_case(name)) {
                reply.fields.push((name.to_owned(), value));
            }
        }
        reply.write(head_only, how)
    }
}

impl State {
    /// Whether a credential has nothing left. Minting is another's quota.
    fn is_spent(&self, request: &Arrived, credential: &str) -> bool {
        let limit = self.limits.get(credential);
        !request.target.starts_with("/app/")
            && request.target != "/rate_limit"
            && limit.is_some_and(|l| self.used.get(credential).copied().unwrap_or(0) >= *l)
    }

    fn resource(&mut self, request: &Arrived, credential: &str) -> Reply {
        let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
        match (request.method.as_str(), path) {
            ("POST", p) if p.starts_with("/app/installations/") => {
                self.minted += 1;
                let token = format!("ghs_{:036}", self.minted);
                return Reply::json(
                    201,
                    &json!({ "token": token, "expires_at": "2099-01-01T00:00:00Z", "permissions": {} }),
                );
            }
            ("GET", p) if p.ends_with("/installation") => {
                let owner = p.split('/').nth(2).unwrap_or_default();
                let id = match owner {
                    "nobody" => return Reply::message(404, "Not Found"),
                    "beta" => 8,
                    _ => 7,
                };
                let login = if id == 8 { "beta" } else { "acme" };
                return Reply::json(
                    200,
                    &json!({ "id": id, "app_id": 1, "app_slug": "packit", "account": { "login": login } }),
                );
            }
            ("GET", "/app") => return Reply::json(200, &json!({ "id": 1, "slug": "packit" })),
            ("GET", p) if p.starts_with("/app/installations/") => {
                return Reply::json(200, &json!({ "id": 7, "app_slug": "packit", "account": { "login": "acme" } }));
            }
            ("POST", "/graphql" | "/api/graphql") => {
                let node = json!({ "number": 1, "title": "pr 1", "state": "OPEN", "url": "https://github.com/o/r/pull/1", "headRefName": "topic",
                    "headRepositoryOwner": { "login": "o" }, "isCrossRepository": false, "isDraft": false,
                    "createdAt": "2024-01-01T00:00:00Z", "updatedAt": "2024-01-01T00:00:00Z" });
                let mut data = json!({ "repository": { "pullRequests": { "totalCount": 1, "nodes": [node],
                    "pageInfo": { "hasNextPage": false, "endCursor": null } } } });
                if String::from_utf8_lossy(&request.body).contains("rateLimit") {
                    data["rateLimit"] = json!({ "cost": self.points });
                }
                return Reply::json(200, &json!({ "data": data }));
            }
            ("POST" | "PUT" | "PATCH", _) => {
                return Reply::json(
                    201,
                    &json!({ "state": "success", "context": "ctx", "number": 1, "received": request.body.len() }),
                );
            }
            ("DELETE", _) => return Reply { status: 204, ..Reply::default() },
            ("GET", "/rate_limit") => return Reply::json(200, &json!({ "resources": {} })),
            _ => {}
        }
        if let Some(items) = self.listings.get(path) {
            return page(path, query, items).conditional(request, self.modified);
        }
        let Some(resource) = self.resources.get(&request.target) else { return Reply::message(404, "Not Found") };
        let body = resource.by_credential.get(credential).unwrap_or(&resource.body);
        if body.is_empty() && resource.by_credential.contains_key(credential) {
            return Reply::message(404, "Not Found");
        }
        let mut reply = Reply {
            status: if resource.status == 0 { 200 } else { resource.status },
            body: body.clone(),
            fields: resource.fields.clone(),
            ..Reply::default()
        };
        reply.no_etag = resource.no_etag;
        reply.no_last_modified = resource.no_last_modified;
        reply.cache_control = resource.cache_control.clone();
        if let Some(content_type) = &resource.content_type {
            reply.content_type = content_type.clone();
        }
        if reply.status == 200 { reply.conditional(request, self.modified) } else { reply }
    }
}

/// A page of a listing, with GitHub's `Link`.
fn page(path: &str, query: &str, items: &[Value]) -> Reply {
    let parameter =
        |name: &str| query.split('&').find_map(|p| p.strip_prefix(name)?.strip_prefix('=')?.parse::<usize>().ok());
    let size = parameter("per_page").unwrap_or(30).min(100);
    let number = parameter("page").unwrap_or(1);
    let last = items.len().div_ceil(size).max(1);
    let shown: Vec<_> = items.iter().skip((number - 1) * size).take(size).collect();
    let others: Vec<_> = query.split('&').filter(|p| !p.is_empty() && !p.starts_with("page=")).collect();
    let link = |n: usize, rel: &str| {
        let mut query = others.clone();
        let page = format!("page={n}");
        query.push(&page);
        format!("<https://api.github.com{path}?{}>; rel=\"{rel}\"", query.join("&"))
    };
    let mut links = Vec::new();
    if number > 1 {
        links.push(link(number - 1, "prev"));
    }
    if number < last {
        links.push(link(number + 1, "next"));
        links.push(link(last, "last"));
    }
    if number > 1 {
        links.push(link(1, "first"));
    }
    let mut reply = Reply::json(200, &json!(shown));
    if !links.is_empty() {
        reply.fields.push(("Link".into(), links.join(", ")));
    }
    reply
}

#[derive(Default)]
struct Reply {
    status: u16,
    body: Vec<u8>,
    fields: Vec<(String, String)>,
    content_type: String,
    no_etag: bool,
    no_last_modified: bool,
    cache_control: Option<String>,
}

struct Answer {
    bytes: Vec<u8>,
    close: bool,
}

impl Reply {
    fn json(status: u16, body: &Value) -> Reply {
        Reply { status, body: body.to_string().into_bytes(), ..Reply::default() }
    }

    fn message(status: u16, message: &str) -> Reply {
        Reply::json(
            status,
            &json!({ "message": message, "documentation_url": "https://docs.github.com/rest", "status": status.to_string() }),
        )
    }

    /// Tags, answers a precondition, prints prettily and compresses: in GitHub's order.
    fn conditional(mut self, request: &Arrived, modified: u64) -> Reply {
        let mut context = digest::Context::new(&digest::SHA256);
        for name in ["accept", "authorization", "cookie"] {
            if let Some(value) = text(&request.headers, name) {
                context.update(value.as_bytes());
                context.update(b":");
            }
        }
        context.update(&self.body);
        let tag: String = context.finish().as_ref().iter().map(|b| format!("{b:02x}")).collect();
        let last_modified = format!("Tue, 03 Mar 2026 10:{:02}:{:02} GMT", modified / 60 % 60, modified % 60);
        let anonymous = text(&request.headers, "authorization").is_none();
        let vary = if anonymous {
            "Accept,Accept-Encoding, Accept, X-Requested-With"
        } else {
            "Accept, Authorization, Cookie, X-GitHub-OTP,Accept-Encoding, Accept, X-Requested-With"
        };
        self.fields.push(("Vary".into(), vary.into()));
        let scope = if anonymous { "public" } else { "private" };
        let cache_control = self.cache_control.clone().unwrap_or(format!("{scope}, max-age=60, s-maxage=60"));
        self.fields.push(("Cache-Control".into(), cache_control));
        if !anonymous {
            let credential = text(&request.headers, "authorization").unwrap();
            let scopes: String = credential.chars().rev().take(4).collect();
            self.fields.push(("X-OAuth-Scopes".into(), format!("scopes-of-{scopes}")));
        }
        let current = match (text(&request.headers, "if-none-match"), text(&request.headers, "if-modified-since")) {
            (Some(tags), _) if !self.no_etag => {
                tags.split(',').any(|t| t.trim().trim_start_matches("W/").trim_matches('"') == tag)
            }
            (None, Some(since)) if !self.no_last_modified => since == last_modified,
            _ => false,
        };
        if !self.no_last_modified {
            self.fields.push(("Last-Modified".into(), last_modified));
        }
        if current {
            self.fields.retain(|(n, _)| n != "Link");
            self.fields.push(("ETag".into(), format!("\"{tag}\"")));
            self.status = 304;
            self.body.clear();
            return self;
        }
        self.fields.push(("X-GitHub-Media-Type".into(), "github.v3; format=json".into()));
        let agent = text(&request.headers, "user-agent").unwrap_or_default();
        if ["curl", "Wget", "Safari", "Firefox"].iter().any(|a| agent.contains(a))
            && let Ok(value) = serde_json::from_slice::<Value>(&self.body)
        {
            self.body = format!("{value:#}\n").into_bytes();
        }
        let gzip = text(&request.headers, "accept-encoding").is_some_and(|e| e.contains("gzip"));
        if gzip {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(&self.body).unwrap();
            self.body = encoder.finish().unwrap();
            self.fields.push(("Content-Encoding".into(), "gzip".into()));
        }
        if !self.no_etag {
            self.fields.push(("ETag".into(), if gzip { format!("W/\"{tag}\"") } else { format!("\"{tag}\"") }));
        }
        self
    }

    fn write(mut self, head_only: bool, how: Option<&Misbehaviour>) -> Answer {
        let mut close = false;
        if let Some(Misbehaviour::BrokenGzip) = how {
            self.fields.retain(|(n, _)| n != "Content-Encoding");
            self.fields.push(("Content-Encoding".into(), "gzip".into()));
            self.body = b"\x1f\x8b\x08\x00 this is not gzip".to_vec();
        }
        if let Some(Misbehaviour::OtherTag) = how {
            self.fields.retain(|(n, _)| n != "ETag");
            self.fields.push(("ETag".into(), format!("\"other-{}\"", self.body.len())));
        }
        if let Some(Misbehaviour::Raw(bytes)) = how {
            return Answer { bytes: bytes.clone(), close: true };
        }
        if let Some(Misbehaviour::NeverAnswer) = how {
            return Answer { bytes: Vec::new(), close: false };
        }
        if let Some(Misbehaviour::Close | Misbehaviour::LateThenClose(_)) = how {
            return Answer { bytes: Vec::new(), close: true };
        }
        let content_type =
            if self.content_type.is_empty() { "application/json; charset=utf-8" } else { &self.content_type };
        let mut out = format!("HTTP/1.1 {} X\r\n", self.status).into_bytes();
        let mut field = |name: &str, value: &str| out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        for (name, value) in &self.fields {
            field(name, value);
        }
        if !matches!(self.status, 204 | 304) {
            field("Content-Type", content_type);
            match how {
                Some(Misbehaviour::Unframed) => field("Connection", "close"),
                Some(Misbehaviour::Trailer) => {
                    field("Trailer", "X-Checksum");
                    field("Transfer-Encoding", "chunked");
                }
                Some(Misbehaviour::LieAboutLength) => field("Content-Length", &(self.body.len() + 100).to_string()),
                _ => field("Content-Length", &self.body.len().to_string()),
            }
        }
        out.extend_from_slice(b"\r\n");
        let body = match how {
            _ if head_only => &[][..],
            Some(Misbehaviour::ResetMidBody) => &self.body[..self.body.len() / 2],
            _ => &self.body,
        };
        if let (Some(Misbehaviour::Trailer), false) = (how, head_only) {
            out.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
            out.extend_from_slice(body);
            out.extend_from_slice(b"\r\n0\r\nX-Checksum: abc\r\n\r\n");
        } else {
            out.extend_from_slice(body);
        }
        close |= matches!(how, Some(Misbehaviour::LieAboutLength | Misbehaviour::Unframed));
        Answer { bytes: out, close }
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    let all: Vec<_> =
        headers.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

/// Reads one request, content and all; none when the connection has ended.
async fn read_request(stream: &mut Stream, buffer: &mut Vec<u8>) -> std::io::Result<Option<Arrived>> {
    let mut end = None;
    while end.is_none() {
        end = buffer.windows(4).position(|w| w == b"\r\n\r\n").map(|i| i + 4);
        if end.is_none() && stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
    let head: Vec<u8> = buffer.drain(..end.unwrap()).collect();
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut request = httparse::Request::new(&mut fields);
    request.parse(&head).map_err(std::io::Error::other)?;
    let mut headers = HeaderMap::new();
    for field in request.headers.iter() {
        headers.append(
            HeaderName::from_bytes(field.name.as_bytes()).unwrap(),
            HeaderValue::from_bytes(field.value).unwrap(),
        );
    }
    let mut arrived = Arrived {
        method: request.method.unwrap().into(),
        target: request.path.unwrap().into(),
        headers,
        body: Vec::new(),
        status: 0,
        charged: false,
    };
    if text(&arrived.headers, "expect").is_some() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    if text(&arrived.headers, "transfer-encoding").is_some() {
        loop {
            let line = read_line(stream, buffer).await?;
            let size =
                usize::from_str_radix(line.split(';').next().unwrap().trim(), 16).map_err(std::io::Error::other)?;
            let data = take(stream, buffer, size).await?;
            arrived.body.extend(data);
            if size == 0 {
                // Trailers, up to the empty line.
                loop {
                    let line = read_line(stream, buffer).await?;
                    let Some((name, value)) = line.split_once(':') else { break };
                    arrived
                        .headers
                        .append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.trim().parse().unwrap());
                }
                break;
            }
            read_line(stream, buffer).await?;
        }
    } else if let Some(length) = text(&arrived.headers, "content-length").and_then(|l| l.parse().ok()) {
        arrived.body = take(stream, buffer, length).await?;
    }
    Ok(Some(arrived))
}

async fn take(stream: &mut Stream, buffer: &mut Vec<u8>, size: usize) -> std::io::Result<Vec<u8>> {
    while buffer.len() < size {
        if stream.read_buf(buffer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(buffer.drain(..size).collect())
}

async fn read_line(stream: &mut Stream, buffer: &mut Vec<u8>) -> std::io::Result<String> {
    loop {
        if let Some(end) = buffer.windows(2).position(|w| w == b"\r\n") {
            let line: Vec<u8> = buffer.drain(..end + 2).collect();
            return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}
