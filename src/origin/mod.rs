//! The only outbound HTTP client: HTTP/1.1 over a pool of connections to each origin.
//!
//! A connection is not a task of its own. Whoever uses it drives it, in its own task, until the response
//! has ended, and puts it back; so a request costs no wake-up of another thread. An idle connection is not
//! driven at all; whether the origin closed it is seen when it is taken.

pub mod dial;
mod pool;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep};

use crate::body::{self, RequestBody};
use crate::workers;
use dial::{Dialer, Stream, Target};
use pool::{Link, Pools};

/// What an origin, or the way to it, did wrong. The words after the colon are `Proxy-Status` error types
/// (RFC 9209, 2.3).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the name {0} does not resolve")]
    Resolve(String),
    #[error("{0} resolves to an address that --tunnel-deny forbids")]
    Denied(String),
    #[error("{0} is the tap itself")]
    Loop(String),
    #[error("cannot connect to {0}: {1}")]
    Connect(String, std::io::Error),
    #[error("connecting to {0} took too long")]
    ConnectTimeout(String),
    #[error("the certificate of {0} is not trusted: {1}")]
    Certificate(String, std::io::Error),
    #[error("the TLS handshake with {0} failed: {1}")]
    Tls(String, std::io::Error),
    #[error("the upstream proxy refused: {0}")]
    UpstreamProxy(String),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("too many requests are waiting for the origin")]
    Busy,
    #[error("the connection ended before the response: {0}")]
    Closed(hyper::Error),
    #[error("the response is not valid HTTP: {0}")]
    Protocol(hyper::Error),
    #[error("the client stopped sending before the end of the content")]
    ClientStalled,
    #[error("the client's content ended early")]
    ClientGone,
}

impl Error {
    /// Whether the origin, or the way to it, is out of order: not a refusal of ours, and not a certificate that
    /// is not to be trusted.
    pub fn is_outage(&self) -> bool {
        use Error::{Closed, Connect, ConnectTimeout, Protocol, Resolve, Timeout, Tls, UpstreamProxy};
        matches!(
            self,
            Resolve(_)
                | Connect(..)
                | ConnectTimeout(_)
                | Tls(..)
                | UpstreamProxy(_)
                | Timeout(_)
                | Closed(_)
                | Protocol(_)
        )
    }
}

impl Error {
    /// Whether nobody was there to talk to.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Error::Resolve(_) | Error::Connect(..) | Error::ConnectTimeout(_) | Error::UpstreamProxy(_))
    }
}

/// How the client behaves.
#[derive(Clone, Debug)]
pub struct Limits {
    /// From the request's end to the response's head.
    pub response: Duration,
    /// Between two pieces of a response's content.
    pub idle: Duration,
    /// Requests under way at once.
    pub concurrent: usize,
    /// Idle connections kept for each origin.
    pub idle_connections: usize,
}

/// The outbound client.
pub struct Origin {
    dialer: Arc<Dialer>,
    /// One for each worker, and one for elsewhere: a connection stays on the thread whose reactor knows it.
    pools: Vec<Pools>,
    limits: Limits,
    permits: Semaphore,
}

impl Origin {
    pub fn new(dialer: Arc<Dialer>, limits: Limits, workers: usize) -> Origin {
        let pools = (0..=workers).map(|_| Pools::new(limits.idle_connections)).collect();
        Origin { dialer, pools, permits: Semaphore::new(limits.concurrent), limits }
    }

    pub fn dialer(&self) -> &Arc<Dialer> {
        &self.dialer
    }

    /// Sends a request in origin-form and returns when the response's head is there.
    ///
    /// A request that met a connection which the origin had closed goes out again on a new one: if nothing
    /// of it was sent, or if it is safe and has no content.
    pub async fn send(&self, target: &Target, request: Request<RequestBody>) -> Result<Response<UpstreamBody>, Error> {
        let permit = tokio::time::timeout(self.limits.response, self.permits.acquire());
        // Held until the head is there: a client that reads slowly must not keep others from asking.
        let _permit = permit.await.map_err(|_| Error::Busy)?.map_err(|_| Error::Busy)?;
        self.send_apart(target, request).await
    }

    /// The same, however many are under way: for a request of our own that must not wait for clients.
    pub async fn send_apart(
        &self,
        target: &Target,
        request: Request<RequestBody>,
    ) -> Result<Response<UpstreamBody>, Error> {
        let pool = self.pools[workers::index() % self.pools.len()].of(target);
        let mut request = request;
        if let Some(link) = pool.take().await {
            let spare = spare(&request);
            match self.exchange(link, request).await {
                Ok(response) => return Ok(self.wrap(response)),
                Err((_, Some(unsent))) => request = unsent,
                Err((Error::Closed(error), None)) => match spare {
                    Some(spare) => request = spare,
                    None => return Err(Error::Closed(error)),
                },
                Err((error, None)) => return Err(error),
            }
        }
        let stream = self.dialer.connect(target).await?;
        let link = Link::open(stream, pool).await.map_err(Error::Closed)?;
        match self.exchange(link, request).await {
            Ok(response) => Ok(self.wrap(response)),
            Err((error, _)) => Err(error),
        }
    }

