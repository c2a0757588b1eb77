//! A stored response, and its form on disk.
//!
//! An *entry* is all that is stored under one key: a few *representations* (different principals see
//! different bodies), each with the *validators* that GitHub gave to each credential. Bodies are kept
//! beside the entry, under their sha256, so that a new validator does not rewrite a body.
//!
//! The record is a version byte, eight bytes of sha256 over the rest, and the rest in postcard. The head of
//! each response is kept in wire form and parsed with httparse. An unknown version or a wrong checksum is
//! an absent entry.

use aws_lc_rs::digest;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use super::key::Key;
use crate::github::credentials::{CredentialId, Principal};
use crate::github::etag::Recipe;

/// The version of the record. Raise it with any change to the types below.
pub const VERSION: u8 = 1;

/// The sha256 of a body as it was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BodyId(pub [u8; 32]);

impl BodyId {
    pub fn of(body: &[u8]) -> BodyId {
        let mut id = [0; 32];
        id.copy_from_slice(digest::digest(&digest::SHA256, body).as_ref());
        BodyId(id)
    }
}

/// How a stored body is coded (RFC 9110, 8.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Coding {
    Identity,
    Gzip,
}

/// What GitHub told one credential about a representation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validator {
    pub credential: CredentialId,
    pub principal: Option<Principal>,
    pub etag: Option<String>,
    pub last_modified: Option<String>,
    /// When GitHub last said so, in milliseconds since 1970.
    pub confirmed_at: u64,
    /// GitHub's own `max-age` for this credential, in seconds.
    pub max_age: u32,
}

/// One stored 200.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Representation {
    pub body: BodyId,
    /// Bytes, as stored.
    pub body_len: u64,
    /// Bytes, without the coding.
    pub plain_len: u64,
    pub coding: Coding,
    /// Status line and fields, without those of a connection or a credential.
    #[serde(with = "serde_bytes")]
    pub head: Vec<u8>,
    /// How its entity tag is made; none if the known recipe does not make it.
    pub recipe: Option<Recipe>,
    /// How many elements the body has, if it is a JSON array.
    pub elements: Option<u32>,
    /// Milliseconds since 1970.
    pub stored_at: u64,
    /// Oldest confirmation first.
    pub validators: Vec<Validator>,
}

/// How many representations a key has, and validators each. Hourly tokens come and go; the oldest give way.
pub const MAX_REPRESENTATIONS: usize = 4;
pub const MAX_VALIDATORS: usize = 64;

impl Representation {
    /// The validator of a credential.
    pub fn validator(&self, credential: CredentialId) -> Option<&Validator> {
        self.validators.iter().find(|v| v.credential == credential)
    }

    /// Puts a validator in the place of the credential's former one.
    pub fn confirm(&mut self, validator: Validator) {
        self.revoke(validator.credential);
        if self.validators.len() >= MAX_VALIDATORS {
            self.validators.remove(0);
        }
        self.validators.push(validator);
    }

    /// Ends a credential's right to this representation.
    pub fn revoke(&mut self, credential: CredentialId) {
        self.validators.retain(|v| v.credential != credential);
    }

    /// When any credential last had it confirmed, in milliseconds since 1970.
    pub fn confirmed_at(&self) -> u64 {
        self.validators.last().map_or(self.stored_at, |v| v.confirmed_at)
    }
}

/// All that is stored under one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub key: Key,
    pub representations: Vec<Representation>,
}

impl Entry {
    pub fn new(key: Key) -> Entry {
        Entry { key, representations: Vec::new() }
    }

    /// The representation that this credential was last given, and what it was told of it.
    pub fn own(&self, credential: CredentialId) -> Option<(usize, &Validator)> {
        let own = self.representations.iter().enumerate();
        own.filter_map(|(i, r)| Some((i, r.validator(credential)?))).max_by_key(|(_, v)| v.confirmed_at)
    }

    /// Adds a representation (or finds the equal one) and its validator. Returns the bodies that gave way.
    pub fn put(&mut self, mut representation: Representation, validator: Validator) -> Vec<BodyId> {
        let credential = validator.credential;
        let same = |r: &Representation| r.body == representation.body && r.coding == representation.coding;
        if let Some(i) = self.representations.iter().position(same) {
            let old = self.representations.remove(i);
            representation.validators = old.validators;
        }
        representation.confirm(validator);
        self.representations.push(representation);
        // A representation that nobody is entitled to any more, and that is not the newest, serves nobody.
        let newest = self.representations.len() - 1;
        for representation in &mut self.representations[..newest] {
            representation.revoke(credential);
        }
        let mut dropped = Vec::new();
        let mut left = self.representations.len();
        self.representations.retain(|r| {
            left -= 1;
            let keep = left == 0 || (!r.validators.is_empty() && left < MAX_REPRESENTATIONS);
            if !keep {
                dropped.push(r.body);
            }
            keep
        });
        dropped.retain(|b| self.representations.iter().all(|r| r.body != *b));
        dropped
    }

    /// Ends a credential's right to all that is stored here (401, 404, 410).
    pub fn revoke(&mut self, credential: CredentialId) {
        for representation in &mut self.representations {
            representation.revoke(credential);
        }
    }

    /// Ends a credential's right to what it had confirmed until `at`, in milliseconds since 1970.
    pub fn revoke_before(&mut self, credential: CredentialId, at: u64) {
        for representation in &mut self.representations {
            representation.validators.retain(|v| v.credential != credential || v.confirmed_at > at);
        }
    }

