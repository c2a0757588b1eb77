//! Opening the store that was asked for.

use std::path::Path;

use super::Failure;
use crate::cache::redis::{self, RedisRoom};
use crate::cache::sled::SledRoom;
use crate::cache::store::Store;
use crate::config::{StoreKind, Tap as Config};

/// Opens the store that was asked for.
pub async fn open(config: &Config, memory_only: bool, data_dir: &Path) -> Result<Store, Failure> {
    let (max_bytes, memory_bytes) = (config.store_max_bytes, config.store_memory_bytes);
    if config.store_reader.is_some() && !matches!(config.store, StoreKind::Redis(_)) {
        return Err(Failure::new("--store-reader goes with --store redis:// or rediss://"));
    }
    match &config.store {
        StoreKind::Memory => Ok(Store::memory(max_bytes)),
        // A run beside another that holds the directory.
        StoreKind::Sled if memory_only => Ok(Store::memory(max_bytes)),
        StoreKind::Sled => {
            let dir = data_dir.to_owned();
            let room =
                tokio::task::spawn_blocking(move || SledRoom::open(&dir, max_bytes)).await.map_err(Failure::new)?;
            let failed = |e| Failure::new(format_args!("the store below {} cannot be opened: {e}", data_dir.display()));
            Ok(Store::on_disk(room.map_err(failed)?, memory_bytes))
        }
        StoreKind::Wrong(why) => Err(Failure::new(format_args!("--store: {why}"))),
        StoreKind::Redis(servers) => {
            let ca = config.store_ca.as_ref().map(|path| {
                let read = crate::tls::roots::pem_file(path).and_then(|_| std::fs::read(path));
                read.map_err(|e| Failure::new(format_args!("--store-ca {}: {e}", path.display())))
            });
            let reader = match &config.store_reader {
                None => None,
                Some(StoreKind::Redis(reader)) => Some(reader.clone()),
                Some(StoreKind::Wrong(why)) => return Err(Failure::new(format_args!("--store-reader: {why}"))),
                Some(_) => return Err(Failure::new("--store-reader is a redis:// or rediss:// URL")),
            };
            let options = redis::Options {
                servers: servers.clone(),
                reader,
                ca: ca.transpose()?,
                timeout: config.store_timeout,
                ttl: config.store_ttl,
            };
            let room = RedisRoom::open(&options).map_err(|e| match e.starts_with("--") {
                true => Failure::new(e),
                false => Failure::new(format_args!("--store: {e}")),
            })?;
            Ok(Store::in_redis(room, memory_bytes))
        }
    }
}
