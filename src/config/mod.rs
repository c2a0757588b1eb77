//! The configuration: flags, `GHTAP_…` variables, a TOML file, the variables of github-mirror and github-proxy, in this
//! order. Nothing else reads the environment of ours. `read` does it, `values` knows what values look like.

mod mirrors;
mod read;
mod values;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::cache::policy::Freshness;
use crate::cache::redis::Servers;
use crate::calls::render::Format;
use crate::calls::report::{self, By};
use crate::origin::dial::Target;

pub use mirrors::{UNDERSTOOD as MIRRORS_VARIABLES, variables};
pub use read::parse;
use values::{
    allowed, client_rule, credential_name, duration, freshness, host, moment, network, percent, public_url, resolve,
    size, store, token, upstream,
};

/// A forward proxy that spends a fraction of GitHub's rate limit, and counts every call.
#[derive(Debug, Parser)]
#[command(name = "ghtap", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the proxy.
    Serve(Box<Serve>),
    /// Run a command through the tap, and print what it called.
    Run(Box<Run>),
    /// Print the variables that send a shell's programs through the tap.
    Env(Env),
    /// Make, show, export or rotate the CA.
    Ca(Ca),
    /// Print what was called, and what it cost.
    Report(Report),
    /// Look into the store, or empty it.
    Cache(CacheArgs),
    /// Check what goes wrong in practice, and say how to mend it.
    Doctor(Doctor),
    /// Exit with 0 if the tap on this data directory is ready: for a container's health check.
    Health(Health),
}

/// Where things are.
#[derive(Clone, Debug, Args)]
pub struct Places {
    /// Holds the store, the ledger, the CA's key and the secret that credentials are digested with. Nobody else may
    /// read it. [default: $XDG_DATA_HOME/ghtap/store]
    #[arg(long, value_name = "DIR", env = "GHTAP_DATA_DIR", global = true)]
    data_dir: Option<PathBuf>,
    /// Gets what clients need to trust the CA: ca.pem, ca-bundle.pem (the system's roots and ours), truststore.p12.
    /// Nothing secret. [default: $XDG_DATA_HOME/ghtap/certs]
    #[arg(long, value_name = "DIR", env = "GHTAP_CERTS_DIR", global = true)]
    certs_dir: Option<PathBuf>,
    /// A TOML file; its keys are the long names of the options. Flags and variables win.
    #[arg(long, value_name = "FILE", env = "GHTAP_CONFIG", global = true)]
    pub config: Option<PathBuf>,
}

impl Places {
    pub fn data_dir(&self) -> PathBuf {
        self.data_dir.clone().unwrap_or_else(|| default_dir("store"))
    }

    pub fn certs_dir(&self) -> PathBuf {
        self.certs_dir.clone().unwrap_or_else(|| default_dir("certs"))
    }
}

fn default_dir(name: &str) -> PathBuf {
    let set = |variable: &str| std::env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from);
    let data = set("XDG_DATA_HOME").filter(|p| p.is_absolute());
    let data = data.or_else(|| Some(set("HOME")?.join(".local/share")));
    data.unwrap_or_else(|| PathBuf::from("/var/lib")).join("ghtap").join(name)
}

