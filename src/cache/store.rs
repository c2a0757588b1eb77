//! The store: a bounded layer in memory, and behind it a room, on disk or in Redis.
//!
//! Reads come from memory, then from what waits to be written, then from the room: a disk is read on a blocking thread.
//! Writes change memory at once and reach the room from one thread, coalesced; so the last of them can be lost
//! with the process, but never torn: every record and body is checked when it is read. A broken, full or
//! slow room is a miss, never a failed request.
//!
//! A room in Redis is shared: what memory holds is looked up there again after a moment, so that what another tap
//! has stored meanwhile is known here, too.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::HeaderMap;
use parking_lot::{Condvar, Mutex};

use super::key::KeyId;
use super::log::Wait;
use super::memory::Memory;
use super::redis::RedisRoom;
use super::sled::SledRoom;
use super::stored::{self, BodyId, Entry, Representation};
use crate::clock::now_ms;

/// An entry in memory, its heads parsed.
pub struct Loaded {
    pub entry: Entry,
    pub(super) parts: Vec<Arc<Part>>,
    /// When its use was last noted, in milliseconds since 1970.
    pub(super) touched: AtomicU64,
    /// When it was last the same as in a shared room, in milliseconds since 1970.
    pub(super) checked: AtomicU64,
}

/// What lies behind the layer in memory.
#[derive(Clone)]
pub(super) enum Room {
    Sled(Arc<SledRoom>),
    Redis(Arc<RedisRoom>),
}

impl Room {
    fn apply(&self, batch: &HashMap<KeyId, Pending>, touched: &HashMap<KeyId, u64>) {
        match self {
            Room::Sled(room) => room.apply(batch, touched),
            Room::Redis(room) => room.apply(batch, touched),
        }
    }

    fn flush(&self) -> std::io::Result<()> {
        match self {
            Room::Sled(room) => room.flush(),
            Room::Redis(_) => Ok(()),
        }
    }

    /// How often a use is noted, in milliseconds.
    fn note_every(&self) -> u64 {
        match self {
            Room::Sled(_) => 100,
            Room::Redis(room) => u64::try_from(room.ttl().as_millis() / 10).unwrap_or(u64::MAX).max(1000),
        }
    }
}

pub(super) struct Part {
    headers: HeaderMap,
    pub(super) body: OnceLock<Bytes>,
}

impl Loaded {
    /// None if a stored head does not parse. What `before` has already is shared.
    pub(super) fn new(entry: Entry, bodies: &[(BodyId, Bytes)], before: Option<&Loaded>) -> Option<Loaded> {
        let mut parts = Vec::with_capacity(entry.representations.len());
        for representation in &entry.representations {
            let known = before.and_then(|b| {
                let same = |r: &Representation| r.body == representation.body && r.head == representation.head;
                b.parts.get(b.entry.representations.iter().position(same)?)
            });
            if let Some(known) = known {
                parts.push(known.clone());
                continue;
            }
            let body = OnceLock::new();
            if let Some((_, bytes)) = bodies.iter().find(|(id, _)| *id == representation.body) {
                let _ = body.set(bytes.clone());
            }
            parts.push(Arc::new(Part { headers: stored::read_head(&representation.head)?, body }));
        }
        Some(Loaded { entry, parts, touched: AtomicU64::new(0), checked: AtomicU64::new(now_ms()) })
    }

    /// The stored fields of representation `i`.
    pub fn headers(&self, i: usize) -> &HeaderMap {
        &self.parts[i].headers
    }

    /// Bytes that it occupies in memory, about.
    fn weight(&self) -> u64 {
        let heads: u64 =
            self.entry.representations.iter().map(|r| 4 * r.head.len() as u64 + 160 * r.validators.len() as u64).sum();
        512 + self.entry.key.target.len() as u64 + heads + self.entry.bodies_len()
    }
}

/// What waits to be written.
#[derive(Default)]
pub(super) struct Pending {
    /// None: remove it.
    pub loaded: Option<Arc<Loaded>>,
    pub new_bodies: Vec<(BodyId, Bytes)>,
    pub dropped: Vec<BodyId>,
}

impl Pending {
    pub(super) fn bytes(&self) -> u64 {
        self.new_bodies.iter().map(|(_, body)| body.len() as u64).sum()
    }
}

