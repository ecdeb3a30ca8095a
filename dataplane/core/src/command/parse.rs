//! From arguments to a [`Command`].

use super::{
    About, Client, Command, CommandError, CommandKind, Condition, ExpireIf, Expiry, GetExpiry, Hello, RawExpiry, Scan,
    Set, SetExpiry, Unit,
};
use crate::resp::Args;
use crate::resp::parser::integer;

type Parsed<'a> = Result<Command<'a>, CommandError>;

/// Longest name of a command.
const NAME_MAX: usize = 16;
/// How much of unknown words errors repeat.
const SHOWN: usize = 128;

/// Reads a request that has at least one argument.
///
/// # Errors
/// See [`CommandError`]; its text is the reply.
pub fn parse<'a>(args: &Args<'a>) -> Result<(CommandKind, Command<'a>), CommandError> {
    let name = args.at(0);
    let mut upper = [0u8; NAME_MAX];
    let kind = match upper.get_mut(..name.len()) {
        Some(upper) => {
            upper.copy_from_slice(name);
            upper.make_ascii_uppercase();
            CommandKind::by_upper_name(upper)
        }
        None => None,
    };
    let Some(kind) = kind else { return Err(unknown(args)) };
    if !kind.spec().accepts(args.len()) {
        return Err(CommandError::Arity(kind.spec().name.to_owned()));
    }
    read(kind, args).map(|command| (kind, command))
}

fn read<'a>(kind: CommandKind, args: &Args<'a>) -> Parsed<'a> {
    use CommandKind as K;
    let key = args.at(1);
    Ok(match kind {
        K::Get => Command::Get(key),
        K::Set => return set(args),
        K::SetNx => Command::SetNx(key, args.at(2)),
        K::SetEx => return set_ex(args, Unit::Seconds, "setex"),
        K::PSetEx => return set_ex(args, Unit::Milliseconds, "psetex"),
        K::GetSet => Command::GetSet(key, args.at(2)),
        K::GetDel => Command::GetDel(key),
        K::GetEx => return get_ex(args),
        K::MGet => Command::MGet(args.skip(1)),
        K::MSet if args.len().is_multiple_of(2) => return Err(CommandError::Arity("mset".to_owned())),
        K::MSet => Command::MSet(args.skip(1)),
        K::Del | K::Unlink => Command::Del(args.skip(1)),
        K::Exists => Command::Exists(args.skip(1)),
        K::Type => Command::Type(key),
        K::StrLen => Command::StrLen(key),
        K::Incr => Command::IncrBy(key, 1),
        K::IncrBy => Command::IncrBy(key, int(args.at(2))?),
        K::Decr => Command::IncrBy(key, -1),
        K::DecrBy => Command::IncrBy(key, int(args.at(2))?.checked_neg().ok_or(CommandError::DecrementOverflow)?),
        K::Ttl => Command::Ttl(key, Unit::Seconds),
        K::PTtl => Command::Ttl(key, Unit::Milliseconds),
        K::ExpireTime => Command::ExpireTime(key, Unit::Seconds),
        K::PExpireTime => Command::ExpireTime(key, Unit::Milliseconds),
        K::Expire => return expire(args, Unit::Seconds, false, "expire"),
        K::PExpire => return expire(args, Unit::Milliseconds, false, "pexpire"),
        K::ExpireAt => return expire(args, Unit::Seconds, true, "expireat"),
        K::PExpireAt => return expire(args, Unit::Milliseconds, true, "pexpireat"),
        K::Persist => Command::Persist(key),
        K::Scan => return scan(args),
        K::DbSize => Command::DbSize,
        K::FlushDb | K::FlushAll => return flush(args),
        _ => return read_session(kind, args),
    })
}

