//! Power cuts and failed syncs, through the whole pipeline: two shards, their connections, the committer, the store, and a disk
//! that loses everything that was not synced. Every event has a power of two as its value, so the exact sum in a store reveals
//! its events. A model knows which events were sent and which were acknowledged.
//!
//! A failing seed is printed. `RINGTALLY_SEED=n cargo test --test it power_cuts` replays it, and `RINGTALLY_SEEDS=n` tries this
//! number of seeds.

use crate::world::disk::{Disk, Faults};
use crate::world::seeds;
use crate::world::simulated::{Link, Reader, Server};
use crate::world::{Response, Totals, post, split_responses};
use fastrand::Rng;
use ringtally::failure::Failure;
use ringtally::store::file::FileStore;
use ringtally::store::{Outcome, Store};
use ringtally::tally::{ExactSum, State, UserIds};
use std::collections::{BTreeSet, VecDeque};

const SHARDS: usize = 2;
const USERS: usize = 12;
/// The value of the first event is 2 to the power of this. Each further event has twice the value of the previous one.
const FIRST_EXPONENT: i32 = -1000;
const EVENTS_MAX: usize = 1900;

/// A client's request.
#[derive(Clone, Debug)]
enum Request {
    Event(usize),
    /// A request with the number of events that were acknowledged when it was sent.
    Totals(u64),
    Reset,
    Health,
}

/// One event, as the model knows it.
#[derive(Debug)]
struct Event {
    user: usize,
    /// The number of resets before it.
    generation: u64,
    is_acknowledged: bool,
}

/// The sent and the acknowledged events over all lives of the server.
#[derive(Debug, Default)]
struct Model {
    events: Vec<Event>,
    resets_sent: u64,
    resets_acknowledged: u64,
    /// The largest number of events that a response to `/stats` has shown.
    shown: u64,
}

impl Model {
    /// Returns the events in the store, from its exact sum.
    fn events_in(sum: &ExactSum) -> BTreeSet<usize> {
        let bytes = sum.to_bytes();
        // Each limb holds 32 bits in 64. The first bit stands for 2 to the power of -1074.
        let limbs = bytes.as_chunks::<8>().0.iter().map(|limb| i64::from_le_bytes(*limb));
        let bits = limbs.enumerate().flat_map(|(at, limb)| {
            (0..32)
                .filter(move |bit| limb >> bit & 1 == 1)
                .map(move |bit| 32 * i32::try_from(at).unwrap() + bit - 1074)
        });
        bits.map(|exponent| usize::try_from(exponent - FIRST_EXPONENT).unwrap()).collect()
    }

    /// Compares the content of a store with what may and what must be there. From here on it must be there, because it
    /// is shown.
    fn check(&mut self, state: &State, users: &[String]) {
        let held = Model::events_in(&state.sum);
        assert_eq!(held.len() as u64, state.events, "the sum and the count belong together");
        let generation = state.generation;
        assert!(generation >= self.resets_acknowledged, "an acknowledged reset is durable");
        assert!(generation <= self.resets_sent, "nobody sent this reset");
        for event in &held {
            let sent = self.events.get(*event).expect("nobody sent this event");
            assert_eq!(sent.generation, generation, "event {event} is of another generation");
        }
        for (number, event) in
            self.events.iter().enumerate().filter(|(_, event)| event.is_acknowledged)
        {
            assert!(event.generation <= generation, "the reset before event {number} is lost");
            let must_be_held = event.generation == generation;
            assert!(!must_be_held || held.contains(&number), "event {number} is lost");
        }
        if self.resets_sent == 0 {
            assert!(state.events >= self.shown, "events that /stats has shown are gone");
        }
        let expected: BTreeSet<String> =
            held.iter().map(|event| format!("user_{}", self.events[*event].user)).collect();
        assert_eq!(state.users, users.len() as u64);
        assert_eq!(
            users.iter().cloned().collect::<BTreeSet<_>>(),
            expected,
            "the users of the events"
        );
        for event in held {
            self.events[event].is_acknowledged = true;
        }
        (self.resets_acknowledged, self.shown) = (generation, self.shown.max(state.events));
    }
}

/// A client, and what it waits for.
struct Client {
    reader: Reader,
    /// Requests that the server has not seen, and requests without a response.
    unseen: VecDeque<Request>,
    pending: VecDeque<Request>,
    /// The events of the last totals.
    shown: u64,
}

/// One life of the server, and its clients.
struct Life {
    server: Server,
    /// The connections of each shard.
    clients: Vec<Vec<Client>>,
}

