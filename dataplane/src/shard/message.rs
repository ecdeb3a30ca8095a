//! What event loops tell each other and are told by other threads.
//!
//! Bounds: a loop has at most [`FORWARDED_MAX`] requests under way at other loops, gRPC at most [`CALLS_MAX`] in all; answers are
//! as many as requests. So no inbox grows without limit, and none has to refuse.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use parovoz_dataplane_core::resp::Proto;
use parovoz_dataplane_core::types::{Position, PrefixUuid, Sequence};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::conn::Conn;
use crate::store::prefix::Prefix;
use crate::store::{CreateError, Wake};

/// Requests that one loop may have under way at other loops.
pub(super) const FORWARDED_MAX: usize = 64 << 10;
/// Bytes of them.
pub(super) const FORWARDED_BYTES_MAX: usize = 256 << 20;
/// Requests from gRPC that may be under way.
pub(super) const CALLS_MAX: usize = 8 << 10;

/// A connection of one loop; never used again for another connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ConnId {
    pub(super) index: u32,
    pub(super) serial: u32,
}

/// Where a reply belongs: a part of a hole in a connection's replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReplyTo {
    /// The loop that has the connection.
    pub(super) shard: usize,
    pub(super) conn: ConnId,
    /// Number of the hole.
    pub(super) hole: u64,
    /// Part of the hole.
    pub(super) part: u32,
    /// It answers a request that counts against [`FORWARDED_MAX`].
    pub(super) counted: bool,
}

/// What a forwarded request asks for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted {
    /// The command in these bytes of the batch.
    Command { from: usize, to: usize },
    /// Delete everything in a prefix.
    Flush(PrefixUuid),
}

/// A request that another loop executes.
#[derive(Debug)]
pub(super) struct Forwarded {
    pub(super) to: ReplyTo,
    pub(super) proto: Proto,
    pub(super) wanted: Wanted,
    /// The loop that sent it served as the primary.
    pub(super) led: bool,
}

/// Requests that one pass hands to one loop.
#[derive(Debug, Default)]
pub(super) struct Requests {
    pub(super) bytes: Vec<u8>,
    pub(super) items: Vec<Forwarded>,
    /// How many of them were executed.
    pub(super) done: usize,
}

/// Replies that one pass hands back to one loop; each is a range of `bytes`.
#[derive(Debug, Default)]
pub(super) struct Replies {
    pub(super) bytes: Vec<u8>,
    pub(super) items: Vec<(ReplyTo, usize, usize)>,
}

/// What a thread other than a loop wants of a prefix.
#[derive(Debug)]
pub enum Request {
    /// Values of keys.
    Get {
        /// The keys, without prefix.
        keys: Vec<Bytes>,
    },
    /// Whether a key exists.
    Has {
        /// The key.
        key: Bytes,
    },
    /// Sets a key.
    Set {
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
        /// Milliseconds to live; 0 = for ever.
        ttl_ms: u64,
        /// Only if it does not exist.
        if_absent: bool,
    },
    /// Deletes keys.
    Del {
        /// The keys.
        keys: Vec<Bytes>,
    },
    /// Adds to a number.
    Inc {
        /// The key.
        key: Bytes,
        /// How much.
        by: i64,
    },
    /// Several changes, all or none.
    Batch {
        /// In this order.
        ops: Vec<BatchOp>,
    },
}

/// One change of a [`Request::Batch`].
#[derive(Debug)]
pub enum BatchOp {
    /// Sets a key.
    Put {
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
        /// Milliseconds to live; 0 = for ever.
        ttl_ms: u64,
    },
    /// Deletes a key.
    Del(Bytes),
}

/// A value and its expiry in milliseconds since 1970 (0 = never).
pub type Value = (Bytes, u64);

/// The answer to a [`Request`].
#[derive(Debug)]
pub enum Answer {
    /// To `Get`, in the order of the keys.
    Values(Vec<Option<Value>>),
    /// To `Has`.
    Has(bool),
    /// To writes.
    Written {
        /// Of the write, or of the prefix if nothing was written.
        position: Position,
        /// Keys deleted (`Del`), the new number (`Inc`), 1 or 0 for applied or not (the others).
        outcome: i64,
    },
}

