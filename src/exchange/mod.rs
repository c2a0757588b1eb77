//! One API request, from an identified client to a counted response.
//!
//! [`Exchange::serve`] is the way of it: understand the request (`asked`), see who it is and what they may (`allow`, and the
//! registry), ask with a credential of the pool where it is a client of ours (`pooled`, `minting`), let it past the cache or
//! through it (`cached`, `graphql`), confirm a listing (`pages`), take the answer in (`answered`, `keep`) or reuse what is
//! stored (`reuse`), also while GitHub is offline (`outage`), shape it for the client (`answer`), count (`tally`).

mod allow;
mod answer;
mod answered;
mod asked;
mod cached;
mod content;
mod graphql;
mod keep;
mod minting;
mod outage;
mod pages;
mod pooled;
mod reuse;
mod tally;
mod writes;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{HeaderValue, Method, Request, Response, header};
use hyper::body::Incoming;
use moka::sync::Cache;

use crate::body::{self, Body, RequestBody};
use crate::cache::collapse::InFlight;
use crate::cache::key::KeyId;
use crate::cache::policy::{self, Bypass, Freshness};
use crate::cache::store::Store;
use crate::calls::Outcome;
use crate::calls::ledger::Ledger;
use crate::calls::live::Live;
use crate::clients::{Caller, Clients, Registered};
pub use crate::clock::now_ms;
use crate::error::Error;
use crate::github::credentials::{CredentialId, Credentials, api_path};
use crate::github::limits::Refusal;
use crate::github::routes::Routes;
use crate::github::{self, hosts};
use crate::metrics::Metrics;
use crate::origin::dial::Target;
use crate::origin::{self, Origin};
use crate::pool::{Kind, Pool};
pub use allow::Allowed;
use answer::{Answer, Shared};
use asked::Asked;
use content::Content;
pub use outage::Outages;
use tally::Trace;

/// The operator's choices.
#[derive(Clone, Debug)]
pub struct Settings {
    pub freshness: Freshness,
    /// How long a 404 for content at a full commit id is remembered; zero: not at all.
    pub not_found_ttl: Duration,
    pub stale_max_age: Duration,
    pub expected_etag: bool,
    pub max_object_bytes: u64,
    /// How long a client may pause within its content.
    pub upload_idle: Duration,
    /// What we are called in `Via`: unlike any other tap's name, so that a loop is seen.
    pub pseudonym: String,
    /// How long an answer to a GraphQL query is kept; zero: not at all.
    pub graphql_ttl: Duration,
    /// How long a request waits for a credential of the pool.
    pub pool_wait: Duration,
    /// Whether those only are served who are in the registry.
    pub clients_only: bool,
    /// Whether more than one API is served: reports then tell whose a credential is.
    pub several_realms: bool,
}

/// Who is known, and what we may do for them.
pub struct Parties {
    pub clients: Arc<Clients>,
    /// None: everybody is served.
    pub allowed: Option<Allowed>,
    pub pool: Pool,
    pub outages: Outages,
}

/// An API that requests are for.
#[derive(Clone, Debug)]
pub struct Api {
    pub target: Target,
    /// Whose quota and logins it has: the host, as a rule.
    pub realm: Arc<str>,
    /// What its paths begin with; others of its host are passed on.
    pub prefix: &'static str,
    /// Whether content is to come without a coding: somebody has to read it on its way.
    pub plain: bool,
}

impl Api {
    /// The API at a host whose TLS is terminated.
    pub fn intercepted(target: Target) -> Api {
        let realm = match hosts::realm(&target.host) {
            same if same == &*target.host => target.host.clone(),
            other => other.into(),
        };
        Api { realm, prefix: hosts::api_prefix(&target.host), target, plain: false }
    }
}