#[derive(Default)]
pub(super) struct Queue {
    pub(super) waiting: HashMap<KeyId, Pending>,
    /// What the writer has in hand: still to be read from here.
    writing: Arc<HashMap<KeyId, Pending>>,
    touched: HashMap<KeyId, u64>,
    pub(super) bytes: u64,
    closed: bool,
}

/// Bodies that may wait for the disk, in bytes; past that, responses are not stored.
pub(super) const MAX_WAITING: u64 = 64 << 20;
/// Bodies larger than this do not stay in memory.
const MAX_IN_MEMORY: u64 = 1 << 20;
/// How long what memory holds is believed without a look into a shared room, in milliseconds.
const BELIEVED: u64 = 2_000;
/// A disk that takes longer than this is a miss.
const READ_PATIENCE: std::time::Duration = std::time::Duration::from_secs(1);
/// How many of the entries that are read get into a full memory: one in so many.
const ADMIT_EVERY: u64 = 8;
/// Disk reads under way at once; more wait their turn.
const READERS: usize = 16;

/// Numbers for `/metrics` and `ghtap cache stats`.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Stats {
    pub kind: String,
    pub entries: u64,
    /// Bytes of what is stored.
    pub live_bytes: u64,
    /// Bytes that the directory occupies.
    pub disk_bytes: u64,
    pub max_bytes: u64,
    pub evicted: u64,
    /// Entries that failed their check when they were read, and were removed.
    pub corrupt: u64,
    /// Reads and writes that failed.
    pub errors: u64,
    /// What is wrong with it now; none if it works.
    #[serde(default)]
    pub trouble: Option<String>,
}

/// The store of responses.
pub struct Store {
    pub(super) memory: Memory<Arc<Loaded>>,
    pub(super) room: Option<Room>,
    pub(super) queue: Arc<(Mutex<Queue>, Condvar)>,
    locks: Vec<Mutex<()>>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
    readers: tokio::sync::Semaphore,
    max_bytes: u64,
    /// Entries read from disk.
    reads: AtomicU64,
    /// Out of memory, where there is nothing behind it.
    evicted: AtomicU64,
    corrupt: AtomicU64,
    errors: AtomicU64,
}

impl Store {
    /// A store that lives in memory only.
    pub fn memory(max_bytes: u64) -> Store {
        Store::build(None, max_bytes, max_bytes)
    }

    /// A store on disk, with a layer of `memory_bytes` before it.
    pub fn on_disk(room: SledRoom, memory_bytes: u64) -> Store {
        let max_bytes = room.max_bytes();
        Store::build(Some(Room::Sled(Arc::new(room))), memory_bytes, max_bytes)
    }

    /// A store in Redis, with a layer of `memory_bytes` before it.
    pub fn in_redis(room: RedisRoom, memory_bytes: u64) -> Store {
        Store::build(Some(Room::Redis(Arc::new(room))), memory_bytes, memory_bytes)
    }

    fn build(room: Option<Room>, memory_bytes: u64, max_bytes: u64) -> Store {
        let queue = Arc::new((Mutex::new(Queue::default()), Condvar::new()));
        let writer = room.clone().map(|room| {
            let queue = queue.clone();
            let name = std::thread::Builder::new().name("ghtap-store".into());
            name.spawn(move || write_behind(&room, &queue)).expect("a thread can be started")
        });
        Store {
            memory: Memory::new(memory_bytes),
            reads: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            room,
            queue,
            locks: (0..64).map(|_| Mutex::new(())).collect(),
            writer: Mutex::new(writer),
            readers: tokio::sync::Semaphore::new(READERS),
            max_bytes,
            corrupt: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        }
    }

    /// The entry under a key. `now` in milliseconds since 1970.
    pub async fn load(&self, id: KeyId, now: u64) -> Option<Arc<Loaded>> {
        let loaded = match self.in_memory(id) {
            Some(loaded) => loaded?,
            None => return self.read_room(id, now).await,
        };
        let Some(room) = &self.room else { return Some(loaded) };
        let touched = loaded.touched.load(Ordering::Relaxed);
        if now.saturating_sub(touched) >= room.note_every() {
            loaded.touched.store(now, Ordering::Relaxed);
            self.queue.0.lock().touched.insert(id, now);
        }
        match room {
            Room::Redis(room) if now.saturating_sub(loaded.checked.load(Ordering::Relaxed)) > BELIEVED => {
                self.checked_again(room, id, loaded, now).await
            }
            _ => Some(loaded),
        }
    }

