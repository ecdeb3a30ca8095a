//! What happened, line by line, for a run that is looked at.

/// Collects nothing unless it is asked to.
#[derive(Debug, Default)]
pub struct Trace {
    on: bool,
    lines: Vec<String>,
}

impl Trace {
    /// One that keeps lines, or one that does not.
    #[must_use]
    pub fn new(on: bool) -> Self {
        Self { on, lines: Vec::new() }
    }

    /// Notes a line at a time in microseconds; the words are made only if somebody wants them.
    pub fn say(&mut self, now: u64, line: impl FnOnce() -> String) {
        if self.on {
            self.lines.push(format!("{:>5}.{:06} {}", now / 1_000_000, now % 1_000_000, line()));
        }
    }

    /// Whether lines are kept.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// All lines so far.
    #[must_use]
    pub fn lines(&self) -> &[String] {
        &self.lines
    }
}
