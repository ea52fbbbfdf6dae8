//! `POST /events`: the work on a batch, in slices that each spend one budget.

use super::{Endpoints, To, units};
use crate::event::{self, LineRefusal, Lines};
use crate::http::{Budget, Reply, Request, Status};
use crate::metrics::{Endpoint, Failure, Kind};
use crate::tally::{Batch, Block, Finish, Writer};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bounds the memory of the batches that all shards receive and work on.
#[derive(Debug)]
pub struct BatchMemory {
    bytes_max: usize,
    used: AtomicUsize,
}

impl BatchMemory {
    /// Creates a limit of `bytes_max` bytes for all bodies together.
    pub fn new(bytes_max: usize) -> Arc<BatchMemory> {
        Arc::new(BatchMemory { bytes_max, used: AtomicUsize::new(0) })
    }

    /// Returns the number of bytes that are currently reserved.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Reserves memory for a body until the reservation is dropped, if there is enough.
    fn reserve(self: &Arc<Self>, bytes: usize) -> Option<(Reservation, Vec<u8>)> {
        let add = |used: usize| used.checked_add(bytes).filter(|used| *used <= self.bytes_max);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        let reservation = Reservation { memory: Arc::clone(self), bytes };
        let mut body = Vec::new();
        // The peer chose the size, and the process may not have enough memory.
        body.try_reserve_exact(bytes).ok()?;
        Some((reservation, body))
    }
}

/// Memory that a batch may use.
#[derive(Debug)]
struct Reservation {
    memory: Arc<BatchMemory>,
    bytes: usize,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The work on a batch: its lines are decoded and added up, then the users that this shard has not seen are claimed,
/// and finally all events are counted together.
///
/// The lines of these users are marked in the body itself (see `Mark`), which does not take additional memory.
#[derive(Debug)]
pub struct Work {
    _reservation: Reservation,
    /// The maximum length of a line in bytes.
    line_bytes_max: usize,
    /// The body, once it is complete.
    body: Vec<u8>,
    /// The result of the completed slices; `None` before the first slice.
    batch: Option<Batch>,
    /// The next line to read.
    read: Line,
    /// The number of marked lines.
    marked: u64,
    /// The first line that may be marked.
    claimed: Line,
}

/// The position of a line: its first byte, and the number of lines before it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Line {
    at: usize,
    before: u64,
}

impl Line {
    /// Moves to the next line.
    fn skip(&mut self, bytes: usize) {
        self.at += bytes;
        self.before += 1;
    }

    fn number(self) -> u64 {
        self.before + 1
    }
}

/// Memory that slices of the work on batches use.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    lines: Lines,
    /// Lines whose users must be claimed.
    unseen: Vec<Line>,
}

/// The part of a slice of work on a batch that decodes lines and adds up their events.
struct Slice<'s, 'a> {
    batch: &'s mut Batch,
    writer: &'s Writer,
    line_bytes_max: usize,
    /// Events whose users were not looked up yet.
    block: Block<'a, Line>,
    unseen: &'s mut Vec<Line>,
}

impl<'a> Slice<'_, 'a> {
    /// Decodes the lines from `read` on that end within a window, or one line if none ends there. Stops early if the budget is
    /// spent after an unusual line. The caller charges for usual lines.
    fn decode_window(
        &mut self,
        body: &'a [u8],
        lines: &mut Lines,
        read: &mut Line,
        budget: &mut Budget,
    ) -> Result<(), BadLine> {
        let (rest, first) = (&body[read.at..], read.at);
        for line in lines.find(rest) {
            let (place, bytes) = (*read, line.end + 1 - line.start);
            match event::decode_usual_line(rest, line) {
                Some((user, value)) if bytes <= self.line_bytes_max => {
                    if self.block.is_full() {
                        self.look_up();
                    }
                    self.block.push(user, value, place);
                    read.skip(bytes);
                }
                _ => {
                    self.decode_other(body, read, budget)?;
                    if budget.is_spent() {
                        break;
                    }
                }
            }
        }
        if read.at == first {
            self.decode_other(body, read, budget)?;
        }
        self.look_up();
        Ok(())
    }

    /// Decodes a line of any shape.
    #[inline(never)]
    fn decode_other(
        &mut self,
        body: &[u8],
        read: &mut Line,
        budget: &mut Budget,
    ) -> Result<(), BadLine> {
        // Users are claimed in the order of their lines.
        self.look_up();
        let place = *read;
        let line = event::decode_line(&body[place.at..], self.line_bytes_max);
        read.skip(line.bytes);
        budget.charge(units::UNUSUAL + units::of_bytes(line.bytes, units::UNUSUAL_BYTE));
        match line.event {
            None => {}
            Some(Ok(event)) => {
                let is_known = self.writer.add_to_batch(self.batch, &event.user, event.value);
                if !is_known {
                    self.unseen.push(place);
                }
            }
            Some(Err(refusal)) => return Err(BadLine::new(place.number(), refusal)),
        }
        Ok(())
    }

    /// Looks up the users of the block, and adds its events to the batch.
    fn look_up(&mut self) {
        self.writer.add_block_to_batch(self.batch, &mut self.block, self.unseen);
    }
}

