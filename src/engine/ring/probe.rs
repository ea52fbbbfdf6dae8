//! A live probe of each io_uring feature that the engine uses: tried, not read from a version.

use super::{POLL_IN, SIZES, Sizes, build, cqueue, squeue};
use super::{buffers::BUFFER_GROUP, buffers::Buffers, opcode};
use crate::engine::admission::wakeup;
use io_uring::IoUring;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use rustix::io::Errno;
use std::io;
use std::mem::ManuallyDrop;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A feature of the kernel, and whether it works here.
#[derive(Debug)]
pub struct Feature {
    /// What it is called.
    pub name: &'static str,
    /// The first Linux that has it.
    pub since: &'static str,
    /// Whether it did what it must, or what went wrong.
    pub result: io::Result<()>,
}

/// A ring for the probe: as small as can be.
const PROBE_SIZES: Sizes = Sizes { submissions: 8, completions: 16, buffers: 8 };
const _: () = assert!(PROBE_SIZES.submissions <= SIZES.submissions);

/// How long a completion may take that is due at once.
const PATIENCE: Timespec = Timespec::new().sec(1);
/// The time that the timeout of the probe takes.
static SHORT: Timespec = Timespec::new().nsec(1000);

/// What the entries of the probe are told apart by.
const ACCEPT: u64 = 1;
const RECEIVE: u64 = 2;
const SEND: u64 = 3;
const POLL: u64 = 4;
const TIMEOUT: u64 = 5;
const CANCEL: u64 = 6;

/// Tries everything that the engine uses, in the order that it builds on each other: what cannot
/// be tried is not listed. Takes less than a millisecond where all is well.
pub fn probe() -> Vec<Feature> {
    let mut features = Vec::new();
    let mut note = |name, since, result: io::Result<()>| {
        let works = result.is_ok();
        features.push(Feature { name, since, result });
        works
    };
    if !note("setup", "5.1", IoUring::new(2).map(drop)) {
        return features;
    }
    let ring = match build(&PROBE_SIZES, false) {
        Ok(ring) => ring,
        Err(error) => {
            note("deferred task work", "6.1", Err(error));
            return features;
        }
    };
    note("deferred task work", "6.1", Ok(()));
    let buffers = match Buffers::register(&ring, PROBE_SIZES.buffers) {
        Ok(buffers) => buffers,
        Err(error) => {
            note("buffer rings", "5.19", Err(error));
            return features;
        }
    };
    note("buffer rings", "5.19", Ok(()));
    // Without a loopback interface the rest cannot be tried. It is older than what has been.
    let Ok(sockets) = Sockets::open() else { return features };
    // What is still under way at the end is leaked together with the memory that it may touch.
    let mut trial = ManuallyDrop::new(Trial { ring, _buffers: buffers, sockets, done: Vec::new() });
    note("eventfd", "5.2", trial.eventfd());
    note("multishot accept", "5.19", trial.accept());
    note("multishot receive", "6.0", trial.receive());
    note("send", "5.6", trial.send());
    note("multishot poll", "5.13", trial.poll());
    note("timeout", "5.4", trial.timeout());
    note("cancel", "5.5", trial.cancel());
    if features.iter().all(|feature| feature.result.is_ok()) {
        drop(ManuallyDrop::into_inner(trial));
    }
    features
}

/// A listener, both sides of a connection, and a wakeup to poll.
struct Sockets {
    listener: TcpListener,
    client: TcpStream,
    server: TcpStream,
    wakeup: OwnedFd,
}

impl Sockets {
    fn open() -> io::Result<Sockets> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (server, _) = listener.accept()?;
        Ok(Sockets { listener, client, server, wakeup: wakeup()? })
    }
}

struct Trial {
    /// Before its buffers, and so dropped before them.
    ring: IoUring,
    _buffers: Buffers,
    sockets: Sockets,
    /// Completions that have come and not been waited for.
    done: Vec<(u64, i32, u32)>,
}

impl Trial {
    fn push(&mut self, entry: squeue::Entry, tag: u64) -> io::Result<()> {
        let entry = entry.user_data(tag);
        // SAFETY: the buffers, the sockets and the static times live until everything is
        // completed, or are leaked.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|_| io::Error::other("the submission queue is full"))
    }

