//! What the store and the ledger both ask of the disk.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// sled's own page cache, in bytes. Small: who needs to be fast keeps what it needs itself.
const PAGE_CACHE: u64 = 4 << 20;
/// How long a database that was just closed may take to let go of its lock: sled ends its threads in its own time.
const LET_GO: Duration = Duration::from_secs(10);

/// Opens or makes a database. `flush_every_ms`: none if whoever writes flushes.
///
/// # Errors
/// It cannot be read or made, or somebody else has it open.
pub fn open_database(path: &Path, flush_every_ms: Option<u64>) -> io::Result<sled::Db> {
    let config = sled::Config::new().path(path).cache_capacity(PAGE_CACHE).flush_every_ms(flush_every_ms);
    let begun = Instant::now();
    loop {
        match config.open() {
            Err(sled::Error::Io(error))
                if error.to_string().contains("could not acquire lock") && begun.elapsed() < LET_GO =>
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return Ok(result?),
        }
    }
}

/// Bytes that the files below a directory occupy.
pub fn occupied(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(files) = std::fs::read_dir(path) else { return 0 };
    let sizes = files.flatten().map(|file| match file.metadata() {
        Ok(meta) if meta.is_dir() => occupied(&file.path()),
        Ok(meta) => meta.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_was_just_closed_opens_again() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..20u8 {
            let db = open_database(dir.path(), Some(5)).unwrap();
            assert_eq!(db.len(), usize::from(i));
            db.insert([i], &[i]).unwrap();
        }
    }
}
