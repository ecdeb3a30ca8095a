//! The commands of the Redis protocol: from arguments to typed requests, with the error texts of Redis.
//!
//! * [`table`]: names, arities and flags of all commands: the closed set that metrics are labelled with.
//! * [`key`]: how a key names its prefix, and how a record is spelled for a client.
//! * [`glob`]: the patterns of SCAN.

pub mod glob;
pub mod key;
pub mod table;

mod parse;

use crate::resp::Args;

pub use parse::parse;
pub use table::{CommandKind, Spec};

/// Why a request is not a command. The texts, code included, are those of Redis.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Too few or too many arguments.
    #[error("ERR wrong number of arguments for '{0}' command")]
    Arity(String),
    /// Options that contradict each other or are unknown.
    #[error("ERR syntax error")]
    Syntax,
    /// Not a whole number of 64 bits.
    #[error("ERR value is not an integer or out of range")]
    NotInteger,
    /// The time to live is zero, negative or out of range.
    #[error("ERR invalid expire time in '{0}' command")]
    InvalidExpire(&'static str),
    /// `DECRBY` of the smallest integer.
    #[error("ERR decrement would overflow")]
    DecrementOverflow,
    /// No such command.
    #[error("ERR unknown command '{name}', with args beginning with: {args}")]
    Unknown {
        /// As the client wrote it, shortened.
        name: String,
        /// The first arguments, quoted.
        args: String,
    },
    /// A request of HTTP: a browser was led here, and what follows is not its user's will.
    #[error("ERR this is HTTP and not the Redis protocol: the connection is closed")]
    Http,
    /// No such part of a command that has parts.
    #[error("ERR unknown subcommand '{name}'. Try {command} HELP.")]
    UnknownSubcommand {
        /// The command.
        command: &'static str,
        /// As the client wrote it, shortened.
        name: String,
    },
    /// `EXPIRE` with options that exclude each other.
    #[error("ERR {0}")]
    Options(&'static str),
    /// `EXPIRE` with an option that there is not, as the client wrote it, shortened.
    #[error("ERR Unsupported option {0}")]
    UnsupportedOption(String),
    /// `HELLO` with a version that is none.
    #[error("ERR Protocol version is not an integer or out of range")]
    ProtocolVersion,
    /// `HELLO` with a version that is not spoken.
    #[error("NOPROTO unsupported protocol version")]
    NoProtocol,
    /// `SCAN` with a cursor that is none.
    #[error("ERR invalid cursor")]
    InvalidCursor,
    /// `WAIT` with a negative time.
    #[error("ERR timeout is negative")]
    NegativeTimeout,
    /// A client's name with blanks or line breaks.
    #[error("ERR Client names cannot contain spaces, newlines or special characters.")]
    ClientName,
}

/// When a key expires, as the client said it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// So many milliseconds from now; may be negative for `EXPIRE`.
    In(i64),
    /// At this time, in milliseconds since 1970; may be past.
    At(i64),
}

impl Expiry {
    /// The absolute time in milliseconds since 1970; what is before that is 0. `None` if it is out of range.
    #[must_use]
    pub fn at(self, now_ms: u64) -> Option<u64> {
        match self {
            Self::At(at) => Some(u64::try_from(at).unwrap_or(0)),
            Self::In(by) => {
                let at = i64::try_from(now_ms).ok()?.checked_add(by)?;
                Some(u64::try_from(at).unwrap_or(0))
            }
        }
    }
}

/// An expiry as the client wrote it: a number that is read only when it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawExpiry<'a> {
    /// The number.
    pub text: &'a [u8],
    /// Of what.
    pub unit: Unit,
    /// Since 1970, not from now.
    pub absolute: bool,
}

/// What `GETEX` does to the expiry. Redis looks at the number only if there is such a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GetExpiry<'a> {
    /// Nothing.
    Leave,
    /// Takes it away.
    Persist,
    /// Sets it.
    New(RawExpiry<'a>),
}

/// What becomes of a key's expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SetExpiry {
    /// None from now on.
    #[default]
    Clear,
    /// What it has.
    Keep,
    /// A new one.
    New(Expiry),
}

/// On what a write depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Condition {
    /// Nothing.
    #[default]
    Always,
    /// The key must not exist.
    IfAbsent,
    /// The key must exist.
    IfPresent,
}

/// `SET` with its options; `SETEX`, `PSETEX` are this too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set<'a> {
    /// The key as written, prefix included.
    pub key: &'a [u8],
    /// The value.
    pub value: &'a [u8],
    /// What becomes of its expiry.
    pub expiry: SetExpiry,
    /// NX and XX.
    pub condition: Condition,
    /// Answer the old value.
    pub get: bool,
}

