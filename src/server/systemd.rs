//! The systemd interfaces for a service: a listening socket, notifications, and a watchdog (sd_listen_fds(3), sd_notify(3),
//! sd_watchdog_enabled(3)). Without systemd, they do not do anything.

use crate::failure::Failure;
use crate::log::Log;
use listenfd::ListenFd;
use sd_notify::NotifyState;
use socket2::Socket;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The shortest watchdog interval that a server can meet: an idle shard checks the clock once per second, and
/// the interval is halved.
const WATCHDOG_MIN: Duration = Duration::from_secs(3);

/// Returns the listening socket that this process was started with, if any.
///
/// # Errors
///
/// There are several sockets, or the socket is not a listening TCP socket.
pub(super) fn inherited_listener() -> Result<Option<Socket>, Failure> {
    let mut inherited = ListenFd::from_env();
    let refused = |why: String| {
        Failure::Usage(format!("{why}: pass one ListenStream= with an address and a port"))
    };
    match inherited.len() {
        0 => return Ok(None),
        1 => {}
        count => return Err(refused(format!("LISTEN_FDS passes {count} sockets"))),
    }
    let listener = inherited
        .take_tcp_listener(0)
        .map_err(|error| refused(format!("the socket of LISTEN_FDS is not usable: {error}")))?;
    let prepared = listener.map(Socket::from).map(|socket| {
        socket.set_nonblocking(true)?;
        // Accepted connections inherit this on Linux.
        socket.set_tcp_nodelay(true)?;
        Ok(socket)
    });
    prepared.transpose().map_err(|error: io::Error| {
        refused(format!("the socket of LISTEN_FDS is not usable: {error}"))
    })
}

/// Reports that every shard listens.
pub(super) fn report_ready(log: Log, status: &str) {
    report(log, &[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Reports that the server drains.
pub(super) fn report_stopping(log: Log, status: &str) {
    report(log, &[NotifyState::Stopping, NotifyState::Status(status)]);
}

fn report(log: Log, states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log.warn(&format!("cannot report to NOTIFY_SOCKET: {error}"));
    }
}

/// Notifies systemd that the server is alive as long as every shard is alive.
pub(super) struct Watchdog {
    period: Duration,
    heartbeats: Vec<Arc<AtomicU64>>,
    /// The heartbeats at the last check.
    seen: Vec<u64>,
}

impl Watchdog {
    /// Returns a watchdog over the heartbeats of all shards, or `None` if systemd does not request a watchdog.
    ///
    /// # Errors
    ///
    /// systemd requests an interval that an idle server cannot meet.
    pub(super) fn new(heartbeats: &[Arc<AtomicU64>]) -> Result<Option<Watchdog>, Failure> {
        let Some(interval) = sd_notify::watchdog_enabled() else { return Ok(None) };
        if interval < WATCHDOG_MIN {
            return Err(Failure::Usage(format!(
                "the watchdog interval of {} is too short: raise WatchdogSec= to {} or more",
                humantime::format_duration(interval),
                humantime::format_duration(WATCHDOG_MIN)
            )));
        }
        let heartbeats = heartbeats.to_vec();
        let seen = vec![u64::MAX; heartbeats.len()];
        Ok(Some(Watchdog { period: interval / 2, heartbeats, seen }))
    }

    /// Returns how often [`Watchdog::check`] must be called.
    pub(super) fn period(&self) -> Duration {
        self.period
    }

    /// Notifies systemd if the heartbeat of every shard has changed since the last call. Returns whether it did.
    pub(super) fn check(&mut self, log: Log) -> bool {
        let now: Vec<u64> =
            self.heartbeats.iter().map(|heartbeat| heartbeat.load(Ordering::Relaxed)).collect();
        let all_moved = now.iter().zip(&self.seen).all(|(now, seen)| now != seen);
        self.seen = now;
        if all_moved {
            report(log, &[NotifyState::Watchdog]);
        }
        all_moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_shard_that_stands_still_withholds_the_sign_of_life() {
        let heartbeats: Vec<_> = (0..3).map(|_| Arc::new(AtomicU64::new(0))).collect();
        let mut watchdog = Watchdog {
            period: WATCHDOG_MIN / 2,
            heartbeats: heartbeats.clone(),
            seen: vec![u64::MAX; 3],
        };
        assert!(watchdog.check(Log::Text), "all have started");
        assert!(!watchdog.check(Log::Text));
        heartbeats.iter().take(2).for_each(|heartbeat| heartbeat.store(1, Ordering::Relaxed));
        assert!(!watchdog.check(Log::Text), "the third stands still");
        heartbeats.iter().for_each(|heartbeat| heartbeat.store(2, Ordering::Relaxed));
        assert!(watchdog.check(Log::Text));
    }
}
