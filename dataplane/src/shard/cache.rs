//! The object cache: what the loop's prefixes were last read or written as.
//!
//! One circular log of bytes holds the objects and one table of slots finds them: no allocation, no list to keep in order, no
//! pause to clear anything. The oldest are overwritten; what is read in the older half is copied to the front first. The table
//! may forget (a slot is taken over by another key), it never answers wrongly: the whole key is compared.

/// Slots that a key may be in.
const WAYS: usize = 8;
/// hash 8, owner 4, length of key 4, expiry 8, length of value 4, free 4.
const HEADER: usize = 32;
/// Bytes of log per slot of the table.
const BYTES_PER_SLOT: usize = 128;
/// Smaller budgets switch the cache off.
const MIN_BUDGET: usize = 64 << 10;
/// A length of value that says "this key does not exist".
const ABSENT: u32 = u32::MAX;
const OFFSET_BITS: u32 = 48;
const OFFSET_MASK: u64 = (1 << OFFSET_BITS) - 1;

/// See the module.
#[derive(Debug)]
pub(super) struct ObjectCache {
    log: Box<[u8]>,
    /// Where the next object goes, counted on and on; its place is the remainder by the log's length.
    head: u64,
    /// 16 bits of hash and the object's offset / 8; 0 = free.
    slots: Box<[u64]>,
    mask: usize,
    largest: usize,
}

/// Where an object lies; valid until the next insertion.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place(usize);

/// An object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cached<'a> {
    /// `None` = known not to exist.
    pub(super) value: Option<&'a [u8]>,
    /// In milliseconds since 1970; 0 = never.
    pub(super) expires_at_ms: u64,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

impl ObjectCache {
    /// A cache that takes about `budget` bytes.
    pub(super) fn new(budget: usize) -> Self {
        if budget < MIN_BUDGET {
            return Self { log: Box::default(), head: 0, slots: Box::default(), mask: 0, largest: 0 };
        }
        let len = (budget / 16 * 15) & !7;
        let buckets = (len / BYTES_PER_SLOT / WAYS).next_power_of_two();
        Self {
            log: vec![0; len].into(),
            head: len as u64,
            slots: vec![0; buckets * WAYS].into(),
            mask: buckets - 1,
            largest: len / 32,
        }
    }

    /// Bytes that it may take.
    pub(super) fn bytes(&self) -> usize {
        self.log.len() + self.slots.len() * 8
    }

    fn place(&self, offset: u64) -> usize {
        (offset % self.log.len() as u64) as usize
    }

    fn bucket(&self, hash: u64) -> usize {
        (hash as usize & self.mask) * WAYS
    }

    /// The slot of a key and its object's offset.
    fn slot(&self, hash: u64, owner: u32, key: &[u8]) -> Option<(usize, u64)> {
        if self.log.is_empty() {
            return None;
        }
        let bucket = self.bucket(hash);
        for (i, slot) in self.slots[bucket..bucket + WAYS].iter().enumerate() {
            if slot >> OFFSET_BITS != hash >> OFFSET_BITS || slot & OFFSET_MASK == 0 {
                continue;
            }
            let offset = (slot & OFFSET_MASK) * 8;
            if self.lives(offset) && self.is(self.place(offset), hash, owner, key) {
                return Some((bucket + i, offset));
            }
        }
        None
    }

    fn lives(&self, offset: u64) -> bool {
        offset + self.log.len() as u64 >= self.head
    }

    fn is(&self, at: usize, hash: u64, owner: u32, key: &[u8]) -> bool {
        let header = &self.log[at..at + HEADER];
        u64::from_le_bytes(number(header, 0)) == hash
            && u32::from_le_bytes(number(header, 8)) == owner
            && u32::from_le_bytes(number(header, 12)) as usize == key.len()
            && &self.log[at + HEADER..at + HEADER + key.len()] == key
    }

