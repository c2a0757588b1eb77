//! The ledger: counts by minute, in memory for the running minute, on disk within a second.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::row::{Counts, Dimensions};

/// The directory below the data directory; its number is the format's.
pub const DIRECTORY: &str = "ledger-v1";
/// Different rows in one minute; past that, client and run are counted as `other`.
const MAX_ROWS: usize = 20_000;
/// How often the rows reach the disk.
pub const FLUSH_EVERY: std::time::Duration = std::time::Duration::from_secs(1);

type Hashing = foldhash::fast::RandomState;

/// Counts calls.
pub struct Ledger {
    db: sled::Db,
    rows: sled::Tree,
    /// Tells rows of this process from those of an earlier one in the same minute.
    start: u32,
    minute: Mutex<Minute>,
    /// One flush at a time: rows are totals, and an older one must not come after a newer.
    flushing: Mutex<()>,
    other: Arc<str>,
}

#[derive(Default)]
struct Minute {
    /// Since 1970.
    number: u32,
    rows: HashMap<Dimensions, (Counts, bool), Hashing>,
    /// Rows of the minutes before that are not on disk yet.
    waiting: HashMap<(u32, Dimensions), Counts, Hashing>,
}

impl Ledger {
    /// Opens or makes the ledger. One that cannot be read is kept under another name, and a new one begun.
    pub fn open(data_dir: &Path) -> io::Result<Ledger> {
        let path = data_dir.join(DIRECTORY);
        crate::tls::files::make_private(&path)?;
        let open = || sled::Config::new().path(&path).cache_capacity(4 << 20).flush_every_ms(None).open();
        let db = match open() {
            Ok(db) => db,
            Err(error) => {
                let aside = data_dir.join(format!("{DIRECTORY}.broken.{}", seconds_now()));
                std::fs::rename(&path, &aside)?;
                tracing::error!(%error, kept = %aside.display(), "the ledger cannot be read; starting a new one");
                open().map_err(io::Error::other)?
            }
        };
        let rows = db.open_tree("minutes").map_err(io::Error::other)?;
        let start = u32::from_be_bytes(crate::tls::files::random());
        Ok(Ledger { db, rows, start, minute: Mutex::default(), flushing: Mutex::default(), other: "other".into() })
    }

    /// Adds to the row of these dimensions. `now` in milliseconds since 1970.
    pub fn add(&self, mut dimensions: Dimensions, now: u64, count: impl FnOnce(&mut Counts)) {
        let number = u32::try_from(now / 60_000).unwrap_or(u32::MAX);
        let mut minute = self.minute.lock();
        if minute.number != number {
            let before = minute.number;
            let rows = std::mem::take(&mut minute.rows);
            let late = rows.into_iter().filter(|(_, (_, dirty))| *dirty);
            minute.waiting.extend(late.map(|(dimensions, (counts, _))| ((before, dimensions), counts)));
            minute.number = number;
        }
        if minute.rows.len() >= MAX_ROWS && !minute.rows.contains_key(&dimensions) {
            dimensions.client = self.other.clone();
            dimensions.run = self.other.clone();
        }
        let row = minute.rows.entry(dimensions).or_default();
        count(&mut row.0);
        row.1 = true;
    }

    /// Writes what has changed, and waits for the disk. Says how many rows. What fails is tried again.
    pub fn flush(&self) -> io::Result<usize> {
        let _one = self.flushing.lock();
        let changed: Vec<(u32, Dimensions, Counts)> = {
            let mut minute = self.minute.lock();
            let waiting = std::mem::take(&mut minute.waiting);
            let mut changed: Vec<_> =
                waiting.into_iter().map(|((n, dimensions), counts)| (n, dimensions, counts)).collect();
            let number = minute.number;
            for (dimensions, (counts, dirty)) in &mut minute.rows {
                if std::mem::take(dirty) {
                    changed.push((number, dimensions.clone(), counts.clone()));
                }
            }
            changed
        };
        if changed.is_empty() {
            return Ok(0);
        }
        let written = changed.iter().try_for_each(|(minute, dimensions, counts)| {
            let value = postcard::to_stdvec(&(dimensions, counts)).map_err(io::Error::other)?;
            self.rows.insert(self.key(*minute, dimensions), value).map_err(io::Error::other)?;
            Ok(())
        });
        let flushed = written.and_then(|()| self.db.flush().map_err(io::Error::other));
        if let Err(error) = flushed {
            // Rows are totals of their minute: writing one twice does no harm.
            let mut minute = self.minute.lock();
            let current = minute.number;
            for (number, dimensions, counts) in changed {
                // What was counted since is newer than what failed.
                match minute.rows.get_mut(&dimensions).filter(|_| number == current) {
                    Some(row) => row.1 = true,
                    None => drop(minute.waiting.entry((number, dimensions)).or_insert(counts)),
                }
            }
            return Err(error);
        }
        Ok(changed.len())
    }

