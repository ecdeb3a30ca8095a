//! The gRPC `Store` service, on the client and the bulk port: requests to the prefixes' loops, and range reads beside them.

mod errors;
mod flow;
mod range;
mod read;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parovoz_dataplane_core::types::PrefixName;
use parovoz_proto::v1;
use parovoz_proto::v1::store_server::Store as StoreApi;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tonic::{Request as Call, Response, Status};

use self::errors::{call_status, create_status, not_primary};
pub use self::flow::Paced;
use crate::clock;
use crate::shard::{Answer, BatchOp, FROZEN_LOOK, Request, ShardsHandle, Value};
use crate::store::Store;
use crate::store::prefix::Prefix;

/// How long a request may take whose client names no deadline, and at most.
const DEADLINE: Duration = Duration::from_secs(10);

type Reply<T> = Result<Response<T>, Status>;

/// See the module.
#[derive(Debug, Clone)]
pub struct StoreService {
    store: Arc<Store>,
    shards: ShardsHandle,
    ranges: range::Ranges,
}

impl StoreService {
    /// Serves `store` through its loops. Each port has one of its own: clones share the bounds of ranges.
    #[must_use]
    pub fn new(store: Arc<Store>, shards: ShardsHandle) -> Self {
        Self { store, shards, ranges: range::Ranges::default() }
    }

    /// The prefix of a read.
    fn prefix(&self, name: &str) -> Result<Arc<Prefix>, Status> {
        let name = check_name(name)?;
        self.store
            .prefix(name.as_str().as_bytes())
            .ok_or_else(|| Status::not_found(format!("read prefix {name}: there is no such prefix")))
    }

    /// The prefix of a write, created if there is none.
    async fn prefix_to_write(&self, name: &str, deadline: Instant) -> Result<Arc<Prefix>, Status> {
        let name = check_name(name)?;
        let mut role = self.store.role();
        // It led until a moment ago: soon it is known who does.
        while role.fenced && clock::boot_ms() < self.store.gate.held_until_ms() {
            timeout_at(deadline, tokio::time::sleep(FROZEN_LOOK)).await.map_err(|_| {
                Status::deadline_exceeded("write: the primary changes, and nothing was written; try again")
            })?;
            role = self.store.role();
        }
        if !role.is_primary {
            return Err(not_primary(role.primary.as_ref().map_or("", |p| p.client.as_str())));
        }
        if let Some(prefix) = self.store.prefix(name.as_str().as_bytes()) {
            return Ok(prefix);
        }
        let (sender, created) = oneshot::channel();
        // Whoever asked may have gone.
        self.store.create_prefix(name, Box::new(move |result| drop(sender.send(result))));
        match timeout_at(deadline, created).await {
            Err(_) => Err(Status::deadline_exceeded("create prefix: outcome unknown")),
            Ok(Err(_)) => Err(Status::unavailable("create prefix: the member is stopping")),
            Ok(Ok(Err(error))) => Err(create_status(&error, &self.store)),
            Ok(Ok(Ok(prefix))) => Ok(prefix),
        }
    }

    async fn ask(&self, prefix: &Prefix, request: Request, deadline: Instant) -> Result<Answer, Status> {
        match timeout_at(deadline, self.shards.call(prefix, request)).await {
            Ok(answer) => answer.map_err(call_status),
            Err(_) => {
                Err(Status::deadline_exceeded("the member did not answer in time; the outcome of a write is unknown"))
            }
        }
    }

    /// Reads keys as `options` demand.
    async fn values<T>(
        &self,
        call: &Call<T>,
        name: &str,
        options: Option<&v1::ReadOptions>,
        request: Request,
    ) -> Result<Answer, Status> {
        let deadline = deadline(call);
        let prefix = self.prefix(name)?;
        read::check(&self.store, &prefix, options, deadline).await?;
        self.ask(&prefix, request, deadline).await
    }

    /// Writes and answers position and outcome.
    async fn write<T>(&self, call: &Call<T>, name: &str, request: Request) -> Result<(v1::Position, i64), Status> {
        let deadline = deadline(call);
        let prefix = self.prefix_to_write(name, deadline).await?;
        match self.ask(&prefix, request, deadline).await? {
            Answer::Written { position, outcome } => {
                Ok((v1::Position { epoch: position.epoch.0, sequence: position.sequence.0 }, outcome))
            }
            _ => Err(Status::internal("write: the loop answered something else")),
        }
    }

    async fn set_key(&self, call: Call<v1::SetRequest>, if_absent: bool) -> Reply<v1::WriteResponse> {
        let m = call.get_ref();
        let request = Request::Set { key: m.key.clone(), value: m.value.clone(), ttl_ms: m.ttl_ms, if_absent };
        let (position, outcome) = self.write(&call, &m.prefix, request).await?;
        Ok(Response::new(v1::WriteResponse { position: Some(position), applied: outcome != 0 }))
    }
}

fn check_name(name: &str) -> Result<PrefixName, Status> {
    PrefixName::new(name).map_err(|e| Status::invalid_argument(e.to_string()))
}

/// When the client gives up (`grpc-timeout`), but at most [`DEADLINE`] from now.
fn deadline<T>(call: &Call<T>) -> Instant {
    let asked = call.metadata().get("grpc-timeout").and_then(|v| v.to_str().ok()).and_then(parse_timeout);
    Instant::now() + asked.map_or(DEADLINE, |asked| asked.min(DEADLINE))
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n.checked_mul(3600)?),
        "M" => Duration::from_secs(n.checked_mul(60)?),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

