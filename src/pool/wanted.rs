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
    pub route: &'static str,
}

impl Wanted {
    /// Reads a request's target, without GHES's prefix.
    pub fn of(realm: &Arc<str>, method: &Method, path: &str, route: &'static str) -> Wanted {
        let mut parts = path.strip_prefix('/').unwrap_or(path).split('/');
        let (owner, repository) = match (parts.next(), parts.next(), parts.next()) {
            (Some("repos"), Some(owner), Some(name)) if !owner.is_empty() && !name.is_empty() => {
                (Some(owner.to_ascii_lowercase()), Some(format!("{owner}/{name}").to_ascii_lowercase()))
            }
            (Some("repositories"), Some(number), _) => (None, Some(format!("id/{number}"))),
            (Some("orgs" | "users"), Some(owner), _) if !owner.is_empty() => (Some(owner.to_ascii_lowercase()), None),
            _ => (None, None),
        };
        let resource = match path {
            "/graphql" => "graphql",
            "/search/code" => "code_search",
            p if p.starts_with("/search/") => "search",
            p if p.starts_with("/app-manifests/") && *method == Method::POST => "integration_manifest",
            _ => "core",
        };
        Wanted { realm: realm.clone(), resource, owner, repository, route }
    }

    pub(super) fn sight(&self) -> Option<String> {
        self.repository.as_ref().map(|repository| format!("{repository} {}", self.route))
    }
}
