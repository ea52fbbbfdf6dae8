//! Servers that share a store, in one process, on a schedule that a seed decides: the services, committers, and members of each
//! server, clients, and one database in memory. Between any two steps of a commit others act: they count, commit, read, and
//! reset. A server may be slow, or killed and started again; connections are lost; and the standby of the database may be
//! promoted. Every event has a power of two as its value, so each sum reveals its events. Each response is compared with what
//! the database held while its request was served, and with what no failure takes back.
//!
//! A failing seed is printed. `RINGTALLY_SEED=n cargo test --test it group` replays it, and `RINGTALLY_SEEDS=n` tries this
//! number of seeds.

mod condition;
mod database;
use crate::world::seeds;
use crate::world::simulated::{Link, Reader, STORE_TIMEOUT_MS, Server, Shard};
use crate::world::{Response, Totals, post};
use database::{Database, Fault, SharedStore, Step, Version};
use fastrand::Rng;
use ringtally::connection::Due;
use ringtally::engine::driver::Ended;
use ringtally::failure::Failure;
use ringtally::tally::State;
use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

const SHARDS: usize = 2;
const USERS: usize = 8;
/// The number of events: an `f64` can hold all of their powers of two.
const EVENTS_MAX: usize = 52;
/// The number of steps within which everything must end.
const STEPS_TO_THE_END: usize = 2000;

/// A client's request.
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
    /// The bytes of its connection up to the end of this request.
    end: usize,
    /// The database's version when the whole request was received, and the time.
    version: Option<usize>,
    received_ms: u64,
    /// True if no request before it could delay its handling at that time.
    is_first: bool,
}

/// A client on one connection.
#[derive(Default)]
struct Client {
    reader: Reader,
    pending: VecDeque<Pending>,
    sent: usize,
    /// The events of the last totals, and the version when they were requested.
    shown: Option<(u64, usize)>,
    /// True if its server drains, and must announce the close of the connection with its last response.
    is_owed_close: bool,
    has_close: bool,
}

impl Client {
    /// Notes a response, and checks whether it may be the last. Returns the request that it answers.
    fn note_response(&mut self, response: &Response, is_stopping: bool) -> Pending {
        let to = self.pending.pop_front().expect("no response without a request");
        assert!(!self.has_close, "a response after the last one: {response:?}");
        self.has_close = response.field("connection") == Some("close");
        assert!(is_stopping || !self.has_close, "it could continue: {response:?}");
        let is_last = self.pending.is_empty();
        assert!(is_last || !self.has_close, "a request is lost after {response:?}");
        to
    }
}

/// One life of a server, and its clients.
struct Life {
    server: Server,
    /// The clients of each shard, by their keys.
    clients: Vec<Vec<Client>>,
    go: Option<Sender<()>>,
    back: Receiver<Step>,
    thread: Option<JoinHandle<()>>,
    /// The events that it has acknowledged, each with the versions from its receipt to its acknowledgement.
    acknowledged: Vec<(usize, Range<usize>)>,
    /// True after it was asked to stop.
    is_stopping: bool,
    /// True while its committer is in the middle of a commit.
    is_committing: bool,
    /// True if it gets its turn less often than others.
    is_slow: bool,
    /// True after something has waited too long for the store.
    was_late: bool,
    /// The number of this life among the lives of all servers.
    number: usize,
}

impl Life {
    fn start(rng: &mut Rng, database: &Database, fault: Fault, number: usize) -> Life {
        let (go, gone) = channel();
        let (back, came_back) = channel();
        let gone = Arc::new(Mutex::new(gone));
        let store = SharedStore::join(database, rng.fork(), fault, Arc::clone(&gone), back.clone());
        let mut server = Server::start(rng, SHARDS, Box::new(store), State::default());
        let mut committer = server.committer.take().unwrap();
        let thread = std::thread::spawn(move || {
            while let Ok(()) = { gone.lock().unwrap().recv() } {
                let result = committer.commit();
                // Nothing listens anymore after the server is killed.
                let _ = back.send(Step::Done(result));
            }
        });
        let mut life = Life {
            server,
            clients: (0..SHARDS).map(|_| Vec::new()).collect(),
            go: Some(go),
            back: came_back,
            thread: Some(thread),
            acknowledged: Vec::new(),
            is_stopping: false,
            is_committing: false,
            is_slow: rng.u8(..) < 60,
            was_late: false,
            number,
        };
        (0..rng.usize(1..4)).for_each(|client| life.connect(client % SHARDS));
        life
    }

