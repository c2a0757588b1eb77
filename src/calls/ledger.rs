//! The ledger: counts by minute, in memory for the running minute, on disk within a second; with it, the runs, the
//! quotas and the names of credentials.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use indexmap::IndexMap;
use parking_lot::Mutex;

use super::known::Known;
use super::names::Names;
use super::packed::{Packed, Rows};
use super::quota::Quotas;
use super::row::{Counts, Dimensions};
use super::runs::Runs;
use super::tiers::{Reach, Tier, Tiers};
use crate::disk::open_database;
use crate::github::credentials::Learned;

/// The directory below the data directory; its number is the format's.
pub const DIRECTORY: &str = "ledger-v2";
/// How far a clock may be set back within a minute that is counted, in minutes: further, it was wrong before.
const SET_BACK: u32 = 5;
/// Parts of minutes that wait for a disk that fails; past that, the oldest are given up.
const MAX_LATE: usize = 10_000;
/// Different rows in one minute; past that, clients and credentials are counted as `other`.
const MAX_ROWS: usize = 20_000;
/// How often the rows reach the disk.
pub const FLUSH_EVERY: Duration = Duration::from_secs(1);

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
    minute: Mutex<Minute>,
    /// One flush at a time: rows are totals, and an older one must not come after a newer.
    flushing: Mutex<()>,
    /// What was learned of credentials since the last flush.
    learned: Mutex<Vec<Learned>>,
    other: Arc<str>,
}

/// Rows that lie together on disk.
const TOGETHER: usize = 64;

#[derive(Default)]
struct Minute {
    /// Since 1970.
    number: u32,
    /// Tells its parts from those of an earlier time that the same minute was counted: by another process, or before the
    /// clock was set back.
    start: u32,
    /// In the order in which they came: so many at a time lie together on disk.
    rows: IndexMap<Dimensions, Counts, Hashing>,
    /// Which of these parts have changed since they were written.
    dirty: Vec<bool>,
    /// Parts of the minutes before that are not on disk yet.
    late: Vec<Part>,
}

/// Rows that lie together: of which minute, which part of it.
struct Part {
    minute: u32,
    start: u32,
    number: usize,
    rows: Vec<(Dimensions, Counts)>,
}

impl Minute {
    /// The parts that have changed, which count as written from now on.
    fn take_dirty(&mut self) -> Vec<Part> {
        let mut parts = std::mem::take(&mut self.late);
        for (number, dirty) in self.dirty.iter_mut().enumerate().filter(|(_, dirty)| **dirty) {
            *dirty = false;
            let range = number * TOGETHER..((number + 1) * TOGETHER).min(self.rows.len());
            let rows = self.rows.get_range(range).expect("it is within");
            let rows = rows.iter().map(|(dimensions, counts)| (dimensions.clone(), counts.clone())).collect();
            parts.push(Part { minute: self.number, start: self.start, number, rows });
        }
        parts
    }

    /// Takes back what could not be written. What was counted since is newer than what failed.
    fn take_back(&mut self, parts: Vec<Part>) {
        for part in parts {
            if (part.minute, part.start) == (self.number, self.start) {
                self.dirty[part.number] = true;
            } else if self.late.iter().all(|l| (l.minute, l.start, l.number) != (part.minute, part.start, part.number))
            {
                self.late.push(part);
            }
        }
        if let Some(surplus) = self.late.len().checked_sub(MAX_LATE).filter(|n| *n > 0) {
            tracing::error!(parts = surplus, "counts that could not be written for too long are given up");
            self.late.drain(..surplus);
        }
    }

    fn begin(&mut self, number: u32) {
        let late = self.take_dirty();
        self.late = late;
        self.number = number;
        self.start = u32::from_be_bytes(crate::tls::files::random());
        self.rows.clear();
        self.dirty.clear();
        if self.rows.capacity() > 4 * TOGETHER {
            self.rows = IndexMap::default();
        }
    }

    fn add(&mut self, dimensions: Dimensions, counts: &Counts) {
        let entry = self.rows.entry(dimensions);
        let part = entry.index() / TOGETHER;
        entry.or_default().merge(counts);
        if self.dirty.len() <= part {
            self.dirty.resize(part + 1, false);
        }
        self.dirty[part] = true;
    }
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
        let db = open_database(path, None)?;
        Ok(Ledger {
            tiers: Tiers::open(&db)?,
            names: Names::open(&db)?,
            runs: Runs::open(&db)?,
            quotas: Quotas::open(&db)?,
            known: Known::open(&db)?,
            db,
            keep,
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
        // A clock that is set back a little counts into the minute that it was: hours that are summed up stay so.
        if minute.number < number || minute.number - number > SET_BACK {
            minute.begin(number);
        }
        if minute.rows.len() >= MAX_ROWS && !minute.rows.contains_key(&dimensions) {
            dimensions.client = self.other.clone();
            dimensions.credential = self.other.clone();
        }
        minute.add(dimensions, counts);
    }

    /// What the operator calls a credential from now on: also in what was counted before.
    pub fn name_credential(&self, digits: &str, name: &str) -> io::Result<()> {
        self.known.give(digits, name)?;
        self.quotas.rename(&format!("credential:{digits}"), &name.into());
        Ok(())
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
        let parts = self.minute.lock().take_dirty();
        let written = parts.iter().try_for_each(|part| {
            let pack = |(dimensions, counts): &(Dimensions, Counts)| -> io::Result<_> {
                Ok((Packed::of(dimensions, &self.names)?, counts.clone()))
            };
            let rows: Rows = part.rows.iter().map(pack).collect::<Result<_, _>>()?;
            self.tiers.insert(part.minute, part.start, u32::try_from(part.number).unwrap_or(u32::MAX), &rows)
        });
        let beside = || {
            self.runs.flush(&|dimensions| Packed::of(dimensions, &self.names))?;
            self.quotas.flush()?;
            let learned = std::mem::take(&mut *self.learned.lock());
            if let Err(error) = self.known.remember(&learned, seconds_now() * 1000) {
                self.learned.lock().splice(..0, learned);
                return Err(error);
            }
            self.db.flush().map(drop).map_err(io::Error::other)
        };
        let rows = parts.iter().map(|part| part.rows.len()).sum();
        if let Err(error) = written.and_then(|()| beside()) {
            // Parts are totals of their minute: writing one twice does no harm.
            self.minute.lock().take_back(parts);
            return Err(error);
        }
        Ok(rows)
    }

    /// Ends runs that are silent, sums up hours and days that are over, forgets what is old. Does a part of it;
    /// says whether there is more. `now` in milliseconds since 1970.
    pub fn tidy(&self, now: u64) -> io::Result<bool> {
        self.runs.end_idle(self.keep.run_idle, now);
        let oldest = now.saturating_sub(u64::try_from(self.keep.runs.as_millis()).unwrap_or(u64::MAX));
        self.runs.forget(oldest)?;
        self.quotas.retain((now / 1000).saturating_sub(2 * 86_400))?;
        // What is summed up stays so: not while some of it is still to be written.
        if !self.minute.lock().late.is_empty() {
            return Ok(false);
        }
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
