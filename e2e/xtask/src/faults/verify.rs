//! After a round: every acknowledged write looked up on every member.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::Connection;

use super::away::within;
use super::env::{Env, MEMBERS, Subject};
use super::load::history::{History, Outcome};
use crate::cluster::layout::Node;
use crate::error::{Context, Error, Result};
use crate::poll;
use crate::resp::RESP_PORT;

/// Keys of one request.
const BATCH: usize = 500;
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Records that a member should have, or may have, and does not.
#[derive(Debug, Default)]
pub struct Missing {
    /// Acknowledged and not on the primary.
    pub acked: BTreeMap<String, String>,
    /// Never answered and not on the primary.
    pub unknown: BTreeMap<String, String>,
    /// On the primary and not the same on some replica: member and key.
    pub unequal: Vec<String>,
}

/// Waits until all members are level, and looks up what the loads wrote.
pub fn lookup(env: &Env<'_>, subject: &Subject, histories: &[&History]) -> Result<Missing> {
    subject.store.await_healthy(MEMBERS)?;
    let members = subject.store.await_equal_positions(MEMBERS)?;
    let records = |outcome| histories.iter().flat_map(move |h| h.records(outcome)).collect::<Vec<_>>();
    let (acked, unknown) = (records(Outcome::Acked), records(Outcome::Unknown));
    let mut missing = Missing::default();
    let mut on_primary: Option<Vec<bool>> = None;
    // The primary first: replicas are compared with it.
    let (primaries, replicas): (Vec<_>, Vec<_>) = members.iter().partition(|m| m.role == "Primary");
    for member in primaries.iter().chain(&replicas) {
        let address = env.watch.addresses.of(&member.name);
        let address = address.ok_or_else(|| Error::failed(format!("find {}: no address", member.name)))?;
        let all = acked.iter().chain(&unknown);
        let found = within(Node(1), || present(&address, &member.name, all.collect()))?;
        match &on_primary {
            None => {
                let lacking = |part: &[(String, String)], found: &[bool]| {
                    part.iter().zip(found).filter(|(_, f)| !**f).map(|(r, _)| r.clone()).collect()
                };
                missing.acked = lacking(&acked, &found[..acked.len()]);
                missing.unknown = lacking(&unknown, &found[acked.len()..]);
                on_primary = Some(found);
            }
            Some(expected) => {
                let differ = expected.iter().zip(&found).zip(acked.iter().chain(&unknown)).filter(|((e, f), _)| e != f);
                missing.unequal.extend(differ.map(|(_, (key, _))| format!("{} {key}", member.name)));
            }
        }
    }
    Ok(missing)
}

/// Which of these records a member has.
fn present(address: &str, name: &str, records: Vec<&(String, String)>) -> Result<Vec<bool>> {
    let action = || format!("look records up on {name}");
    let mut connection = connect(address, name)?;
    let mut found = Vec::with_capacity(records.len());
    for batch in records.chunks(BATCH) {
        let keys: Vec<&str> = batch.iter().map(|(key, _)| key.as_str()).collect();
        let values: Vec<Option<String>> = redis::cmd("MGET").arg(keys).query(&mut connection).doing(action)?;
        if values.len() != batch.len() {
            return Err(Error::failed(format!("{}: {} values for {} keys", action(), values.len(), batch.len())));
        }
        found.extend(values.iter().zip(batch).map(|(value, (_, wanted))| value.as_ref() == Some(wanted)));
    }
    Ok(found)
}

/// Connects to a member's client port.
pub fn connect(address: &str, name: &str) -> Result<Connection> {
    poll::until(&format!("a connection to {name}"), CONNECT_LIMIT, Duration::from_millis(100), || {
        let client = redis::Client::open(format!("redis://{address}:{RESP_PORT}/")).map_err(|e| e.to_string())?;
        let connection = client.get_connection_with_timeout(CONNECT_LIMIT).map_err(|e| e.to_string())?;
        connection.set_read_timeout(Some(ANSWER_LIMIT)).map_err(|e| e.to_string())?;
        Ok(connection)
    })
}