    pub(super) fn is_waiting(&self, id: KeyId) -> bool {
        let queue = self.queue.0.lock();
        queue.waiting.contains_key(&id) || queue.writing.contains_key(&id)
    }

    pub(super) fn keep_in_memory(&self, id: KeyId, loaded: Arc<Loaded>) {
        let large = loaded.entry.representations.iter().filter(|r| r.body_len > MAX_IN_MEMORY);
        let elsewhere = if self.room.is_none() { 0 } else { large.map(|r| r.body_len).sum() };
        let weight = loaded.weight() - elsewhere;
        let gone = self.memory.insert(id, loaded, weight);
        if self.room.is_none() {
            self.evicted.fetch_add(gone as u64, Ordering::Relaxed);
        }
    }

    /// None: only the disk knows. `Some(None)`: removed, although the disk may not know yet.
    fn in_memory(&self, id: KeyId) -> Option<Option<Arc<Loaded>>> {
        if let Some(loaded) = self.memory.get(id) {
            return Some(Some(loaded));
        }
        if self.room.is_none() {
            return Some(None);
        }
        // What waits is the latest there is; beyond it only the room knows.
        let queue = self.queue.0.lock();
        let pending = queue.waiting.get(&id).or_else(|| queue.writing.get(&id))?;
        Some(pending.loaded.clone())
    }