/// A mark for the line of an event whose user must be claimed. It replaces the line's first byte. Events
/// cannot begin with a mark.
struct Mark;

impl Mark {
    /// The bytes that can begin an event: JSON white space, or an opening brace.
    const FIRST: [u8; 4] = *b"{ \t\r";

    fn set(first: &mut u8) {
        let index = Self::FIRST.iter().position(|byte| byte == first);
        *first =
            index.and_then(|index| u8::try_from(index).ok()).expect("an event begins with one");
    }

    /// Removes the mark, if any. Returns whether there was a mark.
    fn take(first: &mut u8) -> bool {
        let original = Self::FIRST.get(usize::from(*first));
        if let Some(original) = original {
            *first = *original;
        }
        original.is_some()
    }
}

/// The reason why a batch is refused.
struct BadLine {
    number: u64,
    failure: Failure,
    sentence: &'static str,
}

impl BadLine {
    #[cold]
    fn new(number: u64, refusal: LineRefusal) -> BadLine {
        let (failure, sentence) = match refusal {
            LineRefusal::Event(refusal) => (Failure::from(refusal), refusal.sentence()),
            LineRefusal::Long => (
                Failure::LongLine,
                "send a shorter line, or start the server with a larger --max-body",
            ),
        };
        BadLine { number, failure, sentence }
    }
}

impl Work {
    /// Notes that the whole body has arrived.
    pub fn begin(&mut self, body: Vec<u8>) {
        self.body = body;
    }

    /// Decodes lines and adds up their events, until the whole batch is read or the budget is spent. Appends the positions of
    /// lines whose users must be claimed to `scratch`.
    fn decode(
        &mut self,
        batch: &mut Batch,
        writer: &Writer,
        budget: &mut Budget,
        scratch: &mut Scratch,
    ) -> Result<(), BadLine> {
        let Work { body, read, line_bytes_max, .. } = self;
        let Scratch { lines, unseen } = scratch;
        let (line_bytes_max, block) = (*line_bytes_max, Block::default());
        let mut slice = Slice { batch, writer, line_bytes_max, block, unseen };
        while read.at < body.len() && !budget.is_spent() {
            let first = *read;
            let decoded = slice.decode_window(body, lines, read, budget);
            budget.charge(units::of_bytes(read.at - first.at, 1));
            budget.charge(units::of_lines(read.before - first.before));
            decoded?;
        }
        Ok(())
    }

    /// Marks the lines whose users must be claimed.
    fn mark(&mut self, scratch: &mut Scratch) {
        for place in scratch.unseen.drain(..) {
            Mark::set(&mut self.body[place.at]);
            if self.marked == 0 {
                self.claimed = place;
            }
            self.marked += 1;
        }
    }

