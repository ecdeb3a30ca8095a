//! From the wire's words to the core's, with errors that name the field.

use parovoz_dataplane_core::member::{PromoteOrder, SealEvidence, SealOrder};
use parovoz_dataplane_core::role::Event;
use parovoz_dataplane_core::types::{BadUuid, DataUuid, PrefixUuid, Reign, ReignRef, StoreUid};
use parovoz_dataplane_core::vote::Vote;
use parovoz_proto::v1;
use tonic::Status;

use crate::clock;
use crate::replication::ReplicationCtx;
use crate::replication::wire::{self, WireError};
use crate::store::{Endpoint, Store};

/// A hold that nobody renews must not fill the volume.
const MAX_HOLD_SECONDS: u64 = 24 * 3600;

/// Why an order can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// An identity is malformed.
    #[error(transparent)]
    Uuid(#[from] BadUuid),
    /// A field has another form.
    #[error(transparent)]
    Wire(#[from] WireError),
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
    Ok((member.parse()?, wire::reign_from(reign)?))
}

/// An order to lead.
///
/// # Errors
/// See [`ConvertError`].
pub fn promotion(from: v1::PromoteRequest) -> Result<PromoteOrder, ConvertError> {
    let (member, reign) = order(&from.data_uuid, from.reign.as_ref())?;
    let vote = |v: &v1::Vote| {
        let unknown = Vote::Unknown { floor: v.floor.map(|p| wire::position_from(Some(p))) };
        let vote = v.known.map_or(unknown, |p| Vote::Known(wire::position_from(Some(p))));
        Ok((wire::prefix_from(&v.prefix_uuid)?, vote))
    };
    let positions = from.positions.iter().map(vote).collect::<Result<_, ConvertError>>()?;
    Ok(PromoteOrder { store: StoreUid(from.store_uid), member, reign, positions, first: from.first })
}

/// An order to seal.
///
/// # Errors
/// See [`ConvertError`].
pub fn seal(from: &v1::SealRequest) -> Result<SealOrder, ConvertError> {
    let evidence = match from.evidence() {
        v1::SealEvidence::Dead => SealEvidence::Dead,
        v1::SealEvidence::PrimarySealed => SealEvidence::PrimarySealed,
        v1::SealEvidence::Silent => SealEvidence::Silent,
        v1::SealEvidence::Unspecified => return Err(ConvertError::Missing("evidence")),
    };
    Ok(SealOrder {
        store: StoreUid(from.store_uid.clone()),
        member: from.data_uuid.parse()?,
        reign: reign_ref(from.reign.as_ref())?,
        about: from.about.as_ref().map(wire::reign_ref_from).transpose()?,
        evidence,
    })
}

/// An order to fetch what is missing.
///
/// # Errors
/// See [`ConvertError`].
pub fn pull(from: &v1::PullRequest) -> Result<Event, ConvertError> {
    let upto = |v: &v1::Vote| {
        let known = v.known.ok_or(ConvertError::Missing("upto.known"))?;
        Ok((wire::prefix_from(&v.prefix_uuid)?, wire::position_from(Some(known))))
    };
    Ok(Event::Pull {
        store: StoreUid(from.store_uid.clone()),
        member: from.data_uuid.parse()?,
        reign: reign_ref(from.reign.as_ref())?,
        source: endpoint(from.source.as_ref())?,
        upto: from.upto.iter().map(upto).collect::<Result<_, ConvertError>>()?,
    })
}

/// An order to let writes wait.
///
/// # Errors
/// See [`ConvertError`].
pub fn freeze(from: &v1::FreezeRequest) -> Result<Event, ConvertError> {
    Ok(Event::Freeze {
        store: StoreUid(from.store_uid.clone()),
        member: from.data_uuid.parse()?,
        reign: reign_ref(from.reign.as_ref())?,
        for_ms: from.for_ms,
    })
}

fn reign_ref(reign: Option<&v1::ReignRef>) -> Result<ReignRef, ConvertError> {
    Ok(wire::reign_ref_from(reign.ok_or(ConvertError::Missing("reign"))?)?)
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
        ip: endpoint.ip.clone(),
    })
}

fn held_prefix(store: &Store, name: &str) -> Result<Option<PrefixUuid>, Status> {
    if name.is_empty() {
        return Ok(None);
    }
    let found = store.prefix(name.as_bytes());
    found.map(|p| Some(p.uuid)).ok_or_else(|| Status::not_found(format!("hold: there is no prefix {name}")))
}

/// `delay_background`.
///
/// # Errors
/// For an unknown prefix or a time out of bounds.
pub fn hold(store: &Store, ctx: &ReplicationCtx, order: &v1::HoldRequest) -> Result<v1::HoldResponse, Status> {
    let prefix = held_prefix(store, &order.prefix)?;
    let seconds = if order.seconds == 0 { store.settings.load().hold_timeout_seconds } else { order.seconds };
    if seconds > MAX_HOLD_SECONDS {
        return Err(Status::invalid_argument(format!(
            "hold: {seconds} s is more than {MAX_HOLD_SECONDS} s; renew it instead"
        )));
    }
    ctx.holds.lock().delay(prefix, clock::boot_ms() + seconds * 1000);
    Ok(holds(store, ctx))
}

/// `continue_background`.
///
/// # Errors
/// For an unknown prefix.
pub fn release(store: &Store, ctx: &ReplicationCtx, prefix: &str) -> Result<v1::HoldResponse, Status> {
    ctx.holds.lock().continue_(held_prefix(store, prefix)?);
    Ok(holds(store, ctx))
}

fn holds(store: &Store, ctx: &ReplicationCtx) -> v1::HoldResponse {
    let now = clock::boot_ms();
    let name = |uuid| store.prefix_by_uuid(uuid).map(|p| p.name.to_string()).unwrap_or_default();
    let holds = ctx.holds.lock();
    let all = holds.live(now).map(|h| v1::HoldInfo {
        prefix: h.prefix.map(name).unwrap_or_default(),
        owner: h.owner.to_string(),
        after_sequence: h.after.0,
        expires_in_seconds: h.expires_ms.saturating_sub(now) / 1000,
    });
    v1::HoldResponse { holds: all.collect() }
}
