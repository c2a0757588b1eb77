//! The pure parts that every request goes through.

#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]

use criterion::{Criterion, criterion_group, criterion_main};
use http::HeaderMap;
use std::hint::black_box;
use std::sync::Arc;

use ghtap::cache::key::Key;
use ghtap::cache::stored::{BodyId, Coding, Entry, Representation, Validator, read_head, write_head};
use ghtap::calls::Outcome;
use ghtap::calls::ledger::{Keep, Ledger};
use ghtap::calls::live::{Call, Live};
use ghtap::calls::row::{Counts, Dimensions};
use ghtap::clients::ClientsFile;
use ghtap::github::credentials::Credentials;
use ghtap::github::etag::Recipe;
use ghtap::github::limits::Quota;
use ghtap::github::routes::Routes;
use ghtap::metrics::Metrics;

fn request() -> HeaderMap {
    let fields = [
        ("accept", "application/vnd.github+json"),
        ("authorization", "token ghs_0123456789012345678901234567890123456"),
        ("user-agent", "PyGithub/Python"),
        ("host", "api.github.com"),
    ];
    fields.into_iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect()
}

fn response() -> HeaderMap {
    let mut headers = HeaderMap::new();
    for i in 0..20 {
        let name: http::HeaderName = format!("x-field-{i}").parse().unwrap();
        headers.insert(name, "a value of usual length".parse().unwrap());
    }
    headers
}

fn entry(body: &[u8]) -> Entry {
    let key = Key::of("api.github.com", "/repos/o/r", &request());
    let credential = Credentials::new(b"s").identify(&request());
    let mut entry = Entry::new(key);
    let representation = Representation {
        body: BodyId::of(body),
        body_len: body.len() as u64,
        plain_len: body.len() as u64,
        coding: Coding::Identity,
        head: write_head(&response()),
        recipe: Some(Recipe::USUAL),
        elements: None,
        stored_at: 0,
        validators: Vec::new(),
    };
    let etag = Some(Recipe::USUAL.expected(&request(), body));
    entry.put(
        representation,
        Validator { credential, principal: None, etag, last_modified: None, confirmed_at: 0, max_age: 60 },
    );
    entry
}

fn pure(c: &mut Criterion) {
    let (request, body) = (request(), vec![b'x'; 6000]);
    c.bench_function("key", |b| {
        b.iter(|| Key::of("api.github.com", black_box("/repos/o/r/pulls?state=open"), &request).id())
    });
    c.bench_function("expected ETag of 6 KB", |b| b.iter(|| Recipe::USUAL.expected(black_box(&request), &body)));
    let head = write_head(&response());
    c.bench_function("stored head decode", |b| b.iter(|| read_head(black_box(&head))));
    let record = entry(&body).encode();
    c.bench_function("entry decode", |b| b.iter(|| Entry::decode(black_box(&record))));
    let credentials = Credentials::new(b"secret");
    c.bench_function("credential digest", |b| b.iter(|| credentials.identify(black_box(&request))));
    let routes = Routes::new();
    c.bench_function("route", |b| b.iter(|| routes.find(&http::Method::GET, black_box("/repos/o/r/pulls/7/commits"))));
}

/// All that counting a call on the hit path is, but for the log.
fn counting(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path(), Keep::default()).unwrap();
    let (metrics, live) = (Metrics::new(), Live::default());
    let [client, run, none, host, credential]: [Arc<str>; 5] =
        ["ci".into(), "run-1".into(), "".into(), "api.github.com".into(), "installation:7".into()];
    let quota = Quota {
        limit: Some(5000),
        remaining: Some(4000),
        used: Some(1000),
        reset: Some(9_999_999_999),
        resource: Some("core"),
    };
    let mut now = 1_800_000_000_000;
    let mut count = |run: &Arc<str>| {
        now += 1;
        ledger.quotas.observe(&credential, &quota, 0, now);
        metrics.sent(&host, "GET /repos/{owner}/{repo}", &client, "304", false);
        metrics.called(&host, "revalidated", 0.001);
        metrics.mirrored(Some("ONLINE_HIT"), http::StatusCode::OK, &http::Method::GET, &credential, 0.001);
        let mut counts = Counts { calls: 1, sent: 1, bytes: 6000, micros: 300, ..Counts::default() };
        counts.times.add(300);
        let dimensions = Dimensions {
            client: client.clone(),
            host: host.clone(),
            route: "GET /repos/{owner}/{repo}".into(),
            credential: credential.clone(),
            status: 200,
            outcome: Outcome::Revalidated,
            resource: "core".into(),
            in_run: !run.is_empty(),
        };
        ledger.add(dimensions, run, &counts, now);
        live.publish(Call {
            at: now,
            client: client.clone(),
            run: run.clone(),
            host: host.clone(),
            route: "GET /repos/{owner}/{repo}",
            credential: credential.clone(),
            status: 200,
            outcome: "revalidated",
            charged: 0,
            remaining: Some(4000),
            ms: 0.3,
        });
    };
    c.bench_function("count a call", |b| b.iter(|| count(&none)));
    c.bench_function("count a call of a run", |b| b.iter(|| count(&run)));
}

/// A request of one of 1,000 registered clients with 20 scopes each, of which the last fits: by its token, then its scopes.
fn authorising(c: &mut Criterion) {
    use std::fmt::Write;
    let mut registry = String::from("version: 1\nclients:\n");
    for client in 0..1000 {
        let _ = write!(registry, "- name: client-{client}\n  token: secret-{client}\n  scopes:\n");
        for scope in 0..20 {
            let _ = write!(
                registry,
                "  - method: GET\n    path: /repos/acme/tool-{client}-{scope}/(pulls|issues)/[0-9]+(/.*)?\n"
            );
        }
    }
    let file = ClientsFile::parse(&registry, []).unwrap();
    let headers = |n: usize| -> HeaderMap {
        let pair = ("authorization".parse().unwrap(), format!("token secret-{n}").parse().unwrap());
        [pair].into_iter().collect()
    };
    let asked: Vec<_> = (0..1000).map(|n| (headers(n), format!("/repos/acme/tool-{n}-19/pulls/7/commits"))).collect();
    let mut next = 0;
    let mut authorise = || {
        let (headers, path) = &asked[next % asked.len()];
        next += 7;
        let client = ClientsFile::registered(black_box(&file), headers).unwrap();
        client.scopes.as_ref().unwrap().check(&client.name, &http::Method::GET, path, None).unwrap();
    };
    (0..1000).for_each(|_| authorise());
    c.bench_function("authorise one of 1,000 clients with 20 scopes", |b| b.iter(&mut authorise));
}

criterion_group!(benches, pure, counting, authorising);
criterion_main!(benches);
