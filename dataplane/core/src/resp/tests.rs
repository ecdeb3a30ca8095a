#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::parser::integer;
use super::reply::{push_int, push_request, reply_len};
use super::*;

const LIMITS: RequestLimits = RequestLimits { args: 1000, bulk: 1000, request: 5000 };

type Requests = (Vec<Vec<Vec<u8>>>, Option<ProtocolError>, usize);

/// All requests of a stream that arrives in pieces of the given sizes, and what was left over or went wrong.
fn read_in_pieces(bytes: &[u8], mut sizes: impl FnMut() -> usize) -> Requests {
    let mut parser = Parser::new(LIMITS);
    let (mut start, mut have) = (0, 0);
    let mut requests = Vec::new();
    loop {
        match parser.parse(&bytes[start..have]) {
            Err(e) => return (requests, Some(e), bytes.len() - start),
            Ok(Some(used)) => {
                requests.push(parser.args(&bytes[start..have]).iter().map(<[u8]>::to_vec).collect());
                start += used;
            }
            Ok(None) if have == bytes.len() => return (requests, None, have - start),
            Ok(None) => have = (have + sizes().max(1)).min(bytes.len()),
        }
    }
}

fn one(bytes: &[u8]) -> Result<Vec<Vec<u8>>, ProtocolError> {
    let (requests, error, _) = read_in_pieces(bytes, || usize::MAX / 4);
    match error {
        Some(e) => Err(e),
        None => Ok(requests.into_iter().next().unwrap()),
    }
}

#[test]
fn a_request_is_read_and_its_length_told() {
    let bytes = b"*2\r\n$3\r\nGET\r\n$5\r\na:key\r\nrest";
    let mut parser = Parser::new(LIMITS);
    assert_eq!(parser.parse(bytes).unwrap(), Some(bytes.len() - 4));
    assert_eq!(parser.args(bytes).iter().collect::<Vec<_>>(), [b"GET".as_slice(), b"a:key"]);
}

#[test]
fn inline_requests_know_quotes_and_escapes() {
    assert_eq!(one(b"SET k  \"a b\\x41\\n\"\r\n").unwrap(), [b"SET".to_vec(), b"k".to_vec(), b"a bA\n".to_vec()]);
    assert_eq!(one(b"ECHO 'it\\'s'\n").unwrap(), [b"ECHO".to_vec(), b"it's".to_vec()]);
    assert_eq!(one(b"\r\n").unwrap(), Vec::<Vec<u8>>::new());
    assert_eq!(one(b"ECHO \"open\r\n").unwrap_err(), ProtocolError::Quotes);
    assert_eq!(one(b"ECHO \"a\"b\r\n").unwrap_err(), ProtocolError::Quotes);
}

#[test]
fn empty_multibulks_are_empty_requests() {
    assert!(one(b"*0\r\n").unwrap().is_empty());
    assert!(one(b"*-1\r\n").unwrap().is_empty());
}

#[test]
fn broken_requests_are_named_in_the_words_of_redis() {
    for (bytes, words) in [
        (b"*x\r\n".as_slice(), "Protocol error: invalid multibulk length"),
        (b"*1001\r\n", "Protocol error: invalid multibulk length"),
        (b"*1\r\n:3\r\n", "Protocol error: expected '$', got ':'"),
        (b"*1\r\n$-1\r\n", "Protocol error: invalid bulk length"),
        (b"*1\r\n$1001\r\n", "Protocol error: invalid bulk length"),
        (b"*1\r\n$+1\r\n", "Protocol error: invalid bulk length"),
    ] {
        assert_eq!(one(bytes).unwrap_err().to_string(), words);
    }
    assert_eq!(one(&[b'*'; 100]).unwrap_err(), ProtocolError::MultibulkLine);
    assert_eq!(one(&[b'a'; 70_000]).unwrap_err(), ProtocolError::InlineTooBig);
}

