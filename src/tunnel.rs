//! A tunnel: connect, and copy bytes both ways until both sides have ended.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

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

/// Tunnels that may pass on large pieces at once; the others make do with [`MODEST`] ones. One whose far end does not
/// read holds what it has in hand.
static LARGE: Semaphore = Semaphore::const_new(64);
const MODEST: usize = 64 << 10;

/// What one read takes at most, to begin with and when there is much to pass on. Few large copies cost less than
/// splicing through a pipe does: the kernel handles a pipe page by page.
const PIECE: std::ops::RangeInclusive<usize> = 16 << 10..=1 << 20;

async fn copy(from: &TcpStream, to: &TcpStream, count: &AtomicU64) -> io::Result<()> {
    let (mut size, mut buffer) = (*PIECE.start(), Vec::new());
    let mut large = None;
    loop {
        buffer.reserve_exact(size);
        match from.try_read_buf(&mut buffer) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // A tunnel on which nothing moves holds no buffer.
                (size, buffer, large) = (*PIECE.start(), Vec::new(), None);
                from.readable().await?;
                continue;
            }
            Err(error) => return Err(error),
        }
        write_all(to, &buffer).await?;
        count.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        if buffer.len() == buffer.capacity() {
            size = (size * 4).min(*PIECE.end());
            if size > MODEST && large.is_none() {
                large = LARGE.try_acquire().ok();
                if large.is_none() {
                    size = MODEST;
                }
            }
        }
        buffer.clear();
    }
    rustix::net::shutdown(to, rustix::net::Shutdown::Write)
        .or_else(|e| if e == rustix::io::Errno::NOTCONN { Ok(()) } else { Err(e) })?;
    Ok(())
}

async fn write_all(to: &TcpStream, mut left: &[u8]) -> io::Result<()> {
    while !left.is_empty() {
        match to.try_write(left) {
            Ok(n) => left = &left[n..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
            Err(error) => return Err(error),
        }
    }
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
