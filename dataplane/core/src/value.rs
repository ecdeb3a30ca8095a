//! How a value and its expiry are stored: a one-byte header, the absolute expiry where there is one, then the user's bytes.
//!
//! The expiry is absolute and replicated as it was written, so that no replica stamps it a second time.

use bytes::BufMut;

const PLAIN: u8 = 0;
const EXPIRING: u8 = 1;

/// Why stored bytes are not a value. Terminal: the same bytes will not become better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// There are no bytes, not even a header.
    #[error("decode value: no header")]
    Empty,
    /// A header of a later format, or no value at all.
    #[error("decode value: unknown header {0}")]
    UnknownHeader(u8),
    /// The header promises an expiry that is not there.
    #[error("decode value: expiry is cut off")]
    CutOff,
}

/// A stored value, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored<'a> {
    /// When it stops being there, in milliseconds since 1970 (UTC).
    pub expires_at_ms: Option<u64>,
    /// The user's bytes.
    pub value: &'a [u8],
}

impl Stored<'_> {
    /// Whether it is gone at `now_ms`, in milliseconds since 1970 (UTC).
    #[must_use]
    pub fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_at_ms.is_some_and(|at| at <= now_ms)
    }
}

/// Takes stored bytes apart.
///
/// # Errors
/// See [`ValueError`].
pub fn decode(stored: &[u8]) -> Result<Stored<'_>, ValueError> {
    match stored.split_first() {
        None => Err(ValueError::Empty),
        Some((&PLAIN, value)) => Ok(Stored { expires_at_ms: None, value }),
        Some((&EXPIRING, rest)) => {
            let (expiry, value) = rest.split_first_chunk::<8>().ok_or(ValueError::CutOff)?;
            Ok(Stored { expires_at_ms: Some(u64::from_le_bytes(*expiry)), value })
        }
        Some((&header, _)) => Err(ValueError::UnknownHeader(header)),
    }
}

/// Bytes that [`encode_into`] will add.
#[must_use]
pub const fn encoded_len(value: &[u8], expires_at_ms: Option<u64>) -> usize {
    match expires_at_ms {
        None => 1 + value.len(),
        Some(_) => 9 + value.len(),
    }
}

/// Adds a value as it is stored to `buffer`. `expires_at_ms` is in milliseconds since 1970 (UTC).
pub fn encode_into(buffer: &mut impl BufMut, value: &[u8], expires_at_ms: Option<u64>) {
    match expires_at_ms {
        None => buffer.put_u8(PLAIN),
        Some(at) => {
            buffer.put_u8(EXPIRING);
            buffer.put_u64_le(at);
        }
    }
    buffer.put_slice(value);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_value_expires_at_its_moment_and_not_before() {
        let mut stored = Vec::new();
        encode_into(&mut stored, b"v", Some(1_000));
        let value = decode(&stored).unwrap();
        assert!(!value.is_expired(999));
        assert!(value.is_expired(1_000));
        assert!(!decode(b"\0v").unwrap().is_expired(u64::MAX));
    }

    #[test]
    fn what_is_no_value_is_refused_by_name() {
        assert_eq!(decode(b"").unwrap_err().to_string(), "decode value: no header");
        assert_eq!(decode(b"\x07abc").unwrap_err().to_string(), "decode value: unknown header 7");
        assert_eq!(decode(b"\x01abc").unwrap_err(), ValueError::CutOff);
    }

    proptest! {
        #[test]
        fn values_come_back_and_length_is_as_foretold(value in proptest::collection::vec(any::<u8>(), 0..99), at in any::<Option<u64>>()) {
            let mut stored = Vec::new();
            encode_into(&mut stored, &value, at);
            prop_assert_eq!(stored.len(), encoded_len(&value, at));
            prop_assert_eq!(decode(&stored).unwrap(), Stored { expires_at_ms: at, value: &value });
        }

        #[test]
        fn arbitrary_bytes_never_panic(stored in proptest::collection::vec(any::<u8>(), 0..20)) {
            let _ = decode(&stored);
        }
    }
}
