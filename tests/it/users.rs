//! `--allow-user`: only those whom the operator named are served.

use serde_json::json;

use crate::support::github::Resource;
use crate::support::{Client, GitHub, Tap};

async fn start(more: &[&str]) -> (GitHub, Tap) {
    let github = GitHub::start().await;
    let mut user = Resource { body: br#"{"login":"nobody"}"#.to_vec(), ..Resource::default() };
    for login in ["alice", "bob", "Carol"] {
        user.by_credential.insert(format!("token {login}"), format!(r#"{{"login":"{login}"}}"#).into_bytes());
    }
    github.put("/user", user);
    github.set("/repos/o/r", json!({ "id": 1 }));
    let tap = Tap::start(&github, more).await;
    (github, tap)
}

#[tokio::test]
async fn logins_are_asked_for_once() {
    let (github, tap) = start(&["--allow-user=alice:carol"]).await;
    let mut client = Client::connect(&tap).await;
    let anonymous = client.get("/repos/o/r", "", &[]).await;
    assert_eq!(anonymous.status, 401);
    assert!(anonymous.json()["message"].as_str().unwrap().contains("known users only"));
    assert!(github.arrived().is_empty());
    for (login, status) in [("alice", 200), ("bob", 403), ("Carol", 200), ("stranger", 403)] {
        for _ in 0..2 {
            let reply = client.get("/repos/o/r", login, &[]).await;
            assert_eq!(reply.status, status, "{login}");
        }
    }
    let asked: Vec<_> = github.arrived();
    assert_eq!(asked.iter().filter(|a| a.target == "/user").count(), 4);
    assert_eq!(asked.iter().filter(|a| a.target == "/repos/o/r").count(), 4, "nothing for others leaves");
    // All of one credential's calls are its login's, and what we asked is counted as ours.
    let quotas: serde_json::Value = serde_json::from_str(&tap.get_admin("/api/quota").await).unwrap();
    let names: Vec<&str> = quotas.as_array().unwrap().iter().map(|q| q["credential"].as_str().unwrap()).collect();
    assert!(names.contains(&"user:alice") && !names.iter().any(|n| n.starts_with("credential:")), "{quotas}");
    assert_eq!(tap.metric("ghtap_refused_total{reason=\"forbidden\"}").await, 4.0);
    // A write is not let through either.
    assert_eq!(client.request("POST", "/repos/o/r/issues", "bob", &[], b"{}").await.status, 403);
    assert!(github.arrived().is_empty());
}

#[tokio::test]
async fn they_are_asked_for_again_through_the_cache_and_in_reverse_mode() {
    let (github, tap) = start(&["--allow-user=alice", "--user-ttl=100ms"]).await;
    let ask = async |token: &str| {
        let mut client = Client::plain(&tap).await;
        client.send(format!("GET /repos/o/r HTTP/1.1\r\nHost: x\r\nAuthorization: token {token}\r\n\r\n")).await;
        client.reply(false).await.status
    };
    assert_eq!((ask("alice").await, ask("bob").await), (200, 403));
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!(ask("alice").await, 200);
    let asked: Vec<_> = github.arrived().into_iter().filter(|a| a.target == "/user").map(|a| a.status).collect();
    assert_eq!(asked, [200, 200, 304]);
    github.refuse("token alice");
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!(ask("alice").await, 401, "GitHub's own word");
}

#[tokio::test]
async fn installations_and_apps_are_known_by_what_passes() {
    let (github, tap) = start(&["--allow-user=installation:7,alice"]).await;
    let mut client = Client::connect(&tap).await;
    let jwt = "eyJhbGciOiJSUzI1NiJ9.e30.x";
    let stranger = client.get("/repos/o/r", "ghs_stranger", &[]).await;
    assert_eq!(stranger.status, 403);
    // The JWT of an App may mint for the installation that is named, and for no other.
    let minted = client.request("POST", "/app/installations/7/access_tokens", jwt, &[], b"{}").await;
    let token = minted.json()["token"].as_str().unwrap().to_owned();
    assert_eq!(client.get("/repos/o/r", &token, &[]).await.status, 200);
    assert_eq!(client.request("POST", "/app/installations/8/access_tokens", jwt, &[], b"{}").await.status, 403);
    assert!(github.arrived().iter().all(|a| !a.target.contains("/8/")));
    let (_github, tap) = start(&["--allow-user=app:packit"]).await;
    let mut client = Client::connect(&tap).await;
    assert_eq!(client.get("/repos/acme/r/installation", jwt, &[]).await.status, 200);
    let minted = client.request("POST", "/app/installations/7/access_tokens", jwt, &[], b"{}").await;
    let token = minted.json()["token"].as_str().unwrap().to_owned();
    assert_eq!(client.get("/repos/o/r", &token, &[]).await.status, 200, "an installation of the App");
}

#[tokio::test]
async fn while_github_is_away_what_it_said_last_holds() {
    let (github, tap) = start(&["--allow-user=alice", "--user-ttl=200ms", "--offline-after=2"]).await;
    let mut client = Client::connect(&tap).await;
    assert_eq!(client.get("/repos/o/r", "alice", &[]).await.status, 200);
    assert_eq!(client.get("/repos/o/r", "bob", &[]).await.status, 403);
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    github.misbehave("/user", crate::support::Misbehaviour::Status(403, "API rate limit exceeded"));
    assert_eq!(client.get("/repos/o/r", "alice", &[]).await.status, 200);
    let limited = client.get("/repos/o/r", "Carol", &[]).await;
    assert!(limited.status == 403 && limited.field("x-ratelimit-limit").is_some(), "GitHub's own answer: {limited:?}");
    github.down(true);
    for _ in 0..100 {
        let reply = client.get("/repos/o/r", "alice", &[]).await;
        assert!(reply.status == 200, "{reply:?}");
        if reply.x_cache() == "OFFLINE_HIT" {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(client.get("/repos/o/r", "alice", &[]).await.x_cache(), "OFFLINE_HIT");
    assert_eq!(client.get("/repos/o/r", "bob", &[]).await.status, 403);
}
