//! Copies prefixes anew from snapshots, one prefix at a time; see [`source`] for whose.
//!
//! The old copy stays open for stale reads until the new one is verified; it is neither acknowledged nor a source meanwhile.
//! What was fetched stays in the staging folder, so a copy that was cut goes on, across restarts of the process too.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use parovoz_dataplane_core::budget::{Backoff, TokenBucket};
use parovoz_dataplane_core::follower::BootstrapCause;
use parovoz_dataplane_core::history::{EpochHistory, EpochRecord};
use parovoz_dataplane_core::types::{DataUuid, Position, PrefixUuid};
use parovoz_engine::{Database, Direction, EngineError, Family, OpenSpec};

use self::source::{Held, Opened, Peer};
use super::client::Shared;
use super::fetch::{Fetcher, blocking};
use super::progress::Meter;
use super::staging::{Manifest, Todo, bytes_here, clear, db_dir, sync_dir};
use super::{ReplicationCtx, staging, tails};
use crate::clock;
use crate::store::Endpoint;
use crate::store::prefix::{Copy, Prefix, PrefixPhase};

/// Files fetched at a time.
const PARALLEL_FILES: usize = 3;
/// Copies per prefix and hour that ended, well or for good; what a link cut is not counted.
const PER_HOUR: usize = 3;
const HOUR_MS: u64 = 3_600_000;
/// Pauses between attempts, in milliseconds.
const BACKOFF: Backoff = Backoff::new(200, 15_000);
/// Bytes that must stay free besides the copy.
const SPARE_BYTES: u64 = 64 << 20;
/// How long readers of the old copy may keep its files.
const RETIRE_DEADLINE: Duration = Duration::from_secs(60);
/// How long the snapshot's hold outlives the copy: until the stream has resumed, at most so long.
const RESUME_DEADLINE: Duration = Duration::from_secs(10);

mod error;
mod queue;
mod source;

pub(super) use error::BootstrapError;
pub(super) use queue::Bootstraps;
use queue::Due;

/// Why a prefix is copied anew, for people.
pub(super) fn reason_of(cause: &BootstrapCause) -> String {
    match cause {
        BootstrapCause::Missing => "there is no copy here, or a new one was asked for".to_owned(),
        BootstrapCause::Gap { last, oldest } => {
            format!("gap: need sequence {}, but the oldest that the upstream has is {oldest}", last.sequence.next())
        }
        BootstrapCause::Diverged { last, fork } => {
            format!("diverged: records after {fork} up to {last} are not in the upstream's history")
        }
        BootstrapCause::Corrupt { last } => format!("the copy, at {last}, refuses well-formed batches"),
    }
}

/// Works the queue off until the follower stops.
pub(super) async fn run(shared: Arc<Shared>) {
    let catalogue = parovoz_dataplane_core::types::catalogue_uuid(&shared.ctx.store.store_uid);
    let mut changes = shared.ctx.store.changes();
    while !shared.stop.is_cancelled() {
        let upstream = shared.ctx.store.role().upstream.clone();
        shared.bootstraps.follow_orders(upstream.as_ref());
        let due = match shared.bootstraps.next(catalogue, upstream.as_ref(), clock::boot_ms()) {
            Ok(due) => due,
            Err(wait_ms) => {
                let wait = Duration::from_millis(wait_ms.unwrap_or(HOUR_MS));
                tokio::select! {
                    () = shared.stop.cancelled() => return,
                    () = shared.bootstraps.wake.notified() => {}
                    () = other_orders(&shared, &mut changes, upstream.as_ref()) => {}
                    () = tokio::time::sleep(wait) => {}
                }
                continue;
            }
        };
        let (prefix, cause, meter) = (due.prefix, due.cause, due.meter.clone());
        meter.attempt();
        let known = shared.ctx.store.prefix_by_uuid(prefix);
        let mut ended = attempt(&shared, due).await;
        if ended.as_ref().is_err_and(|error| !matches!(error, BootstrapError::Stopping))
            && known.as_ref().is_none_or(|known| known.is_dropped())
        {
            // Whatever else it met: the prefix is gone, and so goes what the copy left.
            forget(&shared, prefix, known).await;
            ended = Err(BootstrapError::Dropped);
        }
        if ended.as_ref().map_or_else(|error| error.counts(meter.has_fetched()), |()| true) {
            shared.bootstraps.charge(prefix);
        }
        match ended {
            Err(BootstrapError::Stopping) => return,
            Ok(()) | Err(BootstrapError::Dropped) => {
                shared.bootstraps.done(prefix);
                shared.look.notify_one();
            }
            Err(error) => {
                shared.ctx.stats.bootstrap_failures.inc();
                if let BootstrapError::Damaged { source_member, .. } = &error {
                    shared.ctx.stats.damaged_copies.inc();
                    tracing::error!(%prefix, source = %source_member, %error, "the source's copy is damaged: ask another");
                } else {
                    tracing::warn!(%prefix, %error, "bootstrap prefix: try again");
                }
                if let Some(prefix) = shared.ctx.store.prefix_by_uuid(prefix) {
                    let reason = format!("{}; last attempt: {error}", reason_of(&cause));
                    prefix.set_phase(PrefixPhase::Stopped { reason });
                }
                shared.bootstraps.failed(prefix, &error);
            }
        }
        shared.ctx.store.note_change();
    }
}

