//! One shard: its connections, and what it does next. It is the reactor of the ring engine (`src/engine/ring.rs`), step by step,
//! with links in the place of sockets, and a seed in the place of the kernel: which operations complete, and in which pieces.

use super::network::{Link, Received};
use fastrand::Rng;
use ringtally::connection::{Action, Connection, Due, Moment, Next, Urgency};
use ringtally::engine::Line;
use ringtally::http::{Budget, Limits};
use ringtally::service::Service;
use ringtally::uring::Wakeup;
use std::collections::VecDeque;
use std::sync::Arc;

/// The most bytes that one receive brings.
pub const BUFFER_BYTES: usize = 4096;
/// Buffers that a multishot receive fills in one iteration.
const BUFFERS_MAX: usize = 16;

/// What one request costs at most, in the units of a budget: that of the metrics, with room.
const REQUEST_UNITS_MAX: u32 = 60_000;

/// The receive of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiving {
    No,
    Once,
    Multishot,
    /// It was canceled, and may still bring something.
    Canceled,
}

/// How the shard has ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// As the connection wanted.
    Closed,
    /// The peer had reset it.
    Failed,
    /// The clock has, with nothing in flight.
    Idle,
    /// The clock has, and something is lost.
    Cut,
}

/// A connection of the shard, open or not.
#[derive(Debug)]
pub struct Slot {
    pub link: Link,
    pub connection: Connection,
    pub ended: Option<Ended>,
    is_queued: bool,
    is_in_line: bool,
    receiving: Receiving,
    sending: VecDeque<u8>,
    sending_bytes: usize,
    /// When the send under way began.
    pub sending_since_ms: Option<u64>,
    /// When its lingering began, and what was received before that.
    pub lingers_since: Option<(u64, usize)>,
    /// When something was last received.
    pub received_ms: u64,
    /// Turns that it has had in line since its last response.
    works: usize,
    /// Iterations that it has waited in line.
    waits: usize,
    /// Bytes of responses that were seen to be made, and of those, that were taken.
    made: usize,
    taken: usize,
}

impl Slot {
    pub fn is_open(&self) -> bool {
        self.ended.is_none()
    }
}

/// A connection with responses that wait for the store.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    key: usize,
    epoch: u64,
    since_ms: u64,
}

/// One shard.
pub struct Shard {
    pub rng: Rng,
    pub service: Service,
    pub slots: Vec<Slot>,
    pub moment: Moment,
    /// The time.
    pub clock_ms: u64,
    /// Connections that are established, and not accepted.
    pub backlog: VecDeque<Link>,
    /// Responses in the order in which they were made.
    pub made: Vec<Made>,
    /// Connections that the stop has closed with something in flight.
    pub cut: usize,
    limits: Limits,
    wakeup: Option<Arc<Wakeup>>,
    queue: Vec<usize>,
    line: Line<usize>,
    waiting: VecDeque<Waiting>,
    reading: VecDeque<Waiting>,
    has_unasked: bool,
    /// Completions in this iteration.
    done: usize,
    /// Nobody but the connections notes that the store is late, as in the streams engine.
    is_forgetful: bool,
}

/// Responses that a connection has made, not all of which may leave.
#[derive(Debug)]
pub struct Made {
    pub key: usize,
    pub bytes: Vec<u8>,
    /// Turns in line that it has had for them.
    pub works: usize,
}

/// Notes what a connection has responded.
fn note_made(made: &mut Vec<Made>, slot: &mut Slot, key: usize) {
    let bytes = slot.connection.responses().bytes();
    let all = slot.taken + bytes.len();
    if all > slot.made {
        let bytes = bytes[slot.made - slot.taken..].to_vec();
        made.push(Made { key, bytes, works: slot.works });
        (slot.made, slot.works) = (all, 0);
    }
}

impl Shard {
    pub fn new(
        mut rng: Rng,
        service: Service,
        limits: Limits,
        wakeup: Option<Arc<Wakeup>>,
    ) -> Shard {
        let is_forgetful = rng.bool();
        Shard {
            rng,
            service,
            slots: Vec::new(),
            moment: Moment::START,
            clock_ms: 0,
            backlog: VecDeque::new(),
            made: Vec::new(),
            cut: 0,
            limits,
            wakeup,
            queue: Vec::new(),
            line: Line::new(),
            waiting: VecDeque::new(),
            reading: VecDeque::new(),
            has_unasked: false,
            done: 0,
            is_forgetful,
        }
    }

