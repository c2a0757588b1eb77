//! Idle connections, by origin.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;

use super::Connection;
use super::dial::{Stream, Target};
use crate::body::RequestBody;

/// How long an idle connection is worth keeping. GitHub closes after about a minute.
const IDLE: Duration = Duration::from_secs(50);

/// The pools of all origins.
pub(super) struct Pools {
    by_target: Mutex<HashMap<Target, Arc<Pool>>>,
    max_idle: usize,
}

/// Origins with a pool of their own at once: plain `http://` requests can name any number.
const MAX_POOLS: usize = 256;

impl Pools {
    pub fn new(max_idle: usize) -> Pools {
        Pools { by_target: Mutex::default(), max_idle }
    }

    pub fn of(&self, target: &Target) -> Arc<Pool> {
        let mut pools = self.by_target.lock();
        if let Some(pool) = pools.get(target) {
            return pool.clone();
        }
        if pools.len() >= MAX_POOLS {
            pools.retain(|_, pool| !pool.idle.lock().is_empty());
            if pools.len() >= MAX_POOLS {
                pools.clear();
            }
        }
        let pool = Arc::new(Pool { idle: Mutex::default(), max_idle: self.max_idle });
        pools.insert(target.clone(), pool.clone());
        pool
    }
}

pub(super) struct Pool {
    idle: Mutex<Vec<(Instant, Link)>>,
    max_idle: usize,
}

impl Pool {
    /// The connection that was used last, if it is still open.
    pub async fn take(self: &Arc<Self>) -> Option<Link> {
        loop {
            let (since, mut link) = self.idle.lock().pop()?;
            if since.elapsed() > IDLE {
                // The others are older still.
                self.idle.lock().clear();
                return None;
            }
            let closed = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut link.connection).poll(cx).is_ready()));
            if !closed.await && link.sender.is_ready() {
                link.home = Some(self.clone());
                return Some(link);
            }
        }
    }
}

/// One connection: what sends on it, and what drives it.
pub(super) struct Link {
    pub sender: http1::SendRequest<RequestBody>,
    pub connection: Connection,
    pub ended: bool,
    /// The pool it goes back to. An idle link has none: no cycle keeps a dropped pool alive.
    home: Option<Arc<Pool>>,
}

impl Link {
    /// Begins HTTP/1.1 on a new connection.
    pub async fn open(stream: Stream, home: Arc<Pool>) -> hyper::Result<Link> {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(256 << 10);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        Ok(Link { sender, connection, ended: false, home: Some(home) })
    }

    /// Puts it back, if the exchange on it has ended cleanly; else it is closed.
    pub fn release(mut self) {
        if !self.sender.is_ready() && !self.ended {
            let mut cx = Context::from_waker(Waker::noop());
            self.ended = Pin::new(&mut self.connection).poll(&mut cx).is_ready();
        }
        if self.ended || !self.sender.is_ready() {
            return;
        }
        if let Some(home) = self.home.take() {
            let mut idle = home.idle.lock();
            if idle.first().is_some_and(|(since, _)| since.elapsed() > IDLE) {
                idle.retain(|(since, _)| since.elapsed() <= IDLE);
            }
            if idle.len() < home.max_idle {
                idle.push((Instant::now(), self));
            }
        }
    }
}
