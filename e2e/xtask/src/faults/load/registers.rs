//! Registers: a few keys that some connections write and others read at the primary.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use redis::Value;

use super::client::{Client, Failure};
use super::history::{Access, FailedRead, Operation, register};
use super::{Pace, Plan, Registers, Shared};
use crate::error::Result;
use crate::faults::inject::network;

const REGISTERS: u64 = 6;
const WRITERS: u64 = 2;
const READERS: u64 = 3;
/// Operations a second of each connection.
const RATE: u64 = 60;
const MOST: u64 = 50_000;
const AFTER_REFUSAL: Duration = Duration::from_millis(15);

/// What the connections saw; reads that failed, with their times.
pub type Part = super::history::Registers;

/// Starts the connections.
pub fn start(plan: &Plan, shared: &Arc<Shared>) -> Vec<JoinHandle<Result<Part>>> {
    let spawn = |work: fn(&Plan, &Shared, u64) -> Result<Part>, id: u64| {
        let (plan, shared) = (plan.clone(), shared.clone());
        std::thread::spawn(move || work(&plan, &shared, id))
    };
    let writers = match plan.registers {
        Registers::Own => WRITERS,
        Registers::ReadOf(_) => 0,
    };
    (0..writers).map(|id| spawn(write, id)).chain((0..READERS).map(|id| spawn(read, id))).collect()
}

fn write(plan: &Plan, shared: &Shared, id: u64) -> Result<Part> {
    network::enter(plan.node)?;
    let mut client = Client::new(plan.route.clone());
    let mut pace = Pace::new(RATE as f64);
    let mut part = Part::default();
    for n in 0..MOST {
        pace.wait();
        if shared.stopped() {
            break;
        }
        // Unique over all registers, and never 0.
        let (index, value) = (n % REGISTERS, n * WRITERS + id + 1);
        let begun = shared.now();
        let answer = client.call(|c| redis::cmd("SET").arg(register(&plan.tag, index)).arg(value).exec(c));
        let ended = match answer {
            Ok(()) => Some(shared.now()),
            Err(failure) => {
                std::thread::sleep(AFTER_REFUSAL);
                if failure == Failure::Refused {
                    continue;
                }
                None
            }
        };
        part.operations.push(Operation { register: index, begun, ended, access: Access::Write(value) });
    }
    Ok(part)
}

fn read(plan: &Plan, shared: &Shared, id: u64) -> Result<Part> {
    network::enter(plan.node)?;
    let mut client = Client::new(plan.route.clone());
    let mut pace = Pace::new(RATE as f64);
    let mut part = Part::default();
    let tag = match &plan.registers {
        Registers::Own => &plan.tag,
        Registers::ReadOf(tag) => tag,
    };
    for n in 0..MOST {
        pace.wait();
        if shared.stopped() {
            break;
        }
        let index = (n + id) % REGISTERS;
        let begun = shared.now();
        // A member that leads before and after the read led in between: it is asked in one go.
        let answer: std::result::Result<(Value, Option<u64>, Value), _> =
            client.call(|c| redis::pipe().cmd("ROLE").cmd("GET").arg(register(tag, index)).cmd("ROLE").query(c));
        let ended = shared.now();
        match answer {
            Ok((before, value, after)) => match (led_elsewhere(&before), led_elsewhere(&after)) {
                (None, None) => {
                    let access = Access::Read(value);
                    part.operations.push(Operation { register: index, begun, ended: Some(ended), access });
                }
                (_, Some(at)) | (Some(at), None) => {
                    part.at_replicas.push(ended);
                    client.leave(Some(&at));
                }
            },
            Err(_) => {
                part.failed_reads.push(FailedRead { ended, why: client.why().to_owned() });
                std::thread::sleep(AFTER_REFUSAL);
            }
        }
    }
    Ok(part)
}

/// Where the primary is, if this answer to ROLE is a replica's.
fn led_elsewhere(role: &Value) -> Option<String> {
    let Value::Array(parts) = role else { return Some(String::new()) };
    let word = |index: usize| match parts.get(index) {
        Some(Value::BulkString(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
        Some(Value::SimpleString(text)) => text.clone(),
        _ => String::new(),
    };
    (word(0) != "master").then(|| word(1))
}
