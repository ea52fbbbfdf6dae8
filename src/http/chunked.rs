//! The chunked transfer coding, read strictly (RFC 9112 section 7.1), from pieces of any size.
//!
//! httparse has a parser for chunk sizes, but it reads an empty size as 0 and takes any byte in an
//! extension; both can hide a request from another reader of the same bytes.

use super::hex_digit;
use super::refusal::Refusal;

/// The place of the next byte in a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first digit of a size.
    SizeStart,
    /// After a digit of a size.
    Size,
    /// After the `;` of an extension, before its name.
    ExtensionStart,
    /// In the name of an extension.
    ExtensionName,
    /// In white space after the name: only `=` or `;` may follow.
    ExtensionNameEnd,
    /// After the `=`, before a value.
    ValueStart,
    /// In a value that is a token.
    Value,
    /// In a value that is a quoted string.
    Quoted,
    /// After a backslash in a quoted string.
    QuotedPair,
    /// After the closing quote.
    QuotedEnd,
    /// In white space after a value: only `;` may follow.
    ValueEnd,
    /// At the LF after a size.
    SizeEnd,
    /// In the data.
    Data,
    /// At the CR after the data.
    DataEnd,
    /// At the LF after the data.
    DataEndLf,
    /// At the start of a trailer line.
    TrailerStart,
    /// In the name of a trailer field.
    TrailerName,
    /// In its value, up to the CR.
    TrailerValue,
    /// At the LF of a trailer line.
    TrailerEnd,
    /// At the LF of the last, empty line.
    LastLf,
    /// After the body.
    Done,
}

/// A chunked body that is being received.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunked {
    state: State,
    /// While a size is being read, its value; in the data, the number of bytes that are left.
    left: u64,
    decoded: usize,
    /// The number of framing bytes that may still arrive.
    framing_left: usize,
}

/// The progress made with a piece of input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The whole piece was consumed, and the body continues.
    More,
    /// The body ends after this number of bytes of the piece.
    Done(usize),
}

impl Chunked {
    /// Creates a body whose framing may take this number of bytes.
    pub(super) fn new(framing_bytes_max: usize) -> Self {
        Chunked { state: State::SizeStart, left: 0, decoded: 0, framing_left: framing_bytes_max }
    }

    /// Decodes `input` and appends the data to `body`. A body may have at most `body_bytes_max` bytes in all.
    pub(super) fn feed(
        &mut self,
        input: &[u8],
        body_bytes_max: usize,
        body: &mut Vec<u8>,
    ) -> Result<Progress, Refusal> {
        let mut at = 0;
        while at < input.len() {
            if self.state == State::Data {
                let taken =
                    (input.len() - at).min(usize::try_from(self.left).unwrap_or(usize::MAX));
                body.extend_from_slice(&input[at..at + taken]);
                at += taken;
                self.left -= taken as u64;
                if self.left == 0 {
                    self.state = State::DataEnd;
                }
                continue;
            }
            self.framing_left = self.framing_left.checked_sub(1).ok_or(Refusal::LargeBody)?;
            self.state = self.step(input[at], body_bytes_max)?;
            at += 1;
            if self.state == State::Done {
                return Ok(Progress::Done(at));
            }
        }
        Ok(Progress::More)
    }

    /// Returns the state after one byte of framing.
    fn step(&mut self, byte: u8, body_bytes_max: usize) -> Result<State, Refusal> {
        if let (State::SizeStart | State::Size, Some(digit)) = (self.state, hex_digit(byte)) {
            // Leading zeros are digits like any others, but no digit may be lost.
            if self.left >> 60 != 0 {
                return Err(Refusal::Chunk);
            }
            self.left = (self.left << 4) + u64::from(digit);
            return Ok(State::Size);
        }
        Ok(match (self.state, byte) {
            (State::Size | State::ExtensionName | State::Value | State::QuotedEnd, b'\r') => {
                State::SizeEnd
            }
            (
                State::Size
                | State::ExtensionName
                | State::ExtensionNameEnd
                | State::Value
                | State::QuotedEnd
                | State::ValueEnd,
                b';',
            ) => State::ExtensionStart,
            (State::ExtensionName | State::ExtensionNameEnd, b'=') => State::ValueStart,
            // Bad white space, which senders must not send but recipients must accept (RFC 9112 section 7.1.1).
            (State::ExtensionStart | State::ValueStart, b' ' | b'\t') => self.state,
            (State::ExtensionName | State::ExtensionNameEnd, b' ' | b'\t') => {
                State::ExtensionNameEnd
            }
            (State::Value | State::QuotedEnd | State::ValueEnd, b' ' | b'\t') => State::ValueEnd,
            (State::ExtensionStart | State::ExtensionName, _) if is_token_byte(byte) => {
                State::ExtensionName
            }
            (State::ValueStart | State::Value, _) if is_token_byte(byte) => State::Value,
            (State::ValueStart, b'"') => State::Quoted,
            (State::Quoted, b'"') => State::QuotedEnd,
            (State::Quoted, b'\\') => State::QuotedPair,
            (State::Quoted | State::QuotedPair, b'\t' | b' '..=b'~' | 0x80..) => State::Quoted,
            (State::SizeEnd, b'\n') if self.left == 0 => State::TrailerStart,
            (State::SizeEnd, b'\n') => {
                // Checked for every chunk, so that the subtraction cannot underflow.
                let room = body_bytes_max - self.decoded;
                match usize::try_from(self.left) {
                    Ok(left) if left <= room => self.decoded += left,
                    _ => return Err(Refusal::LargeBody),
                }
                State::Data
            }
            (State::DataEnd, b'\r') => State::DataEndLf,
            (State::DataEndLf, b'\n') => State::SizeStart,
            (State::TrailerStart, b'\r') => State::LastLf,
            (State::TrailerStart | State::TrailerName, _) if is_token_byte(byte) => {
                State::TrailerName
            }
            (State::TrailerName, b':') => State::TrailerValue,
            (State::TrailerValue, b'\t' | b' '..=b'~' | 0x80..) => State::TrailerValue,
            (State::TrailerValue, b'\r') => State::TrailerEnd,
            (State::TrailerEnd, b'\n') => State::TrailerStart,
            (State::LastLf, b'\n') => State::Done,
            _ => return Err(Refusal::Chunk),
        })
    }
}

