//! What a store may lose where no replica is waited for: only what nobody who was asked still had, and a receipt says so.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound::Excluded;

use foldhash::fast::FixedState;
use parovoz_api::{FailoverReceipt, LossOutcome, LostRange};
use parovoz_dataplane_core::types::{DataUuid, Epoch, PrefixName, PrefixUuid, Reign, Sequence};

use super::{Checker, Served, end_of};
use crate::member::prefix::Prefix;

/// Acknowledged writes that a reign which serves does not have, though the one before it had.
#[derive(Debug)]
struct Lost {
    /// Of the reign that lacks them.
    by: Epoch,
    name: PrefixName,
    /// In which they were written.
    epoch: Epoch,
    first: Sequence,
    last: Sequence,
    /// Its primary is the one that had them.
    same: bool,
    /// The old primary lost power before it had synced them, and does not know itself that it had them.
    unsynced: bool,
}

impl Lost {
    fn wants_receipt(&self) -> bool {
        !self.same || self.unsynced
    }
}

/// What is known of losses.
#[derive(Debug, Default)]
pub(super) struct Losses {
    lost: Vec<Lost>,
    /// Who was sealed, with known votes in all prefixes, when a reign's candidate was chosen.
    heard: HashMap<(u64, String), BTreeSet<String>, FixedState>,
    /// Whose machine lost power.
    powerless: BTreeSet<DataUuid>,
    /// The last record of an epoch that anybody ever wrote.
    written: HashMap<(PrefixUuid, Epoch), Sequence, FixedState>,
}

impl Checker {
    /// An operator chose a reign's candidate, and these had sealed for it and said all that they have. `waived`: a person spoke
    /// for what no proof was found for.
    pub fn decided(&mut self, epoch: u64, reign_id: &str, waived: bool, heard: BTreeSet<String>) {
        if !waived && !self.restored {
            self.decided = self.decided.max(Epoch(epoch));
        }
        // Its record may be written again while the candidate begins: what is heard then came too late.
        self.losses.heard.entry((epoch, reign_id.to_owned())).or_insert(heard);
    }

    /// A member's machine lost power.
    pub fn power_lost(&mut self, me: DataUuid) {
        self.losses.powerless.insert(me);
    }

    pub(super) fn note_written(&mut self, prefix: PrefixUuid, epoch: Epoch, first: Sequence, bytes: &[u8]) {
        let count = bytes.get(8..12).and_then(|count| <[u8; 4]>::try_from(count).ok()).map_or(1, u32::from_le_bytes);
        let last = Sequence(first.0 + u64::from(count.max(1)) - 1);
        let known = self.losses.written.entry((prefix, epoch)).or_insert(last);
        *known = (*known).max(last);
    }

    /// A reign begins to serve a prefix without all that the reign before acknowledged. Nothing may be missing if its primary
    /// is the same, or if the one before had sealed and told what it has before the decision.
    pub(super) fn judge_loss(&mut self, now: u64, who: u8, reign: &Reign, prefix: &Prefix) {
        let served = self.served.get(&prefix.uuid).into_iter().flatten();
        let Some(before) = served.filter(|s| s.epoch < reign.epoch).max_by_key(|s| s.epoch) else { return };
        let led = self.starts.get(&before.epoch).map(|(_, me)| *me);
        let same = led == Some(reign.primary);
        let unsynced = !self.syncs && led.is_some_and(|me| self.losses.powerless.contains(&me));
        let mut lost = self.missing(before, reign.epoch, prefix);
        lost.iter_mut().for_each(|lost| (lost.same, lost.unsynced) = (same, unsynced));
        let Some(first) = lost.first() else { return };
        // Whoever led in between may have made the old primary replace its copy.
        let mut between = self.starts.range((Excluded(before.epoch), Excluded(reign.epoch)));
        let alone = between.all(|(_, (_, me))| Some(*me) == led);
        let heard = self.losses.heard.get(&(reign.epoch.0, reign.reign_id.to_string()));
        let told = led.is_some_and(|me| heard.is_some_and(|heard| heard.contains(&me.to_string())));
        if alone && !unsynced && !self.restored && (same || told) {
            let why = if same { "its primary is the same" } else { "the old primary had sealed" };
            let what = format!(
                "member {who} serves {} in epoch {} without acknowledged writes {} to {} of epoch {}, though {why}",
                prefix.name, reign.epoch, first.first, first.last, first.epoch
            );
            self.fail(now, what);
        }
        self.losses.lost.extend(lost);
    }

    fn missing(&self, before: &Served, by: Epoch, prefix: &Prefix) -> Vec<Lost> {
        let mut lost = Vec::new();
        for (epoch, acked) in self.acked.get(&prefix.uuid).into_iter().flatten().filter(|(e, _)| **e <= before.epoch) {
            let had = if *epoch == before.epoch { acked.upto } else { end_of(&before.history, *epoch, before.latest) };
            let (had, has) = (had.min(acked.upto), end_of(&prefix.history, *epoch, prefix.applied));
            if had > has {
                let begin =
                    before.history.records().iter().find(|r| r.epoch == *epoch).map_or(Sequence(1), |r| r.start);
                let first = begin.max(has.next());
                lost.push(Lost {
                    by,
                    name: prefix.name.clone(),
                    epoch: *epoch,
                    first,
                    last: had,
                    same: false,
                    unsynced: false,
                });
            }
        }
        lost
    }

