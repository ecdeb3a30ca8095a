//! What members are told.

use parovoz_api::{MemberPhase, ReignPhase, ReignRecord, Topology};

use super::Context;
use super::record::answering;
use super::reign::may_start;
use super::sources::Sources;
use crate::names;
use crate::observed::{KnownReign, Report};

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
    /// The store has never had a primary and every member of the reign is blank: a blank member may lead.
    pub first_reign: bool,
}

/// What a member is told to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderKind {
    /// Lead the reign.
    Promote,
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
}

/// Orders that bring the members to the record: one promotion, or, once the primary leads, whoever follows otherwise
/// than it should.
pub(super) fn orders(context: &Context<'_>, record: &ReignRecord) -> Vec<Order> {
    let answering = answering(context);
    let reign = known(record);
    let Some((primary, report)) = answering.get(record.primary.as_str()).copied() else { return Vec::new() };
    if !report.leads(reign.epoch, &reign.reign_id) {
        let promote = record.phase == ReignPhase::Promoting && may_start(report, record);
        if !promote {
            return Vec::new();
        }
        let first_reign = is_first(context, record);
        return vec![Order { first_reign, ..order(context, primary, report, &reign, OrderKind::Promote) }];
    }
    let mut orders = Vec::new();
    let mut sources = Sources::new(context, record, &reign);
    for member in record.members.iter().filter(|member| member.data_uuid != record.primary) {
        let Some((ordinal, follower)) = answering.get(member.data_uuid.as_str()).copied() else { continue };
        if follower.phase == MemberPhase::Parked || !context.target.contains(&ordinal) {
            continue;
        }
        let upstream = upstream(context, record, primary, ordinal);
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
        orders.push(order(context, ordinal, follower, &reign, kind));
    }
    orders
}

/// True if nobody can ever have written anything: then a blank member may lead in whatever epoch it came to.
fn is_first(context: &Context<'_>, record: &ReignRecord) -> bool {
    let answering = answering(context);
    let blank =
        |uuid: &str| answering.get(uuid).is_some_and(|(_, report)| report.blank() && report.highest_epoch() == 0);
    let served = context.observed.own_reign().is_some_and(|reign| reign.spec.ever_served);
    !served && record.members.iter().all(|member| blank(&member.data_uuid))
}

fn follows(report: &Report, reign: &KnownReign, upstream: &Endpoint) -> bool {
    report.role != parovoz_api::MemberRole::Primary
        && report.promised(reign.epoch, &reign.reign_id)
        && report.upstream_data_uuid == upstream.data_uuid
        && report.upstream_address == upstream.replication_address
}

/// Who a member streams from: the primary, or in a chain the nearest member before it that has a whole copy.
fn upstream(context: &Context<'_>, record: &ReignRecord, primary: u32, ordinal: u32) -> Endpoint {
    if context.observed.store.spec.replication.topology == Topology::Chain {
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

fn endpoint(context: &Context<'_>, ordinal: u32, data_uuid: &str) -> Endpoint {
    let store = &context.observed.store;
    let host = names::host(&store.name, &store.namespace, &context.name(ordinal));
    Endpoint {
        data_uuid: data_uuid.to_owned(),
        replication_address: format!("{host}:{}", names::PORT_REPLICATION),
        client_address: format!("{host}:{}", names::PORT_CLIENT),
        resp_address: format!("{host}:{}", names::PORT_RESP),
    }
}

fn order(context: &Context<'_>, ordinal: u32, report: &Report, reign: &KnownReign, kind: OrderKind) -> Order {
    Order {
        pod: context.name(ordinal),
        data_uuid: report.data_uuid.clone(),
        process_id: report.process_id.clone(),
        reign: reign.clone(),
        kind,
        first_reign: false,
    }
}

fn known(record: &ReignRecord) -> KnownReign {
    KnownReign {
        epoch: u64::try_from(record.epoch).unwrap_or(0),
        reign_id: record.reign_id.clone(),
        primary: record.primary.clone(),
        members: record.members.iter().map(|member| member.data_uuid.clone()).collect(),
        mode: record.mode,
        min_sync_replicas: record.min_sync_replicas.unsigned_abs(),
    }
}
