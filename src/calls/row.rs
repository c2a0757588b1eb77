//! A row of the ledger: what is counted together, and the counts.

use std::borrow::Cow;
use std::sync::Arc;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Outcome;

/// The dimensions. Cloning one allocates nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Dimensions {
    pub client: Arc<str>,
    pub host: Arc<str>,
    /// Method and route template.
    pub route: Cow<'static, str>,
    pub credential: Arc<str>,
    pub status: u16,
    pub outcome: Outcome,
    /// The rate-limit resource that was charged; empty if unknown.
    pub resource: Cow<'static, str>,
    /// Whether the call belongs to a run; which one, the run's own rows say.
    pub in_run: bool,
}

/// What is counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Requests that clients made.
    pub calls: u64,
    /// Requests that left for GitHub.
    pub sent: u64,
    /// Of these, those that cost quota.
    pub charged: u64,
    /// Bytes of content that clients were sent, where the length was known at the head.
    pub bytes: u64,
    /// Microseconds from request to answer's head, all calls together.
    pub micros: u64,
    pub times: Times,
}

/// Calls by how long they took: bucket `i` holds those under `64 µs << i`, the last one the rest. Written as pairs of
/// bucket and number, because most are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Times(pub [u32; 20]);

impl Times {
    pub fn add(&mut self, micros: u64) {
        let bucket = (u64::BITS - (micros / 64).leading_zeros()) as usize;
        self.0[bucket.min(self.0.len() - 1)] += 1;
    }

    pub fn add_all(&mut self, other: &Times) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine = mine.saturating_add(theirs);
        }
    }

    /// The upper end, in microseconds, of the bucket that holds the given percentage of calls.
    pub fn quantile(&self, percent: u64) -> u64 {
        let total: u64 = self.0.iter().map(|n| u64::from(*n)).sum();
        let wanted = (total * percent).div_ceil(100).max(1);
        let mut seen = 0;
        for (i, n) in self.0.iter().enumerate() {
            seen += u64::from(*n);
            if seen >= wanted {
                return 64 << i;
            }
        }
        0
    }
}

impl Serialize for Times {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let filled = self.0.iter().zip(0u8..).filter(|(n, _)| **n > 0).map(|(n, bucket)| (bucket, *n));
        serializer.collect_seq(filled.collect::<Vec<(u8, u32)>>())
    }
}

impl<'de> Deserialize<'de> for Times {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Times, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Times;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("pairs of bucket and number")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut pairs: A) -> Result<Times, A::Error> {
                let mut times = Times::default();
                while let Some((bucket, number)) = pairs.next_element::<(u8, u32)>()? {
                    if let Some(n) = times.0.get_mut(usize::from(bucket)) {
                        *n = number;
                    }
                }
                Ok(times)
            }
        }
        deserializer.deserialize_seq(Pairs)
    }
}

impl Counts {
    pub fn merge(&mut self, other: &Counts) {
        self.calls += other.calls;
        self.sent += other.sent;
        self.charged += other.charged;
        self.bytes += other.bytes;
        self.micros += other.micros;
        self.times.add_all(&other.times);
    }
}

/// Rows summed up, whatever their outcome and status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sum {
    pub counts: Counts,
    /// Calls answered from the store.
    pub from_store: u64,
    /// Calls that would have cost quota, and did not: answered from the store, or by a free 304.
    pub saved: u64,
    /// Calls answered with 4xx or 5xx.
    pub errors: u64,
}

impl Sum {
    /// Adds a row with this outcome and status.
    pub fn add(&mut self, outcome: Outcome, status: u16, counts: &Counts) {
        self.counts.merge(counts);
        if outcome.is_from_store() {
            self.from_store += counts.calls;
        }
        if outcome.is_from_store() || outcome == Outcome::NotModified {
            self.saved += counts.calls.saturating_sub(counts.charged);
        }
        if status >= 400 {
            self.errors += counts.calls;
        }
    }

    pub fn merge(&mut self, other: &Sum) {
        self.counts.merge(&other.counts);
        self.from_store += other.from_store;
        self.saved += other.saved;
        self.errors += other.errors;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles() {
        let mut times = Times::default();
        for micros in [10, 10, 10, 200, 10_000] {
            times.add(micros);
        }
        assert_eq!((times.quantile(50), times.quantile(80), times.quantile(99)), (64, 256, 16_384));
        times.add(u64::MAX);
        assert_eq!(times.0[19], 1);
        let text = serde_json::to_string(&times).unwrap();
        assert_eq!(text, "[[0,3],[2,1],[8,1],[19,1]]");
        assert_eq!(serde_json::from_str::<Times>(&text).unwrap(), times);
    }

    #[test]
    fn sums_tell_what_was_saved() {
        let mut sum = Sum::default();
        let counts = |charged| Counts { calls: 1, charged, ..Counts::default() };
        sum.add(Outcome::Revalidated, 200, &counts(0));
        sum.add(Outcome::Revalidated, 200, &counts(1));
        sum.add(Outcome::NotModified, 304, &counts(0));
        sum.add(Outcome::Miss, 404, &counts(1));
        assert_eq!((sum.counts.calls, sum.from_store, sum.saved, sum.errors), (4, 2, 2, 1));
    }
}
