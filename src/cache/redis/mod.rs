//! The room in Redis: for taps that share what they store, and for where there is no disk.
//!
//! Under each key lies one hash: the record, and the bodies that it names, so that one question finds all, and what is
//! written together is found together. Large bodies have keys of their own, in the same slot of a cluster. All of it
//! expires. Whatever is read is checked: the record by its checksum and its key, a body by its digest. Two taps that
//! write one key at a time leave the one's record or the other's; a body that no record names is removed by who
//! finds it.
//!
//! Nothing waits for Redis longer than `--store-timeout`. While it is away there is nothing stored, and the layer in
//! memory does what it can.

mod link;
mod revoked;
mod servers;

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ::redis::cluster_routing::{MultipleNodeRoutingInfo, ResponsePolicy, RoutingInfo};
use ::redis::{Cmd, Value, cmd, pipe};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::key::KeyId;
use super::store::{Pending, Stats};
use super::stored::{BodyId, Entry};
use crate::github::credentials::CredentialId;
use crate::github::etag::hex;
use crate::workers;
use link::{Connection, Link};
use revoked::Revocations;
pub use servers::{Kind, Servers};

/// The version of what lies in Redis is in each key's name: another one never finds it.
const PREFIX: &str = "ghtap:1:";
/// The field of the record.
const RECORD: &[u8] = b"e";
/// Workers that have a connection of their own.
const MAX_WORKERS: usize = 64;
/// Bodies larger than this have a key of their own.
const LARGE: usize = 1 << 20;

/// How the room is to be.
#[derive(Clone, Debug)]
pub struct Options {
    pub servers: Servers,
    /// A replica to read from.
    pub reader: Option<Servers>,
    /// Roots to trust instead of the system's, PEM.
    pub ca: Option<Vec<u8>>,
    pub timeout: Duration,
    /// What nobody asks for that long expires.
    pub ttl: Duration,
}

pub struct RedisRoom {
    writer: Arc<Link>,
    reader: Option<Arc<Link>>,
    /// One for each worker, to read by: its own thread drives it, so that a request wakes no other.
    near: Vec<OnceLock<Option<Arc<Link>>>>,
    options: Options,
    /// The runtime that drives the connections, on a thread of its own.
    driver: Handle,
    thread: Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
    revocations: Revocations,
    /// Large bodies that were read: they are not to expire.
    read: Mutex<HashSet<String>>,
    /// Bodies that no record names, to be removed.
    orphans: Mutex<Vec<(KeyId, BodyId)>>,
    entries: AtomicU64,
    bytes: AtomicU64,
    corrupt: AtomicU64,
    errors: AtomicU64,
}

impl RedisRoom {
    /// Begins to connect; whether that succeeds is seen later, and told by [`trouble`](Self::trouble).
    ///
    /// # Errors
    /// The options do not go together; one line.
    pub fn open(options: &Options) -> Result<RedisRoom, String> {
        if options.reader.as_ref().is_some_and(|r| r.kind != Kind::Single)
            || options.reader.is_some() && options.servers.kind != Kind::Single
        {
            return Err("--store-reader goes with redis:// or rediss:// only, for both".into());
        }
        if options.ttl < Duration::from_secs(1) {
            return Err("--store-ttl is at least 1s".into());
        }
        if options.timeout < Duration::from_millis(1) {
            return Err("--store-timeout is at least 1ms".into());
        }
        let link = |servers: &Servers| Link::new(servers, options.ca.as_deref(), options.timeout).map(Arc::new);
        let writer = link(&options.servers)?;
        let reader = options.reader.as_ref().map(link).transpose()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
        let driver = runtime.handle().clone();
        for link in [Some(writer.clone()), reader.clone()].into_iter().flatten() {
            driver.spawn(link.keep());
        }
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("ghtap-redis".into()).spawn(move || {
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        });
        let thread = thread.map_err(|e| e.to_string())?;
        Ok(RedisRoom {
            writer,
            reader,
            near: (0..MAX_WORKERS).map(|_| OnceLock::new()).collect(),
            options: options.clone(),
            driver,
            thread: Mutex::new(Some((stop, thread))),
            revocations: Revocations::default(),
            read: Mutex::default(),
            orphans: Mutex::default(),
            entries: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            corrupt: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        })
    }

