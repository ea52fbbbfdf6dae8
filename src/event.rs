//! One event from its JSON: `{"userId": string, "value": number}`.
//!
//! serde_json does the parsing; what it leaves unchecked in the members that are ignored (text
//! that is not UTF-8, lone surrogates) is checked here before.

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::borrow::Cow;
use std::fmt;

/// Longest user id in bytes of UTF-8, after string escapes are resolved.
pub const USER_ID_BYTES_MAX: usize = 256;

/// An event as it was sent.
#[derive(Debug, PartialEq)]
pub struct Event<'a> {
    /// Not empty, at most [`USER_ID_BYTES_MAX`] bytes. Borrowed unless it has escapes.
    pub user: Cow<'a, str>,
    /// Finite: the nearest `f64`, ties to even.
    pub value: f64,
}

/// Why a body is no event.
/// The numbers are what [`crate::metrics::FAILURES`] names them by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not UTF-8.
    NotUtf8,
    /// Half of a surrogate pair.
    LoneSurrogate,
    /// Malformed, cut short, followed by something, or with a number beyond `f64`.
    NotJson,
    /// Not an object, or a member of another type.
    WrongType,
    /// A member twice.
    Repeated,
    /// A member not there.
    Missing,
    /// An empty `userId`.
    EmptyUser,
    /// A `userId` over [`USER_ID_BYTES_MAX`].
    LongUser,
}

impl Refusal {
    /// One sentence that says what to do.
    pub fn sentence(self) -> &'static str {
        match self {
            Refusal::NotUtf8 => "send the body as UTF-8",
            Refusal::LoneSurrogate => "send both halves of a surrogate pair in every string",
            Refusal::NotJson => {
                "send one JSON object and nothing after it, with numbers that fit a finite 64-bit float"
            }
            Refusal::WrongType => {
                "send an object with a string \\\"userId\\\" and a number \\\"value\\\""
            }
            Refusal::Repeated => "send \\\"userId\\\" and \\\"value\\\" once each",
            Refusal::Missing => "send both \\\"userId\\\" and \\\"value\\\"",
            Refusal::EmptyUser => "send a \\\"userId\\\" that is not empty",
            Refusal::LongUser => "send a \\\"userId\\\" of at most 256 bytes of UTF-8",
        }
    }
}
const _: () = assert!(USER_ID_BYTES_MAX == 256, "a sentence names the limit");

/// Reads one event from a whole body.
pub fn decode(body: &[u8]) -> Result<Event<'_>, Refusal> {
    let text = std::str::from_utf8(body).map_err(|_| Refusal::NotUtf8)?;
    if memchr::memchr(b'\\', body).is_some() && has_lone_surrogate(body) {
        return Err(Refusal::LoneSurrogate);
    }
    let members: Members<'_> = serde_json::from_str(text)
        .map_err(|error| if error.is_data() { Refusal::WrongType } else { Refusal::NotJson })?;
    if members.repeated {
        return Err(Refusal::Repeated);
    }
    let (Some(user), Some(value)) = (members.user, members.value) else {
        return Err(Refusal::Missing);
    };
    match user.len() {
        0 => Err(Refusal::EmptyUser),
        1..=USER_ID_BYTES_MAX => Ok(Event { user, value }),
        _ => Err(Refusal::LongUser),
    }
}

/// Whether a `\u` escape is one half of a surrogate pair without the other. In valid JSON a
/// backslash stands only in strings; in any other body the parser has its say afterwards.
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
            // An escape of two bytes; the second may be a backslash itself.
            None => at = (at + 2).min(body.len()),
        }
    }
    false
}

/// The code unit of a `\uXXXX` at the start of `bytes`.
fn unicode_escape(bytes: &[u8]) -> Option<u16> {
    let digits = bytes.strip_prefix(b"\\u")?.get(..4)?;
    digits
        .iter()
        .try_fold(0, |unit, digit| Some(unit << 4 | char::from(*digit).to_digit(16)? as u16))
}

/// The members as they come. A derived struct would accept an array as well.
#[derive(Default)]
struct Members<'a> {
    user: Option<Cow<'a, str>>,
    value: Option<f64>,
    repeated: bool,
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
        let mut members = Members::default();
        while let Some(name) = map.next_key::<Name>()? {
            match name {
                Name::UserId => {
                    let Text(user) = map.next_value()?;
                    members.repeated |= members.user.replace(user).is_some();
                }
                Name::Value => {
                    members.repeated |= members.value.replace(map.next_value()?).is_some();
                }
                Name::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(members)
    }
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

/// A string, borrowed where it has no escapes: serde's own `Cow` always copies.
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(user: &str, value: f64) -> Result<Event<'_>, Refusal> {
        Ok(Event { user: Cow::Borrowed(user), value })
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
    fn unknown_members_are_ignored_whatever_they_hold() {
        let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        for ignored in ["null", "1e999", "[[],{\"userId\":1}]", "\"\\ud83d\\ude00\"", &deep] {
            let body = format!(r#"{{"x":{ignored},"userId":"u","value":1,"value2":{ignored}}}"#);
            assert_eq!(decode(body.as_bytes()), event("u", 1.0), "{ignored:.40}");
        }
    }

    #[test]
    fn what_is_no_event_is_refused_for_its_reason() {
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
    fn an_escaped_backslash_starts_no_surrogate() {
        assert_eq!(decode(br#"{"userId":"\\ud800","value":1}"#), event("\\ud800", 1.0));
        assert_eq!(decode(br#"{"userId":"u\"\\","value":1}"#), event("u\"\\", 1.0));
    }

    #[test]
    fn a_user_id_is_limited_in_bytes_after_escapes() {
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

    proptest! {
        #[test]
        fn every_decimal_is_read_as_the_nearest_float(
            negative in any::<bool>(), whole in "0|[1-9][0-9]{0,400}",
            fraction in prop::option::of("[0-9]{1,800}"),
            exponent in prop::option::of(-400..400i32)
        ) {
            let mut number = if negative { "-".to_owned() } else { String::new() } + &whole;
            if let Some(digits) = fraction {
                number += &format!(".{digits}");
            }
            if let Some(exponent) = exponent {
                number += &format!("e{exponent}");
            }
            let body = format!(r#"{{"userId":"u","value":{number}}}"#);
            let nearest: f64 = number.parse().unwrap();
            let expected =
                if nearest.is_finite() { event("u", nearest) } else { Err(Refusal::NotJson) };
            prop_assert_eq!(decode(body.as_bytes()), expected);
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
