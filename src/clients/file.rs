//! The file of clients: names and secrets, as htpasswd writes them (`name:hash`), or github-proxy's registry
//! (YAML, `version: 1`, `clients: [{name, token, scopes: [{method, path}]}]`).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use aws_lc_rs::{constant_time, digest};
use base64::Engine;
use http::{HeaderMap, header};
use serde::Deserialize;

use super::scopes::{GraphQl, Scope, Scopes};

/// A client of a registry.
#[derive(Debug)]
pub struct Registered {
    pub name: Arc<str>,
    /// None: it may ask for anything.
    pub scopes: Option<Scopes>,
}

/// What a client's secret is compared with.
#[derive(Clone)]
enum Secret {
    Bcrypt(String),
    /// `{SHA}`: one round of SHA-1.
    Sha1([u8; 20]),
    /// The digest of a token that the file holds in the clear.
    Token([u8; 32]),
}

/// The clients that are known, by name.
#[derive(Clone, Default)]
pub struct ClientsFile {
    secrets: HashMap<String, Secret>,
    /// By the digest of their token.
    by_token: HashMap<[u8; 32], Arc<Registered>, foldhash::fast::RandomState>,
    /// Digests of tokens that earlier versions of the file had: no client's any more, and not GitHub's either.
    former: HashSet<[u8; 32], foldhash::fast::RandomState>,
}

impl ClientsFile {
    /// Reads either form. `{{ env.X }}` in a registry stands for a variable.
    ///
    /// # Errors
    /// One line with the number of the line that is wrong; it never repeats a secret.
    pub fn parse(text: &str, env: impl IntoIterator<Item = (String, String)>) -> Result<ClientsFile, String> {
        let first = text.lines().map(str::trim).find(|l| !l.is_empty() && !l.starts_with('#') && *l != "---");
        let is_yaml = first.is_some_and(|l| l.starts_with("version:") || l.starts_with("clients:"));
        let file = match is_yaml {
            true => registry(text, env)?,
            false => ClientsFile { secrets: htpasswd(text)?, ..ClientsFile::default() },
        };
        if file.secrets.is_empty() {
            return Err("it names no client; add one with: htpasswd -B FILE NAME".into());
        }
        Ok(file)
    }

    /// The client whose token a request carries as its `Authorization`: after whatever word, alone, or as the user or the
    /// password of `Basic`.
    pub fn registered(&self, headers: &HeaderMap) -> Option<&Arc<Registered>> {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let (value, None) = (values.next()?.to_str().ok()?, values.next()) else { return None };
        let (scheme, token) = value.trim().split_once(' ').unwrap_or(("", value.trim()));
        let token = token.trim();
        if !scheme.eq_ignore_ascii_case("basic") {
            // Whatever the word before it: what is a client's secret must not be taken for GitHub's.
            return self.by_token(token);
        }
        let decoded = base64::engine::general_purpose::STANDARD.decode(token).ok()?;
        let text = String::from_utf8(decoded).ok()?;
        let (user, password) = text.split_once(':').unwrap_or((&text, ""));
        self.by_token(password).or_else(|| self.by_token(user))
    }

    /// Whether an `Authorization` holds a client's token, however it is put, or one that was a client's.
    pub fn holds_secret(&self, headers: &HeaderMap) -> bool {
        use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
        if self.by_token.is_empty() && self.former.is_empty() {
            return false;
        }
        let known = |text: &str| {
            let digest = sha256(text);
            self.by_token.contains_key(&digest) || self.former.contains(&digest)
        };
        let within = |text: &str| {
            let apart = |c: char| c.is_whitespace() || ",:;\"'".contains(c);
            text.split(apart).any(|piece| {
                known(piece)
                    || known(piece.trim_end_matches('='))
                    || piece.split_once('=').is_some_and(|(_, v)| known(v))
            })
        };
        headers.get_all(header::AUTHORIZATION).iter().any(|value| {
            let text = String::from_utf8_lossy(value.as_bytes());
            let decoded = |piece: &str| {
                let piece = piece.trim_end_matches('=');
                let bytes = STANDARD_NO_PAD.decode(piece).or_else(|_| URL_SAFE_NO_PAD.decode(piece));
                bytes
                    .ok()
                    .and_then(|bytes| String::from_utf8(bytes).ok())
                    .is_some_and(|text| within(&text) || known(&text))
            };
            within(&text) || known(text.trim()) || text.split([' ', '\t', ',']).any(decoded)
        })
    }