    pub fn ttl(&self) -> Duration {
        self.options.ttl
    }

    /// When it last began to answer, in milliseconds since 1970: it may have lost what it had before.
    pub(super) fn connected_at(&self) -> u64 {
        self.writer.connected_at()
    }

    /// What is wrong with the server; none if it works.
    pub fn trouble(&self) -> Option<String> {
        self.writer.trouble().or_else(|| Some(format!("reader: {}", self.reader.as_ref()?.trouble()?)))
    }

    async fn ask(&self, command: &Cmd) -> io::Result<Value> {
        let begun = Instant::now();
        for link in [self.near(), self.reader.as_ref()].into_iter().flatten() {
            match link.command(command).await {
                Ok(value) => return Ok(value),
                // The time that there is has been spent.
                Err(error) if begun.elapsed() >= self.options.timeout / 2 => return Err(error),
                Err(_) => {}
            }
        }
        self.writer.command(command).await
    }

    /// The connection of the worker that asks, once it is made; elsewhere none.
    fn near(&self) -> Option<&Arc<Link>> {
        let slot = self.near.get(workers::index().checked_sub(1)?)?;
        let link = slot.get_or_init(|| {
            let servers = self.options.reader.as_ref().unwrap_or(&self.options.servers);
            let link = Link::quiet(servers, self.options.ca.as_deref(), self.options.timeout).ok().map(Arc::new);
            if let Some(link) = &link {
                tokio::spawn(link.clone().keep());
            }
            link
        });
        link.as_ref().filter(|link| link.is_up())
    }

    /// The record alone: whether it is still what is known.
    pub(super) async fn record(&self, id: KeyId) -> io::Result<Option<Entry>> {
        let Value::Array(found) = self.ask(cmd("HMGET").arg(key(id)).arg(RECORD).arg(revoked::FIELD)).await? else {
            return Ok(None);
        };
        let mut found = found.into_iter();
        let (record, revoked) = (found.next().and_then(bytes), found.next().and_then(bytes));
        Ok(record.and_then(|record| self.checked(id, &record, revoked.as_deref())))
    }

    /// An entry and those of its bodies that are not large.
    pub(super) async fn load(&self, id: KeyId) -> io::Result<Option<(Entry, Vec<(BodyId, Bytes)>)>> {
        let (mut record, mut revoked) = (None, None);
        let mut bodies = Vec::new();
        for (field, value) in pairs(self.ask(cmd("HGETALL").arg(key(id))).await?) {
            match <[u8; 32]>::try_from(field.as_slice()) {
                Ok(body) => bodies.push((BodyId(body), Bytes::from(value))),
                Err(_) if field == RECORD => record = Some(value),
                Err(_) if field == revoked::FIELD => revoked = Some(value),
                Err(_) => {}
            }
        }
        let Some(entry) = record.and_then(|r| self.checked(id, &r, revoked.as_deref())) else { return Ok(None) };
        let named = |body: &BodyId| entry.representations.iter().any(|r| r.body == *body);
        bodies.retain(|(body, bytes)| {
            let (named, whole) = (named(body), BodyId::of(bytes) == *body);
            if !named || !whole {
                self.corrupt.fetch_add(u64::from(named), Ordering::Relaxed);
                self.orphans.lock().push((id, *body));
            }
            named && whole
        });
        Ok(Some((entry, bodies)))
    }

