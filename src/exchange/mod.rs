//! One API request, from an identified client to a counted response.
//!
//! [`Exchange::serve`] is the way of it: understand the request (`asked`), see who it is and what they may (`allow`,
//! `client`), ask with a credential of the pool where it is a client of ours (`pooled`, `minting`), let it past the cache
//! (`forward`) or through it (`cached`, `graphql`), confirm a listing (`pages`), take the answer in (`answered`, `keep`) or reuse what is
//! stored (`reuse`), also while GitHub is offline (`outage`), shape it for the client (`answer`), count (`tally`).

mod allow;
mod answer;
mod answered;
mod asked;
mod cached;
mod client;
mod content;
mod forward;
mod graphql;
mod keep;
mod minting;
mod outage;
mod pages;
mod pooled;
mod reuse;
mod tally;
mod writes;

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
use crate::calls::ledger::Ledger;
use crate::calls::live::Live;
use crate::clients::{Caller, Clients, Registered};
pub use crate::clock::now_ms;
use crate::error::Error;
use crate::github::credentials::{CredentialId, Credentials};
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
    /// The repositories that numbers stand for at an API, as listings named them.
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
                if self.allowed.is_some() {
                    // Its name may have been learned just now.
                    asked.principal = self.credentials.principal(asked.credential);
                    asked.credential_name = self.realm_name(&asked.realm, &self.credentials.name(asked.credential));
                    trace.asks_as(&asked.credential_name);
                }
                self.answer(&asked, trace, &mut content).await
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
