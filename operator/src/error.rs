//! What can go wrong in a pass over a store, and whether trying again helps.

use std::time::Duration;

use kube::runtime::reflector::ObjectRef;
use parovoz_api::ReplicatedStore;
use thiserror::Error;

/// A pass over a store failed. Never stops other stores.
#[derive(Debug, Error)]
pub enum Error {
    /// The decision record could not be read. Retryable.
    #[error("read decision record: {0}")]
    ReadReign(#[source] kube::Error),
    /// The decision record is not what was observed any more: observe again. No order was sent.
    #[error("swap decision record: it was changed by somebody else")]
    Conflict,
    /// The decision record could not be written. Whether it was is not known: observe again. No order was sent.
    #[error("swap decision record: {0}")]
    WriteReign(#[source] kube::Error),
    /// The primary's Lease could not be read. Retryable.
    #[error("read lease of the primary: {0}")]
    ReadLease(#[source] kube::Error),
    /// The primary's Lease could not be raised. Retryable.
    #[error("raise lease of the primary: {0}")]
    WriteLease(#[source] kube::Error),
    /// The status could not be written. Retryable.
    #[error("write status: {0}")]
    WriteStatus(#[source] kube::Error),
    /// The object cannot be read by this version of the operator. Terminal until it changes.
    #[error("read store: {0}")]
    Unreadable(String),
    /// The object lacks what the API server always fills in. Terminal until it changes.
    #[error("read store: it has no {0}")]
    Incomplete(&'static str),
    /// The pass took too long. Retryable.
    #[error("reconcile store: not done within {0:?}")]
    Timeout(Duration),
}

/// Whether trying again as it is can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Network, timeouts, overload: again, with a pause.
    Retryable,
    /// Somebody else was first: observe again at once.
    Conflict,
    /// It is not there.
    Gone,
    /// Refused for what it is: only a change by a person helps.
    Terminal,
}

impl Error {
    /// The class, by exhaustive match.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Conflict => Class::Conflict,
            Self::ReadReign(cause)
            | Self::WriteReign(cause)
            | Self::ReadLease(cause)
            | Self::WriteLease(cause)
            | Self::WriteStatus(cause) => match classify(cause) {
                // The record or the store went away meanwhile: the next observation sees it.
                Class::Gone | Class::Conflict => Class::Conflict,
                other => other,
            },
            Self::Unreadable(_) | Self::Incomplete(_) => Class::Terminal,
            Self::Timeout(_) => Class::Retryable,
        }
    }

    /// When to try again.
    #[must_use]
    pub fn pause(&self) -> Duration {
        match self.class() {
            Class::Conflict => Duration::from_millis(200),
            Class::Retryable | Class::Gone => Duration::from_secs(3),
            // A change of the object is a new pass of its own; this one catches a missed event.
            Class::Terminal => Duration::from_secs(60),
        }
    }
}

/// Whether trying a request again can help.
#[must_use]
pub fn classify(error: &kube::Error) -> Class {
    match error {
        kube::Error::Api(status) => match status.code {
            404 | 410 => Class::Gone,
            409 => Class::Conflict,
            400 | 403 | 405 | 406 | 413 | 415 | 422 => Class::Terminal,
            _ => Class::Retryable,
        },
        kube::Error::HyperError(_)
        | kube::Error::Service(_)
        | kube::Error::ReadEvents(_)
        | kube::Error::LinesCodecMaxLineLengthExceeded
        | kube::Error::Auth(_)
        | kube::Error::UpgradeConnection(_)
        | kube::Error::Discovery(_) => Class::Retryable,
        kube::Error::ProxyProtocolUnsupported { .. }
        | kube::Error::ProxyProtocolDisabled { .. }
        | kube::Error::FromUtf8(_)
        | kube::Error::HttpError(_)
        | kube::Error::SerdeError(_)
        | kube::Error::BuildRequest(_)
        | kube::Error::InferConfig(_)
        | kube::Error::RustlsTls(_)
        | kube::Error::TlsRequired
        | kube::Error::InferKubeconfig(_) => Class::Terminal,
    }
}

/// Names a store in logs and queues.
pub type StoreRef = ObjectRef<kube::core::DeserializeGuard<ReplicatedStore>>;

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    fn api(code: u16) -> kube::Error {
        kube::Error::Api(Box::new(Status { code, ..Status::failure("x", "x") }))
    }

    #[test]
    fn refusals_are_terminal_and_overload_is_tried_again() {
        for code in [400, 403, 422] {
            assert_eq!(classify(&api(code)), Class::Terminal, "{code}");
        }
        for code in [429, 500, 502, 503, 504] {
            assert_eq!(classify(&api(code)), Class::Retryable, "{code}");
        }
        assert_eq!(classify(&api(409)), Class::Conflict);
        assert_eq!(classify(&api(404)), Class::Gone);
    }

    #[test]
    fn every_failed_pass_is_tried_again_some_time() {
        for error in
            [Error::Conflict, Error::Unreadable("x".into()), Error::ReadReign(api(503)), Error::WriteReign(api(422))]
        {
            assert!(!error.pause().is_zero() && error.pause() <= Duration::from_secs(60));
        }
    }
}
