//! The volumes of members as this machine has them: where their files are, and how one dies.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::env::{Env, NAMESPACE, Target};
use super::inject::process;
use crate::error::{Context, Error, Result};
use crate::kube::text;
use crate::poll;

/// A new claim takes the place of the lost one by then.
const REPLACED_LIMIT: Duration = Duration::from_secs(60);

/// The directory that is a member's volume.
pub fn directory(env: &Env<'_>, pod: &str) -> Result<PathBuf> {
    let claim = env.kube.json(&format!("get pvc data-{pod} -n {NAMESPACE}"))?;
    let volume = env.kube.json(&format!("get pv {}", text(&claim, "/spec/volumeName")))?;
    let path = ["/spec/local/path", "/spec/hostPath/path"].map(|at| text(&volume, at)).concat();
    let path = PathBuf::from(path);
    // What is wiped must not be anything but a volume of the cluster's.
    if path.starts_with(&env.layout.root) && path.is_dir() {
        return Ok(path);
    }
    Err(Error::failed(format!("find the volume of {pod}: {} is none", path.display())))
}

/// Removes what is in a directory, and not the directory: it is mounted.
fn wipe(directory: &Path) -> Result<()> {
    let action = || format!("wipe {}", directory.display());
    for entry in std::fs::read_dir(directory).doing(action)? {
        let entry = entry.doing(action)?;
        let is_dir = entry.file_type().doing(action)?.is_dir();
        let path = entry.path();
        if is_dir { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.doing(action)?;
    }
    Ok(())
}

/// The disk dies under the running primary: its process does nothing more, its files are gone, it ends, and whatever the
/// kubelet starts instead finds nothing. Then claim and pod go at once, as with the machine that had the disk.
pub fn lost(env: &Env<'_>, target: &Target<'_>) -> Result<()> {
    let primary = &target.before.primary;
    let files = directory(env, primary)?;
    let claim = || target.subject.store.uid("pvc", &format!("data-{primary}"));
    let old = claim()?;
    target.mark("the primary's disk dies");
    let stopped = process::stop(&env.journal, target.before.process)?;
    wipe(&files)?;
    process::kill(target.before.process)?;
    target.mark("its process ended, its files are gone");
    let both = format!("delete pvc/data-{primary} pod/{primary} -n {NAMESPACE} --grace-period=0 --force --wait=false");
    env.kube.kubectl(&both).done()?;
    target.mark("volume and pod deleted");
    stopped.undo()?;
    let replaced = poll::until("a new volume", REPLACED_LIMIT, Duration::from_millis(300), || {
        let new = claim().map_err(|e| e.to_string())?;
        poll::ready(new.is_some() && new != old, || format!("the claim is {new:?}"))
    });
    match replaced {
        Ok(()) => target.mark("it has a new volume"),
        Err(e) => target.problem(format!("no effect: the volume was not lost: {e}")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_wiped_directory_stays_and_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("prefixes/a")).unwrap();
        std::fs::write(dir.path().join("prefixes/a/x"), "x").unwrap();
        std::fs::write(dir.path().join("member.0"), "x").unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("current")).unwrap();
        super::wipe(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
