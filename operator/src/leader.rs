//! Leader election: one Lease, renewed by compare-and-swap. A process that cannot renew in time stops at once; the Lease
//! only keeps two operators from getting in each other's way, safety rests on the swaps of the decision records.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};
use thiserror::Error;

use crate::error::{Class, classify};
use crate::http::Health;
use crate::metrics::Metrics;

/// How long a Lease holds.
pub const LEASE: Duration = Duration::from_secs(15);
/// How long a holder goes on trying to renew before it stops: shorter than the Lease, so that it stops first.
pub const RENEW_WITHIN: Duration = Duration::from_secs(10);
/// How often the Lease is renewed or looked at.
pub const EVERY: Duration = Duration::from_secs(2);
/// Longest wait for one request.
const REQUEST: Duration = Duration::from_secs(3);

/// The Lease is lost, or could not be asked for.
#[derive(Debug, Error)]
pub enum LeaderError {
    /// Another process holds it.
    #[error("renew lease: it is held by {0}")]
    Taken(String),
    /// It could not be renewed in time.
    #[error("renew lease: no success within {RENEW_WITHIN:?}: {0}")]
    Late(String),
}

/// One round: what was found.
#[derive(Debug, PartialEq, Eq)]
pub enum Round {
    /// This process holds the Lease.
    Held,
    /// Another one does.
    Other(String),
}

/// The election of one process.
pub struct Election {
    api: Api<Lease>,
    name: String,
    identity: String,
    /// The other holder's last renewal, as it wrote it, and when it was first seen here: its clock is not trusted.
    seen: Option<(LeaseSpec, Instant)>,
}

impl Election {
    /// Take part under this identity, which no other process may have.
    #[must_use]
    pub fn new(api: Api<Lease>, name: String, identity: String) -> Self {
        Self { api, name, identity, seen: None }
    }

    /// Ask for the Lease until it is held.
    pub async fn acquire(&mut self, health: &Health, metrics: &Metrics) {
        loop {
            let round = self.round().await;
            health.alive();
            match round {
                Ok(Round::Held) => {
                    beat(health, metrics);
                    return;
                }
                Ok(Round::Other(_)) => beat(health, metrics),
                Err(cause) => tracing::warn!(cause, "ask for lease"),
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Renew the Lease for as long as that works. Returns why it does not any more.
    pub async fn keep(&mut self, health: &Health, metrics: &Metrics) -> LeaderError {
        let mut renewed = tokio::time::Instant::now();
        loop {
            let left = || RENEW_WITHIN.saturating_sub(renewed.elapsed());
            tokio::time::sleep(EVERY.min(left())).await;
            let began = tokio::time::Instant::now();
            let round = self.round_within(REQUEST.min(left())).await;
            health.alive();
            match round {
                Ok(Round::Held) => {
                    // Others count from the write, which may have come long before its answer.
                    renewed = began;
                    beat(health, metrics);
                }
                Ok(Round::Other(holder)) => return LeaderError::Taken(holder),
                Err(cause) if renewed.elapsed() >= RENEW_WITHIN => return LeaderError::Late(cause),
                Err(cause) => tracing::warn!(cause, "renew lease"),
            }
        }
    }

    /// Give the Lease back, so that another process need not wait for its end.
    pub async fn release(&mut self) {
        let given = async {
            let mut lease = self.api.get(&self.name).await?;
            if let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_ref() == Some(&self.identity))
            {
                spec.holder_identity = None;
                self.api.replace(&self.name, &PostParams::default(), &lease).await?;
            }
            Ok::<_, kube::Error>(())
        };
        match tokio::time::timeout(REQUEST, given).await {
            Ok(Ok(())) => tracing::info!("lease given back"),
            Ok(Err(error)) => tracing::warn!(%error, "give lease back"),
            Err(_) => tracing::warn!("give lease back: no answer in time"),
        }
    }

    /// Look at the Lease once, and take or renew it where that is allowed.
    ///
    /// # Errors
    /// The API server did not answer, or refused.
    pub async fn round(&mut self) -> Result<Round, String> {
        self.round_within(REQUEST).await
    }

    async fn round_within(&mut self, patience: Duration) -> Result<Round, String> {
        match tokio::time::timeout(patience, self.try_round()).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {patience:?}")),
        }
    }

    /// Somebody else was first with a write. It need not be another holder: a late write of one's own is as well.
    async fn lost(&self, error: kube::Error) -> Result<Round, kube::Error> {
        let lease = self.api.get_opt(&self.name).await?;
        let holder = lease.and_then(|lease| lease.spec).and_then(|spec| spec.holder_identity);
        match holder.filter(|holder| !holder.is_empty() && *holder != self.identity) {
            Some(holder) => Ok(Round::Other(holder)),
            None => Err(error),
        }
    }

    async fn try_round(&mut self) -> Result<Round, kube::Error> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                spec: Some(self.renewed(None)),
            };
            return match self.api.create(&PostParams::default(), &lease).await {
                Ok(_) => Ok(Round::Held),
                Err(error) if classify(&error) == Class::Conflict => self.lost(error).await,
                Err(error) => Err(error),
            };
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        if holder != self.identity && !holder.is_empty() && !self.expired(&spec) {
            return Ok(Round::Other(holder));
        }
        lease.spec = Some(self.renewed(Some(&spec)));
        match self.api.replace(&self.name, &PostParams::default(), &lease).await {
            Ok(_) => Ok(Round::Held),
            Err(error) if classify(&error) == Class::Conflict => self.lost(error).await,
            Err(error) => Err(error),
        }
    }

    /// True once another holder's Lease has not moved for its whole duration, by this process's clock.
    fn expired(&mut self, spec: &LeaseSpec) -> bool {
        match &self.seen {
            Some((seen, since)) if seen == spec => {
                let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
                since.elapsed() > seconds.map_or(LEASE, Duration::from_secs)
            }
            _ => {
                self.seen = Some((spec.clone(), Instant::now()));
                false
            }
        }
    }

    fn renewed(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let same = before.filter(|before| before.holder_identity.as_ref() == Some(&self.identity));
        let transitions = before.and_then(|before| before.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
            acquire_time: same.and_then(|same| same.acquire_time.clone()).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(if same.is_some() || before.is_none() { transitions } else { transitions + 1 }),
            ..LeaseSpec::default()
        }
    }
}

fn beat(health: &Health, metrics: &Metrics) {
    health.ready(true);
    let seconds = u32::try_from(Timestamp::now().as_second()).unwrap_or(u32::MAX);
    metrics.heartbeat(f64::from(seconds));
}

/// An election that is shared with the shutdown.
pub type SharedElection = Arc<tokio::sync::Mutex<Election>>;
