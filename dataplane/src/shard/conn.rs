//! One client's connection: what it sent and is not yet executed, and what it is owed, in order.

use std::collections::VecDeque;
use std::sync::Arc;

use mio::net::TcpStream;
use parovoz_dataplane_core::resp::reply::{push_int, reply_len};
use parovoz_dataplane_core::resp::{Parser, Proto, RequestLimits};

use super::clients::ClientEntry;
use super::message::ConnId;

/// Bytes that wait for the client to read, from which on nothing more of it is executed.
pub(super) const OUTPUT_PAUSE: usize = 1 << 20;
/// Sent bytes from which on their place is given back before all are sent.
const COMPACT_FROM: usize = 64 << 10;
/// Replies that wait for other loops or for replicas, from which on nothing more of it is executed.
pub(super) const HOLES_MAX: usize = 4 << 10;
/// Replies that a new connection may have open at other loops.
const HOLES_FIRST: usize = 2;
/// What the open replies of a connection may come to, by the size of its latest ones.
const HOLES_BYTES: usize = 8 << 20;
/// A reply from which on its connection counts as heavy: it waits while others are served.
pub(super) const LARGE: usize = 64 << 10;
/// A reply of several parts that would be larger is refused.
pub(super) const REPLY_MAX: usize = 512 << 20;

/// How the parts of a reply become one.
#[derive(Debug)]
pub(super) enum Merge {
    /// There is only one.
    One,
    /// Integers are added.
    Sum,
    /// `OK` if all are.
    AllOk,
    /// Arrays; says for each item, which part it is taken from.
    Items(Vec<u32>),
}

/// A reply that is not known yet.
#[derive(Debug)]
struct Hole {
    merge: Merge,
    left: usize,
    parts: Vec<Vec<u8>>,
}

/// What bytes wait for: that a group of writes is durable in one prefix, which has this number at its loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Ticket {
    pub(super) index: usize,
    pub(super) group: u64,
}

/// Replies in `ready` that wait, from where to where.
#[derive(Debug)]
struct Held {
    ticket: Ticket,
    from: usize,
    to: usize,
    /// They are about writes.
    wrote: bool,
}

#[derive(Debug)]
enum Segment {
    Bytes(Vec<u8>),
    Hole(Hole),
}

/// Replies in the order of the requests: bytes that may go out, then holes and what comes after them.
#[derive(Debug, Default)]
pub(super) struct Output {
    ready: Vec<u8>,
    sent: usize,
    later: VecDeque<Segment>,
    /// Number of the first segment of `later`.
    first: u64,
    holes: usize,
    /// Bytes in the segments that are followed by a hole.
    enclosed: usize,
    /// Bytes in filled parts of holes.
    filled: usize,
    /// Holes that may be open, apart from what large replies allow: grows as replies come back.
    allowed: usize,
    /// Size of the larger ones of the latest replies from other loops.
    reply_size: usize,
    /// Bytes of it in the count over all connections.
    counted: usize,
    /// Size of the reply executed last.
    last_reply: usize,
    /// What waits until a group of writes is durable, in the order of the bytes.
    held: VecDeque<Held>,
    /// Bytes were exchanged: where which of `held` stands is not known any more.
    moved: bool,
}

/// Says that replies go to the bytes that may go out, not to a segment.
pub(super) const READY: u64 = u64::MAX;

impl Output {
    /// Where the next reply is written, and the number to find it again.
    pub(super) fn tail(&mut self) -> (&mut Vec<u8>, u64) {
        if self.later.is_empty() {
            return (&mut self.ready, READY);
        }
        if !matches!(self.later.back(), Some(Segment::Bytes(_))) {
            self.later.push_back(Segment::Bytes(Vec::new()));
        }
        let number = self.first + self.later.len() as u64 - 1;
        match self.later.back_mut() {
            Some(Segment::Bytes(bytes)) => (bytes, number),
            _ => (&mut self.ready, READY),
        }
    }

    /// The bytes that [`Output::tail`] gave under this number.
    pub(super) fn segment(&mut self, number: u64) -> Option<&mut Vec<u8>> {
        if number == READY {
            return Some(&mut self.ready);
        }
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        match self.later.get_mut(index) {
            Some(Segment::Bytes(bytes)) => Some(bytes),
            _ => None,
        }
    }