/// Removes what the copy of a dropped prefix left.
async fn forget(shared: &Shared, uuid: PrefixUuid, known: Option<Arc<Prefix>>) {
    let ctx = shared.ctx.clone();
    let forgotten = blocking(move || {
        if let Some(prefix) = known {
            prefix.close();
            // A copy that was put in place just then came too late.
            ctx.catalogue.forget(&prefix).map_err(BootstrapError::Member)?;
        }
        Ok(ctx.dirs.forget_staging(uuid)?)
    });
    if let Err(error) = forgotten.await {
        tracing::warn!(prefix = %uuid, %error, "the staging of a dropped prefix is not removed before the next start");
    }
}

/// Waits until the orders name another upstream.
async fn other_orders(shared: &Shared, changes: &mut tokio::sync::watch::Receiver<u64>, upstream: Option<&Endpoint>) {
    // The sender lives as long as the store.
    while changes.changed().await.is_ok() {
        if shared.ctx.store.role().upstream.as_ref() != upstream {
            return;
        }
    }
    std::future::pending().await
}

/// One attempt. Fetching is given up when the orders name another upstream or the follower stops; replacing is not, so that
/// whoever stops the follower finds either the old copy or the new one.
async fn attempt(shared: &Arc<Shared>, due: Due) -> Result<(), BootstrapError> {
    let Due { prefix: uuid, cause, meter, failures, distrusted } = due;
    let store = &shared.ctx.store;
    let prefix = store.prefix_by_uuid(uuid).filter(|p| !p.is_dropped()).ok_or(BootstrapError::Dropped)?;
    let role = store.role();
    let upstream = role.upstream.clone().filter(|u| !role.is_primary && !u.replication.is_empty());
    let upstream = upstream.ok_or(BootstrapError::NoUpstream)?;
    prefix.set_phase(PrefixPhase::Bootstrapping);
    store.note_change();
    // Batches of the old copy that still wait must not meet the new one.
    shared.appliers.barrier().await;
    if let BootstrapCause::Diverged { fork, .. } = cause {
        // Now, while the log still has it.
        let (ctx, diverged) = (shared.ctx.clone(), prefix.clone());
        blocking(move || {
            tails::export(&*ctx.dirs, &diverged, fork);
            Ok(())
        })
        .await?;
    }
    let copied = prefix.clone();
    let job = Job { shared: shared.clone(), prefix, cause, meter, failures, distrusted, upstream: upstream.clone() };
    let fetched = {
        let orders_change = async {
            loop {
                tokio::time::sleep(Duration::from_millis(200)).await;
                if copied.is_dropped() {
                    return BootstrapError::Dropped;
                }
                if store.role().upstream.as_ref() != Some(&upstream) {
                    return BootstrapError::NoUpstream;
                }
            }
        };
        tokio::select! {
            () = shared.stop.cancelled() => return Err(BootstrapError::Stopping),
            ended = orders_change => return Err(ended),
            fetched = job.fetch() => fetched?,
        }
    };
    job.replace(fetched).await
}

#[derive(Debug, Clone)]
struct Job {
    shared: Arc<Shared>,
    prefix: Arc<Prefix>,
    cause: BootstrapCause,
    meter: Arc<Meter>,
    /// Attempts at this bootstrap that failed.
    failures: u32,
    /// Members whose copies were damaged.
    distrusted: Vec<DataUuid>,
    /// Who is streamed from afterwards.
    upstream: Endpoint,
}

