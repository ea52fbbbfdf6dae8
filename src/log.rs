//! Log lines on standard error, as text or as JSON.
//!
//! Standard error can be a pipe that nobody reads, so a separate thread writes a server's lines. Logging only puts a line into
//! a queue, which drops lines that do not fit and reports their number.

use rustix::event::{PollFd, PollFlags, poll};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// The format of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Log {
    /// Plain text
    Text,
    /// One JSON object per line, with time, level, and message
    Json,
}

/// The most lines that wait to be written; further lines are dropped.
const LINES_MAX: usize = 1000;

/// The longest time that the program waits for its log to be written before it ends.
const FINISH: Duration = Duration::from_secs(1);

/// The lines of this process, once it has a thread that writes them.
static QUEUE: OnceLock<Arc<Queue>> = OnceLock::new();

impl Log {
    /// Starts a thread that writes everything that this process logs from then on, including panics.
    ///
    /// # Errors
    ///
    /// If the system is out of threads.
    pub fn start(self) -> io::Result<()> {
        let queue = Queue::start(self, io::stderr())?;
        // The first caller already has a thread that does the same.
        let _ = QUEUE.set(queue);
        // By default, a thread that panics writes to standard error itself.
        std::panic::set_hook(Box::new(move |panic| self.panicked(panic)));
        Ok(())
    }

    fn panicked(self, panic: &PanicHookInfo<'_>) {
        let thread = std::thread::current();
        let mut message = format!("thread {} {panic}", thread.name().unwrap_or("without a name"));
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            message += &format!("\n{backtrace}");
        }
        self.error(&message);
        // A main thread that panics ends the process without waiting for other threads.
        if thread.name() == Some("main") {
            finish();
        }
    }

    /// Reports an event of normal operation.
    pub fn info(self, message: &str) {
        self.line("info", message);
    }

    /// Reports something that the operator should look into.
    pub fn warn(self, message: &str) {
        self.line("warning", message);
    }

    /// Reports why the program ends.
    pub fn error(self, message: &str) {
        self.line("error", message);
    }

    fn line(self, level: &str, message: &str) {
        let line = self.format(level, message);
        match QUEUE.get() {
            Some(queue) => queue.push(line),
            // If standard error is closed, there is nowhere left to report that.
            None => drop(write_all(&mut io::stderr(), line.as_bytes())),
        }
    }

    fn format(self, level: &str, message: &str) -> String {
        match self {
            Log::Text if level == "info" => format!("{message}\n"),
            Log::Text => format!("{level}: {message}\n"),
            Log::Json => {
                let time = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
                let line = serde_json::json!({"time": time, "level": level, "message": message});
                format!("{line}\n")
            }
        }
    }
}

/// Waits until everything that was logged has been written, or until that has taken too long. Called at the end of the program.
pub fn finish() {
    if let Some(queue) = QUEUE.get() {
        queue.finish(FINISH);
    }
}

