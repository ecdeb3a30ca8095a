//! What the API server says of the stores under test, as it happens: reigns and addresses of pods.

use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::load::client::Addresses;
use crate::error::{Error, Result};
use crate::kube::{Kube, text};

/// Pause before a watch that ended is begun again.
const AGAIN: Duration = Duration::from_millis(200);
/// Events kept at most; the oldest go first.
const MOST: usize = 20_000;

/// One change of a decision record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReignEvent {
    /// When it was heard of.
    pub at: Instant,
    /// Of which store.
    pub store: String,
    /// The present reign.
    pub epoch: i64,
    /// Its phase.
    pub phase: String,
    /// Why it was begun.
    pub cause: String,
    /// Who leads in it: the identity on its volume; empty while it is not decided.
    pub primary: String,
}

/// Reads a path of the API server, event by event, in a thread of its own.
struct Reader {
    stop: Arc<AtomicBool>,
    child: Arc<Mutex<Option<Child>>>,
}

impl Reader {
    fn start(kube: &Kube, path: String, mut heard: impl FnMut(&Value) + Send + 'static) -> Self {
        let (stop, child) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None)));
        let reader = Self { stop: stop.clone(), child: child.clone() };
        let kube = kube.clone();
        std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                if let Ok(mut started) = kube.stream(&path) {
                    let out = started.stdout.take();
                    if let Ok(mut slot) = child.lock() {
                        *slot = Some(started);
                    }
                    for line in out.into_iter().flat_map(|o| BufReader::new(o).lines()).map_while(std::io::Result::ok) {
                        if let Ok(event) = serde_json::from_str::<Value>(&line) {
                            heard(&event);
                        }
                    }
                    end(&child);
                }
                std::thread::sleep(AGAIN);
            }
        });
        reader
    }
}

fn end(child: &Mutex<Option<Child>>) {
    if let Some(mut child) = child.lock().ok().and_then(|mut slot| slot.take()) {
        // It may have ended by itself.
        drop(child.kill());
        drop(child.wait());
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        end(&self.child);
    }
}

/// Everything heard of one namespace.
pub struct Watch {
    /// Where pods are.
    pub addresses: Arc<Addresses>,
    events: Arc<Mutex<Vec<ReignEvent>>>,
    _readers: [Reader; 2],
}

impl Watch {
    /// Begins.
    pub fn start(kube: &Kube, namespace: &str) -> Self {
        let (addresses, events) = (Arc::new(Addresses::default()), Arc::new(Mutex::new(Vec::new())));
        let reigns = {
            let events = events.clone();
            let path = format!("/apis/parovoz.dev/v1alpha1/namespaces/{namespace}/storereigns?watch=1");
            Reader::start(kube, path, move |event| hear(&events, event))
        };
        let pods = {
            let addresses = addresses.clone();
            let path = format!("/api/v1/namespaces/{namespace}/pods?watch=1");
            Reader::start(kube, path, move |event| {
                let address = text(event, "/object/status/podIP");
                if !address.is_empty() {
                    addresses.set(text(event, "/object/metadata/name"), address);
                }
            })
        };
        Self { addresses, events, _readers: [reigns, pods] }
    }

    /// What happened to a store's reigns since then.
    pub fn since(&self, store: &str, moment: Instant) -> Vec<ReignEvent> {
        let all = self.events.lock().map(|all| all.clone()).unwrap_or_default();
        all.into_iter().filter(|e| e.store == store && e.at >= moment).collect()
    }

    /// The last that was heard of a store.
    pub fn last(&self, store: &str) -> Option<ReignEvent> {
        self.events.lock().ok()?.iter().rev().find(|e| e.store == store).cloned()
    }

    /// Waits until a reign above `epoch` is in one of these phases; polls often, as phases are short.
    pub fn await_phase(&self, store: &str, above: i64, phases: &[&str], limit: Duration) -> Result<ReignEvent> {
        let what = format!("a reign of {store} above {above} to be {}", phases.join(" or "));
        let deadline = Instant::now() + limit;
        loop {
            let found = self.events.lock().ok().and_then(|all| {
                let fits = |e: &&ReignEvent| e.store == store && e.epoch > above && phases.contains(&e.phase.as_str());
                all.iter().find(fits).cloned()
            });
            if let Some(event) = found {
                return Ok(event);
            }
            if Instant::now() >= deadline {
                let last = self.last(store).map_or_else(|| "nothing".into(), |e| format!("{} {}", e.epoch, e.phase));
                return Err(Error::Timeout { what, limit, last });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn hear(events: &Mutex<Vec<ReignEvent>>, event: &Value) {
    let Ok(mut all) = events.lock() else { return };
    let record = "/object/spec/current";
    let heard = ReignEvent {
        at: Instant::now(),
        store: text(event, "/object/metadata/name").to_owned(),
        epoch: event.pointer(&format!("{record}/epoch")).and_then(Value::as_i64).unwrap_or(-1),
        phase: text(event, &format!("{record}/phase")).to_owned(),
        cause: text(event, &format!("{record}/cause")).to_owned(),
        primary: text(event, &format!("{record}/primary")).to_owned(),
    };
    let known = all.iter().rev().find(|e| e.store == heard.store);
    // A watch that is begun again tells the present state once more.
    if heard.epoch < 0 || known.is_some_and(|k| k.epoch == heard.epoch && k.phase == heard.phase) {
        return;
    }
    if all.len() >= MOST {
        all.remove(0);
    }
    all.push(heard);
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use serde_json::json;

    #[test]
    fn a_phase_is_heard_once() {
        let events = Mutex::new(Vec::new());
        let event = |epoch: i64, phase: &str| json!({"object": {"metadata": {"name": "s"}, "spec": {"current": {"epoch": epoch, "phase": phase}}}});
        for (epoch, phase) in [(1, "Sealing"), (1, "Sealing"), (1, "Serving"), (2, "Serving")] {
            super::hear(&events, &event(epoch, phase));
        }
        super::hear(&events, &json!({"object": {}}));
        assert_eq!(events.lock().unwrap().len(), 3);
    }
}
