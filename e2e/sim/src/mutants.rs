//! The planted bugs: each breaks one rule, and the simulator must notice.

/// One of them.
#[derive(Debug)]
pub struct Mutant {
    /// As the cores and the glue ask for it.
    pub name: &'static str,
    /// The rule that it breaks.
    pub breaks: &'static str,
}

const fn mutant(name: &'static str, breaks: &'static str) -> Mutant {
    Mutant { name, breaks }
}

/// All of them.
pub const MUTANTS: &[Mutant] = &[
    mutant("ack-before-commit", "a write is acknowledged once replicas have it durably"),
    mutant("ack-before-sync", "a replica acknowledges only what it has synced"),
    mutant("one-ack-suffices", "W replicas, not one, must have a write"),
    mutant("ack-of-any-epoch", "only a position of the reign's own epoch counts"),
    mutant("intermediate-ack-counted", "who streams from a member that acknowledges counts only by its own word"),
    mutant("w-changed-without-reign", "W changes only with a new reign"),
    mutant("lease-not-checked", "without quorum the Lease is checked after the commit"),
    mutant("lease-not-awaited", "the Lease of an old reign is waited out"),
    mutant("lease-without-margin", "the primary stops before its Lease may be taken over"),
    mutant("promise-not-synced", "a promise is synced before it is answered"),
    mutant("reads-without-promises", "a read needs the promises of W replicas"),
    mutant("one-promise-suffices", "of W replicas, not of one"),
    mutant("sealed-promises", "who is sealed promises nothing"),
    mutant("sealed-goes-on-leading", "a sealed primary stops before it answers"),
    mutant("silence-believed", "who heard the primary does not seal on silence"),
    mutant("start-not-counted", "nor does who began a moment ago"),
    mutant("evidence-about-another", "evidence about another reign counts as silence"),
    mutant("unacknowledged-shown", "a read never shows a write that is not acknowledged"),
    mutant("epoch-ignored-on-resume", "a resume compares the epoch, not the sequence alone"),
    mutant("sequence-not-checked", "first == last + 1"),
    mutant("candidate-by-sequence-alone", "a higher epoch wins over any sequence"),
    mutant("one-vote-suffices", "n - W replicas decide"),
    mutant("fence-not-asked", "nobody is promoted while the old primary may acknowledge"),
    mutant("blank-volume-votes", "an empty volume is another member, and has no vote"),
    mutant("votes-below-floor", "a copy below its floor has no known vote"),
    mutant("floor-not-stored", "the floor is stored before a copy is touched"),
    mutant("floor-ignored", "an unknown vote counts only above its floor"),
    mutant("earlier-quorum-forgotten", "what a quorum acknowledged stays when the next reign waits for none"),
    mutant("promoting-reigns-forgotten", "a reign that reached Promoting may have served"),
    mutant("joined-alone", "epoch records wait for W replicas that have all"),
    mutant("epoch-started-twice", "an epoch is started once"),
    mutant("older-order-accepted", "an order older than the promise is refused"),
    mutant("reign-id-not-compared", "a reign's id is compared wherever its epoch is"),
    mutant("restored-record-asks-nobody", "a restored record is not acted on before every volume answered"),
    mutant("power-forgives", "whoever lost power without having synced does not know what it had"),
    mutant("absence-is-deletion", "only a record takes a prefix away"),
];
