//! `ghtap serve`: the proxy.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use super::tap::{self, Apart, Listeners, Serving};
use super::{Failure, logging, place, say};
use crate::admin::Access;
use crate::config::{Serve, variables};
use crate::github::etag::hex;
use crate::pool;
use crate::tls::files::random;

pub fn run(config: &Serve) -> Result<ExitCode, Failure> {
    let _logging = logging::start(config.log_format, &config.log)?;
    let data_dir = config.tap.places.data_dir();
    let Some(held) = place::hold(&data_dir)? else {
        let by = place::running(&data_dir)
            .map_or_else(|| "another ghtap".into(), |t| format!("the ghtap with process id {}, on {}", t.pid, t.proxy));
        return Err(Failure::new(format_args!(
            "the data directory {} is in use by {by}; stop it, or give another with --data-dir",
            data_dir.display()
        )));
    };
    raise_descriptor_limit();
    // Connections are served by threads of their own; this one accepts, and keeps house.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::new)?;
    let code = runtime.block_on(serve(config, &held));
    // A blocking read may still be under way; it must not hold the exit up.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    code
}

async fn serve(config: &Serve, held: &place::Held) -> Result<ExitCode, Failure> {
    // Before anything is announced: who sees us run may stop us.
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::new)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::new)?;
    let listeners = Listeners {
        proxy: tap::bind(config.listen, "--listen").await?,
        admin: Some(tap::bind(config.admin, "--admin").await?),
        tls: match config.listen_tls {
            Some(address) => Some(tap::bind(address, "--listen-tls").await?),
            None => None,
        },
    };
    let admin_token = admin_token(config)?;
    let own_secret = config.require_proxy_auth.then(|| hex(&random::<20>()));
    let serving = Serving {
        own_secret: own_secret.clone(),
        clients: config.client.clone(),
        clients_file: config.clients_file.clone(),
        require_proxy_auth: config.require_proxy_auth,
        admin: Access { token: admin_token.clone(), hosts: config.admin_host.clone() },
        upstream: config.upstream.clone(),
        public_url: config.public_url.clone(),
        allow: config.allow_user.iter().flat_map(|a| a.0.iter().cloned()).collect(),
        user_ttl: config.user_ttl,
        offline_after: config.offline_after,
        status_page: config.status_page(),
        status_every: config.status_every,
        clients_only: config.clients_only,
        pool: pool::find(variables(), config.pool_file.as_deref(), config.tap.places.config.as_deref())
            .map_err(Failure::new)?,
        pool_wait: config.pool_wait,
        pool_padding: config.pool_padding,
    };
    let found = serving.pool.tokens.len() + serving.pool.apps.len();
    let running = tap::start(&config.tap, listeners, Apart::default(), serving).await?;
    match (running.exchange.clients.has_registry(), found) {
        (true, 0) => tracing::warn!(
            "there is a registry, and no GitHub credential to ask with for its clients: set GITHUB_PAT_NAME, or GITHUB_APP_NAME_ID and _PEM"
        ),
        (false, 1..) => {
            tracing::warn!("there are GitHub credentials, and no registry of clients to ask for: give --clients-file")
        }
        _ => {}
    }
    held.announce(&place::Tap {
        pid: std::process::id(),
        shared: true,
        proxy: running.proxy,
        admin: running.admin,
        certs_dir: config.tap.places.certs_dir(),
        admin_token,
        own_secret,
    })?;
    greet(config, &running, found);
    let signal = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(signal, "draining: no new connections; exchanges under way may finish");
    let enough = async {
        tokio::select! {
            () = tokio::time::sleep(config.drain) => {}
            _ = terminate.recv() => tracing::warn!("asked twice"),
            _ = interrupt.recv() => tracing::warn!("asked twice"),
        }
    };
    let drained = running.stop(enough).await;
    if !drained {
        tracing::warn!("not all exchanges had finished; the rest was cut off");
    }
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// What who asks the admin address must know; none where only this machine can.
fn admin_token(config: &Serve) -> Result<Option<String>, Failure> {
    if let Some(token) = &config.admin_token {
        return Ok(Some(token.clone()));
    }
    if config.admin.ip().is_loopback() {
        return Ok(None);
    }
    let (token, path) = place::admin_token(&config.tap.places.data_dir())?;
    tracing::info!(file = %path.display(), "the admin address listens on more than loopback: it asks for the token in this file");
    Ok(Some(token))
}

fn greet(config: &Serve, running: &tap::Running, pool: usize) {
    use std::fmt::Write;
    let mut text = format!("ghtap {} intercepts {}\n", env!("CARGO_PKG_VERSION"), config.tap.intercept.join(", "));
    let _ = writeln!(text, "  proxy    http://{}", running.proxy);
    if let Some(tls) = running.tls {
        let _ = writeln!(text, "  tls      https://{tls}");
    }
    if let Some(admin) = running.admin {
        let _ = writeln!(text, "  admin    http://{admin}");
    }
    let _ = writeln!(text, "  CA       {}", running.files.ca.display());
    let upstream: Vec<String> = config.upstream.iter().map(ToString::to_string).collect();
    let _ = writeln!(text, "  mirrors  {}, for requests to its own address", upstream.join(", "));
    let _ = writeln!(text, "  store    {}", config.tap.store);
    let allowed: Vec<&str> = config.allow_user.iter().flat_map(|a| a.0.iter().map(String::as_str)).collect();
    if !allowed.is_empty() {
        let _ = writeln!(text, "  serves   {} only", allowed.join(", "));
    }
    if running.exchange.clients.has_registry() {
        let only = if config.clients_only { " only" } else { "" };
        let _ = writeln!(text, "  serves   clients of the registry{only}, with {pool} GitHub credentials or Apps");
    }
    say(&format!("{text}next, where the clients run: eval \"$(ghtap env)\"\n"));
}

/// As many descriptors as the system lets us have: a tunnel needs six.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}
