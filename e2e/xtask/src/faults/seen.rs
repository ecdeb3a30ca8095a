//! What clients saw of a fault: how long nothing was acknowledged, and which reads failed.

use std::collections::BTreeMap;

use super::env::Problem;
use super::kinds::{Kind, Mode};
use super::load::history::{Access, Gap, History};

/// Milliseconds that writes may stand still where nothing is to be noticed.
const UNNOTICED: f64 = 2_000.0;
/// Reads that must be judged after a fault: fewer show nothing.
const LEAST_READS: usize = 100;

/// What clients saw of one fault.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The longest time without an acknowledgement.
    pub gap: Gap,
    /// Reads that were sent after the fault and answered by a primary: those that are judged.
    pub reads: usize,
    /// Reads that failed between the fault and its end: how many, by what was answered.
    pub failed_reads: BTreeMap<String, usize>,
}

impl Seen {
    /// Of a load, between two moments of its clock.
    pub fn of(history: &History, fault: u64, until: u64) -> Self {
        let registers = &history.registers;
        let judged = registers.operations.iter().filter(|o| matches!(o.access, Access::Read(_)) && o.begun > fault);
        let mut failed_reads: BTreeMap<String, usize> = BTreeMap::new();
        for read in registers.failed_reads.iter().filter(|read| read.ended > fault && read.ended < until) {
            *failed_reads.entry(read.why.clone()).or_default() += 1;
        }
        Self { gap: history.gap(fault, until), reads: judged.count(), failed_reads }
    }

    /// What clients should not have seen.
    pub fn judge(&self, kind: Kind, mode: Mode) -> Vec<Problem> {
        let mut found = Vec::new();
        if self.reads < LEAST_READS {
            found.push(format!("only {} reads after the fault can be judged", self.reads));
        }
        if kind.goes_on(mode) && self.gap.ms() > UNNOTICED {
            found.push(format!("nothing was acknowledged for {:.0} ms, though all was to go on", self.gap.ms()));
        }
        let failed: usize = self.failed_reads.values().sum();
        if (kind.goes_on(mode) || kind == Kind::Switchover) && failed > 0 {
            found.push(format!("{failed} reads failed, though none was to"));
        }
        found.into_iter().map(Problem::Late).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::Seen;
    use crate::faults::kinds::{Kind, Mode};
    use crate::faults::load::history::{Access, FailedRead, Gap, History, Operation};

    fn seen(gap: u64, reads: usize, failed: usize) -> Seen {
        let failed_reads = [("LOADING".to_owned(), failed)].into_iter().filter(|(_, n)| *n > 0).collect();
        Seen { gap: Gap { begin: 0, end: gap * 1000 }, reads, failed_reads }
    }

    #[test]
    fn what_is_to_go_on_goes_on() {
        let problems = |seen: Seen, kind: Kind| seen.judge(kind, Mode::Quorum).len();
        assert_eq!(problems(seen(1_900, 500, 0), Kind::ApiServer), 0);
        assert_eq!(problems(seen(2_100, 500, 3), Kind::ApiServer), 2);
        assert_eq!(problems(seen(2_100, 500, 3), Kind::Kill), 0);
        assert_eq!(problems(seen(2_100, 500, 3), Kind::Switchover), 1);
        assert_eq!(problems(seen(100, 99, 0), Kind::Kill), 1);
    }

    #[test]
    fn only_answers_of_a_primary_after_the_fault_count() {
        let mut history = History::new("t".into(), Instant::now());
        let read = |begun| Operation { register: 0, begun, ended: Some(begun + 1), access: Access::Read(None) };
        let write = Operation { access: Access::Write(1), ..read(60) };
        history.registers.operations.extend([read(10), read(60), read(70), write]);
        history.registers.at_replicas.push(80);
        let failed = |ended| FailedRead { ended, why: "no".into() };
        history.registers.failed_reads.extend([failed(10), failed(60), failed(90)]);
        let seen = Seen::of(&history, 50, 80);
        assert_eq!((seen.reads, seen.failed_reads.get("no")), (2, Some(&1)));
    }
}
