//! The terminal while a screen uses it, and how it is restored when the process ends.

use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The longest time that a panic waits for a frame to be drawn. The thread that panicked may be drawing it.
const FRAME_MAX: Duration = Duration::from_millis(100);

/// The screen of this process, for any code that ends the process.
static CURRENT: Mutex<Option<Arc<Taken>>> = Mutex::new(None);

/// Takes the terminal. `give_back` restores it.
pub(super) fn take(give_back: fn()) -> Arc<Taken> {
    let taken = Taken::new(give_back);
    *CURRENT.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&taken));
    taken
}

/// Restores the terminal, if a screen has taken it.
pub(super) fn restore() {
    let current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(taken) = current {
        taken.give_back();
    }
}

/// The state of a terminal that a screen takes. The terminal is given back once: when the run ends, when it is
/// interrupted, or when any thread panics. The lock is held while a frame is drawn, so that no frame is drawn later.
pub(super) struct Taken {
    is_taken: Mutex<bool>,
    give_back: fn(),
}

impl Taken {
    /// Arranges for `give_back` to run before the message of the next panic, so that the message can be read.
    fn new(give_back: fn()) -> Arc<Taken> {
        let taken = Arc::new(Taken { is_taken: Mutex::new(true), give_back });
        let (of_hook, previous) = (Arc::clone(&taken), std::panic::take_hook());
        std::panic::set_hook(Box::new(move |panic| {
            of_hook.give_back();
            previous(panic);
        }));
        taken
    }

    /// Reports whether the screen still has the terminal.
    pub(super) fn is_taken(&self) -> bool {
        *self.is_taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Draws a frame, unless the terminal was given back.
    pub(super) fn draw(&self, frame: impl FnOnce()) {
        let is_taken = self.is_taken.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_taken {
            frame();
        }
    }

    /// Restores the terminal, unless it has been restored.
    pub(super) fn give_back(&self) {
        let deadline = Instant::now() + FRAME_MAX;
        let locked = loop {
            match self.is_taken.try_lock() {
                Ok(locked) => break Some(locked),
                Err(TryLockError::Poisoned(poisoned)) => break Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => break None,
                Err(TryLockError::WouldBlock) => sleep(Duration::from_millis(1)),
            }
        };
        let was_taken = locked.is_none_or(|mut is_taken| std::mem::replace(&mut *is_taken, false));
        if was_taken {
            (self.give_back)();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Nothing else in this process may panic during this test, or the hook would give back the terminal first.
    #[test]
    fn a_panic_in_any_thread_gives_the_terminal_back_once() {
        static GIVEN_BACK: AtomicUsize = AtomicUsize::new(0);
        let count = || {
            GIVEN_BACK.fetch_add(1, Ordering::SeqCst);
        };
        let taken = Taken::new(count);
        let mut frames = 0;
        taken.draw(|| frames += 1);
        assert!(std::thread::spawn(|| panic!("a client thread, on purpose")).join().is_err());
        assert_eq!(GIVEN_BACK.load(Ordering::SeqCst), 1);
        taken.draw(|| frames += 1);
        assert_eq!(frames, 1, "nothing is drawn on a terminal that was given back");
        taken.give_back();
        assert_eq!(GIVEN_BACK.load(Ordering::SeqCst), 1);
        // The thread that draws may panic, too.
        let taken = Taken::new(count);
        let of_thread = Arc::clone(&taken);
        let drawing = std::thread::spawn(move || of_thread.draw(|| panic!("a frame, on purpose")));
        assert!(drawing.join().is_err());
        assert_eq!(GIVEN_BACK.load(Ordering::SeqCst), 2);
    }
}
