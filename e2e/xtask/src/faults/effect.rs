//! Whether a fault took effect: a round in which nothing happened shows nothing.

use super::env::{Before, Problem};
use super::kinds::{Kind, Mode};
use super::receipt::NO_RECEIPT;
use super::watch::ReignEvent;

/// Causes of reigns that are begun on purpose, with a primary that answers.
const PLANNED: [&str; 5] = ["MembersChanged", "SettingsChanged", "Switchover", "Degraded", "QuorumRestored"];

/// A store after a round.
#[derive(Clone, Copy, Debug)]
pub struct After<'a> {
    /// The present reign.
    pub epoch: i64,
    /// What was heard of its reigns since the fault.
    pub events: &'a [ReignEvent],
    /// What its receipt says.
    pub receipt: &'a str,
}

/// What of a round's reigns does not fit its kind.
pub fn judge(kind: Kind, mode: Mode, before: &Before, after: After<'_>) -> Vec<Problem> {
    let (old, new) = (before.epoch, after.epoch);
    if kind.keeps_reign(mode) {
        let changed = (new != old).then(|| format!("epoch {old} became {new}, though the primary was well"));
        return changed.map(Problem::Late).into_iter().collect();
    }
    if new <= old {
        let what = format!("no effect: epoch {new} follows {old}");
        // A process that was started anew may lead only in a reign of its own.
        return vec![if kind.ends_process() { Problem::Broken(what) } else { Problem::Late(what) }];
    }
    let mut problems = Vec::new();
    match after.events.iter().find(|e| e.epoch > old) {
        None => problems.push(Problem::Late(format!("nothing was heard of how epoch {old} became {new}"))),
        Some(first) if is_planned(first) && !kind.is_planned() => {
            let what =
                format!("no effect: epoch {} was planned ({}), before the fault could tell", first.epoch, first.cause);
            problems.push(Problem::Broken(what));
        }
        Some(first) if !is_planned(first) && kind.is_planned() => {
            problems.push(Problem::Late(format!("epoch {} was not what was asked for: {}", first.epoch, first.cause)));
        }
        Some(_) => {}
    }
    if after.receipt == NO_RECEIPT
        && let Some(taken) = taken_over(before, after.events)
    {
        let what =
            format!("another member took over in epoch {} ({}), and there is no receipt", taken.epoch, taken.cause);
        problems.push(Problem::Broken(what));
    }
    problems
}

fn is_planned(event: &ReignEvent) -> bool {
    PLANNED.contains(&event.cause.as_str())
}

/// The first reign that serves with another primary than the one before it, unplanned.
fn taken_over<'a>(before: &Before, events: &'a [ReignEvent]) -> Option<&'a ReignEvent> {
    let mut leads = before.data_uuid();
    for event in events.iter().filter(|e| e.epoch > before.epoch && e.phase == "Serving") {
        if event.primary != leads && !is_planned(event) {
            return Some(event);
        }
        leads = &event.primary;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{After, judge};
    use crate::cluster::layout::Node;
    use crate::cluster::process::Recorded;
    use crate::faults::env::{Before, Problem};
    use crate::faults::kinds::{Kind, Mode};
    use crate::faults::watch::ReignEvent;
    use crate::store::Member;

    fn before() -> Before {
        let process = Recorded::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        let member = Member {
            name: "s-1".into(),
            node: "node1".into(),
            role: "Primary".into(),
            phase: "Serving".into(),
            data_uuid: "a".into(),
            position: (3, 7),
        };
        Before { primary: "s-1".into(), node: Node(1), process, sandbox: process, epoch: 3, members: vec![member] }
    }

    fn serving(epoch: i64, primary: &str, cause: &str) -> ReignEvent {
        ReignEvent {
            at: Instant::now(),
            store: "s".into(),
            epoch,
            phase: "Serving".into(),
            cause: cause.into(),
            primary: primary.into(),
        }
    }

    /// `Some(true)` for a broken promise, `Some(false)` for what is only late.
    fn found(kind: Kind, mode: Mode, epoch: i64, events: &[ReignEvent], receipt: &str) -> Option<bool> {
        let problems = judge(kind, mode, &before(), After { epoch, events, receipt });
        assert!(problems.len() < 2, "{problems:?}");
        problems.first().map(|p| matches!(p, Problem::Broken(_)))
    }

    #[test]
    fn a_fault_without_effect_is_a_problem() {
        let (quorum, asynchronous) = (Mode::Quorum, Mode::Async);
        assert_eq!(found(Kind::Kill, quorum, 3, &[], "-"), Some(true));
        assert_eq!(found(Kind::Pause, quorum, 3, &[], "-"), Some(false));
        assert_eq!(found(Kind::PartitionReplicas, quorum, 3, &[], "-"), Some(false));
        assert_eq!(found(Kind::PartitionReplicas, asynchronous, 3, &[], "-"), None);
        assert_eq!(found(Kind::ApiServer, quorum, 3, &[], "-"), None);
        assert_eq!(found(Kind::ApiServer, quorum, 4, &[serving(4, "a", "PrimarySilent")], "-"), Some(false));
        assert_eq!(found(Kind::Kill, quorum, 4, &[], "-"), Some(false));
        assert_eq!(found(Kind::Kill, quorum, 4, &[serving(4, "a", "PrimaryRestarted")], "-"), None);
        assert_eq!(found(Kind::VolumeLost, quorum, 4, &[serving(4, "b", "Switchover")], "-"), Some(true));
        assert_eq!(found(Kind::Switchover, quorum, 4, &[serving(4, "b", "Switchover")], "-"), None);
        assert_eq!(found(Kind::Switchover, quorum, 4, &[serving(4, "a", "PrimaryDead")], "none"), Some(false));
    }

    #[test]
    fn who_takes_over_unplanned_gives_a_receipt() {
        let taken = [serving(4, "b", "PrimaryDead")];
        assert_eq!(found(Kind::Kill, Mode::Quorum, 4, &taken, "-"), Some(true));
        assert_eq!(found(Kind::Kill, Mode::Quorum, 4, &taken, "none"), None);
        let back = [serving(4, "a", "PrimaryRestarted"), serving(5, "b", "Switchover")];
        assert_eq!(found(Kind::Kill, Mode::Quorum, 5, &back, "-"), None);
    }
}