    /// Connects a client to a shard, unless the server is stopping.
    fn connect(&mut self, shard: usize) {
        if self.is_stopping {
            return;
        }
        self.clients[shard].push(Client::default());
        let shard = &mut self.server.shards[shard];
        shard.net.backlog.push_back(Link::new());
        shard.accept();
    }

    /// Lets the committer take one step, if it has something to do.
    ///
    /// # Errors
    ///
    /// Returns the failure of the store, which ends the server.
    fn step(&mut self, rng: &mut Rng) -> Result<(), Failure> {
        if !self.is_committing && !self.server.settlement.is_requested() && rng.u8(..) >= 60 {
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

impl Drop for Life {
    /// Ends the server as `kill -9` does: nothing in progress is ever heard of again.
    fn drop(&mut self) {
        drop(self.go.take());
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "a committer panicked");
    }
}

/// All servers, and a model of everything that clients have sent.
struct World {
    rng: Rng,
    database: Database,
    fault: Fault,
    /// The chance, out of 256, that the standby gets a transaction in a step.
    shipping: u8,
    servers: Vec<Life>,
    /// The number of lives so far.
    lives: usize,
    /// The user of each event.
    events: Vec<usize>,
    /// The void events, each with the version when it became void.
    voided: Vec<(usize, usize)>,
    /// Events that were refused because the store was late.
    refused: Vec<usize>,
    resets: bool,
    resets_sent: i64,
    /// True if time passes.
    is_timed: bool,
}

impl World {
    /// Returns the next request of a client.
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

    /// Runs an iteration of one shard of one server: requests arrive on some of its connections, and are published together.
    /// Committers continue in between.
    fn iterate(&mut self, at: usize) {
        let shard = self.rng.usize(..SHARDS);
        let number = self.servers[at].number;
        if self.is_timed && self.rng.bool() {
            self.pass_time(at, shard);
        }
        self.servers[at].server.shards[shard].begin_iteration();
        for key in 0..self.servers[at].clients[shard].len() {
            if !self.servers[at].server.shards[shard].net.slots[key].is_open() || self.rng.bool() {
                continue;
            }
            self.send(at, shard, key);
            self.servers[at].server.shards[shard].complete(key);
            self.note_received(at, shard, key);
            if self.rng.bool() {
                self.step();
            }
            if self.servers[at].number != number {
                // Another server has taken its place.
                return;
            }
        }
        self.servers[at].server.shards[shard].end_iteration();
    }

    /// Lets time pass for a shard, which then checks the clock. It must end everything that has waited too long for the store,
    /// and nothing else.
    fn pass_time(&mut self, at: usize, shard: usize) {
        self.take(at);
        let is_long = self.rng.u8(..) < 30;
        let ms = if is_long { self.rng.u64(..2 * STORE_TIMEOUT_MS) } else { self.rng.u64(..100) };
        let Life { server, clients, was_late, .. } = &mut self.servers[at];
        let (settlement, shard_at) = (Arc::clone(&server.settlement), shard);
        let shard = &mut server.shards[shard_at];
        shard.clock_ms += ms;
        let now_ms = shard.clock_ms;
        let awaited: Vec<_> =
            (0..shard.net.slots.len()).map(|key| shard.first_read_of(key)).collect();
        let all_due = shard.tick();
        // A request on a connection that has ended may be late as well.
        *was_late |= settlement.is_late();
        for (key, due) in &all_due {
            let Some(first) = clients[shard_at][*key].pending.front() else {
                assert_eq!(*due, Due::CloseIdle, "nothing waits, unless the peer could still read");
                continue;
            };
            assert!(
                now_ms >= first.received_ms + STORE_TIMEOUT_MS,
                "{due:?} came early: {first:?}"
            );
            let is_settled = awaited[*key].is_some_and(|epoch| settlement.settled() >= epoch);
            let is_noted = settlement.is_late() || *due == Due::Act && is_settled;
            assert!(is_noted, "{due:?}: the store is late, and nothing shows it");
            *was_late = true;
        }
        for (key, slot) in shard.net.slots.iter_mut().enumerate().filter(|(_, slot)| slot.is_open())
        {
            let Some(first) = clients[shard_at][key].pending.front() else { continue };
            let is_late = first.version.is_some()
                && first.is_first
                && now_ms >= first.received_ms + STORE_TIMEOUT_MS;
            let is_sending = slot.sending_since_ms.is_some() || slot.link.takable() > 0;
            let is_due = all_due.iter().any(|(of, _)| *of == key);
            // A void request ends with its connection.
            let has_ended = is_sending || is_due || slot.link.is_over();
            assert!(!is_late || has_ended, "nothing ends the wait of {first:?}");
        }
    }

    /// Sends requests of a client, and delivers some of its bytes.
    fn send(&mut self, at: usize, shard: usize, key: usize) {
        if self.servers[at].server.shards[shard].link(key).has_client_finished() {
            return;
        }
        let mut bytes = String::new();
        for _ in 0..self.rng.usize(..5) {
            let (request, text) = self.ask();
            bytes.push_str(&text);
            let client = &mut self.servers[at].clients[shard][key];
            client.sent += text.len();
            let end = client.sent;
            client.pending.push_back(Pending {
                request,
                end,
                version: None,
                received_ms: 0,
                is_first: false,
            });
        }
        let count = if self.rng.bool() { usize::MAX } else { self.rng.usize(1..300) };
        let link = self.servers[at].server.shards[shard].link(key);
        link.send(bytes.as_bytes());
        link.deliver(count);
    }

    /// Notes the database's version when requests are received.
    fn note_received(&mut self, at: usize, shard: usize, key: usize) {
        let now = self.database.cluster().now();
        let Life { server, clients, .. } = &mut self.servers[at];
        let received_ms = server.shards[shard].moment().received_ms;
        let received = server.shards[shard].link(key).received();
        let pending = &mut clients[shard][key].pending;
        let before = pending.iter().filter(|pending| pending.version.is_some()).count();
        let mut is_first = before == 0;
        for pending in pending.iter_mut().skip(before).filter(|pending| pending.end <= received) {
            (pending.version, pending.received_ms) = (Some(now), received_ms);
            pending.is_first = is_first;
            // Requests after totals are handled after the totals were read.
            is_first &= !matches!(pending.request, Request::Totals);
        }
    }

    /// Takes a step of the database, and of some committer.
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

    /// Kills a server, and starts another in its place.
    fn restart(&mut self, at: usize) {
        self.lives += 1;
        self.servers[at] = Life::start(&mut self.rng, &self.database, self.fault, self.lives);
    }

    /// Stops a server, and starts another in its place. Every request that has arrived gets its response, or the end that it
    /// would have had in any case.
    fn stop(&mut self, at: usize) {
        let number = self.servers[at].number;
        self.take(at);
        let Life { server, clients, is_stopping, .. } = &mut self.servers[at];
        *is_stopping = true;
        for (shard, clients) in std::iter::zip(&mut server.shards, clients) {
            for (key, client) in clients.iter_mut().enumerate() {
                let slot = &mut shard.net.slots[key];
                slot.link.deliver(usize::MAX);
                // If so, its last request does not have a response yet.
                let has_taken_all = slot.is_open() && !slot.has_unsent();
                client.is_owed_close =
                    slot.link.unread() > 0 || has_taken_all && !client.pending.is_empty();
            }
            shard.stop_accepting();
        }
        for _ in 0..STEPS_TO_THE_END {
            self.database.cluster().ship();
            self.step_of(at);
            if self.servers[at].number != number {
                return;
            }
            self.flush(at);
            let Life { server, was_late, .. } = &mut self.servers[at];
            for shard in &mut server.shards {
                shard.clock_ms += self.rng.u64(..10);
                let all_due = shard.tick();
                let is_due = all_due.iter().any(|(_, due)| *due != Due::CloseIdle);
                *was_late |= is_due || server.settlement.is_late();
            }
            self.take(at);
            if self.servers[at].server.shards.iter().all(Shard::is_empty) {
                let mut clients = self.servers[at].clients.iter().flatten();
                assert!(clients.all(|client| client.pending.is_empty()), "a request is lost");
                return self.restart(at);
            }
        }
        panic!("the drain never ends");
    }

    fn step_of(&mut self, at: usize) {
        if let Err(failure) = self.servers[at].step(&mut self.rng) {
            // The server detects a database that has lost what it had confirmed, and is restarted from there.
            let is_right = failure.to_string().contains("older state than it had confirmed");
            assert!(is_right && self.database.cluster().has_lost, "{failure}");
            self.restart(at);
        }
    }

    /// Lets clients read their responses.
    fn take(&mut self, at: usize) {
        for shard in 0..SHARDS {
            for key in 0..self.servers[at].clients[shard].len() {
                let Life { server, clients, .. } = &mut self.servers[at];
                let link = server.shards[shard].link(key);
                let client = &mut clients[shard][key];
                for response in client.reader.read(&link.take(usize::MAX)) {
                    self.check(at, shard, key, &response);
                }
                self.note_end(at, shard, key);
            }
        }
    }

    /// Notes whether a server has ended a connection: the request that it would acknowledge next is void.
    fn note_end(&mut self, at: usize, shard: usize, key: usize) {
        let Life { server, clients, is_stopping, .. } = &mut self.servers[at];
        let (link, client) = (&server.shards[shard].net.slots[key].link, &mut clients[shard][key]);
        if !link.is_over() || link.has_client_finished() {
            return;
        }
        let slot = &server.shards[shard].net.slots[key];
        if slot.ended == Some(Ended::Cut) {
            // The store may or may not have them.
            client.pending.clear();
            client.is_owed_close = false;
            end(server.shards[shard].link(key));
            return self.servers[at].connect(shard);
        }
        assert!(!client.reader.has_part(), "a response was cut off");
        if *is_stopping && client.pending.is_empty() {
            assert!(client.has_close || !client.is_owed_close, "the close is not announced");
            return end(server.shards[shard].link(key));
        }
        client.is_owed_close = false;
        // The first request without a response was counted before a reset that this server did not know of.
        let first = client.pending.front().expect("nothing else ends a connection");
        match first.request {
            Request::Event(event) => self.voided.push((event, self.database.cluster().now())),
            Request::Reset => {}
            Request::Totals => panic!("totals that were read are lost"),
        }
        client.pending.clear();
        end(server.shards[shard].link(key));
        self.servers[at].connect(shard);
    }

    /// Compares a response with the database's versions since its request was received.
    fn check(&mut self, at: usize, shard: usize, key: usize, response: &Response) {
        let Life { server, clients, acknowledged, was_late, is_stopping, .. } =
            &mut self.servers[at];
        let client = &mut clients[shard][key];
        let Pending { request, version, received_ms, .. } =
            client.note_response(response, *is_stopping);
        let version = version.expect("no response to what was not received");
        if response.status == 503 {
            let is_late = server.shards[shard].clock_ms >= received_ms + STORE_TIMEOUT_MS;
            assert!(*was_late || is_late, "the store was not late: {response:?}");
            if let Request::Event(event) = request {
                self.refused.push(event);
            }
            return;
        }
        assert_eq!(response.status, 200, "{response:?}");
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
                // A failover takes back what the standby did not have, so the generation may have been higher before.
                let is_durable = versions.windows(2).any(|pair| {
                    let [before, after] = [pair[0].generation, pair[1].generation];
                    before < after && after <= cluster.durable_generation()
                });
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
                for later in &client.pending {
                    let Request::Event(event) = later.request else { continue };
                    assert!(bits >> event & 1 == 0, "event {event} was sent after {totals:?}");
                }
                for (event, while_served) in acknowledged.iter() {
                    let mut since = cluster.versions()[while_served.start..].iter();
                    let is_reset = since.any(|version| version.generation != last.generation);
                    let is_later = while_served.end > version;
                    assert!(
                        is_later || is_reset || bits >> event & 1 == 1,
                        "event {event}, which this server has acknowledged, is silently gone"
                    );
                }
                let of_bits = (0..self.events.len()).filter(|event| bits >> event & 1 == 1);
                let users: BTreeSet<_> = of_bits.map(|event| self.events[event]).collect();
                assert_eq!(totals.users, users.len() as u64);
                let is_empty = totals.total == 0;
                assert!(is_empty || totals.avg == totals.sum / totals.total as f64);
                if let Some((shown, version)) = client.shown {
                    let mut since = cluster.versions()[version..].iter();
                    let is_reset = since.any(|version| version.generation != last.generation);
                    let is_gone = shown & !bits;
                    assert!(is_reset || is_gone == 0, "totals never decrease between resets");
                }
                client.shown = Some((bits, version));
            }
        }
    }

