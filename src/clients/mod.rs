//! Who is calling: the client and the run that its proxy URL names, else its address.
//!
//! Without `--require-proxy-auth` a name is a label, and nothing is checked. With it, a name comes with the secret that
//! the file of clients has for it, or from an address rule: git sends its name only when it is asked for it, Java
//! not even then.
//!
//! A client of a registry can also be known by the token in its `Authorization`, which then never leaves the house.

mod file;
pub mod scopes;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use aws_lc_rs::{constant_time, hmac};
use base64::Engine;
use http::{HeaderMap, header};
use ipnet::IpNet;
use moka::sync::Cache;
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

pub use file::{ClientsFile, Proof, Registered};

/// A client, and the run of it that a call belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub client: Arc<str>,
    /// Empty if it named none.
    pub run: Arc<str>,
    /// What it was known by, where that was asked for.
    pub proof: Option<Proof>,
}

/// Names are labels: longer ones are cut.
const MAX_NAME: usize = 64;
/// How long a wrong secret stays so; a right one does until the file says otherwise.
const WRONG_FOR: Duration = Duration::from_secs(300);
/// Secrets that are checked at once, that wait for it, and how long: who guesses must not keep out who knows.
const CHECKING: usize = 2;
const MAX_WAITING: usize = 32;
const WAIT: Duration = Duration::from_secs(3);

impl Caller {
    /// A caller that gave no name.
    pub fn at(address: IpAddr) -> Caller {
        Caller { client: address.to_canonical().to_string().into(), run: "".into(), proof: None }
    }

    /// A caller by its names; anything unusual in them becomes `_`.
    pub fn named(name: &str, run: &str) -> Caller {
        Caller { client: label(name).into(), run: label(run).into(), proof: None }
    }
}

/// A caller that is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    #[error(
        "this proxy serves known clients only: put a name and its secret into the proxy's URL, http://NAME:SECRET@HOST:PORT"
    )]
    Nameless,
    #[error("the name or the secret in the proxy's URL is wrong")]
    Wrong,
    #[error("too many secrets are being checked just now; try again")]
    Busy,
}

/// A file, as it was when it was last read.
struct Source {
    path: PathBuf,
    env: Vec<(String, String)>,
    modified: Mutex<Option<SystemTime>>,
}

/// Tells who calls.
pub struct Clients {
    rules: Vec<(IpNet, Caller)>,
    file: Option<(Source, RwLock<Arc<ClientsFile>>)>,
    require: bool,
    /// Who calls, where the connection does not say.
    default: Option<Caller>,
    /// Which names and secrets were found right, and which wrong, by their digest and that of what they were compared
    /// with: so what the file no longer says is no longer right.
    right: Cache<[u8; 32], ()>,
    wrong: Cache<[u8; 32], ()>,
    /// Lets our own commands in, under any name.
    own_secret: Option<String>,
    key: hmac::Key,
    /// Checking a secret takes long by design: elsewhere, and few at a time.
    house: Handle,
    checking: Semaphore,
    waiting: AtomicUsize,
}

