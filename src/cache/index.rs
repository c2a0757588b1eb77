//! What the store on disk knows of each key, in memory: when it was last used, and where its bytes lie.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::key::KeyId;
use super::log::Place;
use super::stored::BodyId;

/// What a key costs besides its record and bodies: its part of the index on disk, in bytes.
const OVERHEAD: u64 = 600;

/// One key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Slot {
    /// Milliseconds since 1970.
    pub used: u64,
    pub record: Place,
    pub bodies: Box<[(BodyId, Place)]>,
    /// The use by which it is in order: uses since then are seen to when its turn comes.
    #[serde(skip)]
    filed: u64,
}

impl Slot {
    pub fn new(used: u64, record: Place, bodies: Box<[(BodyId, Place)]>) -> Slot {
        Slot { used, record, bodies, filed: used }
    }

    pub fn places(&self) -> impl Iterator<Item = Place> {
        self.bodies.iter().map(|(_, place)| *place).chain([self.record])
    }

    pub fn body(&self, wanted: BodyId) -> Option<Place> {
        self.bodies.iter().find(|(id, _)| *id == wanted).map(|(_, place)| *place)
    }

    fn cost(&self) -> u64 {
        OVERHEAD + self.places().map(|p| u64::from(p.len)).sum::<u64>()
    }
}

pub(super) struct Segment {
    pub file: Arc<File>,
    pub len: u64,
    /// Bytes in it that a key still names.
    pub live: u64,
}

/// All keys, and the segments that they lie in.
#[derive(Default)]
pub(super) struct Index {
    slots: HashMap<KeyId, Slot, foldhash::fast::RandomState>,
    by_use: BTreeSet<(u64, KeyId)>,
    pub segments: HashMap<u32, Segment>,
    /// Bytes of what is stored, with what each key costs besides.
    pub live: u64,
}

impl Index {
    pub fn get(&self, id: KeyId) -> Option<&Slot> {
        self.slots.get(&id)
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn ids(&self) -> Vec<KeyId> {
        self.slots.keys().copied().collect()
    }

    pub fn put(&mut self, id: KeyId, mut slot: Slot) {
        self.remove(id);
        slot.filed = slot.used;
        for place in slot.places() {
            if let Some(segment) = self.segments.get_mut(&place.segment) {
                segment.live += u64::from(place.len);
            }
        }
        self.live += slot.cost();
        self.by_use.insert((slot.used, id));
        self.slots.insert(id, slot);
    }

    pub fn remove(&mut self, id: KeyId) -> bool {
        let Some(slot) = self.slots.remove(&id) else { return false };
        for place in slot.places() {
            if let Some(segment) = self.segments.get_mut(&place.segment) {
                segment.live -= u64::from(place.len);
            }
        }
        self.live -= slot.cost();
        self.by_use.remove(&(slot.filed, id))
    }

    /// Notes a use, and says when the one before was. Costs a lookup: the order is put right when room is made.
    pub fn touch(&mut self, id: KeyId, used: u64) -> Option<u64> {
        let slot = self.slots.get_mut(&id)?;
        let before = slot.used;
        slot.used = before.max(used);
        Some(before)
    }

    /// What was not used for longest.
    pub fn oldest(&mut self) -> Option<KeyId> {
        loop {
            let (filed, id) = *self.by_use.first()?;
            match self.slots.get_mut(&id) {
                Some(slot) if slot.used > filed => {
                    slot.filed = slot.used;
                    self.by_use.remove(&(filed, id));
                    self.by_use.insert((slot.used, id));
                }
                _ => return Some(id),
            }
        }
    }

    /// Bytes of all segments.
    pub fn log_len(&self) -> u64 {
        self.segments.values().map(|s| s.len).sum()
    }

    /// The segment, other than `end`, with the most bytes that nobody needs.
    pub fn most_wasteful(&self, end: u32) -> Option<u32> {
        let others = self.segments.iter().filter(|(number, _)| **number != end);
        let (number, segment) = others.max_by_key(|(_, s)| s.len - s.live)?;
        (segment.len > segment.live).then_some(*number)
    }

    /// Segments other than `end` that nobody needs.
    pub fn empty_segments(&self, end: u32) -> Vec<u32> {
        self.segments.iter().filter(|(number, s)| **number != end && s.live == 0).map(|(number, _)| *number).collect()
    }

    /// Keys of which a part lies in a segment.
    pub fn in_segment(&self, segment: u32) -> Vec<KeyId> {
        let has = |slot: &Slot| slot.places().any(|p| p.segment == segment);
        self.slots.iter().filter(|(_, slot)| has(slot)).map(|(id, _)| *id).collect()
    }
}
