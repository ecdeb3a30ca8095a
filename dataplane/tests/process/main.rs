//! The data plane as real processes with real RocksDB on loopback addresses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod grpc;
mod node;
mod replication;
mod single;
mod volume;
