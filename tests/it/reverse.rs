//! Reverse mode: requests for the tap's own address, as github-mirror and github-proxy serve them.

use std::process::Stdio;

use serde_json::json;

use crate::support::github::Resource;
use crate::support::tap::command;
use crate::support::{Client, GitHub, Tap, has, missing};

fn here(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

async fn ask(tap: &Tap, method: &str, target: &str, fields: &[(&str, &str)]) -> crate::support::client::Reply {
    let mut client = Client::plain(tap).await;
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {}\r\nAuthorization: token t\r\n", tap.proxy);
    for (name, value) in fields {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    client.send(format!("{head}\r\n")).await;
    client.reply(method == "HEAD").await
}

#[tokio::test]
async fn urls_are_the_taps_own_and_forward_mode_is_untouched() {
    let github = GitHub::start().await;
    let body = json!({ "url": "https://api.github.com/repos/o/r", "html_url": "https://github.com/o/r",
        "about": "see https://api.github.com/x and \"https://api.github.com/y\"", "issues": "https://api.github.com/repos/o/r/issues{/number}" });
    github.set("/repos/o/r", body.clone());
    github.set("/repos/o/r?b=1&a=%20x&a=2", json!({ "query": "kept" }));
    github.list("/repos/o/r/issues", 70);
    let moved = Resource {
        status: 301,
        body: b"{}".to_vec(),
        fields: vec![("Location".into(), "https://api.github.com/repositories/1?x=1".into())],
        ..Resource::default()
    };
    github.put("/repos/o/moved", moved);
    let tap = Tap::start(&github, &[]).await;
    let own = format!("http://{}", tap.proxy);
    for round in 0..2 {
        let reply = ask(&tap, "GET", "/repos/o/r", &[("Accept-Encoding", "gzip")]).await;
        let expected = json!({ "url": format!("{own}/repos/o/r"), "html_url": "https://github.com/o/r",
            "about": body["about"], "issues": format!("{own}/repos/o/r/issues{{/number}}") });
        assert_eq!((reply.status, reply.json()), (200, expected), "round {round}");
        assert_eq!(reply.field("x-cache"), Some(if round == 0 { "ONLINE_MISS" } else { "ONLINE_HIT" }));
        assert!(reply.field("x-ratelimit-remaining").is_some());
    }
    let reply = ask(&tap, "HEAD", "/repos/o/r", &[]).await;
    assert_eq!((reply.status, reply.x_cache()), (200, "ONLINE_HIT"));
    assert_eq!(ask(&tap, "GET", "/repos/o/r?b=1&a=%20x&a=2", &[]).await.json()["query"], "kept");
    let listing = ask(&tap, "GET", "/repos/o/r/issues", &[]).await;
    let link = listing.field("link").unwrap().to_owned();
    assert!(link.starts_with(&format!("<{own}/repos/o/r/issues?page=2>; rel=\"next\"")), "{link}");
    assert_eq!(listing.json().as_array().unwrap().len(), 30, "no per_page was put in");
    let moved = ask(&tap, "GET", "/repos/o/moved", &[]).await;
    assert_eq!((moved.status, moved.field("location")), (301, Some(&*format!("{own}/repositories/1?x=1"))));
    // The client's own precondition, with the tag that it was given.
    let tag = ask(&tap, "GET", "/repos/o/r", &[]).await.field("etag").unwrap().to_owned();
    assert_eq!(ask(&tap, "GET", "/repos/o/r", &[("If-None-Match", &tag)]).await.status, 304);
    // What forward mode shows is GitHub's, from the same store.
    github.arrived();
    let forward = Client::connect(&tap).await.get("/repos/o/r", "t", &[]).await;
    assert_eq!((forward.json(), forward.x_cache()), (body, "ONLINE_HIT"));
    let arrived = github.arrived();
    assert_eq!(
        (arrived.len(), arrived[0].status, arrived[0].headers["host"].to_str().unwrap()),
        (1, 304, "api.github.com")
    );
}

#[tokio::test]
async fn paths_of_a_server_of_ones_own_lead_where_they_should() {
    let github = GitHub::start_for(&["api.github.com", "ghe.example.com"]).await;
    github.set("/repos/o/r", json!({ "url": "https://api.github.com/repos/o/r" }));
    github.set("/api/v3/repos/o/r", json!({ "url": "https://ghe.example.com/api/v3/repos/o/r" }));
    let ghe = format!("--resolve=ghe.example.com:443:{}", github.address);
    let dotcom = Tap::start(&github, &[]).await;
    let own = format!("http://{}", dotcom.proxy);
    let reply = ask(&dotcom, "GET", "/api/v3/repos/o/r", &[]).await;
    assert_eq!(reply.json()["url"], format!("{own}/api/v3/repos/o/r"));
    let both = Tap::start(
        &github,
        &[
            "--upstream=https://api.github.com,https://ghe.example.com/api/v3",
            "--public-url=https://tap.example/",
            &ghe,
        ],
    )
    .await;
    assert_eq!(ask(&both, "GET", "/repos/o/r", &[]).await.json()["url"], "https://tap.example/repos/o/r");
    assert_eq!(ask(&both, "GET", "/api/v3/repos/o/r", &[]).await.json()["url"], "https://tap.example/api/v3/repos/o/r");
    let mut client = Client::plain(&both).await;
    let query = r#"{"query":"{ viewer { login } }"}"#;
    let head = format!(
        "POST /api/graphql HTTP/1.1\r\nHost: x\r\nAuthorization: token t\r\nContent-Length: {}\r\n\r\n",
        query.len()
    );
    client.send(format!("{head}{query}")).await;
    assert_eq!(client.reply(false).await.status, 200);
    let targets: Vec<_> = github.arrived().into_iter().map(|a| a.target).collect();
    assert_eq!(targets, ["/repos/o/r", "/repos/o/r", "/api/v3/repos/o/r", "/api/graphql"]);
}

#[tokio::test]
async fn another_origin_also_without_tls() {
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "url": "https://api.github.com/repos/o/r" }));
    let plain = github.plainly().await;
    let tap = Tap::with(vec![format!("--upstream=http://{plain}")]).await;
    for x_cache in ["ONLINE_MISS", "ONLINE_HIT"] {
        let reply = ask(&tap, "GET", "/repos/o/r", &[]).await;
        assert_eq!(
            (reply.json()["url"].as_str(), reply.x_cache()),
            (Some(&*format!("http://{}/repos/o/r", tap.proxy)), x_cache)
        );
    }
    assert_eq!(github.arrived()[0].headers["host"], plain.to_string().as_str());
}

