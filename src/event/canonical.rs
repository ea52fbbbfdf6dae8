//! Reads the usual shape of an event without a general parser: an object with only `userId` and `value`, in any order, with any
//! white space, and with an id that does not contain escapes.
//!
//! An event read here has bit for bit the value that [`super::decode`] would find with serde_json. Nothing is refused here:
//! bodies of any other shape, valid or not, are left to the general parser.

use super::decimal::DIGITS_MAX;
use super::{Event, USER_ID_BYTES_MAX};
use std::borrow::Cow;

/// The largest integer such that an `f64` holds it and every smaller natural number exactly.
const EXACT_INTEGER_MAX: u64 = 1 << f64::MANTISSA_DIGITS;

/// The powers of ten that an `f64` holds exactly.
pub(super) const EXACT_POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16,
    1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
];

/// Reads a body of the canonical shape. Returns `None` for any other body.
#[inline(always)]
pub(super) fn read(body: &[u8]) -> Option<Event<'_>> {
    let rest = token(body, b"{")?;
    let Some(rest) = name(rest, b"\"userId\"") else { return read_value_first(rest) };
    let (user, rest) = string(rest)?;
    let (value, rest) = number(skip_space(name(token(rest, b",")?, b"\"value\"")?))?;
    end(rest)?;
    Some(Event { user: Cow::Borrowed(user), value })
}

/// Reads the rest of a body after its opening brace, if `value` comes first.
#[inline(never)]
fn read_value_first(rest: &[u8]) -> Option<Event<'_>> {
    let (value, rest) = number(skip_space(name(rest, b"\"value\"")?))?;
    let (user, rest) = string(name(token(rest, b",")?, b"\"userId\"")?)?;
    end(rest)?;
    Some(Event { user: Cow::Borrowed(user), value })
}

/// Returns `Some` if only the closing brace is left.
#[inline(always)]
fn end(rest: &[u8]) -> Option<()> {
    skip_space(token(rest, b"}")?).is_empty().then_some(())
}

/// Returns the bytes after the white space at the start of `bytes`.
#[inline(always)]
fn skip_space(bytes: &[u8]) -> &[u8] {
    // Most clients do not send white space.
    if bytes.first().is_some_and(|byte| *byte > b' ') { bytes } else { skip_some_space(bytes) }
}

#[inline(never)]
fn skip_some_space(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t' | b'\r' | b'\n', rest @ ..] = bytes {
        bytes = rest;
    }
    bytes
}

/// Returns the bytes after a token, which may have white space before it.
#[inline(always)]
fn token<'a, const N: usize>(bytes: &'a [u8], token: &[u8; N]) -> Option<&'a [u8]> {
    // Most clients do not send white space, so that is tried first.
    bytes.strip_prefix(token).or_else(|| skip_space(bytes).strip_prefix(token))
}

/// Returns the bytes after the name of a member and its colon.
#[inline(always)]
fn name<'a, const N: usize>(bytes: &'a [u8], quoted: &[u8; N]) -> Option<&'a [u8]> {
    token(token(bytes, quoted)?, b":")
}

/// Returns the id at the start of `bytes`, after white space, and the bytes after its closing quote. Returns `None` in the
/// same cases as [`id`].
#[inline(always)]
fn string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (id, rest) = id(token(bytes, b"\"")?)?;
    Some((id, &rest[1..]))
}

/// Returns the id at the start of `bytes`, and the bytes from its closing quote on. Returns `None` if the id has an escape, is
/// not UTF-8, or has a length or a character that the general parser refuses.
#[inline(always)]
fn id(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, is_ascii) = plain_length(bytes)?;
    let (id, rest) = bytes.split_at_checked(length)?;
    let is_text = is_ascii || std::str::from_utf8(id).is_ok();
    let is_id = is_text && (1..=USER_ID_BYTES_MAX).contains(&length);
    is_id.then_some((id, rest))
}

