//! Past the cache.

use http::{HeaderValue, Method, header};

use super::answer::Answer;
use super::asked::Asked;
use super::content::Content;
use super::tally::Trace;
use super::{Exchange, SMALL, broken_off, now_ms};
use crate::body::{self, Body};
use crate::cache::policy::Bypass;
use crate::calls::Outcome;
use crate::github::credentials::Credentials;
use crate::github::limits::Refusal;

impl Exchange {
    /// As it came, streamed both ways.
    pub(super) async fn forward(
        &self,
        asked: &Asked,
        trace: &Trace<'_>,
        content: &mut Content,
        bypass: Bypass,
    ) -> Answer {
        let (body, gate) = content.send();
        let mut request = asked.request(&self.via, body);
        if let Some(encoding) = &asked.accept_encoding {
            request.headers_mut().insert(header::ACCEPT_ENCODING, encoding.clone());
        }
        if let Some(gate) = gate {
            // The origin's 100 lets the content go; the head went ahead of it.
            request.headers_mut().insert(header::EXPECT, HeaderValue::from_static("100-continue"));
            let gate = parking_lot::Mutex::new(Some(gate));
            hyper::ext::on_informational(&mut request, move |response| {
                if response.status() == http::StatusCode::CONTINUE
                    && let Some(gate) = gate.lock().take()
                {
                    let _ = gate.send(());
                }
            });
        }
        request.headers_mut().extend(asked.preconditions.iter().cloned());
        // Noted also when the client goes away: GitHub may have acted by then.
        let _noted = Noted::of(self, asked);
        let response = match self.send(asked, trace, request).await {
            Ok(response) => response,
            Err(error) => return Answer::failed(error.into()),
        };
        let (parts, body) = response.into_parts();
        let teaches = parts.status.is_success() && Credentials::teaches(&asked.method, asked.path());
        let refuses = asked.pooled.is_some() && parts.status.is_client_error();
        if !(teaches || refuses) {
            return Answer::passed(parts, Body::Upstream(Box::new(body)), Outcome::Bypass).bypassed(bypass);
        }
        match body::collect(body, SMALL).await {
            Ok(Ok(whole)) => {
                if teaches {
                    self.learn(asked, &parts.headers, &whole);
                }
                let message = &whole[..whole.len().min(4096)];
                let refusal = Refusal::of(parts.status, &parts.headers, message, now_ms());
                let mut answer = Answer::passed(parts, Body::Full(whole), Outcome::Bypass).bypassed(bypass);
                answer.refusal = refusal;
                answer
            }
            Ok(Err((first, rest))) => {
                let tee = body::Tee::new(first, rest, 0, |_| {});
                Answer::passed(parts, Body::Tee(Box::new(tee)), Outcome::Bypass).bypassed(bypass)
            }
            Err(error) => Answer::failed(broken_off(error)),
        }
    }
}

/// Notes a write when it is dropped; what only reads is not one.
struct Noted<'a> {
    exchange: &'a Exchange,
    path: Option<&'a str>,
}

impl<'a> Noted<'a> {
    fn of(exchange: &'a Exchange, asked: &'a Asked) -> Noted<'a> {
        let reads = matches!(asked.method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
            || matches!(&asked.graphql, Some(Ok(request)) if request.is_query());
        Noted { exchange, path: (!reads).then(|| asked.path()) }
    }
}

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.path {
            self.exchange.writes.note(path, now_ms());
        }
    }
}
