//! What is stored, over HTTP: look at it, or remove it.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::Admin;
use crate::cache::store;
use crate::cache::stored::Entry;
use crate::exchange::now_ms;

pub(super) async fn stats(State(admin): State<Arc<Admin>>) -> Response {
    Json(super::store_stats(&admin).await).into_response()
}

#[derive(Deserialize)]
pub(super) struct Which {
    #[serde(default)]
    prefix: String,
}

/// What is told of a stored key.
#[derive(Clone, Debug, serde::Serialize, Deserialize)]
pub struct Listed {
    pub url: String,
    pub accept: Option<String>,
    pub representations: usize,
    pub bytes: u64,
    /// Seconds since GitHub last confirmed it to anyone.
    pub confirmed_seconds_ago: u64,
}

impl Listed {
    pub fn of(entry: &Entry) -> Listed {
        let confirmed = entry.representations.iter().map(|r| r.confirmed_at()).max().unwrap_or(0);
        Listed {
            url: store::url(entry),
            accept: entry.key.accept.clone(),
            representations: entry.representations.len(),
            bytes: entry.bodies_len(),
            confirmed_seconds_ago: now_ms().saturating_sub(confirmed) / 1000,
        }
    }
}

/// What is told of all that is stored for one URL. No credential is in it: validators are counted.
pub fn describe(entries: &[Entry]) -> serde_json::Value {
    let described = entries.iter().map(|entry| {
        let representations = entry.representations.iter().map(|r| {
            serde_json::json!({
                "head": String::from_utf8_lossy(&r.head).trim_end(),
                "bytes": r.body_len,
                "elements": r.elements,
                "etag_is_computable": r.recipe.is_some(),
                "stored_seconds_ago": now_ms().saturating_sub(r.stored_at) / 1000,
                "confirmed_seconds_ago": now_ms().saturating_sub(r.confirmed_at()) / 1000,
                "credentials": r.validators.len(),
            })
        });
        serde_json::json!({
            "url": store::url(entry),
            "accept": entry.key.accept,
            "api_version": entry.key.api_version,
            "pretty": entry.key.pretty,
            "representations": representations.collect::<Vec<_>>(),
        })
    });
    serde_json::Value::Array(described.collect())
}

pub(super) async fn list(State(admin): State<Arc<Admin>>, Query(which): Query<Which>) -> Response {
    let store = admin.exchange.store.clone();
    let listed = tokio::task::spawn_blocking(move || {
        let mut listed = Vec::new();
        store.for_each(|_, entry| {
            if store::url(entry).starts_with(&which.prefix) {
                listed.push(Listed::of(entry));
            }
        })?;
        listed.sort_by(|a, b| a.url.cmp(&b.url));
        Ok(listed)
    });
    answer(listed.await)
}

#[derive(Deserialize)]
pub(super) struct One {
    url: String,
}

pub(super) async fn entry(State(admin): State<Arc<Admin>>, Query(one): Query<One>) -> Response {
    let store = admin.exchange.store.clone();
    let found = tokio::task::spawn_blocking(move || {
        let mut found = Vec::new();
        store.for_each(|_, entry| {
            if store::url(entry) == one.url {
                found.push(entry.clone());
            }
        })?;
        Ok(describe(&found))
    });
    answer(found.await)
}

pub(super) async fn purge(State(admin): State<Arc<Admin>>, Query(which): Query<Which>) -> Response {
    let store = admin.exchange.store.clone();
    let purged = tokio::task::spawn_blocking(move || store.purge(&which.prefix)).await;
    if let Ok(Ok(purged)) = &purged {
        tracing::info!(purged, "the store was purged");
    }
    answer(purged.map(|purged| purged.map(|n| serde_json::json!({ "purged": n }))))
}

fn answer<T: serde::Serialize>(found: Result<std::io::Result<T>, tokio::task::JoinError>) -> Response {
    match found {
        Ok(Ok(found)) => Json(found).into_response(),
        Ok(Err(error)) => super::refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            &format!("the store cannot be asked: {error}; try again when it is back"),
        ),
        Err(_) => super::refusal(StatusCode::INTERNAL_SERVER_ERROR, "the store cannot be asked; look at the log"),
    }
}
