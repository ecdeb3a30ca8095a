//! What the operator knows of one store at one moment.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use parovoz_api::{
    MemberPhase, MemberRole, Mode, ReignPhase, ReplicatedStoreSpec, ReplicatedStoreStatus, StoreOperationSpec,
    StoreOperationStatus, StoreReignSpec,
};
use serde_json::Value;

use crate::names;
use crate::quorum::{Ballot, PrefixVote, Vote};

/// A member whose last report is older than this does not answer: reports come at least every five seconds.
pub const REPORT_FRESH: Duration = Duration::from_secs(15);

/// Everything that a plan may depend on.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// The store itself.
    pub store: StoreFacts,
    /// Its pods.
    pub pods: Vec<PodFacts>,
    /// Its volume claims.
    pub claims: Vec<ClaimFacts>,
    /// Its other objects, as they are.
    pub objects: BTreeMap<ObjectKey, Value>,
    /// The decision record, read from the API server itself and not from a cache.
    pub reign: Option<ReignFacts>,
    /// The Lease of the store's primary, if it was looked at; see [`Observed::wants_lease`].
    pub lease: Option<LeaseFacts>,
    /// Operations on this store.
    pub operations: Vec<OperationFacts>,
    /// What each member said last, by pod name.
    pub contacts: BTreeMap<String, Contact>,
    /// The time of the observation.
    pub now: Timestamp,
    /// A random identity, used if a reign is begun now.
    pub fresh_id: String,
    /// Image for stores that name none.
    pub default_image: String,
}

/// Facts about the `ReplicatedStore`.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreFacts {
    /// metadata.name
    pub name: String,
    /// metadata.namespace
    pub namespace: String,
    /// metadata.uid
    pub uid: String,
    /// metadata.generation
    pub generation: i64,
    /// True once it is being deleted.
    pub deleting: bool,
    /// What is asked for.
    pub spec: ReplicatedStoreSpec,
    /// What was last reported.
    pub status: Option<ReplicatedStoreStatus>,
}

/// Facts about a pod with the store's label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// metadata.name
    pub name: String,
    /// The member's number, from the name.
    pub ordinal: u32,
    /// metadata.uid
    pub uid: String,
    /// True if this store controls it.
    pub owned: bool,
    /// True once it is being deleted.
    pub deleting: bool,
    /// True if it ended and will not be started again.
    pub ended: bool,
    /// True if the kubelet says that it is ready.
    pub ready: bool,
    /// The node that it was placed on.
    pub node: Option<String>,
    /// Its address, once it has one.
    pub ip: Option<IpAddr>,
    /// Hash of the settings that it was made with.
    pub pod_hash: Option<String>,
    /// uid of the volume claim that it was made for.
    pub claim_uid: Option<String>,
    /// The role label.
    pub role: Option<String>,
    /// True if labelled as in standing.
    pub in_standing: bool,
    /// What keeps its container from running, if anything does.
    pub trouble: Option<String>,
    /// What processes of its container that ended had written as their termination message: the identity of each. Only
    /// what the kubelet saw end, never what it merely lost sight of.
    pub ended_processes: Vec<String>,
    /// True if its node takes no new pods: it is about to be drained.
    pub cordoned: bool,
}

impl PodFacts {
    /// What is seen of a pod that was made from `object`, before anything happens to it: for what stands in for an API server.
    #[must_use]
    pub fn as_made(ordinal: u32, uid: String, object: &Value) -> Self {
        Self {
            name: object["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
            ordinal,
            uid,
            owned: true,
            deleting: false,
            ended: false,
            ready: false,
            node: None,
            ip: None,
            pod_hash: annotation(object, names::ANNOTATION_POD_HASH),
            claim_uid: annotation(object, names::ANNOTATION_CLAIM_UID),
            role: object["metadata"]["labels"][names::LABEL_ROLE].as_str().map(str::to_owned),
            in_standing: false,
            trouble: None,
            ended_processes: Vec::new(),
            cordoned: false,
        }
    }
}

fn annotation(object: &Value, key: &str) -> Option<String> {
    object["metadata"]["annotations"][key].as_str().map(str::to_owned)
}

/// Facts about the Lease of a store's primary. Times are by one monotonic clock of the observer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseFacts {
    /// metadata.resourceVersion; empty if there is no Lease yet.
    pub resource_version: String,
    /// The epoch below which nobody may renew it; 0 = none.
    pub epoch: u64,
    /// data_uuid of who renewed it last.
    pub holder: Option<String>,
    /// For how long neither its holder nor its renewal has changed.
    pub unmoved_for: Duration,
    /// Each epoch that it was seen to carry, and for how long at least that one.
    pub raised: Vec<(u64, Duration)>,
}