    /// Runs until every request has its response or its connection has ended.
    fn finish(&mut self) {
        for _ in 0..STEPS_TO_THE_END {
            for at in 0..self.servers.len() {
                self.database.cluster().ship();
                self.step_of(at);
                self.flush(at);
                self.take(at);
            }
            let mut clients = self.servers.iter().flat_map(|life| life.clients.iter().flatten());
            if clients.all(|client| client.pending.is_empty()) {
                return;
            }
        }
        panic!("a request waits forever");
    }
}

impl World {
    /// Runs an iteration of each shard of a server, with everything delivered.
    fn flush(&mut self, at: usize) {
        for shard in 0..SHARDS {
            self.servers[at].server.shards[shard].begin_iteration();
            for key in 0..self.servers[at].clients[shard].len() {
                let server = &mut self.servers[at].server;
                server.shards[shard].link(key).deliver(usize::MAX);
                server.shards[shard].complete(key);
                self.note_received(at, shard, key);
            }
            self.servers[at].server.shards[shard].end_iteration();
        }
    }
}

/// Closes the client's side of a connection that the server has ended.
fn end(link: &mut Link) {
    link.finish();
    link.deliver(usize::MAX);
}

fn simulate(seed: u64, fault: Fault) {
    let mut rng = Rng::with_seed(seed);
    let is_synchronous = rng.u8(..) < 180;
    let database = Database::new(is_synchronous);
    let lives = rng.usize(1..4);
    let servers = (0..lives).map(|life| Life::start(&mut rng, &database, fault, life)).collect();
    let resets = rng.u8(..) < 180;
    let shipping = *rng.choice(&[8, 40, 128, 220]).unwrap();
    let is_timed = rng.u8(..) < 80;
    let (events, voided, refused, resets_sent) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let mut world = World {
        rng,
        database,
        fault,
        shipping,
        servers,
        lives,
        events,
        voided,
        refused,
        resets,
        resets_sent,
        is_timed,
    };
    let steps = world.rng.usize(1..160);
    // In half of the runs, the standby is promoted.
    let promotion = world.rng.usize(..2 * steps);
    // A server that was away for an hour cannot distinguish an older database from a database that has removed its row.
    let hours_pass = is_synchronous || promotion >= steps;
    for step in 0..steps {
        if step == promotion {
            world.database.cluster().promote();
        }
        let at = world.rng.usize(..world.servers.len());
        match world.rng.u8(..100) {
            0..=1 => world.restart(at),
            3 => world.stop(at),
            2 if hours_pass => world.database.cluster().sweep(),
            4..=49 => world.iterate(at),
            50..=59 => world.take(at),
            _ => world.step(),
        }
    }
    world.finish();
    let cluster = world.database.cluster();
    let generation = cluster.versions().last().unwrap().generation;
    assert!(generation <= world.resets_sent, "a reset is one point in time");
    for event in &world.refused {
        let is_counted = cluster.versions().iter().any(|version| version.bits >> event & 1 == 1);
        assert!(!is_counted, "event {event} was refused, and is counted");
    }
    for (event, version) in &world.voided {
        let versions = &cluster.versions()[*version..];
        let has = |version: &Version| version.bits >> event & 1 == 1;
        // A commit whose outcome was still unknown when the row was removed, hours later, may have been made.
        let may_be_counted = cluster.has_swept && has(&versions[0]);
        let is_counted = versions.iter().any(has);
        assert!(!is_counted || may_be_counted, "event {event} is void, and is counted");
    }
}

#[test]
fn servers_that_share_a_store_are_as_exact_as_one() {
    seeds::for_each_seed(600, |seed| simulate(seed, Fault::None));
}

/// Returns whether at least one of some seeds detects a broken store.
fn is_found_out(fault: Fault) -> bool {
    seeds::is_found_out(3000, |seed| simulate(seed, fault))
}

#[test]
fn broken_stores_are_found_out() {
    let all = [Fault::Hasty, Fault::Stale, Fault::Repeated, Fault::Unconfirmed, Fault::Unordered];
    for fault in all {
        assert!(is_found_out(fault), "{fault:?}");
    }
}
