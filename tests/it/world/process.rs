//! The real binary on real sockets: start it, talk to it, stop it.

use super::{Response, Totals, description, post, schema, text};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT};
use signal_hook::flag::register_conditional_shutdown;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Once};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The most time that anything that must happen may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Returns a command that runs the real binary, or the binary that `RINGTALLY_TEST_BINARY` names. It has the signals of a
/// shell's foreground job: a background job of a script inherits an ignored SIGINT, and so would its children.
pub fn ringtally() -> Command {
    static HANDLED: Once = Once::new();
    // A signal that is caught here has its default disposition in child processes.
    HANDLED.call_once(|| {
        for signal in [SIGINT, SIGHUP] {
            let is_armed = Arc::new(AtomicBool::new(true));
            register_conditional_shutdown(signal, 128 + signal, is_armed).unwrap();
        }
    });
    let binary = std::env::var("RINGTALLY_TEST_BINARY");
    Command::new(binary.as_deref().unwrap_or(env!("CARGO_BIN_EXE_ringtally")))
}

/// Returns the data plane under test: every test runs on each.
pub fn engine() -> String {
    std::env::var("RINGTALLY_TEST_ENGINE").unwrap_or_else(|_| "ring".into())
}

/// A running server. Dropping it kills the process.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    pub ready_line: String,
    stdout: ChildStdout,
    /// Reads the server's log after that line, so that the server never waits for us.
    log: Option<JoinHandle<String>>,
}

impl Server {
    /// Starts `serve --port 0` with additional flags.
    pub fn start(flags: &[&str]) -> Server {
        let mut command = ringtally();
        command.args(["serve", "--port", "0", "--engine", &engine()]).args(flags);
        Server::start_command(command)
    }

    pub fn start_command(mut command: Command) -> Server {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = Vec::new();
        let ready_line = loop {
            match lines.next() {
                Some(line) => {
                    let line = line.unwrap();
                    if line.contains("listening on ") {
                        break line;
                    }
                    said.push(line);
                }
                None => panic!("the server did not start: {said:?}"),
            }
        };
        let log = std::thread::spawn(move || {
            let lines: Vec<String> = lines.map_while(Result::ok).collect();
            lines.join("\n")
        });
        let url = ready_line.split("http://").nth(1).unwrap();
        let address = url.split([' ', '"']).next().unwrap().parse().unwrap();
        let stdout = child.stdout.take().unwrap();
        Server { child, address, ready_line, stdout, log: Some(log) }
    }

    /// Starts a server on descriptor 3, which is `listener`. `prefix` can run it as another user, for example.
    pub fn start_on(listener: &TcpListener, prefix: &str, shards: usize) -> Server {
        let script = format!(
            r#"exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 \
               exec {prefix} "$0" serve --shards {shards} --engine {}"#,
            engine()
        );
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg(ringtally().get_program());
        command.stdin(Stdio::from(OwnedFd::from(listener.try_clone().unwrap())));
        Server::start_command(command)
    }

    /// Starts a server with a standard error that nobody here reads.
    pub fn start_unheard(flags: &[&str], stderr: Stdio) -> Server {
        let mut command = ringtally();
        command
            .args(["serve", "--port", "0", "--engine", &engine(), "--ready-fd", "1"])
            .args(flags);
        let mut child = command.stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (address, log) = (([127, 0, 0, 1], 0).into(), std::thread::spawn(String::new));
        let mut server =
            Server { child, address, ready_line: String::new(), stdout, log: Some(log) };
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let timeout = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
            let mut readable = [PollFd::new(&server.stdout, PollFlags::IN)];
            assert_eq!(poll(&mut readable, Some(&timeout)), Ok(1), "the server does not start");
            let mut byte = [0];
            server.stdout.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        server.address = text(&line).trim().parse().unwrap();
        server
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn client(&self) -> Client {
        Client::connect(self.address)
    }

    pub fn stats(&self) -> Totals {
        self.client().stats()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id() as i32).unwrap(), signal).unwrap();
    }

    /// Waits for the end. Returns the exit code and standard output.
    pub fn wait(self) -> (Option<i32>, String) {
        let (code, printed, _) = self.wait_with_log();
        (code, printed)
    }

    /// Waits for the end. Returns the exit code, standard output, and the log since the server was ready.
    pub fn wait_with_log(mut self) -> (Option<i32>, String, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the server does not end: {}", self.ready_line);
            std::thread::sleep(Duration::from_millis(2));
        };
        let mut text = String::new();
        self.stdout.read_to_string(&mut text).unwrap();
        let log = self.log.take().unwrap().join().unwrap();
        (status.code(), text, log)
    }

    /// Sends SIGTERM, and returns the final totals.
    pub fn stop(self) -> Totals {
        self.signal(Signal::TERM);
        let (code, text) = self.wait();
        assert_eq!(code, Some(0), "{text}");
        assert_eq!(text.lines().count(), 1, "one JSON line: {text}");
        Totals::parse(&text)
    }

    /// Returns a size in `/proc/PID/status`, such as `VmRSS:`, in KiB.
    pub fn status_kib(&self, key: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim().strip_suffix(" kB").unwrap().trim().parse().unwrap()
    }

    /// Returns the number of open descriptors of the process.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns a pipe without room for another byte.
