//! Running programs: arguments, environment, captured output and a readable failure.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::error::{Context, Error, Result};

/// Lines of a failed program's output that are shown.
const TAIL_LINES: usize = 30;

/// A program to run to its end.
pub struct Run {
    command: Command,
    shown: String,
    input: Option<Vec<u8>>,
}

/// A program by name or path.
pub fn run(program: impl AsRef<OsStr>) -> Run {
    let shown =
        Path::new(program.as_ref()).file_name().unwrap_or_else(|| program.as_ref()).to_string_lossy().into_owned();
    Run { command: Command::new(program), shown, input: None }
}

/// Cargo, as if it were called from a shell: see [`without_cargo_run`].
pub fn cargo() -> Run {
    let mut cargo = run("cargo");
    without_cargo_run(&mut cargo.command);
    cargo
}

/// Takes away what `cargo run` told this process of itself. Build scripts of some dependencies ask for these variables, so
/// that cargo would compile them, and all that depends on them, anew for each caller.
pub fn without_cargo_run(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name == "LD_LIBRARY_PATH" {
            command.env_remove(name.as_ref());
        }
    }
}

impl Run {
    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.shown.push(' ');
        self.shown.push_str(&arg.as_ref().to_string_lossy());
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Self {
        args.into_iter().fold(self, Run::arg)
    }

    /// Adds the words of `text` as arguments; none of them may contain a space.
    pub fn words(self, text: &str) -> Self {
        self.args(text.split_whitespace())
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Sets the working directory.
    pub fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Gives standard input.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Some(bytes.into());
        self
    }

    /// Runs with captured output, whatever the exit status.
    pub fn output(mut self) -> Result<Output> {
        let shown = self.shown;
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        self.command.stdin(if self.input.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = self.command.spawn().doing(|| format!("start {shown}"))?;
        let feeder = self.input.take().zip(child.stdin.take()).map(|(bytes, mut pipe)| {
            // A program that ends early closes the pipe; its exit status tells why.
            std::thread::spawn(move || drop(pipe.write_all(&bytes)))
        });
        let output = child.wait_with_output().doing(|| format!("await {shown}"))?;
        if let Some(feeder) = feeder {
            drop(feeder.join());
        }
        Ok(output)
    }

    /// Runs with captured output; an error shows the end of what the program said.
    pub fn text(self) -> Result<String> {
        let shown = shorten(&self.shown);
        let output = self.output()?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
        if said.trim().is_empty() {
            said = String::from_utf8_lossy(&output.stdout).into_owned();
        }
        Err(Error::Command { command: shown, status: output.status, detail: tail(&said) })
    }

    /// Like `text`, but what the program says on standard error is seen as it comes.
    pub fn text_with_errors_shown(mut self) -> Result<String> {
        let shown = shorten(&self.shown);
        let output = self
            .command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .output()
            .doing(|| format!("start {shown}"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(Error::Command { command: shown, status: output.status, detail: String::new() })
    }

    /// Runs for its effect.
    pub fn done(self) -> Result<()> {
        self.text().map(drop)
    }

    /// Whether it ran and reported success.
    pub fn succeeds(self) -> bool {
        self.output().is_ok_and(|o| o.status.success())
    }

    /// Runs with our own standard output and error, for programs that people want to watch.
    pub fn shown(mut self) -> Result<()> {
        let status = self.command.stdin(Stdio::null()).status().doing(|| format!("start {}", self.shown))?;
        if status.success() {
            return Ok(());
        }
        Err(Error::Command { command: shorten(&self.shown), status, detail: String::new() })
    }
}

fn shorten(command: &str) -> String {
    let mut end = command.len().min(300);
    while !command.is_char_boundary(end) {
        end -= 1;
    }
    if end < command.len() { format!("{} ...", &command[..end]) } else { command.to_owned() }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    lines[from..].iter().fold(String::new(), |mut out, line| {
        out.push_str("\n    ");
        out.push_str(line);
        out
    })
}

/// Whether a program is on the search path or is an existing path.
pub fn exists(program: &str) -> bool {
    if program.contains('/') {
        return Path::new(program).exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(|dir| dir.join(program).is_file())
}
