//! Who still needs which WAL of this member. The pruner asks here before it removes a file.
//!
//! Invariant: a hold ends by itself; nobody can keep a volume filling up by vanishing.

use std::collections::HashMap;

use parovoz_dataplane_core::types::{DataUuid, PrefixUuid, Sequence};
use uuid::Uuid;

/// Who holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A follower that streams from here, or did so lately.
    Follower(DataUuid),
    /// A snapshot that is being copied.
    Snapshot(Uuid),
    /// A person: `delay_background`.
    Operator,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Follower(who) => write!(f, "follower {who}"),
            Self::Snapshot(id) => write!(f, "snapshot {id}"),
            Self::Operator => f.write_str("operator"),
        }
    }
}

/// One hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Who.
    pub owner: Owner,
    /// Of which prefix; `None` = all.
    pub prefix: Option<PrefixUuid>,
    /// What follows this is needed.
    pub after: Sequence,
    /// When it ends, on the clock of `clock::boot_ms`.
    pub expires_ms: u64,
}

/// All holds of this member. Small: one per follower and prefix, a few snapshots, a few of a person.
#[derive(Debug, Default)]
pub struct Holds {
    holds: HashMap<(Owner, Option<PrefixUuid>), Hold>,
}

impl Holds {
    /// Adds a hold, or puts it in place of the one of the same owner and prefix.
    pub fn put(&mut self, hold: Hold) {
        self.holds.insert((hold.owner.clone(), hold.prefix), hold);
    }

    /// Lets all holds of an owner live until `expires_ms`; answers whether there are any.
    pub fn renew(&mut self, owner: &Owner, expires_ms: u64) -> bool {
        let mut found = false;
        for hold in self.holds.values_mut().filter(|h| h.owner == *owner) {
            hold.expires_ms = expires_ms;
            found = true;
        }
        found
    }

    /// Ends all holds of an owner.
    pub fn remove(&mut self, owner: &Owner) {
        self.holds.retain(|_, h| h.owner != *owner);
    }

    /// Ends an owner's hold on one prefix.
    pub fn remove_one(&mut self, owner: &Owner, prefix: PrefixUuid) {
        self.holds.remove(&(owner.clone(), Some(prefix)));
    }

    /// Ends the holds on prefixes that `keep` does not know: they were dropped.
    pub fn retain_prefixes(&mut self, keep: impl Fn(PrefixUuid) -> bool) {
        self.holds.retain(|_, h| h.prefix.is_none_or(&keep));
    }

    /// Removes what has ended.
    pub fn expire(&mut self, now_ms: u64) {
        self.holds.retain(|_, h| h.expires_ms > now_ms);
    }

    /// `delay_background`: everything that is there now stays until `expires_ms`, for one prefix or for all.
    pub fn delay(&mut self, prefix: Option<PrefixUuid>, expires_ms: u64) {
        self.put(Hold { owner: Owner::Operator, prefix, after: Sequence(0), expires_ms });
    }

    /// `continue_background`: ends a person's hold on one prefix, or all of them.
    pub fn continue_(&mut self, prefix: Option<PrefixUuid>) {
        self.holds.retain(|_, h| h.owner != Owner::Operator || (prefix.is_some() && h.prefix != prefix));
    }

    /// What follows this sequence must not be removed; `None` = nobody needs anything.
    #[must_use]
    pub fn oldest_needed(&self, prefix: PrefixUuid, now_ms: u64) -> Option<Sequence> {
        self.live(now_ms).filter(|h| h.prefix.is_none_or(|p| p == prefix)).map(|h| h.after).min()
    }

    /// All holds that have not ended.
    pub fn live(&self, now_ms: u64) -> impl Iterator<Item = &Hold> {
        self.holds.values().filter(move |h| h.expires_ms > now_ms)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const P: PrefixUuid = PrefixUuid(Uuid::from_u128(1));
    const Q: PrefixUuid = PrefixUuid(Uuid::from_u128(2));

    fn follower(n: u128, after: u64, expires_ms: u64) -> Hold {
        Hold {
            owner: Owner::Follower(DataUuid(Uuid::from_u128(n))),
            prefix: Some(P),
            after: Sequence(after),
            expires_ms,
        }
    }

    #[test]
    fn the_slowest_decides_and_an_expired_hold_does_not() {
        let mut holds = Holds::default();
        assert_eq!(holds.oldest_needed(P, 0), None);
        holds.put(follower(1, 100, 50));
        holds.put(follower(2, 70, 10));
        assert_eq!(holds.oldest_needed(P, 5), Some(Sequence(70)));
        assert_eq!(holds.oldest_needed(P, 10), Some(Sequence(100)));
        assert_eq!(holds.oldest_needed(Q, 5), None);
        holds.put(follower(1, 120, 60));
        assert_eq!(holds.oldest_needed(P, 55), Some(Sequence(120)));
        holds.expire(60);
        assert_eq!(holds.live(0).count(), 0);
    }

    #[test]
    fn a_persons_hold_covers_all_prefixes_until_it_is_continued() {
        let mut holds = Holds::default();
        holds.delay(None, 100);
        holds.delay(Some(P), 100);
        assert_eq!(holds.oldest_needed(Q, 5), Some(Sequence(0)));
        holds.continue_(Some(P));
        assert_eq!(holds.oldest_needed(P, 5), Some(Sequence(0)), "the hold on all prefixes is still there");
        holds.continue_(None);
        assert_eq!(holds.oldest_needed(P, 5), None);
    }

    #[test]
    fn a_snapshots_hold_lives_as_long_as_it_is_renewed() {
        let mut holds = Holds::default();
        let owner = Owner::Snapshot(Uuid::from_u128(9));
        holds.put(Hold { owner: owner.clone(), prefix: Some(P), after: Sequence(5), expires_ms: 10 });
        assert!(holds.renew(&owner, 20));
        assert_eq!(holds.oldest_needed(P, 15), Some(Sequence(5)));
        holds.remove(&owner);
        assert!(!holds.renew(&owner, 30));
    }
}
