//! Who spends the quota: clients, runs, credentials, and reports on them.

use std::process::Stdio;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use crate::support::tap::command;
use crate::support::{Client, GitHub, Tap, has, missing};

async fn report(tap: &Tap, arguments: &[&str]) -> Value {
    let output = tap.cli(&[&["report", "--format=json"], arguments].concat()).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn names(report: &Value) -> Vec<(String, u64)> {
    let lines = report["lines"].as_array().unwrap().iter();
    lines.map(|l| (l["name"].as_str().unwrap().to_owned(), l["calls"].as_u64().unwrap())).collect()
}

fn pairs(all: &[(&str, u64)]) -> Vec<(String, u64)> {
    all.iter().map(|(name, calls)| ((*name).to_owned(), *calls)).collect()
}

/// A file with one client, `ci`, whose secret is `secret`.
fn clients_file(dir: &std::path::Path) -> String {
    let path = dir.join("clients");
    std::fs::write(&path, "ci:$2y$05$yD1nsXNXPXoXjhKXYYl7ie7jbfC57JOHIXQZexJ2WQRlbUYVcAciy\n").unwrap();
    format!("--clients-file={}", path.display())
}

#[tokio::test]
async fn unknown_callers_get_407() {
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "full_name": "o/r" }));
    let dir = tempfile::tempdir().unwrap();
    let registry = dir.path().join("registry.yml");
    std::fs::write(&registry, "version: 1\nclients:\n  - name: ci\n    token: x\n    scopes: []\n").unwrap();
    let file = format!("--clients-file={}", registry.display());
    let tap = Tap::start(&github, &["--require-proxy-auth", &file, "--tunnel-ports=443,8443"]).await;
    for (authority, user) in
        [("api.github.com:443", None), ("github.com:443", None), ("api.github.com:443", Some("eve+1"))]
    {
        let (_, reply) = Client::open(&tap, authority, user).await;
        assert_eq!(reply.status, StatusCode::PROXY_AUTHENTICATION_REQUIRED.as_u16(), "{authority} {user:?}");
        assert!(reply.field("proxy-authenticate").unwrap().starts_with("Basic realm=\"ghtap\""));
        assert!(reply.json()["message"].as_str().unwrap().starts_with("ghtap: "), "{reply:?}");
    }
    let mut plain = Client::plain(&tap).await;
    plain.send("GET https://api.github.com/repos/o/r HTTP/1.1\r\nHost: api.github.com\r\n\r\n").await;
    assert_eq!(plain.reply(false).await.status, 407);
    assert!(github.arrived().is_empty(), "nothing reached GitHub");
    // `x` is what this client sends as its secret.
    let reply = Client::named(&tap, "ci+7").await.get("/repos/o/r", "a", &[]).await;
    assert_eq!(reply.status, 200);
    assert!(github.arrived()[0].headers.get("proxy-authorization").is_none());
    assert_eq!(names(&report(&tap, &["--by=client"]).await), pairs(&[("ci", 1)]));
    assert_eq!(tap.metric("ghtap_refused_total{reason=\"client\"}").await, 4.0);
    // Who is struck off the file is not served on the connection that is open, either.
    let mut open = Client::named(&tap, "ci").await;
    assert_eq!(open.get("/repos/o/r", "a", &[]).await.status, 200);
    std::fs::write(&registry, "version: 1\nclients:\n  - name: other\n    token: x\n").unwrap();
    let mut refused = 0;
    for _ in 0..100 {
        match open.request("GET", "/repos/o/r", "a", &[], b"").await.status {
            200 => tokio::time::sleep(Duration::from_millis(100)).await,
            status => {
                refused = status;
                break;
            }
        }
    }
    assert_eq!(refused, 407);
    assert!(!tap.log().contains("eve:"));
}

#[tokio::test]
async fn without_it_names_are_labels_and_networks_have_names() {
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "full_name": "o/r" }));
    let tap = Tap::start(&github, &["--client=127.0.0.0/8=office"]).await;
    Client::connect(&tap).await.get("/repos/o/r", "a", &[]).await;
    Client::named(&tap, "+7").await.get("/repos/o/r", "a", &[]).await;
    Client::named(&tap, "bot").await.get("/repos/o/r", "a", &[]).await;
    assert_eq!(names(&report(&tap, &["--by=client"]).await), pairs(&[("office", 2), ("bot", 1)]));
    assert_eq!(names(&report(&tap, &["--run=7", "--by=client"]).await), pairs(&[("office", 1)]));
}

