//! Planted bugs, for the simulator: each safety rule can be switched off by its name, to see that the simulator finds out.
//!
//! Both cores ask here. Without the feature `mutants` nothing of it is compiled: [`on`] is the constant `false`. The feature
//! is for the simulator and the model alone; no image has it.
#![warn(missing_docs)]

#[cfg(feature = "mutants")]
mod planted {
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Hash of the planted bug's name; 0 = none.
    static PLANTED: AtomicU64 = AtomicU64::new(0);

    /// FNV-1a.
    const fn hash(name: &str) -> u64 {
        let (bytes, mut hash, mut i) = (name.as_bytes(), 0xcbf2_9ce4_8422_2325_u64, 0);
        while i < bytes.len() {
            hash = (hash ^ bytes[i] as u64).wrapping_mul(0x0000_0100_0000_01b3);
            i += 1;
        }
        hash
    }

    /// Whether the bug of this name is planted.
    #[must_use]
    #[inline(always)]
    pub fn on(name: &str) -> bool {
        let planted = PLANTED.load(Ordering::Relaxed);
        planted != 0 && planted == hash(name)
    }

    /// Plants this bug, and no other, in the whole process; `None` takes it out.
    pub fn plant(name: Option<&'static str>) {
        PLANTED.store(name.map_or(0, hash), Ordering::Relaxed);
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
