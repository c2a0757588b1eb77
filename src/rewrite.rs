//! Replacing some texts in content that passes, piece by piece: the API's URLs by the tap's own in reverse mode, and what
//! must not leave the house.
//!
//! Nothing is parsed. A URL is replaced where a JSON string begins with it: after a quote that is not escaped, and
//! before what ends a host or a path segment. So text that only quotes a URL stays as it is.

use bytes::Bytes;
use memchr::memmem::Finder;

/// What is replaced, and by what.
#[derive(Clone, Debug)]
pub struct Rule {
    finder: Finder<'static>,
    len: usize,
    to: Bytes,
    /// Only as the beginning of a JSON string.
    begins: bool,
}

impl Rule {
    /// JSON strings that begin with the URL `from` begin with `to` instead.
    pub fn url(from: &str, to: &str) -> Rule {
        let from = format!("\"{from}");
        Rule { len: from.len(), finder: Finder::new(&from).into_owned(), to: format!("\"{to}").into(), begins: true }
    }

    /// `from` becomes `to` wherever it stands.
    pub fn anywhere(from: &[u8], to: &'static str) -> Rule {
        Rule { len: from.len(), finder: Finder::new(from).into_owned(), to: to.into(), begins: false }
    }

    /// Where it applies at or after `at`, given what comes before `text`; and whether what follows is still to be seen.
    fn find(&self, text: &[u8], at: usize, before: Option<u8>, is_last: bool) -> Option<usize> {
        let mut from = at;
        loop {
            let start = from + self.finder.find(&text[from..])?;
            let end = start + self.len;
            let preceding = if start == 0 { before } else { Some(text[start - 1]) };
            let applies = !self.begins
                || preceding != Some(b'\\')
                    && match text.get(end) {
                        Some(next) => matches!(next, b'/' | b'"' | b'?' | b'#' | b'{'),
                        // Held back until it is known.
                        None => !is_last,
                    };
            if applies {
                return Some(start);
            }
            from = start + 1;
        }
    }
}

/// Rewrites one content, piece by piece.
#[derive(Debug)]
pub struct Rewriter {
    rules: Vec<Rule>,
    /// The end of what came, which may be the beginning of something.
    held: Vec<u8>,
    /// The byte before it.
    before: Option<u8>,
}

impl Rewriter {
    pub fn new(rules: Vec<Rule>) -> Rewriter {
        Rewriter { rules, held: Vec::new(), before: None }
    }

    /// What can be told of the content so far.
    pub fn push(&mut self, piece: Bytes) -> Bytes {
        self.rewrite(piece, false)
    }

    /// The rest.
    pub fn finish(&mut self) -> Bytes {
        self.rewrite(Bytes::new(), true)
    }

    /// A content that is all here.
    pub fn whole(mut self, content: Bytes) -> Bytes {
        self.rewrite(content, true)
    }

    fn rewrite(&mut self, piece: Bytes, is_last: bool) -> Bytes {
        let text = match self.held.is_empty() {
            true => piece,
            false => {
                self.held.extend_from_slice(&piece);
                Bytes::from(std::mem::take(&mut self.held))
            }
        };
        let mut out = Vec::new();
        let mut done = 0;
        let mut next: Vec<Option<usize>> = self.rules.iter().map(|r| r.find(&text, 0, self.before, is_last)).collect();
        while let Some((i, start)) =
            next.iter().enumerate().filter_map(|(i, n)| Some((i, (*n)?))).min_by_key(|(_, n)| *n)
        {
            let end = start + self.rules[i].len;
            // What follows it decides, and has not come yet.
            if !is_last && self.rules[i].begins && end == text.len() {
                break;
            }
            if out.capacity() == 0 {
                out.reserve(text.len() + text.len() / 8);
            }
            out.extend_from_slice(&text[done..start]);
            out.extend_from_slice(&self.rules[i].to);
            done = end;
            for (rule, next) in self.rules.iter().zip(&mut next) {
                if next.is_some_and(|n| n < done) {
                    *next = rule.find(&text, done, self.before, is_last);
                }
            }
        }
        // The end may be the beginning of what is looked for.
        let longest = self.rules.iter().map(|r| r.len).max().unwrap_or(0);
        let mut keep = if is_last { text.len() } else { done.max(text.len().saturating_sub(longest)) };
        if let Some(start) = next.iter().filter_map(|n| *n).min() {
            keep = keep.min(start.max(done));
        }
        self.held = text[keep..].to_vec();
        if keep > 0 {
            self.before = Some(text[keep - 1]);
        }
        if done == 0 {
            return text.slice(..keep);
        }
        out.extend_from_slice(&text[done..keep]);
        out.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: &str = "https://api.github.com";

    fn rules() -> Vec<Rule> {
        vec![Rule::url(FROM, "http://tap:1"), Rule::anywhere(b"s3cret", "***")]
    }

    #[test]
    fn urls_and_secrets_are_replaced_and_nothing_else() {
        for (text, expected) in [
            (r#"{"url":"https://api.github.com/x"}"#, r#"{"url":"http://tap:1/x"}"#),
            (r#"["https://api.github.com","https://api.github.com{/y}"]"#, r#"["http://tap:1","http://tap:1{/y}"]"#),
            (r#""https://api.github.com.evil/x""#, r#""https://api.github.com.evil/x""#),
            (r#""see https://api.github.com/x""#, r#""see https://api.github.com/x""#),
            (r#""a \"https://api.github.com/x\" b""#, r#""a \"https://api.github.com/x\" b""#),
            (r#""https://github.com/x s3cret""#, r#""https://github.com/x ***""#),
            (r#""https://api.github.com"#, r#""https://api.github.com"#),
            ("s3crets3cret", "******"),
            ("", ""),
        ] {
            let whole = Rewriter::new(rules()).whole(Bytes::from_static(text.as_bytes()));
            assert_eq!(whole, expected.as_bytes(), "{text}");
            // However it is cut.
            for size in 1..=text.len().max(1) {
                let mut rewriter = Rewriter::new(rules());
                let mut all = Vec::new();
                for piece in text.as_bytes().chunks(size) {
                    all.extend_from_slice(&rewriter.push(Bytes::copy_from_slice(piece)));
                }
                all.extend_from_slice(&rewriter.finish());
                assert_eq!(String::from_utf8(all).unwrap(), expected, "{text} in pieces of {size}");
            }
        }
    }
}