impl Life {
    fn start(rng: &mut Rng, store: Box<dyn Store>, state: State, users: &UserIds) -> Life {
        let before = state.users;
        let mut server = Server::start(rng, SHARDS, store, state);
        assert_eq!(server.restore(users), before);
        let mut clients: Vec<Vec<Client>> = (0..SHARDS).map(|_| Vec::new()).collect();
        for client in 0..rng.usize(1..6) {
            let shard = client % SHARDS;
            let (unseen, pending) = (VecDeque::new(), VecDeque::new());
            clients[shard].push(Client { reader: Reader::default(), unseen, pending, shown: 0 });
            server.shards[shard].net.backlog.push_back(Link::new());
        }
        for shard in &mut server.shards {
            while !shard.net.backlog.is_empty() {
                shard.iterate();
            }
        }
        Life { server, clients }
    }

    /// Runs an iteration of one shard: requests arrive on some connections, and are published together. The committer may make
    /// a commit in between.
    fn iterate(&mut self, rng: &mut Rng, model: &mut Model, resets: bool) -> Result<(), Failure> {
        let shard = rng.usize(..SHARDS);
        self.server.shards[shard].clock_ms += rng.u64(..3);
        self.server.shards[shard].begin_iteration();
        for at in 0..self.clients[shard].len() {
            if rng.bool() {
                continue;
            }
            let mut bytes = Vec::new();
            for _ in 0..rng.usize(..4) {
                let request = ask(rng, model, resets, &mut bytes);
                self.clients[shard][at].unseen.push_back(request);
            }
            let link = self.server.shards[shard].link(at);
            link.send(&bytes);
            link.deliver(if rng.bool() { usize::MAX } else { rng.usize(1..300) });
            self.server.shards[shard].complete(at);
            self.follow(shard, model);
            if rng.u8(..) < 40 {
                self.commit(rng)?;
            }
        }
        self.server.shards[shard].end_iteration();
        self.follow(shard, model);
        Ok(())
    }

    /// Notes in the model what a shard has handled, in the same order.
    fn follow(&mut self, shard: usize, model: &mut Model) {
        for made in std::mem::take(&mut self.server.shards[shard].net.made) {
            for _ in split_responses(&made.bytes) {
                let client = &mut self.clients[shard][made.key];
                let mut request = client.unseen.pop_front().expect("a response to nothing");
                match &mut request {
                    Request::Event(event) => model.events[*event].generation = model.resets_sent,
                    Request::Reset => model.resets_sent += 1,
                    Request::Totals(..) | Request::Health => {}
                }
                client.pending.push_back(request);
            }
        }
    }

    fn commit(&mut self, rng: &mut Rng) -> Result<(), Failure> {
        match self.server.settlement.is_requested() || rng.u8(..) < 20 {
            true => self.server.committer.as_mut().unwrap().commit(),
            false => Ok(()),
        }
    }

    /// Lets clients read their responses, and checks them.
    fn take(&mut self, rng: &mut Rng, model: &mut Model) {
        for shard in 0..SHARDS {
            for at in 0..self.clients[shard].len() {
                if rng.u8(..) < 80 {
                    continue;
                }
                let slot = &mut self.server.shards[shard].net.slots[at];
                assert!(slot.is_open(), "nothing ends a connection");
                let taken = slot.link.take(rng.usize(1..2000));
                let client = &mut self.clients[shard][at];
                for response in client.reader.read(&taken) {
                    client.check(&response, model);
                }
            }
        }
    }
}

impl Client {
    fn check(&mut self, response: &Response, model: &mut Model) {
        assert_eq!(response.status, 200, "{response:?}");
        match self.pending.pop_front().unwrap() {
            Request::Event(event) => model.events[event].is_acknowledged = true,
            Request::Reset => model.resets_acknowledged += 1,
            Request::Health => {}
            Request::Totals(acknowledged) => {
                let totals = Totals::parse(&response.body);
                let is_empty = totals.total == 0;
                assert_eq!((totals.users == 0, totals.sum == 0.0), (is_empty, is_empty));
                assert!(is_empty || totals.avg == totals.sum / totals.total as f64);
                assert!(totals.users <= totals.total);
                if model.resets_sent == 0 {
                    assert!(totals.total >= acknowledged, "what was acknowledged is shown");
                    assert!(totals.total >= self.shown, "totals never decrease");
                    self.shown = totals.total;
                    model.shown = model.shown.max(totals.total);
                }
            }
        }
    }
}

