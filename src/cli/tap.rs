//! Putting the parts of a tap together, and taking them down in order.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::Failure;
use super::apis;
use super::certs::Files;
use super::place;
use super::store;
use crate::admin::{self, Access, Admin};
use crate::calls::ledger::{self, Keep, Ledger};
use crate::clients::{Caller, Clients};
use crate::config::{Switch, Tap as Config, Upstream};
use crate::drain::{self, Draining};
use crate::exchange::{Allowed, Exchange, Outages, Parties, Settings, now_ms};
use crate::github::API_HOST;
use crate::github::credentials::Credentials;
use crate::github::hosts::{UPLOADS_HOST, api_prefix};
use crate::metrics::Metrics;
use crate::origin::dial::{Dialer, Target, UpstreamProxy};
use crate::origin::{Limits, Origin};
use crate::pool::{self, Pool};
use crate::proxy::{Patience, Proxy, Reverse};
use crate::server::{self, Speaks};
use crate::tls::authority::Authority;
use crate::tls::{files, roots};
use crate::workers::Workers;

/// Listeners that are bound already: what fails here fails before anything else is begun.
pub struct Listeners {
    pub proxy: TcpListener,
    pub admin: Option<TcpListener>,
    pub tls: Option<TcpListener>,
}

/// Where a tap keeps what it stores and counts, when that is not the data directory.
#[derive(Default)]
pub struct Apart {
    pub ledger: Option<PathBuf>,
    pub memory_only: bool,
    pub caller: Option<Caller>,
}

/// What only a tap that serves others has.
#[derive(Default)]
pub struct Serving {
    pub clients: Vec<(ipnet::IpNet, String)>,
    pub clients_file: Option<PathBuf>,
    pub require_proxy_auth: bool,
    /// What our own commands name themselves with.
    pub own_secret: Option<String>,
    pub admin: Access,
    /// The APIs that requests for our own address are for; none: github.com's.
    pub upstream: Vec<Upstream>,
    pub public_url: Option<String>,
    pub allow: Vec<String>,
    pub user_ttl: Duration,
    pub offline_after: u32,
    pub status_page: Option<(Target, String)>,
    pub status_every: Duration,
    pub clients_only: bool,
    pub pool: pool::Found,
    pub pool_wait: Duration,
    pub pool_padding: Duration,
}

/// A tap that runs.
pub struct Running {
    pub exchange: Arc<Exchange>,
    pub files: Files,
    pub proxy: SocketAddr,
    pub admin: Option<SocketAddr>,
    pub tls: Option<SocketAddr>,
    drain: Draining,
    ended: mpsc::Receiver<()>,
    keeper: JoinHandle<()>,
    watcher: JoinHandle<()>,
    workers: Arc<Workers>,
}

/// Binds an address.
pub async fn bind(address: SocketAddr, option: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(address)
        .await
        .map_err(|e| Failure::new(format_args!("cannot listen on {address}: {e}; give another address with {option}")))
}

