//! An exhaustive search of reigns and votes within bounds.
//!
//! The rules are those of the two cores, called as they are: orders, promises, echoes and the stages of a primary through
//! `role`, `joining`, `acks`, `lease`, `history`, `vote` and the hellos of the data plane's core; fence, decision, candidate
//! and missing tails through `quorum` of the operator's. Around them are the members' disks, the record with its
//! compare-and-swap, and any number of operators that remember nothing ([`steps`] says what is a step and what is not).
//!
//! * [`state`]: everything there is, in some 130 bytes; members that differ in name alone are the same.
//! * [`cores`]: questions to the cores, each asked once.
//! * [`steps`]: all steps and the invariants of the design.
//! * [`search`]: breadth first, so that a trace is a shortest one.
//! * [`bounds`] and [`rules`]: what is searched, and which rules are removed to see that each matters.
//! * [`clocks`]: promises and the Lease on clocks that drift, which [`steps`] takes for granted.
//!
//! Not searched: several prefixes, the watermark of a disk that lies, switchover as such (it is a reign like others), and the
//! operator's plan: when it does what, which is no question of safety here, since it may do anything at any time.

pub mod bounds;
pub mod clocks;
pub mod cores;
pub mod rules;
pub mod run;
pub mod search;
pub mod state;
pub mod steps;
