//! The room on disk: records and bodies in a log of segments, found by an index that sled keeps; a limit on what the
//! directory occupies, least recently used out first.
//!
//! Keys apart from values, because sled 0.34 keeps 8 to 16 values on a page whatever their size, reads and rewrites
//! whole pages, and under steady eviction occupies ever more than what is live. So sled holds what is small and
//! wants to be found after a crash: under each key, when it was used and where its bytes lie. All of it is in memory, too,
//! so a read asks the log once, and mostly without waiting.
//!
//! The live data may come to half of the limit. When the directory has come to 80 %, the segment with the most
//! waste is copied to the end of the log and removed, until it is below again. An index that sled has let grow is
//! written anew. Should all that fail, the store is emptied.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::index::{Index, Segment, Slot};
use super::key::KeyId;
use super::log::{self, End, Place, Wait};
use super::store::{Pending, Stats};
use super::stored::{BodyId, Entry, Representation};
use crate::disk::{occupied, open_database};
use crate::tls::files;

/// The name of the directory says the format: another version begins empty, in another one.
const DIRECTORY: &str = "cache-v2";

pub struct SledRoom {
    path: PathBuf,
    max_bytes: u64,
    index: Mutex<Index>,
    /// Keys whose use on disk is more than an hour older than what is known.
    to_note: Mutex<Vec<KeyId>>,
    /// Locked for as long as something is written; never by who reads.
    end: Mutex<End>,
    /// Replaced when sled has let it grow; missing only if the new one could not be opened.
    on_disk: Mutex<Option<::sled::Db>>,
    /// Bytes that sled's directory occupied when it was last measured, and after it was last written anew.
    index_disk: AtomicU64,
    index_fresh: AtomicU64,
    written_since_measured: AtomicU64,
    evicted: AtomicU64,
    corrupt: AtomicU64,
    errors: AtomicU64,
}

fn open_index(path: &Path) -> io::Result<::sled::Db> {
    open_database(path, Some(500))
}

impl SledRoom {
    /// Opens or makes the store below `data_dir`. A store that cannot be read is removed and an empty one made: it
    /// is a cache. So is one of another format.
    pub fn open(data_dir: &Path, max_bytes: u64) -> io::Result<SledRoom> {
        for other in std::fs::read_dir(data_dir).into_iter().flatten().flatten() {
            let name = other.file_name();
            if name.to_str().is_some_and(|n| n.starts_with("cache-v") && n != DIRECTORY) {
                let _ = std::fs::remove_dir_all(other.path());
            }
        }
        let path = data_dir.join(DIRECTORY);
        let room = SledRoom::try_open(&path, max_bytes).or_else(|error| {
            // No rights, no descriptors, no room: that is not the store's fault.
            if error.raw_os_error().is_some() {
                return Err(error);
            }
            tracing::warn!(%error, path = %path.display(), "the store cannot be read; starting an empty one");
            std::fs::remove_dir_all(&path)?;
            SledRoom::try_open(&path, max_bytes)
        })?;
        // The limit may be lower than it was.
        room.make_room()?;
        Ok(room)
    }

