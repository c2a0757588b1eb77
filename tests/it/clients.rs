//! Real clients, unmodified, through a real tap to the stand-in: what each got, and what arrived.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use base64::Engine;
use serde_json::json;

use crate::support::github::{Arrived, Resource};
use crate::support::tap::{command, ghtap_run};
use crate::support::{Client, GitHub, Tap, has, missing};

fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

async fn start(more: &[&str]) -> (GitHub, Tap) {
    let github = GitHub::start().await;
    let repository = json!({ "name": "r", "full_name": "o/r", "private": false, "owner": { "login": "o" }, "url": "https://api.github.com/repos/o/r" });
    github.set("/repos/o/r", repository.clone());
    github.set("/repositories/1", repository);
    let moved = Resource {
        status: 301,
        body: b"{\"message\":\"Moved Permanently\"}".to_vec(),
        fields: vec![("Location".into(), "https://api.github.com/repositories/1".into())],
        ..Resource::default()
    };
    github.put("/repos/o/moved", moved);
    let content = base64::engine::general_purpose::STANDARD.encode("hello\n");
    github.set(
        "/repos/o/r/contents/README.md?ref=main",
        json!({ "encoding": "base64", "content": content, "type": "file", "name": "README.md", "path": "README.md" }),
    );
    github.set("/repos/o/r/collaborators/u/permission", json!({ "permission": "write" }));
    let sha = "a".repeat(40);
    for target in [format!("/repos/o/r/commits/{sha}"), format!("/repos/o/r/commits/{sha}?page=1")] {
        github.set(&target, json!({ "sha": sha }));
    }
    github.list("/repos/o/r/issues", 70);
    github.list("/repos/o/r/pulls", 3);
    let tap = Tap::start(&github, more).await;
    (github, tap)
}

/// A client with all the variables that `ghtap env` names, as a client and run of its own.
async fn client(tap: &Tap, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let printed = tap.cli(&["env", "--shell=json", &format!("--proxy=http://tests+run-1:x@{}", tap.proxy)]).await;
    let variables: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&printed.stdout).unwrap();
    let mut command = command(program);
    command
        .envs(variables.iter().map(|(k, v)| (k, v.as_str().unwrap())))
        .current_dir(tap.dir.path())
        .stdin(Stdio::null());
    command.env("HOME", tap.dir.path());
    command
}

async fn run(mut command: Command) -> (String, Output) {
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    (out, output)
}

/// What arrived, in short: method, target, status.
fn short(arrived: &[Arrived]) -> Vec<String> {
    arrived.iter().map(|a| format!("{} {} {}", a.method, a.target, a.status)).collect()
}

async fn seen_as(tap: &Tap, client: &str) -> bool {
    let report = tap.cli(&["report", "--by=client", "--format=csv"]).await;
    String::from_utf8_lossy(&report.stdout).contains(&format!("{client},"))
}

fn python(test: &str) -> Option<PathBuf> {
    let python = here(".venv/bin/python");
    if python.exists() || !missing(test, "the Python environment (scripts/test makes it)") {
        Some(python)
    } else {
        None
    }
}

fn key(tap: &Tap) -> PathBuf {
    let path = tap.dir.path().join("app.pem");
    let made =
        Command::new("openssl").args(["genrsa", "-traditional", "-out"]).arg(&path).arg("2048").output().unwrap();
    assert!(made.status.success());
    path
}

#[tokio::test]
async fn requests() {
    let Some(python) = python("requests") else { return };
    let (github, tap) = start(&[]).await;
    let mut with = client(&tap, python).await;
    with.arg(here("clients/with_requests.py"));
    let (out, _) = run(with).await;
    assert_eq!(
        out,
        "/repos/o/r 200 o/r\n/repos/o/r 200 o/r\n/repos/o/moved 200 o/r\n/repos/o/none 404 None\npost 201\n"
    );
    let expected = [
        "GET /repos/o/r 200",
        "GET /repos/o/r 304",
        "GET /repos/o/moved 301",
        "GET /repositories/1 200",
        "GET /repos/o/none 404",
        "POST /repos/o/r/issues 201",
    ];
    assert_eq!(short(&github.arrived()), expected);
    assert!(seen_as(&tap, "tests").await);
}

#[tokio::test]
async fn pygithub() {
    let Some(python) = python("pygithub") else { return };
    let (github, tap) = start(&[]).await;
    // The second time, it pays for what an entity tag cannot save (the 404), and once for the last page of the listing
    // of one item a page, which it never fetched itself; from the third time on, for the 404 alone.
    for expected in [7, 2, 1] {
        let mut with = client(&tap, &python).await;
        with.arg(here("clients/with_pygithub.py")).arg(key(&tap));
        let (out, _) = run(with).await;
        assert_eq!(
            out,
            "repo o/r False\nupdate False\nissues 70 70\nmissing 404\ncontents hello\ncreated 1\ninstallation o/r\n"
        );
        let arrived = github.arrived();
        let update = &arrived[1];
        assert_eq!((update.status, update.charged), (304, false), "update() got GitHub's own 304");
        let reads = arrived.iter().filter(|a| a.method == "GET" && a.charged).count();
        assert_eq!(reads, expected, "{:?}", short(&arrived));
    }
}

