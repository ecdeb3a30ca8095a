//! How a key names its prefix.
//!
//! A key is `prefix:rest`, split at the first `:`; what is stored in the prefix's database is the rest alone. A key without
//! `:` belongs to the prefix `default`, with its whole text. So `x` and `default:x` name one and the same record.
//! A record is spelled for clients so that the spelling leads back to it: `x` if it lies in `default` and has no `:`,
//! otherwise `prefix:rest`, so a record of `default` that has a `:` is `default:a:b`, since `a:b` would be another's.

/// The prefix of keys without a `:`.
pub const DEFAULT_PREFIX: &[u8] = b"default";

/// A key, split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key<'a> {
    /// Name of the prefix; not checked.
    pub prefix: &'a [u8],
    /// The key within the prefix.
    pub rest: &'a [u8],
}

/// Splits a key at its first `:`.
#[must_use]
pub fn split(key: &[u8]) -> Key<'_> {
    match key.iter().position(|b| *b == b':') {
        Some(at) => Key { prefix: &key[..at], rest: &key[at + 1..] },
        None => Key { prefix: DEFAULT_PREFIX, rest: key },
    }
}

/// The error that a key with an impossible prefix gets, code included.
#[must_use]
pub fn bad_prefix_text(prefix: &[u8]) -> String {
    let shown: String =
        String::from_utf8_lossy(prefix).chars().take(64).map(|c| if c.is_control() { '?' } else { c }).collect();
    format!("ERR invalid prefix '{shown}': what stands before a key's first ':' must be 1 to 64 of A-Z a-z 0-9 _ . -")
}

/// Appends the spelling of a record; `full` asks for `default:x` where `x` would do.
pub fn spell(prefix: &[u8], rest: &[u8], full: bool, out: &mut Vec<u8>) {
    if full || prefix != DEFAULT_PREFIX || rest.contains(&b':') {
        out.extend_from_slice(prefix);
        out.push(b':');
    }
    out.extend_from_slice(rest);
}
