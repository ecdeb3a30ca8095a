//! The Redis commands that concern keys.

use std::collections::HashSet;

use parovoz_dataplane_core::command::{
    Command, CommandKind, Condition, ExpireIf, Expiry, GetExpiry, Set, SetExpiry, Unit,
};
use parovoz_dataplane_core::resp::parser::integer;
use parovoz_dataplane_core::resp::reply::push_int;
use parovoz_dataplane_core::resp::{Args, Proto, Reply};

use super::{Executor, Refusal, Target};
use crate::shard::conn::REPLY_MAX;

/// What a change needs in a batch besides key and value.
const RECORD_OVERHEAD: usize = 32;

type Done = Result<(), Refusal>;

/// The prefix that a command about one key concerns (`None` = there is no such prefix), and the key within it.
#[derive(Debug, Clone, Copy)]
pub(in crate::shard) struct At<'a> {
    pub(in crate::shard) index: Option<usize>,
    pub(in crate::shard) key: &'a [u8],
}

impl Executor {
    /// Executes a command about keys of this loop and writes its reply. Call [`Executor::settle`] or [`Executor::park`] next.
    pub(in crate::shard) fn execute(
        &mut self,
        at: At<'_>,
        kind: CommandKind,
        command: &Command<'_>,
        proto: Proto,
        out: &mut Vec<u8>,
    ) {
        let start = out.len();
        self.begin_command();
        let mut reply = Reply::new(out, proto);
        let done = match at.index {
            Some(index) => self.one_key(index, at.key, kind, command, &mut reply),
            None => self.no_prefix(kind, command, &mut reply),
        };
        if let Err(refusal) = done {
            out.truncate(start);
            self.refuse_to(&refusal, out);
        }
    }

    /// Writes a refusal as a reply.
    pub(in crate::shard) fn refuse_to(&mut self, refusal: &Refusal, out: &mut Vec<u8>) {
        self.errors += 1;
        Reply::new(out, Proto::Two).error(&refusal.to_string());
    }

    fn one_key(
        &mut self,
        index: usize,
        key: &[u8],
        kind: CommandKind,
        command: &Command<'_>,
        reply: &mut Reply<'_>,
    ) -> Done {
        match *command {
            Command::Get(_) => self.get(index, key, reply),
            Command::Set(ref set) => self.set(index, key, set, kind, reply),
            Command::SetNx(_, value) => self.set_nx(index, key, value, reply),
            Command::GetSet(_, value) => {
                let set = Set { key, value, expiry: SetExpiry::Clear, condition: Condition::Always, get: true };
                self.set(index, key, &set, kind, reply)
            }
            Command::GetDel(_) => self.get_del(index, key, reply),
            Command::GetEx(_, change) => self.get_ex(index, key, change, reply),
            Command::Type(_) => self.look(index, key, |found| match found {
                Some(_) => reply.simple("string"),
                None => reply.simple("none"),
            }),
            Command::StrLen(_) => {
                self.look(index, key, |found| reply.int(found.map_or(0, |(value, _)| value.len() as i64)))
            }
            Command::IncrBy(_, by) => {
                let sum = self.increment(index, key, by)?;
                reply.int(sum);
                Ok(())
            }
            Command::Ttl(_, unit) => {
                let now = self.now_ms;
                self.look(index, key, |found| reply.int(time_left(found.map(|(_, expires)| expires), now, unit)))
            }
            Command::ExpireTime(_, unit) => {
                self.look(index, key, |found| reply.int(time_left(found.map(|(_, expires)| expires), 0, unit)))
            }
            Command::Expire(_, expiry, only) => self.expire(index, key, expiry, only, kind, reply),
            Command::Persist(_) => self.persist(index, key, reply),
            _ => self.many_keys(command, reply),
        }
    }

    /// The same without a prefix: nothing is there.
    fn no_prefix(&mut self, kind: CommandKind, command: &Command<'_>, reply: &mut Reply<'_>) -> Done {
        match command {
            // Redis reads the number before it looks for the key.
            Command::Expire(_, expiry, _) | Command::Set(Set { expiry: SetExpiry::New(expiry), .. })
                if expiry.at(self.now_ms).is_none() =>
            {
                return Err(Refusal::InvalidExpire(kind.spec().name));
            }
            Command::Get(_) | Command::GetDel(_) | Command::GetEx(..) => reply.null(),
            Command::Set(set) if set.condition == Condition::IfPresent => reply.null(),
            Command::Type(_) => reply.simple("none"),
            Command::StrLen(_) | Command::Persist(_) | Command::Expire(..) => reply.int(0),
            Command::Ttl(..) | Command::ExpireTime(..) => reply.int(-2),
            Command::MGet(_) | Command::MSet(_) | Command::Del(_) | Command::Exists(_) => {
                return self.many_keys(command, reply);
            }
            _ => return Err(Refusal::NotServed(kind.spec().name.to_owned())),
        }
        self.misses += 1;
        Ok(())
    }

