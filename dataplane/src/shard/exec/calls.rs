//! Requests of threads that are not loops.

use bytes::Bytes;
use parovoz_dataplane_core::types::Position;

use super::{Executor, Refusal, Waiter};
use crate::shard::message::{Answer, BatchOp, Call, CallError, Request, Value};
use crate::shard::stats::add;

const RECORD_OVERHEAD: usize = 32;

impl Executor {
    /// Executes a request; it is answered at once or at the end of the pass, or, under W > 0, when replicas have it.
    pub(in crate::shard) fn call(&mut self, call: Call) {
        add(&self.stats().calls, 1);
        self.begin_command();
        let writes = !matches!(call.request, Request::Get { .. } | Request::Has { .. });
        if let Err(refusal) = self.admit(writes, false) {
            let error = self.call_error(refusal);
            return call.reply.send(Err(error));
        }
        let Some(index) = self.state_of(call.prefix) else {
            call.reply.send(Err(CallError::Unavailable("it is not served by this member".to_owned())));
            return;
        };
        match self.answer(index, call.request) {
            Err(refusal) => {
                let error = self.call_error(refusal);
                call.reply.send(Err(error));
            }
            Ok(answer) if self.depends.is_empty() => {
                let refusal = self.gate_refusal(false).filter(|_| self.primary);
                let answer = refusal.map_or(Ok(answer), |refusal| Err(self.call_error(refusal)));
                call.reply.send(answer);
            }
            Ok(answer) => self.park(index, Waiter::Call(call.reply, answer)),
        }
    }

    fn answer(&mut self, index: usize, request: Request) -> Result<Answer, Refusal> {
        let outcome = match request {
            Request::Get { keys } => return self.call_get(index, &keys),
            Request::Has { key } => {
                let hash = self.open(index, &key)?;
                let found = self.read(index, hash, &key)?.is_some();
                self.depend(index);
                return Ok(Answer::Has(found));
            }
            Request::Set { key, value, ttl_ms, if_absent } => {
                let op = BatchOp::Put { key, value, ttl_ms };
                let applies = !if_absent || self.is_absent(index, &op)?;
                if applies {
                    self.call_batch(index, &[op])?;
                }
                i64::from(applies)
            }
            Request::Del { keys } => self.call_del(index, &keys)?,
            Request::Inc { key, by } => self.increment(index, &key, by)?,
            Request::Batch { ops } => {
                self.call_batch(index, &ops)?;
                1
            }
        };
        self.depend(index);
        // Replaced by the batch's position if something was written.
        let position: Position = self.states[index].prefix.position_at(self.latest(index));
        Ok(Answer::Written { position, outcome })
    }

    fn call_get(&mut self, index: usize, keys: &[Bytes]) -> Result<Answer, Refusal> {
        let mut values: Vec<Option<Value>> = Vec::with_capacity(keys.len());
        let mut bytes = 0;
        for key in keys {
            let hash = self.open(index, key)?;
            let seen = self.read(index, hash, key)?;
            values.push(seen.map(|seen| (Bytes::copy_from_slice(seen.value), seen.expires_at_ms)));
            bytes += values.last().and_then(|v| v.as_ref()).map_or(0, |(v, _)| v.len());
            if bytes > self.limits.batch {
                return Err(Refusal::LongReply(self.limits.batch));
            }
        }
        self.depend(index);
        Ok(Answer::Values(values))
    }

    fn is_absent(&mut self, index: usize, op: &BatchOp) -> Result<bool, Refusal> {
        let key = match op {
            BatchOp::Put { key, .. } | BatchOp::Del(key) => key,
        };
        let hash = self.open_to_write(index, key, 0)?;
        Ok(self.read(index, hash, key)?.is_none())
    }

    fn call_del(&mut self, index: usize, keys: &[Bytes]) -> Result<i64, Refusal> {
        let bytes = keys.iter().map(|k| k.len() + RECORD_OVERHEAD).sum();
        self.prepare(index, bytes)?;
        // As in DEL: all reads before the first deletion.
        let mut found = std::collections::HashSet::new();
        for key in keys {
            let hash = self.open(index, key)?;
            if self.read(index, hash, key)?.is_some() {
                found.insert(key);
            }
        }
        for key in &found {
            let hash = self.hash(index, key);
            self.delete(index, hash, key);
        }
        Ok(found.len() as i64)
    }

    fn call_batch(&mut self, index: usize, ops: &[BatchOp]) -> Result<(), Refusal> {
        let mut bytes = 0;
        for op in ops {
            match op {
                BatchOp::Put { key, value, .. } => {
                    self.check_key(key)?;
                    self.check_value(value)?;
                    bytes += key.len() + value.len() + RECORD_OVERHEAD;
                }
                BatchOp::Del(key) => {
                    self.check_key(key)?;
                    bytes += key.len() + RECORD_OVERHEAD;
                }
            }
        }
        self.prepare(index, bytes)?;
        let now = self.now_ms;
        for op in ops {
            match op {
                BatchOp::Put { key, value, ttl_ms } => {
                    let expires = if *ttl_ms == 0 { 0 } else { now.saturating_add(*ttl_ms) };
                    let hash = self.hash(index, key);
                    self.put(index, hash, key, value, expires);
                }
                BatchOp::Del(key) => {
                    let hash = self.hash(index, key);
                    self.delete(index, hash, key);
                }
            }
        }
        Ok(())
    }

    pub(super) fn call_error(&self, refusal: Refusal) -> CallError {
        match refusal {
            Refusal::ReadOnly(_) => CallError::NotPrimary(self.primary_client()),
            Refusal::Loading(_)
            | Refusal::LoadingStore
            | Refusal::NotSure
            | Refusal::Fenced
            | Refusal::NotServed(_) => CallError::Unavailable(refusal.to_string()),
            Refusal::LongKey { len, limit } => CallError::BadKey(format!("key is {len} bytes, the limit is {limit}")),
            Refusal::LongValue { len, limit } => {
                CallError::Limit(format!("value is {len} bytes, the limit is {limit}"))
            }
            Refusal::LongBatch { len, limit } => {
                CallError::Limit(format!("batch is {len} bytes, the limit is {limit}"))
            }
            Refusal::LongReply(limit) => {
                CallError::Limit(format!("the reply would be larger than {limit} bytes: ask for fewer keys"))
            }
            Refusal::NotInteger => CallError::BadNumber("increment: the value is not an integer of 64 bits".to_owned()),
            Refusal::Overflow => CallError::BadNumber("increment: the sum is out of the range of 64 bits".to_owned()),
            Refusal::Unknown(why) => CallError::Unknown(why),
            Refusal::Unconfirmed(_) => CallError::Unavailable(refusal.to_string()),
            Refusal::Command(error) => CallError::BadKey(error.to_string()),
            Refusal::BadPrefix(text) => CallError::BadKey(text),
            Refusal::InvalidExpire(_) => CallError::BadKey("the expiry is out of range".to_owned()),
            Refusal::Engine(text) => CallError::Engine(text),
        }
    }
}
