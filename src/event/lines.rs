//! Reads the lines of a batch that have the usual shape: an object with `userId` first, then `value`, either without white
//! space or with one space after each colon and the comma.
//!
//! First, vector instructions find the ends of many lines; then each line is read on its own. The processor can work on several
//! lines concurrently, because reading a line does not have to wait for the end of the line before it. A line read here has bit
//! for bit the value that [`super::decode`] would find. Nothing is refused here: other lines are left to that function.

use super::USER_ID_BYTES_MAX;
use super::canonical::{EXACT_POWERS, number};
use std::ops::Range;
use wide::u8x16;

/// The part of a batch that is searched for line ends in one step, in bytes. It has about as many lines as a block has events.
pub(super) const WINDOW_BYTES: usize = 2048;

/// The number of bytes that vector instructions compare in one step, with one bit of a word for each.
const CHUNK: usize = 64;
const _: () = assert!(WINDOW_BYTES == 2 << 10, "a comment names it");

/// The number of line ends that are noted for each chunk, even if it has fewer.
const NOTED: usize = 2;

/// The number of bytes that most lines fit in.
const HEAD: usize = 64;

/// The ends of the lines at the start of a batch.
#[derive(Debug)]
pub struct Lines {
    /// The position of each line feed.
    ends: Box<[u32; WINDOW_BYTES + NOTED]>,
}

impl Default for Lines {
    /// Creates an empty set of lines.
    fn default() -> Self {
        Lines { ends: Box::new([0; WINDOW_BYTES + NOTED]) }
    }
}

impl Lines {
    /// Finds the lines at the start of `batch` that end in a line feed within its first 2 KiB. Returns the position of each
    /// line, without its line feed.
    #[inline(always)]
    pub fn find(&mut self, batch: &[u8]) -> impl Iterator<Item = Range<usize>> {
        let len = self.note_all(&batch[..batch.len().min(WINDOW_BYTES)]);
        let mut start = 0;
        self.ends[..len].iter().map(move |end| {
            let line = start..*end as usize;
            start = line.end + 1;
            line
        })
    }

    /// Notes the line feeds of a window. Returns their number.
    #[inline(never)]
    fn note_all(&mut self, window: &[u8]) -> usize {
        let (chunks, rest) = window.as_chunks();
        let mut len = 0;
        for (index, chunk) in chunks.iter().enumerate() {
            len = self.note(len, index * CHUNK, line_feeds(chunk));
        }
        if !rest.is_empty() {
            let mut last = [0; CHUNK];
            last[..rest.len()].copy_from_slice(rest);
            len = self.note(len, chunks.len() * CHUNK, line_feeds(&last));
        }
        len
    }

    /// Notes the line feeds of the chunk at `at` after the first `len` line feeds. Returns the new number.
    #[inline(always)]
    fn note(&mut self, mut len: usize, at: usize, mut feeds: u64) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "a window has few bytes")]
        let at = at as u32;
        // This is nearly always enough, and does not branch on how many there are.
        for _ in 0..NOTED {
            self.ends[len] = at + feeds.trailing_zeros();
            len += usize::from(feeds != 0);
            feeds &= feeds.wrapping_sub(1);
        }
        while feeds != 0 {
            self.ends[len] = at + feeds.trailing_zeros();
            len += 1;
            feeds &= feeds - 1;
        }
        len
    }
}

/// Returns the line feeds among the bytes, one bit for each, the first one lowest.
#[inline(always)]
fn line_feeds(chunk: &[u8; CHUNK]) -> u64 {
    let (parts, _) = chunk.as_chunks();
    parts.iter().rev().fold(0, |feeds, part| {
        let found = u8x16::new(*part).cmp_eq(u8x16::splat(b'\n')).move_mask();
        feeds << 16 | u64::from(found.cast_unsigned())
    })
}

/// The text before the id, and the text between the id and the number.
const OPENING: &[u8; 11] = b"{\"userId\":\"";
const BETWEEN: &[u8; 10] = b"\",\"value\":";

/// Reads the event on a line of a batch. `line` is the position of the line, without its line feed. Returns the user and the
/// value, or `None` for a line of another shape, and if the batch ends soon after the line.
#[inline(always)]
pub fn decode_usual_line(batch: &[u8], line: Range<usize>) -> Option<(&[u8], f64)> {
    let (rest, length) = (batch.get(line.start..)?, line.end.checked_sub(line.start)?);
    read_short(rest, length).or_else(|| read_other(rest, length))
}

/// Reads a line without spaces whose id has at most 15 bytes and whose number has at most eight.
#[inline(always)]
fn read_short(rest: &[u8], length: usize) -> Option<(&[u8], f64)> {
    // With a fixed length, no further bounds checks are needed.
    let head: &[u8; HEAD] = rest.first_chunk()?;
    let id = plain_length(head[OPENING.len()..].first_chunk()?);
    if !head.starts_with(OPENING) || id == 16 {
        return None;
    }
    let (user, number) = split(head, length, OPENING.len()..OPENING.len() + id, BETWEEN)?;
    Some((user, short_number(head, number)?))
}