    /// Bytes of the bodies, as stored.
    pub fn bodies_len(&self) -> u64 {
        self.representations.iter().map(|r| r.body_len).sum()
    }

    /// The record on disk.
    pub fn encode(&self) -> Vec<u8> {
        let mut record = vec![0; 9];
        record = postcard::to_extend(self, record).expect("plain data always encodes");
        let sum = digest::digest(&digest::SHA256, &record[9..]);
        record[0] = VERSION;
        record[1..9].copy_from_slice(&sum.as_ref()[..8]);
        record
    }

    /// Reads a record; none if it is of another version, cut short, or changed.
    pub fn decode(record: &[u8]) -> Option<Entry> {
        let (head, rest) = record.split_at_checked(9)?;
        let sum = digest::digest(&digest::SHA256, rest);
        if head[0] != VERSION || head[1..] != sum.as_ref()[..8] {
            return None;
        }
        postcard::from_bytes(rest).ok()
    }

    /// The same for a record that was found whole by another checksum.
    pub fn decode_checked(record: &[u8]) -> Option<Entry> {
        let (head, rest) = record.split_at_checked(9)?;
        if head[0] == VERSION { postcard::from_bytes(rest).ok() } else { None }
    }
}

/// Writes a head in wire form.
pub fn write_head(headers: &HeaderMap) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    for (name, value) in headers {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// Parses a stored head; none if it is not one.
pub fn read_head(head: &[u8]) -> Option<HeaderMap> {
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut response = httparse::Response::new(&mut fields);
    if !response.parse(head).ok()?.is_complete() {
        return None;
    }
    let shared = Bytes::copy_from_slice(head);
    let mut headers = HeaderMap::with_capacity(response.headers.len());
    for field in response.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_maybe_shared(shared.slice_ref_to(head, field.value)).ok()?);
    }
    Some(headers)
}

/// Shares the part of `whole` that `part` points at.
trait SliceRefTo {
    fn slice_ref_to(&self, whole: &[u8], part: &[u8]) -> Bytes;
}

impl SliceRefTo for Bytes {
    fn slice_ref_to(&self, whole: &[u8], part: &[u8]) -> Bytes {
        let start = part.as_ptr() as usize - whole.as_ptr() as usize;
        self.slice(start..start + part.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::github::credentials::Credentials;

    fn credential(token: &str) -> CredentialId {
        let headers = HeaderMap::from_iter([(http::header::AUTHORIZATION, token.parse().unwrap())]);
        Credentials::new(b"s").identify(&headers)
    }

    fn validator(token: &str, confirmed_at: u64) -> Validator {
        Validator {
            credential: credential(token),
            principal: None,
            etag: Some("\"x\"".into()),
            last_modified: None,
            confirmed_at,
            max_age: 60,
        }
    }

    fn representation(body: &[u8], stored_at: u64) -> Representation {
        let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, "application/json".parse().unwrap())]);
        Representation {
            body: BodyId::of(body),
            body_len: body.len() as u64,
            plain_len: body.len() as u64,
            coding: Coding::Identity,
            head: write_head(&headers),
            recipe: None,
            elements: None,
            stored_at,
            validators: Vec::new(),
        }
    }

    fn entry() -> Entry {
        Entry::new(Key::of("api.github.com", "/x", &HeaderMap::new()))
    }

    #[test]
    fn records_round_trip_and_any_change_is_seen() {
        let mut entry = entry();
        entry.put(representation(b"body", 1), validator("a", 1));
        let record = entry.encode();
        assert_eq!(Entry::decode(&record), Some(entry));
        for i in 0..record.len() {
            let mut torn = record.clone();
            torn[i] ^= 1;
            assert_eq!(Entry::decode(&torn), None, "byte {i}");
            assert_eq!(Entry::decode(&record[..i]), None, "cut at {i}");
        }
    }

    #[test]
    fn a_new_body_ends_the_right_to_the_old_one() {
        let mut entry = entry();
        assert!(entry.put(representation(b"1", 1), validator("a", 1)).is_empty());
        assert!(entry.put(representation(b"2", 2), validator("b", 2)).is_empty());
        assert_eq!(entry.own(credential("a")).unwrap().0, 0);
        let dropped = entry.put(representation(b"3", 3), validator("a", 3));
        assert_eq!(dropped, [BodyId::of(b"1")]);
        assert_eq!(entry.own(credential("a")).unwrap().0, 1);
        assert_eq!(entry.own(credential("b")).unwrap().0, 0);
    }

    #[test]
    fn representations_and_validators_are_bounded() {
        let mut entry = entry();
        for i in 0..20u64 {
            entry.put(representation(&i.to_be_bytes(), i), validator(&format!("t{i}"), i));
            assert!(entry.representations.len() <= MAX_REPRESENTATIONS);
        }
        for i in 0..200 {
            entry.put(representation(b"same", 100), validator(&format!("u{i}"), 100 + i));
        }
        assert_eq!(entry.representations.last().unwrap().validators.len(), MAX_VALIDATORS);
        assert_eq!(entry.own(credential("u199")).unwrap().1.confirmed_at, 299);
    }

    #[test]
    fn heads_round_trip() {
        let mut headers = HeaderMap::new();
        headers.append("link", "<https://x/?page=2>; rel=\"next\"".parse().unwrap());
        headers.append("vary", "Accept".parse().unwrap());
        headers.append("vary", "Accept-Encoding".parse().unwrap());
        assert_eq!(read_head(&write_head(&headers)), Some(headers));
        assert_eq!(read_head(b"HTTP/1.1 200"), None);
    }
}
