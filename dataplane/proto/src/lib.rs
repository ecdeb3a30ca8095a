//! The wire protocol of Parovoz: the messages and services of `proto/parovoz/v1`, generated at build time.
//!
//! The `.proto` files carry the documentation of each message.

/// The messages and services; all versions of the protocol share them.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("parovoz.v1");
}

/// The newest protocol version that this build speaks. 2: bundles, compression, questions about the round trip.
pub const PROTOCOL_VERSION: u32 = 2;
/// The oldest protocol version that this build still understands (N and N-1 talk).
pub const MIN_PROTOCOL_VERSION: u32 = 1;