#[tokio::test]
async fn large_content_is_rewritten_while_it_passes_and_what_is_not_json_is_left_alone() {
    let github = GitHub::start().await;
    let item = json!({ "url": "https://api.github.com/repos/o/r", "text": "x".repeat(1000) });
    let items: Vec<_> = (0..3000).map(|_| item.clone()).collect();
    github.set("/large", json!(items));
    let raw = Resource {
        body: b"\"https://api.github.com/x\"".to_vec(),
        content_type: Some("application/octet-stream".into()),
        ..Resource::default()
    };
    github.put("/raw", raw);
    let tap = Tap::start(&github, &[]).await;
    let reply = ask(&tap, "GET", "/large", &[]).await;
    let own = format!("http://{}/repos/o/r", tap.proxy);
    let all = reply.json();
    assert!(all.as_array().unwrap().iter().all(|i| i["url"] == own.as_str()) && all.as_array().unwrap().len() == 3000);
    assert_eq!(ask(&tap, "GET", "/raw", &[]).await.body, b"\"https://api.github.com/x\"");
    // A file's own content, though GitHub calls it JSON.
    let file = Resource {
        body: b"BASE = \"https://api.github.com/repos\"".to_vec(),
        content_type: Some("application/vnd.github.raw+json; charset=utf-8".into()),
        ..Resource::default()
    };
    github.put("/repos/o/r/contents/x.py", file);
    let raw = ask(&tap, "GET", "/repos/o/r/contents/x.py", &[("Accept", "application/vnd.github.raw+json")]).await;
    assert_eq!(raw.body, b"BASE = \"https://api.github.com/repos\"");
}