    /// Leaves a place for a reply that comes later, in so many parts.
    pub(super) fn hole(&mut self, merge: Merge, parts: usize) -> u64 {
        if let Some(Segment::Bytes(bytes)) = self.later.back() {
            self.enclosed += bytes.len();
        }
        self.later.push_back(Segment::Hole(Hole { merge, left: parts, parts: vec![Vec::new(); parts] }));
        self.holes += 1;
        self.first + self.later.len() as u64 - 1
    }

    /// Puts a part of a reply into its place.
    pub(super) fn fill(&mut self, number: u64, part: u32, bytes: &[u8]) {
        let Some(index) = number.checked_sub(self.first).and_then(|i| usize::try_from(i).ok()) else { return };
        let Some(Segment::Hole(hole)) = self.later.get_mut(index) else { return };
        let Some(place) = hole.parts.get_mut(part as usize) else { return };
        if place.is_empty() {
            place.extend_from_slice(bytes);
            hole.left -= 1;
            self.filled += bytes.len();
            self.allowed = (self.allowed + 1).min(HOLES_MAX);
            self.reply_size = bytes.len().max(self.reply_size - self.reply_size / 8);
        }
        while let Some(front) = self.later.front_mut() {
            match front {
                Segment::Bytes(bytes) => {
                    self.enclosed = self.enclosed.saturating_sub(bytes.len());
                    move_to(&mut self.ready, bytes);
                }
                Segment::Hole(hole) if hole.left > 0 => return,
                Segment::Hole(hole) => {
                    self.filled = self.filled.saturating_sub(hole.parts.iter().map(Vec::len).sum());
                    merge(hole, &mut self.ready);
                    self.holes -= 1;
                }
            }
            self.later.pop_front();
            self.first += 1;
        }
    }

    /// Replies that are not known yet.
    pub(super) fn holes(&self) -> usize {
        self.holes
    }

    /// Whether one more reply may be left open. How large replies are is known only once they come, so a connection begins
    /// with few and may have more as long as they are small.
    pub(super) fn may_wait(&self) -> bool {
        let by_size = HOLES_BYTES / self.reply_size.max(1);
        self.holes < (HOLES_FIRST + self.allowed).min(by_size).clamp(1, HOLES_MAX)
    }

    /// Bytes that wait, for the client to read, for a group to be durable or for a hole to be filled.
    pub(super) fn waiting(&self) -> usize {
        let last = if let Some(Segment::Bytes(bytes)) = self.later.back() { bytes.len() } else { 0 };
        self.ready.len() - self.sent + self.enclosed + self.filled + last + self.held.len() * size_of::<Held>()
    }

    /// Bytes that may go out.
    pub(super) fn unsent(&self) -> &[u8] {
        let end = self.held.front().map_or(self.ready.len(), |held| held.from);
        &self.ready[self.sent..end.max(self.sent)]
    }

    /// Whether anything is owed: unknown replies, or bytes that have not gone out.
    pub(super) fn owes(&self) -> bool {
        self.holes > 0 || self.ready.len() > self.sent
    }

    /// Holds replies from `from` to `to` in what [`Output::tail`] gave as [`READY`] until this is durable, and so what comes
    /// after them; answers whether the last reply held before waits for something else.
    pub(super) fn hold(&mut self, ticket: Ticket, from: usize, to: usize, wrote: bool) -> bool {
        let news = self.held.back().is_none_or(|last| last.ticket != ticket);
        match self.held.back_mut() {
            Some(last) if !news && last.to == from && last.wrote == wrote => last.to = to,
            _ => self.held.push_back(Held { ticket, from, to, wrote }),
        }
        news
    }

    /// Bytes were exchanged for others: what may still go out waits for the first group that something waits for.
    pub(super) fn hold_all(&mut self) {
        for held in &mut self.held {
            held.from = self.sent;
        }
        self.moved = !self.held.is_empty();
    }

    /// All groups of a prefix up to this one are durable.
    pub(super) fn let_go(&mut self, ticket: Ticket) {
        self.held.retain(|held| held.ticket.index != ticket.index || held.ticket.group > ticket.group);
        self.moved &= !self.held.is_empty();
    }