/// A copy that is here, checked and synced.
struct Fetched {
    /// Where it came from.
    peer: Peer,
    /// The hold at the upstream: the snapshot itself, if that is the source.
    held: Held,
    manifest: Manifest,
    staging: PathBuf,
}

impl Job {
    fn ctx(&self) -> &Arc<ReplicationCtx> {
        &self.shared.ctx
    }

    /// Brings all files here.
    async fn fetch(&self) -> Result<Fetched, BootstrapError> {
        let ctx = self.ctx();
        let (dirs, name, uuid) = (ctx.dirs.clone(), self.prefix.name.clone(), self.prefix.uuid);
        let (staging, before) = blocking(move || {
            let staging = dirs.staging_dir(&name, uuid)?;
            let before = Manifest::load(&staging)?;
            Ok((staging, before))
        })
        .await?;
        self.raise_floor(Position::ZERO).await?;
        let opened = self.open(before.as_ref()).await?;
        let stats = &ctx.stats;
        if opened.resumed {
            stats.bootstraps_resumed.inc()
        } else {
            stats.bootstraps_started.inc()
        }
        tracing::info!(prefix = %self.prefix.name, snapshot = %opened.snapshot.snapshot_id, source = %opened.source,
            address = %opened.peer, held_after = %opened.held_after(), resumed = opened.resumed,
            files = opened.snapshot.files.len(), "copy prefix");
        let (manifest, todos, here) = self.prepare(&opened, &staging, before).await?;
        self.check_space(manifest.total().saturating_sub(here) + manifest.scratch_bytes()).await?;
        self.meter.begin(manifest.total(), here);
        let fetch = self.fetch_files(&opened.peer, manifest, todos, &staging);
        let manifest = match &opened.held {
            None => fetch.await?,
            Some(held) => tokio::select! {
                fetched = fetch => fetched?,
                ended = self.keep(held) => return Err(ended),
            },
        };
        if let (true, BootstrapCause::Diverged { fork, .. }) = (self.prefix.name.is_catalogue(), self.cause) {
            self.keep_ends(fork).await?;
        }
        let Opened { peer, held, snapshot, .. } = opened;
        let held = held.unwrap_or_else(|| Held::new(peer.clone(), &snapshot));
        Ok(Fetched { peer, held, manifest, staging })
    }

    async fn prepare(
        &self,
        opened: &Opened,
        staging: &std::path::Path,
        before: Option<Manifest>,
    ) -> Result<(Manifest, Vec<Todo>, u64), BootstrapError> {
        let (snapshot, source, held_after) = (opened.snapshot.clone(), opened.source, opened.held_after());
        let address = opened.peer.endpoint.replication.clone();
        if let Some(bad) = snapshot.files.iter().find(|f| !is_file_name(&f.name)) {
            return Err(BootstrapError::Verify(format!("{:?} is no file name", bad.name)));
        }
        let staging = staging.to_owned();
        blocking(move || {
            let (manifest, todos) =
                Manifest::prepare(&snapshot, source, &address, held_after, &staging, before.as_ref())?;
            manifest.save(&staging)?;
            let here = bytes_here(&staging)?;
            Ok((manifest, todos, here))
        })
        .await
    }

    async fn check_space(&self, need: u64) -> Result<(), BootstrapError> {
        let dirs = self.ctx().dirs.clone();
        let free = blocking(move || Ok(dirs.free_bytes()?)).await?;
        let need = need + SPARE_BYTES;
        if free < need { Err(BootstrapError::NoSpace { need, free }) } else { Ok(()) }
    }

