//! Fence, decision and candidate: cases told one by one, and against a definition by brute force.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use parovoz_operator_core::quorum::{
    Ballot, Ballots, OldReign, Position, PrefixVote, Proof, Undecided, Vote, candidate, cost, decide, decide_after,
    decide_with_loss, digest, fence, missing,
};
use proptest::prelude::*;

const CATALOGUE: &str = "catalogue";
const LEASE: Duration = Duration::from_secs(10);

fn at(epoch: u64, sequence: u64) -> Position {
    Position { epoch, sequence }
}

fn known(epoch: u64, sequence: u64) -> Vote {
    Vote::Known(at(epoch, sequence))
}

fn reign(epoch: u64, members: &[&str], w: u32) -> OldReign {
    OldReign {
        epoch,
        id: format!("reign-{epoch}"),
        primary: members[0].into(),
        members: members.iter().map(|member| (*member).to_owned()).collect(),
        w,
        lease: LEASE,
    }
}

fn ballot(votes: &[(&str, Vote)]) -> Ballot {
    let entry = |uuid: &str, vote| PrefixVote { name: uuid.to_owned(), catalogue: uuid == CATALOGUE, vote };
    Ballot {
        can_lead: true,
        votes: votes.iter().map(|(uuid, vote)| ((*uuid).to_owned(), entry(uuid, *vote))).collect(),
    }
}

fn ballots(all: &[(&str, Ballot)]) -> Ballots {
    all.iter().map(|(member, ballot)| ((*member).to_owned(), ballot.clone())).collect()
}

fn set(members: &[&str]) -> BTreeSet<String> {
    members.iter().map(|member| (*member).to_owned()).collect()
}

#[test]
fn a_quorum_reign_is_fenced_by_its_primary_or_by_n_minus_w_replicas() {
    let old = reign(1, &["a", "b", "c", "d"], 2);
    let some = |members: &[&str]| members.iter().map(|member| ((*member).to_owned(), Ballot::default())).collect();
    assert!(fence(&old, &some(&["a"]), Proof::default()));
    assert!(!fence(&old, &some(&["b"]), Proof::default()));
    assert!(fence(&old, &some(&["b", "d"]), Proof::default()));
    assert!(!fence(&old, &some(&["x", "y", "z"]), Proof::default()), "members of other reigns say nothing about it");
    let lease = Proof { ended: false, lease_unmoved: Some(LEASE * 10) };
    assert!(!fence(&old, &some(&["b"]), lease), "a quorum reign needs no Lease to acknowledge");
}

#[test]
fn an_async_reign_is_fenced_by_its_primary_its_end_or_a_still_lease_and_one_sealed_replica() {
    let old = reign(1, &["a", "b", "c"], 0);
    let some = |members: &[&str]| members.iter().map(|member| ((*member).to_owned(), Ballot::default())).collect();
    let lease = |seconds| Proof { ended: false, lease_unmoved: Some(Duration::from_secs(seconds)) };
    assert!(!fence(&old, &some(&["b", "c"]), Proof::default()), "both replicas sealed and the primary may still write");
    assert!(!fence(&old, &some(&["b", "c"]), lease(9)));
    assert!(fence(&old, &some(&["b"]), lease(10)));
    assert!(!fence(&old, &some(&[]), lease(10)), "promises of all members may keep it going");
    assert!(fence(&old, &some(&["a"]), Proof::default()));
    assert!(fence(&old, &some(&["b"]), Proof { ended: true, lease_unmoved: None }));
}

#[test]
fn the_highest_epoch_wins_before_the_highest_sequence() {
    let olds = [reign(2, &["a", "b", "c"], 1)];
    let all = ballots(&[("b", ballot(&[(CATALOGUE, known(1, 90))])), ("c", ballot(&[(CATALOGUE, known(2, 50))]))]);
    assert_eq!(decide(&olds, &all).unwrap()[CATALOGUE].position, at(2, 50));
}

#[test]
fn each_reign_that_may_have_served_must_agree_with_its_own_members_and_its_own_w() {
    let olds = [reign(1, &["a", "b", "c"], 2), reign(2, &["b", "c", "d"], 1)];
    let one = ballots(&[("c", ballot(&[(CATALOGUE, known(1, 5))]))]);
    assert!(decide(&olds[..1], &one).is_ok(), "one replica of three has whatever two had to have");
    let refused = decide(&olds, &one).unwrap_err();
    assert_eq!(refused, Undecided::TooFewVotes { prefix: CATALOGUE.into(), epoch: 2, counted: 1, needed: 2 });
    let two = ballots(&[("c", ballot(&[(CATALOGUE, known(1, 5))])), ("d", ballot(&[(CATALOGUE, known(2, 4))]))]);
    assert_eq!(decide(&olds, &two).unwrap()[CATALOGUE].position, at(2, 4));
}