impl Clients {
    /// Must be called within the runtime that is to check secrets. `secret` never leaves the data directory;
    /// `own_secret` lets our own commands in.
    ///
    /// # Errors
    /// One line about the file.
    pub fn new(
        rules: Vec<(IpNet, String)>,
        file: Option<PathBuf>,
        require: bool,
        default: Option<Caller>,
        secret: &[u8],
        own_secret: Option<String>,
    ) -> Result<Clients, String> {
        let file = match file {
            None if require => return Err("--require-proxy-auth needs --clients-file FILE: who is known?".into()),
            None => None,
            Some(path) => {
                // What a registry's templates may name.
                let text = |v: std::ffi::OsString| v.into_string().ok();
                let env = std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)?))).collect();
                let source = Source { path, env, modified: Mutex::default() };
                let read = source.read()?;
                Some((source, RwLock::new(Arc::new(read))))
            }
        };
        Ok(Clients {
            rules: rules.into_iter().map(|(net, name)| (net, Caller::named(&name, ""))).collect(),
            file,
            require,
            default,
            right: Cache::new(10_000),
            wrong: Cache::builder().max_capacity(10_000).time_to_live(WRONG_FOR).build(),
            own_secret,
            key: hmac::Key::new(hmac::HMAC_SHA256, secret),
            house: Handle::current(),
            checking: Semaphore::new(CHECKING),
            waiting: AtomicUsize::new(0),
        })
    }

    /// The caller of a connection from `address` that sent these fields to the proxy: by the user part of
    /// `Proxy-Authorization: Basic` (`client+run`), else by address.
    pub async fn identify(&self, headers: Option<&HeaderMap>, address: IpAddr) -> Result<Caller, Unknown> {
        let address = address.to_canonical();
        let by_address = || self.rules.iter().find(|(net, _)| net.contains(&address)).map(|(_, caller)| caller.clone());
        let nameless = || by_address().or_else(|| self.default.clone());
        let Some((user, secret)) = headers.and_then(credentials) else {
            return match (nameless(), self.require) {
                (Some(caller), _) => Ok(caller),
                (None, true) => Err(Unknown::Nameless),
                (None, false) => Ok(Caller::at(address)),
            };
        };
        let (name, run) = user.split_once('+').unwrap_or((&user, ""));
        let proof = if self.require { self.check(name, &secret).await? } else { None };
        if name.is_empty() {
            let caller = nameless().unwrap_or_else(|| Caller::at(address));
            return Ok(Caller { run: label(run).into(), ..caller });
        }
        Ok(Caller { proof, ..Caller::named(name, run) })
    }

    /// The client of the registry whose token a request carries as its `Authorization`.
    pub fn registered(&self, headers: &HeaderMap) -> Option<Arc<Registered>> {
        let (_, file) = self.file.as_ref()?;
        let file = file.read().clone();
        file.registered(headers).cloned()
    }

    /// Whether an `Authorization` holds a client's secret, however it is put: nobody else is to see it.
    pub fn holds_secret(&self, headers: &HeaderMap) -> bool {
        self.file.as_ref().is_some_and(|(_, file)| {
            let file = file.read().clone();
            file.holds_secret(headers)
        })
    }

    /// Whether any client is known by a token.
    pub fn has_registry(&self) -> bool {
        self.file.as_ref().is_some_and(|(_, file)| file.read().has_tokens())
    }

    /// Whether a caller is still known by what it was known by: for each request on a connection that stays open.
    pub fn still_knows(&self, caller: &Caller) -> bool {
        match (&caller.proof, &self.file) {
            (Some(proof), Some((_, file))) => file.read().proof(&caller.client) == Some(*proof),
            _ => true,
        }
    }

    async fn check(&self, name: &str, secret: &str) -> Result<Option<Proof>, Unknown> {
        let same = |own: &String| constant_time::verify_slices_are_equal(own.as_bytes(), secret.as_bytes()).is_ok();
        if self.own_secret.as_ref().is_some_and(same) {
            return Ok(None);
        }
        let Some((_, file)) = &self.file else { return Err(Unknown::Wrong) };
        let file = file.read().clone();
        let proof = file.proof(name).ok_or(Unknown::Wrong)?;
        let mut context = hmac::Context::with_key(&self.key);
        for part in [name.as_bytes(), secret.as_bytes(), proof.as_bytes()] {
            context.update(&part.len().to_be_bytes());
            context.update(part);
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.sign().as_ref());
        if self.right.contains_key(&digest) {
            return Ok(Some(proof));
        }
        if self.wrong.contains_key(&digest) {
            return Err(Unknown::Wrong);
        }
        let waiting = Waiting::begin(&self.waiting).ok_or(Unknown::Busy)?;
        let permit = tokio::time::timeout(WAIT, self.checking.acquire()).await;
        let Ok(Ok(_permit)) = permit else { return Err(Unknown::Busy) };
        drop(waiting);
        let (name, secret) = (name.to_owned(), secret.to_owned());
        let right = self.house.spawn_blocking(move || file.verify(&name, &secret)).await.unwrap_or(false);
        if right {
            self.right.insert(digest, ());
            return Ok(Some(proof));
        }
        self.wrong.insert(digest, ());
        Err(Unknown::Wrong)
    }

    /// Reads the file again if it has changed. One that is wrong changes nothing, and is told of. Blocks on the disk.
    pub fn reload(&self) {
        let Some((source, file)) = &self.file else { return };
        if *source.modified.lock() == source.changed() {
            return;
        }
        match source.read() {
            Ok(mut read) => {
                read.succeed(&file.read());
                tracing::info!(clients = read.len(), file = %source.path.display(), "the clients were read again");
                *file.write() = Arc::new(read);
            }
            Err(error) => tracing::error!("{error}; the clients stay as they were"),
        }
    }
}

/// Somebody whose secret waits to be checked.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(waiting: &'a AtomicUsize) -> Option<Waiting<'a>> {
        let before = waiting.fetch_add(1, Ordering::Relaxed);
        let begun = Waiting(waiting);
        (before < MAX_WAITING).then_some(begun)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Source {
    fn changed(&self) -> Option<SystemTime> {
        std::fs::metadata(&self.path).and_then(|m| m.modified()).ok()
    }

    fn read(&self) -> Result<ClientsFile, String> {
        *self.modified.lock() = self.changed();
        let failed = |e: &dyn std::fmt::Display| format!("--clients-file {}: {e}", self.path.display());
        let text = std::fs::read_to_string(&self.path).map_err(|e| failed(&e))?;
        ClientsFile::parse(&text, self.env.iter().cloned()).map_err(|e| failed(&e))
    }
}

