//! The ring itself: wake-ups, timers, a full queue, and an end while everything is in progress.

#![allow(clippy::unwrap_used, reason = "a panic is a failure")]

use super::*;
use socket2::{Domain, Type};
use std::io::{Read, Write};
use std::sync::mpsc::channel;

const SMALL: Sizes = Sizes { submissions: 2, completions: 4, buffers: 2 };
/// Longer than anything here takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn pair(ring: &mut Uring<usize>, number: usize) -> (Socket, Key) {
    let (ours, theirs) = Socket::pair(Domain::UNIX, Type::STREAM, None).unwrap();
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    (theirs, ring.insert(ours, number))
}

/// Iterates until `wanted` has counted this many events.
fn count_events(ring: &mut Uring<usize>, count: usize, mut wanted: impl FnMut(&Event) -> bool) {
    let end = Instant::now() + PATIENCE;
    let mut found = 0;
    while found < count {
        assert!(Instant::now() < end, "{found} of {count}");
        ring.iterate(Wait::For(Duration::from_millis(100))).unwrap();
        while let Some(event) = ring.next_event() {
            found += usize::from(wanted(&event));
            if let Event::Received(_, filled) = event {
                ring.give_back(filled);
            }
        }
    }
}

/// The defect that this layer guards against: a kernel that loses wake-ups loses most of them.
#[test]
fn a_waiting_ring_hears_every_wakeup_at_once() {
    let mut ring: Uring<usize> = Uring::new(&SMALL, Issuer::ThisThread).unwrap();
    let wakeup = Arc::new(Wakeup::new().unwrap());
    ring.watch(Arc::clone(&wakeup));
    let (waits, hears) = channel::<()>();
    let waker = std::thread::spawn(move || {
        while hears.recv().is_ok() {
            std::thread::sleep(Duration::from_millis(1));
            wakeup.wake();
        }
    });
    let mut late = 0;
    for _ in 0..100 {
        waits.send(()).unwrap();
        let started = Instant::now();
        while !matches!(ring.next_event(), Some(Event::Woken)) {
            ring.iterate(Wait::For(Duration::from_secs(1))).unwrap();
        }
        late += usize::from(started.elapsed() > Duration::from_millis(500));
    }
    drop(waits);
    waker.join().unwrap();
    assert_eq!(late, 0, "of 100 wake-ups");
}

#[test]
fn a_wakeup_that_comes_before_the_wait_is_kept_and_several_count_as_one() {
    let mut ring: Uring<usize> = Uring::new(&SMALL, Issuer::ThisThread).unwrap();
    let wakeup = Arc::new(Wakeup::new().unwrap());
    (0..3).for_each(|_| wakeup.wake());
    ring.watch(Arc::clone(&wakeup));
    count_events(&mut ring, 1, |event| matches!(event, Event::Woken));
    ring.iterate(Wait::For(Duration::from_millis(20))).unwrap();
    assert!(ring.next_event().is_none());
    wakeup.wake();
    count_events(&mut ring, 1, |event| matches!(event, Event::Woken));
}

#[test]
fn a_bounded_wait_ends_in_its_time_and_the_timer_can_be_set_again() {
    let mut ring: Uring<usize> = Uring::new(&SMALL, Issuer::ThisThread).unwrap();
    let started = Instant::now();
    ring.iterate(Wait::For(Duration::from_millis(30))).unwrap();
    assert!(ring.next_event().is_none());
    assert!(started.elapsed() >= Duration::from_millis(30));
    for _ in 0..3 {
        ring.set_timer(Duration::from_millis(1));
        count_events(&mut ring, 1, |event| matches!(event, Event::Timer));
    }
}

