//! The command line: what it prints, what it returns, what it says when something is wrong.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::tap::{GHTAP, command, ghtap_run};
use crate::support::{Client, GitHub, Tap, has, missing};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs `ghtap run` on directories of its own, in front of a stand-in.
const CURL: &str = "curl -sS -f -H 'Authorization: token t' https://api.github.com/repos/o/r";

#[tokio::test]
async fn run_needs_nothing_running_and_is_cheaper_the_second_time() {
    if !has("curl", "--version") && missing("run", "curl") {
        return;
    }
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "full_name": "o/r" }));
    let dir = tempfile::tempdir().unwrap();
    let first = ghtap_run(&github, dir.path(), &["--report=json"], CURL).await;
    assert_eq!(first.status.code(), Some(0), "{}", text(&first.stderr));
    assert!(text(&first.stdout).contains("\"full_name\": \"o/r\""), "stdout is the command's own");
    let report: Value = serde_json::from_str(&text(&first.stderr)).unwrap();
    assert_eq!(
        (report["lines"][0]["name"].as_str(), report["total"]["charged"].as_u64()),
        (Some("GET /repos/{owner}/{repo}"), Some(1))
    );
    let second = ghtap_run(&github, dir.path(), &[], CURL).await;
    let table = text(&second.stderr);
    assert!(table.starts_with("route ") && table.contains("GET /repos/{owner}/{repo}"), "{table}");
    assert_eq!(github.charged(), 1, "the store was kept");
}

#[tokio::test]
async fn run_has_the_commands_place() {
    let github = GitHub::start().await;
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(ghtap_run(&github, dir.path(), &[], "exit 7").await.status.code(), Some(7));
    assert_eq!(ghtap_run(&github, dir.path(), &[], "kill -TERM $$").await.status.code(), Some(128 + 15));
    let missing = command(GHTAP)
        .args(["run", "--data-dir"])
        .arg(dir.path().join("d"))
        .arg("--certs-dir")
        .arg(dir.path().join("c"))
        .args(["--", "/no/such"])
        .output()
        .unwrap();
    assert!(
        !missing.status.success() && text(&missing.stderr).contains("/no/such cannot be run"),
        "{}",
        text(&missing.stderr)
    );
    // Standard input reaches it, and signals to us do.
    let mut run = command(GHTAP);
    run.arg("run").arg("--data-dir").arg(dir.path().join("e")).arg("--certs-dir").arg(dir.path().join("c"));
    run.args([
        "--",
        "sh",
        "-c",
        "read line; echo got $line; trap 'echo told; exit 9' USR1; echo ready; while :; do sleep 0.05; done",
    ]);
    let mut run = run.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    std::io::Write::write_all(&mut run.stdin.take().unwrap(), b"hello\n").unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(run.stdout.take().unwrap()));
    assert_eq!(lines.next().unwrap().unwrap(), "got hello");
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let pid = rustix::process::Pid::from_child(&run);
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "told");
    assert_eq!(run.wait().unwrap().code(), Some(9));
}

#[tokio::test]
async fn an_environment_that_is_not_text_is_no_trouble() {
    use std::os::unix::ffi::OsStrExt;
    let github = GitHub::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("clients.yml");
    std::fs::write(&file, "version: 1\nclients: [{name: ci, token: x}]\n").unwrap();
    let mut run = command(GHTAP);
    run.arg("serve")
        .arg("--listen=127.0.0.1:0")
        .arg("--admin=127.0.0.1:0")
        .arg(format!("--clients-file={}", file.display()));
    run.arg(format!("--data-dir={}", dir.path().join("d").display()));
    run.arg(format!("--certs-dir={}", dir.path().join("c").display()));
    run.arg(format!("--upstream-ca={}", github.ca.display()));
    run.env("SECRET", std::ffi::OsStr::from_bytes(b"sekret\xff")).stderr(Stdio::piped());
    let mut serve = run.spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(serve.stderr.take().unwrap()));
    let first = lines.next().unwrap().unwrap();
    let _ = serve.kill();
    let _ = serve.wait();
    assert!(first.contains("intercepts api.github.com"), "{first}");
}

