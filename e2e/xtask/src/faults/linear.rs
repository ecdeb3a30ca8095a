//! Whether the history of one register could have happened one operation after another, each between its sending and its
//! answer. As no value is written twice, one pass over the times decides that exactly.

use std::collections::BTreeMap;

use super::load::history::{Access, Operation};

/// A value: from the first answer of any operation on it (`first_end`) to the last sending of one (`last_begin`). Where the
/// answer came first, the register held it all that time (a forward zone); otherwise one moment between them is enough (a
/// backward zone).
#[derive(Clone, Copy, Debug)]
struct Zone {
    value: Option<u64>,
    first_end: u64,
    last_begin: u64,
}

impl Zone {
    fn forward(self) -> bool {
        self.first_end < self.last_begin
    }

    fn span(self) -> (u64, u64) {
        (self.first_end.min(self.last_begin), self.first_end.max(self.last_begin))
    }
}

/// What cannot have happened; `None` if all of it can. The register is empty at first.
pub fn violation(operations: &[Operation]) -> Option<String> {
    let mut zones: BTreeMap<Option<u64>, Zone> = BTreeMap::new();
    let mut written: BTreeMap<u64, u64> = BTreeMap::new();
    // Being empty is as if written before everything: times are counted from 1.
    zones.insert(None, Zone { value: None, first_end: 0, last_begin: 0 });
    for operation in operations {
        if let Access::Write(value) = operation.access {
            written.insert(value, operation.begun);
            // A write without an answer may take effect at any later time, or never.
            let first_end = operation.ended.map_or(u64::MAX, |ended| ended + 1);
            zones.insert(Some(value), Zone { value: Some(value), first_end, last_begin: operation.begun + 1 });
        }
    }
    for operation in operations {
        let Access::Read(value) = operation.access else { continue };
        let Some(ended) = operation.ended else { continue };
        if let Some(value) = value {
            match written.get(&value) {
                None => return Some(format!("value {value} was read and never written")),
                Some(begun) if *begun > ended => return Some(format!("value {value} was read before it was written")),
                Some(_) => {}
            }
        }
        if let Some(zone) = zones.get_mut(&value) {
            zone.first_end = zone.first_end.min(ended + 1);
            zone.last_begin = zone.last_begin.max(operation.begun + 1);
        }
    }
    // What may never have happened and was never read takes no part.
    zones.retain(|_, zone| zone.first_end != u64::MAX);
    conflict(&zones.into_values().collect::<Vec<_>>())
}

/// Two values that were held at the same time, or one that was held wholly within another's time.
fn conflict(zones: &[Zone]) -> Option<String> {
    let name = |zone: &Zone| zone.value.map_or_else(|| "nothing".to_owned(), |v| format!("value {v}"));
    let mut forward: Vec<&Zone> = zones.iter().filter(|z| z.forward()).collect();
    forward.sort_by_key(|z| z.span());
    for pair in forward.windows(2) {
        let (a, b) = (pair[0], pair[1]);
        if b.span().0 < a.span().1 {
            let text = format!("{} and {} were each seen while only the other can have been there", name(a), name(b));
            return Some(text);
        }
    }
    for inner in zones.iter().filter(|z| !z.forward()) {
        let (low, high) = inner.span();
        // Forward zones don't overlap, so only the last one that begins before it can enclose it.
        let at = forward.partition_point(|z| z.span().0 < low);
        if let Some(outer) = at.checked_sub(1).and_then(|i| forward.get(i))
            && outer.span().1 > high
        {
            return Some(format!("{} was there while {} must have been", name(inner), name(outer)));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::violation;
    use crate::faults::load::history::{Access, Operation};

    fn write(value: u64, begun: u64, ended: u64) -> Operation {
        Operation { register: 0, begun, ended: Some(ended), access: Access::Write(value) }
    }

    fn read(value: u64, begun: u64, ended: u64) -> Operation {
        let value = (value > 0).then_some(value);
        Operation { register: 0, begun, ended: Some(ended), access: Access::Read(value) }
    }

    fn unanswered(value: u64, begun: u64) -> Operation {
        Operation { register: 0, begun, ended: None, access: Access::Write(value) }
    }

    /// Tries every order.
    fn brute(operations: &[Operation]) -> bool {
        fn go(left: &[Operation], held: Option<u64>) -> bool {
            if left.iter().all(|o| o.ended.is_none()) {
                return true;
            }
            (0..left.len()).any(|i| {
                let next = left[i];
                // It may come next unless another was answered before it was sent.
                let first = left.iter().all(|o| o.ended.is_none_or(|e| e >= next.begun));
                let held_then = match next.access {
                    Access::Write(value) => Some(value),
                    Access::Read(value) if value == held => held,
                    Access::Read(_) => return false,
                };
                let mut rest = left.to_vec();
                rest.remove(i);
                first && go(&rest, held_then)
            })
        }
        go(operations, None)
    }

    #[test]
    fn a_stale_read_is_found() {
        let history = [write(1, 0, 10), write(2, 20, 30), read(1, 40, 50)];
        assert!(violation(&history).is_some());
        assert_eq!(violation(&[write(1, 0, 10), write(2, 20, 30), read(2, 40, 50)]), None);
    }

    #[test]
    fn nothing_may_be_read_back_into_the_past() {
        assert!(violation(&[write(1, 0, 10), read(1, 20, 30), read(0, 40, 50)]).is_some());
        assert!(violation(&[unanswered(1, 0), read(1, 20, 30), read(0, 40, 50)]).is_some());
        assert!(violation(&[read(7, 0, 1)]).is_some());
    }

    #[test]
    fn a_write_without_an_answer_may_happen_late_or_never() {
        assert_eq!(violation(&[unanswered(1, 0), read(0, 20, 30), read(1, 40, 50), read(1, 60, 70)]), None);
        assert_eq!(violation(&[unanswered(1, 0), write(2, 5, 6), read(2, 20, 30)]), None);
        assert!(violation(&[unanswered(1, 0), write(2, 5, 6), read(1, 7, 8), read(2, 20, 30)]).is_some());
    }

    #[test]
    fn it_agrees_with_trying_every_order() {
        let mut state = 7_u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let (mut good, mut bad) = (0, 0);
        for _ in 0..6000 {
            let count = 2 + random(5);
            let history: Vec<Operation> = (0..count)
                .map(|n| {
                    // Even times begin and odd ones end, so that no two are the same moment.
                    let begun = 2 * random(12);
                    let ended = begun + 1 + 2 * random(6);
                    match random(5) {
                        0 => unanswered(n + 1, begun),
                        1 | 2 => write(n + 1, begun, ended),
                        _ => read(random(count + 1), begun, ended),
                    }
                })
                .collect();
            let expected = brute(&history);
            if expected {
                good += 1
            } else {
                bad += 1
            }
            assert_eq!(violation(&history).is_none(), expected, "{history:?}");
        }
        assert!(good > 500 && bad > 500, "{good} good, {bad} bad");
    }
}