/// How the tap works: for `serve`, and for the private tap of `run`.
#[derive(Clone, Debug, Args)]
pub struct Tap {
    #[command(flatten)]
    pub places: Places,
    /// A host whose TLS is terminated and whose GETs are cached. Repeatable; the CA's constraints cover exactly these.
    #[arg(long, value_name = "HOST", env = "GHTAP_INTERCEPT", value_delimiter = ',', default_value = "api.github.com", value_parser = host)]
    pub intercept: Vec<String>,
    /// Connect to ADDR (IP or IP:PORT) for HOST:PORT, as curl does. Repeatable.
    #[arg(long, value_name = "HOST:PORT:ADDR", env = "GHTAP_RESOLVE", value_delimiter = ',', value_parser = resolve)]
    pub resolve: Vec<Resolve>,
    /// Roots to trust upstream besides the system's: a PEM file.
    #[arg(long, value_name = "FILE", env = "GHTAP_UPSTREAM_CA")]
    pub upstream_ca: Option<PathBuf>,
    /// Go out through this proxy: http://[user:password@]host:port
    #[arg(long, value_name = "URL", env = "GHTAP_UPSTREAM_PROXY", hide_env_values = true)]
    pub upstream_proxy: Option<String>,
    /// How long GitHub may take to answer, and to pause within an answer.
    #[arg(long, value_name = "DURATION", env = "GHTAP_UPSTREAM_TIMEOUT", default_value = "30s", value_parser = duration)]
    pub upstream_timeout: Duration,
    /// How long a name, a connection or a handshake may take, each.
    #[arg(long, value_name = "DURATION", env = "GHTAP_CONNECT_TIMEOUT", default_value = "10s", value_parser = duration)]
    pub connect_timeout: Duration,
    /// Requests to GitHub under way at once; more wait.
    #[arg(long, value_name = "N", env = "GHTAP_UPSTREAM_CONCURRENCY", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub upstream_concurrency: u32,
    /// Where responses are stored: sled: (below the data directory), memory:, or redis://[[user]:password@]host[:port][/db]
    /// (rediss:// for TLS, valkey:// too), redis-cluster://host[:port],…, redis-sentinel://host[:port],…/master[/db].
    #[arg(long, value_name = "URL", env = "GHTAP_STORE", default_value = "sled:", hide_env_values = true, value_parser = store)]
    pub store: StoreKind,
    /// A replica to read from, where --store is redis:// or rediss://.
    #[arg(long, value_name = "URL", env = "GHTAP_STORE_READER", hide_env_values = true, value_parser = store)]
    pub store_reader: Option<StoreKind>,
    /// Roots to trust Redis by, instead of the system's: a PEM file.
    #[arg(long, value_name = "FILE", env = "GHTAP_STORE_CA")]
    pub store_ca: Option<PathBuf>,
    /// How long Redis may take over an answer; longer is a miss.
    #[arg(long, value_name = "DURATION", env = "GHTAP_STORE_TIMEOUT", default_value = "50ms", value_parser = duration)]
    pub store_timeout: Duration,
    /// How long Redis keeps what nobody asks for.
    #[arg(long, value_name = "DURATION", env = "GHTAP_STORE_TTL", default_value = "7d", value_parser = duration)]
    pub store_ttl: Duration,
    /// The secret that credentials are digested with: a file that taps with one Redis can share, so that each also knows
    /// what the other's clients had confirmed. 32 bytes or more. [default: made at first start, in the data directory]
    #[arg(long, value_name = "FILE", env = "GHTAP_SECRET_FILE")]
    pub secret_file: Option<PathBuf>,
    /// What the store may occupy on disk (or in memory, with memory:).
    #[arg(long, value_name = "SIZE", env = "GHTAP_STORE_MAX_BYTES", default_value = "1GiB", value_parser = size)]
    pub store_max_bytes: u64,
    /// What the layer in memory before the disk may hold.
    #[arg(long, value_name = "SIZE", env = "GHTAP_STORE_MEMORY_BYTES", default_value = "64MiB", value_parser = size)]
    pub store_memory_bytes: u64,
    /// Larger responses are not stored; nor those over a tenth of --store-max-bytes.
    #[arg(long, value_name = "SIZE", env = "GHTAP_MAX_OBJECT_BYTES", default_value = "20MiB", value_parser = size)]
    pub max_object_bytes: u64,
    /// When a stored response is served without asking: never (revalidate), for as long as GitHub's max-age says
    /// (origin), or for a duration.
    #[arg(long, value_name = "revalidate|origin|DURATION", env = "GHTAP_FRESHNESS", default_value = "revalidate", value_parser = freshness)]
    pub freshness: Freshness,
    /// How long to remember a 404 for content at a full commit id. 0s: not at all.
    #[arg(long, value_name = "DURATION", env = "GHTAP_NOT_FOUND_TTL", default_value = "0s", value_parser = duration)]
    pub not_found_ttl: Duration,
    /// How long to answer a GraphQL query (never a mutation) to the same credential from memory. 0s: not at all.
    #[arg(long, value_name = "DURATION", env = "GHTAP_GRAPHQL_TTL", default_value = "0s", value_parser = duration)]
    pub graphql_ttl: Duration,
    /// How old a stored response may be that stands in when GitHub cannot answer.
    #[arg(long, value_name = "DURATION", env = "GHTAP_STALE_MAX_AGE", default_value = "24h", value_parser = duration)]
    pub stale_max_age: Duration,
    /// Compute the entity tags that GitHub would give a credential, so that credentials share what is stored.
    #[arg(long, value_name = "on|off", env = "GHTAP_EXPECTED_ETAG", default_value = "on")]
    pub expected_etag: Switch,
    /// The ports that tunnels may go to. Repeatable.
    #[arg(long, value_name = "PORT", env = "GHTAP_TUNNEL_PORTS", value_delimiter = ',', default_value = "443", value_parser = clap::value_parser!(u16).range(1..))]
    pub tunnel_ports: Vec<u16>,
    /// Addresses that no tunnel and no http:// request may go to, checked after the name is resolved. Repeatable.
    #[arg(long, value_name = "CIDR", env = "GHTAP_TUNNEL_DENY", value_delimiter = ',', default_values = ["169.254.0.0/16", "fd00:ec2::254/128"], value_parser = network)]
    pub tunnel_deny: Vec<IpNet>,
    /// Close a tunnel through which nothing has moved for this long.
    #[arg(long, value_name = "DURATION", env = "GHTAP_TUNNEL_IDLE", default_value = "15m", value_parser = duration)]
    pub tunnel_idle: Duration,
    /// How long a client may take over a request head, or pause within its content.
    #[arg(long, value_name = "DURATION", env = "GHTAP_CLIENT_TIMEOUT", default_value = "30s", value_parser = duration)]
    pub client_timeout: Duration,
    /// How long an intercepted connection may be idle between two requests.
    #[arg(long, value_name = "DURATION", env = "GHTAP_IDLE_TIMEOUT", default_value = "90s", value_parser = duration)]
    pub idle_timeout: Duration,
    /// Connections at once; more wait to be accepted.
    #[arg(long, value_name = "N", env = "GHTAP_MAX_CONNECTIONS", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: u32,
    /// Leave the name constraints off the root (LibreSSL cannot read them there); the intermediate keeps them.
    #[arg(long, env = "GHTAP_UNCONSTRAINED_ROOT", value_parser = clap::builder::FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub unconstrained_root: bool,
    /// When a run that makes no more calls has ended.
    #[arg(long, value_name = "DURATION", env = "GHTAP_RUN_IDLE", default_value = "10m", value_parser = duration)]
    pub run_idle: Duration,
    /// How long the inventories of runs are kept. (Counts are kept by the minute for two days, by the hour for
    /// thirty, by the day for four hundred.)
    #[arg(long, value_name = "DURATION", env = "GHTAP_LEDGER_RETENTION", default_value = "30d", value_parser = duration)]
    pub ledger_retention: Duration,
    /// What reports call a credential, instead of the digits that they show for it. Repeatable.
    #[arg(long, value_name = "DIGITS=NAME", env = "GHTAP_CREDENTIAL_NAME", value_delimiter = ',', value_parser = credential_name)]
    pub credential_name: Vec<(String, String)>,
    /// Threads of the proxy. [default: one for each processor]
    #[arg(long, value_name = "N", env = "GHTAP_THREADS", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
}

