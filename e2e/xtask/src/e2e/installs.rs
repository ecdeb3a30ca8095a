//! The operator itself: installed by Helm and by plain manifests, restarted, removed.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Context, assert_equal_everywhere, ensure};
use crate::error::{Error, Result, read};
use crate::generate::NAMESPACE;
use crate::install::{self, DEPLOYMENT, LIMIT};
use crate::kube::{items, text};
use crate::paths;
use crate::poll;
use crate::resp::Contents;
use crate::store::{Store, members};

fn serves_a_store(context: &Context) -> Result<(Store, Contents)> {
    let mut expected = Contents::new();
    let store = context.healthy_store("cache", 2, json!({}))?;
    context.write(&store, 500, &mut expected)?;
    assert_equal_everywhere(&store, 2, &expected)?;
    store.await_status("a store of which nothing is pending", |_, object| {
        let waits = object.pointer("/status/waiting").and_then(Value::as_array).is_some_and(|w| !w.is_empty());
        let old = items(object, "/status/members").iter().any(|m| m["configOutdated"] == true);
        let mut conditions = items(object, "/status/conditions").iter();
        let progresses = conditions.any(|c| c["type"] == "Progressing" && c["status"] != "False");
        if waits || old || progresses { Err("it still waits".into()) } else { Ok(()) }
    })?;
    Ok((store, expected))
}

/// Nothing is there; `helm install` is enough.
pub fn by_helm(context: &Context) -> Result<()> {
    install::helm_remove(&context.kube)?;
    install::helm(&context.kube, &context.inputs)?;
    let deployment = context.kube.json(&format!("get deployment {DEPLOYMENT} -n {NAMESPACE}"))?;
    let ready = deployment.pointer("/status/readyReplicas").and_then(serde_json::Value::as_u64);
    ensure(ready == Some(2), || format!("2 operator pods wanted, ready: {ready:?}"))?;
    let notes = context.kube.helm(&format!("get notes {} --namespace {NAMESPACE}", install::RELEASE)).text()?;
    ensure(notes.contains("kubectl apply"), || format!("the notes do not say how to go on: {notes}"))?;
    serves_a_store(context).map(drop)
}

/// All operator pods are deleted while a store comes up, and again while it is scaled: it converges in one reign.
pub fn operator_restarted(context: &Context) -> Result<()> {
    let restart = || {
        let selector = "-l app.kubernetes.io/component=operator";
        context.kube.kubectl(&format!("delete pods -n {NAMESPACE} {selector} --wait=false")).done()
    };
    let store = context.store("cache");
    store.create(2, json!({}))?;
    poll::until("the first pod of the store", Duration::from_secs(60), Duration::from_millis(100), || {
        let pods = context.kube.json(&format!("get pods -n {} -l parovoz.dev/store=cache", context.namespace));
        let pods = pods.map_err(|e| e.to_string())?;
        poll::ready(!items(&pods, "/items").is_empty(), || "none".into())
    })?;
    restart()?;
    store.await_healthy(2)?;
    let mut expected = Contents::new();
    context.write(&store, 500, &mut expected)?;
    let before = members(&store.get()?);
    context.kube.kubectl(&format!("scale rstore cache -n {} --replicas=3", context.namespace)).done()?;
    restart()?;
    let after = store.await_healthy(3)?;
    for member in &before {
        let kept = after.iter().any(|m| m.name == member.name && m.data_uuid == member.data_uuid);
        ensure(kept, || format!("{} lost its identity {}", member.name, member.data_uuid))?;
    }
    context.kube.rolled_out(NAMESPACE, DEPLOYMENT, LIMIT)?;
    assert_equal_everywhere(&store, 3, &expected)
}

/// After `helm uninstall` the store serves on; after a new install its members are those of before.
pub fn uninstall_keeps(context: &Context) -> Result<()> {
    let (store, mut expected) = serves_a_store(context)?;
    let before = members(&store.get()?);
    install::helm_remove(&context.kube)?;
    for crd in ["replicatedstores.parovoz.dev", "storereigns.parovoz.dev"] {
        ensure(context.kube.find(&format!("get crd {crd}"))?.is_some(), || format!("{crd} went with the release"))?;
    }
    for member in &before {
        let (pod, claim) = (store.uid("pod", &member.name)?, store.uid("pvc", &format!("data-{}", member.name))?);
        ensure(pod.is_some() && claim.is_some(), || format!("{}: pod {pod:?}, claim {claim:?}", member.name))?;
    }
    context.write(&store, 200, &mut expected)?;
    install::helm(&context.kube, &context.inputs)?;
    let after = store.await_healthy(2)?;
    let identities =
        |all: &[crate::store::Member]| all.iter().map(|m| (m.name.clone(), m.data_uuid.clone())).collect::<Vec<_>>();
    ensure(identities(&before) == identities(&after), || "the members have other identities".into())?;
    assert_equal_everywhere(&store, 2, &expected)
}

/// The same from `manifests/install.yaml`, without Helm.
pub fn by_manifests(context: &Context) -> Result<()> {
    install::helm_remove(&context.kube)?;
    let manifest = read(&paths::repository().join("manifests/install.yaml"))?;
    let outcome = context
        .kube
        .kubectl("apply --server-side --force-conflicts -f -")
        .input(manifest.clone())
        .done()
        .and_then(|()| context.kube.rolled_out(NAMESPACE, DEPLOYMENT, LIMIT))
        .and_then(|()| serves_a_store(context));
    // The store must go while an operator is there; then all but what other tests share.
    let removed = context.store("cache").remove().and_then(|()| remove(context, &manifest));
    outcome?;
    removed?;
    install::helm(&context.kube, &context.inputs)
}

fn remove(context: &Context, manifest: &str) -> Result<()> {
    let kept = |document: &&str| {
        !document.lines().any(|l| matches!(l.trim_end(), "kind: CustomResourceDefinition" | "kind: Namespace"))
    };
    let documents: Vec<&str> = manifest.split("\n---\n").filter(kept).collect();
    context.kube.kubectl("delete --ignore-not-found --timeout=60s -f -").input(documents.join("\n---\n")).done()?;
    let left = context.kube.json(&format!("get deployments -n {NAMESPACE}"))?;
    let names: Vec<&str> = items(&left, "/items").iter().map(|d| text(d, "/metadata/name")).collect();
    if names.is_empty() { Ok(()) } else { Err(Error::failed(format!("left in {NAMESPACE}: {}", names.join(" ")))) }
}
