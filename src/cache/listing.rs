//! Listings: what a stored `Link` (RFC 8288) claims beyond the body, and what would prove it.
//!
//! GitHub's entity tag does not cover `Link`, and a 304 has none. A full page stays the same when a page is
//! added behind it, and, less obviously, when the last page goes away: with `per_page=1`, where clients read
//! the total from `rel="last"`, a deletion changes nothing but that number. So a `Link` claims two things,
//! that one page is there and that the next one is not, and both are asked for.

use std::borrow::Cow;

use crate::github::routes::Paging;

/// What has to be so for a stored page's `Link` (or its absence) to be what GitHub would send now.
/// Targets are path and query, at the host of the page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// This page has elements.
    pub exists: Option<String>,
    /// This page has none.
    pub empty: Option<String>,
}

/// Whether a stored page needs more than its own 304.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Confirmation {
    /// Any change to the listing that shows in `Link` shows in this body, too.
    NotNeeded,
    /// Ask for these pages.
    Ask(Claims),
    /// There is no page whose absence could be asked for: fetch it anew.
    Refetch,
}

/// Judges a stored page by its elements, its `Link`, and the target it was stored under.
///
/// `elements` is none for what is not a JSON array: objects that hold lists count them in their body.
pub fn confirmation(
    target: &str,
    elements: Option<u32>,
    link: Option<&str>,
    paging: Paging,
    known: bool,
) -> Confirmation {
    let Some(elements) = elements else { return Confirmation::NotNeeded };
    let links = link.map(parse_links).unwrap_or_default();
    let rel = |name: &str| links.iter().find(|(r, _)| r == name).map(|(_, target)| target.as_str());
    if let Some(last) = rel("last") {
        let Some(beyond) = page(last).and_then(|n| with_page(last, n.checked_add(1)?)) else {
            return Confirmation::Refetch;
        };
        return Confirmation::Ask(Claims { exists: Some(last.to_owned()), empty: Some(beyond) });
    }
    if let Some(next) = rel("next") {
        return Confirmation::Ask(Claims { exists: Some(next.to_owned()), empty: None });
    }
    // The last page, or the only one. It can grow, which its body shows, until it is full.
    if paging == Paging::None && known && links.is_empty() {
        return Confirmation::NotNeeded;
    }
    if elements < per_page(target) {
        return Confirmation::NotNeeded;
    }
    let own = page(target).unwrap_or(1);
    // Named by its neighbours, if it has any: they all name the listing alike.
    let base = rel("prev").or(rel("first")).filter(|t| page(t).is_some()).unwrap_or(target);
    match (paging, with_page(base, own.saturating_add(1))) {
        (Paging::Numbered, Some(beyond)) => Confirmation::Ask(Claims { exists: None, empty: Some(beyond) }),
        _ => Confirmation::Refetch,
    }
}

/// The page size that a target asks for; GitHub's default is 30, its limit 100.
fn per_page(target: &str) -> u32 {
    parameter(target, "per_page").and_then(|v| v.parse().ok()).filter(|n| *n > 0).unwrap_or(30).min(100)
}

fn page(target: &str) -> Option<u32> {
    parameter(target, "page")?.parse().ok()
}

fn parameter<'a>(target: &'a str, name: &str) -> Option<&'a str> {
    let (_, query) = target.split_once('?')?;
    query.split('&').find_map(|p| p.strip_prefix(name)?.strip_prefix('='))
}

fn with_page(target: &str, number: u32) -> Option<String> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if parameter(target, "after").or(parameter(target, "cursor")).is_some() {
        return None;
    }
    let mut found = false;
    let mut parts: Vec<Cow<'_, str>> = Vec::new();
    for part in query.split('&').filter(|p| !p.is_empty()) {
        if part.starts_with("page=") {
            found = true;
            parts.push(format!("page={number}").into());
        } else {
            parts.push(part.into());
        }
    }
    if !found {
        parts.push(format!("page={number}").into());
    }
    Some(format!("{path}?{}", parts.join("&")))
}

/// Whether a target names a page other than the first. Past the end, GitHub's empty page has a `Link`.
pub fn is_later_page(target: &str) -> bool {
    let cursors = ["after", "before", "since", "cursor"];
    page(target).is_some_and(|n| n != 1) || cursors.iter().any(|name| parameter(target, name).is_some())
}