    /// Remembers the tokens of the version before this one.
    pub fn succeed(&mut self, before: &ClientsFile) {
        self.former = before.former.iter().chain(before.by_token.keys()).copied().collect();
        self.former.retain(|token| !self.by_token.contains_key(token));
    }

    fn by_token(&self, token: &str) -> Option<&Arc<Registered>> {
        if self.by_token.is_empty() { None } else { self.by_token.get(&sha256(token)) }
    }

    pub fn has_tokens(&self) -> bool {
        !self.by_token.is_empty()
    }

    pub fn len(&self) -> usize {
        self.secrets.len()
    }

    pub fn is_empty(&self) -> bool {
        self.secrets.is_empty()
    }

    /// A digest of what a client's secret is compared with; none if it is not known. It changes with the secret.
    pub fn proof(&self, name: &str) -> Option<Proof> {
        let bytes = match self.secrets.get(name)? {
            Secret::Bcrypt(hash) => sha256(hash),
            Secret::Sha1(hash) => sha256(&format!("{hash:?}")),
            Secret::Token(hash) => sha256(&format!("{hash:?}")),
        };
        Some(Proof(bytes))
    }

    /// Whether a client has this secret. Takes as long as its hash was made to take.
    pub fn verify(&self, name: &str, secret: &str) -> bool {
        self.secrets.get(name).is_some_and(|wanted| wanted.is(secret))
    }
}

/// That a client was known, by a secret that the file had then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof([u8; 32]);

impl Proof {
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Secret {
    fn is(&self, secret: &str) -> bool {
        let same = |a: &[u8], b: &[u8]| constant_time::verify_slices_are_equal(a, b).is_ok();
        match self {
            Secret::Bcrypt(hash) => bcrypt::verify(secret, hash).unwrap_or(false),
            Secret::Sha1(hash) => {
                same(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes()).as_ref(), hash)
            }
            Secret::Token(hash) => same(&sha256(secret), hash),
        }
    }
}

fn sha256(text: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
    hash
}

fn htpasswd(text: &str) -> Result<HashMap<String, Secret>, String> {
    let mut secrets = HashMap::new();
    for (number, line) in text.lines().enumerate().map(|(i, line)| (i + 1, line.trim())) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, hash) = line.split_once(':').ok_or(format!("line {number}: name:hash is expected"))?;
        let sha = hash.strip_prefix("{SHA}").map(|h| base64::engine::general_purpose::STANDARD.decode(h));
        let secret = match sha {
            Some(Ok(sha)) if sha.len() == 20 => Secret::Sha1(sha.try_into().expect("it has 20 bytes")),
            None if ["$2y$", "$2b$", "$2a$"].iter().any(|id| hash.starts_with(id)) && hash.len() == 60 => {
                Secret::Bcrypt(hash.to_owned())
            }
            _ => {
                return Err(format!(
                    "line {number}: the hash of {name:?} is neither bcrypt nor {{SHA}}; make it with: htpasswd -B FILE {name}"
                ));
            }
        };
        check_name(name).map_err(|why| format!("line {number}: {why}"))?;
        secrets.insert(name.to_owned(), secret);
    }
    Ok(secrets)
}

/// One value or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Some1 {
    One(String),
    Many(Vec<String>),
}

impl Some1 {
    fn is(&self, text: &str) -> bool {
        match self {
            Some1::One(one) => one.eq_ignore_ascii_case(text),
            Some1::Many(many) => many.iter().all(|m| m.eq_ignore_ascii_case(text)),
        }
    }

