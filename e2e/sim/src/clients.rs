//! Clients: they read, write and increment a few keys of a few prefixes, follow redirects, give up after a while, and
//! remember everything.

use crate::check::linear::{self, Did, NEVER, Op};
use crate::msg::{MEMBERS, Node, Request, Response, What};
use crate::rng::Rng;

/// How many there are.
pub const COUNT: usize = 8;
/// Keys of a prefix: the lower half are registers, the upper half counters.
pub const KEYS: u8 = 6;

/// An operation, under way or over.
#[derive(Debug, Clone, Copy)]
pub struct Record {
    pub client: u8,
    pub prefix: u8,
    pub key: u8,
    pub what: What,
    pub begin: u64,
    pub end: u64,
    /// `None` = unknown, or not over.
    pub result: Option<u64>,
    /// It was refused: it never happened.
    pub refused: bool,
}

#[derive(Debug, Clone, Copy)]
struct Client {
    /// The operation under way.
    op: Option<u32>,
    /// Whom to ask.
    target: Node,
}

/// See the module.
#[derive(Debug)]
pub struct Clients {
    clients: [Client; COUNT],
    pub records: Vec<Record>,
    /// Prefixes in use; grows.
    pub prefixes: u8,
    /// Nobody begins anything.
    pub quiet: bool,
    pub done: u64,
    pub unknown: u64,
}

/// A request to send.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    pub op: u32,
    pub to: Node,
    pub request: Request,
}

impl Default for Clients {
    fn default() -> Self {
        Self {
            clients: [Client { op: None, target: 1 }; COUNT],
            records: Vec::with_capacity(1_200),
            prefixes: 1,
            quiet: false,
            done: 0,
            unknown: 0,
        }
    }
}

impl Clients {
    /// A client begins its next operation. `service` is where the service leads.
    pub fn begin(&mut self, rng: &mut Rng, now: u64, client: usize, service: Option<Node>) -> Option<Sent> {
        let me = self.clients.get_mut(client)?;
        if self.quiet || me.op.is_some() {
            return None;
        }
        let op = u32::try_from(self.records.len()).ok()?;
        let key = u8::try_from(rng.below(u64::from(KEYS))).ok()?;
        let prefix = u8::try_from(rng.below(u64::from(self.prefixes))).ok()?;
        let what = match (rng.below(100), key < KEYS / 2) {
            (0..=44, _) => What::Get,
            (_, true) => What::Put(u64::from(op) + 1),
            (_, false) => What::Add,
        };
        // Mostly the service, at times whoever is there.
        if let Some(service) = service
            && rng.permille(700)
        {
            me.target = service;
        } else if rng.permille(100) {
            me.target = u8::try_from(rng.range(1, 5)).unwrap_or(1);
        }
        me.op = Some(op);
        let client = u8::try_from(client).unwrap_or(0);
        self.records.push(Record { client, prefix, key, what, begin: now, end: NEVER, result: None, refused: false });
        Some(Sent { op, to: me.target, request: Request { prefix, key, what } })
    }

    /// An answer came. Answers the client that is free again.
    pub fn answered(&mut self, now: u64, op: u32, response: Response) -> Option<usize> {
        let record = self.records.get_mut(usize::try_from(op).ok()?)?;
        let client = usize::from(record.client);
        let me = self.clients.get_mut(client)?;
        if me.op != Some(op) {
            return None;
        }
        me.op = None;
        match response {
            Response::Done { value, .. } => {
                record.end = now;
                record.result = Some(value);
                self.done += 1;
            }
            Response::Refused { primary } => {
                record.refused = true;
                if let Some(primary) = primary.filter(|p| (1..MEMBERS).contains(p)) {
                    me.target = primary;
                }
            }
            Response::Unknown => self.unknown += 1,
        }
        Some(client)
    }

    /// Operations that did something, or may have: those that were answered, and those of which nobody knows.
    #[must_use]
    pub const fn counted(&self) -> u64 {
        self.done + self.unknown
    }

    /// A read beside all clients' own, after everything; notes it and answers its number.
    pub fn read_last(&mut self, now: u64, request: Request) -> Option<u32> {
        let op = u32::try_from(self.records.len()).ok()?;
        let me = self.clients.first_mut()?;
        me.op = Some(op);
        let Request { prefix, key, what } = request;
        self.records.push(Record {
            client: 0,
            prefix,
            key,
            what,
            begin: now,
            end: NEVER,
            result: None,
            refused: false,
        });
        Some(op)
    }

    /// Gives up on an operation that is still under way. Answers whether it was.
    pub fn give_up(&mut self, op: u32) -> Option<usize> {
        let record = self.records.get(usize::try_from(op).ok()?)?;
        let client = usize::from(record.client);
        let me = self.clients.get_mut(client).filter(|me| me.op == Some(op))?;
        me.op = None;
        self.unknown += 1;
        Some(client)
    }

    /// Whether every key's history is possible; the first that is not, and why.
    #[must_use]
    pub fn judge(&self) -> Option<String> {
        for prefix in 0..self.prefixes {
            for key in 0..KEYS {
                let mine = self.records.iter().filter(|r| r.prefix == prefix && r.key == key && !r.refused);
                let ops: Vec<Op> = mine.filter_map(Record::op).collect();
                let judged = if key < KEYS / 2 { linear::register(&ops) } else { linear::counter(&ops) };
                if let Some(why) = judged {
                    return Some(format!("key {key} of p{prefix} is not linearizable: {why}"));
                }
            }
        }
        None
    }
}

impl Record {
    fn op(&self) -> Option<Op> {
        let did = match (self.what, self.result) {
            (What::Get, Some(value)) => Did::Saw(value),
            (What::Get, None) => return None,
            (What::Put(value), _) => Did::Put(value),
            (What::Add, sum) => Did::Added(sum),
        };
        Some(Op { begin: self.begin, end: self.end, did })
    }
}