#[tokio::test]
async fn run_keeps_to_a_budget_and_a_baseline() {
    if !has("curl", "--version") && missing("run_keeps_to_a_budget_and_a_baseline", "curl") {
        return;
    }
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "full_name": "o/r" }));
    github.set("/repos/o/s", json!({ "full_name": "o/s" }));
    let dir = tempfile::tempdir().unwrap();
    let saved = dir.path().join("calls.json");
    let (save, baseline) = (format!("--save={}", saved.display()), format!("--baseline={}", saved.display()));
    let memory = "--store=memory:";
    assert_eq!(ghtap_run(&github, dir.path(), &[memory, &save, "--budget=1"], CURL).await.status.code(), Some(0));
    assert_eq!(ghtap_run(&github, dir.path(), &[memory, &baseline], CURL).await.status.code(), Some(0));
    let twice = format!("{CURL} && {}", CURL.replace("/o/r", "/o/s"));
    let over = ghtap_run(&github, dir.path(), &[memory, "--budget=1"], &twice).await;
    assert_eq!(over.status.code(), Some(3));
    assert!(text(&over.stderr).contains("2 charged calls, 1 more than the budget of 1"), "{}", text(&over.stderr));
    let grown = ghtap_run(&github, dir.path(), &[memory, &baseline], &twice).await;
    assert_eq!(grown.status.code(), Some(3));
    assert!(
        text(&grown.stderr).contains("grew    GET /repos/{owner}/{repo}: 2 charged calls, 1 before"),
        "{}",
        text(&grown.stderr)
    );
    assert!(
        text(&grown.stderr).contains("grew by 100.0 %, more than the 10 % of --tolerance"),
        "{}",
        text(&grown.stderr)
    );
    let allowed = ghtap_run(&github, dir.path(), &[memory, &baseline, "--tolerance=100%"], &twice).await;
    assert_eq!(allowed.status.code(), Some(0), "{}", text(&allowed.stderr));
    let other = CURL.replace("/repos/o/r", "/repos/o/r/issues");
    github.list("/repos/o/r/issues", 3);
    let moved = ghtap_run(&github, dir.path(), &[memory, &baseline, "--report=markdown"], &other).await;
    let said = text(&moved.stderr);
    assert_eq!(moved.status.code(), Some(3), "{said}");
    for line in [
        "| route | calls |",
        "| new | `GET /repos/{owner}/{repo}/issues` | 0 | 1 |",
        "| gone | `GET /repos/{owner}/{repo}` | 1 | 0 |",
        "**charged calls grew by 100.0 %",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
}

#[tokio::test]
async fn run_beside_a_serve_uses_it() {
    if !has("curl", "--version") && missing("run_beside_a_serve_uses_it", "curl") {
        return;
    }
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "full_name": "o/r" }));
    let tap = Tap::start(&github, &[]).await;
    let beside = tap.cli(&["run", "--report=json", "--", "sh", "-c", CURL]).await;
    let report: Value =
        serde_json::from_str(&text(&beside.stderr)).unwrap_or_else(|e| panic!("{e} {}", text(&beside.stderr)));
    assert_eq!(report["total"]["calls"], 1);
    let runs = tap.cli(&["report", "--by=run", "--format=csv"]).await;
    assert!(text(&runs.stdout).contains("\nrun-"), "{}", text(&runs.stdout));
    let clients = tap.cli(&["report", "--by=client", "--format=csv", "--since=1h"]).await;
    assert!(text(&clients.stdout).contains("\nsh,1,0,1,1,"), "{}", text(&clients.stdout));
}

#[tokio::test]
async fn the_cache_can_be_looked_into_and_emptied() {
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "full_name": "o/r" }));
    github.set("/repos/o/s", json!({ "full_name": "o/s" }));
    let mut tap = Tap::start(&github, &[]).await;
    let mut client = Client::connect(&tap).await;
    for at_rest in [false, true] {
        if at_rest {
            client.get("/repos/o/r", "a", &[]).await;
            client.get("/repos/o/s", "a", &[]).await;
            assert_eq!(tap.terminate().await, Some(0));
        } else {
            client.get("/repos/o/r", "a", &[("Accept", "text/x")]).await;
            client.get("/repos/o/s", "a", &[]).await;
        }
        let stats = text(&tap.cli(&["cache", "stats"]).await.stdout);
        assert!(stats.contains("kind       sled\nentries    2\n"), "{stats}");
        let list = text(&tap.cli(&["cache", "list", "https://api.github.com/repos/o/r"]).await.stdout);
        assert_eq!(list.lines().count(), 2, "{list}");
        let show = text(&tap.cli(&["cache", "show", "https://api.github.com/repos/o/s"]).await.stdout);
        let shown: Value = serde_json::from_str(&show).unwrap();
        assert_eq!(shown[0]["representations"][0]["credentials"], 1);
        assert_eq!(text(&tap.cli(&["cache", "purge", "https://api.github.com/repos/o/r"]).await.stdout), "removed 1\n");
        assert_eq!(text(&tap.cli(&["cache", "purge"]).await.stdout), "removed 1\n");
        if !at_rest {
            assert_eq!(client.get("/repos/o/s", "a", &[]).await.x_cache(), "ONLINE_MISS");
            tap.cli(&["cache", "purge"]).await;
        }
    }
}

