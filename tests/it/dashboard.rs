//! What the admin address shows: in a real browser, to promtool, and to who may not ask.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::tap::command;
use crate::support::{Client, GitHub, Tap, has, missing};

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Traffic of known numbers: 13 calls, 3 of them charged, 2 by `web` and 11 in two runs of `ci`.
async fn traffic(tap: &Tap, github: &GitHub) {
    github.set("/repos/o/r", json!({ "full_name": "o/r" }));
    github.set("/user", json!({ "login": "octocat" }));
    let mut web = Client::named(tap, "web").await;
    web.get("/user", "pat", &[]).await;
    web.get("/repos/o/missing", "pat", &[]).await;
    for run in ["run-1", "run-2"] {
        let mut ci = Client::named(tap, &format!("ci+{run}")).await;
        for _ in 0..if run == "run-1" { 8 } else { 3 } {
            ci.get("/repos/o/r", "pat", &[]).await;
        }
        end_run(tap, run).await;
    }
}

async fn end_run(tap: &Tap, run: &str) {
    use ghtap::admin::client::{At, ask};
    let at = At { address: tap.admin, token: None };
    ask(&at, http::Method::POST, &format!("/api/runs/{run}/end")).await.unwrap();
}

async fn json_of(tap: &Tap, path: &str) -> Value {
    serde_json::from_str(&tap.get_admin(path).await).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_shows_the_numbers() {
    let test = "the_dashboard_shows_the_numbers";
    let modules = in_repository("tests/clients/node_modules/puppeteer-core");
    if !has("chromium", "--version") && missing(test, "chromium")
        || !modules.exists() && missing(test, "puppeteer-core")
    {
        return;
    }
    let github = GitHub::start().await;
    let tap = Tap::start(&github, &[]).await;
    traffic(&tap, &github).await;
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("screenshots");
    std::fs::create_dir_all(&out).unwrap();
    let mut browser = command("node")
        .arg(in_repository("tests/clients/with_chromium.mjs"))
        .args([format!("http://{}", tap.admin), out.display().to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(browser.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().expect("the browser ended early").unwrap(), "watching");
    Client::named(&tap, "a-late-client").await.get("/repos/o/r", "pat", &[]).await;
    let seen = lines.next().expect("the browser ended early").unwrap();
    assert!(browser.wait().unwrap().success());
    let seen: Value = serde_json::from_str(&seen).unwrap();

    let overview = &seen["overview"];
    let numbers = ["calls", "charged", "saved", "ratio"].map(|n| overview[n].as_str().unwrap());
    assert_eq!(numbers, ["13", "3", "10", "76.9 %"], "{overview}");
    let quota = &overview["quota"][0];
    let shown = [0, 1, 2, 3, 4, 5].map(|i| quota[i].as_str().unwrap());
    assert_eq!(shown, ["user:octocat", "core", "4,997", "5,000", "3", "0"], "{quota}");
    let first =
        |table: &str| overview[table][0].as_array().unwrap().iter().map(|c| c.as_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(first("routes")[..6], ["GET /repos/{owner}/{repo}", "2", "12", "10", "10", "1"], "{overview}");
    assert_eq!(first("clients")[..5], ["web", "2", "2", "0", "0"]);
    assert_eq!(first("runs")[..5], ["run-2", "ci", "0", "3", "3"]);
    assert_eq!(first("averages"), ["ci", "0.5", "5.5", "2"]);
    assert_eq!(overview["last"].as_array().unwrap().len(), 13);
    assert!(overview["charts"].as_u64().unwrap() >= 3);
    let by_calls: Vec<&str> = seen["byCalls"].as_array().unwrap().iter().map(|r| r[2].as_str().unwrap()).collect();
    assert_eq!(by_calls, ["12", "1"]);
    assert_eq!(seen["route"]["title"], "route GET /repos/{owner}/{repo}");
    assert_eq!((&seen["route"]["calls"], &seen["route"]["clients"][0][0]), (&json!("12"), &json!("ci")));
    assert_eq!(
        (&seen["run"]["title"], &seen["run"]["calls"], &seen["run"]["routes"][0][2]),
        (&json!("run run-2"), &json!("3"), &json!("3"))
    );
    let live: Vec<&str> = seen["live"].as_array().unwrap().iter().map(|c| c.as_str().unwrap()).collect();
    assert_eq!(live[1..7], ["a-late-client", "", "GET /repos/{owner}/{repo}", "200", "revalidated", "0"], "{live:?}");
    // Nothing from elsewhere, nothing that the page's own policy refused, and no page wider than the screen.
    assert_eq!(seen["errors"], json!([]));
    let own = format!("http://{}/", tap.admin);
    let foreign = |r: &&Value| !r.as_str().unwrap().starts_with(&own) && r.as_str() != Some("data:,");
    assert_eq!(seen["requests"].as_array().unwrap().iter().find(foreign), None);
    let pages = seen["pages"].as_object().unwrap();
    assert_eq!(pages.len(), 4);
    assert!(pages.values().all(|p| p["overflow"].as_i64().unwrap() <= 0), "{pages:?}");
    assert_ne!(pages["light-wide"]["background"], pages["dark-wide"]["background"]);
}

#[tokio::test]
async fn every_number_is_in_the_api_and_described() {
    let github = GitHub::start().await;
    let tap = Tap::start(&github, &[]).await;
    traffic(&tap, &github).await;
    let described = json_of(&tap, "/api/openapi.json").await;
    let schemas = &described["components"]["schemas"];
    let overview = json_of(&tap, "/api/overview").await;
    let calls = json_of(&tap, "/api/calls").await;
    let examples = [
        ("Overview", overview.clone()),
        ("Line", overview["routes"][0].clone()),
        ("Quota", overview["quota"][0].clone()),
        ("Point", overview["series"][59].clone()),
        ("StoreStats", overview["store"].clone()),
        ("Client", overview["averages"][0].clone()),
        ("Call", calls[0].clone()),
        ("Report", json_of(&tap, "/api/report?by=credential").await),
        ("Inventory", json_of(&tap, "/api/runs/run-1").await),
        ("Stored", json_of(&tap, "/api/cache").await[0].clone()),
    ];
    for (name, example) in examples {
        let properties = schemas[name]["properties"].as_object().unwrap_or_else(|| panic!("{name} is described"));
        let object = example.as_object().unwrap_or_else(|| panic!("{name}: {example}"));
        let unknown: Vec<_> = object.keys().filter(|k| !properties.contains_key(*k)).collect();
        let absent: Vec<_> = schemas[name]["required"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|k| !object.contains_key(k.as_str().unwrap()))
            .collect();
        assert!(unknown.is_empty() && absent.is_empty(), "{name}: not described {unknown:?}, absent {absent:?}");
    }
    // Each path that is described answers.
    for (path, methods) in described["paths"].as_object().unwrap() {
        if methods.get("get").is_some() && path != "/api/events" {
            let path = path.replace("{run}", "run-1");
            tap.get_admin(&format!("{path}?url=x")).await;
        }
    }
    assert_eq!(
        (&overview["hour"]["calls"], &overview["hour"]["charged"], &overview["failed"]),
        (&json!(13), &json!(3), &json!(0))
    );
    let point: u64 = overview["series"].as_array().unwrap().iter().map(|p| p["calls"].as_u64().unwrap()).sum();
    assert_eq!(point, 13);
    let charged = json_of(&tap, "/api/calls?charged=true&client=web").await;
    assert_eq!(charged.as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn beyond_loopback_the_admin_address_wants_its_token() {
    use ghtap::admin::client::{At, ask};
    let github = GitHub::start().await;
    let tap = Tap::start(&github, &["--admin=0.0.0.0:0", "--admin-host=tap.example"]).await;
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], tap.admin.port()));
    let get = async |token: Option<&str>, path: &str| {
        let at = At { address, token: token.map(str::to_owned) };
        ask(&at, http::Method::GET, path).await.map(|_| ()).map_err(|e| e.split(": ").nth(1).unwrap_or(&e).to_owned())
    };
    let file = tap.data_dir().join("admin-token");
    let token = std::fs::read_to_string(&file).unwrap().trim().to_owned();
    assert!(
        tap.log().contains(file.to_str().unwrap()) && !tap.log().contains(&token),
        "the file is named, the token is not"
    );
    for path in ["/", "/api/report", "/api/events", "/style.css", "/api/openapi.json"] {
        assert_eq!(get(None, path).await, Err("401 Unauthorized".into()), "{path}");
        assert_eq!(get(Some("wrong-token"), path).await, Err("401 Unauthorized".into()), "{path}");
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(get(None, path).await, Ok(()), "{path}");
    }
    assert_eq!(get(Some(&token), "/").await, Ok(()));
    // The command line knows it, and a browser asks for it.
    assert!(tap.cli(&["report"]).await.status.success());
    let raw = |host: &str, fields: &str| {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        write!(stream, "GET / HTTP/1.1\r\nHost: {host}\r\n{fields}Connection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.to_ascii_lowercase()
    };
    assert!(raw("10.1.2.3", "").contains("www-authenticate: basic realm="));
    let basic = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("me:{token}"));
    let with_password = format!("Authorization: Basic {basic}\r\n");
    assert!(raw("tap.example:3180", &with_password).starts_with("http/1.1 200"));
    assert!(raw("rebound.example", &with_password).starts_with("http/1.1 421"));
    let page = raw("localhost", &with_password);
    assert!(page.contains("content-security-policy: default-src 'none'") && page.contains("cache-control: no-store"));
}

#[tokio::test]
async fn events_tell_of_calls_and_end_with_the_tap() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "full_name": "o/r" }));
    let mut tap = Tap::start(&github, &[]).await;
    let mut stream = tokio::net::TcpStream::connect(tap.admin).await.unwrap();
    stream.write_all(b"GET /api/events?client=ci HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        seen.push(stream.read_u8().await.unwrap());
    }
    Client::named(&tap, "other").await.get("/repos/o/r", "a", &[]).await;
    Client::named(&tap, "ci+9").await.get("/repos/o/r", "a", &[]).await;
    let told = tokio::time::timeout(Duration::from_secs(10), async {
        while !String::from_utf8_lossy(&seen).contains("\n\n") {
            stream.read_buf(&mut seen).await.unwrap();
        }
        String::from_utf8_lossy(&seen).into_owned()
    });
    let told = told.await.unwrap();
    assert!(told.contains("event: call") && told.contains("\"run\":\"9\"") && !told.contains("other"), "{told}");
    // Who watches does not hold the end up.
    let ended = tokio::time::timeout(Duration::from_secs(8), tap.terminate()).await.unwrap();
    assert_eq!(ended, Some(0));
}

