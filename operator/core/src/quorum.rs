//! Which sealed members suffice to begin the next reign, how far it must reach in each prefix, and who may lead it.
//!
//! Everything that any earlier reign may have acknowledged must be found. So the question is asked of the last reign that
//! was Serving *and* of each later one that reached Promoting (it may have served), each with its own members and its own
//! W, and all of them must agree to go on:
//!
//! - *Fence*: that reign can acknowledge nothing more. [`fence`]
//! - *Decide*, for each prefix: whatever it acknowledged is at or below the highest vote. [`decide`]
//!
//! Only members that sealed the very reign to come have a ballot here; what they voted is final but for what they pull.
//! A blank member has none: an empty disk proves nothing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use crate::observed::Position;

/// An earlier reign that may have acknowledged writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OldReign {
    /// Its number.
    pub epoch: u64,
    /// Its random identity.
    pub id: String,
    /// data_uuid of its primary.
    pub primary: String,
    /// data_uuids of its members, the primary included.
    pub members: Vec<String>,
    /// W: how many replicas had to have a write durably before it was acknowledged. 0 = none.
    pub w: u32,
    /// For how long its primary's Lease held after a renewal.
    pub lease: Duration,
}

impl OldReign {
    /// Replicas of the reign that sealed.
    fn sealed_replicas<'a>(&'a self, ballots: &'a Ballots) -> impl Iterator<Item = &'a Ballot> {
        self.members.iter().filter(|member| **member != self.primary).filter_map(|member| ballots.get(member))
    }

    /// n - W: among so many replicas is at least one that has any given acknowledged write. None where W is 0: no number
    /// of replicas has to have anything then.
    #[must_use]
    pub fn needed(&self) -> Option<usize> {
        let w = usize::try_from(self.w).unwrap_or(usize::MAX);
        (w > 0).then(|| self.members.len().saturating_sub(w).max(1))
    }
}

/// What a sealed member says of its copy of one prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Vote {
    /// The copy's last record.
    Known(Position),
    /// The copy is being replaced, below its floor, damaged or missing.
    Unknown {
        /// Nothing that the member ever acknowledged is above this; None if not even that is known.
        floor: Option<Position>,
    },
}

impl Vote {
    /// The position, if it is known.
    #[must_use]
    pub fn known(self) -> Option<Position> {
        match self {
            Self::Known(position) => Some(position),
            Self::Unknown { .. } => None,
        }
    }
}

/// One prefix on a ballot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixVote {
    /// Its name, for people.
    pub name: String,
    /// True for the catalogue, whose records say which other prefixes exist.
    pub catalogue: bool,
    /// The vote.
    pub vote: Vote,
}

/// What one member that sealed the reign to come says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ballot {
    /// False if it votes but could not lead, such as a parked member.
    pub can_lead: bool,
    /// Each prefix that its catalogue knows, by prefix_uuid; the catalogue itself among them.
    pub votes: BTreeMap<String, PrefixVote>,
}

impl Ballot {
    /// The vote for one prefix. A prefix that is not on the ballot is not in the member's catalogue: its creation was not
    /// applied, which is the very beginning; but if the catalogue itself is unknown, absence says nothing.
    #[must_use]
    pub fn vote(&self, prefix_uuid: &str) -> Vote {
        match self.votes.get(prefix_uuid) {
            Some(entry) => entry.vote,
            None if self.catalogue().is_some_and(|(_, vote)| vote.known().is_some()) => {
                Vote::Known(Position::default())
            }
            None if parovoz_mutant::on("blank-volume-votes") => Vote::Known(Position::default()),
            None => Vote::Unknown { floor: None },
        }
    }

    /// prefix_uuid of the catalogue, and the vote for it.
    #[must_use]
    pub fn catalogue(&self) -> Option<(&str, Vote)> {
        let entry = self.votes.iter().find(|(_, entry)| entry.catalogue);
        entry.map(|(uuid, entry)| (uuid.as_str(), entry.vote))
    }
}

/// Ballots by the members' data_uuid.
pub type Ballots = BTreeMap<String, Ballot>;

/// What is known of an old reign's primary apart from seals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// The process that led is known to have ended: the kubelet said so of that very process, or a person attests it.
    pub ended: bool,
    /// For how long nobody can have renewed the Lease in that reign's name, on one clock of the observer's: since the Lease
    /// carries a higher epoch, or since it was last seen to move. None while its epoch is not above the reign's.
    pub lease_unmoved: Option<Duration>,
}

/// True if the old reign can acknowledge nothing that the sealed members do not know of, and answer no fresh read.
#[must_use]
pub fn fence(old: &OldReign, ballots: &Ballots, proof: Proof) -> bool {
    if ballots.contains_key(&old.primary) || proof.ended || parovoz_mutant::on("fence-not-asked") {
        return true;
    }
    let replicas = old.sealed_replicas(ballots).count();
    match old.needed() {
        Some(needed) => replicas >= needed,
        // Away from the API server the primary goes on by promises of *all* members: one that sealed takes its own back.
        None => {
            let unmoved = proof.lease_unmoved.is_some_and(|unmoved| unmoved >= old.lease);
            replicas >= 1 && (unmoved || parovoz_mutant::on("lease-not-awaited"))
        }
    }
}

