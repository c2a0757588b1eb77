//! The client's own precondition (RFC 9110, 13): what it holds, and whether that is current.

use http::{HeaderMap, header};

use crate::github::etag::opaque;

/// What a client sent along to learn whether its copy is current.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Precondition {
    #[default]
    None,
    /// `If-None-Match`; opaque tags, compared weakly.
    Tags(Vec<String>),
    /// `If-Modified-Since` without `If-None-Match`, as it was sent.
    Since(String),
    /// `If-Match`, `If-Unmodified-Since`, `If-Range`, `If-None-Match: *`: not for a cache to answer.
    Other,
}

impl Precondition {
    pub fn of(headers: &HeaderMap) -> Precondition {
        let others = [header::IF_MATCH, header::IF_UNMODIFIED_SINCE, header::IF_RANGE];
        if others.iter().any(|name| headers.contains_key(name)) {
            return Precondition::Other;
        }
        if headers.contains_key(header::IF_NONE_MATCH) {
            let mut tags = Vec::new();
            for value in headers.get_all(header::IF_NONE_MATCH) {
                let Ok(value) = value.to_str() else { return Precondition::Other };
                for tag in value.split(',').map(str::trim).filter(|t| !t.is_empty()) {
                    if tag == "*" {
                        return Precondition::Other;
                    }
                    tags.push(opaque(tag).to_owned());
                }
            }
            return if tags.is_empty() { Precondition::Other } else { Precondition::Tags(tags) };
        }
        match headers.get(header::IF_MODIFIED_SINCE).map(|v| v.to_str()) {
            None => Precondition::None,
            Some(Ok(date)) => Precondition::Since(date.trim().to_owned()),
            Some(Err(_)) => Precondition::Other,
        }
    }

    /// Whether the client's copy is the one with these validators: a 304 is then the whole answer.
    pub fn is_met_by(&self, etag: Option<&str>, last_modified: Option<&str>) -> bool {
        match self {
            Precondition::Tags(tags) => etag.is_some_and(|e| tags.iter().any(|t| t == opaque(e))),
            Precondition::Since(since) => match last_modified {
                Some(modified) if modified == since => true,
                Some(modified) => match (http_date(modified), http_date(since)) {
                    (Some(modified), Some(since)) => modified <= since,
                    _ => false,
                },
                None => false,
            },
            Precondition::None | Precondition::Other => false,
        }
    }
}

/// Seconds since 1970 of an IMF-fixdate (RFC 9110, 5.6.7), the only form that GitHub sends.
fn http_date(text: &str) -> Option<i64> {
    use time::macros::format_description;
    let form =
        format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");
    Some(time::PrimitiveDateTime::parse(text, form).ok()?.assume_utc().unix_timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(fields: &[(&'static str, &'static str)]) -> Precondition {
        Precondition::of(&fields.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect())
    }

    #[test]
    fn reads_what_clients_send() {
        let tags = |t: &[&str]| Precondition::Tags(t.iter().map(|t| t.to_string()).collect());
        for (fields, expected) in [
            (vec![], Precondition::None),
            (vec![("if-none-match", "W/\"a\", \"b\"")], tags(&["a", "b"])),
            (vec![("if-none-match", "\"a\""), ("if-modified-since", "x")], tags(&["a"])),
            (vec![("if-modified-since", "x")], Precondition::Since("x".into())),
            (vec![("if-none-match", "*")], Precondition::Other),
            (vec![("if-none-match", "")], Precondition::Other),
            (vec![("if-match", "\"a\"")], Precondition::Other),
        ] {
            assert_eq!(of(&fields), expected, "{fields:?}");
        }
    }

    #[test]
    fn compares() {
        let (older, newer) = ("Tue, 03 Mar 2026 10:00:00 GMT", "Wed, 04 Mar 2026 09:00:00 GMT");
        assert!(of(&[("if-none-match", "\"a\"")]).is_met_by(Some("W/\"a\""), None));
        assert!(!of(&[("if-none-match", "\"a\"")]).is_met_by(Some("\"b\""), Some(older)));
        assert!(of(&[("if-modified-since", newer)]).is_met_by(None, Some(older)));
        assert!(!of(&[("if-modified-since", older)]).is_met_by(None, Some(newer)));
        assert!(!of(&[("if-modified-since", newer)]).is_met_by(None, None));
        assert!(!of(&[("if-modified-since", "nonsense")]).is_met_by(None, Some(older)));
    }
}