/// Writes bytes, however long that takes. Standard error is nonblocking if another process, such as a parent that shares it,
/// has made it so; then whatever fits is written first, and the rest once there is room.
fn write_all(output: &mut (impl Write + AsFd), mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match output.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut room = [PollFd::new(&*output, PollFlags::OUT)];
                rustix::io::retry_on_intr(|| poll(&mut room, None))?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A count of something that can happen often. A line about it is logged the first time, and then once per interval.
#[derive(Debug)]
pub struct Seldom {
    interval: Duration,
    started: Instant,
    /// The number of times that it has happened since the last line.
    count: AtomicU64,
    /// The time, in milliseconds since the start, before which another line is not logged.
    silent_until_ms: AtomicU64,
}

impl Seldom {
    /// Returns the count of something that has not happened yet.
    pub fn new(interval: Duration) -> Seldom {
        let (count, silent_until_ms) = (AtomicU64::new(0), AtomicU64::new(0));
        Seldom { interval, started: Instant::now(), count, silent_until_ms }
    }

    /// Records that it has happened. Returns the number of times since the last line, if a line is due.
    pub fn note(&self) -> Option<u64> {
        self.note_at(self.started.elapsed())
    }

    fn note_at(&self, now: Duration) -> Option<u64> {
        self.count.fetch_add(1, Ordering::Relaxed);
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (now_ms, next_ms) = (milliseconds(now), milliseconds(now + self.interval));
        let until_ms = self.silent_until_ms.load(Ordering::Relaxed);
        let is_due = now_ms >= until_ms
            && self
                .silent_until_ms
                .compare_exchange(until_ms, next_ms, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        is_due.then(|| self.count.swap(0, Ordering::Relaxed))
    }
}

/// The queue between the threads that log lines and the thread that writes them.
#[derive(Debug, Default)]
struct Queue {
    pending: Mutex<Pending>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Pending {
    lines: VecDeque<String>,
    /// The number of lines that were dropped because too many waited. All of them came after `lines`.
    dropped: u64,
    /// Whether the thread is writing lines that it has taken.
    is_writing: bool,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.dropped == 0
    }
}

impl Queue {
    fn start(log: Log, output: impl Write + AsFd + Send + 'static) -> io::Result<Arc<Queue>> {
        let queue = Arc::new(Queue::default());
        let written = Arc::clone(&queue);
        std::thread::Builder::new().name("log".into()).spawn(move || written.write(log, output))?;
        Ok(queue)
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        // It is consistent at every moment, even if a holder of the lock panicked.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: String) {
        let mut pending = self.pending();
        // Dropped lines are reported before a later line.
        if pending.dropped > 0 || pending.lines.len() == LINES_MAX {
            pending.dropped += 1;
        } else {
            pending.lines.push_back(line);
        }
        self.changed.notify_all();
    }

    /// Writes lines as they arrive, for as long as the process lives.
    fn write(&self, log: Log, mut output: impl Write + AsFd) {
        // The number of lines that were dropped or could not be written, and have not been reported yet.
        let mut lost = 0;
        loop {
            let waiting = self.pending();
            let waiting = self.changed.wait_while(waiting, |pending| pending.is_empty());
            let mut pending = waiting.unwrap_or_else(PoisonError::into_inner);
            let Pending { lines, dropped, .. } = std::mem::take(&mut *pending);
            pending.is_writing = true;
            drop(pending);
            for line in lines {
                lost += u64::from(write_all(&mut output, line.as_bytes()).is_err());
            }
            lost += dropped;
            if lost > 0 {
                let plural = if lost == 1 { " was" } else { "s were" };
                let message =
                    format!("{lost} log line{plural} dropped: standard error took no more");
                let line = log.format("warning", &message);
                // If not even this line can be written, they are reported after a later line.
                if write_all(&mut output, line.as_bytes()).is_ok() {
                    lost = 0;
                }
            }
            self.pending().is_writing = false;
            self.changed.notify_all();
        }
    }

    fn finish(&self, patience: Duration) {
        let is_busy = |pending: &mut Pending| pending.is_writing || !pending.is_empty();
        let _ = self.changed.wait_timeout_while(self.pending(), patience, is_busy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, PipeWriter, Read};
    use std::os::fd::BorrowedFd;
    use std::process::{Command, Stdio};
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    /// Standard error with a slow reader.
    struct Output(SyncSender<String>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let text = String::from_utf8_lossy(bytes).into_owned();
            self.0.send(text).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl AsFd for Output {
        fn as_fd(&self) -> BorrowedFd<'_> {
            unreachable!("it blocks, so nobody waits for room")
        }
    }

    fn queue() -> (Arc<Queue>, Receiver<String>) {
        let (sender, read) = sync_channel(0);
        (Queue::start(Log::Text, Output(sender)).unwrap(), read)
    }

    #[test]
    fn a_line_is_written_at_once_and_finishing_waits_for_it() {
        let (queue, read) = queue();
        queue.push("one\n".into());
        assert_eq!(read.recv().unwrap(), "one\n");
        queue.push("two\n".into());
        let reader = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            read.recv().unwrap()
        });
        queue.finish(Duration::from_secs(60));
        assert!(!queue.pending().is_writing && queue.pending().is_empty());
        assert_eq!(reader.join().unwrap(), "two\n");
    }

    #[test]
    fn an_output_that_takes_nothing_stops_nobody_and_drops_are_counted() {
        let (queue, read) = queue();
        queue.push("first\n".into());
        while !queue.pending().is_writing {
            std::thread::yield_now();
        }
        for line in 0..LINES_MAX + 7 {
            queue.push(format!("{line}\n"));
        }
        let start = Instant::now();
        queue.finish(Duration::from_millis(10));
        assert!(start.elapsed() < Duration::from_secs(30), "finishing is bounded");
        assert_eq!(read.recv().unwrap(), "first\n");
        for line in 0..LINES_MAX {
            assert_eq!(read.recv().unwrap(), format!("{line}\n"));
        }
        let dropped = "warning: 7 log lines were dropped: standard error took no more\n";
        assert_eq!(read.recv().unwrap(), dropped);
        queue.push("last\n".into());
        assert_eq!(read.recv().unwrap(), "last\n");
    }

    #[test]
    fn what_happens_often_is_logged_at_once_and_then_once_per_interval() {
        let seldom = Seldom::new(Duration::from_secs(60));
        let at = |seconds| seldom.note_at(Duration::from_secs(seconds));
        assert_eq!(
            [at(0), at(0), at(59), at(60), at(119), at(500)].map(|due| due.unwrap_or(0)),
            [1, 0, 0, 3, 0, 2]
        );
    }

    #[test]
    fn a_closed_output_stops_nobody() {
        let (queue, read) = queue();
        drop(read);
        for _ in 0..3 * LINES_MAX {
            queue.push("line\n".into());
        }
        queue.finish(Duration::from_secs(60));
        assert!(queue.pending().is_empty());
    }

    #[test]
    fn a_pipe_that_does_not_block_gets_every_line() {
        let (read, write) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&write, true).unwrap();
        let queue = Queue::start(Log::Text, write).unwrap();
        // Together, they exceed the capacity of the pipe.
        let line = |number| format!("{number} {}", "x".repeat(1000));
        (0..LINES_MAX).for_each(|number| queue.push(line(number) + "\n"));
        let mut lines = BufReader::new(read).lines();
        for number in 0..LINES_MAX {
            assert_eq!(lines.next().unwrap().unwrap(), line(number));
        }
    }

    /// An output that refuses a certain line, as a full disk would.
    struct Full(PipeWriter);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match bytes {
                b"refused\n" => Err(ErrorKind::StorageFull.into()),
                _ => self.0.write(bytes),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            self.0.flush()
        }
    }

    impl AsFd for Full {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    #[test]
    fn a_line_that_cannot_be_written_is_counted() {
        let (mut read, write) = io::pipe().unwrap();
        let queue = Queue::start(Log::Text, Full(write)).unwrap();
        queue.push("refused\n".into());
        queue.push("taken\n".into());
        queue.finish(Duration::from_secs(60));
        let mut text = [0; 1000];
        let len = read.read(&mut text).unwrap();
        // The warning comes before or after the second line.
        let mut lines: Vec<&str> = str::from_utf8(&text[..len]).unwrap().lines().collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            ["taken", "warning: 1 log line was dropped: standard error took no more"]
        );
    }

    #[test]
    fn a_panic_of_the_main_thread_is_logged_before_the_process_ends() {
        const CHILD: &str = "RINGTALLY_TEST_PANIC";
        if std::env::var_os(CHILD).is_some() {
            Log::Text.start().unwrap();
            println!("\npanicking");
            let main = std::thread::Builder::new().name("main".into());
            let _ = main.spawn(|| panic!("on purpose")).unwrap().join();
            std::process::exit(101);
        }
        let (mut errors, full) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&full, true).unwrap();
        while rustix::io::write(&full, &[b'\n'; 4096]).is_ok() {}
        rustix::io::ioctl_fionbio(&full, false).unwrap();
        let test = "log::tests::a_panic_of_the_main_thread_is_logged_before_the_process_ends";
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture"]).env(CHILD, "1");
        let mut child = command.stdout(Stdio::piped()).stderr(full).spawn().unwrap();
        // The command keeps the other end of the pipe open.
        drop(command);
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(said.any(|line| line.unwrap() == "panicking"));
        std::thread::sleep(Duration::from_millis(50));
        // The pipe was full until this read.
        let mut text = String::new();
        errors.read_to_string(&mut text).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(101));
        assert!(text.contains("thread main") && text.contains("on purpose"), "{}", text.trim());
    }
}
