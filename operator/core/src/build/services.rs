//! The four services of a store.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::names::{self, LABEL_IN_STANDING, LABEL_ROLE, LABEL_STORE, ROLE_PRIMARY, ROLE_REPLICA};
use crate::observed::StoreFacts;

const CLIENT_PORTS: [(&str, i32); 3] =
    [("client", names::PORT_CLIENT), ("resp", names::PORT_RESP), ("bulk", names::PORT_BULK)];
const MEMBER_PORTS: [(&str, i32); 6] = [
    ("client", names::PORT_CLIENT),
    ("resp", names::PORT_RESP),
    ("bulk", names::PORT_BULK),
    ("replication", names::PORT_REPLICATION),
    ("admin", names::PORT_ADMIN),
    ("http", names::PORT_HTTP),
];

/// `-rw` (the primary), `-ro` (replicas in standing), `-r` (every ready member) and the headless `-members`.
#[must_use]
pub fn services(store: &StoreFacts) -> [Service; 4] {
    let mut rw = for_clients(store, names::service_rw(&store.name), &[(LABEL_ROLE, ROLE_PRIMARY)]);
    if let Some(spec) = &mut rw.spec {
        // The label alone says who is the primary, and a primary says itself what it does not serve yet: waiting for the
        // kubelet's next probe would only make a failover longer.
        spec.publish_not_ready_addresses = Some(true);
    }
    [
        rw,
        for_clients(store, names::service_ro(&store.name), &[(LABEL_ROLE, ROLE_REPLICA), (LABEL_IN_STANDING, "true")]),
        for_clients(store, names::service_any(&store.name), &[]),
        headless(store),
    ]
}

fn for_clients(store: &StoreFacts, name: String, more: &[(&str, &str)]) -> Service {
    let mut selector = BTreeMap::from([(LABEL_STORE.to_owned(), store.name.clone())]);
    selector.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    service(
        store,
        name,
        ServiceSpec { selector: Some(selector), ports: Some(ports(&CLIENT_PORTS)), ..ServiceSpec::default() },
    )
}

/// Host names for all members, ready or not: a member that is not ready yet must be reached to become so.
fn headless(store: &StoreFacts) -> Service {
    service(
        store,
        names::service_members(&store.name),
        ServiceSpec {
            cluster_ip: Some("None".into()),
            publish_not_ready_addresses: Some(true),
            selector: Some(BTreeMap::from([(LABEL_STORE.to_owned(), store.name.clone())])),
            ports: Some(ports(&MEMBER_PORTS)),
            ..ServiceSpec::default()
        },
    )
}

fn service(store: &StoreFacts, name: String, spec: ServiceSpec) -> Service {
    Service { metadata: super::owned_meta(store, name), spec: Some(spec), status: None }
}

fn ports(ports: &[(&str, i32)]) -> Vec<ServicePort> {
    ports
        .iter()
        .map(|(name, port)| ServicePort {
            name: Some((*name).into()),
            port: *port,
            target_port: Some(IntOrString::String((*name).into())),
            protocol: Some("TCP".into()),
            ..ServicePort::default()
        })
        .collect()
}