impl LeaseFacts {
    /// For how long nobody can have renewed it in the name of a reign of this epoch. None while somebody still may.
    #[must_use]
    pub fn unmoved(&self, epoch: u64) -> Option<Duration> {
        let above = self.raised.iter().filter(|(raised, _)| *raised > epoch).map(|(_, since)| *since).max();
        (self.epoch > epoch).then(|| above.unwrap_or_default().max(self.unmoved_for))
    }
}

/// Facts about a `StoreOperation` on this store.
#[derive(Clone, Debug, PartialEq)]
pub struct OperationFacts {
    /// metadata.name
    pub name: String,
    /// metadata.uid
    pub uid: String,
    /// metadata.creationTimestamp
    pub created: Timestamp,
    /// What is asked for.
    pub spec: StoreOperationSpec,
    /// How it goes.
    pub status: StoreOperationStatus,
}

/// Facts about a volume claim with the store's label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimFacts {
    /// metadata.name
    pub name: String,
    /// The member's number, from the name.
    pub ordinal: u32,
    /// metadata.uid
    pub uid: String,
    /// uid of the store that made it.
    pub store_uid: Option<String>,
    /// True if it goes with the store.
    pub owned: bool,
    /// True once it is being deleted.
    pub deleting: bool,
    /// True once a volume is bound.
    pub bound: bool,
    /// Bytes asked for.
    pub requested_bytes: Option<u64>,
}

impl ClaimFacts {
    /// What is seen of a claim that was made from `object` and given a volume of this many bytes: for what stands in for an
    /// API server.
    #[must_use]
    pub fn as_made(ordinal: u32, uid: String, object: &Value, bytes: Option<u64>) -> Self {
        Self {
            name: object["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
            ordinal,
            uid,
            store_uid: annotation(object, names::ANNOTATION_STORE_UID),
            owned: !object["metadata"]["ownerReferences"].is_null(),
            deleting: false,
            bound: true,
            requested_bytes: bytes,
        }
    }
}

/// The decision record and the version to swap against.
#[derive(Clone, Debug, PartialEq)]
pub struct ReignFacts {
    /// The record.
    pub spec: StoreReignSpec,
    /// metadata.resourceVersion
    pub resource_version: String,
}

/// Which of the store's plain objects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectKey {
    /// The kind.
    pub kind: ObjectKind,
    /// metadata.name
    pub name: String,
}

/// Kinds of objects that carry no decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// v1 ServiceAccount
    ServiceAccount,
    /// v1 ConfigMap
    ConfigMap,
    /// v1 Service
    Service,
    /// policy/v1 PodDisruptionBudget
    PodDisruptionBudget,
    /// rbac.authorization.k8s.io/v1 Role
    Role,
    /// rbac.authorization.k8s.io/v1 RoleBinding
    RoleBinding,
}

/// What is known of one member by talking to it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contact {
    /// The last report, if there was one from the present pod.
    pub report: Option<Report>,
    /// Age of that report.
    pub age: Duration,
    /// For how long the member could not be reached; zero while connected.
    pub unreachable_for: Duration,
}

impl Contact {
    /// The report, if the member answers now.
    #[must_use]
    pub fn fresh(&self) -> Option<&Report> {
        self.report.as_ref().filter(|_| self.unreachable_for.is_zero() && self.age <= REPORT_FRESH)
    }
}

