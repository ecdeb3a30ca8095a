//! Files that are made from others: CRDs from the types, manifests from the chart. Never edited by hand.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::cluster::tools::Tools;
use crate::error::{Context, Error, Result, make_dir, read, write};
use crate::exec::run;
use crate::image;
use crate::paths;
use crate::ui::Ui;

const HEADER: &str = "# Made by `cargo xtask generate` from operator/api. Do not edit.\n";
const MANIFEST_HEADER: &str = "# Made by `cargo xtask generate` from charts/parovoz. Do not edit.\n";
/// Where the plain manifests install the operator.
pub const NAMESPACE: &str = "parovoz-system";
const SHOWN_DIFFERENCES: usize = 5;

/// Files by their path below the repository.
type Files = BTreeMap<PathBuf, String>;

/// Writes all generated files, or only compares them. Returns how many there are.
pub fn generate(ui: &Ui, check: bool) -> Result<usize> {
    let tools = Tools::ensure_clients(ui)?;
    let binaries = image::binaries(ui)?;
    let operator = binaries.first().ok_or_else(|| Error::failed("print the CRDs: there is no operator"))?;
    let crds = ui.step("print the CRDs", |_| crds(operator))?;
    let manifest = ui.step("render the manifests", |_| manifest(&tools, &crds))?;
    let mut files = Files::new();
    for (name, text) in crds {
        files.insert(Path::new("crds").join(&name), text.clone());
        files.insert(Path::new("charts/parovoz/crds").join(&name), text);
    }
    files.insert("manifests/install.yaml".into(), manifest);
    let stale = stale(&files)?;
    if check {
        ui.step("lint the chart", |_| lint(&tools))?;
        return compare(&files, &stale).map(|()| files.len());
    }
    let root = paths::repository();
    for (path, text) in &files {
        write(&root.join(path), text)?;
    }
    for path in stale {
        std::fs::remove_file(root.join(&path)).doing(|| format!("remove {}", path.display()))?;
    }
    Ok(files.len())
}

/// What helm itself finds wrong with the chart; warnings count.
fn lint(tools: &Tools) -> Result<()> {
    run(tools.helm()).words("lint --strict --quiet").arg(paths::repository().join("charts/parovoz")).done()
}

/// The CRDs that the operator's binary prints, each as a file named by its plural.
fn crds(operator: &Path) -> Result<Vec<(String, String)>> {
    let printed = run(operator).arg("crd").text_with_errors_shown()?;
    let mut found = Vec::new();
    for document in documents(&printed) {
        let name = document
            .lines()
            .find_map(|line| line.strip_prefix("  name: "))
            .map(|name| name.trim_matches(['"', '\'', ' ']))
            .and_then(|name| name.split_once('.'))
            .ok_or_else(|| {
                Error::parse("read the printed CRDs", "a document has no metadata.name of the form PLURAL.GROUP")
            })?
            .0;
        found.push((format!("{name}.yaml"), format!("{HEADER}{document}")));
    }
    if found.is_empty() {
        return Err(Error::failed("read the printed CRDs: there are none"));
    }
    Ok(found)
}

/// The documents of a YAML stream, without their separators.
fn documents(stream: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    for line in stream.lines() {
        if line.trim_end() == "---" {
            found.push(String::new());
        } else if let Some(document) = found.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    found.retain(|document| !document.trim().is_empty());
    found
}

/// The chart as plain YAML, with the namespace and the CRDs that `helm install` would make.
fn manifest(tools: &Tools, crds: &[(String, String)]) -> Result<String> {
    let rendered = run(tools.helm())
        .dir(&paths::repository())
        .words("template parovoz charts/parovoz --skip-crds --namespace")
        .arg(NAMESPACE)
        .text()?;
    let mut text = format!("{MANIFEST_HEADER}apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}\n");
    let bodies = crds.iter().map(|(_, crd)| crd.trim_start_matches(HEADER).to_owned()).chain(documents(&rendered));
    for body in bodies {
        text.push_str("---\n");
        text.push_str(body.trim_matches('\n'));
        text.push('\n');
    }
    Ok(text)
}

/// Files in the generated directories that nothing makes any more.
fn stale(files: &Files) -> Result<Vec<PathBuf>> {
    let root = paths::repository();
    let mut found = Vec::new();
    for dir in ["crds", "charts/parovoz/crds"] {
        make_dir(&root.join(dir))?;
        for entry in std::fs::read_dir(root.join(dir)).doing(|| format!("list {dir}"))?.flatten() {
            let path = Path::new(dir).join(entry.file_name());
            if !files.contains_key(&path) {
                found.push(path);
            }
        }
    }
    Ok(found)
}

fn compare(files: &Files, stale: &[PathBuf]) -> Result<()> {
    let root = paths::repository();
    let mut wrong: Vec<String> =
        stale.iter().map(|path| format!("{}: nothing makes it any more", path.display())).collect();
    for (path, wanted) in files {
        let present = if root.join(path).exists() { read(&root.join(path))? } else { String::new() };
        if present == *wanted {
            continue;
        }
        let mut report = format!("{}:", path.display());
        let (old, new): (Vec<_>, Vec<_>) = (present.lines().collect(), wanted.lines().collect());
        let differing = (0..old.len().max(new.len())).filter(|i| old.get(*i) != new.get(*i));
        for i in differing.take(SHOWN_DIFFERENCES) {
            let show = |lines: &[&str]| lines.get(i).map_or("(nothing)".to_owned(), |l| l.trim().to_owned());
            report.push_str(&format!("\n  line {}: is {}, should be {}", i + 1, show(&old), show(&new)));
        }
        wrong.push(report);
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Error::failed(format!(
        "generated files differ; run `cargo xtask generate` and commit the result\n{}",
        wrong.join("\n")
    )))
}

#[cfg(test)]
mod tests {
    use super::documents;

    #[test]
    fn separators_and_empty_documents_are_left_out() {
        assert_eq!(documents("---\na: 1\n---\n\n---\nb: 2\n"), ["a: 1\n", "b: 2\n"]);
        assert!(documents("").is_empty());
    }
}