/// Why a request was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Writes belong to the primary, whose client address this is (empty if unknown).
    #[error("write to a replica: the primary is {0}")]
    NotPrimary(String),
    /// The prefix has no data to serve at the moment.
    #[error("use prefix: {0}")]
    Unavailable(String),
    /// A key that no member takes.
    #[error("{0}")]
    BadKey(String),
    /// A limit is exceeded.
    #[error("{0}")]
    Limit(String),
    /// The value is not a number, or the sum is out of range.
    #[error("{0}")]
    BadNumber(String),
    /// Nobody knows whether the write will survive.
    #[error("write outcome unknown: {0}")]
    Unknown(&'static str),
    /// The database failed.
    #[error("{0}")]
    Engine(String),
}

/// Where the answer to a [`Call`] goes. Holds the caller's place among [`CALLS_MAX`] until it is used or dropped.
#[derive(Debug)]
pub(super) struct CallReply {
    sender: oneshot::Sender<Result<Answer, CallError>>,
    _permit: OwnedSemaphorePermit,
}

impl CallReply {
    pub(super) fn new(sender: oneshot::Sender<Result<Answer, CallError>>, permit: OwnedSemaphorePermit) -> Self {
        Self { sender, _permit: permit }
    }

    /// Answers; whoever asked may have gone.
    pub(super) fn send(self, answer: Result<Answer, CallError>) {
        drop(self.sender.send(answer));
    }
}

/// A [`Request`] on its way.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) prefix: PrefixUuid,
    pub(super) request: Request,
    pub(super) reply: CallReply,
}

/// A scan's reply, and up to where prefixes must be released before it may be shown.
#[derive(Debug)]
pub(super) struct Scanned {
    pub(super) to: ReplyTo,
    pub(super) bytes: Vec<u8>,
    pub(super) seen: Vec<(Arc<Prefix>, Sequence)>,
}

/// See the module.
#[derive(Debug)]
pub(super) enum Message {
    /// A new connection, or one that moves here.
    Adopt(Box<Conn>),
    Requests(Requests),
    Replies(Replies),
    Call(Box<Call>),
    /// A prefix was created, or not.
    Created(Box<[u8]>, Option<CreateError>),
    Scanned(Box<Scanned>),
}

/// A loop's inbox: a queue and the bell for it.
#[derive(Debug)]
pub(super) struct Inbox {
    queue: Mutex<Vec<Message>>,
    waker: mio::Waker,
    rung: AtomicBool,
    /// Passes begun.
    passes: AtomicU64,
    /// At the end of the last pass replies waited for the disk.
    owes: AtomicBool,
}

impl Inbox {
    pub(super) fn new(waker: mio::Waker) -> Self {
        Self {
            queue: Mutex::default(),
            waker,
            rung: AtomicBool::new(false),
            passes: AtomicU64::new(0),
            owes: AtomicBool::new(false),
        }
    }

    pub(super) fn push(&self, message: Message) {
        self.queue.lock().push(message);
        self.wake();
    }

    /// Begins a pass: moves everything to `into`. What is pushed from now on rings again.
    pub(super) fn take(&self, into: &mut Vec<Message>) {
        self.passes.fetch_add(1, Ordering::SeqCst);
        self.rung.store(false, Ordering::SeqCst);
        into.append(&mut self.queue.lock());
    }

    /// The end of a pass, and whether replies wait for the disk then.
    pub(super) fn end_pass(&self, owes: bool) {
        self.owes.store(owes, Ordering::SeqCst);
    }

    /// Whether somebody rang since the last [`Inbox::take`].
    pub(super) fn is_rung(&self) -> bool {
        self.rung.load(Ordering::SeqCst)
    }
}

impl Wake for Inbox {
    fn wake(&self) {
        if !self.rung.swap(true, Ordering::SeqCst)
            && let Err(e) = self.waker.wake()
        {
            tracing::error!(error = %e, "wake event loop");
        }
    }

    fn passes(&self) -> u64 {
        self.passes.load(Ordering::SeqCst)
    }

    fn owes(&self) -> bool {
        self.owes.load(Ordering::SeqCst)
    }
}
