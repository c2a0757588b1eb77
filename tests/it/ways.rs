//! The ways through the proxy that are not interception: tunnels, plain HTTP, a corporate proxy, a TLS listener.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::client::connector;
use crate::support::{Client, GitHub, Tap};

/// A server that answers every connection's first line with what it got.
async fn echo() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut all = Vec::new();
                let mut block = vec![0; 1 << 16];
                while let Ok(n) = stream.read(&mut block).await {
                    all.extend_from_slice(&block[..n]);
                    if n == 0 || all.ends_with(b"\r\n\r\n") {
                        break;
                    }
                }
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", all.len());
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.write_all(&all).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn other_hosts_are_tunnelled_untouched() {
    let far = echo().await;
    let tap = Tap::with(vec![format!("--resolve=far.test:443:{far}")]).await;
    let (mut stream, reply) = Client::open(&tap, "far.test:443", None).await;
    assert_eq!(reply.status, 200);
    stream.write_all(b"any bytes \0\xff at all\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.ends_with(b"any bytes \0\xff at all\r\n\r\n"));
    drop(stream);
    for _ in 0..100 {
        if tap.metric("ghtap_tunnel_bytes_total").await > 0.0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(tap.metric("ghtap_tunnels_total{result=\"opened\"}").await, 1.0);
    assert_eq!(tap.metric("ghtap_tunnel_bytes_total{direction=\"up\"}").await, 23.0);
}

#[tokio::test]
async fn plain_http_is_forwarded() {
    let far = echo().await;
    let tap = Tap::with(vec![]).await;
    let mut client = Client::plain(&tap).await;
    client.send(format!("GET http://{far}/a?b=c HTTP/1.1\r\nHost: {far}\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\nX-A: 1\r\n\r\n")).await;
    let got = String::from_utf8(client.reply(false).await.body).unwrap();
    assert!(got.starts_with("GET /a?b=c HTTP/1.1\r\n"), "{got}");
    assert!(got.contains("x-a: 1") && got.contains("via: 1.1 ghtap-") && !got.contains("proxy-"), "{got}");
    // An API URL in absolute-form is an API request.
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "full_name": "o/r" }));
    let tap = Tap::start(&github, &[]).await;
    let mut client = Client::plain(&tap).await;
    client.send("GET https://api.github.com/repos/o/r HTTP/1.1\r\nHost: api.github.com\r\n\r\n").await;
    assert_eq!(client.reply(false).await.json()["full_name"], "o/r");
}

#[tokio::test]
async fn through_a_corporate_proxy() {
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "full_name": "o/r" }));
    let far = echo().await;
    // A second tap plays the proxy: it tunnels what the first one sends.
    let api = github.address;
    let corporate = Tap::with(vec![
        "--intercept=nobody.test".into(),
        format!("--resolve=api.github.com:443:{api}"),
        format!("--resolve=far.test:443:{far}"),
    ])
    .await;
    let tap = Tap::with(vec![
        format!("--upstream-proxy=http://me:secret@{}", corporate.proxy),
        format!("--upstream-ca={}", github.ca.display()),
    ])
    .await;
    assert_eq!(Client::connect(&tap).await.get("/repos/o/r", "a", &[]).await.json()["full_name"], "o/r");
    let (mut stream, reply) = Client::open(&tap, "far.test:443", None).await;
    assert_eq!(reply.status, 200);
    stream.write_all(b"x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.ends_with(b"x\r\n\r\n"));
    assert_eq!(corporate.metric("ghtap_tunnels_total{result=\"opened\"}").await, 2.0);
    let (_, reply) = Client::open(&tap, "elsewhere.invalid:443", None).await;
    assert_eq!((reply.status, reply.field("proxy-status")), (502, Some("ghtap; error=destination_unavailable")));
    assert!(!tap.log().contains("secret"));
}

#[tokio::test]
async fn a_tls_listener_goes_by_server_name() {
    let github = GitHub::start().await;
    github.set("/repos/o/r", json!({ "full_name": "o/r" }));
    let tap = Tap::start(&github, &["--listen-tls=127.0.0.1:0"]).await;
    let port = tap.tls_port().await;
    let connect = async |name: &'static str, root: &std::path::Path| {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let server = rustls::pki_types::ServerName::try_from(name).unwrap();
        connector(root, &[b"http/1.1"]).connect(server, stream).await
    };
    let mut stream = connect("api.github.com", &tap.ca()).await.unwrap();
    stream
        .write_all(
            format!("GET /repos/o/r HTTP/1.1\r\nHost: api.github.com:{port}\r\nConnection: close\r\n\r\n").as_bytes(),
        )
        .await
        .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(
        answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(b"{\"full_name\":\"o/r\"}"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    // Another name is passed on as it is: the client sees the far end's own certificate.
    let mut stream = connect("github.com", &github.ca).await.unwrap();
    stream.write_all(b"GET /repos/o/r HTTP/1.1\r\nHost: github.com\r\n\r\n").await.unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    assert!(connect("no-such-host.invalid", &tap.ca()).await.is_err());
}
