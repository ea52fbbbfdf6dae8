//! Servers that share a store, in one process: the services, committers, and members of each, clients, and one database
//! in memory, on a schedule that a seed decides. Between any two steps of a commit others act: they count,
//! commit, read, and reset; a server may be slow, or killed and started anew; connections are lost; and the standby of
//! the database may be promoted. Every event has a power of two as its value, so each sum says which events it has, and
//! each response is compared with what the database held while its request was served, and what no failure takes back.
//!
//! A failing seed is printed. `RINGTALLY_SEED=n cargo test --test group` replays it, and `RINGTALLY_SEEDS=n`
//! tries that many.

#![allow(clippy::unwrap_used, reason = "a panic is a failure")]

#[path = "../common/mod.rs"]
mod common;
mod database;

use common::{Response, Totals, post, split_responses};
use database::{Database, Fault, SharedStore, Step, Version};
use fastrand::Rng;
use ringtally::failure::Failure;
use ringtally::http::{Limits, Outcome, Timeouts};
use ringtally::metrics::{Reporter, StoreMetrics};
use ringtally::service::{Connection, Policy, Reading, Service};
use ringtally::store::{Committer, Durability, Held, Release, Settlement, Store, Wakeups};
use ringtally::tally::{State, Tally};
use ringtally::uring::Wakeup;
use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use tokio::sync::Notify;

const SHARDS: usize = 2;
const USERS: usize = 8;
/// As many as have their powers of two in an f64.
const EVENTS_MAX: usize = 52;
/// Steps after which everything must have come to its end.
const STEPS_TO_THE_END: usize = 2000;

/// What a client asks.
#[derive(Clone, Copy, Debug)]
enum Request {
    Event(usize),
    Totals,
    Reset,
}

/// A request without a response.
#[derive(Clone, Copy, Debug)]
struct Pending {
    request: Request,
    /// What the database held when it was received.
    version: usize,
}

/// What a connection waits for with a request for totals.
#[derive(Clone, Copy, Debug, Default)]
struct Awaited {
    epoch: Option<u64>,
    has_more: bool,
}

/// One connection.
struct Peer {
    shard: usize,
    connection: Connection,
    held: Held,
    out: Vec<u8>,
    pending: VecDeque<Pending>,
    awaited: Option<Awaited>,
    /// The events of the last totals, and the version when they were asked for.
    shown: Option<(u64, usize)>,
}

impl Peer {
    fn new(shard: usize) -> Peer {
        let timeouts = Timeouts { header_ms: 1000, body_ms: 1000, idle_ms: 1000 };
        let limits = Limits { body_bytes_max: 400, batch_bytes_max: 0, timeouts };
        Peer {
            shard,
            connection: Connection::new(limits, true, 0),
            held: Held::default(),
            out: Vec::new(),
            pending: VecDeque::new(),
            awaited: None,
            shown: None,
        }
    }

    fn go_on(&mut self, outcome: Outcome) {
        self.awaited = match outcome {
            Outcome::Receive => None,
            Outcome::Wait => Some(Awaited::default()),
            Outcome::Resume | Outcome::Work | Outcome::Close | Outcome::CloseAtOnce => {
                unreachable!("a few requests that are in order, and no batches")
            }
        };
    }

    /// At the end of a turn, when what was handled is published.
    fn publish(&mut self, service: &Service) {
        let durability = service.durability().unwrap();
        let epoch = service.settles_at();
        if self.held.publish(epoch, u64::MAX) {
            durability.request(epoch);
        }
        if let Some(awaited) = &mut self.awaited
            && awaited.epoch.is_none()
        {
            let epoch = service.next_epoch();
            awaited.epoch = Some(epoch);
            durability.request_read(epoch);
        }
    }
}

/// One life of a server.
struct Server {
    services: Vec<Service>,
    settlement: Arc<Settlement>,
    peers: Vec<Peer>,
    go: Option<Sender<()>>,
    back: Receiver<Step>,
    thread: Option<JoinHandle<()>>,
    /// Events that it has acknowledged: when they were received, and when that was said.
    acknowledged: Vec<(usize, Range<usize>)>,
    /// Its committer is in the middle of a commit.
    is_committing: bool,
    /// It gets its turn more seldom than others.
    is_slow: bool,
}

