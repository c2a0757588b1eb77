//! Runs: the calls that a client made under one label, from the first until it says that the run has ended, or makes
//! no more of them.
//!
//! A run's rows are kept apart from the minutes': by run, they would be as many as there are runs, and no minute, hour or
//! day could be summed up.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use indexmap::IndexMap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::packed::{Packed, Rows};
use super::row::{Counts, Dimensions, Sum};

/// Runs that are open at once; past that, those that were silent for longest are ended.
const MAX_OPEN: usize = 20_000;
/// Rows that wait for the disk at most, and that a run has at most: past that, routes and credentials are counted as
/// `other`.
const MAX_WAITING: usize = 100_000;
const MAX_ROWS: usize = 1_000;
/// How many of a client's runs its average is taken over.
const AVERAGED: usize = 100;
/// Clients whose average is kept.
const MAX_AVERAGES: usize = 50_000;
/// Runs that are forgotten at one time.
const FORGET: usize = 2_000;

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub client: Arc<str>,
    pub run: Arc<str>,
    /// Milliseconds since 1970, as are all times here.
    pub started: u64,
    pub last: u64,
    pub ended: Option<u64>,
    pub sum: Sum,
}

/// A run that has ended, for the metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub client: Arc<str>,
    pub calls: u64,
    pub charged: u64,
    /// Over the client's last runs: how many, and the average of calls and of charged calls.
    pub average: Average,
}

/// What a client's last runs came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Average {
    pub runs: u64,
    pub calls: u64,
    pub charged: u64,
}

impl Average {
    pub fn calls_per_run(&self) -> f64 {
        self.calls as f64 / self.runs.max(1) as f64
    }

    pub fn charged_per_run(&self) -> f64 {
        self.charged as f64 / self.runs.max(1) as f64
    }
}

/// What is counted together, past the limits.
const OTHER: &str = "other";

/// Who, and under which label.
type Name = (Arc<str>, Arc<str>);
/// When a run was started, and a number beside: runs are in order of time.
type Id = u64;

type Waiting = IndexMap<Dimensions, Counts, foldhash::fast::RandomState>;

#[derive(Default)]
struct State {
    open: HashMap<Name, (Id, Run, bool), foldhash::fast::RandomState>,
    /// What was counted since the last flush.
    waiting: HashMap<Id, Waiting, foldhash::fast::RandomState>,
    waiting_rows: usize,
    /// Runs that ended, and are not on disk as such yet.
    ending: Vec<(Id, Run)>,
    sequence: u16,
}

pub struct Runs {
    /// Runs that are open, and those that have ended, by id: what is told of each, and behind it its rows.
    open: sled::Tree,
    ended: sled::Tree,
    averages: sled::Tree,
    averaged: AtomicUsize,
    state: Mutex<State>,
    told: Mutex<Vec<Ended>>,
}

impl Runs {
    pub(super) fn open(db: &sled::Db) -> io::Result<Runs> {
        let open = db.open_tree("runs-open")?;
        let ended = db.open_tree("runs-ended")?;
        let mut state = State::default();
        for pair in open.iter() {
            let (key, value) = pair?;
            // Written as ended, and cut off before it was no longer open.
            if ended.contains_key(&key)? {
                open.remove(&key)?;
            } else if let Some((id, run)) = read(&key, &value) {
                state.open.insert((run.client.clone(), run.run.clone()), (id, run, false));
            }
        }
        let averages = db.open_tree("runs-averages")?;
        Ok(Runs {
            open,
            ended,
            averaged: AtomicUsize::new(averages.len()),
            averages,
            state: Mutex::new(state),
            told: Mutex::default(),
        })
    }

