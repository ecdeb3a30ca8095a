//! One follower's stream: sends what its prefixes have, by credit, in turns, from the ring or from the WAL.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parovoz_dataplane_core::budget::{CompressionChoice, TokenBucket};
use parovoz_dataplane_core::follower::PeerHello;
use parovoz_dataplane_core::history::ResumeCheck;
use parovoz_dataplane_core::types::{DataUuid, Position, PrefixUuid, ReignRef, Sequence};
use parovoz_proto::v1;
use parovoz_proto::v1::refusal::Reason;
use parovoz_proto::v1::upstream_message::Message;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::catchup::{self, Catchup, Chunk, End, Manner};
use super::holds::{Hold, Owner};
use super::parcel::{Packer, Parcel};
use super::wire::{FrameHead, position_to, reign_ref_to};
use super::{Endpoint, ReplicationCtx};
use crate::clock;
use crate::store::prefix::{Prefix, PrefixPhase};
use crate::store::ring::RingRead;
use crate::store::signal::{SessionSignal, Subscription};

/// Bytes of one prefix before the next has its turn.
const TURN_BYTES: usize = 256 << 10;
/// Beats that only say "caught up" are at least this far apart.
const CAUGHT_UP_PAUSE_MS: u64 = 20;

/// What the reader of the follower's messages passes on; credit goes beside it.
#[derive(Debug)]
pub(super) enum Control {
    Resume { prefix: PrefixUuid, after: Position, attempt: u64 },
    Cancel(PrefixUuid),
    Durable(Vec<(PrefixUuid, Position)>),
}

/// Shared by the reader of the follower's messages and the sender.
#[derive(Debug, Default)]
pub(super) struct Link {
    pub credit: AtomicI64,
    pub signal: Arc<SessionSignal>,
    /// The follower's latest question about the round trip, until it is answered; 0 = none.
    pub probe: AtomicU64,
    /// What it said of its applier then.
    pub applier_idle_permille: AtomicU32,
}

