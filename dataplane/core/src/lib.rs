//! The data plane's pure core: no IO, no clock, no randomness, no async.
//!
//! * [`types`]: positions, epochs, names and reigns as newtypes.
//! * [`history`]: a prefix's epoch records and the check of a resume against them.
//! * [`batch`]: RocksDB write batches as bytes: headers, counting, reading, building.
//! * [`value`]: how a value and its expiry are stored.
//! * [`resp`] and [`command`]: the Redis protocol and its commands, from bytes to typed requests and back.
//! * [`follower`]: what a follower does with what its upstream sends.
//! * [`acks`]: who has what, on the primary.
//! * [`member`]: promises, seals and orders of one member.
//! * [`vote`], [`lease`], [`joining`]: what a copy votes, how long a primary may serve, how a reign begins.
//! * [`role`]: a member as a whole, events in, effects out.
//! * [`budget`]: credit, batch sizing and the restart budget.
//!
//! Invariant: everything here is a function of its arguments; time comes in as a value.

pub mod acks;
pub mod batch;
pub mod budget;
pub mod command;
pub mod follower;
pub mod history;
pub mod joining;
pub mod lease;
pub mod member;
pub mod resp;
pub mod retention;
pub mod role;
pub mod types;
pub mod value;
pub mod vote;