    /// The error comes with the request if nothing of it was sent.
    async fn exchange(
        &self,
        mut link: Link,
        request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Link), (Error, Option<Request<RequestBody>>)> {
        let progress = match request.body() {
            RequestBody::Client(body) => Some(body.progress()),
            RequestBody::Empty | RequestBody::Whole(_) => None,
        };
        let mut seen = 0;
        let mut sent = std::pin::pin!(link.sender.try_send_request(request));
        let mut timer = std::pin::pin!(tokio::time::sleep(self.limits.response));
        let mut ended = None;
        let result = std::future::poll_fn(|cx| {
            if ended.is_none()
                && let Poll::Ready(end) = Pin::new(&mut link.connection).poll(cx)
            {
                ended = Some(end);
            }
            if let Poll::Ready(result) = sent.as_mut().poll(cx) {
                return Poll::Ready(Ok(result));
            }
            while timer.as_mut().poll(cx).is_ready() {
                let moved = progress.as_ref().map_or(0, |p| p.load(Ordering::Relaxed));
                if moved == seen {
                    return Poll::Ready(Err(Error::Timeout(self.limits.response)));
                }
                seen = moved;
                timer.as_mut().reset(Instant::now() + self.limits.response);
            }
            Poll::Pending
        });
        match result.await {
            Ok(Ok(response)) => Ok((response, link)),
            Ok(Err(mut error)) => {
                let unsent = error.take_message();
                Err((classify(error.into_error()), unsent))
            }
            Err(error) => Err((error, None)),
        }
    }

    fn wrap(&self, (response, link): (Response<Incoming>, Link)) -> Response<UpstreamBody> {
        let fields = response.headers();
        let framed =
            fields.contains_key(http::header::CONTENT_LENGTH) || fields.contains_key(http::header::TRANSFER_ENCODING);
        response.map(|incoming| {
            let mut body =
                UpstreamBody { framed, incoming, link: Some(Box::new(link)), idle: self.limits.idle, timer: None };
            if body.incoming.is_end_stream() {
                body.settle();
            }
            body
        })
    }
}

/// A copy of a request that may be sent twice.
fn spare(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if !safe || !request.body().is_empty() {
        return None;
    }
    let mut copy = Request::new(RequestBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

fn classify(error: hyper::Error) -> Error {
    use std::error::Error as _;
    let mut source = error.source();
    while let Some(cause) = source {
        if cause.is::<body::Stalled>() {
            return Error::ClientStalled;
        }
        source = cause.source();
    }
    if error.is_user() {
        Error::ClientGone
    } else if error.is_parse() {
        Error::Protocol(error)
    } else {
        Error::Closed(error)
    }
}

/// A response's content, and the connection it comes on.
pub struct UpstreamBody {
    framed: bool,
    incoming: Incoming,
    link: Option<Box<Link>>,
    idle: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl UpstreamBody {
    /// Whether its end shows: by a length or by chunks, and not by the end of the connection.
    pub fn is_framed(&self) -> bool {
        self.framed
    }

    /// Puts the connection back if it can serve again.
    fn settle(&mut self) {
        if let Some(link) = self.link.take() {
            link.release();
        }
    }
}

impl HttpBody for UpstreamBody {
    type Data = Bytes;
    type Error = body::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, body::Error>>> {
        let this = self.get_mut();
        let mut frame = Pin::new(&mut this.incoming).poll_frame(cx);
        if frame.is_pending()
            && let Some(link) = &mut this.link
        {
            if !link.ended && Pin::new(&mut link.connection).poll(cx).is_ready() {
                link.ended = true;
            }
            frame = Pin::new(&mut this.incoming).poll_frame(cx);
        }
        match frame {
            Poll::Pending => {
                let idle = this.idle;
                let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
                std::task::ready!(timer.as_mut().poll(cx));
                this.link = None;
                Poll::Ready(Some(Err(Box::new(Error::Timeout(idle)))))
            }
            Poll::Ready(None) => {
                this.settle();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                this.link = None;
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(timer) = &mut this.timer {
                    timer.as_mut().reset(Instant::now() + this.idle);
                }
                // Where the length is known, nobody asks for the frame after the last one.
                if this.incoming.is_end_stream() {
                    this.settle();
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

type Connection = http1::Connection<hyper_util::rt::TokioIo<Stream>, RequestBody>;
