//! Does what the core decided, each effect before the next.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parovoz_dataplane_core::role::{Effect, Event, FREEZE_MS};
use parovoz_dataplane_core::types::{PrefixUuid, Reign, Sequence};

use super::lease::Renewal;
use super::state::Change;
use super::{Member, MemberError};
use crate::clock;
use crate::config::Durability;
use crate::store::RoleView;
use crate::store::prefix::{CommitError, Prefix, PrefixPhase};

/// Performs all effects, and those that follow from them.
///
/// # Errors
/// What could not be done; the process must end.
pub(super) fn all(member: &Member, change: &mut Change<'_>, effects: Vec<Effect>) -> Result<(), MemberError> {
    let mut effects = VecDeque::from(effects);
    while let Some(effect) = effects.pop_front() {
        let more = one(member, change, effect)?;
        for effect in more.into_iter().rev() {
            effects.push_front(effect);
        }
    }
    Ok(())
}

fn one(member: &Member, change: &mut Change<'_>, effect: Effect) -> Result<Vec<Effect>, MemberError> {
    let store = &member.store;
    match effect {
        Effect::StopServing => {
            // The gate was closed with the decision itself. The loops learn of it before writing is taken away.
            store.gate.hold_until(clock::boot_ms() + FREEZE_MS);
            let role = RoleView::clone(&store.role());
            store.set_role(RoleView { is_primary: false, fenced: true, ..role });
            member.take_writing_away();
            tracing::info!("stopped serving");
        }
        Effect::StopFollowing => member.follower.stop(),
        Effect::CutOldStreams => {
            let record = member.record();
            let role = RoleView::clone(&store.role());
            store.set_role(RoleView { reign: record.promised, sealed: record.sealed, pull: None, ..role });
            store.cut_streams();
        }
        Effect::SyncAll => sync_all(member)?,
        Effect::Store(record) => {
            change.store(&record)?;
            tracing::info!(promised = ?record.promised.as_ref().map(|r| r.epoch), sealed = ?record.sealed.map(|r| r.epoch),
                started = %record.started, "promise stored");
        }
        // The change of role that follows tells the loops.
        Effect::RefuseParked => {}
        Effect::StartFollowing { reign, upstream, primary } => {
            member.catalogue.expect();
            tracing::info!(epoch = %reign.epoch, upstream = %upstream.replication, "following");
            let sealed = member.record().sealed;
            let (primary, upstream) = (Some(primary), Some(upstream));
            store.set_role(RoleView { reign: Some(reign), primary, upstream, sealed, ..RoleView::default() });
            // Not before the loops can know where to go.
            store.gate.hold_until(0);
            member.follower.start().map_err(MemberError::Follower)?;
        }
        Effect::StartPulling { reign, source, upto } => {
            tracing::info!(epoch = %reign.epoch, source = %source.replication, prefixes = upto.len(), "pulling what is missing");
            member.catalogue.expect();
            let role = RoleView::clone(&store.role());
            let pull = Some(Arc::new(upto));
            store.set_role(RoleView { sealed: Some(reign), upstream: Some(source), pull, ..role });
            member.follower.start().map_err(MemberError::Follower)?;
        }
        Effect::BeginLeading(reign) => {
            member.follower.acks().lock().clear();
            if store.prefixes().by_uuid.is_empty() {
                member.catalogue.create_blank()?;
            }
            store.gate.hold_until(clock::boot_ms() + FREEZE_MS);
            tracing::info!(epoch = %reign.epoch, reign_id = %reign.reign_id, "promoted: waiting for replicas to join");
            store.set_role(RoleView { reign: Some(reign), is_primary: true, ..RoleView::default() });
        }
        Effect::WriteEpochRecords(reign) => return begin_epoch(member, change, &reign),
        Effect::ServePrefix(prefix) => {
            if let Some(prefix) = store.prefix_by_uuid(prefix) {
                store.wake_loop(prefix.shard);
            }
        }
        Effect::AllServed => {
            tracing::info!("every prefix is served");
            store.note_change();
        }
        Effect::RenewLease { reign, sent_at_ms } => {
            // A renewal that is still under way is asked for again later.
            let _ = member.renewals.try_send(Renewal { reign, sent_at_ms });
        }
    }
    Ok(Vec::new())
}

fn sync_all(member: &Member) -> Result<(), MemberError> {
    for prefix in member.store.prefixes().by_uuid.values() {
        prefix.sync().map_err(|cause| MemberError::Sync { prefix: prefix.name.to_string(), cause })?;
    }
    Ok(())
}

/// Writes the reign's epoch record in every prefix, then syncs them all, then tells the core.
fn begin_epoch(member: &Member, change: &mut Change<'_>, reign: &Reign) -> Result<Vec<Effect>, MemberError> {
    let _reigning = member.store.reigning.lock();
    let prefixes = member.store.prefixes();
    let mut all: Vec<&Arc<Prefix>> = prefixes.by_uuid.values().collect();
    all.sort_by_key(|p| !p.name.is_catalogue());
    let mut records: BTreeMap<PrefixUuid, Sequence> = BTreeMap::new();
    for prefix in &all {
        let begun = prefix.begin_epoch(reign.to_ref(), false);
        let failed = |cause: CommitError| MemberError::Begin { prefix: prefix.name.to_string(), cause };
        records.insert(prefix.uuid, begun.map_err(failed)?.sequence);
        prefix.set_phase(PrefixPhase::Serving);
    }
    if member.store.settings.load().durability == Durability::Sync {
        sync_all(member)?;
    }
    if reign.required() == 0 {
        for prefix in &all {
            prefix.release(prefix.applied());
        }
    }
    let effects = change.step(Event::Written { reign: reign.to_ref(), records })?;
    tracing::info!(epoch = %reign.epoch, prefixes = all.len(), "epoch records written: this member is the primary");
    // The loops look at their prefixes and the gate anew; followers are told by the signals of the records.
    member.store.set_role(RoleView::clone(&member.store.role()));
    Ok(effects)
}
