//! Fault tests on the local cluster: real processes, disks, cables and operators fail while a load goes on; afterwards every
//! acknowledged write is looked for.

mod away;
mod effect;
mod env;
pub mod fleet;
mod gather;
mod inject;
mod isolated;
pub mod kinds;
mod lag;
mod linear;
mod load;
mod receipt;
mod report;
pub mod round;
mod scripts;
mod seen;
pub mod summary;
mod tail;
mod verify;
mod volume;
mod watch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;

use crate::cluster::layout::Layout;
use crate::cluster::tools::Tools;
use crate::error::{Context, Error, Result, make_dir};
use crate::install;
use crate::kube::Kube;
use crate::packages::{self, Need};
use crate::paths;
use crate::ui::{Ui, seconds};

use env::{Env, Holds};
use fleet::{Fleets, Job, Setup};
use inject::Journal;
use kinds::{Kind, Mode};
use round::{Round, Size};
use summary::Sum;
use watch::Watch;

/// What the command line says.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Only these kinds.
    #[arg(long, value_enum)]
    kind: Vec<Kind>,
    /// Only this mode.
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// Rounds of each kind [default: 10 in quorum mode, 5 in async].
    #[arg(long)]
    rounds: Option<usize>,
    /// Stores at a time.
    #[arg(long, default_value_t = 3)]
    stores: usize,
    /// Writes a second on each store.
    #[arg(long, default_value_t = 1200)]
    rate: u32,
    /// Writes that each round acknowledges at least.
    #[arg(long, default_value_t = 10_000)]
    least: u64,
    /// How long the operator is away where it is, in seconds.
    #[arg(long, default_value_t = 300)]
    away: u64,
    /// How long the API server is away where it is, in seconds.
    #[arg(long, default_value_t = 60)]
    api: u64,
    /// Use the cluster, the images and the operator as they are.
    #[arg(long)]
    as_is: bool,
    /// A file for the sums as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// A directory for the report, with a picture of each round [default: $PAROVOZ_CACHE/faults].
    #[arg(long)]
    report: Option<PathBuf>,
    /// Run different kinds at once where a fault concerns one store only.
    #[arg(long)]
    mixed: bool,
    /// In async mode only kinds that go another way there.
    #[arg(long)]
    short: bool,
}

impl Options {
    /// One round of each kind, shortened, for every change.
    pub fn short(report: PathBuf) -> Self {
        Self {
            kind: Vec::new(),
            mode: None,
            rounds: Some(1),
            stores: 3,
            rate: 1000,
            least: 3_000,
            away: 16,
            api: 12,
            as_is: true,
            json: None,
            report: Some(report),
            mixed: true,
            short: true,
        }
    }

    /// The same for one kind in one mode, with a report of its own: that of the first run is evidence.
    pub fn only(self, kind: Kind, mode: Mode) -> Self {
        let apart = |dir: PathBuf| dir.join(format!("again-{}-{}", kind.name(), mode.name()));
        Self { kind: vec![kind], mode: Some(mode), report: self.report.map(apart), ..self }
    }

    fn rounds(&self, mode: Mode) -> usize {
        self.rounds.unwrap_or(match mode {
            Mode::Quorum => 10,
            Mode::Async => 5,
        })
    }

    fn holds(&self) -> Holds {
        Holds {
            api: Duration::from_secs(self.api),
            operator: Duration::from_secs(self.away),
            waiting: Duration::from_secs(self.away.clamp(6, 20)),
            partition: Duration::from_secs(self.api.min(15)),
        }
    }
}

/// What a run found.
pub struct Found {
    /// By kind and mode.
    pub sums: Vec<Sum>,
    /// What went wrong beside them: what could not be saved, or removed.
    pub trouble: Vec<String>,
    /// The page.
    pub report: PathBuf,
}

/// Runs fault tests. Everything that they made is gone at the end, unless the trouble that was found says otherwise.
pub fn run(ui: &Ui, options: &Options) -> Result<Found> {
    let modes = options.mode.map_or_else(|| vec![Mode::Quorum, Mode::Async], |mode| vec![mode]);
    let chosen = |kind: &Kind| options.kind.is_empty() || options.kind.contains(kind);
    let kinds: Vec<Kind> = Kind::value_variants().iter().copied().filter(chosen).collect();
    let size = Size { rate: options.rate, least: options.least };
    let plans = modes.into_iter().map(|mode| {
        let setup = Setup { mode, stores: options.stores, size, mixed: options.mixed };
        let rounds = options.rounds(mode);
        let wanted = |kind: &&Kind| !options.short || mode == Mode::Quorum || kind.differs_without_quorum();
        let jobs = kinds.iter().filter(wanted).map(|kind| Job { kind: *kind, rounds }).collect();
        (setup, jobs)
    });
    let report = options.report.clone().unwrap_or_else(|| paths::cache().join("faults"));
    let save = |measured: &[Measured]| save(&report, options.json.as_deref(), measured);
    let (measured, trouble) = perform(ui, options.as_is, options.holds(), plans.collect(), save)?;
    let sums = measured.into_iter().map(|m| m.sum).collect();
    Ok(Found { sums, trouble, report: report.join(report::PAGE) })
}

/// Rounds of one kind.
pub struct Measured {
    /// Together.
    pub sum: Sum,
    /// One by one.
    pub rounds: Vec<Round>,
}

