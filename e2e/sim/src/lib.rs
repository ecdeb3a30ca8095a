//! A seeded simulation.

pub mod api;
pub mod batch;
pub mod check;
pub mod clients;
pub mod coverage;
pub mod faults;
pub mod member;
pub mod msg;
#[cfg(feature = "mutants")]
pub mod mutants;
pub mod net;
pub mod operator;
pub mod orders;
pub mod rng;
pub mod run;
pub mod setup;
pub mod trace;
pub mod volume;
pub mod world;
