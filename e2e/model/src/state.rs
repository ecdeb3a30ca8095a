//! The state of everything, small: three members, the reigns ever recorded, what was acknowledged.

/// Members.
pub const N: usize = 3;
/// Reigns that can be recorded: four epochs, and one more by a record restored from a backup.
pub const REIGNS: usize = 5;
/// No reign.
pub const NONE: u8 = u8::MAX;

/// (epoch, sequence) in one byte, ordered as such; 0 = the beginning.
pub type At = u8;

/// A copy's records, one a byte from the lowest: epoch in the upper half; in the lower half 0 and 1 are the epoch record of a
/// reign with that id, more is a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Log(pub u64);

impl Log {
    /// How many records.
    #[must_use]
    pub fn len(self) -> u8 {
        u8::try_from((64 - self.0.leading_zeros()).div_ceil(8)).unwrap_or(8)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The record at this sequence; the first is 1.
    #[must_use]
    pub fn record(self, sequence: u8) -> u8 {
        if sequence == 0 { 0 } else { self.0.to_le_bytes()[usize::from(sequence) - 1] }
    }

    /// With one more.
    #[must_use]
    pub fn with(self, record: u8) -> Self {
        Self(self.0 | u64::from(record) << (8 * self.len()))
    }

    /// Its first records.
    #[must_use]
    pub fn first(self, records: u8) -> Self {
        if records >= 8 { self } else { Self(self.0 & ((1_u64 << (8 * records)) - 1)) }
    }

    /// Where it ends.
    #[must_use]
    pub fn end(self) -> At {
        self.at(self.len())
    }

    /// The position of a record.
    #[must_use]
    pub fn at(self, sequence: u8) -> At {
        self.record(sequence) & 0xf0 | sequence
    }

    /// The writes in it, as a set.
    #[must_use]
    pub fn writes(self) -> u8 {
        self.0.to_le_bytes().iter().filter_map(|r| (r & 15).checked_sub(2)).fold(0, |set, w| set | 1 << w)
    }
}

/// The record of a write in an epoch.
#[must_use]
pub fn write_record(epoch: u8, write: u8) -> u8 {
    epoch << 4 | (write + 2)
}

/// What a member has of the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Copy3 {
    /// It is whole.
    Open,
    /// It is being replaced: a new one is on its way.
    Replacing,
    /// It is unreadable.
    Damaged,
}

/// How far a primary is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lead {
    /// It is none.
    No,
    /// Promoted; its epoch record is not written.
    Joining,
    /// The record is written, not synced.
    Asked,
    /// It may write.
    Written,
    /// W replicas hold the record.
    Served,
}

/// When a member last heard the primary of its promised reign itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Heard {
    /// Long ago, and it runs since long ago.
    Old,
    /// Lately.
    Lately,
    /// Not in this process, which began lately.
    JustStarted,
}

/// One member: what is on its disk, and its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pod {
    /// Its copy as its process sees it.
    pub log: Log,
    /// How many records of it survive a crash for sure.
    pub durable: u8,
    /// Whether the copy is whole.
    pub copy: Copy3,
    /// Below this it counts for nothing.
    pub floor: At,
    /// The whole reign that it promised, as an index.
    pub promised: u8,
    /// The reign that it is sealed for, as an index.
    pub sealed: u8,
    /// The highest epoch that it started.
    pub started: u8,
    /// What it hears.
    pub heard: Heard,
    /// Whether it leads the promised reign.
    pub lead: Lead,
    /// While it leads: what the others acknowledged in its reign; in its own place, what was released by a volume that is lost.
    pub acks: [At; N],
    /// While it leads: whose promises count.
    pub promises: u8,
    /// While it leads: whether its Lease counts.
    pub lease: bool,
    /// While it leads: whether it was told that another reign took the Lease.
    pub lease_lost: bool,
}

/// The last phase of a recorded reign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// It was not recorded yet.
    None,
    /// Members are asked to seal.
    Sealing,
    /// It may serve.
    Promoting,
    /// It was seen to serve.
    Serving,
}

/// A reign that was ever recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reign {
    /// Its number.
    pub epoch: u8,
    /// Its identity.
    pub id: u8,
    /// How far it came, as recorded.
    pub phase: Phase,
    /// Whom the record names.
    pub primary: u8,
    /// Of which members the present volume is the one that belongs to it; the others' were lost.
    pub present: u8,
    /// Its W.
    pub w: u8,
    /// Where the decision is that it must begin.
    pub at: At,
    /// The writes that the decision includes.
    pub has: u8,
    /// Whether the process that was told to lead it has ended.
    pub ended: bool,
    /// How often it was started.
    pub starts: u8,
    /// Whether it ever served.
    pub served: bool,
    /// Whether its Lease was seen unmoved for long enough.
    pub unmoved: bool,
    /// Whether the record as it is now knows nothing of it: a backup was restored.
    pub forgotten: bool,
}

/// What may still go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Budget {
    /// Processes that end.
    pub crashes: u8,
    /// Copies that must be replaced though nothing diverged.
    pub rebuilds: u8,
    /// Copies that become unreadable.
    pub damages: u8,
    /// Volumes that are lost.
    pub losses: u8,
    /// Backups of the record that are restored.
    pub restores: u8,
}

/// Everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct State {
    /// The members.
    pub pods: [Pod; N],
    /// The reigns ever recorded.
    pub reigns: [Reign; REIGNS],
    /// The present one.
    pub current: u8,
    /// How many writes were begun.
    pub writes: u8,
    /// Which were acknowledged.
    pub acked: u8,
    /// The epoch in the Lease object.
    pub lease_epoch: u8,
    /// What may still go wrong.
    pub budget: Budget,
}

const POD: Pod = Pod {
    log: Log(0),
    durable: 0,
    copy: Copy3::Open,
    floor: 0,
    promised: NONE,
    sealed: NONE,
    started: 0,
    heard: Heard::Old,
    lead: Lead::No,
    acks: [0; N],
    promises: 0,
    lease: false,
    lease_lost: false,
};

const REIGN: Reign = Reign {
    epoch: 0,
    id: 0,
    phase: Phase::None,
    primary: 0,
    present: 0,
    w: 0,
    at: 0,
    has: 0,
    ended: false,
    starts: 0,
    served: false,
    unmoved: false,
    forgotten: false,
};

impl Pod {
    /// A blank volume.
    #[must_use]
    pub fn blank() -> Self {
        Self { heard: Heard::JustStarted, ..POD }
    }

    /// It leads no more.
    pub fn stop_leading(&mut self) {
        self.lead = Lead::No;
        self.acks = [0; N];
        self.promises = 0;
        self.lease = false;
        self.lease_lost = false;
    }

    /// All that it has is durable; a floor that was reached for good is done.
    pub fn sync(&mut self) {
        self.durable = self.log.len();
        if self.copy == Copy3::Open && self.log.end() >= self.floor {
            self.floor = 0;
        }
    }
}

impl State {
    /// The first reign serves, with nothing but its epoch record; the first member leads it.
    #[must_use]
    pub fn initial(w: u8, budget: Budget) -> Self {
        let log = Log(0).with(1 << 4);
        let pod = Pod { log, durable: 1, promised: 0, ..POD };
        let primary = Pod { started: 1, lead: Lead::Served, acks: [0, log.end(), log.end()], ..pod };
        let first =
            Reign { epoch: 1, phase: Phase::Serving, present: 0b111, w, at: 0, starts: 1, served: true, ..REIGN };
        let mut reigns = [REIGN; REIGNS];
        reigns[0] = first;
        Self { pods: [primary, pod, pod], reigns, current: 0, writes: 0, acked: 0, lease_epoch: 1, budget }
    }

    /// A recorded reign.
    #[must_use]
    pub fn reign(&self, index: u8) -> Option<&Reign> {
        self.reigns.get(usize::from(index)).filter(|reign| reign.phase != Phase::None)
    }

    /// The epoch of an index; 0 for none.
    #[must_use]
    pub fn epoch(&self, index: u8) -> u8 {
        self.reigns.get(usize::from(index)).map_or(0, |reign| reign.epoch)
    }

    /// The epoch of a member's promise.
    #[must_use]
    pub fn promise(&self, pod: &Pod) -> u8 {
        self.epoch(pod.promised).max(self.epoch(pod.sealed))
    }

    /// The same with members renamed: `to[i]` is the new name of `i`.
    #[must_use]
    pub fn renamed(&self, to: [usize; N]) -> Self {
        let set = |set: u8| (0..N).filter(|i| set >> i & 1 == 1).fold(0, |new, i| new | 1 << to[i]);
        let mut new = *self;
        for (pod, &i) in self.pods.iter().zip(&to) {
            let mut moved = *pod;
            for (ack, &j) in pod.acks.iter().zip(&to) {
                moved.acks[j] = *ack;
            }
            moved.promises = set(pod.promises);
            new.pods[i] = moved;
        }
        for reign in new.reigns.iter_mut().filter(|reign| reign.phase != Phase::None) {
            reign.present = set(reign.present);
            if reign.phase >= Phase::Promoting {
                reign.primary = u8::try_from(to[usize::from(reign.primary)]).unwrap_or(0);
            }
        }
        new
    }

    /// The smallest of all states that differ only in the members' names.
    #[must_use]
    pub fn canonical(&self) -> Self {
        // Members that differ in what is their own are sorted by that; only equal ones are tried both ways.
        let own = |i: usize| {
            let pod = &self.pods[i];
            let led = self
                .reigns
                .iter()
                .enumerate()
                .filter(|(_, r)| r.phase >= Phase::Promoting && usize::from(r.primary) == i);
            let led = led.fold(0_u8, |set, (k, _)| set | 1 << k);
            (pod.log, pod.durable, pod.lead, pod.promised, pod.sealed, pod.started, pod.heard, pod.copy, pod.floor, led)
        };
        let keys = [own(0), own(1), own(2)];
        let mut best: Option<Self> = None;
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            if keys[order[0]] > keys[order[1]] || keys[order[1]] > keys[order[2]] {
                continue;
            }
            let mut to = [0; N];
            for (new, &old) in order.iter().enumerate() {
                to[old] = new;
            }
            let renamed = self.renamed(to);
            if best.is_none_or(|best| renamed < best) {
                best = Some(renamed);
            }
        }
        best.unwrap_or(*self)
    }
}
