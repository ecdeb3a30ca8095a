//! One event loop: its sockets, its passes, its timers.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use parovoz_dataplane_core::resp::Reply;
use slab::Slab;

use super::Shared;
use super::conn::{Conn, Pause};
use super::dispatch::{Dispatcher, Step};
use super::exec::{Executor, MarkAt, replace_replies};
use super::message::{ConnId, Inbox, Message, Replies, ReplyTo, Scanned};
use super::scan::Scanner;
use super::stats::add;
use crate::clock;
use crate::store::CreateError;

const WAKE: Token = Token(usize::MAX);
const LISTEN: Token = Token(usize::MAX - 1);
/// Bytes read from a socket at a time.
const READ_BYTES: usize = 64 << 10;
/// Reads from one socket in one pass, so that one client does not hold up the others.
const READS_PER_PASS: usize = 4;
/// Connections accepted in one pass.
const ACCEPTS_PER_PASS: usize = 256;
/// A client that takes nothing of what waits for it for so long is closed.
const STUCK_MS: u64 = 60_000;
/// Bytes that all connections may hold of requests that have not arrived whole.
const INPUT_BYTES_MAX: usize = 1 << 30;
/// Between two looks at timers.
const TICK_MS: u64 = 1000;
/// Between two looks at what nobody wakes the loop for.
const POLL_MS: u64 = 1;
/// How long a stopping loop waits for replies that others owe and for clients to take theirs.
const DRAIN_MS: u64 = 2000;

/// A poll and the inbox whose bell it hears.
pub(super) fn poll() -> io::Result<(Poll, Inbox)> {
    let poll = Poll::new()?;
    let waker = Waker::new(poll.registry(), WAKE)?;
    Ok((poll, Inbox::new(waker)))
}

/// The listener, and which loop gets the next connection.
#[derive(Debug)]
pub(super) struct Listening {
    listener: TcpListener,
    next: usize,
    /// Connections may wait to be accepted.
    ready: bool,
}

impl Listening {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self { listener, next: 0, ready: true }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct EventLoop {
    shared: Arc<Shared>,
    shard: usize,
    poll: Poll,
    listening: Option<Listening>,
    scanner: Scanner,
    conns: Slab<Option<Box<Conn>>>,
    next_serial: u32,
    dispatch: Dispatcher,
    inbox: Vec<Message>,
    /// Connections to read from in this pass.
    ready: Vec<usize>,
    /// Connections whose input may go on in the next pass.
    again: Vec<usize>,
    /// Connections that have something to write, or that must be looked at after the pass.
    dirty: Vec<usize>,
    /// Connections that wait for replies of other loops to come back.
    for_credit: Vec<ConnId>,
    creating: HashMap<Box<[u8]>, Vec<ConnId>>,
    /// Scans that show what replicas may not have yet.
    scanned: Vec<(Box<Scanned>, u64)>,
    parked: usize,
    buffer: Box<[u8]>,
    last_tick: u64,
    draining_since: Option<u64>,
}

impl EventLoop {
    pub(super) fn new(
        shared: Arc<Shared>,
        shard: usize,
        poll: Poll,
        mut listening: Option<Listening>,
        scanner: Scanner,
    ) -> io::Result<Self> {
        if let Some(l) = &mut listening {
            poll.registry().register(&mut l.listener, LISTEN, Interest::READABLE)?;
        }
        Ok(Self {
            dispatch: Dispatcher::new(Executor::new(shared.clone(), shard)),
            shared,
            shard,
            poll,
            listening,
            scanner,
            conns: Slab::new(),
            next_serial: 0,
            inbox: Vec::new(),
            ready: Vec::new(),
            again: Vec::new(),
            dirty: Vec::new(),
            for_credit: Vec::new(),
            creating: HashMap::new(),
            scanned: Vec::new(),
            parked: 0,
            buffer: vec![0; READ_BYTES].into(),
            last_tick: 0,
            draining_since: None,
        })
    }

