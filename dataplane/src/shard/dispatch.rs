//! From a connection's request to who executes it: this loop, another one, or several.

use std::sync::atomic::Ordering;

use parovoz_dataplane_core::command::{self, Command, CommandError, CommandKind, Condition};
use parovoz_dataplane_core::resp::reply::push_request;
use parovoz_dataplane_core::resp::{Args, Parser, Proto, Reply, RequestLimits};
use parovoz_dataplane_core::types::PrefixUuid;

use super::conn::{LARGE, Merge, Pause, Session};
use super::exec::{At, Executor, MarkAt, Refusal, Settled, Target, Waiter};
use super::message::{
    ConnId, FORWARDED_BYTES_MAX, FORWARDED_MAX, Forwarded, Message, Replies, ReplyTo, Requests, Wanted,
};
use super::scan::ScanTask;
use super::stats::add;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Executed or on its way; the next may follow.
    Done,
    /// Not yet: the session's pause says why. It is read again later.
    Again,
}

/// A `WAIT` under way.
#[derive(Debug)]
pub(super) struct WaitTask {
    pub(super) to: ReplyTo,
    pub(super) replicas: u64,
    /// `boot_ms`; `None` = for ever.
    pub(super) deadline: Option<u64>,
    /// What must be acknowledged.
    pub(super) positions: Vec<(PrefixUuid, parovoz_dataplane_core::types::Sequence)>,
}

/// See the module. Holds what a pass collects for others.
#[derive(Debug)]
pub(super) struct Dispatcher {
    pub(super) exec: Executor,
    /// Per loop, this one included: requests that this pass hands over.
    requests: Vec<Requests>,
    /// Per loop, this one included: replies to what was handed to this loop.
    replies: Vec<Replies>,
    /// Requests at other loops that are not answered yet, and their bytes (given back together).
    forwarded: usize,
    forwarded_bytes: usize,
    /// Prefixes that must be created before connections can go on.
    pub(super) creations: Vec<(Box<[u8]>, ConnId)>,
    pub(super) scans: Vec<ScanTask>,
    pub(super) waits: Vec<WaitTask>,
    parser: Parser,
    /// Bytes of replies that this pass has executed.
    pub(super) pass_bytes: usize,
}

/// Bytes of replies that all connections may hold; with one large reply more, for each loop.
pub(super) const OUTPUT_BYTES_MAX: usize = 512 << 20;
/// Below this, connections that wait for it go on.
pub(super) const OUTPUT_BYTES_AGAIN: usize = 384 << 20;

/// Whether it would answer from data; writes are refused by role.
fn reads_data(kind: CommandKind) -> bool {
    (kind.spec().first_key != 0 && !kind.spec().writes()) || matches!(kind, CommandKind::Scan | CommandKind::DbSize)
}

impl Dispatcher {
    pub(super) fn new(exec: Executor) -> Self {
        let loops = exec.shared.inboxes.len();
        Self {
            requests: (0..loops).map(|_| Requests::default()).collect(),
            replies: (0..loops).map(|_| Replies::default()).collect(),
            forwarded: 0,
            forwarded_bytes: 0,
            creations: Vec::new(),
            scans: Vec::new(),
            waits: Vec::new(),
            pass_bytes: 0,
            parser: Parser::new(RequestLimits::for_batch(exec.limits.batch)),
            exec,
        }
    }

    /// Whether more may be handed to other loops.
    pub(super) fn has_credit(&self) -> bool {
        self.forwarded < FORWARDED_MAX && self.forwarded_bytes < FORWARDED_BYTES_MAX
    }

    /// Executes one request of a connection, `raw` being its bytes.
    pub(super) fn request(&mut self, session: &mut Session, args: &Args<'_>, raw: &[u8]) -> Step {
        if args.is_empty() {
            return Step::Done;
        }
        let (kind, command) = match command::parse(args) {
            Ok(parsed) => parsed,
            Err(e) => {
                self.exec.errors += 1;
                Reply::new(session.output.tail().0, session.proto).error(&e.to_string());
                if e == CommandError::Http {
                    session.pause = Pause::Closing;
                }
                return Step::Done;
            }
        };
        let step = self.command(session, kind, &command, args, raw);
        if step == Step::Done {
            session.create_error = None;
            self.exec.counts[kind as usize] += 1;
        }
        step
    }

