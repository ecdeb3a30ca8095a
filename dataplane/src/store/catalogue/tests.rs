#![allow(clippy::unwrap_used)]
use std::path::Path;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;

use parovoz_dataplane_core::lease::Serving;
use parovoz_dataplane_core::types::{DataUuid, Epoch, Limits, Mode, Reign, ReignId, StoreUid};
use parovoz_engine::memory::MemoryEngine;

use super::*;
use crate::config::Settings;
use crate::scratch::Scratch;
use crate::store::RoleView;

/// An engine on a volume that may have no room for prefixes.
#[derive(Debug, Default)]
struct Volume {
    engine: MemoryEngine,
    full: AtomicBool,
    /// Looked at whenever a prefix is opened.
    store: Mutex<Weak<Store>>,
    saw_prefix_without_copy: AtomicBool,
}

impl Engine for Volume {
    fn open(&self, dir: &Path, spec: &OpenSpec) -> Result<Arc<dyn Database>, EngineError> {
        let of_catalogue = dir.to_string_lossy().contains(PrefixName::catalogue().as_str());
        if self.full.load(Ordering::SeqCst) && !of_catalogue {
            return Err(EngineError::NoSpace { action: "open".into() });
        }
        let listed = self.store.lock().upgrade().map(|store| store.prefixes());
        if listed.is_some_and(|map| map.by_uuid.values().any(|prefix| prefix.copy().is_none())) {
            self.saw_prefix_without_copy.store(true, Ordering::SeqCst);
        }
        self.engine.open(dir, spec)
    }
    fn destroy(&self, dir: &Path) -> Result<(), EngineError> {
        self.engine.destroy(dir)
    }
    fn memory_bytes(&self) -> u64 {
        self.engine.memory_bytes()
    }
}

fn member(dir: &Scratch, engine: &Arc<Volume>) -> (Arc<Store>, Arc<Catalogue>) {
    let me = DataUuid(Uuid::from_u128(1));
    let store = Arc::new(Store::new(StoreUid("s".into()), me, Limits::default(), Settings::default(), 1 << 20));
    let layout = Layout::open(dir.path()).unwrap();
    let switch = FatalSwitch::with(|why| panic!("{why}"));
    let catalogue = Catalogue::start(store.clone(), engine.clone(), layout, 1, switch).unwrap();
    (store, catalogue)
}

fn lead(store: &Store, catalogue: &Catalogue) {
    let me = store.data_uuid;
    let reign = Reign {
        epoch: Epoch(1),
        reign_id: ReignId(Uuid::from_u128(1)),
        primary: me,
        members: vec![me],
        mode: Mode::Async,
        min_sync_replicas: 0,
        lease_duration_ms: 5000,
    };
    catalogue.create_blank().unwrap().begin_epoch(reign.to_ref(), true).unwrap();
    store.set_role(RoleView { reign: Some(reign), is_primary: true, ..RoleView::default() });
    store.gate.publish(Serving { read_until_ms: u64::MAX, acknowledge_until_ms: u64::MAX }, 0);
}

fn name(name: &str) -> PrefixName {
    PrefixName::new(name).unwrap()
}

#[test]
fn a_copy_that_a_full_volume_can_not_open_is_opened_when_there_is_room() {
    let (dir, engine) = (Scratch::new(), Arc::new(Volume::default()));
    let (store, catalogue) = member(&dir, &engine);
    lead(&store, &catalogue);
    let made = catalogue.create_now(&name("p"), false).unwrap();
    let uuid = made.uuid;
    drop((store, catalogue, made));
    engine.full.store(true, Ordering::SeqCst);
    let (store, catalogue) = member(&dir, &engine);
    assert!(catalogue.open_all().unwrap());
    let prefix = store.prefix_by_uuid(uuid).unwrap();
    assert!(prefix.copy().is_none() && prefix.lacks_room(), "{:?}", prefix.phase());
    catalogue.layout.keep_reserve();
    catalogue.open_waiting();
    assert!(prefix.lacks_room() && matches!(prefix.phase(), PrefixPhase::Stopped { .. }));
    engine.full.store(false, Ordering::SeqCst);
    catalogue.layout.keep_reserve();
    let stopped = prefix.phase();
    prefix.set_phase(PrefixPhase::Bootstrapping);
    catalogue.open_waiting();
    assert!(prefix.copy().is_none(), "somebody asked for another copy, which is on its way");
    prefix.set_phase(stopped);
    catalogue.open_waiting();
    assert!(prefix.copy().is_some() && !prefix.lacks_room());
    assert_eq!(prefix.phase(), PrefixPhase::Open);
}

