//! What Packit's pipelines cost: the inventory of FACTS, through the tap and without it.
//!
//! 120 calls a run: 19 ask whether the repository is private, 2 for a collaborator's permission, 57 load the
//! configuration (two names are missing, the third is there), 42 set a status. Four new installation tokens each
//! run; the repository changes once in ten runs; the commit is new each run.

use serde_json::json;

use crate::support::{Client, GitHub, Tap};

const RUNS: usize = 20;

/// Charged reads per run.
async fn charged_reads(tap: Option<&[&str]>) -> f64 {
    let github = GitHub::start().await;
    let tap = match tap {
        Some(more) => Tap::start(&github, more).await,
        None => Tap::start(&github, &["--expected-etag=off", "--intercept=nobody.test"]).await,
    };
    github.set(
        "/repos/o/r/collaborators/packit/permission",
        json!({ "permission": "write", "user": { "login": "packit" } }),
    );
    let mut reads = 0;
    for run in 0..RUNS {
        if run % 10 == 0 {
            github.set("/repos/o/r", json!({ "full_name": "o/r", "private": false, "pushed_at": run }));
        }
        let commit = format!("{:040x}", 0xabc_000 + run);
        let config = format!("/repos/o/r/contents/.packit.yaml?ref={commit}");
        github.set(&config, json!({ "path": ".packit.yaml", "content": "eA==", "url": config }));
        let mut client = connect(&tap, &github).await;
        let mut tokens = Vec::new();
        for _ in 0..4 {
            let minted = client.request("POST", "/app/installations/7/access_tokens", "jwt", &[], b"{}").await;
            tokens.push(minted.json()["token"].as_str().unwrap().to_owned());
        }
        for call in 0..19 {
            let token = &tokens[call % 4];
            assert_eq!(client.get("/repos/o/r", token, &[]).await.json()["pushed_at"], run / 10 * 10);
            if call < 2 {
                client.get("/repos/o/r/collaborators/packit/permission", token, &[]).await;
            }
            for (name, status) in [(".distro/source-git.yaml", 404), (".packit.yml", 404), (".packit.yaml", 200)] {
                let reply = client.get(&format!("/repos/o/r/contents/{name}?ref={commit}"), token, &[]).await;
                assert_eq!(reply.status, status, "{name}");
            }
        }
        for call in 0..42 {
            client.request("POST", &format!("/repos/o/r/statuses/{commit}"), &tokens[call % 4], &[], b"{}").await;
        }
        let arrived = github.arrived();
        assert_eq!(arrived.iter().filter(|a| a.method == "POST").count(), 42 + 4, "every write arrives");
        reads += arrived.iter().filter(|a| a.method == "GET" && a.charged).count();
    }
    reads as f64 / RUNS as f64
}

/// Through the tap; past it, where it intercepts nobody: by a tunnel.
async fn connect(tap: &Tap, github: &GitHub) -> Client {
    if tap.is_intercepting() { Client::connect(tap).await } else { Client::tunnelled(tap, &github.ca).await }
}

#[tokio::test]
async fn a_pipeline_run() {
    let direct = charged_reads(None).await;
    let by_default = charged_reads(Some(&[])).await;
    let remembering = charged_reads(Some(&["--not-found-ttl=10m"])).await;
    println!(
        "charged reads per run: direct {direct}, through ghtap {by_default}, with --not-found-ttl 10m {remembering}"
    );
    assert_eq!(direct, 78.0);
    assert!(by_default <= 39.3, "{by_default}");
    assert!(remembering <= 3.4, "{remembering}");
}
