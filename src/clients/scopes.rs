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
pub struct Scopes {
    all: Vec<Scope>,
    /// What tells most of them apart, close together: of a thousand clients nobody's is in the processor's cache.
    heads: Box<[Head]>,
    prefixes: Box<str>,
}

/// A scope's methods, and where its prefix ends in all of them.
#[derive(Debug)]
struct Head {
    methods: u8,
    end: u32,
}

/// One scope.
#[derive(Debug)]
pub struct Scope {
    /// A bit for each of [`METHODS`], and one for all others.
    methods: u8,
    pattern: String,
    /// Whether it has no capital: then a path without capitals matches it with regard to case as it does without.
    is_lower: bool,
    /// What every path that fits begins with, in lower case.
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
/// The bit of all others.
const OTHERS: u8 = 1 << 7;

impl Scope {
    /// # Errors
    /// One line about the pattern.
    pub fn new(methods: &[String], pattern: &str, graphql: GraphQl) -> Result<Scope, String> {
        let mut bits = 0;
        for method in methods.iter().map(|m| m.trim()) {
            bits |= match method {
                "*" | "any" | "ANY" => u8::MAX,
                name => match METHODS.iter().position(|m| m.eq_ignore_ascii_case(name)) {
                    Some(i) => 1 << i,
                    None => {
                        return Err("a scope's method is GET, HEAD, POST, PUT, PATCH or DELETE, or * for any".into());
                    }
                },
            };
        }
        if bits == 0 {
            return Err("a scope has no method".into());
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
        let is_lower = !pattern.bytes().any(|b| b.is_ascii_uppercase());
        Ok(Scope { methods: bits, pattern, is_lower, prefix, graphql, compiled: OnceLock::new() })
    }

    fn fits(&self, path: &str, folded: &str, is_lower: bool) -> bool {
        let make = || {
            let text = format!("^(?:{})$", self.pattern);
            let build =
                |ignore_case| RegexBuilder::new(&text).case_insensitive(ignore_case).size_limit(1 << 20).build();
            Some((build(true).ok()?, build(false).ok()?))
        };
        let Some((loosely, exactly)) = self.compiled.get_or_init(make) else { return false };
        let (path, folded) = (path.as_bytes(), folded.as_bytes());
        if !loosely.is_match(path) {
            return false;
        }
        (self.is_lower && is_lower) || (exactly.is_match(path) || (folded != path && exactly.is_match(folded)))
    }
}

impl Scopes {
    pub fn new(all: Vec<Scope>) -> Scopes {
        let mut prefixes = String::new();
        let heads = all.iter().map(|scope| {
            prefixes.push_str(&scope.prefix);
            Head { methods: scope.methods, end: u32::try_from(prefixes.len()).unwrap_or(u32::MAX) }
        });
        let heads = heads.collect();
        Scopes { all, heads, prefixes: prefixes.into() }
    }

    /// Those that a method and a path fit.
    fn fitting(&self, method: &str, path: &str) -> impl Iterator<Item = &Scope> {
        let bit = METHODS.iter().position(|m| *m == method).map_or(OTHERS, |i| 1 << i);
        let (folded, lower) = (fold_names(path).into_owned(), path.to_ascii_lowercase());
        let is_lower = lower == path;
        let path = path.to_owned();
        let mut begin = 0;
        self.heads.iter().zip(&self.all).filter_map(move |(head, scope)| {
            let end = head.end as usize;
            let prefix = self.prefixes.get(std::mem::replace(&mut begin, end)..end)?;
            (head.methods & bit != 0 && lower.starts_with(prefix) && scope.fits(&path, &folded, is_lower))
                .then_some(scope)
        })
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
        // What may be read may be asked about.
        let method = if *method == Method::HEAD { "GET" } else { method.as_str() };
        let mut fitting = self.fitting(method, path);
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
