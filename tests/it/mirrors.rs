//! The variables of github-mirror and github-proxy, in a real process: each does what it did there.

use serde_json::json;

use crate::support::{Client, GitHub, Tap};

async fn ask(tap: &Tap, target: &str, authorization: &str) -> crate::support::client::Reply {
    let mut client = Client::plain(tap).await;
    client.send(format!("GET {target} HTTP/1.1\r\nHost: tap\r\nAuthorization: {authorization}\r\n\r\n")).await;
    client.reply(false).await
}

#[tokio::test]
async fn github_mirrors_variables() {
    let github = GitHub::start().await;
    github.set("/user", json!({ "login": "alice" }));
    github.set("/repos/o/r", json!({ "url": "https://api.github.com/repos/o/r" }));
    let plain = github.plainly().await;
    let api = format!("http://{plain}");
    let variables = [
        ("GITHUB_USERS", "alice:bob"),
        ("GITHUB_MIRROR_URL", "https://mirror.example"),
        ("GITHUB_API_URL", &*api),
        ("CACHE_TYPE", "in-memory"),
    ];
    let tap = Tap::with_variables(Vec::new(), &variables).await;
    let reply = ask(&tap, "/repos/o/r", "token t").await;
    assert_eq!((reply.status, reply.json()["url"].as_str()), (200, Some("https://mirror.example/repos/o/r")));
    assert!(tap.get_admin("/readyz").await.contains("\"kind\":\"memory\""));
    let strict = Tap::with_variables(vec!["--allow-user=carol".into()], &variables).await;
    assert_eq!(ask(&strict, "/repos/o/r", "token t").await.status, 403, "our own option wins");
}

#[tokio::test]
async fn github_proxys_variables() {
    let github = GitHub::start().await;
    github.set("/zen", json!("Keep it logically awesome."));
    let plain = github.plainly().await;
    let api = format!("http://{plain}");
    let dir = tempfile::tempdir().unwrap();
    let registry = dir.path().join("registry.yml");
    std::fs::write(&registry, "version: 1\nclients:\n  - name: test\n    token: {{ env.TOKEN_TEST }}\n").unwrap();
    let registry = registry.display().to_string();
    let variables = [
        ("GITHUB_API_URL", &*api),
        ("CACHE_BACKEND_URL", "inmemory://"),
        ("CACHE_TTL", "3600"),
        ("GITHUB_CREDS_CACHE_MAXSIZE", "256"),
        ("GITHUB_CREDS_CACHE_TTL_PADDING", "10"),
        ("TELEMETRY_COLLECTOR_TYPE", "noop"),
        ("CLIENT_REGISTRY_FILE_PATH", &*registry),
        ("TOKEN_TEST", "H+hYxlecgRq7yfmhq2COlJk7tpSwDmdsp8thdPsnbnQ="),
        ("GITHUB_PAT_FOO", "ghp_foo"),
    ];
    let tap = Tap::with_variables(Vec::new(), &variables).await;
    for target in ["/zen", "/api/v3/zen"] {
        let reply = ask(&tap, target, "token H+hYxlecgRq7yfmhq2COlJk7tpSwDmdsp8thdPsnbnQ=").await;
        assert_eq!((reply.status, reply.json().as_str()), (200, Some("Keep it logically awesome.")), "{target}");
    }
    assert!(github.arrived().iter().all(|a| a.headers["authorization"] == "Bearer ghp_foo" && a.target == "/zen"));
}

#[tokio::test]
async fn a_variable_that_is_wrong_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for (name, value) in [
        ("CACHE_TTL", "soon"),
        ("CACHE_TYPE", "disk"),
        ("GITHUB_APP_X_ID", "1"),
        ("GHTAP_STORE", "redis://:s3cret@h:x"),
    ] {
        let output = crate::support::tap::command(crate::support::tap::GHTAP)
            .args(["serve", "--listen=127.0.0.1:0", "--admin=127.0.0.1:0"])
            .arg(format!("--data-dir={}", dir.path().join("d").display()))
            .arg(format!("--certs-dir={}", dir.path().join("c").display()))
            .env(name, value)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let option = if name == "GHTAP_STORE" { "--store" } else { name };
        assert!(!output.status.success() && said.contains(option) && !said.contains("s3cret"), "{name}: {said}");
    }
}
