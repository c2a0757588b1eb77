//! The room on disk: three sled trees, a limit on what the directory occupies, least recently used out first.
//!
//! `entries` holds the records, `bodies` the bodies (under key and sha256, so that a key's bodies lie
//! together; in chunks, because sled 0.34 keeps values of more than 128 KiB in files that it hardly ever
//! removes: 45 times the live data was seen), `uses` when a key was last used and how much it holds: the one
//! tree that is read at start.
//!
//! sled writes a log and reuses its segments, but not all of them: under steady eviction the directory grows,
//! to three times the live data and on, and does not shrink. So the limit is kept by measuring the directory.
//! The live data may be a sixth of the limit; when the directory has come to 45 %, what is live is copied into
//! a new one, which takes less than the rest. Reads go on meanwhile. Should all that fail, the store is emptied.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::key::KeyId;
use super::store::{Pending, Stats};
use super::stored::{BodyId, Entry, Representation};
use crate::tls::files;

/// The name of the directory says the format: another version begins empty, in another one.
const DIRECTORY: &str = "cache-v1";
/// The directory in use, below it.
const CURRENT: &str = "current";
/// sled's own page cache. Small: decoded entries are kept in the layer before it.
const PAGE_CACHE: u64 = 8 << 20;
/// What a key costs besides its record and bodies, in bytes.
const OVERHEAD: u64 = 200;

/// How large the chunks of a body are, in bytes. sled keeps 8 to 16 values on a page whatever their size, and reads
/// and rewrites whole pages: with small chunks a page is about four bodies of 6 KB, and not
/// sixteen; smaller ones still cost more to write, and a slower start. At most well
/// below what sled puts into a file of its own.
fn chunk_len(body: usize) -> usize {
    (body / 8).clamp(2 << 10, 60 << 10)
}

pub struct SledRoom {
    /// Written to only when the directory is replaced.
    trees: RwLock<Option<Trees>>,
    path: PathBuf,
    max_bytes: u64,
    index: Mutex<Index>,
    evicted: AtomicU64,
    corrupt: AtomicU64,
    errors: AtomicU64,
}

#[derive(Clone)]
struct Trees {
    db: ::sled::Db,
    entries: ::sled::Tree,
    bodies: ::sled::Tree,
    uses: ::sled::Tree,
}

impl Trees {
    fn open(path: &Path) -> ::sled::Result<Trees> {
        let config = ::sled::Config::new().path(path).cache_capacity(PAGE_CACHE).flush_every_ms(Some(500));
        let db = config.open()?;
        Ok(Trees {
            entries: db.open_tree("entries")?,
            bodies: db.open_tree("bodies")?,
            uses: db.open_tree("uses")?,
            db,
        })
    }
}

/// Who was used when, and how large it is.
#[derive(Default)]
struct Index {
    /// Milliseconds since 1970 and bytes, by key.
    by_key: HashMap<KeyId, (u64, u64), foldhash::fast::RandomState>,
    by_use: BTreeSet<(u64, KeyId)>,
    live: u64,
    /// What `live` may come to.
    budget: u64,
    disk: u64,
    written_since_measured: u64,
}

impl Index {
    fn put(&mut self, id: KeyId, used: u64, size: u64) {
        self.remove(id);
        self.by_key.insert(id, (used, size));
        self.by_use.insert((used, id));
        self.live += size;
    }

    fn remove(&mut self, id: KeyId) {
        if let Some((used, size)) = self.by_key.remove(&id) {
            self.by_use.remove(&(used, id));
            self.live -= size;
        }
    }
}