/// The same target with the parameters of its query in order.
pub fn with_sorted_query(target: &str) -> String {
    let Some((path, query)) = target.split_once('?') else { return target.to_owned() };
    let mut parts: Vec<_> = query.split('&').collect();
    parts.sort_unstable();
    format!("{path}?{}", parts.join("&"))
}

/// The relations of a `Link` value: `(rel, path and query)`.
pub fn parse_links(value: &str) -> Vec<(String, String)> {
    let mut links = Vec::new();
    let mut rest = value;
    while let Some(start) = rest.find('<') {
        let Some(end) = rest[start..].find('>').map(|e| start + e) else { break };
        let url = &rest[start + 1..end];
        let after = &rest[end + 1..];
        let stop = after.find('<').unwrap_or(after.len());
        let rel = after[..stop].split(';').find_map(|p| {
            Some(p.trim().trim_end_matches(',').trim().strip_prefix("rel=")?.trim_matches('"').to_owned())
        });
        if let (Some(rel), Some(target)) = (rel, target_of(url)) {
            links.push((rel, target.to_owned()));
        }
        rest = &after[stop..];
    }
    links
}

fn target_of(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))?;
    rest.find('/').map(|slash| &rest[slash..])
}

/// How many elements a JSON array has; none if the text is not one.
pub fn elements(json: &[u8]) -> Option<u32> {
    if json.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'[') {
        return None;
    }
    let all: Vec<serde::de::IgnoredAny> = serde_json::from_slice(json).ok()?;
    u32::try_from(all.len()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(rels: &[(&str, &str)]) -> String {
        let parts: Vec<_> = rels.iter().map(|(r, t)| format!("<https://api.github.com{t}>; rel=\"{r}\"")).collect();
        parts.join(", ")
    }

    fn ask(exists: Option<&str>, empty: Option<&str>) -> Confirmation {
        Confirmation::Ask(Claims { exists: exists.map(Into::into), empty: empty.map(Into::into) })
    }

    #[test]
    fn what_a_stored_page_needs() {
        use Paging::{Cursor, Numbered};
        let first = link(&[("next", "/repositories/1/issues?page=2"), ("last", "/repositories/1/issues?page=4")]);
        let last =
            link(&[("prev", "/repositories/1/issues?a=b&page=3"), ("first", "/repositories/1/issues?a=b&page=1")]);
        let cursor = link(&[("next", "/users?since=46")]);
        for (target, elements, link, paging, known, expected) in [
            ("/repos/o/r", None, None, Paging::None, true, Confirmation::NotNeeded),
            (
                "/repos/o/r/issues",
                Some(30),
                Some(&first),
                Numbered,
                true,
                ask(Some("/repositories/1/issues?page=4"), Some("/repositories/1/issues?page=5")),
            ),
            (
                "/repos/o/r/issues?page=4&a=b",
                Some(30),
                Some(&last),
                Numbered,
                true,
                ask(None, Some("/repositories/1/issues?a=b&page=5")),
            ),
            ("/repos/o/r/issues?page=4&a=b", Some(29), Some(&last), Numbered, true, Confirmation::NotNeeded),
            ("/repos/o/r/issues?x=1", Some(30), None, Numbered, true, ask(None, Some("/repos/o/r/issues?x=1&page=2"))),
            ("/repos/o/r/issues?per_page=50", Some(30), None, Numbered, true, Confirmation::NotNeeded),
            (
                "/repos/o/r/issues?per_page=1000",
                Some(100),
                None,
                Numbered,
                true,
                ask(None, Some("/repos/o/r/issues?per_page=1000&page=2")),
            ),
            ("/repos/o/r/contents/dir", Some(30), None, Paging::None, true, Confirmation::NotNeeded),
            ("/unknown", Some(30), None, Paging::None, false, Confirmation::Refetch),
            ("/users", Some(30), Some(&cursor), Cursor, true, ask(Some("/users?since=46"), None)),
            ("/users?since=46", Some(30), None, Cursor, true, Confirmation::Refetch),
            ("/users?since=46", Some(3), None, Cursor, true, Confirmation::NotNeeded),
        ] {
            let link = link.map(String::as_str);
            assert_eq!(confirmation(target, elements, link, paging, known), expected, "{target} {link:?}");
        }
    }

    #[test]
    fn counts_elements() {
        assert_eq!(elements(b" [1, [2, 3], {\"a\": []}]"), Some(3));
        assert_eq!(elements(b"[]"), Some(0));
        assert_eq!(elements(b"{\"a\": []}"), None);
        assert_eq!(elements(b"[1, 2"), None);
    }
}