#[derive(Clone, Debug, Args)]
pub struct Serve {
    #[command(flatten)]
    pub tap: Tap,
    /// The proxy's own address.
    #[arg(long, value_name = "ADDR", env = "GHTAP_LISTEN", default_value = "127.0.0.1:3128")]
    pub listen: SocketAddr,
    /// Health, metrics and reports.
    #[arg(long, value_name = "ADDR", env = "GHTAP_ADMIN", default_value = "127.0.0.1:3180")]
    pub admin: SocketAddr,
    /// Take TLS connections here, too, by server name: for clients that know no proxy and find us by a hosts file or DNS.
    #[arg(long, value_name = "ADDR", env = "GHTAP_LISTEN_TLS")]
    pub listen_tls: Option<SocketAddr>,
    /// Who calls from a network, where the proxy's URL gives no name: for git, which names itself only when asked to, and
    /// for Java. Repeatable; the first that fits counts.
    #[arg(long, value_name = "NETWORK=NAME", env = "GHTAP_CLIENT", value_delimiter = ',', value_parser = client_rule)]
    pub client: Vec<(IpNet, String)>,
    /// The clients that are known: lines of htpasswd -B, or a registry of github-proxy (YAML). Read again when it changes.
    #[arg(long, value_name = "FILE", env = "GHTAP_CLIENTS_FILE")]
    pub clients_file: Option<PathBuf>,
    /// Serve known clients only: those of --clients-file, with their secrets, and the networks of --client. Others get 407.
    #[arg(long, env = "GHTAP_REQUIRE_PROXY_AUTH", value_parser = clap::builder::FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub require_proxy_auth: bool,
    /// Answer API requests of those only whose Authorization is the token of a client in the registry; others get 401.
    /// (Who may use tunnels is --require-proxy-auth's affair.)
    #[arg(long, env = "GHTAP_CLIENTS_ONLY", value_parser = clap::builder::FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub clients_only: bool,
    /// The API that requests for the tap's own address are for: its URL, with /api/v3 for a GitHub Enterprise Server.
    /// Repeatable: once for /…, once for /api/v3/….
    #[arg(long, value_name = "URL", env = "GHTAP_UPSTREAM", value_delimiter = ',', default_value = "https://api.github.com", value_parser = upstream)]
    pub upstream: Vec<Upstream>,
    /// How clients reach the tap's own address: what the API's URL becomes in answers. With a path, where something before
    /// the tap takes it off again. [default: http:// and the request's Host]
    #[arg(long, value_name = "URL", env = "GHTAP_PUBLIC_URL", value_parser = public_url)]
    pub public_url: Option<String>,
    /// Serve only these logins, installation:ID and app:SLUG; others get 403, and 401 without a credential. Repeatable.
    #[arg(long, value_name = "LOGIN", env = "GHTAP_ALLOW_USER", value_parser = allowed)]
    pub allow_user: Vec<Allowed>,
    /// How long it is remembered whose a credential is, for --allow-user.
    #[arg(long, value_name = "DURATION", env = "GHTAP_USER_TTL", default_value = "1h", value_parser = duration)]
    pub user_ttl: Duration,
    /// So many failures in a row (to connect, to answer in time, or 5xx) mean that GitHub is offline. 0: never.
    #[arg(long, value_name = "N", env = "GHTAP_OFFLINE_AFTER", default_value_t = 5)]
    pub offline_after: u32,
    /// GitHub's status page, as JSON: its `API Requests` at `major_outage` means offline, too; for instance
    /// https://www.githubstatus.com/api/v2/components.json
    #[arg(long, value_name = "URL", env = "GHTAP_STATUS_URL", value_parser = public_url)]
    pub status_url: Option<String>,
    /// How often the status page is asked.
    #[arg(long, value_name = "DURATION", env = "GHTAP_STATUS_EVERY", default_value = "30s", value_parser = duration)]
    pub status_every: Duration,
    /// GitHub credentials for the clients of the registry, besides those in GITHUB_PAT_… and GITHUB_APP_…: a TOML file.
    #[arg(long, value_name = "FILE", env = "GHTAP_POOL_FILE")]
    pub pool_file: Option<PathBuf>,
    /// How long a request waits when all credentials of the pool rest. 0s: it gets 429 with Retry-After.
    #[arg(long, value_name = "DURATION", env = "GHTAP_POOL_WAIT", default_value = "0s", value_parser = duration)]
    pub pool_wait: Duration,
    /// How long a credential rests past its reset: GitHub's clock and ours may differ.
    #[arg(long, value_name = "DURATION", env = "GHTAP_POOL_PADDING", default_value = "1s", value_parser = duration)]
    pub pool_padding: Duration,
    /// What who asks the admin address must know, when it listens on more than loopback. [default: one is made at first
    /// start, in admin-token in the data directory]
    #[arg(long, value_name = "TOKEN", env = "GHTAP_ADMIN_TOKEN", hide_env_values = true, value_parser = token)]
    pub admin_token: Option<String>,
    /// A name by which the admin address is asked, besides its own IP address and localhost. Repeatable.
    #[arg(long, value_name = "HOST", env = "GHTAP_ADMIN_HOST", value_delimiter = ',', value_parser = host)]
    pub admin_host: Vec<String>,
    /// After SIGTERM or SIGINT, how long exchanges may take to finish.
    #[arg(long, value_name = "DURATION", env = "GHTAP_DRAIN", default_value = "30s", value_parser = duration)]
    pub drain: Duration,
    /// How to log.
    #[arg(long, value_name = "human|json", env = "GHTAP_LOG_FORMAT", default_value = "human")]
    pub log_format: LogFormat,
    /// What to log: error, warn, info (a line for each API request), debug; or tracing directives.
    #[arg(long, value_name = "LEVEL", env = "GHTAP_LOG", default_value = "info")]
    pub log: String,
}

