//! A live trial of every feature of io_uring that server and client use, in the same way as they use it, instead of a check of
//! the version.
//!
//! The sockets are Unix-domain sockets, so that the trial does not depend on a network interface.

use super::{Event, Issuer, Key, Sizes, Uring, Wait, Wakeup, build};
use io_uring::IoUring;
use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

/// A feature of the kernel, and whether it works here.
#[derive(Debug)]
pub struct Feature {
    /// Its name.
    pub name: &'static str,
    /// The first version of Linux that has it.
    pub since: &'static str,
    /// Success if it worked as it must, or otherwise the error.
    pub result: io::Result<()>,
}

/// The sizes of the ring for the trial, which are as small as possible.
const PROBE_SIZES: Sizes = Sizes { submissions: 8, completions: 16, buffers: 8 };

/// The time that an immediate completion may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// The time that the timer of the trial takes.
const SHORT: Duration = Duration::from_micros(1);
/// The number of wake-ups of the ring: a kernel that loses wake-ups does not lose the first.
const WAKEUPS: usize = 4;
/// The time that the waking thread gives the other thread to fall asleep.
const SLEEP_BEFORE_WAKEUP: Duration = Duration::from_micros(200);

/// Tries every feature before the features that build on it. Features that cannot be tried because an earlier one failed are
/// not listed. Takes a few milliseconds if everything works, and at most a second per feature that does not respond.
pub fn probe() -> Vec<Feature> {
    let mut features = Vec::new();
    let mut note = |name, since, result: io::Result<()>| {
        let works = result.is_ok();
        features.push(Feature { name, since, result });
        works
    };
    if !note("setup", "5.1", check()) {
        return features;
    }
    if !note("deferred task work", "6.1", build(&PROBE_SIZES, Issuer::ThisThread).map(drop)) {
        return features;
    }
    let (trial, result) = match Trial::new() {
        Ok(trial) => (Some(trial), Ok(())),
        Err(error) => (None, Err(error)),
    };
    note("buffer rings", "5.19", result);
    let Some(mut trial) = trial else { return features };
    note("wake-ups from another thread", "5.13", trial.wake_up());
    note("multishot accept", "5.19", trial.accept());
    note("connect", "5.5", trial.connect());
    note("multishot receive", "6.0", trial.receive());
    note("send", "5.6", trial.send());
    note("timer", "5.4", trial.timer());
    note("bounded wait", "5.11", trial.bounded_wait());
    note("cancel", "5.5", trial.cancel());
    features
}

/// Checks whether any io_uring is available, which is all that glommio needs.
///
/// # Errors
///
/// The error that the kernel returns.
pub fn check() -> io::Result<()> {
    IoUring::new(2).map(drop)
}

/// Reports whether a wait can gather completions for a time, as `--coalesce-us` requests: since Linux 6.12.
pub fn gathers() -> bool {
    Uring::<()>::new(&PROBE_SIZES, Issuer::ThisThread).is_ok_and(|ring| ring.gathers())
}

struct Trial {
    ring: Uring<()>,
    wakeup: Arc<Wakeup>,
    /// The two sides of a connection; the ring has the second.
    client: Socket,
    server: Key,
    /// Events that have arrived and are not consumed yet.
    events: Vec<Event>,
}

impl Trial {
    fn new() -> io::Result<Trial> {
        let mut ring = Uring::new(&PROBE_SIZES, Issuer::ThisThread)?;
        let (client, server) = Socket::pair(Domain::UNIX, Type::STREAM, None)?;
        let server = ring.insert(server, ());
        Ok(Trial { ring, wakeup: Arc::new(Wakeup::new()?), client, server, events: Vec::new() })
    }

    /// Waits for an event that `wanted` accepts.
    fn wait_for<T>(&mut self, wanted: impl Fn(Event) -> Result<T, Event>) -> io::Result<T> {
        let until = Instant::now() + PATIENCE;
        loop {
            for event in std::mem::take(&mut self.events) {
                match wanted(event) {
                    Ok(found) => return Ok(found),
                    Err(event) => self.events.push(event),
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Errno::TIMEDOUT.into());
            }
            self.ring.iterate(Wait::For(left))?;
            while let Some(event) = self.ring.next_event() {
                self.events.push(event);
            }
        }
    }

