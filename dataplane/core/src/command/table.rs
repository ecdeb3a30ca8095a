//! All commands: their names, arities and flags.

macro_rules! commands {
    ($($kind:ident $name:literal $arity:literal [$($flag:literal)*] $first:literal $last:literal $step:literal;)*) => {
        /// A command's name: the closed set that statistics are kept by.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum CommandKind {
            $(#[doc = concat!("`", $name, "`")] $kind,)*
        }

        /// All commands, in the order of [`CommandKind`].
        pub const COMMANDS: &[Spec] = &[
            $(Spec {
                kind: CommandKind::$kind, name: $name, arity: $arity, flags: &[$($flag),*],
                first_key: $first, last_key: $last, step: $step,
            },)*
        ];
    };
}

/// What is known of a command before it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spec {
    /// Which one.
    pub kind: CommandKind,
    /// Name in small letters.
    pub name: &'static str,
    /// Arguments, the name included; negative = at least so many.
    pub arity: i32,
    /// Flags, in the words of Redis.
    pub flags: &'static [&'static str],
    /// Index of the first key; 0 = it has none.
    pub first_key: i32,
    /// Index of the last key; negative = counted from the end.
    pub last_key: i32,
    /// From key to key.
    pub step: i32,
}

impl Spec {
    /// Whether so many arguments, the name included, can be right.
    #[must_use]
    pub fn accepts(&self, args: usize) -> bool {
        let wanted = self.arity.unsigned_abs() as usize;
        if self.arity < 0 { args >= wanted } else { args == wanted }
    }

    /// Whether it changes data.
    #[must_use]
    pub fn writes(&self) -> bool {
        self.flags.contains(&"write")
    }
}

commands! {
    Get "get" 2 ["readonly" "fast"] 1 1 1;
    Set "set" -3 ["write" "denyoom"] 1 1 1;
    SetNx "setnx" 3 ["write" "denyoom" "fast"] 1 1 1;
    SetEx "setex" 4 ["write" "denyoom"] 1 1 1;
    PSetEx "psetex" 4 ["write" "denyoom"] 1 1 1;
    GetSet "getset" 3 ["write" "denyoom" "fast"] 1 1 1;
    GetDel "getdel" 2 ["write" "fast"] 1 1 1;
    GetEx "getex" -2 ["write" "fast"] 1 1 1;
    MGet "mget" -2 ["readonly" "fast"] 1 -1 1;
    MSet "mset" -3 ["write" "denyoom"] 1 -1 2;
    Del "del" -2 ["write"] 1 -1 1;
    Unlink "unlink" -2 ["write" "fast"] 1 -1 1;
    Exists "exists" -2 ["readonly" "fast"] 1 -1 1;
    Type "type" 2 ["readonly" "fast"] 1 1 1;
    StrLen "strlen" 2 ["readonly" "fast"] 1 1 1;
    Incr "incr" 2 ["write" "denyoom" "fast"] 1 1 1;
    IncrBy "incrby" 3 ["write" "denyoom" "fast"] 1 1 1;
    Decr "decr" 2 ["write" "denyoom" "fast"] 1 1 1;
    DecrBy "decrby" 3 ["write" "denyoom" "fast"] 1 1 1;
    Ttl "ttl" 2 ["readonly" "fast"] 1 1 1;
    PTtl "pttl" 2 ["readonly" "fast"] 1 1 1;
    ExpireTime "expiretime" 2 ["readonly" "fast"] 1 1 1;
    PExpireTime "pexpiretime" 2 ["readonly" "fast"] 1 1 1;
    Expire "expire" -3 ["write" "fast"] 1 1 1;
    PExpire "pexpire" -3 ["write" "fast"] 1 1 1;
    ExpireAt "expireat" -3 ["write" "fast"] 1 1 1;
    PExpireAt "pexpireat" -3 ["write" "fast"] 1 1 1;
    Persist "persist" 2 ["write" "fast"] 1 1 1;
    Scan "scan" -2 ["readonly"] 0 0 0;
    DbSize "dbsize" 1 ["readonly" "fast"] 0 0 0;
    FlushDb "flushdb" -1 ["write"] 0 0 0;
    FlushAll "flushall" -1 ["write"] 0 0 0;
    Ping "ping" -1 ["fast"] 0 0 0;
    Echo "echo" 2 ["fast"] 0 0 0;
    Hello "hello" -1 ["noscript" "loading" "stale" "fast" "no_auth" "allow_busy"] 0 0 0;
    Auth "auth" -2 ["noscript" "loading" "stale" "fast" "no_auth" "allow_busy"] 0 0 0;
    Select "select" 2 ["loading" "stale" "fast"] 0 0 0;
    Quit "quit" -1 ["noscript" "loading" "stale" "fast" "no_auth" "allow_busy"] 0 0 0;
    Reset "reset" 1 ["noscript" "loading" "stale" "fast" "no_auth" "allow_busy"] 0 0 0;
    Client "client" -2 ["admin" "noscript" "loading" "stale"] 0 0 0;
    Command "command" -1 ["loading" "stale"] 0 0 0;
    Config "config" -2 ["admin" "noscript" "loading" "stale"] 0 0 0;
    Info "info" -1 ["loading" "stale"] 0 0 0;
    Role "role" 1 ["noscript" "loading" "stale" "fast"] 0 0 0;
    Wait "wait" 3 ["noscript"] 0 0 0;
}

