//! The pacing of a shard of the ring engine: what it does when it does not have work, how long it polls, when it reads the
//! clock, and when it yields the thread.

use super::{Spin, TICK, milliseconds};
use crate::uring::Wait;
use std::time::{Duration, Instant};

/// A shard without work for one to two times this duration goes to sleep; until then it waits without a timeout. One timer per
/// idle period costs nothing per request; a timeout per wait would make the kernel program a timer each time.
pub(super) const IDLE_AFTER: Duration = Duration::from_millis(10);

/// The interval between clock checks of a sleeping shard while nothing is due.
const IDLE_TICK: Duration = Duration::from_secs(1);
/// The number of iterations, and of completions, before glommio's other tasks get their turn.
const ITERATIONS_BEFORE_YIELD: u32 = 128;
const COMPLETIONS_BEFORE_YIELD: usize = 1024;

/// The maximum time that `--spin-us auto` polls, and the maximum number of connections with input
/// since the last tick for it to poll at all: with more connections, a wake-up serves enough
/// requests that polling would cost more than it gains.
const AUTO_SPIN_MAX: Duration = Duration::from_micros(50);
const AUTO_SPIN_CONNECTIONS_MAX: usize = 16;

/// The state of the current idle period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IdlePeriod {
    /// The idle timer is not set.
    Unmeasured,
    /// The idle timer is set, and there has been no work since.
    Quiet,
    /// The idle timer is set, and there was work since.
    Busy,
    /// The idle timer has run out without any work: the shard sleeps.
    Asleep,
}

/// The pacing of a shard.
#[derive(Debug)]
pub(super) struct Pacing {
    polling: Polling,
    /// The kind of wait for work while it is not asleep.
    pub(super) wait: Wait,
    idle_period: IdlePeriod,
    /// The iterations and completions left in this turn on the thread; zero iterations after an interruption.
    iterations_left: u32,
    completions_left: usize,
    started: Instant,
    /// The times when the last iteration had received its input, and had handled it.
    received_at: Instant,
    handled_at: Instant,
    /// The time of the last check of all connections' deadlines, and of the next, in milliseconds since the start.
    ticked_ms: u64,
    next_tick_ms: u64,
}

impl Pacing {
    /// Creates the pacing of a shard that starts now. If `gather` is not zero, the shard gathers completions for that time,
    /// blocked in the kernel, and does not poll.
    pub(super) fn new(spin: Spin, gather: Duration, now: Instant) -> Pacing {
        let gathers = !gather.is_zero();
        Pacing {
            polling: Polling::new(if gathers { Spin::Fixed(Duration::ZERO) } else { spin }),
            wait: if gathers { Wait::Gather(gather) } else { Wait::One },
            idle_period: IdlePeriod::Unmeasured,
            iterations_left: 0,
            completions_left: 0,
            started: now,
            received_at: now,
            handled_at: now,
            ticked_ms: 0,
            next_tick_ms: 0,
        }
    }

    /// Converts a time to milliseconds since the start of the shard.
    pub(super) fn ms_at(&self, time: Instant) -> u64 {
        milliseconds(time - self.started)
    }

    /// Begins a turn on the thread.
    pub(super) fn begin_turn(&mut self) {
        self.iterations_left = ITERATIONS_BEFORE_YIELD;
        self.completions_left = COMPLETIONS_BEFORE_YIELD;
    }

    /// Begins an iteration. Returns whether the turn on the thread allows it.
    pub(super) fn begin_iteration(&mut self) -> bool {
        if self.iterations_left == 0 || self.completions_left == 0 {
            return false;
        }
        self.iterations_left -= 1;
        true
    }

    /// Ends the turn on the thread, because other tasks must have theirs.
    pub(super) fn interrupt(&mut self) {
        self.iterations_left = 0;
    }

    /// Returns whether the turn on the thread has ended.
    pub(super) fn is_interrupted(&self) -> bool {
        self.iterations_left == 0
    }

    /// Begins an idle period, unless it has already begun. Returns whether the idle timer must be set to [`IDLE_AFTER`].
    pub(super) fn begin_idle_period(&mut self) -> bool {
        let begins = self.idle_period == IdlePeriod::Unmeasured;
        if begins {
            self.idle_period = IdlePeriod::Quiet;
        }
        begins
    }

