//! A connection to Redis that is made anew when it is lost. Nobody waits for that: meanwhile there is none.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ::redis::aio::{ConnectionLike, MultiplexedConnection};
use ::redis::cluster::ClusterClient;
use ::redis::cluster_async::ClusterConnection;
use ::redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, IntoConnectionInfo, Pipeline, RedisConnectionInfo, RedisError,
    RedisResult, TlsCertificates, TlsMode, Value,
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use super::servers::{Kind, Servers};
use crate::clock::now_ms;

/// A connection that many use at once.
#[derive(Clone)]
pub(super) enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Connection {
    pub async fn command(&mut self, command: &Cmd) -> RedisResult<Value> {
        let answered = match self {
            Connection::Single(c) => c.req_packed_command(command).await?,
            Connection::Cluster(c) => c.req_packed_command(command).await?,
        };
        // A refusal comes as a value.
        answered.extract_error()
    }

    async fn pipeline(&mut self, pipeline: &Pipeline) -> RedisResult<()> {
        match self {
            Connection::Single(c) => pipeline.exec_async(c).await,
            Connection::Cluster(c) => pipeline.exec_async(c).await,
        }
    }
}

/// How to make one.
enum Maker {
    Single(Box<Client>),
    Cluster(Box<ClusterClient>),
    Sentinel(Box<tokio::sync::Mutex<SentinelClient>>),
}

pub(super) struct Link {
    maker: Maker,
    current: RwLock<Option<Connection>>,
    timeout: Duration,
    /// Milliseconds since `begun` until which it is not asked: it has just failed.
    rests_until: AtomicU64,
    begun: Instant,
    /// When it was last made, in milliseconds since 1970.
    connected_at: AtomicU64,
    wanted: Notify,
    /// What it last failed with; empty: it works.
    trouble: Mutex<String>,
    failing: AtomicBool,
    /// Why it takes no writes, though it answers; none: it does.
    refusing: Mutex<Option<String>>,
    /// What it is, in the log; none: another one speaks for it.
    name: Option<String>,
}

/// How long a server that failed is left alone.
const REST: Duration = Duration::from_millis(500);
/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(2);
/// Written to see whether a server takes writes.
const PROBE: &str = "ghtap:probe";
/// How often it is looked after.
const TICK: Duration = Duration::from_secs(1);

impl Link {
    /// # Errors
    /// The URL or the certificates are not to the client's liking.
    pub fn new(servers: &Servers, ca: Option<&[u8]>, timeout: Duration) -> Result<Link, String> {
        let maker = maker(servers, ca).map_err(|e| format!("{servers}: {}", plain(&e)))?;
        Ok(Link {
            maker,
            current: RwLock::new(None),
            timeout,
            rests_until: AtomicU64::new(0),
            begun: Instant::now(),
            connected_at: AtomicU64::new(0),
            wanted: Notify::new(),
            trouble: Mutex::new("not connected yet".into()),
            failing: AtomicBool::new(true),
            refusing: Mutex::new(None),
            name: Some(servers.to_string()),
        })
    }

    /// The same, for one thread of several: it says nothing.
    pub fn quiet(servers: &Servers, ca: Option<&[u8]>, timeout: Duration) -> Result<Link, String> {
        Ok(Link { name: None, ..Link::new(servers, ca, timeout)? })
    }

    /// Whether there is a connection.
    pub fn is_up(&self) -> bool {
        self.current.read().is_some()
    }

    /// What is wrong; none if it works.
    pub fn trouble(&self) -> Option<String> {
        match self.failing.load(Ordering::Relaxed) {
            true => Some(self.trouble.lock().clone()),
            false => self.refusing.lock().clone(),
        }
    }

    /// When the connection was last made, in milliseconds since 1970.
    pub fn connected_at(&self) -> u64 {
        self.connected_at.load(Ordering::Relaxed)
    }

    /// One command, within the time that there is.
    ///
    /// # Errors
    /// No answer in time, or none at all.
    pub async fn command(&self, command: &Cmd) -> io::Result<Value> {
        let mut connection = self.connection()?;
        let answered = tokio::time::timeout(self.timeout, connection.command(command)).await;
        self.judge(answered.unwrap_or_else(|_| Err(timed_out())))
    }

    /// Several commands, all or none, with more time: nobody waits for them.
    pub async fn write(&self, pipeline: &Pipeline) -> io::Result<()> {
        let mut connection = self.connection()?;
        let patience = self.timeout.max(Duration::from_secs(1));
        let answered = tokio::time::timeout(patience, connection.pipeline(pipeline)).await;
        let answered = answered.unwrap_or_else(|_| Err(timed_out()));
        if answered.is_ok() {
            *self.refusing.lock() = None;
        }
        self.judge(answered)
    }

    fn failed(&self, error: &RedisError) {
        let demoted = is_demoted(error);
        let lost = error.is_io_error() || error.is_connection_dropped() || error.is_timeout();
        if !demoted && !lost {
            // It has answered: what it does not do is write, most likely.
            let why = plain(error);
            if self.refusing.lock().replace(why.clone()).is_none()
                && let Some(server) = &self.name
            {
                tracing::warn!(server, error = why, "Redis takes no writes; nothing new is stored");
            }
            return;
        }
        *self.trouble.lock() = plain(error);
        self.failing.store(true, Ordering::Relaxed);
        if lost {
            let rest = self.now() + u64::try_from(REST.as_millis()).unwrap_or(0);
            self.rests_until.store(rest, Ordering::Relaxed);
        }
        self.wanted.notify_one();
        if demoted || (error.is_connection_dropped() && !matches!(self.maker, Maker::Cluster(_))) {
            *self.current.write() = None;
        }
    }