#[tokio::test]
async fn wrong_client_files_are_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = dir.path().join("wrong");
    std::fs::write(&wrong, "ci:$apr1$x$y\n").unwrap();
    let wrong = format!("--clients-file={}", wrong.display());
    for (arguments, said) in [
        (vec!["--require-proxy-auth"], "--require-proxy-auth needs --clients-file"),
        (vec!["--require-proxy-auth", "--clients-file=/nowhere"], "--clients-file /nowhere: No such file"),
        (vec![&*wrong], "line 1: the hash of \"ci\" is neither bcrypt"),
    ] {
        let output = command(crate::support::tap::GHTAP)
            .args(["serve", "--listen=127.0.0.1:0", "--admin=127.0.0.1:0"])
            .arg(format!("--data-dir={}", dir.path().join("d").display()))
            .arg(format!("--certs-dir={}", dir.path().join("c").display()))
            .args(arguments)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && stderr.contains(said) && stderr.lines().count() == 1, "{stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn git_and_java_are_let_in() {
    let test = "git_and_java_are_let_in";
    if !has("git", "--version") && missing(test, "git") || !has("curl", "--version") && missing(test, "curl") {
        return;
    }
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "full_name": "o/r" }));
    let dir = tempfile::tempdir().unwrap();
    let file = clients_file(dir.path());
    let tap = Tap::start(&github, &["--require-proxy-auth", &file]).await;
    // git names itself only after the 407. What it asks then is not a repository's: that the tunnel opened counts.
    let git = |user: &str| {
        let mut git = command("git");
        git.args(["ls-remote", "https://github.com/o/r.git"])
            .env("HTTPS_PROXY", format!("http://{user}{}", tap.proxy))
            .env("GIT_SSL_CAINFO", &github.ca)
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("HOME", dir.path())
            .stdin(Stdio::null());
        tokio::task::spawn_blocking(move || git.output().unwrap())
    };
    let refused = git("").await.unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("407"), "{}", String::from_utf8_lossy(&refused.stderr));
    assert_eq!(tap.metric("ghtap_tunnels_total{result=\"opened\"}").await, 0.0);
    git("ci:secret@").await.unwrap();
    assert_eq!(tap.metric("ghtap_tunnels_total{result=\"opened\"}").await, 1.0);
    // curl is let in at once, and with a wrong secret never.
    for (user, status) in [("ci:secret@", 0), ("ci:wrong@", 56), ("", 56)] {
        let mut curl = command("curl");
        curl.args(["-sS", "-o", "/dev/null", "--cacert"]).arg(tap.ca());
        curl.args(["-x", &format!("http://{user}{}", tap.proxy), "https://api.github.com/repos/o/r"]);
        let output = tokio::task::spawn_blocking(move || curl.output().unwrap()).await.unwrap();
        assert_eq!(output.status.code(), Some(status), "{user} {}", String::from_utf8_lossy(&output.stderr));
    }
    // Java fails on a 407: a rule for its address lets it in. So for who knows no proxy at all.
    let tap = Tap::start(&github, &["--require-proxy-auth", &file, "--client=127.0.0.1=java"]).await;
    let reply = Client::connect(&tap).await.get("/repos/o/r", "a", &[]).await;
    assert_eq!(reply.status, 200);
    assert_eq!(names(&report(&tap, &["--by=client"]).await), pairs(&[("java", 1)]));
}

