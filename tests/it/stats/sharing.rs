//! Shards share nothing while they count: each cache line that a shard writes for an event of a known user is its own. The
//! server's memory is read before and after events, so a write shows if it leaves another value.

use crate::world::{Client, Server, eventually};
use procfs::process::{MMPermissions, MMapPath, MemoryMap, PageInfo, Process};
use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const SHARDS: usize = 2;
/// The size of a cache line in bytes, on every processor that the server runs on.
const LINE: usize = 64;
/// The number of events of each shard while the lines that may be shared are watched.
const ROUNDS: usize = 10;
/// A tick comes each second, so one in ten of the intervals that are shorter than this has one.
const SHORT: Duration = Duration::from_millis(100);
/// If most intervals are longer, the machine is too busy.
const ROUNDS_MAX: usize = 50;
/// On an idle machine, a shard has written everything about an event after this time, and sleeps.
const SETTLED: Duration = Duration::from_millis(30);

/// The pages that the process can write and has written, by their address.
fn memory(process: &Process) -> BTreeMap<u64, Vec<u8>> {
    let (memory, mut page_map) = (process.mem().unwrap(), process.pagemap().unwrap());
    let page = procfs::page_size();
    let number = |address: u64| usize::try_from(address / page).unwrap();
    let mut pages = BTreeMap::new();
    for map in process.maps().unwrap() {
        if !map.perms.contains(MMPermissions::READ | MMPermissions::WRITE) {
            continue;
        }
        let (first, end) = (number(map.address.0), number(map.address.1));
        let infos = page_map.get_range_info(first..end).unwrap();
        for (number, info) in (map.address.0 / page..).zip(infos) {
            let mut bytes = vec![0; usize::try_from(page).unwrap()];
            if matches!(info, PageInfo::MemoryPage(flags) if !flags.is_empty())
                && memory.read_exact_at(&mut bytes, number * page).is_ok()
            {
                pages.insert(number * page, bytes);
            }
        }
    }
    pages
}

/// Returns the addresses of the lines that differ.
fn changed(before: &BTreeMap<u64, Vec<u8>>, after: &BTreeMap<u64, Vec<u8>>) -> Vec<u64> {
    let mut lines = Vec::new();
    for (address, new) in after {
        let Some(old) = before.get(address).filter(|old| *old != new) else { continue };
        let pairs = old.chunks(LINE).zip(new.chunks(LINE)).enumerate();
        let changed = pairs.filter(|(_, (old, new))| old != new);
        lines.extend(changed.map(|(line, _)| address + (line * LINE) as u64));
    }
    lines
}

/// Returns a client of each shard.
fn clients(server: &Server) -> Vec<Client> {
    let mut asking = server.client();
    let mut connections = || -> Vec<u64> {
        let text = asking.get("/metrics").body;
        let samples = text.lines().filter_map(|line| line.strip_prefix("ringtally_connections{"));
        samples.map(|sample| sample.rsplit(' ').next().unwrap().parse().unwrap()).collect()
    };
    // The others stay open: a connection that closes would change these numbers, too.
    let (mut of_shards, mut others) = (HashMap::new(), Vec::new());
    while of_shards.len() < SHARDS {
        let before = connections();
        let mut client = server.client();
        client.event("u", 1.0);
        let shard = connections().iter().zip(before).position(|(now, then)| *now > then).unwrap();
        others.extend(of_shards.insert(shard, client));
    }
    (0..SHARDS).map(|shard| of_shards.remove(&shard).unwrap()).collect()
}

/// Returns what is mapped at an address.
fn map_of(process: &Process, address: u64) -> Option<MMapPath> {
    let maps = process.maps().unwrap();
    let of = |map: &&MemoryMap| (map.address.0..map.address.1).contains(&address);
    maps.iter().find(of).map(|map| map.pathname.clone())
}

/// Reads lines of the process's memory.
fn read(process: &Process, lines: &[u64]) -> Vec<[u8; LINE]> {
    let (memory, mut bytes) = (process.mem().unwrap(), [0; LINE]);
    let mut line = |address: &u64| memory.read_exact_at(&mut bytes, *address).map(|()| bytes);
    lines.iter().map(|address| line(address).unwrap_or([0; LINE])).collect()
}

#[test]
fn no_line_is_written_for_the_events_of_two_shards() {
    let server = Server::start(&["--shards", &SHARDS.to_string()]);
    let process = Process::new(i32::try_from(server.pid()).unwrap()).unwrap();
    if let Err(error) = process.mem() {
        println!("nothing was checked, because the server's memory cannot be read: {error}");
        return;
    }
    let mut clients = clients(&server);
    let mut let_count = |shard: usize| {
        if let Some(client) = clients.get_mut(shard) {
            client.event("u", 1.0);
        }
        std::thread::sleep(SETTLED);
        eventually("all threads sleep", || {
            let mut tasks = process.tasks().unwrap().flatten();
            tasks.all(|task| task.stat().is_ok_and(|stat| stat.state == 'S'))
        });
    };
    // After these events, the user is known, and buffers have their final places.
    (0..10).for_each(|round| let_count(round % SHARDS));
    let mut before = memory(&process);
    let [first, second] = [0, 1].map(|shard| {
        let_count(shard);
        let after = memory(&process);
        let written = changed(&before, &after);
        assert!(written.len() > 10, "{written:x?}: a shard writes its counters at least");
        before = after;
        written
    });
    // Most of these are written by a tick, or by a clock.
    let suspects: Vec<u64> = first.into_iter().filter(|line| second.contains(line)).collect();
    // A shard also writes something a while after its last event, which must not count as the other shard's.
    const NOBODY: usize = SHARDS;
    let mut changes = vec![[0; SHARDS + 1]; suspects.len()];
    for who in [0, NOBODY, 1] {
        let mut intervals = 0;
        for _ in 0..ROUNDS_MAX {
            let (start, before) = (Instant::now(), read(&process, &suspects));
            let_count(who);
            let after = read(&process, &suspects);
            if start.elapsed() < SHORT {
                intervals += 1;
                let pairs = std::iter::zip(before, after).enumerate();
                pairs.for_each(|(at, (old, new))| changes[at][who] += usize::from(old != new));
            }
            if intervals == ROUNDS {
                break;
            }
        }
        if intervals < ROUNDS {
            println!("nothing was checked, because the machine is too busy");
            return;
        }
    }
    for (line, [first, second, by_nobody]) in suspects.iter().zip(changes) {
        let is_shared = first.min(second) > ROUNDS / 2 && by_nobody < ROUNDS / 2;
        assert!(
            !is_shared,
            "both shards write the line at {line:x}, {first} and {second} of {ROUNDS} times, and {by_nobody} times without an \
             event: {:?}",
            map_of(&process, *line)
        );
    }
}
