//! A row as it lies on disk: its names are numbers.

use std::hash::BuildHasher;
use std::io;

use serde::{Deserialize, Serialize};

use super::Outcome;
use super::names::Names;
use super::row::{Counts, Dimensions};

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Packed {
    pub client: u32,
    pub host: u32,
    pub route: u32,
    pub credential: u32,
    pub resource: u32,
    pub status: u16,
    pub outcome: Outcome,
    pub in_run: bool,
}

impl Packed {
    pub fn of(dimensions: &Dimensions, names: &Names) -> io::Result<Packed> {
        Ok(Packed {
            client: names.number(&dimensions.client)?,
            host: names.number(&dimensions.host)?,
            route: names.number(&dimensions.route)?,
            credential: names.number(&dimensions.credential)?,
            resource: names.number(&dimensions.resource)?,
            status: dimensions.status,
            outcome: dimensions.outcome,
            in_run: dimensions.in_run,
        })
    }

    /// The same for the same row, in any process.
    pub fn digest(&self) -> u64 {
        foldhash::quality::FixedState::with_seed(0).hash_one(self)
    }

    pub fn write(&self, counts: &Counts) -> io::Result<Vec<u8>> {
        postcard::to_stdvec(&(self, counts)).map_err(io::Error::other)
    }

    /// None if it is not a row.
    pub fn read(value: &[u8]) -> Option<(Packed, Counts)> {
        postcard::from_bytes(value).ok()
    }
}
