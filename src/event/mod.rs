//! One event from its JSON: `{"userId": string, "value": number}`.
//!
//! The shape that clients usually send is read directly (`canonical`, and `lines` for batches), and everything else with
//! serde_json. serde_json does not check ignored members for invalid UTF-8 and lone surrogates, so these are checked here
//! first. Numbers are read from their digits (`decimal`).

mod canonical;
mod decimal;
mod lines;

pub use lines::{Lines, decode_usual_line};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// The maximum length of a user id in bytes of UTF-8, after string escapes are resolved.
pub const USER_ID_BYTES_MAX: usize = 256;

/// An event as it was sent.
#[derive(Debug, PartialEq)]
pub struct Event<'a> {
    /// The user id in UTF-8: not empty, at most [`USER_ID_BYTES_MAX`] bytes, and borrowed unless it has escapes.
    pub user: Cow<'a, [u8]>,
    /// The value: finite, and the nearest `f64`, ties to even.
    pub value: f64,
}

/// The reason why a body is not an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not UTF-8.
    NotUtf8,
    /// Half of a surrogate pair.
    LoneSurrogate,
    /// Malformed, truncated, or followed by other bytes, or a number does not fit in an `f64`.
    NotJson,
    /// Not an object, or a member has the wrong type.
    WrongType,
    /// A member occurs twice.
    Repeated,
    /// A member is missing.
    Missing,
    /// `userId` is empty.
    EmptyUser,
    /// `userId` has more than [`USER_ID_BYTES_MAX`] bytes.
    LongUser,
}

impl Refusal {
    /// Returns one sentence that states what to do.
    pub fn sentence(self) -> &'static str {
        match self {
            Refusal::NotUtf8 => "send the body as UTF-8",
            Refusal::LoneSurrogate => "send both halves of every surrogate pair",
            Refusal::NotJson => {
                "send one JSON object and nothing after it, with numbers that fit a finite 64-bit float"
            }
            Refusal::WrongType => r#"send an object with a string "userId" and a number "value""#,
            Refusal::Repeated => r#"send "userId" and "value" only once each"#,
            Refusal::Missing => r#"send both "userId" and "value""#,
            Refusal::EmptyUser => r#"send a "userId" that is not empty"#,
            Refusal::LongUser => r#"send a "userId" of at most 256 bytes of UTF-8"#,
        }
    }
}
const _: () = assert!(USER_ID_BYTES_MAX == 256, "a sentence names the limit");

/// Reads one event from a complete body, or from a line of a batch without its line ending.
#[inline]
pub fn decode(body: &[u8]) -> Result<Event<'_>, Refusal> {
    decode_usual(body).map_or_else(|| decode_unusual(body), Ok)
}

/// Reads an event in the usual shape, in a fraction of the time of [`decode_unusual`].
#[inline]
pub fn decode_usual(body: &[u8]) -> Option<Event<'_>> {
    canonical::read(body)
}

/// A line of a batch.
#[derive(Debug)]
pub struct Line<'a> {
    /// Its event; `None` on an empty line.
    pub event: Option<Result<Event<'a>, LineRefusal>>,
    /// The number of bytes in the line, including its ending.
    pub bytes: usize,
}

/// The reason why a line of a batch is not an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineRefusal {
    /// The line is longer than allowed.
    Long,
    /// The line is not an event.
    Event(Refusal),
}

/// Returns the part of a batch that can belong to a line of at most `line_bytes_max` bytes, not counting
/// its ending, LF or CRLF.
#[inline(always)]
fn window(batch: &[u8], line_bytes_max: usize) -> &[u8] {
    &batch[..batch.len().min(line_bytes_max.saturating_add(2))]
}

/// Reads a line of any shape at the start of a batch. The line ends in LF or CRLF, or with the batch, and may have
/// `line_bytes_max` bytes, not counting its ending.
#[inline(never)]
pub fn decode_line(batch: &[u8], line_bytes_max: usize) -> Line<'_> {
    let window = window(batch, line_bytes_max);
    let (line, bytes) = match memchr::memchr(b'\n', window) {
        Some(end) => (&window[..end], end + 1),
        None if window.len() == batch.len() => (window, window.len()),
        None => return Line { event: Some(Err(LineRefusal::Long)), bytes: window.len() },
    };
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let event = match line.len() {
        0 => None,
        length if length > line_bytes_max => Some(Err(LineRefusal::Long)),
        _ => Some(decode(line).map_err(LineRefusal::Event)),
    };
    Line { event, bytes }
}

