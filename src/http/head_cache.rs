//! Recent request heads. A keep-alive client repeats its head, so equal bytes are not parsed again.

use super::head::{Framing, Head};

/// The maximum number of heads that are kept: one for each kind of client that takes turns on a shard.
const KEPT_MAX: usize = 4;
/// The maximum length of a head that is kept, in bytes.
const KEPT_BYTES_MAX: usize = 1024;

/// The heads that connections of one shard sent recently, with their content. If a request starts with a cached head, except
/// for the digits of its Content-Length, its head is not parsed again.
#[derive(Debug, Default)]
pub(super) struct HeadCache {
    kept: Vec<Kept>,
    /// The index of the most recently found head.
    last: usize,
    /// The index of the head that will be replaced next.
    oldest: usize,
}

#[derive(Debug)]
struct Kept {
    head: Head,
    bytes: Vec<u8>,
}

impl HeadCache {
    /// Returns the content of the head at the start of `input`, if it is cached.
    #[inline]
    pub(super) fn find(&mut self, input: &[u8]) -> Option<Head> {
        let last = self.kept.get(self.last)?;
        if let Some(head) = last.matches(input) {
            return Some(head);
        }
        let (at, head) =
            self.kept.iter().enumerate().find_map(|(at, kept)| Some((at, kept.matches(input)?)))?;
        self.last = at;
        Some(head)
    }

    /// Caches a head that was not found. A head with a secret is not cached, so that it is never
    /// compared with what other clients send.
    pub(super) fn keep(&mut self, head: &Head, bytes: &[u8]) {
        if bytes.len() > KEPT_BYTES_MAX || head.authorization.is_some() {
            return;
        }
        if self.kept.len() < KEPT_MAX {
            self.kept.push(Kept { head: *head, bytes: bytes.to_vec() });
            return;
        }
        let kept = &mut self.kept[self.oldest];
        kept.head = *head;
        kept.bytes.clear();
        kept.bytes.extend_from_slice(bytes);
        self.oldest = (self.oldest + 1) % KEPT_MAX;
    }
}

impl Kept {
    /// Returns the head at the start of `input`, with the Content-Length that it states, if it is
    /// this head. Both end with the first empty line, so no head is a prefix of another.
    #[inline]
    fn matches(&self, input: &[u8]) -> Option<Head> {
        let input = input.get(..self.bytes.len())?;
        let Some(digits) = self.head.length else {
            return (input == self.bytes).then_some(self.head);
        };
        let digits = digits.range();
        if input[..digits.start] != self.bytes[..digits.start]
            || input[digits.end..] != self.bytes[digits.end..]
        {
            return None;
        }
        let length = super::head::content_length(&input[digits]).ok()?;
        Some(Head { framing: Framing::Length(length), ..self.head })
    }
}

#[cfg(test)]
mod tests {
    use super::super::head::Scan;
    use super::*;

    fn keep(cache: &mut HeadCache, bytes: &str) {
        let mut scan = Scan::START;
        let head = scan.parse(bytes.as_bytes(), "a").unwrap().expect("the head is complete");
        cache.keep(&head, bytes.as_bytes());
    }

    fn has(cache: &mut HeadCache, bytes: &str) -> bool {
        cache.find(bytes.as_bytes()).is_some()
    }

    fn head(field: &str) -> String {
        format!("GET / HTTP/1.1\r\nHost: a\r\n{field}\r\n")
    }

    #[test]
    fn the_latest_heads_are_kept() {
        let heads: Vec<String> =
            (0..2 * KEPT_MAX + 2).map(|n| head(&format!("A: {n}\r\n"))).collect();
        let mut cache = HeadCache::default();
        for latest in 0..heads.len() {
            assert!(!has(&mut cache, &heads[latest]));
            keep(&mut cache, &heads[latest]);
            for (number, head) in heads.iter().enumerate() {
                let is_kept = number <= latest && number + KEPT_MAX > latest;
                assert_eq!(has(&mut cache, head), is_kept, "{number} after {latest}");
            }
        }
    }

    #[test]
    fn long_heads_and_secrets_are_not_kept() {
        let mut cache = HeadCache::default();
        let of_length =
            |bytes: usize| head(&format!("A: {}\r\n", "x".repeat(bytes - head("A: \r\n").len())));
        let (longest, too_long) = (of_length(KEPT_BYTES_MAX), of_length(KEPT_BYTES_MAX + 1));
        let secret = head("Authorization: Bearer b\r\n");
        for (head, is_kept) in [(&longest, true), (&too_long, false), (&secret, false)] {
            keep(&mut cache, head);
            assert_eq!(has(&mut cache, head), is_kept, "{} bytes", head.len());
        }
    }
}
