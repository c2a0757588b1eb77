//! A row of the ledger: what is counted together, and the counts.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Outcome;

/// The dimensions. Cloning one allocates nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Dimensions {
    pub client: Arc<str>,
    pub run: Arc<str>,
    pub host: Arc<str>,
    /// Method and route template.
    pub route: Cow<'static, str>,
    pub credential: Arc<str>,
    pub status: u16,
    pub outcome: Outcome,
    /// The rate-limit resource that was charged; empty if unknown.
    pub resource: Cow<'static, str>,
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

/// Calls by how long they took: bucket `i` holds those under `64 µs << i`, the last one the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times(pub [u32; 20]);

impl Times {
    pub fn add(&mut self, micros: u64) {
        let bucket = (u64::BITS - (micros / 64).leading_zeros()) as usize;
        self.0[bucket.min(self.0.len() - 1)] += 1;
    }

    pub fn add_all(&mut self, other: &Times) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
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
    }
}
