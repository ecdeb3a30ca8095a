//! Commands that concern the connection, the server or the whole store.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use parovoz_dataplane_core::command::table::{COMMANDS, COUNT};
use parovoz_dataplane_core::command::{About, Client, Command, Hello, Spec, glob};
use parovoz_dataplane_core::resp::{Args, Proto, Reply};

use super::conn::{Merge, Pause, Session};
use super::dispatch::{Dispatcher, Step, WaitTask};
use super::info;
use super::relay::LIB_NAME;
use super::scan::{ScanTask, Scanning};

/// The version of Redis whose commands and replies these are.
pub(super) const REDIS_VERSION: &str = "7.2.0";
/// Longest name or library name that is kept.
const NAME_MAX: usize = 256;

fn reply(session: &mut Session) -> Reply<'_> {
    let proto = session.proto;
    Reply::new(session.output.tail().0, proto)
}

impl Dispatcher {
    pub(super) fn session_command(&mut self, session: &mut Session, command: &Command<'_>) -> Step {
        match *command {
            Command::Scan(_) | Command::DbSize | Command::FlushDb | Command::Wait(..) => {
                return self.barrier(session, command);
            }
            Command::Ping(None) => reply(session).simple("PONG"),
            Command::Ping(Some(text)) | Command::Echo(text) => reply(session).bulk(text),
            Command::Hello(hello) => self.hello(session, hello),
            Command::Auth(user, _) => self.auth(session, user),
            Command::Select(0) => reply(session).ok(),
            Command::Select(_) => self.error(session, "ERR DB index is out of range"),
            Command::Quit => {
                reply(session).ok();
                session.pause = Pause::Closing;
            }
            Command::Reset => {
                session.proto = Proto::Two;
                session.client.proto.store(2, Ordering::Relaxed);
                session.client.names.lock().name.clear();
                reply(session).simple("RESET");
            }
            Command::Client(client) => self.client(session, client),
            Command::About(about) => describe(&mut reply(session), about),
            Command::ConfigGet(patterns) => {
                let settings = self.config();
                config_get(&mut reply(session), &patterns, &settings);
            }
            Command::Info(sections) => {
                let words: Vec<String> =
                    sections.iter().map(|s| String::from_utf8_lossy(s).to_ascii_lowercase()).collect();
                let text = info::info(&self.exec, &words);
                reply(session).text(&text);
            }
            Command::Role => info::role(&self.exec, &mut reply(session)),
            _ => self.error(session, "ERR this command concerns a key"),
        }
        Step::Done
    }

    fn error(&mut self, session: &mut Session, text: &str) {
        self.exec.errors += 1;
        reply(session).error(text);
    }

    /// Commands about the whole store see the outcome of all before them, and all after them see theirs.
    fn barrier(&mut self, session: &mut Session, command: &Command<'_>) -> Step {
        if session.output.holes() > 0 {
            session.pause = Pause::Holes;
            return Step::Again;
        }
        match *command {
            Command::FlushDb => {
                self.flush_all(session);
            }
            Command::DbSize => self.scan(session, Scanning::Count),
            Command::Scan(scan) => {
                let pattern = scan.pattern.map(<[u8]>::to_vec);
                self.scan(
                    session,
                    Scanning::Keys { cursor: scan.cursor, pattern, count: scan.count, any: scan.type_exists },
                );
            }
            Command::Wait(replicas, timeout_ms) => self.wait(session, replicas, timeout_ms),
            _ => {}
        }
        session.pause = Pause::Holes;
        Step::Done
    }

    fn scan(&mut self, session: &mut Session, scanning: Scanning) {
        let hole = session.output.hole(Merge::One, 1);
        let to = self.place(session, hole, 0, false);
        self.scans.push(ScanTask { to, proto: session.proto, now_ms: self.exec.now_ms, scanning });
    }

    fn wait(&mut self, session: &mut Session, replicas: u64, timeout_ms: u64) {
        let hole = session.output.hole(Merge::One, 1);
        let to = self.place(session, hole, 0, false);
        let deadline = (timeout_ms > 0).then(|| crate::clock::boot_ms().saturating_add(timeout_ms));
        // Filled at the end of the pass, when everything before is committed.
        self.waits.push(WaitTask { to, replicas, deadline, positions: Vec::new() });
    }

    fn hello(&mut self, session: &mut Session, hello: Hello<'_>) {
        if let Some((user, _)) = hello.auth
            && user != b"default"
        {
            return self.error(session, "WRONGPASS invalid username-password pair or user is disabled.");
        }
        if let Some(version) = hello.version {
            session.proto = if version == 3 { Proto::Three } else { Proto::Two };
            session.client.proto.store(usize::from(version), Ordering::Relaxed);
        }
        if let Some(name) = hello.name {
            session.client.names.lock().name = text(name);
        }
        let id = session.client.id;
        let version = if session.proto == Proto::Three { 3 } else { 2 };
        let mut r = reply(session);
        r.map(7);
        r.bulk(b"server");
        r.bulk(b"redis");
        r.bulk(b"version");
        r.bulk(REDIS_VERSION.as_bytes());
        r.bulk(b"proto");
        r.int(version);
        r.bulk(b"id");
        r.count(id);
        r.bulk(b"mode");
        r.bulk(b"standalone");
        r.bulk(b"role");
        r.bulk(if self.exec.primary { b"master" } else { b"replica" });
        r.bulk(b"modules");
        r.array(0);
    }

