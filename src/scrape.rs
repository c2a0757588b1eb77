//! What `/metrics` says, on whichever address it is asked.

use std::path::Path;
use std::sync::Arc;

use crate::cache::store::Stats;
use crate::clock::now_ms;
use crate::disk::occupied;
use crate::exchange::Exchange;

/// All metrics as they are now, in Prometheus's text format.
pub async fn metrics(exchange: &Arc<Exchange>, ledger: &Path) -> String {
    let stats = store_stats(exchange).await;
    let metrics = &exchange.metrics;
    metrics.offline(exchange.outages.all());
    let now = now_ms();
    metrics.pool(exchange.pool.accounts().into_iter().map(|a| {
        let until = a.rests(now);
        (a.name.clone(), if until > now { until } else { 0 })
    }));
    metrics.quotas(&exchange.ledger.quotas.all(), now_ms());
    metrics.ledger_bytes.set(occupied_by(ledger).await as f64);
    metrics.last_answer.set((exchange.last_upstream_ok() / 1000) as f64);
    metrics.render(&stats)
}

/// The store's numbers; asking for them may take the disk.
pub async fn store_stats(exchange: &Arc<Exchange>) -> Stats {
    let store = exchange.store.clone();
    tokio::task::spawn_blocking(move || store.stats()).await.unwrap_or_default()
}

/// Bytes that a directory occupies.
pub async fn occupied_by(directory: &Path) -> u64 {
    let directory = directory.to_owned();
    tokio::task::spawn_blocking(move || occupied(&directory)).await.unwrap_or(0)
}
