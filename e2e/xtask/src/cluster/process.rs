//! Processes that outlive the command: started into the background, recorded by id and start time, ended by these alone.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::layout::Layout;
use crate::error::{Context, Error, Result, make_dir, read, write};
use crate::poll;

/// A process as recorded: an id that was given to another process since has another start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    pid: i32,
    started: u64,
}

impl Recorded {
    /// The process with this id, if it runs.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may hold anything: what follows the last one is numbered from field 3.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ended = matches!(fields.first(), Some(&"Z" | &"X"));
        let started = fields.get(19)?.parse().ok()?;
        (!ended).then_some(Self { pid, started })
    }

    /// Whether exactly this process still runs.
    pub fn runs(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Ends it at once, and waits until it is gone.
    pub fn kill(self) -> Result<()> {
        if !self.runs() {
            return Ok(());
        }
        self.signal_if_there(Signal::KILL)?;
        poll::until(
            &format!("the end of process {}", self.pid),
            Duration::from_secs(20),
            Duration::from_millis(10),
            || poll::ready(!self.runs(), || "still there".into()),
        )
    }

    /// Sends it a signal; that it has ended is an error.
    pub fn signal(self, signal: Signal) -> Result<()> {
        let there = self.signal_if_there(signal)?;
        if there { Ok(()) } else { Err(Error::failed(format!("signal process {}: it has ended", self.pid))) }
    }

    /// Sends it a signal, unless it has ended. Returns whether it was there.
    pub fn signal_if_there(self, signal: Signal) -> Result<bool> {
        match Pid::from_raw(self.pid).filter(|_| self.runs()).map(|pid| kill_process(pid, signal)) {
            None | Some(Err(rustix::io::Errno::SRCH)) => Ok(false),
            Some(Ok(())) => Ok(true),
            Some(Err(e)) => Err(Error::Io { action: format!("signal process {}", self.pid), source: e.into() }),
        }
    }

    /// Whether it was told to end and has not yet looked at that, as one that is stopped cannot.
    pub fn is_told_to_end(self) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let pending = status.lines().filter_map(|line| {
            let (name, mask) = line.split_once(':')?;
            matches!(name, "SigPnd" | "ShdPnd").then(|| u64::from_str_radix(mask.trim(), 16).ok())?
        });
        let bit = |signal: Signal| 1_u64 << (signal.as_raw() - 1);
        self.runs() && pending.into_iter().any(|mask| mask & (bit(Signal::TERM) | bit(Signal::KILL)) != 0)
    }

    /// The process id.
    pub fn pid(self) -> i32 {
        self.pid
    }
}

/// The process recorded under `name`, if it still runs.
pub fn find(layout: &Layout, name: &str) -> Option<Recorded> {
    let text = std::fs::read_to_string(layout.pid_file(name)).ok()?;
    let (pid, started) = text.trim().split_once(' ')?;
    let recorded = Recorded { pid: pid.parse().ok()?, started: started.parse().ok()? };
    recorded.runs().then_some(recorded)
}

/// The names of all processes that were recorded, running or not.
pub fn names(layout: &Layout) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(layout.root.join("run")) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|e| e.file_name().to_string_lossy().strip_suffix(".pid").map(str::to_owned))
        .collect();
    names.sort();
    names
}

/// A program to keep running.
pub struct Daemon {
    name: String,
    namespace: Option<PathBuf>,
    program: PathBuf,
    args: Vec<OsString>,
    path: OsString,
}

impl Daemon {
    /// `program` is recorded as `name`, with `args` split at white space (none of our paths has any).
    pub fn new(name: impl Into<String>, program: impl Into<PathBuf>, args: &str) -> Self {
        Self {
            name: name.into(),
            namespace: None,
            program: program.into(),
            args: args.split_whitespace().map(OsString::from).collect(),
            path: OsString::from("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        }
    }

    /// Runs it in a network namespace, leaving every other namespace (and /sys) as it is.
    pub fn in_namespace(mut self, file: PathBuf) -> Self {
        self.namespace = Some(file);
        self
    }

    /// Starts it unless it runs. Returns whether it was started.
    pub fn ensure(&self, layout: &Layout) -> Result<bool> {
        if find(layout, &self.name).is_some() {
            return Ok(false);
        }
        let log = layout.log(&self.name);
        make_dir(&layout.root.join("log"))?;
        let out = File::options().create(true).append(true).open(&log).doing(|| format!("open {}", log.display()))?;
        let err = out.try_clone().doing(|| format!("open {}", log.display()))?;
        let mut command = match &self.namespace {
            Some(file) => {
                let mut c = Command::new("nsenter");
                c.arg(format!("--net={}", file.display())).arg(&self.program);
                c
            }
            None => Command::new(&self.program),
        };
        let mut child = command
            .args(&self.args)
            .env_clear()
            .env("PATH", &self.path)
            .env("HOME", &layout.root)
            .current_dir(&layout.root)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .spawn()
            .doing(|| format!("start {}", self.name))?;
        let pid = i32::try_from(child.id()).map_err(|e| Error::failed(format!("start {}: {e}", self.name)))?;
        let recorded = Recorded::of(pid)
            .ok_or_else(|| Error::failed(format!("start {}: it ended at once{}", self.name, log_tail(&log))))?;
        write(&layout.pid_file(&self.name), format!("{} {}\n", recorded.pid, recorded.started))?;
        // Collects the exit status if it ends while this command still runs; afterwards init does.
        std::thread::spawn(move || drop(child.wait()));
        Ok(true)
    }
}

/// Waits until `probe` is true; fails as soon as the process ends, with the end of its log.
pub fn await_ready(layout: &Layout, name: &str, limit: Duration, mut probe: impl FnMut() -> bool) -> Result<()> {
    let outcome = poll::until(&format!("{name} to answer"), limit, Duration::from_millis(100), || {
        if probe() {
            return Ok(true);
        }
        if find(layout, name).is_none() { Ok(false) } else { Err("it runs, but does not answer".into()) }
    });
    match outcome {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::failed(format!("start {name}: it ended{}", log_tail(&layout.log(name))))),
        Err(e) => Err(Error::failed(format!("{e}{}", log_tail(&layout.log(name))))),
    }
}

/// The last lines of a log, indented, with its name.
pub fn log_tail(log: &Path) -> String {
    let text = read(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let shown = lines[lines.len().saturating_sub(15)..].join("\n    ");
    format!("; {} ends with\n    {shown}", log.display())
}

#[cfg(test)]
mod tests {
    use rustix::process::Signal;

    use super::Recorded;

    #[test]
    fn a_process_that_ended_takes_no_signal() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let recorded = Recorded::of(i32::try_from(child.id()).unwrap()).unwrap();
        recorded.signal(Signal::STOP).unwrap();
        assert!(!recorded.is_told_to_end());
        recorded.signal(Signal::TERM).unwrap();
        assert!(recorded.is_told_to_end());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(recorded.signal(Signal::KILL).is_err());
        assert!(!recorded.signal_if_there(Signal::CONT).unwrap());
        assert!(!recorded.is_told_to_end());
    }
}