/// Why no decision is possible yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undecided {
    /// No sealed member says anything of the catalogue.
    NoCatalogue,
    /// Too few members of an earlier reign know their position in a prefix.
    TooFewVotes {
        /// The prefix, by name.
        prefix: String,
        /// That reign.
        epoch: u64,
        /// Votes of replicas that count.
        counted: usize,
        /// Votes of replicas needed, unless the primary's own is known.
        needed: usize,
    },
    /// No member has a copy of the prefix with a known position.
    NoCopy {
        /// The prefix, by name.
        prefix: String,
    },
}

/// How far the next reign must reach in one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// Its name.
    pub name: String,
    /// True for the catalogue.
    pub catalogue: bool,
    /// The highest vote.
    pub position: Position,
}

/// How far the next reign must reach, by prefix_uuid. Prefixes that the decided catalogue does not list are not in it:
/// they were dropped, or their creation was never acknowledged.
pub type Decision = BTreeMap<String, Decided>;

/// Decide the positions of all prefixes: the catalogue first, then those that it lists.
///
/// # Errors
/// Too few votes are known; nothing may be promoted.
pub fn decide(olds: &[OldReign], ballots: &Ballots) -> Result<Decision, Undecided> {
    decide_after(olds, &[], ballots)
}

/// As [`decide`], where the last reign that served waited for no replica and `earlier` ones did: what those acknowledged is in
/// every record of a later epoch, and must be proven by votes as theirs where the highest vote is of none.
///
/// # Errors
/// As [`decide`].
pub fn decide_after(olds: &[OldReign], earlier: &[OldReign], ballots: &Ballots) -> Result<Decision, Undecided> {
    decide_by(ballots, |prefix, name, highest| {
        let open = earlier.iter().filter(|old| highest.epoch <= old.epoch);
        for old in olds.iter().chain(open.filter(|_| !parovoz_mutant::on("earlier-quorum-forgotten"))) {
            enough(old, ballots, prefix, name, highest)?;
        }
        Ok(())
    })
}

/// Decide on what the sealed members have, whoever else may have more: a person accepted the loss.
///
/// # Errors
/// No sealed member has a copy that could be used.
pub fn decide_with_loss(ballots: &Ballots) -> Result<Decision, Undecided> {
    decide_by(ballots, |_, _, _| Ok(()))
}

fn decide_by(
    ballots: &Ballots,
    enough: impl Fn(&str, &str, Position) -> Result<(), Undecided>,
) -> Result<Decision, Undecided> {
    let catalogue =
        ballots.values().find_map(Ballot::catalogue).map(|(uuid, _)| uuid.to_owned()).ok_or(Undecided::NoCatalogue)?;
    let one = |uuid: &str, name: &str, catalogue: bool| {
        let missing = || Undecided::NoCopy { prefix: name.to_owned() };
        let position = highest(ballots, uuid).ok_or_else(missing)?;
        enough(uuid, name, position)?;
        Ok(Decided { name: name.to_owned(), catalogue, position })
    };
    let name = ballots.values().find_map(|ballot| ballot.votes.get(&catalogue)).map_or("", |entry| &entry.name);
    let first = one(&catalogue, name, true)?;
    let listed = listed(ballots, &catalogue, first.position);
    let mut decision = Decision::from([(catalogue, first)]);
    for (uuid, name) in listed {
        let decided = one(&uuid, &name, false)?;
        decision.insert(uuid, decided);
    }
    Ok(decision)
}

/// The highest known vote of all sealed members, of whichever reign.
fn highest(ballots: &Ballots, prefix: &str) -> Option<Position> {
    let by_sequence_alone = parovoz_mutant::on("candidate-by-sequence-alone");
    let known = ballots.values().filter_map(|ballot| ballot.vote(prefix).known());
    known.max_by_key(|at| if by_sequence_alone { (at.sequence, u64::MAX - at.epoch) } else { (at.epoch, at.sequence) })
}

/// The prefixes that exist at a position of the catalogue: those on the ballots of the members that are there.
fn listed(ballots: &Ballots, catalogue: &str, at: Position) -> BTreeMap<String, String> {
    let there = ballots.values().filter(|ballot| ballot.vote(catalogue) == Vote::Known(at));
    let entries = there.flat_map(|ballot| &ballot.votes).filter(|(_, entry)| !entry.catalogue);
    entries.map(|(uuid, entry)| (uuid.clone(), entry.name.clone())).collect()
}

