//! The CA on disk: made once, name-constrained, its root's key never written.
//!
//! `DATA/ca/` (0700) holds `root.pem`, `intermediate.pem` and `intermediate.key` (0600). The certificates
//! directory gets what clients need and nothing secret.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// How long root and intermediate live. The root's key is gone, so they end together; `ghtap ca rotate`
/// makes new ones.
const CA_VALIDITY: Duration = Duration::days(5 * 365);

/// What is wrong with the CA, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no CA in {0}; run: ghtap ca init")]
    Missing(PathBuf),
    #[error("{path} is open to others (mode {mode:03o}); run: chmod {wanted:o} {path}")]
    Loose { path: String, mode: u32, wanted: u32 },
    #[error("{0}: {1}")]
    Io(PathBuf, std::io::Error),
    #[error("the CA in {0} cannot be read ({1}); restore it, or run: ghtap ca rotate")]
    Broken(PathBuf, String),
    #[error(
        "the CA in {path} is for {has}, not for {missing}; run: ghtap ca rotate --intercept {wanted}, then trust the new root"
    )]
    Hosts { path: PathBuf, has: String, missing: String, wanted: String },
    #[error("the CA in {0} expired on {1}; run: ghtap ca rotate, then trust the new root")]
    Expired(PathBuf, String),
    #[error("making a certificate failed: {0}")]
    Make(#[from] rcgen::Error),
}

/// The CA as it was read.
pub struct Ca {
    pub root_pem: String,
    pub intermediate_pem: String,
    pub(super) key: KeyPair,
    /// The hosts that it may name.
    pub hosts: Vec<String>,
    pub not_after: OffsetDateTime,
}

impl Ca {
    pub fn root_der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.root_pem.as_bytes()).expect("checked when it was read")
    }

    pub fn intermediate_der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.intermediate_pem.as_bytes()).expect("checked when it was read")
    }

    /// Refuses a CA whose constraints do not cover the hosts that are to be intercepted.
    pub fn check_hosts(&self, dir: &Path, hosts: &[String]) -> Result<(), Error> {
        match hosts.iter().find(|h| !self.hosts.contains(h)) {
            None => Ok(()),
            Some(missing) => {
                let (has, wanted) = (self.hosts.join(", "), hosts.join(","));
                Err(Error::Hosts { path: dir.to_owned(), has, missing: missing.clone(), wanted })
            }
        }
    }

    /// The sha256 of the root, as browsers and `openssl x509 -fingerprint` show it.
    pub fn fingerprint(&self) -> String {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &self.root_der());
        digest.as_ref().iter().map(|b| format!("{b:02X}")).collect::<Vec<_>>().join(":")
    }
}

/// The directory of the CA below a data directory.
pub fn directory(data_dir: &Path) -> PathBuf {
    data_dir.join("ca")
}

/// Reads the CA, or makes it if there is none. Refuses one that others may read, that has expired, or that
/// does not cover `hosts`.
pub fn open(data_dir: &Path, hosts: &[String], unconstrained_root: bool) -> Result<Ca, Error> {
    let dir = directory(data_dir);
    if !dir.join("intermediate.pem").exists() {
        make(data_dir, hosts, unconstrained_root)?;
    }
    let ca = read(data_dir)?;
    ca.check_hosts(&dir, hosts)?;
    if ca.not_after < OffsetDateTime::now_utc() {
        return Err(Error::Expired(dir, ca.not_after.date().to_string()));
    }
    Ok(ca)
}

/// Makes a CA, in place of the one that is there.
pub fn make(data_dir: &Path, hosts: &[String], unconstrained_root: bool) -> Result<(), Error> {
    let dir = directory(data_dir);
    let fresh = data_dir.join(format!("ca.new.{}", std::process::id()));
    let io = |path: &Path| {
        let path = path.to_owned();
        move |e| Error::Io(path, e)
    };
    fs::create_dir_all(data_dir).map_err(io(data_dir))?;
    let _ = fs::remove_dir_all(&fresh);
    fs::DirBuilder::new().mode(0o700).create(&fresh).map_err(io(&fresh))?;

    let id = crate::github::etag::hex(&random::<4>());
    let root_key = KeyPair::generate()?;
    let mut root = authority(&format!("ghtap root {id}"), hosts);
    root.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    if unconstrained_root {
        root.name_constraints = None;
    }
    let root_cert = root.self_signed(&root_key)?;
    let key = KeyPair::generate()?;
    let mut intermediate = authority(&format!("ghtap intermediate {id}"), hosts);
    intermediate.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    intermediate.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    intermediate.use_authority_key_identifier_extension = true;
    let intermediate_cert = intermediate.signed_by(&key, &Issuer::from_params(&root, &root_key))?;
    drop(root_key);

    write(&fresh.join("root.pem"), root_cert.pem().as_bytes(), 0o644)?;
    write(&fresh.join("intermediate.pem"), intermediate_cert.pem().as_bytes(), 0o644)?;
    write(&fresh.join("intermediate.key"), key.serialize_pem().as_bytes(), 0o600)?;
    let old = data_dir.join(format!("ca.old.{}", std::process::id()));
    if dir.exists() {
        fs::rename(&dir, &old).map_err(io(&dir))?;
    }
    fs::rename(&fresh, &dir).map_err(io(&dir))?;
    let _ = fs::remove_dir_all(&old);
    Ok(())
}

