//! What is left of each credential's quota, how much of it we used, and how much others did.
//!
//! GitHub says with each answer how much was used since the last reset, by whoever used it; what we know of
//! that is what we were charged. (docs.github.com, "Rate limits for the REST API".)

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::github::limits::Quota;

/// Credentials and resources that are told apart; past that, those whose time is over give way, or the new one.
const MAX_WINDOWS: usize = 2_000;
/// Resets that differ by less than this, in seconds, are of the same hour: GitHub's clocks differ.
const SAME_RESET: u64 = 60;
/// No window is as long as this, in seconds: a reset that is further away was a mistake.
const DAY: u64 = 86_400;
/// How many minutes the present rate is taken from.
const RATE_OVER: u32 = 15;

/// One credential's quota in one rate-limit resource, until its reset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    pub limit: u64,
    pub remaining: u64,
    /// Seconds since 1970.
    pub reset: u64,
    /// What GitHub counts since the last reset.
    pub used: u64,
    /// What we were charged of it.
    pub used_by_us: u64,
    /// Milliseconds since 1970.
    pub seen: u64,
    /// `used` at the end of the last minutes.
    pub(crate) samples: VecDeque<(u32, u64)>,
}

impl Window {
    /// What was used without us, as far as we know.
    pub fn used_by_others(&self) -> u64 {
        self.used.saturating_sub(self.used_by_us)
    }

    /// Used per minute, lately.
    pub fn rate(&self) -> f64 {
        match (self.samples.front(), self.samples.back()) {
            (Some((from, before)), Some((to, now))) if to > from => {
                now.saturating_sub(*before) as f64 / f64::from(to - from)
            }
            _ => 0.0,
        }
    }