impl Serve {
    /// Where the status page is, and its path.
    pub fn status_page(&self) -> Option<(Target, String)> {
        let (tls, host, port, path) = values::http_url(self.status_url.as_deref()?)?;
        let target = Target { host: host.into(), port, tls, guarded: false };
        Some((target, if path.is_empty() { "/".into() } else { path.to_owned() }))
    }
}

#[derive(Clone, Debug, Args)]
pub struct Run {
    #[command(flatten)]
    pub tap: Tap,
    /// Fail, with exit code 3, when the command makes more charged calls than this.
    #[arg(long, value_name = "N")]
    pub budget: Option<u64>,
    /// Compare with an inventory that --save kept, route by route; print what grew, what is new and what went, and fail,
    /// with exit code 3, when what grew and what is new is more than --tolerance.
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
    /// How much the charged calls of routes may grow, in percent of all charged calls of the baseline. What others became
    /// cheaper does not count against it.
    #[arg(long, value_name = "PERCENT", default_value = "10%", value_parser = percent)]
    pub tolerance: f64,
    /// Keep the inventory in a file.
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// How to print the inventory (to stderr).
    #[arg(long, value_name = "table|json|markdown", default_value = "table")]
    pub report: ReportFormat,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

#[derive(Clone, Debug, Args)]
pub struct Env {
    #[command(flatten)]
    pub places: Places,
    /// The syntax to print.
    #[arg(long, value_name = "sh|fish|powershell|json|dockerfile", default_value = "sh")]
    pub shell: Shell,
    /// The tap's address. [default: that of the running tap, else 127.0.0.1:3128]
    #[arg(long, value_name = "URL", env = "GHTAP_PROXY")]
    pub proxy: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub struct Ca {
    #[command(flatten)]
    pub places: Places,
    #[command(subcommand)]
    pub action: CaAction,
}

#[derive(Clone, Debug, Subcommand)]
pub enum CaAction {
    /// Make the CA, if there is none.
    Init(CaNew),
    /// Print the path of the root that clients are to trust.
    Path,
    /// Print what the CA is.
    Show,
    /// Print the root: PEM, DER, a PKCS#12 trust store (with the system's roots; password: changeit), or a PEM bundle of the system's roots and ours.
    Export {
        #[arg(long, value_name = "pem|der|p12|bundle", default_value = "pem")]
        format: Export,
        /// Write to a file.
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Make a new CA in place of the old one. Clients must trust the new root.
    Rotate(CaNew),
}

#[derive(Clone, Debug, Args)]
pub struct CaNew {
    /// The hosts that it may name. Repeatable. [default for rotate: those of the old CA]
    #[arg(long, value_name = "HOST", env = "GHTAP_INTERCEPT", value_delimiter = ',', value_parser = host)]
    pub intercept: Vec<String>,
    /// Leave the name constraints off the root (for LibreSSL); the intermediate keeps them.
    #[arg(long)]
    pub unconstrained_root: bool,
}

#[derive(Clone, Debug, Args)]
pub struct Report {
    #[command(flatten)]
    pub places: Places,
    /// What to sum up by.
    #[arg(long, value_name = "route|client|run|credential|host|hour|outcome", default_value = "route")]
    pub by: By,
    /// From when on: how long ago, or when, as 90m, 2d, 2026-11-21 or 2026-11-21T10:00:00Z. [default: all]
    #[arg(long, value_name = "MOMENT", value_parser = moment)]
    pub since: Option<String>,
    /// Until when. [default: now]
    #[arg(long, value_name = "MOMENT", value_parser = moment)]
    pub until: Option<String>,
    /// Only this run: the same as --where run=RUN.
    #[arg(long, value_name = "RUN")]
    pub run: Option<String>,
    /// Only what has this name, as client=ci or "route=GET /user". Repeatable.
    #[arg(long = "where", value_name = "WHAT=NAME", value_parser = report::only)]
    pub only: Vec<(By, String)>,
    /// The lines that cost most, so many.
    #[arg(long, value_name = "N")]
    pub top: Option<usize>,
    #[arg(long, value_name = "table|json|csv|markdown", default_value = "table")]
    pub format: Format,
}

#[derive(Clone, Debug, Args)]
pub struct CacheArgs {
    #[command(flatten)]
    pub places: Places,
    #[command(subcommand)]
    pub action: CacheAction,
}

#[derive(Clone, Debug, Subcommand)]
pub enum CacheAction {
    /// How much is stored.
    Stats,
    /// The URLs that are stored.
    List {
        /// Only those that begin so.
        #[arg(default_value = "")]
        prefix: String,
    },
    /// What is stored for a URL.
    Show { url: String },
    /// Remove what is stored for URLs that begin so; without a prefix, everything.
    Purge {
        #[arg(default_value = "")]
        prefix: String,
    },
}

#[derive(Clone, Debug, Args)]
pub struct Doctor {
    #[command(flatten)]
    pub places: Places,
    /// The tap to check. [default: that of the running tap, else HTTPS_PROXY]
    #[arg(long, value_name = "URL", env = "GHTAP_PROXY")]
    pub proxy: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub struct Health {
    #[command(flatten)]
    pub places: Places,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Human,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    Table,
    Json,
    Markdown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    Sh,
    Fish,
    Powershell,
    Json,
    Dockerfile,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Export {
    Pem,
    Der,
    P12,
    Bundle,
}

/// Where responses are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreKind {
    Sled,
    Memory,
    Redis(Servers),
    /// A URL that cannot be read, and why.
    Wrong(String),
}

/// One `--upstream`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub tls: bool,
    pub host: String,
    pub port: u16,
    /// Empty, or `/api/v3`: without a slash at the end.
    pub base: String,
}

impl std::fmt::Display for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (scheme, usual) = if self.tls { ("https", 443) } else { ("http", 80) };
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match self.port == usual {
            true => write!(f, "{scheme}://{host}{}", self.base),
            false => write!(f, "{scheme}://{host}:{}{}", self.port, self.base),
        }
    }
}

impl std::fmt::Display for StoreKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StoreKind::Sled => f.write_str("on disk"),
            StoreKind::Memory => f.write_str("in memory"),
            StoreKind::Redis(servers) => write!(f, "{servers}"),
            StoreKind::Wrong(_) => f.write_str("-"),
        }
    }
}

