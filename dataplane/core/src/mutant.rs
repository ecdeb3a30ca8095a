//! Planted bugs, for the simulator: each safety rule can be switched off by its name, to see that the simulator finds out.
//!
//! Without the feature `mutants` nothing of it is compiled: [`on`] is the constant `false`. The feature is for tests alone
//! and is enabled by no binary.

#[cfg(feature = "mutants")]
mod planted {
    use std::sync::RwLock;
    use std::sync::atomic::{AtomicBool, Ordering};

    static ANY: AtomicBool = AtomicBool::new(false);
    static NAME: RwLock<&str> = RwLock::new("");

    /// Whether the bug of this name is planted.
    #[must_use]
    pub fn on(name: &str) -> bool {
        ANY.load(Ordering::Relaxed) && *NAME.read().unwrap_or_else(std::sync::PoisonError::into_inner) == name
    }

    /// Plants this bug, and no other, in the whole process; `None` takes it out.
    pub fn plant(name: Option<&'static str>) {
        *NAME.write().unwrap_or_else(std::sync::PoisonError::into_inner) = name.unwrap_or("");
        ANY.store(name.is_some(), Ordering::Relaxed);
    }
}
#[cfg(feature = "mutants")]
pub use planted::{on, plant};

/// Whether the bug of this name is planted: never, in this build.
#[cfg(not(feature = "mutants"))]
#[must_use]
#[inline(always)]
pub const fn on(_name: &str) -> bool {
    false
}