/// User and secret of `Proxy-Authorization: Basic` (RFC 7617); none if there is no user.
fn credentials(headers: &HeaderMap) -> Option<(String, String)> {
    let value = headers.get(header::PROXY_AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (user, secret) = text.split_once(':').unwrap_or((&text, ""));
    (!user.is_empty()).then(|| (user.to_owned(), secret.to_owned()))
}

/// A name that is safe in a log, a label and a table: anything unusual becomes `_`.
fn label(name: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || "._:/@#-".contains(c) { c } else { '_' };
    name.chars().take(MAX_NAME).map(safe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::PROXY_AUTHORIZATION, value.parse().unwrap())])
    }

    fn basic(text: &str) -> String {
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text))
    }

    fn clients(file: Option<PathBuf>, require: bool) -> Clients {
        let rules = vec![("10.2.0.0/16".parse().unwrap(), "office".to_owned())];
        Clients::new(rules, file, require, None, b"secret", Some("our own".into())).unwrap()
    }

    #[tokio::test]
    async fn names_are_labels() {
        let clients = clients(None, false);
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        for (value, client, run) in [
            (basic("packit-worker+run-4711:x"), "packit-worker", "run-4711"),
            (basic("packit-worker:x"), "packit-worker", ""),
            (basic("packit-worker"), "packit-worker", ""),
            (basic("+7:x"), "10.0.0.1", "7"),
            (basic("a b\n+c\"d:x"), "a_b_", "c_d"),
            (basic(":x"), "10.0.0.1", ""),
            ("Bearer x".into(), "10.0.0.1", ""),
            ("Basic !!!".into(), "10.0.0.1", ""),
        ] {
            let caller = clients.identify(Some(&named(&value)), address).await.unwrap();
            assert_eq!((&*caller.client, &*caller.run), (client, run), "{value}");
        }
        for (address, client) in
            [("::ffff:10.0.0.2", "10.0.0.2"), ("::ffff:10.2.0.2", "office"), ("10.2.9.9", "office")]
        {
            assert_eq!(&*clients.identify(None, address.parse().unwrap()).await.unwrap().client, client);
        }
        let caller = clients.identify(Some(&named(&basic("+7:x"))), "10.2.0.1".parse().unwrap()).await.unwrap();
        assert_eq!((&*caller.client, &*caller.run), ("office", "7"));
    }

    #[tokio::test]
    async fn unknown_callers_are_refused_where_it_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("clients");
        std::fs::write(&path, format!("ci:{}\n", bcrypt::hash("s", 4).unwrap())).unwrap();
        let clients = clients(Some(path.clone()), true);
        let (far, near): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.2.0.1".parse().unwrap());
        let as_user = async |user: &str, address| {
            let found = clients.identify(Some(&named(&basic(user))), address).await;
            found.map(|c| format!("{}+{}", c.client, c.run))
        };
        assert_eq!(as_user("ci+7:s", far).await, Ok("ci+7".into()));
        assert_eq!(as_user("ci:wrong", far).await, Err(Unknown::Wrong));
        assert_eq!(as_user("ci:wrong", near).await, Err(Unknown::Wrong));
        assert_eq!(as_user("other:s", far).await, Err(Unknown::Wrong));
        assert_eq!(as_user("pytest+9:our own", far).await, Ok("pytest+9".into()));
        let known = clients.identify(Some(&named(&basic("ci:s"))), far).await.unwrap();
        assert!(clients.still_knows(&known));
        assert_eq!(as_user("+7:s", far).await, Err(Unknown::Wrong));
        assert_eq!(clients.identify(None, far).await, Err(Unknown::Nameless));
        assert_eq!(&*clients.identify(None, near).await.unwrap().client, "office");
        // A file that is wrong changes nothing; a right one does, also for what was checked before.
        let rewrite = |text: &str, later| {
            std::fs::write(&path, text).unwrap();
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::now() + Duration::from_secs(later)).unwrap();
            clients.reload();
        };
        rewrite("nonsense", 1);
        assert!(as_user("ci:s", far).await.is_ok());
        rewrite(&format!("ci:{}\n", bcrypt::hash("t", 4).unwrap()), 2);
        assert_eq!(as_user("ci:s", far).await, Err(Unknown::Wrong));
        assert!(as_user("ci:t", far).await.is_ok());
        assert!(!clients.still_knows(&known), "nor on a connection that stayed open");
        let nobody = Clients::new(Vec::new(), None, true, None, b"", None).err().unwrap();
        assert!(nobody.contains("--clients-file"));
    }
}
