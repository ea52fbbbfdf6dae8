//! One shard on a simulated network and clock, driven by a seed: parts of requests arrive split, late, and in any order across
//! connections; sends are short; peers reset, go silent, take nothing, shut down their side, send more than they announced, or
//! never close; and the server drains. A model knows the expected counts, every response, and the moment when the clock ends
//! each connection.

mod engine;
mod script;
mod stalls;
mod watch;
use crate::world::simulated::{BUFFER_BYTES, Link, Reader, Shard, Slot};
use crate::world::{Response, seeds};
use fastrand::Rng;
use ringtally::connection::{DRAIN_QUIET_MS, Due, LINGER_BYTES_MAX, Urgency};
use ringtally::engine::BACKLOG;
use ringtally::engine::driver::Ended;
use ringtally::http::{Limits, Timeouts};
use ringtally::metrics::Reporter;
use ringtally::service::{Policy, Service};
use ringtally::tally::Tally;
use script::{Item, Model, Sent};
use std::collections::VecDeque;
use std::sync::Arc;
use watch::{Verdict, Watch};

/// With the first, an unread response is late after the body of a request is, and with the second before it is.
const TIMEOUTS: [Timeouts; 2] = [
    Timeouts { header_ms: 300, body_ms: 500, idle_ms: 2000 },
    Timeouts { header_ms: 900, body_ms: 2000, idle_ms: 400 },
];
const BODY_BYTES_MAX: usize = 400;
const BATCH_BYTES_MAX: usize = 100_000;
const USERS_MAX: u64 = 6;
const QUIET_MS: u64 = DRAIN_QUIET_MS;

/// The number of iterations within which everything must end.
const ITERATIONS_TO_THE_END: usize = 3000;
/// The number of iterations within which everything received must be handled.
const ITERATIONS_TO_REST: usize = 1000;
/// The number of bytes of nonsense that a client sends at a time.
const NONSENSE_BYTES: usize = 16 * BUFFER_BYTES;

/// The habit of a client that otherwise sends its script and reads the responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Habit {
    None,
    /// Is silent most of the time.
    Silent,
    /// Takes no responses.
    Deaf,
    /// Resets its connection.
    Resets,
    /// Shuts down its side after its last request.
    Finishes,
    /// Sends more after the server has announced the end of the connection.
    SendsMore,
}

/// One client.
#[derive(Debug)]
struct Client {
    unsent: VecDeque<u8>,
    reader: Reader,
    responses: Vec<Response>,
    habit: Habit,
    /// True if it shuts down its side after the server does.
    closes: bool,
    /// The number of requests that were at the server when it began to drain.
    due: usize,
}

/// The whole simulation.
struct World {
    rng: Rng,
    tally: Arc<Tally>,
    shard: Shard,
    timeouts: Timeouts,
    model: Model,
    clients: Vec<Client>,
    watches: Vec<Watch>,
    /// The number of connections that the stop must have cut.
    cut: usize,
}

/// Returns the service of the only shard, and its counters.
fn service(users_max: u64) -> (Arc<Tally>, Service) {
    let (tally, mut writers) = Tally::new(1, users_max);
    let reporter = Reporter::for_shards(1, "none").remove(0);
    (tally, Service::new(writers.remove(0), reporter, Policy::new("h"), 0))
}

fn limits(timeouts: Timeouts) -> Limits {
    Limits { body_bytes_max: BODY_BYTES_MAX, batch_bytes_max: BATCH_BYTES_MAX, timeouts }
}

