//! Logs, to stderr: collected for a moment and written together, so that a line for each request does not
//! cost a system call for each request.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::Failure;
use crate::config::LogFormat;

/// How long a line may wait.
const DELAY: Duration = Duration::from_millis(50);
/// Lines that wait, in bytes; past that they are written at once.
const MAX_WAITING: usize = 256 << 10;

#[derive(Clone, Default)]
struct Collected(Arc<Mutex<Vec<u8>>>);

impl Write for Collected {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut waiting = self.0.lock();
        waiting.extend_from_slice(line);
        if waiting.len() > MAX_WAITING {
            let full = std::mem::take(&mut *waiting);
            drop(waiting);
            io::stderr().write_all(&full)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let waiting = std::mem::take(&mut *self.0.lock());
        if waiting.is_empty() { Ok(()) } else { io::stderr().write_all(&waiting) }
    }
}

impl<'a> MakeWriter<'a> for Collected {
    type Writer = Collected;

    fn make_writer(&'a self) -> Collected {
        self.clone()
    }
}

/// Writes what is left when it is dropped.
pub struct Logging(Collected);

impl Drop for Logging {
    fn drop(&mut self) {
        let _ = self.0.flush();
    }
}

/// Starts logging.
pub fn start(format: LogFormat, directives: &str) -> Result<Logging, Failure> {
    let filter = EnvFilter::try_new(directives);
    let filter =
        filter.map_err(|e| Failure::new(format_args!("--log {directives:?} is not a level or a directive: {e}")))?;
    let collected = Collected::default();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_writer(collected.clone());
    let started = match format {
        LogFormat::Human => builder.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(Failure::new)?;
    let mut writer = collected.clone();
    let name = std::thread::Builder::new().name("ghtap-log".into());
    let thread = name.spawn(move || {
        loop {
            // Whoever reads may come back.
            let _ = writer.flush();
            std::thread::sleep(DELAY);
        }
    });
    thread.map_err(Failure::new)?;
    Ok(Logging(collected))
}