fn get_response(value: Option<Value>) -> v1::GetResponse {
    match value {
        Some((value, expires_at_ms)) => v1::GetResponse { found: true, value, expires_at_ms },
        None => v1::GetResponse::default(),
    }
}

fn one_value(answer: Answer) -> Option<Value> {
    match answer {
        Answer::Values(values) => values.into_iter().next().flatten(),
        _ => None,
    }
}

#[tonic::async_trait]
impl StoreApi for StoreService {
    async fn get(&self, call: Call<v1::GetRequest>) -> Reply<v1::GetResponse> {
        let m = call.get_ref();
        let answer = self.values(&call, &m.prefix, m.read.as_ref(), Request::Get { keys: vec![m.key.clone()] }).await?;
        Ok(Response::new(get_response(one_value(answer))))
    }

    async fn multi_get(&self, call: Call<v1::MultiGetRequest>) -> Reply<v1::MultiGetResponse> {
        let m = call.get_ref();
        let answer = self.values(&call, &m.prefix, m.read.as_ref(), Request::Get { keys: m.keys.clone() }).await?;
        let values = if let Answer::Values(values) = answer { values } else { Vec::new() };
        Ok(Response::new(v1::MultiGetResponse { values: values.into_iter().map(get_response).collect() }))
    }

    async fn has(&self, call: Call<v1::GetRequest>) -> Reply<v1::HasResponse> {
        let m = call.get_ref();
        let answer = self.values(&call, &m.prefix, m.read.as_ref(), Request::Has { key: m.key.clone() }).await?;
        Ok(Response::new(v1::HasResponse { found: matches!(answer, Answer::Has(true)) }))
    }

    async fn set(&self, call: Call<v1::SetRequest>) -> Reply<v1::WriteResponse> {
        self.set_key(call, false).await
    }

    async fn set_nx(&self, call: Call<v1::SetRequest>) -> Reply<v1::WriteResponse> {
        self.set_key(call, true).await
    }

    async fn del(&self, call: Call<v1::DelRequest>) -> Reply<v1::DelResponse> {
        let m = call.get_ref();
        let (position, deleted) = self.write(&call, &m.prefix, Request::Del { keys: m.keys.clone() }).await?;
        Ok(Response::new(v1::DelResponse { position: Some(position), deleted: u64::try_from(deleted).unwrap_or(0) }))
    }

    async fn inc(&self, call: Call<v1::IncRequest>) -> Reply<v1::IncResponse> {
        let m = call.get_ref();
        let (position, value) = self.write(&call, &m.prefix, Request::Inc { key: m.key.clone(), by: m.by }).await?;
        Ok(Response::new(v1::IncResponse { position: Some(position), value }))
    }

    async fn batch(&self, call: Call<v1::BatchRequest>) -> Reply<v1::WriteResponse> {
        let m = call.get_ref();
        let mut ops = Vec::with_capacity(m.ops.len());
        for op in &m.ops {
            ops.push(match &op.op {
                Some(v1::batch_op::Op::Put(put)) => {
                    BatchOp::Put { key: put.key.clone(), value: put.value.clone(), ttl_ms: put.ttl_ms }
                }
                Some(v1::batch_op::Op::Del(key)) => BatchOp::Del(Bytes::clone(key)),
                None => return Err(Status::invalid_argument("batch: an operation is neither put nor del")),
            });
        }
        let (position, _) = self.write(&call, &m.prefix, Request::Batch { ops }).await?;
        Ok(Response::new(v1::WriteResponse { position: Some(position), applied: true }))
    }

    type RangeStream = flow::RangeStream;

    async fn range(&self, call: Call<v1::RangeRequest>) -> Reply<Self::RangeStream> {
        let deadline = deadline(&call);
        let m = call.into_inner();
        let prefix = self.prefix(&m.prefix)?;
        read::check(&self.store, &prefix, m.read.as_ref(), deadline).await?;
        self.ranges.start(&self.store, prefix, m, deadline).await
    }

    async fn list_prefixes(&self, _: Call<v1::ListPrefixesRequest>) -> Reply<v1::ListPrefixesResponse> {
        let mut prefixes: Vec<_> = self.store.prefixes().by_name.values().cloned().collect();
        prefixes.sort_by(|a, b| a.name.cmp(&b.name));
        let info = |p: &Arc<Prefix>| {
            let position = p.position_at(p.applied());
            let copy = p.copy();
            v1::PrefixInfo {
                name: p.name.to_string(),
                prefix_uuid: p.uuid.to_string(),
                position: Some(v1::Position { epoch: position.epoch.0, sequence: position.sequence.0 }),
                estimated_keys: copy.as_ref().map_or(0, |c| c.db.estimated_keys()),
                bytes: copy.as_ref().map_or(0, |c| c.db.disk_bytes()),
            }
        };
        Ok(Response::new(v1::ListPrefixesResponse { prefixes: prefixes.iter().map(info).collect() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read() {
        assert_eq!(parse_timeout("5S"), Some(Duration::from_secs(5)));
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        for bad in ["", "S", "5", "5x", "ü", "99999999999999999999S"] {
            assert_eq!(parse_timeout(bad), None, "{bad}");
        }
    }
}