/// What one `--allow-user` lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed(pub Vec<String>);

/// One `--resolve`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolve {
    pub host: String,
    pub port: u16,
    pub address: SocketAddr,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn serve(args: &[&str]) -> Result<Box<Serve>, String> {
        let args = ["ghtap", "serve"].iter().chain(args).map(OsString::from);
        match parse(args).map_err(|e| e.to_string())?.command {
            Command::Serve(serve) => Ok(serve),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_the_design() {
        let s = serve(&[]).unwrap();
        assert_eq!((s.listen.to_string(), s.admin.to_string()), ("127.0.0.1:3128".into(), "127.0.0.1:3180".into()));
        assert_eq!(s.tap.intercept, ["api.github.com"]);
        assert_eq!((s.tap.store, s.tap.store_max_bytes, s.tap.max_object_bytes), (StoreKind::Sled, 1 << 30, 20 << 20));
        assert_eq!((s.tap.freshness, s.tap.not_found_ttl), (Freshness::Revalidate, Duration::ZERO));
        assert_eq!((s.tap.stale_max_age, s.tap.expected_etag), (Duration::from_secs(86400), Switch::On));
        assert_eq!(
            (s.tap.tunnel_ports.as_slice(), s.tap.tunnel_deny.len(), s.drain),
            (&[443][..], 2, Duration::from_secs(30))
        );
    }

    #[test]
    fn flags_win_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ghtap.toml");
        std::fs::write(&file, "freshness = \"origin\"\nlisten = \"127.0.0.1:1\"\ntunnel-ports = [443, 8443]\nunconstrained-root = true\nbudget = 3\n").unwrap();
        let config = format!("--config={}", file.display());
        let s = serve(&[&config, "--listen", "127.0.0.1:2"]).unwrap();
        assert_eq!((s.tap.freshness, s.listen.port()), (Freshness::Origin, 2));
        assert_eq!((s.tap.tunnel_ports.as_slice(), s.tap.unconstrained_root), (&[443, 8443][..], true));
        for (text, said) in [
            ("nonsense = 1", "no option \"nonsense\""),
            ("listen = {}", "not expected"),
            ("=", "TOML"),
            ("listen = \"x\"", "listen"),
        ] {
            std::fs::write(&file, text).unwrap();
            assert!(serve(&[&config]).unwrap_err().contains(said), "{text}");
        }
    }

    #[test]
    fn bad_values_are_explained() {
        for (args, said) in [
            (["--resolve", "x:1"], "HOST:PORT:ADDR"),
            (["--freshness", "soon"], "revalidate, origin or a duration"),
            (["--store", "disk:"], "redis://"),
            (["--upstream", "ghe.example"], "https://"),
            (["--upstream", "https://ghe.example/api/v4"], "/api/v3"),
            (["--public-url", "tap:3128"], "http://"),
            (["--allow-user", ":"], "login"),
            (["--store-max-bytes", "10"], "at least 1MiB"),
            (["--intercept", "https://x"], "without scheme"),
            (["--tunnel-deny", "x"], "10.0.0.0/8"),
            (["--tunnel-ports", "0"], "0"),
            (["--client", "10.0.0.0/8"], "10.2.0.0/16=ci"),
            (["--client", "x=ci"], "10.0.0.0/8"),
            (["--credential-name", "xyz=bot"], "1a2b3c4d=release-bot"),
            (["--admin-token", "short"], "eight or more"),
        ] {
            assert!(serve(&args).unwrap_err().contains(said), "{args:?}: {}", serve(&args).unwrap_err());
        }
        let resolved = serve(&["--resolve", "API.github.com:443:127.0.0.1:8443,x:1:::1"]).unwrap().tap.resolve;
        assert_eq!(resolved[0].address.to_string(), "127.0.0.1:8443");
        assert_eq!(resolved[1].address.to_string(), "[::1]:1");
    }
}
