//! Reading a ClientHello before deciding what to do with the connection.

use std::io::{self, Cursor};

use bytes::{Bytes, BytesMut};
use rustls::server::{Accepted, Acceptor};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// A ClientHello and the connection behind it.
pub struct Hello {
    pub accepted: Accepted,
    /// The server name that the client asks for, lower case.
    pub server_name: Option<String>,
    /// All that was read, to be sent on where the connection is not ours.
    pub raw: Bytes,
    pub stream: TcpStream,
}

/// What came instead of a ClientHello.
#[derive(Debug, thiserror::Error)]
pub enum NotTls {
    #[error("the bytes are not a TLS ClientHello: {0}")]
    Other(rustls::Error),
    #[error("the connection ended within the ClientHello")]
    Ended,
    #[error("the ClientHello is too long")]
    TooLong,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A ClientHello fills at most one message; with post-quantum shares it comes to 2 KB. This is generous.
const MAX_HELLO: usize = 64 << 10;

/// Reads until the ClientHello is whole. `begun` is what was read from the connection already.
///
/// The caller bounds the time.
pub async fn read(mut stream: TcpStream, begun: Bytes) -> Result<Hello, NotTls> {
    let mut acceptor = Acceptor::default();
    let mut raw = BytesMut::from(&begun[..]);
    let mut fed = 0;
    loop {
        // The acceptor takes what fits its buffer, not always all.
        while fed < raw.len() {
            let mut rest = Cursor::new(&raw[fed..]);
            let taken = acceptor.read_tls(&mut rest)?;
            if taken == 0 {
                return Err(NotTls::TooLong);
            }
            fed += taken;
            match acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let server_name = accepted.client_hello().server_name().map(str::to_ascii_lowercase);
                    return Ok(Hello { accepted, server_name, raw: raw.freeze(), stream });
                }
                Err((error, _)) => return Err(NotTls::Other(error)),
            }
        }
        if raw.len() >= MAX_HELLO {
            return Err(NotTls::TooLong);
        }
        if stream.read_buf(&mut raw).await? == 0 {
            return Err(NotTls::Ended);
        }
    }
}
