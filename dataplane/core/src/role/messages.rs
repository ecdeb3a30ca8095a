//! What comes into a role and what comes out of it.

use std::collections::BTreeMap;

use crate::member::{Endpoint, MemberRecord, PromoteOrder, SealOrder};
use crate::types::{DataUuid, Position, PrefixUuid, Reign, ReignRef, Sequence, StoreUid};
use crate::vote::Votes;

/// What happens to a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Order: promise to take nothing from a lower epoch.
    Seal(SealOrder),
    /// Order: lead. `here` is what this member votes now.
    Promote {
        /// The order.
        order: PromoteOrder,
        /// See [`crate::vote::vote`]; one for each prefix that the member knows of.
        here: Votes,
    },
    /// Order: follow an upstream.
    Follow {
        /// For this store.
        store: StoreUid,
        /// For this member.
        member: DataUuid,
        /// Under this reign.
        reign: Reign,
        /// Whom to stream from.
        upstream: Endpoint,
        /// Whom to acknowledge to.
        primary: Endpoint,
    },
    /// Order: fetch what is missing from another member that is sealed for the same reign.
    Pull {
        /// For this store.
        store: StoreUid,
        /// For this member.
        member: DataUuid,
        /// What both are sealed for.
        reign: ReignRef,
        /// Whom to fetch from.
        source: Endpoint,
        /// Up to where, in which prefixes.
        upto: BTreeMap<PrefixUuid, Position>,
    },
    /// Order: let writes wait.
    Freeze {
        /// For this store.
        store: StoreUid,
        /// For this member.
        member: DataUuid,
        /// The reign that it leads.
        reign: ReignRef,
        /// Milliseconds, at most [`super::FREEZE_MS`].
        for_ms: u64,
    },
    /// The hello of the upstream named a newer reign; nothing of it may be accepted before the effects are done.
    Met(Reign),
    /// A beat of the primary itself came, straight from it.
    PrimaryBeat {
        /// Its reign.
        reign: ReignRef,
        /// Its clock at the sending.
        sent_at_ms: u64,
    },
    /// A replica's message to this primary echoes this beat of it.
    Echo {
        /// Who.
        member: DataUuid,
        /// Under which reign.
        reign: ReignRef,
        /// `sent_at_ms` of the beat.
        sent_at_ms: u64,
    },
    /// An fsync was asked of the disk.
    FsyncAsked,
    /// All fsyncs asked for so far succeeded.
    Fsynced,
    /// A renewal of the Lease that was sent at this time (of this clock) succeeded.
    LeaseRenewed {
        /// Of which reign.
        reign: ReignRef,
        /// From [`Effect::RenewLease`].
        sent_at_ms: u64,
    },
    /// The Lease names a higher epoch or another holder of this one.
    LeaseLost {
        /// Of which reign.
        reign: ReignRef,
    },
    /// [`Effect::WriteEpochRecords`] is done, with these sequences.
    Written {
        /// Of which reign.
        reign: ReignRef,
        /// Where each prefix's epoch record stands.
        records: BTreeMap<PrefixUuid, Sequence>,
    },
    /// A prefix was dropped.
    Dropped(PrefixUuid),
    /// Time passes: several times a second.
    Tick,
}

/// What must be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Answer no read and acknowledge no write from now on; take writing away from every prefix, which waits for a commit
    /// under way. What waits for acknowledgements goes on waiting.
    StopServing,
    /// End what comes in: streams, acknowledgements, copies. Nothing is applied after it.
    StopFollowing,
    /// End the streams to and from others that are under an older promise than this member's.
    CutOldStreams,
    /// Sync the WAL of every prefix: what was written is durable, and positions stand still.
    SyncAll,
    /// Store the record in both slots, synced.
    Store(Box<MemberRecord>),
    /// Answer what waits for acknowledgements: nobody knows whether it survives.
    RefuseParked,
    /// Be a follower of `upstream` under `reign`, in place of what was followed before.
    StartFollowing {
        /// The promised reign.
        reign: Reign,
        /// Whom to stream from.
        upstream: Endpoint,
        /// Whom to acknowledge to.
        primary: Endpoint,
    },
    /// Stream these prefixes from another sealed member, up to these positions; acknowledge nothing.
    StartPulling {
        /// What both are sealed for.
        reign: ReignRef,
        /// Whom to fetch from.
        source: Endpoint,
        /// Up to where.
        upto: BTreeMap<PrefixUuid, Position>,
    },
    /// Take followers under this reign, with an empty [`crate::acks::AckTable`]; take no writes yet.
    BeginLeading(Reign),
    /// Write the epoch record of every prefix unsynced, then sync them all, then tell [`Event::Written`]. From then on this
    /// member writes. Under W = 0 the records are released at once.
    WriteEpochRecords(Reign),
    /// W replicas hold the record: this prefix is served.
    ServePrefix(PrefixUuid),
    /// Every prefix is.
    AllServed,
    /// Send a renewal of the Lease in the name of this reign, then tell [`Event::LeaseRenewed`] with this time, or
    /// [`Event::LeaseLost`]. A failure needs no telling.
    RenewLease {
        /// Whose epoch must be in the Lease.
        reign: Reign,
        /// The renewal counts from here.
        sent_at_ms: u64,
    },
}

/// What a member is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Knows no reign.
    Blank,
    /// A replica, or a process that has just begun.
    Replica,
    /// Sealed; was no primary in this process, or is none since an order to follow.
    Sealed,
    /// Led, and is sealed: answers nobody, and its parked writes wait for what becomes of it.
    Fenced,
    /// Promoted; its epoch records are not written yet.
    Joining,
    /// The primary.
    Leading,
}

/// A beat that a primary sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BeatOut {
    /// The reign that it leads.
    pub reign: ReignRef,
    /// Its clock.
    pub sent_at_ms: u64,
    /// Whether it could answer a fresh read.
    pub serving: bool,
}
