//! GraphQL: passed on, and counted by operation and by the points that it cost; queries are kept for a moment where the
//! operator asks for that, for the credential that asked.

use std::time::Duration;

use aws_lc_rs::digest;
use bytes::Bytes;
use http::{StatusCode, header};
use moka::sync::Cache;

use super::answer::{Answer, Marks, Shared};
use super::asked::Asked;
use super::content::Content;
use super::tally::Trace;
use super::{Exchange, SMALL};
use crate::body::{self, Body, gunzip};
use crate::cache::policy::{Bypass, directive};
use crate::calls::Outcome;
use crate::fields;
use crate::github::credentials::{CredentialId, api_path};
use crate::github::graphql::{self, Request};
use crate::github::limits::Refusal;
use crate::origin::dial::percent_decode;

/// What all answers that are kept may weigh, in bytes.
const ROOM: u64 = 32 << 20;

/// Answers that are kept for a moment.
pub(super) struct Answers(Option<Cache<Key, (u64, Shared)>>);

/// Who asked what.
type Key = (CredentialId, [u8; 32]);

impl Answers {
    /// Zero: none are kept.
    pub fn new(ttl: Duration) -> Answers {
        let weigh = |_: &Key, (_, shared): &(u64, Shared)| u32::try_from(shared.len() + 1024).unwrap_or(u32::MAX);
        let cache = || Cache::builder().max_capacity(ROOM).weigher(weigh).time_to_live(ttl).build();
        Answers((!ttl.is_zero()).then(cache))
    }
}

/// A request to the GraphQL endpoint, as far as its content could be read.
pub(super) type Read = Result<Request, &'static str>;

impl Exchange {
    /// Whether a request is for the GraphQL endpoint.
    pub(super) fn is_graphql(method: &http::Method, path: &str) -> bool {
        if *method != http::Method::POST {
            return false;
        }
        match path.contains('%') {
            false => api_path(path) == "/graphql",
            // As GitHub may read it.
            true => api_path(&String::from_utf8_lossy(&percent_decode(path))) == "/graphql",
        }
    }

    /// Reads a gathered request.
    pub(super) fn read_graphql(asked: &Asked, content: &Content) -> Read {
        let mut kinds = asked.headers.get_all(header::CONTENT_TYPE).iter();
        if !(kinds.next().is_none_or(fields::is_json) && kinds.next().is_none()) {
            return Err("its Content-Type is not JSON");
        }
        if asked.headers.contains_key(header::CONTENT_ENCODING) {
            return Err("it is compressed");
        }
        if asked.uri.query().is_some() {
            return Err("its URL has a query");
        }
        Request::read(content.whole().ok_or("it is too large")?)
    }

    /// Asks GitHub's GraphQL, or answers from what is kept.
    pub(super) async fn graphql(&self, asked: &Asked, trace: &Trace<'_>, content: &mut Content) -> Answer {
        let request = asked.graphql.as_ref().and_then(|r| r.as_ref().ok());
        let label = request.map_or_else(|| "unread".into(), Request::label);
        trace.is_operation(&label);
        let key = request.filter(|r| r.is_query() && !r.asks_rate_limit).and_then(|_| self.answer_key(asked, content));
        if let (Some(key), Some(kept)) = (&key, &self.answers.0)
            && let Some((at, shared)) = kept.get(key)
            && at > self.writes.latest()
        {
            let mut answer = shared.answer();
            answer.outcome = Outcome::Hit;
            answer.marks =
                Marks { hit: true, x_cache: Some("ONLINE_HIT"), detail: Some("graphql-ttl"), ..Marks::default() };
            answer.headers.insert(header::AGE, (asked.at.saturating_sub(at) / 1000).into());
            return answer;
        }
        let reads = asked.pooled.is_some() || key.is_some() || request.is_some_and(|r| r.asks_rate_limit);
        let mut answer = self.forward(asked, trace, content, Bypass::Method).await;
        if !reads {
            self.metrics.operation(&label, trace.points());
            return answer;
        }
        let Some(plain) = self.gathered(&mut answer).await else {
            self.metrics.operation(&label, trace.points());
            return answer;
        };
        self.metrics.operation(&label, graphql::cost(&plain).unwrap_or(trace.points()));
        if asked.pooled.is_some() {
            answer.refusal = answer.refusal.or_else(|| Refusal::in_graphql(answer.status, &plain));
        }
        if let (Some(key), Some(kept)) = (key, &self.answers.0)
            && answer.status == StatusCode::OK
            && graphql::is_clean(&plain)
        {
            self.keep_answer(kept, key, asked, &answer);
        }
        answer
    }

    fn keep_answer(&self, kept: &Cache<Key, (u64, Shared)>, key: Key, asked: &Asked, answer: &Answer) {
        let copy = answer.share().map(Shared::answer).map(|mut copy| {
            // What it said of the quota is not so any more.
            copy.headers = fields::to_store(&copy.headers);
            copy
        });
        if let Some(shared) = copy.and_then(|c| c.share()) {
            kept.insert(key, (asked.at, shared));
        }
    }

    /// Reads an answer's content whole, and gives it without its coding; none if it is large.
    async fn gathered(&self, answer: &mut Answer) -> Option<Bytes> {
        let whole = match std::mem::replace(&mut answer.body, Body::Empty) {
            Body::Upstream(upstream) => match body::collect(*upstream, SMALL).await {
                Ok(Ok(whole)) => whole,
                Ok(Err((first, rest))) => {
                    answer.body = Body::Tee(Box::new(body::Tee::new(first, rest, 0, |_| {})));
                    return None;
                }
                Err(error) => {
                    *answer = Answer::failed(super::broken_off(error));
                    return None;
                }
            },
            Body::Full(whole) => whole,
            other => {
                answer.body = other;
                return None;
            }
        };
        answer.body = Body::Full(whole.clone());
        match answer.headers.get(header::CONTENT_ENCODING).map(|v| v.as_bytes()) {
            None | Some(b"identity") => Some(whole),
            Some(b"gzip") => {
                let size = whole.len() as u64 + body::claimed_len(&whole);
                self.keeper.off_thread(size, move || gunzip(&whole, SMALL as u64)).await.flatten().map(Bytes::from)
            }
            Some(_) => None,
        }
    }

    /// What makes two queries alike: who asks, at which host, with which fields, for what.
    fn answer_key(&self, asked: &Asked, content: &Content) -> Option<Key> {
        self.answers.0.as_ref()?;
        if ["no-store", "no-cache"].iter().any(|name| directive(&asked.headers, name).is_some()) {
            return None;
        }
        let mut context = digest::Context::new(&digest::SHA256);
        let mut part = |bytes: &[u8]| {
            context.update(&(bytes.len() as u64).to_be_bytes());
            context.update(bytes);
        };
        part(asked.target.host.as_bytes());
        part(&[u8::from(asked.accepts_gzip)]);
        part(content.whole()?);
        let mut names: Vec<_> = asked.headers.keys().filter(|n| varies(n)).collect();
        names.sort_by_key(|n| n.as_str());
        for name in names {
            part(name.as_str().as_bytes());
            asked.headers.get_all(name).iter().for_each(|v| part(v.as_bytes()));
        }
        let mut key = [0; 32];
        key.copy_from_slice(context.finish().as_ref());
        Some((asked.credential, key))
    }
}

/// Whether a request field may change the answer: all but those that are known not to.
fn varies(name: &header::HeaderName) -> bool {
    ![header::AUTHORIZATION, header::COOKIE, header::HOST, header::CONTENT_LENGTH, header::VIA].contains(name)
}