fn authority(name: &str, hosts: &[String]) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished(name);
    params.not_before = now - Duration::hours(1);
    params.not_after = now + CA_VALIDITY;
    params.serial_number = Some(serial());
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: hosts.iter().cloned().map(GeneralSubtree::DnsName).collect(),
        // Names of another kind would not be constrained at all by permitted DNS names.
        excluded_subtrees: vec![
            GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([0; 4], 0)),
            GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix([0; 16], 0)),
        ],
    });
    params
}

pub(super) fn distinguished(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::OrganizationName, "ghtap");
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// A positive serial number of 127 random bits (RFC 5280, 4.1.2.2).
pub(super) fn serial() -> SerialNumber {
    let mut bytes = random::<16>();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// Random bytes from the system.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system has randomness");
    bytes
}

/// Reads the CA and checks that it is nobody else's to read.
pub fn read(data_dir: &Path) -> Result<Ca, Error> {
    let dir = directory(data_dir);
    if !dir.join("intermediate.pem").exists() {
        return Err(Error::Missing(dir));
    }
    refuse_loose(&dir, 0o700)?;
    let text = |name: &str| {
        let path = dir.join(name);
        fs::read_to_string(&path).map_err(|e| Error::Io(path, e))
    };
    let key_path = dir.join("intermediate.key");
    refuse_loose(&key_path, 0o600)?;
    let broken = |what: String| Error::Broken(dir.clone(), what);
    let (root_pem, intermediate_pem) = (text("root.pem")?, text("intermediate.pem")?);
    let key = KeyPair::from_pem(&text("intermediate.key")?).map_err(|e| broken(format!("intermediate.key: {e}")))?;
    CertificateDer::from_pem_slice(root_pem.as_bytes()).map_err(|e| broken(format!("root.pem: {e}")))?;
    let der = CertificateDer::from_pem_slice(intermediate_pem.as_bytes())
        .map_err(|e| broken(format!("intermediate.pem: {e}")))?;
    let (_, parsed) = X509Certificate::from_der(&der).map_err(|e| broken(format!("intermediate.pem: {e}")))?;
    let constraints = parsed.name_constraints().ok().flatten();
    let permitted = constraints.and_then(|c| c.value.permitted_subtrees.as_ref());
    let hosts = permitted.into_iter().flatten().filter_map(|subtree| match subtree.base {
        GeneralName::DNSName(name) => Some(name.to_owned()),
        _ => None,
    });
    let hosts = hosts.collect();
    if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return Err(broken("intermediate.key does not belong to intermediate.pem".into()));
    }
    let not_after = parsed.validity().not_after.to_datetime();
    Ok(Ca { hosts, not_after, root_pem, intermediate_pem, key })
}

/// Makes a directory that only we may read, or makes it so.
pub fn make_private(path: &Path) -> std::io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

fn refuse_loose(path: &Path, wanted: u32) -> Result<(), Error> {
    let mode = fs::metadata(path).map_err(|e| Error::Io(path.to_owned(), e))?.permissions().mode() & 0o777;
    if mode & !wanted & 0o077 != 0 {
        return Err(Error::Loose { path: path.display().to_string(), mode, wanted });
    }
    Ok(())
}

/// Writes a file whole or not at all, with these permissions from the start.
pub fn write(path: &Path, contents: &[u8], mode: u32) -> Result<(), Error> {
    let failed = |e| Error::Io(path.to_owned(), e);
    let fresh = path.with_extension(format!("new{}", std::process::id()));
    let _ = fs::remove_file(&fresh);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh).map_err(failed)?;
    file.write_all(contents).and_then(|()| file.sync_all()).map_err(failed)?;
    // The mode that is asked for is cut by the umask; what others must read has to be readable.
    fs::set_permissions(&fresh, fs::Permissions::from_mode(mode)).map_err(failed)?;
    fs::rename(&fresh, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts() -> Vec<String> {
        vec!["api.github.com".into()]
    }

    #[test]
    fn a_new_ca_is_constrained_and_closed() {
        let data = tempfile::tempdir().unwrap();
        let ca = open(data.path(), &hosts(), false).unwrap();
        assert_eq!(ca.hosts, hosts());
        let dir = directory(data.path());
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&dir.join("intermediate.key"))), (0o700, 0o600));
        let mut names: Vec<_> =
            fs::read_dir(&dir).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["intermediate.key", "intermediate.pem", "root.pem"], "no root key anywhere");
        for pem in [&ca.root_pem, &ca.intermediate_pem] {
            let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
            let (_, cert) = X509Certificate::from_der(&der).unwrap();
            let constraints = cert.name_constraints().unwrap().unwrap();
            assert!(constraints.critical);
            assert_eq!(constraints.value.permitted_subtrees.as_ref().unwrap().len(), 1);
        }
        assert_eq!(open(data.path(), &hosts(), false).unwrap().root_pem, ca.root_pem, "kept");
    }

    #[test]
    fn refusals() {
        let data = tempfile::tempdir().unwrap();
        assert!(matches!(read(data.path()), Err(Error::Missing(_))));
        open(data.path(), &hosts(), true).unwrap();
        let other = vec!["ghe.example.com".to_owned()];
        assert!(matches!(open(data.path(), &other, false), Err(Error::Hosts { .. })));
        let key = directory(data.path()).join("intermediate.key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(read(data.path()), Err(Error::Loose { mode: 0o640, .. })));
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
        assert!(matches!(read(data.path()), Err(Error::Broken(..))));
    }
}