    fn try_open(path: &Path, max_bytes: u64) -> io::Result<SledRoom> {
        let (segments, current) = (path.join("log"), path.join("index"));
        files::make_private(path)?;
        files::make_private(&segments)?;
        // An index that was being written anew when the process ended: the old one went when the new was complete.
        if !current.exists() && path.join("index.new").exists() {
            std::fs::rename(path.join("index.new"), &current)?;
        }
        for rest in ["index.new", "index.old"] {
            let _ = std::fs::remove_dir_all(path.join(rest));
        }
        let on_disk = open_index(&current)?;
        let mut index = Index::default();
        for (number, file, len) in log::segments(&segments)? {
            index.segments.insert(number, Segment { file, len, live: 0 });
        }
        for pair in on_disk.iter() {
            let (key, value) = pair?;
            let there = |place: Place| {
                index.segments.get(&place.segment).is_some_and(|s| place.offset + u64::from(place.len) <= s.len)
            };
            match (key.as_ref().try_into(), postcard::from_bytes::<Slot>(&value)) {
                (Ok(id), Ok(slot)) if slot.places().all(there) => index.put(KeyId(id), slot),
                _ => drop(on_disk.remove(key)?),
            }
        }
        let last = index.segments.keys().max().copied().unwrap_or(0);
        let end = End::begin(&segments, last + 1)?;
        index.segments.insert(end.segment, Segment { file: end.file.clone(), len: 0, live: 0 });
        let disk = occupied(&current);
        Ok(SledRoom {
            path: path.to_owned(),
            max_bytes,
            index: Mutex::new(index),
            to_note: Mutex::default(),
            end: Mutex::new(end),
            on_disk: Mutex::new(Some(on_disk)),
            index_disk: AtomicU64::new(disk),
            index_fresh: AtomicU64::new(0),
            written_since_measured: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            corrupt: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        })
    }

    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// An entry and those of its bodies that are not larger than `small`, used at `now` (none: only looked at). None:
    /// nothing there, or it failed its check and was removed.
    ///
    /// # Errors
    /// The disk failed; `WouldBlock` where it may not wait and would have to.
    #[expect(clippy::type_complexity, reason = "an entry and its bodies; a name would say no more")]
    pub(super) fn load(
        &self,
        id: KeyId,
        small: u64,
        wait: Wait,
        now: Option<u64>,
    ) -> io::Result<Option<(Entry, Vec<(BodyId, Bytes)>)>> {
        match self.find(id, now) {
            Some((slot, files)) => self.or_removed(id, self.read_entry(id, &slot, &files, small, wait)),
            None => Ok(None),
        }
    }

    #[expect(clippy::type_complexity, reason = "as above")]
    fn read_entry(
        &self,
        id: KeyId,
        slot: &Slot,
        files: &[Arc<File>],
        small: u64,
        wait: Wait,
    ) -> io::Result<Option<(Entry, Vec<(BodyId, Bytes)>)>> {
        let fits = |place: &Place| u64::from(place.len) <= small;
        // Mostly, the newest body lies right before the record: one read takes both.
        let beside = slot.bodies.iter().find(|(_, place)| place.is_followed_by(&slot.record) && fits(place));
        let from = beside.map_or(slot.record, |(_, place)| *place);
        let before = usize::try_from(slot.record.offset - from.offset).map_err(io::Error::other)?;
        let span = log::read(&files[0], from.offset, before + slot.record.len as usize, wait)?;
        let entry = slot.record.holds(&span[before..]).then(|| Entry::decode_checked(&span[before..])).flatten();
        let Some(entry) = entry else {
            self.corrupt.fetch_add(1, Ordering::Relaxed);
            tracing::warn!("a stored record failed its check and was removed");
            self.remove(id)?;
            return Ok(None);
        };
        let mut bodies = Vec::with_capacity(slot.bodies.len());
        for ((body_id, place), file) in slot.bodies.iter().zip(&files[1..]).filter(|((_, p), _)| fits(p)) {
            let body = match *place == from {
                true => span.slice(..before),
                false => log::read(file, place.offset, place.len as usize, wait)?,
            };
            if place.holds(&body) {
                bodies.push((*body_id, body));
            }
        }
        Ok(Some((entry, bodies)))
    }