#[test]
fn an_unknown_vote_counts_once_a_known_one_is_at_its_floor_and_never_without_a_floor() {
    let olds = [reign(1, &["a", "b", "c"], 1)];
    let with = |floor| {
        let unknown = ballot(&[(CATALOGUE, Vote::Unknown { floor })]);
        decide(&olds, &ballots(&[("b", unknown), ("c", ballot(&[(CATALOGUE, known(1, 50))]))]))
    };
    assert!(with(Some(at(1, 50))).is_ok());
    assert!(with(Some(at(1, 51))).is_err());
    assert!(with(None).is_err());
}

#[test]
fn the_primarys_own_vote_suffices_only_if_it_is_known() {
    let olds = [reign(1, &["a", "b", "c"], 1)];
    let sealed = |vote| ballots(&[("a", ballot(&[(CATALOGUE, vote)])), ("b", ballot(&[(CATALOGUE, known(1, 9))]))]);
    assert!(decide(&olds, &sealed(known(1, 10))).is_ok());
    assert!(decide(&olds, &sealed(Vote::Unknown { floor: Some(at(1, 9)) })).is_err());
}

#[test]
fn a_prefix_that_a_whole_catalogue_does_not_list_is_at_its_beginning_and_absence_from_an_unknown_one_says_nothing() {
    let olds = [reign(1, &["a", "b", "c"], 1)];
    let new = ballot(&[(CATALOGUE, known(1, 2)), ("users", known(1, 7))]);
    let before = ballot(&[(CATALOGUE, known(1, 1))]);
    let decided = decide(&olds, &ballots(&[("b", new.clone()), ("c", before)])).unwrap();
    assert_eq!(decided["users"].position, at(1, 7));
    let blind = ballot(&[(CATALOGUE, Vote::Unknown { floor: Some(at(1, 1)) })]);
    let refused = decide(&olds, &ballots(&[("b", new), ("c", blind)])).unwrap_err();
    assert_eq!(refused, Undecided::TooFewVotes { prefix: "users".into(), epoch: 1, counted: 1, needed: 2 });
}

#[test]
fn a_prefix_that_the_decided_catalogue_dropped_is_not_brought_back() {
    let olds = [reign(1, &["a", "b", "c"], 1)];
    let dropped = ballot(&[(CATALOGUE, known(1, 3))]);
    let before = ballot(&[(CATALOGUE, known(1, 2)), ("users", known(1, 7))]);
    let decision = decide(&olds, &ballots(&[("b", dropped), ("c", before)])).unwrap();
    assert_eq!(decision.keys().collect::<Vec<_>>(), [CATALOGUE]);
}

#[test]
fn a_listed_prefix_that_nobody_has_a_known_copy_of_blocks() {
    let olds = [reign(1, &["a"], 0)];
    let all = ballots(&[("a", ballot(&[(CATALOGUE, known(1, 2)), ("users", Vote::Unknown { floor: None })]))]);
    assert_eq!(decide(&olds, &all), Err(Undecided::NoCopy { prefix: "users".into() }));
    assert_eq!(decide(&olds, &Ballots::new()), Err(Undecided::NoCatalogue));
}

#[test]
fn what_a_quorum_acknowledged_is_asked_for_after_a_reign_that_waits_for_nobody() {
    let (olds, earlier) = ([reign(2, &["a", "b", "c"], 0)], [reign(1, &["a", "b", "c"], 1)]);
    let stale = || ballot(&[(CATALOGUE, known(1, 3))]);
    let refused = decide_after(&olds, &earlier, &ballots(&[("c", stale())])).unwrap_err();
    assert!(matches!(refused, Undecided::TooFewVotes { epoch: 1, counted: 1, needed: 2, .. }), "{refused:?}");
    // Two replicas of three have whatever it acknowledged, and so has whoever followed the later reign.
    assert!(decide_after(&olds, &earlier, &ballots(&[("b", stale()), ("c", stale())])).is_ok());
    let followed = ballot(&[(CATALOGUE, known(2, 4))]);
    assert_eq!(decide_after(&olds, &earlier, &ballots(&[("c", followed)])).unwrap()[CATALOGUE].position, at(2, 4));
}