    /// Claims the users of marked lines, until all are claimed or the budget is spent.
    fn claim(&mut self, batch: &mut Batch, writer: &mut Writer, budget: &mut Budget) {
        if self.marked == 0 || !writer.may_claim(batch) {
            return;
        }
        while self.marked > 0 && !budget.is_spent() {
            let place = self.claimed;
            let is_marked = Mark::take(&mut self.body[place.at]);
            let rest = &self.body[place.at..];
            if !is_marked {
                let bytes = memchr::memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
                self.claimed.skip(bytes);
                budget.charge(1);
                budget.charge_bytes(bytes, units::SEARCHED_BYTES);
                continue;
            }
            self.marked -= 1;
            // Longer lines than the limit were refused before.
            let usual = memchr::memchr(b'\n', rest).and_then(|end| {
                let (user, _) = event::decode_usual_line(rest, 0..end)?;
                Some((user, end + 1))
            });
            let bytes = match usual {
                Some((user, bytes)) => {
                    writer.claim(batch, user, place.number());
                    budget.charge(units::LINE + units::of_bytes(bytes, 1));
                    bytes
                }
                None => {
                    let line = event::decode_line(rest, self.line_bytes_max);
                    // The line was decoded as an event before.
                    if let Some(Ok(event)) = &line.event {
                        writer.claim(batch, &event.user, place.number());
                    }
                    budget.charge(units::of_bytes(line.bytes, units::UNUSUAL_BYTE));
                    line.bytes
                }
            };
            budget.charge(units::CLAIM);
            self.claimed.skip(bytes);
        }
    }
}

impl Endpoints {
    /// Admits a batch of at most `bytes` bytes, or responds.
    pub(super) fn admit_batch(
        &mut self,
        request: &Request<'_>,
        bytes: usize,
        reply: Reply<'_>,
    ) -> Option<(Work, Vec<u8>)> {
        let status = if request.is_cross_site() {
            super::refuse_cross_site(reply)
        } else if request.is_encoded() {
            super::refuse_encoded(reply)
        } else if self.is_store_late() {
            super::send_store_is_late(reply)
        } else if let Some((reservation, body)) = self.policy.batch_memory.reserve(bytes) {
            let (read, claimed) = (Line::default(), Line::default());
            let work = Work {
                _reservation: reservation,
                line_bytes_max: self.policy.line_bytes_max,
                body: Vec::new(),
                batch: None,
                read,
                marked: 0,
                claimed,
            };
            return Some((work, body));
        } else {
            let sentence = "try again later, or start the server with a larger --max-batch-memory: it is \
                            receiving as many batches as it allows, or as fit in the machine's memory";
            reply.send_error(Status::ServiceUnavailable, &[("Retry-After", "1")], sentence)
        };
        self.metrics.note_response(request.method(), Endpoint::Batch, status);
        self.note_other(Kind::BATCH);
        None
    }

    /// Works on a batch until the budget is spent. Returns the status once it has responded.
    pub(super) fn work_on_batch(&mut self, work: &mut Work, to: To<'_>) -> Option<Status> {
        let To { reply, held, budget } = to;
        let Endpoints { writer, scratch, .. } = self;
        let mut batch = work.batch.take().unwrap_or_else(|| writer.begin_batch());
        let decoded = work.decode(&mut batch, writer, budget, scratch);
        work.mark(scratch);
        if let Err(bad) = decoded {
            self.metrics.note_failure(bad.failure);
            self.metrics.batches.refused_lines.add(1);
            return Some(refuse_line(reply, Status::BadRequest, bad.number, bad.sentence));
        }
        if work.read.at == work.body.len() {
            work.claim(&mut batch, writer, budget);
        }
        if work.read.at < work.body.len() || work.marked > 0 {
            work.batch = Some(batch);
            return None;
        }
        budget.charge(units::BATCH);
        if self.is_store_late() {
            return Some(super::send_store_is_late(reply));
        }
        let (events, generation) = (batch.events(), batch.generation());
        let settles_at = match self.writer.finish_batch(batch) {
            // It will be settled with the next publication.
            Finish::Counted => 0,
            Finish::BeforeReset { settles_at } => settles_at,
            Finish::UsersFull { line } => {
                self.metrics.note_failure(Failure::UsersFull);
                self.metrics.batches.refused_lines.add(1);
                let status = Status::InsufficientStorage;
                return Some(refuse_line(reply, status, line, super::USERS_FULL));
            }
        };
        if let Some(durable) = &mut self.durable {
            durable.hold(held, &reply, settles_at, generation);
        }
        self.metrics.batches.note_batch(events);
        let accepted = format!("{{\"accepted\":{events}}}");
        Some(reply.send_json(Status::Ok, accepted.as_bytes()))
    }
}

/// Refuses a batch because of an invalid line, or a line whose user cannot be held.
fn refuse_line(reply: Reply<'_>, status: Status, line: u64, sentence: &str) -> Status {
    let error = serde_json::json!({ "error": format!("line {line}: {sentence}"), "line": line });
    reply.send_json(status, error.to_string().as_bytes())
}