    /// The connection of a key, which may still wait to be accepted.
    pub fn link(&mut self, key: usize) -> &mut Link {
        let accepted = self.slots.len();
        match key < accepted {
            true => &mut self.slots[key].link,
            false => &mut self.backlog[key - accepted],
        }
    }

    /// Accepts the first connection of the backlog. Its key is the number of those before it.
    pub fn accept(&mut self) {
        let Some(link) = self.backlog.pop_front() else { return };
        self.slots.push(Slot {
            link,
            connection: Connection::new(self.limits, true, self.moment.now_ms),
            ended: None,
            is_queued: false,
            is_in_line: false,
            receiving: Receiving::No,
            sending: VecDeque::new(),
            sending_bytes: 0,
            sending_since_ms: None,
            lingers_since: None,
            received_ms: self.moment.now_ms,
            works: 0,
            waits: 0,
            made: 0,
            taken: 0,
        });
        self.queue_up(self.slots.len() - 1);
    }

    /// Whether no connection is open, and nobody waits to be accepted.
    pub fn is_empty(&self) -> bool {
        self.backlog.is_empty() && !self.slots.iter().any(Slot::is_open)
    }

    /// One iteration, in which any operations complete.
    pub fn iterate(&mut self) {
        self.begin_iteration();
        for key in 0..self.slots.len() {
            if self.rng.bool() {
                self.complete(key);
            }
        }
        self.end_iteration();
    }

    pub fn begin_iteration(&mut self) {
        // The clock of a shard that has much to do is late.
        if self.rng.bool() {
            self.read_clocks();
        }
        self.moment.received_ms = self.clock_ms;
        self.done = 0;
        if self.rng.bool() {
            self.done += usize::from(!self.backlog.is_empty());
            self.accept();
        }
    }

    /// Completes what a connection has under way, if it can.
    pub fn complete(&mut self, key: usize) {
        self.complete_send(key);
        self.complete_receive(key);
    }

    fn complete_send(&mut self, key: usize) {
        let slot = &mut self.slots[key];
        if !slot.is_open() || slot.sending.is_empty() {
            return;
        }
        let part = self.rng.usize(1..=slot.sending.len());
        match slot.link.take_from(&mut slot.sending, part) {
            None => self.close(key, Ended::Failed),
            Some(_) if slot.sending.is_empty() => {
                slot.connection.note_sent(slot.sending_bytes);
                slot.sending_since_ms = None;
                self.done += 1;
                self.queue_up(key);
            }
            Some(_) => {}
        }
    }

    fn complete_receive(&mut self, key: usize) {
        let receiving = self.slots[key].receiving;
        let buffers = match receiving {
            Receiving::No => return,
            Receiving::Once => 1,
            Receiving::Multishot | Receiving::Canceled => self.rng.usize(1..=BUFFERS_MAX),
        };
        for _ in 0..buffers {
            let slot = &mut self.slots[key];
            if !slot.is_open() || slot.receiving == Receiving::No || !slot.link.is_readable() {
                break;
            }
            self.done += 1;
            let bytes_max = match self.rng.bool() {
                true => BUFFER_BYTES,
                false => self.rng.usize(1..200),
            };
            match slot.link.receive(bytes_max) {
                Received::Bytes(bytes) => {
                    slot.received_ms = self.moment.now_ms;
                    slot.connection.receive(&bytes, &self.moment, &mut self.service);
                    note_made(&mut self.made, slot, key);
                    if receiving == Receiving::Once {
                        slot.receiving = Receiving::No;
                    }
                    if slot.receiving == Receiving::No && slot.connection.wants_filling() {
                        slot.connection.begin_filling();
                    }
                }
                Received::End => {
                    slot.receiving = Receiving::No;
                    slot.connection.note_peer_closed();
                }
                Received::Failed => return self.close(key, Ended::Failed),
            }
            self.queue_up(key);
        }
        if receiving == Receiving::Canceled && self.slots[key].is_open() {
            self.slots[key].receiving = Receiving::No;
            self.done += 1;
            self.queue_up(key);
        }
    }

