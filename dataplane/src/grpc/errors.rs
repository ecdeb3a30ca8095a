//! Errors as gRPC statuses; the codes are documented in `store.proto`.

use tonic::Status;
use tonic::metadata::MetadataValue;

use crate::shard::CallError;
use crate::store::{CreateError, Store};

/// Metadata that holds the primary's address.
const PRIMARY: &str = "parovoz-primary";

/// The refusal of a write on a replica; `primary` is empty if unknown.
pub(super) fn not_primary(primary: &str) -> Status {
    let shown = if primary.is_empty() { "unknown at the moment" } else { primary };
    let mut status = Status::failed_precondition(format!("write to a replica: the primary is {shown}"));
    if let Ok(value) = MetadataValue::try_from(primary) {
        status.metadata_mut().insert(PRIMARY, value);
    }
    status
}

pub(super) fn call_status(error: CallError) -> Status {
    match error {
        CallError::NotPrimary(primary) => not_primary(&primary),
        CallError::Unavailable(text) => Status::unavailable(text),
        CallError::BadKey(text) | CallError::BadNumber(text) => Status::invalid_argument(text),
        CallError::Limit(text) => Status::resource_exhausted(text),
        CallError::Unknown(_) => Status::deadline_exceeded(error.to_string()),
        CallError::Engine(text) => Status::internal(text),
    }
}

pub(super) fn create_status(error: &CreateError, store: &Store) -> Status {
    let text = error.to_string();
    match error {
        CreateError::NotPrimary => not_primary(store.role().primary.as_ref().map_or("", |p| p.client.as_str())),
        CreateError::NotOnWrite(_) => Status::not_found(text),
        CreateError::TooMany { .. } => Status::resource_exhausted(text),
        CreateError::Busy(_) => Status::unavailable(text),
        CreateError::Failed { .. } => Status::internal(text),
    }
}
