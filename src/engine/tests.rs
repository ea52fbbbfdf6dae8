//! Both engines on real sockets, in shards that the tests start themselves, and
//! the ring with faults.

#![allow(clippy::unwrap_used, reason = "a panic is a failure")]

mod closing;
mod drain;
mod durable;
mod shared;

use super::*;
use crate::http::Timeouts;
use crate::log::Log;
use crate::metrics::Reporter;
use crate::service::Policy;
use crate::tally::{Tally, Totals, Writer};
use crate::uring::faults::{self, Fault};
use crate::uring::{self, Sizes};
use glommio::{LocalExecutorBuilder, Placement};
use proptest::prelude::*;
use socket2::{Domain, SockRef, Type};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::mpsc::channel;
use std::time::Instant;

const PATIENCE: Duration = Duration::from_secs(20);

/// An engine, and the sizes of its ring.
#[derive(Clone, Copy, Debug)]
enum Engine {
    Streams,
    Ring { submissions: u32, completions: u32, buffers: u16, coalesces: bool },
}

const RING: Engine =
    Engine::Ring { submissions: 64, completions: 256, buffers: 64, coalesces: false };

/// Returns how long an engine gathers completions, if this kernel can.
fn coalesce(engine: Engine) -> Duration {
    let coalesces = matches!(engine, Engine::Ring { coalesces: true, .. }) && uring::gathers();
    Duration::from_micros(if coalesces { 200 } else { 0 })
}

fn wakeups(shards: usize) -> Vec<Arc<Wakeup>> {
    (0..shards).map(|_| Arc::new(Wakeup::new().unwrap())).collect()
}

/// Runs shards while `client` talks to them, then stops them. Returns the totals that they have
/// counted and the faults that they have met.
fn with_shards(
    engine: Engine,
    shards: usize,
    send_buffer_bytes: Option<usize>,
    client: impl FnOnce(SocketAddr, &Admission),
) -> (Totals, BTreeSet<Fault>) {
    let (tally, writers) = Tally::new(shards, 1000);
    let wakeups = wakeups(shards);
    let met = with_services(
        engine,
        &wakeups,
        send_buffer_bytes,
        writers,
        |_, _| (),
        |address, admission, _| {
            client(address, admission);
        },
    );
    (tally.totals(), met)
}

const LIMITS: Limits = Limits {
    body_bytes_max: 1000,
    batch_bytes_max: 8 << 20,
    timeouts: Timeouts { header_ms: 20_000, body_ms: 20_000, idle_ms: 20_000 },
};

/// Opens a listener that can share its address with other listeners.
fn listen(address: SocketAddr, send_buffer_bytes: Option<usize>) -> Socket {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.set_reuse_port(true).unwrap();
    listener.set_nonblocking(true).unwrap();
    if let Some(bytes) = send_buffer_bytes {
        listener.set_send_buffer_size(bytes).unwrap();
    }
    listener.bind(&address.into()).unwrap();
    listener.listen(1024).unwrap();
    listener
}

/// Runs shards like [`with_shards`], but with the caller's writers, and with services that `set_up`
/// changes before they start.
fn with_services(
    engine: Engine,
    wakeups: &[Arc<Wakeup>],
    send_buffer_bytes: Option<usize>,
    writers: Vec<Writer>,
    set_up: impl Fn(usize, &mut Service),
    client: impl FnOnce(SocketAddr, &Admission, &Stop),
) -> BTreeSet<Fault> {
    let shards = wakeups.len();
    let admission = Admission::new(1000, REJECTED_MIN, wakeups, Steer::Hash, Log::Text);
    let stop = Stop::new(wakeups.to_vec());
    let mut address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (ready, is_ready) = channel();
    let (met, all_met) = channel();
    let mut threads = Vec::new();
    let metrics = Reporter::for_shards(shards, "test");
    for (index, (writer, metrics)) in writers.into_iter().zip(metrics).enumerate() {
        let listener = listen(address, send_buffer_bytes);
        address = listener.local_addr().unwrap().as_socket().unwrap();
        let policy = Policy::new("127.0.0.1");
        let mut service = Service::new(writer, metrics, policy, 0);
        set_up(index, &mut service);
        let shard = Shard {
            index,
            listener,
            is_listener_shared: false,
            service,
            limits: LIMITS,
            wakeup: Arc::clone(&wakeups[index]),
            admission: Arc::clone(&admission),
            stop: Arc::clone(&stop),
            drain_timeout: Duration::from_secs(5),
            spin: Spin::Auto,
            coalesce: coalesce(engine),
            busy_poll: Duration::ZERO,
            heartbeat: Arc::default(),
        };
        let (ready, met) = (ready.clone(), met.clone());
        let run = move || async move {
            let ready = || ready.send(()).unwrap();
            match engine {
                Engine::Streams => drop(streams::run(shard, ready).await.unwrap()),
                Engine::Ring { submissions, completions, buffers, .. } => {
                    let sizes = Sizes { submissions, completions, buffers };
                    faults::begin();
                    ring::run_with(&sizes, shard, ready).await.unwrap();
                }
            }
            met.send(faults::met()).unwrap();
        };
        threads.push(LocalExecutorBuilder::new(Placement::Unbound).spawn(run).unwrap());
    }
    drop(met);
    (0..shards).for_each(|_| is_ready.recv_timeout(PATIENCE).unwrap());
    client(address, &admission, &stop);
    stop.escalate_to(Urgency::Drain);
    let met = (0..shards).flat_map(|_| all_met.recv_timeout(PATIENCE).unwrap()).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(Arc::strong_count(&admission), 1, "every connection has given its permit back");
    met
}

