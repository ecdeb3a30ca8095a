//! One event loop: its sockets, its passes, its timers.

mod ending;

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use parovoz_dataplane_core::resp::Reply;
use slab::Slab;
use socket2::TcpKeepalive;

use super::Shared;
use super::conn::{Conn, Pause};
use super::dispatch::{Dispatcher, Step};
use super::exec::Executor;
use super::message::{ConnId, Inbox, Message, Scanned};
use super::scan::Scanner;
use super::stats::add;
use super::syncer::Syncer;
use crate::clock;
use crate::config::TCP_KEEPALIVE;
use crate::store::CreateError;

const WAKE: Token = Token(usize::MAX);
const LISTEN: Token = Token(usize::MAX - 1);
/// Bytes read from a socket at a time.
const READ_BYTES: usize = 64 << 10;
/// Reads from one socket in one pass, so that one client does not hold up the others.
const READS_PER_PASS: usize = 4;
/// Connections accepted in one pass.
const ACCEPTS_PER_PASS: usize = 256;
/// Bytes of replies executed in a pass from which on heavy connections wait for the next one.
const PASS_BYTES: usize = 4 << 20;
/// Bytes written to a socket in one pass.
const WRITE_BYTES: usize = 1 << 20;
/// A client that takes nothing of what waits for it for so long is closed.
const STUCK_MS: u64 = 60_000;
/// Bytes that all connections may hold of requests that have not arrived whole.
const INPUT_BYTES_MAX: usize = 1 << 30;
/// Between two looks at timers.
const TICK_MS: u64 = 1000;
/// Between two looks at what nobody wakes the loop for.
const POLL_MS: u64 = 1;
/// Positions that replicas may have, looked at for `WAIT` in a millisecond of a second at most.
const WAITS_PER_MS: u64 = 2_000;
/// Room for the first bytes of an unfinished request.
const INPUT_FIRST: usize = 64 << 10;
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
    /// Connections whose next command waits until writes are no longer frozen, or the reign has changed.
    frozen: Vec<ConnId>,
    /// Connections that wait for room for their replies.
    for_memory: Vec<ConnId>,
    creating: HashMap<Box<[u8]>, Vec<ConnId>>,
    /// Scans that show what replicas may not have yet.
    scanned: Vec<(Box<Scanned>, u64)>,
    parked: usize,
    buffer: Box<[u8]>,
    last_tick: u64,
    /// When to look at `WAIT`s again.
    next_waits: u64,
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
        let mut exec = Executor::new(shared.clone(), shard);
        exec.set_syncer(Syncer::start(&shared, shard)?);
        if let Some(l) = &mut listening {
            poll.registry().register(&mut l.listener, LISTEN, Interest::READABLE)?;
        }
        Ok(Self {
            dispatch: Dispatcher::new(exec),
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
            frozen: Vec::new(),
            for_memory: Vec::new(),
            creating: HashMap::new(),
            scanned: Vec::new(),
            parked: 0,
            buffer: vec![0; READ_BYTES].into(),
            last_tick: 0,
            next_waits: 0,
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
        if !self.again.is_empty()
            || !self.dirty.is_empty()
            || !self.inbox.is_empty()
            || self.listening.as_ref().is_some_and(|l| l.ready)
        {
            return Duration::ZERO;
        }
        let soon = !self.scanned.is_empty()
            || !self.dispatch.waits.is_empty()
            || !self.frozen.is_empty()
            || !self.for_memory.is_empty()
            || self.draining_since.is_some();
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
        self.dispatch.pass_bytes = 0;
        // After the inbox was taken: what others saw before they sent, this loop sees now.
        self.dispatch.exec.begin(wall_ms, boot_ms);
        self.thaw();
        self.take_synced();
        let mut messages = inbox.into_iter();
        for message in messages.by_ref() {
            if let Some(left) = self.message(message) {
                // The others may be about the same connections: they keep their order.
                self.inbox.push(left);
                break;
            }
        }
        self.inbox.extend(messages);
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
        self.dispatch.exec.begin_sync();
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
        if !self.for_memory.is_empty() && self.dispatch.has_room() {
            for id in std::mem::take(&mut self.for_memory) {
                self.resume(id, Pause::Memory);
            }
        }
        self.dispatch.exec.publish_counts();
        self.shared.inboxes[self.shard].end_pass(self.dispatch.exec.is_syncing());
        let now = clock::boot_ms();
        if now.saturating_sub(self.last_tick) >= TICK_MS {
            self.last_tick = now;
            self.tick(now);
        }
    }

    /// Takes a message; gives back what must wait for the next pass.
    fn message(&mut self, message: Message) -> Option<Message> {
        match message {
            Message::Adopt(conn) => self.adopt(conn),
            Message::Requests(mut requests) => {
                if !self.dispatch.handed_over(&mut requests, PASS_BYTES) {
                    return Some(Message::Requests(requests));
                }
            }
            Message::Replies(replies) => {
                self.fill_all(&replies);
                self.shared.output_bytes.fetch_sub(replies.bytes.len(), Ordering::Relaxed);
            }
            Message::Call(call) => self.dispatch.exec.call(*call),
            Message::Created(name, error) => self.created(&name, error),
            Message::Scanned(scanned) => {
                let deadline = clock::boot_ms() + DRAIN_MS * 5;
                self.scanned.push((scanned, deadline));
            }
        }
        None
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
        let Some(place) = self.conns.get_mut(index) else { return };
        let Some(mut conn) = place.take() else { return };
        if self.dispatch.pass_bytes > PASS_BYTES && conn.session.output.is_heavy() {
            *place = Some(conn);
            self.again.push(index);
            return;
        }
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
        conn.input_since = clock::boot_ms();
        // What a request announces counts only as far as it has come: room grows with what is there.
        let announced = conn.parser.wanted().saturating_sub(conn.input.len());
        let wanted = announced.min(conn.input.len().max(INPUT_FIRST)).max(len);
        if conn.input.capacity() - conn.input.len() >= wanted {
            return true;
        }
        let before = conn.input.capacity();
        conn.input.reserve_exact(wanted);
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
        match session.pause {
            Pause::Credit => self.for_credit.push(session.id),
            Pause::Frozen => self.frozen.push(session.id),
            Pause::Memory => self.for_memory.push(session.id),
            _ => {}
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
    let socket = socket2::SockRef::from(&stream);
    let keepalive = TcpKeepalive::new().with_time(TCP_KEEPALIVE).with_interval(TCP_KEEPALIVE / 10);
    if let Err(e) = stream.set_nodelay(true).and_then(|()| socket.set_tcp_keepalive(&keepalive)) {
        tracing::debug!(error = %e, "set TCP_NODELAY and SO_KEEPALIVE");
    }
    Some(Box::new(Conn::new(stream, client, shared.store.limits.batch)))
}