/// A place in the history of one prefix. Compared by epoch, then by sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The epoch.
    pub epoch: u64,
    /// The sequence.
    pub sequence: u64,
}

/// Names a reign: the number and the random identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReignRef {
    /// The number.
    pub epoch: u64,
    /// The random identity.
    pub reign_id: String,
}

/// A reign as a member knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownReign {
    /// The number.
    pub epoch: u64,
    /// The random identity.
    pub reign_id: String,
    /// data_uuid of the primary.
    pub primary: String,
    /// data_uuids of the members.
    pub members: Vec<String>,
    /// Async or Quorum.
    pub mode: Mode,
    /// Replicas that must have a write durably.
    pub min_sync_replicas: u32,
    /// For how long a lease of it holds, in milliseconds.
    pub lease_duration_ms: u64,
}

/// What a member says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// uid of the store that its volume belongs to.
    pub store_uid: String,
    /// The identity kept on its volume.
    pub data_uuid: String,
    /// BOOT/PROCESS: random for each boot of the machine, and for each start of the process. Without the former and the slash
    /// if it is not known.
    pub process_id: String,
    /// Primary or replica.
    pub role: MemberRole,
    /// What it does.
    pub phase: MemberPhase,
    /// The reign that it promised or leads.
    pub reign: Option<KnownReign>,
    /// Highest epoch that it ever started as a primary; 0 = never.
    pub started_epoch: u64,
    /// Each prefix.
    pub prefixes: Vec<PrefixReport>,
    /// On a primary: each member's progress.
    pub followers: Vec<FollowerReport>,
    /// data_uuid of its upstream.
    pub upstream_data_uuid: String,
    /// Address of its upstream.
    pub upstream_address: String,
    /// data_uuid of the primary that it knows how to reach; empty on a primary, and if it only met a newer reign.
    pub primary_data_uuid: String,
    /// data_uuid of the member that it takes missing copies from; empty = its upstream.
    pub bootstrap_source: String,
    /// True while the stream stands.
    pub upstream_connected: bool,
    /// Free bytes on the volume.
    pub disk_free_bytes: u64,
    /// Size of the volume.
    pub disk_total_bytes: u64,
    /// Why the phase is what it is; empty when nothing is wrong.
    pub reason: String,
    /// Starts in the present window.
    pub restarts: u32,
    /// True if every prefix is there, whole and at or past its floor.
    pub complete: bool,
    /// The reign that it is sealed for; None if it was not, or followed or led that reign since.
    pub sealed: Option<ReignRef>,
    /// Since it heard from the primary; None on the primary and if it never did.
    pub primary_silence: Option<Duration>,
    /// On a primary: it could acknowledge a write and answer a fresh read now.
    pub can_acknowledge: bool,
    /// On a primary: for how long the oldest waiting write has been waiting.
    pub oldest_wait: Duration,
    /// Since the last successful fsync that was asked for; None when none was asked for lately.
    pub stalled_fsync: Option<Duration>,
    /// On a primary: for how long writes are still frozen.
    pub frozen: Duration,
    /// Since the process was started.
    pub uptime: Duration,
    /// Fingerprint of the configuration in effect.
    pub config_hash: String,
}

impl Report {
    /// The highest epoch that this member knows of in any way.
    #[must_use]
    pub fn highest_epoch(&self) -> u64 {
        let sealed = self.sealed.as_ref().map_or(0, |sealed| sealed.epoch);
        self.reign.as_ref().map_or(0, |reign| reign.epoch).max(self.started_epoch).max(sealed)
    }

    /// True if it leads this very reign.
    #[must_use]
    pub fn leads(&self, epoch: u64, reign_id: &str) -> bool {
        self.role == MemberRole::Primary && self.promised(epoch, reign_id)
    }

    /// True if this very reign is what it promised.
    #[must_use]
    pub fn promised(&self, epoch: u64, reign_id: &str) -> bool {
        self.reign.as_ref().is_some_and(|reign| reign.epoch == epoch && reign.reign_id == reign_id)
    }