    /// Puts an error in the place of every reply that waits for exactly this: the first one where it is about a write, else the
    /// second. Answers how many there were; `None` if nobody knows which they are.
    pub(super) fn give_up(&mut self, ticket: Ticket, errors: &[Vec<u8>; 2]) -> Option<usize> {
        if self.moved {
            return None;
        }
        let (mut out, mut at, mut count) = (Vec::with_capacity(self.ready.len()), 0, 0);
        for mut held in std::mem::take(&mut self.held) {
            out.extend_from_slice(&self.ready[at..held.from]);
            at = held.to;
            let mut replies = &self.ready[held.from..held.to];
            held.from = out.len();
            if held.ticket == ticket {
                while !replies.is_empty() {
                    replies = &replies[reply_len(replies).unwrap_or(replies.len())..];
                    out.extend_from_slice(&errors[usize::from(!held.wrote)]);
                    count += 1;
                }
            } else {
                out.extend_from_slice(replies);
                held.to = out.len();
                self.held.push_back(held);
            }
        }
        out.extend_from_slice(&self.ready[at..]);
        self.ready = out;
        Some(count)
    }

    /// A reply of so many bytes was executed.
    pub(super) fn note_reply(&mut self, len: usize) {
        self.last_reply = len;
    }

    /// Whether what it asked for last was large.
    pub(super) fn is_heavy(&self) -> bool {
        self.last_reply.max(self.reply_size) > LARGE
    }

    /// What it counts from now on over all connections, and what it counted before. What went out and is still here counts.
    pub(super) fn recount(&mut self) -> (usize, usize) {
        let now = self.waiting() + self.sent;
        (now, std::mem::replace(&mut self.counted, now))
    }

    /// Whether bytes wait for a group to be durable.
    pub(super) fn is_held(&self) -> bool {
        !self.held.is_empty()
    }

    /// So many of them went out.
    pub(super) fn advance(&mut self, sent: usize) {
        self.sent += sent;
        // A client that is always a little behind keeps no more than as much again as it has not taken. Moving at most as many
        // bytes as were sent makes each of them move once.
        let mostly_sent = self.sent >= COMPACT_FROM && self.sent >= self.ready.len() - self.sent;
        if self.sent == self.ready.len() || mostly_sent {
            self.ready.drain(..self.sent);
            for held in &mut self.held {
                // Where bytes were exchanged, an end may be before what is held.
                (held.from, held.to) = (held.from.saturating_sub(self.sent), held.to.saturating_sub(self.sent));
            }
            self.sent = 0;
            if self.ready.capacity() > OUTPUT_PAUSE.max(self.ready.len() * 4) {
                self.ready.shrink_to(self.ready.len());
            }
        }
    }
}

/// Appends bytes, without a copy where there is nothing before them: they may be many.
fn move_to(out: &mut Vec<u8>, bytes: &mut Vec<u8>) {
    if out.is_empty() && bytes.len() > LARGE {
        *out = std::mem::take(bytes);
    } else {
        out.append(bytes);
    }
}

/// Joins the parts of a reply; an error in any part is the reply.
fn merge(hole: &mut Hole, out: &mut Vec<u8>) {
    if let Some(error) = hole.parts.iter().find(|p| p.first() == Some(&b'-')) {
        out.extend_from_slice(error);
        return;
    }
    match &hole.merge {
        Merge::One | Merge::AllOk => move_to(out, &mut hole.parts[0]),
        Merge::Sum => {
            let number =
                |p: &Vec<u8>| parovoz_dataplane_core::resp::parser::integer(p.get(1..p.len().saturating_sub(2))?);
            let sum = hole.parts.iter().filter_map(number).fold(0i64, i64::saturating_add);
            out.push(b':');
            push_int(out, sum);
            out.extend_from_slice(b"\r\n");
        }
        Merge::Items(order) => {
            if hole.parts.iter().map(Vec::len).sum::<usize>() > REPLY_MAX {
                out.extend_from_slice(b"-ERR the reply would be too large: ask for fewer keys\r\n");
                return;
            }
            out.push(b'*');
            push_int(out, order.len() as i64);
            out.extend_from_slice(b"\r\n");
            let head = |p: &Vec<u8>| p.iter().position(|b| *b == b'\n').map_or(p.len(), |at| at + 1);
            let mut at: Vec<usize> = hole.parts.iter().map(head).collect();
            for part in order {
                let (part, from) = (&hole.parts[*part as usize], &mut at[*part as usize]);
                let len = reply_len(&part[*from..]).unwrap_or(0);
                out.extend_from_slice(&part[*from..*from + len]);
                *from += len;
            }
        }
    }
}

