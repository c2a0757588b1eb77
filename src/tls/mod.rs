//! TLS on both sides: the CA that clients trust, the leaf they are shown, and the roots we trust upstream.

pub mod authority;
pub mod files;
pub mod hello;
pub mod roots;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};

/// aws-lc-rs, with AES-128-GCM first: its handshake hashes with SHA-256, which processors have instructions
/// for, and SHA-384, which they have not, was the dearest single part of a handshake.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = default_provider();
    let first = [
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    ];
    provider.cipher_suites.sort_by_key(|suite| !first.contains(suite));
    Arc::new(provider)
}
