//! Directories of tests.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

/// A directory that goes with the value, also where a database in it is still being closed by a thread that the test
/// doesn't wait for: it may make files while the directory is being removed, so the removal is tried until it holds.
pub struct Scratch(Option<tempfile::TempDir>);

impl Scratch {
    pub fn new() -> Self {
        Self(Some(tempfile::tempdir().unwrap()))
    }

    pub fn path(&self) -> &Path {
        self.0.as_ref().unwrap().path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let path = self.0.take().unwrap().keep();
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::fs::remove_dir_all(&path).is_err() && path.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
