//! `POST /events`: the work on a batch, in slices.

use super::Endpoints;
use crate::event::{self, LineRefusal};
use crate::http::{Reply, Request, Status};
use crate::metrics::{Endpoint, Failure};
use crate::tally::{Batch, Block, Finish, Writer};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How much of a batch is worked on before other connections have their turn, in units of about the time that a byte of
/// a usual line of a known user takes. It is 0.1 to 0.5 ms.
const SLICE_COST: usize = 128 * 1024;
/// What a byte of any other line costs.
const UNUSUAL_COST: usize = 8;
/// What it costs to claim the user of an event.
const CLAIM_COST: usize = 256;

/// Bounds the memory of the batches that all shards receive and work on.
#[derive(Debug)]
pub struct BatchMemory {
    bytes_max: usize,
    used: AtomicUsize,
}

impl BatchMemory {
    /// At most `bytes_max` bytes of bodies at once.
    pub fn new(bytes_max: usize) -> Arc<BatchMemory> {
        Arc::new(BatchMemory { bytes_max, used: AtomicUsize::new(0) })
    }

    /// Bytes reserved now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Reserves memory until the reservation is dropped, if there is so much.
    fn reserve(self: &Arc<Self>, bytes: usize) -> Option<Reservation> {
        let add = |used: usize| used.checked_add(bytes).filter(|used| *used <= self.bytes_max);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some(Reservation { memory: Arc::clone(self), bytes })
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

/// The work on a batch: its lines are decoded and added up, then the users that this shard has not seen are claimed, and
/// then all events are counted at once.
#[derive(Debug)]
pub struct Work {
    _reservation: Reservation,
    /// The sum so far; none before the first slice.
    batch: Option<Batch>,
    /// What was read, and how many lines that is.
    at: usize,
    lines: u64,
    /// Events whose users have to be claimed, and how many of them were.
    unseen: Vec<Line>,
    claimed: usize,
}

/// Where a line is.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    at: usize,
    number: u64,
}

/// Why a batch is refused.
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
    /// Decodes lines of at most `line_bytes_max` bytes and adds up their events, until the whole batch is read or `left`
    /// is spent.
    fn decode(
        &mut self,
        batch: &mut Batch,
        writer: &Writer,
        body: &[u8],
        line_bytes_max: usize,
        left: &mut usize,
    ) -> Result<(), BadLine> {
        let mut block = Block::default();
        while self.at < body.len() && *left > 0 {
            let rest = &body[self.at..];
            self.lines += 1;
            let place = Line { at: self.at, number: self.lines };
            if let Some((user, value, bytes)) = event::decode_usual_line(rest, line_bytes_max) {
                self.at += bytes;
                *left = left.saturating_sub(bytes);
                writer.put_into_block(&mut block, user, value, place);
                if block.is_full() {
                    writer.add_block_to_batch(batch, &mut block, &mut self.unseen);
                }
                continue;
            }
            // Users are claimed in the order of their lines.
            writer.add_block_to_batch(batch, &mut block, &mut self.unseen);
            let line = event::decode_line(rest, line_bytes_max);
            self.at += line.bytes;
            *left = left.saturating_sub(line.bytes * UNUSUAL_COST);
            match line.event {
                None => {}
                Some(Ok(event)) => {
                    let is_known = writer.add_to_batch(batch, &event.user, event.value);
                    if !is_known {
                        self.unseen.push(place);
                    }
                }
                Some(Err(refusal)) => return Err(BadLine::new(self.lines, refusal)),
            }
        }
        writer.add_block_to_batch(batch, &mut block, &mut self.unseen);
        Ok(())
    }

    /// Claims the users that the shard has not seen, until that is done or `left` is spent.
    fn claim(
        &mut self,
        batch: &mut Batch,
        writer: &mut Writer,
        body: &[u8],
        line_bytes_max: usize,
        left: &mut usize,
    ) {
        if self.unseen.is_empty() || !writer.may_claim(batch) {
            return;
        }
        while let Some(place) = self.unseen.get(self.claimed)
            && *left > 0
        {
            let rest = &body[place.at..];
            let cost = match event::decode_usual_line(rest, line_bytes_max) {
                Some((user, _, bytes)) => {
                    writer.claim(batch, user, place.number);
                    bytes
                }
                None => {
                    let line = event::decode_line(rest, line_bytes_max);
                    // It was an event before.
                    if let Some(Ok(event)) = &line.event {
                        writer.claim(batch, &event.user, place.number);
                    }
                    line.bytes * UNUSUAL_COST
                }
            };
            *left = left.saturating_sub(CLAIM_COST + cost);
            self.claimed += 1;
        }
    }
}

impl Endpoints {
    /// Takes a batch of at most `bytes` bytes, or responds.
    pub(super) fn admit_batch(
        &mut self,
        request: &Request<'_>,
        bytes: usize,
        reply: Reply<'_>,
    ) -> Option<Work> {
        let status = if request.is_cross_site() {
            super::refuse_cross_site(reply)
        } else if request.is_encoded() {
            let fields = [("Accept-Encoding", "identity")];
            reply.send_error(
                Status::UnsupportedMediaType,
                &fields,
                "send the batch without a content coding",
            )
        } else if self.is_store_late() {
            self.refuse_for_store(reply)
        } else if let Some(reservation) = self.policy.batch_memory.reserve(bytes) {
            return Some(Work {
                _reservation: reservation,
                batch: None,
                at: 0,
                lines: 0,
                unseen: Vec::new(),
                claimed: 0,
            });
        } else {
            let sentence = "try again later, or start the server with a larger --max-batch-memory: it is \
                            receiving as many batches as it allows";
            reply.send_error(Status::ServiceUnavailable, &[("Retry-After", "1")], sentence)
        };
        self.metrics.note_response(request.method(), Endpoint::Batch, status);
        None
    }

    /// Does a slice of the work on a batch. Returns the status once it has responded.
    pub(super) fn work_on_batch(
        &mut self,
        work: &mut Work,
        body: &[u8],
        reply: Reply<'_>,
    ) -> Option<Status> {
        let Endpoints { writer, .. } = self;
        let mut batch = work.batch.take().unwrap_or_else(|| writer.begin_batch());
        let line_bytes_max = self.policy.line_bytes_max;
        let mut left = SLICE_COST;
        if let Err(bad) = work.decode(&mut batch, writer, body, line_bytes_max, &mut left) {
            self.metrics.note_failure(bad.failure);
            self.metrics.batches.refused_lines.add(1);
            return Some(refuse_line(reply, Status::BadRequest, bad.number, bad.sentence));
        }
        if work.at == body.len() {
            work.claim(&mut batch, writer, body, line_bytes_max, &mut left);
        }
        if work.at < body.len() || work.claimed < work.unseen.len() {
            work.batch = Some(batch);
            return None;
        }
        if self.is_store_late() {
            return Some(self.refuse_for_store(reply));
        }
        let (events, generation) = (batch.events(), batch.generation());
        let settles_at = match self.writer.finish_batch(batch) {
            // It is settled with what is published next.
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
            durable.hold(&reply, settles_at, generation);
        }
        self.metrics.batches.note_batch(events);
        let accepted = format!("{{\"accepted\":{events}}}");
        Some(reply.send_json(Status::Ok, accepted.as_bytes()))
    }
}

/// Refuses a batch for one of its lines.
fn refuse_line(reply: Reply<'_>, status: Status, line: u64, sentence: &str) -> Status {
    let error = serde_json::json!({ "error": format!("line {line}: {sentence}"), "line": line });
    reply.send_json(status, error.to_string().as_bytes())
}
