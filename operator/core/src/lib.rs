//! Every decision of the operator: what is observed of a store goes in, a plan comes out.
//!
//! Nothing here talks to anybody: no client, no runtime, no clock, no randomness. Time and random identities are passed
//! in as values, so that the same observation always gives the same plan, in a test as in a cluster.
//!
//! The flow is [`observed::Observed`] -> [`plan::plan`] -> [`plan::Plan`], and, after the shell has carried the plan
//! out, [`status::status`]. A plan leaves its executor no choices.
#![warn(missing_docs)]

pub mod build;
pub mod names;
pub mod observed;
pub mod plan;
pub mod quorum;
mod receipt;
pub mod settings;
pub mod status;
