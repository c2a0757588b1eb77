//! The pure parts that every request goes through.

#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]

use criterion::{Criterion, criterion_group, criterion_main};
use http::HeaderMap;
use std::hint::black_box;

use ghtap::cache::key::Key;
use ghtap::cache::stored::{BodyId, Coding, Entry, Representation, Validator, read_head, write_head};
use ghtap::github::credentials::Credentials;
use ghtap::github::etag::Recipe;
use ghtap::github::routes::Routes;

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

criterion_group!(benches, pure);
criterion_main!(benches);