/// Starts a tap.
pub async fn start(config: &Config, listeners: Listeners, apart: Apart, serving: Serving) -> Result<Running, Failure> {
    let data_dir = config.places.data_dir();
    let ca = files::open(&data_dir, &config.intercept, config.unconstrained_root).map_err(Failure::new)?;
    if let Some(more) = ca.hosts.iter().find(|h| !config.intercept.contains(h)) {
        // It may name what it need not: harmless, unless it is stolen.
        let wanted = config.intercept.join(",");
        tracing::warn!(
            "the CA may also name {more}, which is not intercepted; to narrow it: ghtap ca rotate --intercept {wanted}"
        );
    }
    let published = Files::publish(&config.places.certs_dir(), &ca)?;
    let authority = Authority::new(data_dir.clone(), ca, config.intercept.clone()).map_err(Failure::new)?;
    let authority = Arc::new(authority);
    let secret = match &config.secret_file {
        Some(path) => place::shared_secret(path)?,
        None => place::secret(&data_dir)?,
    };

    let extra = match &config.upstream_ca {
        Some(path) => {
            roots::pem_file(path).map_err(|e| Failure::new(format_args!("--upstream-ca {}: {e}", path.display())))?
        }
        None => Vec::new(),
    };
    let proxy = config.upstream_proxy.as_deref().map(UpstreamProxy::parse).transpose();
    let proxy = proxy.map_err(|e| Failure::new(format_args!("--upstream-proxy: {e}")))?;
    let local = |l: &TcpListener| l.local_addr().map_err(Failure::new);
    let proxy_address = local(&listeners.proxy)?;
    let admin_address = listeners.admin.as_ref().map(local).transpose()?;
    let tls_address = listeners.tls.as_ref().map(local).transpose()?;
    let dialer = Arc::new(Dialer {
        own: [Some(proxy_address), admin_address, tls_address].into_iter().flatten().collect(),
        resolve: config.resolve.iter().map(|r| ((r.host.clone(), r.port), r.address)).collect(),
        deny: config.tunnel_deny.clone(),
        proxy,
        tls: tokio_rustls::TlsConnector::from(roots::client_config(&extra)),
        timeout: config.connect_timeout,
        resolver: tokio::runtime::Handle::current(),
    });
    let limits = Limits {
        response: config.upstream_timeout,
        idle: config.upstream_timeout,
        concurrent: config.upstream_concurrency as usize,
        idle_connections: 64,
    };
    let threads =
        config.threads.map_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()), usize::from);
    let workers =
        Workers::start(threads).map_err(|e| Failure::new(format_args!("{threads} threads cannot be started: {e}")))?;
    let workers = Arc::new(workers);
    let origin = Arc::new(Origin::new(dialer.clone(), limits, workers.count()));

    let store = Arc::new(store::open(config, apart.memory_only, &data_dir).await?);
    let ledger_dir = apart.ledger.unwrap_or_else(|| data_dir.clone());
    let keeping = Keep { run_idle: config.run_idle, runs: config.ledger_retention };
    let ledger = Ledger::open(&ledger_dir, keeping)
        .map_err(|e| Failure::new(format_args!("the ledger below {} cannot be opened: {e}", ledger_dir.display())))?;
    let ledger = Arc::new(ledger);
    let metrics = Arc::new(Metrics::new());

    let settings = Settings {
        freshness: config.freshness,
        not_found_ttl: config.not_found_ttl,
        stale_max_age: config.stale_max_age,
        expected_etag: config.expected_etag == Switch::On,
        // One object must not displace all others, nor lead over the limit.
        max_object_bytes: config.max_object_bytes.min(config.store_max_bytes / 10),
        upload_idle: config.client_timeout,
        graphql_ttl: config.graphql_ttl,
        pool_wait: serving.pool_wait,
        clients_only: serving.clients_only,
        several_realms: apis::realms(&config.intercept, &serving.upstream).len() > 1,
        pseudonym: format!(
            "ghtap-{}",
            crate::github::etag::hex(&aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &secret).as_ref()[..4])
        ),
    };
    for (digits, name) in &config.credential_name {
        ledger.name_credential(digits, name).map_err(Failure::new)?;
    }
    let credentials = Credentials::new(&secret).with_names(config.credential_name.clone());
    for (id, principal) in ledger.known.principals().map_err(Failure::new)? {
        credentials.remember(id, principal);
    }
    for (id, installation) in ledger.known.installations().map_err(Failure::new)? {
        credentials.remember_installation(id, &installation);
    }
    let clients = Clients::new(
        serving.clients,
        serving.clients_file,
        serving.require_proxy_auth,
        apart.caller,
        &secret,
        serving.own_secret,
    );
    let clients = Arc::new(clients.map_err(Failure::new)?);
    let pool_realm = apis::of_the_pool(&config.intercept, &serving.upstream);
    if serving.clients_only && !clients.has_registry() {
        return Err(Failure::new(
            "--clients-only needs a registry: --clients-file FILE, YAML with version: 1 and clients",
        ));
    }
    let upstream: Vec<_> = match serving.upstream.is_empty() {
        true => vec![(true, API_HOST.to_owned(), 443, String::new())],
        false => serving.upstream.into_iter().map(|u| (u.tls, u.host, u.port, u.base)).collect(),
    };
    let uploads = config.intercept.iter().any(|h| h == UPLOADS_HOST);
    let reverse = Reverse::new(&upstream, serving.public_url, uploads).map_err(Failure::new)?;
    let mut watched: Vec<(Target, String)> = reverse.targets().collect();
    for host in &config.intercept {
        let target = Target { host: host.as_str().into(), port: 443, tls: true, guarded: false };
        let base = if api_prefix(host).is_empty() { "" } else { "/api/v3" };
        if !watched.iter().any(|(t, _)| *t == target) {
            watched.push((target, base.to_owned()));
        }
    }
    let parties = Parties {
        clients: clients.clone(),
        allowed: Allowed::new(serving.allow, serving.user_ttl),
        pool: Pool::new(serving.pool, &pool_realm, serving.pool_padding).map_err(Failure::new)?,
        outages: Outages::new(serving.offline_after, watched),
    };
    let exchange = Arc::new(Exchange::new(settings, origin, store, ledger, metrics.clone(), credentials, parties));
    let watching = exchange.clone();
    let (page, every) = (serving.status_page, serving.status_every);
    let watcher = tokio::spawn(async move { watching.watch(page, every).await });

    let proxy = Arc::new(Proxy {
        exchange: exchange.clone(),
        authority: authority.clone(),
        dialer,
        metrics,
        hosts: config.intercept.iter().map(|h| h.as_str().into()).collect(),
        tunnel_ports: config.tunnel_ports.clone(),
        patience: Patience {
            head: config.client_timeout,
            handshake: config.client_timeout,
            idle: config.idle_timeout,
            tunnel: config.tunnel_idle,
        },
        clients: clients.clone(),
        reverse,
        ledger: ledger_dir.join(ledger::DIRECTORY),
    });
    let (drain, draining) = drain::drain();
    let (alive, ended) = mpsc::channel(1);
    let limit = Arc::new(Semaphore::new(config.max_connections as usize));
    let accepting = [(Some(listeners.proxy), Speaks::Proxy), (listeners.tls, Speaks::Tls)];
    for (listener, speaks) in accepting {
        if let Some(listener) = listener {
            tokio::spawn(server::run(
                listener,
                speaks,
                proxy.clone(),
                workers.clone(),
                limit.clone(),
                draining.clone(),
                alive.clone(),
            ));
        }
    }
    if let (Some(listener), Some(listen)) = (listeners.admin, admin_address) {
        let admin = Arc::new(Admin {
            exchange: exchange.clone(),
            data_dir,
            listen,
            access: serving.admin,
            drain: draining.clone(),
        });
        tokio::spawn(admin::run(listener, admin));
    }
    drop(alive);
    let keeper = tokio::spawn(keep(exchange.clone(), authority, clients));
    Ok(Running {
        exchange,
        files: published,
        proxy: proxy_address,
        admin: admin_address,
        tls: tls_address,
        drain,
        ended,
        workers,
        keeper,
        watcher,
    })
}