    /// True if it is sealed for this very reign.
    #[must_use]
    pub fn is_sealed(&self, epoch: u64, reign_id: &str) -> bool {
        self.sealed.as_ref().is_some_and(|sealed| sealed.epoch == epoch && sealed.reign_id == reign_id)
    }

    /// What it votes, or would vote if it were sealed now. A blank member has no ballot.
    #[must_use]
    pub fn ballot(&self) -> Option<Ballot> {
        let votes = self.prefixes.iter().map(|prefix| {
            let entry = PrefixVote { name: prefix.name.clone(), catalogue: prefix.system, vote: prefix.vote };
            (prefix.prefix_uuid.clone(), entry)
        });
        let can_lead = self.phase != MemberPhase::Parked && self.phase != MemberPhase::Unknown;
        let counts = !self.blank() || parovoz_mutant::on("blank-volume-votes");
        counts.then(|| Ballot { can_lead, votes: votes.collect() })
    }

    /// True if it leads and the catalogue is served: clients that are sent to it are answered.
    #[must_use]
    pub fn serves_catalogue(&self) -> bool {
        self.phase == MemberPhase::Serving || self.prefixes.iter().any(|prefix| prefix.system && prefix.served)
    }

    /// True if it leads and every prefix is served.
    #[must_use]
    pub fn serves_all(&self) -> bool {
        self.phase == MemberPhase::Serving && self.prefixes.iter().all(|prefix| prefix.served)
    }

    /// True if it follows closely, with a whole copy.
    #[must_use]
    pub fn streams(&self) -> bool {
        self.usable() && self.phase == MemberPhase::Streaming && self.upstream_connected
    }

    /// Records that it knows to lack, over all prefixes: what its upstream last said to have.
    #[must_use]
    pub fn known_lag(&self) -> u64 {
        let behind = |prefix: &PrefixReport| prefix.upstream_latest.sequence.saturating_sub(prefix.applied.sequence);
        self.prefixes.iter().fold(0, |sum: u64, prefix| sum.saturating_add(behind(prefix)))
    }

    /// True if the volume holds nothing and has never held anything.
    #[must_use]
    pub fn blank(&self) -> bool {
        self.phase == MemberPhase::Blank
    }

    /// True if its copy is whole and may be read from or promoted.
    #[must_use]
    pub fn usable(&self) -> bool {
        let phase_allows = match self.phase {
            MemberPhase::Waiting | MemberPhase::CatchingUp | MemberPhase::Streaming | MemberPhase::Serving => true,
            MemberPhase::Creating
            | MemberPhase::Unreachable
            | MemberPhase::Blank
            | MemberPhase::Bootstrapping
            | MemberPhase::Parked
            | MemberPhase::Unknown => false,
        };
        self.complete && phase_allows
    }

    /// Highest epoch and summed sequences: one figure for people, and the order among incomparable members.
    #[must_use]
    pub fn summary(&self) -> Position {
        self.prefixes.iter().fold(Position::default(), |sum, prefix| Position {
            epoch: sum.epoch.max(prefix.applied.epoch),
            sequence: sum.sequence.saturating_add(prefix.applied.sequence),
        })
    }
}

/// One prefix of a member.
#[derive(Clone, Debug, PartialEq)]
pub struct PrefixReport {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub prefix_uuid: String,
    /// How far it is applied.
    pub applied: Position,
    /// The copy under way, if there is one.
    pub bootstrap: Option<BootstrapProgress>,
    /// What is wrong with it; empty if nothing.
    pub reason: String,
    /// True for the catalogue.
    pub system: bool,
    /// What the member votes, or would vote.
    pub vote: Vote,
    /// On a primary: clients are served.
    pub served: bool,
    /// The upstream's latest, as far as known.
    pub upstream_latest: Position,
}

impl Default for PrefixReport {
    fn default() -> Self {
        Self {
            name: String::new(),
            prefix_uuid: String::new(),
            applied: Position::default(),
            bootstrap: None,
            reason: String::new(),
            system: false,
            vote: Vote::Unknown { floor: None },
            served: false,
            upstream_latest: Position::default(),
        }
    }
}

