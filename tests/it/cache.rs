//! The rules of the cache, one by one, as a client and GitHub see them.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;

use crate::support::github::Resource;
use crate::support::{Client, GitHub, Misbehaviour, Tap};

const JSON: (&str, &str) = ("Accept", "application/vnd.github+json");

/// A repository, and a tap before it.
async fn repository(more: &[&str]) -> (GitHub, Tap, Client) {
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "full_name": "o/r", "private": false, "text": "x".repeat(500) }));
    let tap = Tap::start(&github, more).await;
    let client = Client::connect(&tap).await;
    (github, tap, client)
}

#[tokio::test]
async fn a_second_get_is_revalidated_and_free() {
    let (github, tap, mut client) = repository(&[]).await;
    let first = client.get("/repos/o/r", "a", &[JSON]).await;
    assert_eq!((first.status, first.x_cache()), (200, "ONLINE_MISS"));
    assert_eq!(first.field("cache-status"), Some("ghtap; fwd=uri-miss; fwd-status=200; stored"));
    let second = client.get("/repos/o/r", "a", &[JSON]).await;
    assert_eq!((second.status, second.x_cache(), &second.body), (200, "ONLINE_HIT", &first.body));
    assert_eq!(second.field("cache-status"), Some("ghtap; fwd=stale; fwd-status=304"));
    for name in
        ["content-type", "x-github-media-type", "etag", "vary", "cache-control", "last-modified", "x-oauth-scopes"]
    {
        assert_eq!(first.field(name), second.field(name), "{name}");
    }
    let arrived = github.arrived();
    assert_eq!(arrived.iter().map(|a| (a.status, a.charged)).collect::<Vec<_>>(), [(200, true), (304, false)]);
    assert_eq!(tap.metric("ghtap_calls_total{host=\"api.github.com\",outcome=\"revalidated\"}").await, 1.0);
    assert_eq!(tap.metric("ghtap_upstream_requests_total{charged=\"true\"").await, 1.0);
}

#[tokio::test]
async fn a_change_is_seen_at_once() {
    let (github, _tap, mut client) = repository(&[]).await;
    client.get("/repos/o/r", "a", &[JSON]).await;
    github.set("/repos/o/r", json!({ "full_name": "o/changed" }));
    let reply = client.get("/repos/o/r", "a", &[JSON]).await;
    assert_eq!((reply.json()["full_name"].as_str(), reply.x_cache()), (Some("o/changed"), "ONLINE_MISS"));
    assert_eq!(client.get("/repos/o/r", "a", &[JSON]).await.json()["full_name"], "o/changed");
}

#[tokio::test]
async fn a_new_credential_shares_what_github_confirms() {
    let (github, tap, mut client) = repository(&[]).await;
    let first = client.get("/repos/o/r", "a", &[JSON]).await;
    let other = client.get("/repos/o/r", "b", &[JSON]).await;
    assert_eq!((other.x_cache(), &other.body), ("ONLINE_HIT", &first.body));
    assert_ne!(other.field("etag"), first.field("etag"), "the tag is of the new credential");
    assert_eq!(other.field("x-oauth-scopes"), Some("scopes-of-b ne"), "and so are its scopes");
    assert_eq!(github.charged(), 1);
    assert_eq!(tap.metric("ghtap_etag_recipe_total{result=\"match\"}").await, 1.0);
}

#[tokio::test]
async fn the_expected_tag_can_be_switched_off() {
    let (github, _tap, mut client) = repository(&["--expected-etag=off"]).await;
    client.get("/repos/o/r", "a", &[JSON]).await;
    client.get("/repos/o/r", "b", &[JSON]).await;
    assert_eq!(github.charged(), 2);
    client.get("/repos/o/r", "b", &[JSON]).await;
    assert_eq!(github.charged(), 2);
}

