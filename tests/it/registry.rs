//! The registry of clients: their tokens, their scopes, and what never leaves the house.

use base64::Engine;
use serde_json::json;

use crate::support::client::Reply;
use crate::support::{Client, GitHub, Tap};

const REGISTRY: &str = r#"---
version: 1
clients:
  - name: all
    token: client-all
  - name: reader
    token: "client-reader"
    scopes:
    - method: GET
      path: /repos/acme/[^/]+(/.*)?
    - method: POST
      path: /repos/acme/tool/statuses/[0-9a-f]+
    - graphql: queries
  - name: nothing
    token: client-nothing
    scopes: []
"#;

async fn start(more: &[&str]) -> (GitHub, Tap) {
    let github = GitHub::start().await;
    for (target, id) in [("/repos/acme/tool", 1), ("/repos/other/tool", 2), ("/user", 3)] {
        github.set(target, json!({ "id": id, "login": "pool-bot" }));
    }
    github.list("/repos/acme/tool/issues", 70);
    let dir = tempfile::tempdir().unwrap();
    let registry = dir.path().join("registry.yml");
    std::fs::write(&registry, REGISTRY).unwrap();
    let file = format!("--clients-file={}", registry.display());
    let mut arguments = vec![
        file,
        format!("--resolve=api.github.com:443:{}", github.address),
        format!("--upstream-ca={}", github.ca.display()),
    ];
    arguments.extend(more.iter().map(|s| s.to_string()));
    let tap = Tap::with_variables(arguments, &[("GITHUB_PAT_BOT", "ghp_pool")]).await;
    std::mem::forget(dir);
    (github, tap)
}

async fn ask(client: &mut Client, method: &str, target: &str, authorization: &str) -> Reply {
    let body = if method == "POST" { "{}" } else { "" };
    let head = format!("{method} {target} HTTP/1.1\r\nHost: api.github.com\r\nAuthorization: {authorization}\r\n");
    client.send(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len())).await;
    client.reply(method == "HEAD").await
}

#[tokio::test]
async fn a_clients_token_in_any_form_is_exchanged_for_the_pools() {
    let (github, tap) = start(&[]).await;
    let basic = |t: &str| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(t));
    for (round, authorization) in [
        "token client-all".to_owned(),
        "Bearer client-all".into(),
        "bearer  client-all".into(),
        basic("x-access-token:client-all"),
        basic("client-all:x-oauth-basic"),
        "client-all".into(),
        "Weird client-all".into(),
    ]
    .iter()
    .enumerate()
    {
        for mut client in [Client::connect(&tap).await, Client::plain(&tap).await] {
            let reply = ask(&mut client, "GET", "/repos/acme/tool", authorization).await;
            assert_eq!((reply.status, reply.json()["id"].as_i64()), (200, Some(1)), "{authorization} {round}");
        }
    }
    for arrived in github.arrived() {
        assert_eq!(arrived.headers["authorization"], "Bearer ghp_pool");
        let all = format!("{arrived:?}");
        assert!(!all.contains("client-all") && !all.contains("Y2xpZW50"), "{all}");
    }
    let report = String::from_utf8(tap.cli(&["report", "--by=client", "--format=csv"]).await.stdout).unwrap();
    assert!(report.contains("all,"), "{report}");
    assert!(!tap.log().contains("client-all") && !tap.log().contains("ghp_pool"));
}

