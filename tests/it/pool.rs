//! The pool of GitHub credentials: choosing, resting, trying again, minting; and what it costs.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::support::github::Resource;
use crate::support::{Client, GitHub, Misbehaviour, Tap, has, missing};

const REGISTRY: &str = "version: 1\nclients:\n- name: ci\n  token: client-ci\n";

pub fn seconds_from_now(seconds: u64) -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + seconds
}

/// A tap with a pool, and one client that may do all.
pub async fn with_pool(github: &GitHub, more: &[&str], variables: &[(&str, &str)]) -> Tap {
    let dir = tempfile::tempdir().unwrap();
    let registry = dir.path().join("registry.yml");
    std::fs::write(&registry, REGISTRY).unwrap();
    let mut arguments = vec![
        format!("--clients-file={}", registry.display()),
        format!("--resolve=api.github.com:443:{}", github.address),
        format!("--upstream-ca={}", github.ca.display()),
    ];
    arguments.extend(more.iter().map(|s| s.to_string()));
    let tap = Tap::with_variables(arguments, variables).await;
    std::mem::forget(dir);
    tap
}

const FIVE: [(&str, &str); 5] = [
    ("GITHUB_PAT_A", "ghp_a"),
    ("GITHUB_PAT_B", "ghp_b"),
    ("GITHUB_PAT_C", "ghp_c"),
    ("GITHUB_PAT_D", "ghp_d"),
    ("GITHUB_PAT_E", "ghp_e"),
];

#[tokio::test]
async fn no_client_sees_a_limit_while_one_credential_has_quota() {
    let github = GitHub::start().await;
    for n in 0..200 {
        github.set(&format!("/repos/o/r/issues/{n}"), json!({ "number": n }));
    }
    github.set("/repos/o/r", json!({ "id": 1 }));
    github.resets_at(seconds_from_now(3600));
    let tap = with_pool(&github, &[], &FIVE).await;
    let running_out = github.clone();
    tokio::spawn(async move {
        // Somebody else uses them up, behind our back, while they are in use.
        for token in ["a", "b", "c", "d"] {
            let authorization = format!("Bearer ghp_{token}");
            while running_out.used(&authorization) < 8 {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            running_out.limit(&authorization, 1);
        }
    });
    let mut all = Vec::new();
    for worker in 0..8_usize {
        let mut client = Client::connect(&tap).await;
        all.push(tokio::spawn(async move {
            for n in (worker..200).step_by(8) {
                let reply = client.get(&format!("/repos/o/r/issues/{n}"), "client-ci", &[]).await;
                assert_eq!((reply.status, reply.json()["number"].as_u64()), (200, Some(n as u64)), "{reply:?}");
                let made = client.request("POST", "/repos/o/r/issues", "client-ci", &[], b"{}").await;
                assert_eq!(made.status, 201, "{made:?}");
            }
        }));
    }
    for task in all {
        task.await.unwrap();
    }
    let arrived = github.arrived();
    assert_eq!(arrived.iter().filter(|a| a.method == "POST" && a.status == 201).count(), 200, "each write once");
    let refused: std::collections::BTreeSet<_> =
        arrived.iter().filter(|a| a.status == 403).map(|a| a.headers["authorization"].to_str().unwrap()).collect();
    assert_eq!(refused.len(), 4, "four did run out: {refused:?}");
}

#[tokio::test]
async fn a_change_of_credential_costs_no_quota() {
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "id": 1 }));
    let tap = with_pool(&github, &[], &FIVE).await;
    let mut client = Client::connect(&tap).await;
    assert_eq!(client.get("/repos/o/r", "client-ci", &[]).await.status, 200);
    // With each credential in turn.
    github.arrived();
    for rests in 0..4 {
        // Whoever was asked last is not taken any more: another is asked.
        let last = client.get("/repos/o/r", "client-ci", &[]).await;
        assert_eq!(last.x_cache(), "ONLINE_HIT");
        github.refuse(github.arrived().last().unwrap().headers["authorization"].to_str().unwrap());
        let reply = client.get("/repos/o/r", "client-ci", &[]).await;
        assert_eq!((reply.status, reply.x_cache()), (200, "ONLINE_HIT"), "{rests}");
        let asked: Vec<_> = github.arrived().into_iter().map(|a| (a.status, a.charged)).collect();
        assert_eq!(asked.last(), Some(&(304, false)), "with a credential that has never asked for it: {asked:?}");
    }
}

