//! The root file system below both binaries: the libraries they are linked to, a user, and room for temporary files.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::cluster::containers::{buildah, file_digest, hex};
use crate::error::{Context, Result, make_dir, write};
use crate::exec::run;

const PASSWD: &str = "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/tmp:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnonroot:x:65532:\n";
const NAMES: &str = "hosts: files dns\n";

/// The shared libraries of the binaries, their loader included, at the paths where they are looked for.
pub fn libraries(binaries: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut found = BTreeSet::new();
    for binary in binaries {
        let listed = run("ldd").arg(binary).text()?;
        // "libc.so.6 => /lib/.../libc.so.6 (0x...)" or "/lib64/ld-linux-x86-64.so.2 (0x...)"; the kernel's own has no path.
        for word in listed.split_whitespace().filter(|w| w.starts_with('/')) {
            found.insert(PathBuf::from(word));
        }
    }
    Ok(found.into_iter().collect())
}

/// Identifies the base by all that it holds.
pub fn digest(libraries: &[PathBuf]) -> Result<String> {
    let mut hash = Sha256::new();
    for library in libraries {
        hash.update(library.as_os_str().as_encoded_bytes());
        hash.update(file_digest(library)?);
    }
    hash.update([PASSWD, GROUP, NAMES].concat());
    Ok(hex(&hash.finalize()))
}

/// Makes the image that stands for `BASE` in the Containerfiles. Returns its name.
pub fn image(libraries: &[PathBuf], digest: &str) -> Result<String> {
    let name = format!("localhost/parovoz/base:{}", &digest[..12]);
    let context = tempfile::tempdir().doing(|| "make a build directory".into())?;
    let root = context.path().join("root");
    for library in libraries {
        let target = root.join(library.strip_prefix("/").unwrap_or(library));
        make_dir(target.parent().unwrap_or(&root))?;
        std::fs::copy(library, &target).doing(|| format!("copy {}", library.display()))?;
    }
    write(&root.join("etc/passwd"), PASSWD)?;
    write(&root.join("etc/group"), GROUP)?;
    write(&root.join("etc/nsswitch.conf"), NAMES)?;
    make_dir(&root.join("usr/local/bin"))?;
    open_to_all(&root.join("tmp"))?;
    write(&context.path().join("Containerfile"), "FROM scratch\nCOPY root/ /\n")?;
    buildah()
        .words("bud --quiet --isolation chroot --file")
        .arg(context.path().join("Containerfile"))
        .arg("--tag")
        .arg(&name)
        .arg(context.path())
        .done()?;
    Ok(name)
}

fn open_to_all(dir: &Path) -> Result<()> {
    make_dir(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o1777)).doing(|| format!("open {}", dir.display()))
}
