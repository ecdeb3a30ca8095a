//! The wire protocol of Parovoz: the messages and services of `proto/parovoz/v1`, generated at build time.
//!
//! The `.proto` files carry the documentation of each message.

/// Version 1 of the protocol.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("parovoz.v1");
}

/// The newest protocol version that this build speaks.
pub const PROTOCOL_VERSION: u32 = 1;
/// The oldest protocol version that this build still understands (N and N-1 talk).
pub const MIN_PROTOCOL_VERSION: u32 = 1;