    /// The connection, if there is one that has not just failed.
    pub fn connection(&self) -> io::Result<Connection> {
        let resting = self.rests_until.load(Ordering::Relaxed) > self.now();
        match self.current.read().clone().filter(|_| !resting) {
            Some(connection) => Ok(connection),
            None => Err(io::Error::new(io::ErrorKind::NotConnected, "Redis cannot be reached")),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn judge<T>(&self, answered: RedisResult<T>) -> io::Result<T> {
        match answered {
            Ok(value) => {
                self.failing.store(false, Ordering::Relaxed);
                Ok(value)
            }
            Err(error) => {
                self.failed(&error);
                Err(io::Error::other(plain(&error)))
            }
        }
    }

    /// Keeps the connection up, for as long as anybody needs it.
    pub async fn keep(self: Arc<Self>) {
        while Arc::strong_count(&self) > 1 {
            let there = self.current.read().clone();
            let tried = match there {
                Some(connection) => tokio::time::timeout(CONNECT, ping(connection)).await,
                None => tokio::time::timeout(CONNECT, self.connect()).await,
            };
            match tried.unwrap_or_else(|_| Err(timed_out())) {
                Ok(()) => {
                    if self.failing.swap(false, Ordering::Relaxed)
                        && self.trouble.lock().drain(..).next().is_some()
                        && let Some(server) = &self.name
                    {
                        tracing::info!(server, "Redis answers");
                    }
                    self.rests_until.store(0, Ordering::Relaxed);
                    if self.refusing.lock().is_some() {
                        // Whether it takes some again.
                        let _ = self.write(::redis::pipe().set_ex(PROBE, "", 10).ignore()).await;
                    }
                }
                Err(error) => {
                    self.failing.store(true, Ordering::Relaxed);
                    let error = plain(&error);
                    let before = std::mem::replace(&mut *self.trouble.lock(), error.clone());
                    if before != error
                        && let Some(server) = &self.name
                    {
                        tracing::warn!(server, %error, "Redis is of no use; going on without it");
                    }
                    *self.current.write() = None;
                }
            }
            let _ = tokio::time::timeout(TICK, self.wanted.notified()).await;
            // A server that refuses at once must not be asked at once again.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn connect(&self) -> RedisResult<()> {
        let config = || {
            // Whoever asks has a clock of his own.
            AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(None)
        };
        let connection = match &self.maker {
            Maker::Single(client) => {
                Connection::Single(client.get_multiplexed_async_connection_with_config(&config()).await?)
            }
            Maker::Cluster(client) => Connection::Cluster(client.get_async_connection().await?),
            Maker::Sentinel(client) => {
                let mut client = client.lock().await;
                Connection::Single(client.get_async_connection_with_config(&config()).await?)
            }
        };
        ping(connection.clone()).await?;
        *self.current.write() = Some(connection);
        self.connected_at.store(now_ms(), Ordering::Relaxed);
        Ok(())
    }
}

/// Whether a server is not, or not any more, the one to talk to.
fn is_demoted(error: &RedisError) -> bool {
    matches!(error.code(), Some("READONLY" | "MASTERDOWN" | "LOADING" | "NOAUTH"))
}

async fn ping(mut connection: Connection) -> RedisResult<()> {
    connection.command(&::redis::cmd("PING")).await.map(|_| ())
}

fn maker(servers: &Servers, ca: Option<&[u8]>) -> RedisResult<Maker> {
    // Only the first of a process counts; ours is the same everywhere.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut login = RedisConnectionInfo::default().set_db(servers.database);
    if let Some(user) = &servers.user {
        login = login.set_username(user);
    }
    if let Some(password) = &servers.password {
        login = login.set_password(password);
    }
    let certificates = || ca.map(|ca| TlsCertificates { client_tls: None, root_cert: Some(ca.to_vec()) });
    let nodes: Vec<ConnectionInfo> = servers
        .addresses()
        .map(|address| address.into_connection_info().map(|info| info.set_redis_settings(login.clone())))
        .collect::<RedisResult<_>>()?;
    match &servers.kind {
        Kind::Single => {
            let node = nodes.into_iter().next().expect("a URL without a host was refused");
            Ok(Maker::Single(Box::new(match (servers.tls, certificates()) {
                (true, Some(certificates)) => Client::build_with_tls(node, certificates)?,
                _ => Client::open(node)?,
            })))
        }
        Kind::Cluster => {
            let mut builder = ClusterClient::builder(nodes).connection_timeout(CONNECT).retries(2);
            if let (true, Some(certificates)) = (servers.tls, certificates()) {
                builder = builder.certs(certificates);
            }
            Ok(Maker::Cluster(Box::new(builder.build()?)))
        }
        Kind::Sentinel(master) => {
            let mut builder = SentinelClientBuilder::new(servers.addresses(), master, SentinelServerType::Master)?
                .set_client_to_redis_db(servers.database);
            if let Some(user) = &servers.user {
                builder = builder.set_client_to_redis_username(user);
            }
            if let Some(password) = &servers.password {
                builder = builder.set_client_to_redis_password(password);
            }
            if servers.tls {
                builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
                if let Some(certificates) = certificates() {
                    builder = builder.set_client_to_redis_certificates(certificates.clone());
                    builder = builder.set_client_to_sentinel_certificates(certificates);
                }
            }
            Ok(Maker::Sentinel(Box::new(tokio::sync::Mutex::new(builder.build()?))))
        }
    }
}

fn timed_out() -> RedisError {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time").into()
}

/// An error in one line, and without what was sent.
fn plain(error: &RedisError) -> String {
    let text = error.to_string();
    match error.code() {
        Some("MOVED" | "CROSSSLOT") => "this server is one of a cluster; use redis-cluster://".into(),
        _ => text.lines().next().unwrap_or_default().chars().take(200).collect(),
    }
}
