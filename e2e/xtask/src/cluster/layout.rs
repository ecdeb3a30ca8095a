//! Names, addresses and paths of the local cluster, in one place.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, read, write};

/// The bridge that joins the nodes.
pub const BRIDGE: &str = "sw0";
/// The bridge's own address, where the API server listens.
pub const BRIDGE_ADDRESS: &str = "10.89.0.1";
/// Service addresses; the first is the API server's.
pub const SERVICE_RANGE: &str = "10.96.0.0/16";
/// All pods of all nodes.
pub const POD_RANGE: &str = "10.88.0.0/16";
/// The cluster's name server.
pub const DNS_ADDRESS: &str = "10.96.0.10";
/// Nodes are numbered with one digit.
pub const MAX_NODES: u8 = 9;
/// The StorageClass that pods get by default.
pub const STORAGE_CLASS: &str = "local";

/// One node, by its number from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node(pub u8);

impl Node {
    /// The name in Kubernetes, of the network namespace and of the control group.
    pub fn name(self) -> String {
        format!("node{}", self.0)
    }

    /// The end of the cable in the root namespace; the other end is `eth0` in the node's.
    pub fn link(self) -> String {
        format!("v{}", self.name())
    }

    /// The node's address on the bridge.
    pub fn address(self) -> String {
        format!("10.89.0.1{}", self.0)
    }

    /// The addresses of the pods on it.
    pub fn pod_subnet(self) -> String {
        format!("10.88.{}.0/24", self.0)
    }

    /// The file that names its network namespace.
    pub fn namespace_file(self) -> PathBuf {
        Path::new(NAMESPACES).join(self.name())
    }
}

/// The nodes of a cluster of `count`.
pub fn nodes(count: u8) -> impl Iterator<Item = Node> + Clone {
    (1..=count).map(Node)
}

/// The directory that holds everything of one cluster.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Absolute.
    pub root: PathBuf,
}

impl Layout {
    /// A cluster whose files are below `root`.
    pub fn new(root: &Path) -> Result<Self> {
        let root = std::path::absolute(root).map_err(|e| Error::failed(format!("resolve {}: {e}", root.display())))?;
        let text = root.to_string_lossy();
        if text.chars().any(|c| c.is_whitespace() || c == '"') {
            return Err(Error::failed(format!(
                "use {text} as root: no spaces or quotes, please: programs' settings name it"
            )));
        }
        Ok(Self { root })
    }

    /// Keys, certificates.
    pub fn pki(&self, file: &str) -> PathBuf {
        self.root.join("pki").join(file)
    }

    /// A client's settings for reaching the API server.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.root.join(format!("{user}.conf"))
    }

    /// What a process prints.
    pub fn log(&self, process: &str) -> PathBuf {
        self.root.join("log").join(format!("{process}.log"))
    }

    /// Which process it is.
    pub fn pid_file(&self, process: &str) -> PathBuf {
        self.root.join("run").join(format!("{process}.pid"))
    }

    /// Everything of one node.
    pub fn node(&self, node: Node) -> PathBuf {
        self.root.join(node.name())
    }

    /// The node's container runtime.
    pub fn socket(&self, node: Node) -> PathBuf {
        self.node(node).join("containerd.sock")
    }

    /// The volumes that pods of the node own.
    pub fn volumes(&self, node: Node) -> PathBuf {
        self.node(node).join("volumes")
    }

    fn state_file(&self) -> PathBuf {
        self.root.join("cluster.json")
    }

    /// What the cluster is, or `None` if there is none.
    pub fn load_state(&self) -> Result<Option<State>> {
        let file = self.state_file();
        if !file.exists() {
            return Ok(None);
        }
        serde_json::from_str(&read(&file)?).map(Some).map_err(|e| Error::parse(format!("read {}", file.display()), e))
    }

    /// Stores what the cluster is, before anything is made for it.
    pub fn save_state(&self, state: &State) -> Result<()> {
        let text = serde_json::to_string_pretty(state).map_err(|e| Error::parse("write the cluster's state", e))?;
        write(&self.state_file(), text)
    }
}

/// Where network namespaces have their names.
pub const NAMESPACES: &str = "/run/netns";

/// What must be known to repair or remove the cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// Number of nodes.
    pub nodes: u8,
    /// The boot that it was started in: after another one nothing of it runs.
    pub boot: String,
    /// Kernel settings that were changed, with their former values.
    pub settings: Vec<(String, String)>,
    /// Whether the directory of network namespaces was a mount already; `ip netns add` makes it one.
    #[serde(default = "yes")]
    pub namespaces_mounted: bool,
}

/// What is assumed of a cluster that was made before this was recorded: the mount is somebody else's.
fn yes() -> bool {
    true
}

/// The identity of the machine's present boot.
pub fn boot_id() -> Result<String> {
    Ok(read(Path::new("/proc/sys/kernel/random/boot_id"))?.trim().to_owned())
}