#[tokio::test]
async fn all_resting_is_429_until_the_first_is_back_or_a_wait() {
    let github = GitHub::start().await;
    github.set("/user", json!({ "id": 1 }));
    let two = &FIVE[..2];
    let limited = |seconds: &str| {
        let fields = vec![("Retry-After", seconds.to_owned())];
        Misbehaviour::Refuse(403, "You have exceeded a secondary rate limit", fields)
    };
    github.misbehave("/user", limited("7"));
    let tap = with_pool(&github, &[], two).await;
    let mut client = Client::connect(&tap).await;
    let reply = client.get("/user", "client-ci", &[]).await;
    assert_eq!(reply.status, 429, "{reply:?}");
    let after: u64 = reply.field("retry-after").unwrap().parse().unwrap();
    assert!((5..=7).contains(&after), "{after}");
    assert!(reply.json()["message"].as_str().unwrap().contains("credentials of the pool rest"));
    assert_eq!(github.arrived().len(), 2, "each was tried once");
    assert_eq!(client.get("/user", "client-ci", &[]).await.status, 429);
    assert!(github.arrived().is_empty(), "and is left alone");
    // With patience.
    github.misbehave("/user", limited("1"));
    let tap = with_pool(&github, &["--pool-wait=10s"], two).await;
    let mut client = Client::connect(&tap).await;
    let behaving = github.clone();
    tokio::spawn(async move {
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        behaving.behave();
    });
    assert_eq!(client.get("/user", "client-ci", &[]).await.status, 200);
}

#[tokio::test]
async fn a_write_is_tried_again_only_where_github_did_not_act() {
    let github = GitHub::start().await;
    let tap = with_pool(&github, &["--upstream-timeout=400ms"], &FIVE[..2]).await;
    let mut client = Client::connect(&tap).await;
    github.refuse("Bearer ghp_a");
    github.refuse("Bearer ghp_b");
    let reply = client.request("POST", "/repos/o/r/issues", "client-ci", &[], b"{\"a\":1}").await;
    assert!(reply.status == 502 && reply.json()["message"].as_str().unwrap().contains("none of the pool"), "{reply:?}");
    assert!(tap.metric("ghtap_pool_rests_until_timestamp_seconds{credential=\"pat:a\"}").await > 0.0);
    let arrived: Vec<_> = github.arrived().into_iter().filter(|a| a.method == "POST").collect();
    assert_eq!(arrived.len(), 2);
    assert!(arrived.iter().all(|a| a.body == b"{\"a\":1}"));
    let github = GitHub::start().await;
    let tap = with_pool(&github, &["--upstream-timeout=400ms"], &FIVE[..2]).await;
    let mut client = Client::connect(&tap).await;
    for how in [Misbehaviour::NeverAnswer, Misbehaviour::Close, Misbehaviour::Status(502, "x")] {
        github.misbehave("/repos/o/r/issues", how);
        let reply = client.request("POST", "/repos/o/r/issues", "client-ci", &[], b"{}").await;
        assert!(reply.status >= 500, "{reply:?}");
        assert_eq!(github.arrived().len(), 1, "it may have been acted on");
    }
}

#[tokio::test]
async fn who_sees_the_repository_is_asked() {
    let github = GitHub::start().await;
    let mut private = Resource { body: b"{\"id\":1}".to_vec(), ..Resource::default() };
    for token in ["a", "b", "c", "d"] {
        private.by_credential.insert(format!("Bearer ghp_{token}"), Vec::new());
    }
    github.put("/repos/o/private", private);
    let tap = with_pool(&github, &[], &FIVE).await;
    let mut client = Client::connect(&tap).await;
    assert_eq!(client.get("/repos/o/private", "client-ci", &[]).await.status, 200);
    github.arrived();
    for _ in 0..5 {
        assert_eq!(client.get("/repos/o/private", "client-ci", &[]).await.status, 200);
        assert_eq!(client.get("/repos/o/private/contents/x", "client-ci", &[]).await.status, 404);
    }
    let arrived = github.arrived();
    assert_eq!(arrived.len(), 10 + 4, "once all are asked for x: then it is believed that there is none");
    assert!(arrived[6..].iter().all(|a| a.headers["authorization"] == "Bearer ghp_e"));
    // What nobody sees is not asked of all of them each time.
    for _ in 0..3 {
        assert_eq!(client.get("/repos/o/nowhere", "client-ci", &[]).await.status, 404);
    }
    assert_eq!(github.arrived().len(), 5 + 2);
}

