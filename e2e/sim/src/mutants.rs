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
    mutant("ack-before-commit", "a write is acknowledged once it is durable where the reign asks for it"),
    mutant("lease-not-checked", "without quorum the Lease is checked after the commit"),
    mutant("promise-not-synced", "a promise is synced before it is answered"),
    mutant("ack-before-sync", "a replica acknowledges what it has synced"),
    mutant("read-without-promises", "a read needs the promises of W replicas"),
    mutant("unacknowledged-shown", "a read never shows a write that is not acknowledged"),
    mutant("candidate-by-sequence-alone", "a higher epoch wins over any sequence"),
    mutant("floor-ignored", "an unknown vote counts only above its floor"),
    mutant("one-vote-suffices", "n - W replicas decide"),
    mutant("promoting-reigns-forgotten", "a reign that reached Promoting may have served"),
    mutant("absence-is-deletion", "only an applied drop takes a prefix away"),
];