/// Connects a client with little room for responses, so that the server soon has to wait for it.
fn connect(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&address.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

const EVENT: &[u8] =
    b"POST /event HTTP/1.1\r\nHost: h\r\nContent-Length: 24\r\n\r\n{\"userId\":\"u\",\"value\":1}";
const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n";

/// Reads `count` responses and returns the lengths of their bodies in bytes.
fn read_responses(stream: &mut TcpStream, count: usize) -> Vec<usize> {
    let mut lengths = Vec::new();
    let mut bytes = Vec::new();
    while lengths.len() < count {
        let mut piece = [0; 4096];
        let read = stream.read(&mut piece).unwrap();
        assert!(read > 0, "closed after {} responses of {count}", lengths.len());
        bytes.extend_from_slice(&piece[..read]);
        while let Some(end) = memchr::memmem::find(&bytes, b"\r\n\r\n") {
            let head = std::str::from_utf8(&bytes[..end]).unwrap();
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
            let length = head.split("Content-Length: ").nth(1).unwrap();
            let length: usize = length.split('\r').next().unwrap().parse().unwrap();
            if bytes.len() < end + 4 + length {
                break;
            }
            bytes.drain(..end + 4 + length);
            lengths.push(length);
        }
    }
    assert!(bytes.is_empty(), "nothing but responses");
    lengths
}

#[test]
fn connections_are_spread_evenly_over_shards() {
    for engine in [RING, Engine::Streams] {
        let (totals, _) = with_shards(engine, 4, None, |address, admission| {
            let mut streams = Vec::new();
            for round in 1..=16 {
                let mut stream = connect(address);
                // Once it has a response, its shard is final.
                stream.write_all(EVENT).unwrap();
                read_responses(&mut stream, 1);
                streams.push(stream);
                let open = admission.open_by_shard();
                let (fewest, most) = (open.iter().min().unwrap(), open.iter().max().unwrap());
                assert!(most - fewest <= 1, "{engine:?} after {round}: {open:?}");
            }
            // Connections leave, and new ones take their place.
            drop(streams.split_off(8));
            let end = Instant::now() + PATIENCE;
            while admission.open_by_shard().iter().sum::<usize>() > 8 {
                assert!(Instant::now() < end, "{:?}", admission.open_by_shard());
                std::thread::sleep(Duration::from_millis(1));
            }
            for _ in 0..8 {
                let mut stream = connect(address);
                stream.write_all(EVENT).unwrap();
                read_responses(&mut stream, 1);
                streams.push(stream);
            }
            assert_eq!(admission.open_by_shard(), [4; 4], "{engine:?}");
        });
        assert_eq!(totals.total_requests, 24, "{engine:?}");
    }
}

/// The actions of one client.
#[derive(Clone, Debug)]
struct Script {
    requests: usize,
    /// The number of bytes per write.
    piece: usize,
    /// Whether it does not read before it has written everything that the server takes.
    reads_late: bool,
    /// Whether it ends with a reset instead of reading.
    resets: bool,
}

fn script() -> impl Strategy<Value = Script> {
    (1..400usize, 1..5000usize, any::<bool>(), prop::bool::weighted(0.2)).prop_map(
        |(requests, piece, reads_late, resets)| Script { requests, piece, reads_late, resets },
    )
}

impl Script {
    /// Plays the script. Returns how many events were acknowledged.
    fn play(&self, address: SocketAddr) -> usize {
        let mut stream = connect(address);
        let kinds: Vec<bool> = (0..self.requests).map(|request| request % 3 != 0).collect();
        let bytes: Vec<u8> = kinds
            .iter()
            .flat_map(|is_event| if *is_event { EVENT } else { HEALTH })
            .copied()
            .collect();
        if self.resets {
            stream.write_all(&bytes[..bytes.len().min(self.piece)]).unwrap();
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            return 0;
        }
        let mut writing = stream.try_clone().unwrap();
        let lengths = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                bytes.chunks(self.piece).for_each(|piece| writing.write_all(piece).unwrap());
            });
            if self.reads_late {
                std::thread::sleep(Duration::from_millis(20));
            }
            let lengths = read_responses(&mut stream, self.requests);
            writer.join().unwrap();
            lengths
        });
        let health = r#"{"status":"healthy"}"#.len();
        let expected: Vec<_> =
            kinds.iter().map(|is_event| if *is_event { 0 } else { health }).collect();
        assert_eq!(lengths, expected, "every request has its response, in order");
        kinds.iter().filter(|is_event| **is_event).count()
    }
}