    /// A record that is whole, and is this key's, without what was revoked since.
    fn checked(&self, id: KeyId, record: &[u8], revoked: Option<&[u8]>) -> Option<Entry> {
        let Some(mut entry) = Entry::decode(record).filter(|e| e.key.id() == id) else {
            self.corrupt.fetch_add(1, Ordering::Relaxed);
            tracing::warn!("a record in Redis failed its check");
            return None;
        };
        self.revocations.apply(id, &mut entry, revoked.unwrap_or_default());
        Some(entry)
    }

    /// A credential has no right any more to what it had confirmed until `at`, in milliseconds since 1970.
    pub(super) fn revoke(&self, id: KeyId, credential: CredentialId, at: u64) {
        self.revocations.note(id, credential, at);
    }

    /// A large body; none if it is missing or is not what was stored.
    pub(super) async fn body(&self, id: KeyId, wanted: BodyId) -> io::Result<Option<Bytes>> {
        let small = self.ask(cmd("HGET").arg(key(id)).arg(&wanted.0[..])).await?;
        let value = match small {
            Value::BulkString(body) => Value::BulkString(body),
            _ => {
                let name = large(id, wanted);
                let body = self.ask(cmd("GET").arg(&name)).await?;
                self.read.lock().insert(name);
                body
            }
        };
        Ok(match value {
            Value::BulkString(body) => Some(Bytes::from(body)).filter(|b| BodyId::of(b) == wanted),
            _ => None,
        })
    }

    /// Writes a batch. Failures are counted; what could not be written is not stored.
    pub(super) fn apply(&self, batch: &HashMap<KeyId, Pending>, touched: &HashMap<KeyId, u64>) {
        let ttl = self.options.ttl.as_secs();
        // First, so that no record is written over what must not come back.
        self.revocations.send(|append| self.driver.block_on(self.writer.command(append)).is_ok(), ttl);
        for (id, pending) in batch {
            let mut pipeline = pipe();
            pipeline.atomic();
            match &pending.loaded {
                None => {
                    // Its large bodies have keys of their own.
                    let there = self.driver.block_on(self.record(*id)).ok().flatten();
                    for representation in there.iter().flat_map(|e| &e.representations) {
                        if representation.body_len > LARGE as u64 {
                            pipeline.del(large(*id, representation.body)).ignore();
                        }
                    }
                    pipeline.del(key(*id)).ignore()
                }
                Some(loaded) => {
                    pipeline.hset(key(*id), RECORD, loaded.entry.encode()).ignore();
                    for (body, bytes) in &pending.new_bodies {
                        match bytes.len() > LARGE {
                            true => pipeline.set_ex(large(*id, *body), &bytes[..], ttl).ignore(),
                            false => pipeline.hset(key(*id), &body.0[..], &bytes[..]).ignore(),
                        };
                    }
                    // A body may have come back within the batch.
                    let gone = |b: &&BodyId| loaded.entry.representations.iter().all(|r| r.body != **b);
                    for body in pending.dropped.iter().filter(gone) {
                        pipeline.hdel(key(*id), &body.0[..]).ignore();
                    }
                    pipeline.expire(key(*id), ttl.cast_signed()).ignore()
                }
            };
            self.write(&pipeline);
        }
        for id in touched.keys().filter(|id| !batch.contains_key(id)) {
            self.write(pipe().expire(key(*id), ttl.cast_signed()).ignore());
        }
        for name in std::mem::take(&mut *self.read.lock()) {
            self.write(pipe().expire(name, ttl.cast_signed()).ignore());
        }
        for (id, body) in std::mem::take(&mut *self.orphans.lock()) {
            self.write(pipe().hdel(key(id), &body.0[..]).ignore());
        }
    }

