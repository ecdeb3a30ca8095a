//! The Redis protocol (RESP2 and RESP3): requests out of bytes, replies into bytes.
//!
//! [`parser`] reads requests from whatever has arrived so far, without a copy or an allocation per argument.
//! [`reply`] writes replies in the version that the connection chose.

pub mod parser;
pub mod reply;

pub use parser::{Args, Parser, ProtocolError, RequestLimits};
pub use reply::{Proto, Reply};

#[cfg(test)]
mod tests;
