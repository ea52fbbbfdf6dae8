//! Clients that send events to several servers without pause, and others that request the totals of all servers and know at
//! every moment what they must be.

use crate::world::{Client, Server, Totals, post};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// The events that were sent, with their outcomes.
#[derive(Default)]
pub(crate) struct Counts {
    /// Events that may have been counted: all that were begun and not refused.
    begun: AtomicU64,
    acknowledged: AtomicU64,
    /// Events without a response.
    unknown: AtomicU64,
    refused: AtomicU64,
    /// Responses to `/stats`.
    reads: AtomicU64,
    /// The number of resets, and of acknowledged events that were sent after the last one.
    phase: Mutex<(u64, u64)>,
    has_resets: AtomicBool,
    is_over: AtomicBool,
}

/// A load on some servers.
pub(crate) struct Load {
    counts: Arc<Counts>,
    clients: Vec<JoinHandle<()>>,
    servers: Arc<Mutex<Vec<SocketAddr>>>,
}

/// The numbers of the events' users: each event has its own.
static USERS: AtomicU64 = AtomicU64::new(0);

impl Load {
    /// Starts this number of connections to each server, which send events of new users one after the other, and one more to
    /// each, which requests the totals.
    pub(crate) fn start(servers: &[Server], connections: usize) -> Load {
        let addresses = servers.iter().map(|server| server.address).collect();
        let servers_now = Arc::new(Mutex::new(addresses));
        let mut load = Load { counts: Arc::default(), clients: Vec::new(), servers: servers_now };
        for server in 0..servers.len() {
            for _ in 0..connections {
                let (counts, servers) = (Arc::clone(&load.counts), Arc::clone(&load.servers));
                load.clients.push(std::thread::spawn(move || send(&counts, &servers, server)));
            }
            let (counts, servers) = (Arc::clone(&load.counts), Arc::clone(&load.servers));
            load.clients.push(std::thread::spawn(move || read(&counts, &servers, server)));
        }
        load
    }

    /// Gives this place to another server from now on.
    pub(crate) fn replace(&self, place: usize, server: &Server) {
        self.servers.lock().unwrap()[place] = server.address;
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.counts.acknowledged.load(Ordering::SeqCst)
    }

    pub(crate) fn refused(&self) -> u64 {
        self.counts.refused.load(Ordering::SeqCst)
    }

    /// Resets the totals through a server. Returns the number of events that were acknowledged before this request, and so
    /// cannot be counted anymore.
    pub(crate) fn reset(&self, server: &Server) -> u64 {
        self.counts.has_resets.store(true, Ordering::SeqCst);
        let before = self.acknowledged();
        let response = server.client().post("/reset", "");
        assert_eq!(response.status, 200, "{response:?}");
        let mut since_reset = self.counts.phase.lock().unwrap();
        *since_reset = (since_reset.0 + 1, 0);
        before
    }

    /// Returns the number of acknowledged events that were sent after the last acknowledged reset.
    pub(crate) fn since_reset(&self) -> u64 {
        self.counts.phase.lock().unwrap().1
    }

    /// Returns the number of events that were sent, not counting the refused ones.
    pub(crate) fn begun(&self) -> u64 {
        self.counts.begun.load(Ordering::SeqCst)
    }

    /// Waits until this number of further events is acknowledged.
    pub(crate) fn wait_for(&self, events: u64) {
        let until = self.acknowledged() + events;
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while self.acknowledged() < until {
            assert!(std::time::Instant::now() < deadline, "no events are acknowledged");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the load. Returns the smallest and the largest total that is possible.
    pub(crate) fn stop(&mut self) -> (u64, u64) {
        self.counts.is_over.store(true, Ordering::SeqCst);
        for client in self.clients.drain(..) {
            client.join().unwrap();
        }
        let get = |count: &AtomicU64| count.load(Ordering::SeqCst);
        let counts = &self.counts;
        let (acknowledged, unknown) = (get(&counts.acknowledged), get(&counts.unknown));
        eprintln!(
            "acknowledged {acknowledged}, without a response {unknown}, refused {}, {} reads",
            get(&counts.refused),
            get(&counts.reads)
        );
        assert!(acknowledged > 0 && get(&counts.reads) > 0);
        (acknowledged, acknowledged + unknown)
    }
}

/// Returns a connection to the server in this place as soon as there is one, or `None` after the end of the load.
fn connect(counts: &Counts, servers: &Mutex<Vec<SocketAddr>>, place: usize) -> Option<Client> {
    while !counts.is_over.load(Ordering::SeqCst) {
        let address = servers.lock().unwrap()[place];
        if TcpStream::connect_timeout(&address, Duration::from_secs(2)).is_ok() {
            let client = std::panic::catch_unwind(|| Client::connect(address));
            if let Ok(client) = client {
                // The server may be paused for a while.
                client.stream.set_read_timeout(Some(Duration::from_secs(90))).unwrap();
                return Some(client);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    None
}

fn send(counts: &Counts, servers: &Mutex<Vec<SocketAddr>>, place: usize) {
    while let Some(mut client) = connect(counts, servers, place) {
        while !counts.is_over.load(Ordering::SeqCst) {
            let user = USERS.fetch_add(1, Ordering::SeqCst);
            let body = format!(r#"{{"userId":"user_{user}","value":1}}"#);
            let phase = counts.phase.lock().unwrap().0;
            counts.begun.fetch_add(1, Ordering::SeqCst);
            let is_sent = client.stream.write_all(post("/event", &body).as_bytes()).is_ok();
            match is_sent.then(|| client.try_read()).flatten() {
                Some(response) if response.status == 200 => {
                    counts.acknowledged.fetch_add(1, Ordering::SeqCst);
                    let mut since_reset = counts.phase.lock().unwrap();
                    if since_reset.0 == phase {
                        since_reset.1 += 1;
                    }
                }
                Some(response) => {
                    assert_eq!(response.status, 503, "{response:?}");
                    counts.refused.fetch_add(1, Ordering::SeqCst);
                    counts.begun.fetch_sub(1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(20));
                }
                None => {
                    counts.unknown.fetch_add(1, Ordering::SeqCst);
                    break;
                }
            }
        }
    }
}

fn read(counts: &Counts, servers: &Mutex<Vec<SocketAddr>>, place: usize) {
    while let Some(mut client) = connect(counts, servers, place) {
        let mut before = 0;
        while !counts.is_over.load(Ordering::SeqCst) {
            let at_least = counts.acknowledged.load(Ordering::SeqCst);
            let request = b"GET /stats HTTP/1.1\r\nHost: localhost\r\n\r\n";
            let is_sent = client.stream.write_all(request).is_ok();
            let Some(response) = is_sent.then(|| client.try_read()).flatten() else { break };
            if response.status == 503 {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            let totals = Totals::parse(&response.body);
            check(&totals);
            let at_most = counts.begun.load(Ordering::SeqCst);
            if !counts.has_resets.load(Ordering::SeqCst) {
                assert!(
                    totals.total >= at_least,
                    "{totals:?} without what was acknowledged: {at_least}"
                );
                assert!(totals.total >= before, "{totals:?} after {before}");
            }
            assert!(totals.total <= at_most, "{totals:?} with only {at_most} sent");
            before = totals.total;
            counts.reads.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Checks totals of events that each have the value 1 and their own user.
pub(crate) fn check(totals: &Totals) {
    assert_eq!(totals.sum, totals.total as f64, "{totals:?}");
    assert_eq!(totals.users, totals.total, "{totals:?}");
}
