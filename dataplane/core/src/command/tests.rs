#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::key::{Key, spell, split};
use super::table::COMMANDS;
use super::*;
use crate::resp::reply::push_request;
use crate::resp::{Parser, RequestLimits};

fn with<T>(words: &[&str], f: impl FnOnce(Result<(CommandKind, Command<'_>), CommandError>) -> T) -> T {
    let mut bytes = Vec::new();
    push_request(&mut bytes, words.iter().map(|w| w.as_bytes()));
    let mut parser = Parser::new(RequestLimits::for_batch(1 << 20));
    assert_eq!(parser.parse(&bytes).unwrap(), Some(bytes.len()));
    f(parse(&parser.args(&bytes)))
}

fn error(words: &[&str]) -> String {
    with(words, |r| r.map(|(k, _)| k).unwrap_err().to_string())
}

fn set(words: &[&str]) -> (SetExpiry, Condition, bool) {
    with(words, |r| match r.unwrap().1 {
        Command::Set(s) => (s.expiry, s.condition, s.get),
        other => panic!("{other:?}"),
    })
}

#[test]
fn set_takes_all_its_options_in_any_order() {
    assert_eq!(set(&["set", "k", "v"]), (SetExpiry::Clear, Condition::Always, false));
    let both = (SetExpiry::New(Expiry::In(10_000)), Condition::IfAbsent, true);
    assert_eq!(set(&["SET", "k", "v", "ex", "10", "NX", "GET"]), both);
    assert_eq!(set(&["SET", "k", "v", "GET", "nx", "EX", "10"]), both);
    assert_eq!(
        set(&["SET", "k", "v", "PXAT", "5", "XX"]),
        (SetExpiry::New(Expiry::At(5)), Condition::IfPresent, false)
    );
    assert_eq!(set(&["SET", "k", "v", "KEEPTTL"]).0, SetExpiry::Keep);
    assert_eq!(set(&["SETEX", "k", "3", "v"]).0, SetExpiry::New(Expiry::In(3000)));
}

#[test]
fn set_refuses_what_redis_refuses_in_the_same_words() {
    for words in [
        &["SET", "k", "v", "NX", "XX"][..],
        &["SET", "k", "v", "EX"],
        &["SET", "k", "v", "EX", "1", "PX", "1"],
        &["SET", "k", "v", "EX", "1", "KEEPTTL"],
        &["SET", "k", "v", "KEEPTTL", "EX", "1"],
        &["SET", "k", "v", "BANANA"],
    ] {
        assert_eq!(error(words), "ERR syntax error", "{words:?}");
    }
    assert_eq!(error(&["SET", "k", "v", "EX", "0"]), "ERR invalid expire time in 'set' command");
    assert_eq!(error(&["SET", "k", "v", "EX", "9223372036854775807"]), "ERR invalid expire time in 'set' command");
    assert_eq!(error(&["SET", "k", "v", "PX", "x"]), "ERR value is not an integer or out of range");
    assert_eq!(error(&["SETEX", "k", "-1", "v"]), "ERR invalid expire time in 'setex' command");
    assert_eq!(error(&["SET", "k"]), "ERR wrong number of arguments for 'set' command");
    assert_eq!(error(&["MSET", "k", "v", "l"]), "ERR wrong number of arguments for 'mset' command");
    assert_eq!(error(&["DECRBY", "k", "-9223372036854775808"]), "ERR decrement would overflow");
}

#[test]
fn the_same_expiry_option_may_come_again_and_the_last_counts() {
    assert_eq!(set(&["SET", "k", "v", "PX", "1", "PX", "2"]).0, SetExpiry::New(Expiry::In(2)));
    assert_eq!(set(&["SET", "k", "v", "EXAT", "x", "EXAT", "2"]).0, SetExpiry::New(Expiry::At(2000)));
    assert_eq!(error(&["SET", "k", "v", "PX", "1", "PXAT", "2"]), "ERR syntax error");
    assert_eq!(error(&["GETEX", "k", "PX", "1", "PERSIST"]), "ERR syntax error");
    assert_eq!(error(&["GETEX", "k", "PERSIST", "EX", "1"]), "ERR syntax error");
    with(&["GETEX", "k", "PX", "x", "PX", "7"], |r| match r.unwrap().1 {
        Command::GetEx(_, GetExpiry::New(raw)) => assert_eq!(raw.read("getex"), Ok(Expiry::In(7))),
        other => panic!("{other:?}"),
    });
}

#[test]
fn unknown_commands_are_named_with_their_arguments() {
    assert_eq!(error(&["FOO", "a", "b"]), "ERR unknown command 'FOO', with args beginning with: 'a' 'b' ");
    assert_eq!(error(&["MULTI"]), "ERR unknown command 'MULTI', with args beginning with: ");
    assert_eq!(error(&["CLIENT", "kill"]), "ERR unknown subcommand 'kill'. Try CLIENT HELP.");
    assert_eq!(error(&["CLIENT", "SETNAME"]), "ERR wrong number of arguments for 'client|setname' command");
    assert!(error(&[&"x".repeat(5000)]).len() < 300);
}

#[test]
fn expire_knows_which_conditions_exclude_each_other() {
    assert!(error(&["EXPIRE", "k", "1", "NX", "GT"]).contains("not compatible"));
    assert!(error(&["EXPIRE", "k", "1", "GT", "LT"]).contains("not compatible"));
    assert_eq!(error(&["EXPIRE", "k", "1", "YY"]), "ERR Unsupported option YY");
    assert_eq!(error(&["EXPIRE", "k", "x", "YY"]), "ERR Unsupported option YY", "options come first");
    assert_eq!(error(&["EXPIRE", "k", "x", "NX"]), "ERR value is not an integer or out of range");
    with(&["PEXPIREAT", "k", "-5", "xx", "gt"], |r| match r.unwrap().1 {
        Command::Expire(_, expiry, only) => {
            assert_eq!(expiry, Expiry::At(-5));
            assert!(only.present && only.later && !only.earlier && !only.absent);
        }
        other => panic!("{other:?}"),
    });
}

#[test]
fn an_expiry_before_1970_is_the_past_and_one_beyond_all_time_is_refused() {
    assert_eq!(Expiry::In(-50).at(20), Some(0));
    assert_eq!(Expiry::In(5).at(20), Some(25));
    assert_eq!(Expiry::In(i64::MAX).at(20), None);
}

#[test]
fn every_command_of_the_table_is_found_by_its_name() {
    for (i, spec) in COMMANDS.iter().enumerate() {
        assert_eq!(CommandKind::by_upper_name(spec.name.to_ascii_uppercase().as_bytes()), Some(spec.kind));
        assert_eq!(spec.kind as usize, i);
        let enough = vec!["1"; spec.arity.unsigned_abs() as usize - 1];
        let words: Vec<&str> = std::iter::once(spec.name).chain(enough).collect();
        with(&words, |r| {
            if let Err(e) = r {
                assert!(!matches!(e, CommandError::Unknown { .. } | CommandError::Arity(_)), "{e}");
            }
        });
    }
}

#[test]
fn both_spellings_of_a_default_key_are_one_record() {
    assert_eq!(split(b"x"), split(b"default:x"));
    assert_eq!(split(b"a:b:c"), Key { prefix: b"a", rest: b"b:c" });
    assert_eq!(split(b":c"), Key { prefix: b"", rest: b"c" });
    assert_eq!(split(b"a:"), Key { prefix: b"a", rest: b"" });
}

#[test]
fn globs_match_as_in_redis() {
    for (pattern, text, expected) in [
        ("*", "", true),
        ("*", "abc", true),
        ("a*c", "abbc", true),
        ("a*c", "abb", false),
        ("a?c", "abc", true),
        ("a?c", "ac", false),
        ("[a-c]x", "bx", true),
        ("[^a-c]x", "bx", false),
        ("[^a-c]x", "dx", true),
        ("[c-a]", "b", true),
        ("\\*", "*", true),
        ("\\*", "a", false),
        ("a[b", "ab", true),
        ("", "", true),
        ("", "a", false),
        ("**a**", "bab", true),
        ("user:*", "user:1", true),
        ("*:1", "user:1", true),
    ] {
        assert_eq!(glob::matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
    }
}

#[test]
fn a_hostile_pattern_takes_no_exponential_time() {
    let pattern = "a*".repeat(2000);
    let text = "a".repeat(8000) + "b";
    // Would not end in a lifetime if every star were tried again.
    assert!(!glob::matches((pattern + "c").as_bytes(), text.as_bytes()));
}

#[test]
fn patterns_narrow_to_their_prefix() {
    let scope = |p: &str| glob::scope(p.as_bytes());
    assert_eq!(scope("p:*"), glob::Scope { prefix: Some(b"p".to_vec()), start: vec![] });
    assert_eq!(scope("p:ab\\*c?"), glob::Scope { prefix: Some(b"p".to_vec()), start: b"ab*c".to_vec() });
    assert_eq!(scope("p*:x"), glob::Scope { prefix: None, start: vec![] });
    assert_eq!(scope("x"), glob::Scope { prefix: None, start: vec![] });
}

/// The definition of a match, by recursion, for patterns without sets and escapes.
fn plain_match(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        ([b'*', p @ ..], _) => plain_match(p, text) || (!text.is_empty() && plain_match(pattern, &text[1..])),
        ([b'?', p @ ..], [_, t @ ..]) => plain_match(p, t),
        ([a, p @ ..], [b, t @ ..]) if a == b => plain_match(p, t),
        _ => false,
    }
}

proptest! {
    #[test]
    fn globs_agree_with_their_definition(pattern in "[ab*?]{0,8}", text in "[ab]{0,8}") {
        prop_assert_eq!(glob::matches(pattern.as_bytes(), text.as_bytes()), plain_match(pattern.as_bytes(), text.as_bytes()));
    }

    #[test]
    fn globs_never_panic(pattern in prop::collection::vec(any::<u8>(), 0..30), text in prop::collection::vec(any::<u8>(), 0..30)) {
        let _ = glob::matches(&pattern, &text);
        let _ = glob::scope(&pattern);
    }

    #[test]
    fn a_spelled_key_leads_back_to_its_record(
        prefix in "(default|a|[a-z.]{1,5})", rest in prop::collection::vec(prop_oneof![Just(b':'), any::<u8>()], 0..12), full in any::<bool>()
    ) {
        let mut spelled = Vec::new();
        spell(prefix.as_bytes(), &rest, full, &mut spelled);
        prop_assert_eq!(split(&spelled), Key { prefix: prefix.as_bytes(), rest: &rest });
    }

    #[test]
    fn any_arguments_are_read_without_a_panic(
        name in prop::sample::select(COMMANDS.iter().map(|c| c.name).collect::<Vec<_>>()),
        args in prop::collection::vec("(EX|PX|NX|GET|MATCH|COUNT|-?[0-9]{1,20}|[ -~]{0,6})", 0..6),
    ) {
        let words: Vec<&str> = std::iter::once(name).chain(args.iter().map(String::as_str)).collect();
        with(&words, |_| ());
    }
}
