//! Minutes, hours and days: which rows answer for which time, and how the fine ones become coarse ones.
//!
//! Once an hour is over, its minutes are summed up into rows for the hour, and a day's hours into rows for the day.
//! Minutes go after two days, hours after thirty, days after four hundred. A report reads the coarsest rows that fit
//! its time: it takes as long after ten million calls as the different rows of an hour are many.

use std::collections::HashMap;
use std::io;

use super::packed::{Packed, Rows};
use super::row::Counts;

pub(super) const HOUR: u32 = 60;
pub(super) const DAY: u32 = 24 * HOUR;
/// How long minutes, hours and days are kept, in minutes.
const KEEP: [u32; 3] = [2 * DAY, 30 * DAY, 400 * DAY];
/// How long after its end an hour or a day is summed up, in minutes: the last rows may still be on their way.
const SETTLED: u32 = 2;
/// Different rows of an hour or a day; past that, clients and credentials are counted as `other`.
const MAX_ROWS: usize = 50_000;
/// Values that are removed at one time.
const REMOVE: usize = 5_000;
/// Rows of an hour or a day that lie together.
const TOGETHER: usize = 256;

/// How fine rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tier {
    Minute,
    Hour,
    Day,
}

impl Tier {
    const ALL: [Tier; 3] = [Tier::Minute, Tier::Hour, Tier::Day];

    fn len(self) -> u32 {
        match self {
            Tier::Minute => 1,
            Tier::Hour => HOUR,
            Tier::Day => DAY,
        }
    }

    fn down(self, minute: u32) -> u32 {
        minute - minute % self.len()
    }

    fn up(self, minute: u32) -> u32 {
        minute.checked_next_multiple_of(self.len()).unwrap_or(u32::MAX)
    }
}

/// How far each tier reaches, in minutes since 1970: rows from `from[tier]` on, complete until `done[tier]`. Minutes are
/// always complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Reach {
    from: [u32; 3],
    done: [u32; 3],
}

impl Reach {
    /// Which rows answer for the time from `since` to `until`, each part once. What is only kept by the hour or the
    /// day is taken whole. What is coarser than `coarsest` only
    /// answers where nothing finer is kept.
    pub fn plan(&self, since: u32, until: u32, coarsest: Tier) -> Vec<(Tier, u32, u32)> {
        let kept_as = |minute: u32| match minute {
            m if m >= self.from[Tier::Minute as usize] => Tier::Minute,
            m if m >= self.from[Tier::Hour as usize] => Tier::Hour,
            _ => Tier::Day,
        };
        let (since, until) = (kept_as(since).down(since), kept_as(until.saturating_sub(1)).up(until));
        let mut plan = Vec::new();
        self.part(since, until, Tier::Day, coarsest, &mut plan);
        plan.sort_by_key(|(_, from, _)| *from);
        plan
    }

    fn part(&self, since: u32, until: u32, tier: Tier, coarsest: Tier, plan: &mut Vec<(Tier, u32, u32)>) {
        if since >= until {
            return;
        }
        let finer = match tier {
            Tier::Minute => return plan.push((tier, since, until)),
            Tier::Hour => Tier::Minute,
            Tier::Day => Tier::Hour,
        };
        // Whole hours or days that are complete; the finer ones where they are wanted and still there.
        let mut to = tier.down(until.min(self.done[tier as usize]));
        if tier > coarsest {
            to = to.min(self.from[finer as usize]);
        }
        let from = tier.up(since);
        if from >= to {
            return self.part(since, until, finer, coarsest, plan);
        }
        plan.push((tier, from, to));
        self.part(since, from, finer, coarsest, plan);
        self.part(to, until, finer, coarsest, plan);
    }
}

/// The three trees.
pub(super) struct Tiers {
    trees: [sled::Tree; 3],
    marks: sled::Tree,
    pub reach: parking_lot::Mutex<Reach>,
}

impl Tiers {
    pub fn open(db: &sled::Db) -> io::Result<Tiers> {
        let marks = db.open_tree("marks")?;
        let reach = marks.get("reach")?.and_then(|v| postcard::from_bytes(&v).ok()).unwrap_or_default();
        let trees = [db.open_tree("minutes")?, db.open_tree("hours")?, db.open_tree("days")?];
        Ok(Tiers { trees, marks, reach: parking_lot::Mutex::new(reach) })
    }

    /// Writes some rows of a minute, in the place of what was written under the same number; `start` tells apart
    /// the times that one minute was counted.
    pub fn insert(&self, minute: u32, start: u32, number: u32, rows: &Rows) -> io::Result<()> {
        self.write(Tier::Minute, key(minute, start, number), rows)
    }

    fn write(&self, tier: Tier, key: [u8; 12], rows: &[(Packed, Counts)]) -> io::Result<()> {
        let value = postcard::to_stdvec(rows).map_err(io::Error::other)?;
        self.trees[tier as usize].insert(key, value)?;
        Ok(())
    }

    /// Calls with the rows of a part of a plan.
    pub fn rows(
        &self,
        (tier, from, to): (Tier, u32, u32),
        mut each: impl FnMut(u32, Packed, Counts),
    ) -> io::Result<()> {
        for pair in self.trees[tier as usize].range(from.to_be_bytes()..to.to_be_bytes()) {
            let (key, value) = pair?;
            let minute = minute_of(&key);
            match postcard::from_bytes::<Rows>(&value) {
                Ok(rows) => rows.into_iter().for_each(|(packed, counts)| each(minute, packed, counts)),
                Err(error) => tracing::warn!(%error, minute, "rows of the ledger cannot be read"),
            }
        }
        Ok(())
    }