    fn command(
        &mut self,
        session: &mut Session,
        kind: CommandKind,
        command: &Command<'_>,
        args: &Args<'_>,
        raw: &[u8],
    ) -> Step {
        if self.exec.shared.store.is_loading() && reads_data(kind) {
            return self.refuse(session, &Refusal::LoadingStore);
        }
        if kind.spec().first_key != 0 || matches!(kind, CommandKind::Scan | CommandKind::DbSize | CommandKind::FlushDb)
        {
            let writes = kind.spec().writes();
            if self.exec.is_ending() || (writes && self.exec.is_frozen()) {
                return self.freeze(session);
            }
            if let Err(refusal) = self.exec.admit(writes, session.led) {
                if self.exec.is_held(&refusal) {
                    return self.freeze(session);
                }
                if session.led && !self.exec.primary && !matches!(refusal, Refusal::Fenced) {
                    if self.exec.may_relay(session) {
                        session.pause = Pause::Relaying;
                        return Step::Again;
                    }
                    // Its client believes to talk to the primary: it has to look anew for who that is.
                    session.pause = Pause::Closing;
                }
                return self.refuse(session, &refusal);
            }
            session.led |= self.exec.primary;
        }
        match *command {
            Command::MGet(keys) => self.many(session, kind, command, &keys, 1, raw),
            Command::Exists(keys) => self.many(session, kind, command, &keys, 1, raw),
            Command::Del(keys) => self.many(session, kind, command, &keys, 1, raw),
            Command::MSet(pairs) => self.many(session, kind, command, &pairs, 2, raw),
            _ if kind.spec().first_key == 1 => self.one(session, kind, command, args.at(1), raw),
            _ => self.session_command(session, command),
        }
    }

    /// Lets a connection wait until it is known who leads. It asked a primary, if it did so here for the first time.
    fn freeze(&self, session: &mut Session) -> Step {
        session.led |= self.exec.has_led();
        session.pause = Pause::Frozen;
        Step::Again
    }

    /// Writes a refusal as the reply of a connection's request.
    fn refuse(&mut self, session: &mut Session, refusal: &Refusal) -> Step {
        self.exec.refuse_to(refusal, session.output.tail().0);
        Step::Done
    }

    /// A command about one key.
    fn one(
        &mut self,
        session: &mut Session,
        kind: CommandKind,
        command: &Command<'_>,
        whole: &[u8],
        raw: &[u8],
    ) -> Step {
        let (target, key) = self.exec.resolve(whole);
        let index = match target {
            Target::Mine(index) => Some(index),
            Target::Other(shard) => return self.forward(session, shard, raw),
            Target::Unknown => {
                if let Err(refusal) = Executor::new_prefix_name(key.prefix) {
                    return self.refuse(session, &refusal);
                }
                if creates(command) {
                    return self.create(session, key.prefix);
                }
                None
            }
        };
        session.streak.1 = 0;
        self.here(session, At { index, key: key.rest }, kind, command)
    }

    /// The address of a part of a hole in a connection's replies.
    pub(super) fn place(&self, session: &Session, hole: u64, part: u32, counted: bool) -> ReplyTo {
        ReplyTo { shard: self.exec.shard, conn: session.id, hole, part, counted }
    }

    /// Executes a command on this loop's prefixes for one of its own connections.
    fn here(&mut self, session: &mut Session, at: At<'_>, kind: CommandKind, command: &Command<'_>) -> Step {
        let proto = session.proto;
        let (out, segment) = session.output.tail();
        let from = out.len();
        self.exec.execute(at, kind, command, proto, out);
        let to = out.len();
        if to - from > LARGE && !kind.spec().writes() && self.is_full() {
            // Read again when there is room.
            out.truncate(from);
            out.shrink_to(from);
            session.pause = Pause::Memory;
            return Step::Again;
        }
        self.pass_bytes += to - from;
        match self.exec.settle(MarkAt::Conn(session.id, segment), from, to) {
            Settled::Goes => {}
            Settled::Held(ticket, wrote) => {
                if session.output.hold(ticket, from, to, wrote) {
                    self.exec.held(ticket, session.id);
                }
            }
            Settled::Waits(index) => {
                let bytes = out.split_off(from);
                let hole = session.output.hole(Merge::One, 1);
                let to = self.place(session, hole, 0, false);
                self.exec.park(index, Waiter::Reply(to, bytes));
            }
        }
        session.output.note_reply(to - from);
        Step::Done
    }

