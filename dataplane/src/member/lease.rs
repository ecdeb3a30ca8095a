//! The primary's own Lease in the API server, which a W = 0 primary needs to serve: renewed by compare-and-swap, in the name of
//! its epoch. A Lease that carries a higher epoch was taken by the next reign, and is never taken back.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};
use kube::{Client, Config};
use parovoz_dataplane_core::role::Event;
use parovoz_dataplane_core::types::Reign;
use tokio::sync::mpsc;

use super::state::MemberState;
use crate::clock;

/// Annotation of the Lease: the epoch that it is held for.
pub const EPOCH_ANNOTATION: &str = "parovoz.dev/epoch";
/// The epoch in which the holder last renewed it. The operator raises the other one for a reign to come, and leaves the holder.
const HELD_ANNOTATION: &str = "parovoz.dev/held-epoch";
/// Longest wait for one request.
const REQUEST: Duration = Duration::from_secs(3);
/// Tries of one renewal when others write the Lease at the same time.
const CONFLICTS: usize = 3;

/// A renewal that is due.
#[derive(Debug, Clone)]
pub struct Renewal {
    /// In the name of this reign.
    pub reign: Reign,
    /// `clock::boot_ms` from which it counts.
    pub sent_at_ms: u64,
}

/// Why a renewal failed; the next one is asked for by the role.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Where the API server is, or how to authenticate.
    #[error("find API server: {0}")]
    Config(String),
    /// The API server refused.
    #[error("renew lease: {0}")]
    Api(#[from] kube::Error),
    /// It said nothing.
    #[error("renew lease: no answer within {REQUEST:?}")]
    Late,
    /// Others wrote it at the same time, again and again.
    #[error("renew lease: it was written by somebody else {CONFLICTS} times in a row")]
    Conflicts,
}

/// What became of a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Held,
    /// It carries a higher epoch, or another holder under this one.
    Lost,
}

/// Sends the renewals that the role asks for, until nobody can ask any more.
pub async fn keep(name: String, state: Arc<MemberState>, mut renewals: mpsc::Receiver<Renewal>) {
    let mut api: Option<Api<Lease>> = None;
    let mut failing = false;
    while let Some(Renewal { reign, sent_at_ms }) = renewals.recv().await {
        let result = match tokio::time::timeout(REQUEST, renew(&mut api, &name, &reign)).await {
            Ok(result) => result,
            Err(_) => Err(LeaseError::Late),
        };
        let of = reign.to_ref();
        match result {
            Ok(Outcome::Held) => {
                if failing {
                    tracing::info!(lease = %name, "lease renewed again");
                }
                failing = false;
                state.hear(Event::LeaseRenewed { reign: of, sent_at_ms });
            }
            Ok(Outcome::Lost) => {
                tracing::error!(lease = %name, epoch = %of.epoch, "the lease was taken by another reign: serving ends");
                state.hear(Event::LeaseLost { reign: of });
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(lease = %name, %error, "lease not renewed");
                }
                failing = true;
                // A client whose token or address has changed is made anew.
                api = None;
            }
        }
    }
}