    /// A key whose bytes cannot be read is removed, so that it is stored anew, elsewhere.
    fn or_removed<T>(&self, id: KeyId, read: io::Result<Option<T>>) -> io::Result<Option<T>> {
        match read {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                self.failed(&error);
                self.remove(id)?;
                Ok(None)
            }
            read => read,
        }
    }

    /// Where a key's bytes lie, and the files that they lie in: the record's first.
    fn find(&self, id: KeyId, now: Option<u64>) -> Option<(Slot, Vec<Arc<File>>)> {
        let mut index = self.index.lock();
        if let Some(now) = now {
            self.used(&mut index, id, now);
        }
        let slot = index.get(id)?;
        let places = [slot.record].into_iter().chain(slot.bodies.iter().map(|(_, place)| *place));
        let files = places.map(|p| index.segments.get(&p.segment).map(|s| s.file.clone())).collect::<Option<_>>()?;
        Some((slot.clone(), files))
    }

    /// A body; none if it is missing or is not what was stored.
    pub(super) fn body(&self, id: KeyId, wanted: BodyId) -> io::Result<Option<Bytes>> {
        let found = {
            let index = self.index.lock();
            let place = index.get(id).and_then(|slot| slot.body(wanted));
            place.and_then(|p| Some((p, index.segments.get(&p.segment)?.file.clone())))
        };
        let Some((place, file)) = found else { return Ok(None) };
        let read = log::read(&file, place.offset, place.len as usize, Wait::Yes);
        self.or_removed(id, read.map(|body| place.holds(&body).then_some(body)))
    }

    /// Writes a batch, makes room, and measures. Failures are counted and logged; a key whose write
    /// failed is removed.
    pub(super) fn apply(&self, batch: &HashMap<KeyId, Pending>, touched: &HashMap<KeyId, u64>) {
        if let Err(error) = self.reopen_index() {
            self.failed(&error);
        }
        for (id, used) in touched {
            self.used(&mut self.index.lock(), *id, *used);
        }
        let to_note = std::mem::take(&mut *self.to_note.lock());
        for id in to_note {
            let slot = self.index.lock().get(id).cloned();
            if let Some(Err(error)) = slot.map(|slot| self.note(id, &slot)) {
                self.failed(&error);
            }
        }
        for (id, pending) in batch {
            if let Err(error) = self.write(*id, pending) {
                self.failed(&error);
                let _ = self.remove(*id);
            }
            // Within a batch, too: many may have gathered while the disk was slow.
            if self.written_since_measured.load(Ordering::Relaxed) > self.max_bytes / 64
                && let Err(error) = self.make_room()
            {
                self.failed(&error);
            }
        }
        if let Err(error) = self.make_room() {
            self.failed(&error);
        }
    }

    fn used(&self, index: &mut Index, id: KeyId, now: u64) {
        // On disk, an hour is exact enough.
        if index.touch(id, now).is_some_and(|before| now / 3_600_000 > before / 3_600_000) {
            self.to_note.lock().push(id);
        }
    }

    fn write(&self, id: KeyId, pending: &Pending) -> io::Result<()> {
        let Some(loaded) = &pending.loaded else { return self.remove(id) };
        // Nothing goes to the log that could not be found again.
        opened(&self.on_disk.lock())?;
        let record = loaded.entry.encode();
        let representations = &loaded.entry.representations;
        // When it was asked for, not when the disk came to it.
        let used = representations.iter().map(Representation::confirmed_at).max().unwrap_or(0);
        let before = self.index.lock().get(id).cloned();
        let used = before.as_ref().map_or(used, |slot| used.max(slot.used));
        // A body that was replaced before it was written need not be; one that came back must.
        let known = |body: BodyId| before.as_ref().and_then(|slot| slot.body(body));
        let mut bodies: Vec<(BodyId, Option<Place>)> = Vec::new();
        let mut pieces: Vec<&[u8]> = Vec::new();
        for body in representations.iter().map(|r| r.body) {
            if bodies.iter().any(|(id, _)| *id == body) {
                continue;
            }
            let new = pending.new_bodies.iter().find(|(id, _)| *id == body);
            // What comes anew is written anew: what lies there may be unreadable.
            match (known(body), new) {
                (Some(place), None) => bodies.push((body, Some(place))),
                (_, Some((_, bytes))) => {
                    bodies.push((body, None));
                    pieces.push(bytes);
                }
                // Never written: whoever asks for it finds it missing.
                (None, None) => {}
            }
        }
        pieces.push(&record);
        let mut places = self.append(&pieces)?.into_iter();
        let bodies = bodies.into_iter().filter_map(|(id, place)| Some((id, place.or_else(|| places.next())?)));
        let bodies = bodies.collect();
        let slot = Slot::new(used, places.next().expect("one for each piece"), bodies);
        self.note(id, &slot)?;
        self.index.lock().put(id, slot);
        Ok(())
    }

    /// Appends to the log, and counts it there.
    fn append(&self, pieces: &[&[u8]]) -> io::Result<Vec<Place>> {
        let mut end = self.end.lock();
        if end.len > (self.max_bytes / 32).clamp(256 << 10, 64 << 20) {
            self.roll(&mut end)?;
        }
        let places = end.append(pieces)?;
        if let Some(segment) = self.index.lock().segments.get_mut(&end.segment) {
            self.written_since_measured.fetch_add(end.len - segment.len, Ordering::Relaxed);
            segment.len = end.len;
        }
        Ok(places)
    }

    /// Goes on in a new segment, and says its number.
    fn roll(&self, end: &mut End) -> io::Result<u32> {
        end.roll()?;
        self.index.lock().segments.insert(end.segment, Segment { file: end.file.clone(), len: 0, live: 0 });
        Ok(end.segment)
    }

    /// Writes a key's slot to the index on disk.
    fn note(&self, id: KeyId, slot: &Slot) -> io::Result<()> {
        let value = postcard::to_stdvec(slot).map_err(io::Error::other)?;
        opened(&self.on_disk.lock())?.insert(id.0, value)?;
        Ok(())
    }

    fn remove(&self, id: KeyId) -> io::Result<()> {
        if self.index.lock().remove(id) {
            opened(&self.on_disk.lock())?.remove(id.0)?;
        }
        Ok(())
    }

    fn make_room(&self) -> io::Result<()> {
        let tidied = self.tidy();
        // Whatever failed before, the limit holds.
        if self.disk() > self.max_bytes / 100 * 97 {
            self.empty()?;
        }
        tidied
    }

    /// Evicts, compacts, and measures.
    fn tidy(&self) -> io::Result<()> {
        if self.written_since_measured.swap(0, Ordering::Relaxed) > 0 {
            self.index_disk.store(occupied(&self.path.join("index")), Ordering::Relaxed);
        }
        loop {
            let oldest = {
                let mut index = self.index.lock();
                if index.live <= self.max_bytes / 2 {
                    break;
                }
                index.oldest()
            };
            let Some(id) = oldest else { break };
            self.remove(id)?;
            self.evicted.fetch_add(1, Ordering::Relaxed);
        }
        let end = self.end.lock().segment;
        let empty = self.index.lock().empty_segments(end);
        self.drop_segments(&empty)?;
        let index_disk = self.index_disk.load(Ordering::Relaxed);
        if index_disk > self.max_bytes / 6 && index_disk > 2 * self.index_fresh.load(Ordering::Relaxed) {
            self.write_index_anew()?;
        }
        // Each is copied once at most: what was just written has no waste.
        let many = self.index.lock().segments.len();
        for _ in 0..many {
            if self.disk() <= self.max_bytes / 100 * 80 {
                break;
            }
            let end = self.end.lock().segment;
            let Some(segment) = self.index.lock().most_wasteful(end) else { break };
            self.compact(segment)?;
        }
        Ok(())
    }

    /// Tries again to open an index that could not be opened when it was replaced.
    fn reopen_index(&self) -> io::Result<()> {
        let mut on_disk = self.on_disk.lock();
        if on_disk.is_none() {
            let current = self.path.join("index");
            if !current.exists() {
                std::fs::rename(self.path.join("index.new"), &current)?;
            }
            *on_disk = Some(open_index(&current)?);
        }
        Ok(())
    }

    /// Bytes that the directory occupies, without asking it.
    fn disk(&self) -> u64 {
        self.index.lock().log_len() + self.index_disk.load(Ordering::Relaxed)
    }

    /// Copies what is live in a segment to the end of the log, and removes it.
    fn compact(&self, segment: u32) -> io::Result<()> {
        let ids = self.index.lock().in_segment(segment);
        for id in ids {
            let Some((slot, files)) = self.find(id, None) else { continue };
            let read = |place: &Place, file: &File| log::read(file, place.offset, place.len as usize, Wait::Yes);
            let moving = slot.bodies.iter().zip(&files[1..]).filter(|((_, p), _)| p.segment == segment);
            let bodies = moving.map(|((_, place), file)| read(place, file)).collect::<io::Result<Vec<Bytes>>>();
            // The record goes along, wherever it lies: beside its body it takes one read.
            let (bodies, record) = match (bodies, read(&slot.record, &files[0])) {
                (Ok(bodies), Ok(record)) => (bodies, record),
                (Err(error), _) | (_, Err(error)) => {
                    // One bad sector must not keep the rest from being tidied.
                    self.failed(&error);
                    self.remove(id)?;
                    continue;
                }
            };
            let pieces: Vec<&[u8]> = bodies.iter().chain([&record]).map(|b| &**b).collect();
            let mut places = self.append(&pieces)?.into_iter();
            let mut moved = slot.clone();
            for (_, place) in moved.bodies.iter_mut().filter(|(_, p)| p.segment == segment) {
                *place = places.next().expect("one for each piece");
            }
            moved.record = places.next().expect("one for each piece");
            let mut index = self.index.lock();
            // Removed meanwhile, it stays so.
            if index.get(id).is_some_and(|now| now.record == slot.record) {
                index.put(id, moved.clone());
                drop(index);
                self.note(id, &moved)?;
            }
        }
        self.drop_segments(&[segment])
    }

    /// Removes segments that nobody needs, when the index on disk knows that, too.
    fn drop_segments(&self, segments: &[u32]) -> io::Result<()> {
        if segments.is_empty() {
            return Ok(());
        }
        // What was copied must be there before what it was copied from goes.
        self.end.lock().file.sync_data()?;
        opened(&self.on_disk.lock())?.flush()?;
        for segment in segments {
            self.index.lock().segments.remove(segment);
            log::remove(&self.path.join("log"), *segment)?;
        }
        Ok(())
    }

    /// Replaces the index on disk by one that was written in one go.
    fn write_index_anew(&self) -> io::Result<()> {
        let name = |name| self.path.join(name);
        let (current, new, old) = (name("index"), name("index.new"), name("index.old"));
        for rest in [&new, &old] {
            let _ = std::fs::remove_dir_all(rest);
        }
        let mut on_disk = self.on_disk.lock();
        let fresh = open_index(&new)?;
        let ids = self.index.lock().ids();
        for id in ids {
            let Some(slot) = self.index.lock().get(id).cloned() else { continue };
            fresh.insert(id.0, postcard::to_stdvec(&slot).map_err(io::Error::other)?)?;
        }
        fresh.flush()?;
        drop(fresh);
        *on_disk = None;
        std::fs::rename(&current, &old)?;
        std::fs::rename(&new, &current)?;
        *on_disk = Some(open_index(&current)?);
        std::fs::remove_dir_all(&old)?;
        let disk = occupied(&current);
        tracing::debug!(disk, "the store's index was written anew");
        self.index_disk.store(disk, Ordering::Relaxed);
        self.index_fresh.store(disk, Ordering::Relaxed);
        Ok(())
    }

    /// The last resort, so that the limit holds whatever happens.
    fn empty(&self) -> io::Result<()> {
        tracing::warn!("the store came to its limit in spite of eviction; emptying it");
        let ids = self.index.lock().ids();
        for id in ids {
            self.remove(id)?;
        }
        let end = self.roll(&mut self.end.lock())?;
        let all = self.index.lock().empty_segments(end);
        self.drop_segments(&all)?;
        self.write_index_anew()
    }

    pub(super) fn for_each(&self, each: &mut dyn FnMut(KeyId, &Entry)) {
        let ids = self.index.lock().ids();
        for id in ids {
            if let Ok(Some((entry, _))) = self.load(id, 0, Wait::Yes, None) {
                each(id, &entry);
            }
        }
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        self.end.lock().file.sync_data()?;
        opened(&self.on_disk.lock())?.flush()?;
        Ok(())
    }

    pub(super) fn stats(&self) -> Stats {
        let index = self.index.lock();
        let (entries, live_bytes) = (index.len() as u64, index.live);
        drop(index);
        Stats {
            kind: "sled".into(),
            entries,
            live_bytes,
            disk_bytes: occupied(&self.path),
            max_bytes: self.max_bytes,
            evicted: self.evicted.load(Ordering::Relaxed),
            corrupt: self.corrupt.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            trouble: None,
        }
    }

    fn failed(&self, error: &io::Error) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(%error, "the store failed; going on without it");
    }
}

