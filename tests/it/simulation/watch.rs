//! The expectations of one connection: the responses to its requests, and the time when the clock ends it.

use super::QUIET_MS;
use super::script::{Item, Model, Sent};
use crate::world::simulated::{Link, Made, Slot};
use crate::world::{Response, split_responses};
use ringtally::connection::{LINGER_MS, Moment, Next, Urgency};
use ringtally::http::Timeouts;

/// The state of the received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Middle {
    Nothing,
    Head,
    Body,
    /// A body whose request already has its response.
    Skipped,
}

/// The effect of the clock on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Nothing,
    /// A 408, as its last response.
    Refused,
    Idle,
    Cut,
}

/// One connection, as a model follows it.
#[derive(Debug)]
pub struct Watch {
    script: Vec<Sent>,
    timeouts: Timeouts,
    /// The first item without a response, and its start.
    next: usize,
    begins_at: usize,
    has_continued: bool,
    middle: Middle,
    /// The earliest and the latest time when `middle` began.
    since_ms: (u64, u64),
    /// The time when received bytes began to wait for their turn.
    held_since_ms: Option<u64>,
    /// The number of resets before that time.
    held_resets: Option<u64>,
    /// True if the server is full and rejects it.
    pub is_rejected: bool,
    /// True after its last response.
    pub is_closing: bool,
    /// The number of responses, not counting interim ones.
    pub responses: usize,
    /// The number of batches that took several turns.
    pub slices: u64,
    has_responded: bool,
    /// The lowest possible cost of this iteration's responses.
    spent_ns: u64,
}

/// The cost that a shard may spend on a connection between two turns of the others.
const TURN_NS: u64 = 100_000;

impl Watch {
    pub fn new(script: Vec<Sent>, is_rejected: bool, timeouts: Timeouts) -> Watch {
        Watch {
            script,
            timeouts,
            next: 0,
            begins_at: 0,
            has_continued: false,
            middle: Middle::Nothing,
            since_ms: (0, 0),
            held_since_ms: None,
            held_resets: None,
            is_rejected,
            is_closing: false,
            responses: 0,
            slices: 0,
            has_responded: false,
            spent_ns: 0,
        }
    }

    /// Notes that the connection is accepted.
    pub fn begin(&mut self, now_ms: u64) {
        self.since_ms = (now_ms, now_ms);
    }

    /// Returns the number of items that are complete in this number of bytes, up to the last item of the connection.
    pub fn items_in(&self, bytes: usize) -> usize {
        let (mut end, mut items) = (0, 0);
        if self.is_rejected {
            return 1;
        }
        for sent in &self.script {
            end += sent.bytes.len();
            if end > bytes {
                break;
            }
            items += 1;
            if matches!(sent.item, Item::Last(..)) {
                break;
            }
        }
        items
    }

    /// Applies the responses that were made to the model.
    pub fn follow(&mut self, made: &Made, link: &Link, model: &mut Model, moment: &Moment) {
        let received = link.received();
        for response in split_responses(&made.bytes) {
            let pending = received.saturating_sub(self.begins_at);
            assert!(!self.is_closing, "a response after the last one: {response:?}");
            if self.is_rejected {
                assert_eq!(response.status, 503);
                assert_eq!(response.field("connection"), Some("close"));
                (self.is_closing, self.responses) = (true, 1);
                continue;
            }
            let sent = self.script.get(self.next).expect("no response without a request");
            if response.status == 100 {
                let is_wanted = sent.expects && !self.has_continued && pending >= sent.head;
                assert!(is_wanted, "nobody waits to continue: {sent:?}");
                self.has_continued = true;
                continue;
            }
            let is_old = self.held_resets.is_some_and(|resets| resets < model.resets);
            model.follow(sent, &response, is_old);
            let needed = match sent.item {
                Item::Last(..) => 0,
                Item::RefusedEarly(..) => sent.head,
                _ => sent.bytes.len(),
            };
            assert!(pending >= needed, "a response came early: {sent:?}");
            let behind = link.at_server().saturating_sub(self.begins_at + sent.bytes.len());
            self.check_turns(made.works);
            self.check_end(&response, moment, behind);
            self.begins_at += self.script[self.next].bytes.len();
            (self.next, self.responses) = (self.next + 1, self.responses + 1);
            (self.has_continued, self.has_responded) = (false, true);
        }
    }

    /// Checks that no turn did more than allowed.
    fn check_turns(&mut self, works: usize) {
        let sent = &self.script[self.next];
        if let Item::Batch(_) = sent.item {
            self.slices += u64::from(works > 1);
            let turns = works as u64 + 1;
            assert!(turns * TURN_NS >= sent.ns, "{works} turns for {} ns", sent.ns);
        } else {
            self.spent_ns += sent.ns;
            assert!(self.spent_ns <= TURN_NS + sent.ns, "{} ns in one turn", self.spent_ns);
        }
    }

    /// Checks that the last response, and only the last, announces the close. `behind` bytes have arrived after its request.
    fn check_end(&mut self, response: &Response, moment: &Moment, behind: usize) {
        let says_so = response.field("connection") == Some("close");
        let sent = &self.script[self.next];
        let is_last = matches!(sent.item, Item::Last(..));
        assert!(says_so || !is_last, "a close is announced: {response:?}");
        let is_draining = moment.urgency != Urgency::Serve;
        assert!(is_last || is_draining || !says_so, "it could continue: {response:?}");
        // RFC 9112 section 9.6: requests after it are not processed.
        assert!(is_last || !says_so || behind == 0, "{behind} bytes are lost: {response:?}");
        let is_early = matches!(sent.item, Item::RefusedEarly(..));
        let may_go_on = behind > 0 || is_early;
        assert!(
            says_so || !is_draining || may_go_on,
            "it is the last response of a drain: {response:?}"
        );
        self.is_closing = says_so;
    }