#[tokio::test]
async fn scopes_are_kept_and_an_unknown_token_is_the_clients_own() {
    let (github, tap) = start(&[]).await;
    let mut client = Client::connect(&tap).await;
    for (method, target, status) in [
        ("GET", "/repos/acme/tool", 200),
        ("HEAD", "/repos/acme/tool", 200),
        ("GET", "/repos/ACME/tool", 404),
        ("GET", "/repos/other/tool", 403),
        ("GET", "/repos/acme/../other/tool", 403),
        ("GET", "/repos/acme/%2e%2e/other/tool", 403),
        ("GET", "//repos/acme/tool", 403),
        ("GET", "/user", 403),
        ("POST", "/repos/acme/tool/issues", 403),
        ("POST", "/repos/acme/tool/statuses/abc", 201),
        ("DELETE", "/repos/acme/tool", 403),
    ] {
        let reply = ask(&mut client, method, target, "token client-reader").await;
        assert_eq!(reply.status, status, "{method} {target}");
        if status == 403 {
            assert!(reply.json()["message"].as_str().unwrap().starts_with("ghtap: "), "{reply:?}");
        }
    }
    for field in ["X-HTTP-Method-Override: DELETE", "X-Original-URL: /user"] {
        let head = format!("POST /repos/acme/tool/statuses/abc HTTP/1.1\r\nHost: api.github.com\r\n{field}\r\n");
        client.send(format!("{head}Authorization: token client-reader\r\nContent-Length: 2\r\n\r\n{{}}")).await;
        assert_eq!(client.reply(false).await.status, 403, "{field}");
    }
    let refused = ask(&mut client, "GET", "/user", "token client-reader").await;
    assert!(refused.json()["message"].as_str().unwrap().contains("\"reader\" allows GET /user"), "{refused:?}");
    assert_eq!(ask(&mut client, "GET", "/repos/acme/tool", "token client-nothing").await.status, 403);
    for target in ["/app", "/app/installations", "/applications/x/token"] {
        assert_eq!(ask(&mut client, "GET", target, "token client-all").await.status, 403, "{target}");
    }
    // In a form that is not taken, a secret goes nowhere.
    github.arrived();
    for authorization in ["Token token=\"client-all\"", "Bearer x, Bearer client-all", "token:client-all"] {
        assert_eq!(ask(&mut client, "GET", "/user", authorization).await.status, 401, "{authorization}");
        let mut plain = Client::plain(&tap).await;
        plain
            .send(format!("GET http://127.0.0.1:9/ HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\n\r\n"))
            .await;
        assert_eq!(plain.reply(false).await.status, 400, "{authorization}");
    }
    assert!(github.arrived().is_empty());
    github.arrived();
    assert_eq!(ask(&mut client, "GET", "/user", "token ghp_own").await.status, 200);
    assert_eq!(github.arrived()[0].headers["authorization"], "token ghp_own");
}

#[tokio::test]
async fn graphql_is_by_operation() {
    let (github, tap) = start(&[]).await;
    let mut client = Client::connect(&tap).await;
    let query = |q: &str| json!({ "query": q }).to_string();
    let json = [("Content-Type", "application/json"), ("Authorization", "token client-reader")];
    for (target, fields, body, status) in [
        ("/graphql", json, query("query A { a }"), 200),
        ("/graphql", json, query("mutation A { a }"), 403),
        ("/graphql", json, query("query A { a } mutation B { b }"), 403),
        ("/graphql", json, query("query A {"), 403),
        ("/graphql", json, "query=mutation{a}".into(), 403),
        ("/graphql?query=mutation{a}", json, query("query A { a }"), 403),
        ("/graphql", [("Content-Type", "application/x-www-form-urlencoded"), json[1]], query("query A { a }"), 403),
        (
            "/graphql",
            [("Content-Type", "application/x-www-form-urlencoded; x=json"), json[1]],
            query("query A { a }"),
            403,
        ),
        ("/%67raphql", json, query("mutation A { a }"), 403),
        ("/%67raphql", json, query("query A { a }"), 201),
    ] {
        let reply = client.request("POST", target, "", &fields, body.as_bytes()).await;
        let shown = &body[..body.len().min(60)];
        assert_eq!(reply.status, status, "{target} {shown} {:?}", reply.json());
    }
    assert_eq!(github.arrived().len(), 2);
    // Too large to be read: refused before it is sent.
    let head = "POST /graphql HTTP/1.1\r\nHost: api.github.com\r\nAuthorization: token client-reader\r\nContent-Length: 2000000\r\n\r\n";
    client.send(head).await;
    assert_eq!(client.reply(false).await.status, 403);
    assert!(github.arrived().is_empty());
}