/// Forty connections share a submission queue of two: nothing is refused, and nothing is lost.
#[test]
fn operations_that_find_the_queue_full_wait_in_line() {
    let mut ring: Uring<usize> = Uring::new(&SMALL, Issuer::ThisThread).unwrap();
    let mut peers: Vec<_> = (0..40).map(|number| pair(&mut ring, number)).collect();
    for (number, (_, key)) in peers.iter().enumerate() {
        ring.receive(*key);
        ring.send(*key, vec![u8::try_from(number).unwrap(); 100]);
    }
    assert!(!ring.waiting.is_empty());
    count_events(&mut ring, 40, |event| matches!(event, Event::Sent(..)));
    assert!(ring.waiting.is_empty());
    for (number, (peer, _)) in peers.iter_mut().enumerate() {
        let mut got = [0; 100];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(usize::from(got[99]), number);
        peer.write_all(b"x").unwrap();
    }
    // More bytes arrive together than there are buffers for: connections that did not find one receive again.
    let (mut received, end) = (0, Instant::now() + PATIENCE);
    while received < 40 {
        assert!(Instant::now() < end, "{received} of 40");
        ring.iterate(Wait::For(Duration::from_millis(100))).unwrap();
        while let Some(event) = ring.next_event() {
            match event {
                Event::Received(_, filled) => {
                    received += 1;
                    ring.give_back(filled);
                }
                Event::ReceiveStopped(key, NoBuffers(true)) => ring.receive(key),
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Whether the peer takes all or nothing immediately, it gets every byte, and each send ends once.
#[test]
fn sends_without_a_completion_end_with_whatever_ends_a_wait_and_lose_nothing() {
    let mut ring: Uring<usize> = Uring::new(&SMALL, Issuer::ThisThread).unwrap();
    let (mut quick, other) = pair(&mut ring, 0);
    ring.send_skipping_completion(other, b"first".to_vec());
    let started = Instant::now();
    ring.iterate(Wait::For(Duration::from_millis(30))).unwrap();
    assert!(started.elapsed() >= Duration::from_millis(30), "its success ends no wait");
    assert!(matches!(ring.next_event(), Some(Event::Sent(key, _)) if key == other));
    assert!(ring.next_event().is_none());
    let mut got = [0; 5];
    quick.read_exact(&mut got).unwrap();
    // More than the socket takes: the rest follows as the peer reads.
    let (mut slow, full) = pair(&mut ring, 1);
    let bytes: Vec<u8> = (0..4_000_000u32).map(|at| (at % 251) as u8).collect();
    ring.send_skipping_completion(full, bytes.clone());
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; 4_000_000];
        slow.read_exact(&mut got).unwrap();
        got
    });
    count_events(&mut ring, 1, |event| matches!(event, Event::Sent(key, _) if *key == full));
    assert!(reader.join().unwrap() == bytes);
    // The peer is gone: the failure ends a wait, and closing does not wait for anything.
    let (gone, failing) = pair(&mut ring, 2);
    drop(gone);
    ring.send_skipping_completion(failing, b"last".to_vec());
    count_events(&mut ring, 1, |event| matches!(event, Event::SendFailed(key) if *key == failing));
    ring.send_skipping_completion(other, b"again".to_vec());
    for key in [other, full, failing] {
        ring.close(key);
    }
    ring.iterate(Wait::For(Duration::from_millis(30))).unwrap();
    assert!(ring.next_event().is_none());
    assert!(ring.is_empty() && ring.under_way == 0);
}

#[test]
fn a_slot_is_vacated_only_when_its_operations_have_ended_and_reports_nothing_more() {
    let mut ring: Uring<usize> = Uring::new(&SMALL, Issuer::ThisThread).unwrap();
    let (mut peer, key) = pair(&mut ring, 7);
    ring.receive_multishot(key);
    ring.iterate(Wait::No).unwrap();
    peer.write_all(b"late").unwrap();
    ring.close(key);
    assert!(ring.get_mut(key).is_none(), "closed for its owner");
    assert!(!ring.is_empty(), "the receive is under way");
    while !ring.is_empty() {
        ring.iterate(Wait::For(PATIENCE)).unwrap();
        assert!(ring.next_event().is_none());
    }
    assert_eq!(ring.under_way, 0);
    assert_eq!(peer.read(&mut [0]).unwrap(), 0, "the descriptor is closed");
}

#[test]
fn a_cancel_that_has_failed_is_tried_again() {
    let mut ring: Uring<usize> = Uring::new(&SMALL, Issuer::ThisThread).unwrap();
    let (mut peer, key) = pair(&mut ring, 0);
    ring.receive_multishot(key);
    ring.iterate(Wait::No).unwrap();
    faults::fail_cancels(2);
    let mut received = 0;
    let end = Instant::now() + PATIENCE;
    'receiving: loop {
        assert!(Instant::now() < end, "the receive is never over");
        ring.stop_receiving(key);
        // Whatever happens to the cancel, the peer continues.
        peer.write_all(b"more").unwrap();
        ring.iterate(Wait::For(Duration::from_millis(100))).unwrap();
        while let Some(event) = ring.next_event() {
            match event {
                Event::Received(_, filled) => {
                    received += 1;
                    ring.give_back(filled);
                }
                Event::ReceiveStopped(..) => break 'receiving,
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(received >= 2, "it went on after each cancel that failed: {received}");
    assert!(!ring.slot(key).unwrap().is_receiving);
}

/// This imitates a kernel whose multishot accept may report something that is not a descriptor.
#[test]
fn connections_are_accepted_one_by_one() {
    let mut ring: Uring<usize> = Uring::new(&SMALL, Issuer::ThisThread).unwrap();
    ring.accepts_once = true;
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(64).unwrap();
    let address = listener.local_addr().unwrap();
    ring.listen(listener, false);
    let peers: Vec<_> = (0..10)
        .map(|_| {
            let peer = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            peer.connect(&address).unwrap();
            peer
        })
        .collect();
    let mut accepted = Vec::new();
    let end = Instant::now() + PATIENCE;
    while accepted.len() < peers.len() {
        assert!(Instant::now() < end, "{} of {}", accepted.len(), peers.len());
        ring.iterate(Wait::For(Duration::from_millis(100))).unwrap();
        while let Some(event) = ring.next_event() {
            match event {
                Event::Accepted(socket) => accepted.push(socket.peer_addr().unwrap()),
                other => panic!("{other:?}"),
            }
        }
    }
    let of_peers = peers.iter().map(|peer| peer.local_addr().unwrap());
    assert!(of_peers.into_iter().all(|peer| accepted.contains(&peer)));
    ring.close_listener();
    while ring.is_accepting() {
        ring.iterate(Wait::For(PATIENCE)).unwrap();
        while ring.next_event().is_some() {}
    }
    assert_eq!(ring.under_way, 0);
}

#[test]
fn releases_whose_multishot_accept_is_not_to_be_trusted_are_known() {
    for (release, once) in [
        ("6.5.13-generic", false),
        ("6.6.0", true),
        ("6.6.44-microsoft-standard-WSL2", true),
        ("6.7-rc1", true),
        ("6.8.0", false),
        ("6.60.1", false),
        ("5.6.7", false),
        ("", false),
    ] {
        assert_eq!(accepts_once(release), once, "{release}");
    }
}

#[test]
fn a_dropped_ring_ends_everything_that_is_under_way() {
    let mut ring: Uring<usize> = Uring::new(&SMALL, Issuer::ThisThread).unwrap();
    ring.watch(Arc::new(Wakeup::new().unwrap()));
    ring.set_timer(Duration::from_secs(3600));
    let mut peers: Vec<_> = (0..10).map(|number| pair(&mut ring, number)).collect();
    for (_, key) in &peers {
        ring.receive(*key);
        // More than a socket takes.
        ring.send(*key, vec![0; 4 << 20]);
    }
    ring.iterate(Wait::No).unwrap();
    ring.end_operations();
    assert_eq!(ring.under_way, 0);
    drop(ring);
    for (peer, _) in &mut peers {
        // The bytes that were sent come first, and then the end.
        let mut rest = Vec::new();
        peer.read_to_end(&mut rest).unwrap();
    }
}

/// Returns the number of completions of a wait that gathers, and the time that it took.
fn gather(ring: &mut Uring<usize>, time: Duration) -> (usize, Duration) {
    let started = Instant::now();
    let completions = ring.iterate(Wait::Gather(time)).unwrap();
    while let Some(event) = ring.next_event() {
        if let Event::Received(_, filled) = event {
            ring.give_back(filled);
        }
    }
    (completions, started.elapsed())
}

#[test]
fn a_wait_gathers_for_its_time_or_until_there_are_enough_and_then_waits_for_one() {
    if !super::gathers() {
        return;
    }
    let sizes = Sizes { submissions: 128, completions: 256, buffers: 128 };
    let mut ring: Uring<usize> = Uring::new(&sizes, Issuer::ThisThread).unwrap();
    let enough = GATHERED_MAX as usize;
    let mut peers: Vec<_> = (0..enough).map(|number| pair(&mut ring, number)).collect();
    for (_, key) in &peers {
        ring.receive_multishot(*key);
    }
    ring.iterate(Wait::No).unwrap();
    let time = Duration::from_millis(100);
    // This is one fewer than enough.
    for (peer, _) in &mut peers[1..] {
        peer.write_all(b"x").unwrap();
    }
    let (completions, took) = gather(&mut ring, time);
    assert_eq!(completions, enough - 1);
    assert!(took >= time, "{took:?}");
    // This is enough.
    for (peer, _) in &mut peers {
        peer.write_all(b"x").unwrap();
    }
    let (completions, took) = gather(&mut ring, PATIENCE);
    assert_eq!(completions, enough);
    assert!(took < PATIENCE, "{took:?}");
    // None arrives within the time.
    let (mut peer, _) = peers.swap_remove(0);
    let later = std::thread::spawn(move || {
        std::thread::sleep(2 * time);
        peer.write_all(b"x").unwrap();
        peer
    });
    let (completions, took) = gather(&mut ring, time);
    assert_eq!(completions, 1);
    assert!(took > time && took < PATIENCE, "{took:?}");
    drop(later.join().unwrap());
}
