//! Messages pass as they are: framing, trailers, interim responses, HTTP/2, large contents.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use serde_json::json;

use crate::support::client::connector;
use crate::support::github::Resource;
use crate::support::{Client, GitHub, Misbehaviour, Tap};

async fn start() -> (GitHub, Tap) {
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "full_name": "o/r" }));
    let tap = Tap::start(&github, &[]).await;
    (github, tap)
}

#[tokio::test]
async fn hop_by_hop_fields_stay_on_their_hop() {
    let (github, tap) = start().await;
    let mut client = Client::connect(&tap).await;
    let fields = [
        ("Connection", "keep-alive, X-Mine"),
        ("X-Mine", "1"),
        ("Keep-Alive", "9"),
        ("Proxy-Connection", "x"),
        ("X-Other", "2"),
    ];
    client.request("POST", "/repos/o/r/issues", "a", &fields, b"{}").await;
    let arrived = github.arrived().remove(0);
    for gone in ["x-mine", "keep-alive", "proxy-connection", "connection"] {
        assert!(!arrived.headers.contains_key(gone), "{gone}");
    }
    assert_eq!(
        (&arrived.headers["x-other"], &arrived.headers["host"]),
        (&"2".parse().unwrap(), &"api.github.com".parse().unwrap())
    );
    assert!(arrived.headers["via"].to_str().unwrap().starts_with("1.1 ghtap-"));
}

#[tokio::test]
async fn contents_go_up_by_length_and_in_chunks() {
    let (github, tap) = start().await;
    let mut client = Client::connect(&tap).await;
    let body = vec![b'y'; 300_000];
    assert_eq!(client.request("POST", "/repos/o/r/issues", "a", &[], &body).await.json()["received"], 300_000);
    client.send("POST /repos/o/r/issues HTTP/1.1\r\nHost: api.github.com\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n").await;
    client.send("5\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 11\r\n\r\n").await;
    assert_eq!(client.reply(false).await.json()["received"], 11);
    let arrived = github.arrived();
    assert_eq!(arrived[0].headers["content-length"], "300000");
    assert_eq!(
        (&arrived[1].body[..], arrived[1].headers.get("x-sum").map(|v| v.to_str().unwrap())),
        (&b"hello world"[..], Some("11"))
    );
}