#[tokio::test]
async fn a_tag_that_no_recipe_makes_serves_its_credential_only() {
    let (github, tap, mut client) = repository(&[]).await;
    github.misbehave("/repos/o/r", Misbehaviour::OtherTag);
    client.get("/repos/o/r", "a", &[JSON]).await;
    client.get("/repos/o/r", "b", &[JSON]).await;
    let asked: Vec<_> = github.arrived().iter().map(|a| a.headers.get("if-none-match").is_some()).collect();
    assert_eq!(asked, [false, false]);
    assert_eq!(tap.metric("ghtap_etag_recipe_total{result=\"miss\"}").await, 2.0);
    client.get("/repos/o/r", "a", &[JSON]).await;
    assert!(github.arrived()[0].headers["if-none-match"].to_str().unwrap().contains("other-"));
}

#[tokio::test]
async fn nobody_sees_what_another_principal_sees() {
    let (github, _tap, mut client) = repository(&[]).await;
    let bodies = [("token a", "for a"), ("token b", "for b"), ("token none", "")];
    let by_credential: HashMap<_, _> = bodies.iter().map(|(c, b)| (c.to_string(), b.as_bytes().to_vec())).collect();
    github.put("/repos/o/secret", Resource { by_credential, body: b"for all".to_vec(), ..Resource::default() });
    for _ in 0..3 {
        for (token, body, status) in
            [("a", "for a", 200), ("b", "for b", 200), ("c", "for all", 200), ("none", "", 404), ("", "for all", 200)]
        {
            let reply = client.get("/repos/o/secret", token, &[JSON]).await;
            assert_eq!(reply.status, status, "{token}");
            if status == 200 {
                assert_eq!(String::from_utf8_lossy(&reply.body), body, "{token}");
            }
        }
    }
    // The first round is charged; after it only the 404 and the anonymous request are.
    assert_eq!(github.charged(), 5 + 2 + 2);
}

#[tokio::test]
async fn what_chooses_a_body_is_in_the_key() {
    let (github, _tap, mut client) = repository(&[]).await;
    for fields in [
        vec![JSON],
        vec![("Accept", "application/vnd.github.raw+json")],
        vec![JSON, ("X-GitHub-Api-Version", "2022-11-28")],
        vec![JSON, ("User-Agent", "curl/8")],
        vec![],
    ] {
        let reply = client.get("/repos/o/r", "a", &fields).await;
        assert_eq!(reply.x_cache(), "ONLINE_MISS", "{fields:?}");
        let again = client.get("/repos/o/r", "a", &fields).await;
        assert_eq!((again.x_cache(), &again.body), ("ONLINE_HIT", &reply.body), "{fields:?}");
    }
    assert_eq!(github.charged(), 5);
}

#[tokio::test]
async fn pretty_printing_clients_share_a_store_too() {
    let (github, _tap, mut client) = repository(&[]).await;
    let curl = [("User-Agent", "curl/8"), ("Accept", "*/*")];
    let first = client.get("/repos/o/r", "a", &curl).await;
    assert!(first.body.starts_with(b"{\n  \""));
    let other = client.get("/repos/o/r", "b", &curl).await;
    assert_eq!((other.x_cache(), &other.body), ("ONLINE_HIT", &first.body));
    assert_eq!(github.charged(), 1);
}

#[tokio::test]
async fn codings_do_not_divide_the_store() {
    let (github, _tap, mut client) = repository(&[]).await;
    let gzip = [JSON, ("Accept-Encoding", "gzip, deflate")];
    let first = client.get("/repos/o/r", "a", &gzip).await;
    assert_eq!(first.field("content-encoding"), Some("gzip"));
    let plain = client.get("/repos/o/r", "a", &[JSON]).await;
    assert_eq!((plain.x_cache(), plain.field("content-encoding"), &plain.body), ("ONLINE_HIT", None, &first.body));
    let again = client.get("/repos/o/r", "a", &gzip).await;
    assert_eq!((again.field("content-encoding"), &again.raw), (Some("gzip"), &first.raw));
    assert_eq!(github.charged(), 1);
}

