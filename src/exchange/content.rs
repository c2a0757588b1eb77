//! A client's content: sent on as it comes, or gathered, where it has to be read or may have to be sent twice.

use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use tokio::sync::oneshot;

use std::time::Duration;

use crate::body::{self, ClientBody, RequestBody};

/// Content up to this size is gathered.
const MAX: usize = 1 << 20;

pub(super) enum Content {
    Empty,
    Whole(Bytes),
    Passing {
        body: Box<ClientBody>,
        /// Opened by the origin's 100.
        open: Option<oneshot::Sender<()>>,
    },
    /// It has been sent, and is gone.
    Spent,
}

impl Content {
    pub fn of(incoming: Incoming, idle: Duration, expects: bool) -> Content {
        if incoming.is_end_stream() {
            return Content::Empty;
        }
        let (open, gate) = oneshot::channel();
        let gate = expects.then_some(gate);
        Content::Passing { body: Box::new(ClientBody::new(incoming, idle, gate)), open: expects.then_some(open) }
    }

    pub fn is_empty(&self) -> bool {
        matches!(self, Content::Empty)
    }

    /// Whether it can be sent, again.
    pub fn is_there(&self) -> bool {
        !matches!(self, Content::Spent)
    }

    /// Reads it all, unless it is large.
    pub async fn gather(self) -> Result<Content, body::Error> {
        let Content::Passing { mut body, .. } = self else { return Ok(self) };
        // Whoever waits for a 100 gets it now: we want to read.
        body.open();
        match body::collect(RequestBody::Client(body), MAX).await? {
            Ok(whole) => Ok(Content::Whole(whole)),
            Err((first, RequestBody::Client(mut body))) => {
                body.put_back(first);
                Ok(Content::Passing { body, open: None })
            }
            Err(_) => Ok(Content::Spent),
        }
    }

    /// All of it, if it was gathered.
    pub fn whole(&self) -> Option<&Bytes> {
        match self {
            Content::Whole(whole) => Some(whole),
            _ => None,
        }
    }

    /// What goes upstream, and what opens it.
    pub fn send(&mut self) -> (RequestBody, Option<oneshot::Sender<()>>) {
        match std::mem::replace(self, Content::Spent) {
            Content::Passing { body, open } => (RequestBody::Client(body), open),
            Content::Whole(whole) => {
                *self = Content::Whole(whole.clone());
                (RequestBody::Whole(whole), None)
            }
            Content::Empty | Content::Spent => {
                *self = Content::Empty;
                (RequestBody::Empty, None)
            }
        }
    }
}
