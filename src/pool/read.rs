//! Finding the pool's credentials: `GITHUB_PAT_…` and `GITHUB_APP_…`, as github-proxy has them, each also as the name of a
//! file (`…_FILE`, for Kubernetes's secrets), and a TOML file.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine;
use serde::Deserialize;

/// What was found.
#[derive(Default)]
pub struct Found {
    pub tokens: Vec<FoundToken>,
    pub apps: Vec<FoundApp>,
}

pub struct FoundToken {
    pub name: String,
    pub token: String,
    /// The API that it is for; none: the usual one.
    pub host: Option<String>,
}

pub struct FoundApp {
    pub name: String,
    /// The App's id or client id.
    pub id: String,
    /// None: it is found by the owner in each path.
    pub installation: Option<u64>,
    pub pem: String,
    /// As above.
    pub host: Option<String>,
}

/// Looks through variables, and TOML files: that of `--pool-file`, and of `--config`, where other things are, too.
///
/// # Errors
/// One line that names the variable or the file, and never repeats a secret.
pub fn find(
    variables: impl IntoIterator<Item = (String, String)>,
    file: Option<&Path>,
    config: Option<&Path>,
) -> Result<Found, String> {
    let mut found = from_variables(variables)?;
    for (path, option) in [(file, "--pool-file"), (config, "--config")] {
        let Some(path) = path else { continue };
        let more =
            from_file(path, option == "--config").map_err(|why| format!("{option} {}: {why}", path.display()))?;
        found.tokens.extend(more.tokens);
        found.apps.extend(more.apps);
    }
    Ok(found)
}

/// The keys of the credentials in a file.
pub const KEYS: [&str; 2] = ["pat", "app"];

fn from_variables(variables: impl IntoIterator<Item = (String, String)>) -> Result<Found, String> {
    let mut found = Found::default();
    let mut apps: BTreeMap<String, BTreeMap<&'static str, String>> = BTreeMap::new();
    let mut variables: Vec<_> = variables.into_iter().filter(|(_, v)| !v.trim().is_empty()).collect();
    variables.sort();
    for (name, value) in variables {
        let (base, is_file) = name.strip_suffix("_FILE").map_or((&*name, false), |base| (base, true));
        let read = || match is_file {
            true => std::fs::read_to_string(value.trim())
                .map_err(|e| format!("{name}: the file that it names cannot be read: {e}")),
            false => Ok(value.clone()),
        };
        if let Some(of) = base.strip_prefix("GITHUB_PAT_").filter(|of| !of.is_empty()) {
            let (name, token) = (format!("pat:{}", of.to_ascii_lowercase()), read()?.trim().to_owned());
            found.tokens.push(FoundToken { name, token, host: None });
        } else if let Some(rest) = base.strip_prefix("GITHUB_APP_") {
            // The longest ending first: …_INSTALLATION_ID ends with _ID, too.
            for part in ["_INSTALLATION_ID", "_PEM", "_ID"] {
                if let Some(of) = rest.strip_suffix(part).filter(|of| !of.is_empty()) {
                    apps.entry(of.to_ascii_lowercase()).or_default().insert(part, read()?);
                    break;
                }
            }
        }
    }
    for (name, mut parts) in apps {
        let upper = name.to_ascii_uppercase();
        let (id, pem) = match (parts.remove("_ID"), parts.remove("_PEM")) {
            (Some(id), Some(pem)) => (id.trim().to_owned(), pem),
            (None, _) => return Err(format!("GITHUB_APP_{upper}_ID is missing beside the App's other variables")),
            (_, None) => return Err(format!("GITHUB_APP_{upper}_PEM is missing beside GITHUB_APP_{upper}_ID")),
        };
        let installation = match parts.remove("_INSTALLATION_ID") {
            None => None,
            Some(text) => {
                let number = text.trim().parse();
                Some(number.map_err(|_| format!("GITHUB_APP_{upper}_INSTALLATION_ID is not a number"))?)
            }
        };
        found.apps.push(FoundApp { name, id, installation, pem: pem_of(&pem), host: None });
    }
    Ok(found)
}