/// Commands that concern the connection or the server, not a key.
fn read_session<'a>(kind: CommandKind, args: &Args<'a>) -> Parsed<'a> {
    use CommandKind as K;
    Ok(match kind {
        K::Ping if args.len() > 2 => return Err(CommandError::Arity("ping".to_owned())),
        K::Ping => Command::Ping((args.len() == 2).then(|| args.at(1))),
        K::Echo => Command::Echo(args.at(1)),
        K::Hello => return hello(args),
        K::Auth => match args.len() {
            2 => Command::Auth(b"default", args.at(1)),
            3 => Command::Auth(args.at(1), args.at(2)),
            _ => return Err(CommandError::Syntax),
        },
        K::Select => Command::Select(int(args.at(1))?),
        K::Quit => Command::Quit,
        K::Reset => Command::Reset,
        K::Client => return client(args),
        K::Command => return about(args),
        K::Config => return config(args),
        K::Info => Command::Info(args.skip(1)),
        K::Role => Command::Role,
        K::Wait => {
            let replicas = u64::try_from(int(args.at(1))?).map_err(|_| CommandError::NotInteger)?;
            let timeout = u64::try_from(int(args.at(2))?).map_err(|_| CommandError::NegativeTimeout)?;
            Command::Wait(replicas, timeout)
        }
        _ => return Err(unknown(args)),
    })
}

fn is(word: &[u8], upper: &str) -> bool {
    word.eq_ignore_ascii_case(upper.as_bytes())
}

fn int(text: &[u8]) -> Result<i64, CommandError> {
    integer(text).ok_or(CommandError::NotInteger)
}

fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(SHOWN)]).into_owned()
}

fn unknown(args: &Args<'_>) -> CommandError {
    if [&b"POST"[..], b"HOST:"].iter().any(|word| args.at(0).eq_ignore_ascii_case(word)) {
        return CommandError::Http;
    }
    let mut list = String::new();
    for arg in args.skip(1).iter() {
        if list.len() >= SHOWN {
            break;
        }
        let room = (SHOWN - list.len()).min(arg.len());
        list.push('\'');
        list.push_str(&String::from_utf8_lossy(&arg[..room]));
        list.push_str("' ");
    }
    CommandError::Unknown { name: shown(args.at(0)), args: list }
}

impl RawExpiry<'_> {
    /// Reads the number, which must be positive, as `SET` and `GETEX` want it.
    ///
    /// # Errors
    /// See [`CommandError`]; `name` is that of the command.
    pub fn read(&self, name: &'static str) -> Result<Expiry, CommandError> {
        let value = int(self.text)?;
        if value <= 0 {
            return Err(CommandError::InvalidExpire(name));
        }
        let ms = match self.unit {
            Unit::Seconds => value.checked_mul(1000).ok_or(CommandError::InvalidExpire(name))?,
            Unit::Milliseconds => value,
        };
        Ok(if self.absolute { Expiry::At(ms) } else { Expiry::In(ms) })
    }

    /// Whether `other` is of the same option, which may be repeated: the last counts.
    fn same_option(&self, other: (Unit, bool)) -> bool {
        (self.unit, self.absolute) == other
    }
}

/// Which of the four expiry options a word is: its unit, and whether it is absolute.
fn expiry_option(word: &[u8]) -> Option<(Unit, bool)> {
    if is(word, "EX") {
        Some((Unit::Seconds, false))
    } else if is(word, "PX") {
        Some((Unit::Milliseconds, false))
    } else if is(word, "EXAT") {
        Some((Unit::Seconds, true))
    } else if is(word, "PXAT") {
        Some((Unit::Milliseconds, true))
    } else {
        None
    }
}

fn set<'a>(args: &Args<'a>) -> Parsed<'a> {
    let mut set =
        Set { key: args.at(1), value: args.at(2), expiry: SetExpiry::Clear, condition: Condition::Always, get: false };
    // Values of options are read after all options, so that a wrong option is reported before a wrong number.
    let mut expiry: Option<RawExpiry<'_>> = None;
    let mut i = 3;
    while i < args.len() {
        let word = args.at(i);
        let free = |option| set.expiry == SetExpiry::Clear && expiry.is_none_or(|e| e.same_option(option));
        if is(word, "NX") && set.condition != Condition::IfPresent {
            set.condition = Condition::IfAbsent;
        } else if is(word, "XX") && set.condition != Condition::IfAbsent {
            set.condition = Condition::IfPresent;
        } else if is(word, "GET") {
            set.get = true;
        } else if is(word, "KEEPTTL") && expiry.is_none() {
            set.expiry = SetExpiry::Keep;
        } else if let Some((unit, absolute)) = expiry_option(word).filter(|o| free(*o) && i + 1 < args.len()) {
            i += 1;
            expiry = Some(RawExpiry { text: args.at(i), unit, absolute });
        } else {
            return Err(CommandError::Syntax);
        }
        i += 1;
    }
    if let Some(raw) = expiry {
        set.expiry = SetExpiry::New(raw.read("set")?);
    }
    Ok(Command::Set(set))
}

