//! Progress: a spinner on a terminal, plain lines otherwise; the time of every step either way.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::error::Result;

/// How often a long step reports its progress where there is no terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(15);

/// The output of one command.
pub struct Ui {
    started: Instant,
    bars: Option<MultiProgress>,
}

/// One step that is under way.
pub struct Step {
    name: String,
    bar: Option<ProgressBar>,
    last_line: Mutex<Instant>,
}

impl Ui {
    /// Starts the clock; decides by standard error how to show progress.
    pub fn new() -> Self {
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self { started: Instant::now(), bars }
    }

    /// Runs `work` as a named step and prints how long it took.
    pub fn step<T>(&self, name: &str, work: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new_spinner());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {wide_msg} {elapsed}") {
                bar.set_style(style);
            }
            bar.set_prefix(name.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        let begun = Instant::now();
        let step = Step { name: name.to_owned(), bar, last_line: Mutex::new(begun) };
        let result = work(&step);
        if let Some(bar) = &step.bar {
            bar.finish_and_clear();
        }
        let mark = if result.is_ok() { "ok    " } else { "FAILED" };
        self.line(&format!("{mark} {name} ({})", seconds(begun.elapsed())));
        result
    }

    /// Prints one line above whatever is being shown.
    pub fn line(&self, text: &str) {
        match &self.bars {
            // The terminal may have gone; the line is then of no use to anybody.
            Some(bars) => drop(bars.println(text)),
            None => eprintln!("{text}"),
        }
    }

    /// Time since the command was started.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Step {
    /// Says what the step is doing now.
    pub fn note(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
            return;
        }
        let Ok(mut last) = self.last_line.lock() else { return };
        if last.elapsed() >= PLAIN_INTERVAL {
            *last = Instant::now();
            eprintln!("...    {}: {text}", self.name);
        }
    }

    /// A note that is always printed where there is no terminal.
    pub fn announce(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => eprintln!("...    {}: {text}", self.name),
        }
    }
}

/// A duration for people: "3.4 s", "12 min 05 s".
pub fn seconds(time: Duration) -> String {
    let whole = time.as_secs();
    if whole < 120 { format!("{:.1} s", time.as_secs_f64()) } else { format!("{} min {:02} s", whole / 60, whole % 60) }
}
