//! When GitHub cannot answer, or answers wrongly: what the client gets, that the next request works, and that
//! nothing wrong is stored.

use serde_json::json;

use crate::support::github::Resource;
use crate::support::{Client, GitHub, Misbehaviour, Tap};

const R: &str = "/repos/o/r";

async fn start(more: &[&str]) -> (GitHub, Tap) {
    let github = GitHub::start().await;
    github.set(R, json!({ "full_name": "o/r", "text": "x".repeat(2000) }));
    let tap = Tap::start(&github, &[&["--upstream-timeout=1s"], more].concat()).await;
    (github, tap)
}

/// Every way of failing that a stored response stands in for, and its name in `X-Cache`.
fn failures() -> Vec<(Misbehaviour, &'static str)> {
    let limited = |status, message, fields: &[(&'static str, &str)]| {
        Misbehaviour::Refuse(status, message, fields.iter().map(|(n, v)| (*n, v.to_string())).collect())
    };
    vec![
        (Misbehaviour::Status(500, "Server Error"), "API_ERROR_HIT"),
        (Misbehaviour::Status(503, "Unavailable"), "API_ERROR_HIT"),
        (
            limited(403, "API rate limit exceeded for installation ID 7.", &[("X-RateLimit-Remaining", "0")]),
            "RATE_LIMITED_HIT",
        ),
        (limited(403, "You have exceeded a secondary rate limit.", &[]), "RATE_LIMITED_HIT"),
        (limited(429, "Too many", &[("Retry-After", "60")]), "RATE_LIMITED_HIT"),
        (Misbehaviour::NeverAnswer, "API_TIMEOUT_HIT"),
        (Misbehaviour::Close, "API_CONNECTION_ERROR_HIT"),
        (Misbehaviour::Raw(b"nonsense\r\n\r\n".to_vec()), "API_CONNECTION_ERROR_HIT"),
    ]
}

#[tokio::test]
async fn what_was_confirmed_stands_in() {
    let (github, tap) = start(&[]).await;
    let mut client = Client::connect(&tap).await;
    let good = client.get(R, "a", &[]).await;
    for (how, x_cache) in failures() {
        github.misbehave(R, how.clone());
        let reply = client.get(R, "a", &[]).await;
        assert_eq!((reply.status, reply.x_cache(), &reply.body), (200, x_cache, &good.body), "{how:?}");
        assert!(reply.field("age").is_some() && reply.field("x-ratelimit-remaining").is_none(), "{how:?}");
        assert!(reply.field("cache-status").unwrap().starts_with("ghtap; hit; fwd=stale"), "{how:?}");
        // Never for a credential that has not had it confirmed.
        let other = client.get(R, "b", &[]).await;
        assert_ne!(other.status, 200, "{how:?}");
        github.behave();
        let after = client.get(R, "a", &[]).await;
        assert_eq!((after.status, after.x_cache()), (200, "ONLINE_HIT"), "{how:?}");
    }
    assert_eq!(
        tap.metric("ghtap_calls_total{host=\"api.github.com\",outcome=\"stale\"}").await,
        failures().len() as f64
    );
}

#[tokio::test]
async fn without_a_stored_response_the_error_is_passed_on() {
    let (github, tap) = start(&["--stale-max-age=0s"]).await;
    let mut client = Client::connect(&tap).await;
    client.get(R, "a", &[]).await;
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    for (how, status) in [
        (Misbehaviour::Status(503, "Unavailable"), 503),
        (Misbehaviour::Status(429, "Too many"), 429),
        (Misbehaviour::NeverAnswer, 504),
        (Misbehaviour::Close, 502),
        (Misbehaviour::Raw(b"nonsense\r\n\r\n".to_vec()), 502),
        (Misbehaviour::UnaskedNotModified, 304),
    ] {
        github.misbehave("/repos/o/new", how.clone());
        github.misbehave(R, how.clone());
        let reply = client.get(R, "a", &[]).await;
        if status != 304 {
            assert_eq!(reply.status, status, "{how:?}");
        }
        let new = client.get("/repos/o/new", "a", &[]).await;
        let expected = if status == 304 { 502 } else { status };
        assert_eq!(new.status, expected, "{how:?}");
        assert!(new.json()["message"].is_string(), "in GitHub's shape: {new:?}");
        if matches!(expected, 502 | 504) {
            assert!(new.field("proxy-status").unwrap().starts_with("ghtap; error="), "{new:?}");
        }
        github.behave();
        assert_eq!(client.get(R, "a", &[]).await.status, 200, "{how:?}");
    }
}

#[tokio::test]
async fn refusals_end_a_credentials_right_at_once() {
    for status in [401, 404, 410, 403] {
        let (github, tap) = start(&[]).await;
        let mut client = Client::connect(&tap).await;
        client.get(R, "a", &[]).await;
        client.get(R, "b", &[]).await;
        github.misbehave(R, Misbehaviour::Status(status, "No"));
        assert_eq!(client.get(R, "a", &[]).await.status, status);
        github.misbehave(R, Misbehaviour::Status(503, "Unavailable"));
        assert_eq!(client.get(R, "a", &[]).await.status, 503, "after {status}");
        assert_eq!(client.get(R, "b", &[]).await.status, 200, "another keeps its own");
    }
}

#[tokio::test]
async fn broken_bodies_are_neither_stored_nor_passed_off_as_whole() {
    let (github, tap) = start(&[]).await;
    for how in [Misbehaviour::ResetMidBody, Misbehaviour::LieAboutLength] {
        github.misbehave(R, how.clone());
        let mut client = Client::connect(&tap).await;
        let reply = client.get(R, "a", &[]).await;
        assert_eq!(reply.status, 502, "{how:?}: small ones are read whole before the head goes out");
        github.behave();
        let after = client.get(R, "a", &[("Accept", &format!("x{how:?}"))]).await;
        assert_eq!((after.status, after.x_cache()), (200, "ONLINE_MISS"), "{how:?}");
    }
    github.misbehave(R, Misbehaviour::BrokenGzip);
    let mut client = Client::connect(&tap).await;
    let broken = client.get(R, "a", &[("Accept-Encoding", "gzip")]).await;
    assert!(broken.raw.starts_with(b"\x1f\x8b"), "as GitHub sent it");
    assert!(!broken.field("cache-status").unwrap().contains("stored"));
    github.behave();
    let mended = client.get(R, "a", &[("Accept-Encoding", "gzip")]).await;
    assert_eq!((mended.x_cache(), mended.json()["full_name"].as_str()), ("ONLINE_MISS", Some("o/r")));
}

#[tokio::test]
async fn a_large_body_that_breaks_breaks_for_the_client_too() {
    let (github, tap) = start(&[]).await;
    let large = Resource { body: vec![b'x'; 4 << 20], content_type: Some("text/plain".into()), ..Resource::default() };
    github.put("/repos/o/r/large", large);
    for how in [Misbehaviour::ResetMidBody, Misbehaviour::LieAboutLength] {
        github.misbehave("/repos/o/r/large", how.clone());
        let mut client = Client::connect(&tap).await;
        client.send("GET /repos/o/r/large HTTP/1.1\r\nHost: api.github.com\r\nAuthorization: token a\r\n\r\n").await;
        // Where the head has gone out by then, the connection ends before the content.
        if let Ok(reply) = client.read(false).await {
            assert_eq!(reply.status, 502, "{how:?}");
        }
    }
    github.behave();
    let mut client = Client::connect(&tap).await;
    let reply = client.get("/repos/o/r/large", "a", &[]).await;
    assert_eq!((reply.body.len(), reply.x_cache()), (4 << 20, "ONLINE_MISS"));
    // A large one is stored behind the client's back, when its end has gone by.
    for _ in 0..100 {
        if tap.metric("ghtap_store_entries").await > 0.0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let reply = client.get("/repos/o/r/large", "a", &[]).await;
    assert_eq!((reply.body.len(), reply.x_cache()), (4 << 20, "ONLINE_HIT"));
}

#[tokio::test]
async fn a_304_with_another_tag_confirms_nothing() {
    let (github, tap) = start(&[]).await;
    let mut client = Client::connect(&tap).await;
    client.get(R, "a", &[]).await;
    github.arrived();
    github
        .misbehave(R, Misbehaviour::Raw(b"HTTP/1.1 304 X\r\nETag: \"another\"\r\nConnection: close\r\n\r\n".to_vec()));
    let reply = client.get(R, "a", &[]).await;
    assert_eq!(reply.status, 502, "asked again without a tag, it still says 304");
    let asked: Vec<_> = github.arrived().iter().map(|a| a.headers.contains_key("if-none-match")).collect();
    assert_eq!(asked, [true, false]);
}

#[tokio::test]
async fn an_unreachable_github_is_said_so() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let tap = Tap::with(vec![format!("--resolve=api.github.com:443:{closed}")]).await;
    let mut client = Client::connect(&tap).await;
    let reply = client.get(R, "a", &[]).await;
    assert_eq!((reply.status, reply.field("proxy-status")), (502, Some("ghtap; error=connection_refused")));
    assert!(reply.json()["message"].as_str().unwrap().starts_with("ghtap: cannot connect to api.github.com:443"));
    let charged = tap.metric("ghtap_upstream_requests_total").await;
    assert_eq!(charged, 0.0, "what never left is not counted as sent");
}

#[tokio::test]
async fn an_untrusted_origin_is_refused() {
    let github = GitHub::start().await;
    let tap = Tap::with(vec![format!("--resolve=api.github.com:443:{}", github.address)]).await;
    let reply = Client::connect(&tap).await.get(R, "a", &[]).await;
    assert_eq!((reply.status, reply.field("proxy-status")), (502, Some("ghtap; error=tls_certificate_error")));
    assert!(github.arrived().is_empty());
}

#[tokio::test]
async fn nothing_stands_in_for_a_certificate_that_is_not_trusted() {
    let github = GitHub::start().await;
    github.set(R, json!({ "full_name": "o/r" }));
    let mut tap = Tap::start(&github, &[]).await;
    assert_eq!(Client::connect(&tap).await.get(R, "a", &[]).await.status, 200);
    assert_eq!(tap.terminate().await, Some(0));
    tap.forget_upstream_ca();
    tap.launch().await;
    let reply = Client::connect(&tap).await.get(R, "a", &[]).await;
    assert_eq!((reply.status, reply.field("proxy-status")), (502, Some("ghtap; error=tls_certificate_error")));
}