/// Reads an event of any shape.
///
/// # Errors
///
/// The body is not an event.
#[cold]
pub fn decode_unusual(body: &[u8]) -> Result<Event<'_>, Refusal> {
    let text = std::str::from_utf8(body).map_err(|_| Refusal::NotUtf8)?;
    if memchr::memchr(b'\\', body).is_some() && has_lone_surrogate(body) {
        return Err(Refusal::LoneSurrogate);
    }
    let mut members = Members::default();
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let reader = MembersReader { members: &mut members };
    let read = reader.deserialize(&mut deserializer).and_then(|()| deserializer.end());
    if let Err(error) = read {
        let is_not_json = members.overflowed || !error.is_data();
        return Err(if is_not_json { Refusal::NotJson } else { Refusal::WrongType });
    }
    if members.repeated {
        return Err(Refusal::Repeated);
    }
    let (Some(user), Some(value)) = (members.user, members.value) else {
        return Err(Refusal::Missing);
    };
    match user.len() {
        0 => Err(Refusal::EmptyUser),
        1..=USER_ID_BYTES_MAX => Ok(Event { user: bytes_of(user), value }),
        _ => Err(Refusal::LongUser),
    }
}

/// Returns the bytes of a text, borrowed if the text is.
fn bytes_of(text: Cow<'_, str>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

/// Returns whether a `\u` escape is one half of a surrogate pair without the other half. In valid
/// JSON, a backslash occurs only in strings; the parser will refuse any other body.
fn has_lone_surrogate(body: &[u8]) -> bool {
    let mut at = 0;
    while let Some(offset) = memchr::memchr(b'\\', &body[at..]) {
        at += offset;
        match unicode_escape(&body[at..]) {
            Some(0xd800..=0xdbff) => match unicode_escape(&body[at + 6..]) {
                Some(0xdc00..=0xdfff) => at += 12,
                _ => return true,
            },
            Some(0xdc00..=0xdfff) => return true,
            Some(_) => at += 6,
            // An escape has two bytes, and the second may itself be a backslash.
            None => at = (at + 2).min(body.len()),
        }
    }
    false
}

/// Returns the code unit of a `\uXXXX` at the start of `bytes`.
fn unicode_escape(bytes: &[u8]) -> Option<u16> {
    let digits = bytes.strip_prefix(b"\\u")?.get(..4)?;
    digits.iter().try_fold(0, |unit, digit| {
        Some(unit << 4 | u16::try_from(char::from(*digit).to_digit(16)?).ok()?)
    })
}

/// The members that have been read.
#[derive(Default)]
struct Members<'a> {
    user: Option<Cow<'a, str>>,
    value: Option<f64>,
    repeated: bool,
    /// Whether the value does not fit in a finite `f64`.
    overflowed: bool,
}

/// Reads the members of an object in order. A derived struct would also accept an array.
struct MembersReader<'m, 'a> {
    members: &'m mut Members<'a>,
}

impl<'de> DeserializeSeed<'de> for MembersReader<'_, 'de> {
    type Value = ();

    #[inline]
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for MembersReader<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    #[inline]
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let members = self.members;
        while let Some(name) = map.next_key::<Name>()? {
            match name {
                Name::UserId => {
                    let Text(user) = map.next_value()?;
                    members.repeated |= members.user.replace(user).is_some();
                }
                Name::Value => {
                    let value = number(map.next_value()?)?;
                    if value.is_infinite() {
                        members.overflowed = true;
                        return Err(serde::de::Error::custom("number out of range"));
                    }
                    members.repeated |= members.value.replace(value).is_some();
                }
                Name::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// Reads a number from its digits. serde_json rounds a tie up if it has more than 768 digits, even if the digits after those
/// are zeros (`float_roundtrip` in serde_json 1.0).
fn number<E: serde::de::Error>(json: &RawValue) -> Result<f64, E> {
    // This may be a JSON value of any type.
    decimal::read(json.get().as_bytes()).ok_or_else(|| E::custom("not a number"))
}

/// The name of a member.
enum Name {
    UserId,
    Value,
    Other,
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;
        impl Visitor<'_> for NameVisitor {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_str<E>(self, name: &str) -> Result<Name, E> {
                Ok(match name {
                    "userId" => Name::UserId,
                    "value" => Name::Value,
                    _ => Name::Other,
                })
            }
        }
        deserializer.deserialize_identifier(NameVisitor)
    }
}

