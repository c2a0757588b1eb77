//! The leaf that clients are shown, kept in date while we run.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::RwLock;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{NamedGroup, ServerConfig};
use time::{Duration, OffsetDateTime};

use super::files::{self, Ca, Error};

/// How long a leaf lives. Clients are promised at most 90 days.
const LEAF_VALIDITY: Duration = Duration::days(30);
/// A leaf with less than this left is replaced.
const RENEW_BEFORE: Duration = Duration::days(10);

/// Issues the leaf, and the TLS configuration that shows it.
pub struct Authority {
    data_dir: PathBuf,
    hosts: Vec<String>,
    shown: Arc<Shown>,
    state: parking_lot::Mutex<State>,
    config: Arc<ServerConfig>,
}

struct State {
    ca: Ca,
    ca_modified: Option<SystemTime>,
    renew_at: OffsetDateTime,
}

#[derive(Debug)]
struct Shown(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().clone())
    }
}

impl Authority {
    /// Issues the first leaf for `hosts`.
    pub fn new(data_dir: PathBuf, ca: Ca, hosts: Vec<String>) -> Result<Authority, Error> {
        let now = OffsetDateTime::now_utc();
        let (leaf, renew_at) = issue(&ca, &hosts, now)?;
        let shown = Arc::new(Shown(RwLock::new(leaf)));
        let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
        let mut config = ServerConfig::builder_with_provider(near_provider())
            .with_protocol_versions(&versions)
            .expect("the provider has both versions")
            .with_no_client_auth()
            .with_cert_resolver(shown.clone());
        config.ignore_client_order = true;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Tickets cost no memory for each client, and a resumed handshake no signature.
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().expect("the system has randomness");
        config.send_tls13_tickets = 1;
        let ca_modified = modified(&data_dir);
        let state = parking_lot::Mutex::new(State { ca, ca_modified, renew_at });
        Ok(Authority { data_dir, hosts, shown, state, config: Arc::new(config) })
    }

    /// What an intercepted connection is accepted with.
    pub fn server_config(&self) -> &Arc<ServerConfig> {
        &self.config
    }

    /// Replaces the leaf when it nears its end, or when the CA was rotated. Reads the disk: call it now
    /// and then, not for each connection. True if it did.
    pub fn keep_current(&self, now: OffsetDateTime) -> Result<bool, Error> {
        let modified = modified(&self.data_dir);
        let mut state = self.state.lock();
        if modified != state.ca_modified {
            let ca = files::read(&self.data_dir)?;
            ca.check_hosts(&files::directory(&self.data_dir), &self.hosts)?;
            state.ca = ca;
            state.ca_modified = modified;
        } else if now < state.renew_at {
            return Ok(false);
        }
        let (leaf, renew_at) = issue(&state.ca, &self.hosts, now)?;
        state.renew_at = renew_at;
        *self.shown.0.write() = leaf;
        Ok(true)
    }
}

/// Without post-quantum key exchange: rustls takes the client's first group, and ML-KEM would cost as much as
/// the rest of the handshake, on the short way from a client to its tap.
fn near_provider() -> Arc<CryptoProvider> {
    let mut provider = CryptoProvider::clone(&super::provider());
    provider.kx_groups.retain(|group| group.name() != NamedGroup::X25519MLKEM768);
    Arc::new(provider)
}

fn modified(data_dir: &std::path::Path) -> Option<SystemTime> {
    std::fs::metadata(files::directory(data_dir).join("intermediate.pem")).ok()?.modified().ok()
}

fn issue(ca: &Ca, hosts: &[String], now: OffsetDateTime) -> Result<(Arc<CertifiedKey>, OffsetDateTime), Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(hosts.to_vec())?;
    params.distinguished_name = files::distinguished(&hosts[0]);
    params.not_before = now - Duration::hours(1);
    params.not_after = (now + LEAF_VALIDITY).min(ca.not_after);
    params.serial_number = Some(files::serial());
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let intermediate = ca.intermediate_der();
    let issuer = Issuer::from_ca_cert_der(&intermediate, &ca.key)?;
    let leaf = params.signed_by(&key, &issuer)?;
    let chain = vec![leaf.der().clone(), intermediate];
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&private).expect("we made this key");
    Ok((Arc::new(CertifiedKey::new(chain, signing)), params.not_after - RENEW_BEFORE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::{FromDer, X509Certificate};

    #[test]
    fn leaves_are_renewed_in_time_and_follow_a_rotated_ca() {
        let data = tempfile::tempdir().unwrap();
        let hosts = vec!["api.github.com".to_owned()];
        let ca = files::open(data.path(), &hosts, false).unwrap();
        let authority = Authority::new(data.path().to_owned(), ca, hosts.clone()).unwrap();
        let shown = || authority.shown.0.read().cert[0].clone();
        let first = shown();
        let now = OffsetDateTime::now_utc();
        let (_, leaf) = X509Certificate::from_der(&first).unwrap();
        assert!(leaf.validity().not_after.to_datetime() - now <= Duration::days(90));
        assert!(!authority.keep_current(now + Duration::days(19)).unwrap());
        assert_eq!(shown(), first);
        assert!(authority.keep_current(now + Duration::days(21)).unwrap());
        let second = shown();
        assert_ne!(second, first);
        files::make(data.path(), &hosts, false).unwrap();
        assert!(authority.keep_current(now).unwrap());
        assert_ne!(authority.shown.0.read().cert[1], first);
    }
}
