//! The bridge to the rules: questions in small numbers, answered by the real cores, each once.
//!
//! A question is everything that an answer depends on, so the answers are remembered. Times are the smallest that say what
//! the question says: a beat heard now or never, a process begun now or long ago.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use foldhash::fast::FixedState;
use parovoz_dataplane_core::acks::{AckPositions, AckTable};
use parovoz_dataplane_core::follower::{Own, PeerHello, check_follower, check_upstream};
use parovoz_dataplane_core::history::{EpochHistory, EpochRecord, ResumeCheck};
use parovoz_dataplane_core::lease::LeaseKeeper;
use parovoz_dataplane_core::member::{Endpoint, MemberRecord, PromoteOrder, SealEvidence, SealOrder};
use parovoz_dataplane_core::role::{Effect, Event, Role};
use parovoz_dataplane_core::types::{
    DataUuid, Epoch, Mode, Position, PrefixUuid, Reign, ReignId, ReignRef, Sequence, StoreUid,
};
use parovoz_dataplane_core::vote::{self, CopyFacts, CopyState, Vote, is_below_floor};
use parovoz_operator_core::quorum::{self, Ballot, Ballots, OldReign, PrefixVote, Proof};
use uuid::Uuid;

use crate::state::{At, Copy3, Heard, Lead, Log, N};

const PREFIX: PrefixUuid = PrefixUuid(Uuid::from_u128(77));
/// Long after every process began.
const NOW: u64 = 100_000;

/// A reign's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ref {
    /// Its number.
    pub epoch: u8,
    /// Its identity.
    pub id: u8,
}

/// A whole reign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Whole {
    /// Its name.
    pub name: Ref,
    /// Who leads.
    pub primary: u8,
    /// Whose present volume belongs to it.
    pub present: u8,
    /// W.
    pub w: u8,
}

/// What a member's rules look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Member {
    /// Who.
    pub me: u8,
    /// What it promised.
    pub promised: Option<Whole>,
    /// What it is sealed for.
    pub sealed: Option<Ref>,
    /// The highest epoch it started.
    pub started: u8,
    /// Whether its process leads the promised reign.
    pub leading: bool,
    /// What it heard.
    pub heard: Heard,
}

/// What an order made of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct After {
    /// What it promised.
    pub promised: Option<Ref>,
    /// What it is sealed for.
    pub sealed: Option<Ref>,
    /// The highest epoch it started.
    pub started: u8,
    /// Whether it leads.
    pub leading: bool,
    /// What it hears.
    pub heard: Heard,
    /// Whether its next message to the primary carries a promise.
    pub echoes: bool,
}

/// A vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Said {
    /// Where the copy ends.
    Known(At),
    /// Unknown below this, or altogether.
    Unknown(Option<At>),
}

/// What an upstream says to a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// What follows.
    Stream,
    /// The copy must be replaced.
    Diverged,
    /// Later, perhaps.
    Wait,
}

/// How far a new primary may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Write the epoch record.
    pub write: bool,
    /// Serve.
    pub serve: bool,
    /// Up to here W replicas have it all.
    pub released: u8,
}

/// What a decision needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Asked {
    /// Reigns that may have acknowledged, with what is known of their primaries: its process ended, its Lease is unmoved.
    pub olds: [Option<(Whole, bool, bool)>; 4],
    /// What the sealed members say.
    pub ballots: [Option<Said>; N],
    /// Who would lead.
    pub candidate: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Question {
    Seal(Member, Ref, Option<Ref>, bool),
    Promote(Member, Whole, At, Said),
    Follow(Member, Whole),
    Met(Member, Whole),
    Beat(Member, Ref),
    Progress(Whole, Lead, At, [At; N]),
    Serving(Whole, u8, bool, bool),
    Resume(Log, At, bool),
    Upstream(u8, Option<Ref>, u8, Ref),
    Follower(u8, Ref, u8, Option<Ref>),
    Vote(Copy3, At, At),
    Decide(Asked),
}

#[derive(Debug, Clone, Copy)]
enum Answer {
    Member(Option<After>),
    Progress(Progress),
    Serving(bool, bool),
    Resume(Resume),
    Yes(bool),
    Said(Said),
    Decided(Option<At>),
}

/// The rules, with their answers so far.
#[derive(Default)]
pub struct Cores {
    known: HashMap<Question, Answer, FixedState>,
}

impl Cores {
    /// How many different questions were asked.
    #[must_use]
    pub fn questions(&self) -> usize {
        self.known.len()
    }

    fn ask(&mut self, question: Question) -> Answer {
        *self.known.entry(question).or_insert_with_key(answer)
    }

