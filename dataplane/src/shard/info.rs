//! `INFO` and `ROLE`.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use parovoz_dataplane_core::resp::Reply;

use super::exec::Executor;
use super::session::REDIS_VERSION;
use super::stats::ShardStats;
use crate::clock;

/// A primary that said nothing for so long counts as gone.
const LINK_SILENCE_MS: u64 = 10_000;

type Section = (&'static str, fn(&Executor, &mut String));

const SECTIONS: [Section; 6] = [
    ("server", server),
    ("clients", clients),
    ("memory", memory),
    ("stats", stats),
    ("replication", replication),
    ("keyspace", keyspace),
];

/// The asked sections; all of them if none is named, or by `all`, `everything`, `default`.
pub(super) fn info(exec: &Executor, words: &[String]) -> String {
    let all = words.is_empty() || words.iter().any(|w| matches!(w.as_str(), "all" | "everything" | "default"));
    let mut text = String::new();
    for (name, write) in SECTIONS {
        if all || words.iter().any(|w| w == name) {
            if !text.is_empty() {
                text.push_str("\r\n");
            }
            let mut title = name.to_owned();
            title[..1].make_ascii_uppercase();
            let _ = write!(text, "# {title}\r\n");
            write(exec, &mut text);
        }
    }
    text
}

fn line(text: &mut String, name: &str, value: impl std::fmt::Display) {
    let _ = write!(text, "{name}:{value}\r\n");
}

fn sum(exec: &Executor, of: impl Fn(&ShardStats) -> &AtomicU64) -> u64 {
    exec.shared.stats.iter().map(|s| of(s).load(Ordering::Relaxed)).sum()
}

fn server(exec: &Executor, text: &mut String) {
    let shared = &exec.shared;
    let up = clock::boot_ms().saturating_sub(shared.started_ms) / 1000;
    line(text, "redis_version", REDIS_VERSION);
    line(text, "redis_mode", "standalone");
    line(text, "parovoz_version", env!("CARGO_PKG_VERSION"));
    line(text, "process_id", std::process::id());
    line(text, "run_id", shared.store.data_uuid.0.simple());
    line(text, "store_uid", &shared.store.store_uid);
    line(text, "tcp_port", shared.port);
    line(text, "event_loops", shared.inboxes.len());
    line(text, "uptime_in_seconds", up);
    line(text, "uptime_in_days", up / 86_400);
}

fn clients(exec: &Executor, text: &mut String) {
    line(text, "connected_clients", exec.shared.clients.len());
    line(text, "maxclients", exec.shared.max_connections);
    line(text, "blocked_clients", sum(exec, |s| &s.parked) + sum(exec, |s| &s.held));
}

fn memory(exec: &Executor, text: &mut String) {
    line(text, "used_memory", resident_bytes());
    line(text, "used_memory_rss", resident_bytes());
    line(text, "object_cache_bytes", exec.cache_bytes() * exec.shared.inboxes.len());
    line(text, "ring_bytes", exec.shared.store.ring_budget.used());
    line(text, "input_bytes", exec.shared.input_bytes.load(Ordering::Relaxed));
    line(text, "maxmemory", 0);
    line(text, "maxmemory_policy", "noeviction");
}

/// Resident memory of the process; 0 if the system does not tell.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("");
    let kib: u64 = line.split_ascii_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
    kib * 1024
}

fn stats(exec: &Executor, text: &mut String) {
    let commands: u64 = exec.shared.stats.iter().map(ShardStats::commands_total).sum();
    line(text, "total_connections_received", sum(exec, |s| &s.accepted));
    line(text, "total_commands_processed", commands);
    line(text, "total_net_input_bytes", sum(exec, |s| &s.bytes_in));
    line(text, "total_net_output_bytes", sum(exec, |s| &s.bytes_out));
    line(text, "rejected_connections", sum(exec, |s| &s.refused));
    line(text, "total_error_replies", sum(exec, |s| &s.errors));
    line(text, "keyspace_hits", sum(exec, |s| &s.hits));
    line(text, "keyspace_misses", sum(exec, |s| &s.misses));
    line(text, "object_cache_hits", sum(exec, |s| &s.cache_hits));
    line(text, "commits", sum(exec, |s| &s.commits));
    line(text, "commit_failures", sum(exec, |s| &s.commit_failures));
    line(text, "forwarded_requests", sum(exec, |s| &s.forwarded));
}

