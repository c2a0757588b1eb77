//! The store and the ledger: what a crash may lose, what the limit holds, who may use the directory.

use std::time::Duration;

use serde_json::json;

use crate::support::github::Resource;
use crate::support::tap::{GHTAP, command};
use crate::support::{Client, GitHub, Tap};

fn disk(dir: &std::path::Path) -> u64 {
    let out = std::process::Command::new("du").args(["-s", "-k"]).arg(dir).output().unwrap();
    String::from_utf8_lossy(&out.stdout).split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

#[tokio::test]
async fn a_restart_is_warm() {
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "full_name": "o/r" }));
    let mut tap = Tap::start(&github, &[]).await;
    let first = Client::connect(&tap).await.get("/repos/o/r", "a", &[]).await;
    assert_eq!(tap.terminate().await, Some(0));
    tap.launch().await;
    let again = Client::connect(&tap).await.get("/repos/o/r", "a", &[]).await;
    assert_eq!((again.x_cache(), &again.body), ("ONLINE_HIT", &first.body));
    assert_eq!(github.charged(), 1);
}

#[tokio::test]
async fn kill_9_under_load_loses_the_last_second_at_most_and_tears_nothing() {
    let github = GitHub::start().await;
    for i in 0..400 {
        github.put(
            &format!("/repos/o/r/{i}"),
            Resource { body: format!("\"{i}-{}\"", "x".repeat(20_000)).into_bytes(), ..Resource::default() },
        );
    }
    let mut tap = Tap::start(&github, &[]).await;
    let mut answered = 0;
    for round in 0..3 {
        let mut all = tokio::task::JoinSet::new();
        for worker in 0..8 {
            let mut client = Client::connect(&tap).await;
            all.spawn(async move {
                let mut done = 0;
                for i in 0..400 {
                    let request = format!(
                        "GET /repos/o/r/{} HTTP/1.1\r\nHost: api.github.com\r\nAuthorization: token a\r\n\r\n",
                        (i + worker * 50) % 400
                    );
                    if client.try_send(request.as_bytes()).await.is_err() {
                        break;
                    }
                    let Ok(Ok(reply)) = tokio::time::timeout(Duration::from_secs(10), client.read(false)).await else {
                        break;
                    };
                    let number = (i + worker * 50) % 400;
                    assert!(
                        reply.body.starts_with(format!("\"{number}-x").as_bytes()) && reply.body.len() > 20_000,
                        "whole and its own"
                    );
                    done += 1;
                }
                done
            });
        }
        tokio::time::sleep(Duration::from_millis(1500 + 400 * round)).await;
        tap.kill();
        while let Some(done) = all.join_next().await {
            answered += done.unwrap();
        }
        tap.launch().await;
    }
    // What is served after it is whole, and what was counted is there, but for the last second of each life.
    let mut client = Client::connect(&tap).await;
    for i in 0..400 {
        let reply = client.get(&format!("/repos/o/r/{i}"), "a", &[]).await;
        assert!(reply.body.starts_with(format!("\"{i}-x").as_bytes()), "{i}");
    }
    assert_eq!(tap.metric("ghtap_store_corrupt_total").await, 0.0);
    let report = tap.cli(&["report", "--by=host", "--format=json"]).await;
    let report: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
    let sent = github.arrived().len() as u64;
    let (calls, counted) = (report["total"]["calls"].as_u64().unwrap(), report["total"]["sent"].as_u64().unwrap());
    assert!(calls >= 400 && counted <= sent, "{calls} calls, {counted} sent, {sent} arrived, {answered} answered");
}