    fn member(&mut self, question: Question) -> Option<After> {
        if let Answer::Member(after) = self.ask(question) { after } else { None }
    }

    fn yes(&mut self, question: Question) -> bool {
        matches!(self.ask(question), Answer::Yes(true))
    }

    /// An order to seal; `about` is the reign that the evidence is about, `proof` says that it is no mere silence.
    pub fn seal(&mut self, member: Member, reign: Ref, about: Option<Ref>, proof: bool) -> Option<After> {
        self.member(Question::Seal(member, reign, about, proof))
    }

    /// An order to lead, decided at this position, to a member that votes `here`.
    pub fn promote(&mut self, member: Member, reign: Whole, at: At, here: Said) -> Option<After> {
        self.member(Question::Promote(member, reign, at, here))
    }

    /// An order to follow.
    pub fn follow(&mut self, member: Member, reign: Whole) -> Option<After> {
        self.member(Question::Follow(member, reign))
    }

    /// The upstream's hello names this reign.
    pub fn met(&mut self, member: Member, reign: Whole) -> Option<After> {
        self.member(Question::Met(member, reign))
    }

    /// A beat of the primary of this reign arrives.
    pub fn beat(&mut self, member: Member, reign: Ref) -> Option<After> {
        self.member(Question::Beat(member, reign))
    }

    /// What acknowledgements allow a primary: `start` is where it was promoted.
    pub fn progress(&mut self, reign: Whole, stage: Lead, start: At, acks: [At; N]) -> Progress {
        let answer = self.ask(Question::Progress(reign, stage, start, acks));
        if let Answer::Progress(progress) = answer { progress } else { Progress::default() }
    }

    /// Whether a primary whose epoch record is written may read, and acknowledge.
    pub fn serving(&mut self, reign: Whole, promises: u8, lease: bool, lost: bool) -> (bool, bool) {
        let answer = self.ask(Question::Serving(reign, promises, lease, lost));
        if let Answer::Serving(read, acknowledge) = answer { (read, acknowledge) } else { (false, false) }
    }

    /// Whether an upstream with this log sends what follows a position.
    pub fn resume(&mut self, log: Log, after: At, authoritative: bool) -> Resume {
        let answer = self.ask(Question::Resume(log, after, authoritative));
        if let Answer::Resume(resume) = answer { resume } else { Resume::Wait }
    }

    /// Whether a member may take from an upstream that promised this reign.
    pub fn upstream(&mut self, me: u8, own: Option<Ref>, peer: u8, theirs: Ref) -> bool {
        self.yes(Question::Upstream(me, own, peer, theirs))
    }

    /// Whether a primary takes acknowledgements from a member with this promise.
    pub fn follower(&mut self, me: u8, own: Ref, peer: u8, theirs: Option<Ref>) -> bool {
        self.yes(Question::Follower(me, own, peer, theirs))
    }

    /// What a copy votes.
    pub fn vote(&mut self, copy: Copy3, at: At, floor: At) -> Said {
        let answer = self.ask(Question::Vote(copy, at, floor));
        if let Answer::Said(said) = answer { said } else { Said::Unknown(None) }
    }

    /// Whether others may take from a copy.
    pub fn is_source(&mut self, copy: Copy3, at: At, floor: At) -> bool {
        copy == Copy3::Open && !is_below_floor(position(at), (floor > 0).then(|| position(floor)))
    }

    /// Whether a copy may be acknowledged to the primary of this epoch.
    pub fn may_acknowledge(&mut self, copy: Copy3, at: At, floor: At, epoch: u8) -> bool {
        let floor = (floor > 0).then(|| position(floor));
        copy == Copy3::Open && vote::may_acknowledge(position(at), floor, Epoch(epoch.into()))
    }

    /// Where the next reign must begin, if these members suffice for it and the candidate is there.
    pub fn decide(&mut self, asked: Asked) -> Option<At> {
        if let Answer::Decided(at) = self.ask(Question::Decide(asked)) { at } else { None }
    }
}

