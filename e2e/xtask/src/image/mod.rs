//! Container images of both binaries, built by cargo here and put into images by the Containerfiles that everyone uses.

mod base;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cluster::containers::{buildah, export, file_digest, hex, prune};
use crate::error::{Context, Error, Result, make_dir, read, write};
use crate::exec::{cargo, run};
use crate::packages::{self, Need};
use crate::paths;
use crate::ui::Ui;

/// The tag of both images and the version of the chart.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
const PARTS: [&str; 2] = ["operator", "dataplane"];

/// One image, exported.
#[derive(Clone, Debug)]
pub struct Image {
    /// `operator` or `dataplane`.
    pub part: &'static str,
    /// A docker-archive.
    pub archive: PathBuf,
    /// Identifies what it was made from.
    pub inputs: String,
}

/// Kept beside an archive, so that the next run knows what it holds.
#[derive(Serialize, Deserialize)]
struct Stamp {
    inputs: String,
}

/// Builds the binaries, and the images whose inputs changed, into `output` (the cache unless given).
pub fn build(ui: &Ui, output: Option<&Path>) -> Result<Vec<Image>> {
    packages::ensure(ui, &[Need::Image])?;
    let output = output.map_or_else(paths::images, Path::to_owned);
    make_dir(&output)?;
    let binaries = binaries(ui)?;
    let libraries = base::libraries(&binaries)?;
    let base_digest = base::digest(&libraries)?;
    let mut base_image = None;
    let mut images = Vec::new();
    for (part, binary) in PARTS.into_iter().zip(&binaries) {
        let containerfile = paths::repository().join(format!("e2e/images/{part}.Containerfile"));
        let mut hash = Sha256::new();
        hash.update(file_digest(binary)?);
        hash.update(read(&containerfile)?);
        hash.update(&base_digest);
        let inputs = hex(&hash.finalize());
        let archive = output.join(format!("{part}-{VERSION}.tar"));
        let stamp = archive.with_extension("json");
        let current = archive.exists()
            && std::fs::read_to_string(&stamp)
                .ok()
                .and_then(|text| serde_json::from_str::<Stamp>(&text).ok())
                .is_some_and(|s| s.inputs == inputs);
        if current {
            ui.line(&format!("ok     image {part}: unchanged"));
        } else {
            ui.step(&format!("make image {part}"), |step| {
                if base_image.is_none() {
                    step.note("base");
                    base_image = Some(base::image(&libraries, &base_digest)?);
                }
                let base = base_image.as_deref().unwrap_or_default();
                step.note("image");
                package(part, binary, &containerfile, base, &archive)
            })?;
            let text = serde_json::to_string(&Stamp { inputs: inputs.clone() })
                .map_err(|e| Error::parse("write the image's stamp", e))?;
            write(&stamp, text)?;
        }
        images.push(Image { part, archive, inputs });
    }
    if base_image.is_some() {
        prune()?;
    }
    Ok(images)
}

/// Both binaries, the operator's first. Both are always built together: another choice of packages is another choice of
/// features, for which cargo compiles most of the dependencies anew.
pub fn binaries(ui: &Ui) -> Result<Vec<PathBuf>> {
    ui.line("...    build the binaries (RocksDB takes 10 minutes the first time)");
    ui.step("build the binaries", |_| {
        let packages = PARTS.map(|part| format!("parovoz-{part}"));
        let mut cargo = cargo()
            .dir(&paths::repository())
            .words("build --release --locked --message-format=json-render-diagnostics");
        for package in &packages {
            cargo = cargo.arg("--package").arg(package);
        }
        let messages = cargo.text_with_errors_shown()?;
        let mut found = Vec::new();
        for package in &packages {
            let executable = messages
                .lines()
                .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
                .filter(|m| m["reason"] == "compiler-artifact" && m["target"]["name"] == package.as_str())
                .find_map(|m| m["executable"].as_str().map(PathBuf::from));
            found.push(executable.ok_or_else(|| Error::failed(format!("build {package}: cargo made no such binary")))?);
        }
        Ok(found)
    })
}

fn package(part: &str, binary: &Path, containerfile: &Path, base: &str, archive: &Path) -> Result<()> {
    let context = tempfile::tempdir().doing(|| "make a build directory".into())?;
    let copy = context.path().join(format!("parovoz-{part}"));
    // Line tables are of use to profilers here, not in a pod, and they are most of the size.
    run("strip").arg("--strip-debug").arg("-o").arg(&copy).arg(binary).done()?;
    let image = format!("docker.io/parovoz/{part}:{VERSION}");
    buildah()
        .words("bud --quiet --isolation chroot --target prebuilt --build-arg")
        .arg(format!("BASE={base}"))
        .arg("--file")
        .arg(containerfile)
        .arg("--tag")
        .arg(&image)
        .arg(context.path())
        .done()?;
    export(&image, archive)
}
