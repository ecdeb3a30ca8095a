//! One session with the upstream: carries messages between the wire, the pure state machine and the apply threads.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parovoz_dataplane_core::follower::{
    BootstrapCause, Effect, Event, Miss, ReceivedBatch, Session, StreamState, check_upstream,
};
use parovoz_dataplane_core::types::{DataUuid, Position, PrefixUuid, Reign, ReignRef};
use parovoz_proto::v1;
use parovoz_proto::v1::follower_message::Message as ToUpstream;
use parovoz_proto::v1::replication_client::ReplicationClient;
use parovoz_proto::v1::upstream_message::Message as FromUpstream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::ReplicationCtx;
use super::apply::{Report, SessionLink};
use super::client::{LinkError, Shared, connect};
use super::parcel::Unpacker;
use super::progress::SessionPhase;
use super::wire::{
    WireError, bundle_from, frame_from, hello_from, hello_to, latest_from, position_to, refusal_from, reign_from,
    reign_ref_from,
};
use crate::clock;
use crate::store::Endpoint;
use crate::store::prefix::{Prefix, PrefixPhase};

/// Messages that may wait for the upstream besides those of the prefixes: credit and what became durable.
const QUEUE: usize = 1024;
/// Messages that may wait for one prefix: a session begins with a resume for each, and each may be cancelled and resumed again.
const QUEUE_PER_PREFIX: usize = 4;
/// However many prefixes are allowed.
const MAX_QUEUE: usize = 1 << 20;
/// How often waiting prefixes are looked at.
const TICK: Duration = Duration::from_millis(50);
/// Prefixes named in one line of lag.
const LAG_LINES: usize = 5;
/// After so long a question about the round trip is given up.
const PROBE_PATIENCE: Duration = Duration::from_secs(10);
/// Pause between warnings about lag.
const WARN_PAUSE: Duration = Duration::from_secs(10);

/// Runs one session. `Ok` = the orders changed or the follower stops; an error asks for a pause before the next.
pub(super) async fn run(shared: &Arc<Shared>, upstream: &Endpoint) -> Result<(), LinkError> {
    let Some((mut live, incoming)) = open(shared, upstream).await? else { return Ok(()) };
    let ended = live.stream(incoming).await;
    // What was received under this session must not be applied under the next.
    live.link.end();
    shared.appliers.barrier().await;
    live.close();
    ended
}

