//! Talking to members: one report stream a pod, and orders.

mod convert;
mod orders;
mod pool;
mod watch;

pub use convert::report;
pub use orders::OrderError;
pub use pool::{MemberPod, Members};
