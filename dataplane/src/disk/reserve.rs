//! The reserve: a preallocated file that is given back when the disk is full, so that promises, floors and pointers can still
//! be written, and made again when there is room. While it is missing the volume counts as full.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Size of the reserve.
pub const RESERVE_BYTES: u64 = 8 << 20;
/// Free bytes from which the reserve is made again, and from which a member that the full disk stopped is started again: the
/// reserve itself must not be what fills the disk.
pub const ROOM_BYTES: u64 = 4 * RESERVE_BYTES;

/// Whether the disk refused for want of room.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// (free, total) bytes of the volume that holds `path`.
///
/// # Errors
/// What the system says.
pub fn space(path: &Path) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::statvfs(path)?;
    Ok((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
}

/// The reserve of one volume.
#[derive(Debug, Clone)]
pub struct Reserve {
    path: PathBuf,
}

impl Reserve {
    /// The reserve of the volume in `root`, as it is.
    #[must_use]
    pub fn of(root: &Path) -> Self {
        Self { path: root.join("reserve") }
    }

    /// Whether it is there, whole.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|m| m.len() >= RESERVE_BYTES)
    }

    /// Makes it, if it is missing and there is room for it and more.
    pub fn fill(&self) {
        if self.is_whole() {
            return;
        }
        let free = self.path.parent().map(space);
        if !matches!(free, Some(Ok((free, _))) if free >= ROOM_BYTES) {
            tracing::warn!(?free, need = ROOM_BYTES, "the volume is full: no reserve for state");
            return;
        }
        match self.preallocate() {
            Ok(()) => tracing::info!(bytes = RESERVE_BYTES, "reserve for state made"),
            Err(error) => {
                tracing::warn!(%error, "no reserve for state");
                // A part of it would only take room.
                let _ = fs::remove_file(&self.path);
            }
        }
    }

    fn preallocate(&self) -> io::Result<()> {
        let mut file = File::options().create(true).write(true).truncate(true).open(&self.path)?;
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVE_BYTES) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
            done => return Ok(done?),
        }
        let zeros = vec![0; 1 << 20];
        for _ in 0..RESERVE_BYTES >> 20 {
            file.write_all(&zeros)?;
        }
        file.sync_all()
    }

    /// Gives it back; answers whether there was anything to give.
    pub fn release(&self) -> bool {
        let given = fs::remove_file(&self.path).is_ok();
        if given {
            tracing::error!("the volume is full: the reserve is given back, so that state can still be written");
        }
        given
    }

    /// Does `work`; if the disk is full, gives the reserve back and does it once more.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn with_room<T, E>(
        &self,
        is_full: impl Fn(&E) -> bool,
        mut work: impl FnMut() -> Result<T, E>,
    ) -> Result<T, E> {
        match work() {
            Err(error) if is_full(&error) && self.release() => work(),
            done => done,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::disk::layout::Layout;
    use crate::disk::slots::Slots;
    use crate::disk::tests::SmallVolume;
    use parovoz_dataplane_core::member::MemberRecord;
    use parovoz_dataplane_core::types::{DataUuid, Epoch, PrefixName, PrefixUuid, StoreUid};
    use uuid::Uuid;

    #[test]
    fn on_a_full_volume_promises_and_pointers_are_still_written_and_the_reserve_comes_back() {
        let volume = SmallVolume::mount(96 << 20);
        let layout = Layout::open(volume.path()).unwrap();
        let (name, uuid) = (PrefixName::new("p").unwrap(), PrefixUuid(Uuid::from_u128(1)));
        let generation = layout.next_generation(&name, uuid, 0, "created").unwrap();
        assert_eq!(layout.storage_trouble(), None);
        volume.fill();

        let (mut slots, none) = Slots::open(volume.path()).unwrap();
        assert!(none.is_none());
        let mut record = MemberRecord::blank(StoreUid("s".into()), DataUuid(Uuid::from_u128(7)), "claim".into());
        record.started = Epoch(9);
        // Neither slot is there yet, so both need room.
        slots.write_both(&record).unwrap();
        assert_eq!(Slots::open(volume.path()).unwrap().1.unwrap().started, Epoch(9));
        assert!(layout.storage_trouble().unwrap().contains("full"));
        volume.fill();
        record.started = Epoch(10);
        slots.write_both(&record).unwrap();
        assert_eq!(Slots::open(volume.path()).unwrap().1.unwrap().started, Epoch(10), "slots are overwritten in place");

        layout.keep_reserve();
        assert!(layout.storage_trouble().is_some(), "there is no room for a reserve yet");
        volume.empty();
        layout.keep_reserve();
        assert_eq!(layout.storage_trouble(), None);
        volume.fill();
        layout.switch(&name, uuid, &generation).unwrap();
        assert_eq!(layout.current(&name, uuid).unwrap(), Some(generation));
        assert!(layout.storage_trouble().is_some());
    }
}