/// What all exchanges share.
pub struct Exchange {
    pub settings: Settings,
    pub origin: Arc<Origin>,
    pub store: Arc<Store>,
    pub ledger: Arc<Ledger>,
    pub metrics: Arc<Metrics>,
    /// The calls that just ended.
    pub live: Live,
    pub credentials: Credentials,
    pub clients: Arc<Clients>,
    pub outages: Outages,
    pub pool: Pool,
    /// The credentials that the pool's were, within a day.
    pool_ids: Cache<CredentialId, ()>,
    allowed: Option<Allowed>,
    pool_wait: Duration,
    answers: graphql::Answers,
    /// The repositories that numbers stand for, as listings named them.
    numbers: Cache<String, String>,
    routes: Routes,
    /// What we add to `Via`.
    pub via: HeaderValue,
    in_flight: Arc<InFlight<asked::Identity, Option<Shared>>>,
    writes: writes::Writes,
    /// Pages that were just shown to be there, or not to be.
    confirmed: Cache<pages::Fact, ()>,
    /// 404s that are remembered, and when they were given.
    missing: Cache<(KeyId, cached::Seer, bool), (u64, Shared)>,
    last_upstream_ok: AtomicU64,
    keeper: Arc<keep::Keeper>,
}

/// One confirmation serves all pages of a listing for this long.
const CONFIRMED_FOR: Duration = Duration::from_secs(5);
/// A 404 is remembered for a year at most.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);
/// How long what a credential of the pool had confirmed may stand in for another.
const POOL_IDS_FOR: Duration = Duration::from_secs(86_400);
/// How long it is believed that a number stands for a repository.
const NUMBERS_FOR: Duration = Duration::from_secs(3600);
/// What only an App itself can ask for, with its JWT or its secret: GitHub answers 401 to whoever else does.
const APPS_OWN: [&str; 2] = ["/app/", "/applications/"];
/// Fields by which some servers take a request for another than it is.
const OVERRIDES: [&str; 5] =
    ["x-http-method-override", "x-http-method", "x-method-override", "x-original-url", "x-rewrite-url"];
/// What we call ourselves in requests of our own: GitHub wants a User-Agent.
const AGENT: &str = concat!("ghtap/", env!("CARGO_PKG_VERSION"));
/// Bodies up to this size are read whole before they are sent on; larger ones pass through.
const SMALL: usize = 1 << 20;

impl Exchange {
    pub fn new(
        settings: Settings,
        origin: Arc<Origin>,
        store: Arc<Store>,
        ledger: Arc<Ledger>,
        metrics: Arc<Metrics>,
        credentials: Credentials,
        parties: Parties,
    ) -> Exchange {
        let via = HeaderValue::from_str(&format!("1.1 {}", settings.pseudonym)).expect("a token");
        let keeper = Arc::new(keep::Keeper::new(store.clone(), metrics.clone(), settings.max_object_bytes));
        let missing = Cache::builder()
            .max_capacity(100_000)
            .time_to_live(settings.not_found_ttl.clamp(Duration::from_millis(1), LONGEST));
        Exchange {
            via,
            origin,
            store,
            ledger,
            metrics,
            live: Live::default(),
            clients: parties.clients,
            outages: parties.outages,
            pool_ids: pool_ids(&parties.pool, &credentials),
            pool: parties.pool,
            allowed: parties.allowed,
            pool_wait: settings.pool_wait,
            answers: graphql::Answers::new(settings.graphql_ttl),
            numbers: Cache::builder().max_capacity(20_000).time_to_live(NUMBERS_FOR).build(),
            credentials,
            routes: Routes::new(),
            in_flight: Arc::default(),
            writes: writes::Writes::default(),
            confirmed: Cache::builder().max_capacity(10_000).time_to_live(CONFIRMED_FOR).build(),
            missing: missing.build(),
            last_upstream_ok: AtomicU64::new(0),
            keeper,
            settings,
        }
    }

    /// When GitHub last answered, in milliseconds since 1970; zero: never yet.
    pub fn last_upstream_ok(&self) -> u64 {
        self.last_upstream_ok.load(Ordering::Relaxed)
    }

    /// Answers a request that is for an API, whose host and credentials were checked.
    pub async fn serve(&self, caller: &Caller, api: &Api, request: Request<Incoming>) -> Response<Body> {
        let (parts, incoming) = request.into_parts();
        let expects = parts.headers.contains_key(header::EXPECT);
        let registered = self.clients.registered(&parts.headers);
        let mut asked = self.understand(caller, api, parts);
        if let Some(client) = &registered {
            asked.caller.client = client.name.clone();
            asked.of_registered = true;
            asked.is_plain_only();
        }
        let content = Content::of(incoming, self.settings.upload_idle, expects);
        let trace = Trace::begin(self, &asked);
        let answer = self.for_client(asked, &trace, registered, content).await;
        trace.end(answer)
    }