    fn all(self) -> Vec<String> {
        match self {
            Some1::One(one) => vec![one],
            Some1::Many(many) => many,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RegistryScope {
    method: Option<Some1>,
    path: Option<String>,
    graphql: Option<Some1>,
}

impl RegistryScope {
    fn scope(self) -> Result<Scope, String> {
        let mut graphql = GraphQl { queries: true, mutations: true };
        let only_graphql = self.path.is_none() && self.graphql.is_some();
        if let Some(said) = self.graphql {
            let said = said.all();
            if let Some(other) = said.iter().find(|s| !["queries", "mutations", "none"].contains(&s.as_str())) {
                return Err(format!("graphql: {other:?} is not queries, mutations or none"));
            }
            let has = |what: &str| said.iter().any(|s| s == what);
            graphql = GraphQl { queries: has("queries"), mutations: has("mutations") };
        }
        let path = match self.path {
            Some(path) => path,
            None if only_graphql => "/graphql".into(),
            None => return Err("a scope has no path".into()),
        };
        let methods = match self.method {
            Some(methods) if only_graphql && !methods.is("POST") => return Err("GraphQL is asked by POST".into()),
            Some(methods) => methods.all(),
            None if only_graphql => vec!["POST".into()],
            None => return Err("a scope has no method".into()),
        };
        Scope::new(&methods, &path, graphql)
    }
}

fn registry(text: &str, env: impl IntoIterator<Item = (String, String)>) -> Result<ClientsFile, String> {
    #[derive(Deserialize)]
    struct Registry {
        version: u32,
        clients: Vec<serde_saphyr::Spanned<Client>>,
    }
    #[derive(Deserialize)]
    struct Client {
        name: String,
        token: String,
        scopes: Option<Vec<serde_saphyr::Spanned<RegistryScope>>>,
    }
    let env: HashMap<String, String> = env.into_iter().collect();
    let mut templates = minijinja::Environment::new();
    templates.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
    let rendered = templates.render_str(text, minijinja::context! { env });
    let rendered = rendered.map_err(|e| {
        let at = e.line().map_or_else(String::new, |line| format!("line {line}: "));
        format!("{at}a template names what is not set, or is malformed ({})", e.kind())
    })?;
    let registry: Registry = serde_saphyr::from_str(&rendered).map_err(|e| {
        // Only where: the text around it may hold tokens.
        let at = e.location().map_or_else(String::new, |l| format!("line {}: ", l.line()));
        let text = e.to_string();
        // The name of a field that is missing is ours, and no secret.
        let missing = text.split_once("missing field `").and_then(|(_, rest)| rest.split_once('`'));
        let missing = missing.map_or_else(String::new, |(field, _)| format!("`{field}` is missing; "));
        format!("{at}{missing}`version: 1` and `clients: [{{name, token, scopes: [{{method, path, graphql}}]}}]` are expected")
    })?;
    if registry.version != 1 {
        return Err(format!("version {} is not known; version: 1 is", registry.version));
    }
    let mut file = ClientsFile::default();
    for client in registry.clients {
        let line = client.referenced.line();
        let at = |why: String| format!("line {line}: {why}");
        let client = client.value;
        check_name(&client.name).map_err(at)?;
        if client.token.is_empty() {
            return Err(at(format!("the client {:?} has no token", client.name)));
        }
        let scopes = client.scopes.map(|all| {
            let scopes = all.into_iter().map(|s| {
                let line = s.referenced.line();
                s.value.scope().map_err(|why| format!("line {line}: {why}"))
            });
            scopes.collect::<Result<Vec<_>, _>>()
        });
        let scopes = scopes.transpose()?.map(Scopes::new);
        let token = sha256(&client.token);
        let registered = Arc::new(Registered { name: client.name.as_str().into(), scopes });
        if file.by_token.insert(token, registered).is_some() {
            return Err(at(format!("the client {:?} has another's token", client.name)));
        }
        if file.secrets.insert(client.name.clone(), Secret::Token(token)).is_some() {
            return Err(at(format!("there are two clients {:?}", client.name)));
        }
    }
    Ok(file)
}

/// What would not come out of a proxy URL as it was put in cannot be a name.
fn check_name(name: &str) -> Result<(), String> {
    match super::label(name) == name && !name.is_empty() {
        true => Ok(()),
        false => Err(format!("{name:?} cannot be a client's name: letters, digits and ._:/@#- can, 64 at most")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ClientsFile, String> {
        ClientsFile::parse(text, [("TOKEN".to_owned(), "t0ken".to_owned())])
    }

    #[test]
    fn both_forms_are_read() {
        let hash = bcrypt::hash("secret", 4).unwrap().replacen("$2b$", "$2y$", 1);
        let file = parse(&format!("# clients\nci:{hash}\n\nold:{{SHA}}5en6G6MezRroT3XKqkdPOmY/BfQ=\n")).unwrap();
        for (name, secret, good) in [
            ("ci", "secret", true),
            ("ci", "Secret", false),
            ("old", "secret", true),
            ("old", "", false),
            ("nobody", "secret", false),
        ] {
            assert_eq!(file.verify(name, secret), good, "{name} {secret}");
        }
        let file =
            parse("version: 1\nclients:\n  - name: app\n    token: \"{{ env.TOKEN }}\"\n    scopes: []\n").unwrap();
        assert!(file.verify("app", "t0ken") && !file.verify("app", "{{ env.TOKEN }}") && !file.verify("b", "t0ken"));
    }

    #[test]
    fn a_secret_is_found_however_it_is_put() {
        let mut file = parse("version: 1\nclients: [{name: a, token: 's3+cret='}]").unwrap();
        let headers = |value: &str| HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
        let encoded = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode("x:s3+cret=");
        for value in [
            "token s3+cret=",
            "Token token=\"s3+cret=\"",
            "Bearer\ts3+cret=",
            "token:s3+cret=",
            "bearer,s3+cret=",
            "Bearer x, Bearer s3+cret=",
            &format!("Basic {encoded}"),
        ] {
            assert!(file.holds_secret(&headers(value)), "{value}");
        }
        assert!(!file.holds_secret(&headers("token ghp_x")) && file.registered(&headers("token s3+cret=")).is_some());
        let mut next = parse("version: 1\nclients: [{name: a, token: other}]").unwrap();
        next.succeed(&file);
        assert!(next.registered(&headers("token s3+cret=")).is_none() && next.holds_secret(&headers("token s3+cret=")));
        file.succeed(&next);
        assert!(file.registered(&headers("token s3+cret=")).is_some());
    }

    #[test]
    fn mistakes_are_told_with_their_line_and_without_secrets() {
        for (text, said) in [
            ("", "names no client"),
            ("ci:$apr1$x$yyyyyyyyy", "line 1: the hash of \"ci\" is neither bcrypt"),
            ("\nci", "line 2: name:hash"),
            ("a b:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "cannot be a client's name"),
            ("version: 2\nclients: []", "version 2"),
            ("version: 1\nclients:\n  - name: x\n", "expected"),
            ("version: 1\nclients:\n  - name: x\n    token: \"{{ env.NO }}\"\n", "line 4: a template"),
            ("version: 1\nclients: [{name: x, token: ''}]", "has no token"),
            (
                "version: 1\nclients:\n- {name: x, token: a}\n- {name: y, token: a}",
                "line 4: the client \"y\" has another's",
            ),
            ("version: 1\nclients:\n- {name: x, token: a}\n- {name: x, token: b}", "two clients"),
            (
                "version: 1\nclients:\n- name: x\n  token: a\n  scopes:\n  - method: GET\n    path: /(\n",
                "line 6: the path \"/(\" is not",
            ),
            ("version: 1\nclients:\n- {name: x, token: a, scopes: [{path: /x}]}", "no method"),
            ("version: 1\nclients:\n- {name: x, token: a, scopes: [{graphql: all}]}", "queries, mutations"),
        ] {
            let error = parse(text).err().unwrap();
            assert!(error.contains(said) && !error.contains("yyyy"), "{text}: {error}");
        }
    }
}
