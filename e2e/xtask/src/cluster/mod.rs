//! The local cluster: a real Kubernetes of several nodes on one machine, each node a network namespace.

mod addons;
pub mod containers;
mod controlplane;
pub mod down;
pub mod layout;
mod net;
mod node;
mod pki;
pub mod process;
mod readiness;
mod status;
pub mod tools;

use std::fs::File;
use std::path::{Path, PathBuf};

use layout::{Layout, MAX_NODES, Node, State, boot_id, nodes};
use tools::Tools;

use crate::error::{Context, Error, Result, make_dir};
use crate::kube::Kube;
use crate::packages::{self, Need};
use crate::paths;
use crate::ui::Ui;

/// Starts the cluster, or what is missing of it. Returns how to reach it.
pub fn up(ui: &Ui, root: &Path, count: u8) -> Result<Kube> {
    packages::require_root("cluster up")?;
    if !(1..=MAX_NODES).contains(&count) {
        return Err(Error::failed(format!("start {count} nodes: between 1 and {MAX_NODES}, please")));
    }
    packages::ensure(ui, &[Need::Cluster])?;
    let layout = Layout::new(root)?;
    let _lock = lock(&layout)?;
    let tools = Tools::ensure(ui)?;
    let images = containers::ensure_system(ui, &tools)?;
    prepare_state(ui, &layout, count)?;
    ui.step("make the network", |_| net::ensure(count))?;
    ui.step("make certificates", |_| pki::ensure(&layout, nodes(count)))?;
    let kube = Kube::new(&tools, &layout.kubeconfig("admin"));
    ui.step("start the control plane and the nodes", |step| {
        step.note("control plane, container runtimes");
        // The nodes import their images while the API server starts.
        std::thread::scope(|scope| {
            let (layout, tools, images) = (&layout, &tools, &images);
            let plane = scope.spawn(move || controlplane::ensure(layout, tools));
            let starts: Vec<_> =
                nodes(count).map(|n| scope.spawn(move || node::ensure(layout, tools, n, images))).collect();
            for thread in starts.into_iter().chain([plane]) {
                thread.join().map_err(|_| Error::failed("start the cluster: a thread panicked"))??;
            }
            Ok(())
        })
    })?;
    ui.step("install name server and volumes", |_| addons::ensure(&kube, &layout, count))?;
    ui.step("await the nodes", |_| readiness::await_nodes(ui, &kube, &layout, &tools, &images, count))?;
    ui.step("await name server and volumes", |_| addons::await_ready(&kube))?;
    Ok(kube)
}

/// Records what is about to be made; clears away what a former boot of the machine left.
fn prepare_state(ui: &Ui, layout: &Layout, count: u8) -> Result<()> {
    let boot = boot_id()?;
    let mut present = layout.load_state()?;
    if present.as_ref().is_some_and(|s| s.boot != boot) {
        ui.line("the machine was restarted since the cluster was: clearing away what is left of it");
        down::down(ui, layout)?;
        present = None;
    }
    match present {
        None => {
            net::refuse_foreign()?;
            let settings = net::settings_to_change()?;
            layout.save_state(&State { nodes: count, boot, settings, namespaces_mounted: net::namespaces_mounted()? })
        }
        Some(state) if count < state.nodes => {
            let text = format!("make the cluster smaller: it has {} nodes; take it down first", state.nodes);
            Err(Error::failed(text))
        }
        Some(state) => layout.save_state(&State { nodes: count, ..state }),
    }
}

/// Takes the cluster down; an error names what is left behind.
pub fn down(ui: &Ui, root: &Path) -> Result<()> {
    packages::require_root("cluster down")?;
    let layout = Layout::new(root)?;
    let lock_file = lock(&layout)?;
    down::down(ui, &layout)?;
    drop(lock_file);
    Ok(())
}

/// Prints the state.
pub fn status(root: &Path, as_json: bool) -> Result<()> {
    let layout = Layout::new(root)?;
    let kube = Kube::new(&Tools::locate(), &layout.kubeconfig("admin"));
    status::print(&layout, &kube, as_json)
}

/// Imports an image archive into every node.
pub fn load(ui: &Ui, root: &Path, archive: &Path) -> Result<()> {
    let layout = Layout::new(root)?;
    let state = layout.load_state()?.ok_or_else(|| Error::failed("load an image: the cluster is down"))?;
    let archive = std::path::absolute(archive).doing(|| format!("resolve {}", archive.display()))?;
    let name = archive.file_name().unwrap_or_default().to_string_lossy().into_owned();
    ui.step(&format!("load {name} into {} nodes", state.nodes), |_| {
        std::thread::scope(|scope| {
            let threads: Vec<_> = nodes(state.nodes)
                .map(|n: Node| {
                    let (layout, archive) = (&layout, &archive);
                    scope.spawn(move || containers::import(layout, n, archive))
                })
                .collect();
            threads
                .into_iter()
                .try_for_each(|t| t.join().map_err(|_| Error::failed("load an image: a thread panicked"))?)
        })
    })
}

/// Keeps the logs of the cluster's programs below `to`, which is emptied first; nothing to keep is no error.
pub fn keep_logs(root: &Path, to: &Path) -> Result<()> {
    let logs = Layout::new(root)?.root.join("log");
    if to.exists() {
        std::fs::remove_dir_all(to).doing(|| format!("remove {}", to.display()))?;
    }
    let Ok(entries) = std::fs::read_dir(&logs) else { return Ok(()) };
    make_dir(to)?;
    for entry in entries.flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).doing(|| format!("copy {}", entry.path().display()))?;
    }
    Ok(())
}

/// How to use the cluster, for the end of a command.
pub fn usage(kube: &Kube) -> String {
    format!(
        "export KUBECONFIG={}\nexport PATH={}:$PATH    # kubectl, helm",
        kube.kubeconfig.display(),
        paths::cache().join("bin").display()
    )
}

/// Lets one command at a time change the cluster; the lock goes with the returned file.
fn lock(layout: &Layout) -> Result<File> {
    let path: PathBuf = layout.root.with_extension("lock");
    if let Some(parent) = path.parent() {
        make_dir(parent)?;
    }
    let file = File::create(&path).doing(|| format!("open {}", path.display()))?;
    file.try_lock().map_err(|e| match e {
        std::fs::TryLockError::WouldBlock => {
            Error::failed(format!("change the cluster: another command does so ({})", path.display()))
        }
        std::fs::TryLockError::Error(source) => Error::Io { action: format!("lock {}", path.display()), source },
    })?;
    Ok(file)
}
