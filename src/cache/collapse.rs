//! Collapsed forwarding: identical requests of one credential that are in flight together make one exchange.
//!
//! The first is the leader and runs in its own task; the others wait for what it publishes. A leader that
//! goes away, or whose answer cannot be shared, wakes them empty-handed, and each goes on for itself.
//!
//! A request joins only one that was made a moment ago: an answer that was long on its way may be older than
//! the question.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

/// Requests in flight, by what makes them identical.
pub struct InFlight<K, V> {
    leaders: Mutex<HashMap<K, Flight<V>, foldhash::fast::RandomState>>,
    next: AtomicU64,
}

struct Flight<V> {
    number: u64,
    since: Instant,
    receiver: watch::Receiver<Option<V>>,
}

/// How old a request may be that others join.
const JOINABLE: Duration = Duration::from_secs(1);

impl<K, V> Default for InFlight<K, V> {
    fn default() -> Self {
        InFlight { leaders: Mutex::default(), next: AtomicU64::new(0) }
    }
}

/// What a request is to the others like it.
pub enum Role<K: Hash + Eq, V> {
    Leader(Leader<K, V>),
    Follower(Follower<V>),
}

impl<K: Hash + Eq + Clone, V: Clone> InFlight<K, V> {
    /// Joins those in flight, or leads.
    pub fn join(self: &Arc<Self>, key: K, now: Instant) -> Role<K, V> {
        let mut leaders = self.leaders.lock();
        if let Some(flight) = leaders.get(&key).filter(|f| now.saturating_duration_since(f.since) < JOINABLE) {
            return Role::Follower(Follower { receiver: flight.receiver.clone() });
        }
        let (sender, receiver) = watch::channel(None);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        leaders.insert(key.clone(), Flight { number, since: now, receiver });
        Role::Leader(Leader { key: Some(key), number, sender, in_flight: self.clone() })
    }
}

/// The request that goes upstream for all. Dropping it ends the flight.
pub struct Leader<K: Hash + Eq, V> {
    key: Option<K>,
    number: u64,
    sender: watch::Sender<Option<V>>,
    in_flight: Arc<InFlight<K, V>>,
}

impl<K: Hash + Eq, V> Leader<K, V> {
    /// Whether anybody waits for the answer.
    pub fn has_followers(&self) -> bool {
        self.sender.receiver_count() > 1
    }

    /// Gives the answer to all who wait.
    pub fn publish(mut self, value: V) {
        self.leave();
        self.sender.send_replace(Some(value));
    }

    fn leave(&mut self) {
        if let Some(key) = self.key.take() {
            let mut leaders = self.in_flight.leaders.lock();
            // A younger one may have taken its place.
            if leaders.get(&key).is_some_and(|f| f.number == self.number) {
                leaders.remove(&key);
            }
        }
    }
}

impl<K: Hash + Eq, V> Drop for Leader<K, V> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// A request that waits for another's answer.
pub struct Follower<V> {
    receiver: watch::Receiver<Option<V>>,
}

impl<V: Clone> Follower<V> {
    /// The leader's answer; none if there is none to share.
    pub async fn answer(mut self) -> Option<V> {
        let value = self.receiver.wait_for(Option::is_some).await.ok()?;
        value.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn followers_get_the_leaders_answer() {
        let flights = Arc::new(InFlight::<u8, u8>::default());
        let Role::Leader(leader) = flights.join(1, Instant::now()) else { panic!("first") };
        let Role::Follower(follower) = flights.join(1, Instant::now()) else { panic!("second") };
        let Role::Leader(_) = flights.join(2, Instant::now()) else { panic!("other") };
        assert!(leader.has_followers());
        leader.publish(7);
        assert_eq!(follower.answer().await, Some(7));
        assert!(matches!(flights.join(1, Instant::now()), Role::Leader(_)));
    }

    #[tokio::test]
    async fn nobody_joins_what_was_asked_long_ago() {
        let flights = Arc::new(InFlight::<u8, u8>::default());
        let now = Instant::now();
        let Role::Leader(old) = flights.join(1, now) else { panic!("first") };
        let Role::Leader(young) = flights.join(1, now + JOINABLE) else { panic!("too late to join") };
        drop(old);
        let Role::Follower(follower) = flights.join(1, now + JOINABLE) else { panic!("the young one still leads") };
        young.publish(7);
        assert_eq!(follower.answer().await, Some(7));
    }

    #[tokio::test]
    async fn a_leader_that_goes_away_sets_its_followers_free() {
        let flights = Arc::new(InFlight::<u8, u8>::default());
        let Role::Leader(leader) = flights.join(1, Instant::now()) else { panic!("first") };
        let Role::Follower(follower) = flights.join(1, Instant::now()) else { panic!("second") };
        drop(leader);
        assert_eq!(follower.answer().await, None);
        assert!(matches!(flights.join(1, Instant::now()), Role::Leader(_)));
    }
}