    /// Runs passes until the loops are stopped or the process must end.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        loop {
            if let Err(e) = self.poll.poll(&mut events, Some(self.timeout())) {
                if e.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                self.shared.fatal.end(&format!("poll sockets: {e}"));
                return;
            }
            self.collect(&events);
            self.pass();
            if let Some(why) = self.dispatch.exec.fatal.take() {
                // Nothing of this pass is answered: nobody knows what is on disk.
                self.shared.fatal.end(&why);
                return;
            }
            self.finish_pass();
            if self.is_drained() {
                return;
            }
        }
    }

    fn timeout(&self) -> Duration {
        if !self.again.is_empty() || self.listening.as_ref().is_some_and(|l| l.ready) {
            return Duration::ZERO;
        }
        let soon = !self.scanned.is_empty() || !self.dispatch.waits.is_empty() || self.draining_since.is_some();
        Duration::from_millis(if soon { POLL_MS } else { TICK_MS })
    }

    /// Notes which sockets have something.
    fn collect(&mut self, events: &Events) {
        std::mem::swap(&mut self.ready, &mut self.again);
        for event in events {
            match event.token() {
                WAKE => {}
                LISTEN => {
                    if let Some(l) = &mut self.listening {
                        l.ready = true;
                    }
                }
                Token(index) => {
                    let Some(Some(conn)) = self.conns.get_mut(index) else { continue };
                    if event.is_readable() || event.is_read_closed() || event.is_error() {
                        conn.readable = true;
                        conn.ending |= event.is_read_closed() || event.is_error();
                        self.ready.push(index);
                    }
                    if event.is_writable() && !conn.session.output.unsent().is_empty() {
                        Self::mark_dirty(&mut self.dirty, conn, index);
                    }
                }
            }
        }
    }

    fn mark_dirty(dirty: &mut Vec<usize>, conn: &mut Conn, index: usize) {
        if !conn.session.dirty {
            conn.session.dirty = true;
            dirty.push(index);
        }
    }

    /// Takes messages, reads sockets, executes, commits.
    fn pass(&mut self) {
        let (wall_ms, boot_ms) = (clock::wall_ms(), clock::boot_ms());
        self.shared.beats[self.shard].store(boot_ms, Ordering::Release);
        let mut inbox = std::mem::take(&mut self.inbox);
        self.shared.inboxes[self.shard].take(&mut inbox);
        // After the inbox was taken: what others saw before they sent, this loop sees now.
        self.dispatch.exec.begin(wall_ms, boot_ms);
        for message in inbox.drain(..) {
            self.message(message);
        }
        self.inbox = inbox;
        self.accept();
        let mut ready = std::mem::take(&mut self.ready);
        for index in ready.drain(..) {
            self.serve(index);
        }
        self.ready = ready;
        self.start_creations();
        self.dispatch.run_own();
        // Others work on these while this loop commits.
        self.dispatch.send_requests();
        self.dispatch.exec.commit_all();
    }

    /// Answers what the pass executed.
    fn finish_pass(&mut self) {
        self.replace_failed();
        self.parked = self.dispatch.exec.release_all();
        self.release_scans();
        let own = self.dispatch.send_replies();
        self.fill_all(&own);
        self.look_at_waits();
        for task in std::mem::take(&mut self.dispatch.scans) {
            if let Err(to) = self.scanner.submit(task) {
                self.fill(to, b"-ERR too many scans are waiting, try again\r\n");
            }
        }
        self.write_all();
        self.dispatch.exec.publish_counts();
        let now = clock::boot_ms();
        if now.saturating_sub(self.last_tick) >= TICK_MS {
            self.last_tick = now;
            self.tick(now);
        }
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Adopt(conn) => self.adopt(conn),
            Message::Requests(requests) => self.dispatch.handed_over(&requests),
            Message::Replies(replies) => self.fill_all(&replies),
            Message::Call(call) => self.dispatch.exec.call(*call),
            Message::Created(name, error) => self.created(&name, error),
            Message::Scanned(scanned) => {
                let deadline = clock::boot_ms() + DRAIN_MS * 5;
                self.scanned.push((scanned, deadline));
            }
        }
    }

    fn accept(&mut self) {
        let Some(listening) = &mut self.listening else { return };
        if !listening.ready || self.draining_since.is_some() {
            listening.ready = false;
            return;
        }
        for _ in 0..ACCEPTS_PER_PASS {
            match listening.listener.accept() {
                Ok((stream, peer)) => {
                    let shard = listening.next % self.shared.inboxes.len();
                    listening.next += 1;
                    let Some(conn) = welcome(&self.shared, self.shard, stream, peer) else { continue };
                    self.shared.inboxes[shard].push(Message::Adopt(conn));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    listening.ready = false;
                    return;
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {}
                Err(e) => {
                    // No descriptors, say: the next tick tries again.
                    tracing::warn!(error = %e, "accept connection");
                    listening.ready = false;
                    return;
                }
            }
        }
    }

    /// Takes a connection in.
    fn adopt(&mut self, mut conn: Box<Conn>) {
        let entry = self.conns.vacant_entry();
        let index = entry.key();
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(e) = self.poll.registry().register(&mut conn.stream, Token(index), interest) {
            tracing::warn!(error = %e, "register connection");
            self.shared.clients.leave(conn.session.client.id);
            return;
        }
        self.next_serial = self.next_serial.wrapping_add(1);
        conn.session.id = ConnId { index: index as u32, serial: self.next_serial };
        conn.session.pause = Pause::None;
        conn.session.dirty = false;
        conn.readable = true;
        entry.insert(Some(conn));
        add(&self.shared.stats[self.shard].connections, 1);
        self.ready.push(index);
    }

    fn conn(&mut self, id: ConnId) -> Option<&mut Box<Conn>> {
        self.conns.get_mut(id.index as usize)?.as_mut().filter(|c| c.session.id == id)
    }

    /// Executes what a connection has sent, as far as it may.
    fn serve(&mut self, index: usize) {
        let Some(mut conn) = self.conns.get_mut(index).and_then(Option::take) else { return };
        let mut open = self.run_input(&mut conn);
        let mut reads = 0;
        while open && conn.readable && conn.session.may_run() && self.draining_since.is_none() {
            if reads == READS_PER_PASS {
                self.again.push(index);
                break;
            }
            reads += 1;
            open = self.read(&mut conn);
        }
        if open {
            Self::mark_dirty(&mut self.dirty, &mut conn, index);
            self.conns[index] = Some(conn);
        } else {
            self.conns[index] = Some(conn);
            self.close(index);
        }
    }

    /// Reads once and executes; false = the connection is over.
    fn read(&mut self, conn: &mut Conn) -> bool {
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = conn.stream.read(&mut buffer);
        let open = match result {
            Ok(0) => {
                // What it asked for before is still answered.
                conn.readable = false;
                conn.session.pause = Pause::Closing;
                true
            }
            Ok(len) => {
                // A short read means that there is no more; but the end of the stream is told only once.
                conn.readable = len == buffer.len() || conn.ending;
                add(&self.shared.stats[self.shard].bytes_in, len as u64);
                self.take_input(conn, &buffer[..len])
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                conn.readable = false;
                true
            }
            Err(e) => e.kind() == io::ErrorKind::Interrupted,
        };
        self.buffer = buffer;
        open
    }

    /// Executes what was read, with what was left before it; keeps the rest.
    fn take_input(&mut self, conn: &mut Conn, bytes: &[u8]) -> bool {
        if !conn.input.is_empty() {
            if !self.reserve_input(conn, bytes.len()) {
                return false;
            }
            conn.input.extend_from_slice(bytes);
            return self.run_input(conn);
        }
        let used = self.run_requests(conn, bytes);
        if used < bytes.len() && conn.session.pause != Pause::Closing {
            if !self.reserve_input(conn, bytes.len() - used) {
                return false;
            }
            conn.input.extend_from_slice(&bytes[used..]);
        }
        true
    }

    /// Executes what is left from before.
    fn run_input(&mut self, conn: &mut Conn) -> bool {
        if conn.input.is_empty() || (!conn.stalled && conn.parser.wanted() > conn.input.len()) {
            return true;
        }
        let mut input = std::mem::take(&mut conn.input);
        let used = self.run_requests(conn, &input);
        if used == input.len() || conn.session.pause == Pause::Closing {
            self.shared.input_bytes.fetch_sub(input.capacity(), Ordering::Relaxed);
        } else {
            input.drain(..used);
            conn.input = input;
        }
        true
    }

    /// Makes room for more input; false = all connections together hold too much.
    fn reserve_input(&self, conn: &mut Conn, len: usize) -> bool {
        let wanted = conn.parser.wanted().saturating_sub(conn.input.len()).max(len);
        if conn.input.capacity() - conn.input.len() >= wanted {
            return true;
        }
        let before = conn.input.capacity();
        conn.input.reserve(wanted);
        let grown = conn.input.capacity() - before;
        let held = self.shared.input_bytes.fetch_add(grown, Ordering::Relaxed) + grown;
        if held > INPUT_BYTES_MAX {
            let (out, _) = conn.session.output.tail();
            Reply::new(out, conn.session.proto).error("ERR the member holds too many bytes of unfinished requests");
            let _ = conn.stream.write(conn.session.output.unsent());
            return false;
        }
        true
    }

    /// Executes the whole requests in `bytes`, as far as the connection may go on; answers how many bytes that were.
    fn run_requests(&mut self, conn: &mut Conn, bytes: &[u8]) -> usize {
        let Conn { parser, session, .. } = conn;
        let mut used = 0;
        while session.may_run() {
            let rest = &bytes[used..];
            match parser.parse(rest) {
                Ok(None) => break,
                Ok(Some(len)) => match self.dispatch.request(session, &parser.args(rest), &rest[..len]) {
                    Step::Done => used += len,
                    Step::Again => {
                        parser.reset();
                        break;
                    }
                },
                Err(e) => {
                    self.dispatch.exec.errors += 1;
                    Reply::new(session.output.tail().0, session.proto).error(&format!("ERR {e}"));
                    session.pause = Pause::Closing;
                    break;
                }
            }
        }
        conn.stalled = !session.may_run();
        if session.pause == Pause::Credit {
            self.for_credit.push(session.id);
        }
        used
    }

    /// Asks for the prefixes that connections of this pass wait for.
    fn start_creations(&mut self) {
        for (name, id) in std::mem::take(&mut self.dispatch.creations) {
            let waiting = self.creating.entry(name.clone()).or_default();
            waiting.push(id);
            if waiting.len() > 1 {
                continue;
            }
            let inbox = self.shared.inboxes[self.shard].clone();
            match Executor::new_prefix_name(&name) {
                Ok(prefix) => {
                    let reply = move |result: Result<_, CreateError>| inbox.push(Message::Created(name, result.err()));
                    self.shared.store.create_prefix(prefix, Box::new(reply));
                }
                Err(_) => inbox.push(Message::Created(name, None)),
            }
        }
    }

    fn created(&mut self, name: &[u8], error: Option<CreateError>) {
        let error = error.map(|e| match e {
            CreateError::NotPrimary => self.dispatch.exec.read_only().to_string(),
            other => format!("ERR {other}"),
        });
        for id in self.creating.remove(name).unwrap_or_default() {
            let error = error.clone();
            if let Some(conn) = self.conn(id)
                && conn.session.pause == Pause::Creating
            {
                conn.session.pause = Pause::None;
                conn.session.create_error = error;
                self.ready.push(id.index as usize);
            }
        }
    }

    /// Turns the replies of batches that were not committed into errors.
    fn replace_failed(&mut self) {
        let failed = self.dispatch.exec.take_failed();
        let mut done: Vec<MarkAt> = Vec::new();
        for (mark, error) in &failed {
            match mark.at {
                MarkAt::Item(shard, item) => self.dispatch.replace_item(shard, item, error),
                MarkAt::Conn(..) if done.contains(&mark.at) => {}
                MarkAt::Conn(id, segment) => {
                    done.push(mark.at);
                    let mut ranges: Vec<(usize, usize, &[u8])> =
                        failed.iter().filter(|(m, _)| m.at == mark.at).map(|(m, e)| (m.from, m.to, e.as_slice())).collect();
                    ranges.sort_unstable_by_key(|r| r.0);
                    if let Some(bytes) = self.conn(id).and_then(|c| c.session.output.segment(segment)) {
                        replace_replies(bytes, &ranges);
                    }
                }
            }
        }
    }

    fn fill_all(&mut self, replies: &Replies) {
        for (to, from, end) in &replies.items {
            self.fill(*to, &replies.bytes[*from..*end]);
        }
        let counted = replies.items.iter().filter(|(to, ..)| to.counted).count();
        self.dispatch.answered(counted);
        if counted > 0 && !self.for_credit.is_empty() && self.dispatch.has_credit() {
            for id in std::mem::take(&mut self.for_credit) {
                self.resume(id, Pause::Credit);
            }
        }
    }

    /// Puts a reply where it belongs.
    fn fill(&mut self, to: ReplyTo, bytes: &[u8]) {
        let index = to.conn.index as usize;
        let Some(Some(conn)) = self.conns.get_mut(index) else { return };
        if conn.session.id != to.conn {
            return;
        }
        conn.session.output.fill(to.hole, to.part, bytes);
        Self::mark_dirty(&mut self.dirty, conn, index);
    }

    /// Lets a connection go on that was paused for this reason.
    fn resume(&mut self, id: ConnId, pause: Pause) {
        if let Some(conn) = self.conn(id)
            && conn.session.pause == pause
        {
            conn.session.pause = Pause::None;
            self.again.push(id.index as usize);
        }
    }

    /// Answers scans whose contents replicas have by now.
    fn release_scans(&mut self) {
        let gated = self.dispatch.exec.primary && self.dispatch.exec.required > 0;
        let now = clock::boot_ms();
        for (scanned, deadline) in std::mem::take(&mut self.scanned) {
            if !gated || scanned.seen.iter().all(|(prefix, sequence)| prefix.released() >= *sequence) {
                self.fill(scanned.to, &scanned.bytes);
            } else if now >= deadline {
                self.fill(scanned.to, b"-TRYAGAIN not enough replicas confirmed what the scan has seen\r\n");
            } else {
                self.scanned.push((scanned, deadline));
            }
        }
    }

    /// Answers each `WAIT` that has enough replicas or whose time is over.
    fn look_at_waits(&mut self) {
        let shared = self.shared.clone();
        let now = clock::boot_ms();
        for mut wait in std::mem::take(&mut self.dispatch.waits) {
            if wait.positions.is_empty() {
                let map = shared.store.prefixes();
                wait.positions = map.by_name.values().map(|p| (p.uuid, p.applied())).collect();
            }
            let followers = shared.followers.get();
            let acked = followers.map_or(0, |f| {
                let least = wait.positions.iter().map(|(uuid, sequence)| f.acked(*uuid, *sequence)).min();
                least.unwrap_or_else(|| f.connected())
            });
            if acked as u64 >= wait.replicas || wait.deadline.is_some_and(|d| now >= d) {
                let mut bytes = Vec::new();
                Reply::new(&mut bytes, Default::default()).count(acked as u64);
                self.fill(wait.to, &bytes);
            } else if self.conn(wait.to.conn).is_some() {
                self.dispatch.waits.push(wait);
            }
        }
    }

    /// Writes what waits, closes and moves what is ready for it, resumes what may go on.
    fn write_all(&mut self) {
        for index in std::mem::take(&mut self.dirty) {
            let Some(Some(conn)) = self.conns.get_mut(index) else { continue };
            conn.session.dirty = false;
            if !write(&self.shared, self.shard, conn) {
                self.close(index);
                continue;
            }
            let session = &mut conn.session;
            let answered = session.output.holes() == 0;
            match session.pause {
                Pause::Closing if answered && session.output.unsent().is_empty() => self.close(index),
                Pause::Moving(shard) if answered => self.hand_to(index, shard),
                Pause::Holes if answered => {
                    session.pause = Pause::None;
                    self.again.push(index);
                }
                // Stopped by its own output, or in the middle of its input: goes on once that is taken.
                Pause::None if session.may_run() && (conn.readable || conn.stalled) => self.again.push(index),
                _ => {}
            }
        }
        // A connection is looked at once a pass.
        self.again.sort_unstable();
        self.again.dedup();
    }

    /// Moves a connection to another loop.
    fn hand_to(&mut self, index: usize, shard: usize) {
        let Some(mut conn) = self.conns.try_remove(index).flatten() else { return };
        add(&self.shared.stats[self.shard].moved, 1);
        self.shared.stats[self.shard].connections.fetch_sub(1, Ordering::Relaxed);
        match self.poll.registry().deregister(&mut conn.stream) {
            Ok(()) => self.shared.inboxes[shard].push(Message::Adopt(conn)),
            Err(e) => {
                tracing::warn!(error = %e, "deregister connection");
                self.forget(&conn);
            }
        }
    }

    fn close(&mut self, index: usize) {
        let Some(mut conn) = self.conns.try_remove(index).flatten() else { return };
        self.shared.stats[self.shard].connections.fetch_sub(1, Ordering::Relaxed);
        // Both are gone with the socket in any case.
        let _ = self.poll.registry().deregister(&mut conn.stream);
        let _ = conn.stream.shutdown(Shutdown::Write);
        self.forget(&conn);
    }

    fn forget(&self, conn: &Conn) {
        self.shared.input_bytes.fetch_sub(conn.input.capacity(), Ordering::Relaxed);
        self.shared.clients.leave(conn.session.client.id);
    }

    fn tick(&mut self, now: u64) {
        if let Some(l) = &mut self.listening {
            l.ready = true;
        }
        let stuck: Vec<usize> = self
            .conns
            .iter()
            .filter(|(_, c)| c.as_ref().is_some_and(|c| c.stuck_since > 0 && now.saturating_sub(c.stuck_since) > STUCK_MS))
            .map(|(index, _)| index)
            .collect();
        for index in stuck {
            add(&self.shared.stats[self.shard].stuck_closed, 1);
            self.close(index);
        }
    }

    /// Whether a stopping loop has nothing left to do.
    fn is_drained(&mut self) -> bool {
        if !self.shared.stopping.load(Ordering::Acquire) {
            return false;
        }
        let now = clock::boot_ms();
        let since = *self.draining_since.get_or_insert(now);
        let owes = |c: &Option<Box<Conn>>| {
            c.as_ref().is_some_and(|c| c.session.output.holes() > 0 || !c.session.output.unsent().is_empty())
        };
        let busy = self.parked > 0 || self.conns.iter().any(|(_, c)| owes(c)) || self.shared.inboxes[self.shard].is_rung();
        self.shared.drained[self.shard].store(!busy, Ordering::Release);
        self.shared.drained.iter().all(|d| d.load(Ordering::Acquire)) || now.saturating_sub(since) >= DRAIN_MS
    }
}