/// A copy under way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootstrapProgress {
    /// How it is made.
    pub method: String,
    /// Bytes copied.
    pub bytes_done: u64,
    /// Bytes in all.
    pub bytes_total: u64,
    /// The present rate.
    pub bytes_per_second: u64,
}

/// What a primary knows of another member's progress.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FollowerReport {
    /// The member.
    pub data_uuid: String,
    /// True while it acknowledges.
    pub connected: bool,
    /// Sequences behind, over all prefixes.
    pub lag_sequences: u64,
    /// Bytes behind, over all prefixes.
    pub lag_bytes: u64,
    /// Milliseconds behind, of the worst prefix.
    pub lag_ms: u64,
    /// Seconds until it falls out of the kept log; None = nothing threatens.
    pub window_left_seconds: Option<u64>,
}

impl Observed {
    /// The pod of a member.
    #[must_use]
    pub fn pod(&self, ordinal: u32) -> Option<&PodFacts> {
        self.pods.iter().find(|pod| pod.ordinal == ordinal)
    }

    /// The decision record, if it is this store's and not a left-over of an earlier one of the same name.
    #[must_use]
    pub fn own_reign(&self) -> Option<&ReignFacts> {
        self.reign.as_ref().filter(|reign| reign.spec.store_uid == self.store.uid)
    }

    /// True if a decision may rest on the Lease of the store's primary: it should be read anew before the next plan.
    #[must_use]
    pub fn wants_lease(reign: Option<&ReignFacts>) -> bool {
        let Some(spec) = reign.map(|reign| &reign.spec) else { return false };
        let alone = |past: &parovoz_api::PastReign| past.min_sync_replicas == 0;
        match spec.current.phase {
            ReignPhase::Sealing | ReignPhase::Promoting => {
                spec.current.min_sync_replicas == 0 || spec.history.iter().any(alone)
            }
            ReignPhase::Forming | ReignPhase::Serving => false,
        }
    }

    /// The volume claim of a member.
    #[must_use]
    pub fn claim(&self, ordinal: u32) -> Option<&ClaimFacts> {
        self.claims.iter().find(|claim| claim.ordinal == ordinal)
    }

    /// The report of a member that answers now, from a volume of this store and a pod that is not on its way out. A
    /// primary counts to its end, so that another can take over from it, and so does who is sealed: what it votes is final.
    #[must_use]
    pub fn answer(&self, ordinal: u32) -> Option<&Report> {
        let pod = self.pod(ordinal).filter(|pod| pod.owned)?;
        let report = self.contacts.get(&pod.name)?.fresh()?;
        if pod.deleting && report.role != MemberRole::Primary && report.sealed.is_none() {
            return None;
        }
        (report.store_uid == self.store.uid && !report.data_uuid.is_empty()).then_some(report)
    }

    /// The report of a member that is up with its data closed. It does not know its own identity then.
    #[must_use]
    pub fn parked(&self, ordinal: u32) -> Option<&Report> {
        let pod = self.pod(ordinal).filter(|pod| pod.owned && !pod.deleting)?;
        self.contacts.get(&pod.name)?.fresh().filter(|report| report.phase == MemberPhase::Parked)
    }

    /// The last thing that a member of an existing pod said, however old.
    #[must_use]
    pub fn last_word(&self, ordinal: u32) -> Option<&Report> {
        self.contacts.get(&self.pod(ordinal)?.name)?.report.as_ref()
    }

    /// For how long a member has not answered; zero if it answers. None if nothing is known of that: its pod has no address,
    /// or what is up there does not know whose volume it has.
    #[must_use]
    pub fn silence(&self, ordinal: u32) -> Option<Duration> {
        if self.answer(ordinal).is_some() {
            return Some(Duration::ZERO);
        }
        let contact = self.contacts.get(&self.pod(ordinal)?.name)?;
        let nobody = contact.fresh().is_some_and(|report| report.data_uuid.is_empty());
        (!nobody).then(|| contact.unreachable_for.max(contact.age))
    }
}
