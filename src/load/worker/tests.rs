use super::*;
use crate::load::part::Part;
use crate::load::profile::Profile;
use crate::load::schedule::Pace;
use crate::load::shared::{Crowd, KeepAlive, Progress};
use crate::load::workload::{Form, UserPrefix, Values};
use crossbeam_utils::CachePadded;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc::channel;
use std::sync::{Barrier, OnceLock};

/// Returns an open loop of one thread and one connection, to an address without a listener.
fn run() -> Run {
    let workload = Workload { events: 1000, users: 10, values: Values::One, batch: None };
    let rate: Profile = "1000".parse().unwrap();
    Run {
        workload,
        part: Part::WHOLE,
        address: "127.0.0.1:1".parse().unwrap(),
        form: Form::new(Vec::new(), &UserPrefix::default()),
        depth: 1,
        pace: Some(Pace::new(&rate, None, &workload)),
        duration: None,
        crowd: Crowd { most: 1, over_time: None },
        timeout: Duration::from_secs(1),
        warm_up: 0,
        threads: 1,
        keep_alive: KeepAlive::new(true),
        starts_at: OnceLock::new(),
        is_called_off: AtomicBool::new(false),
        aborted_by: OnceLock::new(),
        next: [AtomicU64::new(0), AtomicU64::new(0)],
        late: AtomicU64::new(0),
        progress: vec![CachePadded::new(Progress::default())],
        gate: Barrier::new(1),
    }
}

/// The warm-up took 100 s, and the thread cannot start to measure. Only a few events were due in its first moments, and
/// none of them has waited long.
#[test]
fn what_could_not_start_is_on_the_clock_of_its_own_phase() {
    let (run, (sender, _slices)) = (run(), channel());
    let mut worker = Worker::new(&run, 0, 1, sender).unwrap();
    worker.started = Instant::now().checked_sub(Duration::from_secs(100)).unwrap();
    worker.now_ns = worker.clock_ns();
    worker.stamp_ns = worker.now_ns;
    worker.is_measured = true;
    worker.schedule = worker.measured_schedule();
    let found = worker.phase(Err("the ring is broken".into()));
    assert_eq!(found.failure.as_deref(), Some("the ring is broken"));
    assert_eq!(found.work.ledger.not_sent(&run.workload, false), 1000);
    let longest = worker.slice.latency.max().map_or(0.0, |max| max.micros);
    assert!(longest < 50e6, "{longest} µs");
}

#[test]
fn a_reader_finds_what_parsing_finds_whatever_came_before() {
    use crate::load::response::read;
    let responses: [&[u8]; 9] = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n\n",
        b"HTTP/1.1 201 OK\r\nContent-Length: 15\r\n\r\n{\"accepted\":10}",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
        b"garbage\r\n\r\n",
    ];
    let mut random = fastrand::Rng::with_seed(8);
    let mut reader = Reader::default();
    let mut again = 0;
    for _ in 0..50_000 {
        let mut wire: Vec<u8> =
            (0..random.usize(1..4)).flat_map(|_| responses[random.usize(0..9)]).copied().collect();
        wire.truncate(random.usize(0..=wire.len()));
        let at_end = random.u8(0..4) == 0;
        let expected = read(&wire, at_end);
        assert_eq!(reader.read(&wire, at_end), expected, "{}", String::from_utf8_lossy(&wire));
        again += u32::from(reader.read(&wire, at_end) == expected && expected != Ok(None));
    }
    assert!(again > 20_000, "{again}");
}