/// Why nothing more of a connection's input is executed at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Pause {
    /// It is executed.
    #[default]
    None,
    /// The next command must see the outcome of all before it.
    Holes,
    /// Too many requests of this loop are at other loops.
    Credit,
    /// All connections together hold too many bytes of replies.
    Memory,
    /// A prefix is being created.
    Creating,
    /// Writes are frozen, or the reign changes.
    Frozen,
    /// It goes to the member that leads now, once all its replies are written.
    Relaying,
    /// It moves to this loop once all its replies are known.
    Moving(usize),
    /// It is closed once all its replies are written.
    Closing,
}

/// What commands see of their connection.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: ConnId,
    pub(super) proto: Proto,
    pub(super) output: Output,
    pub(super) pause: Pause,
    /// Why the prefix that its next command needs was not created.
    pub(super) create_error: Option<String>,
    pub(super) client: Arc<ClientEntry>,
    /// The loop that the last requests were forwarded to, and how many in a row.
    pub(super) streak: (usize, u32),
    /// How long a streak moves the connection; grows with every move, so that it settles.
    pub(super) move_after: u32,
    /// Already in the list of those that have something to write.
    pub(super) dirty: bool,
    /// It was served by a primary here, so it is shown no replica's data.
    pub(super) led: bool,
    /// A former primary relays it: it is not relayed again.
    pub(super) relayed: bool,
}

impl Session {
    /// Whether more of its input may be executed.
    pub(super) fn may_run(&self) -> bool {
        self.pause == Pause::None && self.output.may_wait() && self.output.waiting() < OUTPUT_PAUSE
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) stream: TcpStream,
    pub(super) parser: Parser,
    /// Read, not yet executed; begins with the start of a request.
    pub(super) input: Vec<u8>,
    pub(super) session: Session,
    /// There may be something to read.
    pub(super) readable: bool,
    /// The client has closed its side: the end comes after what is left to read.
    pub(super) ending: bool,
    /// `input` may hold whole requests, whose execution was stopped.
    pub(super) stalled: bool,
    /// When bytes of the unfinished request in `input` came last (`boot_ms`).
    pub(super) input_since: u64,
    /// Since when the client has taken nothing of what waits for it (`boot_ms`); 0 = nothing waits.
    pub(super) stuck_since: u64,
}