    async fn fetch_files(
        &self,
        peer: &Peer,
        manifest: Manifest,
        todos: Vec<Todo>,
        staging: &std::path::Path,
    ) -> Result<Manifest, BootstrapError> {
        let ctx = self.ctx();
        let rate = ctx.store.settings.load().bootstrap_max_bytes_per_second;
        let fetcher = Fetcher {
            client: peer.client.clone(),
            snapshot_id: manifest.snapshot_id.clone(),
            silence: ctx.tuning.silence,
            settings: &ctx.store.settings,
            bucket: Arc::new(Mutex::new(TokenBucket::new(rate, clock::boot_ms()))),
            meter: self.meter.clone(),
            stats: &ctx.stats,
        };
        let files = manifest.files.clone();
        let manifest = Arc::new(Mutex::new(manifest));
        let work = files.into_iter().zip(todos).enumerate().map(|(i, (file, todo))| {
            let (fetcher, manifest) = (fetcher.clone(), manifest.clone());
            let (path, staging) = (db_dir(staging).join(&file.name), staging.to_owned());
            async move {
                let done = matches!(todo, Todo::Done(_));
                let crc = match fetcher.file(&file.name, file.size, path, todo).await {
                    Err(BootstrapError::Call(status)) if status.code() == tonic::Code::NotFound => {
                        return Err(BootstrapError::SnapshotGone);
                    }
                    fetched => fetched?,
                };
                if done {
                    return Ok(());
                }
                blocking(move || {
                    let mut manifest = manifest.lock();
                    if let Some(file) = manifest.files.get_mut(i) {
                        file.crc32c = Some(crc);
                    }
                    Ok(manifest.save(&staging)?)
                })
                .await
            }
        });
        futures::stream::iter(work).buffer_unordered(PARALLEL_FILES).try_for_each(|()| async { Ok(()) }).await?;
        let db = db_dir(staging);
        blocking(move || Ok(sync_dir(&db)?)).await?;
        let manifest = manifest.lock().clone();
        Ok(manifest)
    }

    /// Verifies the copy, confirms that its hold is alive, and puts it in place of the old one.
    async fn replace(&self, fetched: Fetched) -> Result<(), BootstrapError> {
        let Fetched { peer, held, manifest, staging } = fetched;
        let (ctx, staged, checked) = (self.ctx().clone(), staging.clone(), manifest.clone());
        let verified = blocking(move || {
            let found = staging::scratch_dir(&staged, &checked.files)
                .map_err(BootstrapError::from)
                .and_then(|scratch| verify(&ctx, &scratch, &checked));
            staging::remove_scratch(&staged)?;
            if found.as_ref().is_err_and(BootstrapError::spoils_staging) {
                staging::clear(&staged)?;
            }
            found
        });
        // The upstream's hold is what the stream needs now; the source's files are all here.
        tokio::pin!(verified);
        let history = tokio::select! {
            history = &mut verified => history?,
            // Nothing else may touch the files meanwhile; what became of the hold is asked next.
            _ended = self.keep(&held) => verified.await?,
        };
        if let Err(error) = self.renew(&held.peer, &held.id).await {
            if matches!(error, BootstrapError::SnapshotGone) {
                let staging = staging.clone();
                blocking(move || Ok(clear(&staging)?)).await?;
            }
            return Err(error);
        }
        self.install(&manifest, staging, history).await?;
        self.ctx().stats.bootstraps_completed.inc();
        tracing::info!(prefix = %self.prefix.name, position = %self.prefix.position_at(self.prefix.applied()),
            bytes = manifest.total(), "the new copy is in place");
        if held.id != manifest.snapshot_id {
            self.let_go(&peer, manifest.snapshot_id);
        }
        let resumed = wait_for_stream(self.shared.clone(), self.prefix.clone());
        let job = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = resumed => {}
                _ended = job.keep(&held) => {}
            }
            job.let_go(&held.peer, held.id);
        });
        Ok(())
    }

    async fn install(
        &self,
        manifest: &Manifest,
        staging: PathBuf,
        history: EpochHistory,
    ) -> Result<(), BootstrapError> {
        let (ctx, prefix, cause) = (self.ctx().clone(), self.prefix.clone(), self.cause);
        let offset = manifest.sequence_offset;
        let provenance =
            format!("snapshot {} of {} held after {}", manifest.snapshot_id, manifest.source, manifest.held_after);
        let shared = self.shared.clone();
        blocking(move || {
            let old = prefix.copy().map(|copy| (copy.generation, Arc::downgrade(&copy)));
            let diverged = divergence(&cause, &prefix, &history);
            if let (Some((generation, _)), Some(why)) = (&old, &diverged) {
                // From the switch on the next start would remove it.
                ctx.dirs.mark(&prefix.name, prefix.uuid, *generation, why)?;
            }
            let (generation, dir) = ctx.dirs.adopt(&prefix.name, prefix.uuid, &staging, offset, &provenance)?;
            let db = ctx.engine.open(&dir.join("db"), &OpenSpec { sequence_offset: offset, create: false })?;
            prefix.install(Copy { generation, dir, sequence_offset: offset, db }, history);
            if prefix.name.is_catalogue()
                && let Err(cause) = ctx.catalogue.replaced(&prefix, diverged.is_some())
            {
                ctx.member.fatal(&format!("carry out the copied catalogue: {cause}"));
            }
            if prefix.is_dropped() {
                prefix.close();
                return Err(BootstrapError::Dropped);
            }
            prefix.set_phase(PrefixPhase::Open);
            shared.acks.restart();
            if let Some((generation, copy)) = old {
                let put_away = std::thread::Builder::new().name("retire".into());
                put_away.spawn(move || retire(&ctx, &prefix, generation, &copy, diverged))?;
            }
            Ok(())
        })
        .await
    }
}

