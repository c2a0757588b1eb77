//! The names in the ledger, each written once and known by a number from then on.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

/// Names that are kept in memory; the rest is looked up on disk.
const IN_MEMORY: usize = 50_000;

/// Names at all: whoever invents more is counted as `other`.
const MAX: u32 = 500_000;
const OTHER: &str = "other";

type Numbers = HashMap<Arc<str>, u32, foldhash::fast::RandomState>;

/// Numbers for names. Under `t` and the text lies the number, under `n` and the number the text.
pub(super) struct Names {
    tree: sled::Tree,
    known: Mutex<Numbers>,
    next: AtomicU32,
}

impl Names {
    pub fn open(db: &sled::Db) -> io::Result<Names> {
        let tree = db.open_tree("names")?;
        let last = tree.scan_prefix(b"n").keys().next_back().transpose()?;
        let last = last.and_then(|key| Some(u32::from_be_bytes(key.get(1..)?.try_into().ok()?)));
        Ok(Names { tree, known: Mutex::default(), next: AtomicU32::new(last.map_or(0, |n| n + 1)) })
    }

    /// The number of a name, a new one if it has none. One caller at a time: the ledger's flush.
    pub fn number(&self, text: &str) -> io::Result<u32> {
        if let Some(number) = self.known.lock().get(text) {
            return Ok(*number);
        }
        let key = [b"t", text.as_bytes()].concat();
        let number = match self.tree.get(&key)?.and_then(|v| Some(u32::from_be_bytes(v.as_ref().try_into().ok()?))) {
            Some(number) => number,
            None if self.next.load(Ordering::Relaxed) >= MAX && text != OTHER => return self.number(OTHER),
            None => {
                let number = self.next.fetch_add(1, Ordering::Relaxed);
                self.tree.insert([&b"n"[..], &number.to_be_bytes()].concat(), text.as_bytes())?;
                self.tree.insert(key, &number.to_be_bytes())?;
                number
            }
        };
        let mut known = self.known.lock();
        if known.len() >= IN_MEMORY {
            known.clear();
        }
        known.insert(text.into(), number);
        Ok(number)
    }

    /// All names, by number.
    pub fn all(&self) -> io::Result<HashMap<u32, Arc<str>, foldhash::fast::RandomState>> {
        let mut all = HashMap::default();
        for pair in self.tree.scan_prefix(b"n") {
            let (key, text) = pair?;
            if let Some(Ok(number)) = key.get(1..).map(<[u8; 4]>::try_from) {
                all.insert(u32::from_be_bytes(number), String::from_utf8_lossy(&text).into());
            }
        }
        Ok(all)
    }
}
