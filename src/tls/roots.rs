//! The roots that we trust upstream: the system's, and what `--upstream-ca` adds.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// The system's roots; `SSL_CERT_FILE` and `SSL_CERT_DIR` replace them, as everywhere.
pub fn system() -> Vec<CertificateDer<'static>> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "a system root was left out");
    }
    found.certs
}

/// The certificates in a PEM file.
///
/// # Errors
/// The file cannot be read, or has none.
pub fn pem_file(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let text = std::fs::read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match all {
        Ok(certs) if !certs.is_empty() => Ok(certs),
        Ok(_) => Err(io::Error::other("there is no certificate in it")),
        Err(error) => Err(io::Error::other(error.to_string())),
    }
}

/// How we speak TLS to origins: HTTP/1.1, verified.
pub fn client_config(extra: &[CertificateDer<'static>]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(system());
    roots.add_parsable_certificates(extra.iter().cloned());
    let config = ClientConfig::builder_with_provider(super::provider()).with_safe_default_protocol_versions();
    let mut config = config.expect("the provider has all versions").with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}
