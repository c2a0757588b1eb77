//! The contents of messages, as they pass through.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};

use crate::origin::UpstreamBody;
use crate::rewrite::{Rewriter, Rule};

/// Why content stopped before its end. hyper closes or resets the connection with it.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// What a client is sent.
pub enum Body {
    Empty,
    Full(Bytes),
    Upstream(Box<UpstreamBody>),
    Tee(Box<Tee>),
    Rewritten(Box<Rewritten>),
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        match this {
            Body::Empty => Poll::Ready(None),
            Body::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *this = Body::Empty;
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Body::Upstream(body) => Pin::new(body).poll_frame(cx),
            Body::Tee(tee) => tee.poll_frame(cx),
            Body::Rewritten(rewritten) => rewritten.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Empty => true,
            Body::Full(bytes) => bytes.is_empty(),
            Body::Upstream(body) => body.is_end_stream(),
            Body::Tee(_) | Body::Rewritten(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Empty => SizeHint::with_exact(0),
            Body::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Body::Upstream(body) => body.size_hint(),
            Body::Tee(tee) => tee.size_hint(),
            Body::Rewritten(_) => SizeHint::default(),
        }
    }
}

impl Body {
    /// The same with some texts replaced.
    pub fn rewritten(self, rules: Vec<Rule>) -> Body {
        let rewriter = Rewriter::new(rules);
        match self {
            Body::Empty => Body::Empty,
            Body::Full(content) => Body::Full(rewriter.whole(content)),
            streamed => {
                Body::Rewritten(Box::new(Rewritten { inner: streamed, rewriter: Some(rewriter), trailers: None }))
            }
        }
    }
}

/// A response in which some texts are replaced while it passes.
pub struct Rewritten {
    inner: Body,
    /// None once the end was seen.
    rewriter: Option<Rewriter>,
    trailers: Option<Frame<Bytes>>,
}

impl Rewritten {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        while let Some(rewriter) = &mut self.rewriter {
            let data = match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => rewriter.push(data),
                    Err(trailers) => {
                        self.trailers = Some(trailers);
                        continue;
                    }
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    let rest = rewriter.finish();
                    self.rewriter = None;
                    rest
                }
            };
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
        }
        Poll::Ready(self.trailers.take().map(Ok))
    }
}

/// A large response that goes to the client while it is kept for the store.
pub struct Tee {
    /// What was read before it was known to be large.
    first: Option<Bytes>,
    rest: UpstreamBody,
    kept: Option<Vec<u8>>,
    max_bytes: usize,
    done: Option<Box<dyn FnOnce(Bytes) + Send + Sync>>,
}

impl Tee {
    /// `done` is called with the whole body when its end was seen, and it is not larger than `max_bytes`.
    pub fn new(
        first: Bytes,
        rest: UpstreamBody,
        max_bytes: u64,
        done: impl FnOnce(Bytes) + Send + Sync + 'static,
    ) -> Tee {
        let max_bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX);
        let kept = (first.len() <= max_bytes).then(|| first.to_vec());
        Tee { first: Some(first), rest, kept, max_bytes, done: Some(Box::new(done)) }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        let frame = ready!(Pin::new(&mut self.rest).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(data), Some(kept)) = (frame.data_ref(), &mut self.kept) {
                    if kept.len() + data.len() <= self.max_bytes {
                        kept.extend_from_slice(data);
                    } else {
                        self.kept = None;
                    }
                }
            }
            Some(Err(_)) => self.kept = None,
            None => {}
        }
        // Where the length is known, nobody asks for the frame after the last one.
        if frame.is_none() || self.rest.is_end_stream() {
            self.finish();
        }
        Poll::Ready(frame)
    }

    fn finish(&mut self) {
        if let (Some(kept), Some(done)) = (self.kept.take(), self.done.take()) {
            done(kept.into());
        }
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.as_ref().map_or(0, |b| b.len() as u64);
        match self.rest.size_hint().exact() {
            Some(rest) => SizeHint::with_exact(rest + first),
            None => SizeHint::default(),
        }
    }
}

/// What goes upstream.
pub enum RequestBody {
    Empty,
    /// All of it at hand: it can be sent again.
    Whole(Bytes),
    Client(Box<ClientBody>),
}

impl RequestBody {
    pub fn is_empty(&self) -> bool {
        matches!(self, RequestBody::Empty)
    }
}

/// A client's content, on its way upstream: bounded in how long it may pause, and held back while the
/// client waits for `100 (Continue)` and the origin has not said it.
pub struct ClientBody {
    incoming: Incoming,
    idle: Duration,
    timer: Pin<Box<Sleep>>,
    waiting: bool,
    gate: Option<oneshot::Receiver<()>>,
    moved: Arc<AtomicU64>,
    /// What was read of it already.
    first: Option<Bytes>,
}