/// Where the stream of one prefix is.
#[derive(Debug)]
struct Cursor {
    prefix: Arc<Prefix>,
    head: FrameHead,
    sent: Sequence,
    subscription: Arc<Subscription>,
    /// Its next batches come from the WAL.
    catching_up: bool,
    /// The latest position that a beat told.
    told: Position,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Sender {
    pub ctx: Arc<ReplicationCtx>,
    pub follower: DataUuid,
    pub reign: ReignRef,
    pub out: mpsc::Sender<Result<v1::UpstreamMessage, Status>>,
    pub control: mpsc::Receiver<Control>,
    pub link: Arc<Link>,
    pub stop: CancellationToken,
    /// Whom this member followed, and those whom they followed, when it told the follower; itself first.
    pub told: Vec<DataUuid>,
    /// Whether the follower understands bundles and compression.
    bundles: bool,
    cursors: HashMap<PrefixUuid, Cursor>,
    ready: VecDeque<PrefixUuid>,
    is_ready: HashSet<PrefixUuid>,
    catchup: Option<Catchup>,
    catchup_queue: VecDeque<PrefixUuid>,
    caught_up: HashSet<PrefixUuid>,
    caught_up_at_ms: u64,
    rate: TokenBucket,
    /// Nothing more is sent before.
    rate_until_ms: u64,
    choice: CompressionChoice,
    /// What `choice` says, for the reader of the WAL.
    compress: Arc<AtomicBool>,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Cut {
    /// It went away.
    #[error("the follower closed its stream")]
    Gone,
    /// It takes nothing.
    #[error("the follower took nothing for {0:?}")]
    Slow(Duration),
    /// This member's role changed.
    #[error("this member's reign or upstream changed")]
    RoleChanged,
    /// The process stops.
    #[error("this member stops")]
    Stopping,
}

impl Sender {
    pub fn new(
        ctx: Arc<ReplicationCtx>,
        peer: &PeerHello,
        reign: ReignRef,
        out: mpsc::Sender<Result<v1::UpstreamMessage, Status>>,
        control: mpsc::Receiver<Control>,
        link: Arc<Link>,
        stop: CancellationToken,
    ) -> Self {
        let now_ms = clock::boot_ms();
        let rate = TokenBucket::new(ctx.store.settings.load().max_bytes_per_second, now_ms);
        Self {
            ctx,
            follower: peer.data_uuid,
            bundles: peer.takes_bundles(),
            reign,
            out,
            control,
            link,
            stop,
            told: Vec::new(),
            cursors: HashMap::new(),
            ready: VecDeque::new(),
            is_ready: HashSet::new(),
            catchup: None,
            catchup_queue: VecDeque::new(),
            caught_up: HashSet::new(),
            caught_up_at_ms: 0,
            rate,
            rate_until_ms: 0,
            choice: CompressionChoice::new(now_ms),
            compress: Arc::default(),
        }
    }

    /// Runs until the follower goes or must go.
    pub async fn run(mut self) {
        let cut = self.stream().await.err().unwrap_or(Cut::Gone);
        for cursor in self.cursors.values() {
            cursor.prefix.unsubscribe(&cursor.subscription);
        }
        if matches!(cut, Cut::Slow(_)) {
            self.ctx.stats.slow_followers_cut.inc();
            tracing::warn!(follower = %self.follower, %cut, "end stream");
        } else {
            tracing::info!(follower = %self.follower, %cut, "end stream");
        }
        // The follower may be gone already.
        let _ = self.out.try_send(Err(Status::unavailable(cut.to_string())));
    }

    async fn stream(&mut self) -> Result<(), Cut> {
        let mut beat = tokio::time::interval(self.ctx.tuning.heartbeat);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let signal = self.link.signal.clone();
        let stop = self.stop.clone();
        let out = self.out.clone();
        loop {
            self.one_round().await?;
            let may_send = self.may_send();
            let more = may_send && !self.ready.is_empty();
            let say_caught_up = !self.caught_up.is_empty();
            let rate_pause = self.rate_until_ms.saturating_sub(clock::boot_ms());
            let wanting = (self.catchup.is_some() && !may_send).then(Instant::now);
            tokio::select! {
                () = stop.cancelled() => return Err(Cut::Stopping),
                () = out.closed() => return Err(Cut::Gone),
                control = self.control.recv() => self.control(control.ok_or(Cut::Gone)?).await?,
                () = signal.moved() => self.collect(),
                chunk = next_chunk(&mut self.catchup), if may_send => self.chunk(chunk).await?,
                _ = beat.tick() => self.beat().await?,
                () = tokio::time::sleep(Duration::from_millis(rate_pause)), if rate_pause > 0 => {}
                () = tokio::time::sleep(Duration::from_millis(CAUGHT_UP_PAUSE_MS)), if say_caught_up && !more => {
                    self.tell_caught_up().await?;
                }
                () = std::future::ready(()), if more => {}
            }
            if let Some(since) = wanting {
                self.choice.waited(millis(since));
            }
            self.answer_probe().await?;
        }
    }

    /// Whether the follower granted something and no limit of bytes a second is in the way.
    fn may_send(&self) -> bool {
        self.has_credit() && clock::boot_ms() >= self.rate_until_ms
    }

    fn has_credit(&self) -> bool {
        self.link.credit.load(Ordering::Acquire) > 0
    }

    /// Puts the prefixes that moved into the queue.
    fn collect(&mut self) {
        for prefix in self.link.signal.take() {
            self.make_ready(prefix);
        }
    }

    fn make_ready(&mut self, prefix: PrefixUuid) {
        if self.cursors.contains_key(&prefix) && self.is_ready.insert(prefix) {
            self.ready.push_back(prefix);
        }
    }

    /// Gives each prefix that has something one turn.
    async fn one_round(&mut self) -> Result<(), Cut> {
        for _ in 0..self.ready.len() {
            if !self.may_send() {
                return Ok(());
            }
            let Some(prefix) = self.ready.pop_front() else { return Ok(()) };
            self.is_ready.remove(&prefix);
            self.turn(prefix).await?;
        }
        if self.ready.is_empty()
            && !self.caught_up.is_empty()
            && clock::boot_ms() >= self.caught_up_at_ms + CAUGHT_UP_PAUSE_MS
        {
            self.tell_caught_up().await?;
        }
        Ok(())
    }

    async fn turn(&mut self, uuid: PrefixUuid) -> Result<(), Cut> {
        let Some(cursor) = self.cursors.get(&uuid) else { return Ok(()) };
        if cursor.subscription.is_cut() || cursor.prefix.is_dropped() {
            return self.end_prefix(uuid, busy("its copy here was exchanged or dropped")).await;
        }
        if cursor.catching_up {
            return Ok(());
        }
        cursor.subscription.rearm();
        let durable = if self.ctx.syncs() { cursor.prefix.durable() } else { Sequence(u64::MAX) };
        match cursor.prefix.ring().read(cursor.sent, TURN_BYTES) {
            RingRead::UpToDate => {
                self.caught_up.insert(uuid);
            }
            RingRead::Older => {
                if durable > cursor.sent {
                    self.begin_catchup(uuid);
                }
            }
            RingRead::Batches(batches) => {
                let mut packer = Packer::default();
                let sendable = batches.iter().take_while(|entry| entry.last() <= durable);
                let all = sendable.inspect(|entry| packer.add(entry, self.bundles)).count() == batches.len();
                packer.close();
                for parcel in packer.take() {
                    if !self.may_send() {
                        self.make_ready(uuid);
                        return Ok(());
                    }
                    self.send_parcel(uuid, parcel).await?;
                }
                // What is not durable yet is signalled once it is.
                if all {
                    self.make_ready(uuid);
                }
            }
        }
        Ok(())
    }

    async fn send_parcel(&mut self, uuid: PrefixUuid, parcel: Parcel) -> Result<(), Cut> {
        let Some(cursor) = self.cursors.get_mut(&uuid) else { return Ok(()) };
        cursor.sent = parcel.last;
        let cost = i64::try_from(parcel.cost).unwrap_or(i64::MAX);
        self.link.credit.fetch_sub(cost, Ordering::AcqRel);
        let now_ms = clock::boot_ms();
        let own_pause = self.rate.take(parcel.wire, now_ms);
        let pause = self.ctx.total_rate.lock().take(parcel.wire, now_ms).max(own_pause);
        self.rate_until_ms = self.rate_until_ms.max(now_ms + pause);
        self.ctx.stats.bytes_sent.add(parcel.raw);
        self.ctx.stats.wire_bytes_sent.add(parcel.wire);
        if cursor.catching_up {
            self.choice.sent(parcel.raw, parcel.wire, parcel.compress_us);
        }
        for message in parcel.messages(&cursor.head) {
            self.send(message).await?;
            self.ctx.stats.frames_sent.inc();
        }
        Ok(())
    }

    async fn send(&mut self, message: Message) -> Result<(), Cut> {
        let deadline = self.ctx.tuning.send_deadline;
        let message = match self.out.try_send(Ok(v1::UpstreamMessage { message: Some(message) })) {
            Ok(()) => return Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(Cut::Gone),
            Err(mpsc::error::TrySendError::Full(message)) => message,
        };
        let since = Instant::now();
        let sent = tokio::time::timeout(deadline, self.out.send(message)).await;
        if self.catchup.is_some() {
            self.choice.waited(millis(since));
        }
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Cut::Gone),
            Err(_) => Err(Cut::Slow(deadline)),
        }
    }

