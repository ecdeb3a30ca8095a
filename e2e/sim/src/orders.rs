//! Orders of the operator's core as members get them.

use parovoz_api::Mode;
use parovoz_dataplane_core::member::{Endpoint, SealEvidence};
use parovoz_dataplane_core::types::{Epoch, Mode as CoreMode, Position, PrefixUuid, Reign, ReignRef};
use parovoz_dataplane_core::vote::Vote;
use parovoz_operator_core::observed::{KnownReign, ReignRef as SeenRef};
use parovoz_operator_core::plan::{self, PrefixPosition};

use crate::msg::{Order, OrderKind};

/// `None` if an identity is none.
#[must_use]
pub fn convert(store: &str, order: &plan::Order) -> Option<Order> {
    let reign = reign(&order.reign)?;
    let kind = match &order.kind {
        plan::OrderKind::Seal { about, evidence } => OrderKind::Seal {
            reign: reign.to_ref(),
            about: reference(about),
            evidence: match evidence {
                plan::SealEvidence::Dead => SealEvidence::Dead,
                plan::SealEvidence::PrimarySealed => SealEvidence::PrimarySealed,
                plan::SealEvidence::Silent => SealEvidence::Silent,
            },
        },
        plan::OrderKind::Pull { source, upto } => OrderKind::Pull {
            reign: reign.to_ref(),
            source: endpoint(source)?,
            upto: upto.iter().map(position).collect::<Option<_>>()?,
        },
        plan::OrderKind::Freeze { duration } => {
            OrderKind::Freeze { reign: reign.to_ref(), for_ms: u64::try_from(duration.as_millis()).ok()? }
        }
        plan::OrderKind::Promote { positions, first } => OrderKind::Promote {
            positions: positions
                .iter()
                .map(|at| position(at).map(|(uuid, at)| (uuid, Vote::Known(at))))
                .collect::<Option<_>>()?,
            first: *first,
            reign,
        },
        plan::OrderKind::Follow { upstream, primary, bootstrap_source } => OrderKind::Follow {
            upstream: endpoint(upstream)?,
            primary: endpoint(primary)?,
            source: bootstrap_source.as_deref().and_then(endpoint).map(Box::new),
            reign,
        },
    };
    Some(Order {
        store: store.to_owned(),
        member: order.data_uuid.parse().ok()?,
        process: order.process_id.clone(),
        kind,
    })
}

fn reference(about: &SeenRef) -> Option<ReignRef> {
    Some(ReignRef { epoch: Epoch(about.epoch), reign_id: about.reign_id.parse().ok()? })
}

/// A reign whose primary is not known yet names nobody.
fn reign(known: &KnownReign) -> Option<Reign> {
    Some(Reign {
        epoch: Epoch(known.epoch),
        reign_id: known.reign_id.parse().ok()?,
        primary: known.primary.parse().unwrap_or(parovoz_dataplane_core::types::DataUuid(uuid::Uuid::nil())),
        members: known.members.iter().map(|m| m.parse()).collect::<Result<_, _>>().ok()?,
        mode: match known.mode {
            Mode::Async => CoreMode::Async,
            Mode::Quorum => CoreMode::Quorum,
        },
        min_sync_replicas: known.min_sync_replicas,
        lease_duration_ms: known.lease_duration_ms,
    })
}

fn position(at: &PrefixPosition) -> Option<(PrefixUuid, Position)> {
    Some((at.prefix_uuid.parse().ok()?, Position::new(at.position.epoch, at.position.sequence)))
}

fn endpoint(at: &plan::Endpoint) -> Option<Endpoint> {
    Some(Endpoint {
        data_uuid: Some(at.data_uuid.parse().ok()?),
        replication: at.replication_address.clone(),
        client: at.client_address.clone(),
        resp: at.resp_address.clone(),
        ip: at.ip.map(|ip| ip.to_string()).unwrap_or_default(),
    })
}
