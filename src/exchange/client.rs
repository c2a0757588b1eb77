//! What a client of the registry may ask for, and who is served at all.

use std::borrow::Cow;

use http::header;

use super::answer::Answer;
use super::asked::Asked;
use super::content::Content;
use super::tally::Trace;
use super::{Exchange, allow};
use crate::body::Body;
use crate::cache::listing::parse_links;
use crate::clients::Registered;
use crate::error::Error;
use crate::github::credentials::api_path;

/// What only an App itself can ask for, with its JWT or its secret: GitHub answers 401 to whoever else does.
const APPS_OWN: [&str; 2] = ["/app/", "/applications/"];
/// Fields by which some servers take a request for another than it is.
const OVERRIDES: [&str; 5] =
    ["x-http-method-override", "x-http-method", "x-method-override", "x-original-url", "x-rewrite-url"];

impl Exchange {
    /// Whether this tap serves a caller: before anything of his is read or kept.
    pub(super) fn check_caller(&self, asked: &Asked, registered: Option<&Registered>) -> Result<(), Error> {
        if registered.is_some() {
            return Ok(());
        }
        if self.settings.clients_only {
            return Err(Error::Unauthenticated(
                "this tap serves registered clients only: send Authorization with a client's token".into(),
            ));
        }
        match self.clients.holds_secret(&asked.headers) {
            true => Err(Error::Unauthenticated(
                "the Authorization holds a token that is, or was, a client's, in a form that is not taken; send: token TOKEN".into(),
            )),
            false => self.is_named(asked),
        }
    }

    /// Whether a client of the registry may ask this.
    pub(super) async fn check_scopes(
        &self,
        asked: &Asked,
        trace: &Trace<'_>,
        client: &Registered,
    ) -> Result<(), Error> {
        let path = api_path(asked.path());
        if APPS_OWN.iter().any(|own| path == own.trim_end_matches('/') || path.starts_with(own)) {
            return Err(Error::Forbidden(format!(
                "{path} is for an App itself, and not for the credentials of the pool"
            )));
        }
        let Some(scopes) = &client.scopes else { return Ok(()) };
        let in_query = asked.uri.query().is_some_and(|q| q.split('&').any(|p| p.starts_with("_method=")));
        if in_query || OVERRIDES.iter().any(|name| asked.headers.contains_key(*name)) {
            return Err(Error::Forbidden(
                "a request that asks for another method or path is not checked: ask plainly".into(),
            ));
        }
        let path = match self.by_name(&asked.realm, path) {
            Some(named) => Cow::Owned(named),
            None => match self.look_up_number(asked, trace, path).await {
                Some(named) => Cow::Owned(named),
                None => Cow::Borrowed(path),
            },
        };
        let kinds = asked.graphql.as_ref().map(|r| r.as_ref().map(|r| &r.kinds[..]).map_err(|why| *why));
        scopes.check(&client.name, &asked.method, &path, kinds).map_err(|out| Error::Forbidden(out.to_string()))
    }

    /// A path that names a repository by its number, by its name, where that is known: GitHub's links to further pages have
    /// numbers.
    fn by_name(&self, realm: &str, path: &str) -> Option<String> {
        let rest = path.strip_prefix("/repositories/")?;
        let (number, rest) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        Some(format!("/repos/{}{rest}", self.numbers.get(&format!("{realm} {number}"))?))
    }

    /// The same, by asking GitHub: after a restart, or where another tap has shown the link.
    async fn look_up_number(&self, asked: &Asked, trace: &Trace<'_>, path: &str) -> Option<String> {
        #[derive(serde::Deserialize)]
        struct Repository {
            full_name: String,
        }
        let number = path.strip_prefix("/repositories/")?.split('/').next()?;
        if number.is_empty() || number.len() > 20 || !number.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let base = asked.api_base();
        let mut question = asked.for_page(self, &format!("{base}/repositories/{number}"))?;
        question.is_plain_only();
        question.headers = allow::own_fields(&asked.headers);
        let answer = Box::pin(self.with_pool(&question, trace, Content::Empty)).await;
        let Body::Full(body) = &answer.body else { return None };
        let repository: Repository = serde_json::from_slice(body).ok().filter(|_| answer.status.is_success())?;
        self.numbers.insert(format!("{} {number}", asked.realm), repository.full_name);
        self.by_name(&asked.realm, path)
    }

    /// Learns which number a repository has from what GitHub links to, or redirects to.
    pub(super) fn note_numbers(&self, asked: &Asked, answer: &Answer) {
        let text = |name| answer.headers.get(name).and_then(|v| v.to_str().ok());
        let links = text(header::LINK).map(parse_links).unwrap_or_default();
        let moved = text(header::LOCATION).and_then(|l| l.strip_prefix("https://")?.split_once('/'));
        let moved = moved.filter(|(host, _)| **host == *asked.target.host).map(|(_, path)| format!("/{path}"));
        if links.is_empty() && moved.is_none() {
            return;
        }
        let path = api_path(asked.path());
        let path = self.by_name(&asked.realm, path).map_or(Cow::Borrowed(path), Cow::Owned);
        let Some(named) = path.strip_prefix("/repos/") else { return };
        let Some((owner, rest)) = named.split_once('/') else { return };
        let (name, below) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        for target in links.iter().map(|(_, target)| target).chain(&moved) {
            let linked = api_path(target.split('?').next().unwrap_or_default());
            if let Some(linked) = linked.strip_prefix("/repositories/") {
                let (number, linked_below) = linked.split_at(linked.find('/').unwrap_or(linked.len()));
                if linked_below == below {
                    self.numbers.insert(format!("{} {number}", asked.realm), format!("{owner}/{name}"));
                }
            }
        }
    }
}