    fn begin_catchup(&mut self, uuid: PrefixUuid) {
        if let Some(cursor) = self.cursors.get_mut(&uuid) {
            cursor.catching_up = true;
            self.catchup_queue.push_back(uuid);
            self.next_catchup();
        }
    }

    /// Starts the next read if none is under way.
    fn next_catchup(&mut self) {
        while self.catchup.is_none() {
            let Some(uuid) = self.catchup_queue.pop_front() else { return };
            if let Some(cursor) = self.cursors.get(&uuid).filter(|c| c.catching_up) {
                let manner =
                    Manner { durable_only: self.ctx.syncs(), bundles: self.bundles, compress: self.compress.clone() };
                self.catchup = Some(catchup::start(cursor.prefix.clone(), cursor.head.attempt, cursor.sent, manner));
            }
        }
    }

    async fn chunk(&mut self, chunk: Option<Chunk>) -> Result<(), Cut> {
        let Some((uuid, attempt)) = self.catchup.as_ref().map(|c| (c.prefix, c.attempt)) else { return Ok(()) };
        let current = self.cursors.get(&uuid).is_some_and(|c| c.head.attempt == attempt && c.catching_up);
        match chunk {
            Some(Chunk::Parcel(parcel)) if current => {
                self.ctx.stats.catchup_bytes.add(parcel.raw);
                self.send_parcel(uuid, parcel).await?;
                self.judge_compression();
                if self.cursors.get(&uuid).is_some_and(|c| c.subscription.is_cut()) {
                    self.end_prefix(uuid, busy("its copy here was exchanged")).await?;
                }
                return Ok(());
            }
            Some(Chunk::End(End::Gap(oldest))) if current => {
                self.ctx.stats.too_old_sent.inc();
                let reason = Reason::TooOld(v1::refusal::TooOld { oldest_sequence: oldest.0 });
                self.end_prefix(uuid, reason).await?;
            }
            Some(Chunk::End(End::Failed(error))) if current => {
                tracing::error!(follower = %self.follower, prefix = %uuid, %error, "read WAL for a follower");
                self.end_prefix(uuid, busy("its WAL can't be read here")).await?;
            }
            Some(Chunk::End(End::Pause)) | None if current => {
                if let Some(cursor) = self.cursors.get_mut(&uuid) {
                    cursor.catching_up = false;
                }
                self.make_ready(uuid);
            }
            _ => {}
        }
        self.catchup = None;
        self.next_catchup();
        Ok(())
    }

