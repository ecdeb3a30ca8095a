//! Sending one order.

use std::time::Duration;

use parovoz_operator_core::observed::ReignRef;
use parovoz_operator_core::plan::{Order, OrderKind};
use parovoz_proto::v1::admin_client::AdminClient;
use parovoz_proto::v1::{FollowRequest, FreezeRequest, MemberReport, PromoteRequest, PullRequest, SealRequest};
use thiserror::Error;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::convert::{wire_endpoint, wire_evidence, wire_positions, wire_ref, wire_reign};

/// A member syncs what it promised before it answers. One that does not within this time is not waited for; the order is
/// given again, and is the same again.
const WITHIN: Duration = Duration::from_secs(2);
/// Fetching records takes as long as it takes; what was fetched until then stays.
const PULL_WITHIN: Duration = Duration::from_secs(60);

/// An order was not carried out. Always tried again by a later plan, under whatever holds then.
#[derive(Debug, Error)]
pub enum OrderError {
    /// The member looked at it and said no.
    #[error("order member {pod}: it refuses: {message}")]
    Refused {
        /// The member.
        pod: String,
        /// What it said.
        message: String,
    },
    /// The same kind of order to it is still under way.
    #[error("order member {pod}: the one before is not answered yet")]
    UnderWay {
        /// The member.
        pod: String,
    },
    /// The member was not reached, or not in time: what became of the order is not known.
    #[error("order member {pod}: {message}")]
    Unreachable {
        /// The member.
        pod: String,
        /// What went wrong.
        message: String,
    },
}

pub(super) async fn send(channel: Channel, store_uid: &str, order: &Order) -> Result<MemberReport, OrderError> {
    let limit = match order.kind {
        OrderKind::Pull { .. } => PULL_WITHIN,
        OrderKind::Seal { .. } | OrderKind::Freeze { .. } | OrderKind::Promote { .. } | OrderKind::Follow { .. } => {
            WITHIN
        }
    };
    match tokio::time::timeout(limit, call(channel, store_uid.to_owned(), order)).await {
        Ok(Ok(report)) => Ok(report.into_inner()),
        Ok(Err(status)) => Err(refusal(&order.pod, &status)),
        Err(_) => {
            Err(OrderError::Unreachable { pod: order.pod.clone(), message: format!("no answer within {limit:?}") })
        }
    }
}

async fn call(channel: Channel, store_uid: String, order: &Order) -> Result<tonic::Response<MemberReport>, Status> {
    let mut client = AdminClient::new(channel);
    let data_uuid = order.data_uuid.clone();
    let whole = Some(wire_reign(&order.reign));
    let named = ReignRef { epoch: order.reign.epoch, reign_id: order.reign.reign_id.clone() };
    let reign = Some(wire_ref(&named));
    match &order.kind {
        OrderKind::Seal { about, evidence } => {
            // The first reign of a store is about no other.
            let about = (!about.reign_id.is_empty()).then(|| wire_ref(about));
            let evidence = wire_evidence(*evidence).into();
            client.seal(SealRequest { store_uid, data_uuid, reign, about, evidence }).await
        }
        OrderKind::Pull { source, upto } => {
            let (source, upto) = (Some(wire_endpoint(source)), wire_positions(upto));
            client.pull(PullRequest { store_uid, data_uuid, reign, source, upto }).await
        }
        OrderKind::Freeze { duration } => {
            let for_ms = u64::try_from(duration.as_millis()).unwrap_or(0);
            client.freeze(FreezeRequest { store_uid, data_uuid, reign, for_ms }).await
        }
        OrderKind::Promote { positions, first } => {
            let process_id = order.process_id.clone();
            let positions = wire_positions(positions);
            let first = *first;
            client.promote(PromoteRequest { store_uid, data_uuid, reign: whole, process_id, positions, first }).await
        }
        OrderKind::Follow { upstream, primary, bootstrap_source } => {
            let (upstream, primary) = (Some(wire_endpoint(upstream)), Some(wire_endpoint(primary)));
            let bootstrap_source = bootstrap_source.as_deref().map(wire_endpoint);
            let request = FollowRequest { store_uid, data_uuid, reign: whole, upstream, primary, bootstrap_source };
            client.follow(request).await
        }
    }
}

fn refusal(pod: &str, status: &Status) -> OrderError {
    let (pod, message) = (pod.to_owned(), status.message().to_owned());
    match status.code() {
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::AlreadyExists
        | Code::NotFound
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Aborted => OrderError::Refused { pod, message },
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => OrderError::Unreachable { pod, message },
    }
}