/// Why the present copy is to be set aside once one with `history` has replaced it; `None` if everything in it is in that too,
/// or will be.
fn divergence(cause: &BootstrapCause, prefix: &Prefix, history: &EpochHistory) -> Option<String> {
    let last = prefix.position_at(prefix.copy()?.db.latest());
    if matches!(cause, BootstrapCause::Diverged { .. }) {
        return Some(reason_of(cause));
    }
    history.has_left(last).then(|| {
        let epoch = history.epoch_at(last.sequence);
        format!("diverged: its last record is {last}, and {}/{epoch} in the copy that replaced it", last.sequence)
    })
}

/// Whether a name that came from a peer stays in its folder.
fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

/// Opens a fetched copy and checks that it is what the source promised.
fn verify(ctx: &ReplicationCtx, copy: &std::path::Path, manifest: &Manifest) -> Result<EpochHistory, BootstrapError> {
    let spec = OpenSpec { sequence_offset: manifest.sequence_offset, create: false };
    // Its files came as they are at the source, which says nothing of whether they are whole there.
    let damaged = |error: EngineError| match error {
        EngineError::Corruption { action, cause } => {
            BootstrapError::Damaged { source_member: manifest.source, cause: format!("{action}: {cause}") }
        }
        other => other.into(),
    };
    let db = ctx.engine.open(copy, &spec).map_err(damaged)?;
    db.verify_checksums().map_err(damaged)?;
    let history = read_history(db.as_ref())?;
    let (latest, held) = (db.latest(), manifest.held_after);
    if latest < held.sequence {
        return Err(BootstrapError::Verify(format!("it ends at {latest}, before {}", held.sequence)));
    }
    if history.epoch_at(held.sequence) != held.epoch {
        let epoch = history.epoch_at(held.sequence);
        return Err(BootstrapError::Verify(format!(
            "its record {} is of epoch {epoch}, not {}",
            held.sequence, held.epoch
        )));
    }
    Ok(history)
}

/// The epoch records of a database.
fn read_history(db: &dyn Database) -> Result<EpochHistory, BootstrapError> {
    let mut records = Vec::new();
    let mut malformed = None;
    let (from, to) = EpochRecord::KEY_RANGE;
    db.snapshot().scan(Family::Meta, from, to, Direction::Forward, &mut |key, value| {
        match EpochRecord::decode(key, value) {
            Ok(record) => records.push(record),
            Err(error) => malformed = Some(error),
        }
        malformed.is_none()
    })?;
    match malformed {
        Some(error) => Err(BootstrapError::Verify(error.to_string())),
        None => EpochHistory::new(records).map_err(|e| BootstrapError::Verify(e.to_string())),
    }
}

/// Removes the old generation once its readers are done, or sets it aside if it has records that exist nowhere else.
fn retire(ctx: &ReplicationCtx, prefix: &Prefix, generation: u64, copy: &Weak<Copy>, diverged: Option<String>) {
    let deadline = std::time::Instant::now() + RETIRE_DEADLINE;
    while copy.strong_count() > 0 && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let done = match diverged {
        Some(why) => ctx.dirs.detach(&prefix.name, prefix.uuid, generation).map(|to| {
            tracing::warn!(prefix = %prefix.name, detached = %to.display(), %why, "set the diverged copy aside");
        }),
        None if copy.strong_count() > 0 => {
            tracing::warn!(prefix = %prefix.name, generation, "keep the old copy's files until the next start: it is still read");
            Ok(())
        }
        None => ctx.dirs.retire(&prefix.name, prefix.uuid, generation),
    };
    if let Err(error) = done {
        tracing::error!(prefix = %prefix.name, generation, %error, "put the old copy away");
    }
}

/// Waits until the stream has resumed, for a while: its own hold is there then.
async fn wait_for_stream(shared: Arc<Shared>, prefix: Arc<Prefix>) {
    let deadline = tokio::time::Instant::now() + RESUME_DEADLINE;
    while prefix.phase() != PrefixPhase::Streaming
        && tokio::time::Instant::now() < deadline
        && !shared.stop.is_cancelled()
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