    fn judge_compression(&mut self) {
        if self.bundles {
            self.compress.store(self.choice.judge(clock::boot_ms()), Ordering::Relaxed);
        }
    }

    /// Answers the follower's question about the round trip.
    async fn answer_probe(&mut self) -> Result<(), Cut> {
        let probe = self.link.probe.swap(0, Ordering::AcqRel);
        if probe == 0 {
            return Ok(());
        }
        self.choice.follower_idle(self.link.applier_idle_permille.load(Ordering::Relaxed));
        self.send_beat(|_| false, probe).await
    }

    async fn control(&mut self, control: Control) -> Result<(), Cut> {
        match control {
            Control::Resume { prefix, after, attempt } => self.resume(prefix, after, attempt).await,
            Control::Cancel(prefix) => {
                self.forget(prefix);
                Ok(())
            }
            Control::Durable(positions) => {
                let expires_ms = self.ctx.hold_expiry_ms();
                let mut holds = self.ctx.holds.lock();
                for (prefix, position) in positions.into_iter().filter(|(p, _)| self.cursors.contains_key(p)) {
                    let owner = Owner::Follower(self.follower);
                    holds.put(Hold { owner, prefix: Some(prefix), after: position.sequence, expires_ms });
                }
                Ok(())
            }
        }
    }

    fn forget(&mut self, prefix: PrefixUuid) {
        if let Some(cursor) = self.cursors.remove(&prefix) {
            cursor.prefix.unsubscribe(&cursor.subscription);
        }
        if self.is_ready.remove(&prefix) {
            self.ready.retain(|p| *p != prefix);
        }
        self.caught_up.remove(&prefix);
        if self.catchup.as_ref().is_some_and(|c| c.prefix == prefix) {
            self.catchup = None;
        }
        self.next_catchup();
    }

