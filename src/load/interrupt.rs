//! Handles Ctrl-C and SIGTERM. During a run, the first signal stops the sending, and the report has the measurements
//! made until then. A second signal, or a signal at any other time, ends the process immediately.

use super::taken_terminal;
use procfs::process::Process;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// The exit code of a program that was interrupted, the same as shells use for Ctrl-C.
const INTERRUPTED: i32 = 130;

/// The state of the process: no run, a run, or a run that should end. It is global because signals are sent to the
/// whole process.
static STATE: AtomicU8 = AtomicU8::new(IDLE);
const IDLE: u8 = 0;
const RUNNING: u8 = 1;
const ASKED: u8 = 2;
static WAS_ASKED: AtomicBool = AtomicBool::new(false);

/// A run that can be interrupted, until it is dropped.
pub(super) struct Running(());

impl Running {
    /// Begins a run.
    pub(super) fn begin() -> Running {
        STATE.store(RUNNING, Ordering::Relaxed);
        Running(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        STATE.store(IDLE, Ordering::Relaxed);
    }
}

/// Reports whether the user asked to end a run of this process, even if the request came too late for the run.
pub(crate) fn was_asked() -> bool {
    WAS_ASKED.load(Ordering::Relaxed)
}

/// Reports whether the run should end.
pub(super) fn is_asked() -> bool {
    STATE.load(Ordering::Relaxed) == ASKED
}

/// Asks the run to end. A second call ends the process.
pub(super) fn ask() {
    WAS_ASKED.store(true, Ordering::Relaxed);
    let asked =
        STATE.compare_exchange(RUNNING, ASKED, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    if !asked {
        taken_terminal::restore();
        std::process::exit(INTERRUPTED);
    }
}

/// Starts to wait for signals, except for those that the process was started to ignore. This is done only once in the
/// life of the process, because removing a handler would leave its signal ignored.
///
/// # Errors
///
/// Fails if a handler cannot be installed. In that case, a signal ends the process without a report.
pub(super) fn listen() -> io::Result<()> {
    static LISTENING: OnceLock<()> = OnceLock::new();
    if LISTENING.get().is_some() {
        return Ok(());
    }
    let ignored = ignored_signals();
    let wanted = [SIGINT, SIGTERM].into_iter().filter(|signal| !is_in(ignored, *signal));
    let mut signals = Signals::new(wanted)?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || signals.forever().for_each(|_| ask()))?;
    // This is the only place that sets it, on the only thread that runs a load.
    let _ = LISTENING.set(());
    Ok(())
}

/// Returns the signals that this process ignores, one bit each, as in proc_pid_status(5).
fn ignored_signals() -> u64 {
    Process::myself().and_then(|myself| myself.status()).map_or(0, |status| status.sigign)
}

fn is_in(mask: u64, signal: i32) -> bool {
    mask >> (signal - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_bits_from_one_on() {
        // SIGINT is 2 and SIGTERM is 15.
        assert!(is_in(0b10, SIGINT) && !is_in(0b10, SIGTERM));
        assert!(is_in(1 << 14, SIGTERM) && !is_in(1 << 14, SIGINT));
    }
}
