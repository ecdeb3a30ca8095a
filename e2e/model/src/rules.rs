//! The rules, each of which can be removed: which, how, and where that must be seen.

/// Where a rule is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// In the data plane's core, removed by the planted bug of this name.
    DataPlane(&'static str),
    /// In the operator's core, removed by the planted bug of this name.
    Operator(&'static str),
    /// By those who carry out what the cores decide; the model does here what they do.
    Shell(&'static str),
}

/// One rule.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Where it is kept.
    pub kept: Kept,
    /// What it says.
    pub says: &'static str,
    /// The configuration in which its absence is seen.
    pub seen_in: &'static str,
}

impl Rule {
    /// Its name: the planted bug's, or that of what is not done.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.kept {
            Kept::DataPlane(name) | Kept::Operator(name) | Kept::Shell(name) => name,
        }
    }
}

const fn data(name: &'static str, seen_in: &'static str, says: &'static str) -> Rule {
    Rule { kept: Kept::DataPlane(name), says, seen_in }
}

const fn operator(name: &'static str, seen_in: &'static str, says: &'static str) -> Rule {
    Rule { kept: Kept::Operator(name), says, seen_in }
}

const fn shell(name: &'static str, seen_in: &'static str, says: &'static str) -> Rule {
    Rule { kept: Kept::Shell(name), says, seen_in }
}

/// All rules that can be removed.
pub const RULES: &[Rule] = &[
    data("older-order-accepted", "crashes", "no order of an epoch below the promise is taken"),
    data("reign-id-not-compared", "restored", "a reign's id is compared wherever its epoch is"),
    data("epoch-started-twice", "crashes", "an epoch that began is neither sealed nor started again"),
    data("silence-believed", "reads", "silence is no evidence for a member that heard the primary"),
    data("start-not-counted", "reads", "silence is no evidence for a member that has just begun"),
    data("evidence-about-another", "reads-3", "evidence about another reign counts as silence"),
    data("sealed-promises", "reads", "a sealed member promises nothing"),
    data("sealed-goes-on-leading", "plain", "a primary stops before it answers a seal"),
    data("ack-of-any-epoch", "plain", "only positions in the reign's own epoch count"),
    data("one-ack-suffices", "wide", "W distinct replicas release a write"),
    data("epoch-ignored-on-resume", "plain", "a resume compares the epoch of the last record"),
    data("joined-alone", "mixed", "a reign begins once W replicas joined, and serves once they hold its epoch record"),
    data("votes-below-floor", "rebuild", "a copy below its floor has no known vote"),
    data("reads-without-promises", "reads", "reads need promises"),
    data("one-promise-suffices", "lease", "promises of all members stand in for the Lease"),
    data("lease-not-checked", "lease", "with W = 0 the Lease is checked"),
    operator("fence-not-asked", "lease", "a decision needs the fence of each earlier reign"),
    operator("lease-not-awaited", "lease", "with W = 0 the Lease must be unmoved for its duration"),
    operator("one-vote-suffices", "damage", "n - W votes decide"),
    operator("floor-ignored", "rebuild", "an unknown vote counts once a known one reaches its floor"),
    operator("candidate-by-sequence-alone", "writes-3", "the highest epoch wins before the highest sequence"),
    shell("record-swapped", "plain", "the record is swapped from the phase that was read"),
    shell("later-promoting-reigns-asked", "plain", "each later reign that reached Promoting is asked too"),
    shell("each-reign-by-its-own-w", "mixed", "each reign is asked by its own W"),
    shell("only-sealed-members-vote", "plain", "only members sealed for the coming reign vote"),
    shell("volume-has-an-identity", "lost-volume", "an empty volume is another member than the lost one"),
    shell(
        "promote-names-the-process",
        "epochs=3,writes=1,w=0,clocks=1,crashes=1",
        "a promotion is for the process that the record names",
    ),
    shell("seal-ends-streams", "plain", "a seal ends the streams and acknowledgements of older reigns"),
    shell("promise-stored", "crashes", "a promise is stored before it is answered"),
    shell("primary-synced-before-ack", "crashes", "the primary syncs before it acknowledges"),
    shell("replica-synced-before-ack", "crashes", "a replica syncs before it acknowledges"),
    shell("floor-stored", "rebuild", "the floor is stored before a copy is touched"),
    shell(
        "restored-record-asks-everyone",
        "restored",
        "a record that knows less than a member is not acted on before all have answered",
    ),
    shell("lease-raised-before-it-counts", "lease", "the wait for the Lease counts once it carries a higher epoch"),
    shell("lease-checked-after-commit", "lease", "with W = 0 nothing is acknowledged without the Lease"),
];