#[test]
fn a_request_over_the_limit_is_refused_before_it_arrives() {
    let mut bytes = b"*6\r\n".to_vec();
    for _ in 0..4 {
        bytes.extend_from_slice(b"$1000\r\n");
        bytes.extend_from_slice(&[b'x'; 1000]);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"$1000\r\n");
    assert_eq!(one(&bytes).unwrap_err(), ProtocolError::RequestTooBig(5000));
}

#[test]
fn integers_are_read_as_strictly_as_redis_does() {
    for (text, value) in [("0", 0), ("-1", -1), ("9223372036854775807", i64::MAX), ("-9223372036854775808", i64::MIN)] {
        assert_eq!(integer(text.as_bytes()), Some(value), "{text}");
    }
    for text in ["", "-", "-0", "01", "+1", " 1", "1 ", "1.0", "9223372036854775808", "99999999999999999999"] {
        assert_eq!(integer(text.as_bytes()), None, "{text}");
    }
}

#[test]
fn both_versions_are_written_as_specified() {
    let write = |proto, f: &dyn Fn(&mut Reply<'_>)| {
        let mut out = Vec::new();
        f(&mut Reply::new(&mut out, proto));
        String::from_utf8(out).unwrap()
    };
    let all = |r: &mut Reply<'_>| {
        r.map(1);
        r.bulk(b"k");
        r.null();
        r.null_array();
        r.double(1.5);
        r.bool(true);
        r.push(1);
        r.int(-7);
        r.error("ERR a\r\nb");
    };
    assert_eq!(write(Proto::Two, &all), "*2\r\n$1\r\nk\r\n$-1\r\n*-1\r\n$3\r\n1.5\r\n:1\r\n*1\r\n:-7\r\n-ERR a  b\r\n");
    assert_eq!(write(Proto::Three, &all), "%1\r\n$1\r\nk\r\n_\r\n_\r\n,1.5\r\n#t\r\n>1\r\n:-7\r\n-ERR a  b\r\n");
}

#[test]
fn the_length_of_every_kind_of_reply_is_known() {
    for proto in [Proto::Two, Proto::Three] {
        let mut out = Vec::new();
        let mut r = Reply::new(&mut out, proto);
        r.array(9);
        r.ok();
        r.int(5);
        r.bulk(b"a\r\nb");
        r.null();
        r.null_array();
        r.map(1);
        r.bulk(b"k");
        r.bool(true);
        r.set(0);
        r.text("t");
        r.double(0.5);
        let len = out.len();
        out.extend_from_slice(b"+next\r\n");
        assert_eq!(reply_len(&out), Some(len));
        assert_eq!(reply_len(&out[..len - 1]), None);
    }
}

proptest! {
    #[test]
    fn requests_come_back_whatever_the_pieces_they_arrive_in(
        requests in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..6), 1..6),
        sizes in prop::collection::vec(1usize..30, 1..40),
    ) {
        let mut bytes = Vec::new();
        for request in &requests {
            push_request(&mut bytes, request.iter().map(Vec::as_slice));
        }
        let mut next = sizes.iter().cycle();
        let (read, error, left) = read_in_pieces(&bytes, || *next.next().unwrap());
        prop_assert_eq!(read, requests);
        prop_assert_eq!((error, left), (None, 0));
    }

    #[test]
    fn any_bytes_give_the_same_result_whole_or_byte_by_byte(
        bytes in prop::collection::vec(
            prop_oneof![Just(b'*'), Just(b'$'), Just(b'\r'), Just(b'\n'), Just(b'1'), Just(b'2'), Just(b'"'), Just(b' '), any::<u8>()],
            0..120,
        )
    ) {
        prop_assert_eq!(read_in_pieces(&bytes, || usize::MAX / 4), read_in_pieces(&bytes, || 1));
    }

    #[test]
    fn numbers_are_written_as_they_are_read(n in any::<i64>()) {
        let mut out = Vec::new();
        push_int(&mut out, n);
        prop_assert_eq!(integer(&out), Some(n));
    }
}