/// Sum of the sequences of all prefixes: grows with every record, so it can stand for the offset that Redis shows.
fn offset(exec: &Executor) -> u64 {
    exec.shared.store.prefixes().by_name.values().map(|p| p.applied().0).sum()
}

fn connected_followers(exec: &Executor) -> usize {
    exec.shared.followers.get().map_or(0, |f| f.connected())
}

fn replication(exec: &Executor, text: &mut String) {
    let store = &exec.shared.store;
    let role = store.role();
    line(text, "role", if role.is_primary { "master" } else { "slave" });
    if !role.is_primary {
        let primary = role.primary.as_ref().map_or("", |p| p.resp.as_str());
        let (host, port) = primary.rsplit_once(':').unwrap_or((primary, "0"));
        let silence = store.primary_silence_ms();
        let up = silence.is_some_and(|ms| ms < LINK_SILENCE_MS);
        line(text, "master_host", host);
        line(text, "master_port", port);
        line(text, "master_link_status", if up { "up" } else { "down" });
        line(text, "master_last_io_seconds_ago", silence.map_or(-1, |ms| i64::try_from(ms / 1000).unwrap_or(i64::MAX)));
        line(text, "slave_repl_offset", offset(exec));
        line(text, "slave_read_only", 1);
    }
    line(text, "connected_slaves", connected_followers(exec));
    line(text, "master_repl_offset", offset(exec));
    if let Some(reign) = &role.reign {
        line(text, "epoch", reign.epoch);
        line(text, "reign_id", reign.reign_id);
        line(text, "min_sync_replicas", role.required_acks());
    }
}

fn keyspace(exec: &Executor, text: &mut String) {
    let map = exec.shared.store.prefixes();
    let mut names: Vec<_> = map.by_name.values().collect();
    names.sort_by(|a, b| a.name.cmp(&b.name));
    let now_ms = clock::wall_ms();
    let counted: Vec<_> = names.iter().map(|p| exec.shared.counts.last(p, now_ms)).collect();
    let total: u64 = counted.iter().map(|count| count.keys).sum();
    if total > 0 {
        line(text, "db0", format_args!("keys={total},expires=0,avg_ttl=0"));
    }
    for (prefix, count) in names.into_iter().zip(counted) {
        line(
            text,
            &format!("prefix_{}", prefix.name),
            format_args!("keys={},estimated={},sequence={}", count.keys, u8::from(count.estimated), prefix.applied()),
        );
    }
}

/// `ROLE`, as Redis words it.
pub(super) fn role(exec: &Executor, reply: &mut Reply<'_>) {
    let store = &exec.shared.store;
    let role = store.role();
    if role.is_primary {
        reply.array(3);
        reply.bulk(b"master");
        reply.count(offset(exec));
        // Addresses of followers are the operator's and the admin port's to tell.
        reply.array(0);
        return;
    }
    let primary = role.primary.as_ref().map_or("", |p| p.resp.as_str());
    let (host, port) = primary.rsplit_once(':').unwrap_or((primary, "0"));
    let state = match store.primary_silence_ms() {
        Some(ms) if ms < LINK_SILENCE_MS => "connected",
        Some(_) => "connect",
        None => "connecting",
    };
    reply.array(5);
    reply.bulk(b"slave");
    reply.bulk(host.as_bytes());
    reply.int(port.parse().unwrap_or(0));
    reply.bulk(state.as_bytes());
    reply.count(offset(exec));
}
