//! All members that are talked to.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use parovoz_operator_core::observed::Contact;
use parovoz_operator_core::plan::{Order, OrderKind};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

use super::convert::report;
use super::orders::{OrderError, send};
use super::watch::{State, watch};
use crate::error::StoreRef;
use crate::metrics::{Metrics, OrderName, OrderResult};

const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// Tells the queue that something about a store changed.
#[derive(Clone, Debug)]
pub(super) struct Notify {
    pub(super) store: StoreRef,
    pub(super) pod: String,
    queue: mpsc::Sender<StoreRef>,
}

impl Notify {
    /// A full queue already holds reasons to look; each store is also looked at regularly.
    pub(super) fn send(&self) {
        let _ = self.queue.try_send(self.store.clone());
    }
}

/// A pod that can be talked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberPod {
    /// metadata.name
    pub name: String,
    /// metadata.uid
    pub uid: String,
    /// Its address, once it has one.
    pub ip: Option<IpAddr>,
}

struct Member {
    uid: String,
    ip: IpAddr,
    channel: Channel,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The report streams of all members, by store and pod.
pub struct Members {
    port: u16,
    queue: mpsc::Sender<StoreRef>,
    metrics: Arc<Metrics>,
    stores: Mutex<HashMap<StoreRef, HashMap<String, Member>>>,
}

impl Members {
    /// Members are reached on this port; stores that changed are put into the queue.
    #[must_use]
    pub fn new(port: u16, queue: mpsc::Sender<StoreRef>, metrics: Arc<Metrics>) -> Self {
        Self { port, queue, metrics, stores: Mutex::default() }
    }

    /// Talk to exactly these pods of a store, and say what is known of each. A pod that was made anew, or has another
    /// address, begins with nothing known.
    #[must_use]
    pub fn sync(&self, store: &StoreRef, pods: &[MemberPod]) -> HashMap<String, Contact> {
        let mut stores = self.stores.lock();
        let members = stores.entry(store.clone()).or_default();
        members.retain(|name, member| {
            pods.iter().any(|pod| pod.name == *name && pod.uid == member.uid && pod.ip == Some(member.ip))
        });
        for pod in pods {
            if let (Some(ip), false) = (pod.ip, members.contains_key(&pod.name)) {
                match self.connect(store, pod, ip) {
                    Ok(member) => drop(members.insert(pod.name.clone(), member)),
                    Err(error) => tracing::warn!(%store, pod = pod.name, %error, "connect to member"),
                }
            }
        }
        members.iter().map(|(name, member)| (name.clone(), member.state.lock().contact())).collect()
    }

    fn connect(&self, store: &StoreRef, pod: &MemberPod, ip: IpAddr) -> Result<Member, tonic::transport::Error> {
        let address = SocketAddr::new(ip, self.port);
        let channel = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT_WITHIN)
            // A machine that vanished says nothing: it is missed after two seconds, before its replicas may
            // believe in its silence.
            .http2_keep_alive_interval(Duration::from_millis(1_200))
            .keep_alive_timeout(Duration::from_millis(800))
            .keep_alive_while_idle(true)
            .tcp_nodelay(true)
            .connect_lazy();
        let state = Arc::new(Mutex::new(State::new()));
        let notify = Notify { store: store.clone(), pod: pod.name.clone(), queue: self.queue.clone() };
        let task = tokio::spawn(watch(channel.clone(), state.clone(), notify, self.metrics.clone()));
        Ok(Member { uid: pod.uid.clone(), ip, channel, state, task })
    }

    /// Stop talking to the members of a store.
    pub fn forget(&self, store: &StoreRef) {
        self.stores.lock().remove(store);
    }

    /// Send orders, all at once, and take the reports that answer them over. Returns what became of those that were
    /// answered within `patience`; the others go on, and their answers are news like any other.
    pub async fn order_all(
        self: &Arc<Self>,
        store: &StoreRef,
        store_uid: &str,
        orders: &[Order],
        patience: Duration,
    ) -> Vec<Result<(), OrderError>> {
        let tasks = orders.iter().map(|order| {
            let (members, store, store_uid, order) = (self.clone(), store.clone(), store_uid.to_owned(), order.clone());
            let pod = order.pod.clone();
            let task = tokio::spawn(async move { members.order(&store, &store_uid, &order).await });
            async move {
                match tokio::time::timeout(patience, task).await {
                    Ok(Ok(result)) => result,
                    Ok(Err(error)) => Err(OrderError::Unreachable { pod, message: error.to_string() }),
                    Err(_) => Err(OrderError::UnderWay { pod }),
                }
            }
        });
        futures::future::join_all(tasks).await
    }

    /// Send an order, and take the report that answers it over.
    ///
    /// # Errors
    /// The member refused, or was not reached in time, or the same order to it is still under way.
    pub async fn order(&self, store: &StoreRef, store_uid: &str, order: &Order) -> Result<(), OrderError> {
        let name = name(&order.kind);
        let known = {
            let stores = self.stores.lock();
            let member = stores.get(store).and_then(|members| members.get(&order.pod));
            member.map(|member| (member.channel.clone(), member.state.clone()))
        };
        let sent = match known {
            Some((channel, state)) => {
                if !state.lock().begin(name) {
                    return Err(OrderError::UnderWay { pod: order.pod.clone() });
                }
                let answer = send(channel, store_uid, order).await;
                let mut state = state.lock();
                state.end(name);
                answer.map(|answer| {
                    if state.heard(report(answer)) {
                        // A full queue already holds reasons to look.
                        let _ = self.queue.try_send(store.clone());
                    }
                })
            }
            None => Err(OrderError::Unreachable { pod: order.pod.clone(), message: "its pod is gone".into() }),
        };
        let result = match &sent {
            Ok(()) => OrderResult::Done,
            Err(OrderError::Refused { .. }) => OrderResult::Refused,
            Err(OrderError::Unreachable { .. } | OrderError::UnderWay { .. }) => OrderResult::Unreachable,
        };
        self.metrics.order(name, result);
        sent
    }
}

fn name(kind: &OrderKind) -> OrderName {
    match kind {
        OrderKind::Seal { .. } => OrderName::Seal,
        OrderKind::Pull { .. } => OrderName::Pull,
        OrderKind::Freeze { .. } => OrderName::Freeze,
        OrderKind::Promote { .. } => OrderName::Promote,
        OrderKind::Follow { .. } => OrderName::Follow,
    }
}
