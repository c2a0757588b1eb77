//! GitHub's entity tags, computed.
//!
//! GitHub's ETag is the hex sha256 of, for each of `Accept`, `Authorization` and `Cookie` that the request
//! has, its value and a `:`, and then of the body before compression and pretty-printing. `Vary` tells
//! which of the three count. Found by bored-engineer/github-conditional-http-transport; undocumented, so
//! nothing relies on it unseen: [`Recipe::learn`] checks each 200 against it, and a 304 to a computed tag is
//! GitHub's own word that this credential would get these very bytes.

use aws_lc_rs::digest;
use http::{HeaderMap, HeaderName, header};
use serde::{Deserialize, Serialize};

const COUNTED: [HeaderName; 3] = [header::ACCEPT, header::AUTHORIZATION, header::COOKIE];

/// Which request fields went into a response's entity tag. Learned, and stored with the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// One bit each for `Accept`, `Authorization`, `Cookie`, in this order.
    counted: u8,
    /// Whether an empty `Accept` (gh sends one) counts as present.
    empty_accept: bool,
}

impl Recipe {
    /// What GitHub does as far as is known: all three count, an empty `Accept` too.
    pub const USUAL: Recipe = Recipe { counted: 0b111, empty_accept: true };

    /// Finds the recipe that makes `tag` from the request fields and the body as it was before
    /// compression; none if the tag is made otherwise.
    ///
    /// `vary` is the response's `Vary`, all its lines joined. Where the request had no `Authorization`, it
    /// cannot tell whether that counts; it is then taken to.
    pub fn learn(request: &HeaderMap, vary: &str, body: &[u8], tag: &str) -> Option<Recipe> {
        let tag = opaque(tag);
        let mut counted = 0;
        for (i, name) in COUNTED.iter().enumerate() {
            let listed = vary.split(',').any(|v| v.trim().eq_ignore_ascii_case(name.as_str()));
            if listed || !request.contains_key(name) {
                counted |= 1 << i;
            }
        }
        let candidates = [Recipe { counted, empty_accept: true }, Recipe { counted, empty_accept: false }];
        let empty_accept = request.get(header::ACCEPT).is_some_and(|v| v.is_empty());
        candidates.into_iter().take(if empty_accept { 2 } else { 1 }).find(|recipe| recipe.digest(request, body) == tag)
    }

    /// The strong entity tag, quotes included, that GitHub would give a request with these fields for this
    /// body (before compression and pretty-printing).
    pub fn expected(self, request: &HeaderMap, body: &[u8]) -> String {
        format!("\"{}\"", self.digest(request, body))
    }

    fn digest(self, request: &HeaderMap, body: &[u8]) -> String {
        let mut context = digest::Context::new(&digest::SHA256);
        for (i, name) in COUNTED.iter().enumerate() {
            if self.counted & (1 << i) == 0 {
                continue;
            }
            let mut values = request.get_all(name).iter().peekable();
            let Some(first) = values.next() else { continue };
            if i == 0 && first.is_empty() && !self.empty_accept {
                continue;
            }
            context.update(first.as_bytes());
            for value in values {
                context.update(b", ");
                context.update(value.as_bytes());
            }
            context.update(b":");
        }
        context.update(body);
        hex(context.finish().as_ref())
    }
}

/// Undoes GitHub's pretty-printing: drops white space outside of strings.
pub fn compact(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len());
    let (mut in_string, mut escaped) = (false, false);
    for &byte in json {
        if in_string {
            out.push(byte);
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
        } else if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
            in_string = byte == b'"';
            out.push(byte);
        }
    }
    out
}

/// An entity tag without the weakness mark and the quotes: what a weak comparison (RFC 9110 8.8.3.2)
/// compares. gzip answers carry `W/"…"`, their 304s the strong form.
pub fn opaque(tag: &str) -> &str {
    let tag = tag.trim();
    let tag = tag.strip_prefix("W/").unwrap_or(tag);
    tag.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(tag)
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        out.push(DIGITS[usize::from(byte >> 4)] as char);
        out.push(DIGITS[usize::from(byte & 15)] as char);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn request(fields: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = fields.iter();
        pairs.map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_str(v).unwrap())).collect()
    }

    fn sha256(text: &str) -> String {
        hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref())
    }

    #[test]
    fn expected_tags() {
        let recipe = Recipe::USUAL;
        assert_eq!(recipe.expected(&request(&[]), b""), format!("\"{EMPTY}\""));
        for (fields, text) in [
            (vec![("accept", "*/*")], "*/*:[]"),
            (vec![("authorization", "token t")], "token t:[]"),
            (vec![("cookie", "c=1"), ("accept", "a"), ("authorization", "b")], "a:b:c=1:[]"),
            (vec![("accept", "")], ":[]"),
        ] {
            assert_eq!(recipe.expected(&request(&fields), b"[]"), format!("\"{}\"", sha256(text)));
        }
    }

    #[test]
    fn learns_from_vary_and_refuses_what_does_not_fit() {
        let asked = request(&[("accept", "a"), ("authorization", "b")]);
        let both = format!("W/\"{}\"", sha256("a:b:x"));
        let vary = "Accept, Authorization, Cookie, X-GitHub-OTP,Accept-Encoding, Accept";
        assert_eq!(Recipe::learn(&asked, vary, b"x", &both), Some(Recipe::USUAL));
        assert_eq!(Recipe::learn(&asked, vary, b"y", &both), None);
        assert_eq!(Recipe::learn(&asked, "Accept", b"x", &both), None);
        let only = format!("\"{}\"", sha256("b:x"));
        let learned = Recipe::learn(&asked, "Authorization", b"x", &only).unwrap();
        assert_eq!(learned.expected(&request(&[("authorization", "c")]), b"x"), format!("\"{}\"", sha256("c:x")));
    }

    #[test]
    fn learns_whether_an_empty_accept_counts() {
        let asked = request(&[("accept", "")]);
        for (text, counts) in [(":x", true), ("x", false)] {
            let learned = Recipe::learn(&asked, "Accept", b"x", &sha256(text)).unwrap();
            assert_eq!(learned.empty_accept, counts);
        }
    }

    #[test]
    fn compacts_pretty_json() {
        let pretty = b"{\n  \"a b\": [\n    1,\n    \"x \\\" y\"\n  ],\n  \"c\": [\n\n  ]\n}\n";
        assert_eq!(compact(pretty), br#"{"a b":[1,"x \" y"],"c":[]}"#);
    }

    #[test]
    fn weak_and_strong_tags_compare_alike() {
        for tag in ["W/\"x\"", "\"x\"", " \"x\" "] {
            assert_eq!(opaque(tag), "x");
        }
    }
}