    fn many_keys(&mut self, command: &Command<'_>, reply: &mut Reply<'_>) -> Done {
        if self.is_gated() {
            self.check_one_prefix(command)?;
        }
        match command {
            Command::MGet(keys) => self.mget(keys, reply),
            Command::MSet(pairs) => self.mset(pairs, reply),
            Command::Del(keys) => self.del(keys, reply),
            Command::Exists(keys) => {
                let mut count = 0;
                for key in keys.iter() {
                    count += i64::from(self.exists(key)?);
                }
                reply.int(count);
                Ok(())
            }
            _ => Err(Refusal::Engine("this command concerns no key".to_owned())),
        }
    }

    /// A reply that is gated waits for one prefix. Commands are split so, but perhaps by a loop that has not seen the change yet.
    fn check_one_prefix(&mut self, command: &Command<'_>) -> Done {
        let (keys, step) = match command {
            Command::MGet(keys) | Command::Del(keys) | Command::Exists(keys) => (keys, 1),
            Command::MSet(pairs) => (pairs, 2),
            _ => return Ok(()),
        };
        let first = self.resolve(keys.at(0)).1.prefix;
        let same = (0..keys.len()).step_by(step).all(|i| self.resolve(keys.at(i)).1.prefix == first);
        if same { Ok(()) } else { Err(Refusal::NotServed(String::from_utf8_lossy(first).into_owned())) }
    }

    /// Takes hold of a prefix and answers the key's hash.
    pub(super) fn open(&mut self, index: usize, key: &[u8]) -> Result<u64, Refusal> {
        self.check_key(key)?;
        self.touch(index)?;
        Ok(self.hash(index, key))
    }

    /// The same for a change, `bytes` being the size of key and new value.
    pub(super) fn open_to_write(&mut self, index: usize, key: &[u8], bytes: usize) -> Result<u64, Refusal> {
        self.prepare(index, bytes + RECORD_OVERHEAD)?;
        self.open(index, key)
    }

    /// Shows `each` the value and expiry (0 = never) of a key.
    fn look(&mut self, index: usize, key: &[u8], each: impl FnOnce(Option<(&[u8], u64)>)) -> Done {
        let hash = self.open(index, key)?;
        each(self.read(index, hash, key)?.map(|seen| (seen.value, seen.expires_at_ms)));
        self.depend(index);
        Ok(())
    }

    fn get(&mut self, index: usize, key: &[u8], reply: &mut Reply<'_>) -> Done {
        let hash = self.open(index, key)?;
        match self.read(index, hash, key)? {
            Some(seen) => reply.bulk(seen.value),
            None => reply.null(),
        }
        self.depend(index);
        Ok(())
    }

    fn set(&mut self, index: usize, key: &[u8], set: &Set<'_>, kind: CommandKind, reply: &mut Reply<'_>) -> Done {
        self.check_value(set.value)?;
        let hash = self.open_to_write(index, key, key.len() + set.value.len())?;
        let mut expires_at_ms = match set.expiry {
            SetExpiry::New(expiry) => expiry.at(self.now_ms).ok_or(Refusal::InvalidExpire(kind.spec().name))?,
            SetExpiry::Clear | SetExpiry::Keep => 0,
        };
        let mut applies = true;
        if set.get || set.condition != Condition::Always || set.expiry == SetExpiry::Keep {
            let old = self.read(index, hash, key)?;
            applies = match set.condition {
                Condition::Always => true,
                Condition::IfAbsent => old.is_none(),
                Condition::IfPresent => old.is_some(),
            };
            if set.expiry == SetExpiry::Keep {
                expires_at_ms = old.map_or(0, |seen| seen.expires_at_ms);
            }
            match old {
                Some(seen) if set.get => reply.bulk(seen.value),
                None if set.get => reply.null(),
                _ => {}
            }
        }
        if applies {
            self.put(index, hash, key, set.value, expires_at_ms);
        }
        match (set.get, applies) {
            (true, _) => {}
            (false, true) => reply.ok(),
            (false, false) => reply.null(),
        }
        self.depend(index);
        Ok(())
    }

