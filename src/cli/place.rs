//! The data directory: whose it is now, and where the tap that holds it can be reached.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Failure;
use crate::admin::client::At;
use crate::tls::files;

/// What a running tap tells the other subcommands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tap {
    pub pid: u32,
    /// Whether it is a `serve`, and not the private tap of a `run`.
    pub shared: bool,
    pub proxy: SocketAddr,
    pub admin: Option<SocketAddr>,
    pub certs_dir: PathBuf,
    /// What the admin address wants to hear; only we can read it here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_token: Option<String>,
    /// What our own commands name themselves with to the proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_secret: Option<String>,
}

impl Tap {
    /// How to ask it.
    pub fn admin(&self) -> Result<At, Failure> {
        let address = self.admin.ok_or_else(|| Failure::new("the running tap has no admin address to ask"))?;
        Ok(At { address: reachable(address), token: self.admin_token.clone() })
    }
}

const STATE: &str = "tap.json";

/// A data directory that is ours until this is dropped.
pub struct Held {
    dir: PathBuf,
    _lock: File,
}

/// Makes a directory, and those above it; only we may read a new one.
pub fn make_private(dir: &Path) -> Result<(), Failure> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|e| {
        Failure::new(format_args!(
            "the data directory {} cannot be made: {e}; give another with --data-dir",
            dir.display()
        ))
    })
}

/// Takes the data directory. None: another process holds it.
pub fn hold(dir: &Path) -> Result<Option<Held>, Failure> {
    make_private(dir)?;
    let path = dir.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.map_err(|e| {
        Failure::new(format_args!(
            "the data directory cannot be written ({}: {e}); give another with --data-dir",
            path.display()
        ))
    })?;
    match file.try_lock() {
        Ok(()) => {
            let _ = fs::remove_file(dir.join(STATE));
            Ok(Some(Held { dir: dir.to_owned(), _lock: file }))
        }
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(e)) => Err(Failure::new(format_args!("{} cannot be locked: {e}", path.display()))),
    }
}

impl Held {
    /// Tells the other subcommands how to reach us.
    pub fn announce(&self, tap: &Tap) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(tap).map_err(Failure::new)?;
        files::write(&self.dir.join(STATE), text.as_bytes(), 0o600).map_err(Failure::new)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.dir.join(STATE));
    }
}

/// The tap that holds a data directory now, if it has said how to reach it.
pub fn running(dir: &Path) -> Option<Tap> {
    let lock = OpenOptions::new().write(true).open(dir.join("lock")).ok()?;
    match lock.try_lock() {
        // Nobody holds it: what the file says is of a process that was killed.
        Ok(()) => None,
        Err(_) => serde_json::from_slice(&fs::read(dir.join(STATE)).ok()?).ok(),
    }
}

/// The secret that credentials are digested with; made at first use.
pub fn secret(dir: &Path) -> Result<Vec<u8>, Failure> {
    let path = dir.join("secret");
    match fs::read(&path) {
        Ok(secret) if secret.len() >= 32 => Ok(secret),
        Ok(_) => Err(Failure::new(format_args!("{} is damaged; remove it, and a new one is made", path.display()))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let secret: [u8; 32] = files::random();
            files::write(&path, &secret, 0o600).map_err(Failure::new)?;
            Ok(secret.to_vec())
        }
        Err(e) => Err(Failure::new(format_args!("{}: {e}", path.display()))),
    }
}

/// A secret that several taps share.
pub fn shared_secret(path: &Path) -> Result<Vec<u8>, Failure> {
    let wrong = |what: &dyn std::fmt::Display| Failure::new(format_args!("--secret-file {}: {what}", path.display()));
    let secret = fs::read(path).map_err(|e| wrong(&e))?;
    match secret.len() >= 32 {
        true => Ok(secret),
        false => Err(wrong(&"it has less than 32 bytes; make one with: openssl rand -out FILE 32")),
    }
}

/// The token of the admin address; made at first use. Says where it is.
pub fn admin_token(dir: &Path) -> Result<(String, PathBuf), Failure> {
    let path = dir.join("admin-token");
    match fs::read_to_string(&path) {
        Ok(token) if token.trim().len() >= 8 => Ok((token.trim().to_owned(), path)),
        Ok(_) => Err(Failure::new(format_args!("{} is damaged; remove it, and a new one is made", path.display()))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let token = crate::github::etag::hex(&files::random::<20>());
            files::write(&path, format!("{token}\n").as_bytes(), 0o600).map_err(Failure::new)?;
            Ok((token, path))
        }
        Err(e) => Err(Failure::new(format_args!("{}: {e}", path.display()))),
    }
}

/// An address that a client on this machine can use: a wildcard becomes loopback.
pub fn reachable(address: SocketAddr) -> SocketAddr {
    let loopback = |v4: bool| if v4 { "127.0.0.1" } else { "::1" };
    match address.ip().is_unspecified() {
        true => SocketAddr::new(loopback(address.is_ipv4()).parse().expect("an address"), address.port()),
        false => address,
    }
}
