//! What goes over the network, as values: the messages of the proto files, without their bytes.

use std::collections::BTreeMap;
use std::rc::Rc;

use parovoz_dataplane_core::acks::AckPositions;
use parovoz_dataplane_core::follower::{FrameIn, PeerHello, RefusalReason};
use parovoz_dataplane_core::member::{Endpoint, SealEvidence};
use parovoz_dataplane_core::types::{DataUuid, Epoch, Position, PrefixUuid, Reign, ReignRef, Sequence};
use parovoz_dataplane_core::vote::Votes;
use parovoz_operator_core::observed::Report;

/// Who is on the network: members by their ordinal (1 to 8), then the others.
pub type Node = u8;
/// Members' ordinals are below this.
pub const MEMBERS: u8 = 9;
/// The operators' processes.
pub const OPERATORS: [Node; 2] = [9, 10];
/// Everyone who reads and writes.
pub const CLIENTS: Node = 11;
/// The API server.
pub const API: Node = 12;
/// How many nodes there are.
pub const NODES: usize = 13;

/// A stream between two processes, named by who opened it.
pub type Conn = u64;

/// A message.
#[derive(Debug, Clone)]
pub enum Msg {
    /// Of a stream of data, to the upstream.
    ToUpstream(Conn, ToUpstream),
    /// Of a stream of data, to the follower.
    ToFollower(Conn, ToFollower),
    /// Of a stream of acknowledgements, to the primary.
    ToPrimary(Conn, ToPrimary),
    /// Of a stream of acknowledgements, to the replica.
    ToReplica(Conn, ToReplica),
    /// Whoever gets this has a stream that the other side knows nothing of (any more).
    Closed(Conn),
    /// A copy is asked for, or what one from elsewhere needs.
    OpenSnapshot { call: u64, hello: Hello, prefix: PrefixUuid, wanted: Wanted },
    /// The answer: the snapshot, or why not.
    Snapshot { call: u64, answer: Result<Snapshot, String> },
    /// Whether the snapshot is still held; answered by the same call.
    KeepSnapshot { call: u64, snapshot: u64 },
    /// The answer.
    Kept { call: u64, held: bool },
    /// An order to a member.
    Order { call: u64, order: Order },
    /// Its answer.
    Ordered { call: u64, refused: Option<String> },
    /// An operator wants reports from now on.
    Watch,
    /// A report of the member; the pod that it runs in.
    Report { pod_uid: Rc<str>, report: Rc<Report> },
    /// A request of a client.
    Request { op: u32, request: Request },
    /// Its answer.
    Response { op: u32, response: Response },
    /// A member renews its Lease.
    RenewLease { call: u64, reign: Reign },
    /// Whether it holds it; `None` = the API server said nothing sensible.
    Renewed { call: u64, held: bool },
}

/// The first message of a stream.
#[derive(Debug, Clone)]
pub struct Hello {
    /// Who.
    pub peer: PeerHello,
    /// The whole reign, from upstreams.
    pub whole: Option<Reign>,
}

/// From a follower.
#[derive(Debug, Clone)]
pub enum ToUpstream {
    Hello(Hello),
    Resume { prefix: PrefixUuid, after: Position, attempt: u64 },
    Cancel(PrefixUuid),
    Credit(u64),
}

/// From an upstream.
#[derive(Debug, Clone)]
pub enum ToFollower {
    Hello(Hello),
    Frames(Vec<FrameIn>),
    Refusal { prefix: PrefixUuid, attempt: u64, reason: RefusalReason },
    Beat { reign: ReignRef, latest: Vec<(PrefixUuid, Position)> },
}

/// From a replica to its primary.
#[derive(Debug, Clone)]
pub enum ToPrimary {
    Hello(Hello, Vec<(PrefixUuid, AckPositions)>),
    Beat { reign: ReignRef, acks: Vec<(PrefixUuid, AckPositions)>, promise_for: Option<u64> },
}

/// From a primary to a replica.
#[derive(Debug, Clone)]
pub enum ToReplica {
    Hello(Hello),
    Beat { reign: ReignRef, sent_at_ms: u64, serving: bool },
}

/// What is asked of a member for a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Files, and a hold on what follows them.
    Files,
    /// A hold alone: the files come from another member.
    Hold { after: Position },
    /// Where it is.
    Position,
}

/// A snapshot that can be fetched, or what else was [`Wanted`].
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub id: u64,
    /// None of a hold alone.
    pub dir: Option<Rc<std::path::Path>>,
    pub held_after: Position,
    /// Where the prefix is at the member that answers.
    pub latest: Position,
    pub bytes: u64,
    pub hello: Hello,
}

/// What a member is told.
#[derive(Debug, Clone)]
pub struct Order {
    pub store: String,
    pub member: DataUuid,
    /// The process that it is meant for; empty = any.
    pub process: String,
    pub kind: OrderKind,
}

/// See [`Order`].
#[derive(Debug, Clone)]
pub enum OrderKind {
    Seal { reign: ReignRef, about: Option<ReignRef>, evidence: SealEvidence },
    Promote { reign: Reign, positions: Votes, first: bool },
    Follow { reign: Reign, upstream: Endpoint, primary: Endpoint, source: Option<Box<Endpoint>> },
    Pull { reign: ReignRef, source: Endpoint, upto: BTreeMap<PrefixUuid, Position> },
    Freeze { reign: ReignRef, for_ms: u64 },
}

/// What a client wants; names are indices into the client's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub prefix: u8,
    pub key: u8,
    pub what: What,
}

/// See [`Request`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Get,
    Put(u64),
    Add,
}

/// What a client is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Response {
    /// The value read (0 = none), or the sum; where and in which epoch, for the checker alone.
    Done { value: u64, epoch: Epoch, at: Sequence, prefix: Option<PrefixUuid> },
    /// Not done, and never will be: ask that member, if one is known.
    Refused { primary: Option<Node> },
    /// Nobody knows.
    Unknown,
}