/// Returns a word with this byte in all eight places.
const fn eight(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// The highest bit of each byte of a word.
const HIGHS: u64 = eight(0x80);

/// Returns the number of bytes before the first quote, and whether they are ASCII. Returns `None` if an escape or a
/// control character comes before it.
#[inline(always)]
fn plain_length(bytes: &[u8]) -> Option<(usize, bool)> {
    let (mut at, mut seen) = (0, 0);
    // Eight bytes at a time, after S. Anderson, "Bit Twiddling Hacks" (determine if a word has a byte less than n). The lowest
    // bit that is set is always right; a borrow can set only higher bits.
    while let Some(word) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*word);
        // With this bit flipped, the quote (0x22) becomes 0x20, directly after the control characters (0x00 to 0x1f), so one
        // comparison finds exactly these.
        let quote_or_control = (word ^ eight(0x02)).wrapping_sub(eight(0x21));
        let escape = (word ^ eight(b'\\')).wrapping_sub(eight(1));
        let ends = (quote_or_control | escape) & !word & HIGHS;
        if ends != 0 {
            // Only the bytes before this byte count.
            seen |= word & ((ends & ends.wrapping_neg()) - 1);
            at += (ends.trailing_zeros() / 8) as usize;
            return (bytes[at] == b'"').then_some((at, seen & HIGHS == 0));
        }
        seen |= word;
        at += 8;
    }
    let tail = &bytes[at..];
    let end = tail.iter().position(|byte| matches!(byte, b'"' | b'\\' | ..0x20))?;
    let is_ascii = seen & HIGHS == 0 && tail[..end].is_ascii();
    (tail[end] == b'"').then_some((at + end, is_ascii))
}

/// Returns the number at the start of `bytes`, and the bytes after it. Returns `None` if there is not a number, or
/// if it is not finite.
#[inline(always)]
pub(super) fn number(bytes: &[u8]) -> Option<(f64, &[u8])> {
    let (is_negative, magnitude) = match bytes {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, bytes),
    };
    let mut digits = Digits::default();
    let mut rest = digits.take(magnitude);
    // A JSON number cannot start with a zero that another digit follows.
    if digits.count == 0 || (digits.count > 1 && magnitude[0] == b'0') {
        return None;
    }
    let whole = digits.count;
    if let [b'.', fraction @ ..] = rest {
        rest = digits.take(fraction);
        if digits.count == whole {
            return None;
        }
    }
    if digits.count > DIGITS_MAX {
        // Longer numbers are unusual.
        return None;
    }
    if matches!(rest, [b'e' | b'E', ..]) {
        return any_number(bytes);
    }
    let places = digits.count - whole;
    if digits.value > EXACT_INTEGER_MAX && places > 0 {
        return any_number(bytes);
    }
    // One operation on exact operands is rounded once: the result is the nearest value, ties to even (W. Clinger, "How to Read
    // Floating Point Numbers Accurately", 1990). The conversion of an integer that an `f64` cannot hold is also rounded once.
    let mut value = digits.value as f64;
    if places > 0 {
        value /= EXACT_POWERS[places];
    }
    Some((if is_negative { -value } else { value }, rest))
}
const _: () = assert!(DIGITS_MAX < EXACT_POWERS.len(), "every number of places has its power");

/// Decimal digits, read as one integer.
#[derive(Default)]
struct Digits {
    /// Exact while `count` is at most [`DIGITS_MAX`].
    value: u64,
    count: usize,
}

impl Digits {
    /// Appends the digits at the start of `bytes`. Returns what follows them.
    #[inline]
    fn take<'a>(&mut self, mut bytes: &'a [u8]) -> &'a [u8] {
        while let [digit @ b'0'..=b'9', rest @ ..] = bytes {
            self.value = self.value.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
            self.count += 1;
            bytes = rest;
        }
        bytes
    }
}

/// Reads a number like [`number`], for at most 19 digits with an exponent or without an exact value. The standard library reads
/// these fast: see [`decimal`](super::decimal).
#[cold]
fn any_number(bytes: &[u8]) -> Option<(f64, &[u8])> {
    let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
    let end = bytes.iter().position(|byte| !is_part(byte)).unwrap_or(bytes.len());
    let (number, rest) = bytes.split_at(end);
    // `parse` accepts numbers that JSON does not: without digits before or after the point, with a plus sign, or with leading
    // zeros. The caller has ruled these out.
    let value: f64 = std::str::from_utf8(number).ok()?.parse().ok()?;
    value.is_finite().then_some((value, rest))
}

#[cfg(test)]
mod tests {
    use super::super::lines::WINDOW_BYTES;
    use super::super::{Lines, Refusal, decode, decode_unusual, decode_usual_line};
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::{Index, select};

    /// Returns the result with the bits of the value, so that signs of zeros count.
    fn bits(result: Result<Event<'_>, Refusal>) -> Result<(Vec<u8>, u64), Refusal> {
        result.map(|event| (event.user.into_owned(), event.value.to_bits()))
    }