/// How long an origin may take to say `100 (Continue)` before the content is sent anyway (RFC 9110, 10.1.1
/// asks for such a limit; curl's is a second, too).
const EXPECT_PATIENCE: Duration = Duration::from_secs(1);

impl ClientBody {
    pub fn new(incoming: Incoming, idle: Duration, gate: Option<oneshot::Receiver<()>>) -> ClientBody {
        let timer = Box::pin(tokio::time::sleep(EXPECT_PATIENCE));
        ClientBody { incoming, idle, timer, waiting: gate.is_some(), gate, moved: Arc::default(), first: None }
    }

    /// How long it is, where that is known.
    pub fn expected_len(&self) -> Option<u64> {
        self.incoming.size_hint().exact()
    }

    /// Does not wait for the origin's 100 any more.
    pub fn open(&mut self) {
        self.gate = None;
        self.waiting = false;
    }

    /// Gives back what was read of it.
    pub fn put_back(&mut self, first: Bytes) {
        self.first = Some(first);
    }

    /// Counts up whenever content moves, so that an upload does not look like an origin that is silent.
    pub fn progress(&self) -> Arc<AtomicU64> {
        self.moved.clone()
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let body = match self.get_mut() {
            RequestBody::Empty => return Poll::Ready(None),
            RequestBody::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                return Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))));
            }
            RequestBody::Client(body) => &mut **body,
        };
        if let Some(first) = body.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        if let Some(gate) = &mut body.gate {
            if Pin::new(gate).poll(cx).is_pending() && body.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            body.gate = None;
            body.waiting = false;
        }
        match Pin::new(&mut body.incoming).poll_frame(cx) {
            Poll::Ready(frame) => {
                body.waiting = false;
                body.moved.fetch_add(1, Ordering::Relaxed);
                Poll::Ready(frame.map(|f| f.map_err(Into::into)))
            }
            Poll::Pending => {
                if !body.waiting {
                    body.waiting = true;
                    body.timer.as_mut().reset(Instant::now() + body.idle);
                }
                ready!(body.timer.as_mut().poll(cx));
                Poll::Ready(Some(Err(Box::new(Stalled))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestBody::Empty => true,
            RequestBody::Whole(bytes) => bytes.is_empty(),
            RequestBody::Client(body) => body.first.is_none() && body.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RequestBody::Empty => SizeHint::with_exact(0),
            RequestBody::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            RequestBody::Client(body) => {
                let first = body.first.as_ref().map_or(0, |b| b.len() as u64);
                body.incoming
                    .size_hint()
                    .exact()
                    .map_or_else(SizeHint::default, |rest| SizeHint::with_exact(first + rest))
            }
        }
    }
}

/// The client stopped sending in the middle of its content.
#[derive(Debug, thiserror::Error)]
#[error("the client stopped sending before the end of the content")]
pub struct Stalled;

/// Reads a body up to `max` bytes. `Err` gives back what was read and the rest, if there is more.
pub async fn collect<B>(mut body: B, max: usize) -> Result<Result<Bytes, (Bytes, B)>, Error>
where
    B: HttpBody<Data = Bytes, Error = Error> + Unpin,
{
    let mut first = Bytes::new();
    let mut all: Option<Vec<u8>> = None;
    let mut len = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        len += data.len();
        match &mut all {
            Some(all) => all.extend_from_slice(&data),
            None if first.is_empty() => first = data,
            None => {
                let mut joined = Vec::with_capacity((first.len() + data.len()) * 2);
                joined.extend_from_slice(&first);
                joined.extend_from_slice(&data);
                all = Some(joined);
            }
        }
        if len > max {
            return Ok(Err((all.map_or(first, Bytes::from), body)));
        }
    }
    Ok(Ok(all.map_or(first, Bytes::from)))
}

/// How large a gzip body says it is without its coding: its last four bytes, which may lie (RFC 1952, 2.3.1).
pub fn claimed_len(gzip: &[u8]) -> u64 {
    gzip.last_chunk::<4>().map_or(0, |size| u64::from(u32::from_le_bytes(*size)))
}

/// Undoes gzip; none if it is broken, or larger than `max` bytes without it.
pub fn gunzip(body: &[u8], max: u64) -> Option<Vec<u8>> {
    use std::io::Read;
    let mut plain = Vec::with_capacity(body.len() * 4);
    let mut decoder = flate2::bufread::MultiGzDecoder::new(body).take(max.saturating_add(1));
    decoder.read_to_end(&mut plain).ok()?;
    (plain.len() as u64 <= max).then_some(plain)
}
