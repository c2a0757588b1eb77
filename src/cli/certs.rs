//! What clients need to trust the CA: files in the certificates directory.

use std::path::{Path, PathBuf};

use p12_keystore::{Certificate, KeyStore, KeyStoreEntry};
use rustls::pki_types::CertificateDer;

use super::Failure;
use crate::tls::files::{self, Ca};
use crate::tls::roots;

/// The password of the trust store: Java wants one, and there is nothing secret in it.
pub const PASSWORD: &str = "changeit";

/// The files that clients are pointed at.
pub struct Files {
    /// The root alone, PEM: for what adds to the system's roots.
    pub ca: PathBuf,
    /// The system's roots and ours, PEM: for what replaces them.
    pub bundle: PathBuf,
    /// The same as PKCS#12: for Java.
    pub truststore: PathBuf,
}

impl Files {
    pub fn below(dir: &Path) -> Files {
        Files { ca: dir.join("ca.pem"), bundle: dir.join("ca-bundle.pem"), truststore: dir.join("truststore.p12") }
    }

    /// Writes what is missing or not up to date.
    pub fn publish(dir: &Path, ca: &Ca) -> Result<Files, Failure> {
        std::fs::create_dir_all(dir).map_err(|e| {
            Failure::new(format_args!(
                "the certificates directory {} cannot be made: {e}; give another with --certs-dir",
                dir.display()
            ))
        })?;
        let files = Files::below(dir);
        let bundle = bundle(ca);
        let current = std::fs::read(&files.bundle).is_ok_and(|b| b == bundle.as_bytes());
        if current && files.truststore.exists() && std::fs::read(&files.ca).is_ok_and(|c| c == ca.root_pem.as_bytes()) {
            return Ok(files);
        }
        let write = |path: &Path, contents: &[u8]| {
            files::write(path, contents, 0o644)
                .map_err(|e| Failure::new(format_args!("{e}; give another directory with --certs-dir")))
        };
        write(&files.ca, ca.root_pem.as_bytes())?;
        write(&files.bundle, bundle.as_bytes())?;
        write(&files.truststore, &truststore(ca)?)?;
        Ok(files)
    }
}

/// The system's roots, without any that an earlier CA of ours left in a bundle.
fn system_roots() -> Vec<CertificateDer<'static>> {
    let ours = |der: &CertificateDer<'_>| {
        use x509_parser::prelude::{FromDer, X509Certificate};
        X509Certificate::from_der(der)
            .is_ok_and(|(_, cert)| cert.subject().iter_organization().any(|o| o.as_str() == Ok("ghtap")))
    };
    roots::system().into_iter().filter(|der| !ours(der)).collect()
}

/// The system's roots and ours, in PEM.
pub fn bundle(ca: &Ca) -> String {
    use base64::Engine;
    let mut out = String::new();
    for der in system_roots() {
        out.push_str("-----BEGIN CERTIFICATE-----\n");
        let text = base64::engine::general_purpose::STANDARD.encode(&der);
        for line in text.as_bytes().chunks(64) {
            out.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
            out.push('\n');
        }
        out.push_str("-----END CERTIFICATE-----\n");
    }
    out.push_str(&ca.root_pem);
    out
}

/// The system's roots and ours, in PKCS#12, marked as trusted the way Java wants it.
pub fn truststore(ca: &Ca) -> Result<Vec<u8>, Failure> {
    let mut store = KeyStore::new();
    let mut add = |alias: &str, der: &[u8]| match Certificate::from_der(der) {
        Ok(certificate) => store.add_entry(alias, KeyStoreEntry::Certificate(certificate)),
        Err(error) => tracing::debug!(%error, alias, "a root was left out of the trust store"),
    };
    for (i, der) in system_roots().iter().enumerate() {
        add(&format!("system-{i:03}"), der);
    }
    add("ghtap", &ca.root_der());
    store.writer(PASSWORD).write().map_err(|e| Failure::new(format_args!("the trust store cannot be made: {e}")))
}
