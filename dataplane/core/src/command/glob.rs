//! The patterns of SCAN: `*`, `?`, `[abc]`, `[^a-z]` and `\` before a character that is meant as itself.

/// What every key that a pattern matches begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The only prefix in which keys can match; `None` = any.
    pub prefix: Option<Vec<u8>>,
    /// What the rest of a matching key begins with; empty unless `prefix` is known.
    pub start: Vec<u8>,
}

/// Narrows a pattern to a prefix and to the keys worth reading.
#[must_use]
pub fn scope(pattern: &[u8]) -> Scope {
    let mut literal = Vec::new();
    let mut rest = pattern;
    loop {
        match rest {
            [] | [b'*' | b'?' | b'[', ..] | [b'\\'] => break,
            [b'\\', byte, more @ ..] | [byte, more @ ..] => {
                literal.push(*byte);
                rest = more;
            }
        }
    }
    match literal.iter().position(|b| *b == b':') {
        Some(at) => Scope { prefix: Some(literal[..at].to_vec()), start: literal[at + 1..].to_vec() },
        None => Scope { prefix: None, start: Vec::new() },
    }
}

/// Whether the whole text matches. Takes at most length of pattern x length of text steps, and no memory.
#[must_use]
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on if what follows the last star does not fit: one character later. Earlier stars need no second try.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            retry = Some((p, t));
            continue;
        }
        let step = match (pattern.get(p..).filter(|rest| !rest.is_empty()), text.get(t)) {
            (None, None) => return true,
            (Some(rest), Some(&byte)) => match_one(rest, byte),
            _ => None,
        };
        match (step, retry) {
            (Some(used), _) => {
                p += used;
                t += 1;
            }
            (None, Some((after_star, from))) if from < text.len() => {
                retry = Some((after_star, from + 1));
                (p, t) = (after_star, from + 1);
            }
            (None, _) => return false,
        }
    }
}

/// If the first element of `pattern` accepts `byte`: the element's length.
fn match_one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'[', set @ ..] => {
            let (accepted, used) = match_set(set, byte);
            accepted.then_some(used + 1)
        }
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [literal, ..] => (*literal == byte).then_some(1),
        [] => None,
    }
}

/// Whether a set accepts `byte`, and the length of the set from behind its `[`. A set that is not closed ends with the pattern.
fn match_set(set: &[u8], byte: u8) -> (bool, usize) {
    let (negated, mut at) = if set.first() == Some(&b'^') { (true, 1) } else { (false, 0) };
    let mut found = false;
    loop {
        match &set[at.min(set.len())..] {
            [] => break,
            [b']', ..] => {
                at += 1;
                break;
            }
            [b'\\', escaped, ..] => {
                found |= *escaped == byte;
                at += 2;
            }
            [from, b'-', to, ..] => {
                let (low, high) = if from <= to { (from, to) } else { (to, from) };
                found |= (*low..=*high).contains(&byte);
                at += 3;
            }
            [literal, ..] => {
                found |= *literal == byte;
                at += 1;
            }
        }
    }
    (found != negated, at)
}