/// Returns whether a byte is a `tchar` of RFC 9110 section 5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::super::CHUNK_FRAMING_BYTES_MAX;
    use super::*;

    fn decode(wire: &[u8], pieces: usize, limit: usize) -> Result<(Vec<u8>, Progress), Refusal> {
        let (mut chunked, mut body, mut fed) =
            (Chunked::new(CHUNK_FRAMING_BYTES_MAX), Vec::new(), 0);
        for piece in wire.chunks(pieces) {
            match chunked.feed(piece, limit, &mut body)? {
                Progress::More => fed += piece.len(),
                Progress::Done(end) => return Ok((body, Progress::Done(fed + end))),
            }
        }
        Ok((body, Progress::More))
    }

    #[test]
    fn a_chunked_body_is_decoded_in_pieces_of_any_size() {
        let wire = b"5\r\nhello\r\n00A;name=\"v\"\r\n 0123456\r\n\r\n0\r\nX-Trailer: 1\r\n\r\nGET ";
        for pieces in 1..wire.len() {
            let decoded = decode(wire, pieces, 15).unwrap();
            assert_eq!(decoded, (b"hello 0123456\r\n".to_vec(), Progress::Done(wire.len() - 4)));
        }
    }

    #[test]
    fn extensions_in_the_grammar_are_ignored() {
        for extension in [
            ";a",
            "; \ta",
            ";a;b;c",
            ";a=b",
            ";a = b",
            ";a=b ;c",
            ";a ;b",
            ";a=\"\"",
            ";a=\"b;c=d\"",
            ";a=\"\\\"\\\\\u{e9}\t\";b",
            ";a=\"b\" ;c",
            ";!#$%&'*+-.^_`|~09",
        ] {
            let wire = format!("1{extension}\r\nx\r\n0{extension}\r\n\r\n");
            for pieces in 1..=wire.len() {
                let decoded = decode(wire.as_bytes(), pieces, 15).expect(extension);
                assert_eq!(decoded, (b"x".to_vec(), Progress::Done(wire.len())), "{extension}");
            }
        }
    }

    #[test]
    fn a_malformed_chunk_is_refused_however_it_is_split() {
        for wire in [
            &b"\r\n"[..],
            b";x\r\n",
            b"g\r\n",
            b"0x5\r\n",
            b"+5\r\n",
            b" 5\r\n",
            b"5 \r\n",
            b"5\n",
            b"5\r\r",
            b"5;\x00\r\n",
            b"5;a\nb\r\n",
            b"5;\r\n",
            b"5; \r\n",
            b"5;;a\r\n",
            b"5;a;\r\n",
            b"5;=b\r\n",
            b"5;\"a\"\r\n",
            b"5;a=\r\n",
            b"5;a=;b\r\n",
            b"5;a==b\r\n",
            b"5;a b\r\n",
            b"5;a \r\n",
            b"5;a=b \r\n",
            b"5;a=b c\r\n",
            b"5;a=b\"c\"\r\n",
            b"5;a=\"b\"c\r\n",
            b"5;a=\"b\r\n",
            b"5;a=\"b\\\r\n",
            b"5;a=\"\x7f\"\r\n",
            b"5 ;a\r\n",
            b"0;\r\n",
            b"10000000000000000\r\n",
            b"1\r\nab",
            b"1\r\na\n",
            b"1\r\na\rb",
            b"0\r\n x\r\n",
            b"0\r\n:x\r\n",
            b"0\r\nx\n",
            b"0\r\n\n",
            b"0\r\n\rx",
        ] {
            for pieces in 1..=wire.len() {
                assert_eq!(
                    decode(wire, pieces, 1000),
                    Err(Refusal::Chunk),
                    "{}",
                    wire.escape_ascii()
                );
            }
        }
    }

    #[test]
    fn the_body_and_its_framing_have_limits() {
        assert!(decode(b"5\r\nhello\r\n0\r\n\r\n", 99, 5).is_ok());
        assert_eq!(decode(b"5\r\nhello\r\n0\r\n\r\n", 99, 4), Err(Refusal::LargeBody));
        assert_eq!(decode(b"3\r\nhel\r\n3\r\n", 99, 5), Err(Refusal::LargeBody));
        assert_eq!(decode(b"ffffffffffffffff\r\n", 99, 5), Err(Refusal::LargeBody));
        // "1;" and CR LF, CR LF after the data, and "0" with two CR LF: 11 bytes of framing.
        for (extra, fits) in [(0, true), (1, false)] {
            let extension = "x".repeat(CHUNK_FRAMING_BYTES_MAX - 11 + extra);
            let wire = format!("1;{extension}\r\na\r\n0\r\n\r\n");
            assert_eq!(decode(wire.as_bytes(), 7, 5).is_ok(), fits);
        }
    }
}
