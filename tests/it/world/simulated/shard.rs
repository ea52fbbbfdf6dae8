//! One shard: the shipped driver, with links in place of sockets and a seed in place of the kernel. The seed decides which
//! operations complete, and in which pieces.

use super::net::{Net, Receiving};
use super::network::{Link, Received};
use fastrand::Rng;
use ringtally::connection::{Due, Moment, Urgency};
use ringtally::engine::driver::{Accepted, Driver, Sockets};
use ringtally::http::Limits;
use ringtally::service::Service;
use ringtally::uring::Wakeup;
use std::sync::Arc;

/// The most bytes in one receive.
pub const BUFFER_BYTES: usize = 4096;
/// The most buffers that a multishot receive fills in one iteration.
const BUFFERS_MAX: usize = 16;

/// One shard.
pub struct Shard {
    pub rng: Rng,
    pub driver: Driver<Net>,
    pub net: Net,
    /// The time.
    pub clock_ms: u64,
    wakeup: Option<Arc<Wakeup>>,
    /// The number of completions in this iteration.
    done: usize,
    /// The next deadline at the last tick, or 0 after something has happened.
    sleeps_until_ms: u64,
}

impl Shard {
    pub fn new(
        mut rng: Rng,
        service: Service,
        limits: Limits,
        wakeup: Option<Arc<Wakeup>>,
    ) -> Shard {
        let net = Net::new(rng.fork());
        let driver = Driver::new(service, limits);
        Shard { rng, driver, net, clock_ms: 0, wakeup, done: 0, sleeps_until_ms: 0 }
    }

    /// Returns the connection with this key, which may still wait to be accepted.
    pub fn link(&mut self, key: usize) -> &mut Link {
        let Net { slots, backlog, .. } = &mut self.net;
        match key.checked_sub(slots.len()) {
            None => &mut slots[key].link,
            Some(waiting) => {
                backlog.iter_mut().filter(|link| !link.is_foreign()).nth(waiting).unwrap()
            }
        }
    }

    pub fn moment(&self) -> &Moment {
        self.driver.moment()
    }

    /// Accepts the first connection of the backlog. Its key is the number of connections before it.
    pub fn accept(&mut self) {
        if let Accepted::Here(link) = self.net.accept_now(self.driver.service().metrics()) {
            self.driver.take_in(&mut self.net, link);
        }
    }

    /// Returns whether no connection is open or waits to be accepted.
    pub fn is_empty(&self) -> bool {
        self.net.backlog.is_empty() && !self.net.slots.iter().any(|slot| slot.is_open())
    }

    /// Runs an iteration, during which any operations may complete.
    pub fn iterate(&mut self) {
        self.begin_iteration();
        for key in 0..self.net.slots.len() {
            if self.rng.bool() {
                self.complete(key);
            }
        }
        self.end_iteration();
    }

    /// Runs an iteration without completions. Returns whether there is still something to do.
    pub fn idle(&mut self) -> bool {
        self.done = 0;
        self.driver.begin_iteration(self.clock_ms);
        self.end_iteration();
        self.driver.has_work()
    }

    pub fn begin_iteration(&mut self) {
        // The clock of a busy shard is late.
        if self.rng.bool() {
            self.read_clocks();
        }
        self.driver.begin_iteration(self.clock_ms);
        self.done = 0;
        if self.rng.bool() {
            self.done += usize::from(!self.net.backlog.is_empty());
            self.accept();
        }
    }

    /// Completes what a connection has in progress, if it can.
    pub fn complete(&mut self, key: usize) {
        self.complete_send(key);
        let buffers = match self.net.slots[key].receiving {
            Receiving::No => 0,
            Receiving::Once => 1,
            Receiving::Multishot | Receiving::Canceled => self.rng.usize(1..=BUFFERS_MAX),
        };
        for _ in 0..buffers {
            if !self.can_receive(key) {
                break;
            }
            let bytes_max = if self.rng.bool() { BUFFER_BYTES } else { self.rng.usize(1..200) };
            self.complete_receive(key, bytes_max);
        }
        self.note_receive_stopped(key);
        self.net.note_made();
    }