#[tokio::test]
async fn further_pages_are_in_scope_though_github_names_them_by_number() {
    let (github, tap) = start(&[]).await;
    let link = "<https://api.github.com/repositories/77/issues?page=2>; rel=\"next\", <https://api.github.com/repositories/77/issues?page=2>; rel=\"last\"";
    let page = |body: &str, link: Option<&str>| crate::support::github::Resource {
        body: body.into(),
        fields: link.map(|l| ("Link".to_owned(), l.to_owned())).into_iter().collect(),
        ..Default::default()
    };
    github.put("/repos/acme/site/issues", page("[1]", Some(link)));
    github.put("/repositories/77/issues?page=2", page("[2]", None));
    github.set("/repositories/78/issues?page=2", json!([3]));
    let mut client = Client::connect(&tap).await;
    let token = "token client-reader";
    github.set("/repositories/78", json!({ "full_name": "other/tool" }));
    assert_eq!(ask(&mut client, "GET", "/repos/acme/site/issues", token).await.status, 200);
    assert_eq!(ask(&mut client, "GET", "/repositories/77/issues?page=2", token).await.status, 200);
    assert_eq!(ask(&mut client, "GET", "/repositories/78/issues?page=2", token).await.status, 403);
    // After a restart GitHub is asked what the number stands for.
    github.set("/repositories/80", json!({ "full_name": "acme/site" }));
    github.set("/repositories/80/issues", json!([4]));
    assert_eq!(ask(&mut client, "GET", "/repositories/80/issues", token).await.status, 200);
    let moved = crate::support::github::Resource {
        status: 301,
        body: b"{}".to_vec(),
        fields: vec![("Location".into(), "https://api.github.com/repositories/79".into())],
        ..Default::default()
    };
    github.put("/repos/acme/old", moved);
    github.set("/repositories/79", json!({ "id": 79 }));
    assert_eq!(ask(&mut client, "GET", "/repos/acme/old", token).await.status, 301);
    assert_eq!(ask(&mut client, "GET", "/repositories/79", token).await.status, 200);
}

#[tokio::test]
async fn registered_clients_only() {
    let (github, tap) = start(&["--clients-only"]).await;
    let mut client = Client::connect(&tap).await;
    assert_eq!(ask(&mut client, "GET", "/repos/acme/tool", "token client-all").await.status, 200);
    github.arrived();
    for authorization in ["token ghp_own", "token client-allx", "Basic eA=="] {
        let reply = ask(&mut client, "GET", "/repos/acme/tool", authorization).await;
        assert_eq!(reply.status, 401, "{authorization}");
        assert!(reply.json()["message"].as_str().unwrap().contains("registered clients only"), "{reply:?}");
    }
    assert_eq!(client.get("/repos/acme/tool", "", &[]).await.status, 401);
    client.send("GET /user HTTP/1.1\r\nHost: api.github.com\r\nAuthorization: token client-all\r\nAuthorization: token x\r\n\r\n").await;
    assert_eq!(client.reply(false).await.status, 401);
    let mut own = Client::plain(&tap).await;
    own.send("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(own.reply(false).await.status, 401);
    assert!(github.arrived().is_empty());
}

#[tokio::test]
async fn the_pools_credential_never_comes_down() {
    let (github, tap) = start(&[]).await;
    let echo = crate::support::github::Resource {
        body: b"{\"you\":\"sent Bearer ghp_pool\"}".to_vec(),
        fields: vec![
            ("X-Echo".into(), "Bearer ghp_pool".into()),
            ("Location".into(), "https://elsewhere.example/?t=ghp_pool".into()),
        ],
        ..Default::default()
    };
    let large = crate::support::github::Resource {
        body: format!("{}ghp_pool{}", "x".repeat(1 << 20), "y".repeat(100)).into(),
        content_type: Some("text/plain".into()),
        ..Default::default()
    };
    github.put("/echo", echo);
    github.put("/large", large);
    github.misbehave("/repos/acme/tool", crate::support::Misbehaviour::Status(500, "with ghp_pool in it"));
    for _ in 0..2 {
        for mut client in [Client::connect(&tap).await, Client::plain(&tap).await] {
            for target in ["/echo", "/large", "/repos/acme/tool"] {
                let reply = client.get(target, "client-all", &[("Accept-Encoding", "gzip")]).await;
                let shown = format!("{:?} {}", reply.headers, String::from_utf8_lossy(&reply.body));
                assert!(!shown.contains("ghp_pool") && shown.contains("***"), "{target}");
            }
        }
    }
    let stored = String::from_utf8(tap.cli(&["cache", "list"]).await.stdout).unwrap();
    assert!(!stored.contains("https://"), "nor is it stored: {stored}");
}

#[tokio::test]
async fn the_registry_is_read_again_and_a_wrong_one_changes_nothing() {
    let (github, _) = (GitHub::start().await, ());
    github.set("/user", json!({ "id": 1 }));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.yml");
    let write = |text: &str, later: u64| {
        std::fs::write(&path, text).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(later)).unwrap();
    };
    write("version: 1\nclients:\n- name: a\n  token: {{ env.CLIENT_TOKEN }}\n", 0);
    let arguments = vec![
        format!("--resolve=api.github.com:443:{}", github.address),
        format!("--upstream-ca={}", github.ca.display()),
        "--clients-only".into(),
    ];
    let registry = path.display().to_string();
    let variables = [("GITHUB_PAT_X", "ghp_x"), ("CLIENT_TOKEN", "first"), ("CLIENT_REGISTRY_FILE_PATH", &registry)];
    let tap = Tap::with_variables(arguments, &variables).await;
    let mut client = Client::connect(&tap).await;
    assert_eq!(client.get("/user", "first", &[]).await.status, 200);
    write("version: 1\nclients:\n- name: a\n  token: second\n  scopes:\n  - method: GET\n    path: /(\n", 10);
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    assert_eq!(client.get("/user", "first", &[]).await.status, 200);
    assert!(tap.log().contains("line 6") && !tap.log().contains("second"), "{}", tap.log());
    write("version: 1\nclients:\n- name: a\n  token: second\n", 20);
    for _ in 0..100 {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        if client.get("/user", "second", &[]).await.status == 200 {
            break;
        }
    }
    assert_eq!(client.get("/user", "second", &[]).await.status, 200);
    github.arrived();
    assert_eq!(client.get("/user", "first", &[]).await.status, 401);
    assert!(github.arrived().is_empty(), "what was a client's token is not GitHub's");
}

