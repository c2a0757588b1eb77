//! `ghtap doctor`: what goes wrong in practice, looked at one by one, and how to mend each.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::certs::Files;
use super::env::proxy_url;
use super::{Failure, place, print, small_runtime};
use crate::config::Doctor;
use crate::tls::{files, roots};

/// One finding: what was looked at, and what was found, or what is wrong and how to mend it.
enum Finding {
    Good(String),
    /// Not wrong, but worth knowing.
    Note(String),
    Bad {
        what: String,
        mend: String,
    },
}

pub fn run(config: &Doctor) -> Result<ExitCode, Failure> {
    let data_dir = config.places.data_dir();
    let tap = place::running(&data_dir);
    let certs_dir = tap.as_ref().map_or_else(|| config.places.certs_dir(), |t| t.certs_dir.clone());
    let mut findings = vec![authority(&data_dir)];
    findings.extend(published(&data_dir, &certs_dir));
    let (proxy, tap_finding) = which_tap(config, tap.as_ref());
    findings.push(tap_finding);
    findings.extend(variables(&certs_dir, proxy));
    findings.extend(clients(&certs_dir));
    if let Some(proxy) = proxy {
        let hosts = files::read(&data_dir).map(|ca| ca.hosts).unwrap_or_default();
        let host = hosts.first().map_or(crate::github::API_HOST, String::as_str);
        findings.push(small_runtime()?.block_on(intercepted(proxy, host, &certs_dir)));
    }
    let mut out = String::new();
    let mut bad = 0;
    for finding in findings {
        match finding {
            Finding::Good(text) => out.push_str(&format!("ok    {text}\n")),
            Finding::Note(text) => out.push_str(&format!("note  {text}\n")),
            Finding::Bad { what, mend } => {
                bad += 1;
                out.push_str(&format!("BAD   {what}\n      mend: {mend}\n"));
            }
        }
    }
    out.push_str(&match bad {
        0 => "all is well\n".to_owned(),
        n => format!("{n} to mend\n"),
    });
    print(out)?;
    Ok(if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn bad(what: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding::Bad { what: what.into(), mend: mend.into() }
}

/// The CA itself: there, ours alone, in date.
fn authority(data_dir: &Path) -> Finding {
    match files::read(data_dir) {
        Err(files::Error::Missing(dir)) => {
            bad(format!("there is no CA in {}", dir.display()), "ghtap ca init, or start ghtap serve")
        }
        Err(error) => bad(format!("the CA: {error}"), "as it says"),
        Ok(ca) => {
            let left = (ca.not_after - OffsetDateTime::now_utc()).whole_days();
            match left {
                ..0 => bad(
                    format!("the CA expired on {}", ca.not_after.date()),
                    "ghtap ca rotate, then trust the new root",
                ),
                0..30 => bad(format!("the CA expires in {left} days"), "ghtap ca rotate, then trust the new root"),
                _ => Finding::Good(format!(
                    "the CA for {} is in date until {}",
                    ca.hosts.join(", "),
                    ca.not_after.date()
                )),
            }
        }
    }
}

/// The files that clients are pointed at: there, readable, and of this CA.
fn published(data_dir: &Path, certs_dir: &Path) -> Vec<Finding> {
    let Ok(ca) = files::read(data_dir) else { return Vec::new() };
    let files = Files::below(certs_dir);
    let has_root = |path: &Path| roots::pem_file(path).map(|certs| certs.contains(&ca.root_der()));
    let check = |path: &Path| match has_root(path) {
        Ok(true) => Finding::Good(format!("{} has our root", path.display())),
        Ok(false) => bad(format!("{} is of another CA", path.display()), "start ghtap serve again, or: ghtap ca init"),
        Err(error) => bad(format!("{}: {error}", path.display()), "start ghtap serve, or: ghtap ca init"),
    };
    vec![check(&files.ca), check(&files.bundle)]
}

/// The tap that is looked at.
fn which_tap(config: &Doctor, running: Option<&place::Tap>) -> (Option<SocketAddr>, Finding) {
    let set =
        ["https_proxy", "HTTPS_PROXY"].into_iter().find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()));
    match (&config.proxy, running, set) {
        (Some(url), _, _) => match proxy_url(url) {
            Ok((address, _)) => (Some(address), Finding::Good(format!("looking at {url}"))),
            Err(error) => (None, bad(format!("--proxy: {error}"), "as it says")),
        },
        (None, Some(tap), _) => (
            Some(place::reachable(tap.proxy)),
            Finding::Good(format!("a tap runs on {} (process {})", tap.proxy, tap.pid)),
        ),
        (None, None, Some(url)) => match proxy_url(&url) {
            Ok((address, _)) => (
                Some(address),
                Finding::Note(format!("no tap holds this data directory; looking at HTTPS_PROXY, {address}")),
            ),
            Err(_) => (None, bad("HTTPS_PROXY is not a proxy's URL", "eval \"$(ghtap env)\"")),
        },
        (None, None, None) => {
            (None, bad("no tap runs on this data directory, and HTTPS_PROXY is not set", "ghtap serve"))
        }
    }
}