#[tokio::test]
async fn runs_end_when_told_or_silent_and_are_averaged() {
    use ghtap::admin::client::{At, ask};
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "full_name": "o/r" }));
    let mut tap = Tap::start(&github, &["--run-idle=1s"]).await;
    let at = At { address: tap.admin, token: None };
    for (run, calls) in [("r1", 4), ("r2", 2)] {
        let mut client = Client::named(&tap, &format!("ci+{run}")).await;
        for n in 0..calls {
            client.get(&format!("/repos/o/{}", if n == 0 { "missing" } else { "r" }), "a", &[]).await;
        }
    }
    ask(&at, http::Method::POST, "/api/runs/r1/end").await.unwrap();
    assert!(ask(&at, http::Method::POST, "/api/runs/r1/end").await.unwrap_err().contains("404"), "it has ended");
    // r2 ends by itself.
    tap.wait_for_metric("ghtap_run_calls_count{client=\"ci\"}", 2.0).await;
    assert_eq!(tap.metric("ghtap_run_calls_sum{client=\"ci\"}").await, 6.0);
    assert_eq!(tap.metric("ghtap_run_charged_calls_sum{client=\"ci\"}").await, 3.0);
    assert_eq!(tap.metric("ghtap_run_average_calls{client=\"ci\",kind=\"charged\"}").await, 1.5);
    let inventory: Value = serde_json::from_str(&tap.get_admin("/api/runs/r1").await).unwrap();
    assert_eq!((&inventory["runs"][0]["client"], &inventory["routes"]["total"]["calls"]), (&json!("ci"), &json!(4)));
    assert_eq!(names(&report(&tap, &["--by=run", "--where=client=ci"]).await), pairs(&[("r1", 4), ("r2", 2)]));
    assert_eq!(names(&report(&tap, &["--by=outcome", "--run=r1"]).await), pairs(&[("miss", 2), ("revalidated", 2)]));
    // At rest, the same.
    assert_eq!(tap.terminate().await, Some(0));
    assert_eq!(names(&report(&tap, &["--by=run", "--where=client=ci"]).await), pairs(&[("r1", 4), ("r2", 2)]));
    // After a restart the averages go on.
    tap.launch().await;
    let clients: Value = serde_json::from_str(&tap.get_admin("/api/clients").await).unwrap();
    assert_eq!(clients, json!([{ "client": "ci", "runs": 2, "calls_per_run": 3.0, "charged_per_run": 1.5 }]));
}

#[tokio::test]
async fn credentials_are_named_and_their_quota_told() {
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "full_name": "o/r" }));
    let mut tap = Tap::start(&github, &[]).await;
    let mut client = Client::connect(&tap).await;
    client.get("/repos/o/r/installation", "jwt", &[]).await;
    let minted = client.request("POST", "/app/installations/7/access_tokens", "jwt", &[], b"{}").await;
    let token = minted.json()["token"].as_str().unwrap().to_owned();
    client.get("/repos/o/r", &token, &[]).await;
    client.get("/repos/o/r", &token, &[]).await;
    // Somebody else uses the same installation.
    github.use_quota(&token, 40);
    client.get("/repos/o/missing", &token, &[]).await;
    let by_credential = ["--by=credential", "--where=credential=installation:7"];
    let told = async |tap: &Tap| report(tap, &by_credential).await["lines"][0]["quota"].clone();
    let quota = told(&tap).await;
    assert_eq!((&quota["app"], &quota["account"]), (&json!("packit"), &json!("acme")), "{quota}");
    let numbers = ["limit", "used", "used_by_us", "used_by_others"].map(|n| quota[n].as_u64().unwrap());
    assert_eq!(numbers, [5000, 42, 2, 40], "{quota}");
    // A restart forgets neither the name nor what we used.
    assert_eq!(tap.terminate().await, Some(0));
    tap.launch().await;
    Client::connect(&tap).await.get("/repos/o/missing", &token, &[]).await;
    let quota = told(&tap).await;
    assert_eq!(["used_by_us", "used_by_others"].map(|n| quota[n].as_u64().unwrap()), [3, 40], "{quota}");
    let table = tap.cli(&["report", "--by=credential"]).await;
    assert!(String::from_utf8_lossy(&table.stdout).contains("used_by_others"));
    // And the operator may give a name to a digest: then that is what it was called before, too.
    let digits = names(&report(&tap, &["--by=credential"]).await);
    let digits = digits.iter().find_map(|(name, _)| name.strip_prefix("credential:")).unwrap().to_owned();
    tap.terminate().await;
    tap.add_argument(format!("--credential-name={digits}=release-bot"));
    tap.launch().await;
    Client::connect(&tap).await.get("/repos/o/r/installation", "jwt", &[]).await;
    let lines = report(&tap, &["--by=credential", "--where=credential=release-bot"]).await["lines"].clone();
    assert_eq!((&lines[0]["calls"], &lines[0]["quota"]["used_by_others"]), (&json!(3), &json!(0)), "{lines}");
    assert!(!tap.get_admin("/metrics").await.contains(&digits));
}