fn from_file(path: &Path, has_more: bool) -> Result<Found, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case")]
    struct File {
        #[serde(default)]
        pat: Vec<Token>,
        #[serde(default)]
        app: Vec<App>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case")]
    struct Token {
        name: String,
        token: Option<String>,
        token_file: Option<String>,
        host: Option<String>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Id {
        Number(u64),
        Text(String),
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case")]
    struct App {
        name: String,
        id: Id,
        installation_id: Option<u64>,
        pem: Option<String>,
        pem_file: Option<String>,
        host: Option<String>,
    }
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let parsed = match has_more {
        false => toml::from_str::<File>(&text),
        true => text.parse::<toml::Table>().and_then(|mut table| {
            table.retain(|key, _| KEYS.contains(&key));
            table.try_into()
        }),
    };
    let file: File = parsed.map_err(|e: toml::de::Error| {
        // Only where, and what is missing: the text around it may hold secrets.
        let line = e.span().map_or(0, |s| text[..s.start].matches('\n').count() + 1);
        format!("line {line}: [[pat]] with name and token or token-file, [[app]] with name, id, pem or pem-file are expected")
    })?;
    let secret = |what: String, text: Option<String>, file: Option<String>| match (text, file) {
        (Some(text), None) => Ok(text),
        (None, Some(path)) => std::fs::read_to_string(&path).map_err(|e| format!("{what}: {path}: {e}")),
        _ => Err(format!("{what}: one of the secret and its file is expected")),
    };
    let mut found = Found::default();
    for pat in file.pat {
        let token = secret(format!("pat {:?}", pat.name), pat.token, pat.token_file)?.trim().to_owned();
        found.tokens.push(FoundToken { name: format!("pat:{}", pat.name), token, host: pat.host });
    }
    for app in file.app {
        let pem = pem_of(&secret(format!("app {:?}", app.name), app.pem, app.pem_file)?);
        let id = match app.id {
            Id::Number(number) => number.to_string(),
            Id::Text(text) => text,
        };
        found.apps.push(FoundApp { name: app.name, id, installation: app.installation_id, pem, host: app.host });
    }
    Ok(found)
}

/// A key as it is often put into one variable: with `\n` for its line ends, or as a whole in base64.
fn pem_of(text: &str) -> String {
    let text = text.trim();
    if text.contains("-----BEGIN") {
        return text.replace("\\n", "\n");
    }
    let joined: String = text.split_ascii_whitespace().collect();
    let decoded = base64::engine::general_purpose::STANDARD.decode(joined).ok().and_then(|d| String::from_utf8(d).ok());
    decoded.unwrap_or_else(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(set: &[(&str, &str)]) -> Result<Found, String> {
        find(set.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())), None, None)
    }

    #[test]
    fn variables_and_their_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "ghp_file\n").unwrap();
        let pem = "-----BEGIN RSA PRIVATE KEY-----\\nx\\n-----END RSA PRIVATE KEY-----";
        let found = variables(&[
            ("GITHUB_PAT_BOT", "ghp_a"),
            ("GITHUB_PAT_OTHER_FILE", file.to_str().unwrap()),
            ("GITHUB_APP_MY_BOT_ID", "12"),
            ("GITHUB_APP_MY_BOT_INSTALLATION_ID", "7"),
            ("GITHUB_APP_MY_BOT_PEM", pem),
            ("GITHUB_APP_WIDE_ID", "Iv1.x"),
            ("GITHUB_APP_WIDE_PEM", "LS0tLS1CRUdJTiBYLS0tLS0="),
            ("GITHUB_TOKEN", "not ours"),
            ("GITHUB_PAT_EMPTY", ""),
        ]);
        let found = found.unwrap();
        let tokens: Vec<_> = found.tokens.iter().map(|t| (t.name.as_str(), t.token.as_str())).collect();
        assert_eq!(tokens, [("pat:bot", "ghp_a"), ("pat:other", "ghp_file")]);
        let apps: Vec<_> = found.apps.iter().map(|a| (a.name.as_str(), a.id.as_str(), a.installation)).collect();
        assert_eq!(apps, [("my_bot", "12", Some(7)), ("wide", "Iv1.x", None)]);
        assert!(found.apps[0].pem.contains("KEY-----\nx\n") && found.apps[1].pem.starts_with("-----BEGIN X"));
        for (set, said) in [
            (&[("GITHUB_APP_X_PEM", "secret")][..], "GITHUB_APP_X_ID is missing"),
            (&[("GITHUB_APP_X_ID", "1")], "GITHUB_APP_X_PEM is missing"),
            (
                &[("GITHUB_APP_X_ID", "1"), ("GITHUB_APP_X_PEM", "secret"), ("GITHUB_APP_X_INSTALLATION_ID", "y")],
                "not a number",
            ),
            (&[("GITHUB_PAT_X_FILE", "secret")], "GITHUB_PAT_X_FILE: the file"),
        ] {
            let error = variables(set).err().unwrap();
            assert!(error.contains(said) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_toml_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pool.toml");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            find([], Some(&path), None)
        };
        let found =
            read("[[pat]]\nname = \"bot\"\ntoken = \"t\"\n[[app]]\nname = \"a\"\nid = 3\npem = \"-----BEGIN X\"\n");
        let found = found.unwrap();
        assert_eq!((found.tokens.len(), found.apps[0].id.as_str(), found.apps[0].installation), (1, "3", None));
        std::fs::write(&path, "listen = \"x\"\n[[pat]]\nname = \"bot\"\ntoken = \"t\"\nhost = \"GHE.example\"\n")
            .unwrap();
        let found = find([], None, Some(&path)).unwrap();
        assert_eq!(found.tokens[0].host.as_deref(), Some("GHE.example"));
        for (text, said) in [
            ("[[pat]]\nname = \"bot\"\n", "one of the secret"),
            ("[[pat]]\ntoken = \"s3cret\"\n", "line 1"),
            ("x = 1\n", "line 1"),
        ] {
            let error = read(text).err().unwrap();
            assert!(error.contains(said) && error.contains("pool.toml") && !error.contains("s3cret"), "{error}");
        }
    }
}
