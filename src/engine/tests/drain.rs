//! Stops before the ring has reported everything that arrived: a thread is held while clients act.

use super::closing::padded;
use super::*;
use crate::connection::DRAIN_QUIET_MS;
use crate::uring::BUFFER_BYTES;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, Sender};

/// The thread of a shard that a test holds.
struct Hold {
    is_held: Arc<AtomicBool>,
    /// Reports that the thread waits for a grant of its next turn.
    waits: Receiver<()>,
    grants: Sender<()>,
    stop: Arc<Stop>,
}

impl Hold {
    /// Holds the thread once the engine lets other tasks have their turn.
    fn hold(&self) {
        self.is_held.store(true, Ordering::Relaxed);
        self.waits.recv_timeout(PATIENCE).unwrap();
    }

    /// Lets the engine continue until it lets other tasks have their turn again.
    fn step(&self) {
        self.grants.send(()).unwrap();
        self.waits.recv_timeout(PATIENCE).unwrap();
    }
}

/// Runs a shard on a ring. `client` may hold its thread. Then lets the thread go and waits for its end. Returns
/// the number of events.
fn with_held(client: impl FnOnce(SocketAddr, Hold) -> Vec<TcpStream>) -> u64 {
    let (tally, mut writers) = Tally::new(1, 1000);
    let wakeups = wakeups(1);
    let listener = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), None);
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let metrics = Reporter::for_shards(1, "test").remove(0);
    let stop = Stop::new(wakeups.clone());
    let shard = Shard {
        index: 0,
        listener,
        is_listener_shared: false,
        service: Service::new(writers.remove(0), metrics, Policy::new("127.0.0.1"), 0),
        limits: LIMITS,
        wakeup: Arc::clone(&wakeups[0]),
        admission: Admission::new(1000, REJECTED_MIN, &wakeups, Steer::Hash, Log::Text),
        stop: Arc::clone(&stop),
        drain_timeout: PATIENCE,
        spin: Spin::Fixed(Duration::ZERO),
        coalesce: Duration::ZERO,
        busy_poll: Duration::ZERO,
        heartbeat: Arc::default(),
    };
    let is_held = Arc::new(AtomicBool::new(false));
    let (ready, is_ready) = channel();
    let (waiting, waits) = channel();
    let (grants, granted) = channel();
    let run = {
        let is_held = Arc::clone(&is_held);
        move || async move {
            let holding = glommio::spawn_local(async move {
                loop {
                    if is_held.load(Ordering::Relaxed) {
                        let _ = waiting.send(());
                        if granted.recv().is_err() {
                            break;
                        }
                    }
                    glommio::executor().yield_now().await;
                }
            });
            let ready = || ready.send(()).unwrap();
            let sizes = Sizes { submissions: 64, completions: 256, buffers: 64 };
            let drained = ring::run_with(&sizes, shard, ready).await.unwrap();
            holding.cancel().await;
            drained
        }
    };
    let thread = LocalExecutorBuilder::new(Placement::Unbound).spawn(run).unwrap();
    is_ready.recv_timeout(PATIENCE).unwrap();
    let hold = Hold { is_held, waits, grants, stop };
    let streams = client(address, hold);
    for mut stream in streams {
        read_responses(&mut stream, 1);
    }
    assert_eq!(thread.join().unwrap().cut, 0);
    tally.totals().total_requests
}

/// Connects, sends an event, and reads its response, then holds the thread once its drain has begun.
fn connect_before_drain(address: SocketAddr, hold: &Hold) -> TcpStream {
    let mut stream = connect(address);
    stream.write_all(EVENT).unwrap();
    read_responses(&mut stream, 1);
    hold.hold();
    hold.stop.escalate_to(Urgency::Drain);
    // The drain begins here.
    hold.step();
    stream
}

#[test]
fn a_stop_takes_in_who_has_connected_before() {
    let events = with_held(|address, hold| {
        let mut first = connect(address);
        first.write_all(EVENT).unwrap();
        read_responses(&mut first, 1);
        hold.hold();
        let mut streams: Vec<TcpStream> = (0..5).map(|_| connect(address)).collect();
        streams.iter_mut().for_each(|stream| stream.write_all(EVENT).unwrap());
        hold.stop.escalate_to(Urgency::Drain);
        streams
    });
    assert_eq!(events, 6);
}

#[test]
fn a_drain_sees_what_has_arrived_before_it_closes_a_connection() {
    let events = with_held(|address, hold| {
        let mut stream = connect_before_drain(address, &hold);
        stream.write_all(EVENT).unwrap();
        std::thread::sleep(Duration::from_millis(2 * DRAIN_QUIET_MS));
        // The drain checks the clock before it checks the ring.
        hold.step();
        vec![stream]
    });
    assert_eq!(events, 2);
}

#[test]
fn a_drain_responds_to_what_is_still_in_the_socket() {
    let events = with_held(|address, hold| {
        let mut stream = connect_before_drain(address, &hold);
        // The first buffer that is received ends with a request.
        stream.write_all(&[&padded(EVENT, BUFFER_BYTES), EVENT].concat()).unwrap();
        drop(hold);
        read_responses(&mut stream, 2);
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "and then the end");
        Vec::new()
    });
    assert_eq!(events, 3);
}