    /// Whether all connections hold as many bytes of replies as they may.
    fn is_full(&self) -> bool {
        self.exec.shared.output_bytes.load(Ordering::Relaxed) + self.pass_bytes > OUTPUT_BYTES_MAX
    }

    /// Whether connections that wait for room may go on.
    pub(super) fn has_room(&self) -> bool {
        self.exec.shared.output_bytes.load(Ordering::Relaxed) < OUTPUT_BYTES_AGAIN
    }

    /// Has a prefix created, after which the request is read again.
    fn create(&mut self, session: &mut Session, prefix: &[u8]) -> Step {
        if let Some(error) = session.create_error.take() {
            self.exec.errors += 1;
            Reply::new(session.output.tail().0, session.proto).error(&error);
            return Step::Done;
        }
        self.creations.push((prefix.into(), session.id));
        session.pause = Pause::Creating;
        Step::Again
    }

    /// Hands a whole request to another loop.
    fn forward(&mut self, session: &mut Session, shard: usize, raw: &[u8]) -> Step {
        if !self.has_credit() {
            session.pause = Pause::Credit;
            return Step::Again;
        }
        let streak = &mut session.streak;
        *streak = if streak.0 == shard { (shard, streak.1 + 1) } else { (shard, 1) };
        if streak.1 >= session.move_after {
            session.streak = (0, 0);
            session.move_after = session.move_after.saturating_mul(4).min(1 << 24);
            session.pause = Pause::Moving(shard);
            return Step::Again;
        }
        let hole = session.output.hole(Merge::One, 1);
        let to = self.place(session, hole, 0, true);
        self.hand_over(shard, to, session.proto, |bytes| bytes.extend_from_slice(raw));
        Step::Done
    }

    /// Adds a request to what is handed to a loop.
    fn hand_over(&mut self, shard: usize, to: ReplyTo, proto: Proto, write: impl FnOnce(&mut Vec<u8>)) {
        let requests = &mut self.requests[shard];
        let from = requests.bytes.len();
        write(&mut requests.bytes);
        let wanted = Wanted::Command { from, to: requests.bytes.len() };
        self.forwarded_bytes += requests.bytes.len() - from;
        requests.items.push(Forwarded { to, proto, wanted, led: self.exec.primary });
        self.forwarded += 1;
        if shard != self.exec.shard {
            add(&self.exec.stats().forwarded, 1);
        }
    }

    /// A command about several keys, each followed by `step - 1` other arguments.
    fn many(
        &mut self,
        session: &mut Session,
        kind: CommandKind,
        command: &Command<'_>,
        keys: &Args<'_>,
        step: usize,
        raw: &[u8],
    ) -> Step {
        // Groups of keys that are executed apart: per loop, and per prefix where each waits for its own replicas or sync.
        let by_prefix = self.exec.is_gated();
        let mut groups: Vec<(Target, &[u8])> = Vec::new();
        let mut group_of = Vec::new();
        for i in (0..keys.len()).step_by(step) {
            let (target, key) = self.exec.resolve(keys.at(i));
            if target == Target::Unknown {
                if let Err(refusal) = Executor::new_prefix_name(key.prefix) {
                    return self.refuse(session, &refusal);
                }
                if creates(command) {
                    return self.create(session, key.prefix);
                }
            }
            let group = match target {
                _ if by_prefix => (target, key.prefix),
                Target::Mine(_) | Target::Unknown => (Target::Mine(0), &[][..]),
                Target::Other(_) => (target, &[][..]),
            };
            let number = groups.iter().position(|g| *g == group).unwrap_or_else(|| {
                groups.push(group);
                groups.len() - 1
            });
            group_of.push(number as u32);
        }
        match groups.as_slice() {
            [(Target::Other(shard), _)] => self.forward(session, *shard, raw),
            [_, _, ..] => self.split(session, kind, keys, step, &groups, group_of),
            _ => self.here(session, At { index: None, key: &[] }, kind, command),
        }
    }