    fn auth(&mut self, session: &mut Session, user: &[u8]) {
        if user == b"default" {
            self.error(
                session,
                "ERR AUTH <password> called without any password configured for the default user. \
                 Are you sure your configuration is correct?",
            );
        } else {
            self.error(session, "WRONGPASS invalid username-password pair or user is disabled.");
        }
    }

    fn client(&mut self, session: &mut Session, client: Client<'_>) {
        let entry = session.client.clone();
        match client {
            Client::Id => reply(session).count(entry.id),
            Client::GetName => {
                let name = entry.names.lock().name.clone();
                if name.is_empty() { reply(session).null() } else { reply(session).bulk(name.as_bytes()) }
            }
            Client::SetName(name) => {
                entry.names.lock().name = text(name);
                reply(session).ok();
            }
            Client::SetInfo(what, value) => {
                let mut names = entry.names.lock();
                if what.eq_ignore_ascii_case(b"lib-name") {
                    names.lib_name = text(value);
                    // Its client was served by a primary, whatever it calls itself later.
                    session.relayed |= names.lib_name == LIB_NAME;
                    session.led |= session.relayed;
                } else if what.eq_ignore_ascii_case(b"lib-ver") {
                    names.lib_version = text(value);
                } else {
                    drop(names);
                    return self.error(session, &format!("ERR Unrecognized option '{}'", text(what)));
                }
                reply(session).ok();
            }
            Client::Info => reply(session).text(&(entry.line() + "\n")),
            Client::List(ids) => {
                let number =
                    |id| parovoz_dataplane_core::resp::parser::integer(id).and_then(|id| u64::try_from(id).ok());
                let ids: Option<Option<BTreeSet<u64>>> = ids.map(|ids| ids.iter().map(number).collect());
                match ids {
                    Some(None) => self.error(session, "ERR Invalid client ID"),
                    ids => {
                        let list = self.exec.shared.clients.list(ids.flatten().as_ref());
                        reply(session).text(&list);
                    }
                }
            }
            Client::NoEffect => reply(session).ok(),
        }
    }

    fn config(&self) -> Vec<(&'static str, String)> {
        let shared = &self.exec.shared;
        vec![
            ("appendonly", "yes".to_owned()),
            ("bind", "*".to_owned()),
            ("databases", "1".to_owned()),
            ("maxclients", shared.max_connections.to_string()),
            ("maxmemory", "0".to_owned()),
            ("maxmemory-policy", "noeviction".to_owned()),
            ("port", shared.port.to_string()),
            ("proto-max-bulk-len", self.exec.limits.batch.to_string()),
            ("save", String::new()),
            ("timeout", "0".to_owned()),
        ]
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(NAME_MAX)]).into_owned()
}

fn config_get(reply: &mut Reply<'_>, patterns: &Args<'_>, settings: &[(&'static str, String)]) {
    let wanted = |name: &str| patterns.iter().any(|p| glob::matches(&p.to_ascii_lowercase(), name.as_bytes()));
    let found: Vec<_> = settings.iter().filter(|(name, _)| wanted(name)).collect();
    reply.map(found.len());
    for (name, value) in found {
        reply.bulk(name.as_bytes());
        reply.bulk(value.as_bytes());
    }
}

fn describe(reply: &mut Reply<'_>, about: About<'_>) {
    match about {
        About::Count => reply.count(COUNT as u64),
        About::Docs => reply.map(0),
        About::All => {
            reply.array(COUNT);
            COMMANDS.iter().for_each(|spec| describe_one(reply, spec));
        }
        About::Info(names) => {
            reply.array(names.len());
            for name in names.iter() {
                match COMMANDS.iter().find(|spec| name.eq_ignore_ascii_case(spec.name.as_bytes())) {
                    Some(spec) => describe_one(reply, spec),
                    None => reply.null_array(),
                }
            }
        }
    }
}

fn describe_one(reply: &mut Reply<'_>, spec: &Spec) {
    reply.array(10);
    reply.bulk(spec.name.as_bytes());
    reply.int(i64::from(spec.arity));
    reply.set(spec.flags.len());
    for flag in spec.flags {
        reply.simple(flag);
    }
    reply.int(i64::from(spec.first_key));
    reply.int(i64::from(spec.last_key));
    reply.int(i64::from(spec.step));
    // Access categories, tips, key specifications and subcommands are not kept here.
    reply.set(0);
    reply.array(0);
    reply.array(0);
    reply.array(0);
}