/// Enters an accepted connection, or refuses it if there are too many.
fn welcome(shared: &Shared, shard: usize, mut stream: TcpStream, peer: SocketAddr) -> Option<Box<Conn>> {
    let Some(client) = shared.clients.enter(Some(peer), stream.local_addr().ok(), shared.max_connections) else {
        add(&shared.stats[shard].refused, 1);
        // Best effort: the client sees a closed connection otherwise.
        let _ = stream.write(b"-ERR max number of clients reached\r\n");
        return None;
    };
    add(&shared.stats[shard].accepted, 1);
    if let Err(e) = stream.set_nodelay(true) {
        tracing::debug!(error = %e, "set TCP_NODELAY");
    }
    Some(Box::new(Conn::new(stream, client, shared.store.limits.batch)))
}

/// Writes as much as the client takes; false = the connection is over.
fn write(shared: &Shared, shard: usize, conn: &mut Conn) -> bool {
    loop {
        let unsent = conn.session.output.unsent();
        if unsent.is_empty() {
            conn.stuck_since = 0;
            return true;
        }
        match conn.stream.write(unsent) {
            Ok(0) => return false,
            Ok(sent) => {
                conn.session.output.advance(sent);
                conn.stuck_since = 0;
                add(&shared.stats[shard].bytes_out, sent as u64);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if conn.stuck_since == 0 {
                    conn.stuck_since = clock::boot_ms();
                }
                return true;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}