    /// Notes that the idle timer has run out, which ends the turn on the thread.
    pub(super) fn note_timer(&mut self) {
        let had_work = self.idle_period == IdlePeriod::Busy;
        self.idle_period = if had_work { IdlePeriod::Unmeasured } else { IdlePeriod::Asleep };
        self.interrupt();
    }

    /// Notes that there was work.
    pub(super) fn note_work(&mut self) {
        self.idle_period = match self.idle_period {
            IdlePeriod::Unmeasured | IdlePeriod::Asleep => IdlePeriod::Unmeasured,
            IdlePeriod::Quiet | IdlePeriod::Busy => IdlePeriod::Busy,
        };
        // There may be new deadlines.
        self.next_tick_ms = self.next_tick_ms.min(self.ticked_ms + milliseconds(TICK));
    }

    /// Returns whether the shard sleeps.
    pub(super) fn is_asleep(&self) -> bool {
        self.idle_period == IdlePeriod::Asleep
    }

    /// Notes that an iteration has received what it handles.
    pub(super) fn note_received(&mut self, at: Instant) {
        (self.received_at, self.handled_at) = (at, at);
    }

    /// Notes that an iteration has handled this many completions. Returns how long that took.
    pub(super) fn note_handled(&mut self, completions: usize) -> Duration {
        self.completions_left = self.completions_left.saturating_sub(completions);
        self.handled_at = Instant::now();
        self.handled_at - self.received_at
    }

    /// Returns the time when the shard began to wait for work.
    pub(super) fn waiting_since(&self) -> Instant {
        self.handled_at
    }

    /// Returns how long to poll before a wait if this many connections were recently active.
    pub(super) fn polls_for(&self, active_connections: usize) -> Duration {
        self.polling.duration(active_connections)
    }

    /// Learns from a wait for work that began at this time and has ended.
    pub(super) fn learn(&mut self, waiting_since: Instant) {
        if !self.is_asleep() {
            self.polling.learn(self.received_at - waiting_since);
        }
    }

    /// Returns whether all connections must be checked.
    pub(super) fn is_tick_due(&self, now_ms: u64) -> bool {
        now_ms >= self.next_tick_ms
    }

    /// Returns how long a sleeping shard may wait for work.
    pub(super) fn sleeps_for(&self, now_ms: u64) -> Duration {
        Duration::from_millis(self.next_tick_ms.saturating_sub(now_ms))
    }

    /// Notes a tick and the next deadline. The next tick is at least [`TICK`] away.
    pub(super) fn note_tick(&mut self, now_ms: u64, due_ms: u64) {
        self.ticked_ms = now_ms;
        self.next_tick_ms =
            due_ms.min(now_ms + milliseconds(IDLE_TICK)).max(now_ms + milliseconds(TICK));
    }
}

/// The time to poll before waiting, learned from earlier waits for completions.
#[derive(Debug)]
pub(super) struct Polling {
    spin: Spin,
    /// A moving average of the waits for completions.
    gap: Duration,
}

impl Polling {
    pub(super) fn new(spin: Spin) -> Self {
        Polling { spin, gap: AUTO_SPIN_MAX * 2 }
    }

    /// Returns how long to poll now. `auto` polls, for up to twice the usual gap, while few connections are active and
    /// completions arrive soon enough for polling to pay off.
    pub(super) fn duration(&self, active_connections: usize) -> Duration {
        match self.spin {
            Spin::Fixed(spin) => spin,
            Spin::Auto if self.gap > AUTO_SPIN_MAX => Duration::ZERO,
            Spin::Auto if active_connections > AUTO_SPIN_CONNECTIONS_MAX => Duration::ZERO,
            Spin::Auto => (2 * self.gap).min(AUTO_SPIN_MAX),
        }
    }

