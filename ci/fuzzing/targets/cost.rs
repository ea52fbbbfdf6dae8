//! Cost per byte: no input takes much longer than its charge allows, and a connection stops when its budget is spent. The
//! search is led to input that is charged the most per byte, and to input that takes the longest compared with its charge.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringtally::connection::{Connection, Moment, Next};
use ringtally::http::{Budget, Limits, Timeouts};
use ringtally::metrics::Reporter;
use ringtally::service::{Policy, Service};
use ringtally::tally::Tally;
use rustix::time::{ClockId, clock_gettime};
use std::sync::LazyLock;

/// The largest factor by which input may take longer than a usual event, compared with its charge.
const FACTOR: f64 = 6.0;
/// The nanoseconds that the clock and the caches may add.
const SLACK_NS: f64 = 100_000.0;
/// The number of times that the input is sent.
const REPEATED: usize = 8;

/// Counters that libFuzzer treats as coverage: one that changes is news.
#[unsafe(link_section = "__libfuzzer_extra_counters")]
static mut COUNTERS: [u8; 128] = [0; 128];

/// Notes that a value, in quarters of a power of two, was reached.
fn reached(first: usize, value: f64) {
    let step = (value.max(1.0).log2() * 4.0) as usize;
    #[expect(unsafe_code, reason = "libFuzzer reads it between two runs, on the same thread")]
    // SAFETY: in bounds, and nothing else refers to it while the target runs.
    unsafe {
        (&raw mut COUNTERS).cast::<u8>().add(first + step.min(63)).write(1);
    }
}

/// Returns the CPU time of this thread in nanoseconds.
fn cpu_ns() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// Returns the nanoseconds and the units that a connection takes for some bytes. The nanoseconds are the least of
/// several tries.
fn cost(wire: &[u8]) -> (f64, f64) {
    let (mut ns, mut units) = (f64::MAX, 0.0);
    for _ in 0..3 {
        let (_, mut writers) = Tally::new(1, 1_000_000);
        let reporter = Reporter::for_shards(1, "none").remove(0);
        let mut service = Service::new(writers.remove(0), reporter, Policy::new("h"), 0);
        let timeouts = Timeouts { header_ms: 50, body_ms: 70, idle_ms: 90 };
        let limits = Limits { body_bytes_max: 16 * 1024, batch_bytes_max: 1 << 20, timeouts };
        let mut connection = Connection::new(limits, true, 0);
        let (mut charged, started) = (0, cpu_ns());
        for piece in wire.chunks(4096) {
            connection.receive(piece, &Moment::START, &mut service);
            loop {
                connection.work(&Moment::START, &mut service);
                service.publish();
                let action = connection.action(&Moment::START, &mut service);
                let used = connection.renew();
                // The budget may be exceeded by at most one request, and that fits in one of these pieces.
                assert!(used <= Budget::UNITS + 200_000, "{used} units at once");
                charged += used;
                if action.send > 0 {
                    connection.take_responses(action.send, 0);
                    connection.note_sent(action.send);
                } else if !action.has_work {
                    break;
                }
            }
            if matches!(connection.next(), Next::Close | Next::ShutDownWrite) {
                break;
            }
        }
        ns = ns.min(cpu_ns() - started);
        units = f64::from(charged);
    }
    (ns, units)
}

fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// The nanoseconds that a unit takes in this program, in which everything is instrumented.
static UNIT_NS: LazyLock<f64> = LazyLock::new(|| {
    let wire = post("/event", br#"{"userId":"user_1","value":499.5}"#).repeat(500);
    let (ns, units) = cost(&wire);
    ns / units
});

fuzz_target!(|data: &[u8]| {
    // The first byte determines the kind of the others.
    let Some((kind, input)) = data.split_first() else { return };
    let wire = match kind % 4 {
        0 => input.repeat(REPEATED),
        1 => post("/event", input).repeat(REPEATED),
        2 => post("/events", &input.repeat(REPEATED)),
        _ => post("/events", &[input, b"\n"].concat().repeat(REPEATED)),
    };
    let unit_ns = *UNIT_NS;
    let (ns, units) = cost(&wire);
    reached(0, units / wire.len().max(1) as f64 * 16.0);
    reached(64, ns / (units * unit_ns) * 16.0);
    let allowed = FACTOR * unit_ns * units + SLACK_NS;
    assert!(ns <= allowed, "{ns:.0} ns for {units} units of {unit_ns:.2} ns");
});
