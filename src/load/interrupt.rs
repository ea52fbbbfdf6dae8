//! Ctrl-C and SIGTERM. During a run, the first one ends the sending, and the measurements so far are reported. At any
//! other time, and the second time, it ends the process immediately.

use super::taken_terminal;
use procfs::process::Process;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// The exit code of a program that was interrupted, as shells have it for Ctrl-C.
const INTERRUPTED: i32 = 130;

/// No run, a run, or a run that should end. Signals are the process's, and so is this.
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

/// Whether a run of this process was to end, even if that came too late for it.
pub(crate) fn was_asked() -> bool {
    WAS_ASKED.load(Ordering::Relaxed)
}

/// Whether the run should end.
pub(super) fn is_asked() -> bool {
    STATE.load(Ordering::Relaxed) == ASKED
}

/// Asks for the end of the run; the second time, ends the process.
pub(super) fn ask() {
    WAS_ASKED.store(true, Ordering::Relaxed);
    let asked =
        STATE.compare_exchange(RUNNING, ASKED, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    if !asked {
        taken_terminal::restore();
        std::process::exit(INTERRUPTED);
    }
}

/// Starts to wait for signals, except for those that the process was started to ignore. It is done once for the whole
/// life of the process: a handler that was removed would leave the signal ignored.
///
/// # Errors
///
/// If no handler could be installed: then a signal ends the process without a report.
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
    // Set only here, by the one thread that runs a load.
    let _ = LISTENING.set(());
    Ok(())
}

/// The signals that this process ignores, a bit each, as proc_pid_status(5) has them.
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