    /// Answers a client, if it may ask this.
    async fn for_client(
        &self,
        mut asked: Asked,
        trace: &Trace<'_>,
        registered: Option<Arc<Registered>>,
        mut content: Content,
    ) -> Answer {
        if self.is_loop(&asked.headers) {
            return Answer::failed(Error::Loop);
        }
        if let Err(error) = self.check_caller(&asked, registered.as_deref()) {
            return Answer::failed(error);
        }
        let is_graphql = Exchange::is_graphql(&asked.method, asked.path());
        if is_graphql || registered.is_some() {
            content = match content.gather(&self.keeper).await {
                Ok(content) => content,
                Err(error) => return Answer::failed(error),
            };
        }
        if is_graphql {
            asked.graphql = Some(Exchange::read_graphql(&asked, &content));
        }
        match registered {
            Some(client) => {
                if let Err(error) = self.check_scopes(&asked, trace, &client).await {
                    return Answer::failed(error);
                }
                let answer = Box::pin(self.with_pool(&asked, trace, content)).await;
                if client.scopes.is_some() {
                    self.note_numbers(&asked, &answer);
                }
                answer
            }
            None => {
                if let Err(answer) = self.admit(&asked, trace).await {
                    return answer;
                }
                self.answer(&asked, trace, &mut content).await
            }
        }
    }

