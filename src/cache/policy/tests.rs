use super::*;
use crate::cache::key::Key;
use crate::cache::stored::{BodyId, Coding, Representation};
use crate::github::credentials::Credentials;
use crate::github::etag::Recipe;

fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
    fields.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect()
}

fn credential(token: &str) -> CredentialId {
    Credentials::new(b"s").identify(&headers(&[("authorization", token)]))
}

fn validator(token: &str, etag: Option<&str>, principal: Option<&str>, confirmed_at: u64) -> Validator {
    Validator {
        credential: credential(token),
        principal: principal.map(Principal::named),
        etag: etag.map(str::to_owned),
        last_modified: Some("Tue, 03 Mar 2026 10:00:00 GMT".into()),
        confirmed_at,
        max_age: 60,
    }
}

fn representation(body: &[u8], recipe: bool, validators: Vec<Validator>) -> Representation {
    Representation {
        body: BodyId::of(body),
        body_len: 1,
        plain_len: 1,
        coding: Coding::Identity,
        head: Vec::new(),
        recipe: recipe.then_some(Recipe::USUAL),
        elements: None,
        stored_at: 0,
        validators,
    }
}

fn entry(representations: Vec<Representation>) -> Entry {
    Entry { key: Key::of("api.github.com", "/x", &HeaderMap::new()), representations }
}

fn asker<'a>(token: &str, precondition: &'a Precondition) -> Asker<'a> {
    Asker {
        credential: credential(token),
        principal: None,
        precondition,
        may_be_empty_list: false,
        expected_etag: true,
    }
}

#[test]
fn who_may_use_the_cache() {
    for (method, path, fields, expected) in [
        (Method::GET, "/x", vec![], Ok(())),
        (Method::HEAD, "/x", vec![], Ok(())),
        (Method::POST, "/x", vec![], Err(Bypass::Method)),
        (Method::GET, "/x", vec![("range", "bytes=0-1")], Err(Bypass::Range)),
        (Method::GET, "/rate_limit", vec![], Err(Bypass::RateLimit)),
        (Method::GET, "/x", vec![("cache-control", "max-age=0, No-Store")], Err(Bypass::NoStore)),
        (Method::GET, "/x", vec![("cache-control", "no-cache")], Ok(())),
        (Method::GET, "/x", vec![("if-match", "\"a\"")], Err(Bypass::Precondition)),
        (Method::GET, "/x", vec![("x-github-otp", "1")], Err(Bypass::Varies)),
        (Method::GET, "/x", vec![("if-none-match", "\"a\"")], Ok(())),
    ] {
        let fields = headers(&fields);
        assert_eq!(eligible(&method, path, &fields, false, &Precondition::of(&fields)), expected, "{method} {path}");
    }
    assert_eq!(eligible(&Method::GET, "/x", &headers(&[]), true, &Precondition::None), Err(Bypass::Body));
}

#[test]
fn what_may_be_stored() {
    let vary = "Accept, Authorization, Cookie, X-GitHub-OTP,Accept-Encoding, Accept, X-Requested-With";
    for (status, fields, framed, expected) in [
        (200, vec![("etag", "\"a\""), ("vary", vary)], true, Ok(())),
        (200, vec![("last-modified", "x")], true, Ok(())),
        (200, vec![], true, Err(NotStored::NoValidator)),
        (200, vec![("etag", "\"a\""), ("cache-control", "private, no-store")], true, Err(NotStored::NoStore)),
        (200, vec![("etag", "\"a\""), ("vary", "*")], true, Err(NotStored::Varies)),
        (200, vec![("etag", "\"a\""), ("vary", "Accept, X-New")], true, Err(NotStored::Varies)),
        (200, vec![("etag", "\"a\""), ("content-encoding", "br")], true, Err(NotStored::Coding)),
        (200, vec![("etag", "\"a\"")], false, Err(NotStored::Unframed)),
        (202, vec![("etag", "\"a\"")], true, Err(NotStored::Status)),
        (301, vec![("etag", "\"a\"")], true, Err(NotStored::Status)),
        (404, vec![("etag", "\"a\"")], true, Err(NotStored::Status)),
        (206, vec![("etag", "\"a\"")], true, Err(NotStored::Status)),
    ] {
        let status = StatusCode::from_u16(status).unwrap();
        assert_eq!(storable(status, &headers(&fields), framed), expected, "{status} {fields:?}");
    }
}

#[test]
fn the_order_of_validators() {
    let none = Precondition::None;
    let stored = entry(vec![representation(b"1", true, vec![validator("a", Some("\"1\""), None, 1)])]);
    // Its own tag; the expected one for a stranger; nothing where the recipe does not hold.
    assert_eq!(ask(Some(&stored), &asker("a", &none)), Ask::Own(0));
    assert_eq!(ask(Some(&stored), &asker("b", &none)), Ask::Expected(0));
    let off = Asker { expected_etag: false, ..asker("b", &none) };
    assert_eq!(ask(Some(&stored), &off), Ask::Plain);
    let unlike = entry(vec![representation(b"1", false, vec![validator("a", Some("\"1\""), None, 1)])]);
    assert_eq!(ask(Some(&unlike), &asker("b", &none)), Ask::Plain);
    // A date only without a tag, and never another credential's.
    let dated = entry(vec![representation(b"1", false, vec![validator("a", None, None, 1)])]);
    assert_eq!(ask(Some(&dated), &asker("a", &none)), Ask::Since(0));
    assert_eq!(ask(Some(&dated), &asker("b", &none)), Ask::Plain);
    // The empty list: nothing stored, an array, a credential.
    let list = |token| Asker { may_be_empty_list: true, ..asker(token, &none) };
    assert_eq!(ask(None, &list("a")), Ask::EmptyList);
    assert_eq!(ask(Some(&dated), &list("b")), Ask::Plain);
    assert_eq!(ask(None, &asker("a", &none)), Ask::Plain);
    assert_eq!(ask(None, &Asker { credential: CredentialId::ANONYMOUS, ..list("a") }), Ask::Plain);
    assert_eq!(ask(None, &Asker { expected_etag: false, ..list("a") }), Ask::Plain);
}

