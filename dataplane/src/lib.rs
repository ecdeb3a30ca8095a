//! The data plane: runs the prefixes of one member, serves clients and streams to and from other members.
//!
//! A thin shell around `parovoz-dataplane-core`; `ARCHITECTURE.md` has the map.

pub mod admin;
pub mod clock;
pub mod config;
pub mod disk;
pub mod grpc;
pub mod http;
pub mod logging;
pub mod member;
pub mod memory;
pub mod process;
pub mod replication;
pub mod run;
#[cfg(test)]
mod scratch;
pub mod shard;
pub mod store;
