//! GraphQL: passed on, counted by operation and points, and kept for a moment where that is asked for.

use serde_json::json;

use crate::support::{Client, GitHub, Tap};

async fn ask(client: &mut Client, token: &str, query: &str) -> crate::support::client::Reply {
    let body = json!({ "query": query }).to_string();
    client.request("POST", "/graphql", token, &[("Content-Type", "application/json")], body.as_bytes()).await
}

#[tokio::test]
async fn operations_are_counted_by_name_and_points() {
    let github = GitHub::start().await;
    github.points(3);
    let tap = Tap::start(&github, &[]).await;
    let mut client = Client::connect(&tap).await;
    for _ in 0..3 {
        assert_eq!(ask(&mut client, "t", "query Pulls { repository { id } }").await.status, 200);
    }
    ask(&mut client, "t", "query Cost { rateLimit { cost } }").await;
    ask(&mut client, "t", "mutation Add { addStar { id } }").await;
    assert_eq!(
        client.request("POST", "/graphql", "t", &[], b"nonsense").await.status,
        200,
        "it is passed on all the same"
    );
    assert_eq!(github.arrived().len(), 6);
    let (requests, points) = ("ghtap_graphql_requests_total", "ghtap_graphql_points_total");
    for (operation, count) in [("query Pulls", 3.0), ("query Cost", 1.0), ("mutation Add", 1.0), ("unread", 1.0)] {
        assert_eq!(tap.metric(&format!("{requests}{{operation=\"{operation}\"}}")).await, count, "{operation}");
    }
    // The first answer's cost is not known by the fields: at least one point.
    assert_eq!(tap.metric(&format!("{points}{{operation=\"query Pulls\"}}")).await, 7.0);
    assert_eq!(tap.metric(&format!("{points}{{operation=\"query Cost\"}}")).await, 3.0);
    assert_eq!(tap.metric(&format!("{points}{{operation=\"mutation Add\"}}")).await, 3.0);
}

#[tokio::test]
async fn queries_are_kept_for_their_credential_only_where_asked_for() {
    let github = GitHub::start().await;
    let tap = Tap::start(&github, &["--graphql-ttl=10m"]).await;
    let mut client = Client::connect(&tap).await;
    let arrived = || github.arrived().len();
    assert_eq!(ask(&mut client, "t", "query A { a }").await.x_cache(), "-");
    let kept = ask(&mut client, "t", "query A { a }").await;
    assert_eq!((kept.x_cache(), arrived()), ("ONLINE_HIT", 1));
    assert!(kept.field("x-ratelimit-remaining").is_none() && kept.field("age").is_some());
    // Another credential, another query, one that reads the limit, a mutation: asked.
    ask(&mut client, "other", "query A { a }").await;
    ask(&mut client, "t", "query A { b }").await;
    for _ in 0..2 {
        ask(&mut client, "t", "query A { rateLimit { cost } }").await;
        ask(&mut client, "t", "mutation A { a }").await;
    }
    assert_eq!(arrived(), 6);
    // The mutation has ended what was kept before it, to the millisecond.
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    ask(&mut client, "t", "query A { a }").await;
    assert_eq!((arrived(), ask(&mut client, "t", "query A { a }").await.x_cache()), (1, "ONLINE_HIT"));
    client.request("PATCH", "/repos/o/r", "t", &[], b"{}").await;
    assert_eq!(ask(&mut client, "t", "query A { a }").await.x_cache(), "-");
    // By default nothing is kept.
    let tap = Tap::start(&github, &[]).await;
    let mut client = Client::connect(&tap).await;
    github.arrived();
    ask(&mut client, "t", "query A { a }").await;
    ask(&mut client, "t", "query A { a }").await;
    assert_eq!(github.arrived().len(), 2);
}

#[tokio::test]
async fn a_servers_own_hosts_are_served_by_their_paths() {
    let github = GitHub::start_for(&["ghe.example.com", "uploads.github.com", "api.acme.ghe.com"]).await;
    github.set("/api/v3/repos/o/r", json!({ "id": 1 }));
    github.set("/o/r/raw/page", json!({ "id": 2 }));
    github.set("/repos/o/r", json!({ "id": 3 }));
    let hosts = ["ghe.example.com", "uploads.github.com", "api.acme.ghe.com"];
    let resolve: Vec<_> = hosts.iter().map(|h| format!("--resolve={h}:443:{}", github.address)).collect();
    let mut more: Vec<&str> = resolve.iter().map(String::as_str).collect();
    more.push("--intercept=ghe.example.com,uploads.github.com,api.acme.ghe.com");
    let tap = Tap::start(&github, &more).await;
    let get = async |host: &str, method: &str, target: &str| {
        let mut client = Client::connect_as(&tap, host, host, None).await.unwrap();
        let body = if method == "POST" { "{}" } else { "" };
        client.send(format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\nAuthorization: token t\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
        client.reply(false).await
    };
    for x_cache in ["ONLINE_MISS", "ONLINE_HIT"] {
        assert_eq!(get("ghe.example.com", "GET", "/api/v3/repos/o/r").await.x_cache(), x_cache);
        assert_eq!(get("api.acme.ghe.com", "GET", "/repos/o/r").await.x_cache(), x_cache);
        // Not the API's: passed on.
        let page = get("ghe.example.com", "GET", "/o/r/raw/page").await;
        assert!(page.status == 200 && page.field("cache-status").unwrap().contains("not-api"), "{page:?}");
    }
    get("uploads.github.com", "POST", "/repos/o/r/releases/1/assets?name=x").await;
    get("ghe.example.com", "POST", "/api/uploads/repos/o/r/releases/1/assets?name=x").await;
    get("ghe.example.com", "POST", "/api/graphql").await;
    let report = tap.cli(&["report", "--by=route", "--format=csv"]).await;
    let report = String::from_utf8(report.stdout).unwrap();
    for route in
        ["GET /repos/{owner}/{repo}", "POST /repos/{owner}/{repo}/releases/{release_id}/assets", "POST /graphql"]
    {
        assert!(report.contains(route), "{route}: {report}");
    }
    // One login can be two people: quotas are told apart by host.
    let quotas = tap.get_admin("/api/quota").await;
    assert!(quotas.contains("@ghe.example.com") && quotas.contains("@api.acme.ghe.com"), "{quotas}");
}
