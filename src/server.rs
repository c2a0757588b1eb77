//! Listeners: accept under a limit, back off when accepting fails, drain when asked to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};

use crate::drain::Drain;
use crate::metrics::Metrics;
use crate::proxy::Proxy;
use crate::workers::Workers;

/// What a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// The proxy's own HTTP/1.1.
    Proxy,
    /// TLS at once, for clients that know no proxy.
    Tls,
}

/// Serves a listener until `drain` turns true. The caller binds, so a test can use port 0. `alive` is held
/// by every connection: when its last clone is gone, all have ended.
pub async fn run(
    listener: TcpListener,
    speaks: Speaks,
    proxy: Arc<Proxy>,
    workers: Arc<Workers>,
    limit: Arc<Semaphore>,
    mut drain: Drain,
    alive: mpsc::Sender<()>,
) {
    let mut backoff = Duration::from_millis(1);
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &limit) => accepted,
            () = drain.begun() => return,
        };
        let (stream, peer, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: give what is open time to end.
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(Duration::from_secs(1));
                continue;
            }
        };
        backoff = Duration::from_millis(1);
        let _ = stream.set_nodelay(true);
        let open = Open::new(&proxy.metrics, speaks);
        let (proxy, drain, alive) = (proxy.clone(), drain.clone(), alive.clone());
        workers.serve(stream, move |stream| async move {
            match speaks {
                Speaks::Proxy => proxy.serve(stream, peer, drain).await,
                Speaks::Tls => proxy.serve_tls(stream, peer, drain).await,
            }
            drop((permit, open, alive));
        });
    }
}

async fn accept(
    listener: &TcpListener,
    limit: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let permit = limit.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, permit))
}

/// Counts a connection while it is open.
struct Open(Arc<Metrics>);

impl Open {
    fn new(metrics: &Arc<Metrics>, speaks: Speaks) -> Open {
        let label = if speaks == Speaks::Proxy { "proxy" } else { "tls" };
        metrics.connections.with_label_values(&[label]).inc();
        metrics.connections_open.inc();
        Open(metrics.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections_open.dec();
    }
}