/// Writes a request of a client, and notes it in the model.
fn ask(rng: &mut Rng, model: &mut Model, resets: bool, bytes: &mut Vec<u8>) -> Request {
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n");
    let (request, text) = match rng.u8(..100) {
        0..=14 => {
            let events = model.events.iter().filter(|event| event.is_acknowledged).count();
            (Request::Totals(events as u64), get("/stats"))
        }
        15..=19 => (Request::Health, get("/health")),
        20..=22 if resets => (Request::Reset, post("/reset", "")),
        _ if model.events.len() == EVENTS_MAX => (Request::Health, get("/health")),
        _ => {
            let (event, user) = (model.events.len(), rng.usize(..USERS));
            model.events.push(Event { user, generation: 0, is_acknowledged: false });
            let value = 2f64.powi(FIRST_EXPONENT + i32::try_from(event).unwrap());
            let body = format!(r#"{{"userId":"user_{user}","value":{value:e}}}"#);
            (Request::Event(event), post("/event", &body))
        }
    };
    bytes.extend_from_slice(text.as_bytes());
    request
}

/// Opens the store, repeatedly if the power or a sync fails.
fn open(disk: &Disk, rng: &mut Rng) -> (FileStore, State, UserIds) {
    loop {
        match rng.u8(..) {
            0..60 => disk.fail_after(rng.u64(..60)),
            60..120 => disk.lose_after(rng.u64(..6), rng),
            _ => {}
        }
        let opened = FileStore::on(disk.backend()).and_then(|(mut store, state)| {
            let mut all = UserIds::default();
            store.users(&mut |users| all.append(&mut users.clone()))?;
            Ok((store, state, all))
        });
        match opened {
            Ok(opened) => return opened,
            Err(failure) => assert!(disk.is_off() || disk.has_lost(), "{failure}"),
        }
        end_life(disk, rng);
    }
}

/// Cuts the power or, if it is on, perhaps only restarts.
fn end_life(disk: &Disk, rng: &mut Rng) {
    if disk.is_off() || rng.bool() { disk.crash(rng) } else { disk.restart(rng) }
}

/// Simulates lives and power cuts, with a wrapper around the store that a test may break.
fn simulate(seed: u64, syncs: bool, wrap: fn(FileStore) -> Box<dyn Store>) {
    let mut rng = Rng::with_seed(seed);
    let disk = Disk::with(&[]);
    disk.set_faults(Faults { ignores_syncs: !syncs, ..Faults::default() });
    // A file is created under another name, and gets its own only after it has become a store.
    drop(FileStore::on(disk.backend()).unwrap());
    disk.sync();
    let mut model = Model::default();
    let resets = rng.bool();
    for _ in 0..rng.usize(2..5) {
        let (store, state, users) = open(&disk, &mut rng);
        let names: Vec<String> =
            users.iter().map(|user| String::from_utf8(user.to_vec()).unwrap()).collect();
        model.check(&state, &names);
        model
            .events
            .iter_mut()
            .for_each(|event| event.generation = event.generation.min(state.generation));
        // Everything that the store does not have is lost: it was not acknowledged, and nobody sends it again.
        model.resets_sent = state.generation;
        let mut life = Life::start(&mut rng, wrap(store), state, &users);
        disk.fail_after(rng.u64(1..400));
        if rng.bool() {
            disk.lose_after(rng.u64(..40), &mut rng);
        }
        for _ in 0..rng.usize(1..120) {
            let iterated = life.iterate(&mut rng, &mut model, resets);
            let step = iterated.and_then(|()| life.commit(&mut rng));
            if let Err(failure) = step {
                assert!(disk.is_off() || disk.has_lost(), "{failure}");
                break;
            }
            life.take(&mut rng, &mut model);
        }
        let totals = life.server.tally.totals();
        assert!(totals.unique_users <= USERS as u64);
        drop(life);
        end_life(&disk, &mut rng);
    }
    let (_, state, users) = open(&disk, &mut rng);
    let names: Vec<String> =
        users.iter().map(|user| String::from_utf8(user.to_vec()).unwrap()).collect();
    model.check(&state, &names);
}

#[test]
fn what_was_acknowledged_survives_every_power_cut_and_failed_sync() {
    seeds::for_each_seed(300, |seed| simulate(seed, true, |store| Box::new(store)));
}

/// Returns whether at least one of some seeds detects a broken pipeline.
fn is_found_out(syncs: bool, wrap: fn(FileStore) -> Box<dyn Store>) -> bool {
    seeds::is_found_out(200, |seed| simulate(seed, syncs, wrap))
}

#[test]
fn a_disk_that_does_not_sync_is_found_out() {
    assert!(is_found_out(false, |store| Box::new(store)));
}

/// A store that reports a commit as durable one commit too early.
struct Hasty {
    store: FileStore,
    late: Option<(State, UserIds)>,
}

impl Store for Hasty {
    fn users(&mut self, each: &mut dyn FnMut(&UserIds)) -> Result<(), Failure> {
        self.store.users(each)
    }

    fn commit(&mut self, state: &State, new_users: &UserIds) -> Result<Outcome, Failure> {
        match self.late.replace((state.clone(), new_users.clone())) {
            Some((state, users)) => self.store.commit(&state, &users),
            None => Ok(Outcome::Durable),
        }
    }
}

#[test]
fn a_store_that_acknowledges_before_it_is_durable_is_found_out() {
    assert!(is_found_out(true, |store| Box::new(Hasty { store, late: None })));
}