impl Server {
    fn start(rng: &mut Rng, database: &Database, fault: Fault) -> Server {
        let (go, gone) = channel();
        let (back, came_back) = channel();
        let gone = Arc::new(Mutex::new(gone));
        let store = SharedStore::join(database, rng.fork(), fault, Arc::clone(&gone), back.clone());
        let state = State::default();
        let (_, writers, journal) = Tally::resume(SHARDS, 1000, &state);
        let settlement = Arc::new(Settlement::new(SHARDS, state.totals(), store.is_shared()));
        let shards = (0..SHARDS).map(|_| Arc::new(Wakeup::new().unwrap())).collect();
        let wakeups = Arc::new(Wakeups { committer: Notify::new(), shards });
        let policy = Policy::new("h");
        let services = std::iter::zip(writers, Reporter::for_shards(SHARDS, "none"))
            .enumerate()
            .map(|(shard, (writer, reporter))| {
                let mut service = Service::new(writer, reporter, policy.clone(), 0);
                let (settlement, wakeups) = (Arc::clone(&settlement), Arc::clone(&wakeups));
                service.set_durability(Durability::new(settlement, wakeups, shard, 1000));
                service
            })
            .collect();
        let metrics = Arc::new(StoreMetrics::default());
        let store = Box::new(store);
        let mut committer =
            Committer::new(journal, store, state, Arc::clone(&settlement), wakeups, metrics);
        let thread = std::thread::spawn(move || {
            while let Ok(()) = { gone.lock().unwrap().recv() } {
                let result = committer.commit();
                // Nobody listens anymore where the server is killed.
                let _ = back.send(Step::Done(result));
            }
        });
        Server {
            services,
            settlement,
            peers: (0..rng.usize(1..4)).map(|peer| Peer::new(peer % SHARDS)).collect(),
            go: Some(go),
            back: came_back,
            thread: Some(thread),
            acknowledged: Vec::new(),
            is_committing: false,
            is_slow: rng.u8(..) < 60,
        }
    }

    /// Lets the committer take one step, if it has something to do.
    ///
    /// # Errors
    ///
    /// The store failed, and the server ends.
    fn step(&mut self, rng: &mut Rng) -> Result<(), Failure> {
        if !self.is_committing && !self.settlement.is_requested() && rng.u8(..) >= 60 {
            return Ok(());
        }
        self.go.as_ref().unwrap().send(()).unwrap();
        let step = self.back.recv().unwrap();
        self.is_committing = matches!(step, Step::Paused);
        match step {
            Step::Paused => Ok(()),
            Step::Done(result) => result,
        }
    }
}

impl Drop for Server {
    /// As `kill -9`: whatever is under way is never heard of again.
    fn drop(&mut self) {
        drop(self.go.take());
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "a committer panicked");
    }
}

/// All servers, and what a model knows of what clients have sent.
struct World {
    rng: Rng,
    database: Database,
    fault: Fault,
    /// How fast the standby is, of 256.
    shipping: u8,
    servers: Vec<Server>,
    /// The user of each event.
    events: Vec<usize>,
    /// Events that are void, and the version when that was said.
    voided: Vec<(usize, usize)>,
    resets: bool,
    resets_sent: i64,
}