fn set_ex<'a>(args: &Args<'a>, unit: Unit, name: &'static str) -> Parsed<'a> {
    let expiry = SetExpiry::New(RawExpiry { text: args.at(2), unit, absolute: false }.read(name)?);
    Ok(Command::Set(Set { key: args.at(1), value: args.at(3), expiry, condition: Condition::Always, get: false }))
}

fn get_ex<'a>(args: &Args<'a>) -> Parsed<'a> {
    let mut change = GetExpiry::Leave;
    let mut i = 2;
    while i < args.len() {
        let word = args.at(i);
        let free = |option| match change {
            GetExpiry::Leave => true,
            GetExpiry::Persist => false,
            GetExpiry::New(raw) => raw.same_option(option),
        };
        if is(word, "PERSIST") && !matches!(change, GetExpiry::New(_)) {
            change = GetExpiry::Persist;
        } else if let Some((unit, absolute)) = expiry_option(word).filter(|o| free(*o) && i + 1 < args.len()) {
            i += 1;
            change = GetExpiry::New(RawExpiry { text: args.at(i), unit, absolute });
        } else {
            return Err(CommandError::Syntax);
        }
        i += 1;
    }
    Ok(Command::GetEx(args.at(1), change))
}

fn expire<'a>(args: &Args<'a>, unit: Unit, absolute: bool, name: &'static str) -> Parsed<'a> {
    let mut only = ExpireIf::default();
    for word in args.skip(3).iter() {
        if is(word, "NX") {
            only.absent = true;
        } else if is(word, "XX") {
            only.present = true;
        } else if is(word, "GT") {
            only.later = true;
        } else if is(word, "LT") {
            only.earlier = true;
        } else {
            return Err(CommandError::UnsupportedOption(shown(word)));
        }
    }
    if only.absent && (only.present || only.later || only.earlier) {
        return Err(CommandError::Options("NX and XX, GT or LT options at the same time are not compatible"));
    }
    if only.later && only.earlier {
        return Err(CommandError::Options("GT and LT options at the same time are not compatible"));
    }
    // Redis reads the number after the options.
    let value = int(args.at(2))?;
    let ms = match unit {
        Unit::Seconds => value.checked_mul(1000).ok_or(CommandError::InvalidExpire(name))?,
        Unit::Milliseconds => value,
    };
    Ok(Command::Expire(args.at(1), if absolute { Expiry::At(ms) } else { Expiry::In(ms) }, only))
}

fn scan<'a>(args: &Args<'a>) -> Parsed<'a> {
    let cursor = args.at(1);
    let cursor = std::str::from_utf8(cursor).ok().and_then(|c| c.parse().ok()).ok_or(CommandError::InvalidCursor)?;
    let mut scan = Scan { cursor, pattern: None, count: 10, type_exists: true };
    let mut i = 2;
    while i < args.len() {
        let (word, value) = (args.at(i), args.at(i + 1));
        if i + 1 >= args.len() {
            return Err(CommandError::Syntax);
        } else if is(word, "COUNT") {
            scan.count = u64::try_from(int(value)?).ok().filter(|n| *n > 0).ok_or(CommandError::Syntax)?;
        } else if is(word, "MATCH") {
            scan.pattern = Some(value);
        } else if is(word, "TYPE") {
            scan.type_exists = is(value, "STRING");
        } else {
            return Err(CommandError::Syntax);
        }
        i += 2;
    }
    Ok(Command::Scan(scan))
}

