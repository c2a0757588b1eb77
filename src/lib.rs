//! ghtap: a tap on the line to GitHub.
//!
//! A forward proxy that terminates TLS for `api.github.com` alone, turns every GET into a conditional
//! request against an on-disk store, and counts every call. All other traffic passes through untouched.
//!
//! # The life of one request
//!
//! 1. [`server`] accepts, under a connection limit; the request head has a time to arrive in.
//! 2. [`proxy`] looks at the request-target. `CONNECT` to another host: [`tunnel`]. To an intercepted one: 200, read the
//!    ClientHello ([`tls::hello`]), check its server name, terminate with a leaf of our CA ([`tls::authority`]), and
//!    serve HTTP/1.1 or HTTP/2 by ALPN. Origin-form: for the API, too; the answer's URLs become ours ([`rewrite`]).
//! 3. [`clients`] names the client and its run, and refuses who is not known, where that is asked for. A client of the
//!    registry has scopes, and is served with a credential of the [`pool`].
//! 4. [`exchange`]: not eligible for the cache, it is forwarded; eligible, looked up, asked with our validator, answered.
//!    While GitHub is offline, from what is stored.
//! 5. [`calls`] records it once: in the log, the metrics and the ledger. [`admin`] shows what was recorded.
//!
//! Arrows run one way: `cli → config, server → proxy → {tunnel, exchange}`, `exchange → {clients, pool, github, cache, origin, calls}`;
//! inside `cache`, the pure rooms know neither tokio nor sled nor the clock. Nobody below `server` sees `Config`.
//!
//! # Where the house differs from the first map
//!
//! - [`workers`]: each thread that serves connections has a runtime of its own, and its own pool of connections to
//!   GitHub, so that no request wakes another thread. [`server`] only accepts and hands out.
//! - [`exchange`], [`origin`] and [`proxy`] are folders: one concern a file.
//! - [`cache::listing`] and [`cache::precondition`] are pure rooms beside `policy`, which chooses the validator.
//! - [`body`], [`clock`], [`disk`], [`drain`], [`patient`], [`rewrite`] and [`scrape`] are small things that several rooms share.
//! - [`pool`] is a room of its own: which of GitHub's credentials asks is neither the client's affair nor GitHub's.
//! - [`config`] is a folder: options, how they are read, what values look like, and the mirrors' variables.
//! - [`cache::sled`] keeps the index only; records and bodies lie in a log of segments beside it. sled 0.34 holds many
//!   small values well, and large ones badly.
//! - [`calls`] has a ledger of three tiers (minutes, hours, days), and keeps runs apart from them.
//! - `src/main.rs` needs no `anyhow`: a subcommand's failure is one line already.
//!
//! # What is deliberately not done
//!
//! - No HTTP/2 upstream. One request, one connection from a pool costs no wake-up of another thread, and GitHub
//!   limits requests, not connections.
//! - No lists in `If-None-Match`: whether GitHub reads more than one tag is not known.
//! - No guess of `[]` where the answer would be pretty-printed (its bytes are not known), nor past the first page
//!   (GitHub's empty page has a `Link` there).
//! - No compression towards clients of reverse mode and of the registry: their content is read on its way.
//! - No retry of a write that GitHub may have acted on.
//! - No joining of a request that was made more than a second ago: its answer may be older than the question.
//! - Nothing is served that GitHub has not confirmed in this very exchange, unless the operator asked for it or
//!   GitHub cannot answer.

#![forbid(unsafe_code)]

pub mod admin;
pub mod body;
pub mod cache;
pub mod calls;
pub mod cli;
pub mod clients;
pub mod clock;
pub mod config;
pub mod disk;
pub mod drain;
pub mod error;
pub mod exchange;
pub mod fields;
pub mod github;
pub mod metrics;
pub mod origin;
pub mod patient;
pub mod pool;
pub mod proxy;
pub mod rewrite;
pub mod scrape;
pub mod server;
pub mod tls;
pub mod tunnel;
pub mod workers;
