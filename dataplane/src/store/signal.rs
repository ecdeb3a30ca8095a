//! How a committed batch wakes those who stream it, at the cost of one flag when they are awake already.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use parovoz_dataplane_core::types::PrefixUuid;
use tokio::sync::Notify;

/// One follower's session: collects the prefixes that moved since it last looked.
#[derive(Debug, Default)]
pub struct SessionSignal {
    dirty: Mutex<Vec<PrefixUuid>>,
    notify: Notify,
}

impl SessionSignal {
    /// The prefixes that moved since the last call.
    pub fn take(&self) -> Vec<PrefixUuid> {
        std::mem::take(&mut *self.dirty.lock())
    }

    /// Waits until something moved; at once if it did since the last wait.
    pub async fn moved(&self) {
        self.notify.notified().await;
    }

    /// Wakes the session without a prefix, e.g. for new credit.
    pub fn wake(&self) {
        self.notify.notify_one();
    }
}

/// One session's interest in one prefix.
#[derive(Debug)]
pub struct Subscription {
    prefix: PrefixUuid,
    session: Arc<SessionSignal>,
    signalled: AtomicBool,
    cut: AtomicBool,
}

impl Subscription {
    /// Tells `session` when `prefix` moves.
    #[must_use]
    pub fn new(prefix: PrefixUuid, session: Arc<SessionSignal>) -> Arc<Self> {
        Arc::new(Self { prefix, session, signalled: AtomicBool::new(false), cut: AtomicBool::new(false) })
    }

    /// The prefix moved. Cheap if the session has not looked since the last time.
    pub fn signal(&self) {
        if !self.signalled.swap(true, Ordering::AcqRel) {
            self.session.dirty.lock().push(self.prefix);
            self.session.wake();
        }
    }

    /// The session is about to look: later batches must signal again. Call before reading the ring.
    pub fn rearm(&self) {
        self.signalled.store(false, Ordering::Release);
    }

    /// The prefix's copy was exchanged: the stream must end and be resumed by the follower.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        self.signalled.store(false, Ordering::Release);
        self.signal();
    }

    /// Whether it was cut.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }
}
