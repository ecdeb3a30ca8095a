//! Requests out of a growing buffer. The arguments are ranges of that buffer.

/// How large a request may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLimits {
    /// Arguments, the command's name included.
    pub args: usize,
    /// Bytes of one argument.
    pub bulk: usize,
    /// Bytes of a whole request, its headers included.
    pub request: usize,
}

impl RequestLimits {
    /// Limits for requests that carry up to `batch` bytes of data. The count of arguments is that of Redis.
    #[must_use]
    pub const fn for_batch(batch: usize) -> Self {
        // Offsets are kept in 32 bits.
        let batch = if batch > 1 << 30 { 1 << 30 } else { batch };
        Self { args: 1 << 20, bulk: batch, request: batch + (batch >> 1) + (64 << 10) }
    }
}

/// What ends a connection: after it, the start of the next request is unknown. The texts are those of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// `*` is not followed by a count within the limit.
    #[error("Protocol error: invalid multibulk length")]
    MultibulkLength,
    /// The line after `*` does not end.
    #[error("Protocol error: too big mbulk count string")]
    MultibulkLine,
    /// `$` is not followed by a length within the limit.
    #[error("Protocol error: invalid bulk length")]
    BulkLength,
    /// The line after `$` does not end.
    #[error("Protocol error: too big bulk count string")]
    BulkLine,
    /// An argument does not begin with `$`.
    #[error("Protocol error: expected '$', got '{}'", char::from(if .0.is_ascii_graphic() { *.0 } else { b'?' }))]
    NotBulk(u8),
    /// An inline request without an end of line.
    #[error("Protocol error: too big inline request")]
    InlineTooBig,
    /// A quote that is not closed, or is followed by something other than a blank.
    #[error("Protocol error: unbalanced quotes in request")]
    Quotes,
    /// All arguments together are over the limit.
    #[error("Protocol error: request is over the limit of {0} bytes")]
    RequestTooBig(usize),
}

/// Longest line of an inline request.
const INLINE_MAX: usize = 64 << 10;
/// Longest line with a count or length: far more than any number takes.
const HEADER_MAX: usize = 64;
/// More remembered ranges than this are given back after their request.
const KEPT_RANGES: usize = 1024;

/// The arguments of one request. Index 0 is the command's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Args<'a> {
    buf: &'a [u8],
    ranges: &'a [(u32, u32)],
}

impl<'a> Args<'a> {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Argument `i`; empty if there are not so many (callers check the count first).
    #[must_use]
    pub fn at(&self, i: usize) -> &'a [u8] {
        self.ranges.get(i).map_or(&[], |&(from, to)| &self.buf[from as usize..to as usize])
    }

    /// The arguments from `n` on.
    #[must_use]
    pub fn skip(&self, n: usize) -> Self {
        Self { buf: self.buf, ranges: self.ranges.get(n..).unwrap_or(&[]) }
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        let buf = self.buf;
        self.ranges.iter().map(move |&(from, to)| &buf[from as usize..to as usize])
    }

    /// Bytes of all arguments together.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.ranges.iter().map(|&(from, to)| (to - from) as usize).sum()
    }
}

/// Reads one request after the other; remembers how far it came in a request that has not arrived whole.
#[derive(Debug)]
pub struct Parser {
    limits: RequestLimits,
    ranges: Vec<(u32, u32)>,
    /// Arguments of an inline request, which may have been unquoted.
    inline: Vec<u8>,
    /// Read so far, counted from the request's first byte.
    pos: usize,
    /// Arguments still to come.
    left: usize,
    /// Length of the argument whose header was read last.
    bulk: Option<usize>,
    /// The last call answered a whole request: the next one starts afresh.
    whole: bool,
    is_inline: bool,
}

enum Number {
    /// The line has not ended yet.
    Partial,
    /// The line is too long.
    Endless,
    /// Not a number.
    Bad,
    /// The number, and where the next line starts.
    Good(i64, usize),
}

impl Parser {
    /// A parser at the start of a request.
    #[must_use]
    pub fn new(limits: RequestLimits) -> Self {
        Self {
            limits,
            ranges: Vec::new(),
            inline: Vec::new(),
            pos: 0,
            left: 0,
            bulk: None,
            whole: false,
            is_inline: false,
        }
    }

