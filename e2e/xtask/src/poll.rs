//! Waiting with a deadline, never for a fixed time.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// Asks `probe` every `interval` until it is ready. `Err(text)` means "not yet", and the last text is reported if `limit`
/// passes; at least one probe is made.
pub fn until<T>(
    what: &str,
    limit: Duration,
    interval: Duration,
    mut probe: impl FnMut() -> std::result::Result<T, String>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() >= deadline => {
                return Err(Error::Timeout { what: what.to_owned(), limit, last });
            }
            Err(_) => std::thread::sleep(interval),
        }
    }
}

/// `Ok` if `condition` holds, else the text as "not yet".
pub fn ready(condition: bool, otherwise: impl FnOnce() -> String) -> std::result::Result<(), String> {
    if condition { Ok(()) } else { Err(otherwise()) }
}