    /// Counts a call of a run.
    pub(super) fn add(&self, run: &Arc<str>, dimensions: &Dimensions, counts: &Counts, now: u64) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let name = (dimensions.client.clone(), run.clone());
        if state.open.len() >= MAX_OPEN && !state.open.contains_key(&name) {
            state.end_silent();
        }
        let sequence = &mut state.sequence;
        let (id, open, changed) = state.open.entry(name).or_insert_with_key(|(client, run)| {
            *sequence = sequence.wrapping_add(1);
            let begun = Run {
                client: client.clone(),
                run: run.clone(),
                started: now,
                last: now,
                ended: None,
                sum: Sum::default(),
            };
            (now << 16 | u64::from(*sequence), begun, true)
        });
        (open.last, *changed) = (now.max(open.last), true);
        open.sum.add(dimensions.outcome, dimensions.status, counts);
        let waiting = state.waiting.entry(*id).or_default();
        let room = waiting.len() < MAX_ROWS && state.waiting_rows < MAX_WAITING;
        match waiting.get_mut(dimensions) {
            Some(sum) => sum.merge(counts),
            None if room => {
                waiting.insert(dimensions.clone(), counts.clone());
                state.waiting_rows += 1;
            }
            None => {
                let other = Dimensions { route: OTHER.into(), credential: OTHER.into(), ..dimensions.clone() };
                waiting.entry(other).or_default().merge(counts);
            }
        }
    }

    /// Ends all open runs of this label, and says how many there were.
    pub fn end(&self, run: &str, now: u64) -> usize {
        self.state.lock().end_where(now, |open| *open.run == *run)
    }

    /// Ends the runs that have made no call for `idle`.
    pub(super) fn end_idle(&self, idle: Duration, now: u64) {
        let idle = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX);
        self.state.lock().end_where(now, |open| now.saturating_sub(open.last) >= idle);
    }

    /// The runs that ended since this was last asked.
    pub fn take_ended(&self) -> Vec<Ended> {
        std::mem::take(&mut *self.told.lock())
    }

    /// Writes what has changed, all of it or nothing: what fails is tried again. Called by one at a time.
    pub(super) fn flush(&self, pack: &dyn Fn(&Dimensions) -> io::Result<Packed>) -> io::Result<()> {
        let (waiting, changed, ending) = {
            let mut state = self.state.lock();
            let open = state.open.values_mut();
            let open = open.filter_map(|(id, run, changed)| std::mem::take(changed).then(|| (*id, run.clone())));
            let changed: Vec<(Id, Run)> = open.collect();
            state.waiting_rows = 0;
            (std::mem::take(&mut state.waiting), changed, std::mem::take(&mut state.ending))
        };
        if let Err(error) = self.write(&waiting, &changed, &ending, pack) {
            let mut state = self.state.lock();
            for (id, rows) in waiting {
                let again = state.waiting.entry(id).or_default();
                rows.iter().for_each(|(dimensions, counts)| again.entry(dimensions.clone()).or_default().merge(counts));
            }
            for (_, run) in changed {
                if let Some((_, _, changed)) = state.open.get_mut(&(run.client, run.run)) {
                    *changed = true;
                }
            }
            state.ending.splice(..0, ending);
            return Err(error);
        }
        for (_, run) in ending {
            let (calls, charged) = (run.sum.counts.calls, run.sum.counts.charged);
            let average = self.average_with(&run.client, calls, charged)?;
            self.told.lock().push(Ended { client: run.client, calls, charged, average });
        }
        Ok(())
    }

    fn write(
        &self,
        waiting: &HashMap<Id, Waiting, foldhash::fast::RandomState>,
        changed: &[(Id, Run)],
        ending: &[(Id, Run)],
        pack: &dyn Fn(&Dimensions) -> io::Result<Packed>,
    ) -> io::Result<()> {
        let with_rows = |id: Id, run: &Run| -> io::Result<Vec<u8>> {
            let before = self.open.get(id.to_be_bytes())?;
            let before = before.as_deref().and_then(rows_of).unwrap_or_default();
            let mut rows: IndexMap<Packed, Counts, foldhash::fast::RandomState> = before.into_iter().collect();
            for (dimensions, counts) in waiting.get(&id).into_iter().flatten() {
                let mut packed = pack(dimensions)?;
                if rows.len() >= MAX_ROWS && !rows.contains_key(&packed) {
                    packed = pack(&Dimensions { route: OTHER.into(), credential: OTHER.into(), ..dimensions.clone() })?;
                }
                rows.entry(packed).or_default().merge(counts);
            }
            postcard::to_stdvec(&(run, Rows::from_iter(rows))).map_err(io::Error::other)
        };
        let (mut open, mut ended) = (sled::Batch::default(), sled::Batch::default());
        for (id, run) in changed {
            open.insert(&id.to_be_bytes(), with_rows(*id, run)?);
        }
        for (id, run) in ending {
            ended.insert(&id.to_be_bytes(), with_rows(*id, run)?);
            open.remove(&id.to_be_bytes());
        }
        // In this order: what is in both is told of as ended.
        self.ended.apply_batch(ended)?;
        self.open.apply_batch(open)?;
        Ok(())
    }

    fn average_with(&self, client: &str, calls: u64, charged: u64) -> io::Result<Average> {
        let mut last = self.last_runs(client)?;
        last.push((calls, charged));
        let surplus = last.len().saturating_sub(AVERAGED);
        last.drain(..surplus);
        let is_new = last.len() == 1;
        if is_new && self.averaged.load(Ordering::Relaxed) >= MAX_AVERAGES {
            return Ok(averaged(&last));
        }
        self.averages.insert(client.as_bytes(), postcard::to_stdvec(&last).map_err(io::Error::other)?)?;
        self.averaged.fetch_add(usize::from(is_new), Ordering::Relaxed);
        Ok(averaged(&last))
    }

    fn last_runs(&self, client: &str) -> io::Result<Vec<(u64, u64)>> {
        let stored = self.averages.get(client.as_bytes())?;
        Ok(stored.and_then(|v| postcard::from_bytes(&v).ok()).unwrap_or_default())
    }

    /// What a client's last hundred runs came to.
    pub fn average(&self, client: &str) -> io::Result<Average> {
        Ok(averaged(&self.last_runs(client)?))
    }

    /// What the last hundred runs of each client came to.
    pub fn averages(&self) -> io::Result<Vec<(Arc<str>, Average)>> {
        let mut all = Vec::new();
        for pair in self.averages.iter() {
            let (client, value) = pair?;
            let last: Vec<(u64, u64)> = postcard::from_bytes(&value).unwrap_or_default();
            all.push((String::from_utf8_lossy(&client).into(), averaged(&last)));
        }
        Ok(all)
    }

    /// Calls with each run that was on at a time from `since` to `until`, the newest first, until that says stop.
    /// What was not flushed is not seen.
    pub fn each(&self, since: u64, until: u64, mut each: impl FnMut(Id, Run) -> bool) -> io::Result<()> {
        let started_by = until.min(u64::MAX >> 16) << 16 | 0xffff;
        for tree in [&self.open, &self.ended] {
            for pair in tree.range(..=started_by.to_be_bytes()).rev() {
                let (key, value) = pair?;
                if let Some((id, run)) = read(&key, &value).filter(|(_, run)| run.last >= since)
                    && !each(id, run)
                {
                    break;
                }
            }
        }
        Ok(())
    }

    /// The newest runs of those that were on since `since` and that are wanted.
    pub fn newest(&self, since: u64, top: usize, only: impl Fn(&Run) -> bool) -> io::Result<Vec<Run>> {
        let mut found = Vec::new();
        for tree in [&self.open, &self.ended] {
            let runs = tree.iter().rev().filter_map(|pair| match pair {
                Ok((key, value)) => read(&key, &value).map(|(_, run)| Ok(run)),
                Err(error) => Some(Err(error)),
            });
            let wanted = runs.filter(|run| run.as_ref().map_or(true, |run| run.last >= since && only(run)));
            found.extend(wanted.take(top).collect::<Result<Vec<Run>, _>>()?);
        }
        found.sort_by_key(|run| std::cmp::Reverse((run.started, run.last)));
        found.truncate(top);
        Ok(found)
    }

    /// The rows of a run.
    pub(super) fn rows(&self, id: Id, mut each: impl FnMut(&Packed, &Counts)) -> io::Result<()> {
        let key = id.to_be_bytes();
        let value = match self.open.get(key)? {
            Some(value) => Some(value),
            None => self.ended.get(key)?,
        };
        let rows = value.as_deref().and_then(rows_of).unwrap_or_default();
        rows.iter().for_each(|(packed, counts)| each(packed, counts));
        Ok(())
    }

    /// Forgets runs that were started before `before`, some at a time.
    pub(super) fn forget(&self, before: u64) -> io::Result<()> {
        let before = (before.min(u64::MAX >> 16) << 16).to_be_bytes();
        for key in self.ended.range(..before).keys().take(FORGET) {
            self.ended.remove(key?)?;
        }
        Ok(())
    }
}