    async fn end_prefix(&mut self, prefix: PrefixUuid, reason: Reason) -> Result<(), Cut> {
        let attempt = self.cursors.get(&prefix).map_or(0, |c| c.head.attempt);
        self.forget(prefix);
        self.refuse(prefix, attempt, reason).await
    }

    async fn refuse(&mut self, prefix: PrefixUuid, attempt: u64, reason: Reason) -> Result<(), Cut> {
        let refusal = v1::Refusal { prefix_uuid: prefix.to_string(), attempt, reason: Some(reason) };
        self.send(Message::Refusal(refusal)).await
    }

    async fn resume(&mut self, uuid: PrefixUuid, after: Position, attempt: u64) -> Result<(), Cut> {
        self.forget(uuid);
        let Some(prefix) = self.ctx.store.prefix_by_uuid(uuid).filter(|p| !p.is_dropped()) else {
            return self.refuse(uuid, attempt, Reason::Unknown(v1::refusal::Unknown {})).await;
        };
        // Subscribed before the check: an exchange of the copy in between cuts the subscription.
        let subscription = Subscription::new(uuid, self.link.signal.clone());
        prefix.subscribe(subscription.clone());
        // First the hold, then the look at what there is.
        let owner = Owner::Follower(self.follower);
        let expires_ms = self.ctx.hold_expiry_ms();
        let hold = Hold { owner: owner.clone(), prefix: Some(uuid), after: after.sequence, expires_ms };
        self.ctx.holds.lock().put(hold);
        if let Some(reason) = self.check_resume(&prefix, after).await {
            prefix.unsubscribe(&subscription);
            if matches!(reason, Reason::TooOld(_) | Reason::Diverged(_)) {
                // It will be copied, under a hold of its own. Who is told to wait comes again.
                self.ctx.holds.lock().remove_one(&owner, uuid);
            }
            return self.refuse(uuid, attempt, reason).await;
        }
        let head = FrameHead { prefix_uuid: uuid.to_string(), attempt, reign: reign_ref_to(self.reign) };
        let cursor =
            Cursor { prefix, head, sent: after.sequence, subscription, catching_up: false, told: Position::ZERO };
        self.cursors.insert(uuid, cursor);
        self.make_ready(uuid);
        Ok(())
    }

    /// Why a resume can't be served; `None` = it can.
    async fn check_resume(&self, prefix: &Arc<Prefix>, after: Position) -> Option<Reason> {
        let Some(copy) = prefix.copy() else { return Some(busy("there is no copy of it here")) };
        if matches!(prefix.phase(), PrefixPhase::Bootstrapping | PrefixPhase::Stopped { .. }) {
            return Some(busy("it is not complete here"));
        }
        if self.ctx.is_below_floor(prefix) {
            return Some(busy("it is below its floor here"));
        }
        let near = !matches!(prefix.ring().read(after.sequence, 1), RingRead::Older);
        let oldest = if near {
            after.sequence.next()
        } else {
            match tokio::task::spawn_blocking(move || copy.db.oldest_in_wal()).await {
                Ok(Ok(oldest)) => oldest,
                Ok(Err(error)) => {
                    tracing::error!(prefix = %prefix.name, %error, "find oldest WAL for a follower");
                    return Some(busy("its WAL can't be read here"));
                }
                Err(_) => return Some(busy("the read of its WAL was cut off")),
            }
        };
        let authoritative = self.ctx.store.role().is_primary;
        match prefix.history().check_resume(after, prefix.applied(), oldest, authoritative) {
            ResumeCheck::Stream => None,
            ResumeCheck::Behind => Some(busy("the follower is ahead of this replica")),
            ResumeCheck::TooOld { oldest } => {
                self.ctx.stats.too_old_sent.inc();
                Some(Reason::TooOld(v1::refusal::TooOld { oldest_sequence: oldest.0 }))
            }
            ResumeCheck::Diverged { fork } => {
                self.ctx.stats.diverged_sent.inc();
                Some(Reason::Diverged(v1::refusal::Diverged { fork: Some(position_to(fork)) }))
            }
        }
    }

