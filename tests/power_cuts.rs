//! Power cuts and failed syncs, through the whole pipeline: two shards, their connections, the committer, the store, and
//! a disk that loses what was not synced. Every event has a power of two as its value, so the exact sum that a store
//! holds says which events it has; a model knows which were sent and which were acknowledged.
//!
//! A failing seed is printed. `RINGTALLY_SEED=n cargo test --test power_cuts` replays it, and
//! `RINGTALLY_SEEDS=n` tries that many.

#![allow(clippy::unwrap_used, reason = "a panic is a failure")]

mod common;

use common::disk::{Disk, Faults};
use common::{Totals, post, split_responses};
use fastrand::Rng;
use ringtally::failure::Failure;
use ringtally::http::{Limits, Timeouts};
use ringtally::metrics::{Reporter, StoreMetrics};
use ringtally::service::{Connection, Policy, Service};
use ringtally::store::file::FileStore;
use ringtally::store::{Committer, Durability, Held, Outcome, Release, Settlement, Store, Wakeups};
use ringtally::tally::{ExactSum, State, Tally, UserIds};
use ringtally::uring::Wakeup;
use std::collections::{BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use tokio::sync::Notify;

const SHARDS: usize = 2;
const USERS: usize = 12;
/// The value of the first event is 2 to the power of this, and that of each further one twice as much.
const FIRST_EXPONENT: i32 = -1000;
const EVENTS_MAX: usize = 1900;

/// What a client asks.
#[derive(Clone, Debug)]
enum Request {
    Event(usize),
    /// With the number of events that were acknowledged when it was received.
    Totals(u64),
    Reset,
    Health,
}

/// One event, as the model knows it.
#[derive(Debug)]
struct Event {
    user: usize,
    /// The resets before it.
    generation: u64,
    is_acknowledged: bool,
}

/// What was sent, and what was acknowledged, over all lives of the server.
#[derive(Debug, Default)]
struct Model {
    events: Vec<Event>,
    resets_sent: u64,
    resets_acknowledged: u64,
    /// The largest number of events that a response to `/stats` has shown.
    shown: u64,
}

impl Model {
    /// Which events the store has, by its exact sum.
    fn events_in(sum: &ExactSum) -> BTreeSet<usize> {
        let bytes = sum.to_bytes();
        // Limbs of 32 bits in 64, from 2 to the power of -1074.
        let limbs = bytes.as_chunks::<8>().0.iter().map(|limb| i64::from_le_bytes(*limb));
        let bits = limbs.enumerate().flat_map(|(at, limb)| {
            (0..32)
                .filter(move |bit| limb >> bit & 1 == 1)
                .map(move |bit| 32 * i32::try_from(at).unwrap() + bit - 1074)
        });
        bits.map(|exponent| usize::try_from(exponent - FIRST_EXPONENT).unwrap()).collect()
    }

    /// Compares what a store held with what may and what must be there. From here on it must be there: it is shown.
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
            assert!(state.events >= self.shown, "what /stats has shown was taken back");
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

/// One connection.
struct Peer {
    shard: usize,
    connection: Connection,
    held: Held,
    out: Vec<u8>,
    /// Requests whose responses have not left.
    pending: VecDeque<Request>,
    /// The events of the last totals.
    shown: u64,
}

/// One life of the server.
struct Server {
    services: Vec<Service>,
    committer: Committer,
    settlement: Arc<Settlement>,
    tally: Arc<Tally>,
    peers: Vec<Peer>,
    now_ms: u64,
}

impl Server {
    fn start(rng: &mut Rng, store: Box<dyn Store>, state: State, users: &UserIds) -> Server {
        let (tally, writers, journal) = Tally::resume(SHARDS, 1000, &state);
        assert_eq!(tally.restore_users(users), state.users);
        let settlement = Arc::new(Settlement::new(SHARDS, state.totals(), false));
        let shards = (0..SHARDS).map(|_| Arc::new(Wakeup::new().unwrap())).collect();
        let wakeups = Arc::new(Wakeups { committer: Notify::new(), shards });
        let policy = Policy::new("h");
        let reporters = Reporter::for_shards(SHARDS, "none");
        let services = std::iter::zip(writers, reporters)
            .enumerate()
            .map(|(shard, (writer, reporter))| {
                let mut service = Service::new(writer, reporter, policy.clone(), 0);
                let (settlement, wakeups) = (Arc::clone(&settlement), Arc::clone(&wakeups));
                service.set_durability(Durability::new(settlement, wakeups, shard, 1000));
                service
            })
            .collect();
        let metrics = Arc::new(StoreMetrics::default());
        let committer =
            Committer::new(journal, store, state, Arc::clone(&settlement), wakeups, metrics);
        let timeouts = Timeouts { header_ms: 1000, body_ms: 1000, idle_ms: 1000 };
        let limits = Limits { body_bytes_max: 400, batch_bytes_max: 8 << 20, timeouts };
        let peers = (0..rng.usize(1..6))
            .map(|peer| Peer {
                shard: peer % SHARDS,
                connection: Connection::new(limits, true, 0),
                held: Held::default(),
                out: Vec::new(),
                pending: VecDeque::new(),
                shown: 0,
            })
            .collect();
        Server { services, committer, settlement, tally, peers, now_ms: 0 }
    }

    /// A turn of one shard: requests arrive on some connections, and are published together. In between the
    /// committer may make a commit.
    fn turn(&mut self, rng: &mut Rng, model: &mut Model, resets: bool) -> Result<(), Failure> {
        let shard = rng.usize(..SHARDS);
        for at in 0..self.peers.len() {
            if self.peers[at].shard != shard || rng.bool() {
                continue;
            }
            let mut bytes = Vec::new();
            for _ in 0..rng.usize(1..4) {
                let request = self.ask(rng, model, resets, &mut bytes);
                // One by one: what a request meets is what the model has noted.
                let Peer { connection, held, out, pending, .. } = &mut self.peers[at];
                let before = out.len();
                connection.renew();
                self.services[shard].receive(connection, &bytes, self.now_ms, held, out);
                assert!(out.len() > before, "every request has its response");
                bytes.clear();
                pending.push_back(request);
            }
            if rng.u8(..) < 40 {
                self.commit(rng)?;
            }
        }
        self.services[shard].commit();
        let service = &self.services[shard];
        let durability = service.durability().unwrap();
        for peer in self.peers.iter_mut().filter(|peer| peer.shard == shard) {
            if peer.held.publish(service.settles_at(), self.now_ms + durability.timeout_ms()) {
                durability.request(service.settles_at());
            }
        }
        self.now_ms += 1;
        Ok(())
    }

    /// Writes a request of a client, and notes it in the model.
    fn ask(&self, rng: &mut Rng, model: &mut Model, resets: bool, bytes: &mut Vec<u8>) -> Request {
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n");
        let (request, text) = match rng.u8(..100) {
            0..=14 => {
                let events = model.events.iter().filter(|event| event.is_acknowledged).count();
                (Request::Totals(events as u64), get("/stats"))
            }
            15..=19 => (Request::Health, get("/health")),
            20..=22 if resets => {
                model.resets_sent += 1;
                (Request::Reset, post("/reset", ""))
            }
            _ if model.events.len() == EVENTS_MAX => (Request::Health, get("/health")),
            _ => {
                let (event, user) = (model.events.len(), rng.usize(..USERS));
                let generation = model.resets_sent;
                model.events.push(Event { user, generation, is_acknowledged: false });
                let value = 2f64.powi(FIRST_EXPONENT + i32::try_from(event).unwrap());
                let body = format!(r#"{{"userId":"user_{user}","value":{value:e}}}"#);
                (Request::Event(event), post("/event", &body))
            }
        };
        bytes.extend_from_slice(text.as_bytes());
        request
    }

    fn commit(&mut self, rng: &mut Rng) -> Result<(), Failure> {
        match self.settlement.is_requested() || rng.u8(..) < 20 {
            true => self.committer.commit(),
            false => Ok(()),
        }
    }

    /// Lets responses leave that do not have to wait.
    fn send(&mut self, rng: &mut Rng, model: &mut Model) {
        for peer in &mut self.peers {
            if rng.u8(..) < 80 {
                continue;
            }
            let settled = self.settlement.settled();
            let released = peer.held.release(settled, peer.out.len(), |_, _| false);
            let Release::Bytes(count) = released else { unreachable!("nothing is void") };
            let rest = peer.out.split_off(count);
            let sent = std::mem::replace(&mut peer.out, rest);
            peer.held.note_taken(count);
            for response in split_responses(&sent) {
                assert_eq!(response.status, 200, "{response:?}");
                match peer.pending.pop_front().unwrap() {
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
                            assert!(totals.total >= peer.shown, "totals never decrease");
                            peer.shown = totals.total;
                            model.shown = model.shown.max(totals.total);
                        }
                    }
                }
            }
        }
    }
}

/// Opens the store, as often as the power or a sync fails meanwhile.
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

/// A power cut or, if the power is on, perhaps only a restart.
fn end_life(disk: &Disk, rng: &mut Rng) {
    if disk.is_off() || rng.bool() { disk.crash(rng) } else { disk.restart(rng) }
}

/// Lives and power cuts, with a wrapper around the store that a test may break.
fn simulate(seed: u64, syncs: bool, wrap: fn(FileStore) -> Box<dyn Store>) {
    let mut rng = Rng::with_seed(seed);
    let disk = Disk::with(&[]);
    disk.set_faults(Faults { ignores_syncs: !syncs, ..Faults::default() });
    // A file is created under another name, and has its own only once it is a store.
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
        // What the store does not have is lost: it was not acknowledged, and nobody sends it again.
        model.resets_sent = state.generation;
        let mut server = Server::start(&mut rng, wrap(store), state, &users);
        disk.fail_after(rng.u64(1..400));
        if rng.bool() {
            disk.lose_after(rng.u64(..40), &mut rng);
        }
        for _ in 0..rng.usize(1..80) {
            let step =
                server.turn(&mut rng, &mut model, resets).and_then(|()| server.commit(&mut rng));
            if let Err(failure) = step {
                assert!(disk.is_off() || disk.has_lost(), "{failure}");
                break;
            }
            server.send(&mut rng, &mut model);
        }
        let totals = server.tally.totals();
        assert!(totals.unique_users <= USERS as u64);
        drop(server);
        end_life(&disk, &mut rng);
    }
    let (_, state, users) = open(&disk, &mut rng);
    let names: Vec<String> =
        users.iter().map(|user| String::from_utf8(user.to_vec()).unwrap()).collect();
    model.check(&state, &names);
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn what_was_acknowledged_survives_every_power_cut_and_failed_sync() {
    if let Some(seed) = number("RINGTALLY_SEED") {
        return simulate(seed, true, |store| Box::new(store));
    }
    for seed in 0..number("RINGTALLY_SEEDS").unwrap_or(1000) {
        let run = AssertUnwindSafe(|| simulate(seed, true, |store| Box::new(store)));
        if let Err(panic) = catch_unwind(run) {
            eprintln!("replay with RINGTALLY_SEED={seed}");
            resume_unwind(panic);
        }
    }
}

/// Whether a broken pipeline is found out by one of some seeds.
fn is_found_out(syncs: bool, wrap: fn(FileStore) -> Box<dyn Store>) -> bool {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let found = (0..200).any(|seed| catch_unwind(|| simulate(seed, syncs, wrap)).is_err());
    std::panic::set_hook(hook);
    found
}

#[test]
fn a_disk_that_does_not_sync_is_found_out() {
    assert!(is_found_out(false, |store| Box::new(store)));
}

/// Says that a commit is durable one commit too early.
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