    /// Learns from a wait that ended with a completion.
    pub(super) fn learn(&mut self, gap: Duration) {
        // Long gaps are capped so that the average recovers quickly.
        self.gap = (7 * self.gap + gap.min(4 * AUTO_SPIN_MAX)) / 8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_polls_only_where_completions_come_soon_on_few_connections() {
        let mut polling = Polling::new(Spin::Auto);
        assert_eq!(polling.duration(1), Duration::ZERO, "nothing is known yet");
        (0..50).for_each(|_| polling.learn(Duration::from_micros(10)));
        assert!(polling.duration(AUTO_SPIN_CONNECTIONS_MAX) >= Duration::from_micros(10));
        assert!(polling.duration(1) <= AUTO_SPIN_MAX);
        assert_eq!(polling.duration(AUTO_SPIN_CONNECTIONS_MAX + 1), Duration::ZERO);
        (0..50).for_each(|_| polling.learn(Duration::from_secs(1)));
        assert_eq!(polling.duration(1), Duration::ZERO);
        assert_eq!(Polling::new(Spin::Fixed(IDLE_AFTER)).duration(1000), IDLE_AFTER);
    }

    fn asleep(now: Instant) -> Pacing {
        let mut pacing = Pacing::new(Spin::Auto, Duration::ZERO, now);
        assert!(pacing.begin_idle_period(), "the timer has to be set");
        pacing.note_timer();
        assert!(pacing.is_asleep());
        pacing
    }

    #[test]
    fn a_shard_sleeps_once_the_idle_timer_has_run_out_without_work() {
        let now = Instant::now();
        let mut pacing = Pacing::new(Spin::Auto, Duration::ZERO, now);
        assert!(pacing.begin_idle_period());
        assert!(!pacing.begin_idle_period(), "it is set");
        pacing.note_work();
        pacing.note_timer();
        assert!(!pacing.is_asleep(), "there was work");
        assert!(pacing.begin_idle_period(), "it has to be set again");
        pacing.note_timer();
        assert!(pacing.is_asleep());
        pacing.note_work();
        assert!(!pacing.is_asleep() && pacing.begin_idle_period());
    }

    #[test]
    fn a_turn_ends_after_its_iterations_or_completions_or_when_it_is_interrupted() {
        let mut pacing = Pacing::new(Spin::Auto, Duration::ZERO, Instant::now());
        assert!(!pacing.begin_iteration(), "it has not begun");
        pacing.begin_turn();
        let iterations = std::iter::from_fn(|| pacing.begin_iteration().then_some(())).count();
        assert_eq!(iterations, ITERATIONS_BEFORE_YIELD as usize);
        pacing.begin_turn();
        pacing.note_handled(COMPLETIONS_BEFORE_YIELD - 1);
        assert!(pacing.begin_iteration());
        pacing.note_handled(1);
        assert!(!pacing.begin_iteration());
        pacing.begin_turn();
        pacing.interrupt();
        assert!(pacing.is_interrupted() && !pacing.begin_iteration());
    }

    #[test]
    fn a_sleeping_shard_wakes_for_the_first_deadline_but_not_before_the_next_tick() {
        let mut pacing = asleep(Instant::now());
        let (tick_ms, idle_ms) = (milliseconds(TICK), milliseconds(IDLE_TICK));
        pacing.note_tick(1_000, u64::MAX);
        assert_eq!(pacing.sleeps_for(1_000), IDLE_TICK);
        pacing.note_tick(1_000, 1_000 + idle_ms - 1);
        assert_eq!(pacing.sleeps_for(1_000), IDLE_TICK - Duration::from_millis(1));
        pacing.note_tick(1_000, 1_001);
        assert_eq!(pacing.sleeps_for(1_000), TICK);
        assert!(!pacing.is_tick_due(999 + tick_ms) && pacing.is_tick_due(1_000 + tick_ms));
        // Work creates deadlines that are not known yet.
        pacing.note_tick(2_000, u64::MAX);
        pacing.note_work();
        assert_eq!(pacing.sleeps_for(2_000), TICK);
    }

    #[test]
    fn who_gathers_does_not_poll() {
        let gather = Duration::from_micros(50);
        let mut pacing = Pacing::new(Spin::Fixed(IDLE_AFTER), gather, Instant::now());
        pacing.learn(pacing.waiting_since());
        assert_eq!((pacing.polls_for(1), pacing.wait), (Duration::ZERO, Wait::Gather(gather)));
    }
}
