//! Writing to and reading from one member over RESP, and digests of what was read, computed outside the data plane.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use redis::Connection;
use sha2::{Digest, Sha256};

use crate::cluster::containers::hex;
use crate::error::{Context, Error, Result};
use crate::kube::{Forward, Kube};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// What is refused for so long was not refused for a change of reign.
const AGAIN_LIMIT: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(100);
/// Records of one pipeline; together with the size below it bounds what waits for answers.
const BATCH_RECORDS: usize = 500;
const BATCH_BYTES: usize = 1 << 20;
const SCAN_COUNT: usize = 1000;
/// The port that members serve RESP on.
pub const RESP_PORT: u16 = 6379;

/// A key and the SHA-256 of its value, for every record, in the order of the keys.
pub type Contents = BTreeMap<Vec<u8>, [u8; 32]>;

/// A connection to one member through its own port-forward.
pub struct Client {
    /// Leads to the member for as long as the client lives.
    _forward: Forward,
    connection: Connection,
    target: String,
}

impl Client {
    /// Connects to a pod (`pod/NAME`) or to what a service chooses (`service/NAME`).
    pub fn connect(kube: &Kube, namespace: &str, target: &str) -> Result<Self> {
        let forward = kube.forward(namespace, target, RESP_PORT)?;
        let action = || format!("connect to {target}");
        let client = redis::Client::open(format!("redis://127.0.0.1:{}/", forward.port)).doing(action)?;
        let connection = client.get_connection_with_timeout(CONNECT_LIMIT).doing(action)?;
        connection.set_read_timeout(Some(ANSWER_LIMIT)).doing(action)?;
        connection.set_write_timeout(Some(ANSWER_LIMIT)).doing(action)?;
        Ok(Self { _forward: forward, connection, target: target.to_owned() })
    }

    /// Writes records by pipelines of SET; `acknowledged` hears how many so far. Returns when all are acknowledged.
    pub fn write<'a>(
        &mut self,
        records: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
        mut acknowledged: impl FnMut(usize),
    ) -> Result<usize> {
        let (mut done, mut waiting, mut bytes) = (0, 0, 0);
        let mut batch = redis::pipe();
        for (key, value) in records {
            batch.cmd("SET").arg(key).arg(value).ignore();
            waiting += 1;
            bytes += key.len() + value.len();
            if waiting == BATCH_RECORDS || bytes >= BATCH_BYTES {
                self.send(&batch)?;
                done += waiting;
                acknowledged(done);
                batch = redis::pipe();
                (waiting, bytes) = (0, 0);
            }
        }
        if waiting > 0 {
            self.send(&batch)?;
            done += waiting;
            acknowledged(done);
        }
        Ok(done)
    }

    /// Writes a batch; once more where the member answered that it could not, or that it does not know: a reign that changes
    /// takes a moment, and the same records written twice are the same.
    fn send(&mut self, batch: &redis::Pipeline) -> Result<()> {
        let until = Instant::now() + AGAIN_LIMIT;
        loop {
            match batch.exec(&mut self.connection) {
                Err(e) if !e.is_io_error() && !e.is_connection_dropped() && Instant::now() < until => {
                    std::thread::sleep(AGAIN);
                }
                sent => return sent.doing(|| format!("write to {}", self.target)),
            }
        }
    }

    /// Reads every record of every prefix; `progress` hears how many so far.
    pub fn contents(&mut self, mut progress: impl FnMut(usize)) -> Result<Contents> {
        let action = format!("read from {}", self.target);
        let mut found = Contents::new();
        let mut cursor = "0".to_owned();
        loop {
            let (next, keys): (String, Vec<Vec<u8>>) = redis::cmd("SCAN")
                .arg(&cursor)
                .arg("COUNT")
                .arg(SCAN_COUNT)
                .query(&mut self.connection)
                .doing(|| action.clone())?;
            if !keys.is_empty() {
                let values: Vec<Option<Vec<u8>>> =
                    redis::cmd("MGET").arg(&keys).query(&mut self.connection).doing(|| action.clone())?;
                if values.len() != keys.len() {
                    return Err(Error::failed(format!("{action}: {} values for {} keys", values.len(), keys.len())));
                }
                for (key, value) in keys.into_iter().zip(values) {
                    let name = String::from_utf8_lossy(&key).into_owned();
                    let value =
                        value.ok_or_else(|| Error::failed(format!("{action}: {name} is listed and has no value")))?;
                    found.insert(key, Sha256::digest(&value).into());
                }
                progress(found.len());
            }
            if next == "0" {
                return Ok(found);
            }
            cursor = next;
        }
    }
}

/// One digest over all records in the order of their keys.
pub fn digest(contents: &Contents) -> String {
    let mut hash = Sha256::new();
    for (key, value) in contents {
        hash.update((key.len() as u64).to_be_bytes());
        hash.update(key);
        hash.update(value);
    }
    hex(&hash.finalize())
}

/// Fails, naming the first differences, unless both are equal.
pub fn compare(who: &str, expected: &Contents, found: &Contents) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    let missing = expected.keys().filter(|k| !found.contains_key(*k));
    let extra = found.keys().filter(|k| !expected.contains_key(*k));
    let other = expected.iter().filter(|(k, v)| found.get(*k).is_some_and(|f| f != *v)).map(|(k, _)| k);
    let describe = |label: &str, keys: Vec<&Vec<u8>>| {
        let shown: Vec<_> = keys.iter().take(5).map(|k| String::from_utf8_lossy(k).into_owned()).collect();
        format!("{} {label}{}{}", keys.len(), if shown.is_empty() { "" } else { ": " }, shown.join(", "))
    };
    Err(Error::failed(format!(
        "compare {who}: {} records expected, {} found; {}; {}; {}",
        expected.len(),
        found.len(),
        describe("missing", missing.collect()),
        describe("not expected", extra.collect()),
        describe("with another value", other.collect()),
    )))
}

#[cfg(test)]
mod tests {
    use super::{Contents, compare, digest};

    fn contents(pairs: &[(&str, u8)]) -> Contents {
        pairs.iter().map(|(k, v)| (k.as_bytes().to_vec(), [*v; 32])).collect()
    }

    #[test]
    fn the_digest_depends_on_every_key_and_value() {
        let all = [
            contents(&[]),
            contents(&[("a", 1)]),
            contents(&[("a", 2)]),
            contents(&[("b", 1)]),
            contents(&[("a", 1), ("b", 1)]),
        ];
        let digests: std::collections::BTreeSet<_> = all.iter().map(digest).collect();
        assert_eq!(digests.len(), all.len());
    }

    #[test]
    fn a_difference_is_told_by_kind_and_key() {
        let expected = contents(&[("a:1", 1), ("a:2", 2)]);
        assert!(compare("x", &expected, &expected.clone()).is_ok());
        let report = compare("x", &expected, &contents(&[("a:2", 3), ("a:3", 3)]))
            .map_or_else(|e| e.to_string(), |()| String::new());
        for part in ["1 missing: a:1", "1 not expected: a:3", "1 with another value: a:2"] {
            assert!(report.contains(part), "{report}");
        }
    }
}
