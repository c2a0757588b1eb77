//! The cache: what may be stored, under which key, and what a stored response may be used for.
//!
//! `key`, `policy`, `listing`, `precondition` and `stored` are pure: they know neither tokio nor sled nor
//! the clock (`now` is an argument). `store` is the room where responses live, `sled` what keeps them on
//! disk; `collapse` joins identical requests that are in flight together.

pub mod collapse;
pub mod key;
pub mod listing;
pub mod policy;
pub mod precondition;
pub mod sled;
pub mod store;
pub mod stored;
