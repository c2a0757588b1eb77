//! GitHub offline: seen by what happens or told by its status page; answered from the store, and ended by a probe.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::client::Reply;
use crate::support::{Client, GitHub, Misbehaviour, Tap};

async fn start(more: &[&str]) -> (GitHub, Tap, Client) {
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "id": 1 }));
    github.set("/repos/o/never-asked", json!({ "id": 2 }));
    let tap = Tap::start(&github, more).await;
    let mut client = Client::connect(&tap).await;
    assert_eq!(client.get("/repos/o/r", "t", &[]).await.status, 200);
    (github, tap, client)
}

/// Asks until it is offline, or online; gives the last answer.
async fn until(client: &mut Client, x_cache: &str, target: &str) -> Reply {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let reply = client.get(target, "t", &[]).await;
        if reply.x_cache() == x_cache {
            return reply;
        }
        assert!(Instant::now() < deadline, "{x_cache} never came: {reply:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn an_outage_is_seen_answered_from_the_store_and_its_end_is_found() {
    let (github, tap, mut client) = start(&["--offline-after=3"]).await;
    github.misbehave("*", Misbehaviour::Status(503, "down"));
    let reply = until(&mut client, "OFFLINE_HIT", "/repos/o/r").await;
    assert_eq!((reply.status, reply.json()["id"].as_i64()), (200, Some(1)));
    assert!(reply.field("age").is_some() && reply.field("x-ratelimit-remaining").is_none());
    let before = github.arrived().len();
    assert!(before >= 3, "three failures at least made it");
    // Neither another credential nor what was never confirmed gets anything, and nobody is asked.
    let other = client.get("/repos/o/r", "other", &[]).await;
    assert_eq!((other.status, other.x_cache()), (504, "OFFLINE_MISS"));
    let missed = client.get("/repos/o/never-asked", "t", &[]).await;
    assert_eq!((missed.status, missed.x_cache()), (504, "OFFLINE_MISS"));
    assert!(missed.json()["message"].as_str().unwrap().starts_with("ghtap: GitHub is offline"));
    assert_eq!(client.request("HEAD", "/repos/o/r", "t", &[], b"").await.status, 200);
    assert!(github.arrived().iter().all(|a| a.target == "/rate_limit" && a.headers.get("authorization").is_none()));
    assert_eq!(tap.metric("ghtap_upstream_offline").await, 1.0);
    assert!(tap.get_admin("/readyz").await.contains("\"offline\":[\"api.github.com\"]"));
    // Writes go on: they fail for themselves.
    assert_eq!(client.request("POST", "/repos/o/r/issues", "t", &[], b"{}").await.status, 503);
    github.behave();
    github.arrived();
    assert_eq!(until(&mut client, "ONLINE_HIT", "/repos/o/r").await.status, 200);
    assert!(github.arrived().iter().any(|a| a.target == "/rate_limit"), "the probe found it");
    assert_eq!(tap.metric("ghtap_upstream_offline").await, 0.0);
}

#[tokio::test]
async fn a_host_that_closes_whatever_comes_is_offline_too() {
    let (github, _tap, mut client) = start(&["--offline-after=2"]).await;
    github.down(true);
    until(&mut client, "OFFLINE_HIT", "/repos/o/r").await;
    github.down(false);
    until(&mut client, "ONLINE_HIT", "/repos/o/r").await;
}

#[tokio::test]
async fn one_route_that_fails_is_no_outage() {
    let (github, tap, mut client) = start(&["--offline-after=2"]).await;
    github.misbehave("/repos/o/slow", Misbehaviour::Status(502, "took too long"));
    for _ in 0..10 {
        let reply = client.get("/repos/o/slow", "t", &[]).await;
        assert_eq!((reply.status, reply.x_cache()), (502, "API_ERROR_MISS"));
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(client.get("/repos/o/r", "t", &[]).await.x_cache(), "ONLINE_HIT");
    assert_eq!(tap.metric("ghtap_upstream_offline").await, 0.0);
}

#[tokio::test]
async fn limits_and_errors_have_github_mirrors_names() {
    let (github, _tap, mut client) = start(&["--offline-after=0", "--upstream-timeout=300ms"]).await;
    for (how, hit, miss) in [
        (Misbehaviour::Status(500, "x"), "API_ERROR_HIT", "API_ERROR_MISS"),
        (Misbehaviour::Status(429, "secondary rate limit"), "RATE_LIMITED_HIT", "RATE_LIMITED_MISS"),
        (Misbehaviour::Status(403, "API rate limit exceeded"), "RATE_LIMITED_HIT", "RATE_LIMITED_MISS"),
        (Misbehaviour::NeverAnswer, "API_TIMEOUT_HIT", "-"),
        (Misbehaviour::Close, "API_CONNECTION_ERROR_HIT", "-"),
    ] {
        github.misbehave("*", how.clone());
        assert_eq!(client.get("/repos/o/r", "t", &[]).await.x_cache(), hit, "{how:?}");
        assert_eq!(client.get("/repos/o/never-asked", "t", &[]).await.x_cache(), miss, "{how:?}");
    }
}

#[tokio::test]
async fn the_status_page_is_believed_and_a_failing_one_is_no_outage() {
    let (github, page) = (GitHub::start().await, GitHub::start().await);
    github.set("/repos/o/r", json!({ "id": 1 }));
    let status = |s: &str| json!({ "components": [{ "name": "API Requests", "status": s }] });
    page.set("/api/v2/components.json", status("operational"));
    let plain = page.plainly().await;
    let url = format!("--status-url=http://{plain}/api/v2/components.json");
    let tap = Tap::start(&github, &[&url, "--status-every=100ms"]).await;
    let mut client = Client::connect(&tap).await;
    assert_eq!(client.get("/repos/o/r", "t", &[]).await.status, 200);
    page.set("/api/v2/components.json", status("partial_outage"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(client.get("/repos/o/r", "t", &[]).await.x_cache(), "ONLINE_HIT");
    page.set("/api/v2/components.json", status("major_outage"));
    until(&mut client, "OFFLINE_HIT", "/repos/o/r").await;
    github.arrived();
    assert_eq!(client.get("/repos/o/never-asked", "t", &[]).await.status, 504);
    assert!(github.arrived().is_empty());
    page.set("/api/v2/components.json", status("operational"));
    until(&mut client, "ONLINE_HIT", "/repos/o/r").await;
    page.set("/api/v2/components.json", status("major_outage"));
    until(&mut client, "OFFLINE_HIT", "/repos/o/r").await;
    // It fails itself now: what happens counts again.
    page.down(true);
    until(&mut client, "ONLINE_HIT", "/repos/o/r").await;
}