    /// When nothing will be left at the present rate, in seconds since 1970; none: not before the reset.
    pub fn exhausted_at(&self) -> Option<u64> {
        if self.remaining == 0 {
            return Some(self.seen / 1000);
        }
        let rate = self.rate();
        if rate <= 0.0 {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded by the comparison after")]
        let at = self.seen / 1000 + (self.remaining as f64 / rate * 60.0).min(1e9) as u64;
        (at < self.reset).then_some(at)
    }

    /// Whether its hour is over.
    pub fn is_over(&self, now: u64) -> bool {
        self.reset <= now / 1000
    }

    fn observe(&mut self, quota: &Quota, charged: u64, now: u64) {
        let (Some(limit), Some(reset)) = (quota.limit, quota.reset) else { return };
        let (earlier, plausible) = (reset.saturating_add(SAME_RESET) < self.reset, self.reset < now / 1000 + DAY);
        if earlier && plausible {
            // An answer from before the reset that came late.
            return;
        }
        if earlier || reset > self.reset.saturating_add(SAME_RESET) {
            *self = Window { reset, remaining: limit, ..Window::default() };
        }
        let remaining = quota.remaining.unwrap_or(self.remaining);
        let used = quota.used.unwrap_or(limit.saturating_sub(remaining));
        self.limit = limit;
        self.used_by_us += charged;
        self.seen = now;
        // Answers overtake each other: what was used only grows.
        if used >= self.used {
            self.used = used;
            self.remaining = remaining;
        }
        let minute = u32::try_from(now / 60_000).unwrap_or(u32::MAX);
        match self.samples.back_mut() {
            Some((last, sample)) if *last == minute => *sample = self.used,
            _ => self.samples.push_back((minute, self.used)),
        }
        while self.samples.front().is_some_and(|(first, _)| first + RATE_OVER < minute) {
            self.samples.pop_front();
        }
    }
}

/// Who, and which rate-limit resource.
type Whose = (Arc<str>, &'static str);

struct Kept {
    window: Window,
    changed: bool,
}

/// All windows.
pub struct Quotas {
    tree: sled::Tree,
    windows: Mutex<HashMap<Whose, Kept, foldhash::fast::RandomState>>,
    /// Names that are no longer used, and are on disk still.
    gone: Mutex<Vec<Whose>>,
}

impl Quotas {
    pub(super) fn open(db: &sled::Db) -> io::Result<Quotas> {
        let tree = db.open_tree("quotas")?;
        let mut windows = HashMap::default();
        for pair in tree.iter() {
            let (_, value) = pair?;
            let Ok((name, resource, window)) = postcard::from_bytes::<(Arc<str>, String, Window)>(&value) else {
                continue;
            };
            windows.insert((name, Quota::resource(&resource)), Kept { window, changed: false });
        }
        Ok(Quotas { tree, windows: Mutex::new(windows), gone: Mutex::default() })
    }

    /// What was used since the last answer to this credential, within the same hour; none if there was none.
    pub fn used_since(&self, credential: &Arc<str>, quota: &Quota) -> Option<u64> {
        let windows = self.windows.lock();
        let window = &windows.get(&(credential.clone(), quota.resource.unwrap_or("core")))?.window;
        (quota.reset?.abs_diff(window.reset) <= SAME_RESET).then(|| quota.used?.checked_sub(window.used)).flatten()
    }

    /// Notes what GitHub said with an answer, and what of it we were charged. `now` in milliseconds since 1970.
    pub fn observe(&self, credential: &Arc<str>, quota: &Quota, charged: u64, now: u64) {
        if quota.limit.is_none() {
            return;
        }
        let whose = (credential.clone(), quota.resource.unwrap_or("core"));
        let mut windows = self.windows.lock();
        if windows.len() >= MAX_WINDOWS && !windows.contains_key(&whose) {
            windows.retain(|_, kept| !kept.window.is_over(now));
            if windows.len() >= MAX_WINDOWS {
                return;
            }
        }
        let kept = windows.entry(whose).or_insert_with(|| Kept { window: Window::default(), changed: true });
        kept.window.observe(quota, charged, now);
        kept.changed = true;
    }

    /// A credential is known by another name from now on.
    pub fn rename(&self, from: &str, to: &Arc<str>) {
        let mut windows = self.windows.lock();
        let moved: Vec<Whose> = windows.keys().filter(|(name, _)| **name == *from).cloned().collect();
        for whose in moved {
            let Some(kept) = windows.remove(&whose) else { continue };
            self.gone.lock().push(whose.clone());
            windows.entry((to.clone(), whose.1)).or_insert(Kept { changed: true, ..kept });
        }
    }

    /// All windows, those with least left first.
    pub fn all(&self) -> Vec<(Arc<str>, &'static str, Window)> {
        let windows = self.windows.lock();
        let mut all: Vec<_> =
            windows.iter().map(|((name, resource), kept)| (name.clone(), *resource, kept.window.clone())).collect();
        drop(windows);
        let left = |w: &Window| w.remaining.saturating_mul(1_000_000) / w.limit.max(1);
        all.sort_by(|a, b| (left(&a.2), &a.0, a.1).cmp(&(left(&b.2), &b.0, b.1)));
        all
    }

    /// Writes what has changed.
    pub(super) fn flush(&self) -> io::Result<()> {
        for whose in std::mem::take(&mut *self.gone.lock()) {
            self.tree.remove(key(&whose))?;
        }
        let changed: Vec<(Whose, Window)> = {
            let mut windows = self.windows.lock();
            let all = windows.iter_mut();
            all.filter_map(|(whose, kept)| {
                std::mem::take(&mut kept.changed).then(|| (whose.clone(), kept.window.clone()))
            })
            .collect()
        };
        for (whose, window) in changed {
            let value = postcard::to_stdvec(&(&whose.0, whose.1, &window)).map_err(io::Error::other)?;
            if let Err(error) = self.tree.insert(key(&whose), value) {
                // All of them are written again with the next change.
                self.windows.lock().values_mut().for_each(|kept| kept.changed = true);
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Forgets those that ended before `before`, in seconds since 1970.
    pub(super) fn retain(&self, before: u64) -> io::Result<()> {
        let mut gone = Vec::new();
        self.windows.lock().retain(|whose, kept| {
            let keep = kept.window.reset >= before;
            if !keep {
                gone.push(whose.clone());
            }
            keep
        });
        gone.iter().try_for_each(|whose| self.tree.remove(key(whose)).map(drop)).map_err(io::Error::other)
    }
}

fn key(whose: &Whose) -> Vec<u8> {
    [whose.0.as_bytes(), b"\0", whose.1.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(used: u64, reset: u64) -> Quota {
        Quota {
            limit: Some(5000),
            remaining: Some(5000 - used),
            used: Some(used),
            reset: Some(reset),
            resource: Some("core"),
        }
    }

    #[test]
    fn tells_us_from_others_and_when_it_runs_out() {
        let mut window = Window::default();
        let minute = |n: u64| n * 60_000;
        window.observe(&said(100, 7200), 1, minute(0));
        assert_eq!((window.used_by_us, window.used_by_others(), window.exhausted_at()), (1, 99, None));
        window.observe(&said(600, 7201), 1, minute(1));
        assert_eq!((window.rate(), window.remaining), (500.0, 4400));
        assert_eq!(window.exhausted_at(), Some(60 + 4400 * 60 / 500));
        // One that was overtaken.
        window.observe(&said(500, 7200), 0, minute(1));
        assert_eq!((window.used, window.used_by_us), (600, 2));
        // The next hour, and an answer of the one before.
        window.observe(&said(3, 10_800), 1, minute(60));
        window.observe(&said(4000, 7200), 1, minute(60));
        assert_eq!((window.used, window.used_by_us, window.used_by_others()), (3, 1, 2));
        assert_eq!(window.exhausted_at(), None, "no rate yet");
    }

    #[test]
    fn windows_survive_a_restart_and_a_new_name() {
        let dir = tempfile::tempdir().unwrap();
        let db = sled::open(dir.path()).unwrap();
        let quotas = Quotas::open(&db).unwrap();
        quotas.observe(&"credential:1".into(), &said(10, 7200), 1, 1000);
        quotas.rename("credential:1", &"user:o".into());
        quotas.flush().unwrap();
        let quotas = Quotas::open(&db).unwrap();
        let all = quotas.all();
        assert_eq!((&*all[0].0, all[0].1, all[0].2.used_by_us, all.len()), ("user:o", "core", 1, 1));
        quotas.retain(7201).unwrap();
        assert!(Quotas::open(&db).unwrap().all().is_empty());
    }
}
