//! What is true of GitHub only: its routes, its entity tags, its rate-limit fields, its credentials.
//!
//! Nothing here does I/O. Sources are named where a fact is used; most are measured or recorded facts
//! about api.github.com, not documented promises, so each has a fallback.

pub mod credentials;
pub mod etag;
pub mod graphql;
pub mod hosts;
pub mod limits;
pub mod routes;

/// The host that is intercepted when the operator names none.
pub const API_HOST: &str = "api.github.com";

/// Whether GitHub pretty-prints JSON for this User-Agent.
///
/// Pretty-printing happens after the entity tag is made: the same tag, other bytes. So it is part of the
/// cache key.
pub fn pretty_prints(user_agent: &[u8]) -> bool {
    ["curl", "Wget", "Safari", "Firefox"].iter().any(|name| memchr::memmem::find(user_agent, name.as_bytes()).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_agents_that_get_pretty_json() {
        for (agent, pretty) in [
            ("curl/7.88.1", true),
            ("Wget/1.21", true),
            ("Mozilla/5.0 (X11) AppleWebKit Safari/605", true),
            ("PyGithub/Python", false),
            ("GitHub CLI 2.23", false),
            ("", false),
        ] {
            assert_eq!(pretty_prints(agent.as_bytes()), pretty, "{agent}");
        }
    }
}