    /// Reads on. `buf` begins with the first byte of the present request, each time with at least what was there before.
    /// Answers the length of the request once it is whole ([`Parser::args`] may be empty: a blank line), `None` before.
    ///
    /// # Errors
    /// See [`ProtocolError`]; the connection can't be read any further.
    pub fn parse(&mut self, buf: &[u8]) -> Result<Option<usize>, ProtocolError> {
        if self.whole {
            self.reset();
        }
        if self.pos == 0 {
            match buf.first() {
                None => return Ok(None),
                Some(b'*') => match self.parse_count(buf)? {
                    Some(()) => {}
                    None => return Ok(None),
                },
                Some(_) => return self.parse_inline(buf),
            }
        }
        while self.left > 0 {
            if !self.parse_bulk(buf)? {
                return Ok(None);
            }
        }
        self.whole = true;
        Ok(Some(self.pos))
    }

    /// The arguments of the request that [`Parser::parse`] just answered, `buf` being what it was given.
    #[must_use]
    pub fn args<'a>(&'a self, buf: &'a [u8]) -> Args<'a> {
        Args { buf: if self.is_inline { &self.inline } else { buf }, ranges: &self.ranges }
    }

    /// About how many bytes from the request's start on are needed to go on; 0 = unknown.
    #[must_use]
    pub fn wanted(&self) -> usize {
        if self.whole { 0 } else { self.bulk.map_or(0, |len| self.pos + len + 2) }
    }

    /// Forgets the present request; its bytes may go.
    pub fn reset(&mut self) {
        self.ranges.clear();
        if self.ranges.capacity() > KEPT_RANGES {
            self.ranges.shrink_to(KEPT_RANGES);
        }
        if self.inline.capacity() > 0 {
            self.inline = Vec::new();
        }
        self.pos = 0;
        self.left = 0;
        self.bulk = None;
        self.whole = false;
        self.is_inline = false;
    }

    fn parse_count(&mut self, buf: &[u8]) -> Result<Option<()>, ProtocolError> {
        match number_line(buf, 1) {
            Number::Partial => Ok(None),
            Number::Endless => Err(ProtocolError::MultibulkLine),
            Number::Bad => Err(ProtocolError::MultibulkLength),
            Number::Good(count, next) => {
                // A count of zero or less is an empty request, as in Redis.
                let count = usize::try_from(count.max(0)).map_err(|_| ProtocolError::MultibulkLength)?;
                if count > self.limits.args {
                    return Err(ProtocolError::MultibulkLength);
                }
                self.left = count;
                self.pos = next;
                Ok(Some(()))
            }
        }
    }

    /// Reads the next argument; false = it has not arrived whole.
    fn parse_bulk(&mut self, buf: &[u8]) -> Result<bool, ProtocolError> {
        let len = match self.bulk {
            Some(len) => len,
            None => {
                match buf.get(self.pos) {
                    None => return Ok(false),
                    Some(b'$') => {}
                    Some(other) => return Err(ProtocolError::NotBulk(*other)),
                }
                match number_line(buf, self.pos + 1) {
                    Number::Partial => return Ok(false),
                    Number::Endless => return Err(ProtocolError::BulkLine),
                    Number::Bad => return Err(ProtocolError::BulkLength),
                    Number::Good(len, next) => {
                        let len = usize::try_from(len).map_err(|_| ProtocolError::BulkLength)?;
                        if len > self.limits.bulk {
                            return Err(ProtocolError::BulkLength);
                        }
                        if next + len + 2 > self.limits.request {
                            return Err(ProtocolError::RequestTooBig(self.limits.request));
                        }
                        self.pos = next;
                        self.bulk = Some(len);
                        len
                    }
                }
            }
        };
        let end = self.pos + len;
        if buf.len() < end + 2 {
            return Ok(false);
        }
        // The limits keep every offset below 2^32.
        self.ranges.push((self.pos as u32, end as u32));
        self.pos = end + 2;
        self.bulk = None;
        self.left -= 1;
        Ok(true)
    }

    fn parse_inline(&mut self, buf: &[u8]) -> Result<Option<usize>, ProtocolError> {
        let Some(newline) = buf.iter().take(INLINE_MAX).position(|b| *b == b'\n') else {
            return if buf.len() >= INLINE_MAX { Err(ProtocolError::InlineTooBig) } else { Ok(None) };
        };
        let line = &buf[..newline];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        self.is_inline = true;
        split_inline(line, &mut self.inline, &mut self.ranges)?;
        self.pos = newline + 1;
        self.whole = true;
        Ok(Some(self.pos))
    }
}