/// Seconds or milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Milliseconds.
    Milliseconds,
}

/// On what `EXPIRE` depends; conditions that do not exclude each other may be joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExpireIf {
    /// Only without an expiry.
    pub absent: bool,
    /// Only with an expiry.
    pub present: bool,
    /// Only if the new one is later; none counts as never.
    pub later: bool,
    /// Only if the new one is earlier; none counts as never.
    pub earlier: bool,
}

/// One step of a `SCAN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scan<'a> {
    /// 0, or what the last step answered.
    pub cursor: u64,
    /// Pattern of the keys to answer.
    pub pattern: Option<&'a [u8]>,
    /// About how many keys to look at.
    pub count: u64,
    /// Whether keys of the asked type can exist here: all values are strings.
    pub type_exists: bool,
}

/// `HELLO`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hello<'a> {
    /// 2 or 3; `None` = as before.
    pub version: Option<u8>,
    /// User and password.
    pub auth: Option<(&'a [u8], &'a [u8])>,
    /// The client's name.
    pub name: Option<&'a [u8]>,
}

/// `CLIENT` and its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client<'a> {
    /// `CLIENT ID`.
    Id,
    /// `CLIENT GETNAME`.
    GetName,
    /// `CLIENT SETNAME`; empty = none.
    SetName(&'a [u8]),
    /// `CLIENT SETINFO`: lib-name or lib-ver, and its value.
    SetInfo(&'a [u8], &'a [u8]),
    /// `CLIENT INFO`.
    Info,
    /// `CLIENT LIST`: all, or those with these numbers.
    List(Option<Args<'a>>),
    /// `CLIENT NO-EVICT`, `CLIENT NO-TOUCH`: accepted, without effect.
    NoEffect,
}

/// `COMMAND` and its parts.
#[derive(Debug, Clone, Copy)]
pub enum About<'a> {
    /// All commands.
    All,
    /// How many there are.
    Count,
    /// Some, by name.
    Info(Args<'a>),
    /// Their documentation: none is kept here.
    Docs,
}

/// A checked request.
#[derive(Debug, Clone, Copy)]
pub enum Command<'a> {
    /// `GET`.
    Get(&'a [u8]),
    /// `SET`, `SETEX`, `PSETEX`.
    Set(Set<'a>),
    /// `SETNX`: answers 1 or 0.
    SetNx(&'a [u8], &'a [u8]),
    /// `GETSET`.
    GetSet(&'a [u8], &'a [u8]),
    /// `GETDEL`.
    GetDel(&'a [u8]),
    /// `GETEX`.
    GetEx(&'a [u8], GetExpiry<'a>),
    /// `MGET`: the keys.
    MGet(Args<'a>),
    /// `MSET`: keys and values in turn.
    MSet(Args<'a>),
    /// `DEL`, `UNLINK`: the keys.
    Del(Args<'a>),
    /// `EXISTS`: the keys; one that is named twice counts twice.
    Exists(Args<'a>),
    /// `TYPE`.
    Type(&'a [u8]),
    /// `STRLEN`.
    StrLen(&'a [u8]),
    /// `INCR`, `INCRBY`, `DECR`, `DECRBY`.
    IncrBy(&'a [u8], i64),
    /// `TTL`, `PTTL`.
    Ttl(&'a [u8], Unit),
    /// `EXPIRETIME`, `PEXPIRETIME`.
    ExpireTime(&'a [u8], Unit),
    /// `EXPIRE` and its family.
    Expire(&'a [u8], Expiry, ExpireIf),
    /// `PERSIST`.
    Persist(&'a [u8]),
    /// `SCAN`.
    Scan(Scan<'a>),
    /// `DBSIZE`.
    DbSize,
    /// `FLUSHDB`, `FLUSHALL`.
    FlushDb,
    /// `PING`.
    Ping(Option<&'a [u8]>),
    /// `ECHO`.
    Echo(&'a [u8]),
    /// `HELLO`.
    Hello(Hello<'a>),
    /// `AUTH`: user (`default` if none) and password.
    Auth(&'a [u8], &'a [u8]),
    /// `SELECT`.
    Select(i64),
    /// `QUIT`.
    Quit,
    /// `RESET`.
    Reset,
    /// `CLIENT`.
    Client(Client<'a>),
    /// `COMMAND`.
    About(About<'a>),
    /// `CONFIG GET`: the patterns.
    ConfigGet(Args<'a>),
    /// `INFO`: the sections.
    Info(Args<'a>),
    /// `ROLE`.
    Role,
    /// `WAIT`: replicas, and milliseconds (0 = for ever).
    Wait(u64, u64),
}

#[cfg(test)]
mod tests;