impl State {
    fn end_where(&mut self, now: u64, ends: impl Fn(&Run) -> bool) -> usize {
        let before = self.ending.len();
        let ending = &mut self.ending;
        self.open.retain(|_, (id, run, _)| {
            let ends = ends(run);
            if ends {
                ending.push((*id, Run { ended: Some(now.max(run.last)), ..run.clone() }));
            }
            !ends
        });
        self.ending.len() - before
    }

    /// Ends the tenth that was silent for longest.
    fn end_silent(&mut self) {
        let mut last: Vec<u64> = self.open.values().map(|(_, run, _)| run.last).collect();
        let tenth = last.len() / 10;
        let (_, limit, _) = last.select_nth_unstable(tenth);
        let limit = *limit;
        self.end_where(limit, |run| run.last <= limit);
    }
}

fn read(key: &[u8], value: &[u8]) -> Option<(Id, Run)> {
    Some((u64::from_be_bytes(key.try_into().ok()?), postcard::take_from_bytes(value).ok()?.0))
}

/// The rows behind what is told of a run.
fn rows_of(value: &[u8]) -> Option<Rows> {
    let (_, rows) = postcard::take_from_bytes::<Run>(value).ok()?;
    postcard::from_bytes(rows).ok()
}

fn averaged(last: &[(u64, u64)]) -> Average {
    let sum = |f: fn(&(u64, u64)) -> u64| last.iter().map(f).sum();
    Average { runs: last.len() as u64, calls: sum(|r| r.0), charged: sum(|r| r.1) }
}
