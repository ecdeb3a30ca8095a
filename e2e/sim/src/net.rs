//! The network: who reaches whom, how long it takes, and what gets lost.

use std::collections::BTreeSet;

use crate::msg::{CLIENTS, Conn, MEMBERS, Msg, NODES, Node, ToFollower, ToPrimary, ToReplica};
use crate::rng::Rng;

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Arrives after so many microseconds.
    Arrives(u64),
    /// Arrives twice.
    Twice(u64, u64),
    /// Waits until the way is free again.
    Held,
    /// Is lost.
    Lost,
}

/// See the module.
#[derive(Debug)]
pub struct Net {
    blocked: [[bool; NODES]; NODES],
    /// What is sent into a partition waits for its end; otherwise it is lost.
    pub hold: bool,
    /// Of a thousand messages.
    pub loss: u64,
    /// Of a thousand messages.
    pub twice: u64,
    /// Of a thousand messages of a stream, so many overtake others.
    pub overtake: u64,
    /// Slowest message, in microseconds.
    pub jitter: u64,
    /// Streams of which a message was lost: nothing of them arrives any more.
    broken: BTreeSet<Conn>,
    /// When the last message of a stream between two nodes arrives: streams keep their order.
    last: [[u64; NODES]; NODES],
}

impl Default for Net {
    fn default() -> Self {
        Self {
            blocked: [[false; NODES]; NODES],
            hold: false,
            loss: 0,
            twice: 0,
            overtake: 0,
            jitter: 400,
            broken: BTreeSet::new(),
            last: [[0; NODES]; NODES],
        }
    }
}

impl Net {
    /// Nothing goes from one node to the other any more, or it does again. Answers whether that is new.
    pub fn block(&mut self, from: Node, to: Node, blocked: bool) -> bool {
        std::mem::replace(&mut self.blocked[usize::from(from)][usize::from(to)], blocked) != blocked
    }

    /// Whether something goes from one node to the other.
    #[must_use]
    pub fn is_blocked(&self, from: Node, to: Node) -> bool {
        self.blocked[usize::from(from)][usize::from(to)]
    }

    /// All ways are free again and nothing is lost any more.
    pub fn heal(&mut self) {
        *self = Self { last: self.last, broken: std::mem::take(&mut self.broken), ..Self::default() };
    }

    /// What becomes of a message that is sent now.
    pub fn send(&mut self, rng: &mut Rng, now: u64, from: Node, to: Node, msg: &Msg) -> Fate {
        let conn = conn_of(msg);
        if let Some(conn) = conn
            && self.broken.contains(&conn)
        {
            return Fate::Lost;
        }
        if self.is_blocked(from, to) {
            if self.hold && from < MEMBERS && to < MEMBERS {
                return Fate::Held;
            }
            self.lose(conn);
            return Fate::Lost;
        }
        if self.loss > 0 && rng.permille(self.loss) {
            self.lose(conn);
            return Fate::Lost;
        }
        let delay = 80 + rng.below(self.jitter);
        // A client's request is not idempotent: a transport that repeats it would be no fault of the store.
        // Neither is what opens a stream: a stream that is not in order is none.
        let repeats = to != CLIENTS && from != CLIENTS && !opens(msg);
        let twice = repeats && self.twice > 0 && rng.permille(self.twice);
        if conn.is_none() {
            return if twice { Fate::Twice(delay, delay + rng.below(20_000)) } else { Fate::Arrives(delay) };
        }
        let last = &mut self.last[usize::from(from)][usize::from(to)];
        if self.overtake > 0 && !opens(msg) && rng.permille(self.overtake) {
            return Fate::Arrives(delay);
        }
        let at = (now + delay).max(*last + 1);
        *last = at;
        if twice { Fate::Twice(at - now, at - now + rng.below(20_000)) } else { Fate::Arrives(at - now) }
    }

    fn lose(&mut self, conn: Option<Conn>) {
        if let Some(conn) = conn {
            self.broken.insert(conn);
        }
    }
}

/// The stream that a message belongs to.
fn conn_of(msg: &Msg) -> Option<Conn> {
    match msg {
        Msg::ToUpstream(conn, _) | Msg::ToFollower(conn, _) | Msg::ToPrimary(conn, _) | Msg::ToReplica(conn, _) => {
            Some(*conn)
        }
        _ => None,
    }
}

/// Whether a message opens a stream or changes what it carries.
fn opens(msg: &Msg) -> bool {
    match msg {
        Msg::ToUpstream(..) => true,
        Msg::ToFollower(_, m) => !matches!(m, ToFollower::Frames(_) | ToFollower::Beat { .. }),
        Msg::ToPrimary(_, m) => matches!(m, ToPrimary::Hello(..)),
        Msg::ToReplica(_, m) => matches!(m, ToReplica::Hello(_)),
        _ => false,
    }
}
