//! The promise of a replica and the Lease of a primary, on clocks that drift: integers, no clock compared with another.
//!
//! The large model takes for granted that a promise counts no more once the replica that gave it believes in silence, and
//! that a Lease counts no more once it was seen unmoved for its duration. Here both are searched with the real functions,
//! over every order of events and every rate within the drift: in each step of half a second every clock goes on by 500 ms,
//! more or less by the drift; what lies between is a mixture of the two.

use parovoz_dataplane_core::lease::{LEASE_MARGIN, LeaseHold, LeaseKeeper, PROMISE_MS, Promises, Serving};
use parovoz_dataplane_core::member::{HEARD_MS, Hearing, MemberRecord, SealEvidence, SealOrder};
use parovoz_dataplane_core::types::{DataUuid, Epoch, Mode, Reign, ReignId, ReignRef, StoreUid};
use uuid::Uuid;

use crate::search::{Machine, Next};

/// A step, in milliseconds.
const TICK: u32 = 500;
/// Long enough to be long ago for everybody.
const LONG: u32 = 3_200;
/// Of the Lease.
const LEASE: u32 = 3_000;

/// What is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A replica's promise and its belief in silence.
    Promise,
    /// The primary's Lease and the operator's wait.
    Lease,
}

/// Ages by the clock of whoever keeps them; [`LONG`] = longer or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    /// On the primary's clock: since the newest beat (or renewal) that was answered was sent.
    answered: u32,
    /// On the primary's clock: since the beat (or renewal) under way was sent.
    sent: u32,
    /// Where the one under way is.
    way: Way,
    /// On the other's clock: since the replica heard the primary (the operator saw the Lease move, or its own raise).
    heard: u32,
    /// On the replica's clock: since it began.
    uptime: u32,
    /// The replica is sealed (the operator took the Lease for fenced).
    over: bool,
    /// The operator raised the epoch in the Lease.
    raised: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Way {
    Nowhere,
    There,
    Back,
}

/// What happens.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// Both clocks go on by so much.
    Time { primary: u32, other: u32 },
    /// The primary sends a beat (a renewal).
    Send,
    /// It arrives.
    Arrive,
    /// What comes back arrives.
    Return,
    /// It is lost on the way.
    Lose,
    /// The replica begins anew.
    Restart,
    /// The operator raises the epoch in the Lease.
    Raise,
    /// The replica seals on silence (the operator takes the primary for fenced).
    Believe,
}

/// See the module.
pub struct Clocks {
    /// What is searched.
    pub what: What,
    /// By how much of a thousand each clock may be off.
    pub drift: u32,
    hasher: foldhash::fast::FixedState,
    reign: Reign,
    replica: MemberRecord,
}

impl Clocks {
    /// Two clocks, each off by at most `drift` of a thousand.
    #[must_use]
    pub fn new(what: What, drift: u32) -> Self {
        let who = |n| DataUuid(Uuid::from_u128(n));
        let quorum = what == What::Promise;
        let reign = Reign {
            epoch: Epoch(1),
            reign_id: ReignId(Uuid::from_u128(1)),
            primary: who(1),
            members: vec![who(1), who(2)],
            mode: if quorum { Mode::Quorum } else { Mode::Async },
            min_sync_replicas: quorum.into(),
            lease_duration_ms: LEASE.into(),
        };
        let mut replica = MemberRecord::blank(StoreUid("s".into()), who(2), String::new());
        replica.promised = Some(reign.clone());
        Self { what, drift, hasher: foldhash::fast::FixedState::default(), reign, replica }
    }

    /// Whether the primary may answer a read now: the real rule, at a time of its clock that is large enough for every age.
    fn may_read(&self, s: &State) -> bool {
        let now = u64::from(LONG) * 10;
        let mut promises = Promises::default();
        let mut lease = LeaseHold::new(LeaseKeeper::Kubernetes, LEASE.into());
        if s.answered < LONG {
            let at = now - u64::from(s.answered);
            match self.what {
                What::Promise => promises.echo(DataUuid(Uuid::from_u128(2)), at),
                What::Lease => lease.renewed(at),
            }
        }
        Serving::of(&self.reign, &promises, &lease).may_read(now)
    }

