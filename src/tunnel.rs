//! A tunnel: connect, and copy bytes both ways until both sides have ended.
//!
//! On Linux the bytes stay in the kernel: they are spliced from socket to pipe to socket.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// Bytes that went through, both ways.
#[derive(Default)]
pub struct Passed {
    pub up: AtomicU64,
    pub down: AtomicU64,
}

/// Copies until both sides have ended, or nothing has moved for `idle`. `begun` was read from the client
/// before, and goes first.
///
/// # Errors
/// A side failed; what had arrived by then has been passed on.
pub async fn run(
    client: TcpStream,
    begun: Bytes,
    mut origin: TcpStream,
    idle: Duration,
    passed: &Passed,
) -> io::Result<()> {
    if !begun.is_empty() {
        origin.write_all(&begun).await?;
        passed.up.fetch_add(begun.len() as u64, Ordering::Relaxed);
    }
    let both = async {
        // One side's failure ends the other: there is nobody left to tell.
        tokio::try_join!(copy(&client, &origin, &passed.up), copy(&origin, &client, &passed.down)).map(drop)
    };
    tokio::select! {
        ended = both => ended,
        () = silence(idle, passed) => Err(io::Error::new(io::ErrorKind::TimedOut, "the tunnel was idle for too long")),
    }
}

/// Ends when nothing has moved for `idle`, give or take a quarter.
pub async fn silence(idle: Duration, passed: &Passed) {
    let moved = || passed.up.load(Ordering::Relaxed).wrapping_add(passed.down.load(Ordering::Relaxed));
    let (mut seen, mut quiet) = (moved(), 0);
    while quiet < 4 {
        tokio::time::sleep(idle / 4).await;
        let now = moved();
        quiet = if now == seen { quiet + 1 } else { 0 };
        seen = now;
    }
}

#[cfg(target_os = "linux")]
async fn copy(from: &TcpStream, to: &TcpStream, count: &AtomicU64) -> io::Result<()> {
    use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
    use tokio::io::Interest;

    /// What one pipe holds at most; the kernel gives less to a user with many.
    const PIPE: usize = 512 << 10;

    let (reader, writer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE);
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    loop {
        let filled = from.async_io(Interest::READABLE, || Ok(splice(from, None, &writer, None, PIPE, flags)?)).await?;
        if filled == 0 {
            break;
        }
        let mut left = filled;
        while left > 0 {
            left -= to.async_io(Interest::WRITABLE, || Ok(splice(&reader, None, to, None, left, flags)?)).await?;
        }
        count.fetch_add(filled as u64, Ordering::Relaxed);
    }
    rustix::net::shutdown(to, rustix::net::Shutdown::Write)
        .or_else(|e| if e == rustix::io::Errno::NOTCONN { Ok(()) } else { Err(e) })?;
    Ok(())
}

#[cfg(not(target_os = "linux"))]
async fn copy(from: &TcpStream, to: &TcpStream, count: &AtomicU64) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        from.readable().await?;
        let n = match from.try_read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(e) => return Err(e),
        };
        let mut sent = 0;
        while sent < n {
            to.writable().await?;
            match to.try_write(&buffer[sent..n]) {
                Ok(n) => sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        count.fetch_add(n as u64, Ordering::Relaxed);
    }
    rustix::net::shutdown(to, rustix::net::Shutdown::Write)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        (client.unwrap(), accepted.unwrap().0)
    }

    #[tokio::test]
    async fn copies_both_ways_and_passes_each_end_on() {
        let ((mut client, inner), (outer, mut origin)) = (pair().await, pair().await);
        let passed = std::sync::Arc::new(Passed::default());
        let counted = passed.clone();
        let tunnel = tokio::spawn(async move {
            run(inner, Bytes::from_static(b"be"), outer, Duration::from_secs(60), &counted).await
        });
        let sent = vec![7; 3 << 20];
        let writer = tokio::spawn(async move {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            answer
        });
        let mut got = Vec::new();
        origin.read_to_end(&mut got).await.unwrap();
        assert_eq!((got.len(), &got[..3]), ((3 << 20) + 2, &b"be\x07"[..]));
        origin.write_all(b"answer").await.unwrap();
        drop(origin);
        assert_eq!(writer.await.unwrap(), b"answer");
        tunnel.await.unwrap().unwrap();
        assert_eq!(passed.down.load(Ordering::Relaxed), 6);
    }

    #[tokio::test]
    async fn an_idle_tunnel_ends() {
        let ((_client, inner), (outer, _origin)) = (pair().await, pair().await);
        let ended = run(inner, Bytes::new(), outer, Duration::from_millis(40), &Passed::default()).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
