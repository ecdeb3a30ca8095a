//! The shell of the operator: it reads the cluster and the members, lets `parovoz-operator-core` decide, and carries the
//! plan out.
//!
//! One pass over a store is a pipeline, one file a step: [`steps::observe`] -> `core::plan` -> [`steps::apply`] ->
//! [`steps::report`]. Only the last one writes status and events. No rule about stores belongs here.

pub mod caches;
pub mod cli;
pub mod controller;
pub mod error;
pub mod http;
pub mod leader;
pub mod member;
pub mod metrics;
pub mod run;
pub mod steps;
