//! What members are told.

use std::net::IpAddr;
use std::time::Duration;

use parovoz_api::{MemberPhase, ReignPhase, ReignRecord, Topology};

use super::Context;
use super::record::answering;
use super::sources::Sources;
use crate::names;
use crate::observed::{KnownReign, Position, ReignRef, Report};

/// One order to one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The member's pod.
    pub pod: String,
    /// The volume that the order is meant for; another one refuses it.
    pub data_uuid: String,
    /// The process that the order is meant for; another one refuses it.
    pub process_id: String,
    /// The reign that it is given under.
    pub reign: KnownReign,
    /// What to do.
    pub kind: OrderKind,
}

/// What a member is told to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderKind {
    /// Promise to accept nothing from an earlier reign, and say what it has.
    Seal {
        /// The reign that the evidence is about.
        about: ReignRef,
        /// Why it is believed that its primary is out.
        evidence: SealEvidence,
    },
    /// Fetch what it lacks from another sealed member.
    Pull {
        /// The member that has it.
        source: Endpoint,
        /// What to fetch, and how far.
        upto: Vec<PrefixPosition>,
    },
    /// Hold writes, without refusing them.
    Freeze {
        /// For how long at most.
        duration: Duration,
    },
    /// Lead the reign.
    Promote {
        /// Its own positions, as the decision was made on; it refuses at any others.
        positions: Vec<PrefixPosition>,
        /// True for the first reign of a store.
        first: bool,
    },
    /// Follow an upstream.
    Follow {
        /// Who to stream from.
        upstream: Endpoint,
        /// Who leads.
        primary: Endpoint,
        /// Who to take missing copies from; None = the upstream.
        bootstrap_source: Option<Box<Endpoint>>,
    },
}

/// Why a primary is believed to be out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SealEvidence {
    /// The kubelet reported its very process as ended, or a person attests that.
    Dead,
    /// It sealed itself.
    PrimarySealed,
    /// Nobody heard it lately. A member that did refuses.
    Silent,
}

/// A position in one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixPosition {
    /// The prefix's identity.
    pub prefix_uuid: String,
    /// Its name.
    pub name: String,
    /// The position.
    pub position: Position,
}

/// How a member is reached by others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The identity expected there.
    pub data_uuid: String,
    /// host:port of the replication port.
    pub replication_address: String,
    /// host:port of the gRPC client port.
    pub client_address: String,
    /// host:port of the RESP client port.
    pub resp_address: String,
    /// The pod's address, once it has one. Members try it beside the names: a name server may be on the node that failed.
    pub ip: Option<IpAddr>,
}

/// Orders to whoever follows otherwise than it should, once the primary leads: the members of the reign and, as learners
/// that do not count, those that are to become members. `except` is left alone.
pub(crate) fn follow(context: &Context<'_>, record: &ReignRecord, except: &[&str]) -> Vec<Order> {
    let answering = answering(context);
    let reign = known(record);
    let Some((primary, _)) = answering.get(record.primary.as_str()).copied() else { return Vec::new() };
    let mut orders = Vec::new();
    let mut sources = Sources::new(context, record, &reign);
    for (data_uuid, (ordinal, follower)) in &answering {
        let member = record.members.iter().any(|member| member.data_uuid == *data_uuid);
        // A member that is to go belongs to the reign until another one begins without it.
        let belongs = member || (context.target.contains(ordinal) && learns(context, *ordinal));
        let parked = follower.phase == MemberPhase::Parked;
        if *data_uuid == record.primary || parked || except.contains(data_uuid) || !belongs {
            continue;
        }
        let upstream = upstream(context, record, primary, *ordinal);
        let source = sources.of(follower, &upstream);
        if follows(follower, &reign, &upstream) && !source.matters {
            continue;
        }
        sources.load(source.chosen.as_deref());
        let bootstrap_source = source.chosen.and_then(|uuid| {
            let (ordinal, _) = answering.get(uuid.as_str())?;
            Some(Box::new(endpoint(context, *ordinal, &uuid)))
        });
        let primary = endpoint(context, primary, &record.primary);
        let kind = OrderKind::Follow { upstream, primary, bootstrap_source };
        orders.push(order(context, *ordinal, follower, &reign, kind));
    }
    orders
}

/// True if a member that the reign does not list may stream: its volume stays, and is this store's.
fn learns(context: &Context<'_>, ordinal: u32) -> bool {
    let claim = context.observed.claim(ordinal);
    claim
        .is_some_and(|claim| !claim.deleting && claim.store_uid.as_deref() == Some(context.observed.store.uid.as_str()))
}

fn follows(report: &Report, reign: &KnownReign, upstream: &Endpoint) -> bool {
    report.role != parovoz_api::MemberRole::Primary
        && report.promised(reign.epoch, &reign.reign_id)
        && report.upstream_data_uuid == upstream.data_uuid
        && report.upstream_address == upstream.replication_address
        // In a chain the new reign may have come down the stream, and the primary's address does not.
        && report.primary_data_uuid == reign.primary
}

/// Who a member streams from: the primary, or in a chain the nearest member before it that has a whole copy. While a reign
/// begins, always the primary: a replica cannot tell a member that has more than itself from one that has too much.
fn upstream(context: &Context<'_>, record: &ReignRecord, primary: u32, ordinal: u32) -> Endpoint {
    if record.phase == ReignPhase::Serving && context.observed.store.spec.replication.topology == Topology::Chain {
        let earlier = (1..ordinal).rev().filter(|other| *other != primary && context.target.contains(other));
        for other in earlier {
            let Some(report) = context.observed.answer(other).filter(|report| report.usable()) else { continue };
            if record.members.iter().any(|member| member.data_uuid == report.data_uuid) {
                return endpoint(context, other, &report.data_uuid);
            }
        }
    }
    endpoint(context, primary, &record.primary)
}

/// How a member is reached.
pub(crate) fn endpoint(context: &Context<'_>, ordinal: u32, data_uuid: &str) -> Endpoint {
    let store = &context.observed.store;
    let host = names::host(&store.name, &store.namespace, &context.name(ordinal));
    Endpoint {
        data_uuid: data_uuid.to_owned(),
        replication_address: format!("{host}:{}", names::PORT_REPLICATION),
        client_address: format!("{host}:{}", names::PORT_CLIENT),
        resp_address: format!("{host}:{}", names::PORT_RESP),
        ip: context.observed.pod(ordinal).and_then(|pod| pod.ip),
    }
}

/// An order to the member that gave this report.
pub(crate) fn order(
    context: &Context<'_>,
    ordinal: u32,
    report: &Report,
    reign: &KnownReign,
    kind: OrderKind,
) -> Order {
    Order {
        pod: context.name(ordinal),
        data_uuid: report.data_uuid.clone(),
        process_id: report.process_id.clone(),
        reign: reign.clone(),
        kind,
    }
}

/// A recorded reign as members know it.
pub(crate) fn known(record: &ReignRecord) -> KnownReign {
    KnownReign {
        epoch: u64::try_from(record.epoch).unwrap_or(0),
        reign_id: record.reign_id.clone(),
        primary: record.primary.clone(),
        members: record.members.iter().map(|member| member.data_uuid.clone()).collect(),
        mode: record.mode,
        min_sync_replicas: record.min_sync_replicas.unsigned_abs(),
        lease_duration_ms: u64::try_from(record.lease_duration_ms).unwrap_or(0),
    }
}
