//! TLS on both sides: the CA that clients trust, the leaf they are shown, and the roots we trust upstream.

pub mod authority;
pub mod files;
pub mod hello;
pub mod roots;