#[tokio::test]
async fn pygithub_through_the_proxy_with_a_clients_token() {
    let python = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/.venv/bin/python");
    if !python.exists() {
        crate::support::missing("pygithub_through_the_proxy_with_a_clients_token", "PyGithub");
        return;
    }
    let (github, tap) = start(&[]).await;
    github
        .set("/repos/acme/tool", json!({ "full_name": "acme/tool", "url": "https://api.github.com/repos/acme/tool" }));
    let script = "import github; g = github.Github(auth=github.Auth.Token('client-reader'), retry=None); \
                  r = g.get_repo('acme/tool'); print(r.full_name, len(list(r.get_issues())))";
    let mut command = crate::support::tap::command(python);
    command
        .args(["-c", script])
        .env("https_proxy", format!("http://bot:x@{}", tap.proxy))
        .env("REQUESTS_CA_BUNDLE", tap.bundle());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(out, "acme/tool 70\n", "{}", String::from_utf8_lossy(&output.stderr));
    assert!(github.arrived().iter().all(|a| a.headers["authorization"] == "Bearer ghp_pool"));
}

#[tokio::test]
async fn a_number_is_of_one_api() {
    let (dotcom, ghe) = (GitHub::start().await, GitHub::start().await);
    let link = "<https://api.github.com/repositories/7/issues?page=2>; rel=\"next\"";
    let page = crate::support::github::Resource {
        body: b"[1]".to_vec(),
        fields: vec![("Link".into(), link.into())],
        ..Default::default()
    };
    dotcom.put("/repos/acme/tool/issues", page);
    ghe.set("/api/v3/repositories/7", json!({ "full_name": "other/secret" }));
    ghe.set("/api/v3/repositories/7/issues", json!([2]));
    let (near, far) = (dotcom.plainly().await, ghe.plainly().await);
    let dir = tempfile::tempdir().unwrap();
    let pool = dir.path().join("pool.toml");
    std::fs::write(&pool, format!("[[pat]]\nname = \"far\"\ntoken = \"ghp_far\"\nhost = \"{far}\"\n")).unwrap();
    let upstream = format!("--upstream=http://{near},http://{far}/api/v3");
    let (_, tap) = start(&[&upstream, &format!("--pool-file={}", pool.display())]).await;
    let mut client = Client::plain(&tap).await;
    let token = "token client-reader";
    assert_eq!(ask(&mut client, "GET", "/repos/acme/tool/issues", token).await.status, 200);
    assert_eq!(ask(&mut client, "GET", "/api/v3/repositories/7/issues", token).await.status, 403);
    assert!(ghe.arrived().iter().all(|a| a.target == "/api/v3/repositories/7"));
}
