//! Rows as they lie on disk: their names are numbers, and many of them lie together.

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
}

/// Rows that lie together: sled keeps few values on a page, and of each page a record in memory.
pub(super) type Rows = Vec<(Packed, Counts)>;