fn answer(question: &Question) -> Answer {
    match *question {
        Question::Seal(member, reign, about, proof) => {
            let evidence = if proof { SealEvidence::Dead } else { SealEvidence::Silent };
            let (reign, about) = (name(reign), about.map(name));
            let order = SealOrder { store: store(), member: present(member.me), reign, about, evidence };
            Answer::Member(step(member, Event::Seal(order)))
        }
        Question::Promote(member, reign, at, here) => {
            let positions = [(PREFIX, Vote::Known(position(at)))].into();
            let to = identity(&reign, reign.primary);
            let order = PromoteOrder { store: store(), member: to, reign: whole(&reign), positions, first: false };
            Answer::Member(step(member, Event::Promote { order, here: [(PREFIX, unsaid(here))].into() }))
        }
        Question::Follow(member, reign) => {
            let to = endpoint(identity(&reign, reign.primary));
            let (store, me) = (store(), present(member.me));
            let order = Event::Follow { store, member: me, reign: whole(&reign), upstream: to.clone(), primary: to };
            Answer::Member(step(member, order))
        }
        Question::Met(member, reign) => Answer::Member(step(member, Event::Met(whole(&reign)))),
        Question::Beat(member, reign) => {
            Answer::Member(step(member, Event::PrimaryBeat { reign: name(reign), sent_at_ms: NOW }))
        }
        Question::Progress(reign, stage, start, acks) => Answer::Progress(progress(&reign, stage, start, acks)),
        Question::Serving(reign, promises, lease, lost) => {
            let (read, acknowledge) = serving(&reign, promises, lease, lost);
            Answer::Serving(read, acknowledge)
        }
        Question::Resume(log, after, authoritative) => Answer::Resume(resume(log, after, authoritative)),
        Question::Upstream(me, own, peer, theirs) => {
            Answer::Yes(check_upstream(&hello_own(me, own), &hello_peer(peer, Some(theirs))).is_ok())
        }
        Question::Follower(me, own, peer, theirs) => {
            Answer::Yes(check_follower(&hello_own(me, Some(own)), &hello_peer(peer, theirs)).is_ok())
        }
        Question::Vote(copy, at, floor) => {
            let state = match copy {
                Copy3::Open => CopyState::Open(position(at)),
                Copy3::Replacing => CopyState::Replacing,
                Copy3::Damaged => CopyState::Damaged,
            };
            Answer::Said(said(vote::vote(CopyFacts { state, floor: (floor > 0).then(|| position(floor)) })))
        }
        Question::Decide(asked) => Answer::Decided(decide(&asked)),
    }
}

// ---- Small numbers to what the cores know. ----

fn store() -> StoreUid {
    StoreUid("s".into())
}

fn present(member: u8) -> DataUuid {
    DataUuid(Uuid::from_u128(u128::from(member) + 1))
}

/// A member of a reign: the volume that is there now, or the one that was lost.
fn identity(reign: &Whole, member: u8) -> DataUuid {
    let lost = if reign.present >> member & 1 == 1 { 0 } else { 10 };
    DataUuid(Uuid::from_u128(u128::from(member) + 1 + lost))
}

fn endpoint(data_uuid: DataUuid) -> Endpoint {
    Endpoint { data_uuid: Some(data_uuid), replication: "h:1".into(), ..Endpoint::default() }
}

fn name(reign: Ref) -> ReignRef {
    ReignRef { epoch: Epoch(reign.epoch.into()), reign_id: ReignId(Uuid::from_u128(u128::from(reign.id) + 1)) }
}

fn unname(reign: ReignRef) -> Ref {
    let small = |n: u128| u8::try_from(n).unwrap_or(u8::MAX);
    Ref { epoch: small(reign.epoch.0.into()), id: small(reign.reign_id.0.as_u128() - 1) }
}

fn whole(reign: &Whole) -> Reign {
    let ReignRef { epoch, reign_id } = name(reign.name);
    Reign {
        epoch,
        reign_id,
        primary: identity(reign, reign.primary),
        members: (0..3).map(|i| identity(reign, i)).collect(),
        mode: if reign.w > 0 { Mode::Quorum } else { Mode::Async },
        min_sync_replicas: reign.w.into(),
        lease_duration_ms: 10_000,
    }
}

fn position(at: At) -> Position {
    Position::new(u64::from(at >> 4), u64::from(at & 15))
}

fn at(position: Position) -> At {
    u8::try_from(position.epoch.0 << 4 | position.sequence.0).unwrap_or(u8::MAX)
}

fn said(vote: Vote) -> Said {
    match vote {
        Vote::Known(position) => Said::Known(at(position)),
        Vote::Unknown { floor } => Said::Unknown(floor.map(at)),
    }
}

fn unsaid(said: Said) -> Vote {
    match said {
        Said::Known(at) => Vote::Known(position(at)),
        Said::Unknown(floor) => Vote::Unknown { floor: floor.map(position) },
    }
}

fn record(member: &Member) -> MemberRecord {
    let mut record = MemberRecord::blank(store(), present(member.me), String::new());
    record.promised = member.promised.as_ref().map(whole);
    record.sealed = member.sealed.map(name);
    record.started = Epoch(member.started.into());
    record
}