    /// Completes what a connection has in progress: its client takes all responses, and one buffer is filled.
    pub fn complete_in_full(&mut self, key: usize) {
        while self.net.slots[key].is_open() && !self.net.slots[key].sending.is_empty() {
            self.complete_send(key);
            self.net.slots[key].link.take(usize::MAX);
        }
        if self.can_receive(key) {
            self.complete_receive(key, BUFFER_BYTES);
        }
        self.note_receive_stopped(key);
        self.net.note_made();
    }

    fn complete_send(&mut self, key: usize) {
        let Shard { driver, net, rng, done, .. } = self;
        let slot = &mut net.slots[key];
        if !slot.is_open() || slot.sending.is_empty() {
            return;
        }
        let rest = &slot.sending[slot.sent..];
        let part = rng.usize(1..=rest.len());
        match slot.link.take_from(&rest[..part]) {
            None => driver.note_failed(net, key),
            Some(count) if count < rest.len() => {
                slot.sent += count;
                slot.skips_completion = false;
            }
            Some(_) => {
                // The driver learns of a send without a completion, too, if something else ends the wait.
                *done += usize::from(!slot.skips_completion);
                (slot.sent, slot.sending_since_ms) = (0, None);
                let sent = std::mem::take(&mut slot.sending);
                driver.note_sent(net, key, sent);
            }
        }
    }

    /// Reports whether a receive is in progress that can bring something.
    fn can_receive(&self, key: usize) -> bool {
        let slot = &self.net.slots[key];
        slot.is_open() && slot.receiving != Receiving::No && slot.link.is_readable()
    }

    /// Fills a buffer with at most this number of bytes.
    fn complete_receive(&mut self, key: usize, bytes_max: usize) {
        let Shard { driver, net, done, .. } = self;
        let slot = &mut net.slots[key];
        *done += 1;
        match slot.link.receive(bytes_max) {
            Received::Bytes(bytes) => {
                slot.received_ms = driver.moment().now_ms;
                if slot.receiving == Receiving::Once {
                    slot.receiving = Receiving::No;
                }
                driver.handle_received(net, key, bytes);
            }
            Received::End => {
                slot.receiving = Receiving::No;
                driver.note_peer_closed(net, key);
            }
            Received::Failed => driver.note_failed(net, key),
        }
    }

    /// Completes the cancellation of a receive.
    fn note_receive_stopped(&mut self, key: usize) {
        let Shard { driver, net, done, .. } = self;
        let slot = &mut net.slots[key];
        if slot.receiving == Receiving::Canceled && slot.is_open() {
            slot.receiving = Receiving::No;
            *done += 1;
            driver.note_receive_stopped(net, key);
        }
    }

    pub fn end_iteration(&mut self) {
        self.done += usize::from(self.wakeup.as_ref().is_some_and(|wakeup| wakeup.clear()));
        self.net.begin_turns();
        if self.driver.end_iteration(&mut self.net, self.done) {
            self.sleeps_until_ms = 0;
        }
        // It asks before it waits, and otherwise from time to time.
        if self.done == 0 && !self.driver.has_work() || self.rng.u8(..) < 60 {
            self.driver.ask_for_commit(&mut self.net);
        }
        self.net.note_made();
    }

    /// Reads the clock.
    pub fn read_clocks(&mut self) {
        self.driver.set_time(self.clock_ms);
        self.net.now_ms = self.clock_ms;
    }

    /// Reads the clock, and ends what has waited too long. Returns what was due.
    pub fn tick(&mut self) -> Vec<(usize, Due)> {
        self.read_clocks();
        // A shard that drains does not sleep.
        let serves = self.moment().urgency == Urgency::Serve;
        let is_early = serves && self.clock_ms < self.sleeps_until_ms;
        self.sleeps_until_ms = self.driver.tick(&mut self.net);
        self.net.note_made();
        let all_due = std::mem::take(&mut self.net.due);
        assert!(!is_early || all_due.is_empty(), "nobody would have looked yet: {all_due:?}");
        all_due
    }

    /// Returns the first epoch of totals that a connection waits to read.
    pub fn first_read_of(&self, key: usize) -> Option<u64> {
        self.driver.waits().reading().find(|(waiting, _)| **waiting == key).map(|(_, epoch)| epoch)
    }

    /// Begins to drain, including connections that were established before.
    pub fn stop_accepting(&mut self) {
        self.read_clocks();
        self.driver.begin_drain(&mut self.net);
        self.sleeps_until_ms = 0;
    }
}