    /// Looks a key up; what lies in the older half moves to the front.
    pub(super) fn find(&mut self, hash: u64, owner: u32, key: &[u8]) -> Option<Place> {
        let (slot, offset) = self.slot(hash, owner, key)?;
        let at = self.place(offset);
        if offset + self.log.len() as u64 / 2 >= self.head {
            return Some(Place(at));
        }
        let value_len = u32::from_le_bytes(number(&self.log, at + 24));
        let size = object_size(key.len(), if value_len == ABSENT { 0 } else { value_len as usize });
        let new = self.claim(size);
        let to = self.place(new);
        self.log.copy_within(at..at + size, to);
        self.slots[slot] = slot_of(hash, new);
        Some(Place(to))
    }

    /// The object at a place.
    pub(super) fn at(&self, place: Place) -> Cached<'_> {
        let header = &self.log[place.0..place.0 + HEADER];
        let key_len = u32::from_le_bytes(number(header, 12)) as usize;
        let value_len = u32::from_le_bytes(number(header, 24));
        let from = place.0 + HEADER + key_len;
        Cached {
            value: (value_len != ABSENT).then(|| &self.log[from..from + value_len as usize]),
            expires_at_ms: u64::from_le_bytes(number(header, 16)),
        }
    }

    /// Takes what a key is now. An object that is too large for the cache is forgotten instead.
    ///
    /// Objects are not changed in place: to find the old one costs a miss of the processor's cache, which every write would
    /// pay. Whatever may be the key's old object is forgotten by its bits of hash alone.
    pub(super) fn insert(&mut self, hash: u64, owner: u32, key: &[u8], object: Cached<'_>) {
        if self.log.is_empty() {
            return;
        }
        let value = object.value.unwrap_or(&[]);
        let size = object_size(key.len(), value.len());
        let known = self.forget(hash);
        if size > self.largest {
            return;
        }
        let slot = known.unwrap_or_else(|| self.victim(hash));
        let offset = self.claim(size);
        self.slots[slot] = slot_of(hash, offset);
        let at = self.place(offset);
        let len = if object.value.is_some() { value.len() as u32 } else { ABSENT };
        let entry = &mut self.log[at..at + HEADER + key.len() + value.len()];
        entry[..8].copy_from_slice(&hash.to_le_bytes());
        entry[8..12].copy_from_slice(&owner.to_le_bytes());
        entry[12..16].copy_from_slice(&(key.len() as u32).to_le_bytes());
        entry[16..24].copy_from_slice(&object.expires_at_ms.to_le_bytes());
        entry[24..28].copy_from_slice(&len.to_le_bytes());
        entry[HEADER..HEADER + key.len()].copy_from_slice(key);
        entry[HEADER + key.len()..].copy_from_slice(value);
    }

    /// Frees every slot that the key may be in; answers one of them.
    fn forget(&mut self, hash: u64) -> Option<usize> {
        let bucket = self.bucket(hash);
        let mut freed = None;
        for (i, slot) in self.slots[bucket..bucket + WAYS].iter_mut().enumerate() {
            if *slot >> OFFSET_BITS == hash >> OFFSET_BITS && *slot & OFFSET_MASK != 0 {
                *slot = 0;
                freed = freed.or(Some(bucket + i));
            }
        }
        freed
    }

    /// The slot that a new key of this hash takes: a free one, else that of the oldest object.
    fn victim(&self, hash: u64) -> usize {
        let bucket = self.bucket(hash);
        let oldest = (0..WAYS).min_by_key(|i| self.slots[bucket + i] & OFFSET_MASK).unwrap_or(0);
        bucket + oldest
    }

    /// Room for `size` bytes in one piece.
    fn claim(&mut self, size: usize) -> u64 {
        let len = self.log.len() as u64;
        if self.head / 8 + len > OFFSET_MASK {
            // Offsets are used up, after two petabytes.
            self.slots.fill(0);
            self.head = len;
        }
        let left = len - self.head % len;
        if (size as u64) > left {
            self.head += left;
        }
        let offset = self.head;
        self.head += size as u64;
        offset
    }
}

