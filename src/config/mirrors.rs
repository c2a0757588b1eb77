//! The variables of github-mirror and github-proxy, as options of ours: whoever comes from one of them keeps his
//! configuration. They come last: flags, `GHTAP_…` variables and the file win over them.

/// The variables that are understood, and the option that each becomes or is a part of.
pub const UNDERSTOOD: [(&str, &str); 14] = [
    ("GITHUB_USERS", "allow-user"),
    ("GITHUB_MIRROR_URL", "public-url"),
    ("CACHE_TYPE", "store"),
    ("PRIMARY_ENDPOINT", "store"),
    ("READER_ENDPOINT", "store-reader"),
    ("REDIS_PORT", "store"),
    ("REDIS_TOKEN", "store"),
    ("REDIS_PASSWORD", "store"),
    ("REDIS_SSL", "store"),
    ("CACHE_BACKEND_URL", "store"),
    ("CACHE_TTL", "store-ttl"),
    ("GITHUB_API_URL", "upstream"),
    ("CLIENT_REGISTRY_FILE_PATH", "clients-file"),
    ("GITHUB_CREDS_CACHE_TTL_PADDING", "pool-padding"),
];

/// The environment as far as it is text: what a registry's templates may name, and the pool's credentials.
pub fn variables() -> Vec<(String, String)> {
    let text = |v: std::ffi::OsString| v.into_string().ok();
    std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)?))).collect()
}

/// Options that the mirrors' variables ask for: long name and value.
///
/// # Errors
/// One line that names the variable.
pub fn options(variable: impl Fn(&str) -> Option<String>) -> Result<Vec<(&'static str, String)>, String> {
    let set = |name: &str| variable(name).filter(|v| !v.trim().is_empty());
    let mut options = Vec::new();
    for (name, option) in [
        ("GITHUB_USERS", "allow-user"),
        ("GITHUB_MIRROR_URL", "public-url"),
        ("GITHUB_API_URL", "upstream"),
        ("CLIENT_REGISTRY_FILE_PATH", "clients-file"),
    ] {
        options.extend(set(name).map(|value| (option, value)));
    }
    for (name, option, unit) in
        [("CACHE_TTL", "store-ttl", "s"), ("GITHUB_CREDS_CACHE_TTL_PADDING", "pool-padding", "m")]
    {
        if let Some(value) = set(name) {
            let number: u64 = value.trim().parse().map_err(|_| format!("{name}: a whole number is expected"))?;
            options.push((option, format!("{number}{unit}")));
        }
    }
    if let Some(url) = set("CACHE_BACKEND_URL") {
        options.push(("store", if url.starts_with("inmemory:") { "memory:".into() } else { url }));
    } else if let Some(kind) = set("CACHE_TYPE") {
        match kind.as_str() {
            "redis" => {
                options.push(("store", redis(&set, set("PRIMARY_ENDPOINT").as_deref().unwrap_or("localhost"))?));
                if let Some(reader) = set("READER_ENDPOINT") {
                    options.push(("store-reader", redis(&set, &reader)?));
                }
            }
            "in-memory" | "memory" => options.push(("store", "memory:".into())),
            _ => return Err("CACHE_TYPE: redis or in-memory is expected".into()),
        }
    }
    Ok(options)
}

/// The URL of a server that the `REDIS_…` variables describe.
fn redis(set: &impl Fn(&str) -> Option<String>, host: &str) -> Result<String, String> {
    let tls = set("REDIS_SSL").is_some_and(|v| ["true", "1", "yes"].contains(&v.to_ascii_lowercase().as_str()));
    // Kubernetes sets REDIS_PORT to tcp://ADDRESS:PORT, for a service that is called redis.
    let port = set("REDIS_PORT").unwrap_or_else(|| "6379".into());
    let port = port.rsplit(':').next().unwrap_or_default().parse::<u16>();
    let port = port.map_err(|_| "REDIS_PORT: a port is expected".to_owned())?;
    let password = set("REDIS_TOKEN").or_else(|| set("REDIS_PASSWORD"));
    let password = password.map_or_else(String::new, |p| {
        let encoded: String = form_urlencoded::byte_serialize(p.as_bytes()).collect();
        format!(":{}@", encoded.replace('+', "%20"))
    });
    Ok(format!("{}://{password}{host}:{port}", if tls { "rediss" } else { "redis" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(set: &[(&str, &str)]) -> Result<Vec<(&'static str, String)>, String> {
        options(|name| set.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn each_variable_of_the_mirrors_becomes_an_option() {
        let redis = [
            ("CACHE_TYPE", "redis"),
            ("PRIMARY_ENDPOINT", "cache.example"),
            ("READER_ENDPOINT", "reader.example"),
            ("REDIS_PORT", "6380"),
            ("REDIS_TOKEN", "p w+/"),
            ("REDIS_SSL", "True"),
        ];
        for (set, expected) in [
            (
                &redis[..],
                vec![
                    ("store", "rediss://:p%20w%2B%2F@cache.example:6380"),
                    ("store-reader", "rediss://:p%20w%2B%2F@reader.example:6380"),
                ],
            ),
            (&[("CACHE_TYPE", "redis"), ("REDIS_PASSWORD", "x")], vec![("store", "redis://:x@localhost:6379")]),
            (&[("CACHE_TYPE", "redis"), ("REDIS_PORT", "tcp://10.0.0.1:7")], vec![("store", "redis://localhost:7")]),
            (&[("CACHE_TYPE", "in-memory"), ("READER_ENDPOINT", "x")], vec![("store", "memory:")]),
            (&[("REDIS_PORT", "1"), ("PRIMARY_ENDPOINT", "x")], vec![]),
            (&[("CACHE_BACKEND_URL", "inmemory://")], vec![("store", "memory:")]),
            (&[("CACHE_BACKEND_URL", "rediss://h:1"), ("CACHE_TYPE", "redis")], vec![("store", "rediss://h:1")]),
            (&[("CACHE_TTL", "3600")], vec![("store-ttl", "3600s")]),
            (&[("GITHUB_CREDS_CACHE_TTL_PADDING", "10")], vec![("pool-padding", "10m")]),
            (&[("GITHUB_USERS", "a:b,c")], vec![("allow-user", "a:b,c")]),
            (&[("GITHUB_MIRROR_URL", "https://m.example")], vec![("public-url", "https://m.example")]),
            (&[("GITHUB_API_URL", "https://ghe.example/api/v3")], vec![("upstream", "https://ghe.example/api/v3")]),
            (&[("CLIENT_REGISTRY_FILE_PATH", "/r.yml")], vec![("clients-file", "/r.yml")]),
            (&[("GITHUB_USERS", " ")], vec![]),
        ] {
            let expected: Vec<_> = expected.into_iter().map(|(n, v)| (n, v.to_owned())).collect();
            assert_eq!(of(set).unwrap(), expected, "{set:?}");
        }
        for set in [[("CACHE_TTL", "x")], [("CACHE_TYPE", "disk")], [("GITHUB_CREDS_CACHE_TTL_PADDING", "1.5")]] {
            assert!(of(&set).unwrap_err().starts_with(set[0].0));
        }
        assert!(of(&[("CACHE_TYPE", "redis"), ("REDIS_PORT", "x")]).unwrap_err().starts_with("REDIS_PORT"));
    }
}
