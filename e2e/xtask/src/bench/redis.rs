//! The Redis port beside Redis itself: SET and GET with redis-benchmark, in turns, on the same machine in the same minutes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::member::{Pair, Process, Setup, binary};
use super::report::{Figure, save, table};
use crate::error::{Context, Error, Result};
use crate::exec::run as program;
use crate::packages::{self, Need};
use crate::poll;
use crate::ui::{Ui, seconds};

const REDIS_IP: &str = "127.77.250.1";
const PORT: &str = "6379";
const CONNECTIONS: &str = "50";
const VALUE_BYTES: &str = "100";
const START_LIMIT: Duration = Duration::from_secs(20);
const INTERVAL: Duration = Duration::from_millis(50);
/// How long a replica may take to be level after a load.
const LEVEL_LIMIT_MS: u64 = 120_000;

/// What is measured and how.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The data plane's binary [default: it is built].
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Rounds; the figures are their medians.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Requests of each load with pipeline 16; without pipeline it is a sixth of them.
    #[arg(long, default_value_t = 3_000_000)]
    requests: u64,
    /// Different keys.
    #[arg(long, default_value_t = 100_000)]
    keys: u64,
    /// Event loops of members; 0 = their default.
    #[arg(long, default_value_t = 0)]
    event_loops: usize,
    /// Only figures whose id contains this, such as `P2-set` or `os`.
    #[arg(long)]
    only: Option<String>,
    /// Where members keep their data [default: a directory that is removed at the end].
    #[arg(long)]
    dir: Option<PathBuf>,
    /// A file for the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One load.
#[derive(Debug, Clone, Copy)]
struct Load {
    goal: &'static str,
    test: &'static str,
    pipeline: u64,
    /// Requests are divided by this.
    share: u64,
}

const LOADS: [Load; 4] = [
    Load { goal: "P2", test: "set", pipeline: 16, share: 1 },
    Load { goal: "P2", test: "get", pipeline: 16, share: 1 },
    Load { goal: "P1", test: "set", pipeline: 1, share: 6 },
    Load { goal: "P1", test: "get", pipeline: 1, share: 6 },
];

/// Both durabilities: the default, and what the reference offers too.
const STORES: [(&str, &str); 2] = [("Sync", ""), ("Os", "-os")];

/// The share of the reference that design goals P1 and P2 ask for.
const MARK: f64 = 1.0;

/// Runs the benchmark; answers the table.
pub fn run(ui: &Ui, options: &Options) -> Result<String> {
    packages::ensure(ui, &[Need::Bench])?;
    let binary = binary(ui, options.binary.as_deref())?;
    let scratch = tempfile::tempdir().doing(|| "make a directory for members".to_owned())?;
    let dir = options.dir.as_deref().unwrap_or(scratch.path());
    let _redis = reference(dir)?;
    let wanted = |id: &str| options.only.as_deref().is_none_or(|only| id.contains(only));
    let id = |load: &Load, suffix: &str| format!("{}-{}{suffix}", load.goal, load.test);
    let mut pairs = Vec::new();
    for (net, (durability, suffix)) in (1..).zip(STORES) {
        if LOADS.iter().any(|load| wanted(&id(load, suffix))) {
            let setup = Setup { binary: &binary, dir, durability, event_loops: options.event_loops };
            let pair = Pair::start(&setup, net)?;
            let (primary, replica) = (pair.primary.process_id(), pair.replica.process_id());
            ui.line(&format!("...    {durability}: primary is process {primary}, its replica {replica}"));
            pairs.push((pair, suffix));
        }
    }
    let mut rounds: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for round in 1..=options.rounds.max(1) {
        for load in &LOADS {
            let chosen: Vec<_> = pairs.iter().filter(|(_, suffix)| wanted(&id(load, suffix))).collect();
            if chosen.is_empty() {
                continue;
            }
            let theirs = measure(REDIS_IP, load, options)?;
            for (pair, suffix) in chosen {
                let ours = measure(pair.primary.ip(), load, options)?;
                let took = await_replica(pair)?;
                let id = id(load, suffix);
                ui.line(&format!(
                    "...    round {round} {id}: {ours:.0} beside {theirs:.0} ({:.2}); replica level after {took} ms; load {}",
                    ours / theirs,
                    load_average()
                ));
                match rounds.iter_mut().find(|(other, _)| *other == id) {
                    Some((_, of_id)) => of_id.push((ours, theirs)),
                    None => rounds.push((id, vec![(ours, theirs)])),
                }
            }
        }
    }
    let figures: Vec<Figure> = rounds.into_iter().map(|(id, rounds)| Figure::of_rounds(id, &rounds, MARK)).collect();
    if figures.is_empty() {
        return Err(Error::failed("no figure is called so; see P1-set, P1-get, P2-set, P2-get, each also with -os"));
    }
    if let Some(path) = &options.json {
        save(&figures, path)?;
    }
    Ok(format!("{}bench redis: {} figures in {}", table(&figures), figures.len(), seconds(ui.elapsed())))
}

/// Starts Redis as it is without any configuration, but without a copy on disk.
fn reference(dir: &Path) -> Result<Process> {
    let mut command = Command::new("redis-server");
    command.args(["--bind", REDIS_IP, "--port", PORT, "--save", "", "--appendonly", "no", "--protected-mode", "no"]);
    let process = Process::start(command, "redis-server", &dir.join("redis.log"))?;
    poll::until("Redis", START_LIMIT, INTERVAL, || connect(REDIS_IP).map(drop).map_err(|e| e.to_string()))?;
    Ok(process)
}

fn connect(ip: &str) -> Result<redis::Connection> {
    let action = || format!("connect to {ip}");
    redis::Client::open(format!("redis://{ip}:{PORT}/")).doing(action)?.get_connection().doing(action)
}

/// Requests a second of one load.
fn measure(ip: &str, load: &Load, options: &Options) -> Result<f64> {
    let requests = (options.requests / load.share).max(1);
    let out = program("redis-benchmark")
        .args(["-h", ip, "-p", PORT, "-c", CONNECTIONS, "-d", VALUE_BYTES, "--csv", "-t", load.test])
        .args(["-P", &load.pipeline.to_string(), "-n", &requests.to_string(), "-r", &options.keys.to_string()])
        .text()?;
    rate(&out).ok_or_else(|| Error::failed(format!("read redis-benchmark's output: {out}")))
}

/// The second column of the last line: `"SET","370370.38",...`.
fn rate(csv: &str) -> Option<f64> {
    csv.trim_end().lines().last()?.split(',').nth(1)?.trim_matches('"').parse().ok()
}

/// Waits until the replica has what was written; answers the milliseconds. A load must not slow the next one down.
fn await_replica(pair: &Pair) -> Result<u128> {
    let action = || format!("wait for the replica of {}", pair.primary.ip());
    let begun = std::time::Instant::now();
    let mut connection = connect(pair.primary.ip())?;
    let level: u64 = redis::cmd("WAIT").arg(1).arg(LEVEL_LIMIT_MS).query(&mut connection).doing(action)?;
    if level == 0 {
        return Err(Error::failed(format!("{}: it is not level after {LEVEL_LIMIT_MS} ms", action())));
    }
    Ok(begun.elapsed().as_millis())
}

fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}

#[cfg(test)]
mod tests {
    use super::rate;

    #[test]
    fn the_rate_is_read_from_what_redis_benchmark_writes() {
        let text = "\"test\",\"rps\",\"avg_latency_ms\"\n\"SET\",\"370370.38\",\"0.5\"\n";
        assert_eq!(rate(text), Some(370_370.38));
        assert_eq!(rate("nothing"), None);
    }
}