impl SledRoom {
    /// Opens or makes the store below `data_dir`. A store that cannot be read is set aside, once, and an
    /// empty one made: it is a cache.
    pub fn open(data_dir: &Path, max_bytes: u64) -> io::Result<SledRoom> {
        let path = data_dir.join(DIRECTORY);
        files::make_private(&path)?;
        let room = match SledRoom::try_open(&path, max_bytes) {
            Ok(room) => room,
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "the store cannot be read; starting an empty one");
                std::fs::remove_dir_all(&path)?;
                SledRoom::try_open(&path, max_bytes).map_err(io::Error::other)?
            }
        };
        if room.index.lock().disk > max_bytes {
            tracing::warn!(max_bytes, "the store is over its limit; starting an empty one");
            drop(room);
            std::fs::remove_dir_all(&path)?;
            return SledRoom::try_open(&path, max_bytes).map_err(io::Error::other);
        }
        Ok(room)
    }

    fn try_open(path: &Path, max_bytes: u64) -> ::sled::Result<SledRoom> {
        // A compaction that was cut short: what was in use is under one of two names.
        let (current, old) = (path.join(CURRENT), path.join("old"));
        if !current.exists() && old.exists() {
            std::fs::rename(&old, &current)?;
        }
        for rest in [path.join("fresh"), old] {
            let _ = std::fs::remove_dir_all(rest);
        }
        let trees = Trees::open(&path.join(CURRENT))?;
        let mut index = Index { budget: max_bytes / 6, disk: occupied(path), ..Index::default() };
        for pair in trees.uses.iter() {
            let (id, value) = pair?;
            if let (Ok(id), Some((used, size))) = (id.as_ref().try_into(), read_use(&value)) {
                index.put(KeyId(id), used, size);
            }
        }
        Ok(SledRoom {
            trees: RwLock::new(Some(trees)),
            path: path.to_owned(),
            max_bytes,
            index: Mutex::new(index),
            evicted: AtomicU64::new(0),
            corrupt: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        })
    }

    /// Calls with the trees, which stay where they are meanwhile. They are missing only if a
    /// replaced directory could not be opened.
    fn with<T>(&self, call: impl FnOnce(&Trees) -> ::sled::Result<T>) -> ::sled::Result<T> {
        match &*self.trees.read() {
            Some(trees) => call(trees),
            None => Err(::sled::Error::Unsupported("the store could not be opened again".into())),
        }
    }

    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// An entry and those of its bodies that are not larger than `small`. None: nothing there, or it failed
    /// its check and was removed.
    #[expect(clippy::type_complexity, reason = "an entry and its bodies; a name would say no more")]
    pub(super) fn load(&self, id: KeyId, small: u64) -> ::sled::Result<Option<(Entry, Vec<(BodyId, Bytes)>)>> {
        let Some(record) = self.with(|trees| trees.entries.get(id.0))? else { return Ok(None) };
        let Some(entry) = Entry::decode(&record) else {
            self.corrupt.fetch_add(1, Ordering::Relaxed);
            tracing::warn!("a stored record failed its check and was removed");
            self.remove(id)?;
            return Ok(None);
        };
        let mut bodies = Vec::new();
        for representation in entry.representations.iter().filter(|r| r.body_len <= small) {
            bodies.extend(self.body(id, representation.body)?.map(|body| (representation.body, body)));
        }
        Ok(Some((entry, bodies)))
    }

    /// A body; none if it is missing or is not what was stored.
    pub(super) fn body(&self, id: KeyId, wanted: BodyId) -> ::sled::Result<Option<Bytes>> {
        let mut chunks = Vec::new();
        self.with(|trees| {
            for chunk in trees.bodies.scan_prefix(body_key(id, wanted)).values() {
                chunks.push(chunk?);
            }
            Ok(())
        })?;
        let body = match chunks.len() {
            0 => return Ok(None),
            1 => Bytes::from_owner(chunks.remove(0)),
            _ => chunks.concat().into(),
        };
        Ok((BodyId::of(&body) == wanted).then_some(body))
    }

    /// Writes a batch, makes room, and measures. Failures are counted and logged; a key whose write
    /// failed is removed.
    pub(super) fn apply(&self, batch: &HashMap<KeyId, Pending>, touched: &HashMap<KeyId, u64>) {
        for (id, used) in touched {
            let mut index = self.index.lock();
            let Some((before, size)) = index.by_key.get(id).copied() else { continue };
            index.put(*id, *used, size);
            drop(index);
            // On disk, ten minutes are exact enough.
            if used / 600_000 != before / 600_000
                && let Err(error) = self.with(|trees| trees.uses.insert(id.0, &write_use(*used, size)))
            {
                self.failed(&error);
            }
        }
        for (id, pending) in batch {
            if let Err(error) = self.write(*id, pending) {
                self.failed(&error);
                let _ = self.remove(*id);
            }
            // Within a batch, too: many may have gathered while the disk was slow.
            if self.index.lock().written_since_measured > self.max_bytes / 64
                && let Err(error) = self.make_room()
            {
                self.failed(&error);
            }
        }
        if let Err(error) = self.make_room() {
            self.failed(&error);
        }
    }

    fn write(&self, id: KeyId, pending: &Pending) -> ::sled::Result<()> {
        let Some(loaded) = &pending.loaded else { return self.remove(id) };
        let record = loaded.entry.encode();
        let size = record.len() as u64 + loaded.entry.bodies_len() + OVERHEAD;
        // A body that was replaced before it was written need not be; one that came back must.
        let needed = |wanted: &BodyId| loaded.entry.representations.iter().any(|r| r.body == *wanted);
        // When it was asked for, not when the disk came to it.
        let now = loaded.entry.representations.iter().map(Representation::confirmed_at).max().unwrap_or(0);
        self.with(|trees| {
            for (body_id, body) in pending.new_bodies.iter().filter(|(id, _)| needed(id)) {
                let key = body_key(id, *body_id);
                // An empty body is one empty chunk.
                let chunks = body.chunks(chunk_len(body.len())).chain(body.is_empty().then_some(&[][..]));
                for (number, chunk) in chunks.enumerate() {
                    let number = u16::try_from(number).unwrap_or(u16::MAX).to_be_bytes();
                    trees.bodies.insert([&key[..], &number].concat(), chunk)?;
                }
            }
            for body_id in pending.dropped.iter().filter(|id| !needed(id)) {
                remove_all(&trees.bodies, &body_key(id, *body_id))?;
            }
            trees.entries.insert(id.0, record)?;
            trees.uses.insert(id.0, &write_use(now, size))?;
            Ok(())
        })?;
        let mut index = self.index.lock();
        index.put(id, now, size);
        index.written_since_measured += size;
        Ok(())
    }

    fn remove(&self, id: KeyId) -> ::sled::Result<()> {
        self.index.lock().remove(id);
        self.with(|trees| {
            trees.uses.remove(id.0)?;
            trees.entries.remove(id.0)?;
            remove_all(&trees.bodies, &id.0)
        })
    }

    fn make_room(&self) -> ::sled::Result<()> {
        if self.index.lock().written_since_measured > self.max_bytes / 64 {
            let disk = occupied(&self.path);
            let mut index = self.index.lock();
            index.written_since_measured = 0;
            index.disk = disk;
            tracing::debug!(disk, live = index.live, budget = index.budget, "store measured");
        }
        loop {
            let oldest = {
                let index = self.index.lock();
                if index.live <= index.budget {
                    break;
                }
                index.by_use.first().map(|(_, id)| *id)
            };
            let Some(id) = oldest else { break };
            self.remove(id)?;
            self.evicted.fetch_add(1, Ordering::Relaxed);
        }
        let disk = self.index.lock().disk;
        if disk > self.max_bytes / 100 * 97 {
            return self.empty();
        }
        if disk > self.max_bytes / 100 * 45 {
            return self.compact().or_else(|error| {
                self.failed(&error);
                self.empty()
            });
        }
        Ok(())
    }

    /// Copies what is live into a new directory, and goes on there.
    fn compact(&self) -> ::sled::Result<()> {
        let order: Vec<KeyId> = self.index.lock().by_use.iter().rev().map(|(_, id)| *id).collect();
        let Some(old) = self.trees.read().clone() else { return self.empty() };
        let fresh = self.path.join("fresh");
        let _ = std::fs::remove_dir_all(&fresh);
        let new = Trees::open(&fresh)?;
        for id in &order {
            let (Some(record), Some(used)) = (old.entries.get(id.0)?, old.uses.get(id.0)?) else { continue };
            for chunk in old.bodies.scan_prefix(id.0) {
                let (key, chunk) = chunk?;
                new.bodies.insert(key, chunk)?;
            }
            new.entries.insert(id.0, record)?;
            new.uses.insert(id.0, used)?;
        }
        new.db.flush()?;
        drop((new, old));
        self.replace(|path| std::fs::rename(&fresh, path))?;
        let disk = occupied(&self.path);
        tracing::debug!(disk, entries = order.len(), "the store was compacted");
        self.index.lock().disk = disk;
        Ok(())
    }

    /// The last resort, so that the limit holds whatever sled does.
    fn empty(&self) -> ::sled::Result<()> {
        tracing::warn!("the store came to its limit in spite of eviction; emptying it");
        self.replace(|_| Ok(()))?;
        let mut index = self.index.lock();
        *index = Index { budget: index.budget, disk: occupied(&self.path), ..Index::default() };
        Ok(())
    }

    /// Puts another directory in the place of the one in use, when nobody reads from it.
    fn replace(&self, make: impl FnOnce(&Path) -> io::Result<()>) -> ::sled::Result<()> {
        let mut trees = self.trees.write();
        *trees = None;
        let (current, old) = (self.path.join(CURRENT), self.path.join("old"));
        std::fs::rename(&current, &old)?;
        make(&current)?;
        *trees = Some(Trees::open(&current)?);
        drop(trees);
        Ok(std::fs::remove_dir_all(&old)?)
    }

    pub(super) fn for_each(&self, each: &mut dyn FnMut(KeyId, &Entry)) {
        let entries = self.with(|trees| Ok(trees.entries.clone()));
        for pair in entries.iter().flat_map(::sled::Tree::iter) {
            let Ok((id, record)) = pair else { break };
            if let (Ok(id), Some(entry)) = (id.as_ref().try_into(), Entry::decode(&record)) {
                each(KeyId(id), &entry);
            }
        }
    }

    pub(super) fn flush(&self) -> ::sled::Result<()> {
        self.with(|trees| trees.db.flush().map(drop))
    }

    pub(super) fn stats(&self) -> Stats {
        let index = self.index.lock();
        Stats {
            kind: "sled".into(),
            entries: index.by_key.len() as u64,
            live_bytes: index.live,
            disk_bytes: occupied(&self.path),
            max_bytes: self.max_bytes,
            evicted: self.evicted.load(Ordering::Relaxed),
            corrupt: self.corrupt.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
        }
    }

    fn failed(&self, error: &::sled::Error) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(%error, "the store failed; going on without it");
    }
}

fn remove_all(tree: &::sled::Tree, prefix: &[u8]) -> ::sled::Result<()> {
    for key in tree.scan_prefix(prefix).keys() {
        tree.remove(key?)?;
    }
    Ok(())
}

fn body_key(id: KeyId, body: BodyId) -> [u8; 48] {
    let mut key = [0; 48];
    key[..16].copy_from_slice(&id.0);
    key[16..].copy_from_slice(&body.0);
    key
}

fn write_use(used: u64, size: u64) -> [u8; 16] {
    let mut value = [0; 16];
    value[..8].copy_from_slice(&used.to_be_bytes());
    value[8..].copy_from_slice(&size.to_be_bytes());
    value
}

fn read_use(value: &[u8]) -> Option<(u64, u64)> {
    let (used, size) = value.split_at_checked(8)?;
    Some((u64::from_be_bytes(used.try_into().ok()?), u64::from_be_bytes(size.try_into().ok()?)))
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
