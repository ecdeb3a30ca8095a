//! Compiles the .proto files; protox parses them in Rust, so no `protoc` is needed.

use std::error::Error;

const FILES: [&str; 4] =
    ["parovoz/v1/common.proto", "parovoz/v1/store.proto", "parovoz/v1/replication.proto", "parovoz/v1/admin.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    // `bytes` fields become `bytes::Bytes`: frames and values are passed on without a copy.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