#[tokio::test]
async fn ogr() {
    let Some(python) = python("ogr") else { return };
    let (github, tap) = start(&[]).await;
    let mut with = client(&tap, &python).await;
    with.arg(here("clients/with_ogr.py")).arg(key(&tap));
    let (out, _) = run(with).await;
    let once = "private False\nfile hello\nmissing\ncan merge True\nstatus success\npull requests 3\n";
    assert_eq!(out, once.repeat(2));
    let arrived = github.arrived();
    let minted = arrived.iter().filter(|a| a.target.ends_with("/access_tokens")).count();
    assert_eq!(minted, 2, "a new token for each project object");
    let second: Vec<_> = arrived.iter().skip(arrived.len() / 2).filter(|a| a.method == "GET" && a.charged).collect();
    // The second project has another token, and pays for the 404 and for finding its installation only.
    assert!(second.iter().all(|a| a.status == 404 || a.target.ends_with("/installation")), "{:?}", short(&arrived));
    let report = tap.cli(&["report", "--by=credential", "--format=csv"]).await;
    assert!(String::from_utf8_lossy(&report.stdout).contains("installation:7,"));
}

#[tokio::test]
async fn curl() {
    if !has("curl", "--version") && missing("curl", "curl") {
        return;
    }
    let (github, tap) = start(&[]).await;
    for more in [&["--http2"][..], &["--http1.1", "--compressed"]] {
        let mut with = client(&tap, "curl").await;
        with.args(["-sS", "--fail-with-body", "-H", "Authorization: token t", "-w", "%{http_version} %{http_code}\n"])
            .args(more);
        with.args([
            "https://api.github.com/repos/o/r",
            "https://api.github.com/repos/o/r",
            "-o/dev/null",
            "-o/dev/null",
        ]);
        let (out, _) = run(with).await;
        let version = if more[0] == "--http2" { "2 200\n" } else { "1.1 200\n" };
        assert_eq!(out, version.repeat(2));
    }
    assert_eq!(
        short(&github.arrived()),
        ["GET /repos/o/r 200", "GET /repos/o/r 304", "GET /repos/o/r 304", "GET /repos/o/r 304"]
    );
    // An upload large enough for Expect: 100-continue.
    let large = tap.dir.path().join("large");
    std::fs::write(&large, vec![b'l'; 3 << 20]).unwrap();
    let mut with = client(&tap, "curl").await;
    with.args([
        "-sS",
        "--http1.1",
        "--data-binary",
        &format!("@{}", large.display()),
        "https://api.github.com/repos/o/r/issues",
    ]);
    let (out, _) = run(with).await;
    assert!(out.contains(&format!("\"received\":{}", 3 << 20)), "{out}");
}

#[tokio::test]
async fn git_through_the_tunnel() {
    if !has("git", "--version") && missing("git", "git") {
        return;
    }
    let github = GitHub::start().await;
    let root = tempfile::tempdir().unwrap();
    let run_git = |arguments: &[&str]| {
        let done = command("git")
            .args(arguments)
            .current_dir(root.path())
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output()
            .unwrap();
        assert!(done.status.success(), "{arguments:?} {}", String::from_utf8_lossy(&done.stderr));
    };
    run_git(&["init", "-q", "--bare", "-b", "main", "repos/o/r.git"]);
    let (cert, key) = github.leaf();
    let mut server = Command::new("python3");
    server.arg(here("clients/git_server.py")).arg(cert).arg(key).arg(root.path().join("repos")).stdout(Stdio::piped());
    let mut server = server.spawn().unwrap();
    let mut port = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(server.stdout.take().unwrap()), &mut port).unwrap();
    let tap = Tap::with(vec![format!("--resolve=github.com:443:127.0.0.1:{}", port.trim())]).await;
    run_git(&["init", "-q", "-b", "main", "work"]);
    run_git(&["-C", "work", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "one"]);
    // The far end shows its own certificate: the tunnel is not intercepted.
    let bundle = tap.dir.path().join("both.pem");
    std::fs::write(
        &bundle,
        std::fs::read_to_string(tap.bundle()).unwrap() + &std::fs::read_to_string(&github.ca).unwrap(),
    )
    .unwrap();
    let git = |arguments: Vec<String>| {
        let mut with = command("git");
        with.env("HTTPS_PROXY", format!("http://tests+git:x@{}", tap.proxy)).env("GIT_SSL_CAINFO", &bundle);
        with.env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .args(arguments)
            .current_dir(root.path().join("work"));
        let done = with.output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    let helper = "credential.helper=!f() { echo username=x-access-token; echo password=ghs_dummy; }; f";
    git(["-c", helper, "push", "-q", "https://github.com/o/r.git", "HEAD:refs/heads/main"].map(String::from).to_vec());
    let listed = git(["ls-remote", "https://github.com/o/r.git"].map(String::from).to_vec());
    let _ = server.kill();
    let _ = server.wait();
    assert!(listed.contains("refs/heads/main"), "{listed}");
    assert_eq!(tap.metric("ghtap_tunnels_total{result=\"opened\"}").await, 2.0);
}