#[tokio::test]
async fn the_ca_on_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let ca = |arguments: &[&str]| {
        let mut ca = command(GHTAP);
        ca.arg("ca")
            .arg(format!("--data-dir={}", dir.path().join("d").display()))
            .arg(format!("--certs-dir={}", dir.path().join("c").display()));
        ca.args(arguments).output().unwrap()
    };
    assert!(text(&ca(&["show"]).stderr).contains("run: ghtap ca init"));
    assert!(ca(&["init"]).status.success());
    let path = text(&ca(&["path"]).stdout);
    let root = std::fs::read_to_string(path.trim()).unwrap();
    assert_eq!(text(&ca(&["export"]).stdout), root);
    assert!(ca(&["export", "--format=der"]).stdout.starts_with(b"\x30\x82"));
    assert!(text(&ca(&["export", "--format=bundle"]).stdout).ends_with(&root));
    assert!(text(&ca(&["show"]).stdout).contains("for          api.github.com"));
    let p12 = dir.path().join("t.p12");
    assert!(ca(&["export", "--format=p12", "-o", p12.to_str().unwrap()]).status.success());
    let listed = std::process::Command::new("openssl")
        .args(["pkcs12", "-nokeys", "-passin", "pass:changeit", "-in"])
        .arg(&p12)
        .output()
        .unwrap();
    assert!(text(&listed.stdout).contains("ghtap root"), "{}", text(&listed.stderr));
    assert!(ca(&["rotate", "--intercept=api.github.com,ghe.example.com"]).status.success());
    assert_ne!(text(&ca(&["export"]).stdout), root);
    assert!(text(&ca(&["show"]).stdout).contains("api.github.com, ghe.example.com"));
    // LibreSSL's switch leaves the constraints off the root, and only there.
    assert!(ca(&["rotate", "--unconstrained-root"]).status.success());
    let show = |file: &str| {
        let shown = std::process::Command::new("openssl")
            .args(["x509", "-noout", "-ext", "nameConstraints", "-in"])
            .arg(dir.path().join("d/ca").join(file))
            .output()
            .unwrap();
        text(&shown.stdout)
    };
    assert!(!show("root.pem").contains("DNS:") && show("intermediate.pem").contains("DNS:api.github.com"));
}

#[tokio::test]
async fn a_rotated_ca_is_taken_up_while_running() {
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "full_name": "o/r" }));
    let tap = Tap::start(&github, &[]).await;
    Client::connect(&tap).await.get("/repos/o/r", "a", &[]).await;
    assert!(tap.cli(&["ca", "rotate"]).await.status.success());
    let mut connected = false;
    for _ in 0..80 {
        connected = Client::connect_as(&tap, "api.github.com", "api.github.com", None).await.is_ok();
        if connected {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(250)).await;
    }
    assert!(connected, "within a quarter of a minute");
}

