//! Executes requests on the prefixes that one loop owns: one logical writer a prefix, one batch a prefix and pass.
//!
//! Within a pass a write goes into its prefix's batch and into the object cache; [`Executor::commit_all`] ends the pass. A read
//! sees the cache first. What the cache no longer has but the batch may hold (`pending`) is committed before the database is
//! asked, so that everybody reads what was written before.

mod calls;
mod commands;
mod durable;
mod gate;
mod park;
mod write;

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use foldhash::fast::RandomState;
use parovoz_dataplane_core::batch::BatchBuilder;
use parovoz_dataplane_core::command::key::{self, Key};
use parovoz_dataplane_core::command::{CommandError, table};
use parovoz_dataplane_core::types::{Limits, PrefixName, PrefixUuid, Sequence};
use parovoz_dataplane_core::value;
use parovoz_engine::Family;

use super::Shared;
use super::cache::{Cached, ObjectCache};
use super::conn::{Session, Ticket};
use super::pending::Pending;
use super::relay::next_primary;
use super::stats::{ShardStats, add};
use crate::config::Durability;
use crate::store::RoleView;
use crate::store::prefix::{Copy, Prefix};

pub(super) use commands::At;
pub(super) use park::{Mark, MarkAt, Settled, Waiter, replace_replies};