    fn event(user: &[u8], value: f64) -> Event<'_> {
        Event { user: Cow::Borrowed(user), value }
    }

    #[test]
    fn what_published_clients_send_is_canonical() {
        for body in [
            r#"{"userId":"user_74999","value":999.5}"#,
            r#"{"userId": "user_1", "value": 499}"#,
            r#"{"value":-0.125,"userId":"u"}"#,
            "{\n  \"userId\": \"7b0a9f62-6b0f-4a38-93c8-6f2d4b7d1c55\",\r\n\t\"value\": 1e5\n}\r\n",
            r#"{"userId":"Zoë 😀 /","value":0.123456789012345678}"#,
        ] {
            let expected = bits(decode_unusual(body.as_bytes()));
            assert!(expected.is_ok(), "{body}");
            assert_eq!(read(body.as_bytes()).map(|event| bits(Ok(event))), Some(expected));
        }
    }

    #[test]
    fn ids_of_every_length_end_where_they_end() {
        for length in 0..=USER_ID_BYTES_MAX + 1 {
            for last in ["a", "\x7f", "\u{1f}", "\0", "\n", "\\\"", "\\u0041", "é", "\u{80}"] {
                let id = "x".repeat(length) + last;
                for body in [
                    format!(r#"{{"userId":"{id}","value":1}}"#),
                    format!(r#"{{"value":1,"userId":"{id}"}}"#),
                    format!(r#"{{"value":1,"userId":"{id}"#),
                ] {
                    let expected = bits(decode_unusual(body.as_bytes()));
                    assert_eq!(bits(decode(body.as_bytes())), expected, "{body:?}");
                    let is_read = expected.is_ok() && !id.contains('\\');
                    assert_eq!(read(body.as_bytes()).is_some(), is_read, "{body:?}");
                }
            }
        }
    }

    fn space() -> impl Strategy<Value = String> {
        prop_oneof![8 => Just(String::new()), 1 => Just(" ".to_owned()), 1 => "[ \t\r\n]{1,3}"]
    }

    fn value() -> impl Strategy<Value = String> {
        prop_oneof![
            "-?(0|[1-9][0-9]{0,4})(\\.[0-9]{1,3})?",
            "-?[0-9]{0,25}(\\.[0-9]{0,30})?([eE][-+]?[0-9]{0,3})?",
            // Around the largest exact integer, and around the number of digits that a word holds.
            "9007199254740(99[0-9]|[0-9]{3})(\\.[0-9]{0,6})?",
            "(1844674407370955161[0-9]|9[0-9]{18})(\\.0{0,3})?",
            any::<f64>().prop_map(|value| format!("{value}")),
            any::<f64>().prop_map(|value| format!("{value:e}")),
            select(vec![
                "-0", "-0.0", "0", "00", "01", "1e5", "1e999", "-1e400", "null", "\"1\"", "+1"
            ])
            .prop_map(str::to_owned),
        ]
    }

    fn id() -> impl Strategy<Value = String> {
        let escape =
            select(vec!["\\ud800", "\\udc00", "\\u0000", "\\n", "\\\"", "\\", "\\ud83d\\ude00"]);
        prop_oneof![
            6 => "[a-z_0-9-]{0,40}",
            1 => "[ -~é😀]{0,20}",
            1 => (250..260usize).prop_map(|length| "x".repeat(length)),
            1 => ("[a-z]{0,9}", escape, "[a-z]{0,9}").prop_map(|(a, b, c)| a + b + &c),
        ]
    }

    /// Generates a body in the canonical shape, or nearly so.
    fn body() -> impl Strategy<Value = Vec<u8>> {
        let names = prop_oneof![
            10 => Just(["userId", "value"]),
            1 => Just(["userId", "userId"]),
            1 => Just(["userid", "value"]),
        ];
        (names, id(), value(), any::<bool>(), prop::collection::vec(space(), 9)).prop_map(
            |([user, value], id, number, is_user_first, spaces)| {
                let [a, b, c, d, e, f, g, h, i] = &spaces[..] else { unreachable!() };
                let user = format!(r#""{user}"{c}:{d}"{id}""#);
                let value = format!(r#""{value}"{e}:{f}{number}"#);
                let (first, second) = if is_user_first { (user, value) } else { (value, user) };
                format!("{a}{{{b}{first}{g},{second}{h}}}{i}").into_bytes()
            },
        )
    }

    #[derive(Clone, Debug)]
    enum Mutation {
        Insert(Index, u8),
        Delete(Index),
        Replace(Index, u8),
        Truncate(Index),
        Duplicate(Index, Index),
    }

    fn mutation() -> impl Strategy<Value = Mutation> {
        let byte = || {
            let special =
                select(b"{}[]\",:\\0123456789-+.eE \t\r\n\0\x1f\x7f\x80\xbf\xc3\xed\xff".to_vec());
            prop_oneof![3 => special, 1 => any::<u8>()]
        };
        let at = any::<Index>;
        prop_oneof![
            (at(), byte()).prop_map(|(at, byte)| Mutation::Insert(at, byte)),
            at().prop_map(Mutation::Delete),
            (at(), byte()).prop_map(|(at, byte)| Mutation::Replace(at, byte)),
            at().prop_map(Mutation::Truncate),
            (at(), at()).prop_map(|(from, to)| Mutation::Duplicate(from, to)),
        ]
    }

    impl Mutation {
        fn apply(&self, body: &mut Vec<u8>) {
            let length = body.len();
            match self {
                Mutation::Insert(at, byte) => body.insert(at.index(length + 1), *byte),
                _ if length == 0 => {}
                Mutation::Delete(at) => drop(body.remove(at.index(length))),
                Mutation::Replace(at, byte) => body[at.index(length)] = *byte,
                Mutation::Truncate(at) => body.truncate(at.index(length)),
                Mutation::Duplicate(from, to) => {
                    let (from, to) = (from.index(length), to.index(length));
                    let part = body[from.min(to)..from.max(to)].to_vec();
                    body.splice(to..to, part);
                }
            }
        }
    }

    /// Returns whether more than 19 digits of a number follow a colon.
    fn has_long_number(body: &[u8]) -> bool {
        let text = String::from_utf8_lossy(body);
        text.split(':').any(|part| {
            let number =
                part.trim_start().split(|c: char| !matches!(c, '0'..='9' | '-' | '.')).next();
            number.is_some_and(|number| {
                number.matches(|c: char| c.is_ascii_digit()).count() > DIGITS_MAX
            })
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn mutated_bodies_have_the_verdict_and_the_bits_of_the_general_parser(
            mut body in body(), mutations in prop::collection::vec(mutation(), 0..4)
        ) {
            mutations.iter().for_each(|mutation| mutation.apply(&mut body));
            prop_assert_eq!(bits(decode(&body)), bits(decode_unusual(&body)));
        }

        #[test]
        fn lines_of_mutated_batches_have_the_verdict_and_the_bits_of_bodies(
            mut batch in prop::collection::vec((body(), select(vec!["\n", "\r\n", "\n\n", ""])), 1..4)
                .prop_map(|lines| {
                    lines.into_iter().flat_map(|(body, end)| [body, end.into()].concat()).collect::<Vec<u8>>()
                }),
            mutations in prop::collection::vec(mutation(), 0..4),
        ) {
            let plain = br#"{"userId":"u_1","value":1.5}"#;
            for body in [plain.to_vec(), br#"{"userId": "u_1", "value": -1}"#.to_vec()] {
                batch.splice(0..0, [&body[..], b"\n"].concat());
            }
            mutations.iter().for_each(|mutation| mutation.apply(&mut batch));
            // Without this, the last lines would be left to the general parser.
            batch.extend_from_slice(&[b' '; 64]);
            let mut naive = Vec::new();
            let mut at = 0;
            for line in batch.split_inclusive(|byte| *byte == b'\n') {
                if line.ends_with(b"\n") && at + line.len() <= WINDOW_BYTES {
                    naive.push(at..at + line.len() - 1);
                }
                at += line.len();
            }
            let found: Vec<_> = Lines::default().find(&batch).collect();
            prop_assert_eq!(&found, &naive);
            for line in found {
                let text = &batch[line.clone()];
                let text = text.strip_suffix(b"\r").unwrap_or(text);
                if let Some((user, value)) = decode_usual_line(&batch, line) {
                    prop_assert_eq!(bits(Ok(event(user, value))), bits(decode_unusual(text)));
                }
            }
        }

        #[test]
        fn plain_events_are_canonical_whatever_their_white_space(
            body in body(), id in "[ !#-\\[\\]-~é😀]{1,64}", number in any::<f64>()
        ) {
            // Everything of this shape that the general parser accepts is read here, unless it has an escape or a long number.
            let is_other = body.contains(&b'\\') || has_long_number(&body);
            let is_accepted = decode_unusual(&body).is_ok();
            prop_assert_eq!(read(&body).is_some(), is_accepted && !is_other);
            prop_assume!(number.is_finite());
            let body = format!(r#"{{"userId":"{id}","value":{number:e}}}"#);
            prop_assert!(read(body.as_bytes()).is_some());
        }
    }
}
