//! The cache: what may be stored, under which key, and what a stored response may be used for.
//!
//! `key`, `policy`, `listing`, `precondition` and `stored` are pure: they know neither tokio nor sled nor
//! the clock (`now` is an argument). `store` is where responses live: a layer in `memory`, and behind it a room, `sled` on
//! disk (`log` their bytes, `index` where they lie) or `redis` (`shared` is what it asks for being shared); `collapse` joins identical requests that are in flight together.

pub mod collapse;
mod index;
pub mod key;
pub mod listing;
mod log;
mod memory;
pub mod policy;
pub mod precondition;
pub mod redis;
mod shared;
pub mod sled;
pub mod store;
pub mod stored;