fn opened(index: &Option<::sled::Db>) -> io::Result<&::sled::Db> {
    index.as_ref().ok_or_else(|| io::Error::other("the store's index could not be opened again"))
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::super::key::Key;
    use super::super::store::Store;
    use super::super::stored::{Coding, Validator, write_head};
    use super::*;
    use crate::github::credentials::Credentials;

    fn key(number: u64) -> Key {
        Key::of("api.github.com", &format!("/{number}"), &HeaderMap::new())
    }

    fn put(store: &Store, number: u64, body: Bytes, now: u64) {
        let representation = Representation {
            body: BodyId::of(&body),
            body_len: body.len() as u64,
            plain_len: body.len() as u64,
            coding: Coding::Identity,
            head: write_head(&HeaderMap::new()),
            recipe: None,
            elements: None,
            stored_at: now,
            validators: Vec::new(),
        };
        let credential = Credentials::new(b"s").identify(&HeaderMap::new());
        let validator =
            Validator { credential, principal: None, etag: None, last_modified: None, confirmed_at: now, max_age: 0 };
        let new = Some((representation.body, body));
        store.update(
            key(number).id(),
            None,
            || Entry::new(key(number)),
            new,
            true,
            |entry| entry.put(representation, validator),
        );
    }

    fn body(number: u64, version: u64) -> Bytes {
        let seed = BodyId::of(format!("{number} {version}").as_bytes()).0;
        seed.iter().copied().cycle().take(3000 + usize::try_from(number % 7).unwrap() * 2000).collect()
    }

    /// What is in the store of `0..2000`, each checked to be its newest version.
    async fn found(store: &Store, newest: impl Fn(u64) -> u64) -> Vec<u64> {
        let mut found = Vec::new();
        for number in 0..2000 {
            let Some(loaded) = store.load(key(number).id(), u64::MAX / 2).await else { continue };
            let i = loaded.entry.representations.len() - 1;
            let stored = store.body(key(number).id(), &loaded, i).await.expect("a body for each entry");
            assert_eq!(stored, body(number, newest(number)), "{number}");
            found.push(number);
        }
        found
    }

    #[tokio::test]
    async fn what_cannot_be_read_goes_and_the_limit_holds() {
        const LIMIT: u64 = 8 << 20;
        let dir = tempfile::tempdir().unwrap();
        let store = Store::on_disk(SledRoom::open(dir.path(), LIMIT).unwrap(), 1 << 16);
        let mut now = 1;
        let mut fill = |version| {
            for number in 0..300 {
                now += 1;
                put(&store, number, body(number, version), now);
            }
            store.flush();
        };
        fill(0);
        // A bad sector in each segment so far.
        for file in std::fs::read_dir(dir.path().join(DIRECTORY).join("log")).unwrap() {
            let path = file.unwrap().path();
            let len = std::fs::metadata(&path).unwrap().len();
            std::fs::File::options().write(true).open(&path).unwrap().set_len(len / 2).unwrap();
        }
        for version in 1..8 {
            fill(version);
            assert!(occupied(dir.path()) <= LIMIT, "{}", occupied(dir.path()));
        }
        for number in 0..300 {
            let loaded = store.load(key(number).id(), u64::MAX / 2).await.expect("stored anew");
            let i = loaded.entry.representations.len() - 1;
            assert_eq!(store.body(key(number).id(), &loaded, i).await, Some(body(number, 7)), "{number}");
        }
        store.close();
    }

    #[tokio::test]
    async fn compaction_and_restarts_keep_what_was_used_last() {
        const LIMIT: u64 = 16 << 20;
        let dir = tempfile::tempdir().unwrap();
        let open = || Store::on_disk(SledRoom::open(dir.path(), LIMIT).unwrap(), 1 << 16);
        let mut now = 1;
        // 18 MB live in 60 MB written: what is evicted, and what is waste, lie among the rest.
        for round in 0..3 {
            let store = open();
            for version in [2 * round, 2 * round + 1] {
                for number in (0..2000).filter(|n| version == 0 || n % 3 != 0 || n % 100 == 0) {
                    now += 1;
                    put(&store, number, body(number, version), now);
                    if number % 50 == 0 {
                        store.flush();
                        assert!(occupied(dir.path()) <= LIMIT, "{}", occupied(dir.path()));
                    }
                }
            }
            store.close();
        }
        std::fs::create_dir(dir.path().join("cache-v1")).unwrap();
        let store = open();
        assert!(!dir.path().join("cache-v1").exists(), "another format's");
        let found = found(&store, |n| if n % 3 != 0 || n % 100 == 0 { 5 } else { 0 }).await;
        let stats = store.stats();
        assert!(stats.live_bytes <= LIMIT / 2 && stats.live_bytes > LIMIT / 3, "{stats:?}");
        assert_eq!((stats.entries, stats.corrupt, stats.errors), (found.len() as u64, 0, 0), "{stats:?}");
        let evicted_after = found.iter().filter(|n| *n % 3 != 0).min().unwrap();
        assert!((*evicted_after..2000).filter(|n| n % 3 != 0).all(|n| found.contains(&n)), "the newest stay");
        store.close();
    }
}
