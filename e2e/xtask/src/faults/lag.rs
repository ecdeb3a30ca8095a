//! How far replicas are behind, as the primary itself says, sampled until it cannot any more.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::inject::network;
use crate::cluster::layout::Node;
use crate::error::{Error, Result};

const EVERY: Duration = Duration::from_millis(50);
const LIMIT: Duration = Duration::from_millis(500);
/// The first answer comes within so long.
const FIRST: Duration = Duration::from_secs(10);
const PORT: u16 = 9090;
const METRIC: &str = "parovoz_dataplane_follower_lag_sequences_worst";
/// Samples kept at most: ten minutes of them.
const MOST: usize = 12_000;

/// One answer.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When it was asked for.
    pub at: Instant,
    /// Records that the replica furthest behind lacks.
    pub sequences: u64,
}

/// Asks until it is finished.
pub struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Sample>>>,
}

impl Sampler {
    /// Asks the member at `address` from a node's network; returns once it was heard, so that what a fault may lose is known
    /// however soon the fault comes.
    ///
    /// # Errors
    /// It did not say its lag in time.
    pub fn start(node: Node, address: String) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (heard, first) = mpsc::channel();
        let thread = {
            let stop = stop.clone();
            std::thread::spawn(move || {
                network::enter(node)?;
                let mut samples = Vec::new();
                while !stop.load(Ordering::SeqCst) && samples.len() < MOST {
                    let at = Instant::now();
                    if let Some(sequences) = ask(&address) {
                        samples.push(Sample { at, sequences });
                        // Only the first is waited for.
                        let _ = heard.send(());
                    }
                    std::thread::sleep(EVERY);
                }
                Ok(samples)
            })
        };
        let sampler = Self { stop, thread };
        match first.recv_timeout(FIRST) {
            Ok(()) => Ok(sampler),
            Err(_) => {
                sampler.finish()?;
                Err(Error::failed(format!("sample the lag: the primary did not say it within {FIRST:?}")))
            }
        }
    }

    /// What it heard.
    pub fn finish(self) -> Result<Vec<Sample>> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().map_err(|_| Error::failed("sample the lag: the thread panicked"))?
    }
}

fn ask(address: &str) -> Option<u64> {
    let target = format!("{address}:{PORT}").parse().ok()?;
    let mut stream = TcpStream::connect_timeout(&target, LIMIT).ok()?;
    stream.set_read_timeout(Some(LIMIT)).ok()?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    value(&text)
}

fn value(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(METRIC) && !line.starts_with('#'))?;
    let value: f64 = line.rsplit(' ').next()?.parse().ok()?;
    Some(value as u64)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_lag_is_read_from_metrics() {
        let text = format!("# TYPE {0} gauge\n{0} 12\n", super::METRIC);
        assert_eq!(super::value(&text), Some(12));
        assert_eq!(super::value("HTTP/1.1 500"), None);
    }
}