#[tokio::test]
async fn gh() {
    if !has("gh", "--version") && missing("gh", "gh") {
        return;
    }
    let (github, tap) = start(&[]).await;
    let gh = async |arguments: &[&str]| {
        let mut with = client(&tap, "gh").await;
        with.env("GH_TOKEN", "ghp_dummy")
            .env("GH_CONFIG_DIR", tap.dir.path())
            .env("GH_NO_UPDATE_NOTIFIER", "1")
            .env("GH_PROMPT_DISABLED", "1");
        with.args(arguments);
        run(with).await.0
    };
    for _ in 0..2 {
        assert!(gh(&["api", "repos/o/r"]).await.contains("\"full_name\":\"o/r\""));
    }
    assert_eq!(gh(&["api", "repos/o/r/issues", "--paginate", "-q", ".[].number"]).await.lines().count(), 70);
    assert!(gh(&["pr", "list", "-R", "o/r"]).await.contains("pr 1"));
    let arrived = github.arrived();
    assert_eq!(short(&arrived)[..2], ["GET /repos/o/r 200", "GET /repos/o/r 304"]);
    assert_eq!(arrived[0].headers["accept"], "", "its empty Accept goes on as it is");
    assert_eq!(arrived.last().unwrap().target, "/graphql");
}

#[tokio::test]
async fn octokit() {
    let there = has("node", "--version") && here("clients/node_modules/undici").exists();
    if !there && missing("octokit", "node with the packages of tests/clients (scripts/test installs them)") {
        return;
    }
    let (github, tap) = start(&[]).await;
    let mut with = client(&tap, "node").await;
    with.arg(here("clients/with_octokit.mjs")).env("NODE_NO_WARNINGS", "1");
    let (out, _) = run(with).await;
    assert_eq!(out, "repo 200 o/r\nrepo 200 o/r\npost 201\nmissing 404\n");
    assert_eq!(
        short(&github.arrived()),
        ["GET /repos/o/r 200", "GET /repos/o/r 304", "POST /repos/o/r/issues 201", "GET /repos/o/none 404"]
    );
    assert!(seen_as(&tap, "tests").await);
}

#[tokio::test]
async fn nodes_plain_fetch_by_the_tls_listener() {
    if !has("node", "--version") && missing("nodes_plain_fetch_by_the_tls_listener", "node") {
        return;
    }
    let (github, tap) = start(&["--listen-tls=127.0.0.1:0"]).await;
    let port = tap.tls_port().await;
    let mut with = command("node");
    with.env("NODE_EXTRA_CA_CERTS", tap.ca()).arg("--require").arg(here("clients/hosts.cjs"));
    with.arg(here("clients/with_fetch.mjs")).arg(port.to_string());
    let (out, _) = run(with).await;
    assert_eq!(out, "repo 200 o/r\n".repeat(2));
    assert_eq!(short(&github.arrived()), ["GET /repos/o/r 200", "GET /repos/o/r 304"]);
}

#[tokio::test]
async fn javas_http_client() {
    if !has("java", "-version") && missing("javas_http_client", "java") {
        return;
    }
    let (github, tap) = start(&[]).await;
    let mut with = client(&tap, "java").await;
    with.arg(here("clients/Get.java"));
    let (out, _) = run(with).await;
    assert_eq!(out, "/repos/o/r 200 HTTP_2 true\n/repos/o/r 200 HTTP_2 true\n/repos/o/none 404 HTTP_2 false\n");
    assert_eq!(short(&github.arrived()), ["GET /repos/o/r 200", "GET /repos/o/r 304", "GET /repos/o/none 404"]);
}