    pub fn end_iteration(&mut self) {
        let is_woken = self.wakeup.as_ref().is_some_and(|wakeup| wakeup.clear());
        if self.done == 0 && !is_woken && self.queue.is_empty() && self.line.is_empty() {
            // It sleeps, unless responses wait for which nobody has asked.
            return self.ask_for_commit();
        }
        self.work_through_line();
        self.release_settled();
        if self.done > 0 || is_woken || !self.queue.is_empty() {
            self.service.publish();
            self.act_on_queued();
            if self.rng.u8(..) < 60 {
                self.ask_for_commit();
            }
        }
    }

    fn work_through_line(&mut self) {
        let Shard { line, slots, queue, moment, service, made, .. } = self;
        let all = slots.len();
        slots.iter_mut().for_each(|slot| slot.waits += usize::from(slot.is_in_line));
        let mut units = 0;
        line.advance(|key| {
            let slot = &mut slots[key];
            if !slot.is_open() {
                return 0;
            }
            assert!(units <= Budget::UNITS, "the line has more than one budget");
            assert!(slot.waits <= all, "among {all}, it had no turn in {}", slot.waits);
            (slot.is_in_line, slot.waits) = (false, 0);
            slot.works += 1;
            if !std::mem::replace(&mut slot.is_queued, true) {
                queue.push(key);
            }
            let Slot { link, connection, .. } = slot;
            let used = match connection.is_filling() {
                true => {
                    connection.fill(|body, bytes_max| fill(link, body, bytes_max), moment, service)
                }
                false => connection.work(moment, service),
            };
            note_made(made, slot, key);
            units += used;
            used
        });
    }

    fn act_on_queued(&mut self) {
        let mut queue = std::mem::take(&mut self.queue);
        queue.drain(..).for_each(|key| self.act(key));
        assert!(self.queue.is_empty(), "nothing is queued by what acts");
    }

    fn act(&mut self, key: usize) {
        let slot = &mut self.slots[key];
        slot.is_queued = false;
        if !slot.is_open() {
            return;
        }
        let connection = &mut slot.connection;
        let action = connection.action(&self.moment, &mut self.service);
        let Action { send, mut then, settle, read, has_work } = action;
        let used = connection.renew();
        assert!(used <= Budget::UNITS + REQUEST_UNITS_MAX, "one connection has used {used} units");
        note_made(&mut self.made, slot, key);
        if has_work && !std::mem::replace(&mut slot.is_in_line, true) {
            slot.waits = 0;
            self.line.join(key);
        }
        let since_ms = self.moment.received_ms;
        for (epoch, list) in [(settle, &mut self.waiting), (read, &mut self.reading)] {
            if let Some(epoch) = epoch {
                list.push_back(Waiting { key, epoch, since_ms });
                self.has_unasked = true;
            }
        }
        let slot = &mut self.slots[key];
        if send > 0 && !slot.connection.is_sending() {
            let mut taken: VecDeque<u8> =
                slot.connection.take_responses(send, self.moment.now_ms).into();
            (slot.taken, slot.sending_since_ms) =
                (slot.taken + taken.len(), Some(self.moment.now_ms));
            if slot.connection.is_finishing() {
                // As much as the socket takes at once.
                let now = self.rng.usize(0..=taken.len());
                let sent = slot.link.take_from(&mut taken, now).unwrap_or(0);
                slot.connection.note_sent(sent);
                then = slot.connection.next();
            }
            slot.sending_bytes = taken.len();
            if taken.is_empty() {
                slot.sending_since_ms = None;
            }
            slot.sending = taken;
        }
        self.go_on(key, then);
    }

    /// Does what a connection wants of its socket, apart from sending.
    fn go_on(&mut self, key: usize, mut then: Next) {
        let slot = &mut self.slots[key];
        if then == Next::Close && slot.connection.is_finishing() && slot.link.unread() > 0 {
            then = Next::ShutDownWrite;
        }
        if then == Next::ShutDownWrite {
            slot.connection.linger(self.moment.now_ms);
            slot.lingers_since = Some((self.moment.now_ms, slot.link.received()));
            then = if slot.link.shut_down() { Next::Receive } else { Next::Close };
        }
        match then {
            Next::Receive if slot.receiving == Receiving::No => {
                let is_multishot = self.rng.bool();
                slot.receiving = if is_multishot { Receiving::Multishot } else { Receiving::Once };
            }
            Next::Receive => {}
            Next::Pause if slot.receiving != Receiving::No => slot.receiving = Receiving::Canceled,
            Next::Pause => {}
            Next::ShutDownWrite | Next::Close => self.close(key, Ended::Closed),
        }
    }