#[test]
fn accepting_a_loss_waives_votes() {
    let all = ballots(&[("b", ballot(&[(CATALOGUE, known(1, 4))]))]);
    assert!(decide(&[reign(1, &["a", "b", "c"], 1)], &all).is_err());
    assert_eq!(decide_with_loss(&all).unwrap()[CATALOGUE].position, at(1, 4));
}

#[test]
fn the_candidate_has_least_to_fetch_and_the_old_primary_wins_a_tie() {
    let olds = [reign(1, &["c", "a", "b"], 1)];
    let full = ballot(&[(CATALOGUE, known(1, 5)), ("users", known(1, 100))]);
    let behind = ballot(&[(CATALOGUE, known(1, 5)), ("users", known(1, 60))]);
    let copying = ballot(&[(CATALOGUE, known(1, 5)), ("users", Vote::Unknown { floor: Some(at(1, 100)) })]);
    let among = set(&["a", "b", "c"]);
    let pick = |a: &Ballot, b: &Ballot, c: &Ballot| {
        let all = ballots(&[("a", a.clone()), ("b", b.clone()), ("c", c.clone())]);
        let decision = decide(&olds, &all).unwrap();
        candidate(&olds, &all, &decision, &among, "c").map(str::to_owned)
    };
    assert_eq!(pick(&full, &full, &full).as_deref(), Some("c"));
    assert_eq!(pick(&full, &full, &behind).as_deref(), Some("a"));
    assert_eq!(pick(&copying, &full, &behind).as_deref(), Some("b"));
    let parked = Ballot { can_lead: false, ..full.clone() };
    assert_eq!(pick(&parked, &parked, &behind).as_deref(), Some("c"), "a member that cannot lead still votes");
}

#[test]
fn a_reign_without_quorum_is_followed_only_by_its_own_members() {
    let olds = [reign(1, &["a", "b"], 0)];
    let same = ballot(&[(CATALOGUE, known(1, 5))]);
    let all = ballots(&[("b", same.clone()), ("x", same)]);
    let decision = decide(&olds, &all).unwrap();
    assert_eq!(candidate(&olds, &all, &decision, &set(&["b", "x"]), "a"), Some("b"));
    assert_eq!(candidate(&olds, &all, &decision, &set(&["x"]), "a"), None);
}

#[test]
fn tails_come_from_few_members_and_the_catalogue_comes_first() {
    let olds = [reign(1, &["a", "b", "c"], 1)];
    let lacks = ballot(&[(CATALOGUE, known(1, 1)), ("users", known(1, 10))]);
    let source = ballot(&[(CATALOGUE, known(1, 3)), ("users", known(1, 12)), ("pages", known(1, 5))]);
    let mut all = ballots(&[("b", lacks), ("c", source)]);
    let decision = decide(&olds, &all).unwrap();
    let first = missing(&all, &decision, "b").unwrap();
    assert_eq!((first.len(), first[0].source.as_str()), (1, "c"));
    assert_eq!(first[0].upto.keys().collect::<Vec<_>>(), [CATALOGUE]);
    all.insert("b".into(), ballot(&[(CATALOGUE, known(1, 3)), ("users", known(1, 10)), ("pages", known(0, 0))]));
    let then = missing(&all, &decision, "b").unwrap();
    assert_eq!(then.len(), 1);
    assert_eq!(then[0].upto.keys().collect::<Vec<_>>(), ["pages", "users"]);
    assert_eq!(missing(&all, &decision, "c").unwrap(), []);
    assert_eq!(cost(&all["b"], &decision).records, 7);
    assert_ne!(digest(&decision), digest(&decide(&olds, &ballots(&[("a", all["b"].clone())])).unwrap()));
}

/// One member as it really is: what it acknowledged, and what it can still say of it.
#[derive(Clone, Debug)]
struct Truth {
    held: Position,
    sealed: bool,
    /// 0: the copy is there. 1: it is being replaced, with this much above what it held as floor. 2: nothing is known.
    state: u8,
    above: u64,
}

impl Truth {
    fn vote(&self) -> Vote {
        match self.state {
            0 => Vote::Known(self.held),
            1 => Vote::Unknown { floor: Some(at(self.held.epoch, self.held.sequence + self.above)) },
            _ => Vote::Unknown { floor: None },
        }
    }
}

fn truths() -> impl Strategy<Value = Vec<Truth>> {
    let one = (1u64..3, 0u64..8, any::<bool>(), 0u8..3, 0u64..4)
        .prop_map(|(epoch, sequence, sealed, state, above)| Truth { held: at(epoch, sequence), sealed, state, above });
    prop::collection::vec(one, 2..6)
}

