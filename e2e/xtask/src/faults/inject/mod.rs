//! Faults, and how each is undone: when its guard goes, and, should this process end first, at the start of the next run.

pub mod disk;
pub mod network;
pub mod process;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::cluster::process::Recorded;
use crate::error::{Context, Error, Result, read, write};
use crate::exec::run;

/// What takes a fault back. Doing it twice, or where nothing is to be undone, is no error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Undo {
    /// A stopped process goes on.
    Continue(Recorded),
    /// A node's cable is plugged in again.
    LinkUp(String),
    /// Rules of the firewall, in the network namespace that this process belongs to, go.
    Rules { of: Recorded, rules: Vec<String> },
    /// A file system accepts writes again.
    Thaw(PathBuf),
    /// A file that only took space goes.
    Remove(PathBuf),
    /// A file system that was made for a test goes, with its image.
    Volume { mount: PathBuf, image: PathBuf },
    /// A Deployment runs so many pods again.
    Scale { kubectl: Vec<String> },
}

impl Undo {
    fn perform(&self) -> Result<()> {
        match self {
            Self::Continue(process) => process.signal_if_there(Signal::CONT).map(drop),
            Self::LinkUp(link) => {
                if !Path::new("/sys/class/net").join(link).exists() {
                    return Ok(());
                }
                run("ip").words(&format!("link set {link} up")).done()
            }
            Self::Rules { of, rules } => network::remove_rules(*of, rules),
            Self::Thaw(mount) => disk::thaw(mount),
            Self::Remove(file) => match std::fs::remove_file(file) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    Err(Error::Io { action: format!("remove {}", file.display()), source: e })
                }
                _ => Ok(()),
            },
            Self::Volume { mount, image } => disk::remove(mount, image),
            Self::Scale { kubectl } => {
                let Some((program, args)) = kubectl.split_first() else { return Ok(()) };
                run(program).args(args).done()
            }
        }
    }
}

#[derive(Default, Serialize, Deserialize)]
struct Entries {
    next: u64,
    open: Vec<(u64, Undo)>,
}

/// Which faults are in place. Kept in a file, written before each fault.
pub struct Journal {
    file: PathBuf,
    entries: Mutex<Entries>,
}

impl Journal {
    /// Takes back what an earlier run left, the latest first. Returns what could not be.
    pub fn open(file: &Path) -> Result<(Arc<Self>, Vec<String>)> {
        let left: Entries = if file.exists() {
            serde_json::from_str(&read(file)?).map_err(|e| Error::parse(format!("read {}", file.display()), e))?
        } else {
            Entries::default()
        };
        let failed = left.open.iter().rev().filter_map(|(_, undo)| undo.perform().err()).map(|e| e.to_string());
        let failed = failed.collect();
        let journal = Arc::new(Self { file: file.to_owned(), entries: Mutex::default() });
        journal.save(&Entries::default())?;
        Ok((journal, failed))
    }

    /// Notes how a fault that is about to be made is undone. It is undone when the guard goes.
    pub fn arm(self: &Arc<Self>, undo: Undo) -> Result<Armed> {
        let mut entries = self.entries.lock().map_err(|_| Error::failed("note a fault: a thread panicked"))?;
        let id = entries.next;
        entries.next += 1;
        entries.open.push((id, undo.clone()));
        self.save(&entries)?;
        Ok(Armed { journal: self.clone(), id, undo: Some(undo) })
    }

    fn forget(&self, id: u64) -> Result<()> {
        let mut entries = self.entries.lock().map_err(|_| Error::failed("forget a fault: a thread panicked"))?;
        entries.open.retain(|(other, _)| *other != id);
        self.save(&entries)
    }

    fn save(&self, entries: &Entries) -> Result<()> {
        let text = serde_json::to_string(entries).map_err(|e| Error::parse("note faults", e))?;
        let part = self.file.with_extension("part");
        write(&part, text)?;
        std::fs::rename(&part, &self.file).doing(|| format!("write {}", self.file.display()))
    }
}

/// A fault that is in place, until this goes.
#[must_use = "the fault is undone when this goes"]
pub struct Armed {
    journal: Arc<Journal>,
    id: u64,
    undo: Option<Undo>,
}

impl Armed {
    /// Undoes the fault now, and says so if that fails; then it stays noted for the next run.
    pub fn undo(mut self) -> Result<()> {
        self.perform()
    }

    fn perform(&mut self) -> Result<()> {
        let Some(undo) = self.undo.take() else { return Ok(()) };
        undo.perform()?;
        self.journal.forget(self.id)
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        if let Err(e) = self.perform() {
            eprintln!("undo a fault: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Journal, Undo};

    #[test]
    fn a_fault_that_was_not_undone_is_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let (file, noted) = (dir.path().join("faults.json"), dir.path().join("filler"));
        let (journal, failed) = Journal::open(&file).unwrap();
        assert!(failed.is_empty());
        std::fs::write(&noted, "x").unwrap();
        // As if this process ended here.
        std::mem::forget(journal.arm(Undo::Remove(noted.clone())).unwrap());
        drop(journal);
        assert!(noted.exists());
        let (journal, failed) = Journal::open(&file).unwrap();
        assert!(failed.is_empty());
        assert!(!noted.exists());
        drop(journal.arm(Undo::Remove(noted)).unwrap());
        assert!(std::fs::read_to_string(&file).unwrap().contains("\"open\":[]"));
    }
}