    fn set_nx(&mut self, index: usize, key: &[u8], value: &[u8], reply: &mut Reply<'_>) -> Done {
        self.check_value(value)?;
        let hash = self.open_to_write(index, key, key.len() + value.len())?;
        let absent = self.read(index, hash, key)?.is_none();
        if absent {
            self.put(index, hash, key, value, 0);
        }
        reply.int(i64::from(absent));
        self.depend(index);
        Ok(())
    }

    fn get_del(&mut self, index: usize, key: &[u8], reply: &mut Reply<'_>) -> Done {
        let hash = self.open_to_write(index, key, key.len())?;
        let found = match self.read(index, hash, key)? {
            Some(seen) => {
                reply.bulk(seen.value);
                true
            }
            None => {
                reply.null();
                false
            }
        };
        if found {
            self.delete(index, hash, key);
        }
        self.depend(index);
        Ok(())
    }

    /// Reads a key's value into the scratch buffer, in order to write it again; answers its expiry.
    fn load(&mut self, index: usize, hash: u64, key: &[u8]) -> Result<Option<u64>, Refusal> {
        let seen = self.read(index, hash, key)?.map(|seen| (seen.value.to_vec(), seen.expires_at_ms));
        Ok(seen.map(|(value, expires)| {
            self.scratch = value;
            expires
        }))
    }

    /// Gives a key, whose value is in the scratch buffer, another expiry (0 = never); one that is past deletes it.
    fn put_expiry(&mut self, index: usize, hash: u64, key: &[u8], new: Option<u64>) -> Done {
        match new {
            Some(at) if at <= self.now_ms => self.delete(index, hash, key),
            _ => {
                // The value may be large: it needs its place in the batch.
                self.prepare(index, key.len() + self.scratch.len() + RECORD_OVERHEAD)?;
                self.put_scratch(index, hash, key, new.unwrap_or(0));
            }
        }
        Ok(())
    }

    fn get_ex(&mut self, index: usize, key: &[u8], change: GetExpiry<'_>, reply: &mut Reply<'_>) -> Done {
        let hash = self.open_to_write(index, key, key.len())?;
        match self.load(index, hash, key)? {
            None => reply.null(),
            Some(old) => {
                reply.bulk(&self.scratch);
                match change {
                    GetExpiry::New(raw) => {
                        let expiry = raw.read("getex").map_err(Refusal::Command)?;
                        let at = expiry.at(self.now_ms).ok_or(Refusal::InvalidExpire("getex"))?;
                        self.put_expiry(index, hash, key, Some(at))?;
                    }
                    GetExpiry::Persist if old > 0 => self.put_expiry(index, hash, key, None)?,
                    GetExpiry::Persist | GetExpiry::Leave => {}
                }
            }
        }
        self.depend(index);
        Ok(())
    }

    /// Adds to a number; one that is not there, or expired, is 0.
    pub(super) fn increment(&mut self, index: usize, key: &[u8], by: i64) -> Result<i64, Refusal> {
        let hash = self.open_to_write(index, key, key.len() + 20)?;
        let (old, expires) = match self.read(index, hash, key)? {
            None => (0, 0),
            Some(seen) => (integer(seen.value).ok_or(Refusal::NotInteger)?, seen.expires_at_ms),
        };
        let sum = old.checked_add(by).ok_or(Refusal::Overflow)?;
        let mut text = std::mem::take(&mut self.scratch);
        text.clear();
        push_int(&mut text, sum);
        self.put(index, hash, key, &text, expires);
        self.scratch = text;
        self.depend(index);
        Ok(sum)
    }

    fn expire(
        &mut self,
        index: usize,
        key: &[u8],
        expiry: Expiry,
        only: ExpireIf,
        kind: CommandKind,
        reply: &mut Reply<'_>,
    ) -> Done {
        let hash = self.open_to_write(index, key, key.len())?;
        let at = expiry.at(self.now_ms).ok_or(Refusal::InvalidExpire(kind.spec().name))?;
        let applies = match self.load(index, hash, key)? {
            None => false,
            Some(old) => {
                !(only.absent && old > 0
                    || only.present && old == 0
                    || only.later && (old == 0 || at <= old)
                    || only.earlier && old > 0 && at >= old)
            }
        };
        if applies {
            self.put_expiry(index, hash, key, Some(at))?;
        }
        reply.int(i64::from(applies));
        self.depend(index);
        Ok(())
    }