#[tokio::test]
async fn reports_are_cut_to_what_is_asked() {
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "full_name": "o/r" }));
    let tap = Tap::start(&github, &[]).await;
    for (client, calls) in [("a", 3), ("b", 1)] {
        let mut client = Client::named(&tap, client).await;
        for _ in 0..calls {
            client.get("/repos/o/r", "t", &[]).await;
            client.get("/repos/o/missing/issues", "t", &[]).await;
        }
    }
    let issues = "GET /repos/{owner}/{repo}/issues";
    assert_eq!(names(&report(&tap, &["--top=1"]).await), pairs(&[(issues, 4)]));
    assert_eq!(
        names(&report(&tap, &["--by=client", &format!("--where=route={issues}")]).await),
        pairs(&[("a", 3), ("b", 1)])
    );
    assert_eq!(names(&report(&tap, &["--where=client=b", "--top=1"]).await), pairs(&[(issues, 1)]));
    assert_eq!(report(&tap, &["--by=hour"]).await["total"]["calls"], 8);
    assert!(names(&report(&tap, &["--until=1h"]).await).is_empty());
    assert!(names(&report(&tap, &["--since=2100-01-01"]).await).is_empty());
    let backwards = tap.cli(&["report", "--since=1h", "--until=2h"]).await;
    assert!(String::from_utf8_lossy(&backwards.stderr).contains("--since is not before --until"));
    assert_eq!(report(&tap, &["--since=1h", "--until=2100-01-01T00:00:00Z"]).await["total"]["calls"], 8);
    for (arguments, said) in [
        (vec!["report", "--since=soon"], "is no moment"),
        (vec!["report", "--where=nobody"], "a name is expected"),
        (vec!["report", "--by=nothing"], "possible values"),
    ] {
        let output = tap.cli(&arguments).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && stderr.contains(said), "{stderr}");
    }
    let markdown = tap.cli(&["report", "--format=markdown"]).await;
    assert!(String::from_utf8_lossy(&markdown.stdout).starts_with("| route | calls |"));
}

#[tokio::test]
async fn after_kill_9_under_load_the_ledger_agrees_to_within_a_second() {
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "full_name": "o/r" }));
    let mut tap = Tap::start(&github, &[]).await;
    let mut client = Client::named(&tap, "ci+load").await;
    // So slowly that a second's worth is a known number.
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        client.get("/repos/o/r", "a", &[]).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let per_second = github.arrived().len() as u64 / 4;
    tap.kill();
    let made = per_second * 4;
    tap.launch().await;
    for by in ["--by=host", "--by=run"] {
        let counted = report(&tap, &[by]).await["total"]["calls"].as_u64().unwrap();
        // The last second's, and the flush that was under way.
        assert!(
            counted + per_second * 3 / 2 >= made && counted <= made + 3,
            "{by}: {counted} of {made}, {per_second} per second"
        );
    }
}

#[tokio::test]
async fn run_beside_a_tap_that_knows_its_clients() {
    if !has("curl", "--version") && missing("run_beside_a_tap_that_knows_its_clients", "curl") {
        return;
    }
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "full_name": "o/r" }));
    let dir = tempfile::tempdir().unwrap();
    let tap = Tap::start(&github, &["--require-proxy-auth", &clients_file(dir.path()), "--run-idle=1s"]).await;
    let run = async |script: &str| {
        let output = tap.cli(&["run", "--report=json", "--", "sh", "-c", script]).await;
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    // Let in by what the tap tells its own commands; the command's exit code is ours.
    let curl = "curl -sS -f -o /dev/null -H 'Authorization: token t' https://api.github.com/repos/o/r";
    let (code, said) = run(&format!("{curl}; exit 7")).await;
    assert_eq!(
        (code, serde_json::from_str::<Value>(&said).unwrap()["total"]["calls"].clone()),
        (Some(7), json!(1)),
        "{said}"
    );
    // A run that makes no call, and one that has ended by its silence.
    let (code, said) = run("exit 0").await;
    assert!(code == Some(0) && said.contains("no call went through the tap"), "{code:?} {said}");
    let (code, said) = run(&format!("{curl}; sleep 3; exit 5")).await;
    assert_eq!(
        (code, serde_json::from_str::<Value>(&said).unwrap()["total"]["calls"].clone()),
        (Some(5), json!(1)),
        "{said}"
    );
    assert_eq!(run("exec /no/such/command 2>/dev/null").await.0, Some(127));
    let output = tap.cli(&["run", "--", "/no/such/command"]).await;
    assert_eq!(output.status.code(), Some(127));
}