/// What a benchmark wants to know.
pub struct Measurement<'a> {
    /// Kinds, those of one mode together.
    pub kinds: &'a [(Mode, Kind)],
    /// Of each kind.
    pub rounds: usize,
    /// At a time.
    pub stores: usize,
    /// Writes a second on each store.
    pub rate: u32,
    /// Whether the cluster is used as it is.
    pub as_is: bool,
    /// Where the pictures go.
    pub report: &'a Path,
}

/// Runs rounds for a benchmark. Returns them, and what went wrong beside them.
pub fn measure(ui: &Ui, wanted: &Measurement<'_>) -> Result<(Vec<Measured>, Vec<String>)> {
    let size = Size { rate: wanted.rate, least: 0 };
    let plans = wanted.kinds.chunk_by(|a, b| a.0 == b.0).map(|part| {
        let setup = Setup { mode: part[0].0, stores: wanted.stores, size, mixed: false };
        (setup, part.iter().map(|(_, kind)| Job { kind: *kind, rounds: wanted.rounds }).collect())
    });
    let save = |measured: &[Measured]| save(wanted.report, None, measured);
    perform(ui, wanted.as_is, Holds::default(), plans.collect(), save)
}

/// Runs the plans. `save` hears of all that was measured so far after each kind: what comes later must not cost it. Returns what
/// was measured, and what could not be saved or removed.
fn perform(
    ui: &Ui,
    as_is: bool,
    holds: Holds,
    plans: Vec<(Setup, Vec<Job>)>,
    save: impl Fn(&[Measured]) -> Result<()>,
) -> Result<(Vec<Measured>, Vec<String>)> {
    let (mut measured, mut trouble) = (Vec::new(), Vec::new());
    let outcome = with_env(ui, as_is, holds, |env| {
        for (setup, jobs) in plans {
            let mut fleets = Fleets::new(env, setup);
            fleets.run(&jobs, |sum, rounds| {
                ui.line(summary::table(std::slice::from_ref(&sum)).trim_end());
                sum.problems.iter().for_each(|p| ui.line(&format!("       {p}")));
                measured.push(Measured { sum, rounds });
                trouble.extend(save(&measured).err().map(|e| e.to_string()));
            });
            trouble.extend(fleets.remove().iter().map(|e| format!("remove stores: {e}")));
        }
        Ok(())
    });
    match outcome {
        Err(e) if measured.is_empty() => return Err(e),
        outcome => trouble.extend(outcome.err().map(|e| e.to_string())),
    }
    Ok((measured, trouble))
}

fn save(report: &Path, json: Option<&Path>, measured: &[Measured]) -> Result<()> {
    make_dir(report)?;
    report::save(report, measured)?;
    let sums: Vec<&Sum> = measured.iter().map(|m| &m.sum).collect();
    json.map_or(Ok(()), |path| summary::save(&sums, path))
}

/// The last lines of the command; an error if anything was wrong.
pub fn verdict(ui: &Ui, found: &Found) -> Result<String> {
    let bad: usize = found.sums.iter().map(|s| s.bad).sum();
    let rounds: usize = found.sums.iter().map(|s| s.rounds).sum();
    let lost: usize = found.sums.iter().filter(|s| s.mode == Mode::Quorum).map(|s| s.lost).sum();
    let line = format!(
        "\n{}faults: {rounds} rounds, {bad} bad, {lost} acknowledged writes lost in quorum mode, in {}\nreport: {}",
        summary::table(&found.sums),
        seconds(ui.elapsed()),
        found.report.display()
    );
    let trouble: String = found.trouble.iter().map(|t| format!("\n{t}")).collect();
    if bad == 0 && trouble.is_empty() { Ok(line) } else { Err(Error::Failed(line + &trouble)) }
}

/// Makes the cluster ready for faults, undoes what an earlier run left, and clears up behind `work`.
pub fn with_env<T>(ui: &Ui, as_is: bool, holds: Holds, work: impl FnOnce(&Env<'_>) -> Result<T>) -> Result<T> {
    packages::require_root("e2e faults")?;
    packages::ensure(ui, &[Need::Faults])?;
    let lock =
        std::fs::File::create(paths::cache().join("faults.lock")).doing(|| "open the fault tests' lock".into())?;
    lock.try_lock().map_err(|_| Error::failed("make faults: another command does so"))?;
    let (journal, failed) = Journal::open(&paths::cache().join("faults.json"))?;
    failed.iter().for_each(|e| ui.line(&format!("       undo what an earlier run left: {e}")));
    let layout = Layout::new(&paths::cluster())?;
    let kube = if as_is {
        Kube::new(&Tools::locate(), &layout.kubeconfig("admin"))
    } else {
        let (kube, inputs) = install::local_cluster(ui)?;
        ui.step("install the operator", |_| install::helm(&kube, &inputs))?;
        kube
    };
    let watch = Watch::start(&kube, env::NAMESPACE);
    let env = Env { ui, kube, layout, journal, watch, holds };
    ui.step("remove what an earlier run left", |_| env.clear())?;
    let outcome = work(&env);
    let removed = ui.step("remove the stores", |_| env.remove());
    outcome.and_then(|found| removed.map(|()| found))
}

impl Default for Holds {
    fn default() -> Self {
        Self {
            api: Duration::from_secs(60),
            operator: Duration::from_secs(300),
            waiting: Duration::from_secs(20),
            partition: Duration::from_secs(15),
        }
    }
}