    fn queue_up(&mut self, key: usize) {
        let slot = &mut self.slots[key];
        if slot.is_open() && !std::mem::replace(&mut slot.is_queued, true) {
            self.queue.push(key);
        }
    }

    fn close(&mut self, key: usize, how: Ended) {
        let slot = &mut self.slots[key];
        slot.ended = Some(how);
        slot.link.close();
        // With what it holds.
        slot.connection = Connection::new(self.limits, true, 0);
    }

    /// Asks for a commit of what waits for one.
    pub fn ask_for_commit(&mut self) {
        if std::mem::take(&mut self.has_unasked)
            && let Some(durability) = self.service.durability()
        {
            let read = self.reading.back().is_some_and(|last| durability.request_read(last.epoch));
            let settled = self.waiting.back().is_some_and(|last| durability.request(last.epoch));
            if read || settled {
                self.release_settled();
            }
        }
    }

    fn release_settled(&mut self) {
        let (settled, read) =
            self.service.durability().map_or((0, 0), |store| (store.settled(), store.read()));
        for (reached, of_reading) in [(settled, false), (read, true)] {
            let list = if of_reading { &mut self.reading } else { &mut self.waiting };
            let count = list.iter().take_while(|waiting| waiting.epoch <= reached).count();
            let released: Vec<Waiting> = list.drain(..count).collect();
            released.into_iter().for_each(|waiting| self.queue_up(waiting.key));
        }
    }

    /// Looks at the clock.
    pub fn read_clocks(&mut self) {
        self.moment.now_ms = self.clock_ms;
    }

    /// Reads the clocks, and ends what has waited too long. Returns what was due.
    pub fn tick(&mut self) -> Vec<(usize, Due)> {
        self.read_clocks();
        self.moment.received_ms = self.moment.now_ms;
        self.release_settled();
        let mut all_due = Vec::new();
        for key in 0..self.slots.len() {
            let slot = &mut self.slots[key];
            if !slot.is_open() {
                continue;
            }
            let due = slot.connection.tick(&self.moment, &mut self.service);
            note_made(&mut self.made, slot, key);
            match due {
                Due::Nothing => continue,
                Due::Act => self.queue_up(key),
                Due::CloseIdle
                    if self.moment.urgency == Urgency::Drain
                        && !slot.connection.is_lingering()
                        && slot.link.unread() > 0 =>
                {
                    continue;
                }
                Due::CloseIdle => self.close(key, Ended::Idle),
                Due::Cut => {
                    self.cut += usize::from(self.moment.urgency != Urgency::Serve);
                    self.close(key, Ended::Cut);
                }
            }
            all_due.push((key, due));
        }
        if !self.is_forgetful {
            self.note_late_store();
        }
        self.service.publish();
        self.act_on_queued();
        self.ask_for_commit();
        all_due
    }

    /// The first epoch that totals are read for, for a connection.
    pub fn first_read_of(&self, key: usize) -> Option<u64> {
        self.reading.iter().find(|waiting| waiting.key == key).map(|waiting| waiting.epoch)
    }

    fn note_late_store(&self) {
        let Some(durability) = self.service.durability() else { return };
        for first in [self.waiting.front(), self.reading.front()].into_iter().flatten() {
            if self.moment.now_ms >= first.since_ms.saturating_add(durability.timeout_ms()) {
                durability.note_late(first.epoch);
            }
        }
    }

    /// Begins to drain, with those whose connections were established before.
    pub fn stop_accepting(&mut self) {
        self.read_clocks();
        self.moment.urgency = Urgency::Drain;
        self.moment.drain_ms = self.moment.now_ms;
        while !self.backlog.is_empty() {
            self.accept();
        }
    }
}

/// Takes bytes of a batch from a socket.
fn fill(link: &mut Link, body: &mut Vec<u8>, bytes_max: usize) -> usize {
    if !link.is_readable() || link.unread() == 0 {
        return 0;
    }
    match link.receive(bytes_max) {
        Received::Bytes(bytes) => {
            body.extend_from_slice(&bytes);
            bytes.len()
        }
        Received::End | Received::Failed => 0,
    }
}