pub fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let now = Timespec::default();
    while poll(&mut [PollFd::new(&writer, PollFlags::OUT)], Some(&now)) == Ok(1) {
        writer.write_all(&[b'x'; 4096]).unwrap();
    }
    (reader, writer)
}

/// Waits until a condition holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The most time that a command may take that only measures.
pub const LOAD_PATIENCE: Duration = Duration::from_secs(300);

/// Runs the binary to its end.
pub fn run(args: &[&str]) -> Output {
    output_within(ringtally().args(args), LOAD_PATIENCE)
}

/// Runs a command to its end, which must come in time.
pub fn output_within(command: &mut Command, patience: Duration) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let pid = Pid::from_raw(child.id() as i32).unwrap();
    let (has_ended, ended) = channel::<()>();
    let killer = std::thread::spawn(move || {
        let is_late = ended.recv_timeout(patience) == Err(RecvTimeoutError::Timeout);
        if is_late {
            // The process may end at this moment.
            let _ = kill_process(pid, Signal::KILL);
        }
        is_late
    });
    let output = child.wait_with_output().unwrap();
    drop(has_ended);
    assert!(!killer.join().unwrap(), "it took over {patience:?}: {}", text(&output.stderr));
    schema::check_documents(command, &output);
    output
}

/// A keep-alive client on one connection.
pub struct Client {
    pub stream: TcpStream,
    input: Vec<u8>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client { stream, input: Vec::new() }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Reads one response, or returns `None` if the connection ends first.
    pub fn try_read(&mut self) -> Option<Response> {
        loop {
            if let Some(end) = memchr::memmem::find(&self.input, b"\r\n\r\n") {
                let head = text(&self.input[..end + 4]);
                let mut response = Response { status: 0, head, body: String::new() };
                response.status = response.head.split(' ').nth(1).unwrap().parse().unwrap();
                let length: usize =
                    response.field("content-length").map_or(0, |length| length.parse().unwrap());
                let whole = end + 4 + length;
                if self.input.len() >= whole {
                    response.body = text(&self.input[end + 4..whole]);
                    self.input.drain(..whole);
                    return Some(response);
                }
            }
            let mut buffer = [0; 16 * 1024];
            match self.stream.read(&mut buffer) {
                Ok(0) | Err(_) => return None,
                Ok(received) => self.input.extend_from_slice(&buffer[..received]),
            }
        }
    }

    /// Returns whether a part of a response has arrived without the rest.
    pub fn has_part(&self) -> bool {
        !self.input.is_empty()
    }

    pub fn read(&mut self) -> Response {
        let response = self.try_read().expect("a response before the connection ends");
        description::check_response(&response);
        response
    }

    pub fn ask(&mut self, request: &str) -> Response {
        self.send(request.as_bytes());
        let response = self.read();
        description::check(request, &response);
        response
    }

    pub fn get(&mut self, path: &str) -> Response {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    }

    pub fn post(&mut self, path: &str, body: &str) -> Response {
        self.ask(&post(path, body))
    }

    pub fn event(&mut self, user: &str, value: f64) {
        let body = format!(r#"{{"userId":"{user}","value":{value:?}}}"#);
        assert_eq!(self.post("/event", &body).status, 200);
    }

    pub fn stats(&mut self) -> Totals {
        let response = self.get("/stats");
        assert_eq!(response.status, 200);
        Totals::parse(&response.body)
    }
}
