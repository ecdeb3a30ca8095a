//! The steps of one pass over a store.

pub mod apply;
pub mod lease;
pub mod observe;
pub mod report;