    fn persist(&mut self, index: usize, key: &[u8], reply: &mut Reply<'_>) -> Done {
        let hash = self.open_to_write(index, key, key.len())?;
        let applies = self.load(index, hash, key)?.is_some_and(|old| old > 0);
        if applies {
            self.put_expiry(index, hash, key, None)?;
        }
        reply.int(i64::from(applies));
        self.depend(index);
        Ok(())
    }

    /// The prefix of a key that this loop executes; `None` = there is no such prefix.
    fn own(&mut self, key: &[u8]) -> Result<Option<usize>, Refusal> {
        match self.resolve(key) {
            (Target::Mine(index), _) => Ok(Some(index)),
            (Target::Unknown, split) => Self::new_prefix_name(split.prefix).map(|_| None),
            (Target::Other(_), split) => Err(Refusal::NotServed(String::from_utf8_lossy(split.prefix).into_owned())),
        }
    }

    fn exists(&mut self, whole: &[u8]) -> Result<bool, Refusal> {
        let Some(index) = self.own(whole)? else { return Ok(false) };
        let mut found = false;
        let key = self.resolve(whole).1.rest;
        self.look(index, key, |value| found = value.is_some())?;
        Ok(found)
    }

    fn mget(&mut self, keys: &Args<'_>, reply: &mut Reply<'_>) -> Done {
        reply.array(keys.len());
        let mut bytes = 0;
        for whole in keys.iter() {
            let Some(index) = self.own(whole)? else {
                reply.null();
                continue;
            };
            let key = self.resolve(whole).1.rest;
            self.look(index, key, |found| match found {
                Some((value, _)) => {
                    bytes += value.len();
                    reply.bulk(value);
                }
                None => reply.null(),
            })?;
            if bytes > REPLY_MAX {
                return Err(Refusal::LongReply(REPLY_MAX));
            }
        }
        Ok(())
    }

    fn mset(&mut self, pairs: &Args<'_>, reply: &mut Reply<'_>) -> Done {
        let bytes = pairs.bytes() + pairs.len() * RECORD_OVERHEAD;
        // Everything that can be refused is looked at first: all or nothing.
        for i in (0..pairs.len()).step_by(2) {
            let Some(index) = self.own(pairs.at(i))? else { return Err(Refusal::NotServed("mset".to_owned())) };
            let key = self.resolve(pairs.at(i)).1.rest;
            self.check_key(key)?;
            self.check_value(pairs.at(i + 1))?;
            self.prepare(index, bytes)?;
        }
        for i in (0..pairs.len()).step_by(2) {
            if let (Target::Mine(index), key) = self.resolve(pairs.at(i)) {
                let hash = self.hash(index, key.rest);
                self.put(index, hash, key.rest, pairs.at(i + 1), 0);
                self.depend(index);
            }
        }
        reply.ok();
        Ok(())
    }

    fn del(&mut self, keys: &Args<'_>, reply: &mut Reply<'_>) -> Done {
        let bytes = keys.bytes() + keys.len() * RECORD_OVERHEAD;
        // Reads may commit what is under way: all of them come before the first deletion, so that those stay in one batch.
        let mut found = HashSet::with_capacity(keys.len());
        for whole in keys.iter() {
            let Some(index) = self.own(whole)? else { continue };
            let key = self.resolve(whole).1.rest;
            self.prepare(index, bytes)?;
            let hash = self.open(index, key)?;
            if self.read(index, hash, key)?.is_some() {
                found.insert((index, key));
            }
            self.depend(index);
        }
        reply.int(found.len() as i64);
        for (index, key) in found {
            let hash = self.hash(index, key);
            self.delete(index, hash, key);
            self.depend(index);
        }
        Ok(())
    }
}

/// What TTL and its family answer: -2 = no such key, -1 = it does not expire.
fn time_left(expires_at_ms: Option<u64>, from_ms: u64, unit: Unit) -> i64 {
    let Some(expires) = expires_at_ms else { return -2 };
    if expires == 0 {
        return -1;
    }
    let left = i64::try_from(expires.saturating_sub(from_ms)).unwrap_or(i64::MAX);
    match unit {
        Unit::Milliseconds => left,
        Unit::Seconds => left.saturating_add(500) / 1000,
    }
}
