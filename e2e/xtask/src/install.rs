//! The operator on a cluster: images into it, the chart installed, everything removed again.

use std::path::Path;
use std::time::Duration;

use crate::cluster;
use crate::error::{Error, Result};
use crate::generate::NAMESPACE;
use crate::image::{self, Image};
use crate::kube::Kube;
use crate::paths;
use crate::ui::Ui;

/// The Helm release.
pub const RELEASE: &str = "parovoz";
/// The operator's Deployment, by chart and by manifests.
pub const DEPLOYMENT: &str = "parovoz-operator";
/// An operator that is not up by then is broken.
pub const LIMIT: Duration = Duration::from_secs(180);

/// Starts the local cluster and loads freshly built images. Returns what identifies the operator's.
pub fn local_cluster(ui: &Ui) -> Result<(Kube, String)> {
    let root = paths::cluster();
    let kube = cluster::up(ui, &root, 3)?;
    let images = image::build(ui, None)?;
    Ok((kube, load(ui, &root, &images)?))
}

fn load(ui: &Ui, root: &Path, images: &[Image]) -> Result<String> {
    for image in images {
        cluster::load(ui, root, &image.archive)?;
    }
    let operator =
        images.iter().find(|i| i.part == "operator").ok_or_else(|| Error::failed("load images: no operator"))?;
    Ok(operator.inputs.chars().take(16).collect())
}

/// Installs the chart or brings it up to date, and waits until the operator is up. `inputs` makes a pod of another image
/// under the same tag a new pod.
pub fn helm(kube: &Kube, inputs: &str) -> Result<()> {
    helm_from(kube, inputs, None)
}

/// The same, with the images of another registry than the chart's.
pub fn helm_from(kube: &Kube, inputs: &str, registry: Option<&str>) -> Result<()> {
    let chart = paths::repository().join("charts/parovoz");
    // Helm installs CRDs once and never changes them.
    let present = kube.find("get crd replicatedstores.parovoz.dev")?.is_some();
    if present {
        kube.kubectl("apply --server-side --force-conflicts -f").arg(chart.join("crds")).done()?;
    }
    let images = registry.map(|r| format!("operator.image.registry={r},dataplane.image.registry={r}"));
    kube.helm("upgrade --install")
        .arg(RELEASE)
        .arg(&chart)
        .words(&format!("--namespace {NAMESPACE} --create-namespace --wait --timeout {}s", LIMIT.as_secs()))
        .arg("--set-string")
        .arg(format!("operator.podAnnotations.parovoz\\.dev/inputs={inputs}"))
        .args(images.iter().flat_map(|images| ["--set-string", images]))
        .done()
}

/// Whether an operator runs there, by chart or by manifests.
pub fn is_there(kube: &Kube) -> Result<bool> {
    Ok(kube.find(&format!("get deployment {DEPLOYMENT} --namespace {NAMESPACE}"))?.is_some())
}

/// Removes the release if there is one; CRDs and stores stay.
pub fn helm_remove(kube: &Kube) -> Result<()> {
    kube.helm("uninstall")
        .arg(RELEASE)
        .words(&format!("--namespace {NAMESPACE} --ignore-not-found --wait --timeout {}s", LIMIT.as_secs()))
        .done()
}