#[tokio::test]
async fn an_empty_list_costs_nothing() {
    let (github, _tap, mut client) = repository(&[]).await;
    github.list("/repos/o/r/pulls", 0);
    let reply = client.get("/repos/o/r/pulls?state=open", "a", &[JSON]).await;
    assert_eq!(
        (reply.status, reply.body.as_slice(), reply.field("content-type")),
        (200, &b"[]"[..], Some("application/json; charset=utf-8"))
    );
    assert_eq!(github.charged(), 0);
    // Not for those whom a 304 costs as much, nor where GitHub would print prettily.
    client.get("/repos/o/r/pulls?state=open", "", &[JSON]).await;
    client.get("/repos/o/r/pulls?state=open", "a", &[("User-Agent", "curl/8")]).await;
    assert!(github.arrived()[1..].iter().all(|a| a.headers.get("if-none-match").is_none()));
    // And what is not empty is simply fetched.
    github.list("/repos/o/r/pulls", 2);
    let reply = client.get("/repos/o/r/pulls?state=all", "a", &[JSON]).await;
    assert_eq!(reply.json().as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_date_alone_serves_its_credential_only() {
    let (github, _tap, mut client) = repository(&[]).await;
    let resource = Resource { body: b"{}".to_vec(), no_etag: true, ..Resource::default() };
    github.put("/repos/o/r/dated", resource);
    client.get("/repos/o/r/dated", "a", &[JSON]).await;
    client.get("/repos/o/r/dated", "b", &[JSON]).await;
    assert_eq!(client.get("/repos/o/r/dated", "a", &[JSON]).await.x_cache(), "ONLINE_HIT");
    let asked: Vec<_> = github.arrived().iter().map(|a| a.headers.contains_key("if-modified-since")).collect();
    assert_eq!(asked, [false, false, true]);
}

#[tokio::test]
async fn what_is_not_stored() {
    let (github, tap, mut client) = repository(&["--max-object-bytes=1MiB"]).await;
    let plain = |body: &[u8]| Resource { body: body.to_vec(), ..Resource::default() };
    github.put("/repos/o/r/a", Resource { no_etag: true, no_last_modified: true, ..plain(b"{}") });
    github.put("/repos/o/r/b", Resource { cache_control: Some("private, no-store".into()), ..plain(b"{}") });
    github.put("/repos/o/r/c", Resource { status: 202, ..plain(b"{}") });
    github.put(
        "/repos/o/r/d",
        Resource {
            status: 301,
            fields: vec![("Location".into(), "https://api.github.com/repositories/1".into())],
            ..plain(b"{}")
        },
    );
    github.put("/repos/o/r/e", plain(&vec![b'x'; 2 << 20]));
    github.put("/repos/o/r/f", plain(b"{}"));
    github.misbehave("/repos/o/r/f", Misbehaviour::Unframed);
    for target in [
        "/repos/o/r/a",
        "/repos/o/r/b",
        "/repos/o/r/c",
        "/repos/o/r/d",
        "/repos/o/r/e",
        "/repos/o/r/f",
        "/repos/o/r/missing",
    ] {
        client.get(target, "a", &[JSON]).await;
        if target.ends_with('f') {
            client = Client::connect(&tap).await;
        }
    }
    for fields in [("Range", "bytes=0-1"), ("Cache-Control", "no-store"), ("X-GitHub-OTP", "1"), ("If-Match", "\"x\"")]
    {
        let reply = client.get("/repos/o/r", "a", &[JSON, fields]).await;
        assert!(reply.field("cache-status").unwrap().starts_with("ghtap; fwd=bypass"), "{fields:?}");
    }
    client.get("/rate_limit", "a", &[JSON]).await;
    client.request("POST", "/repos/o/r/issues", "a", &[JSON], b"{}").await;
    let stored = String::from_utf8(tap.cli(&["cache", "list"]).await.stdout).unwrap();
    assert_eq!(stored.lines().count(), 1, "only the heading: {stored}");
}

#[tokio::test]
async fn head_is_answered_from_what_get_stored() {
    let (github, _tap, mut client) = repository(&[]).await;
    let head = client.request("HEAD", "/repos/o/r", "a", &[JSON], b"").await;
    assert_eq!((head.status, head.x_cache()), (200, "ONLINE_MISS"));
    let get = client.get("/repos/o/r", "a", &[JSON]).await;
    assert_eq!(get.x_cache(), "ONLINE_MISS", "a HEAD stores nothing");
    assert_eq!(head.field("content-length"), Some(get.raw.len().to_string().as_str()));
    let again = client.request("HEAD", "/repos/o/r", "a", &[JSON], b"").await;
    assert_eq!((again.x_cache(), again.field("content-length")), ("ONLINE_HIT", head.field("content-length")));
    assert_eq!(github.arrived().last().unwrap().method, "HEAD");
    assert_eq!(client.get("/repos/o/r", "a", &[JSON]).await.body, get.body, "the connection is in step");
}

#[tokio::test]
async fn the_clients_own_precondition_is_answered_truly() {
    let (github, _tap, mut client) = repository(&[]).await;
    // Unknown to us: forwarded as it is.
    let unknown = client.get("/repos/o/r", "a", &[JSON, ("If-None-Match", "\"nonsense\"")]).await;
    assert_eq!(unknown.status, 200);
    assert_eq!(github.arrived()[0].headers["if-none-match"], "\"nonsense\"");
    let tag = unknown.field("etag").unwrap().to_owned();
    // Current: a real 304, without content.
    let current = client.get("/repos/o/r", "a", &[JSON, ("If-None-Match", &tag)]).await;
    assert_eq!((current.status, current.raw.len(), current.field("content-type")), (304, 0, None));
    assert_eq!(github.charged(), 1);
    // Known, but we hold something newer.
    github.set("/repos/o/r", json!({ "full_name": "o/newer" }));
    client.get("/repos/o/r", "a", &[JSON]).await;
    github.forget_quota();
    let newer = client.get("/repos/o/r", "a", &[JSON, ("If-None-Match", &tag)]).await;
    assert_eq!((newer.status, newer.json()["full_name"].as_str()), (200, Some("o/newer")));
    // By date.
    let modified = newer.field("last-modified").unwrap();
    let dated = client.get("/repos/o/r", "a", &[JSON, ("If-Modified-Since", modified)]).await;
    assert_eq!(dated.status, 304);
    let old = client.get("/repos/o/r", "a", &[JSON, ("If-Modified-Since", "Tue, 03 Mar 2020 10:00:00 GMT")]).await;
    assert_eq!(old.status, 200);
}

#[tokio::test]
async fn identical_requests_in_flight_make_one_exchange() {
    let (github, tap, _) = repository(&[]).await;
    github.misbehave("/repos/o/r", Misbehaviour::Late(Duration::from_millis(700)));
    let ask = |token: &'static str| {
        let tap = &tap;
        async move { Client::connect(tap).await.get("/repos/o/r", token, &[JSON]).await }
    };
    let (a, b, c, other) = tokio::join!(ask("a"), ask("a"), ask("a"), ask("b"));
    assert_eq!((a.status, &a.body), (200, &b.body));
    assert_eq!((&c.body, &other.body), (&a.body, &a.body));
    let collapsed = [&a, &b, &c].iter().filter(|r| r.field("cache-status").unwrap().ends_with("; collapsed")).count();
    assert_eq!((collapsed, github.arrived().len()), (2, 2));
    assert_eq!(tap.metric("ghtap_calls_total{host=\"api.github.com\",outcome=\"collapsed\"}").await, 2.0);
}

#[tokio::test]
async fn a_leader_that_goes_away_does_not_fail_the_others() {
    let (github, tap, mut leader) = repository(&[]).await;
    github.misbehave("/repos/o/r", Misbehaviour::Late(Duration::from_millis(700)));
    leader.send("GET /repos/o/r HTTP/1.1\r\nHost: api.github.com\r\nAuthorization: token a\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut follower = Client::connect(&tap).await;
    let waiting = tokio::spawn(async move { follower.get("/repos/o/r", "a", &[]).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(leader);
    let reply = waiting.await.unwrap();
    assert_eq!((reply.status, reply.json()["full_name"].as_str()), (200, Some("o/r")));
    assert_eq!(tap.metric("ghtap_calls_total{host=\"api.github.com\",outcome=\"abandoned\"}").await, 1.0);
}

#[tokio::test]
async fn a_request_after_a_write_does_not_join_one_from_before() {
    let (github, tap, mut writer) = repository(&[]).await;
    github.misbehave("/repos/o/r", Misbehaviour::Late(Duration::from_millis(600)));
    let mut early = Client::connect(&tap).await;
    let early = tokio::spawn(async move { early.get("/repos/o/r", "a", &[]).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    writer.request("PATCH", "/repos/o/r", "a", &[], b"{}").await;
    github.behave();
    let late = writer.get("/repos/o/r", "a", &[]).await;
    assert!(!late.field("cache-status").unwrap().contains("collapsed"));
    early.await.unwrap();
}

#[tokio::test]
async fn freshness_for_those_who_ask_for_it() {
    let (github, _tap, mut client) = repository(&["--freshness=origin"]).await;
    client.get("/repos/o/r", "a", &[JSON]).await;
    let fresh = client.get("/repos/o/r", "a", &[JSON]).await;
    assert!(fresh.field("cache-status").unwrap().starts_with("ghtap; hit; ttl="), "{fresh:?}");
    assert!(fresh.field("age").is_some() && fresh.field("x-ratelimit-remaining").is_none());
    assert_eq!(fresh.json()["full_name"], "o/r");
    assert_eq!(github.arrived().len(), 1);
    // Not for another credential, not past the client's own wish, not after a write to the repository.
    client.get("/repos/o/r", "b", &[JSON]).await;
    client.get("/repos/o/r", "a", &[JSON, ("Cache-Control", "no-cache")]).await;
    assert_eq!(github.arrived().len(), 2);
    client.request("POST", "/repos/o/other/issues", "a", &[JSON], b"{}").await;
    client.get("/repos/o/r", "a", &[JSON]).await;
    assert_eq!(github.arrived().len(), 1);
    client.request("POST", "/repos/O/R/issues", "a", &[JSON], b"{}").await;
    client.get("/repos/o/r", "a", &[JSON]).await;
    assert_eq!(github.arrived().len(), 2);
}

#[tokio::test]
async fn remembered_404s_for_those_who_ask_for_them() {
    let (github, _tap, mut client) = repository(&["--not-found-ttl=10m"]).await;
    let at = format!("/repos/o/r/contents/missing?ref={}", "a".repeat(40));
    let other = "/repos/o/r/contents/missing?ref=main";
    for target in [at.as_str(), other] {
        for _ in 0..3 {
            let reply = client.get(target, "a", &[JSON]).await;
            assert_eq!((reply.status, reply.json()["message"].as_str()), (404, Some("Not Found")));
        }
    }
    let arrived = github.arrived();
    let asked = |needle: &str| arrived.iter().filter(|a| a.target.contains(needle)).count();
    assert_eq!((asked(&"a".repeat(40)), asked("main")), (1, 3));
    // Not for a credential that acts for nobody known; for those of one installation, yes.
    client.get(&at, "b", &[JSON]).await;
    assert_eq!(github.arrived().len(), 1);
    let mut tokens = Vec::new();
    for _ in 0..2 {
        let minted = client.request("POST", "/app/installations/7/access_tokens", "jwt", &[], b"{}").await;
        tokens.push(minted.json()["token"].as_str().unwrap().to_owned());
    }
    github.arrived();
    for token in &tokens {
        assert_eq!(client.get(&at, token, &[JSON]).await.status, 404);
    }
    assert_eq!(github.arrived().len(), 1);
    // A write to the repository ends it.
    client.request("PUT", "/repos/o/r/contents/missing", "a", &[], b"{}").await;
    github.arrived();
    client.get(&at, &tokens[0], &[JSON]).await;
    assert_eq!(github.arrived().len(), 1);
}

#[tokio::test]
async fn past_the_cache_the_clients_precondition_goes_on() {
    let (github, _tap, mut client) = repository(&[]).await;
    let tag = client.get("/repos/o/r", "a", &[JSON]).await.field("etag").unwrap().to_owned();
    for more in [("Cache-Control", "no-store"), ("X-Requested-With", "x"), ("Range", "bytes=0-1")] {
        let reply = client.get("/repos/o/r", "a", &[JSON, ("If-None-Match", &tag), more]).await;
        assert_eq!(reply.status, 304, "{more:?}");
    }
    client.request("PUT", "/repos/o/r/subscription", "a", &[("If-None-Match", "\"x\"")], b"{}").await;
    assert_eq!(github.arrived().last().unwrap().headers["if-none-match"], "\"x\"");
}

#[tokio::test]
async fn a_remembered_404_is_what_this_request_would_get() {
    let (github, _tap, mut client) = repository(&["--not-found-ttl=10m"]).await;
    let target = format!("/repos/o/r/contents/missing?ref={}", "b".repeat(40));
    // A HEAD teaches a GET nothing, and one coding not another.
    assert_eq!(client.request("HEAD", &target, "a", &[JSON], b"").await.status, 404);
    let gzip = client.get(&target, "a", &[JSON, ("Accept-Encoding", "gzip")]).await;
    assert_eq!(gzip.json()["message"], "Not Found");
    let plain = client.get(&target, "a", &[JSON]).await;
    assert_eq!((plain.json()["message"].as_str(), plain.field("content-encoding")), (Some("Not Found"), None));
    // Two tokens of one login need not see alike.
    let target = format!("/repos/o/r/contents/seen?ref={}", "c".repeat(40));
    let by_credential = HashMap::from([("token low".to_owned(), Vec::new())]);
    github.put(&target, Resource { body: b"{}".to_vec(), by_credential, ..Resource::default() });
    github.set("/user", json!({ "login": "octocat" }));
    for token in ["low", "high"] {
        assert_eq!(client.get("/user", token, &[JSON]).await.status, 200);
    }
    assert_eq!(client.get(&target, "low", &[JSON]).await.status, 404);
    assert_eq!(client.get(&target, "high", &[JSON]).await.status, 200);
}

#[tokio::test]
async fn a_leaders_failure_is_its_own() {
    let (github, tap, _) = repository(&[]).await;
    // The first connection is cut after a while; later ones are answered.
    github.misbehave("/repos/o/r", Misbehaviour::LateThenClose(Duration::from_millis(600)));
    let ask = || async { Client::connect(&tap).await.get("/repos/o/r", "a", &[]).await.status };
    let leader = ask();
    let followers = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        github.behave();
        tokio::join!(ask(), ask())
    };
    let (first, (second, third)) = tokio::join!(leader, followers);
    assert_eq!((first, second, third), (502, 200, 200));
}

#[tokio::test]
async fn a_page_past_the_end_is_not_guessed() {
    let (github, _tap, mut client) = repository(&[]).await;
    github.list("/repos/o/r/issues", 3);
    let reply = client.get("/repos/o/r/issues?page=9", "a", &[JSON]).await;
    assert_eq!(reply.body, b"[]");
    assert!(reply.field("link").unwrap().contains("rel=\"first\""), "GitHub's own answer, with its Link");
}

#[tokio::test]
async fn a_write_counts_even_if_its_client_goes_away() {
    let (github, tap, mut client) = repository(&["--freshness=10m"]).await;
    client.get("/repos/o/r", "a", &[JSON]).await;
    github.misbehave("/repos/o/r/issues", Misbehaviour::Late(Duration::from_millis(500)));
    let mut writer = Client::connect(&tap).await;
    writer.send("POST /repos/o/r/issues HTTP/1.1\r\nHost: api.github.com\r\nContent-Length: 2\r\n\r\n{}").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(writer);
    tokio::time::sleep(Duration::from_millis(600)).await;
    github.arrived();
    client.get("/repos/o/r", "a", &[JSON]).await;
    assert_eq!(github.arrived().len(), 1, "asked, not served fresh");
}

#[tokio::test]
async fn names_are_learned_from_a_304_too() {
    let (github, tap, mut client) = repository(&[]).await;
    github.set("/user", json!({ "login": "octocat" }));
    for token in ["one", "two"] {
        client.get("/user", token, &[JSON]).await;
        client.get("/repos/o/r", token, &[JSON]).await;
    }
    let report = tap.cli(&["report", "--by=credential", "--format=csv"]).await;
    // Also what came before the name was known; with the quota, all of it ours.
    assert!(
        String::from_utf8_lossy(&report.stdout).contains("\nuser:octocat,4,2,4,2,2,0,"),
        "{}",
        String::from_utf8_lossy(&report.stdout)
    );
}