async fn renew(api: &mut Option<Api<Lease>>, name: &str, reign: &Reign) -> Result<Outcome, LeaseError> {
    let api = match api {
        Some(api) => api,
        None => api.insert(connect().await?),
    };
    for _ in 0..CONFLICTS {
        let written = match api.get_opt(name).await? {
            Some(mut lease) => {
                if is_lost(&lease, reign) {
                    return Ok(Outcome::Lost);
                }
                take(&mut lease, reign);
                api.replace(name, &PostParams::default(), &lease).await
            }
            None => {
                let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
                let mut lease = Lease { metadata, spec: None };
                take(&mut lease, reign);
                api.create(&PostParams::default(), &lease).await
            }
        };
        match written {
            Ok(_) => return Ok(Outcome::Held),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(LeaseError::Conflicts)
}

async fn connect() -> Result<Api<Lease>, LeaseError> {
    let mut config = Config::infer().await.map_err(|e| LeaseError::Config(e.to_string()))?;
    config.connect_timeout = Some(REQUEST);
    config.read_timeout = Some(REQUEST);
    config.write_timeout = Some(REQUEST);
    Ok(Api::default_namespaced(Client::try_from(config)?))
}

fn epoch_of(lease: &Lease, annotation: &str) -> u64 {
    let annotations = lease.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get(annotation)).and_then(|epoch| epoch.parse().ok()).unwrap_or(0)
}

fn is_lost(lease: &Lease, reign: &Reign) -> bool {
    let (epoch, held) = (epoch_of(lease, EPOCH_ANNOTATION), epoch_of(lease, HELD_ANNOTATION));
    let holder = lease.spec.as_ref().and_then(|s| s.holder_identity.as_deref()).unwrap_or_default();
    let another = !holder.is_empty() && holder != reign.primary.to_string();
    epoch > reign.epoch.0 || (held >= reign.epoch.0 && another)
}

/// Writes this reign's epoch and primary into a Lease, and that it was renewed now.
fn take(lease: &mut Lease, reign: &Reign) {
    let now = Timestamp::from_millisecond(i64::try_from(clock::wall_ms()).unwrap_or(i64::MAX)).unwrap_or_default();
    let me = reign.primary.to_string();
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    if spec.holder_identity.as_deref() != Some(&me) {
        spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
        spec.acquire_time = Some(MicroTime(now));
    }
    spec.holder_identity = Some(me);
    // In whole seconds, rounded up: for people, since nobody but the operator's own clock decides.
    spec.lease_duration_seconds = Some(i32::try_from(reign.lease_duration_ms.div_ceil(1000)).unwrap_or(i32::MAX));
    spec.renew_time = Some(MicroTime(now));
    let annotations = lease.metadata.annotations.get_or_insert_default();
    annotations.insert(EPOCH_ANNOTATION.to_owned(), reign.epoch.to_string());
    annotations.insert(HELD_ANNOTATION.to_owned(), reign.epoch.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;
    use parovoz_dataplane_core::types::{DataUuid, Epoch, Mode, ReignId};
    use uuid::Uuid;

    fn reign(epoch: u64, primary: u128) -> Reign {
        Reign {
            epoch: Epoch(epoch),
            reign_id: ReignId(Uuid::from_u128(1)),
            primary: DataUuid(Uuid::from_u128(primary)),
            members: vec![DataUuid(Uuid::from_u128(primary))],
            mode: Mode::Async,
            min_sync_replicas: 0,
            lease_duration_ms: 9_500,
        }
    }

    #[test]
    fn a_lease_of_a_higher_epoch_or_of_another_holder_is_lost_and_an_older_one_is_taken_over() {
        let mut lease = Lease::default();
        assert!(!is_lost(&lease, &reign(3, 1)));
        take(&mut lease, &reign(3, 1));
        assert_eq!(epoch_of(&lease, EPOCH_ANNOTATION), 3);
        assert_eq!(lease.spec.as_ref().and_then(|s| s.lease_duration_seconds), Some(10));
        assert!(!is_lost(&lease, &reign(3, 1)), "its own");
        assert!(is_lost(&lease, &reign(3, 2)), "another holder of the same epoch");
        assert!(is_lost(&lease, &reign(2, 1)), "an older epoch never takes it back");
        assert!(!is_lost(&lease, &reign(4, 2)), "the next reign takes it over");
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.insert(EPOCH_ANNOTATION.to_owned(), "4".to_owned());
        assert!(is_lost(&lease, &reign(3, 1)), "raised by the operator for the next reign");
        assert!(!is_lost(&lease, &reign(4, 2)), "which takes it over from the holder that is left in it");
        take(&mut lease, &reign(4, 2));
        assert_eq!(lease.spec.as_ref().and_then(|s| s.lease_transitions), Some(2));
    }
}
