//! Keeps the role awake: time, acknowledgements while a reign begins, and the pulse of the disk.
//!
//! A beat, a promise and a renewal say that the disk works, so the disk is asked for it twice a second, however idle the
//! member is. A disk that hangs answers nothing, and the rest follows by itself.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parovoz_dataplane_core::role::Event;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Member;
use super::state::MemberState;
use crate::run::FatalSwitch;

/// Between two looks at the time.
const TICK: Duration = Duration::from_millis(100);
/// Between two fsyncs of the pulse.
const PULSE: Duration = Duration::from_millis(500);

/// Ticks until `stop`, and sooner whenever acknowledgements came that may matter.
pub async fn keep(member: Arc<Member>, acked: Arc<Notify>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = acked.notified() => {}
            () = tokio::time::sleep(TICK) => {}
        }
        let member = member.clone();
        // What fails has ended the process.
        if tokio::task::spawn_blocking(move || member.tick()).await.is_err() {
            return;
        }
    }
}

/// Syncs a small file of the volume again and again, on a thread of its own since it may hang.
///
/// # Errors
/// If the file or the thread can't be made.
pub fn pulse(
    data_dir: &Path,
    state: Arc<MemberState>,
    fatal: FatalSwitch,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let path: PathBuf = data_dir.join("pulse");
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    std::thread::Builder::new().name("pulse".into()).spawn(move || {
        let mut count: u64 = 0;
        while !stop.is_cancelled() {
            count += 1;
            state.hear(Event::FsyncAsked);
            if let Err(error) = file.write_all_at(&count.to_le_bytes(), 0).and_then(|()| file.sync_data()) {
                return fatal.end(&format!("sync the volume: {error}"));
            }
            state.hear(Event::Fsynced);
            std::thread::sleep(PULSE);
        }
    })?;
    Ok(())
}
