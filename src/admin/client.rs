//! Asking a running tap's admin address: a small HTTP client for the command line.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// A tap's admin address, and what it wants to hear.
#[derive(Clone, Debug)]
pub struct At {
    pub address: SocketAddr,
    pub token: Option<String>,
}

/// Makes one request and gives the body of its 200.
///
/// # Errors
/// One line that says what happened: no connection, another status.
pub async fn ask(at: &At, method: Method, path: &str) -> Result<Bytes, String> {
    let admin = at.address;
    let failed = |e: &dyn std::fmt::Display| format!("asking the tap at http://{admin}{path} failed: {e}");
    let exchange = async {
        let stream = TcpStream::connect(admin).await.map_err(|e| failed(&e))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
        let mut request =
            Request::builder().method(method).uri(path).header("host", admin.to_string()).header(super::INTENT, "1");
        if let Some(token) = &at.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|e| failed(&e))?;
        let driven = async {
            let _ = connection.await;
            std::future::pending::<()>().await
        };
        let answered = async {
            let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
            let status = response.status();
            let body = response.into_body().collect().await.map_err(|e| failed(&e))?.to_bytes();
            if status.is_success() {
                Ok(body)
            } else {
                Err(failed(&format!("{status}: {}", String::from_utf8_lossy(&body))))
            }
        };
        tokio::select! {
            answer = answered => answer,
            () = driven => unreachable!("it never ends"),
        }
    };
    tokio::time::timeout(Duration::from_secs(60), exchange).await.map_err(|_| failed(&"no answer within a minute"))?
}

/// A query parameter, percent-encoded.
pub fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
