//! What a request is for, as far as the choice of a credential goes.

use std::sync::Arc;

use http::Method;

/// What a request is for, as far as the choice goes.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The API that is asked.
    pub realm: Arc<str>,
    pub resource: &'static str,
    /// Lower case.
    pub owner: Option<String>,
    /// `owner/name`, lower case.
    pub repository: Option<String>,
    /// Where what one may see is decided: a repository, or `orgs/acme`, `teams/7`. None: everybody sees the same, or himself.
    pub place: Option<String>,
    /// Path and query.
    pub target: String,
    pub route: &'static str,
}

/// What else than repositories is shown to some and not to others.
const PLACES: [&str; 6] = ["orgs", "organizations", "teams", "enterprises", "gists", "projects"];

impl Wanted {
    /// Reads a request's target, without GHES's prefix.
    pub fn of(realm: &Arc<str>, method: &Method, target: &str, route: &'static str) -> Wanted {
        let path = target.split('?').next().unwrap_or(target);
        let mut parts = path.strip_prefix('/').unwrap_or(path).split('/');
        let (owner, repository) = match (parts.next(), parts.next(), parts.next()) {
            (Some("repos"), Some(owner), Some(name)) if !owner.is_empty() && !name.is_empty() => {
                (Some(owner.to_ascii_lowercase()), Some(format!("{owner}/{name}").to_ascii_lowercase()))
            }
            (Some("repositories"), Some(number), _) => (None, Some(format!("id/{number}"))),
            (Some("orgs" | "users"), Some(owner), _) if !owner.is_empty() => (Some(owner.to_ascii_lowercase()), None),
            _ => (None, None),
        };
        let mut parts = path.trim_start_matches('/').split('/');
        let place = repository.clone().or_else(|| match (parts.next(), parts.next()) {
            (Some(kind), Some(which)) if PLACES.contains(&kind) => Some(format!("{kind}/{which}").to_ascii_lowercase()),
            _ => None,
        });
        let resource = match path {
            "/graphql" => "graphql",
            "/search/code" => "code_search",
            p if p.starts_with("/search/") => "search",
            p if p.starts_with("/app-manifests/") && *method == Method::POST => "integration_manifest",
            _ => "core",
        };
        Wanted { realm: realm.clone(), resource, owner, repository, place, target: target.to_owned(), route }
    }

    /// Whether it is of a repository's code: who sees a repository sees that, as a rule.
    pub(super) fn is_code(&self) -> bool {
        ["/contents/", "/git/", "/commits", "/branches", "/tags", "/compare/", "/readme"]
            .iter()
            .any(|c| self.route.contains(c))
    }

    pub(super) fn sight(&self) -> Option<String> {
        self.place.as_ref().map(|place| format!("{place} {}", self.route))
    }
}