    async fn read_room(&self, id: KeyId, now: u64) -> Option<Arc<Loaded>> {
        let found = match self.room.clone()? {
            Room::Redis(room) => room.load(id).await,
            Room::Sled(room) => {
                // What the system has in memory is read here: less than a thread's wake-up.
                match room.load(id, MAX_IN_MEMORY, Wait::No, Some(now)) {
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        self.read(move || room.load(id, MAX_IN_MEMORY, Wait::Yes, Some(now))).await?
                    }
                    found => found,
                }
            }
        };
        let loaded = match found {
            Ok(None) => return None,
            Ok(Some((entry, bodies))) => Loaded::new(entry, &bodies, None),
            Err(error) => {
                self.failed(&error);
                return None;
            }
        };
        let Some(loaded) = loaded else {
            self.corrupt.fetch_add(1, Ordering::Relaxed);
            tracing::warn!("a stored response failed its check and was removed");
            self.remove(id);
            return None;
        };
        // A change that was made meanwhile wins.
        let _guard = self.lock(id);
        match self.in_memory(id) {
            Some(newer) => newer,
            None => {
                let loaded = Arc::new(loaded);
                // One in so many, once something else would have to go: what is asked for often gets in soon, and
                // what is asked for once mostly costs nobody's place.
                let turn = self.reads.fetch_add(1, Ordering::Relaxed).is_multiple_of(ADMIT_EVERY);
                if turn || self.memory.has_room(id, loaded.weight()) {
                    self.keep_in_memory(id, loaded.clone());
                }
                Some(loaded)
            }
        }
    }

    /// The body of representation `i`, as stored, its checksum checked when it comes from disk.
    pub async fn body(&self, id: KeyId, loaded: &Loaded, i: usize) -> Option<Bytes> {
        if let Some(body) = loaded.parts[i].body.get() {
            return Some(body.clone());
        }
        let wanted = loaded.entry.representations[i].body;
        if let Some(body) = self.waiting_body(id, wanted) {
            return Some(body);
        }
        let found = match self.room.clone()? {
            Room::Sled(room) => self.read(move || room.body(id, wanted)).await?,
            Room::Redis(room) => room.body(id, wanted).await,
        };
        match found {
            Ok(Some(body)) => {
                if body.len() as u64 <= MAX_IN_MEMORY {
                    let _ = loaded.parts[i].body.set(body.clone());
                }
                Some(body)
            }
            Ok(None) => {
                // It may have given way to a newer one meanwhile.
                let latest = self.in_memory(id).flatten();
                if latest.is_none_or(|l| l.entry.representations.iter().any(|r| r.body == wanted)) {
                    self.corrupt.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!("a stored body is missing or failed its check; its entry was removed");
                    self.remove(id);
                }
                None
            }
            Err(error) => {
                self.failed(&error);
                None
            }
        }
    }

    /// Reads the disk on another thread. None: it took too long, and is a miss.
    async fn read<T: Send + 'static>(&self, read: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let reading = async {
            let _permit = self.readers.acquire().await.ok()?;
            tokio::task::spawn_blocking(read).await.ok()
        };
        let read = tokio::time::timeout(READ_PATIENCE, reading).await;
        read.inspect_err(|_| {
            self.errors.fetch_add(1, Ordering::Relaxed);
            tracing::warn!("the store took too long; going on without it");
        })
        .ok()?
    }

    fn waiting_body(&self, id: KeyId, wanted: BodyId) -> Option<Bytes> {
        let queue = self.queue.0.lock();
        [queue.waiting.get(&id), queue.writing.get(&id)]
            .into_iter()
            .flatten()
            .find_map(|pending| pending.new_bodies.iter().find(|(id, _)| *id == wanted).map(|(_, body)| body.clone()))
    }

    /// Changes the entry under a key: `change` sees the latest (or an empty one made by `fresh`) and
    /// returns the bodies that gave way. `new_body` is stored with it. With `keep_on_disk` false only
    /// memory learns of it.
    pub fn update(
        &self,
        id: KeyId,
        seen: Option<&Arc<Loaded>>,
        fresh: impl FnOnce() -> Entry,
        new_body: Option<(BodyId, Bytes)>,
        keep_on_disk: bool,
        change: impl FnOnce(&mut Entry) -> Vec<BodyId>,
    ) {
        let _guard = self.lock(id);
        let latest = match self.in_memory(id) {
            Some(latest) => latest,
            None => seen.cloned(),
        };
        let mut entry = latest.as_ref().map_or_else(fresh, |l| l.entry.clone());
        let dropped = change(&mut entry);
        if entry.representations.is_empty() {
            self.forget(id);
            return;
        }
        let stays = |body: &Bytes| self.room.is_none() || body.len() as u64 <= MAX_IN_MEMORY;
        let body = new_body.clone().filter(|(_, body)| stays(body));
        let Some(loaded) = Loaded::new(entry, body.as_slice(), latest.as_deref()) else { return };
        if let Some(latest) = &latest {
            loaded.touched.store(latest.touched.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        let loaded = Arc::new(loaded);
        if self.room.is_some() && keep_on_disk {
            let mut queue = self.queue.0.lock();
            let size = new_body.as_ref().map_or(0, |(_, b)| b.len() as u64);
            if queue.bytes + size > MAX_WAITING {
                drop(queue);
                self.errors.fetch_add(1, Ordering::Relaxed);
                self.forget(id);
                return;
            }
            queue.bytes += size;
            let pending = queue.waiting.entry(id).or_default();
            pending.loaded = Some(loaded.clone());
            pending.new_bodies.extend(new_body);
            pending.dropped.extend(dropped);
            self.queue.1.notify_one();
        }
        self.keep_in_memory(id, loaded);
    }

    /// Removes what is stored under a key.
    pub fn remove(&self, id: KeyId) {
        let _guard = self.lock(id);
        self.forget(id);
    }

    fn forget(&self, id: KeyId) {
        self.memory.remove(id);
        if self.room.is_some() {
            let mut queue = self.queue.0.lock();
            let replaced = queue.waiting.insert(id, Pending::default());
            queue.bytes = queue.bytes.saturating_sub(replaced.map_or(0, |p| p.bytes()));
            self.queue.1.notify_one();
        }
    }

    pub(super) fn lock(&self, id: KeyId) -> parking_lot::MutexGuard<'_, ()> {
        self.locks[usize::from(id.0[0]) % self.locks.len()].lock()
    }

    /// Calls `each` for every entry, in no order. Blocks on the room.
    ///
    /// # Errors
    /// The room cannot be asked.
    pub fn for_each(&self, mut each: impl FnMut(KeyId, &Entry)) -> std::io::Result<()> {
        let Some(room) = &self.room else {
            self.memory.all().iter().for_each(|(id, loaded)| each(*id, &loaded.entry));
            return Ok(());
        };
        self.flush();
        match room {
            Room::Sled(room) => room.for_each(&mut each),
            Room::Redis(room) => room.for_each(&mut each)?,
        }
        Ok(())
    }

    /// Removes every entry whose URL begins with `prefix`, and says how many. Blocks on the room.
    ///
    /// # Errors
    /// The room cannot be asked; what was in memory is gone all the same.
    pub fn purge(&self, prefix: &str) -> std::io::Result<usize> {
        let mut found = std::collections::HashSet::new();
        for (id, loaded) in self.memory.all() {
            if url(&loaded.entry).starts_with(prefix) {
                found.insert(id);
            }
        }
        let asked = self.for_each(|id, entry| {
            if url(entry).starts_with(prefix) {
                found.insert(id);
            }
        });
        for id in &found {
            self.remove(*id);
        }
        self.flush();
        asked.map(|()| found.len())
    }

    /// Waits until all that was stored is on disk.
    pub fn flush(&self) {
        let Some(room) = &self.room else { return };
        loop {
            let queue = self.queue.0.lock();
            if queue.waiting.is_empty() && queue.writing.is_empty() {
                break;
            }
            if queue.closed {
                break;
            }
            self.queue.1.notify_one();
            drop(queue);
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        if let Err(error) = room.flush() {
            self.failed(&error);
        }
    }

    /// Writes all that waits, and stops the writer. What is stored afterwards stays in memory.
    pub fn close(&self) {
        self.queue.0.lock().closed = true;
        self.queue.1.notify_one();
        if let Some(writer) = self.writer.lock().take() {
            let _ = writer.join();
        }
    }

    pub fn stats(&self) -> Stats {
        let mut stats = match &self.room {
            Some(Room::Sled(room)) => room.stats(),
            Some(Room::Redis(room)) => room.stats(),
            None => {
                let (entries, live_bytes) = self.memory.size();
                Stats {
                    kind: "memory".into(),
                    entries,
                    live_bytes,
                    evicted: self.evicted.load(Ordering::Relaxed),
                    ..Stats::default()
                }
            }
        };
        stats.max_bytes = self.max_bytes;
        stats.corrupt += self.corrupt.load(Ordering::Relaxed);
        stats.errors += self.errors.load(Ordering::Relaxed);
        stats
    }

    /// What is wrong with the room; none if it works, or cannot tell without being used.
    pub fn trouble(&self) -> Option<String> {
        match &self.room {
            Some(Room::Redis(room)) => room.trouble(),
            _ => None,
        }
    }

    fn failed(&self, error: &std::io::Error) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        match &self.room {
            // Each of a thousand requests would say so: it is said once, where the connection is kept.
            Some(Room::Redis(_)) => tracing::debug!(%error, "the store failed; going on without it"),
            _ => tracing::warn!(%error, "the store failed; going on without it"),
        }
    }
}

/// The URL of an entry, as `ghtap cache` shows it.
pub fn url(entry: &Entry) -> String {
    format!("https://{}{}", entry.key.host, entry.key.target)
}

fn write_behind(room: &Room, queue: &(Mutex<Queue>, Condvar)) {
    loop {
        let (batch, touched, closed) = {
            let mut state = queue.0.lock();
            if state.waiting.is_empty() && !state.closed {
                queue.1.wait_for(&mut state, std::time::Duration::from_secs(1));
            }
            let batch = Arc::new(std::mem::take(&mut state.waiting));
            state.writing = batch.clone();
            (batch, std::mem::take(&mut state.touched), state.closed)
        };
        // sled may panic on a disk that is broken; what it holds is a cache.
        let applied = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| room.apply(&batch, &touched)));
        if applied.is_err() {
            tracing::error!("the store's disk is broken; what comes is not stored");
        }
        let mut state = queue.0.lock();
        let written: u64 = batch.values().map(Pending::bytes).sum();
        state.bytes = state.bytes.saturating_sub(written);
        state.writing = Arc::default();
        if closed && state.waiting.is_empty() {
            drop(state);
            let _ = room.flush();
            return;
        }
    }
}
