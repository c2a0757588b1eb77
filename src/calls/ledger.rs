//! The ledger: counts by minute, in memory for the running minute, on disk within a second; with it, the runs, the
//! quotas and the names of credentials.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::known::Known;
use super::names::Names;
use super::packed::Packed;
use super::quota::Quotas;
use super::row::{Counts, Dimensions};
use super::runs::Runs;
use super::tiers::{Reach, Tier, Tiers};
use crate::github::credentials::Learned;

/// The directory below the data directory; its number is the format's.
pub const DIRECTORY: &str = "ledger-v2";
/// Different rows in one minute; past that, clients are counted as `other`.
const MAX_ROWS: usize = 20_000;
/// How often the rows reach the disk.
pub const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// sled's page cache, in bytes.
const PAGE_CACHE: u64 = 4 << 20;

type Hashing = foldhash::fast::RandomState;

/// How long things are kept.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// A run that makes no call for so long has ended.
    pub run_idle: Duration,
    /// A run's inventory.
    pub runs: Duration,
}

impl Default for Keep {
    fn default() -> Self {
        Keep { run_idle: Duration::from_secs(600), runs: Duration::from_secs(30 * 86_400) }
    }
}

/// Counts calls.
pub struct Ledger {
    db: sled::Db,
    tiers: Tiers,
    names: Names,
    pub runs: Runs,
    pub quotas: Quotas,
    pub known: Known,
    keep: Keep,
    /// Tells rows of this process from those of an earlier one in the same minute.
    start: u32,
    minute: Mutex<Minute>,
    /// One flush at a time: rows are totals, and an older one must not come after a newer.
    flushing: Mutex<()>,
    /// What was learned of credentials since the last flush.
    learned: Mutex<Vec<Learned>>,
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
    pub fn open(data_dir: &Path, keep: Keep) -> io::Result<Ledger> {
        let path = data_dir.join(DIRECTORY);
        crate::tls::files::make_private(&path)?;
        Ledger::try_open(&path, keep).or_else(|error| {
            let aside = data_dir.join(format!("{DIRECTORY}.broken.{}", seconds_now()));
            std::fs::rename(&path, &aside)?;
            tracing::error!(%error, kept = %aside.display(), "the ledger cannot be read; starting a new one");
            Ledger::try_open(&path, keep)
        })
    }

    fn try_open(path: &Path, keep: Keep) -> io::Result<Ledger> {
        let db = sled::Config::new().path(path).cache_capacity(PAGE_CACHE).flush_every_ms(None).open()?;
        Ok(Ledger {
            tiers: Tiers::open(&db)?,
            names: Names::open(&db)?,
            runs: Runs::open(&db)?,
            quotas: Quotas::open(&db)?,
            known: Known::open(&db)?,
            db,
            keep,
            start: u32::from_be_bytes(crate::tls::files::random()),
            minute: Mutex::default(),
            flushing: Mutex::default(),
            learned: Mutex::default(),
            other: "other".into(),
        })
    }

    /// Adds to the row of these dimensions, and to those of the run, if there is one. `now` in milliseconds
    /// since 1970.
    pub fn add(&self, mut dimensions: Dimensions, run: &Arc<str>, counts: &Counts, now: u64) {
        if !run.is_empty() {
            self.runs.add(run, &dimensions, counts, now);
        }
        let number = u32::try_from(now / 60_000).unwrap_or(u32::MAX);
        let mut minute = self.minute.lock();
        // A clock that is set back counts into the minute that it was: hours that are summed up stay so.
        if minute.number < number {
            let before = minute.number;
            let rows = std::mem::take(&mut minute.rows);
            let late = rows.into_iter().filter(|(_, (_, dirty))| *dirty);
            minute.waiting.extend(late.map(|(dimensions, (counts, _))| ((before, dimensions), counts)));
            minute.number = number;
        }
        if minute.rows.len() >= MAX_ROWS && !minute.rows.contains_key(&dimensions) {
            dimensions.client = self.other.clone();
        }
        let row = minute.rows.entry(dimensions).or_default();
        row.0.merge(counts);
        row.1 = true;
    }

    /// Takes up what an answer told of credentials.
    pub fn learn(&self, learned: Vec<Learned>) {
        if learned.is_empty() {
            return;
        }
        for learned in &learned {
            if let Learned::Principal(id, principal) = learned {
                self.quotas.rename(&id.nickname(), &principal.name());
            }
        }
        self.learned.lock().extend(learned);
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
        let written = changed.iter().try_for_each(|(minute, dimensions, counts)| {
            self.tiers.insert(*minute, self.start, &Packed::of(dimensions, &self.names)?, counts)
        });
        let beside = || {
            self.runs.flush(&|dimensions| Packed::of(dimensions, &self.names))?;
            self.quotas.flush()?;
            let learned = std::mem::take(&mut *self.learned.lock());
            self.known.remember(&learned, seconds_now() * 1000)?;
            self.db.flush().map(drop).map_err(io::Error::other)
        };
        if let Err(error) = written.and_then(|()| beside()) {
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

    /// Ends runs that are silent, sums up hours and days that are over, forgets what is old. Does a part of it;
    /// says whether there is more. `now` in milliseconds since 1970.
    pub fn tidy(&self, now: u64) -> io::Result<bool> {
        self.runs.end_idle(self.keep.run_idle, now);
        let oldest = now.saturating_sub(u64::try_from(self.keep.runs.as_millis()).unwrap_or(u64::MAX));
        self.runs.forget(oldest)?;
        self.quotas.retain((now / 1000).saturating_sub(2 * 86_400))?;
        let minute = u32::try_from(now / 60_000).unwrap_or(u32::MAX);
        self.tiers.roll_up(minute, self.names.number(&self.other)?)
    }

    /// Where the rows for a time lie, and how far each kind reaches.
    pub(super) fn reach(&self) -> Reach {
        *self.tiers.reach.lock()
    }

    pub(super) fn rows(&self, part: (Tier, u32, u32), each: impl FnMut(u32, Packed, Counts)) -> io::Result<()> {
        self.tiers.rows(part, each)
    }

    pub(super) fn names(&self) -> io::Result<HashMap<u32, Arc<str>, Hashing>> {
        self.names.all()
    }
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