/// Plays scripts concurrently. Returns the faults that the shard has met.
fn play_all(
    engine: Engine,
    send_buffer_bytes: Option<usize>,
    scripts: &[Script],
) -> BTreeSet<Fault> {
    let mut acknowledged = 0;
    let (totals, met) = with_shards(engine, 1, send_buffer_bytes, |address, _| {
        acknowledged = std::thread::scope(|scope| {
            let clients: Vec<_> =
                scripts.iter().map(|script| scope.spawn(|| script.play(address))).collect();
            clients.into_iter().map(|client| client.join().unwrap()).sum()
        });
    });
    let resets = scripts.iter().filter(|script| script.resets);
    let in_doubt: usize = resets.map(|script| script.requests).sum();
    let range = acknowledged as u64..=(acknowledged + in_doubt) as u64;
    assert!(range.contains(&totals.total_requests), "{range:?}: {totals:?}");
    assert_eq!(totals.sum, totals.total_requests as f64);
    met
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_fault_of_a_ring_loses_or_repeats_an_event(
        submissions in 0..4u32,
        completions in 1..5u32,
        buffers in 0..4u16,
        coalesces in any::<bool>(),
        send_buffer_bytes in 1000..20_000usize,
        scripts in prop::collection::vec(script(), 1..8),
    ) {
        let engine = Engine::Ring {
            submissions: 1 << submissions,
            completions: 1 << (submissions + completions),
            buffers: 1 << buffers,
            coalesces,
        };
        play_all(engine, Some(send_buffer_bytes), &scripts);
    }
}

/// Ensures that the test above does not pass merely because nothing went wrong:
/// each fault is met here.
#[test]
fn a_tiny_ring_meets_every_fault_and_goes_on() {
    let engine = Engine::Ring { submissions: 1, completions: 2, buffers: 1, coalesces: false };
    let script = Script { requests: 2000, piece: 3000, reads_late: true, resets: false };
    let mut scripts = vec![script.clone(); 12];
    scripts.push(Script { resets: true, ..script });
    let all = BTreeSet::from([
        Fault::NoBuffers,
        Fault::Cancelled,
        Fault::Reset,
        Fault::ShortSend,
        Fault::FullSubmissionQueue,
        Fault::FullCompletionQueue,
    ]);
    let mut met = BTreeSet::new();
    for _ in 0..10 {
        met.append(&mut play_all(engine, Some(1000), &scripts));
        if met == all {
            return;
        }
    }
    panic!("only {met:?}");
}

#[test]
fn the_streams_engine_loses_and_repeats_no_event() {
    let script = Script { requests: 2000, piece: 3000, reads_late: true, resets: false };
    let mut scripts = vec![script.clone(); 4];
    scripts.push(Script { resets: true, ..script });
    play_all(Engine::Streams, Some(1000), &scripts);
}

#[test]
fn a_stop_wakes_every_shard_and_never_becomes_less_urgent() {
    let wakeups = wakeups(2);
    let stop = Stop::new(wakeups.clone());
    assert_eq!(stop.urgency(), Urgency::Serve);
    stop.escalate_to(Urgency::Drain);
    assert_eq!(stop.urgency(), Urgency::Drain);
    stop.escalate_to(Urgency::Abort);
    stop.escalate_to(Urgency::Drain);
    assert_eq!(stop.urgency(), Urgency::Abort);
    for wakeup in wakeups {
        let mut count = [0; 8];
        rustix::io::read(wakeup, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 3);
    }
}