/// Whether one old reign's acknowledged writes in one prefix are all at or below the highest vote.
fn enough(old: &OldReign, ballots: &Ballots, prefix: &str, name: &str, highest: Position) -> Result<(), Undecided> {
    let Some(needed) = old.needed() else { return Ok(()) };
    if ballots.get(&old.primary).is_some_and(|ballot| ballot.vote(prefix).known().is_some()) {
        return Ok(());
    }
    let counts = |ballot: &&Ballot| match ballot.vote(prefix) {
        Vote::Known(_) => true,
        Vote::Unknown { floor: Some(floor) } => highest >= floor || parovoz_mutant::on("floor-ignored"),
        Vote::Unknown { floor: None } => parovoz_mutant::on("floor-ignored"),
    };
    let counted = old.sealed_replicas(ballots).filter(counts).count();
    let needed = if parovoz_mutant::on("one-vote-suffices") { 1 } else { needed };
    if counted >= needed {
        return Ok(());
    }
    Err(Undecided::TooFewVotes { prefix: name.to_owned(), epoch: old.epoch, counted, needed })
}

/// True if a member that sealed knows its position in every prefix that was decided, so that nothing it has is overlooked.
#[must_use]
pub fn knows(ballots: &Ballots, member: &str, decision: &Decision) -> bool {
    ballots.get(member).is_some_and(|ballot| decision.keys().all(|uuid| ballot.vote(uuid).known().is_some()))
}

/// What a member would have to fetch: whole copies, then records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost {
    /// Prefixes that must be copied whole.
    pub copies: usize,
    /// Records that must be streamed.
    pub records: u64,
}

/// What a member lacks of a decision.
#[must_use]
pub fn cost(ballot: &Ballot, decision: &Decision) -> Cost {
    let mut cost = Cost::default();
    for (uuid, decided) in decision {
        match ballot.vote(uuid) {
            Vote::Known(at) if at == decided.position => {}
            // A record of an earlier epoch at or beyond the sequence decided on: it left the history somewhere.
            Vote::Known(at) if at.sequence < decided.position.sequence => {
                cost.records = cost.records.saturating_add(decided.position.sequence - at.sequence);
            }
            Vote::Known(_) | Vote::Unknown { .. } => cost.copies += 1,
        }
    }
    cost
}

/// Who should lead: the sealed member of `among` that has the least to fetch; the old primary among equals. A reign
/// with W = 0 can be followed only by one of its own members, and by nobody who holds no copy of anything.
#[must_use]
pub fn candidate<'a>(
    olds: &[OldReign],
    ballots: &'a Ballots,
    decision: &Decision,
    among: &BTreeSet<String>,
    old_primary: &str,
) -> Option<&'a str> {
    let allowed = |member: &str| {
        let of_each = olds.iter().filter(|old| old.w == 0).all(|old| old.members.iter().any(|other| other == member));
        among.contains(member) && of_each
    };
    ballots
        .iter()
        .filter(|(member, ballot)| ballot.can_lead && allowed(member))
        .min_by_key(|(member, ballot)| (cost(ballot, decision), Reverse(*member == old_primary), (*member).clone()))
        .map(|(member, _)| member.as_str())
}

/// What a candidate should fetch from one sealed member, before it may be promoted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tail {
    /// The member that has it.
    pub source: String,
    /// Each prefix, by prefix_uuid, and the position to fetch up to.
    pub upto: BTreeMap<String, Decided>,
}

/// What the candidate lacks, each from a member that has it, or whose copy is nowhere: `None`. The catalogue comes
/// first and alone: only with it does the candidate know which prefixes there are.
#[must_use]
pub fn missing(ballots: &Ballots, decision: &Decision, candidate: &str) -> Option<Vec<Tail>> {
    let Some(mine) = ballots.get(candidate) else { return Some(Vec::new()) };
    let lacks: Decision = decision
        .iter()
        .filter(|(uuid, decided)| mine.vote(uuid) != Vote::Known(decided.position))
        .map(|(uuid, decided)| (uuid.clone(), decided.clone()))
        .collect();
    let first: Decision = lacks.clone().into_iter().filter(|(_, decided)| decided.catalogue).collect();
    let now = if first.is_empty() { lacks } else { first };
    let mut tails: Vec<Tail> = Vec::new();
    for (uuid, decided) in now {
        let has = |source: &&String| ballots[*source].vote(&uuid) == Vote::Known(decided.position);
        // Few sources for all: one that is asked already is asked for more.
        let source = tails.iter().map(|tail| &tail.source).find(has).or_else(|| ballots.keys().find(has))?.clone();
        match tails.iter_mut().find(|tail| tail.source == source) {
            Some(tail) => drop(tail.upto.insert(uuid, decided)),
            None => tails.push(Tail { source, upto: BTreeMap::from([(uuid, decided)]) }),
        }
    }
    Some(tails)
}

/// The positions of a decision in one short text, so that two decisions can be told apart at a glance. FNV-1a: stable for
/// ever, and nobody here has to be kept from forging it.
#[must_use]
pub fn digest(decision: &Decision) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for (uuid, decided) in decision {
        let text = format!("{uuid}={}.{};", decided.position.epoch, decided.position.sequence);
        hash = text.bytes().fold(hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    }
    format!("{hash:016x}")
}