/// Returns a shard that has just accepted this number of connections.
fn shard_with(connections: usize, service: Service, limits: Limits) -> Shard {
    let mut shard = Shard::new(Rng::with_seed(0), service, limits, None);
    for _ in 0..connections {
        shard.net.backlog.push_back(Link::new());
        shard.accept();
    }
    shard
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = Rng::with_seed(seed);
        let (tally, service) = service(USERS_MAX);
        let timeouts = *rng.choice(&TIMEOUTS).unwrap();
        let shard = Shard::new(rng.fork(), service, limits(timeouts), None);
        let (clients, watches) = (Vec::new(), Vec::new());
        World { rng, tally, shard, timeouts, model: Model::default(), clients, watches, cut: 0 }
    }

    /// Connects a client.
    fn connect(&mut self) {
        let rng = &mut self.rng;
        // Some clients send enough requests that responses must wait to be read.
        let is_long = rng.u8(..) < 30;
        let count = if is_long { rng.usize(100..800) } else { rng.usize(1..12) };
        let script: Vec<Sent> = std::iter::repeat_with(|| Sent::random(rng))
            .filter(|sent| !is_long || !matches!(sent.item, Item::Last(..)))
            .take(count)
            .collect();
        let habit = match rng.u8(..100) {
            0..10 => Habit::Silent,
            10..20 => Habit::Deaf,
            20..27 => Habit::Resets,
            27..40 => Habit::Finishes,
            40..50 => Habit::SendsMore,
            _ => Habit::None,
        };
        self.connect_with(script, habit);
    }

    /// Connects a client that sends a script.
    fn connect_with(&mut self, script: Vec<Sent>, habit: Habit) {
        self.clients.push(Client {
            unsent: script.iter().flat_map(|sent| sent.bytes.iter().copied()).collect(),
            reader: Reader::default(),
            responses: Vec::new(),
            habit,
            closes: self.rng.u8(..) < 200,
            due: 0,
        });
        let is_rejected = self.rng.u8(..) < 5;
        self.watches.push(Watch::new(script, is_rejected, self.timeouts));
        let link = if is_rejected { Link::rejected() } else { Link::new() };
        self.shard.net.backlog.push_back(link);
    }

    /// Runs a moment of a client: it sends some of its script, some of that arrives, and it takes some of its responses.
    fn step_of(&mut self, key: usize, takes: bool) {
        let World { rng, shard, clients, .. } = self;
        let (client, link) = (&mut clients[key], shard.link(key));
        let is_active = client.habit != Habit::Silent || rng.u8(..) < 20;
        if is_active && !link.has_client_finished() {
            let reach = if rng.u8(..) < 30 { 16 * BUFFER_BYTES } else { rng.usize(1..200) };
            let count = reach.min(client.unsent.len());
            link.send(&client.unsent.drain(..count).collect::<Vec<_>>());
            if client.unsent.is_empty() {
                client.act_on_end(link);
            }
        }
        if client.habit == Habit::Resets && rng.u8(..) < 4 {
            link.reset();
        }
        let count = if rng.bool() { usize::MAX } else { rng.usize(1..200) };
        link.deliver(count);
        if takes || client.habit != Habit::Deaf {
            let count = if rng.bool() { usize::MAX } else { rng.usize(1..200) };
            client.responses.extend(client.reader.read(&link.take(count)));
        }
    }

    /// Runs an iteration of the shard, and checks it against the model.
    fn iterate(&mut self) {
        self.iterate_with(Shard::iterate);
    }

    /// Lets nothing complete anymore: a shard that has finished its work must wait.
    fn rest(&mut self) {
        let mut iterations = 0;
        while self.iterate_with(Shard::idle) {
            iterations += 1;
            assert!(iterations < ITERATIONS_TO_REST, "it works although nothing happens");
        }
    }

    fn iterate_with<T>(&mut self, iterate: impl FnOnce(&mut Shard) -> T) -> T {
        let (before, resets) = (self.shard.net.slots.len(), self.model.resets);
        let result = iterate(&mut self.shard);
        let now_ms = self.shard.moment().now_ms;
        for watch in &mut self.watches[before..self.shard.net.slots.len()] {
            watch.begin(now_ms);
        }
        for made in std::mem::take(&mut self.shard.net.made) {
            let link = &self.shard.net.slots[made.key].link;
            let watch = &mut self.watches[made.key];
            watch.follow(&made, link, &mut self.model, self.shard.moment());
        }
        self.follow_time(resets);
        self.model.check(&self.tally.totals());
        result
    }

    fn follow_time(&mut self, resets: u64) {
        let now_ms = self.shard.moment().now_ms;
        for (slot, watch) in std::iter::zip(&mut self.shard.net.slots, &mut self.watches) {
            watch.follow_time(slot, now_ms, resets);
            if !slot.is_open() {
                continue;
            }
            let waits = slot.sending_since_ms.is_some() || slot.connection().has_work();
            assert!(!slot.link.is_end_received() || waits, "nothing keeps it from ending");
            if let Some((_, received)) = slot.lingers_since {
                let discarded = slot.link.received() - received;
                assert!(discarded < LINGER_BYTES_MAX, "{discarded} bytes are discarded");
            }
        }
    }

    /// Checks the clock, and compares the result with the model.
    fn tick(&mut self) {
        self.shard.read_clocks();
        let expected: Vec<[Verdict; 2]> = std::iter::zip(&self.shard.net.slots, &self.watches)
            .map(|(slot, watch)| match slot.is_open() {
                true => watch.verdicts(slot, self.shard.moment()),
                false => [Verdict::Nothing; 2],
            })
            .collect();
        let mut found = vec![Verdict::Nothing; expected.len()];
        for (key, due) in self.shard.tick() {
            found[key] = match due {
                Due::Nothing => Verdict::Nothing,
                Due::Act => Verdict::Refused,
                Due::CloseIdle => Verdict::Idle,
                Due::Cut => Verdict::Cut,
            };
        }
        for made in std::mem::take(&mut self.shard.net.made) {
            if self.watches[made.key].is_rejected {
                // It was accepted when the drain began.
                let link = &self.shard.net.slots[made.key].link;
                let watch = &mut self.watches[made.key];
                watch.follow(&made, link, &mut self.model, self.shard.moment());
                continue;
            }
            assert_eq!(found[made.key], Verdict::Refused, "the clock only makes a 408");
            self.watches[made.key].follow_timeout(&made);
        }
        for (key, (found, expected)) in std::iter::zip(&found, &expected).enumerate() {
            let (watch, now_ms) = (&self.watches[key], self.shard.moment().now_ms);
            assert!(expected.contains(found), "{found:?} {expected:?} at {now_ms} ms: {watch:?}");
            self.cut += usize::from(
                *found == Verdict::Cut && self.shard.moment().urgency != Urgency::Serve,
            );
        }
        self.follow_time(self.model.resets);
    }

    /// Lets the server begin to drain.
    fn stop(&mut self) {
        for (key, client) in self.clients.iter_mut().enumerate() {
            let watch = &self.watches[key];
            // After a response that was the last before the stop, nothing is read.
            let is_over = watch.is_closing;
            let items = watch.items_in(self.shard.link(key).at_server());
            client.due = if is_over { 0 } else { items };
        }
        let before = self.shard.net.slots.len();
        self.shard.stop_accepting();
        let now_ms = self.shard.moment().now_ms;
        self.watches[before..].iter_mut().for_each(|watch| watch.begin(now_ms));
    }

    /// Drains for a while, and then aborts.
    fn drain(&mut self) {
        self.stop();
        for _ in 0..self.rng.usize(1..400) {
            self.tick();
            if self.shard.is_empty() {
                break;
            }
            for key in 0..self.clients.len() {
                self.step_of(key, false);
            }
            self.iterate();
            self.shard.clock_ms += self.rng.u64(..10);
        }
        let is_done = self.shard.is_empty();
        self.shard.driver.abort();
        self.tick();
        assert!(self.shard.is_empty(), "an abort ends all");
        assert_eq!(self.shard.driver.cut(), self.cut, "connections that were cut");
        for key in 0..self.clients.len() {
            self.take_all(key);
            let (client, slot) = (&self.clients[key], &self.shard.net.slots[key]);
            let is_lost = slot.ended == Some(Ended::Cut) || slot.link.is_reset() || !is_done;
            let has_all = client.responses() >= client.due;
            assert!(is_lost || has_all, "client {key} lacks a response: {slot:?}");
        }
    }

    fn take_all(&mut self, key: usize) {
        let client = &mut self.clients[key];
        let taken = self.shard.net.slots[key].link.take(usize::MAX);
        client.responses.extend(client.reader.read(&taken));
    }

    /// Lets everything arrive, and all clients read, until all have their responses.
    fn finish(&mut self) {
        for _ in 0..ITERATIONS_TO_THE_END {
            for key in 0..self.clients.len() {
                self.step_of(key, true);
            }
            self.iterate();
            if (0..self.clients.len()).all(|key| self.has_all(key)) {
                return;
            }
        }
        let missing = (0..self.clients.len()).filter(|key| !self.has_all(*key));
        for key in missing.collect::<Vec<_>>() {
            let slot = self.shard.net.slots.get(key);
            eprintln!("{key}: {:?} {:?} {slot:?}", self.clients[key], self.watches[key]);
        }
        panic!("a request waits forever");
    }

    /// Returns whether a client has all responses that it can get.
    fn has_all(&mut self, key: usize) -> bool {
        let Some(slot) = self.shard.net.slots.get(key) else { return false };
        let (client, watch) = (&self.clients[key], &self.watches[key]);
        if slot.link.is_reset() || !slot.is_open() && slot.ended != Some(Ended::Closed) {
            return true;
        }
        let has_taken = client.responses() == watch.responses && !client.reader.has_part();
        let is_over = watch.is_closing || watch.responses >= watch.items_in(usize::MAX);
        let is_silent = client.habit == Habit::Silent;
        let items = watch.items_in(slot.link.received());
        has_taken && (is_over || is_silent && watch.responses >= items && slot.link.unread() == 0)
    }
}