#[test]
fn what_a_principal_was_shown_last_is_expected() {
    let none = Precondition::None;
    let (p, q) = (Some("installation:1"), Some("installation:2"));
    let stored = entry(vec![
        representation(b"1", true, vec![validator("a", Some("\"1\""), p, 1), validator("old", Some("\"o\""), q, 5)]),
        representation(b"2", true, vec![validator("b", Some("\"2\""), p, 2)]),
    ]);
    let principal = Principal::named("installation:1");
    let known = |token| Asker { principal: Some(&principal), ..asker(token, &none) };
    assert_eq!(ask(Some(&stored), &known("new")), Ask::Expected(1));
    assert_eq!(ask(Some(&stored), &known("a")), Ask::Expected(1), "b of the same principal saw a newer one");
    assert_eq!(ask(Some(&stored), &known("b")), Ask::Own(1));
    assert_eq!(ask(Some(&stored), &asker("a", &none)), Ask::Own(0), "unknown principals keep to their own");
    assert_eq!(ask(Some(&stored), &asker("new", &none)), Ask::Expected(0), "confirmed last");
}

#[test]
fn the_clients_own_precondition() {
    let tags = |t: &str| Precondition::Tags(vec![t.into()]);
    let stored = entry(vec![
        representation(b"1", true, vec![validator("b", Some("W/\"1\""), None, 1)]),
        representation(b"2", true, vec![validator("a", Some("\"2\""), None, 2)]),
    ]);
    assert_eq!(ask(Some(&stored), &asker("a", &tags("2"))), Ask::Own(1), "current");
    assert_eq!(ask(Some(&stored), &asker("a", &tags("1"))), Ask::Own(1), "known and older");
    assert_eq!(ask(Some(&stored), &asker("a", &tags("?"))), Ask::AsClient, "unknown");
    assert_eq!(ask(None, &asker("a", &tags("2"))), Ask::AsClient);
    let since = Precondition::Since("x".into());
    assert_eq!(ask(Some(&stored), &asker("a", &since)), Ask::Own(1));
    assert_eq!(ask(None, &asker("a", &since)), Ask::AsClient);
    let list = Asker { may_be_empty_list: true, ..asker("a", &since) };
    assert_eq!(ask(None, &list), Ask::AsClient);
}

#[test]
fn freshness_is_the_operators_choice() {
    let v = validator("a", Some("\"1\""), None, 100_000);
    let minute = Freshness::For(Duration::from_secs(60));
    for (freshness, request, written_at, now, fresh) in [
        (Freshness::Revalidate, vec![], 0, 100_000, false),
        (Freshness::Origin, vec![], 0, 159_999, true),
        (Freshness::Origin, vec![], 0, 160_000, false),
        (minute, vec![], 0, 159_999, true),
        (minute, vec![], 100_000, 100_001, false),
        (minute, vec![], 99_999, 100_001, true),
        (minute, vec![("cache-control", "no-cache")], 0, 100_001, false),
        (minute, vec![("cache-control", "max-age=0")], 0, 100_001, false),
        (minute, vec![("cache-control", "max-age=5")], 0, 104_999, true),
        (minute, vec![("cache-control", "max-age=5")], 0, 105_000, false),
        (minute, vec![("pragma", "no-cache")], 0, 100_001, false),
    ] {
        assert_eq!(
            is_fresh(freshness, &v, &headers(&request), written_at, now),
            fresh,
            "{freshness:?} {request:?} {now}"
        );
    }
}

#[test]
fn what_errors_mean() {
    use Means::*;
    for (status, limited, expected) in [
        (200, false, Answer),
        (202, false, Answer),
        (301, false, Answer),
        (422, false, Answer),
        (401, false, Revoked),
        (403, false, Revoked),
        (404, false, Revoked),
        (410, false, Revoked),
        (403, true, Unavailable(super::Unavailable::RateLimited)),
        (429, true, Unavailable(super::Unavailable::RateLimited)),
        (500, false, Unavailable(super::Unavailable::ServerError)),
        (503, false, Unavailable(super::Unavailable::ServerError)),
    ] {
        assert_eq!(means(StatusCode::from_u16(status).unwrap(), limited), expected, "{status}");
    }
    let v = validator("a", None, None, 1_000);
    assert!(may_serve_stale(&v, Duration::from_secs(10), 11_000));
    assert!(!may_serve_stale(&v, Duration::from_secs(10), 11_001));
    assert!(!may_serve_stale(&v, Duration::ZERO, 1_001));
}