// ---- The member's rules. ----

/// A process that leads this reign, promoted at `start` with a Lease that is kept somewhere.
fn leader(reign: &Whole, start: At, effects: &mut Vec<Effect>) -> Role {
    let led = whole(reign);
    let mut before = MemberRecord::blank(store(), led.primary, String::new());
    before.promised = Some(Reign { epoch: Epoch(0), ..led.clone() });
    before.sealed = Some(led.to_ref());
    let mut role = Role::start(before, LeaseKeeper::Kubernetes, 0);
    let votes = [(PREFIX, Vote::Known(position(start)))];
    let order = PromoteOrder { store: store(), member: led.primary, reign: led, positions: votes.into(), first: false };
    tell(&mut role, Event::Fsynced, effects);
    tell(&mut role, Event::Promote { order, here: votes.into() }, effects);
    role
}

/// An event that nothing refuses.
fn tell(role: &mut Role, event: Event, effects: &mut Vec<Effect>) {
    let taken = role.step(NOW, event, effects);
    debug_assert!(taken.is_ok(), "{taken:?}");
}

/// A member as it is.
fn role(member: &Member) -> Role {
    let began = if member.heard == Heard::JustStarted { NOW } else { 0 };
    let mut ignored = Vec::new();
    let mut role = match &member.promised {
        Some(reign) if member.leading => {
            let mut role = leader(reign, 0x11, &mut ignored);
            role.replace_record(record(member));
            role
        }
        _ => Role::start(record(member), LeaseKeeper::Kubernetes, began),
    };
    tell(&mut role, Event::Fsynced, &mut ignored);
    if let (Heard::Lately, Some(reign)) = (member.heard, &member.promised) {
        tell(&mut role, Event::PrimaryBeat { reign: name(reign.name), sent_at_ms: NOW }, &mut ignored);
    }
    role
}

/// What one event makes of a member; `None` if it is refused.
fn step(member: Member, event: Event) -> Option<After> {
    let mut role = role(&member);
    role.step(NOW, event, &mut Vec::new()).ok()?;
    let record = role.record();
    let heard = match role.silence_ms(NOW) {
        Some(_) => Heard::Lately,
        None if member.heard == Heard::JustStarted => Heard::JustStarted,
        None => Heard::Old,
    };
    Some(After {
        promised: record.promised.as_ref().map(|reign| unname(reign.to_ref())),
        sealed: record.sealed.map(unname),
        started: u8::try_from(record.started.0).unwrap_or(u8::MAX),
        leading: role.led().is_some(),
        heard,
        echoes: role.echo(NOW).is_some(),
    })
}

// ---- The primary's rules. ----

/// Acknowledgements come from the volumes that are there now, whoever were members.
fn table(acks: [At; N]) -> AckTable {
    let mut table = AckTable::default();
    for (member, ack) in (0..).zip(acks).filter(|(_, ack)| *ack > 0) {
        record_ack(&mut table, present(member), ack);
    }
    table
}

/// All replicas of a reign are where it begins.
fn joined(reign: &Reign, start: At) -> AckTable {
    let mut table = AckTable::default();
    reign.replicas().for_each(|who| record_ack(&mut table, who, start));
    table
}

fn record_ack(table: &mut AckTable, who: DataUuid, ack: At) {
    let at = position(ack);
    let session = table.begin_session(who);
    let taken = table.record(session, who, PREFIX, AckPositions { received: at, applied: at, durable: at });
    debug_assert!(taken.is_ok(), "{taken:?}");
}

fn progress(reign: &Whole, stage: Lead, start: At, acks: [At; N]) -> Progress {
    let mut effects = Vec::new();
    let mut role = leader(reign, start, &mut effects);
    let (table, led) = (table(acks), whole(reign));
    if stage == Lead::Joining {
        role.progress(&table, &mut effects);
        let write = effects.iter().any(|effect| matches!(effect, Effect::WriteEpochRecords(_)));
        return Progress { write, ..Progress::default() };
    }
    role.progress(&joined(&led, start), &mut effects);
    effects.clear();
    let records = BTreeMap::from([(PREFIX, position(start).sequence.next())]);
    tell(&mut role, Event::Written { reign: led.to_ref(), records }, &mut effects);
    role.progress(&table, &mut effects);
    let serve = effects.iter().any(|effect| matches!(effect, Effect::AllServed));
    let released = table.released(PREFIX, &led, led.required()).map_or(0, |to| u8::try_from(to.0).unwrap_or(u8::MAX));
    Progress { write: false, serve, released }
}

