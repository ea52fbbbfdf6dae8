//! The log of a server: the beginning and the end of its output, in a file of bounded size.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

/// The bytes of a server's output that are kept from its beginning, and from its end.
pub(super) const HEAD_MAX: usize = 1 << 20;
pub(super) const TAIL_MAX: usize = 1 << 16;
/// The lines of a log that an error quotes, and the characters of each.
const LINES_QUOTED: usize = 8;
const COLUMNS_QUOTED: usize = 200;

/// A log that is being written.
pub(super) struct BoundedLog {
    file: File,
    written: usize,
    tail: VecDeque<u8>,
    left_out: u64,
}

impl BoundedLog {
    /// Makes or empties the file.
    pub(super) fn create(path: &Path) -> io::Result<BoundedLog> {
        let file = File::create(path)?;
        Ok(BoundedLog { file, written: 0, tail: VecDeque::new(), left_out: 0 })
    }

    /// Reads output to its end, so that a server never waits for its log. Output that cannot be written to the file is lost.
    pub(super) fn drain(&mut self, mut output: impl Read) {
        let mut bytes = [0; 1 << 14];
        loop {
            match output.read(&mut bytes) {
                Ok(0) => break,
                Ok(length) => self.take(&bytes[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.finish();
    }

    fn take(&mut self, bytes: &[u8]) {
        let (head, rest) = bytes.split_at(bytes.len().min(HEAD_MAX - self.written));
        self.written += head.len();
        let _ = self.file.write_all(head);
        self.tail.extend(rest);
        let over = self.tail.len().saturating_sub(TAIL_MAX);
        self.tail.drain(..over);
        self.left_out += over as u64;
    }

    /// Appends the end of the output to its beginning.
    fn finish(&mut self) {
        if self.left_out > 0 {
            let _ = write!(self.file, "\n[{} bytes are left out here]\n", self.left_out);
        }
        let _ = self.file.write_all(self.tail.make_contiguous());
        self.tail.clear();
    }
}

/// Returns the last lines of a log joined into one line; `None` if it does not have any.
pub(super) fn quote(path: &Path) -> Option<String> {
    let bytes = std::fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(TAIL_MAX)..]).into_owned();
    let shown = |line: &str| -> String {
        let plain = line.trim().chars().filter(|c| !c.is_control());
        plain.take(COLUMNS_QUOTED).collect()
    };
    let lines: Vec<String> = text.lines().map(shown).filter(|line| !line.is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(LINES_QUOTED)..];
    (!last.is_empty()).then(|| last.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(length: usize) -> (String, usize) {
        let path =
            std::env::temp_dir().join(format!("ringtally-log-{}-{length}", std::process::id()));
        let output: Vec<u8> = (0..length).map(|at| b'a' + u8::try_from(at % 26).unwrap()).collect();
        BoundedLog::create(&path).unwrap().drain(output.as_slice());
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let kept = text.bytes().filter(u8::is_ascii_lowercase).count();
        (text, kept)
    }

    #[test]
    fn a_log_has_the_beginning_and_the_end_of_what_is_too_long() {
        let most = HEAD_MAX + TAIL_MAX;
        for length in [0, 1, HEAD_MAX - 1, HEAD_MAX, HEAD_MAX + 1, most - 1, most] {
            let (text, kept) = logged(length);
            assert_eq!((text.len(), kept), (length, length));
        }
        for length in [most + 1, 3 * most] {
            let (text, _) = logged(length);
            assert!(text.contains(&format!("[{} bytes are left out here]", length - most)));
            assert!(text.len() < most + 64 && text.starts_with("abc"));
            let last = char::from(b'a' + u8::try_from((length - 1) % 26).unwrap());
            assert!(text.ends_with(last));
        }
    }

    #[test]
    fn a_quote_is_the_last_lines() {
        let path = std::env::temp_dir().join(format!("ringtally-quote-{}", std::process::id()));
        let quoted = |text: &str| {
            std::fs::write(&path, text).unwrap();
            quote(&path)
        };
        assert_eq!(quoted("\n  \n"), None);
        assert_eq!(quoted("a\n\n  b\u{1b}[1m\n"), Some("a | b[1m".into()));
        for lines in [LINES_QUOTED - 1, LINES_QUOTED, LINES_QUOTED + 1] {
            let text: String = (0..lines).map(|line| format!("{line}\n")).collect();
            assert_eq!(quoted(&text).unwrap().split(" | ").count(), lines.min(LINES_QUOTED));
        }
        assert_eq!(quoted(&"x".repeat(COLUMNS_QUOTED + 1)).unwrap().len(), COLUMNS_QUOTED);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(quote(&path), None);
    }
}
