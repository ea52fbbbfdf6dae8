//! Determines which of two media types a client prefers (RFC 9110 section 12.5.1).

use super::head::list;

/// A media type with a version.
#[derive(Clone, Copy, Debug)]
pub struct MediaType {
    /// Type and subtype in lower case, such as `text/plain`.
    pub name: &'static str,
    /// The value of its parameter `version`.
    pub version: &'static str,
}

/// A client's preference for a media type: by weight, then by how specific the range is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Preference {
    /// The weight in thousandths.
    weight: u16,
    exactness: u8,
}

/// Returns whether the client that sent `accept` prefers `one` to `other`.
pub(super) fn prefers(accept: &[u8], one: MediaType, other: MediaType) -> bool {
    preference(accept, one) > preference(accept, other)
}

/// Returns the preference of the most specific range that includes a media type.
fn preference(accept: &[u8], media_type: MediaType) -> Preference {
    let ranges = list(accept).filter_map(|range| of_range(range, media_type));
    let decisive = ranges.max_by_key(|found| found.exactness).unwrap_or_default();
    match decisive.weight {
        0 => Preference::default(),
        _ => decisive,
    }
}

/// Returns the preference of a range for a media type, or `None` if the range does not include it or is malformed.
fn of_range(range: &[u8], media_type: MediaType) -> Option<Preference> {
    let mut parts = range.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let name = parts.next()?;
    let (main, _) = media_type.name.split_once('/')?;
    let mut exactness = match name.strip_suffix(b"/*") {
        Some(b"*") => 0,
        Some(name) if name.eq_ignore_ascii_case(main.as_bytes()) => 1,
        None if name.eq_ignore_ascii_case(media_type.name.as_bytes()) => 2,
        _ => return None,
    };
    let mut weight = 1000;
    for part in parts {
        let at = part.iter().position(|byte| *byte == b'=')?;
        let (parameter, value) = (&part[..at], &part[at + 1..]);
        if parameter.eq_ignore_ascii_case(b"q") {
            weight = thousandths(value)?;
        } else if parameter.eq_ignore_ascii_case(b"version") {
            if value != media_type.version.as_bytes() {
                return None;
            }
            exactness += 1;
        }
        // Other parameters, such as charset, do not distinguish the types of this server.
    }
    Some(Preference { weight, exactness })
}

/// Parses a weight: 0 to 1 with at most three decimals (RFC 9110 section 12.4.2).
fn thousandths(value: &[u8]) -> Option<u16> {
    let (whole, decimals) = match value {
        [whole] | [whole, b'.'] => (whole, &[][..]),
        [whole, b'.', decimals @ ..] if decimals.len() <= 3 => (whole, decimals),
        _ => return None,
    };
    let digit = |byte: &u8| byte.is_ascii_digit().then(|| u16::from(byte - b'0'));
    let mut weight = digit(whole)?;
    for place in 0..3 {
        weight = weight * 10 + decimals.get(place).map_or(Some(0), digit)?;
    }
    (weight <= 1000).then_some(weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: MediaType = MediaType { name: "application/one", version: "1.0.0" };
    const PLAIN: MediaType = MediaType { name: "text/plain", version: "0.0.4" };

    #[test]
    fn the_weight_decides_and_then_the_exactness() {
        for (accept, expected) in [
            ("", false),
            ("*/*", false),
            ("text/html", false),
            ("application/one", true),
            ("APPLICATION/One; Version=1.0.0 ; charset=utf-8", true),
            ("application/one; version=0.0.1", false),
            ("application/*", true),
            ("application/one;q=0.5, text/plain;q=0.4", true),
            ("application/one;q=0.4, text/plain;q=0.5", false),
            ("application/one;q=0.5, */*;q=0.6", false),
            ("application/one;q=0.001", true),
            ("application/one;q=0", false),
            ("application/one;q=0, */*", false),
            ("application/one, */*", true),
            ("application/one, text/plain", false),
            ("application/one;version=1.0.0, text/plain", true),
            ("*/*, text/plain;q=0", true),
            // The most specific range decides, not the first range or the range with the highest weight.
            ("application/*, application/one;q=0.1, text/plain;q=0.2", false),
            ("application/one;q=0.1, application/one;version=1.0.0;q=0.3, text/plain;q=0.2", true),
            // A malformed range does not count.
            ("application/one;q=2", false),
            ("application/one;q=1.001", false),
            ("application/one;q=0.1234", false),
            ("application/one;q=-1", false),
            ("application/one;q=", false),
            ("application/one;q", false),
            ("application/one;q=1.000", true),
            ("application/one;q=1.", true),
            (";q=1,,;", false),
            // The fields that Prometheus 3 sends, with and without OpenMetrics.
            (
                "application/one;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                 application/one;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,\
                 text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
                true,
            ),
            ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", false),
        ] {
            assert_eq!(prefers(accept.as_bytes(), ONE, PLAIN), expected, "{accept}");
        }
    }
}
