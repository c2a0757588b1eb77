//! Bad input: for each, what the client gets, that the next request works, and that nothing wrong is stored or sent.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::client::connector;
use crate::support::{Client, GitHub, Tap};

async fn start(more: &[&str]) -> (GitHub, Tap) {
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "full_name": "o/r" }));
    let tap = Tap::start(&github, &[&["--client-timeout=1s"], more].concat()).await;
    (github, tap)
}

/// The tap still answers others.
async fn still_works(tap: &Tap) {
    assert_eq!(Client::connect(tap).await.get("/repos/o/r", "a", &[]).await.status, 200);
}

/// The status of the answer to these bytes; none: the connection was closed without one.
async fn answer(client: &mut Client, bytes: &[u8]) -> Option<u16> {
    let _ = client.try_send(bytes).await;
    let read = tokio::time::timeout(Duration::from_secs(10), client.read(false)).await;
    read.expect("an answer or an end, in time").ok().map(|r| r.status)
}

#[tokio::test]
async fn malformed_requests_inside() {
    let (github, tap) = start(&[]).await;
    let line = |rest: &str| format!("GET /repos/o/r HTTP/1.1\r\nHost: api.github.com\r\n{rest}\r\n").into_bytes();
    let many: String = (0..1000).map(|i| format!("X-{i}: 1\r\n")).collect();
    let large = format!("X-Large: {}\r\n", "x".repeat(300_000));
    let target = "x".repeat(300_000);
    for (what, bytes, statuses) in [
        ("not HTTP", b"nonsense\r\n\r\n".to_vec(), &[400][..]),
        ("a bad version", b"GET / HTTP/9.9\r\n\r\n".to_vec(), &[400, 505]),
        ("a long request line", format!("GET /{target} HTTP/1.1\r\n\r\n").into_bytes(), &[414, 431]),
        ("a thousand fields", line(&many), &[431]),
        ("a long field", line(&large), &[431]),
        ("two lengths", line("Content-Length: 3\r\nContent-Length: 4\r\n"), &[400]),
        ("chunked not last", line("Transfer-Encoding: chunked, gzip\r\n"), &[400]),
        ("a bad length", line("Content-Length: +3\r\n"), &[400]),
        ("a negative length", line("Content-Length: -3\r\n"), &[400]),
        ("a fold", line("X-A: 1\r\n folded\r\n"), &[400]),
        ("a NUL", line("X-A: \0\r\n"), &[400]),
        ("a bare CR", line("X-A: a\rb\r\n"), &[400]),
        ("white space before the colon", line("X-A : a\r\n"), &[400]),
        ("two hosts", line("Host: api.github.com\r\n"), &[400]),
        ("no host", b"GET /repos/o/r HTTP/1.1\r\n\r\n".to_vec(), &[400]),
        ("another host", b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n".to_vec(), &[421]),
        ("another port", b"GET / HTTP/1.1\r\nHost: api.github.com:444\r\n\r\n".to_vec(), &[421]),
        (
            "an absolute URL of another host",
            b"GET https://example.com/ HTTP/1.1\r\nHost: api.github.com\r\n\r\n".to_vec(),
            &[421],
        ),
    ] {
        let mut client = Client::connect(&tap).await;
        let status = answer(&mut client, &bytes).await;
        assert!(status.is_some_and(|s| statuses.contains(&s)), "{what}: {status:?}");
        still_works(&tap).await;
    }
    assert!(github.arrived().iter().all(|a| a.target == "/repos/o/r" && a.status != 400), "nothing of it went on");
    assert!(tap.metric("ghtap_refused_total").await > 10.0);
}

#[tokio::test]
async fn chunks_win_over_a_length_and_end_the_connection() {
    let (github, tap) = start(&[]).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: api.github.com\r\n\r\n";
    for fields in ["Content-Length: 6\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 6"]
    {
        let mut client = Client::connect(&tap).await;
        let head = format!("POST /repos/o/r/issues HTTP/1.1\r\nHost: api.github.com\r\n{fields}\r\n\r\n");
        client.send(format!("{head}2\r\n{{}}\r\n0\r\n\r\n{smuggled}")).await;
        assert_eq!(client.reply(false).await.json()["received"], 2);
        assert!(client.read(false).await.is_err(), "closed");
    }
    let arrived = github.arrived();
    assert_eq!(arrived.len(), 2, "nothing was smuggled");
    assert!(arrived.iter().all(|a| !a.headers.contains_key("content-length")));
}

#[tokio::test]
async fn refusals_are_explained_in_githubs_shape() {
    let (_github, tap) = start(&[]).await;
    let mut client = Client::connect(&tap).await;
    client.send("GET / HTTP/1.1\r\nHost: example.com\r\n\r\n").await;
    let reply = client.reply(false).await;
    assert_eq!(
        (reply.status, reply.json()["message"].as_str()),
        (421, Some("ghtap: the Host \"example.com\" is not api.github.com:443"))
    );
    assert!(reply.json()["documentation_url"].is_string());
    let mut client = Client::plain(&tap).await;
    client.send("OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").await;
    let reply = client.reply(false).await;
    assert_eq!(reply.status, 400);
    assert!(reply.json()["message"].as_str().unwrap().contains("HTTPS_PROXY"));
}

#[tokio::test]
async fn slow_heads_and_contents_that_stop() {
    let (_github, tap) = start(&["--idle-timeout=1s"]).await;
    // On the proxy's own address, before and after TLS.
    let mut slow = Client::plain(&tap).await;
    slow.send("CONNECT api.git").await;
    assert!(slow.is_closed().await);
    let mut slow = Client::connect(&tap).await;
    slow.send("GET /repos").await;
    assert!(slow.is_closed().await);
    let mut stops = Client::connect(&tap).await;
    stops.send("POST /repos/o/r/issues HTTP/1.1\r\nHost: api.github.com\r\nContent-Length: 10\r\n\r\nabc").await;
    let reply = stops.read(false).await;
    assert!(reply.is_err() || reply.unwrap().status == 408);
    still_works(&tap).await;
}

#[tokio::test]
async fn connects_of_all_kinds() {
    let (_github, tap) = start(&["--tunnel-deny=127.0.0.0/8", "--tunnel-deny=::1/128"]).await;
    for (authority, status, said) in [
        ("api.github.com", 400, "has no port"),
        ("api.github.com:0", 400, "port 0"),
        ("localhost:443", 403, "--tunnel-deny"),
        ("127.0.0.1:443", 403, "--tunnel-deny"),
        ("[::1]:443", 403, "--tunnel-deny"),
        ("[::ffff:127.0.0.1]:443", 403, "--tunnel-deny"),
        ("no-such-host.invalid:443", 502, "does not resolve"),
        ("api.github.com:22", 403, "no tunnel to port 22"),
    ] {
        let (_, reply) = Client::open(&tap, authority, None).await;
        assert_eq!(reply.status, status, "{authority}: {}", reply.json());
        assert!(reply.json()["message"].as_str().unwrap().contains(said), "{authority}: {}", reply.json());
    }
    // As Python 3.11 asks, as Java asks, and with a final dot and capitals: all of them intercepted.
    for head in [
        "CONNECT api.github.com:443 HTTP/1.0\r\n\r\n",
        "CONNECT api.github.com:443 HTTP/1.1\r\nHost: api.github.com\r\n\r\n",
        "CONNECT API.GitHub.COM.:443 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(tap.proxy).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
        assert_eq!(&answer[9..12], b"200", "{head}");
        let name = rustls::pki_types::ServerName::try_from("api.github.com").unwrap();
        connector(&tap.ca(), &[]).connect(name, stream).await.unwrap();
    }
    still_works(&tap).await;
}

#[tokio::test]
async fn the_default_denies_the_clouds_metadata() {
    let (_github, tap) = start(&["--resolve=metadata.test:443:169.254.169.254"]).await;
    for authority in ["169.254.169.254:443", "[fd00:ec2::254]:443"] {
        let (_, reply) = Client::open(&tap, authority, None).await;
        assert_eq!(reply.status, 403, "{authority}");
    }
    let mut client = Client::plain(&tap).await;
    client.send("GET http://169.254.169.254/latest/meta-data HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n").await;
    assert_eq!(client.reply(false).await.status, 403);
}

#[tokio::test]
async fn a_name_is_checked_after_it_is_resolved() {
    // localhost resolves to what is denied, and no spelling of it gets round that.
    let (_github, tap) = start(&["--tunnel-deny=127.0.0.0/8,::1"]).await;
    let mut client = Client::plain(&tap).await;
    client.send("GET http://localhost:9/ HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    let reply = client.reply(false).await;
    assert_eq!((reply.status, reply.field("proxy-status")), (403, Some("ghtap; error=destination_ip_prohibited")));
}

#[tokio::test]
async fn absolute_urls_that_are_refused() {
    let (_github, tap) = start(&[]).await;
    for (url, status) in [
        ("http://user:pw@example.com/", 400),
        ("https://example.com/", 400),
        ("ftp://example.com/", 400),
        ("http://no-such-host.invalid/", 502),
    ] {
        let mut client = Client::plain(&tap).await;
        client.send(format!("GET {url} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert_eq!(client.reply(false).await.status, status, "{url}");
    }
}

#[tokio::test]
async fn client_hellos_of_all_kinds() {
    let (_github, tap) = start(&[]).await;
    // Not TLS at all, and SSLv2: closed, counted, never forwarded.
    for bytes in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10", b"\x16\x03\x01\xff\xff\x01"]
    {
        let (mut stream, _) = Client::open(&tap, "api.github.com:443", None).await;
        stream.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "closed in time");
    }
    assert_eq!(tap.metric("ghtap_refused_total{reason=\"not-tls\"}").await, 3.0);
    // One that stops: the time is bounded.
    let (mut stream, _) = Client::open(&tap, "api.github.com:443", None).await;
    stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await.unwrap();
    assert_eq!(tokio::time::timeout(Duration::from_secs(10), stream.read(&mut [0])).await.unwrap().unwrap(), 0);
    // In single bytes, it is whole all the same.
    let (stream, _) = Client::open(&tap, "api.github.com:443", None).await;
    stream.set_nodelay(true).unwrap();
    let (near, far) = tokio::io::duplex(1);
    tokio::spawn(async move {
        let (mut stream, mut far) = (stream, far);
        let _ = tokio::io::copy_bidirectional_with_sizes(&mut far, &mut stream, 1, 1).await;
    });
    let name = rustls::pki_types::ServerName::try_from("api.github.com").unwrap();
    connector(&tap.ca(), &[]).connect(name, near).await.unwrap();
    // Another server name than the CONNECT's: 421, whatever is asked.
    let failed = Client::connect_as(&tap, "api.github.com", "example.com", None).await;
    assert!(failed.is_err(), "the leaf is not for example.com");
    still_works(&tap).await;
}

#[tokio::test]
async fn another_server_name_is_misdirected() {
    let (github, tap) = start(&[]).await;
    // A client that checks nothing gets as far as a request, and no further.
    let (stream, _) = Client::open(&tap, "api.github.com:443", None).await;
    let script = "import ssl,socket,sys\ns=socket.socket(fileno=0)\nc=ssl._create_unverified_context()\nt=c.wrap_socket(s,server_hostname='example.com')\n\
                  t.sendall(b'GET /repos/o/r HTTP/1.1\\r\\nHost: example.com\\r\\n\\r\\n')\nsys.stdout.buffer.write(t.recv(4096))";
    let stream = stream.into_std().unwrap();
    stream.set_nonblocking(false).unwrap();
    let fd = std::os::fd::OwnedFd::from(stream);
    let output = tokio::task::spawn_blocking(move || {
        std::process::Command::new("python3").args(["-c", script]).stdin(fd).output().unwrap()
    })
    .await
    .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.starts_with("HTTP/1.1 421"), "{text} {}", String::from_utf8_lossy(&output.stderr));
    assert!(github.arrived().is_empty());
}

#[tokio::test]
async fn http2_floods_end_their_connection_only() {
    let (_github, tap) = start(&[]).await;
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    // A head that never ends: CONTINUATION upon CONTINUATION.
    let mut endless = PREFACE.to_vec();
    endless.extend_from_slice(b"\0\0\x01\x01\0\0\0\0\x01\x82");
    for _ in 0..2000 {
        endless.extend_from_slice(b"\0\x04\0\x09\0\0\0\0\x01");
        endless.extend_from_slice(&[0x40, 0x01, b'a', 0x7f].repeat(256));
    }
    // Requests that are reset as soon as they are made.
    let mut rapid = PREFACE.to_vec();
    for i in 0..5000u32 {
        let id = (2 * i + 1).to_be_bytes();
        let head = b"\x82\x87\x84\x41\x0eapi.github.com";
        rapid.extend_from_slice(&[0, 0, u8::try_from(head.len()).unwrap(), 1, 5]);
        rapid.extend_from_slice(&id);
        rapid.extend_from_slice(head);
        rapid.extend_from_slice(&[0, 0, 4, 3, 0]);
        rapid.extend_from_slice(&id);
        rapid.extend_from_slice(&[0, 0, 0, 8]);
    }
    for (what, bytes) in [("continuation", endless), ("rapid reset", rapid)] {
        let (stream, _) = Client::open(&tap, "api.github.com:443", None).await;
        let name = rustls::pki_types::ServerName::try_from("api.github.com").unwrap();
        let mut stream = connector(&tap.ca(), &[b"h2"]).connect(name, stream).await.unwrap();
        let flooded = async {
            let _ = stream.write_all(&bytes).await;
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        };
        assert!(
            tokio::time::timeout(Duration::from_secs(20), flooded).await.is_ok(),
            "{what}: the connection is closed"
        );
        still_works(&tap).await;
    }
}

#[tokio::test]
async fn nothing_leads_back_to_the_tap() {
    let (_github, tap) = start(&[]).await;
    // Neither to the proxy, nor, for what clients choose, to the admin address.
    for (address, path) in [(tap.proxy, "/"), (tap.admin, "/api/report?by=client"), (tap.admin, "/metrics")] {
        let mut plain = Client::plain(&tap).await;
        plain.send(format!("GET http://{address}{path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        let reply = plain.reply(false).await;
        assert_eq!(
            (reply.status, reply.field("proxy-status")),
            (508, Some("ghtap; error=proxy_loop_detected")),
            "{address}"
        );
    }
    let port = tap.admin.port();
    let other = Tap::with(vec![format!("--tunnel-ports={port}")]).await;
    let (_, reply) = Client::open(&other, &format!("127.0.0.1:{port}"), None).await;
    assert_eq!(reply.status, 200, "another tap's address is an address like any other");
}

#[tokio::test]
async fn a_password_in_a_connect_is_not_repeated() {
    let (_github, tap) = start(&[]).await;
    let (_, reply) = Client::open(&tap, "user:s3cret@example.com:443", None).await;
    assert_eq!(reply.status, 400);
    assert!(!String::from_utf8_lossy(&reply.body).contains("s3cret"));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!tap.log().contains("s3cret"));
}

#[tokio::test]
async fn clients_that_do_not_read_keep_nobody_from_asking() {
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "full_name": "o/r" }));
    let large = crate::support::github::Resource { body: vec![b'x'; 30 << 20], ..Default::default() };
    github.put("/repos/o/r/large", large);
    let tap = Tap::start(&github, &["--upstream-concurrency=2", "--client-timeout=2s", "--upstream-timeout=2s"]).await;
    let mut hogs = Vec::new();
    for _ in 0..6 {
        let mut hog = Client::connect(&tap).await;
        hog.send("GET /repos/o/r/large HTTP/1.1\r\nHost: api.github.com\r\n\r\n").await;
        hogs.push(hog);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    still_works(&tap).await;
    // And they are let go.
    for _ in 0..100 {
        if tap.metric("ghtap_connections_open").await == 0.0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("connections that do not read stay open");
}

#[tokio::test]
async fn an_http2_connection_on_which_nothing_is_asked_ends() {
    let (_github, tap) = start(&["--idle-timeout=1s"]).await;
    let (stream, _) = Client::open(&tap, "api.github.com:443", None).await;
    let name = rustls::pki_types::ServerName::try_from("api.github.com").unwrap();
    let mut stream = connector(&tap.ca(), &[b"h2"]).connect(name, stream).await.unwrap();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(15), stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "not even a preface, for ever");
}
