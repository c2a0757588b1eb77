//! What a client of the registry may ask for: methods and path patterns, and GraphQL's operations.
//!
//! A pattern is a regular expression for the whole path. The path is decoded once before; one that could mean
//! something else to GitHub than it does here is refused: dot segments, empty segments, control characters, backslashes.
//! GitHub ignores case where it names owners and repositories, and minds it elsewhere. So a pattern has to match
//! without regard to case, which defeats what it excludes by a letter, and also to the letter, with the owner and the
//! repository as they were written or in lower case.

use std::borrow::Cow;
use std::sync::OnceLock;

use http::Method;
use regex::bytes::{Regex, RegexBuilder};
use regex_syntax::hir::literal::Extractor;

use crate::github::credentials::api_path;
use crate::github::graphql::Kind;
use crate::origin::dial::percent_decode;

/// A client's scopes: one of them has to fit.
#[derive(Debug, Default)]
pub struct Scopes(Vec<Scope>);

/// One scope.
#[derive(Debug)]
pub struct Scope {
    /// Upper case; none: any.
    methods: Vec<String>,
    pattern: String,
    /// What every path that fits begins with, in lower case: tells most others at once.
    prefix: String,
    graphql: GraphQl,
    /// Made when it is first needed: twenty thousand of them would take their time, and memory.
    compiled: OnceLock<Option<(Regex, Regex)>>,
}

/// Which operations a scope for GraphQL's path allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GraphQl {
    pub queries: bool,
    pub mutations: bool,
}