#[tokio::test]
async fn expect_100_continue_is_the_origins_to_answer() {
    let (github, tap) = start().await;
    let mut client = Client::connect(&tap).await;
    client.send("POST /repos/o/r/issues HTTP/1.1\r\nHost: api.github.com\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    client.send("body").await;
    assert_eq!(client.reply(false).await.json()["received"], 4);
    assert_eq!(github.arrived()[0].headers["expect"], "100-continue");
    assert_eq!(client.get("/repos/o/r", "a", &[]).await.status, 200, "the connection is in step");
}

#[tokio::test]
async fn trailers_come_down() {
    let (github, tap) = start().await;
    github.put(
        "/search/issues",
        Resource { body: b"{}".to_vec(), no_etag: true, no_last_modified: true, ..Resource::default() },
    );
    github.misbehave("/repos/o/r/issues", Misbehaviour::Trailer);
    let mut client = Client::connect(&tap).await;
    let reply =
        client.request("POST", "/repos/o/r/issues", "a", &[("TE", "trailers"), ("Connection", "TE")], b"{}").await;
    assert_eq!((reply.status, reply.trailers.as_slice()), (201, &["x-checksum: abc".to_owned()][..]));
}

#[tokio::test]
async fn what_has_no_content_stays_without() {
    let (_github, tap) = start().await;
    let mut client = Client::connect(&tap).await;
    let deleted = client.request("DELETE", "/repos/o/r/subscription", "a", &[], b"").await;
    assert_eq!((deleted.status, deleted.field("transfer-encoding")), (204, None));
    assert_eq!(client.request("HEAD", "/repos/o/missing", "a", &[], b"").await.status, 404);
    // Java sends this with each GET.
    assert_eq!(client.get("/repos/o/r", "a", &[("Content-Length", "0")]).await.x_cache(), "ONLINE_MISS");
    assert_eq!(client.get("/repos/o/r", "a", &[("Content-Length", "0")]).await.x_cache(), "ONLINE_HIT");
}

#[tokio::test]
async fn connections_to_github_are_kept() {
    let (github, tap) = start().await;
    for _ in 0..10 {
        // A new connection of the client's each time: they take turns on the tap's threads, which have a pool each.
        let mut client = Client::connect(&tap).await;
        client.get("/repos/o/r", "a", &[]).await;
        client.request("POST", "/repos/o/r/issues", "a", &[], b"{}").await;
        client.get("/repos/o/missing", "a", &[]).await;
    }
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    assert!(github.connections() <= threads, "{} connections", github.connections());
}

#[tokio::test]
async fn redirects_are_passed_on_untouched() {
    let (github, tap) = start().await;
    let location = "https://codeload.github.com/o/r/legacy.tar.gz?token=x";
    github.put(
        "/repos/o/r/tarball",
        Resource { status: 302, fields: vec![("Location".into(), location.into())], ..Resource::default() },
    );
    let mut client = Client::connect(&tap).await;
    for _ in 0..2 {
        let reply = client.get("/repos/o/r/tarball", "a", &[]).await;
        assert_eq!((reply.status, reply.field("location"), reply.x_cache()), (302, Some(location), "ONLINE_MISS"));
    }
}

#[tokio::test]
async fn http2_by_alpn() {
    let (github, tap) = start().await;
    let (stream, _) = Client::open(&tap, "api.github.com:443", Some("h2-client+run-2")).await;
    let name = ServerName::try_from("api.github.com").unwrap();
    let stream = connector(&tap.ca(), &[b"h2"]).connect(name, stream).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let ask = |n: usize| {
        let mut sender = sender.clone();
        async move {
            let request =
                http::Request::builder().uri("https://api.github.com/repos/o/r").header("authorization", "token a");
            let request =
                request.header("cookie", "a=1").header("cookie", "b=2").body(Full::<Bytes>::default()).unwrap();
            let response = sender.send_request(request).await.unwrap();
            let status = response.status();
            (n, status, response.into_body().collect().await.unwrap().to_bytes())
        }
    };
    let mut all = tokio::task::JoinSet::new();
    for n in 0..20 {
        all.spawn(ask(n));
    }
    while let Some(one) = all.join_next().await {
        let (_, status, body) = one.unwrap();
        assert_eq!(
            (
                status.as_u16(),
                serde_json::from_slice::<serde_json::Value>(&body).unwrap()["full_name"].as_str().map(str::to_owned)
            ),
            (200, Some("o/r".into()))
        );
    }
    let arrived = github.arrived();
    assert_eq!(arrived[0].headers["cookie"], "a=1; b=2");
    assert_eq!(github.charged(), 1);
    let mut sender = sender.clone();
    let post = http::Request::builder()
        .method("POST")
        .uri("https://api.github.com/repos/o/r/issues")
        .body(Full::from(vec![b'z'; 200_000]))
        .unwrap();
    let response = sender.send_request(post).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&body).unwrap()["received"], 200_000);
    assert!(tap.get_admin("/metrics").await.contains("client=\"h2-client\""));
}

#[tokio::test]
async fn a_hundred_megabytes_pass_in_bounded_memory() {
    let (github, tap) = start().await;
    let size = 100 << 20;
    let large = Resource {
        body: vec![b'x'; size],
        content_type: Some("application/octet-stream".into()),
        ..Resource::default()
    };
    github.put("/repos/o/r/large", large);
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", tap.pid())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
    };
    let mut client = Client::connect(&tap).await;
    client.get("/repos/o/r", "a", &[]).await;
    let before = resident();
    assert_eq!(client.get("/repos/o/r/large", "a", &[]).await.body.len(), size);
    let upload = vec![b'u'; size];
    assert_eq!(client.request("POST", "/repos/o/r/issues", "a", &[], &upload).await.json()["received"], size);
    let grown = resident() - before;
    assert!(grown < 64, "{grown} MiB more than before");
}