#[tokio::test]
async fn after_sigterm_the_ledger_agrees_exactly() {
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "full_name": "o/r" }));
    let mut tap = Tap::start(&github, &[]).await;
    let mut client = Client::named(&tap, "worker+run-9").await;
    for i in 0..50 {
        client.get(&format!("/repos/o/{}", if i % 2 == 0 { "r" } else { "missing" }), "a", &[]).await;
    }
    assert_eq!(tap.terminate().await, Some(0));
    let report = tap.cli(&["report", "--by=client", "--format=json", "--run=run-9"]).await;
    let report: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
    let arrived = github.arrived();
    let charged = arrived.iter().filter(|a| a.charged).count();
    let line = &report["lines"][0];
    assert_eq!(
        (line["name"].as_str(), line["calls"].as_u64(), line["sent"].as_u64()),
        (Some("worker"), Some(50), Some(arrived.len() as u64))
    );
    assert_eq!(
        (line["charged"].as_u64(), line["errors"].as_u64(), line["from_store"].as_u64()),
        (Some(charged as u64), Some(25), Some(24))
    );
}

#[tokio::test]
async fn sigterm_lets_exchanges_finish() {
    use crate::support::Misbehaviour;
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "full_name": "o/r" }));
    github.misbehave("/repos/o/r", Misbehaviour::Late(Duration::from_millis(800)));
    let mut tap = Tap::start(&github, &[]).await;
    let (mut busy, mut idle) = (Client::connect(&tap).await, Client::connect(&tap).await);
    idle.get("/repos/o/missing", "a", &[]).await;
    let waiting = tokio::spawn(async move { busy.get("/repos/o/r", "a", &[]).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (code, reply) = tokio::join!(tap.terminate(), waiting);
    assert_eq!((code, reply.unwrap().json()["full_name"].as_str().map(str::to_owned)), (Some(0), Some("o/r".into())));
    assert!(idle.is_closed().await);
}

#[tokio::test]
async fn the_limit_holds_on_disk() {
    const LIMIT: u64 = 48 << 20;
    let github = GitHub::start().await;
    let tap =
        Tap::start(&github, &[&format!("--store-max-bytes={LIMIT}"), "--store-memory-bytes=1MiB", "--log=debug"]).await;
    let store = tap.data_dir().join("cache-v2");
    let mut client = Client::connect(&tap).await;
    github.put("/repos/o/r/kept", Resource { body: vec![b'k'; 10_000], ..Resource::default() });
    let mut most = 0;
    // 200 MB of what does not compress, and one that is asked for all along.
    for i in 0..2000u32 {
        let seed = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &i.to_be_bytes());
        let body: Vec<u8> =
            seed.as_ref().iter().cycle().take(100_000).enumerate().map(|(n, b)| b ^ (n as u8)).collect();
        let target = format!("/repos/o/r/{i}");
        github.put(&target, Resource { body, ..Resource::default() });
        client.get(&target, "a", &[]).await;
        github.remove(&target);
        if i % 20 == 0 {
            client.get("/repos/o/r/kept", "a", &[]).await;
            most = most.max(disk(&store));
        }
    }
    most = most.max(disk(&store));
    let kept = client.get("/repos/o/r/kept", "a", &[]).await;
    assert_eq!(kept.x_cache(), "ONLINE_HIT", "what is used stays");
    assert!(most <= LIMIT, "{} MiB of {} MiB", most >> 20, LIMIT >> 20);
    let stats: serde_json::Value = serde_json::from_str(&tap.get_admin("/api/cache/stats").await).unwrap();
    assert!(stats["evicted"].as_u64().unwrap() > 500 && stats["entries"].as_u64().unwrap() > 20, "{stats}");
    assert!(!tap.log().contains("emptying it"), "eviction was enough");
    println!("most on disk: {} MiB of {} MiB; {stats}", most >> 20, LIMIT >> 20);
}