impl World {
    /// A request of a client.
    fn ask(&mut self) -> (Request, String) {
        match self.rng.u8(..100) {
            0..=5 if self.resets => {
                self.resets_sent += 1;
                (Request::Reset, post("/reset", ""))
            }
            0..=69 if self.events.len() < EVENTS_MAX => {
                let (event, user) = (self.events.len(), self.rng.usize(..USERS));
                self.events.push(user);
                let value = (1u64 << event) as f64;
                let body = format!(r#"{{"userId":"user_{user}","value":{value:e}}}"#);
                (Request::Event(event), post("/event", &body))
            }
            _ => (Request::Totals, "GET /stats HTTP/1.1\r\nHost: h\r\n\r\n".into()),
        }
    }

    /// A turn of one shard of one server: requests arrive on some of its connections, and are published
    /// together. In between committers go on.
    fn turn(&mut self, at: usize) {
        let shard = self.rng.usize(..SHARDS);
        for peer in 0..self.servers[at].peers.len() {
            // Meanwhile another may have come in the place of the server.
            let is_of_shard =
                self.servers[at].peers.get(peer).is_some_and(|peer| peer.shard == shard);
            if !is_of_shard || self.rng.bool() {
                continue;
            }
            let mut bytes = String::new();
            for _ in 0..self.rng.usize(1..5) {
                let (request, text) = self.ask();
                let version = self.database.cluster().now();
                bytes.push_str(&text);
                self.servers[at].peers[peer].pending.push_back(Pending { request, version });
            }
            let Server { services, peers, .. } = &mut self.servers[at];
            let peer = &mut peers[peer];
            if let Some(awaited) = &mut peer.awaited {
                awaited.has_more |= awaited.epoch.is_some();
                peer.connection.keep(bytes.as_bytes());
            } else {
                let Peer { connection, held, out, .. } = peer;
                connection.renew();
                let outcome = services[shard].receive(connection, bytes.as_bytes(), 0, held, out);
                peer.go_on(outcome);
            }
            if self.rng.bool() {
                self.step();
            }
        }
        let Server { services, peers, .. } = &mut self.servers[at];
        services[shard].commit();
        for peer in peers.iter_mut().filter(|peer| peer.shard == shard) {
            peer.publish(&services[shard]);
        }
    }

    /// A step of the database, and of some committer.
    fn step(&mut self) {
        if self.rng.u8(..) < self.shipping {
            self.database.cluster().ship();
        }
        if self.rng.u8(..) < 13 {
            self.database.cluster().straggle();
        }
        let at = self.rng.usize(..self.servers.len());
        if !self.servers[at].is_slow || self.rng.u8(..) < 20 {
            self.step_of(at);
        }
    }

    fn step_of(&mut self, at: usize) {
        if let Err(failure) = self.servers[at].step(&mut self.rng) {
            // A database that has lost what it had confirmed is found out, and somebody has the server go on from there.
            let is_right = failure.to_string().contains("older state than it had confirmed");
            assert!(is_right && self.database.cluster().has_lost, "{failure}");
            self.servers[at] = Server::start(&mut self.rng, &self.database, self.fault);
        }
    }

    /// Goes on with requests for which totals were read, and lets responses leave that do not have to wait.
    fn send(&mut self, at: usize) {
        for number in 0..self.servers[at].peers.len() {
            let Server { services, peers, .. } = &mut self.servers[at];
            let peer = &mut peers[number];
            let service = &mut services[peer.shard];
            if let Some(Awaited { epoch: Some(epoch), has_more }) = peer.awaited
                && epoch <= service.durability().unwrap().read()
            {
                let reading = if has_more { Reading::ForFirst } else { Reading::ForAll };
                let Peer { connection, held, out, .. } = peer;
                connection.renew();
                let outcome = service.resume(connection, reading, 0, held, out);
                peer.go_on(outcome);
                service.commit();
                peer.publish(service);
            }
            let released = service.durability().unwrap().release(&mut peer.held, peer.out.len());
            let (Release::Bytes(count) | Release::Void(count)) = released;
            let rest = peer.out.split_off(count);
            let sent = std::mem::replace(&mut peer.out, rest);
            peer.held.note_taken(count);
            for response in split_responses(&sent) {
                self.check(at, number, &response);
            }
            let peer = &mut self.servers[at].peers[number];
            if matches!(released, Release::Void(_)) {
                // What it acknowledges is the first that was counted before the reset.
                let first = peer.pending.front().expect("it has no response");
                if let Request::Event(event) = first.request {
                    self.voided.push((event, self.database.cluster().now()));
                }
                *peer = Peer::new(peer.shard);
            }
        }
    }

    /// Compares a response with what the database has held since its request was received.
    fn check(&mut self, at: usize, peer: usize, response: &Response) {
        assert_eq!(response.status, 200, "{response:?}");
        let Server { peers, acknowledged, .. } = &mut self.servers[at];
        let peer = &mut peers[peer];
        let Pending { request, version } = peer.pending.pop_front().unwrap();
        let cluster = self.database.cluster();
        let versions = &cluster.versions()[version..];
        let (first, last) = (versions[0], versions[versions.len() - 1]);
        match request {
            Request::Event(event) => {
                let is_counted = versions.iter().any(|version| version.bits >> event & 1 == 1);
                let is_reset =
                    versions.iter().any(|version| version.generation != first.generation);
                let is_durable = is_counted && cluster.durable() >> event & 1 == 1;
                assert!(is_durable || is_reset, "event {event} is acknowledged and not durable");
                acknowledged.push((event, version..cluster.now()));
            }
            Request::Reset => {
                let is_durable = first.generation < cluster.durable_generation();
                let is_made = is_durable || cluster.has_lost;
                assert!(is_made, "a reset is acknowledged before it is durable");
            }
            Request::Totals => {
                let totals = Totals::parse(&response.body);
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "a sum of powers of two below 2^52"
                )]
                let bits = totals.sum as u64;
                let is_held = versions.iter().any(|version| {
                    (version.bits, version.users) == (bits, totals.users)
                        && totals.total == u64::from(bits.count_ones())
                });
                assert!(is_held, "no version since the request was {totals:?}: {versions:?}");
                let is_durable = bits & !cluster.durable() == 0;
                assert!(is_durable, "{totals:?} has events that a failure takes back");
                for (event, while_served) in acknowledged.iter() {
                    let mut since = cluster.versions()[while_served.start..].iter();
                    let is_reset = since.any(|version| version.generation != last.generation);
                    let is_later = while_served.end > version;
                    assert!(
                        is_later || is_reset || bits >> event & 1 == 1,
                        "event {event}, which this server has acknowledged, is gone in silence"
                    );
                }
                let of_bits = (0..self.events.len()).filter(|event| bits >> event & 1 == 1);
                let users: BTreeSet<_> = of_bits.map(|event| self.events[event]).collect();
                assert_eq!(totals.users, users.len() as u64);
                let is_empty = totals.total == 0;
                assert!(is_empty || totals.avg == totals.sum / totals.total as f64);
                if let Some((shown, version)) = peer.shown {
                    let mut since = cluster.versions()[version..].iter();
                    let is_reset = since.any(|version| version.generation != last.generation);
                    let is_gone = shown & !bits;
                    assert!(is_reset || is_gone == 0, "totals never decrease between resets");
                }
                peer.shown = Some((bits, version));
            }
        }
    }

    /// Runs until every request has its response, or the end of its connection.
    fn finish(&mut self) {
        for _ in 0..STEPS_TO_THE_END {
            for at in 0..self.servers.len() {
                self.database.cluster().ship();
                self.step_of(at);
                self.send(at);
            }
            let mut peers = self.servers.iter().flat_map(|server| &server.peers);
            if peers.all(|peer| peer.pending.is_empty()) {
                return;
            }
        }
        panic!("a request waits for ever");
    }
}