/// Reads a line with spaces, with a long id, or with any other number.
#[inline(never)]
fn read_other(rest: &[u8], length: usize) -> Option<(&[u8], f64)> {
    let (user, number) = if rest.starts_with(OPENING) {
        split(rest, length, id_at(rest, OPENING.len())?, BETWEEN)
    } else if rest.starts_with(b"{\"userId\": \"") {
        split(rest, length, id_at(rest, OPENING.len() + 1)?, b"\", \"value\": ")
    } else {
        None
    }?;
    let value = short_number(rest, number.clone()).or_else(|| other_number(rest, number));
    Some((user, value?))
}

/// Splits a line of `length` bytes at the start of `bytes`. `between` must follow the id. Returns the id, and the
/// position of the number.
#[inline(always)]
fn split<'a, const N: usize>(
    bytes: &'a [u8],
    length: usize,
    id: Range<usize>,
    between: &[u8; N],
) -> Option<(&'a [u8], Range<usize>)> {
    let number = id.end + N;
    // The id ends at a quote, or at a byte that makes this comparison fail.
    if bytes.get(id.end..number)? != between || id.is_empty() {
        return None;
    }
    let last = length.wrapping_sub(1);
    let brace = if *bytes.get(last)? == b'\r' { last.wrapping_sub(1) } else { last };
    (*bytes.get(brace)? == b'}').then_some((&bytes[id], number..brace))
}

/// Returns the position of a usual id that begins at `start`, if it is not too long.
#[inline(always)]
fn id_at(bytes: &[u8], start: usize) -> Option<Range<usize>> {
    let mut length = 0;
    while length <= USER_ID_BYTES_MAX {
        match plain_length(bytes.get(start + length..)?.first_chunk()?) {
            16 => length += 16,
            more if length + more <= USER_ID_BYTES_MAX => {
                return Some(start..start + length + more);
            }
            _ => return None,
        }
    }
    None
}

/// Returns the number of bytes before the first quote, backslash, control character, or byte outside ASCII.
#[inline(always)]
fn plain_length(bytes: &[u8; 16]) -> usize {
    let bytes = u8x16::new(*bytes);
    let is = |byte| bytes.cmp_eq(u8x16::splat(byte));
    let is_control = bytes.min(u8x16::splat(0x1f)).cmp_eq(bytes);
    // The mask consists of the highest bit of each byte.
    let ends = (is(b'"') | is(b'\\') | is_control | bytes).move_mask();
    (ends | 1 << 16).trailing_zeros() as usize
}