    /// Whether the other side may take the primary for silent.
    fn believes(&self, s: &State) -> bool {
        match self.what {
            What::Lease => s.raised && s.heard >= LEASE,
            What::Promise => {
                let order = SealOrder {
                    store: self.replica.store.clone(),
                    member: self.replica.data_uuid,
                    reign: ReignRef { epoch: Epoch(2), reign_id: ReignId(Uuid::from_u128(2)) },
                    about: Some(self.reign.to_ref()),
                    evidence: SealEvidence::Silent,
                };
                let silence_ms = (s.heard < LONG).then_some(s.heard.into());
                self.replica.seal(&order, Hearing { silence_ms, uptime_ms: s.uptime.into() }).is_ok()
            }
        }
    }

    fn arrive(&self, s: &State) -> Option<State> {
        match self.what {
            // A sealed replica echoes nothing; a renewal under a raised epoch fails.
            What::Promise => Some(State { way: if s.over { Way::Nowhere } else { Way::Back }, heard: 0, ..*s }),
            What::Lease if s.raised => Some(State { way: Way::Nowhere, ..*s }),
            What::Lease => Some(State { way: Way::Back, ..*s }),
        }
    }
}

impl Machine for Clocks {
    type State = State;
    type Step = Step;

    fn initial(&self) -> State {
        State { answered: LONG, sent: LONG, way: Way::Nowhere, heard: LONG, uptime: LONG, over: false, raised: false }
    }

    fn steps(&mut self, s: &State, out: &mut Vec<Next<Step, State>>) {
        let mut push = |step, state| out.push(Next { step, state, violation: None });
        let off = TICK * self.drift / 1000;
        for primary in [TICK - off, TICK + off] {
            for other in [TICK - off, TICK + off] {
                let on = |age: u32, by: u32| if age >= LONG { LONG } else { (age + by).min(LONG) };
                let sent = if s.way == Way::Nowhere { LONG } else { on(s.sent, primary) };
                let state = State {
                    answered: on(s.answered, primary),
                    sent,
                    heard: on(s.heard, other),
                    uptime: on(s.uptime, other),
                    ..*s
                };
                push(Step::Time { primary, other }, state);
                if off == 0 {
                    break;
                }
            }
        }
        match s.way {
            Way::Nowhere => push(Step::Send, State { sent: 0, way: Way::There, ..*s }),
            Way::There => {
                if let Some(state) = self.arrive(s) {
                    push(Step::Arrive, state);
                }
            }
            Way::Back => push(Step::Return, State { answered: s.sent, sent: LONG, way: Way::Nowhere, ..*s }),
        }
        if s.way != Way::Nowhere {
            push(Step::Lose, State { sent: LONG, way: Way::Nowhere, ..*s });
        }
        match self.what {
            What::Promise => push(Step::Restart, State { heard: LONG, uptime: 0, ..*s }),
            What::Lease if !s.raised => push(Step::Raise, State { raised: true, heard: 0, ..*s }),
            What::Lease => {}
        }
        if !s.over && self.believes(s) {
            push(Step::Believe, State { over: true, ..*s });
        }
        for next in out.iter_mut() {
            if next.state.over && self.may_read(&next.state) {
                next.violation = Some("a primary may read though it was taken for silent");
            }
        }
    }

    fn canonical(&self, state: &State) -> State {
        *state
    }

    fn fingerprint(&self, state: &State) -> u64 {
        use std::hash::BuildHasher;
        self.hasher.hash_one(state).max(1)
    }
}

/// The drift, of a thousand, up to which a promise holds by its constants alone: what the search must confirm.
#[must_use]
pub fn promise_margin() -> u64 {
    (HEARD_MS - PROMISE_MS) * 1000 / (HEARD_MS + PROMISE_MS)
}

/// The drift, of a thousand, up to which the Lease holds since its holder stops early: what the search must confirm.
#[must_use]
pub fn lease_margin() -> u64 {
    1000 / (2 * LEASE_MARGIN - 1)
}
