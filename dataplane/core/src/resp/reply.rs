//! Replies into bytes, in the version of the protocol that the connection chose.

/// Version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Proto {
    /// RESP2, until a `HELLO 3`.
    #[default]
    Two,
    /// RESP3.
    Three,
}

/// Appends replies to a buffer.
#[derive(Debug)]
pub struct Reply<'a> {
    out: &'a mut Vec<u8>,
    proto: Proto,
}

impl<'a> Reply<'a> {
    /// Replies in `proto` at the end of `out`.
    #[must_use]
    pub fn new(out: &'a mut Vec<u8>, proto: Proto) -> Self {
        Self { out, proto }
    }

    /// The version it writes.
    #[must_use]
    pub fn proto(&self) -> Proto {
        self.proto
    }

    /// `+OK`.
    pub fn ok(&mut self) {
        self.out.extend_from_slice(b"+OK\r\n");
    }

    /// A simple string; must not hold a line break.
    pub fn simple(&mut self, text: &str) {
        debug_assert!(!text.contains(['\r', '\n']));
        self.out.push(b'+');
        self.line(text.as_bytes());
    }

    /// An error: a code in capitals, a blank, and the text. Line breaks become blanks.
    pub fn error(&mut self, text: &str) {
        self.out.push(b'-');
        self.out.extend(text.bytes().map(|b| if matches!(b, b'\r' | b'\n') { b' ' } else { b }));
        self.out.extend_from_slice(b"\r\n");
    }

    /// An integer.
    pub fn int(&mut self, value: i64) {
        self.header(b':', value);
    }

    /// An unsigned number; what is over the largest integer is written as that.
    pub fn count(&mut self, value: u64) {
        self.int(i64::try_from(value).unwrap_or(i64::MAX));
    }

    /// A string of bytes.
    pub fn bulk(&mut self, value: &[u8]) {
        // One reservation for header, value and line ends: values dominate the traffic.
        self.out.reserve(value.len() + 16);
        self.header(b'$', value.len() as i64);
        self.line(value);
    }

    /// No value.
    pub fn null(&mut self) {
        self.out.extend_from_slice(match self.proto {
            Proto::Two => b"$-1\r\n",
            Proto::Three => b"_\r\n",
        });
    }

    /// No array.
    pub fn null_array(&mut self) {
        self.out.extend_from_slice(match self.proto {
            Proto::Two => b"*-1\r\n",
            Proto::Three => b"_\r\n",
        });
    }

    /// The head of an array; its items follow.
    pub fn array(&mut self, items: usize) {
        self.header(b'*', items as i64);
    }

    /// The head of a map; its keys and values follow in turn. An array of twice the length in RESP2.
    pub fn map(&mut self, pairs: usize) {
        match self.proto {
            Proto::Two => self.header(b'*', pairs as i64 * 2),
            Proto::Three => self.header(b'%', pairs as i64),
        }
    }

    /// The head of a set; an array in RESP2.
    pub fn set(&mut self, items: usize) {
        self.header(if self.proto == Proto::Two { b'*' } else { b'~' }, items as i64);
    }

    /// The head of a message that answers no request; an array in RESP2.
    pub fn push(&mut self, items: usize) {
        self.header(if self.proto == Proto::Two { b'*' } else { b'>' }, items as i64);
    }

    /// A fraction; a string in RESP2.
    pub fn double(&mut self, value: f64) {
        let text = if value == f64::INFINITY {
            "inf".to_owned()
        } else if value == f64::NEG_INFINITY {
            "-inf".to_owned()
        } else if value.is_nan() {
            "nan".to_owned()
        } else {
            value.to_string()
        };
        match self.proto {
            Proto::Two => self.bulk(text.as_bytes()),
            Proto::Three => {
                self.out.push(b',');
                self.line(text.as_bytes());
            }
        }
    }

    /// Yes or no; 1 or 0 in RESP2.
    pub fn bool(&mut self, value: bool) {
        match (self.proto, value) {
            (Proto::Two, _) => self.int(i64::from(value)),
            (Proto::Three, true) => self.out.extend_from_slice(b"#t\r\n"),
            (Proto::Three, false) => self.out.extend_from_slice(b"#f\r\n"),
        }
    }

    /// Plain text for people; a string in RESP2.
    pub fn text(&mut self, text: &str) {
        match self.proto {
            Proto::Two => self.bulk(text.as_bytes()),
            Proto::Three => {
                self.header(b'=', text.len() as i64 + 4);
                self.out.extend_from_slice(b"txt:");
                self.line(text.as_bytes());
            }
        }
    }

    fn header(&mut self, tag: u8, value: i64) {
        self.out.push(tag);
        push_int(self.out, value);
        self.out.extend_from_slice(b"\r\n");
    }

    fn line(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
        self.out.extend_from_slice(b"\r\n");
    }
}

/// Appends a number in decimal.
pub fn push_int(out: &mut Vec<u8>, value: i64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = value.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends a request, as a client would write it.
pub fn push_request<'a>(out: &mut Vec<u8>, args: impl ExactSizeIterator<Item = &'a [u8]>) {
    let mut writer = Reply::new(out, Proto::Two);
    writer.array(args.len());
    for arg in args {
        writer.bulk(arg);
    }
}

/// Length of the first reply in `bytes`; `None` if it is cut off or none.
#[must_use]
pub fn reply_len(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    let mut left = 1u64;
    while left > 0 {
        left -= 1;
        let rest = bytes.get(at..)?;
        let line = rest.iter().position(|b| *b == b'\r')?;
        let next = at + line + 2;
        let number = || super::parser::integer(&rest[1..line]);
        match rest.first()? {
            b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => at = next,
            b'$' | b'=' => at = usize::try_from(number()?).map_or(next, |len| next + len + 2),
            b'*' | b'~' | b'>' => {
                left += u64::try_from(number()?).unwrap_or(0);
                at = next;
            }
            b'%' => {
                left += 2 * u64::try_from(number()?).unwrap_or(0);
                at = next;
            }
            _ => return None,
        }
    }
    (at <= bytes.len()).then_some(at)
}
