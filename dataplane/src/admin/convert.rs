//! From the wire's words to the core's, with errors that name the field.

use parovoz_dataplane_core::types::{BadUuid, DataUuid, Epoch, Mode, Reign};
use parovoz_proto::v1;

use crate::store::Endpoint;

/// Why an order can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// An identity is malformed.
    #[error(transparent)]
    Uuid(#[from] BadUuid),
    /// A field is missing.
    #[error("read order: {0} is missing")]
    Missing(&'static str),
}

/// The member and the reign that an order names.
///
/// # Errors
/// See [`ConvertError`].
pub fn order(member: &str, reign: Option<&v1::Reign>) -> Result<(DataUuid, Reign), ConvertError> {
    let reign = reign.ok_or(ConvertError::Missing("reign"))?;
    let mode = match reign.mode() {
        v1::Mode::Async => Mode::Async,
        v1::Mode::Quorum => Mode::Quorum,
        v1::Mode::Unspecified => return Err(ConvertError::Missing("reign.mode")),
    };
    let members = reign.members.iter().map(|m| m.parse()).collect::<Result<_, _>>()?;
    let reign = Reign {
        epoch: Epoch(reign.epoch),
        reign_id: reign.reign_id.parse()?,
        primary: reign.primary.parse()?,
        members,
        mode,
        min_sync_replicas: reign.min_sync_replicas,
        lease_duration_ms: reign.lease_duration_ms,
    };
    Ok((member.parse()?, reign))
}

/// Where a member is reached.
///
/// # Errors
/// See [`ConvertError`].
pub fn endpoint(endpoint: Option<&v1::Endpoint>) -> Result<Endpoint, ConvertError> {
    let endpoint = endpoint.ok_or(ConvertError::Missing("endpoint"))?;
    Ok(Endpoint {
        data_uuid: if endpoint.data_uuid.is_empty() { None } else { Some(endpoint.data_uuid.parse()?) },
        replication: endpoint.replication_address.clone(),
        client: endpoint.client_address.clone(),
        resp: endpoint.resp_address.clone(),
    })
}