#[test]
fn what_is_not_listed_stays_unless_the_catalogue_before_had_diverged() {
    let (dir, engine) = (Scratch::new(), Arc::new(Volume::default()));
    let (store, catalogue) = member(&dir, &engine);
    lead(&store, &catalogue);
    let listed = catalogue.create_now(&name("listed"), false).unwrap();
    let behind = store.add_prefix(Arc::new(catalogue.make(name("behind"), PrefixUuid(Uuid::from_u128(7)))));
    catalogue.create_copy(&behind).unwrap();
    let own = store.prefix_by_uuid(catalogue.uuid()).unwrap();
    catalogue.open_listed(&own, false).unwrap();
    assert!(store.prefix_by_uuid(behind.uuid).is_some(), "absence alone is no drop");
    assert_eq!(catalogue.unlisted(), Some(name("behind")));
    catalogue.open_listed(&own, true).unwrap();
    assert!(store.prefix_by_uuid(behind.uuid).is_none() && store.prefix_by_uuid(listed.uuid).is_some());
    assert_eq!(catalogue.unlisted(), None);
    assert_eq!(catalogue.layout.prefixes().unwrap().iter().filter(|(_, uuid)| *uuid == behind.uuid).count(), 0);
    let kept = std::fs::read_dir(dir.path().join("detached")).unwrap().map(|entry| entry.unwrap().path());
    assert!(kept.into_iter().any(|path| path.join("why.txt").exists()));
}

#[test]
fn the_start_finishes_what_the_replaced_catalogue_asked_for() {
    let (dir, engine) = (Scratch::new(), Arc::new(Volume::default()));
    let (store, catalogue) = member(&dir, &engine);
    lead(&store, &catalogue);
    let stranger = PrefixUuid(Uuid::from_u128(7));
    let prefix = Arc::new(catalogue.make(name("stranger"), stranger));
    catalogue.create_copy(&prefix).unwrap();
    let (of, uuid) = (PrefixName::catalogue(), catalogue.uuid());
    let layout = catalogue.layout.clone();
    drop((store, catalogue, prefix));
    // The process ended between the switch to the new catalogue and what follows from it.
    let old = layout.current(&of, uuid).unwrap().unwrap();
    layout.mark_generation(&of, uuid, old.number, "diverged").unwrap();
    let new = layout.next_generation(&of, uuid, 0, "copied").unwrap();
    engine.open(&new.db_dir(), &OpenSpec { sequence_offset: 0, create: true }).unwrap();
    layout.switch(&of, uuid, &new).unwrap();
    let (store, catalogue) = member(&dir, &engine);
    assert!(catalogue.open_all().unwrap());
    assert!(store.prefix_by_uuid(stranger).is_none());
    assert!(!layout.prefix_dir(&name("stranger"), stranger).exists());
    assert!(!old.dir.exists(), "the old catalogue is set aside last");
    assert!(!layout.has_marked_generation(&of, uuid).unwrap());
}

#[test]
fn a_prefix_created_elsewhere_is_never_shown_without_its_copy() {
    let (dir, engine) = (Scratch::new(), Arc::new(Volume::default()));
    let (store, catalogue) = member(&dir, &engine);
    lead(&store, &catalogue);
    let record = |name: &str, n: u128| {
        let mut builder = BatchBuilder::new();
        let entry = serde_json::to_vec(&Entry { prefix_uuid: PrefixUuid(Uuid::from_u128(n)) }).unwrap();
        builder.put_value(format!("p/{name}").as_bytes(), &entry, None);
        builder
    };
    *engine.store.lock() = Arc::downgrade(&store);
    catalogue.apply_records(&record("streamed", 7).finish()).unwrap();
    assert!(store.prefix(b"streamed").unwrap().copy().is_some());
    let listing = store.prefix_by_uuid(catalogue.uuid()).unwrap();
    catalogue.commit(&listing, record("listed", 8), true).unwrap();
    let generation = catalogue.layout.next_generation(&name("listed"), PrefixUuid(Uuid::from_u128(8)), 0, "created");
    let generation = generation.unwrap();
    engine.open(&generation.db_dir(), &OpenSpec { sequence_offset: 0, create: true }).unwrap();
    catalogue.layout.switch(&name("listed"), PrefixUuid(Uuid::from_u128(8)), &generation).unwrap();
    catalogue.open_listed(&listing, false).unwrap();
    assert!(store.prefix(b"listed").unwrap().copy().is_some());
    assert!(!engine.saw_prefix_without_copy.load(Ordering::SeqCst));
}