/// The variables that clients read: set, and to what.
fn variables(certs_dir: &Path, proxy: Option<SocketAddr>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let root = roots::pem_file(&Files::below(certs_dir).ca).ok();
    for name in ["HTTPS_PROXY", "https_proxy"] {
        match std::env::var(name).ok().filter(|v| !v.is_empty()).map(|v| (proxy_url(&v).map(|(a, _)| a), v)) {
            Some((Ok(address), _)) if proxy == Some(address) => {
                findings.push(Finding::Good(format!("{name} leads to the tap")))
            }
            Some((Ok(address), _)) => {
                findings.push(bad(format!("{name} leads to {address}, not to the tap"), "eval \"$(ghtap env)\""))
            }
            Some((Err(_), _)) => findings.push(bad(format!("{name} is not a proxy's URL"), "eval \"$(ghtap env)\"")),
            None => findings.push(Finding::Note(format!("{name} is not set in this shell: eval \"$(ghtap env)\""))),
        }
    }
    let excepted = ["no_proxy", "NO_PROXY"].into_iter().find(|name| {
        std::env::var(name).is_ok_and(|v| {
            v.split(',').any(|h| matches!(h.trim(), "*" | "github.com" | ".github.com" | "api.github.com"))
        })
    });
    if let Some(name) = excepted {
        findings.push(bad(format!("{name} sends api.github.com past the tap"), format!("take it out of {name}")));
    }
    for (name, adds) in [
        ("SSL_CERT_FILE", false),
        ("REQUESTS_CA_BUNDLE", false),
        ("CURL_CA_BUNDLE", false),
        ("GIT_SSL_CAINFO", false),
        ("NODE_EXTRA_CA_CERTS", true),
    ] {
        let Some(path) = std::env::var_os(name).filter(|v| !v.is_empty()) else { continue };
        let path = Path::new(&path);
        findings.push(match (roots::pem_file(path), &root) {
            (Ok(certs), Some(root)) if certs.contains(&root[0]) => match certs.len() {
                1 if !adds => {
                    bad(format!("{name} has our root alone, and replaces the system's"), "eval \"$(ghtap env)\"")
                }
                _ => Finding::Good(format!("{name} has our root")),
            },
            (Ok(_), Some(_)) => bad(format!("{name} ({}) has not our root", path.display()), "eval \"$(ghtap env)\""),
            (Ok(_), None) => continue,
            (Err(error), _) => bad(format!("{name} ({}): {error}", path.display()), "eval \"$(ghtap env)\""),
        });
    }
    findings
}

/// The clients that are installed, and whether each would trust the CA as this shell has it.
fn clients(certs_dir: &Path) -> Vec<Finding> {
    let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    let system = roots::pem_file(&Files::below(certs_dir).ca).is_ok_and(|root| roots::system().contains(&root[0]));
    let wants: [(&str, &[&str]); 6] = [
        // requests reads the one, urllib the other.
        ("python3", &["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"]),
        ("curl", &["CURL_CA_BUNDLE", "SSL_CERT_FILE"]),
        ("git", &["GIT_SSL_CAINFO"]),
        ("gh", &["SSL_CERT_FILE"]),
        ("node", &["NODE_EXTRA_CA_CERTS"]),
        ("java", &["JAVA_TOOL_OPTIONS"]),
    ];
    let found = wants.iter().filter(|(program, _)| {
        let tried = Command::new(program)
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        tried.is_ok()
    });
    let findings = found.map(|(program, names)| {
        let takes_system = matches!(*program, "curl" | "git" | "gh");
        let told = if *program == "python3" { names.iter().all(|n| set(n)) } else { names.iter().any(|n| set(n)) };
        if told {
            Finding::Good(format!("{program} is told where the CA is"))
        } else if takes_system && system {
            Finding::Good(format!("{program} finds the CA among the system's roots"))
        } else {
            Finding::Note(format!(
                "{program} would not trust the tap in this shell; it reads {}: eval \"$(ghtap env)\"",
                names.join(if *program == "python3" { " and " } else { " or " })
            ))
        }
    });
    findings.collect()
}

