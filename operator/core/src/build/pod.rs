//! A member's pod.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMapProjection, ConfigMapVolumeSource, Container, ContainerPort,
    DownwardAPIProjection, DownwardAPIVolumeFile, EmptyDirVolumeSource, EnvVar, EnvVarSource, HTTPGetAction, KeyToPath,
    ObjectFieldSelector, PersistentVolumeClaimVolumeSource, Pod, PodAffinityTerm, PodAntiAffinity, PodSecurityContext,
    PodSpec, Probe, ProjectedVolumeSource, SeccompProfile, SecurityContext, ServiceAccountTokenProjection,
    TopologySpreadConstraint, Volume, VolumeMount, VolumeProjection, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::config::CONFIG_FILE;
use crate::names::{self, ANNOTATION_CLAIM_UID, ANNOTATION_POD_HASH, LABEL_ROLE, LABEL_STORE, ROLE_REPLICA};
use crate::observed::{ClaimFacts, StoreFacts};
use crate::settings::pod_hash;

const USER: i64 = 65532;
const DATA_DIR: &str = "/data";
const CONFIG_DIR: &str = "/etc/parovoz";
/// Where every Kubernetes client looks for it.
const TOKEN_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const HOST_LABEL: &str = "kubernetes.io/hostname";

/// The pod of the member whose volume claim is given. It begins as a replica by label, as the process does by rule.
#[must_use]
pub fn pod(store: &StoreFacts, claim: &ClaimFacts, default_image: &str) -> Pod {
    let member = names::member(&store.name, claim.ordinal);
    let template = &store.spec.template;
    let mut meta = super::owned_meta(store, member.clone());
    let mut labels = template.labels.clone();
    labels.extend(super::member_labels(store, &member));
    labels.insert(LABEL_ROLE.into(), ROLE_REPLICA.into());
    meta.labels = Some(labels);
    let mut annotations = template.annotations.clone();
    annotations.insert(ANNOTATION_CLAIM_UID.into(), claim.uid.clone());
    annotations.insert(ANNOTATION_POD_HASH.into(), pod_hash(&store.spec));
    meta.annotations = Some(annotations);
    Pod {
        metadata: meta,
        spec: Some(PodSpec {
            service_account_name: Some(names::account(&store.name)),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            hostname: Some(member.clone()),
            subdomain: Some(names::service_members(&store.name)),
            termination_grace_period_seconds: Some(30),
            restart_policy: Some("Always".into()),
            security_context: Some(pod_security()),
            node_selector: Some(template.node_selector.clone()).filter(|selector| !selector.is_empty()),
            tolerations: Some(template.tolerations.clone()).filter(|tolerations| !tolerations.is_empty()),
            affinity: Some(template.affinity.clone().unwrap_or_else(|| apart(store))),
            topology_spread_constraints: Some(vec![spread(store)]),
            volumes: Some(volumes(store, claim)),
            containers: vec![container(store, claim, &member, default_image)],
            ..PodSpec::default()
        }),
        status: None,
    }
}

fn container(store: &StoreFacts, claim: &ClaimFacts, member: &str, default_image: &str) -> Container {
    let template = &store.spec.template;
    Container {
        name: "dataplane".into(),
        image: Some(store.spec.image.clone().unwrap_or_else(|| default_image.to_owned())),
        image_pull_policy: Some(store.spec.image_pull_policy.as_str().into()),
        command: Some(vec!["parovoz-dataplane".into()]),
        args: Some(vec!["run".into()]),
        env: Some(environment(store, claim, member)),
        ports: Some(ports()),
        resources: template.resources.clone(),
        security_context: Some(container_security()),
        volume_mounts: Some(vec![
            mount("data", DATA_DIR, false),
            mount("config", CONFIG_DIR, true),
            mount("tmp", "/tmp", false),
            mount("token", TOKEN_DIR, true),
        ]),
        // Opening a thousand prefixes takes seconds; a minute and more passes before a start counts as stuck.
        startup_probe: Some(probe("/healthz", 1, 120)),
        liveness_probe: Some(probe("/healthz", 10, 6)),
        readiness_probe: Some(probe("/readyz", 2, 2)),
        ..Container::default()
    }
}

