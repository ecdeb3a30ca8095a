//! Benchmarks: our figures beside a reference that is measured in the same run, so that the ratio survives another machine.

mod member;
mod redis;
mod report;

pub use redis::{Options, run};
