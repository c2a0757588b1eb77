//! A real `ghtap serve`, in a process of its own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::github::GitHub;

pub const GHTAP: &str = env!("CARGO_BIN_EXE_ghtap");

pub struct Tap {
    pub proxy: SocketAddr,
    pub admin: SocketAddr,
    pub dir: tempfile::TempDir,
    child: Option<Child>,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
}

/// A command that finds nothing of the machine's own settings.
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    for name in [
        "HTTPS_PROXY",
        "https_proxy",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
        "NO_PROXY",
        "no_proxy",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "GIT_SSL_CAINFO",
        "NODE_EXTRA_CA_CERTS",
        "NODE_OPTIONS",
        "NIX_SSL_CERT_FILE",
        "JAVA_TOOL_OPTIONS",
        "PIP_CERT",
    ] {
        command.env_remove(name);
    }
    command
}

/// A script through `ghtap run`, on directories of its own below `dir`.
pub async fn ghtap_run(github: &GitHub, dir: &std::path::Path, more: &[&str], script: &str) -> Output {
    let mut run = command(GHTAP);
    run.arg("run")
        .arg(format!("--data-dir={}", dir.join("data").display()))
        .arg(format!("--certs-dir={}", dir.join("certs").display()));
    run.arg(format!("--resolve=api.github.com:443:{}", github.address))
        .arg(format!("--upstream-ca={}", github.ca.display()));
    run.args(more).args(["--", "sh", "-c", script]).stdin(Stdio::null());
    tokio::task::spawn_blocking(move || run.output().unwrap()).await.unwrap()
}

impl Tap {
    /// A tap in front of a stand-in.
    pub async fn start(github: &GitHub, more: &[&str]) -> Tap {
        let mut arguments = vec![
            format!("--resolve=api.github.com:443:{}", github.address),
            format!("--resolve=github.com:443:{}", github.address),
            format!("--upstream-ca={}", github.ca.display()),
        ];
        arguments.extend(more.iter().map(|s| s.to_string()));
        Tap::with(arguments).await
    }

    pub async fn with(arguments: Vec<String>) -> Tap {
        Tap::with_variables(arguments, &[]).await
    }

    /// With variables in its environment.
    pub async fn with_variables(arguments: Vec<String>, variables: &[(&str, &str)]) -> Tap {
        let none: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let variables = variables.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        let dir = tempfile::tempdir().unwrap();
        let mut tap = Tap { proxy: none, admin: none, dir, child: None, arguments, variables };
        tap.launch().await;
        tap
    }

    pub async fn launch(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        let mut serve = command(GHTAP);
        serve
            .args(["serve", "--listen=127.0.0.1:0"])
            .args((!self.arguments.iter().any(|a| a.starts_with("--admin="))).then_some("--admin=127.0.0.1:0"))
            .arg(format!("--data-dir={}", self.data_dir().display()));
        serve.arg(format!("--certs-dir={}", self.certs_dir().display())).args(&self.arguments);
        serve.envs(self.variables.iter().map(|(n, v)| (n, v)));
        self.child = Some(serve.stdin(Stdio::null()).stderr(log).spawn().unwrap());
        let state = self.data_dir().join("tap.json");
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            assert!(Instant::now() < deadline, "the tap did not start: {}", self.log());
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("the tap ended with {status}: {}", self.log());
            }
            let pid = self.child.as_ref().unwrap().id();
            let found = std::fs::read(&state).ok().and_then(|t| serde_json::from_slice::<serde_json::Value>(&t).ok());
            if let Some(found) = found.filter(|f| f["pid"] == pid) {
                self.proxy = found["proxy"].as_str().unwrap().parse().unwrap();
                self.admin = found["admin"].as_str().unwrap().parse().unwrap();
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// At the next launch, with one more.
    pub fn add_argument(&mut self, argument: String) {
        self.arguments.push(argument);
    }

    /// At the next launch, the stand-in's root is not trusted.
    pub fn forget_upstream_ca(&mut self) {
        self.arguments.retain(|a| !a.starts_with("--upstream-ca="));
    }

    /// Whether it intercepts the API, or tunnels to it.
    pub fn is_intercepting(&self) -> bool {
        !self.arguments.iter().any(|a| a.starts_with("--intercept="))
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn certs_dir(&self) -> PathBuf {
        self.dir.path().join("certs")
    }

    pub fn ca(&self) -> PathBuf {
        self.certs_dir().join("ca.pem")
    }

    pub fn bundle(&self) -> PathBuf {
        self.certs_dir().join("ca-bundle.pem")
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// The port of `--listen-tls=127.0.0.1:0`, as the tap tells it.
    pub async fn tls_port(&self) -> u16 {
        for _ in 0..200 {
            let told =
                self.log().lines().find_map(|l| l.trim().strip_prefix("tls")?.trim().rsplit(':').next()?.parse().ok());
            if let Some(port) = told {
                return port;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("it tells no TLS address: {}", self.log());
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid().cast_signed()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// SIGTERM; gives the exit code.
    pub async fn terminate(&mut self) -> Option<i32> {
        self.signal(rustix::process::Signal::TERM);
        self.wait().await
    }

    pub async fn wait(&mut self) -> Option<i32> {
        let mut child = self.child.take().unwrap();
        tokio::task::spawn_blocking(move || child.wait().unwrap().code()).await.unwrap()
    }

    /// A subcommand on this tap's directories.
    pub async fn cli(&self, arguments: &[&str]) -> Output {
        let mut cli = command(GHTAP);
        cli.arg(arguments[0]).arg(format!("--data-dir={}", self.data_dir().display()));
        cli.arg(format!("--certs-dir={}", self.certs_dir().display())).args(&arguments[1..]).stdin(Stdio::null());
        tokio::task::spawn_blocking(move || cli.output().unwrap()).await.unwrap()
    }

    /// The value of a metric, its labels summed up.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.get_admin("/metrics").await;
        let lines = text.lines().filter(|l| {
            l.split(['{', ' ']).next() == Some(name.split('{').next().unwrap())
                && l.starts_with(name.trim_end_matches('}'))
        });
        lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Waits until a metric has this value.
    pub async fn wait_for_metric(&self, name: &str, value: f64) {
        for _ in 0..200 {
            if self.metric(name).await == value {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{name} is {} and not {value}", self.metric(name).await);
    }

    pub async fn get_admin(&self, path: &str) -> String {
        let body = ghtap::admin::client::ask(
            &ghtap::admin::client::At { address: self.admin, token: None },
            http::Method::GET,
            path,
        )
        .await
        .unwrap();
        String::from_utf8_lossy(&body).into_owned()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the tap's log ---\n{}", self.log());
        }
    }
}