    /// Whether this tap serves a caller: before anything of his is read or kept.
    fn check_caller(&self, asked: &Asked, registered: Option<&Registered>) -> Result<(), Error> {
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
    async fn check_scopes(&self, asked: &Asked, trace: &Trace<'_>, client: &Registered) -> Result<(), Error> {
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
        let path = match self.by_name(path) {
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
    fn by_name(&self, path: &str) -> Option<String> {
        let rest = path.strip_prefix("/repositories/")?;
        let (number, rest) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        Some(format!("/repos/{}{rest}", self.numbers.get(number)?))
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
        let base = if api_path(asked.path()) == asked.path() { "" } else { "/api/v3" };
        let mut question = asked.for_page(self, &format!("{base}/repositories/{number}"))?;
        question.is_plain_only();
        question.headers = allow::own_fields(&asked.headers);
        let answer = Box::pin(self.with_pool(&question, trace, Content::Empty)).await;
        let Body::Full(body) = &answer.body else { return None };
        let repository: Repository = serde_json::from_slice(body).ok().filter(|_| answer.status.is_success())?;
        self.numbers.insert(number.to_owned(), repository.full_name);
        self.by_name(path)
    }

    /// Learns which number a repository has from what GitHub links to, or redirects to.
    fn note_numbers(&self, asked: &Asked, answer: &Answer) {
        let text = |name| answer.headers.get(name).and_then(|v| v.to_str().ok());
        let links = text(header::LINK).map(crate::cache::listing::parse_links).unwrap_or_default();
        let moved = text(header::LOCATION).and_then(|l| l.strip_prefix("https://")?.split_once('/'));
        let moved = moved.filter(|(host, _)| **host == *asked.target.host).map(|(_, path)| format!("/{path}"));
        if links.is_empty() && moved.is_none() {
            return;
        }
        let path = api_path(asked.path());
        let path = self.by_name(path).map_or(Cow::Borrowed(path), Cow::Owned);
        let Some(named) = path.strip_prefix("/repos/") else { return };
        let Some((owner, rest)) = named.split_once('/') else { return };
        let (name, below) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        for target in links.iter().map(|(_, target)| target).chain(&moved) {
            let linked = api_path(target.split('?').next().unwrap_or_default());
            if let Some(linked) = linked.strip_prefix("/repositories/") {
                let (number, linked_below) = linked.split_at(linked.find('/').unwrap_or(linked.len()));
                if linked_below == below {
                    self.numbers.insert(number.to_owned(), format!("{owner}/{name}"));
                }
            }
        }
    }

    /// Whether a read is answered from the store, because GitHub is offline.
    fn is_unanswerable(&self, asked: &Asked) -> bool {
        let reads = matches!(asked.method, Method::GET | Method::HEAD);
        reads && asked.is_api && self.outages.is_offline(&asked.target)
    }

    /// Answers a request with the credential that it has.
    async fn answer(&self, asked: &Asked, trace: &Trace<'_>, content: &mut Content) -> Answer {
        if self.is_unanswerable(asked) {
            return self.offline(asked).await;
        }
        if asked.graphql.is_some() {
            return self.graphql(asked, trace, content).await;
        }
        let eligible = match asked.is_api {
            true => {
                let has_content = !content.is_empty();
                policy::eligible(&asked.method, asked.path(), &asked.headers, has_content, &asked.precondition)
            }
            false => Err(Bypass::NotApi),
        };
        match eligible {
            Ok(()) => self.cached(asked, trace).await,
            Err(bypass) => self.forward(asked, trace, content, bypass).await,
        }
    }

    /// What reports call a credential: with its host, where more than one API is served.
    fn realm_name(&self, realm: &str, name: &Arc<str>) -> Arc<str> {
        match self.settings.several_realms && realm != github::API_HOST {
            true => format!("{name}@{realm}").into(),
            false => name.clone(),
        }
    }

    /// Whether a request with these fields has come through this tap before.
    pub fn is_loop(&self, headers: &http::HeaderMap) -> bool {
        let seen = headers.get_all(header::VIA).iter().filter_map(|v| v.to_str().ok());
        seen.flat_map(|v| v.split([',', ' '])).any(|word| word == self.settings.pseudonym)
    }

    /// Past the cache: as it came, streamed both ways.
    async fn forward(&self, asked: &Asked, trace: &Trace<'_>, content: &mut Content, bypass: Bypass) -> Answer {
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

    /// Learns whom a credential acts for.
    fn learn(&self, asked: &Asked, headers: &http::HeaderMap, body: &[u8]) {
        let gzip = headers.get(header::CONTENT_ENCODING).is_some_and(|v| v == "gzip");
        let plain = if gzip { body::gunzip(body, SMALL as u64) } else { None };
        let body = plain.as_deref().unwrap_or(body);
        self.ledger.learn(self.credentials.learn(&asked.method, asked.path(), asked.credential, body));
    }

    /// Sends one request to GitHub, and records it: also when it is cut off.
    async fn send(
        &self,
        asked: &Asked,
        trace: &Trace<'_>,
        request: Request<RequestBody>,
    ) -> Result<Response<origin::UpstreamBody>, origin::Error> {
        let sending = trace.sending(asked);
        let result = self.origin.send(&asked.target, request).await;
        match &result {
            Ok(response) => {
                sending.answered(response);
                self.outages.answered(&asked.target, response.status());
                if let Some(pooled) = &asked.pooled {
                    pooled.account.observe(&crate::github::limits::Quota::read(response.headers()), now_ms());
                }
                self.last_upstream_ok.store(now_ms(), Ordering::Relaxed);
            }
            Err(error) => {
                sending.failed(error);
                self.outages.failed(&asked.target, error);
            }
        }
        result.map(|mut response| {
            crate::fields::strip_hop_by_hop(response.headers_mut());
            response
        })
    }
}

/// Personal tokens are known from the start, so that what they had confirmed before it stands in.
fn pool_ids(pool: &Pool, credentials: &Credentials) -> Cache<CredentialId, ()> {
    let ids = Cache::builder().max_capacity(10_000).time_to_live(POOL_IDS_FOR).build();
    for account in pool.accounts() {
        if let Kind::Token(secret) = &account.kind {
            let headers = http::HeaderMap::from_iter([(header::AUTHORIZATION, secret.authorization.clone())]);
            ids.insert(credentials.identify(&headers), ());
        }
    }
    ids
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

/// An error within a response's content.
fn broken_off(error: body::Error) -> Error {
    match error.downcast::<origin::Error>() {
        Ok(error) => Error::Origin(*error),
        Err(error) => match error.downcast::<hyper::Error>() {
            Ok(error) => Error::Origin(origin::Error::Closed(*error)),
            Err(_) => Error::Origin(origin::Error::Busy),
        },
    }
}