/// Reads the number in the line that starts at `from`.
fn number_line(buf: &[u8], from: usize) -> Number {
    let line = &buf[from.min(buf.len())..];
    // The common case, one to three digits, without a search.
    let Some(len) = line.iter().take(HEADER_MAX).position(|b| *b == b'\r') else {
        return if line.len() >= HEADER_MAX { Number::Endless } else { Number::Partial };
    };
    if line.len() < len + 2 {
        return Number::Partial;
    }
    match integer(&line[..len]) {
        Some(n) => Number::Good(n, from + len + 2),
        None => Number::Bad,
    }
}

/// A decimal number as Redis reads it: an optional `-`, no `+`, no blanks, no leading zeros.
#[must_use]
pub fn integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        all => (false, all),
    };
    match digits {
        [] | [b'0', _, ..] => return None,
        [b'0'] => return if negative { None } else { Some(0) },
        _ => {}
    }
    if digits.len() > 19 {
        return None;
    }
    let mut value: u64 = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        // 19 digits stay below 10^19 < 2^64.
        value = value * 10 + u64::from(digit - b'0');
    }
    if negative {
        if value > i64::MIN.unsigned_abs() { None } else { Some(0i64.wrapping_sub_unsigned(value)) }
    } else {
        i64::try_from(value).ok()
    }
}

/// Splits a line at blanks; double quotes know escapes, single quotes only `\'`.
fn split_inline(line: &[u8], text: &mut Vec<u8>, ranges: &mut Vec<(u32, u32)>) -> Result<(), ProtocolError> {
    let mut rest = line;
    loop {
        rest = rest.trim_ascii_start();
        let Some(&first) = rest.first() else { return Ok(()) };
        let start = text.len() as u32;
        let used = match first {
            b'"' => double_quoted(rest, text)?,
            b'\'' => single_quoted(rest, text)?,
            _ => plain(rest, text)?,
        };
        rest = &rest[used..];
        ranges.push((start, text.len() as u32));
    }
}

/// Takes a bare word, in which quotes may begin as well.
fn plain(rest: &[u8], text: &mut Vec<u8>) -> Result<usize, ProtocolError> {
    let mut at = 0;
    while let Some(&byte) = rest.get(at) {
        match byte {
            b if b.is_ascii_whitespace() || b == 0 => return Ok(at.max(1)),
            b'"' => return Ok(at + double_quoted(&rest[at..], text)?),
            b'\'' => return Ok(at + single_quoted(&rest[at..], text)?),
            other => text.push(other),
        }
        at += 1;
    }
    Ok(at)
}

fn closed(rest: &[u8], after: usize) -> Result<usize, ProtocolError> {
    match rest.get(after) {
        None => Ok(after),
        Some(b) if b.is_ascii_whitespace() => Ok(after),
        Some(_) => Err(ProtocolError::Quotes),
    }
}

fn single_quoted(rest: &[u8], text: &mut Vec<u8>) -> Result<usize, ProtocolError> {
    let mut at = 1;
    loop {
        match &rest[at.min(rest.len())..] {
            [] => return Err(ProtocolError::Quotes),
            [b'\\', b'\'', ..] => {
                text.push(b'\'');
                at += 2;
            }
            [b'\'', ..] => return closed(rest, at + 1),
            [other, ..] => {
                text.push(*other);
                at += 1;
            }
        }
    }
}

fn double_quoted(rest: &[u8], text: &mut Vec<u8>) -> Result<usize, ProtocolError> {
    let mut at = 1;
    loop {
        match &rest[at.min(rest.len())..] {
            [] => return Err(ProtocolError::Quotes),
            [b'\\', b'x', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                text.push(hex(*high) << 4 | hex(*low));
                at += 4;
            }
            [b'\\', escaped, ..] => {
                text.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                at += 2;
            }
            [b'"', ..] => return closed(rest, at + 1),
            [other, ..] => {
                text.push(*other);
                at += 1;
            }
        }
    }
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit.wrapping_sub(b'A').wrapping_add(10),
    }
}