#[tokio::test]
async fn a_changed_byte_on_disk_is_a_miss() {
    let github = GitHub::start().await;
    github.put("/repos/o/r/x", Resource { body: vec![b'q'; 50_000], ..Resource::default() });
    let mut tap = Tap::start(&github, &[]).await;
    Client::connect(&tap).await.get("/repos/o/r/x", "a", &[]).await;
    assert_eq!(tap.terminate().await, Some(0));
    // Change the stored body under the tap's nose.
    let mut changed = 0;
    for file in std::fs::read_dir(tap.data_dir().join("cache-v2/log")).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        for i in 0..bytes.len().saturating_sub(16) {
            if bytes[i..i + 16] == [b'q'; 16] {
                bytes[i + 8] = b'!';
                changed += 1;
            }
        }
        std::fs::write(&path, bytes).unwrap();
    }
    assert!(changed > 0);
    tap.launch().await;
    let reply = Client::connect(&tap).await.get("/repos/o/r/x", "a", &[]).await;
    assert_eq!((reply.status, reply.body), (200, vec![b'q'; 50_000]));
}

#[tokio::test]
async fn two_taps_do_not_share_a_directory() {
    let github = GitHub::start().await;
    let tap = Tap::start(&github, &[]).await;
    let second = command(GHTAP)
        .args(["serve", "--listen=127.0.0.1:0", "--admin=127.0.0.1:0"])
        .arg(format!("--data-dir={}", tap.data_dir().display()))
        .arg(format!("--certs-dir={}", tap.certs_dir().display()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1));
    assert!(said.contains("is in use by the ghtap with process id") && said.lines().count() == 1, "{said}");
}

#[tokio::test]
async fn a_memory_store_leaves_nothing_on_disk() {
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "full_name": "o/r" }));
    let tap = Tap::start(&github, &["--store=memory:"]).await;
    let mut client = Client::connect(&tap).await;
    client.get("/repos/o/r", "a", &[]).await;
    assert_eq!(client.get("/repos/o/r", "a", &[]).await.x_cache(), "ONLINE_HIT");
    assert!(!tap.data_dir().join("cache-v2").exists());
}

#[tokio::test]
async fn a_second_signal_ends_the_wait_and_loses_nothing() {
    use crate::support::Misbehaviour;
    let github = GitHub::start().await;
    github.misbehave("/repos/o/slow", Misbehaviour::Late(Duration::from_secs(15)));
    let mut tap = Tap::start(&github, &[]).await;
    let mut client = Client::connect(&tap).await;
    for _ in 0..5 {
        client.get("/repos/o/missing", "a", &[]).await;
    }
    client.send("GET /repos/o/slow HTTP/1.1\r\nHost: api.github.com\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    tap.signal(rustix::process::Signal::TERM);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let code = tokio::time::timeout(Duration::from_secs(8), tap.terminate()).await.expect("at once");
    assert_eq!(code, Some(0));
    let report = tap.cli(&["report", "--by=host", "--format=json"]).await;
    let report: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!(
        (report["total"]["calls"].as_u64(), report["total"]["charged"].as_u64()),
        (Some(6), Some(6)),
        "the one cut off, too"
    );
}

#[tokio::test]
async fn what_is_stored_is_ours_alone_to_read() {
    use std::os::unix::fs::PermissionsExt;
    let github = GitHub::start().await;
    let tap = Tap::start(&github, &[]).await;
    for name in ["ca", "cache-v2", "ledger-v2"] {
        let mode = std::fs::metadata(tap.data_dir().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o700, "{name}");
    }
}

#[tokio::test]
async fn credentials_are_nowhere() {
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "full_name": "o/r" }));
    let mut tap = Tap::start(&github, &["--log=debug"]).await;
    let secret = "ghp_verysecret0123456789";
    let mut client = Client::named(&tap, "me+run").await;
    client.get("/repos/o/r", secret, &[]).await;
    client.get("/repos/o/missing", secret, &[]).await;
    client.request("POST", "/app/installations/7/access_tokens", "jwt", &[], b"{}").await;
    let metrics = tap.get_admin("/metrics").await;
    assert!(!metrics.contains(secret));
    assert_eq!(tap.terminate().await, Some(0));
    assert!(!tap.log().contains(secret) && !tap.log().contains("ghs_"));
    let found = std::process::Command::new("grep")
        .args(["-rl", "-e", secret, "-e", "ghs_000"])
        .arg(tap.data_dir())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}