impl Conn {
    pub(super) fn new(stream: TcpStream, client: Arc<ClientEntry>, batch_limit: usize) -> Self {
        Self {
            stream,
            parser: Parser::new(RequestLimits::for_batch(batch_limit)),
            input: Vec::new(),
            session: Session {
                id: ConnId { index: 0, serial: 0 },
                proto: Proto::Two,
                output: Output::default(),
                pause: Pause::None,
                create_error: None,
                client,
                streak: (0, 0),
                move_after: 64,
                dirty: false,
                led: false,
                relayed: false,
            },
            readable: true,
            ending: false,
            stalled: false,
            input_since: 0,
            stuck_since: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(output: &mut Output) -> String {
        let text = String::from_utf8_lossy(output.unsent()).into_owned();
        output.advance(text.len());
        text
    }

    #[test]
    fn replies_go_out_in_the_order_of_requests_whatever_order_they_come_in() {
        let mut o = Output::default();
        o.tail().0.extend_from_slice(b"+1\r\n");
        let first = o.hole(Merge::One, 1);
        o.tail().0.extend_from_slice(b"+3\r\n");
        let second = o.hole(Merge::One, 1);
        o.tail().0.extend_from_slice(b"+5\r\n");
        assert_eq!(sent(&mut o), "+1\r\n");
        o.fill(second, 0, b"+4\r\n");
        assert_eq!(sent(&mut o), "");
        o.fill(first, 0, b"+2\r\n");
        assert_eq!(sent(&mut o), "+2\r\n+3\r\n+4\r\n+5\r\n");
        assert_eq!(o.tail().1, READY);
    }

    #[test]
    fn parts_become_one_reply() {
        let mut o = Output::default();
        let sum = o.hole(Merge::Sum, 2);
        let items = o.hole(Merge::Items(vec![1, 0, 1]), 2);
        let failed = o.hole(Merge::AllOk, 2);
        o.fill(failed, 0, b"+OK\r\n");
        o.fill(failed, 1, b"-READONLY x\r\n");
        o.fill(items, 0, b"*1\r\n$1\r\nb\r\n");
        o.fill(items, 1, b"*2\r\n$1\r\na\r\n$-1\r\n");
        o.fill(sum, 0, b":2\r\n");
        o.fill(sum, 1, b":3\r\n");
        assert_eq!(sent(&mut o), ":5\r\n*3\r\n$1\r\na\r\n$1\r\nb\r\n$-1\r\n-READONLY x\r\n");
    }

    #[test]
    fn a_client_that_is_always_a_little_behind_does_not_keep_what_it_took() {
        let mut o = Output::default();
        let mut expected = 0u64;
        for n in 0..4_000u64 {
            let from = o.tail().0.len();
            o.tail().0.extend(std::iter::repeat_with(|| n.to_le_bytes()).take(1_000).flatten());
            // Every reply waits for its group for a moment.
            let (group, to) = (n + 1, o.tail().0.len());
            o.hold(Ticket { index: 0, group }, from, to, true);
            if n > 0 {
                o.let_go(Ticket { index: 0, group: n });
                let taken = o.unsent().len() / 8 * 8;
                for word in o.unsent()[..taken].chunks(8) {
                    assert_eq!(word, (expected / 1_000).to_le_bytes());
                    expected += 1;
                }
                o.advance(taken);
            }
            let (counted, _) = o.recount();
            assert!(o.ready.capacity() <= 4 << 20 && counted <= 1 << 20, "{counted} of {}", o.ready.capacity());
        }
        o.let_go(Ticket { index: 0, group: u64::MAX });
        assert_eq!(o.unsent(), 3_999u64.to_le_bytes().repeat(1_000));
    }

    #[test]
    fn a_reply_that_comes_twice_or_to_nobody_changes_nothing() {
        let mut o = Output::default();
        let hole = o.hole(Merge::One, 1);
        o.fill(hole, 0, b"+1\r\n");
        o.fill(hole, 0, b"+2\r\n");
        o.fill(99, 0, b"+3\r\n");
        assert_eq!(sent(&mut o), "+1\r\n");
    }

    #[test]
    fn what_is_given_up_becomes_errors_and_the_rest_still_waits() {
        let mut o = Output::default();
        let ticket = |index, group| Ticket { index, group };
        let mut put = |text: &str, held: Option<(Ticket, bool)>| {
            let (out, _) = o.tail();
            let from = out.len();
            out.extend_from_slice(text.as_bytes());
            let to = out.len();
            if let Some((ticket, wrote)) = held {
                o.hold(ticket, from, to, wrote);
            }
        };
        put("+1\r\n", None);
        put("+2\r\n", Some((ticket(1, 5), true)));
        put("+3\r\n", Some((ticket(1, 5), true)));
        put("$1\r\n4\r\n", Some((ticket(1, 5), false)));
        put("+5\r\n", Some((ticket(2, 5), true)));
        put("+6\r\n", None);
        put("+7\r\n", Some((ticket(2, 6), true)));
        let errors = [b"-TIMEOUT w\r\n".to_vec(), b"-R\r\n".to_vec()];
        assert_eq!(sent(&mut o), "+1\r\n");
        assert_eq!(o.give_up(ticket(1, 5), &errors), Some(3));
        assert_eq!(sent(&mut o), "-TIMEOUT w\r\n-TIMEOUT w\r\n-R\r\n");
        o.let_go(ticket(2, 5));
        assert_eq!(sent(&mut o), "+5\r\n+6\r\n");
        assert_eq!(o.give_up(ticket(2, 6), &errors), Some(1));
        assert_eq!(sent(&mut o), "-TIMEOUT w\r\n");
    }
}
