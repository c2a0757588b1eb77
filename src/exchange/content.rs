//! A client's content: sent on as it comes, or gathered, where it has to be read or may have to be sent twice.

use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::keep::Keeper;
use crate::body::{self, ClientBody, RequestBody};
use crate::error::Error;
use crate::origin;

/// Content up to this size is gathered.
const MAX: usize = 1 << 20;
/// How long that may take in all.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) enum Content {
    Empty,
    Whole {
        bytes: Bytes,
        /// What it takes of the room for all such contents.
        _room: OwnedSemaphorePermit,
    },
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

    /// Reads it all, unless it is large, or there is no room for it.
    pub async fn gather(self, keeper: &Keeper) -> Result<Content, Error> {
        let Content::Passing { mut body, open } = self else { return Ok(self) };
        let expected = body.expected_len().unwrap_or(MAX as u64);
        let Some(_room) = Some(expected).filter(|e| *e <= MAX as u64).and_then(|e| keeper.room(e)) else {
            return Ok(Content::Passing { body, open });
        };
        // Whoever waits for a 100 gets it now: we want to read.
        body.open();
        let collecting = tokio::time::timeout(PATIENCE, body::collect(RequestBody::Client(body), MAX)).await;
        let Ok(collected) = collecting else { return Err(Error::Origin(origin::Error::ClientStalled)) };
        let collected = collected.map_err(|error| {
            Error::Origin(if error.is::<body::Stalled>() {
                origin::Error::ClientStalled
            } else {
                origin::Error::ClientGone
            })
        });
        match collected? {
            Ok(bytes) => Ok(Content::Whole { bytes, _room }),
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
            Content::Whole { bytes, .. } => Some(bytes),
            _ => None,
        }
    }

    /// What goes upstream, and what opens it.
    pub fn send(&mut self) -> (RequestBody, Option<oneshot::Sender<()>>) {
        match std::mem::replace(self, Content::Spent) {
            Content::Passing { body, open } => (RequestBody::Client(body), open),
            Content::Whole { bytes, _room } => {
                *self = Content::Whole { bytes: bytes.clone(), _room };
                (RequestBody::Whole(bytes), None)
            }
            Content::Empty | Content::Spent => {
                *self = Content::Empty;
                (RequestBody::Empty, None)
            }
        }
    }
}
