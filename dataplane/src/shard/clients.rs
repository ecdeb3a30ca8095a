//! Who is connected, over all loops: for `CLIENT LIST` and the limit of connections.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::clock;

/// Entries that `CLIENT LIST` shows at most.
const LISTED_MAX: usize = 10_000;

/// What a client told of itself.
#[derive(Debug, Default, Clone)]
pub(super) struct ClientNames {
    pub(super) name: String,
    pub(super) lib_name: String,
    pub(super) lib_version: String,
}

/// One connection.
#[derive(Debug)]
pub(super) struct ClientEntry {
    pub(super) id: u64,
    peer: Option<SocketAddr>,
    local: Option<SocketAddr>,
    since_ms: u64,
    pub(super) names: Mutex<ClientNames>,
    /// 2 or 3.
    pub(super) proto: AtomicUsize,
}

impl ClientEntry {
    /// One line, as `CLIENT LIST` writes it.
    pub(super) fn line(&self) -> String {
        let names = self.names.lock().clone();
        let address = |a: Option<SocketAddr>| a.map_or_else(String::new, |a| a.to_string());
        let mut line = String::new();
        let _ = write!(
            line,
            "id={} addr={} laddr={} name={} age={} db=0 resp={} lib-name={} lib-ver={}",
            self.id,
            address(self.peer),
            address(self.local),
            names.name,
            clock::boot_ms().saturating_sub(self.since_ms) / 1000,
            self.proto.load(Ordering::Relaxed),
            names.lib_name,
            names.lib_version,
        );
        line
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Clients {
    next: AtomicU64,
    open: Mutex<BTreeMap<u64, Arc<ClientEntry>>>,
}

impl Clients {
    /// Enters a connection; `None` if there are `limit` already.
    pub(super) fn enter(
        &self,
        peer: Option<SocketAddr>,
        local: Option<SocketAddr>,
        limit: usize,
    ) -> Option<Arc<ClientEntry>> {
        let mut open = self.open.lock();
        if open.len() >= limit {
            return None;
        }
        let entry = Arc::new(ClientEntry {
            id: self.next.fetch_add(1, Ordering::Relaxed) + 1,
            peer,
            local,
            since_ms: clock::boot_ms(),
            names: Mutex::default(),
            proto: AtomicUsize::new(2),
        });
        open.insert(entry.id, entry.clone());
        Some(entry)
    }

    /// A connection is gone.
    pub(super) fn leave(&self, id: u64) {
        self.open.lock().remove(&id);
    }

    /// Connections now.
    pub(super) fn len(&self) -> usize {
        self.open.lock().len()
    }

    /// All of them, or those with these numbers, a line each.
    pub(super) fn list(&self, ids: Option<&BTreeSet<u64>>) -> String {
        let listed = |client: &&Arc<ClientEntry>| ids.is_none_or(|ids| ids.contains(&client.id));
        let open: Vec<_> = self.open.lock().values().filter(listed).take(LISTED_MAX).cloned().collect();
        open.iter().map(|c| c.line() + "\n").collect()
    }
}