/// Why a request is refused; the text is the reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("READONLY You can't write against a read only replica. primary is {0}")]
    ReadOnly(String),
    #[error("LOADING prefix '{0}' is being loaded on this member")]
    Loading(PrefixName),
    #[error("LOADING this member has not loaded the store's catalogue yet")]
    LoadingStore,
    #[error("LOADING this member leads but can't be sure at the moment that it still does, try again")]
    NotSure,
    #[error("LOADING this member has stopped leading; who leads next is not known yet, try again")]
    Fenced,
    #[error("TRYAGAIN prefix '{0}' is not served by this member at the moment")]
    NotServed(String),
    #[error("ERR key is {len} bytes, the limit is {limit}")]
    LongKey { len: usize, limit: usize },
    #[error("ERR value is {len} bytes, the limit is {limit}")]
    LongValue { len: usize, limit: usize },
    #[error("ERR request is {len} bytes, the limit of a batch is {limit}")]
    LongBatch { len: usize, limit: usize },
    #[error("ERR the reply would be larger than {0} bytes: ask for fewer keys")]
    LongReply(usize),
    #[error("{0}")]
    BadPrefix(String),
    #[error("ERR value is not an integer or out of range")]
    NotInteger,
    #[error("ERR increment or decrement would overflow")]
    Overflow,
    #[error("ERR invalid expire time in '{0}' command")]
    InvalidExpire(&'static str),
    #[error("ERR {0}")]
    Engine(String),
    #[error("TIMEOUT write outcome unknown: {0}; it may or may not survive")]
    Unknown(&'static str),
    #[error("TRYAGAIN read not answered: {0}")]
    Unconfirmed(&'static str),
    #[error("{0}")]
    Command(CommandError),
}

/// Who executes what concerns a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// This loop; index of the prefix's state.
    Mine(usize),
    /// Another loop.
    Other(usize),
    /// There is no such prefix.
    Unknown,
}

/// What a loop knows of one of its prefixes.
#[derive(Debug)]
pub(super) struct PrefixState {
    pub(super) prefix: Arc<Prefix>,
    /// Held during a pass only, so that an idle loop keeps no replaced copy open.
    copy: Option<Arc<Copy>>,
    /// Which copy the cache is about: its generation and address.
    cached_copy: (u64, usize),
    /// Owner of this prefix's objects in the cache; another number forgets them all.
    cache_owner: u32,
    builder: BatchBuilder,
    /// Number of the batch under way, to tell which replies depend on it.
    batch: u32,
    /// The batch deletes everything that was before it.
    flushes: bool,
    /// What of it is durable, under `durability: Sync`.
    syncs: durable::Syncs,
    touched: bool,
    gone: bool,
    waiting: park::Waiting,
}

/// A value that was read.
#[derive(Debug, Clone, Copy)]
struct Seen<'a> {
    value: &'a [u8],
    /// 0 = never.
    expires_at_ms: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Executor {
    pub(super) shared: Arc<Shared>,
    pub(super) shard: usize,
    pub(super) limits: Limits,
    cache: ObjectCache,
    hasher: RandomState,
    next_owner: u32,
    pub(super) states: Vec<PrefixState>,
    names: HashMap<Box<[u8]>, Target, RandomState>,
    by_uuid: HashMap<PrefixUuid, usize>,
    /// The prefix that was asked for last: most requests in a row are about the same.
    last_name: Box<[u8]>,
    last_target: Target,
    version: u64,
    role: Arc<RoleView>,
    /// Whether this member takes writes.
    pub(super) primary: bool,
    /// It led and is sealed: it answers nobody.
    fenced: bool,
    /// What the gate says at the beginning of this pass.
    at_begin: gate::AtBegin,
    /// Replies of this pass that may go out only if the gate is still open at its end.
    shown: Vec<gate::Shown>,
    /// W.
    pub(super) required: u32,
    sync: bool,
    pub(super) now_ms: u64,
    boot_ms: u64,
    touched: Vec<usize>,
    pending: Pending,
    scratch: Vec<u8>,
    /// Prefixes whose batch the present command's reply depends on.
    depends: Vec<usize>,
    /// The present command wrote to a batch, or read what one may hold.
    in_batch: bool,
    /// The present command wrote.
    wrote: bool,
    /// The group that the present command's reply waits for; group 0 = none.
    wait_for: Ticket,
    durable: durable::Durable,
    pub(super) marks: Vec<Mark>,
    /// Batches that were not committed in this pass, and the reply instead of theirs.
    failed: Vec<(usize, u32, Refusal)>,
    /// Replies that may go out now.
    pub(super) finished: Vec<park::Finished>,
    /// Why the process must end.
    pub(super) fatal: Option<String>,
    pub(super) counts: [u32; table::COUNT],
    hits: u64,
    misses: u64,
    cache_hits: u64,
    cache_misses: u64,
    pub(super) errors: u64,
}

impl Executor {
    pub(super) fn new(shared: Arc<Shared>, shard: usize) -> Self {
        let role = shared.store.role();
        Self {
            shard,
            limits: shared.store.limits,
            cache: ObjectCache::new(shared.cache_bytes),
            hasher: RandomState::default(),
            next_owner: 1,
            states: Vec::new(),
            names: HashMap::default(),
            by_uuid: HashMap::new(),
            last_name: Box::default(),
            last_target: Target::Unknown,
            version: 0,
            primary: role.is_primary,
            fenced: role.fenced,
            at_begin: gate::AtBegin::default(),
            shown: Vec::new(),
            required: role.required_acks(),
            role,
            sync: true,
            now_ms: 0,
            boot_ms: 0,
            touched: Vec::new(),
            pending: Pending::default(),
            scratch: Vec::new(),
            depends: Vec::new(),
            in_batch: false,
            wrote: false,
            wait_for: Ticket::default(),
            durable: durable::Durable::default(),
            marks: Vec::new(),
            failed: Vec::new(),
            finished: Vec::new(),
            fatal: None,
            counts: [0; table::COUNT],
            hits: 0,
            misses: 0,
            cache_hits: 0,
            cache_misses: 0,
            errors: 0,
            shared,
        }
    }

    pub(super) fn stats(&self) -> &ShardStats {
        &self.shared.stats[self.shard]
    }

    pub(super) fn cache_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// Starts a pass at these times.
    pub(super) fn begin(&mut self, now_ms: u64, boot_ms: u64) {
        self.now_ms = now_ms;
        self.boot_ms = boot_ms;
        let sync = self.shared.store.settings.load().durability == Durability::Sync;
        let begins = sync && !self.sync;
        self.sync = sync;
        self.look_at_gate();
        self.refresh();
        if begins {
            self.sync_all();
        }
    }

    /// Takes note of changed roles and prefixes.
    pub(super) fn refresh(&mut self) {
        let version = self.shared.store.version();
        if version == self.version {
            return;
        }
        // What was batched under the old role is decided under it.
        self.commit_all();
        self.version = version;
        self.role = self.shared.store.role();
        self.primary = self.role.is_primary;
        self.fenced = self.role.fenced;
        self.required = self.role.required_acks();
        self.refresh_prefixes();
        for index in 0..self.states.len() {
            self.take_role(index);
            // Afterwards: its keys count as part of what was gathered.
            self.forget(index);
        }
    }

    /// Decides under a changed role about what waits on a prefix.
    fn take_role(&mut self, index: usize) {
        if self.fenced && !self.states[index].gone {
            // Whoever leads next decides what becomes of what waits.
            return;
        }
        if !self.primary || self.states[index].gone {
            self.abandon(index);
            return;
        }
        self.abandon_lost(index);
        if self.required == 0 && self.at_begin.may_write {
            // The new reign needs no replica, and what was committed is in its history.
            let prefix = self.states[index].prefix.clone();
            if self.sync && prefix.durable() < prefix.applied() {
                self.gather(index, Some(prefix.applied()));
            } else {
                prefix.release(prefix.applied());
            }
        }
    }

    fn refresh_prefixes(&mut self) {
        let map = self.shared.store.prefixes();
        self.names.clear();
        for state in &mut self.states {
            state.gone = true;
        }
        for (name, prefix) in &map.by_name {
            let target =
                if prefix.shard == self.shard { Target::Mine(self.adopt(prefix)) } else { Target::Other(prefix.shard) };
            self.names.insert(name.clone(), target);
        }
        self.by_uuid =
            self.states.iter().enumerate().filter(|(_, s)| !s.gone).map(|(i, s)| (s.prefix.uuid, i)).collect();
        self.last_name = Box::default();
        self.last_target = Target::Unknown;
    }

    /// The state of a prefix of this loop, an old one or a new one.
    fn adopt(&mut self, prefix: &Arc<Prefix>) -> usize {
        if let Some(&index) = self.by_uuid.get(&prefix.uuid) {
            self.states[index].gone = false;
            return index;
        }
        let state = PrefixState {
            prefix: prefix.clone(),
            copy: None,
            cached_copy: (0, 0),
            cache_owner: 0,
            builder: BatchBuilder::default(),
            batch: 0,
            flushes: false,
            syncs: durable::Syncs::default(),
            touched: false,
            gone: false,
            waiting: park::Waiting::default(),
        };
        // The place of one that is gone, of which nothing is left, is taken over.
        let unused = |s: &PrefixState| s.waiting.is_empty() && !s.syncs.is_open();
        let free = self.states.iter().position(|s| s.gone && !self.by_uuid.contains_key(&s.prefix.uuid) && unused(s));
        let index = free.unwrap_or(self.states.len());
        match self.states.get_mut(index) {
            Some(place) => *place = state,
            None => self.states.push(state),
        }
        self.forget(index);
        index
    }

    /// Forgets what the cache knows of a prefix.
    fn forget(&mut self, index: usize) {
        // Numbers are never used again: there are four billion.
        self.next_owner = self.next_owner.wrapping_add(1);
        self.states[index].cache_owner = self.next_owner;
        self.sync_whole(index);
    }

    /// Splits a key and finds who executes what concerns it.
    pub(super) fn resolve<'k>(&mut self, key: &'k [u8]) -> (Target, Key<'k>) {
        let key = key::split(key);
        if *key.prefix == *self.last_name && self.last_target != Target::Unknown {
            return (self.last_target, key);
        }
        match self.names.get(key.prefix) {
            Some(&target) => {
                self.last_name = key.prefix.into();
                self.last_target = target;
                (target, key)
            }
            None => (Target::Unknown, key),
        }
    }

    /// Names the prefix of a key that has none here, or says why it can't have one.
    pub(super) fn new_prefix_name(prefix: &[u8]) -> Result<PrefixName, Refusal> {
        let name = std::str::from_utf8(prefix).ok().and_then(|name| PrefixName::new(name).ok());
        name.ok_or_else(|| Refusal::BadPrefix(key::bad_prefix_text(prefix)))
    }

    pub(super) fn state_of(&self, uuid: PrefixUuid) -> Option<usize> {
        self.by_uuid.get(&uuid).copied()
    }

    pub(super) fn read_only(&self) -> Refusal {
        let primary = self.role.primary.as_ref().map_or("", |p| p.resp.as_str());
        Refusal::ReadOnly(if primary.is_empty() { "unknown at the moment".to_owned() } else { primary.to_owned() })
    }

    /// Whether a client that was served by the primary here can be given to the one that leads now.
    pub(super) fn may_relay(&self, session: &Session) -> bool {
        next_primary(&self.shared.store).is_some() && !session.relayed && self.shared.relays.has_room()
    }

    /// The primary's address for gRPC clients; empty if unknown.
    pub(super) fn primary_client(&self) -> String {
        self.role.primary.as_ref().map_or_else(String::new, |p| p.client.clone())
    }

    pub(super) fn check_key(&self, key: &[u8]) -> Result<(), Refusal> {
        if key.len() > self.limits.key {
            Err(Refusal::LongKey { len: key.len(), limit: self.limits.key })
        } else {
            Ok(())
        }
    }

    pub(super) fn check_value(&self, value: &[u8]) -> Result<(), Refusal> {
        if value.len() > self.limits.value {
            Err(Refusal::LongValue { len: value.len(), limit: self.limits.value })
        } else {
            Ok(())
        }
    }

    /// Takes hold of a prefix's copy for this pass.
    fn touch(&mut self, index: usize) -> Result<(), Refusal> {
        if self.states[index].touched {
            return Ok(());
        }
        let state = &mut self.states[index];
        if state.gone {
            return Err(Refusal::NotServed(state.prefix.name.to_string()));
        }
        let Some(copy) = state.prefix.copy() else { return Err(Refusal::Loading(state.prefix.name.clone())) };
        let identity = (copy.generation, Arc::as_ptr(&copy) as usize);
        let changed = state.cached_copy != identity;
        state.cached_copy = identity;
        state.copy = Some(copy);
        state.touched = true;
        self.touched.push(index);
        if changed {
            self.forget(index);
        }
        Ok(())
    }

    fn hash(&self, index: usize, key: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u32(self.states[index].cache_owner);
        hasher.write(key);
        hasher.finish()
    }

    /// Whether replies may have to wait after their commit: for replicas, or for the disk.
    pub(super) fn is_gated(&self) -> bool {
        self.primary && (self.required > 0 || self.sync)
    }

    /// Whether the command that was just executed changed anything.
    pub(super) fn has_written(&self) -> bool {
        self.wrote
    }

    /// Forgets what the last command's reply depended on.
    pub(super) fn begin_command(&mut self) {
        self.depends.clear();
        self.in_batch = false;
        self.wrote = false;
        self.wait_for = Ticket::default();
    }

    /// Notes that the present command's reply shows what a batch holds, or what replicas or the disk may not have yet.
    fn depend(&mut self, index: usize) {
        let in_batch = self.in_batch && self.states[index].builder.count() > 0;
        let gated = self.required > 0 && self.primary || self.wait_for.group > 0;
        if (in_batch || gated) && !self.depends.contains(&index) {
            self.depends.push(index);
        }
    }

    /// Reads a key; what is expired is not there.
    fn read(&mut self, index: usize, hash: u64, key: &[u8]) -> Result<Option<Seen<'_>>, Refusal> {
        self.touch(index)?;
        let seen = if self.primary { self.read_cached(index, hash, key)? } else { self.read_database(index, key)? };
        let (found, expires_at_ms) = match seen {
            Place::Nowhere => (None, 0),
            Place::Cache(place) => {
                let object = self.cache.at(place);
                (object.value, object.expires_at_ms)
            }
            Place::Scratch(expires) => (Some(self.scratch.as_slice()), expires),
        };
        let now = self.now_ms;
        match found.filter(|_| expires_at_ms == 0 || expires_at_ms > now) {
            Some(value) => {
                self.hits += 1;
                Ok(Some(Seen { value, expires_at_ms }))
            }
            None => {
                self.misses += 1;
                Ok(None)
            }
        }
    }

    fn read_cached(&mut self, index: usize, hash: u64, key: &[u8]) -> Result<Place, Refusal> {
        let state = &self.states[index];
        let in_batch = state.builder.count() > 0 && (state.flushes || self.pending.may_hold(hash));
        self.in_batch |= in_batch;
        self.reads_group(index, hash);
        let owner = self.states[index].cache_owner;
        if let Some(place) = self.cache.find(hash, owner, key) {
            self.cache_hits += 1;
            return Ok(Place::Cache(place));
        }
        self.cache_misses += 1;
        if in_batch {
            self.commit(index)?;
        }
        let found = self.read_database(index, key)?;
        if let Place::Scratch(expires_at_ms) = found {
            let object = Cached { value: Some(&self.scratch), expires_at_ms };
            self.cache.insert(hash, owner, key, object);
        }
        Ok(found)
    }

    fn read_database(&mut self, index: usize, key: &[u8]) -> Result<Place, Refusal> {
        let Self { states, scratch, .. } = self;
        let Some(copy) = &states[index].copy else { return Err(Refusal::Loading(states[index].prefix.name.clone())) };
        scratch.clear();
        let mut expires = 0;
        let mut bad = None;
        let found = copy.db.get_with(Family::Data, key, &mut |stored| match value::decode(stored) {
            Ok(stored) => {
                scratch.extend_from_slice(stored.value);
                expires = stored.expires_at_ms.unwrap_or(0);
            }
            Err(e) => bad = Some(e),
        });
        match (found, bad) {
            (Err(e), _) => Err(Refusal::Engine(e.to_string())),
            (_, Some(e)) => Err(Refusal::Engine(e.to_string())),
            (Ok(true), None) => Ok(Place::Scratch(expires)),
            (Ok(false), None) => Ok(Place::Nowhere),
        }
    }

    /// Ends a pass: commits every batch and lets the copies go.
    pub(super) fn commit_all(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        for &index in &touched {
            // The refusal stands in `failed`, from where the replies are corrected.
            let _ = self.commit(index);
            let state = &mut self.states[index];
            state.touched = false;
            state.copy = None;
        }
        touched.clear();
        self.touched = touched;
        self.pending.clear();
    }

    /// Moves what was counted into the atomics that others read.
    pub(super) fn publish_counts(&mut self) {
        let stats = &self.shared.stats[self.shard];
        for (counter, count) in stats.commands.iter().zip(&mut self.counts) {
            if *count > 0 {
                add(counter, u64::from(std::mem::take(count)));
            }
        }
        let pairs = [
            (&stats.hits, &mut self.hits),
            (&stats.misses, &mut self.misses),
            (&stats.cache_hits, &mut self.cache_hits),
            (&stats.cache_misses, &mut self.cache_misses),
            (&stats.errors, &mut self.errors),
        ];
        for (counter, count) in pairs {
            if *count > 0 {
                add(counter, std::mem::take(count));
            }
        }
    }

    /// The last record that a prefix's database shows.
    fn latest(&self, index: usize) -> Sequence {
        self.states[index].prefix.applied()
    }
}

/// Where a value that was looked for is.
#[derive(Debug, Clone, Copy)]
enum Place {
    Nowhere,
    Cache(super::cache::Place),
    /// In the scratch buffer, with its expiry.
    Scratch(u64),
}