    fn split(
        &mut self,
        session: &mut Session,
        kind: CommandKind,
        keys: &Args<'_>,
        step: usize,
        groups: &[(Target, &[u8])],
        group_of: Vec<u32>,
    ) -> Step {
        if !self.has_credit() {
            session.pause = Pause::Credit;
            return Step::Again;
        }
        let mut parts: Vec<Vec<&[u8]>> = vec![vec![kind.spec().name.as_bytes()]; groups.len()];
        for (i, group) in group_of.iter().enumerate() {
            parts[*group as usize].extend((0..step).map(|k| keys.at(i * step + k)));
        }
        let merge = match kind {
            CommandKind::MGet => Merge::Items(group_of),
            CommandKind::MSet => Merge::AllOk,
            _ => Merge::Sum,
        };
        let hole = session.output.hole(merge, groups.len());
        for (part, ((target, _), words)) in groups.iter().zip(parts).enumerate() {
            let to = self.place(session, hole, part as u32, true);
            let shard = if let Target::Other(shard) = target { *shard } else { self.exec.shard };
            self.hand_over(shard, to, session.proto, |bytes| push_request(bytes, words.iter().copied()));
        }
        // This loop's own part comes before the connection's next command.
        self.run_own();
        Step::Done
    }

    /// Has every prefix of the store emptied by its loop.
    pub(super) fn flush_all(&mut self, session: &mut Session) -> Step {
        let map = self.exec.shared.store.prefixes();
        if map.by_name.is_empty() {
            Reply::new(session.output.tail().0, session.proto).ok();
            return Step::Done;
        }
        let hole = session.output.hole(Merge::AllOk, map.by_name.len());
        for (part, prefix) in map.by_name.values().enumerate() {
            let to = self.place(session, hole, part as u32, true);
            self.requests[prefix.shard].items.push(Forwarded {
                to,
                proto: session.proto,
                wanted: Wanted::Flush(prefix.uuid),
                led: self.exec.primary,
            });
            self.forwarded += 1;
        }
        self.run_own();
        Step::Done
    }

    /// Executes what another loop, or this one for a split command, handed over, until this pass has executed `most` bytes of
    /// replies; whether all of it was executed.
    pub(super) fn handed_over(&mut self, requests: &mut Requests, most: usize) -> bool {
        while let Some(item) = requests.items.get(requests.done) {
            if self.pass_bytes > most {
                return false;
            }
            requests.done += 1;
            let home = item.to.shard;
            let mut out = std::mem::take(&mut self.replies[home].bytes);
            let from = out.len();
            self.exec.begin_command();
            match item.wanted {
                // The role changed on the way.
                _ if item.led && !self.exec.primary => self.exec.refuse_to(&Refusal::Fenced, &mut out),
                Wanted::Flush(uuid) => self.flush_prefix(uuid, &mut out),
                Wanted::Command { from, to } => self.parse_and_execute(&requests.bytes[from..to], item.proto, &mut out),
            }
            // What was written stays written, so it is answered, however large the answer.
            let repeatable = matches!(item.wanted, Wanted::Command { .. }) && !self.exec.has_written();
            if out.len() - from > LARGE && repeatable && self.is_full() {
                out.truncate(from);
                Reply::new(&mut out, item.proto).error("TRYAGAIN the member holds too many bytes of replies");
            }
            let to = out.len();
            self.pass_bytes += to - from;
            let number = self.replies[home].items.len();
            match self.exec.settle(MarkAt::Item(home, number), from, to) {
                // Only what is written in place is held.
                Settled::Goes | Settled::Held(..) => self.replies[home].items.push((item.to, from, to)),
                Settled::Waits(index) => {
                    let bytes = out.split_off(from);
                    self.exec.park(index, Waiter::Reply(item.to, bytes));
                }
            }
            self.replies[home].bytes = out;
        }
        true
    }

