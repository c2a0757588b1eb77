//! `ghtap env`: the variables that send a program through the tap.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;

use super::certs::{Files, PASSWORD};
use super::{Failure, place, print};
use crate::config::{Env, Shell};

/// What each ecosystem reads. `user` is `client+run:secret`; it needs a secret, or requests drops it.
pub fn variables(proxy: SocketAddr, user: Option<&str>, certs_dir: &Path) -> Vec<(&'static str, String)> {
    let files = Files::below(certs_dir);
    let url = match user {
        Some(user) if user.contains(':') => format!("http://{user}@{proxy}"),
        Some(user) => format!("http://{user}:x@{proxy}"),
        None => format!("http://{proxy}"),
    };
    let host = match proxy {
        SocketAddr::V4(a) => a.ip().to_string(),
        SocketAddr::V6(a) => format!("[{}]", a.ip()),
    };
    let bundle = files.bundle.display().to_string();
    let java = [
        format!("-Dhttps.proxyHost={host} -Dhttps.proxyPort={}", proxy.port()),
        format!("-Djavax.net.ssl.trustStore={}", files.truststore.display()),
        format!("-Djavax.net.ssl.trustStoreType=PKCS12 -Djavax.net.ssl.trustStorePassword={PASSWORD}"),
    ];
    vec![
        ("HTTPS_PROXY", url.clone()),
        ("https_proxy", url),
        // What talks to this machine keeps doing so directly.
        ("NO_PROXY", "localhost,127.0.0.1,::1".into()),
        ("no_proxy", "localhost,127.0.0.1,::1".into()),
        ("SSL_CERT_FILE", bundle.clone()),
        ("CURL_CA_BUNDLE", bundle.clone()),
        ("REQUESTS_CA_BUNDLE", bundle.clone()),
        ("PIP_CERT", bundle.clone()),
        ("GIT_SSL_CAINFO", bundle.clone()),
        ("AWS_CA_BUNDLE", bundle.clone()),
        ("CARGO_HTTP_CAINFO", bundle),
        ("NODE_EXTRA_CA_CERTS", files.ca.display().to_string()),
        ("NODE_USE_ENV_PROXY", "1".into()),
        ("DENO_CERT", files.ca.display().to_string()),
        ("JAVA_TOOL_OPTIONS", java.join(" ")),
    ]
}

/// Adds to the variables that are lists what the environment has in them already.
pub fn beside_what_is_set(mut variables: Vec<(&'static str, String)>) -> Vec<(&'static str, String)> {
    for (name, value) in &mut variables {
        let separator = match *name {
            "JAVA_TOOL_OPTIONS" => " ",
            "NO_PROXY" | "no_proxy" => ",",
            _ => continue,
        };
        // What an earlier `ghtap env` set is not added again.
        if let Some(own) = std::env::var(*name).ok().filter(|own| !own.is_empty() && !own.contains(value.as_str())) {
            *value = format!("{own}{separator}{value}");
        }
    }
    variables
}

pub fn run(config: &Env) -> Result<ExitCode, Failure> {
    let running = place::running(&config.places.data_dir());
    let certs_dir = running.as_ref().map_or_else(|| config.places.certs_dir(), |t| t.certs_dir.clone());
    if !Files::below(&certs_dir).ca.exists() {
        return Err(Failure::new(format_args!(
            "there is no CA in {} yet; run: ghtap serve, or: ghtap ca init",
            certs_dir.display()
        )));
    }
    let (address, user) = match (&config.proxy, &running) {
        (Some(url), _) => proxy_url(url)?,
        (None, Some(tap)) => (place::reachable(tap.proxy), None),
        (None, None) => (SocketAddr::from(([127, 0, 0, 1], 3128)), None),
    };
    let variables = beside_what_is_set(variables(address, user.as_deref(), &certs_dir));
    print(render(&variables, config.shell))?;
    Ok(ExitCode::SUCCESS)
}

/// Address of a proxy URL, and its user with the secret.
pub fn proxy_url(url: &str) -> Result<(SocketAddr, Option<String>), Failure> {
    let wrong = || Failure::new("a proxy is given as http://[client[+run][:secret]@]HOST:PORT");
    let rest = url.strip_prefix("http://").ok_or_else(wrong)?.trim_end_matches('/');
    let (user, authority) = rest.rsplit_once('@').map_or((None, rest), |(u, a)| (Some(u), a));
    let user = user.map(str::to_owned);
    let mut addresses = std::net::ToSocketAddrs::to_socket_addrs(authority).map_err(|_| wrong())?;
    Ok((addresses.next().ok_or_else(wrong)?, user))
}

fn render(variables: &[(&str, String)], shell: Shell) -> String {
    if shell == Shell::Json {
        let map: serde_json::Map<_, _> = variables.iter().map(|(k, v)| ((*k).to_owned(), v.clone().into())).collect();
        return format!("{:#}\n", serde_json::Value::Object(map));
    }
    let line = |(name, value): &(&str, String)| match shell {
        Shell::Sh => format!("export {name}='{}'\n", value.replace('\'', r"'\''")),
        Shell::Fish => format!("set -gx {name} '{}'\n", value.replace('\\', r"\\").replace('\'', r"\'")),
        Shell::Powershell => format!("$env:{name} = '{}'\n", value.replace('\'', "''")),
        _ => format!("ENV {name}=\"{}\"\n", value.replace('\\', r"\\").replace('"', "\\\"").replace('$', r"\$")),
    };
    variables.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting() {
        let variables = [("A", "it's $x".to_owned())];
        for (shell, text) in [
            (Shell::Sh, "export A='it'\\''s $x'\n"),
            (Shell::Fish, "set -gx A 'it\\'s $x'\n"),
            (Shell::Powershell, "$env:A = 'it''s $x'\n"),
            (Shell::Dockerfile, "ENV A=\"it's \\$x\"\n"),
        ] {
            assert_eq!(render(&variables, shell), text);
        }
    }
}