/// Connects, exchanges hellos, promises the upstream's reign if it is new. `None` = the orders changed meanwhile.
async fn open(
    shared: &Arc<Shared>,
    upstream: &Endpoint,
) -> Result<Option<(Live, Streaming<v1::UpstreamMessage>)>, LinkError> {
    let ctx = &shared.ctx;
    let opening = async {
        let channel = connect(ctx, upstream).await?;
        let prefixes = ctx.store.settings.load().max_prefixes.max(ctx.store.prefixes().by_uuid.len());
        let (tx, rx) = mpsc::channel(queue_for(prefixes));
        let own = ctx.own(upstream.data_uuid);
        // The channel is new and empty.
        let _ = tx.try_send(v1::FollowerMessage { message: Some(ToUpstream::Hello(hello_to(&own, None))) });
        let mut client = ReplicationClient::new(channel);
        let asked = Instant::now();
        let mut incoming = client.stream(ReceiverStream::new(rx)).await?.into_inner();
        let Some(FromUpstream::Hello(hello)) = incoming.message().await?.ok_or(LinkError::Closed)?.message else {
            return Err(WireError::Missing("hello").into());
        };
        Ok::<_, LinkError>((tx, incoming, hello, millis(asked)))
    };
    let (tx, incoming, hello, round_trip_ms) = tokio::select! {
        () = shared.stop.cancelled() => return Ok(None),
        // A dead upstream must not keep this member from the next one.
        () = reordered(ctx, upstream) => return Ok(None),
        opened = tokio::time::timeout(ctx.tuning.connect * 2, opening) => opened.map_err(|_| LinkError::Silent)??,
    };
    let peer = hello_from(&hello)?;
    let own = ctx.own(upstream.data_uuid);
    let theirs = check_upstream(&own, &peer)?;
    let pull = ctx.store.role().pull.clone();
    let reign = match (theirs, own.reign) {
        (None, Some(ours)) if pull.is_some() => ours,
        // Under a seal only an order to pull lets anything in from one that is only sealed as well.
        _ if hello.whole_reign.is_none() => return Err(LinkError::OnlySealed),
        (None, Some(ours)) if ctx.store.role().sealed.is_none() => ours,
        (newer, ours) => {
            let newer = newer.or(ours).ok_or(WireError::Missing("reign"))?;
            tokio::select! {
                // Whoever stops the follower may hold what the promise needs.
                () = shared.stop.cancelled() => return Ok(None),
                promised = promise(ctx, &hello, newer) => promised?,
            }
        }
    };
    let (link, reports) = SessionLink::new();
    let mut effects = Vec::new();
    let settings = ctx.store.settings.load();
    let mut core = Session::new(reign, settings.min_batch_bytes, settings.max_batch_bytes, ctx.largest_batch());
    core.step(clock::boot_ms(), Event::RoundTrip { ms: round_trip_ms }, &mut effects)?;
    ctx.upstreams.store(Arc::new(peer.path));
    ctx.stats.sessions.inc();
    let upstream_is_primary = ctx.store.role().reign.as_ref().is_some_and(|r| r.primary == peer.data_uuid);
    tracing::info!(upstream = %peer.data_uuid, address = %upstream.replication, epoch = %reign.epoch, "follow upstream");
    let mut live = Live {
        shared: shared.clone(),
        upstream: upstream.clone(),
        pull,
        peer: peer.data_uuid,
        upstream_is_primary,
        reign,
        core,
        tx,
        link,
        reports,
        prefixes: HashMap::new(),
        told_durable: HashMap::new(),
        renewed: Instant::now(),
        effects: Vec::new(),
        unpacker: Unpacker::default(),
        probe: Probe { number: 0, asked: None, busy_us: shared.appliers.busy_us() },
        lag: LagLog { applied: HashMap::new(), at: Instant::now(), warned: None },
    };
    for effect in effects {
        live.perform(effect)?;
    }
    Ok(Some((live, incoming)))
}

/// Room for everything that so many prefixes may have to say at once.
fn queue_for(prefixes: usize) -> usize {
    QUEUE + prefixes.saturating_mul(QUEUE_PER_PREFIX).min(MAX_QUEUE)
}

