//! GitHub's route templates: what a path is, without saying whose.
//!
//! The table `routes.txt` comes from GitHub's published OpenAPI description (`scripts/update-routes`).
//! A label made from it is bounded, whatever clients send.

use std::collections::BTreeMap;

use http::Method;

const TABLE: &str = include_str!("routes.txt");

/// How a listing is cut into pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paging {
    /// Not at all.
    None,
    /// `?page=N`
    Numbered,
    /// `?after=…`, `?since=…`, `?cursor=…`
    Cursor,
}

/// One operation of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// `GET /repos/{owner}/{repo}/pulls/{pull_number}`; `GET other` for what GitHub does not document.
    pub name: &'static str,
    /// A 200 is always a JSON array.
    pub array: bool,
    pub paging: Paging,
    /// Whether GitHub documents it. Of what it does not, nothing is known: not even that it has no pages.
    pub known: bool,
}

/// Operations by path; those whose last parameter may hold slashes are also in `deep`.
pub struct Routes {
    exact: matchit::Router<Operations>,
    deep: matchit::Router<Operations>,
}

type Operations = Vec<(&'static str, Route)>;

impl Default for Routes {
    fn default() -> Self {
        Self::new()
    }
}

impl Routes {
    /// Builds the routers from the table. Leaks the names: call it once.
    pub fn new() -> Routes {
        let (mut exact, mut deep) = (BTreeMap::new(), BTreeMap::new());
        for (method, flags, path) in lines() {
            let paging = match flags {
                f if f.contains('p') => Paging::Numbered,
                f if f.contains('c') => Paging::Cursor,
                _ => Paging::None,
            };
            // Listings and redirects of renamed repositories name repositories by number.
            let by_number =
                path.strip_prefix("/repos/{owner}/{repo}").map(|rest| format!("/repositories/{{repository_id}}{rest}"));
            for path in [Some(path.to_owned()), by_number].into_iter().flatten() {
                let name: &str = Box::leak(format!("{method} {}", path.replace("{*", "{")).into_boxed_str());
                let route = Route { name, array: flags.contains('a'), paging, known: true };
                exact.entry(shape(&path.replace("{*", "{"))).or_insert_with(Operations::new).push((method, route));
                if path.contains("{*") {
                    deep.entry(shape(&path)).or_insert_with(Operations::new).push((method, route));
                }
            }
        }
        Routes { exact: router(exact), deep: router(deep) }
    }

    /// The route of a request; prefixes such as `/api/v3` must be gone. HEAD is counted as itself and has
    /// the shape of its GET.
    pub fn find(&self, method: &Method, path: &str) -> Route {
        let asked = match *method {
            Method::HEAD => "GET",
            _ => method.as_str(),
        };
        let in_router = |router: &matchit::Router<Operations>| {
            let operations = router.at(path).ok()?.value;
            operations.iter().find(|(method, _)| *method == asked).map(|(_, route)| *route)
        };
        let found = in_router(&self.exact).or_else(|| in_router(&self.deep));
        match (found, method) {
            (Some(route), &Method::HEAD) => Route { name: head_name(route.name), ..route },
            (Some(route), _) => route,
            (None, &Method::POST) if path == "/graphql" => Route { name: "POST /graphql", ..OTHER },
            (None, _) => Route { name: other_name(method), ..OTHER },
        }
    }
}

/// A template with its parameters numbered: GitHub names the same one differently in different operations.
fn shape(template: &str) -> String {
    let mut number = 0;
    let parts = template.split('/').map(|part| match part.strip_prefix('{') {
        Some(parameter) => {
            number += 1;
            format!("{{{}p{number}}}", if parameter.starts_with('*') { "*" } else { "" })
        }
        None => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join("/")
}

fn router(by_shape: BTreeMap<String, Operations>) -> matchit::Router<Operations> {
    let mut router = matchit::Router::new();
    for (shape, operations) in by_shape {
        // What another template shadows entirely is still counted, as the other; a test looks for such.
        if let Err(error) = router.insert(shape.as_str(), operations) {
            tracing::debug!(%shape, %error, "a route was left out");
        }
    }
    router
}

const OTHER: Route = Route { name: "other", array: false, paging: Paging::None, known: false };

fn other_name(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET other",
        "HEAD" => "HEAD other",
        "POST" => "POST other",
        "PUT" => "PUT other",
        "PATCH" => "PATCH other",
        "DELETE" => "DELETE other",
        "OPTIONS" => "OPTIONS other",
        _ => "other",
    }
}

fn head_name(get: &'static str) -> &'static str {
    use std::collections::HashMap;
    use std::sync::OnceLock;
    static NAMES: OnceLock<HashMap<&'static str, &'static str>> = OnceLock::new();
    let names = NAMES.get_or_init(|| {
        let gets = lines().filter(|(method, ..)| *method == "GET");
        let templates = gets.flat_map(|(_, _, path)| {
            let path = path.replace("{*", "{");
            let by_id =
                path.strip_prefix("/repos/{owner}/{repo}").map(|r| format!("/repositories/{{repository_id}}{r}"));
            [Some(path), by_id]
        });
        templates
            .flatten()
            .map(|path| -> (&str, &str) {
                (Box::leak(format!("GET {path}").into_boxed_str()), Box::leak(format!("HEAD {path}").into_boxed_str()))
            })
            .collect()
    });
    names.get(get).copied().unwrap_or("HEAD other")
}

fn lines() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    TABLE.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let mut words = line.splitn(3, ' ');
        Some((words.next()?, words.next()?, words.next()?))
    })
}

