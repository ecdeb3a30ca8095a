//! The data plane as real processes with real RocksDB on loopback addresses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod failover;
mod grpc;
mod lease;
mod node;
mod replication;
mod single;
mod volume;