/// Returns a word with this byte in all eight places.
const fn eight(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// The highest bit of each byte of a word.
const HIGHS: u64 = eight(0x80);

/// Reads a number of at most eight characters, without a sign or an exponent. Returns `None` for any other number, and for text
/// that is not a number.
#[inline(always)]
fn short_number(bytes: &[u8], place: Range<usize>) -> Option<f64> {
    let length = place.end.checked_sub(place.start)?;
    if !(1..=8).contains(&length) {
        return None;
    }
    // The characters of the number are the last bytes of the word, so they are the highest. Zeros replace
    // the bytes before them.
    let word = u64::from_le_bytes(*bytes.get(..place.end)?.last_chunk()?);
    let first = 64 - 8 * length;
    let digits = (word ^ eight(b'0')) & u64::MAX << first;
    let starts_with_zero = digits >> first & 0xff == 0;
    // The highest bit of each byte that is not a digit, without carries from one byte to the next.
    let others = (((digits & !HIGHS) + eight(0x80 - 10)) | digits) & HIGHS;
    if others == 0 {
        return (!starts_with_zero || length == 1).then_some(eight_digits(digits) as f64);
    }
    let places = others.leading_zeros() as usize / 8;
    let point = 56 - 8 * places;
    let whole = length - 1 - places;
    let is_point = digits >> point & 0xff == u64::from(b'.' ^ b'0') && others & (others - 1) == 0;
    if !is_point || places == 0 || whole == 0 || starts_with_zero && whole > 1 {
        return None;
    }
    // Remove the point.
    let below = (1 << point) - 1;
    let digits = digits & !(below << 8 | 0xff) | (digits & below) << 8;
    // One operation on exact operands is rounded once, as in `number`.
    Some(eight_digits(digits) as f64 / EXACT_POWERS[places])
}

/// The maximum length of a number that is read here. Longer numbers cost more per byte than a usual line is charged.
const NUMBER_BYTES_MAX: usize = 40;

/// Reads any other number.
#[inline(never)]
fn other_number(bytes: &[u8], place: Range<usize>) -> Option<f64> {
    let text = bytes.get(place).filter(|text| text.len() <= NUMBER_BYTES_MAX)?;
    match number(text)? {
        (value, []) => Some(value),
        _ => None,
    }
}

/// Returns the integer that eight decimal digits represent, with the first digit in the lowest byte. Combines neighboring
/// digits, then pairs, then fours (D. Lemire, "Number Parsing at a Gigabyte per Second", 2021).
#[inline(always)]
fn eight_digits(digits: u64) -> u64 {
    const PAIRS: u64 = 0x0000_00ff_0000_00ff;
    // Each pair of digits is in the lower of two bytes; the higher byte is ignored.
    let pairs = digits.wrapping_mul(10).wrapping_add(digits >> 8);
    let first = (pairs & PAIRS).wrapping_mul(100 + (1_000_000 << 32));
    let second = (pairs >> 16 & PAIRS).wrapping_mul(1 + (10_000 << 32));
    first.wrapping_add(second) >> 32
}

#[cfg(test)]
mod tests {
    use super::super::decode_unusual;
    use super::*;

    #[test]
    fn what_clients_send_in_batches_is_read_line_by_line() {
        let id = "x".repeat(USER_ID_BYTES_MAX);
        for line in [
            r#"{"userId":"user_74999","value":999.5}"#,
            r#"{"userId": "user_1", "value": 499}"#,
            r#"{"userId":"7b0a9f62-6b0f-4a38-93c8-6f2d4b7d1c55","value":-0.5e3}"#,
            r#"{"userId": "fifteen bytes..", "value": 12345678}"#,
            r#"{"userId":"sixteen bytes...","value":0.123456789012345678}"#,
            &format!(r#"{{"userId":"{id}","value":0}}"#),
        ] {
            for end in ["\n", "\r\n", "\n{", "\r\n\n"] {
                let batch = "\n".to_owned() + line + end + &" ".repeat(HEAD);
                let feed = 1 + line.len() + end.find('\n').unwrap();
                let read = decode_usual_line(batch.as_bytes(), 1..feed).expect(&batch);
                let event = decode_unusual(line.as_bytes()).unwrap();
                assert_eq!(read.0, &*event.user);
                assert_eq!(read.1.to_bits(), event.value.to_bits());
            }
            for end in ["\r", " ", "}", "\t", "\r\r"] {
                let batch = line.to_owned() + end + "\n" + &" ".repeat(HEAD);
                let read = decode_usual_line(batch.as_bytes(), 0..line.len() + end.len());
                assert_eq!(read.is_some(), end == "\r", "{batch}");
            }
        }
    }

    #[test]
    fn what_is_no_event_is_not_read() {
        let id = "x".repeat(USER_ID_BYTES_MAX + 1);
        for line in [
            "",
            "\r",
            "{",
            "}",
            "1}",
            r#"{"userId":""#,
            r#"{"userId":"","value":1}"#,
            r#"{"userId":"u","value":}"#,
            r#"{"userId":"u","value":"#,
            r#"{"userId":"u","value":01}"#,
            r#"{"userId":"u","value":01.5}"#,
            r#"{"userId":"u","value":.5}"#,
            r#"{"userId":"u","value":1.}"#,
            r#"{"userId":"u","value":1.2.3}"#,
            r#"{"userId":"u","value":1e}"#,
            r#"{"userId":"u","value":1:2}"#,
            r#"{"userId":"u\\","value":1}"#,
            "{\"userId\":\"u\tv\",\"value\":1}",
            "{\"userId\":\"\u{e9}\",\"value\":1}",
            r#"{"userId": "","value":1}"#,
            &format!(r#"{{"userId":"{id}","value":0}}"#),
        ] {
            let batch = line.to_owned() + "\n" + &" ".repeat(HEAD);
            assert_eq!(decode_usual_line(batch.as_bytes(), 0..line.len()), None, "{line:?}");
        }
        let odd = Range { start: 3, end: 1 };
        assert_eq!(decode_usual_line(b"abc", odd), None);
        assert_eq!(decode_usual_line(b"abc", 4..9), None);
    }

    #[test]
    fn every_line_feed_in_a_window_ends_a_line() {
        for step in [1, 2, 3, 21, 22, 31, 32, 33, 63, 64, 65, 100, 2047, 2048, 2049] {
            for length in
                [0, 1, 63, 64, 65, 200, WINDOW_BYTES - 1, WINDOW_BYTES, WINDOW_BYTES + 1, 9000]
            {
                let batch: Vec<u8> =
                    (1..=length).map(|at| if at % step == 0 { b'\n' } else { b'x' }).collect();
                let mut start = 0;
                let feeds = (0..length.min(WINDOW_BYTES)).filter(|at| batch[*at] == b'\n');
                let expected: Vec<_> =
                    feeds.map(|end| std::mem::replace(&mut start, end + 1)..end).collect();
                let found: Vec<_> = Lines::default().find(&batch).collect();
                assert_eq!(found, expected, "{step} {length}");
            }
        }
    }
}