#[tokio::test]
async fn health_and_metrics_answer_here_too() {
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "id": 1 }));
    let tap = Tap::start(&github, &[]).await;
    ask(&tap, "GET", "/repos/o/r", &[]).await;
    assert_eq!(ask(&tap, "GET", "/healthz", &[]).await.body, b"ok\n");
    let metrics = String::from_utf8(ask(&tap, "GET", "/metrics", &[]).await.body).unwrap();
    assert!(metrics.contains("\nhttp_request_total 1\n"), "{metrics}");
    let latency = metrics.lines().find(|l| l.starts_with("request_latency_seconds_count{")).unwrap();
    assert!(
        latency.contains("cache=\"ONLINE_MISS\"")
            && latency.contains("method=\"GET\"")
            && latency.contains("status=\"200\"")
    );
    assert!(metrics.contains("request_latency_seconds_bucket{") && metrics.contains("le=\"0.075\""));
    assert!(metrics.contains("\ngithub_mirror_cached_objects ") && metrics.contains("\ngithub_mirror_cache_size "));
}

#[tokio::test]
async fn a_host_that_is_none_is_refused() {
    let github = GitHub::start().await;
    let tap = Tap::start(&github, &[]).await;
    let mut client = Client::plain(&tap).await;
    client.send("GET /x HTTP/1.1\r\nHost: a\"b\r\n\r\n").await;
    let reply = client.reply(false).await;
    assert!(reply.status == 400 && reply.json()["message"].as_str().unwrap().starts_with("ghtap:"), "{reply:?}");
    assert!(github.arrived().is_empty());
}

#[tokio::test]
async fn one_tap_behind_another() {
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "url": "https://api.github.com/repos/o/r" }));
    let far = Tap::start(&github, &["--public-url=https://far.example"]).await;
    let near = Tap::with(vec![format!("--upstream=http://{}", far.proxy)]).await;
    let reply = ask(&near, "GET", "/repos/o/r", &[]).await;
    assert_eq!((reply.status, reply.json()["url"].as_str()), (200, Some("https://far.example/repos/o/r")));
    assert_eq!(ask(&near, "GET", "/repos/o/r", &[]).await.x_cache(), "ONLINE_HIT");
    assert_eq!(github.arrived().iter().filter(|a| a.charged).count(), 1);
}

async fn run(script: &str, runner: std::path::PathBuf, tap: &Tap) -> String {
    let mut command = command(runner);
    command.arg(here("clients").join(script)).arg(format!("http://{}", tap.proxy)).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{out}{}", String::from_utf8_lossy(&output.stderr));
    out
}

async fn for_clients(more: &[&str]) -> (GitHub, Tap) {
    let github = GitHub::start().await;
    let repository = json!({ "name": "r", "full_name": "o/r", "private": false, "owner": { "login": "o" },
        "url": "https://api.github.com/repos/o/r", "issues_url": "https://api.github.com/repos/o/r/issues{/number}" });
    github.set("/repos/o/r", repository.clone());
    github.set("/repositories/1", repository);
    let moved = Resource {
        status: 301,
        body: b"{\"message\":\"Moved Permanently\"}".to_vec(),
        fields: vec![("Location".into(), "https://api.github.com/repositories/1".into())],
        ..Resource::default()
    };
    github.put("/repos/o/moved", moved);
    github.list("/repos/o/r/issues", 70);
    let tap = Tap::start(&github, more).await;
    (github, tap)
}

#[tokio::test]
async fn pygithub_with_a_base_url() {
    if !here(".venv/bin/python").exists() {
        missing("pygithub_with_a_base_url", "PyGithub");
        return;
    }
    let (github, tap) = for_clients(&[]).await;
    for round in 0..3 {
        let out = run("reverse_pygithub.py", here(".venv/bin/python"), &tap).await;
        assert_eq!(out, "repo o/r\nissues 70 70\nmoved o/r\nmissing 404\ncreated 1\n", "round {round}");
        let charged = github.arrived().iter().filter(|a| a.charged && a.method == "GET").count();
        // In the end its 404 and its redirect are left, which have no validators.
        assert!([5..=12, 2..=3, 2..=2][round].contains(&charged), "round {round}: {charged}");
    }
}

#[tokio::test]
async fn octokit_with_a_base_url() {
    if !here("clients/node_modules/@octokit/core").exists() || !has("node", "--version") {
        missing("octokit_with_a_base_url", "Octokit");
        return;
    }
    let (github, tap) = for_clients(&[]).await;
    let out = run("reverse_octokit.mjs", "node".into(), &tap).await;
    assert_eq!(out, "repo 200 o/r\nfollowed 200 o/r\nnext 200 30\nmissing 404\n");
    assert!(github.arrived().iter().all(|a| a.headers["host"] == "api.github.com"));
}
