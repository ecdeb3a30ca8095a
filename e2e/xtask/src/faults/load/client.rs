//! A client as a careful application has it: through the store's service, to wherever a refusal says that the primary is, and
//! never sure of what was not answered.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::{Connection, RedisError};

use crate::resp::RESP_PORT;

/// A node that is gone answers nothing; a second attempt may lead elsewhere.
const CONNECT_LIMIT: Duration = Duration::from_millis(300);
/// After this a request that was not answered counts as unknown.
const ANSWER_LIMIT: Duration = Duration::from_millis(1000);

/// Why a request failed that was never sent.
pub const NO_CONNECTION: &str = "no connection";

/// The addresses of pods by name, as known at present.
#[derive(Default)]
pub struct Addresses(Mutex<BTreeMap<String, String>>);

impl Addresses {
    /// A pod has this address now.
    pub fn set(&self, pod: &str, address: &str) {
        if let Ok(mut all) = self.0.lock() {
            all.insert(pod.to_owned(), address.to_owned());
        }
    }

    /// The address of a pod.
    pub fn of(&self, pod: &str) -> Option<String> {
        self.0.lock().ok()?.get(pod).cloned()
    }
}

/// Where a store is reached.
#[derive(Clone)]
pub struct Route {
    /// The address of the service, or of the one pod that is meant.
    pub address: String,
    /// Where a refusal may lead.
    pub addresses: Arc<Addresses>,
}

/// Why a request brought no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It was not sent, or a replica refused it: it has no effect.
    Refused,
    /// It may have been done, may still be done, or not.
    Unknown,
}

/// One connection at a time.
pub struct Client {
    route: Route,
    connection: Option<Connection>,
    /// Where to go next.
    hint: Option<String>,
    /// Why the last request that failed did, for people.
    why: String,
}

impl Client {
    /// Not connected yet.
    pub fn new(route: Route) -> Self {
        Self { route, connection: None, hint: None, why: String::new() }
    }

    /// One request. Whatever fails it, the next one is on a new connection.
    pub fn call<T>(&mut self, request: impl FnOnce(&mut Connection) -> Result<T, RedisError>) -> Result<T, Failure> {
        if self.connection.is_none() {
            let address = self.hint.take().unwrap_or_else(|| self.route.address.clone());
            self.connection = connect(&address);
        }
        let Some(connection) = self.connection.as_mut() else {
            self.why = NO_CONNECTION.to_owned();
            return Err(Failure::Refused);
        };
        request(connection).map_err(|e| {
            self.connection = None;
            self.why = e.to_string();
            // A member that says LOADING may have stopped leading between a commit and its answer.
            if e.code() != Some("READONLY") {
                return Failure::Unknown;
            }
            let told = e.detail().and_then(|text| text.rsplit_once("primary is ")).map(|(_, at)| at.to_owned());
            self.hint = told.and_then(|at| self.resolve(&at));
            Failure::Refused
        })
    }

    /// Why the last request that failed did.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// Leaves this member; the next request goes to where it says, or through the service.
    pub fn leave(&mut self, primary: Option<&str>) {
        self.connection = None;
        self.hint = primary.and_then(|at| self.resolve(at));
    }

    /// The address of `POD.SERVICE.NAMESPACE...:PORT`, or of `ADDRESS:PORT`.
    fn resolve(&self, told: &str) -> Option<String> {
        let host = told.trim().rsplit_once(':').map_or(told, |(host, _)| host);
        if host.parse::<std::net::IpAddr>().is_ok() {
            return Some(host.to_owned());
        }
        self.route.addresses.of(host.split('.').next().unwrap_or(host))
    }
}

fn connect(address: &str) -> Option<Connection> {
    let client = redis::Client::open(format!("redis://{address}:{RESP_PORT}/")).ok()?;
    let connection = client.get_connection_with_timeout(CONNECT_LIMIT).ok()?;
    connection.set_read_timeout(Some(ANSWER_LIMIT)).ok()?;
    connection.set_write_timeout(Some(ANSWER_LIMIT)).ok()?;
    Some(connection)
}