fn serving(reign: &Whole, promises: u8, lease: bool, lost: bool) -> (bool, bool) {
    let mut ignored = Vec::new();
    let mut role = leader(reign, 0x11, &mut ignored);
    let led = whole(reign);
    role.progress(&joined(&led, 0x11), &mut ignored);
    tell(&mut role, Event::Written { reign: led.to_ref(), records: [(PREFIX, Sequence(2))].into() }, &mut ignored);
    role.beat(NOW);
    for member in (0..3).filter(|i| promises >> i & 1 == 1) {
        let echo = Event::Echo { member: present(member), reign: led.to_ref(), sent_at_ms: NOW };
        tell(&mut role, echo, &mut ignored);
    }
    if lease {
        tell(&mut role, Event::LeaseRenewed { reign: led.to_ref(), sent_at_ms: NOW }, &mut ignored);
    }
    if lost {
        tell(&mut role, Event::LeaseLost { reign: led.to_ref() }, &mut ignored);
    }
    (role.serving().may_read(NOW), role.serving().may_acknowledge(NOW))
}

fn resume(log: Log, after: At, authoritative: bool) -> Resume {
    let mut records: Vec<EpochRecord> = Vec::new();
    for sequence in 1..=log.len() {
        let record = log.record(sequence);
        let ReignRef { epoch, reign_id } = name(Ref { epoch: record >> 4, id: record & 1 });
        if record & 15 < 2 {
            records.push(EpochRecord { epoch, reign_id, start: Sequence(sequence.into()) });
        }
    }
    let Ok(history) = EpochHistory::new(records) else { return Resume::Wait };
    match history.check_resume(position(after), Sequence(log.len().into()), Sequence(1), authoritative) {
        ResumeCheck::Stream => Resume::Stream,
        ResumeCheck::Diverged { .. } | ResumeCheck::TooOld { .. } => Resume::Diverged,
        ResumeCheck::Behind => Resume::Wait,
    }
}

fn hello_own(me: u8, reign: Option<Ref>) -> Own {
    let data_uuid = present(me);
    Own {
        version: 1,
        min_version: 1,
        store: store(),
        data_uuid,
        reign: reign.map(name),
        wanted: None,
        path: vec![data_uuid],
    }
}

fn hello_peer(peer: u8, reign: Option<Ref>) -> PeerHello {
    let data_uuid = present(peer);
    PeerHello {
        version: 1,
        min_version: 1,
        store: store(),
        data_uuid,
        expected: None,
        reign: reign.map(name),
        path: vec![data_uuid],
    }
}

// ---- The operator's rules. ----

fn decide(asked: &Asked) -> Option<At> {
    let small = |id: DataUuid| id.0.as_u128().to_string();
    let mut ballots = Ballots::new();
    for (member, said) in (0..).zip(asked.ballots) {
        let Some(said) = said else { continue };
        let of = |at: At| quorum::Position { epoch: u64::from(at >> 4), sequence: u64::from(at & 15) };
        let vote = match said {
            Said::Known(at) => quorum::Vote::Known(of(at)),
            Said::Unknown(floor) => quorum::Vote::Unknown { floor: floor.map(of) },
        };
        let votes = BTreeMap::from([("p".to_owned(), PrefixVote { name: "p".into(), catalogue: true, vote })]);
        ballots.insert(small(present(member)), Ballot { can_lead: true, votes });
    }
    let lease = Duration::from_secs(10);
    let mut olds = Vec::new();
    for (reign, ended, unmoved) in asked.olds.into_iter().flatten() {
        let old = OldReign {
            epoch: reign.name.epoch.into(),
            id: reign.name.id.to_string(),
            primary: small(identity(&reign, reign.primary)),
            members: (0..3).map(|i| small(identity(&reign, i))).collect(),
            w: reign.w.into(),
            lease,
        };
        if !quorum::fence(&old, &ballots, Proof { ended, lease_unmoved: unmoved.then_some(lease) }) {
            return None;
        }
        olds.push(old);
    }
    let decision = quorum::decide(&olds, &ballots).ok()?;
    let candidate = small(present(asked.candidate));
    quorum::candidate(&olds, &ballots, &decision, &BTreeSet::from([candidate.clone()]), "")?;
    let complete = quorum::missing(&ballots, &decision, &candidate)?.is_empty();
    let at = decision.get("p")?.position;
    complete.then(|| u8::try_from(at.epoch << 4 | at.sequence).unwrap_or(u8::MAX))
}
