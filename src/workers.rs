//! The threads that serve connections: each with a runtime of its own, so that a connection, and the origin's
//! connection that answers it, stay on one thread, and no request wakes another.

use std::cell::Cell;
use std::io;
use std::net::TcpStream as StdStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

thread_local! {
    static INDEX: Cell<usize> = const { Cell::new(0) };
}

/// The number of the worker that runs the current thread, from 1; 0 elsewhere.
pub fn index() -> usize {
    INDEX.get()
}

/// Threads that read the disk for each worker. Each thread has an arena of memory of its own: few are enough.
const BLOCKING: usize = 2;

/// A fixed number of threads. Dropping it cuts off what they still do.
pub struct Workers {
    handles: Vec<Handle>,
    threads: Vec<(oneshot::Sender<()>, JoinHandle<()>)>,
    next: AtomicUsize,
}

impl Workers {
    /// Starts `count` threads.
    ///
    /// # Errors
    /// The system gives no more threads or descriptors.
    pub fn start(count: usize) -> io::Result<Workers> {
        let mut workers = Workers { handles: Vec::new(), threads: Vec::new(), next: AtomicUsize::new(0) };
        for index in 0..count {
            let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(BLOCKING).build()?;
            workers.handles.push(runtime.handle().clone());
            let (stop, stopped) = oneshot::channel();
            let thread = std::thread::Builder::new().name(format!("ghtap-{index}")).spawn(move || {
                INDEX.set(index + 1);
                // Ends when it is told to, or when whoever would tell is gone.
                let _ = runtime.block_on(stopped);
                runtime.shutdown_background();
            })?;
            workers.threads.push((stop, thread));
        }
        Ok(workers)
    }

    pub fn count(&self) -> usize {
        self.handles.len()
    }

    /// Serves a connection on the next thread in turn.
    pub fn serve<F>(&self, stream: TcpStream, service: impl FnOnce(TcpStream) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send,
    {
        // A reactor knows its own descriptors only: out of this one, and into the other.
        let Ok(stream) = stream.into_std() else { return };
        let next = self.next.fetch_add(1, Ordering::Relaxed) % self.handles.len();
        self.handles[next].spawn(async move {
            if let Ok(stream) = adopt(stream) {
                service(stream).await;
            }
        });
    }
}

fn adopt(stream: StdStream) -> io::Result<TcpStream> {
    TcpStream::from_std(stream)
}

impl Drop for Workers {
    fn drop(&mut self) {
        for (stop, thread) in self.threads.drain(..) {
            let _ = stop.send(());
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn connections_take_turns_and_stay_on_their_thread() {
        let workers = Workers::start(2).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut seen = Vec::new();
        for _ in 0..4 {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            workers.serve(stream, |mut stream| async move {
                let number = u8::try_from(index()).unwrap();
                stream.write_all(&[number]).await.unwrap();
            });
            seen.push(client.read_u8().await.unwrap());
        }
        assert_eq!(seen, [1, 2, 1, 2]);
        tokio::task::spawn_blocking(move || drop(workers)).await.unwrap();
    }
}