/// Returns once the orders name another upstream, or another reign is promised.
async fn reordered(ctx: &ReplicationCtx, upstream: &Endpoint) {
    let mut changes = ctx.store.changes();
    let promise = ctx.store.role().promise();
    loop {
        let role = ctx.store.role();
        if role.upstream.as_ref() != Some(upstream) || role.promise() != promise {
            return;
        }
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Promises a newer reign before anything of it is accepted.
async fn promise(ctx: &Arc<ReplicationCtx>, hello: &v1::Hello, newer: ReignRef) -> Result<ReignRef, LinkError> {
    let whole: Reign = reign_from(hello.whole_reign.as_ref().ok_or(WireError::Missing("whole_reign"))?)?;
    if whole.to_ref() != newer {
        return Err(WireError::Malformed("whole_reign").into());
    }
    let hooks = ctx.clone();
    let promised = tokio::task::spawn_blocking(move || hooks.member.promise(&whole)).await;
    promised.map_err(|_| LinkError::Promise("cut off".into()))?.map_err(LinkError::Promise)?;
    if ctx.store.role().promise() == Some(newer) {
        Ok(newer)
    } else {
        Err(LinkError::Promise("the reign changed again meanwhile".into()))
    }
}

#[derive(Debug)]
struct Live {
    shared: Arc<Shared>,
    upstream: Endpoint,
    /// Only these prefixes, under a seal.
    pull: Option<Arc<BTreeMap<PrefixUuid, Position>>>,
    peer: DataUuid,
    upstream_is_primary: bool,
    reign: ReignRef,
    core: Session,
    tx: mpsc::Sender<v1::FollowerMessage>,
    link: Arc<SessionLink>,
    reports: mpsc::UnboundedReceiver<Report>,
    prefixes: HashMap<PrefixUuid, Arc<Prefix>>,
    told_durable: HashMap<PrefixUuid, Position>,
    renewed: Instant,
    effects: Vec<Effect>,
    unpacker: Unpacker,
    probe: Probe,
    lag: LagLog,
}

/// Questions to the upstream that tell the round trip.
#[derive(Debug)]
struct Probe {
    number: u64,
    /// When the last one was sent; `None` = it was answered.
    asked: Option<Instant>,
    /// How long the appliers had worked by then.
    busy_us: Vec<u64>,
}

impl Live {
    fn ctx(&self) -> &ReplicationCtx {
        &self.shared.ctx
    }

    async fn stream(&mut self, mut incoming: Streaming<v1::UpstreamMessage>) -> Result<(), LinkError> {
        let shared = self.shared.clone();
        let peer = self.peer;
        shared.board.update(|s| {
            s.phase = SessionPhase::Connected;
            s.upstream = Some(peer);
            s.reason.clear();
        });
        let mut changes = shared.ctx.store.changes();
        let mut version = shared.ctx.store.version();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let silence = shared.ctx.tuning.silence;
        let mut heard = tokio::time::Instant::now();
        self.reconcile()?;
        shared.ctx.store.note_change();
        loop {
            tokio::select! {
                () = shared.stop.cancelled() => return Ok(()),
                message = incoming.message() => {
                    heard = tokio::time::Instant::now();
                    let message = message?.ok_or(LinkError::Closed)?;
                    self.message(message.message.ok_or(WireError::Missing("message"))?)?;
                }
                Some(report) = self.reports.recv() => self.report(report)?,
                () = shared.look.notified() => self.reconcile()?,
                _ = changes.changed() => {
                    let now = shared.ctx.store.version();
                    if now != version {
                        version = now;
                        if !self.orders_stand() {
                            return Ok(());
                        }
                        self.reconcile()?;
                    }
                }
                _ = tick.tick() => {
                    if heard.elapsed() > silence {
                        return Err(LinkError::Quiet(silence));
                    }
                    self.step(Event::Tick)?;
                    self.housekeeping()?;
                }
            }
        }
    }

    /// Whether this session is still what the orders ask for.
    fn orders_stand(&self) -> bool {
        let role = self.ctx().store.role();
        !role.is_primary
            && role.upstream.as_ref() == Some(&self.upstream)
            && role.promise() == Some(self.reign)
            && role.pull == self.pull
    }

    /// Makes the session follow exactly the prefixes that there are and that are not being copied.
    fn reconcile(&mut self) -> Result<(), LinkError> {
        let map = self.ctx().store.prefixes();
        let gone: Vec<PrefixUuid> =
            self.prefixes.keys().filter(|uuid| !map.by_uuid.contains_key(uuid)).copied().collect();
        for uuid in gone {
            self.prefixes.remove(&uuid);
            self.told_durable.remove(&uuid);
            self.step(Event::Forget(uuid))?;
        }
        let pull = self.pull.clone();
        let wanted = |uuid: &PrefixUuid| pull.as_ref().is_none_or(|pull| pull.contains_key(uuid));
        for (&uuid, prefix) in map.by_uuid.iter().filter(|(uuid, _)| wanted(uuid)) {
            self.prefixes.entry(uuid).or_insert_with(|| prefix.clone());
            let state = self.core.state(uuid);
            if prefix.lacks_room() && !self.shared.bootstraps.contains(uuid) {
                continue;
            }
            let has_copy = prefix.copy().is_some();
            if !has_copy && !self.shared.bootstraps.contains(uuid) {
                self.shared.bootstraps.enqueue(uuid, BootstrapCause::Missing);
            }
            if self.shared.bootstraps.contains(uuid) {
                if state != Some(StreamState::Bootstrapping) {
                    self.step(Event::BootstrapStarted(uuid))?;
                }
            } else if matches!(state, None | Some(StreamState::Bootstrapping | StreamState::Stopped(_))) {
                let after = prefix.position_at(prefix.applied());
                self.step(Event::Follow { prefix: uuid, after })?;
            }
        }
        Ok(())
    }

    fn step(&mut self, event: Event) -> Result<(), LinkError> {
        let mut effects = std::mem::take(&mut self.effects);
        let stepped = self.core.step(clock::boot_ms(), event, &mut effects);
        let mut effects_left = effects.drain(..).peekable();
        while let Some(effect) = effects_left.next() {
            let Effect::Apply { prefix, batch } = effect else {
                self.perform(effect)?;
                continue;
            };
            // What came together is handed on together.
            let mut batches = vec![batch];
            while let Some(Effect::Apply { batch, .. }) =
                effects_left.next_if(|next| matches!(next, Effect::Apply { prefix: of, .. } if *of == prefix))
            {
                batches.push(batch);
            }
            self.apply(prefix, batches);
        }
        drop(effects_left);
        self.effects = effects;
        Ok(stepped?)
    }

    fn message(&mut self, message: FromUpstream) -> Result<(), LinkError> {
        match message {
            FromUpstream::Hello(_) => Err(WireError::Malformed("a second hello").into()),
            FromUpstream::Frame(mut frame) => {
                self.unpacker.frame(&mut frame)?;
                self.count(frame.payload.len());
                self.step(Event::Frame(frame_from(frame)?))
            }
            FromUpstream::Bundle(mut bundle) => {
                self.unpacker.bundle(&mut bundle)?;
                self.count(bundle.payload.len());
                self.step(Event::Bundle(bundle_from(bundle)?))
            }
            FromUpstream::Refusal(refusal) => {
                let (prefix, attempt, reason) = refusal_from(refusal)?;
                tracing::debug!(%prefix, ?reason, "the upstream refuses a prefix");
                self.step(Event::Refusal { prefix, attempt, reason })
            }
            FromUpstream::Beat(beat) => {
                let reign = reign_ref_from(beat.reign.as_ref().ok_or(WireError::Missing("reign"))?)?;
                self.step(Event::Beat { reign, latest: latest_from(&beat.latest)? })?;
                if beat.probe == self.probe.number
                    && let Some(asked) = self.probe.asked.take()
                {
                    self.step(Event::RoundTrip { ms: millis(asked) })?;
                }
                self.shared.set_primary_hint(reign, &beat.primary_replication_address);
                if self.upstream_is_primary {
                    self.ctx().store.note_heard_primary();
                }
                Ok(())
            }
        }
    }

    fn count(&self, bytes: usize) {
        let stats = &self.ctx().stats;
        stats.frames_received.inc();
        stats.bytes_received.add(bytes as u64);
    }

    fn report(&mut self, report: Report) -> Result<(), LinkError> {
        match report {
            Report::Applied { prefix, cost, busy_us, pass_us } => {
                self.step(Event::Applied { prefix, cost, busy_us, pass_us })
            }
            Report::Failed { prefix, attempt, at, cost } => self.step(Event::ApplyFailed { prefix, attempt, at, cost }),
        }
    }

    fn perform(&mut self, effect: Effect) -> Result<(), LinkError> {
        match effect {
            Effect::Resume { prefix, after, attempt } => {
                let resume = v1::Resume { prefix_uuid: prefix.to_string(), after: Some(position_to(after)), attempt };
                self.send(ToUpstream::Resume(resume))
            }
            Effect::Cancel(prefix) => self.send(ToUpstream::CancelPrefixUuid(prefix.to_string())),
            Effect::Grant(bytes) => self.send(ToUpstream::Credit(v1::Credit { bytes, ..v1::Credit::default() })),
            Effect::Apply { prefix, batch } => {
                self.apply(prefix, vec![batch]);
                Ok(())
            }
            Effect::StartBootstrap { prefix, cause } => {
                self.start_bootstrap(prefix, cause);
                Ok(())
            }
            Effect::UpstreamLatest { prefix, position } => {
                if let Some(prefix) = self.prefixes.get(&prefix) {
                    prefix.set_upstream_latest(position);
                }
                Ok(())
            }
            Effect::Streams(prefix) => {
                if let Some(prefix) = self.prefixes.get(&prefix) {
                    prefix.set_phase(PrefixPhase::Streaming);
                    self.ctx().store.note_change();
                }
                Ok(())
            }
            Effect::Missed { prefix, miss } => {
                if miss == Miss::NewerEpoch {
                    tracing::debug!(%prefix, "leave a batch of the upstream's new reign to the next session");
                } else {
                    tracing::warn!(%prefix, ?miss, "refuse a batch of the upstream");
                }
                let stats = &self.ctx().stats;
                match miss {
                    Miss::Gap => stats.gaps.inc(),
                    Miss::Crc => stats.crc_errors.inc(),
                    Miss::Malformed => stats.malformed.inc(),
                    Miss::NewerEpoch => {}
                }
                Ok(())
            }
        }
    }

    /// Hands batches that follow each other to the apply thread.
    fn apply(&self, prefix: PrefixUuid, batches: Vec<ReceivedBatch>) {
        let (Some(prefix), Some(last)) = (self.prefixes.get(&prefix), batches.last()) else { return };
        let position = Position { epoch: last.epoch, sequence: last.first.last_of(last.count) };
        prefix.note_received(position.sequence);
        if prefix.upstream_latest() < position {
            prefix.set_upstream_latest(position);
        }
        self.shared.appliers.apply(&self.link, prefix, batches);
    }

    fn start_bootstrap(&mut self, uuid: PrefixUuid, cause: BootstrapCause) {
        let Some(prefix) = self.prefixes.get(&uuid) else { return };
        let reason = super::bootstrap::reason_of(&cause);
        tracing::warn!(prefix = %prefix.name, %reason, "stop stream: the prefix is copied anew");
        if matches!(cause, BootstrapCause::Gap { .. }) {
            self.ctx().stats.gaps.inc();
        }
        prefix.set_phase(PrefixPhase::Stopped { reason });
        self.shared.bootstraps.enqueue(uuid, cause);
        // The session takes notice once this step is over.
        self.shared.look.notify_one();
        self.ctx().store.note_change();
    }

    fn send(&self, message: ToUpstream) -> Result<(), LinkError> {
        self.tx.try_send(v1::FollowerMessage { message: Some(message) }).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => LinkError::Overflow,
            mpsc::error::TrySendError::Closed(_) => LinkError::Closed,
        })
    }

    /// Once a second: what became durable, for the upstream's hold; lag; the status.
    fn housekeeping(&mut self) -> Result<(), LinkError> {
        let heartbeat = self.ctx().tuning.heartbeat;
        if self.lag.at.elapsed() < heartbeat {
            return Ok(());
        }
        let mut durable = Vec::new();
        for (uuid, prefix) in &self.prefixes {
            let at = if self.ctx().syncs() { prefix.durable() } else { prefix.applied() };
            let position = prefix.position_at(at);
            if self.core.state(*uuid) == Some(StreamState::Streaming) && self.told_durable.get(uuid) != Some(&position)
            {
                self.told_durable.insert(*uuid, position);
                durable.push(v1::PrefixLatest { prefix_uuid: uuid.to_string(), position: Some(position_to(position)) });
            }
        }
        // A hold that is not renewed ends: an idle follower says everything anew now and then.
        let renewal = Duration::from_secs(self.ctx().store.settings.load().hold_timeout_seconds) / 4;
        if self.renewed.elapsed() > renewal {
            self.renewed = Instant::now();
            self.told_durable.clear();
        }
        self.ask(durable)?;
        let warning = self.ctx().store.settings.load().lag_warning_sequences;
        self.lag.tell(&self.prefixes, warning);
        let states = self.core.prefixes().collect();
        self.shared.board.update(|s| s.prefixes = states);
        Ok(())
    }

    /// Tells what became durable, and asks for the round trip.
    fn ask(&mut self, durable: Vec<v1::PrefixLatest>) -> Result<(), LinkError> {
        let busy_us = self.shared.appliers.busy_us();
        let busiest = busy_us.iter().zip(&self.probe.busy_us).map(|(now, then)| now.saturating_sub(*then)).max();
        let passed = u64::try_from(self.lag.at.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
        let busy = (busiest.unwrap_or(0).saturating_mul(1000) / passed).min(1000);
        self.probe.busy_us = busy_us;
        // One question at a time: an upstream of the first version never answers.
        if self.probe.asked.is_none_or(|at| at.elapsed() > PROBE_PATIENCE) {
            self.probe.number += 1;
            self.probe.asked = Some(Instant::now());
        }
        let applier_idle_permille = 1000 - u32::try_from(busy).unwrap_or(1000);
        let credit = v1::Credit { bytes: 0, durable, probe: self.probe.number, applier_idle_permille };
        self.send(ToUpstream::Credit(credit))
    }

    fn close(&mut self) {
        for prefix in self.prefixes.values() {
            if prefix.phase() == PrefixPhase::Streaming {
                prefix.set_phase(PrefixPhase::Open);
            }
        }
        self.ctx().upstreams.store(Arc::default());
        self.shared.board.update(|s| {
            s.phase = SessionPhase::Connecting;
            s.prefixes.clear();
        });
        self.ctx().store.note_change();
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// The lines about what came, at most once a second.
#[derive(Debug)]
struct LagLog {
    applied: HashMap<PrefixUuid, u64>,
    at: Instant,
    warned: Option<Instant>,
}

impl LagLog {
    fn tell(&mut self, prefixes: &HashMap<PrefixUuid, Arc<Prefix>>, warning: u64) {
        let passed = self.at.elapsed();
        self.at = Instant::now();
        self.applied.retain(|uuid, _| prefixes.contains_key(uuid));
        let (mut moved, mut behind) = (Vec::new(), Vec::new());
        for (uuid, prefix) in prefixes {
            let now = prefix.applied().0;
            let before = self.applied.insert(*uuid, now).unwrap_or(now);
            if now > before {
                moved.push((now - before, prefix));
            }
            let lag = prefix.upstream_latest().sequence.0.saturating_sub(now);
            if lag > warning {
                behind.push((lag, prefix));
            }
        }
        moved.sort_unstable_by_key(|(n, _)| std::cmp::Reverse(*n));
        for (updates, prefix) in moved.iter().take(LAG_LINES) {
            tracing::info!(
                "{updates} updates for '{}' in the last {} s, next sequence {}",
                prefix.name,
                passed.as_secs().max(1),
                prefix.applied().next()
            );
        }
        if moved.len() > LAG_LINES {
            tracing::info!(
                "updates for {} more prefixes in the last {} s",
                moved.len() - LAG_LINES,
                passed.as_secs().max(1)
            );
        }
        behind.sort_unstable_by_key(|(n, _)| std::cmp::Reverse(*n));
        if let Some((lag, prefix)) = behind.first()
            && self.warned.is_none_or(|at| at.elapsed() > WARN_PAUSE)
        {
            self.warned = Some(Instant::now());
            tracing::warn!(prefix = %prefix.name, lag, prefixes = behind.len(), "too big difference to the upstream");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_of_as_many_prefixes_as_a_store_may_have_can_begin() {
        for prefixes in [0, 1, 1_000, 5_000, 100_000] {
            assert!(queue_for(prefixes) >= 2 * prefixes + 100, "{prefixes}");
        }
        assert!(queue_for(usize::MAX) <= 2 * MAX_QUEUE, "it is bounded whatever is set");
    }
}