/// Number of commands.
pub const COUNT: usize = COMMANDS.len();

impl CommandKind {
    /// Its row in the table.
    #[must_use]
    pub fn spec(self) -> &'static Spec {
        &COMMANDS[self as usize]
    }

    /// By its name, in capitals.
    #[must_use]
    pub fn by_upper_name(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"GET" => Self::Get,
            b"SET" => Self::Set,
            b"SETNX" => Self::SetNx,
            b"SETEX" => Self::SetEx,
            b"PSETEX" => Self::PSetEx,
            b"GETSET" => Self::GetSet,
            b"GETDEL" => Self::GetDel,
            b"GETEX" => Self::GetEx,
            b"MGET" => Self::MGet,
            b"MSET" => Self::MSet,
            b"DEL" => Self::Del,
            b"UNLINK" => Self::Unlink,
            b"EXISTS" => Self::Exists,
            b"TYPE" => Self::Type,
            b"STRLEN" => Self::StrLen,
            b"INCR" => Self::Incr,
            b"INCRBY" => Self::IncrBy,
            b"DECR" => Self::Decr,
            b"DECRBY" => Self::DecrBy,
            b"TTL" => Self::Ttl,
            b"PTTL" => Self::PTtl,
            b"EXPIRETIME" => Self::ExpireTime,
            b"PEXPIRETIME" => Self::PExpireTime,
            b"EXPIRE" => Self::Expire,
            b"PEXPIRE" => Self::PExpire,
            b"EXPIREAT" => Self::ExpireAt,
            b"PEXPIREAT" => Self::PExpireAt,
            b"PERSIST" => Self::Persist,
            b"SCAN" => Self::Scan,
            b"DBSIZE" => Self::DbSize,
            b"FLUSHDB" => Self::FlushDb,
            b"FLUSHALL" => Self::FlushAll,
            b"PING" => Self::Ping,
            b"ECHO" => Self::Echo,
            b"HELLO" => Self::Hello,
            b"AUTH" => Self::Auth,
            b"SELECT" => Self::Select,
            b"QUIT" => Self::Quit,
            b"RESET" => Self::Reset,
            b"CLIENT" => Self::Client,
            b"COMMAND" => Self::Command,
            b"CONFIG" => Self::Config,
            b"INFO" => Self::Info,
            b"ROLE" => Self::Role,
            b"WAIT" => Self::Wait,
            _ => return None,
        })
    }
}
