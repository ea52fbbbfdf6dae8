//! TCP proxies. One cuts connections at the worst moment: after a request has reached the database, and before its result is
//! back. The other changes settings of sessions.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The mode that lets everything through.
const PASS: u8 = 0;
/// The mode that cuts when the next result arrives, and drops that result.
const CUT_RESULT: u8 = 1;
/// The mode that cuts as soon as the next request has been passed on.
const CUT_REQUEST: u8 = 2;

/// The cutting proxy, which ends with the process.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    mode: AtomicU8,
    cuts: AtomicU64,
}

impl Proxy {
    pub(crate) fn to(port: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap().port();
        let state: Arc<State> = Arc::default();
        std::thread::spawn({
            let state = Arc::clone(&state);
            move || {
                for client in listener.incoming() {
                    let Ok(client) = client else { continue };
                    let address = SocketAddr::from(([127, 0, 0, 1], port));
                    let Ok(server) = TcpStream::connect(address) else { continue };
                    forward(client, server, &state);
                }
            }
        });
        Proxy { port: own, state }
    }

    /// Cuts a connection at the next commit, and waits until that is done. The result may or may not have been on its way.
    pub(crate) fn cut(&self) {
        let before = self.state.cuts.load(Ordering::SeqCst);
        let mode = if before.is_multiple_of(2) { CUT_RESULT } else { CUT_REQUEST };
        self.state.mode.store(mode, Ordering::SeqCst);
        crate::world::eventually("a connection is cut", || {
            self.state.cuts.load(Ordering::SeqCst) > before
        });
    }
}

fn forward(client: TcpStream, server: TcpStream, state: &Arc<State>) {
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
    }
    // Requests are marked as they pass, so that the result that is cut answers a marked one.
    let asked = Arc::new(AtomicU8::new(PASS));
    let (from_client, to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    std::thread::spawn({
        let (state, asked) = (Arc::clone(state), Arc::clone(&asked));
        move || {
            pump(from_client, to_server, |bytes, is_sent| {
                // A Bind message begins a commit (PostgreSQL documentation, section 55.7).
                let is_commit = bytes.first() == Some(&b'B');
                if !is_sent && is_commit {
                    asked.store(state.mode.swap(PASS, Ordering::SeqCst), Ordering::SeqCst);
                }
                let is_cut = is_sent && asked.load(Ordering::SeqCst) == CUT_REQUEST;
                if is_cut {
                    state.cuts.fetch_add(1, Ordering::SeqCst);
                }
                is_cut
            });
        }
    });
    std::thread::spawn({
        let state = Arc::clone(state);
        move || {
            pump(server, client, |_, is_sent| {
                let is_cut = !is_sent && asked.load(Ordering::SeqCst) == CUT_RESULT;
                if is_cut {
                    // After this pause the commit is certainly done.
                    std::thread::sleep(Duration::from_millis(20));
                    state.cuts.fetch_add(1, Ordering::SeqCst);
                }
                is_cut
            });
        }
    });
}

/// Passes bytes on until one side ends or `cuts` returns true. It is called before and after bytes are sent.
fn pump(mut from: TcpStream, mut to: TcpStream, cuts: impl Fn(&[u8], bool) -> bool) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(count) = from.read(&mut buffer) {
        let bytes = &buffer[..count];
        if count == 0 || cuts(bytes, false) || to.write_all(bytes).is_err() || cuts(bytes, true) {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// A TCP proxy that makes sessions run SQL that their client has not sent, as if a pooler had given the session to
/// another client.
pub(crate) struct Injector {
    pub(crate) port: u16,
    sql: Arc<Mutex<Option<String>>>,
}

impl Injector {
    pub(crate) fn to(port: u16) -> Injector {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap().port();
        let sql: Arc<Mutex<Option<String>>> = Arc::default();
        std::thread::spawn({
            let sql = Arc::clone(&sql);
            move || {
                for client in listener.incoming() {
                    let Ok(client) = client else { continue };
                    let address = SocketAddr::from(([127, 0, 0, 1], port));
                    let Ok(server) = TcpStream::connect(address) else { continue };
                    inject_into(client, server, Arc::clone(&sql));
                }
            }
        });
        Injector { port: own, sql }
    }

    /// Makes a session run this before the next Bind message of its client, and waits until it is on its way.
    pub(crate) fn inject(&self, sql: &str) {
        *self.sql.lock().unwrap() = Some(sql.into());
        crate::world::eventually("the SQL is sent", || self.sql.lock().unwrap().is_none());
    }
}

fn inject_into(client: TcpStream, server: TcpStream, sql: Arc<Mutex<Option<String>>>) {
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
    }
    let is_answered = Arc::new(AtomicBool::new(true));
    let (mut from_client, mut to_server) =
        (client.try_clone().unwrap(), server.try_clone().unwrap());
    std::thread::spawn({
        let is_answered = Arc::clone(&is_answered);
        move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(count @ 1..) = from_client.read(&mut buffer) {
                let mut message = Vec::new();
                // A Bind message starts a prepared statement, and is not sent until everything before it is done.
                if buffer[0] == b'B'
                    && let Some(sql) = sql.lock().unwrap().take()
                {
                    is_answered.store(false, Ordering::SeqCst);
                    message.push(b'Q');
                    message.extend(u32::try_from(sql.len() + 5).unwrap().to_be_bytes());
                    message.extend(sql.bytes().chain([0]));
                }
                message.extend(&buffer[..count]);
                if to_server.write_all(&message).is_err() {
                    break;
                }
            }
            let _ = to_server.shutdown(Shutdown::Both);
        }
    });
    let (mut from_server, mut to_client) = (server, client);
    std::thread::spawn(move || {
        let (mut buffer, mut held) = (vec![0; 1 << 16], Vec::new());
        while let Ok(count @ 1..) = from_server.read(&mut buffer) {
            held.extend(&buffer[..count]);
            // The client sees nothing of the response, which ends with ReadyForQuery.
            while !is_answered.load(Ordering::SeqCst)
                && let Some(length) = held.get(1..5)
                && let end = u32::from_be_bytes(length.try_into().unwrap()) as usize + 1
                && held.len() >= end
            {
                let message: Vec<u8> = held.drain(..end).collect();
                is_answered.store(message[0] == b'Z', Ordering::SeqCst);
            }
            if is_answered.load(Ordering::SeqCst)
                && to_client.write_all(&std::mem::take(&mut held)).is_err()
            {
                break;
            }
        }
        let _ = to_client.shutdown(Shutdown::Both);
    });
}
