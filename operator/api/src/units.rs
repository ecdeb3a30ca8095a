//! Quantities as people write them: lengths of time and numbers of bytes.
//!
//! Both keep the text. A value that this build cannot read must not make the whole object unreadable, because one bad
//! store would then stop the watch on all others; whoever needs the number parses it and handles the error.

use std::borrow::Cow;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A text is not a length of time or not a number of bytes. Terminal: the specification must change.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseUnitError {
    /// Not a sequence of numbers with the units `ms`, `s`, `m` or `h`.
    #[error("read time span {0:?}: write numbers with units, such as 300s, 2h or 1h30m")]
    TimeSpan(String),
    /// Not a whole number with an optional unit of bytes.
    #[error("read byte size {0:?}: write a whole number with a unit, such as 512Mi or 10Gi")]
    ByteSize(String),
}

/// A length of time: numbers with the units `ms`, `s`, `m`, `h`, such as `300s`, `2h`, `1h30m`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimeSpan(pub String);

impl Default for TimeSpan {
    fn default() -> Self {
        Self::seconds(0)
    }
}

impl TimeSpan {
    /// A span of whole seconds.
    #[must_use]
    pub fn seconds(seconds: u64) -> Self {
        Self(format!("{seconds}s"))
    }

    /// The length as a duration.
    ///
    /// # Errors
    /// The text is empty, has a number without a unit, an unknown unit, or more than `u64::MAX` milliseconds.
    pub fn duration(&self) -> Result<Duration, ParseUnitError> {
        let bad = || ParseUnitError::TimeSpan(self.0.clone());
        let mut rest = self.0.as_str();
        let mut millis: u64 = 0;
        if rest.is_empty() {
            return Err(bad());
        }
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let number: u64 = rest[..digits].parse().map_err(|_| bad())?;
            rest = &rest[digits..];
            let (scale, len) = match rest.as_bytes() {
                [b'm', b's', ..] => (1, 2),
                [b's', ..] => (1_000, 1),
                [b'm', ..] => (60_000, 1),
                [b'h', ..] => (3_600_000, 1),
                _ => return Err(bad()),
            };
            rest = &rest[len..];
            millis = number.checked_mul(scale).and_then(|part| millis.checked_add(part)).ok_or_else(bad)?;
        }
        Ok(Duration::from_millis(millis))
    }
}

impl JsonSchema for TimeSpan {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "TimeSpan".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "minLength": 2,
            "maxLength": 16,
            "pattern": "^([0-9]{1,9}(ms|s|m|h))+$",
        })
    }
}

/// A number of bytes: a whole number with an optional unit (`Ki Mi Gi Ti Pi` or `k M G T P`), such as `10Gi`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteSize(pub String);

impl ByteSize {
    /// The number of bytes.
    ///
    /// # Errors
    /// The text is not a whole number with a known unit, or is above `u64::MAX`.
    pub fn bytes(&self) -> Result<u64, ParseUnitError> {
        let bad = || ParseUnitError::ByteSize(self.0.clone());
        let digits = self.0.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = self.0[..digits].parse().map_err(|_| bad())?;
        let scale: u64 = match &self.0[digits..] {
            "" => 1,
            "k" => 1_000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "T" => 1_000_000_000_000,
            "P" => 1_000_000_000_000_000,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            "Pi" => 1 << 50,
            _ => return Err(bad()),
        };
        number.checked_mul(scale).ok_or_else(bad)
    }
}

impl JsonSchema for ByteSize {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "minLength": 1,
            "maxLength": 20,
            "pattern": "^[1-9][0-9]{0,14}(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$",
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn time_spans_with_one_or_several_units_are_read() {
        let millis = |text: &str| TimeSpan(text.into()).duration().unwrap().as_millis();
        assert_eq!(millis("300s"), 300_000);
        assert_eq!(millis("2h"), 7_200_000);
        assert_eq!(millis("1h30m"), 5_400_000);
        assert_eq!(millis("500ms"), 500);
        assert_eq!(millis("1m5ms"), 60_005);
    }

    #[test]
    fn time_spans_without_unit_or_number_are_refused() {
        for text in ["", "5", "s", "5d", "-1s", "1.5h", "99999999999999999999h", "5s "] {
            let error = TimeSpan(text.into()).duration().unwrap_err();
            assert_eq!(error, ParseUnitError::TimeSpan(text.into()), "{text}");
        }
    }

    #[test]
    fn byte_sizes_are_read_with_binary_and_decimal_units() {
        let bytes = |text: &str| ByteSize(text.into()).bytes().unwrap();
        assert_eq!(bytes("1"), 1);
        assert_eq!(bytes("10Gi"), 10 << 30);
        assert_eq!(bytes("5M"), 5_000_000);
    }

    #[test]
    fn byte_sizes_that_overflow_or_have_unknown_units_are_refused() {
        for text in ["", "Gi", "1.5Gi", "1Zi", "999999999999999999Pi"] {
            assert!(ByteSize(text.into()).bytes().is_err(), "{text}");
        }
    }
}