    /// Sums up at most one hour and one day that are over, and removes what is too old. `other` is the name that
    /// those past the limit are counted under. Says whether there is more to do.
    pub fn roll_up(&self, now: u32, other: u32) -> io::Result<bool> {
        let mut more = false;
        for tier in [Tier::Hour, Tier::Day] {
            let finer = Tier::ALL[tier as usize - 1];
            let (done, finer_done) = {
                let reach = self.reach.lock();
                let finer_done = if finer == Tier::Minute { u32::MAX } else { reach.done[finer as usize] };
                (reach.done[tier as usize], finer_done)
            };
            // Nothing at all lies before the first row.
            let Some(first) = self.trees[finer as usize].range(done.to_be_bytes()..).keys().next().transpose()? else {
                continue;
            };
            let from = tier.down(minute_of(&first)).max(done);
            let to = from + tier.len();
            if to + SETTLED > now || to > finer_done {
                // What came before is empty, and so complete.
                let empty_until = tier.down(from.min(now.saturating_sub(SETTLED)).min(finer_done));
                self.mark(|reach| reach.done[tier as usize] = done.max(empty_until))?;
                continue;
            }
            let mut sums: HashMap<Packed, Counts, foldhash::fast::RandomState> = HashMap::default();
            self.rows((finer, from, to), |_, mut packed, counts| {
                if sums.len() >= MAX_ROWS && !sums.contains_key(&packed) {
                    packed.client = other;
                    packed.credential = other;
                }
                sums.entry(packed).or_default().merge(&counts);
            })?;
            // What an attempt that was cut short has left would be counted twice.
            let tree = &self.trees[tier as usize];
            for left in tree.range(from.to_be_bytes()..to.to_be_bytes()).keys() {
                tree.remove(left?)?;
            }
            let sums: Rows = sums.into_iter().collect();
            for (rows, number) in sums.chunks(TOGETHER).zip(0..) {
                self.write(tier, key(from, 0, number), rows)?;
            }
            self.mark(|reach| reach.done[tier as usize] = to)?;
            more = true;
        }
        for tier in Tier::ALL {
            more |= self.remove_old(tier, now)?;
        }
        Ok(more)
    }

    fn remove_old(&self, tier: Tier, now: u32) -> io::Result<bool> {
        let reach = *self.reach.lock();
        let coarser = Tier::ALL.get(tier as usize + 1);
        let summed_up = coarser.map_or(u32::MAX, |coarser| reach.done[*coarser as usize]);
        let until = Tier::Day.down(now.saturating_sub(KEEP[tier as usize])).min(summed_up);
        if until <= reach.from[tier as usize] {
            return Ok(false);
        }
        // First the mark: what is half removed is not read any more.
        self.mark(|reach| reach.from[tier as usize] = until)?;
        let tree = &self.trees[tier as usize];
        loop {
            let some: Vec<_> = tree.range(..until.to_be_bytes()).keys().take(REMOVE).collect::<Result<_, _>>()?;
            if some.is_empty() {
                return Ok(false);
            }
            for key in some {
                tree.remove(key)?;
            }
        }
    }

    fn mark(&self, change: impl FnOnce(&mut Reach)) -> io::Result<()> {
        let mut reach = self.reach.lock();
        let before = *reach;
        change(&mut reach);
        if *reach != before {
            self.marks.insert("reach", postcard::to_stdvec(&*reach).map_err(io::Error::other)?)?;
        }
        Ok(())
    }
}

fn key(minute: u32, start: u32, number: u32) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&minute.to_be_bytes());
    key[4..8].copy_from_slice(&start.to_be_bytes());
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

fn minute_of(key: &[u8]) -> u32 {
    u32::from_be_bytes(key[..4].try_into().expect("keys have 12 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Tier::{Day, Hour, Minute};

    #[test]
    fn each_part_of_a_time_is_answered_for_once() {
        let reach = Reach { from: [8 * DAY, 2 * DAY, 0], done: [0, 10 * DAY + 5 * HOUR, 10 * DAY] };
        for (since, until, coarsest, expected) in [
            // The last ten minutes.
            (10 * DAY + 370, 10 * DAY + 380, Day, vec![(Minute, 10 * DAY + 370, 10 * DAY + 380)]),
            // Across an hour.
            (
                10 * DAY + 110,
                10 * DAY + 310,
                Day,
                vec![
                    (Minute, 10 * DAY + 110, 10 * DAY + 120),
                    (Hour, 10 * DAY + 120, 10 * DAY + 300),
                    (Minute, 10 * DAY + 300, 10 * DAY + 310),
                ],
            ),
            // From the middle of a day that is kept by the hour.
            (
                5 * DAY + 90,
                10 * DAY + 10,
                Day,
                vec![(Hour, 5 * DAY + 60, 6 * DAY), (Day, 6 * DAY, 10 * DAY), (Minute, 10 * DAY, 10 * DAY + 10)],
            ),
            // By the hour, as far as there are hours.
            (DAY + 7, 3 * DAY, Hour, vec![(Day, DAY, 2 * DAY), (Hour, 2 * DAY, 3 * DAY)]),
            (0, 0, Day, vec![]),
        ] {
            let plan = reach.plan(since, until, coarsest);
            assert_eq!(plan, expected, "{since} {until} {coarsest:?}");
            assert!(plan.windows(2).all(|w| w[0].2 == w[1].1), "without gaps");
        }
    }
}
