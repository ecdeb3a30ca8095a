//! Which keys some batches may hold: a set that may say yes too often, never no too often.

const BITS: u64 = 1 << 18;

/// See the module.
#[derive(Debug)]
pub(super) struct Pending {
    words: Box<[u64]>,
    /// Words with bits, to clear only those.
    used: Vec<u16>,
}

impl Default for Pending {
    fn default() -> Self {
        Self { words: vec![0; (BITS / 64) as usize].into(), used: Vec::new() }
    }
}

impl Pending {
    fn bit(hash: u64) -> (usize, u64) {
        let bit = hash % BITS;
        ((bit / 64) as usize, 1 << (bit % 64))
    }

    pub(super) fn insert(&mut self, hash: u64) {
        let (word, bit) = Self::bit(hash);
        if self.words[word] == 0 {
            self.used.push(word as u16);
        }
        self.words[word] |= bit;
    }

    pub(super) fn may_hold(&self, hash: u64) -> bool {
        let (word, bit) = Self::bit(hash);
        self.words[word] & bit != 0
    }

    pub(super) fn clear(&mut self) {
        for word in self.used.drain(..) {
            self.words[word as usize] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_inserted_is_held_until_cleared() {
        let mut p = Pending::default();
        for i in 0..1000u64 {
            p.insert(i * 7919);
        }
        assert!((0..1000u64).all(|i| p.may_hold(i * 7919)));
        p.clear();
        assert!((0..1000u64).all(|i| !p.may_hold(i * 7919)));
    }
}
