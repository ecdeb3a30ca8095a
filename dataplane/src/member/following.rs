//! The follower of this member: there is one while it follows, and none while it leads.

use std::sync::Arc;

use parking_lot::Mutex;
use parovoz_dataplane_core::acks::AckTable;
use parovoz_dataplane_core::types::PrefixUuid;
use tokio::runtime::Handle;

use crate::replication::{Follower, FollowerStatus, ReplicationCtx};

/// See the module. Its calls block: use them off the runtimes' threads.
#[derive(Debug)]
pub struct Following {
    ctx: Arc<ReplicationCtx>,
    runtime: Handle,
    running: Mutex<Option<Arc<Follower>>>,
}

impl Following {
    /// Nothing is followed yet.
    #[must_use]
    pub fn new(ctx: Arc<ReplicationCtx>, runtime: Handle) -> Self {
        Self { ctx, runtime, running: Mutex::new(None) }
    }

    /// Follows what the store's role names; a running follower sees a change of role by itself.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn start(&self) -> std::io::Result<()> {
        let mut running = self.running.lock();
        if running.is_none() {
            *running = Some(Arc::new(Follower::start(self.ctx.clone(), &self.runtime)?));
        }
        Ok(())
    }

    /// Once it returned, nothing is applied, acknowledged or replaced any more.
    pub fn stop(&self) {
        let stopped = self.running.lock().take();
        if let Some(follower) = stopped {
            self.runtime.block_on(follower.stop());
        }
    }

    /// Copies a prefix anew. Answers false if nothing is followed.
    pub fn reseed(&self, prefix: PrefixUuid) -> bool {
        self.running.lock().as_ref().is_some_and(|follower| {
            follower.reseed(prefix);
            true
        })
    }

    /// Who has what, while this member leads.
    #[must_use]
    pub fn acks(&self) -> &Mutex<AckTable> {
        &self.ctx.acks
    }

    /// What the follower is doing.
    #[must_use]
    pub fn status(&self) -> FollowerStatus {
        self.running.lock().as_ref().map(|f| f.status()).unwrap_or_default()
    }
}