impl Client {
    /// Returns the number of responses, not counting interim ones.
    fn responses(&self) -> usize {
        self.responses.iter().filter(|response| response.status != 100).count()
    }

    /// Returns whether it has the last response.
    fn has_last(&self) -> bool {
        self.responses.last().is_some_and(|last| last.field("connection") == Some("close"))
    }

    /// Acts after the end of its script.
    fn act_on_end(&mut self, link: &mut Link) {
        match self.habit {
            Habit::Finishes => link.finish(),
            Habit::SendsMore if self.has_last() && !link.is_over() => {
                link.send(&[b'x'; NONSENSE_BYTES]);
            }
            _ if self.closes && link.is_over() => link.finish(),
            _ => {}
        }
    }
}

/// Returns the number of batches that took more than one turn.
fn simulate(seed: u64) -> u64 {
    let mut world = World::new(seed);
    (0..world.rng.usize(1..6)).for_each(|_| world.connect());
    let drains_at = if world.rng.u8(..) < 80 { world.rng.usize(1..200) } else { usize::MAX };
    for step in 0..300 {
        if step == drains_at {
            if world.rng.bool() {
                world.shard.net.backlog.push_back(Link::foreign());
            }
            if world.rng.bool() {
                world.connect();
            }
            world.drain();
            break;
        }
        if world.clients.len() < 8 && world.rng.u8(..) < 3 {
            world.connect();
        }
        for key in 0..world.clients.len() {
            world.step_of(key, false);
        }
        world.iterate();
        if world.rng.u8(..) < 10 {
            world.rest();
        }
        let is_late = world.rng.u8(..) < 10;
        world.shard.clock_ms += if is_late { world.rng.u64(..1000) } else { world.rng.u64(..20) };
        if world.rng.u8(..) < 80 {
            world.tick();
        }
    }
    if drains_at == usize::MAX {
        world.finish();
    }
    world.watches.iter().map(|watch| watch.slices).sum()
}

