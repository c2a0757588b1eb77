//! `ghtap cache`: what is stored.

use std::process::ExitCode;

use http::Method;
use serde_json::Value;

use super::report::existing;
use super::{Failure, place, print, small_runtime};
use crate::admin::client::{At, ask, encoded};
use crate::admin::stored::{Listed, describe};
use crate::cache::sled::SledRoom;
use crate::cache::store::{self, Stats, Store};
use crate::config::{CacheAction, CacheArgs};

pub fn run(config: &CacheArgs) -> Result<ExitCode, Failure> {
    let data_dir = config.places.data_dir();
    let held = existing(&data_dir)?;
    let text = match &held {
        Some(_) => {
            // The limit is not ours to enforce: look at what is there.
            let room = SledRoom::open(&data_dir, u64::MAX / 4).map_err(Failure::new)?;
            let store = Store::on_disk(room, 1 << 20);
            let text = at_rest(&store, &config.action).map_err(Failure::new)?;
            store.close();
            text
        }
        None => {
            let tap = place::running(&data_dir).filter(|t| t.admin.is_some());
            let tap =
                tap.ok_or_else(|| Failure::new("a ghtap run holds the data directory; ask again when it has ended"))?;
            small_runtime()?.block_on(running(&tap.admin()?, &config.action))?
        }
    };
    if text == NOTHING {
        return Err(Failure::new("nothing is stored for that URL; ghtap cache list shows what is"));
    }
    print(text)?;
    Ok(ExitCode::SUCCESS)
}

/// What describing no entry comes to.
const NOTHING: &str = "[]\n";

fn at_rest(store: &Store, action: &CacheAction) -> std::io::Result<String> {
    Ok(match action {
        CacheAction::Stats => stats(&Stats { max_bytes: 0, ..store.stats() }),
        CacheAction::List { prefix } => {
            let mut all = Vec::new();
            store.for_each(|_, entry| {
                if store::url(entry).starts_with(prefix.as_str()) {
                    all.push(Listed::of(entry));
                }
            })?;
            all.sort_by(|a, b| a.url.cmp(&b.url));
            list(&all)
        }
        CacheAction::Show { url } => {
            let mut found = Vec::new();
            store.for_each(|_, entry| {
                if store::url(entry) == *url {
                    found.push(entry.clone());
                }
            })?;
            format!("{:#}\n", describe(&found))
        }
        CacheAction::Purge { prefix } => purged(store.purge(prefix)? as u64),
    })
}

async fn running(admin: &At, action: &CacheAction) -> Result<String, Failure> {
    let get = async |path: String| ask(admin, Method::GET, &path).await.map_err(Failure::new);
    Ok(match action {
        CacheAction::Stats => {
            stats(&serde_json::from_slice(&get("/api/cache/stats".into()).await?).map_err(Failure::new)?)
        }
        CacheAction::List { prefix } => {
            let body = get(format!("/api/cache?prefix={}", encoded(prefix))).await?;
            list(&serde_json::from_slice::<Vec<Listed>>(&body).map_err(Failure::new)?)
        }
        CacheAction::Show { url } => {
            let body = get(format!("/api/cache/entry?url={}", encoded(url))).await?;
            format!("{:#}\n", serde_json::from_slice::<Value>(&body).map_err(Failure::new)?)
        }
        CacheAction::Purge { prefix } => {
            let path = format!("/api/cache/purge?prefix={}", encoded(prefix));
            let body = ask(admin, Method::POST, &path).await.map_err(Failure::new)?;
            let answer: Value = serde_json::from_slice(&body).map_err(Failure::new)?;
            purged(answer["purged"].as_u64().unwrap_or(0))
        }
    })
}

fn stats(stats: &Stats) -> String {
    let size = |bytes: u64| bytesize::ByteSize(bytes).display().iec().to_string();
    let mut out = format!(
        "kind       {}\nentries    {}\nlive       {}\non disk    {}\n",
        stats.kind,
        stats.entries,
        size(stats.live_bytes),
        size(stats.disk_bytes)
    );
    if stats.max_bytes > 0 {
        out.push_str(&format!("limit      {}\n", size(stats.max_bytes)));
    }
    if let Some(trouble) = &stats.trouble {
        out.push_str(&format!("trouble    {trouble}\n"));
    }
    out.push_str(&format!("evicted    {}\ncorrupt    {}\nerrors     {}\n", stats.evicted, stats.corrupt, stats.errors));
    out
}

fn list(all: &[Listed]) -> String {
    let line = |l: &Listed| {
        let accept = l.accept.as_deref().map_or_else(String::new, |a| format!("  ({a})"));
        format!("{:>10}  {:>8}s  {}{accept}\n", l.bytes, l.confirmed_seconds_ago, l.url)
    };
    let lines: String = all.iter().map(line).collect();
    format!("{:>10}  {:>9}  url\n{lines}", "bytes", "confirmed")
}

fn purged(number: u64) -> String {
    format!("removed {number}\n")
}
