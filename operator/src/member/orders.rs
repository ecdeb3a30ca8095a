//! Sending one order.

use std::time::Duration;

use parovoz_operator_core::plan::{Order, OrderKind};
use parovoz_proto::v1::admin_client::AdminClient;
use parovoz_proto::v1::{FollowRequest, MemberReport, PromoteRequest};
use thiserror::Error;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::convert::{wire_endpoint, wire_reign};

/// A promotion writes and syncs epoch records before it is answered.
const PROMOTE_WITHIN: Duration = Duration::from_secs(10);
const FOLLOW_WITHIN: Duration = Duration::from_secs(5);

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
    /// The member was not reached, or not in time: what became of the order is not known.
    #[error("order member {pod}: {message}")]
    Unreachable {
        /// The member.
        pod: String,
        /// What went wrong.
        message: String,
    },
}

pub(super) async fn send(
    channel: Channel,
    store_uid: &str,
    lease_ms: u64,
    order: &Order,
) -> Result<MemberReport, OrderError> {
    let mut client = AdminClient::new(channel);
    let reign = Some(wire_reign(&order.reign, lease_ms));
    let (store_uid, data_uuid) = (store_uid.to_owned(), order.data_uuid.clone());
    let (limit, answer) = match &order.kind {
        OrderKind::Promote => {
            let (process_id, first_reign) = (order.process_id.clone(), order.first_reign);
            let request = PromoteRequest { store_uid, data_uuid, reign, process_id, first_reign };
            (PROMOTE_WITHIN, tokio::time::timeout(PROMOTE_WITHIN, client.promote(request)).await)
        }
        OrderKind::Follow { upstream, primary, bootstrap_source } => {
            let (upstream, primary) = (Some(wire_endpoint(upstream)), Some(wire_endpoint(primary)));
            let bootstrap_source = bootstrap_source.as_deref().map(wire_endpoint);
            let request = FollowRequest { store_uid, data_uuid, reign, upstream, primary, bootstrap_source };
            (FOLLOW_WITHIN, tokio::time::timeout(FOLLOW_WITHIN, client.follow(request)).await)
        }
    };
    match answer {
        Ok(Ok(report)) => Ok(report.into_inner()),
        Ok(Err(status)) => Err(refusal(&order.pod, &status)),
        Err(_) => {
            Err(OrderError::Unreachable { pod: order.pod.clone(), message: format!("no answer within {limit:?}") })
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