#[tokio::test]
async fn a_request_that_github_refuses_to_all_takes_nobody_out_of_the_pool() {
    let github = GitHub::start().await;
    github.set("/user", json!({ "id": 1 }));
    let tap = with_pool(&github, &[], &FIVE[..2]).await;
    let mut client = Client::connect(&tap).await;
    github.misbehave("/repos/o/r/strange", Misbehaviour::Status(401, "Requires other authentication"));
    assert_eq!(client.get("/repos/o/r/strange", "client-ci", &[]).await.status, 401);
    assert_eq!(client.get("/user", "client-ci", &[]).await.status, 200);
    let arrived: Vec<_> = github.arrived().into_iter().map(|a| (a.target, a.charged)).collect();
    assert_eq!(arrived.len(), 3);
    assert_eq!(arrived[1], ("/rate_limit".into(), false), "the credential itself is taken");
}

#[tokio::test]
async fn a_limit_in_a_pool_that_was_not_foreseen_leads_to_another_credential() {
    let github = GitHub::start().await;
    github.set("/user", json!({ "id": 1 }));
    let tap = with_pool(&github, &[], &FIVE).await;
    let mut client = Client::connect(&tap).await;
    let fields = vec![
        ("X-RateLimit-Remaining", "0".to_owned()),
        ("X-RateLimit-Reset", seconds_from_now(600).to_string()),
        ("X-RateLimit-Resource", "code_scanning_upload".to_owned()),
    ];
    github.misbehave("/repos/o/r/code-scanning/sarifs", Misbehaviour::Refuse(403, "API rate limit exceeded", fields));
    let reply = client.request("POST", "/repos/o/r/code-scanning/sarifs", "client-ci", &[], b"{}").await;
    assert_eq!(reply.status, 403, "{reply:?}");
    assert_eq!(github.arrived().len(), 5, "each once");
    assert_eq!(client.get("/user", "client-ci", &[]).await.status, 200, "and nothing else rests");
}

#[tokio::test]
async fn content_that_is_gone_is_for_the_client_to_send_again() {
    let github = GitHub::start().await;
    let tap = with_pool(&github, &[], &FIVE[..2]).await;
    let mut client = Client::connect(&tap).await;
    let fields = vec![("Retry-After", "60".to_owned())];
    github.misbehave("/repos/o/r/git/blobs", Misbehaviour::Refuse(403, "secondary rate limit", fields));
    let large = vec![b'x'; 3 << 20];
    let reply = client.request("POST", "/repos/o/r/git/blobs", "client-ci", &[], &large).await;
    assert_eq!((reply.status, reply.field("retry-after")), (429, Some("1")), "{reply:?}");
    github.behave();
    let reply = client.request("POST", "/repos/o/r/git/blobs", "client-ci", &[], &large).await;
    assert_eq!((reply.status, reply.json()["received"].as_u64()), (201, Some(3 << 20)));
}