/// A string that is borrowed unless it has escapes. serde's own `Cow` always copies.
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "lengths of a test are small")]
mod tests {
    use super::*;
    use num_bigint::BigUint;
    use proptest::prelude::*;
    use std::cmp::Ordering;

    fn event(user: &str, value: f64) -> Result<Event<'_>, Refusal> {
        Ok(Event { user: Cow::Borrowed(user.as_bytes()), value })
    }

    #[test]
    fn what_published_clients_send_is_an_event() {
        assert_eq!(decode(br#"{"userId":"user_1","value":499.5}"#), event("user_1", 499.5));
        assert_eq!(decode(br#"{"userId":"user_1","value":499}"#), event("user_1", 499.0));
        let spaced = b" \r\n\t{ \"value\" : -0.5e1 , \"userId\" : \"u\" } \n";
        assert_eq!(decode(spaced), event("u", -5.0));
    }

    #[test]
    fn a_user_without_escapes_is_borrowed() {
        let decoded = decode(br#"{"userId":"plain","value":1}"#).unwrap();
        assert!(matches!(decoded.user, Cow::Borrowed(_)));
    }

    #[test]
    fn escapes_are_resolved_in_names_and_strings() {
        let body = br#"{"\u0075ser\u0049d":"a\"\\\/\n\u00e9\ud83d\ude00","value":1}"#;
        assert_eq!(decode(body), event("a\"\\/\n\u{e9}\u{1f600}", 1.0));
    }

    #[test]
    fn unknown_members_are_ignored_whatever_their_value() {
        let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        for ignored in ["null", "1e999", "[[],{\"userId\":1}]", "\"\\ud83d\\ude00\"", &deep] {
            let body = format!(r#"{{"x":{ignored},"userId":"u","value":1,"value2":{ignored}}}"#);
            assert_eq!(decode(body.as_bytes()), event("u", 1.0), "{ignored:.40}");
        }
    }

    #[test]
    fn what_is_not_an_event_is_refused_for_its_reason() {
        let cases: &[(&[u8], Refusal)] = &[
            (b"", Refusal::NotJson),
            (b"{", Refusal::NotJson),
            (br#"{"userId":"u","value":1}x"#, Refusal::NotJson),
            (br#"{"userId":"u","value":1}{}"#, Refusal::NotJson),
            (br#"{"userId":"u","value":1,}"#, Refusal::NotJson),
            (br#"{"userId":"u","value":01}"#, Refusal::NotJson),
            (br#"{"userId":"u","value":+1}"#, Refusal::NotJson),
            (br#"{"userId":"u","value":.5}"#, Refusal::NotJson),
            (br#"{"userId":"u","value":NaN}"#, Refusal::NotJson),
            (br#"{"userId":"u","value":1e999}"#, Refusal::NotJson),
            (br#"{"userId":"u","value":-1e999}"#, Refusal::NotJson),
            (b"{\"userId\":\"a\nb\",\"value\":1}", Refusal::NotJson),
            (br#"{"userId":"\x","value":1}"#, Refusal::NotJson),
            (br#"{"userId":"\u12","value":1}"#, Refusal::NotJson),
            (br#"["u",1]"#, Refusal::WrongType),
            (b"null", Refusal::WrongType),
            (br#""userId""#, Refusal::WrongType),
            (br#"{"userId":1,"value":1}"#, Refusal::WrongType),
            (br#"{"userId":null,"value":1}"#, Refusal::WrongType),
            (br#"{"userId":"u","value":"1"}"#, Refusal::WrongType),
            (br#"{"userId":"u","value":null}"#, Refusal::WrongType),
            (br#"{"userId":"u","value":[1]}"#, Refusal::WrongType),
            (br#"{"userId":"u","userId":"u","value":1}"#, Refusal::Repeated),
            (br#"{"userId":"u","value":1,"\u0076alue":1}"#, Refusal::Repeated),
            (br#"{"userId":"u"}"#, Refusal::Missing),
            (br#"{"value":1}"#, Refusal::Missing),
            (b"{}", Refusal::Missing),
            (br#"{"userId":"","value":1}"#, Refusal::EmptyUser),
            (b"{\"userId\":\"\xff\",\"value\":1}", Refusal::NotUtf8),
            (b"{\"userId\":\"u\",\"value\":1,\"x\":\"\xc3\"}", Refusal::NotUtf8),
            (b"{\"userId\":\"u\",\"value\":1,\"\xed\xa0\x80\":0}", Refusal::NotUtf8),
            (br#"{"userId":"\ud800","value":1}"#, Refusal::LoneSurrogate),
            (br#"{"userId":"u","value":1,"x":"\udc00"}"#, Refusal::LoneSurrogate),
            (br#"{"userId":"u","value":1,"\ud800":0}"#, Refusal::LoneSurrogate),
            (br#"{"userId":"u","value":1,"x":["\ud800\ud800"]}"#, Refusal::LoneSurrogate),
            (br#"{"userId":"u","value":1,"x":"\ud83d\u0041"}"#, Refusal::LoneSurrogate),
        ];
        for (body, refusal) in cases {
            assert_eq!(decode(body), Err(*refusal), "{}", body.escape_ascii());
        }
    }

    #[test]
    fn an_escaped_backslash_does_not_start_a_surrogate() {
        assert_eq!(decode(br#"{"userId":"\\ud800","value":1}"#), event("\\ud800", 1.0));
        assert_eq!(decode(br#"{"userId":"u\"\\","value":1}"#), event("u\"\\", 1.0));
    }

    #[test]
    fn the_user_id_limit_counts_bytes_after_escapes() {
        for (user, sent, fits) in [
            ("a".repeat(255), "a".repeat(255), true),
            ("a".repeat(256), "a".repeat(256), true),
            ("a".repeat(257), "a".repeat(257), false),
            ("é".repeat(128), r"\u00e9".repeat(128), true),
            ("é".repeat(129), "é".repeat(129), false),
        ] {
            let body = format!(r#"{{"userId":"{sent}","value":1}}"#);
            let expected = if fits { event(&user, 1.0) } else { Err(Refusal::LongUser) };
            assert_eq!(decode(body.as_bytes()), expected);
        }
    }

    /// Returns the bits of a body's value. Checks that they do not depend on whether the body has the canonical shape.
    fn bits_of(value: &str) -> Result<u64, Refusal> {
        let read = |body: String| decode(body.as_bytes()).map(|event| event.value.to_bits());
        let bits = read(format!(r#"{{"userId":"u","value":{value}}}"#));
        assert_eq!(bits, read(format!(r#"{{"x":0,"userId":"u","value":{value}}}"#)), "{value}");
        bits
    }

    #[test]
    fn a_tie_with_a_long_run_of_zeros_goes_to_the_even_neighbor() {
        for zeros in [0, 1, 400, 751, 752, 753, 754, 760, 1000, 5000] {
            let run = "0".repeat(zeros);
            let tie = format!("9007199254740993{run}e-{zeros}");
            assert_eq!(bits_of(&tie), Ok(9007199254740992f64.to_bits()), "{zeros}");
            let above = format!("9007199254740993{run}1e-{}", zeros + 1);
            assert_eq!(bits_of(&above), Ok(9007199254740994f64.to_bits()), "{zeros}");
            // 1 + 2^-53, between 1 and the next value.
            let half = "100000000000000011102230246251565404236316680908203125";
            let tie = format!("{half}{run}e-{}", zeros + 53);
            assert_eq!(bits_of(&tie), Ok(1f64.to_bits()), "{zeros}");
            let behind_the_point = format!("1.{}{run}", &half[1..]);
            assert_eq!(bits_of(&behind_the_point), Ok(1f64.to_bits()), "{zeros}");
            let above = format!("1.{}{run}1", &half[1..]);
            assert_eq!(bits_of(&above), Ok(1f64.next_up().to_bits()), "{zeros}");
            let before_the_digits = format!("0.{run}{half}e{}", zeros + 1);
            assert_eq!(bits_of(&before_the_digits), Ok(1f64.to_bits()), "{zeros}");
        }
    }

    #[test]
    fn numbers_have_the_same_grammar_and_range_in_any_body() {
        for (value, expected) in [
            ("-0", Ok(-0.0)),
            ("-0.0e5", Ok(-0.0)),
            ("0e999999999999", Ok(0.0)),
            ("1e-999999999999", Ok(0.0)),
            ("1E+2", Ok(100.0)),
            ("1.5e-1", Ok(0.15)),
            ("18446744073709551616", Ok(18446744073709551616.0)),
            ("1.7976931348623158e308", Ok(f64::MAX)),
            ("1.7976931348623159e308", Err(Refusal::NotJson)),
            ("-1e309", Err(Refusal::NotJson)),
            ("1e999999999999", Err(Refusal::NotJson)),
            ("01", Err(Refusal::NotJson)),
            ("-", Err(Refusal::NotJson)),
            ("+1", Err(Refusal::NotJson)),
            (".5", Err(Refusal::NotJson)),
            ("1.", Err(Refusal::NotJson)),
            ("1e", Err(Refusal::NotJson)),
            ("0x1", Err(Refusal::NotJson)),
            ("inf", Err(Refusal::NotJson)),
            ("nan", Err(Refusal::NotJson)),
            ("Infinity", Err(Refusal::NotJson)),
            ("1_0", Err(Refusal::NotJson)),
            ("\"1\"", Err(Refusal::WrongType)),
            ("null", Err(Refusal::WrongType)),
            ("true", Err(Refusal::WrongType)),
            ("[1]", Err(Refusal::WrongType)),
            ("{}", Err(Refusal::WrongType)),
            ("1,\"value\":1", Err(Refusal::Repeated)),
            // The first error counts.
            ("1e999,\"userId\":1", Err(Refusal::NotJson)),
            ("null,\"x\":}", Err(Refusal::WrongType)),
        ] {
            assert_eq!(bits_of(value), expected.map(f64::to_bits), "{value}");
        }
    }

    /// Returns the value nearest to `digits * 10^exponent`, ties to even, by comparing big integers.
    fn nearest(digits: &BigUint, exponent: i32) -> f64 {
        // The number as a fraction of two integers.
        let scale = BigUint::from(10u8).pow(exponent.unsigned_abs());
        let (numerator, denominator) = match exponent {
            0.. => (digits * scale, BigUint::from(1u8)),
            _ => (digits.clone(), scale),
        };
        // Values are in the order of their bits: find the last value that is not above the fraction.
        let units = |bits: u64| match bits >> 52 {
            0 => BigUint::from(bits),
            exponent => BigUint::from(bits & ((1 << 52) - 1) | 1 << 52) << (exponent - 1),
        };
        // In units of 2^-1074.
        let wanted = numerator << 1074u32;
        let (mut low, mut high) = (0, f64::INFINITY.to_bits());
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match units(middle) * &denominator <= wanted {
                true => low = middle,
                false => high = middle,
            }
        }
        // Infinity stands for 2^1024 here, as in IEEE 754.
        let twice_middle = (units(low) + units(low + 1)) * &denominator;
        let above = match (wanted << 1u32).cmp(&twice_middle) {
            Ordering::Less => 0,
            Ordering::Equal => low & 1,
            Ordering::Greater => 1,
        };
        f64::from_bits(low + above)
    }

    /// Returns the exact decimal digits and the exponent of the midpoint between a finite value and the next value.
    fn middle_above(bits: u64) -> (BigUint, i32) {
        let units = |bits: u64| match bits >> 52 {
            0 => BigUint::from(bits),
            exponent => BigUint::from(bits & ((1 << 52) - 1) | 1 << 52) << (exponent - 1),
        };
        // N * 2^-1075 is N * 5^1075 * 10^-1075.
        ((units(bits) + units(bits + 1)) * BigUint::from(5u8).pow(1075), -1075)
    }

    /// Writes `digits * 10^exponent` with extra zeros in front and behind, and the point anywhere.
    fn write(digits: &BigUint, exponent: i32, front: usize, behind: usize, point: usize) -> String {
        let digits = format!("{}{digits}{}", "0".repeat(front), "0".repeat(behind));
        let point = point % digits.len();
        let (whole, fraction) = digits.split_at(point);
        let whole = match whole.trim_start_matches('0') {
            "" => "0",
            whole => whole,
        };
        format!("{whole}.{fraction}e{}", exponent - behind as i32 + fraction.len() as i32)
    }

    proptest! {
        #[test]
        fn every_decimal_is_read_as_the_nearest_float(
            negative in any::<bool>(), whole in "0|[1-9][0-9]{0,400}",
            fraction in prop::option::of("[0-9]{1,800}"),
            exponent in prop::option::of(-400..400i32)
        ) {
            let mut number = if negative { "-".to_owned() } else { String::new() } + &whole;
            if let Some(digits) = &fraction {
                number += &format!(".{digits}");
            }
            if let Some(exponent) = exponent {
                number += &format!("e{exponent}");
            }
            let fraction = fraction.unwrap_or_default();
            let digits = BigUint::parse_bytes((whole + &fraction).as_bytes(), 10).unwrap();
            let magnitude = nearest(&digits, exponent.unwrap_or(0) - fraction.len() as i32);
            let expected = match magnitude.is_finite() {
                true => Ok(if negative { -magnitude } else { magnitude }.to_bits()),
                false => Err(Refusal::NotJson),
            };
            prop_assert_eq!(bits_of(&number), expected);
        }

        #[test]
        fn ties_and_what_is_next_to_them_are_read_as_the_nearest_float(
            bits in prop_oneof![
                0..f64::INFINITY.to_bits(),
                // Subnormals, powers of two, and values around 1 and 2^53.
                0..1u64 << 53,
                (1..2046u64).prop_map(|exponent| (exponent << 52) - 1),
                1022u64 << 52..1024u64 << 52,
                1075u64 << 52..1077u64 << 52,
            ],
            digits_kept in prop_oneof![Just(usize::MAX), 1..800usize],
            nudge in -1..=1i8,
            gap in prop_oneof![Just(0usize), 0..900usize],
            (front, behind) in (0..900usize, prop_oneof![Just(0usize), 0..900usize]),
            point in any::<usize>(),
        ) {
            let (mut digits, mut exponent) = middle_above(bits);
            // A tie, or a truncated tie, which is very close to the tie.
            let text = digits.to_string();
            if digits_kept < text.len() {
                digits = BigUint::parse_bytes(&text.as_bytes()[..digits_kept], 10).unwrap();
                exponent += (text.len() - digits_kept) as i32;
            }
            if nudge != 0 {
                // The last digit plus or minus one, after many zeros or nines.
                digits *= BigUint::from(10u8).pow(gap as u32);
                exponent -= gap as i32;
                match nudge {
                    1 => digits += 1u8,
                    _ => digits -= 1u8,
                }
            }
            let number = write(&digits, exponent, front, behind, point);
            let nearest = nearest(&digits, exponent);
            let expected =
                if nearest.is_finite() { Ok(nearest.to_bits()) } else { Err(Refusal::NotJson) };
            prop_assert_eq!(bits_of(&number), expected);
        }

        #[test]
        fn every_finite_float_survives(bits in any::<u64>()) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            let body = format!(r#"{{"userId":"u","value":{value:e}}}"#);
            prop_assert_eq!(decode(body.as_bytes()).unwrap().value.to_bits(), bits);
        }

        #[test]
        fn serde_agrees_on_any_string(user in ".{1,60}") {
            let body = serde_json::json!({"userId": user, "value": 0.5, "x": user}).to_string();
            prop_assert_eq!(decode(body.as_bytes()), event(&user, 0.5));
        }

        #[test]
        fn nothing_panics(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&body);
        }
    }
}