/// Why a request is out of scope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfScope {
    #[error("no scope of {client:?} allows {method} {path}; add one to the registry")]
    Missing { client: String, method: String, path: String },
    #[error("no scope of {client:?} allows GraphQL {kind}; add one to the registry, as graphql: {kind}")]
    GraphQl { client: String, kind: &'static str },
    #[error("the path is ambiguous ({0}), and scopes are checked: write it plainly")]
    Ambiguous(&'static str),
    #[error("the GraphQL request cannot be read ({0}), and scopes are checked: send JSON with one valid document")]
    Unreadable(&'static str),
}

/// What GitHub's API is asked with.
const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];

impl Scope {
    /// # Errors
    /// One line about the pattern.
    pub fn new(methods: &[String], pattern: &str, graphql: GraphQl) -> Result<Scope, String> {
        let upper = |m: &String| m.trim().to_ascii_uppercase();
        let mut methods: Vec<String> = methods.iter().map(upper).collect();
        if methods.iter().any(|m| m == "*" || m == "ANY") {
            methods.clear();
        } else if methods.is_empty() || methods.iter().any(|m| !METHODS.contains(&m.as_str())) {
            return Err("a scope's method is GET, HEAD, POST, PUT, PATCH or DELETE, or * for any".into());
        }
        // github-proxy's patterns may leave the first slash out.
        let pattern = match pattern.bytes().next() {
            None => return Err("a scope has an empty path".into()),
            Some(first) if first.is_ascii_alphanumeric() => format!("/{pattern}"),
            Some(_) => pattern.trim_start_matches('^').to_owned(),
        };
        let pattern = match pattern.strip_suffix('$') {
            Some(rest) if !rest.ends_with('\\') => rest.to_owned(),
            _ => pattern,
        };
        // Parsed now, so that a mistake is told now.
        let parsed = regex_syntax::parse(&pattern);
        let parsed = parsed.map_err(|_| format!("the path {pattern:?} is not a regular expression"))?;
        let literals = Extractor::new().extract(&parsed);
        let prefix = literals.longest_common_prefix().unwrap_or_default();
        let prefix = String::from_utf8_lossy(prefix).to_ascii_lowercase();
        Ok(Scope { methods, pattern, prefix, graphql, compiled: OnceLock::new() })
    }

    fn allows(&self, method: &str, path: &str, folded: &str, lower: &str) -> bool {
        if !(self.methods.is_empty() || self.methods.iter().any(|m| m == method)) || !lower.starts_with(&self.prefix) {
            return false;
        }
        let make = || {
            let text = format!("^(?:{})$", self.pattern);
            let build =
                |ignore_case| RegexBuilder::new(&text).case_insensitive(ignore_case).size_limit(1 << 20).build();
            Some((build(true).ok()?, build(false).ok()?))
        };
        let Some((loosely, exactly)) = self.compiled.get_or_init(make) else { return false };
        let (path, folded) = (path.as_bytes(), folded.as_bytes());
        loosely.is_match(path) && (exactly.is_match(path) || (folded != path && exactly.is_match(folded)))
    }
}

impl Scopes {
    pub fn new(scopes: Vec<Scope>) -> Scopes {
        Scopes(scopes)
    }

    /// Whether a request for `path` (still encoded) is in scope. For GraphQL's path `graphql` says
    /// which operations the document has, or why it cannot be read.
    ///
    /// # Errors
    /// Which scope is missing.
    pub fn check(
        &self,
        client: &str,
        method: &Method,
        path: &str,
        graphql: Option<Result<&[Kind], &'static str>>,
    ) -> Result<(), OutOfScope> {
        let decoded = plain(path).map_err(OutOfScope::Ambiguous)?;
        let path = api_path(&decoded);
        if path == "/graphql" && graphql.is_none() {
            return Err(OutOfScope::Unreadable("it is not a POST"));
        }
        let (folded, lower) = (fold_names(path), path.to_ascii_lowercase());
        // What may be read may be asked about.
        let method = if *method == Method::HEAD { "GET" } else { method.as_str() };
        let mut fitting = self.0.iter().filter(|s| s.allows(method, path, &folded, &lower));
        let Some(operations) = graphql else {
            return match fitting.next() {
                Some(_) => Ok(()),
                None => Err(missing(client, method, path)),
            };
        };
        let fitting: Vec<&Scope> = fitting.collect();
        if fitting.is_empty() {
            return Err(missing(client, method, path));
        }
        for kind in operations.map_err(OutOfScope::Unreadable)? {
            let (allowed, name): (fn(&GraphQl) -> bool, _) = match kind {
                Kind::Query => (|g| g.queries, "queries"),
                Kind::Mutation | Kind::Subscription => (|g| g.mutations, "mutations"),
            };
            if !fitting.iter().any(|s| allowed(&s.graphql)) {
                return Err(OutOfScope::GraphQl { client: client.to_owned(), kind: name });
            }
        }
        Ok(())
    }
}

fn missing(client: &str, method: &str, path: &str) -> OutOfScope {
    OutOfScope::Missing { client: client.to_owned(), method: method.to_owned(), path: path.chars().take(200).collect() }
}

/// A path as GitHub understands it, if there is no doubt how it does.
fn plain(path: &str) -> Result<Cow<'_, str>, &'static str> {
    let decoded = match path.contains('%') {
        false => Cow::Borrowed(path),
        true => Cow::Owned(String::from_utf8(percent_decode(path)).map_err(|_| "it is not UTF-8")?),
    };
    if !decoded.starts_with('/') {
        return Err("it does not begin with a slash");
    }
    if decoded.contains('\\') || decoded.chars().any(char::is_control) {
        return Err("it has a backslash or a control character");
    }
    if decoded.contains(';') {
        return Err("it has a semicolon");
    }
    let segments = &decoded[1..];
    let mut all = segments.split('/');
    if all.any(|s| s == "." || s == ".." || s.is_empty()) && !segments.is_empty() {
        return Err("it has an empty or a dot segment");
    }
    Ok(decoded)
}

/// The names in which GitHub ignores case, in lower case.
fn fold_names(path: &str) -> Cow<'_, str> {
    let names = match path[1..].split('/').next() {
        Some("repos") => 2,
        Some("orgs" | "users") => 1,
        _ => 0,
    };
    if names == 0 || !path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Cow::Borrowed(path);
    }
    let parts = path.split('/').enumerate();
    let parts = parts.map(|(i, s)| if (2..2 + names).contains(&i) { s.to_ascii_lowercase() } else { s.to_owned() });
    Cow::Owned(parts.collect::<Vec<_>>().join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: GraphQl = GraphQl { queries: true, mutations: true };

    fn scopes(all: &[(&str, &str)]) -> Scopes {
        Scopes::new(all.iter().map(|(m, p)| Scope::new(&[m.to_string()], p, BOTH).unwrap()).collect())
    }

    #[test]
    fn patterns_are_anchored_and_tricks_do_not_get_round_them() {
        let scopes = scopes(&[
            ("GET", "/repos/acme/[^s][^/]*(/.*)?"),
            ("GET", "/repos/acme/site/contents/public/.*"),
            ("get", "users/[^/]+"),
            ("*", "^/gists$"),
            ("GET", "/orgs/Acme/repos"),
            ("GET", "/ab*c"),
        ]);
        for (method, path, allowed) in [
            ("GET", "/repos/acme/tool", true),
            ("HEAD", "/repos/acme/tool/pulls/7", true),
            ("POST", "/repos/acme/tool", false),
            ("GET", "/repos/ACME/Tool", true),
            ("GET", "/repos/acme/secret", false),
            ("GET", "/repos/acme/Secret", false),
            ("GET", "/repos/acme/%73ecret", false),
            ("GET", "/repos/acme/%53ecret", false),
            ("GET", "/repos/acme/tool/../secret", false),
            ("GET", "/repos/acme/tool/%2e%2e/secret", false),
            ("GET", "/repos/acme/tool/..%2fsecret", false),
            ("GET", "/repos//acme/tool", false),
            ("GET", "//repos/acme/tool", false),
            ("GET", "/repos/acme/tool\\..\\secret", false),
            ("GET", "/repos/acme/tool%00", false),
            ("GET", "/repos/acme/tool;x", false),
            ("GET", "/repos/acme/tool/branches/a%2Fb", true),
            ("GET", "/repos/acme/tool/%ff", false),
            ("GET", "/x/repos/acme/tool", false),
            ("GET", "/repos/acme/site/contents/public/x", true),
            ("GET", "/repos/acme/site/contents/PUBLIC/x", false),
            ("GET", "/repos/ACME/Site/contents/public/x", true),
            ("GET", "/users/octocat", true),
            ("GET", "/users/octocat/keys", false),
            ("DELETE", "/gists", true),
            ("GET", "/gists/", false),
            ("GET", "/orgs/Acme/repos", true),
            ("GET", "/ac", true),
            ("GET", "/", false),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(scopes.check("c", &method, path, None).is_ok(), allowed, "{method} {path}");
        }
        let all = Scopes::new(vec![Scope::new(&["GET".into()], ".*", BOTH).unwrap()]);
        assert!(all.check("c", &Method::GET, "/anything/at/all", None).is_ok());
        assert!(all.check("c", &Method::GET, "/", None).is_ok());
        let error = all.check("c", &Method::PUT, "/x", None).unwrap_err().to_string();
        assert!(error.contains("\"c\"") && error.contains("PUT /x"), "{error}");
    }

    #[test]
    fn what_every_path_that_fits_begins_with() {
        for (pattern, prefix) in [
            ("/repos/Acme/tool/(pulls|issues)/.*", "/repos/acme/tool/"),
            ("/repos/acme/(x|y)", "/repos/acme/"),
            ("/a|/b", "/"),
            ("/ab*c", "/a"),
            (".*", ""),
            ("/user", "/user"),
            ("/r\\.x", "/r.x"),
        ] {
            assert_eq!(Scope::new(&["GET".into()], pattern, BOTH).unwrap().prefix, prefix, "{pattern}");
        }
        let one = scopes(&[("GET", "/a|/b"), ("GET", "/\\p{L}+")]);
        for (path, fits) in [("/a", true), ("/b", true), ("/ab/b", false), ("/\u{e9}", true)] {
            assert_eq!(one.check("c", &Method::GET, path, None).is_ok(), fits, "{path}");
        }
    }

    #[test]
    fn graphql_is_by_operation() {
        let of = |graphql| Scopes::new(vec![Scope::new(&["POST".into()], "/graphql", graphql).unwrap()]);
        let queries = of(GraphQl { queries: true, mutations: false });
        let check = |scopes: &Scopes, kinds: Result<&[Kind], &'static str>| {
            scopes.check("c", &Method::POST, "/graphql", Some(kinds)).map_err(|e| e.to_string())
        };
        assert!(check(&queries, Ok(&[Kind::Query])).is_ok());
        assert!(check(&queries, Ok(&[Kind::Query, Kind::Mutation])).unwrap_err().contains("graphql: mutations"));
        assert!(check(&queries, Err("no JSON")).unwrap_err().contains("no JSON"));
        assert!(check(&of(BOTH), Ok(&[Kind::Mutation])).is_ok());
        assert!(check(&scopes(&[("GET", "/.*")]), Ok(&[Kind::Query])).is_err());
        for path in ["/graphql", "/%67raphql", "/api/%67raphql"] {
            assert!(of(BOTH).check("c", &Method::POST, path, None).is_err(), "{path}");
        }
    }

    #[test]
    fn mistakes_in_patterns_are_told() {
        for (method, pattern) in [("GET", "/a("), ("", "/a"), ("GET", ""), ("G T", "/a"), ("GTE", "/a")] {
            assert!(Scope::new(&[method.to_owned()], pattern, BOTH).is_err(), "{method} {pattern}");
        }
    }
}