impl Running {
    /// Lets what is in flight finish, until `enough`, then puts everything on disk. False: it was cut off.
    pub async fn stop(mut self, enough: impl Future<Output = ()>) -> bool {
        self.drain.begin();
        let drained = tokio::select! {
            _ = self.ended.recv() => true,
            () = enough => false,
        };
        self.keeper.abort();
        self.watcher.abort();
        let (exchange, workers) = (self.exchange, self.workers);
        let flushed = tokio::task::spawn_blocking(move || {
            // What has not finished by now is cut off, and counted so, before the books are closed.
            drop(workers);
            exchange.store.close();
            exchange.ledger.flush()
        });
        if let Ok(Err(error)) = flushed.await {
            tracing::error!(%error, "the ledger's last rows could not be written");
        }
        drained
    }
}

/// What is done every second: the ledger reaches the disk, and the clients and the leaf are looked at.
async fn keep(exchange: Arc<Exchange>, authority: Arc<Authority>, clients: Arc<Clients>) {
    let mut ticks = tokio::time::interval(ledger::FLUSH_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (exchange, authority, clients) = (exchange.clone(), authority.clone(), clients.clone());
        let kept = tokio::task::spawn_blocking(move || {
            match exchange.ledger.flush() {
                Ok(rows) => exchange.metrics.ledger_rows.inc_by(rows as u64),
                Err(error) => {
                    exchange.metrics.ledger_errors.inc();
                    tracing::error!(%error, "the ledger cannot be written; trying again");
                }
            }
            if let Err(error) = exchange.ledger.tidy(now_ms()) {
                exchange.metrics.ledger_errors.inc();
                tracing::error!(%error, "the ledger cannot be summed up; trying again");
            }
            for run in exchange.ledger.runs.take_ended() {
                exchange.metrics.run_ended(&run);
            }
            clients.reload();
            match authority.keep_current(OffsetDateTime::now_utc()) {
                Ok(true) => tracing::info!("a new leaf was issued"),
                Ok(false) => {}
                Err(error) => tracing::error!(%error, "no new leaf could be issued"),
            }
        });
        if kept.await.is_err() {
            tracing::error!("keeping the ledger and the leaf failed");
        }
    }
}