#[tokio::test]
async fn promtool_finds_nothing_wrong() {
    let test = "promtool_finds_nothing_wrong";
    if !has("promtool", "--version") && missing(test, "promtool") {
        return;
    }
    let github = GitHub::start().await;
    let mut tap = Tap::start(&github, &[]).await;
    traffic(&tap, &github).await;
    Client::open(&tap, "api.github.com", None).await;
    tap.wait_for_metric("ghtap_run_average_calls{client=\"ci\",kind=\"calls\"}", 5.5).await;
    let metrics = tap.get_admin("/metrics").await;
    let promtool = |arguments: &[&str], input: &str| {
        let mut child = command("promtool")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {said}");
        said
    };
    assert_eq!(promtool(&["check", "metrics"], &metrics), "", "names and units by Prometheus' conventions");
    let rules = in_repository("deploy/prometheus/ghtap.rules.yml");
    promtool(&["check", "rules", rules.to_str().unwrap()], "");
    promtool(&["test", "rules", in_repository("deploy/prometheus/ghtap.test.yml").to_str().unwrap()], "");
    promtool(
        &["check", "config", "--syntax-only", in_repository("deploy/prometheus/prometheus.yml").to_str().unwrap()],
        "",
    );
    // Every metric that a rule or the Grafana dashboard names is in the scrape.
    let known: std::collections::BTreeSet<&str> =
        metrics.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split(['{', ' ']).next()).collect();
    let texts = ["deploy/prometheus/ghtap.rules.yml", "deploy/grafana/ghtap.json"].map(in_repository);
    for text in texts.map(|path| std::fs::read_to_string(path).unwrap()) {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let names = text.split(|c: char| !is_name(c)).filter(|w| w.starts_with("ghtap_") && *w != "ghtap_");
        let unknown: Vec<&str> = names.filter(|name| !known.contains(name)).collect();
        assert_eq!(unknown, Vec::<&str>::new());
    }
    let grafana: Value =
        serde_json::from_str(&std::fs::read_to_string(in_repository("deploy/grafana/ghtap.json")).unwrap()).unwrap();
    assert!(grafana["panels"].as_array().unwrap().len() > 10);
    // And each of its metrics is in the README's table.
    let readme = std::fs::read_to_string(in_repository("README.md")).unwrap();
    let families = metrics.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next());
    for name in families {
        assert!(readme.contains(name), "{name} is not in the README");
    }
    assert_eq!(tap.terminate().await, Some(0));
}