    /// Waits for a completion of `tag`, and returns its result and flags.
    fn complete(&mut self, tag: u64) -> io::Result<(u32, u32)> {
        loop {
            if let Some(at) = self.done.iter().position(|(of, ..)| *of == tag) {
                let (_, result, flags) = self.done.remove(at);
                return match u32::try_from(result) {
                    Ok(result) => Ok((result, flags)),
                    Err(_) => Err(io::Error::from_raw_os_error(-result)),
                };
            }
            let arguments = SubmitArgs::new().timespec(&PATIENCE);
            match self.ring.submitter().submit_with_args(1, &arguments) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            let new = self.ring.completion().map(|e| (e.user_data(), e.result(), e.flags()));
            self.done.extend(new);
        }
    }

    fn eventfd(&mut self) -> io::Result<()> {
        self.ring.submitter().register_eventfd(self.sockets.wakeup.as_raw_fd())?;
        self.ring.submitter().unregister_eventfd()
    }

    fn accept(&mut self) -> io::Result<()> {
        let listener = Fd(self.sockets.listener.as_raw_fd());
        self.push(opcode::AcceptMulti::new(listener).build(), ACCEPT)?;
        for _ in 0..2 {
            let _client = TcpStream::connect(self.sockets.listener.local_addr()?)?;
            let (descriptor, flags) = self.complete(ACCEPT)?;
            // SAFETY: the kernel has just opened it for this accept; nobody else owns it.
            drop(unsafe { OwnedFd::from_raw_fd(descriptor as i32) });
            must_go_on(flags)?;
        }
        Ok(())
    }

    fn receive(&mut self) -> io::Result<()> {
        use std::io::Write;
        let socket = Fd(self.sockets.server.as_raw_fd());
        self.push(opcode::RecvMulti::new(socket, BUFFER_GROUP).build(), RECEIVE)?;
        for text in ["one", "three"] {
            self.sockets.client.write_all(text.as_bytes())?;
            let (received, flags) = self.complete(RECEIVE)?;
            must_be(received as usize == text.len() && cqueue::buffer_select(flags).is_some())?;
            must_go_on(flags)?;
        }
        // The end of the stream ends it.
        self.sockets.client.shutdown(Shutdown::Write)?;
        must_be(self.complete(RECEIVE)?.0 == 0)
    }

    fn send(&mut self) -> io::Result<()> {
        static BYTES: [u8; 5] = *b"probe";
        let socket = Fd(self.sockets.server.as_raw_fd());
        let entry = opcode::Send::new(socket, BYTES.as_ptr(), BYTES.len() as u32);
        self.push(entry.build(), SEND)?;
        must_be(self.complete(SEND)?.0 as usize == BYTES.len())
    }

    fn poll(&mut self) -> io::Result<()> {
        let wakeup = Fd(self.sockets.wakeup.as_raw_fd());
        self.push(opcode::PollAdd::new(wakeup, POLL_IN).multi(true).build(), POLL)?;
        for _ in 0..2 {
            rustix::io::write(&self.sockets.wakeup, &1u64.to_ne_bytes())?;
            must_go_on(self.complete(POLL)?.1)?;
            rustix::io::read(&self.sockets.wakeup, &mut [0; 8])?;
        }
        Ok(())
    }

    fn timeout(&mut self) -> io::Result<()> {
        self.push(opcode::Timeout::new(&raw const SHORT).build(), TIMEOUT)?;
        match self.complete(TIMEOUT) {
            Err(error) if is(&error, Errno::TIME) => Ok(()),
            other => other.and_then(|_| must_be(false)),
        }
    }

    /// Ends the accept and the poll, which are still under way.
    fn cancel(&mut self) -> io::Result<()> {
        for tag in [ACCEPT, POLL] {
            self.push(opcode::AsyncCancel::new(tag).build(), CANCEL)?;
            self.complete(CANCEL)?;
            must_be(self.complete(tag).is_err_and(|error| is(&error, Errno::CANCELED)))?;
        }
        Ok(())
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

fn must_go_on(flags: u32) -> io::Result<()> {
    must_be(cqueue::more(flags))
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
        assert_eq!(features.len(), 10);
        for feature in features {
            assert!(feature.result.is_ok(), "{feature:?}");
        }
    }
}
