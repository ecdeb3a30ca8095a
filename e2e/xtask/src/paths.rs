//! Where things are: the repository, the cache, the cluster's state.

use std::path::PathBuf;

/// The root of the repository that this tool belongs to. `cargo run` says which at run time: two checkouts that share a
/// target directory share the binary too, and what was compiled in may name the other one.
pub fn repository() -> PathBuf {
    let told = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).filter(|dir| dir.ends_with("e2e/xtask"));
    let here = told.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    here.ancestors().nth(2).unwrap_or(&here).to_owned()
}

/// `$PAROVOZ_CACHE`, else `~/.cache/parovoz`: what survives a checkout.
pub fn cache() -> PathBuf {
    std::env::var_os("PAROVOZ_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache/parovoz"),
        PathBuf::from,
    )
}

/// The local cluster's state unless another root is named.
pub fn cluster() -> PathBuf {
    cache().join("cluster")
}

/// Image archives and what they were made from.
pub fn images() -> PathBuf {
    cache().join("images")
}