fn flush<'a>(args: &Args<'a>) -> Parsed<'a> {
    match args.len() {
        1 => Ok(Command::FlushDb),
        2 if is(args.at(1), "SYNC") || is(args.at(1), "ASYNC") => Ok(Command::FlushDb),
        _ => Err(CommandError::Syntax),
    }
}

fn hello<'a>(args: &Args<'a>) -> Parsed<'a> {
    let mut hello = Hello::default();
    if args.len() == 1 {
        return Ok(Command::Hello(hello));
    }
    hello.version = match integer(args.at(1)).ok_or(CommandError::ProtocolVersion)? {
        2 => Some(2),
        3 => Some(3),
        _ => return Err(CommandError::NoProtocol),
    };
    let mut i = 2;
    while i < args.len() {
        let left = args.len() - i - 1;
        if is(args.at(i), "AUTH") && left >= 2 {
            hello.auth = Some((args.at(i + 1), args.at(i + 2)));
            i += 3;
        } else if is(args.at(i), "SETNAME") && left >= 1 {
            hello.name = Some(client_name(args.at(i + 1))?);
            i += 2;
        } else {
            return Err(CommandError::Options("Syntax error in HELLO option"));
        }
    }
    Ok(Command::Hello(hello))
}

fn client_name(name: &[u8]) -> Result<&[u8], CommandError> {
    if name.iter().all(|b| (b'!'..=b'~').contains(b)) { Ok(name) } else { Err(CommandError::ClientName) }
}

fn client<'a>(args: &Args<'a>) -> Parsed<'a> {
    let word = args.at(1);
    let part = |name: &str, wanted: std::ops::RangeInclusive<usize>| {
        if wanted.contains(&args.len()) { Ok(()) } else { Err(CommandError::Arity(format!("client|{name}"))) }
    };
    Ok(Command::Client(if is(word, "ID") {
        part("id", 2..=2)?;
        Client::Id
    } else if is(word, "GETNAME") {
        part("getname", 2..=2)?;
        Client::GetName
    } else if is(word, "SETNAME") {
        part("setname", 3..=3)?;
        Client::SetName(client_name(args.at(2))?)
    } else if is(word, "SETINFO") {
        part("setinfo", 4..=4)?;
        Client::SetInfo(args.at(2), client_name(args.at(3))?)
    } else if is(word, "INFO") {
        part("info", 2..=2)?;
        Client::Info
    } else if is(word, "LIST") {
        part("list", 2..=usize::MAX)?;
        match args.len() {
            2 => Client::List(None),
            4 if is(args.at(2), "TYPE") && is(args.at(3), "NORMAL") => Client::List(None),
            4.. if is(args.at(2), "ID") => Client::List(Some(args.skip(3))),
            _ => return Err(CommandError::Syntax),
        }
    } else if is(word, "NO-EVICT") || is(word, "NO-TOUCH") {
        part("no-evict", 3..=3)?;
        if !is(args.at(2), "ON") && !is(args.at(2), "OFF") {
            return Err(CommandError::Syntax);
        }
        Client::NoEffect
    } else {
        return Err(CommandError::UnknownSubcommand { command: "CLIENT", name: shown(word) });
    }))
}

fn about<'a>(args: &Args<'a>) -> Parsed<'a> {
    let word = args.at(1);
    Ok(Command::About(if args.len() == 1 {
        About::All
    } else if is(word, "COUNT") && args.len() == 2 {
        About::Count
    } else if is(word, "INFO") {
        if args.len() == 2 { About::All } else { About::Info(args.skip(2)) }
    } else if is(word, "DOCS") {
        About::Docs
    } else {
        return Err(CommandError::UnknownSubcommand { command: "COMMAND", name: shown(word) });
    }))
}

fn config<'a>(args: &Args<'a>) -> Parsed<'a> {
    if !is(args.at(1), "GET") {
        return Err(CommandError::UnknownSubcommand { command: "CONFIG", name: shown(args.at(1)) });
    }
    if args.len() < 3 {
        return Err(CommandError::Arity("config|get".to_owned()));
    }
    Ok(Command::ConfigGet(args.skip(2)))
}
