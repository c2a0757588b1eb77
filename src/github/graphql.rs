//! What a GraphQL request is about: its operations, its name, whether it asks what it costs.
//! (docs.github.com, "Forming calls with GraphQL".)

use apollo_parser::Parser;
use apollo_parser::cst::{CstNode, Definition, OperationDefinition};
use serde::Deserialize;

/// The kinds of operation (GraphQL, 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Query,
    Mutation,
    Subscription,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Query => "query",
            Kind::Mutation => "mutation",
            Kind::Subscription => "subscription",
        }
    }
}

/// A request whose document could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Of every operation in the document: which of them runs is the server's to say.
    pub kinds: Vec<Kind>,
    /// The operation that is asked for, if it has a name.
    pub name: Option<String>,
    /// Whether it reads `rateLimit`: what that says is of this moment.
    pub asks_rate_limit: bool,
}

/// Deeper and longer documents are not read.
const MAX_DEPTH: usize = 200;
const MAX_TOKENS: usize = 50_000;
/// What one request can cost, in points: an hour's limit.
const MAX_COST: u64 = 12_500;

impl Request {
    /// Reads a request's content.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn read(body: &[u8]) -> Result<Request, &'static str> {
        #[derive(Deserialize)]
        struct Body<'a> {
            #[serde(borrow)]
            query: std::borrow::Cow<'a, str>,
            #[serde(rename = "operationName", default)]
            operation_name: Option<String>,
        }
        let body: Body<'_> = serde_json::from_slice(body).map_err(|_| "it is not a JSON object with one query")?;
        let tree = Parser::new(&body.query).recursion_limit(MAX_DEPTH).token_limit(MAX_TOKENS).parse();
        if tree.errors().next().is_some() {
            return Err("its document is not valid GraphQL");
        }
        let mut kinds = Vec::new();
        let mut names = Vec::new();
        for definition in tree.document().definitions() {
            match definition {
                Definition::OperationDefinition(operation) => {
                    kinds.push(kind(&operation)?);
                    names.push(operation.name().map(|n| n.text().to_string()));
                }
                Definition::FragmentDefinition(_) => {}
                _ => return Err("its document defines more than operations and fragments"),
            }
        }
        let name = match (body.operation_name.filter(|n| !n.is_empty()), &names[..]) {
            (_, []) => return Err("its document has no operation"),
            (Some(wanted), _) => Some(wanted),
            (None, [only]) => only.clone(),
            (None, _) => None,
        };
        Ok(Request { kinds, name, asks_rate_limit: body.query.contains("rateLimit") })
    }

    /// Whether it changes nothing.
    pub fn is_query(&self) -> bool {
        self.kinds.iter().all(|k| *k == Kind::Query)
    }

    /// `query Name`, as metrics count it.
    pub fn label(&self) -> String {
        let kind = if self.is_query() { Kind::Query } else { Kind::Mutation };
        let safe = |n: &String| {
            n.chars().take(64).map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect()
        };
        let name: String = self.name.as_ref().map_or_else(|| "(unnamed)".into(), safe);
        format!("{} {name}", kind.as_str())
    }
}

fn kind(operation: &OperationDefinition) -> Result<Kind, &'static str> {
    let Some(word) = operation.operation_type() else { return Ok(Kind::Query) };
    match word.syntax().text().to_string().trim() {
        "query" => Ok(Kind::Query),
        "mutation" => Ok(Kind::Mutation),
        "subscription" => Ok(Kind::Subscription),
        _ => Err("its operation is of no known kind"),
    }
}

/// The points that an answer says it cost: `data.rateLimit.cost`, where the query asked for it.
pub fn cost(answer: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Answer {
        data: Option<Data>,
    }
    #[derive(Deserialize)]
    struct Data {
        #[serde(rename = "rateLimit")]
        rate_limit: Option<RateLimit>,
    }
    #[derive(Deserialize)]
    struct RateLimit {
        cost: Option<u64>,
    }
    // An alias can put any number there.
    serde_json::from_slice::<Answer>(answer).ok()?.data?.rate_limit?.cost.map(|cost| cost.min(MAX_COST))
}

/// Whether an answer is without errors: GraphQL's come with a 200.
pub fn is_clean(answer: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Answer {
        data: Option<serde::de::IgnoredAny>,
        errors: Option<serde::de::IgnoredAny>,
    }
    serde_json::from_slice::<Answer>(answer).is_ok_and(|a| a.data.is_some() && a.errors.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str, name: Option<&str>) -> Result<Request, &'static str> {
        Request::read(serde_json::json!({ "query": query, "operationName": name }).to_string().as_bytes())
    }

    #[test]
    fn operations_are_told_apart() {
        for (query, name, kinds, label) in [
            ("{ viewer { login } }", None, vec![Kind::Query], "query (unnamed)"),
            ("query Me { viewer { login } }", None, vec![Kind::Query], "query Me"),
            ("# query\nmutation Add($x: ID!) { add(id: $x) { id } }", None, vec![Kind::Mutation], "mutation Add"),
            ("query A { a } mutation B { b }", Some("A"), vec![Kind::Query, Kind::Mutation], "mutation A"),
            ("query A { a(text: \"mutation { x }\") } fragment F on X { y }", None, vec![Kind::Query], "query A"),
            ("query A { a(text: \"\"\"\nmutation B { x }\n\"\"\") }", None, vec![Kind::Query], "query A"),
            ("subscription S { s }", None, vec![Kind::Subscription], "mutation S"),
        ] {
            let request = read(query, name).unwrap_or_else(|e| panic!("{query}: {e}"));
            assert_eq!((&request.kinds, request.label().as_str()), (&kinds, label), "{query}");
        }
        assert!(read("query { rateLimit { cost } }", None).unwrap().asks_rate_limit);
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        for body in [
            "",
            "[]",
            "{}",
            r#"{"query":"query A {"}"#,
            r#"{"query":"fragment F on X { y }"}"#,
            r#"{"query":"type X { y: Z }"}"#,
            r#"{"query":"{a}","query":"mutation {b}"}"#,
            "query=mutation{a}",
        ] {
            assert!(Request::read(body.as_bytes()).is_err(), "{body}");
        }
        let deep = format!("{}a{}", "{a".repeat(5000), "}".repeat(5000));
        assert!(read(&deep, None).is_err());
    }

    #[test]
    fn costs_are_read() {
        assert_eq!(cost(br#"{"data":{"rateLimit":{"cost":3},"viewer":{}}}"#), Some(3));
        assert_eq!(cost(br#"{"data":{"viewer":{}}}"#), None);
        assert!(is_clean(br#"{"data":{"a":1}}"#));
        assert!(!is_clean(br#"{"data":{"a":1},"errors":[{"message":"x"}]}"#) && !is_clean(b"{}"));
    }
}