fn object_size(key: usize, value: usize) -> usize {
    (HEADER + key + value).next_multiple_of(8)
}

fn slot_of(hash: u64, offset: u64) -> u64 {
    ((hash >> OFFSET_BITS) << OFFSET_BITS) | (offset / 8)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn get(cache: &mut ObjectCache, hash: u64, owner: u32, key: &[u8]) -> Option<(Option<Vec<u8>>, u64)> {
        let place = cache.find(hash, owner, key)?;
        let c = cache.at(place);
        Some((c.value.map(<[u8]>::to_vec), c.expires_at_ms))
    }

    fn value(bytes: &[u8]) -> Cached<'_> {
        Cached { value: Some(bytes), expires_at_ms: 7 }
    }

    #[test]
    fn objects_are_found_by_their_whole_key_and_owner() {
        let mut cache = ObjectCache::new(1 << 20);
        cache.insert(9, 1, b"k", value(b"v"));
        assert_eq!(get(&mut cache, 9, 1, b"k"), Some((Some(b"v".to_vec()), 7)));
        assert_eq!(get(&mut cache, 9, 2, b"k"), None, "another owner");
        assert_eq!(get(&mut cache, 9, 1, b"l"), None, "the same hash, another key");
        cache.insert(9, 1, b"k", Cached { value: None, expires_at_ms: 0 });
        assert_eq!(get(&mut cache, 9, 1, b"k"), Some((None, 0)));
    }

    #[test]
    fn what_is_too_large_is_forgotten_not_kept_stale() {
        let mut cache = ObjectCache::new(1 << 20);
        cache.insert(9, 1, b"k", value(b"v"));
        cache.insert(9, 1, b"k", value(&vec![0; 1 << 20]));
        assert_eq!(get(&mut cache, 9, 1, b"k"), None);
    }

    #[test]
    fn what_is_read_survives_what_is_only_written() {
        let mut cache = ObjectCache::new(1 << 20);
        cache.insert(1, 1, b"hot", value(b"hot"));
        for i in 0..100_000u64 {
            let key = i.to_le_bytes();
            cache.insert(i.wrapping_mul(0x9E37_79B9_7F4A_7C15), 1, &key, value(&[0; 100]));
            assert!(get(&mut cache, 1, 1, b"hot").is_some(), "after {i}");
        }
    }

    #[test]
    fn a_small_budget_switches_it_off() {
        let mut cache = ObjectCache::new(100);
        cache.insert(1, 1, b"k", value(b"v"));
        assert_eq!(get(&mut cache, 1, 1, b"k"), None);
    }

    proptest! {
        /// It may forget, but what it answers is always the latest.
        #[test]
        fn it_never_answers_anything_but_the_latest(
            steps in prop::collection::vec((0u64..300, prop::option::of(0usize..1500), any::<bool>()), 1..3000)
        ) {
            let mut cache = ObjectCache::new(MIN_BUDGET);
            let mut model: HashMap<u64, (Option<Vec<u8>>, u64)> = HashMap::new();
            for (i, (key, len, read)) in steps.into_iter().enumerate() {
                let hash = key.wrapping_mul(0x9E37_79B9_7F4A_7C15);
                if read {
                    if let Some(found) = get(&mut cache, hash, 0, &key.to_le_bytes()) {
                        prop_assert_eq!(Some(&found), model.get(&key));
                    }
                } else {
                    let bytes = len.map(|n| vec![i as u8; n]);
                    cache.insert(hash, 0, &key.to_le_bytes(), Cached { value: bytes.as_deref(), expires_at_ms: i as u64 });
                    model.insert(key, (bytes, i as u64));
                }
            }
        }
    }
}
