//! Putting the parts of a tap together, and taking them down in order.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::Failure;
use super::certs::Files;
use super::place;
use crate::admin::{self, Access, Admin};
use crate::cache::sled::SledRoom;
use crate::cache::store::Store;
use crate::calls::ledger::{self, Keep, Ledger};
use crate::clients::{Caller, Clients};
use crate::config::{StoreKind, Switch, Tap as Config};
use crate::drain::{self, Draining};
use crate::exchange::{Exchange, Settings, now_ms};
use crate::github::credentials::Credentials;
use crate::metrics::Metrics;
use crate::origin::dial::{Dialer, UpstreamProxy};
use crate::origin::{Limits, Origin};
use crate::proxy::{Patience, Proxy};
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
    let published = Files::publish(&config.places.certs_dir(), &ca)?;
    let authority = Authority::new(data_dir.clone(), ca, config.intercept.clone()).map_err(Failure::new)?;
    let authority = Arc::new(authority);
    let secret = place::secret(&data_dir)?;

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

    let memory_only = apart.memory_only || config.store == StoreKind::Memory;
    let (max_bytes, memory_bytes, dir) = (config.store_max_bytes, config.store_memory_bytes, data_dir.clone());
    let store = tokio::task::spawn_blocking(move || match memory_only {
        true => Ok(Store::memory(max_bytes)),
        false => SledRoom::open(&dir, max_bytes).map(|room| Store::on_disk(room, memory_bytes)),
    });
    let store = store.await.map_err(Failure::new)?;
    let store = Arc::new(
        store
            .map_err(|e| Failure::new(format_args!("the store below {} cannot be opened: {e}", data_dir.display())))?,
    );
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
    let clients = Clients::new(
        serving.clients,
        serving.clients_file,
        serving.require_proxy_auth,
        apart.caller,
        &secret,
        serving.own_secret,
    );
    let clients = Arc::new(clients.map_err(Failure::new)?);
    let exchange = Arc::new(Exchange::new(settings, origin, store, ledger, metrics.clone(), credentials));

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