    fn flush_prefix(&mut self, uuid: PrefixUuid, out: &mut Vec<u8>) {
        let done = match self.exec.state_of(uuid) {
            Some(index) => self.exec.flush(index),
            // Dropped in between: it is empty.
            None => Ok(()),
        };
        match done {
            Ok(()) => Reply::new(out, Proto::Two).ok(),
            Err(refusal) => self.exec.refuse_to(&refusal, out),
        }
    }

    fn parse_and_execute(&mut self, raw: &[u8], proto: Proto, out: &mut Vec<u8>) {
        let mut parser =
            std::mem::replace(&mut self.parser, Parser::new(RequestLimits::for_batch(self.exec.limits.batch)));
        if let Ok(Some(_)) = parser.parse(raw) {
            let args = parser.args(raw);
            if let Ok((kind, command)) = command::parse(&args) {
                match (kind.spec().last_key, self.exec.resolve(args.at(1))) {
                    (1, (Target::Other(_), key)) => {
                        let refusal = Refusal::NotServed(String::from_utf8_lossy(key.prefix).into_owned());
                        self.exec.refuse_to(&refusal, out);
                    }
                    (1, (Target::Mine(index), key)) => {
                        self.exec.execute(At { index: Some(index), key: key.rest }, kind, &command, proto, out)
                    }
                    (_, (_, key)) => self.exec.execute(At { index: None, key: key.rest }, kind, &command, proto, out),
                }
            }
        }
        self.parser = parser;
    }

    /// Executes what this loop handed to itself, until nothing is left.
    pub(super) fn run_own(&mut self) {
        let shard = self.exec.shard;
        while !self.requests[shard].items.is_empty() {
            let mut own = std::mem::take(&mut self.requests[shard]);
            self.handed_over(&mut own, usize::MAX);
        }
    }

    /// Sends the other loops what they shall execute.
    pub(super) fn send_requests(&mut self) {
        for (shard, requests) in self.requests.iter_mut().enumerate() {
            if shard != self.exec.shard && !requests.items.is_empty() {
                self.exec.shared.inboxes[shard].push(Message::Requests(std::mem::take(requests)));
            }
        }
    }

    /// Sends the other loops their replies, and answers this loop's own.
    pub(super) fn send_replies(&mut self) -> Replies {
        for (to, bytes) in std::mem::take(&mut self.exec.finished) {
            let replies = &mut self.replies[to.shard];
            let from = replies.bytes.len();
            replies.bytes.extend_from_slice(&bytes);
            replies.items.push((to, from, replies.bytes.len()));
        }
        for (shard, replies) in self.replies.iter_mut().enumerate() {
            if shard != self.exec.shard && !replies.items.is_empty() {
                self.exec.shared.output_bytes.fetch_add(replies.bytes.len(), Ordering::Relaxed);
                self.exec.shared.inboxes[shard].push(Message::Replies(std::mem::take(replies)));
            }
        }
        std::mem::take(&mut self.replies[self.exec.shard])
    }

    /// So many requests were answered.
    pub(super) fn answered(&mut self, count: usize) {
        self.forwarded = self.forwarded.saturating_sub(count);
        if self.forwarded == 0 {
            self.forwarded_bytes = 0;
        }
    }

    /// Puts an error in the place of a reply to another loop.
    pub(super) fn replace_item(&mut self, shard: usize, item: usize, error: &[u8]) {
        let replies = &mut self.replies[shard];
        let from = replies.bytes.len();
        replies.bytes.extend_from_slice(error);
        let to = replies.bytes.len();
        if let Some(place) = replies.items.get_mut(item) {
            (place.1, place.2) = (from, to);
        }
    }
}

/// Whether a command makes its prefix.
fn creates(command: &Command<'_>) -> bool {
    match command {
        Command::Set(set) => set.condition != Condition::IfPresent,
        Command::SetNx(..) | Command::GetSet(..) | Command::IncrBy(..) | Command::MSet(_) => true,
        _ => false,
    }
}