fn name(index: usize) -> String {
    format!("m{index}")
}

/// The reign of all of them, the first of which led.
fn reign_of(members: &[Truth], w: usize) -> OldReign {
    let names: Vec<String> = (0..members.len()).map(name).collect();
    reign(3, &names.iter().map(String::as_str).collect::<Vec<_>>(), u32::try_from(w).unwrap())
}

fn cast(members: &[Truth]) -> Ballots {
    let sealed = members.iter().enumerate().filter(|(_, member)| member.sealed);
    sealed.map(|(index, member)| (name(index), ballot(&[(CATALOGUE, member.vote())]))).collect()
}

/// The definition, word by word: some subset of n - W replicas, each known or covered, or the primary's known vote.
fn decided_by_definition(members: &[Truth], w: usize) -> Option<Position> {
    let votes = || members.iter().filter(|member| member.sealed).filter_map(|member| member.vote().known());
    let highest = votes().max()?;
    if w == 0 || (members[0].sealed && members[0].state == 0) {
        return Some(highest);
    }
    let replicas = &members[1..];
    let covered = |index: usize| {
        replicas[index].sealed
            && match replicas[index].vote() {
                Vote::Known(_) => true,
                Vote::Unknown { floor: Some(floor) } => votes().any(|known| known >= floor),
                Vote::Unknown { floor: None } => false,
            }
    };
    let subsets = 0u32..1 << replicas.len();
    let enough = |subset: u32| {
        let chosen: Vec<usize> = (0..replicas.len()).filter(|index| subset & (1 << index) != 0).collect();
        chosen.len() == members.len() - w && chosen.iter().all(|index| covered(*index))
    };
    subsets.into_iter().any(enough).then_some(highest)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_decision_is_what_the_definition_says(members in truths(), w in 0usize..5) {
        let w = w.min(members.len() - 1);
        let old = reign_of(&members, w);
        let decided = decide(std::slice::from_ref(&old), &cast(&members)).ok().map(|decision| decision[CATALOGUE].position);
        prop_assert_eq!(decided, decided_by_definition(&members, w));
    }

    #[test]
    fn whatever_a_quorum_acknowledged_is_at_or_below_the_decision(members in truths(), w in 1usize..5) {
        let w = w.min(members.len() - 1);
        let old = reign_of(&members, w);
        // The highest position that the primary and W replicas held is the most that can have been acknowledged.
        let mut replicas: Vec<Position> = members[1..].iter().map(|member| member.held).collect();
        replicas.sort();
        let acknowledged = replicas[replicas.len() - w].min(members[0].held);
        if let Ok(decision) = decide(std::slice::from_ref(&old), &cast(&members)) {
            prop_assert!(decision[CATALOGUE].position >= acknowledged);
        }
    }

    #[test]
    fn once_enough_sealed_no_write_can_find_w_replicas(members in truths(), w in 1usize..5) {
        let w = w.min(members.len() - 1);
        let old = reign_of(&members, w);
        let open = members[1..].iter().filter(|member| !member.sealed).count();
        let fenced = fence(&old, &cast(&members), Proof::default());
        prop_assert_eq!(fenced, members[0].sealed || open < w);
    }

    #[test]
    fn a_candidate_can_fetch_all_that_it_lacks_and_then_lacks_nothing(
        members in truths(), others in prop::collection::vec((0u64..6, 0u8..2), 1..6), w in 0usize..5,
    ) {
        let w = w.min(members.len() - 1);
        let old = reign_of(&members, w);
        let mut all = cast(&members);
        for (entry, (sequence, there)) in all.values_mut().zip(&others) {
            if *there == 1 {
                entry.votes.insert("users".into(), PrefixVote { name: "users".into(), catalogue: false, vote: known(1, *sequence) });
            }
        }
        let among: BTreeSet<String> = all.keys().cloned().collect();
        let olds = [old];
        if let Ok(decision) = decide(&olds, &all) {
            let chosen = candidate(&olds, &all, &decision, &among, "m0").unwrap().to_owned();
            for _ in 0..3 {
                let tails = missing(&all, &decision, &chosen).expect("what was voted for is somewhere");
                for tail in tails {
                    let source = all[&tail.source].clone();
                    let mine: &mut BTreeMap<_, _> = &mut all.get_mut(&chosen).unwrap().votes;
                    for uuid in tail.upto.keys() {
                        mine.insert(uuid.clone(), source.votes[uuid].clone());
                    }
                }
            }
            prop_assert_eq!(missing(&all, &decision, &chosen), Some(Vec::new()));
        }
    }
}
