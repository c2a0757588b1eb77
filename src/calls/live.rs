//! The last calls, and those that come, for who watches.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::broadcast;

/// How many calls are remembered; how far a watcher may fall behind before it misses some.
const REMEMBERED: usize = 200;
const BEHIND: usize = 512;

/// One call, as it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct Call {
    /// Milliseconds since 1970.
    pub at: u64,
    pub client: Arc<str>,
    pub run: Arc<str>,
    pub host: Arc<str>,
    /// Method and route template.
    pub route: &'static str,
    pub credential: Arc<str>,
    pub status: u16,
    pub outcome: &'static str,
    /// Requests that cost quota.
    pub charged: u32,
    /// `X-RateLimit-Remaining`, where GitHub said.
    pub remaining: Option<u64>,
    pub ms: f64,
}

/// The calls that just ended.
pub struct Live {
    recent: Mutex<VecDeque<Call>>,
    sender: broadcast::Sender<Call>,
}

impl Default for Live {
    fn default() -> Self {
        Live { recent: Mutex::new(VecDeque::with_capacity(REMEMBERED)), sender: broadcast::Sender::new(BEHIND) }
    }
}

impl Live {
    pub fn publish(&self, call: Call) {
        if self.sender.receiver_count() > 0 {
            let _ = self.sender.send(call.clone());
        }
        let mut recent = self.recent.lock();
        if recent.len() == REMEMBERED {
            recent.pop_front();
        }
        recent.push_back(call);
    }

    /// The last calls, the newest first.
    pub fn recent(&self) -> Vec<Call> {
        self.recent.lock().iter().rev().cloned().collect()
    }

    /// The calls from now on.
    pub fn watch(&self) -> broadcast::Receiver<Call> {
        self.sender.subscribe()
    }
}
