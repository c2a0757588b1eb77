//! The layer in memory: bounded by weight, least recently used out first.
//!
//! Not one of the lock-free caches: those leave what is evicted to be freed later, on another thread, which costs
//! more than a lock that is held for a lookup.

use lru::LruCache;
use parking_lot::Mutex;

use super::key::KeyId;

/// A value and its weight, in bytes.
type Weighed<V> = (V, u64);

struct Shard<V> {
    values: LruCache<KeyId, Weighed<V>, foldhash::fast::RandomState>,
    weight: u64,
}

/// Values by key.
pub(super) struct Memory<V> {
    shards: Box<[Mutex<Shard<V>>]>,
    /// What one shard may weigh.
    room: u64,
}

/// What a shard weighs at least, so that one of the largest values does not displace all others.
const SHARD: u64 = 32 << 20;

impl<V: Clone> Memory<V> {
    pub fn new(max_weight: u64) -> Memory<V> {
        let count = (max_weight / SHARD).clamp(1, 16);
        let shard = || Mutex::new(Shard { values: LruCache::unbounded_with_hasher(Default::default()), weight: 0 });
        Memory { shards: (0..count).map(|_| shard()).collect(), room: max_weight / count }
    }

    fn shard(&self, id: KeyId) -> &Mutex<Shard<V>> {
        &self.shards[usize::from(id.0[1]) % self.shards.len()]
    }

    /// The value, which is now the last used.
    pub fn get(&self, id: KeyId) -> Option<V> {
        self.shard(id).lock().values.get(&id).map(|(value, _)| value.clone())
    }

    /// Puts a value in the place of the former one, and says how many others gave way.
    pub fn insert(&self, id: KeyId, value: V, weight: u64) -> usize {
        let mut gone = Vec::new();
        let mut shard = self.shard(id).lock();
        shard.weight += weight;
        let former = shard.values.put(id, (value, weight));
        shard.weight -= former.as_ref().map_or(0, |(_, weight)| *weight);
        while shard.weight > self.room {
            let Some((_, last)) = shard.values.pop_lru() else { break };
            shard.weight -= last.1;
            gone.push(last);
        }
        drop(shard);
        // Freed without the lock.
        gone.len()
    }

    /// Whether a value of this weight displaces none.
    pub fn has_room(&self, id: KeyId, weight: u64) -> bool {
        self.shard(id).lock().weight + weight <= self.room
    }

    pub fn remove(&self, id: KeyId) {
        let mut shard = self.shard(id).lock();
        let former = shard.values.pop(&id);
        shard.weight -= former.as_ref().map_or(0, |(_, weight)| *weight);
    }

    /// All there is, last used first in each shard.
    pub fn all(&self) -> Vec<(KeyId, V)> {
        let all = |shard: &Mutex<Shard<V>>| -> Vec<_> {
            shard.lock().values.iter().map(|(id, (value, _))| (*id, value.clone())).collect()
        };
        self.shards.iter().flat_map(all).collect()
    }

    /// How many there are, and what they weigh.
    pub fn size(&self) -> (u64, u64) {
        self.shards.iter().map(|s| s.lock()).fold((0, 0), |(n, w), s| (n + s.values.len() as u64, w + s.weight))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_used_gives_way() {
        let memory = Memory::new(100);
        let id = |n| KeyId([n; 16]);
        for n in 0..4 {
            assert_eq!(memory.insert(id(n), n, 25), 0);
        }
        assert_eq!(memory.get(id(0)), Some(0));
        assert_eq!(memory.insert(id(9), 9, 30), 2);
        assert_eq!((memory.get(id(1)), memory.get(id(2)), memory.get(id(0))), (None, None, Some(0)));
        assert_eq!(memory.insert(id(9), 9, 50), 0, "in the place of the former");
        assert_eq!(memory.size(), (3, 100));
        assert_eq!(memory.insert(id(5), 5, 101), 4, "too heavy by itself");
        assert_eq!(memory.size(), (0, 0));
        memory.insert(id(1), 1, 1);
        memory.remove(id(1));
        assert_eq!((memory.size(), memory.all().len()), ((0, 0), 0));
    }
}