    /// How much of it there was, in sequences.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.losses.lost.iter().map(|l| l.last.0 + 1 - l.first.0).sum()
    }

    /// What is wrong with the receipt of a store at rest.
    #[must_use]
    pub fn judge_receipt(&self, receipt: Option<&FailoverReceipt>) -> Option<String> {
        if self.restored {
            return None;
        }
        let said = receipt.map_or(0, |r| r.epoch.unsigned_abs());
        if let Some(lost) = self.losses.lost.iter().find(|l| l.wants_receipt() && l.by.0 > said) {
            return Some(format!(
                "epoch {} lost acknowledged writes of {}, and no receipt says so",
                lost.by, lost.name
            ));
        }
        let receipt = receipt?;
        let mut mine = self.losses.lost.iter().filter(|l| l.by.0 == said && l.wants_receipt());
        match receipt.outcome {
            LossOutcome::None => mine.next().map(|lost| {
                let Lost { name, epoch, first, last, .. } = lost;
                format!("the receipt of epoch {said} says none; {name} lost {first} to {last} of epoch {epoch}")
            }),
            LossOutcome::Ranges => {
                let left_out = mine.find(|lost| !receipt.ranges.iter().any(|range| covers(range, lost)));
                let left_out = left_out.map(|lost| {
                    let Lost { name, epoch, first, last, .. } = lost;
                    format!("the receipt of epoch {said} leaves out {name} {first} to {last} of epoch {epoch}")
                });
                left_out.or_else(|| receipt.ranges.iter().find_map(|range| self.says_too_much(said, range)))
            }
            LossOutcome::Unknown => None,
        }
    }

    /// A range must end with what was written, and begin beyond what the new primary had.
    fn says_too_much(&self, said: u64, range: &LostRange) -> Option<String> {
        let of = Epoch(range.epoch.unsigned_abs());
        // By its identity: a prefix of the same name may have been made anew.
        let uuid =
            self.losses.written.keys().map(|(uuid, _)| *uuid).find(|u| range.exported.contains(&u.to_string()))?;
        let new = self.served.get(&uuid).into_iter().flatten().find(|s| s.epoch.0 == said);
        let known = self.losses.written.iter().filter(|((prefix, epoch), _)| *prefix == uuid && *epoch <= of);
        // The record that begins an epoch is nobody's write.
        let written = known.map(|(_, last)| last.next()).max().unwrap_or_default();
        let has = new.map_or(Sequence(0), |new| end_of(&new.history, of, new.latest));
        let good = range.first.unsigned_abs() > has.0 && range.last.unsigned_abs() <= written.0;
        (!good).then(|| format!("the receipt of epoch {said} names {range:?}; {has} are there, {written} were written"))
    }
}

fn covers(range: &LostRange, lost: &Lost) -> bool {
    let (first, last) = (range.first.unsigned_abs(), range.last.unsigned_abs());
    range.prefix == lost.name.to_string() && first <= lost.first.0 && lost.last.0 <= last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(first: u64, last: u64) -> Lost {
        let name = PrefixName::new("p0").unwrap_or_else(|_| unreachable!("a name"));
        Lost {
            by: Epoch(3),
            name,
            epoch: Epoch(2),
            first: Sequence(first),
            last: Sequence(last),
            same: false,
            unsynced: false,
        }
    }

    fn receipt(epoch: i64, outcome: &str, ranges: &[(i64, i64)]) -> Option<FailoverReceipt> {
        let range =
            |(first, last): &(i64, i64)| serde_json::json!({"prefix": "p0", "epoch": 2, "first": first, "last": last});
        let ranges: Vec<_> = ranges.iter().map(range).collect();
        let (at, cause) = ("2026-01-01T00:00:00.000000Z", "PrimarySilent");
        serde_json::from_value(serde_json::json!({
            "at": at, "epoch": epoch, "from": "a", "to": "b", "cause": cause, "lost": "", "outcome": outcome, "ranges": ranges,
        }))
        .ok()
    }

    #[test]
    fn a_receipt_must_name_what_was_lost() {
        let mut check = Checker::default();
        assert_eq!(check.judge_receipt(None), None);
        check.losses.lost.push(lost(7, 9));
        assert_eq!(check.lost(), 3);
        let wrong = [
            None,
            receipt(2, "Unknown", &[]),
            receipt(3, "None", &[]),
            receipt(3, "Ranges", &[(8, 9)]),
            receipt(3, "Ranges", &[(7, 8)]),
        ];
        assert!(wrong.iter().skip(1).all(Option::is_some));
        for receipt in wrong {
            assert!(check.judge_receipt(receipt.as_ref()).is_some(), "{receipt:?}");
        }
        for receipt in [receipt(3, "Unknown", &[]), receipt(3, "Ranges", &[(7, 9)]), receipt(4, "None", &[])] {
            assert_eq!(check.judge_receipt(receipt.as_ref()), None, "{receipt:?}");
        }
    }
}