#[tokio::test]
async fn a_go_program() {
    if !has("go", "version") && missing("a_go_program", "go") {
        return;
    }
    let (github, tap) = start(&[]).await;
    let mut with = client(&tap, "go").await;
    with.arg("run")
        .arg(here("clients/main.go"))
        .env("GO111MODULE", "off")
        .env("GOCACHE", std::env::temp_dir().join("ghtap-go-cache"));
    let (out, _) = run(with).await;
    let expected = "/repos/o/r 200 HTTP/2.0 true\n/repos/o/r 200 HTTP/2.0 true\n/repos/o/moved 200 HTTP/2.0 true\n/repos/o/none 404 HTTP/2.0 false\n";
    assert_eq!(out, expected);
    assert_eq!(github.arrived().len(), 5);
}

#[tokio::test]
async fn chains_pass_the_strictest_checks() {
    if !has("openssl", "version") && missing("chains_pass_the_strictest_checks", "openssl") {
        return;
    }
    let (_github, tap) = start(&[]).await;
    drop(Client::connect(&tap).await);
    let shown = format!(
        "openssl s_client -proxy {} -connect api.github.com:443 -servername api.github.com -showcerts </dev/null 2>/dev/null",
        tap.proxy
    );
    let chain = Command::new("sh").args(["-c", &shown]).output().unwrap().stdout;
    let text = String::from_utf8(chain).unwrap();
    let begin = "-----BEGIN CERTIFICATE-----";
    let certs: Vec<String> = text
        .split(begin)
        .skip(1)
        .map(|c| format!("{begin}{}-----END CERTIFICATE-----\n", c.split("-----END").next().unwrap()))
        .collect();
    assert_eq!(certs.len(), 2, "{text}");
    let (leaf, intermediate) = (tap.dir.path().join("leaf.pem"), tap.dir.path().join("intermediate.pem"));
    std::fs::write(&leaf, &certs[0]).unwrap();
    std::fs::write(&intermediate, &certs[1]).unwrap();
    let verify = |host: &str| {
        let mut openssl = Command::new("openssl");
        openssl
            .args(["verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", host, "-CAfile"])
            .arg(tap.ca())
            .arg("-untrusted")
            .arg(&intermediate)
            .arg(&leaf);
        openssl.output().unwrap()
    };
    let good = verify("api.github.com");
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    assert!(!verify("github.com").status.success());
    // Python 3.13 sets this flag by default.
    let script = format!(
        "import ssl,socket\nc=ssl.create_default_context(cafile={:?})\nc.verify_flags|=ssl.VERIFY_X509_STRICT|ssl.VERIFY_X509_PARTIAL_CHAIN\n\
         s=socket.create_connection(({:?},{}))\ns.sendall(b'CONNECT api.github.com:443 HTTP/1.0\\r\\n\\r\\n')\nh=b''\n\
         while not h.endswith(b'\\r\\n\\r\\n'): h+=s.recv(1)\nc.wrap_socket(s,server_hostname='api.github.com')\nprint('ok')",
        tap.ca(),
        tap.proxy.ip().to_string(),
        tap.proxy.port()
    );
    let mut with = command("python3");
    with.args(["-c", &script]);
    assert_eq!(run(with).await.0, "ok\n");
}

#[tokio::test]
async fn ogr_and_pygithub_keep_to_a_baseline() {
    let Some(python) = python("ogr_and_pygithub_keep_to_a_baseline") else { return };
    for script in ["with_pygithub.py", "with_ogr.py"] {
        let (github, tap) = start(&[]).await;
        let dir = tempfile::tempdir().unwrap();
        let saved = dir.path().join("calls.json");
        let once =
            format!("'{}' '{}' '{}'", python.display(), here("clients").join(script).display(), key(&tap).display());
        let (save, baseline) = (format!("--save={}", saved.display()), format!("--baseline={}", saved.display()));
        // From nothing each time, so that two runs can be compared.
        let measure =
            async |option: &str, shell: &str| ghtap_run(&github, dir.path(), &["--store=memory:", option], shell).await;
        let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
        let first = measure(&save, &once).await;
        assert_eq!(first.status.code(), Some(0), "{script}: {}", said(&first));
        github.arrived();
        let again = measure(&baseline, &once).await;
        assert_eq!(again.status.code(), Some(0), "{script}: {}", said(&again));
        assert!(!said(&again).contains("grew") && !said(&again).contains("new  "), "{}", said(&again));
        // The inventory is what arrived.
        let charged = github.arrived().iter().filter(|a| a.charged).count();
        let inventory: serde_json::Value = serde_json::from_slice(&std::fs::read(&saved).unwrap()).unwrap();
        assert_eq!(inventory["total"]["charged"], charged);
        // A change that does everything twice is seen, route by route.
        let twice = measure(&baseline, &format!("{once} && {once}")).await;
        assert_eq!(twice.status.code(), Some(3), "{script}: {}", said(&twice));
        assert!(said(&twice).contains("grew    GET /repos/{owner}/{repo}/contents/{path}: "), "{}", said(&twice));
    }
}