#[tokio::test]
async fn what_is_wrong_is_said_in_one_line() {
    let github = GitHub::start().await;
    let tap = Tap::start(&github, &[]).await;
    let dir = tempfile::tempdir().unwrap();
    let serve = |data: &str, more: &[&str]| {
        let mut serve = command(GHTAP);
        serve.args(["serve", "--admin=127.0.0.1:0"]).arg(format!("--data-dir={data}"));
        if !more.iter().any(|a| a.starts_with("--listen")) {
            serve.arg("--listen=127.0.0.1:0");
        }
        serve.arg(format!("--certs-dir={}", dir.path().join("c").display())).args(more).output().unwrap()
    };
    let data = dir.path().join("d").display().to_string();
    let taken = format!("--listen={}", tap.proxy);
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let no_ca = format!("--upstream-ca={}", file.display());
    for (data, more, said) in [
        (data.as_str(), vec![taken.as_str()], "cannot listen on"),
        (data.as_str(), vec![no_ca.as_str()], "there is no certificate in it"),
        (data.as_str(), vec!["--upstream-proxy=socks5://x"], "--upstream-proxy: an upstream proxy is given as http://"),
        (data.as_str(), vec!["--log=no=such=level"], "is not a level"),
        ("/proc/nowhere", vec![], "the data directory /proc/nowhere cannot be made"),
        (file.to_str().unwrap(), vec![], "cannot be"),
    ] {
        let output = serve(data, &more);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{more:?}: {stderr}");
        assert!(stderr.contains(said) && stderr.lines().count() == 1, "{more:?}: {stderr}");
    }
    let bad_flag = serve(&data, &["--no-such-flag"]);
    assert!(bad_flag.status.code() == Some(2) && text(&bad_flag.stderr).contains("--no-such-flag"));
    // A CA that does not fit the hosts, and one that others may read.
    assert!(
        command(GHTAP)
            .args(["ca", "init", "--data-dir", &data, "--certs-dir"])
            .arg(dir.path().join("c"))
            .status()
            .unwrap()
            .success()
    );
    let other = serve(&data, &["--intercept=ghe.example.com"]);
    assert!(
        text(&other.stderr).contains("is for api.github.com, not for ghe.example.com; run: ghtap ca rotate"),
        "{}",
        text(&other.stderr)
    );
    let key = dir.path().join("d/ca/intermediate.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let loose = serve(&data, &[]);
    assert!(text(&loose.stderr).contains("is open to others (mode 644); run: chmod 600"), "{}", text(&loose.stderr));
}

#[tokio::test]
async fn env_speaks_every_shell() {
    let github = GitHub::start().await;
    let tap = Tap::start(&github, &[]).await;
    for (shell, line) in [
        ("sh", format!("export HTTPS_PROXY='http://{}'", tap.proxy)),
        ("fish", format!("set -gx HTTPS_PROXY 'http://{}'", tap.proxy)),
        ("powershell", format!("$env:HTTPS_PROXY = 'http://{}'", tap.proxy)),
        ("json", format!("\"HTTPS_PROXY\": \"http://{}\"", tap.proxy)),
        ("dockerfile", format!("ENV HTTPS_PROXY=\"http://{}\"", tap.proxy)),
    ] {
        let printed = text(&tap.cli(&["env", &format!("--shell={shell}")]).await.stdout);
        assert!(printed.contains(&line), "{printed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_finds_what_is_wrong() {
    let github = GitHub::start().await;
    let tap = Tap::start(&github, &[]).await;
    let well = text(&tap.cli(&["doctor"]).await.stdout);
    assert!(
        well.contains("was intercepted and answered by the origin (200)") && well.ends_with("all is well\n"),
        "{well}"
    );
    let doctor = |variables: &[(&str, &str)]| {
        let mut doctor = command(GHTAP);
        doctor
            .args(["doctor", "--data-dir"])
            .arg(tap.data_dir())
            .arg("--certs-dir")
            .arg(tap.certs_dir())
            .envs(variables.iter().copied());
        let output = doctor.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        text(&output.stdout)
    };
    assert!(
        doctor(&[("HTTPS_PROXY", "http://127.0.0.1:9")]).contains("HTTPS_PROXY leads to 127.0.0.1:9, not to the tap")
    );
    assert!(doctor(&[("REQUESTS_CA_BUNDLE", github.ca.to_str().unwrap())]).contains("has not our root"));
    assert!(doctor(&[("CURL_CA_BUNDLE", tap.ca().to_str().unwrap())]).contains("replaces the system's"));
    assert!(doctor(&[("no_proxy", "api.github.com")]).contains("past the tap"));
    let nothing = tempfile::tempdir().unwrap();
    let none = command(GHTAP)
        .args(["doctor", "--data-dir"])
        .arg(nothing.path())
        .arg("--certs-dir")
        .arg(nothing.path())
        .output()
        .unwrap();
    assert!(text(&none.stdout).contains("no CA in") && text(&none.stdout).contains("mend:"), "{}", text(&none.stdout));
    let unreachable = Tap::with(vec!["--resolve=api.github.com:443:127.0.0.1:9".into()]).await;
    let said = text(&unreachable.cli(&["doctor"]).await.stdout);
    assert!(said.contains("the tap cannot reach GitHub (it answered 502)"), "{said}");
}

#[tokio::test]
async fn the_admin_address_answers_its_own_name_only() {
    let github = GitHub::start().await;
    let tap = Tap::start(&github, &[]).await;
    let ask = |host: &str, request: &str| {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(tap.admin).unwrap();
        write!(stream, "{request} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer[9..12].to_owned()
    };
    for (host, request, status) in [
        ("127.0.0.1", "GET /api/cache/stats", "200"),
        ("localhost:1", "GET /", "200"),
        ("rebound.example", "GET /api/cache/stats", "421"),
        ("rebound.example", "GET /", "421"),
        ("ghtap:3180", "GET /metrics", "200"),
        ("ghtap:3180", "GET /healthz", "200"),
        ("ghtap:3180", "GET /readyz", "200"),
        ("127.0.0.1", "POST /api/cache/purge", "403"),
        ("127.0.0.1", "GET /api/cache/purge", "405"),
    ] {
        assert_eq!(ask(host, request), status, "{host} {request}");
    }
}
