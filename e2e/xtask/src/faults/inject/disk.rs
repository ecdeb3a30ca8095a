//! Volumes on file systems of their own, which can hang or fill without harm to the machine.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Armed, Journal, Undo};
use crate::error::{Context, Error, Result, make_dir};
use crate::exec::run;

/// Makes a file system of `mebibytes` in a file and mounts it below `dir`. Returns the mount point.
pub fn make(journal: &Arc<Journal>, dir: &Path, name: &str, mebibytes: u64) -> Result<(PathBuf, Armed)> {
    let (image, mount) = (dir.join(format!("{name}.img")), dir.join(name));
    make_dir(&mount)?;
    let armed = journal.arm(Undo::Volume { mount: mount.clone(), image: image.clone() })?;
    let file = std::fs::File::create(&image).doing(|| format!("make {}", image.display()))?;
    file.set_len(mebibytes << 20).doing(|| format!("make {}", image.display()))?;
    run("mkfs.ext4").words("-q -F -m 0 -E lazy_itable_init=1,lazy_journal_init=1").arg(&image).done()?;
    run("mount").words("-o loop,noatime").arg(&image).arg(&mount).done()?;
    Ok((mount, armed))
}

/// Lets every write to the file system wait.
pub fn freeze(journal: &Arc<Journal>, mount: &Path) -> Result<Armed> {
    let armed = journal.arm(Undo::Thaw(mount.to_owned()))?;
    run("fsfreeze").arg("--freeze").arg(mount).done()?;
    Ok(armed)
}

/// Lets writes go on.
pub fn thaw(mount: &Path) -> Result<()> {
    if !is_mounted(mount)? {
        return Ok(());
    }
    // It says "Invalid argument" of one that is not frozen.
    let output = run("fsfreeze").arg("--unfreeze").arg(mount).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() || said.contains("Invalid argument") {
        return Ok(());
    }
    Err(Error::failed(format!("thaw {}: {}", mount.display(), said.trim())))
}

/// Takes all space that is left, by a file beside the volume.
pub fn fill(journal: &Arc<Journal>, mount: &Path) -> Result<Armed> {
    let filler = mount.join("filler");
    let armed = journal.arm(Undo::Remove(filler.clone()))?;
    let action = || format!("fill {}", mount.display());
    let mut file = std::fs::File::create(&filler).doing(action)?;
    match std::io::copy(&mut std::io::repeat(1).take(1 << 40), &mut file) {
        Err(e) if e.kind() == std::io::ErrorKind::StorageFull => Ok(armed),
        Err(source) => Err(Error::Io { action: action(), source }),
        Ok(_) => Err(Error::failed(format!("{}: it has no end", action()))),
    }
}

/// Unmounts and removes a file system.
pub fn remove(mount: &Path, image: &Path) -> Result<()> {
    while is_mounted(mount)? {
        thaw(mount)?;
        run("umount").arg("--lazy").arg(mount).done()?;
    }
    for (path, gone) in [(image, std::fs::remove_file(image)), (mount, std::fs::remove_dir(mount))] {
        match gone {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::Io { action: format!("remove {}", path.display()), source: e });
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_mounted(mount: &Path) -> Result<bool> {
    let mounts = crate::error::read(Path::new("/proc/mounts"))?;
    Ok(mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|point| Path::new(point) == mount)))
}
