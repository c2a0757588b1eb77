//! Draining: no new work, while what is under way finishes.

use tokio::sync::watch;

/// Tells when draining has begun. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Drain(watch::Receiver<bool>);

/// Begins draining.
#[derive(Debug)]
pub struct Draining(watch::Sender<bool>);

/// A drain, and what begins it. Dropping the latter begins it, too.
pub fn drain() -> (Draining, Drain) {
    let (sender, receiver) = watch::channel(false);
    (Draining(sender), Drain(receiver))
}

impl Draining {
    pub fn begin(&self) {
        self.0.send_replace(true);
    }
}

impl Drain {
    pub fn has_begun(&self) -> bool {
        *self.0.borrow()
    }

    /// Ends when draining begins.
    pub async fn begun(&mut self) {
        let _ = self.0.wait_for(|begun| *begun).await;
    }
}
