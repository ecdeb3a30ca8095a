//! What tests of this module share.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;

/// A file system of its own that can be filled up; unmounted when dropped. Needs root, or a user namespace to mount in.
pub(crate) struct SmallVolume {
    dir: tempfile::TempDir,
}

impl SmallVolume {
    pub(crate) fn mount(bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "parovoz-test"])
            .arg(dir.path())
            .output()
            .unwrap();
        let why = String::from_utf8_lossy(&mounted.stderr);
        assert!(mounted.status.success(), "this test mounts a small file system and must run as root: {why}");
        Self { dir }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Leaves no room at all.
    pub(crate) fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.dir.path().join("filler")).unwrap();
        for chunk in [1 << 20, 4096, 1] {
            let bytes = vec![1; chunk];
            while file.write_all(&bytes).is_ok() {}
        }
    }

    pub(crate) fn empty(&self) {
        std::fs::remove_file(self.dir.path().join("filler")).unwrap();
    }
}

impl Drop for SmallVolume {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.dir.path()).status();
        if !std::thread::panicking() {
            assert!(unmounted.unwrap().success());
        }
    }
}