#[tokio::test]
async fn what_one_had_confirmed_stands_in_for_another_and_a_private_repository_is_not_denied() {
    let github = GitHub::start().await;
    let mut private = Resource { body: b"{\"id\":1}".to_vec(), ..Resource::default() };
    private.by_credential.insert("Bearer ghp_b".into(), Vec::new());
    github.put("/repos/o/private", private);
    let tap = with_pool(&github, &["--offline-after=2"], &FIVE[..2]).await;
    let mut client = Client::connect(&tap).await;
    assert_eq!(client.get("/repos/o/private", "client-ci", &[]).await.status, 200);
    github.set("/repos/o/new", json!({ "id": 2 }));
    // Who sees it is limited: it is not gone for that. What was confirmed stands in.
    github.resets_at(seconds_from_now(600));
    github.limit("Bearer ghp_a", 0);
    assert_eq!(client.get("/repos/o/private", "client-ci", &[]).await.x_cache(), "RATE_LIMITED_HIT");
    assert_eq!(client.get("/repos/o/private/issues", "client-ci", &[]).await.status, 429, "for who sees it rests");
    assert_eq!(client.get("/repos/o/new", "client-ci", &[]).await.status, 200, "the other asks");
    // All rest.
    github.limit("Bearer ghp_b", 0);
    assert_eq!(client.get("/repos/o/new", "client-ci", &[]).await.x_cache(), "RATE_LIMITED_HIT");
    for (target, status) in [("/repos/o/private", 200), ("/repos/o/new", 200), ("/repos/o/unknown", 429)] {
        assert_eq!(client.get(target, "client-ci", &[]).await.status, status, "{target}");
    }
}

#[tokio::test]
async fn a_missing_file_does_not_hide_its_repository_nor_a_hook_another() {
    let github = GitHub::start().await;
    for target in ["/repos/o/private", "/repos/o/private/hooks/5", "/orgs/acme/teams"] {
        let mut hidden = Resource { body: b"{\"id\":1}".to_vec(), ..Resource::default() };
        hidden.by_credential.insert("Bearer ghp_b".into(), Vec::new());
        github.put(target, hidden);
    }
    // The one that is blind has more left, so that it is asked first.
    github.use_quota_of("Bearer ghp_a", 100);
    let tap = with_pool(&github, &[], &FIVE[..2]).await;
    let mut client = Client::connect(&tap).await;
    client.get("/user", "client-ci", &[]).await;
    client.get("/user", "client-ci", &[]).await;
    for (target, status) in [
        ("/repos/o/private/contents/missing", 404),
        ("/repos/o/private", 200),
        ("/repos/o/private/hooks/999", 404),
        ("/repos/o/private/hooks/5", 200),
        ("/orgs/acme/teams", 200),
        ("/orgs/acme/teams", 200),
    ] {
        assert_eq!(client.get(target, "client-ci", &[]).await.status, status, "{target}");
    }
    github.arrived();
    // Who might be given it rests: it is not said to be gone.
    github.resets_at(seconds_from_now(600));
    github.limit("Bearer ghp_a", 0);
    assert_eq!(client.get("/repos/o/private/hooks/6", "client-ci", &[]).await.status, 429);
    assert!(github.arrived().len() <= 2);
}

#[tokio::test]
async fn waiting_does_not_ask_again_and_again() {
    let github = GitHub::start().await;
    let fields = vec![
        ("X-RateLimit-Remaining", "0".to_owned()),
        ("X-RateLimit-Reset", seconds_from_now(600).to_string()),
        ("X-RateLimit-Resource", "code_scanning_upload".to_owned()),
    ];
    github.misbehave("/repos/o/r/code-scanning/sarifs", Misbehaviour::Refuse(403, "API rate limit exceeded", fields));
    let tap = with_pool(&github, &["--pool-wait=3s"], &FIVE[..2]).await;
    let mut client = Client::connect(&tap).await;
    client.request("POST", "/repos/o/r/code-scanning/sarifs", "client-ci", &[], b"{}").await;
    assert_eq!(github.arrived().len(), 2);
}