    /// Follows a 408 response.
    pub fn follow_timeout(&mut self, made: &Made) {
        let responses = split_responses(&made.bytes);
        assert_eq!(responses.len(), 1);
        assert_eq!(responses[0].status, 408);
        assert_eq!(responses[0].field("connection"), Some("close"));
        (self.is_closing, self.responses) = (true, self.responses + 1);
    }

    /// Notes when the incomplete request began, at the end of an iteration. `resets` is the number of resets before it.
    pub fn follow_time(&mut self, slot: &mut Slot, now_ms: u64, resets: u64) {
        let has_responded = std::mem::take(&mut self.has_responded);
        self.spent_ns = 0;
        if self.is_closing || slot.lingers_since.is_some() || !slot.is_open() {
            return;
        }
        if slot.connection().has_work() || slot.connection().next() == Next::Pause {
            // Received bytes may be handled in any iteration from here on.
            if has_responded || self.held_since_ms.is_none() {
                (self.held_since_ms, self.held_resets) = (Some(now_ms), Some(resets));
            }
            return;
        }
        self.held_resets = None;
        let held_since_ms = self.held_since_ms.take();
        let earliest_ms = held_since_ms.filter(|_| !has_responded).unwrap_or(now_ms);
        let is_new = has_responded || held_since_ms.is_some();
        let middle = self.middle_of(slot.link.received());
        if middle != self.middle || is_new {
            // White space between requests does not extend the wait for one.
            let begins = middle != Middle::Nothing || self.middle == Middle::Skipped;
            if begins || is_new {
                let is_known = middle == self.middle && !has_responded;
                let first_ms = if is_known { self.since_ms.0 } else { earliest_ms };
                self.since_ms = (first_ms, now_ms);
            }
            self.middle = middle;
        }
    }

    fn middle_of(&self, received: usize) -> Middle {
        let Some(pending) = received.checked_sub(self.begins_at) else { return Middle::Skipped };
        let Some(sent) = self.script.get(self.next) else { return Middle::Nothing };
        let white = sent.bytes.iter().take_while(|byte| b"\r\n".contains(byte)).count();
        match pending {
            pending if pending <= white => Middle::Nothing,
            pending if pending < sent.head => Middle::Head,
            _ => Middle::Body,
        }
    }

    /// Returns what the clock must do to the connection, and what it may do instead if the time is not known exactly.
    pub fn verdicts(&self, slot: &Slot, moment: &Moment) -> [Verdict; 2] {
        let now_ms = moment.now_ms;
        let is_idle = self.is_idle(slot);
        let close = if is_idle { Verdict::Idle } else { Verdict::Cut };
        if moment.urgency == Urgency::Abort {
            return [close; 2];
        }
        if let Some((since_ms, _)) = slot.lingers_since {
            let is_late = now_ms >= since_ms + LINGER_MS;
            return [if is_late { Verdict::Idle } else { Verdict::Nothing }; 2];
        }
        if let Some(since_ms) = slot.sending_since_ms {
            let is_late = now_ms >= since_ms + self.timeouts.idle_ms;
            return [if is_late { Verdict::Cut } else { Verdict::Nothing }; 2];
        }
        if slot.connection().has_work() || self.is_closing {
            return [Verdict::Nothing; 2];
        }
        let (timeout_ms, late) = match self.middle {
            Middle::Nothing => (self.timeouts.idle_ms, Verdict::Idle),
            Middle::Head => (self.timeouts.header_ms, Verdict::Refused),
            Middle::Body => (self.timeouts.body_ms, Verdict::Refused),
            Middle::Skipped => (self.timeouts.body_ms, Verdict::Idle),
        };
        let quiet_since_ms = slot.received_ms.max(moment.drain_ms);
        let is_drained =
            moment.urgency == Urgency::Drain && is_idle && now_ms >= quiet_since_ms + QUIET_MS;
        let early = if is_drained { Verdict::Idle } else { Verdict::Nothing };
        let verdict = |since_ms| if now_ms >= since_ms + timeout_ms { late } else { early };
        let verdicts = [verdict(self.since_ms.0), verdict(self.since_ms.1)];
        // Input that has arrived is handled first.
        let is_seen = moment.urgency == Urgency::Serve || slot.link.unread() == 0;
        verdicts.map(|verdict| match verdict {
            Verdict::Idle | Verdict::Refused if !is_seen => Verdict::Nothing,
            verdict => verdict,
        })
    }

    /// Returns whether the connection can end without losing a part of a request or a response.
    fn is_idle(&self, slot: &Slot) -> bool {
        if slot.sending_since_ms.is_some() || slot.connection().has_work() {
            return false;
        }
        let received = slot.link.received();
        let is_between = match received.checked_sub(self.begins_at) {
            None => false,
            Some(0) => true,
            // Complete empty lines are not a part of a request.
            Some(pending) => self
                .script
                .get(self.next)
                .is_none_or(|sent| pending == 2 && sent.bytes.starts_with(b"\r\n")),
        };
        self.is_closing || slot.lingers_since.is_some() || is_between
    }
}
