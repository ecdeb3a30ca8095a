//! What becomes of members: more of them, fewer, without their pod, without their volume.

use serde_json::{Value, json};

use super::{Context, assert_equal_everywhere, ensure};
use crate::error::Result;
use crate::resp::Contents;
use crate::store::{Member, Store};

fn three(context: &Context, expected: &mut Contents) -> Result<Store> {
    let store = context.healthy_store("cache", 3, json!({}))?;
    context.write(&store, 2000, expected)?;
    assert_equal_everywhere(&store, 3, expected)?;
    Ok(store)
}

/// Waits until a pod of this name has another uid than `old`.
fn await_new_pod(store: &Store, pod: &str, old: Option<String>) -> Result<()> {
    store.await_status(&format!("a new pod {pod}"), |_, _| {
        let now = store.uid("pod", pod).map_err(|e| e.to_string())?;
        if now.is_some() && now != old { Ok(()) } else { Err("the old pod is still there, or none".into()) }
    })
}

fn named<'a>(members: &'a [Member], name: &str) -> Option<&'a Member> {
    members.iter().find(|m| m.name == name)
}

/// 1, 3, 2 members by `kubectl scale`; the primary stays, and every record is on every member each time.
pub fn scale(context: &Context) -> Result<()> {
    let mut expected = Contents::new();
    let store = context.healthy_store("cache", 1, json!({}))?;
    context.write(&store, 2000, &mut expected)?;
    assert_equal_everywhere(&store, 1, &expected)?;
    let primary = store.primary()?;
    for replicas in [3, 2] {
        context
            .kube
            .kubectl(&format!("scale rstore {} -n {} --replicas={replicas}", store.name, store.namespace))
            .done()?;
        store.await_healthy(replicas)?;
        context.write(&store, 500, &mut expected)?;
        assert_equal_everywhere(&store, replicas, &expected)?;
        let now = store.primary()?;
        ensure(now == primary, || format!("scaling to {replicas} moved the primary from {primary} to {now}"))?;
    }
    let pods = context.kube.json(&format!("get pods -n {} -l parovoz.dev/store={}", store.namespace, store.name))?;
    let count = crate::kube::items(&pods, "/items").len();
    ensure(count == 2, || format!("2 pods wanted, {count} there"))
}

/// The pod is made anew on the same volume: same claim, same identity, same data, and it streams what it missed.
pub fn replica_pod_deleted(context: &Context) -> Result<()> {
    let mut expected = Contents::new();
    let store = three(context, &mut expected)?;
    let victim = store.replica()?;
    let claim = format!("data-{}", victim.name);
    let (pod, volume) = (store.uid("pod", &victim.name)?, store.uid("pvc", &claim)?);
    store.delete_pod(&victim.name)?;
    context.write(&store, 500, &mut expected)?;
    await_new_pod(&store, &victim.name, pod)?;
    let members = store.await_healthy(3)?;
    let uuid = named(&members, &victim.name).map(|m| m.data_uuid.clone());
    ensure(uuid.as_ref() == Some(&victim.data_uuid), || format!("identity {} became {uuid:?}", victim.data_uuid))?;
    let volume_now = store.uid("pvc", &claim)?;
    ensure(volume_now == volume, || "the claim was made anew".into())?;
    assert_equal_everywhere(&store, 3, &expected)
}

/// The primary's process is gone and comes back: promoted again, at a higher epoch, with everything acknowledged.
pub fn primary_pod_deleted(context: &Context) -> Result<()> {
    let mut expected = Contents::new();
    let store = three(context, &mut expected)?;
    let (primary, epoch) = (store.primary()?, store.epoch()?);
    let pod = store.uid("pod", &primary)?;
    store.delete_pod(&primary)?;
    await_new_pod(&store, &primary, pod)?;
    store.await_status("a higher epoch", |_, object| {
        let now = object.pointer("/status/epoch").and_then(Value::as_i64).unwrap_or(0);
        if now > epoch { Ok(()) } else { Err(format!("epoch {now}")) }
    })?;
    store.await_healthy(3)?;
    context.write(&store, 500, &mut expected)?;
    assert_equal_everywhere(&store, 3, &expected)
}

/// Volume and pod are deleted: a new volume, a new identity, and the same contents again.
pub fn volume_lost(context: &Context) -> Result<()> {
    let mut expected = Contents::new();
    let store = three(context, &mut expected)?;
    let victim = store.replica()?;
    store.delete_volume(&victim.name)?;
    context.write(&store, 500, &mut expected)?;
    store.await_status("a new identity", |members, _| match named(members, &victim.name) {
        Some(m) if !m.data_uuid.is_empty() && m.data_uuid != victim.data_uuid => Ok(()),
        Some(m) => Err(format!("identity {:?}", m.data_uuid)),
        None => Err("no member".into()),
    })?;
    store.await_healthy(3)?;
    assert_equal_everywhere(&store, 3, &expected)
}