/// A request through the tap: it must come back, intercepted, from the origin.
async fn intercepted(proxy: SocketAddr, host: &str, certs_dir: &Path) -> Finding {
    match tokio::time::timeout(Duration::from_secs(40), request(proxy, host, certs_dir)).await {
        Err(_) => bad(format!("no answer through {proxy} within 40 seconds"), "look at the tap's log"),
        Ok(Err(Trouble { what, mend })) => bad(what, mend),
        Ok(Ok(head)) => {
            let status = head.split_whitespace().nth(1).unwrap_or_default().to_owned();
            let lower = head.to_ascii_lowercase();
            if !lower.contains("cache-status: ghtap") {
                return bad(
                    "a request through the proxy came back without having been intercepted",
                    "HTTPS_PROXY leads to another proxy: eval \"$(ghtap env)\"",
                );
            }
            if lower.contains("proxy-status: ghtap") && status == "401" {
                return Finding::Good(format!(
                    "a request through {proxy} was intercepted; who asks without a credential is refused, as you asked for"
                ));
            }
            if lower.contains("proxy-status: ghtap") {
                return bad(
                    format!("the tap cannot reach GitHub (it answered {status})"),
                    "look at the tap's log; behind a corporate proxy, give --upstream-proxy and --upstream-ca",
                );
            }
            Finding::Good(format!("a request through {proxy} was intercepted and answered by the origin ({status})"))
        }
    }
}

struct Trouble {
    what: String,
    mend: String,
}

async fn request(proxy: SocketAddr, host: &str, certs_dir: &Path) -> Result<String, Trouble> {
    let trouble = |what: String, mend: &str| Trouble { what, mend: mend.to_owned() };
    let root = roots::pem_file(&Files::below(certs_dir).ca);
    let root = root.map_err(|e| trouble(format!("the root cannot be read: {e}"), "ghtap ca init"))?;
    let connected = TcpStream::connect(proxy).await;
    let mut stream = connected.map_err(|e| trouble(format!("nothing listens on {proxy}: {e}"), "ghtap serve"))?;
    let broken =
        |e: std::io::Error| trouble(format!("the connection through {proxy} broke: {e}"), "look at the tap's log");
    stream
        .write_all(format!("CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n").as_bytes())
        .await
        .map_err(broken)?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") && answer.len() < 8192 {
        answer.push(stream.read_u8().await.map_err(broken)?);
    }
    if answer.get(9..12) == Some(b"407") {
        return Err(trouble(
            format!("{proxy} serves known clients only (407)"),
            "put a name and its secret into the proxy's URL: HTTPS_PROXY=http://NAME:SECRET@HOST:PORT",
        ));
    }
    if answer.get(9..12) != Some(b"200") {
        return Err(trouble(
            format!("{proxy} refused CONNECT {host}:443"),
            "it may be another proxy: eval \"$(ghtap env)\"",
        ));
    }
    let stream = tls(root).connect(ServerName::try_from(host.to_owned()).expect("a name"), stream).await;
    let mut stream = stream.map_err(|e| {
        trouble(
            format!("the tap's certificate is not of our CA: {e}"),
            "right after ca rotate, try again in two seconds; else give the tap's own --data-dir and --certs-dir",
        )
    })?;
    let request =
        format!("GET /rate_limit HTTP/1.1\r\nHost: {host}\r\nUser-Agent: ghtap-doctor\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(broken)?;
    let mut answer = Vec::new();
    let read = stream.take(64 << 10).read_to_end(&mut answer).await;
    if answer.is_empty() {
        read.map_err(broken)?;
    }
    let text = String::from_utf8_lossy(&answer);
    Ok(text.split("\r\n\r\n").next().unwrap_or_default().to_owned())
}

fn tls(root: Vec<CertificateDer<'static>>) -> tokio_rustls::TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(root);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("the provider has all versions").with_root_certificates(roots).with_no_client_auth();
    tokio_rustls::TlsConnector::from(Arc::new(config))
}