#[test]
fn a_shard_counts_what_the_model_counts_whatever_the_network_does() {
    let (mut slices, mut seeds) = (0, 0);
    seeds::for_each_seed(400, |seed| {
        slices += simulate(seed);
        seeds += 1;
    });
    assert!(slices > 0 || seeds < 1000, "no batch took more than one turn");
}

/// A client that never stops sending is cut off in the end, and this does not count as a cut.
#[test]
fn a_flood_behind_the_last_response_is_bounded() {
    for seed in 0..4 {
        let mut world = World::new(seed);
        let last = Item::Last(400, b"GET /health HTTP/1.1\r\n\r\n".to_vec());
        world.connect_with(vec![Sent::new(&mut Rng::with_seed(seed), last)], Habit::None);
        world.clients[0].closes = false;
        let mut iterations = 0;
        while world.shard.net.slots.first().is_none_or(Slot::is_open) {
            world.step_of(0, true);
            if world.clients[0].unsent.is_empty() {
                let link = world.shard.link(0);
                link.send(&[b'x'; NONSENSE_BYTES]);
                link.deliver(usize::MAX);
            }
            world.iterate();
            world.tick();
            iterations += 1;
            assert!(iterations < 10 * LINGER_BYTES_MAX / NONSENSE_BYTES, "it never ends");
        }
        let slot = &world.shard.net.slots[0];
        assert!(slot.link.received() >= LINGER_BYTES_MAX, "the peer has time to read");
        assert_eq!((slot.ended, world.shard.driver.cut()), (Some(Ended::Closed), 0));
    }
}

#[test]
fn a_stop_takes_in_as_many_as_a_backlog_holds() {
    let mut world = World::new(0);
    let backlog = usize::from(BACKLOG);
    (0..backlog + 10).for_each(|_| world.shard.net.backlog.push_back(Link::new()));
    world.shard.stop_accepting();
    assert_eq!((world.shard.net.slots.len(), world.shard.net.backlog.len()), (backlog, 10));
}