fn simulate(seed: u64, fault: Fault) {
    let mut rng = Rng::with_seed(seed);
    let is_synchronous = rng.u8(..) < 180;
    let database = Database::new(is_synchronous);
    let servers = (0..rng.usize(1..4)).map(|_| Server::start(&mut rng, &database, fault)).collect();
    let resets = rng.u8(..) < 180;
    let shipping = *rng.choice(&[8, 40, 128, 220]).unwrap();
    let (events, voided, resets_sent) = (Vec::new(), Vec::new(), 0);
    let mut world =
        World { rng, database, fault, shipping, servers, events, voided, resets, resets_sent };
    let steps = world.rng.usize(1..160);
    // In half of the runs, the standby is promoted.
    let promotion = world.rng.usize(..2 * steps);
    // A server that was away for an hour cannot tell an older database from one that has removed its row.
    let hours_pass = is_synchronous || promotion >= steps;
    for step in 0..steps {
        if step == promotion {
            world.database.cluster().promote();
        }
        let at = world.rng.usize(..world.servers.len());
        match world.rng.u8(..100) {
            0..=1 => {
                world.servers[at] = Server::start(&mut world.rng, &world.database, fault);
            }
            2 if hours_pass => world.database.cluster().sweep(),
            3..=39 => world.turn(at),
            40..=59 => world.send(at),
            _ => world.step(),
        }
    }
    world.finish();
    let cluster = world.database.cluster();
    let generation = cluster.versions().last().unwrap().generation;
    assert!(generation <= world.resets_sent, "a reset is one point in time");
    for (event, version) in &world.voided {
        let versions = &cluster.versions()[*version..];
        let has = |version: &Version| version.bits >> event & 1 == 1;
        // A commit whose outcome was still unknown when the row was removed, hours later, may have been made.
        let may_be_counted = cluster.has_swept && has(&versions[0]);
        let is_counted = versions.iter().any(has);
        assert!(!is_counted || may_be_counted, "event {event} is void, and is counted");
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn servers_that_share_a_store_are_as_exact_as_one() {
    if let Some(seed) = number("RINGTALLY_SEED") {
        return simulate(seed, Fault::None);
    }
    for seed in 0..number("RINGTALLY_SEEDS").unwrap_or(3000) {
        let run = AssertUnwindSafe(|| simulate(seed, Fault::None));
        if let Err(panic) = catch_unwind(run) {
            eprintln!("replay with RINGTALLY_SEED={seed}");
            resume_unwind(panic);
        }
    }
}

/// Whether a broken store is found out by one of some seeds.
fn is_found_out(fault: Fault) -> bool {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let found = (0..300).any(|seed| catch_unwind(|| simulate(seed, fault)).is_err());
    std::panic::set_hook(hook);
    found
}

#[test]
fn broken_stores_are_found_out() {
    for fault in [Fault::Hasty, Fault::Stale, Fault::Repeated, Fault::Unconfirmed] {
        assert!(is_found_out(fault), "{fault:?}");
    }
}
