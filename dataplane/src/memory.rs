//! Fits caches and buffers into the container's memory limit, so that it is not killed for what it was told to keep.

use std::fs;

use crate::config::RunArgs;

/// Files that tell the limit: cgroup v2, then v1. Both are absent or huge where there is none.
const LIMIT_FILES: [&str; 2] = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];

/// The container's memory limit in bytes; `None` if there is none.
#[must_use]
pub fn container_limit() -> Option<u64> {
    let limit = LIMIT_FILES.iter().find_map(|file| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok())?;
    // v1 says "no limit" by a number near 2^63.
    (limit < 1 << 60).then_some(limit)
}

/// Lowers sizes to their share of `limit`: memtables a quarter, block cache an eighth, ring and object cache a sixteenth each.
/// The other half is for table readers, connections, streams and bursts.
pub fn fit(args: &mut RunArgs, limit: Option<u64>) {
    let Some(limit) = limit else { return };
    let share = |part: u64| usize::try_from(limit / part).unwrap_or(usize::MAX);
    args.write_buffer_bytes = args.write_buffer_bytes.min(share(4));
    args.block_cache_bytes = args.block_cache_bytes.min(share(8));
    args.ring_bytes = args.ring_bytes.min(share(16));
    args.object_cache_bytes = args.object_cache_bytes.min(share(16));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        run: RunArgs,
    }

    fn args() -> RunArgs {
        Cli::try_parse_from(["x", "--store-uid", "s"]).unwrap().run
    }

    #[test]
    fn buffers_take_at_most_half_of_the_limit() {
        let mut args = args();
        fit(&mut args, Some(256 << 20));
        let all = args.write_buffer_bytes + args.block_cache_bytes + args.ring_bytes + args.object_cache_bytes;
        assert_eq!(all, 128 << 20);
    }

    #[test]
    fn without_a_limit_and_below_it_nothing_changes() {
        let mut fitted = args();
        fit(&mut fitted, None);
        assert_eq!(fitted.write_buffer_bytes, args().write_buffer_bytes);
        fit(&mut fitted, Some(64 << 30));
        assert_eq!(fitted.block_cache_bytes, args().block_cache_bytes);
    }
}