    fn write(&self, pipeline: &::redis::Pipeline) {
        if let Err(error) = self.driver.block_on(self.writer.write(pipeline)) {
            self.errors.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%error, "Redis did not take a write");
        }
    }

    /// Calls `each` for every entry, in no order. Blocks.
    pub(super) fn for_each(&self, each: &mut dyn FnMut(KeyId, &Entry)) -> io::Result<()> {
        for name in self.names()? {
            let id = name.strip_prefix(PREFIX).and_then(|n| n.strip_prefix('{')?.strip_suffix('}')).and_then(unhex);
            let Some(id) = id else { continue };
            if let Some(entry) = self.driver.block_on(self.record(id))? {
                each(id, &entry);
            }
        }
        Ok(())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let pattern = format!("{PREFIX}{{*}}");
        self.driver.block_on(async {
            match self.writer.connection()? {
                Connection::Cluster(mut cluster) => {
                    // Each master is asked for all at once: an operator's command, not a request's.
                    let mut keys = cmd("KEYS");
                    keys.arg(&pattern);
                    let route = (MultipleNodeRoutingInfo::AllMasters, Some(ResponsePolicy::CombineArrays));
                    let found = cluster.route_command(keys, RoutingInfo::MultiNode(route)).await;
                    ::redis::from_redis_value(found.map_err(io::Error::other)?).map_err(io::Error::other)
                }
                Connection::Single(_) => {
                    let (mut all, mut cursor) = (Vec::new(), 0_u64);
                    loop {
                        let page = cmd("SCAN").arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(1000).to_owned();
                        let page = self.writer.command(&page).await?;
                        let (next, names): (u64, Vec<String>) =
                            ::redis::from_redis_value(page).map_err(io::Error::other)?;
                        all.extend(names);
                        cursor = next;
                        if cursor == 0 {
                            all.sort_unstable();
                            all.dedup();
                            return Ok(all);
                        }
                    }
                }
            }
        })
    }

    /// Numbers; asks the server. Blocks.
    pub fn stats(&self) -> Stats {
        let measured = self.driver.block_on(async {
            let count = self.writer.command(&cmd("DBSIZE")).await?;
            let info = self.writer.command(cmd("INFO").arg("memory")).await?;
            let count: u64 = ::redis::from_redis_value(count).map_err(io::Error::other)?;
            let info: String = ::redis::from_redis_value(info).unwrap_or_default();
            let bytes = info.lines().find_map(|l| l.strip_prefix("used_memory:")?.trim().parse::<u64>().ok());
            Ok::<_, io::Error>((count, bytes.unwrap_or(0)))
        });
        if let Ok((count, bytes)) = measured {
            self.entries.store(count, Ordering::Relaxed);
            self.bytes.store(bytes, Ordering::Relaxed);
        }
        Stats {
            kind: "redis".into(),
            entries: self.entries.load(Ordering::Relaxed),
            live_bytes: self.bytes.load(Ordering::Relaxed),
            corrupt: self.corrupt.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            trouble: self.trouble(),
            ..Stats::default()
        }
    }
}

impl Drop for RedisRoom {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.thread.lock().take() {
            let _ = stop.send(());
            let _ = thread.join();
        }
    }
}

/// The key of an entry; what is in braces chooses its slot in a cluster.
fn key(id: KeyId) -> String {
    format!("{PREFIX}{{{}}}", hex(&id.0))
}

fn large(id: KeyId, body: BodyId) -> String {
    format!("{}:{}", key(id), hex(&body.0))
}

fn unhex(text: &str) -> Option<KeyId> {
    let mut id = [0; 16];
    if text.len() != 32 {
        return None;
    }
    for (byte, digits) in id.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(KeyId(id))
}

fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}

/// Field and value, whichever protocol the server speaks.
fn pairs(value: Value) -> Vec<(Vec<u8>, Vec<u8>)> {
    match value {
        Value::Map(pairs) => pairs.into_iter().filter_map(|(f, v)| Some((bytes(f)?, bytes(v)?))).collect(),
        Value::Array(flat) => {
            let (mut flat, mut all) = (flat.into_iter(), Vec::new());
            while let (Some(field), Some(value)) = (flat.next(), flat.next()) {
                all.extend(bytes(field).zip(bytes(value)));
            }
            all
        }
        _ => Vec::new(),
    }
}