    /// Wakes the waiting ring often enough to detect a kernel that forgets wake-ups.
    fn wake_up(&mut self) -> io::Result<()> {
        self.ring.watch(Arc::clone(&self.wakeup));
        let (waits, hears) = channel();
        let wakeup = Arc::clone(&self.wakeup);
        let waker = thread::Builder::new().spawn(move || {
            while hears.recv().is_ok() {
                thread::sleep(SLEEP_BEFORE_WAKEUP);
                wakeup.wake();
            }
        })?;
        let mut result = Ok(());
        for _ in 0..WAKEUPS {
            // The other thread listens until this side is dropped.
            let _ = waits.send(());
            result = self.wait_for(|event| match event {
                Event::Woken => Ok(()),
                other => Err(other),
            });
            if result.is_err() {
                break;
            }
        }
        drop(waits);
        must_be(waker.join().is_ok())?;
        result
    }

    fn accept(&mut self) -> io::Result<()> {
        let (listener, address) = listen()?;
        self.ring.listen(listener, false);
        for _ in 0..2 {
            let client = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            client.connect(&address)?;
            self.wait_for(|event| match event {
                Event::Accepted(_) => Ok(()),
                other => Err(other),
            })?;
            must_be(self.ring.is_accepting())?;
        }
        Ok(())
    }

    fn connect(&mut self) -> io::Result<()> {
        let (_listener, address) = listen()?;
        let key = self.ring.insert(Socket::new(Domain::UNIX, Type::STREAM, None)?, ());
        self.ring.connect(key, address);
        self.wait_for(|event| match event {
            Event::Connected(of) if of == key => Ok(Ok(())),
            Event::ConnectFailed(of, error) if of == key => Ok(Err(error)),
            other => Err(other),
        })??;
        self.ring.close(key);
        Ok(())
    }

    fn receive(&mut self) -> io::Result<()> {
        self.ring.receive_multishot(self.server);
        for text in ["one", "three"] {
            self.client.write_all(text.as_bytes())?;
            let filled = self.wait_for(|event| match event {
                Event::Received(_, filled) => Ok(filled),
                other => Err(other),
            })?;
            let is_right = self
                .ring
                .received(self.server, &filled)
                .is_some_and(|(_, bytes)| bytes == text.as_bytes());
            self.ring.give_back(filled);
            must_be(is_right && self.is_receiving())?;
        }
        // The end of the stream ends the receive.
        self.client.shutdown(Shutdown::Write)?;
        self.wait_for(|event| match event {
            Event::PeerClosed(_) => Ok(()),
            other => Err(other),
        })?;
        must_be(!self.is_receiving())
    }

    fn is_receiving(&mut self) -> bool {
        self.ring.slot(self.server).is_some_and(|slot| slot.is_receiving)
    }

    fn send(&mut self) -> io::Result<()> {
        self.ring.send(self.server, b"probe".to_vec());
        self.wait_for(|event| match event {
            Event::Sent(..) => Ok(()),
            other => Err(other),
        })?;
        let mut got = [0; 5];
        self.client.read_exact(&mut got)?;
        must_be(got == *b"probe")
    }

    fn timer(&mut self) -> io::Result<()> {
        self.ring.set_timer(SHORT);
        self.wait_for(|event| match event {
            Event::Timer => Ok(()),
            other => Err(other),
        })
    }

    /// Checks that a wait ends in time although nothing completes.
    fn bounded_wait(&mut self) -> io::Result<()> {
        let started = Instant::now();
        self.ring.iterate(Wait::For(SHORT))?;
        while let Some(event) = self.ring.next_event() {
            self.events.push(event);
        }
        must_be(started.elapsed() < PATIENCE)
    }

    /// Ends every operation in progress: the accept and the poll of the wake-up.
    fn cancel(&mut self) -> io::Result<()> {
        self.ring.end_operations();
        must_be(self.ring.under_way == 0)
    }
}

/// Returns a listener and its unique address, which is abstract, so that no file is left behind.
fn listen() -> io::Result<(Socket, SockAddr)> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let address = SockAddr::unix(format!("\0ringtally-probe-{}-{number}", std::process::id()))?;
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    listener.set_nonblocking(true)?;
    listener.bind(&address)?;
    listener.listen(1)?;
    Ok((listener, address))
}

fn must_be(is_so: bool) -> io::Result<()> {
    is_so.then_some(()).ok_or_else(|| io::Error::other("it did not do what it must"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_tried_and_works_where_the_ring_engine_is_tested() {
        let features = probe();
        assert_eq!(features.len(), 11);
        for feature in features {
            assert!(feature.result.is_ok(), "{feature:?}");
        }
    }
}