#[tokio::test]
async fn offline_what_any_of_the_pool_had_confirmed_is_served() {
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "id": 1 }));
    let tap = with_pool(&github, &["--offline-after=2"], &FIVE[..2]).await;
    let mut client = Client::connect(&tap).await;
    assert_eq!(client.get("/repos/o/r", "client-ci", &[]).await.status, 200);
    github.down(true);
    for _ in 0..100 {
        let reply = client.get("/repos/o/r", "client-ci", &[]).await;
        if reply.x_cache() == "OFFLINE_HIT" {
            // Nobody else's client is served with it.
            assert_eq!(client.get("/repos/o/r", "ghp_own", &[]).await.x_cache(), "OFFLINE_MISS");
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("what the pool had confirmed does not stand in");
}

#[tokio::test]
async fn credentials_are_for_one_api() {
    let (dotcom, ghe) = (GitHub::start().await, GitHub::start().await);
    dotcom.set("/user", json!({ "id": 1 }));
    ghe.set("/api/v3/user", json!({ "id": 2 }));
    let (near, far) = (dotcom.plainly().await, ghe.plainly().await);
    let upstream = format!("--upstream=http://{near},http://{far}/api/v3");
    let tap = with_pool(&dotcom, &[&upstream], &FIVE[..1]).await;
    let ask = async |target: &str| {
        let mut client = Client::plain(&tap).await;
        client.send(format!("GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: token client-ci\r\n\r\n")).await;
        client.reply(false).await.status
    };
    assert_eq!((ask("/user").await, ask("/api/v3/user").await), (200, 502));
    assert!(ghe.arrived().is_empty(), "no credential of another's goes there");
}

pub fn key(dir: &std::path::Path) -> Option<String> {
    let path = dir.join("app.pem");
    let made =
        std::process::Command::new("openssl").args(["genrsa", "-traditional", "-out"]).arg(&path).arg("2048").output();
    made.ok().filter(|o| o.status.success())?;
    std::fs::read_to_string(path).ok()
}

#[tokio::test]
async fn apps_mint_once_for_all_and_find_installations_by_owner() {
    if !has("openssl", "version") {
        missing("apps_mint_once_for_all_and_find_installations_by_owner", "openssl");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let pem = key(dir.path()).unwrap();
    let github = GitHub::start().await;
    for owner in ["acme", "beta", "nobody"] {
        github.set(&format!("/repos/{owner}/r"), json!({ "owner": owner }));
    }
    let tap = with_pool(&github, &[], &[("GITHUB_APP_BOT_ID", "12"), ("GITHUB_APP_BOT_PEM", &pem)]).await;
    let mut all = Vec::new();
    for _ in 0..16 {
        let mut client = Client::connect(&tap).await;
        all.push(tokio::spawn(async move { client.get("/repos/acme/r", "client-ci", &[]).await.status }));
    }
    for task in all {
        assert_eq!(task.await.unwrap(), 200);
    }
    let arrived = github.arrived();
    let minted: Vec<_> = arrived.iter().filter(|a| a.method == "POST").collect();
    assert_eq!((minted.len(), minted[0].target.as_str()), (1, "/app/installations/7/access_tokens"));
    let jwt = minted[0].headers["authorization"].to_str().unwrap().strip_prefix("Bearer ").unwrap();
    assert!(jwt.starts_with("eyJ") && jwt.split('.').count() == 3);
    let mut client = Client::connect(&tap).await;
    assert_eq!(client.get("/repos/beta/r", "client-ci", &[]).await.json()["owner"], "beta");
    let targets: Vec<_> = github.arrived().into_iter().map(|a| a.target).collect();
    assert_eq!(targets, ["/repos/beta/r/installation", "/app/installations/8/access_tokens", "/repos/beta/r"]);
    // Nobody has it installed; what is public can be read all the same.
    assert_eq!(client.get("/repos/nobody/r", "client-ci", &[]).await.status, 200);
    // Not on disk, not in a log, not in a report.
    let found = std::process::Command::new("grep")
        .args(["-rlE", "ghs_0|PRIVATE KEY-----.MII"])
        .arg(tap.data_dir())
        .output()
        .unwrap();
    let places = String::from_utf8(found.stdout).unwrap();
    assert!(places.is_empty() && !tap.log().contains("ghs_0"), "{places}");
    let report = String::from_utf8(tap.cli(&["report", "--by=credential", "--format=csv"]).await.stdout).unwrap();
    assert!(report.contains("installation:7") && report.contains("installation:8"), "{report}");
}

#[tokio::test]
async fn a_named_installation_and_a_token_that_is_revoked() {
    if !has("openssl", "version") {
        missing("a_named_installation_and_a_token_that_is_revoked", "openssl");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let pem = key(dir.path()).unwrap();
    let (pem_file, pool_file) = (dir.path().join("key.pem"), dir.path().join("pool.toml"));
    std::fs::write(&pem_file, &pem).unwrap();
    let text = format!(
        "[[app]]\nname = \"bot\"\nid = 12\ninstallation-id = 7\npem-file = {:?}\n",
        pem_file.display().to_string()
    );
    std::fs::write(&pool_file, text).unwrap();
    let github = GitHub::start().await;
    github.set("/repos/acme/r", json!({ "id": 1 }));
    let tap = with_pool(&github, &[&format!("--pool-file={}", pool_file.display())], &[]).await;
    let mut client = Client::connect(&tap).await;
    assert_eq!(client.get("/repos/acme/r", "client-ci", &[]).await.status, 200);
    let first = github.arrived().last().unwrap().headers["authorization"].to_str().unwrap().to_owned();
    assert!(first.starts_with("Bearer ghs_"), "{first}");
    // A key that is none is told at start, without being shown.
    std::fs::write(&pem_file, "-----BEGIN RSA PRIVATE KEY-----\nc2VjcmV0\n-----END RSA PRIVATE KEY-----").unwrap();
    let output = crate::support::tap::command(crate::support::tap::GHTAP)
        .args(["serve", "--listen=127.0.0.1:0", "--admin=127.0.0.1:0"])
        .arg(format!("--data-dir={}", dir.path().join("d").display()))
        .arg(format!("--certs-dir={}", dir.path().join("c").display()))
        .arg(format!("--pool-file={}", pool_file.display()))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("\"bot\" is not an RSA key"), "{said}");
    assert!(!said.contains("c2VjcmV0"));
}

/// Packit's inventory, its clients with one registered token, the pool with five.
#[tokio::test]
async fn a_pipeline_run_through_a_pool() {
    let github = GitHub::start().await;
    let collaborator = json!({ "permission": "write", "user": { "login": "packit" } });
    github.set("/repos/o/r/collaborators/packit/permission", collaborator);
    for token in ["a", "b", "c", "d"] {
        github.limit(&format!("Bearer ghp_{token}"), 150);
    }
    github.resets_at(seconds_from_now(3600));
    let tap = with_pool(&github, &["--not-found-ttl=10m"], &FIVE).await;
    let mut client = Client::connect(&tap).await;
    let (mut reads, runs) = (0, 20);
    for run in 0..runs {
        if run % 10 == 0 {
            github.set("/repos/o/r", json!({ "full_name": "o/r", "private": false, "pushed_at": run }));
        }
        let commit = format!("{:040x}", 0xabc_000 + run);
        let config = format!("/repos/o/r/contents/.packit.yaml?ref={commit}");
        github.set(&config, json!({ "path": ".packit.yaml", "content": "eA==", "url": config }));
        for call in 0..19 {
            let reply = client.get("/repos/o/r", "client-ci", &[]).await;
            assert_eq!((reply.status, reply.json()["pushed_at"].as_i64()), (200, Some(run / 10 * 10)));
            if call < 2 {
                assert_eq!(
                    client.get("/repos/o/r/collaborators/packit/permission", "client-ci", &[]).await.status,
                    200
                );
            }
            for (name, status) in [(".distro/source-git.yaml", 404), (".packit.yml", 404), (".packit.yaml", 200)] {
                let reply = client.get(&format!("/repos/o/r/contents/{name}?ref={commit}"), "client-ci", &[]).await;
                assert_eq!(reply.status, status, "{name}");
            }
        }
        for _ in 0..42 {
            let made = client.request("POST", &format!("/repos/o/r/statuses/{commit}"), "client-ci", &[], b"{}").await;
            assert_eq!(made.status, 201);
        }
        let arrived = github.arrived();
        assert_eq!(arrived.iter().filter(|a| a.method == "POST" && a.status == 201).count(), 42);
        reads += arrived.iter().filter(|a| a.method == "GET" && a.charged && a.status != 403).count();
    }
    let each = reads as f64 / runs as f64;
    println!("charged reads per run through a pool of five, of which four ran out: {each}");
    assert!(each <= 4.0, "{each}");
}
