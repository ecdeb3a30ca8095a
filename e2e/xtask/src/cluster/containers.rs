//! Container images: the cluster's own few, and importing archives into the nodes.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::layout::{Layout, Node};
use super::tools::{COREDNS, PROVISIONER, Tools};
use crate::error::{Context, Error, Result, make_dir, write};
use crate::exec::{Run, run};
use crate::paths;
use crate::ui::Ui;

/// A shell with the usual small programs; as the pods' sandbox it only sleeps.
pub const BUSYBOX_IMAGE: &str = "docker.io/parovoz/busybox:1";
const APPLETS: [&str; 12] =
    ["sh", "sleep", "mkdir", "chmod", "rm", "ls", "cat", "test", "nc", "wget", "nslookup", "ping"];

/// The name server's image.
pub fn coredns_image() -> String {
    format!("docker.io/parovoz/coredns:{COREDNS}")
}

/// The volume provisioner's image.
pub fn provisioner_image() -> String {
    format!("docker.io/parovoz/local-path-provisioner:{PROVISIONER}")
}

/// buildah with a storage of our own, so that nothing is left elsewhere.
pub fn buildah() -> Run {
    let storage = paths::cache().join("buildah");
    run("buildah")
        .arg("--root")
        .arg(storage.join("root"))
        .arg("--runroot")
        .arg(storage.join("run"))
        .words("--storage-driver vfs")
}

/// Exports an image that buildah has, as an archive that appears only when complete.
pub fn export(image: &str, archive: &Path) -> Result<()> {
    let part = archive.with_extension("part");
    if part.exists() {
        std::fs::remove_file(&part).doing(|| format!("remove {}", part.display()))?;
    }
    buildah().words("push --quiet").arg(image).arg(format!("docker-archive:{}:{image}", part.display())).done()?;
    std::fs::rename(&part, archive).doing(|| format!("write {}", archive.display()))
}

/// Empties the storage: archives are what is kept, and each former build would stay as a full copy.
pub fn prune() -> Result<()> {
    buildah().words("rmi --all --force").done()
}

/// The SHA-256 of a file, in hexadecimal.
pub fn file_digest(path: &Path) -> Result<String> {
    let mut file = std::fs::File::open(path).doing(|| format!("open {}", path.display()))?;
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut HashWriter(&mut hash)).doing(|| format!("read {}", path.display()))?;
    Ok(hex(&hash.finalize()))
}

struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        out.push_str(&format!("{b:02x}"));
        out
    })
}

/// The archives of the images that the cluster itself needs, built where they are missing or their program changed.
pub fn ensure_system(ui: &Ui, tools: &Tools) -> Result<Vec<PathBuf>> {
    let coredns = coredns_image();
    let provisioner = provisioner_image();
    let wanted: [(&str, PathBuf, &str, &[&str]); 3] = [
        (BUSYBOX_IMAGE, PathBuf::from("/bin/busybox"), r#"["/bin/sleep","infinity"]"#, &APPLETS),
        (&coredns, tools.coredns(), r#"["/bin/coredns"]"#, &[]),
        (&provisioner, tools.provisioner(), r#"["/bin/local-path-provisioner"]"#, &[]),
    ];
    let mut archives = Vec::new();
    let mut built = false;
    for (image, program, entrypoint, links) in wanted {
        let short = image.rsplit('/').next().unwrap_or(image).replace(':', "-");
        let digest = file_digest(&program)?;
        let archive = paths::images().join(format!("{short}-{}.tar", &digest[..12]));
        if !archive.exists() {
            ui.step(&format!("make image {image}"), |_| single_program(image, &program, entrypoint, links, &archive))?;
            built = true;
        }
        archives.push(archive);
    }
    if built {
        prune()?;
    }
    Ok(archives)
}

fn single_program(image: &str, program: &Path, entrypoint: &str, links: &[&str], archive: &Path) -> Result<()> {
    make_dir(&paths::images())?;
    let context = tempfile::tempdir().doing(|| "make a build directory".into())?;
    let bin = context.path().join("root/bin");
    make_dir(&bin)?;
    make_dir(&context.path().join("root/tmp"))?;
    let name = program.file_name().ok_or_else(|| Error::failed(format!("make image {image}: no program")))?;
    std::fs::copy(program, bin.join(name)).doing(|| format!("copy {}", program.display()))?;
    for link in links {
        std::os::unix::fs::symlink(name, bin.join(link)).doing(|| format!("link {link}"))?;
    }
    write(&context.path().join("Containerfile"), format!("FROM scratch\nCOPY root/ /\nENTRYPOINT {entrypoint}\n"))?;
    buildah()
        .words("bud --quiet --isolation chroot --file")
        .arg(context.path().join("Containerfile"))
        .arg("--tag")
        .arg(image)
        .arg(context.path())
        .done()?;
    export(image, archive)
}

/// containerd's own client, for the images and containers of Kubernetes on one node.
pub fn ctr(layout: &Layout, node: Node) -> Run {
    run("ctr").arg("-a").arg(layout.socket(node)).words("-n k8s.io")
}

/// Imports an archive into one node.
pub fn import(layout: &Layout, node: Node, archive: &Path) -> Result<()> {
    ctr(layout, node).words("images import").arg(archive).done()
}