    fn key(&self, minute: u32, dimensions: &Dimensions) -> [u8; 16] {
        let hash = foldhash::quality::FixedState::with_seed(0).hash_one(dimensions);
        let mut key = [0; 16];
        key[..4].copy_from_slice(&minute.to_be_bytes());
        key[4..8].copy_from_slice(&self.start.to_be_bytes());
        key[8..].copy_from_slice(&hash.to_be_bytes());
        key
    }

    /// Calls `each` with every row from the minute `since` (since 1970) on, in order of time.
    pub fn rows(&self, since: u32, mut each: impl FnMut(u32, &Dimensions, &Counts)) -> io::Result<()> {
        for pair in self.rows.range(since.to_be_bytes()..) {
            let (key, value) = pair.map_err(io::Error::other)?;
            let minute = u32::from_be_bytes(key[..4].try_into().expect("keys have 16 bytes"));
            match postcard::from_bytes::<(Dimensions, Counts)>(&value) {
                Ok((dimensions, counts)) => each(minute, &dimensions, &counts),
                Err(error) => tracing::warn!(%error, minute, "a row of the ledger cannot be read"),
            }
        }
        Ok(())
    }
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::Outcome;

    fn dimensions(client: &str) -> Dimensions {
        Dimensions {
            client: client.into(),
            run: "".into(),
            host: "api.github.com".into(),
            route: "GET /x".into(),
            credential: "anonymous".into(),
            status: 200,
            outcome: Outcome::Miss,
            resource: "core".into(),
        }
    }

    fn totals(ledger: &Ledger) -> Vec<(u32, String, u64)> {
        let mut all = Vec::new();
        ledger.rows(0, |minute, d, c| all.push((minute, d.client.to_string(), c.calls))).unwrap();
        all.sort();
        all
    }

    #[test]
    fn counts_survive_minutes_restarts_and_repeated_flushes() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let call = |client: &str, now| ledger.add(dimensions(client), now, |c| c.calls += 1);
        call("a", 60_000);
        assert_eq!(ledger.flush().unwrap(), 1);
        call("a", 61_000);
        call("b", 62_000);
        call("a", 120_000);
        ledger.flush().unwrap();
        assert_eq!(ledger.flush().unwrap(), 0);
        let before = [(1, "a".to_owned(), 2), (1, "b".to_owned(), 1), (2, "a".to_owned(), 1)];
        assert_eq!(totals(&ledger), before);
        drop(ledger);
        // A process that starts within the same minute adds to it.
        let ledger = Ledger::open(dir.path()).unwrap();
        ledger.add(dimensions("a"), 121_000, |c| c.calls += 1);
        ledger.flush().unwrap();
        assert_eq!(totals(&ledger).iter().map(|r| r.2).sum::<u64>(), 5);
    }

    #[test]
    fn a_minute_holds_a_bounded_number_of_rows() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        for i in 0..MAX_ROWS + 50 {
            ledger.add(dimensions(&i.to_string()), 60_000, |c| c.calls += 1);
        }
        assert!(ledger.minute.lock().rows.len() <= MAX_ROWS + 1);
        ledger.flush().unwrap();
        assert!(totals(&ledger).contains(&(1, "other".into(), 50)));
    }
}