fn environment(store: &StoreFacts, claim: &ClaimFacts, member: &str) -> Vec<EnvVar> {
    let literal = |name: &str, value: String| EnvVar { name: name.into(), value: Some(value), value_from: None };
    let field = |name: &str, path: &str| EnvVar {
        name: name.into(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector { field_path: path.into(), api_version: Some("v1".into()) }),
            ..EnvVarSource::default()
        }),
    };
    let mut environment = vec![
        literal("PAROVOZ_STORE_UID", store.uid.clone()),
        literal("PAROVOZ_STORE_NAME", store.name.clone()),
        literal("PAROVOZ_CLAIM_UID", claim.uid.clone()),
        literal("PAROVOZ_ADVERTISE_HOST", names::host(&store.name, &store.namespace, member)),
        literal("PAROVOZ_LEASE", names::lease(&store.name)),
        literal("PAROVOZ_DATA_DIR", DATA_DIR.into()),
        literal("PAROVOZ_CONFIG", format!("{CONFIG_DIR}/{CONFIG_FILE}")),
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_IP", "status.podIP"),
    ];
    environment.extend(store.spec.template.env.iter().map(|variable| literal(&variable.name, variable.value.clone())));
    environment
}

fn ports() -> Vec<ContainerPort> {
    [
        ("client", names::PORT_CLIENT),
        ("resp", names::PORT_RESP),
        ("bulk", names::PORT_BULK),
        ("replication", names::PORT_REPLICATION),
        ("admin", names::PORT_ADMIN),
        ("http", names::PORT_HTTP),
    ]
    .into_iter()
    .map(|(name, port)| ContainerPort {
        name: Some(name.into()),
        container_port: port,
        protocol: Some("TCP".into()),
        ..ContainerPort::default()
    })
    .collect()
}

fn probe(path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::String("http".into()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        failure_threshold: Some(failures),
        timeout_seconds: Some(3),
        ..Probe::default()
    }
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

fn volumes(store: &StoreFacts, claim: &ClaimFacts) -> Vec<Volume> {
    vec![
        Volume {
            name: "data".into(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.name.clone(),
                read_only: None,
            }),
            ..Volume::default()
        },
        Volume {
            name: "config".into(),
            config_map: Some(ConfigMapVolumeSource {
                name: names::config(&store.name),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        },
        Volume { name: "tmp".into(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() },
        token(),
    ]
}

/// What a member renews its Lease with: a token of an hour, renewed by the kubelet, and the API server's certificate.
fn token() -> Volume {
    let token = ServiceAccountTokenProjection {
        expiration_seconds: Some(3600),
        path: "token".into(),
        ..ServiceAccountTokenProjection::default()
    };
    let root = ConfigMapProjection {
        name: "kube-root-ca.crt".into(),
        items: Some(vec![KeyToPath { key: "ca.crt".into(), path: "ca.crt".into(), ..KeyToPath::default() }]),
        optional: None,
    };
    let namespace = DownwardAPIProjection {
        items: Some(vec![DownwardAPIVolumeFile {
            path: "namespace".into(),
            field_ref: Some(ObjectFieldSelector {
                field_path: "metadata.namespace".into(),
                api_version: Some("v1".into()),
            }),
            ..DownwardAPIVolumeFile::default()
        }]),
    };
    Volume {
        name: "token".into(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(vec![
                VolumeProjection { service_account_token: Some(token), ..VolumeProjection::default() },
                VolumeProjection { config_map: Some(root), ..VolumeProjection::default() },
                VolumeProjection { downward_api: Some(namespace), ..VolumeProjection::default() },
            ]),
            ..ProjectedVolumeSource::default()
        }),
        ..Volume::default()
    }
}

fn pod_security() -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(USER),
        run_as_group: Some(USER),
        fs_group: Some(USER),
        // A volume with many files would otherwise be walked at every start.
        fs_group_change_policy: Some("OnRootMismatch".into()),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), localhost_profile: None }),
        ..PodSecurityContext::default()
    }
}

fn container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
        ..SecurityContext::default()
    }
}

fn of_store(store: &StoreFacts) -> LabelSelector {
    LabelSelector {
        match_labels: Some(BTreeMap::from([(LABEL_STORE.to_owned(), store.name.clone())])),
        match_expressions: None,
    }
}

fn apart(store: &StoreFacts) -> Affinity {
    Affinity {
        pod_anti_affinity: Some(PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![WeightedPodAffinityTerm {
                weight: 100,
                pod_affinity_term: PodAffinityTerm {
                    label_selector: Some(of_store(store)),
                    topology_key: HOST_LABEL.into(),
                    ..PodAffinityTerm::default()
                },
            }]),
            ..PodAntiAffinity::default()
        }),
        ..Affinity::default()
    }
}

fn spread(store: &StoreFacts) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        max_skew: 1,
        topology_key: HOST_LABEL.into(),
        when_unsatisfiable: "ScheduleAnyway".into(),
        label_selector: Some(of_store(store)),
        ..TopologySpreadConstraint::default()
    }
}
