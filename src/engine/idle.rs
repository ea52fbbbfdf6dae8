//! What an idle shard does before it sleeps: how long it polls, and when a lull is long enough.

use super::Spin;
use std::time::Duration;

/// A shard without work for one to two of these goes to sleep; until then it waits without a
/// timeout. One timer per lull costs nothing per request; a timeout per wait would make the kernel
/// program a timer each time.
pub(super) const IDLE_AFTER: Duration = Duration::from_millis(10);

/// The most that `--spin-us auto` polls, and the most connections with input since the last tick
/// for it to poll at all: with more, a wake-up is shared by so many requests that polling would
/// cost more than it gains.
const AUTO_SPIN_MAX: Duration = Duration::from_micros(50);
const AUTO_SPIN_CONNECTIONS_MAX: usize = 16;

/// What is known of the present lull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lull {
    /// The idle timer is not set.
    Unmeasured,
    /// The idle timer is set, and there was no work since.
    Quiet,
    /// The idle timer is set, and there was work since.
    Busy,
    /// The idle timer has run out without any work: the shard sleeps.
    Asleep,
}

/// How long to poll before waiting, learned from how long completions were waited for.
#[derive(Debug)]
pub(super) struct Polling {
    spin: Spin,
    /// A moving average of how long completions were waited for.
    gap: Duration,
}

impl Polling {
    pub(super) fn new(spin: Spin) -> Self {
        Polling { spin, gap: AUTO_SPIN_MAX * 2 }
    }

    /// How long to poll now. `auto` polls while few connections are active and completions come
    /// soon enough for it to pay: up to twice the usual gap.
    pub(super) fn duration(&self, active_connections: usize) -> Duration {
        match self.spin {
            Spin::Fixed(spin) => spin,
            Spin::Auto if self.gap > AUTO_SPIN_MAX => Duration::ZERO,
            Spin::Auto if active_connections > AUTO_SPIN_CONNECTIONS_MAX => Duration::ZERO,
            Spin::Auto => (2 * self.gap).min(AUTO_SPIN_MAX),
        }
    }

    /// Learns from a wait that a completion has ended.
    pub(super) fn learn(&mut self, gap: Duration) {
        // Long gaps count as just long: the average must come back soon.
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
}