    /// Tells the latest position of the prefixes that have nothing more to send.
    async fn tell_caught_up(&mut self) -> Result<(), Cut> {
        self.caught_up_at_ms = clock::boot_ms();
        let caught_up = std::mem::take(&mut self.caught_up);
        self.send_beat(|uuid| caught_up.contains(uuid), 0).await
    }

    async fn beat(&mut self) -> Result<(), Cut> {
        let role = self.ctx.store.role();
        if role.promise() != Some(self.reign) {
            return Err(Cut::RoleChanged);
        }
        // What the follower was told is wrong now: by it the follower would refuse members that it does not follow any more, or
        // miss a cycle.
        let upstreams = self.ctx.upstreams.load();
        if !upstreams.is_empty() && !self.told.iter().skip(1).eq(upstreams.iter()) {
            return Err(Cut::RoleChanged);
        }
        drop(upstreams);
        let (settings, now_ms) = (self.ctx.store.settings.load(), clock::boot_ms());
        let own_wait = self.rate.wait_at(settings.max_bytes_per_second, now_ms);
        let wait = self.ctx.total_rate.lock().wait_at(settings.max_total_bytes_per_second, now_ms).max(own_wait);
        // A long pause ends early where the limit was raised.
        self.rate_until_ms = self.rate_until_ms.min(now_ms + wait);
        self.judge_compression();
        self.send_beat(|_| true, 0).await?;
        // A prefix whose signal was lost must not wait for its next write.
        let stale: Vec<PrefixUuid> = self
            .cursors
            .iter()
            .filter(|(_, c)| !c.catching_up && (c.prefix.applied() > c.sent || c.subscription.is_cut()))
            .map(|(uuid, _)| *uuid)
            .collect();
        stale.into_iter().for_each(|uuid| self.make_ready(uuid));
        Ok(())
    }

    async fn send_beat(&mut self, wanted: impl Fn(&PrefixUuid) -> bool, probe: u64) -> Result<(), Cut> {
        let mut latest = Vec::new();
        for (uuid, cursor) in self.cursors.iter_mut().filter(|(uuid, _)| wanted(uuid)) {
            let position = cursor.prefix.position_at(cursor.prefix.applied());
            if position != cursor.told || cursor.told == Position::ZERO {
                cursor.told = position;
                latest.push(v1::PrefixLatest { prefix_uuid: uuid.to_string(), position: Some(position_to(position)) });
            }
        }
        let role = self.ctx.store.role();
        let primary: Option<&Endpoint> =
            if role.is_primary { Some(&self.ctx.advertise) } else { role.primary.as_ref() };
        let beat = v1::Beat {
            reign: Some(reign_ref_to(self.reign)),
            sent_at_ms: clock::wall_ms(),
            latest,
            primary_data_uuid: role.reign.as_ref().map(|r| r.primary.to_string()).unwrap_or_default(),
            primary_replication_address: primary.map(|p| p.replication.clone()).unwrap_or_default(),
            primary_client_address: primary.map(|p| p.client.clone()).unwrap_or_default(),
            probe,
        };
        self.send(Message::Beat(beat)).await
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn busy(why: &str) -> Reason {
    Reason::Busy(v1::refusal::Busy { why: why.to_owned() })
}

/// The next chunk of a read under way; waits for ever if there is none.
async fn next_chunk(catchup: &mut Option<Catchup>) -> Option<Chunk> {
    match catchup {
        Some(catchup) => catchup.chunks.recv().await,
        None => std::future::pending().await,
    }
}