/// The repository that a path belongs to, lower-cased (GitHub ignores case): `owner/name`, or `id/123`.
pub fn repository(path: &str) -> Option<String> {
    let mut parts = path.strip_prefix('/')?.split('/');
    match parts.next()? {
        "repos" => {
            let (owner, name) = (parts.next()?, parts.next()?);
            (!owner.is_empty() && !name.is_empty())
                .then(|| format!("{}/{}", owner.to_ascii_lowercase(), name.to_ascii_lowercase()))
        }
        "repositories" => Some(format!("id/{}", parts.next()?)),
        _ => None,
    }
}

/// Whether the target names content at a full commit id: `contents` with such a `ref`, a `git` object, a
/// commit. What is missing there stays missing, as long as the commit is not pushed and nobody gains access.
pub fn is_at_full_commit(target: &str) -> bool {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let Some(rest) = path.strip_prefix("/repos/").or_else(|| path.strip_prefix("/repositories/").map(|_| path)) else {
        return false;
    };
    let parts: Vec<&str> = rest.split('/').collect();
    let skip = if path.starts_with("/repositories/") { 3 } else { 2 };
    let id = |s: &str| matches!(s.len(), 40 | 64) && s.bytes().all(|b| b.is_ascii_hexdigit());
    match parts.get(skip..).unwrap_or_default() {
        ["contents", ..] => query.split('&').any(|p| p.strip_prefix("ref=").is_some_and(id)),
        ["git", "commits" | "trees" | "blobs" | "tags", sha] => id(sha),
        ["commits", sha] => id(sha),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_is_in_the_router() {
        let routes = Routes::new();
        let mut lost = Vec::new();
        for (method, _, path) in lines() {
            let concrete = path.replace("{*", "{");
            let concrete: String =
                concrete.split('/').map(|s| if s.starts_with('{') { "7" } else { s }).collect::<Vec<_>>().join("/");
            let found = routes.find(&Method::from_bytes(method.as_bytes()).unwrap(), &concrete);
            if found.name != format!("{method} {}", path.replace("{*", "{")) {
                lost.push(format!("{method} {path} -> {}", found.name));
            }
        }
        assert!(lost.is_empty(), "{} lost: {lost:#?}", lost.len());
    }

    #[test]
    fn finds_routes() {
        let routes = Routes::new();
        for (method, path, name) in [
            (Method::GET, "/repos/o/r/pulls/7", "GET /repos/{owner}/{repo}/pulls/{pull_number}"),
            (Method::HEAD, "/repos/o/r/pulls/7", "HEAD /repos/{owner}/{repo}/pulls/{pull_number}"),
            (Method::GET, "/repos/o/r/contents/a/b/c.yaml", "GET /repos/{owner}/{repo}/contents/{path}"),
            (Method::POST, "/repos/o/r/statuses/abc", "POST /repos/{owner}/{repo}/statuses/{sha}"),
            (Method::GET, "/repos/o/r/commits/abc/status", "GET /repos/{owner}/{repo}/commits/{ref}/status"),
            (Method::GET, "/repositories/12/issues", "GET /repositories/{repository_id}/issues"),
            (Method::POST, "/graphql", "POST /graphql"),
            (Method::GET, "/secret/path", "GET other"),
            (Method::GET, "/repos/o/r/../../x", "GET other"),
        ] {
            assert_eq!(routes.find(&method, path).name, name);
        }
        let issues = routes.find(&Method::GET, "/repositories/12/issues");
        assert!(issues.array && issues.paging == Paging::Numbered);
        assert!(!routes.find(&Method::GET, "/repos/o/r").array);
    }

    #[test]
    fn full_commit_ids() {
        let sha = "0123456789abcdef0123456789abcdef01234567";
        for (target, is) in [
            (format!("/repos/o/r/contents/.packit.yaml?ref={sha}"), true),
            (format!("/repos/o/r/contents/x?a=b&ref={sha}"), true),
            ("/repos/o/r/contents/x?ref=main".into(), false),
            ("/repos/o/r/contents/x".into(), false),
            (format!("/repos/o/r/git/trees/{sha}"), true),
            (format!("/repositories/7/git/trees/{sha}"), true),
            (format!("/repos/o/r/commits/{sha}"), true),
            (format!("/repos/o/r/commits/{sha}/status"), false),
            (format!("/repos/o/r/git/refs/{sha}"), false),
        ] {
            assert_eq!(is_at_full_commit(&target), is, "{target}");
        }
    }
}
