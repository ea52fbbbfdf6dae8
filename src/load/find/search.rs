//! Chooses the next rate from the results of earlier windows, as a pure function.
//!
//! The rate doubles, or halves, until one rate holds and a higher rate does not. From then on, the next rate is the
//! geometric mean of both, until they are close. Windows are noisy, so a rate is judged by the majority of its windows,
//! and the two deciding rates are judged by more windows. If that reverses the judgement, the search continues. A
//! window that fails while the client was the limit reveals little about the server: it counts only if that happens
//! repeatedly. A rate whose windows hold individually holds only if its backlog does not grow on average over all of
//! them, and is confirmed once that is certain.

use crate::load::RATE_MAX;
use crate::load::figures::Measured;
use crate::load::flow::{GROWTH_HELD, Trend};
use crate::load::report::Latency;
use std::collections::BTreeMap;

/// The greatest final ratio between the rate that does not hold and the rate that holds.
const PRECISION: f64 = 1.02;
/// The number of windows of a rate that must agree, out of 3 to 5 conclusive ones.
const AGREE: usize = 3;
/// The number of windows of each deciding rate that must agree at the end, out of 5 to 9.
const AGREE_CONFIRMED: usize = 5;
/// The multiples of that number of windows that may be tried before client-limited windows count, too. The first
/// applies if no window held, and the second if some did.
const PATIENCE: [usize; 2] = [2, 4];
/// The number of windows of a rate that are tried to learn whether its backlog grows. If that is still unclear, the
/// rate does not hold.
const TREND_WINDOWS_MAX: usize = 12;
/// The most windows of a search. A search that needs more runs on a machine that is too noisy for a result.
const WINDOWS_MAX: usize = 250;

/// The result of one window of a rate.
#[derive(Clone, Debug)]
pub(in crate::load) struct Window {
    /// Whether the condition certainly held, the rate was sent as intended, and every request was acknowledged.
    pub(in crate::load) holds: bool,
    /// The reason why the window does not hold, in words.
    pub(in crate::load) why_not: Option<String>,
    /// The growth of the backlog as a share of the rate, if that is known.
    pub(in crate::load) growth: Option<f64>,
    pub(in crate::load) requests_per_s: f64,
    pub(in crate::load) is_client_limited: bool,
    pub(in crate::load) latency: Latency,
    /// The figures of the thresholds, in their order.
    pub(in crate::load) measured: Vec<Measured>,
}

/// The results of a rate's windows.
#[derive(Clone, Debug, Default)]
pub(in crate::load) struct Step {
    pub(in crate::load) windows: Vec<Window>,
}

impl Step {
    /// Returns the number of windows that met the condition.
    pub(in crate::load) fn held(&self) -> usize {
        self.windows.iter().filter(|window| window.holds).count()
    }

    /// Returns the number of windows that failed while the client was not the limit.
    fn failed(&self) -> usize {
        self.windows.iter().filter(|window| !window.holds && !window.is_client_limited).count()
    }

    /// Reports whether the rate holds in most of the windows that count.
    fn holds_in_most(&self) -> bool {
        let is_enough = self.held() + self.failed() >= AGREE;
        let against = if is_enough { self.failed() } else { self.windows.len() - self.held() };
        self.held() > against
    }

    /// Returns the growth of the backlog in the windows that held.
    fn trend(&self) -> Trend {
        let held = self.windows.iter().filter(|window| window.holds);
        Trend::of(&held.filter_map(|window| window.growth).collect::<Vec<_>>())
    }

    /// Reports whether the rate holds, as far as is known.
    pub(in crate::load) fn holds(&self) -> bool {
        self.holds_in_most()
            && match self.trend() {
                Trend::Steady => true,
                Trend::Grows { .. } => false,
                Trend::Unclear { share, .. } => share < GROWTH_HELD && !self.is_spent(),
            }
    }

    /// Returns the reason why the rate does not hold although most of its windows do.
    pub(in crate::load) fn why_not(&self) -> Option<String> {
        let is_told = self.holds_in_most() && !self.holds();
        is_told.then(|| self.trend().why_not()).flatten()
    }

    /// Reports whether the rate has had as many windows as may be tried to learn its trend.
    fn is_spent(&self) -> bool {
        self.windows.len() >= TREND_WINDOWS_MAX
    }

    /// Reports whether the client was the limit in most windows.
    pub(in crate::load) fn is_client_limited(&self) -> bool {
        2 * self.windows.iter().filter(|window| window.is_client_limited).count()
            > self.windows.len()
    }

    /// Reports whether this number of windows agree, or whether there have been enough windows. At the end of a search,
    /// the trend must be clear as well.
    fn is_decided(&self, agree: usize) -> bool {
        let patience = PATIENCE[usize::from(self.held() > 0)];
        let is_counted =
            self.held().max(self.failed()) >= agree || self.windows.len() >= patience * agree;
        let is_clear = agree < AGREE_CONFIRMED
            || !self.holds_in_most()
            || !matches!(self.trend(), Trend::Unclear { .. });
        is_counted && (is_clear || self.is_spent())
    }
}

/// A search for the highest rate that holds.
#[derive(Debug)]
pub(in crate::load) struct Search {
    first: u64,
    /// The lowest rate that may be tried.
    least: u64,
    steps: BTreeMap<u64, Step>,
}

impl Search {
    /// Creates a search that begins with a rate, and does not try rates below `least`.
    pub(in crate::load) fn new(first: u64, least: u64) -> Search {
        let least = least.clamp(1, RATE_MAX);
        Search { first: first.clamp(least, RATE_MAX), least, steps: BTreeMap::new() }
    }

    /// Adds the result of a window.
    pub(in crate::load) fn add(&mut self, rate: u64, window: Window) {
        self.steps.entry(rate).or_default().windows.push(window);
    }

    /// Returns the results of all windows, by rate.
    pub(in crate::load) fn steps(&self) -> &BTreeMap<u64, Step> {
        &self.steps
    }

    /// Returns the lowest rate that does not hold.
    pub(in crate::load) fn fails_at(&self) -> Option<u64> {
        self.steps.iter().find(|(_, step)| !step.holds()).map(|(rate, _)| *rate)
    }

    /// Returns the highest rate that holds together with every lower rate.
    pub(in crate::load) fn holds_at(&self) -> Option<u64> {
        let below = self.fails_at().unwrap_or(u64::MAX);
        self.steps.range(..below).next_back().map(|(rate, _)| *rate)
    }

    /// Returns the lowest rate that may be tried.
    pub(in crate::load) fn least(&self) -> u64 {
        self.least
    }

    /// Reports whether the answer is confirmed.
    pub(in crate::load) fn is_settled(&self) -> bool {
        self.wanted().is_none()
    }

    /// Returns the rate of the next window; `None` at the end.
    pub(in crate::load) fn next(&self) -> Option<u64> {
        let windows: usize = self.steps.values().map(|step| step.windows.len()).sum();
        self.wanted().filter(|_| windows < WINDOWS_MAX)
    }

    fn wanted(&self) -> Option<u64> {
        let needs_more = |agree: usize| {
            move |rate: &u64| self.steps.get(rate).is_some_and(|step| !step.is_decided(agree))
        };
        if let Some(rate) = self.steps.keys().find(|rate| needs_more(AGREE)(rate)) {
            return Some(*rate);
        }
        match (self.holds_at(), self.fails_at()) {
            (None, None) => return Some(self.first),
            (Some(low), None) if low < RATE_MAX => {
                return Some(low.saturating_mul(2).min(RATE_MAX));
            }
            (None, Some(high)) if high > self.least => return Some((high / 2).max(self.least)),
            (Some(low), Some(high)) if high > low + 1 && high as f64 > low as f64 * PRECISION => {
                #[allow(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "it is between two rates"
                )]
                let between = (low as f64 * high as f64).sqrt().round() as u64;
                return Some(between.clamp(low + 1, high - 1));
            }
            _ => {}
        }
        let deciding = [self.holds_at(), self.fails_at()];
        deciding.into_iter().flatten().find(needs_more(AGREE_CONFIRMED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::latency::Latencies;

    fn window(holds: bool) -> Window {
        let latency = Latency::of(&Latencies::new());
        let is_client_limited = false;
        let (growth, measured) = (Some(0.0), Vec::new());
        Window {
            holds,
            why_not: None,
            growth,
            requests_per_s: 0.0,
            is_client_limited,
            latency,
            measured,
        }
    }

    /// A simulated server: a queue with one worker, whose 99th percentile grows without bound as the rate approaches
    /// the capacity. Windows are noisy, and some are disturbed.
    struct Simulated {
        random: fastrand::Rng,
        capacity: f64,
        noise: f64,
        disturbed: f64,
    }

    impl Simulated {
        /// Returns the 99th percentile as a multiple of the time that one request takes.
        fn p99(&mut self, rate: u64) -> f64 {
            let load = rate as f64 / self.capacity;
            let truth = if load < 1.0 { 100_f64.ln() / (1.0 - load) } else { f64::INFINITY };
            let noise = 1.0 + self.noise * (self.random.f64() - 0.5);
            let disturbed = if self.random.f64() < self.disturbed { 20.0 } else { 1.0 };
            truth * noise * disturbed
        }

        /// Returns the rate that makes the 99th percentile this multiple of one request's time.
        fn knee(&self, limit: f64) -> f64 {
            self.capacity * (1.0 - 100_f64.ln() / limit)
        }
    }

    fn search(first: u64, mut holds: impl FnMut(u64) -> bool) -> Search {
        let mut search = Search::new(first, 1);
        while let Some(rate) = search.next() {
            let holds = holds(rate);
            search.add(rate, window(holds));
        }
        search
    }

    #[test]
    fn the_knee_of_a_simulated_server_is_found_within_5_percent() {
        let mut tries = 0;
        let mut windows = 0;
        for seed in 0..40 {
            for capacity in [120.0, 7000.0, 45_000.0, 3.2e6] {
                for (noise, disturbed) in [(0.0, 0.0), (0.2, 0.0), (0.1, 0.05)] {
                    let random = fastrand::Rng::with_seed(seed);
                    let mut server = Simulated { random, capacity, noise, disturbed };
                    let limit = 20.0 + seed as f64;
                    let knee = server.knee(limit);
                    let found = search(1000, |rate| server.p99(rate) < limit);
                    assert!(found.is_settled());
                    let [low, high] =
                        [found.holds_at(), found.fails_at()].map(|rate| rate.unwrap());
                    let error = (low as f64 / knee - 1.0).abs();
                    // Rates are whole numbers.
                    assert!(
                        error < 0.05 || (low as f64 - knee).abs() <= 1.0,
                        "{low} {knee} {seed}"
                    );
                    assert!(high as f64 <= low as f64 * PRECISION || high == low + 1);
                    let is_confirmed = |rate| found.steps()[&rate].is_decided(AGREE_CONFIRMED);
                    assert!(is_confirmed(low) && is_confirmed(high));
                    tries += 1;
                    windows += found.steps().values().map(|step| step.windows.len()).sum::<usize>();
                }
            }
        }
        assert!(windows / tries < 80, "{} windows on average", windows / tries);
    }

    /// Other work on the machine keeps the client from its CPU in a quarter of the windows.
    #[test]
    fn windows_in_which_the_client_was_held_up_do_not_hide_the_knee() {
        for seed in 0..40 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut search = Search::new(1000, 1);
            while let Some(rate) = search.next() {
                let is_client_limited = random.f64() < 0.25;
                let holds = rate < 50_000 && !is_client_limited;
                search.add(rate, Window { is_client_limited, ..window(holds) });
            }
            let low = search.holds_at().unwrap() as f64;
            assert!((47_500.0..=50_000.0).contains(&low), "{low} with seed {seed}");
        }
    }

    #[test]
    fn a_client_that_cannot_send_a_rate_ends_the_search_there() {
        let mut search = Search::new(1000, 1);
        while let Some(rate) = search.next() {
            let holds = rate < 50_000;
            search.add(rate, Window { is_client_limited: !holds, ..window(holds) });
        }
        let (low, high) = (search.holds_at().unwrap(), search.fails_at().unwrap());
        assert!((49_000..50_000).contains(&low) && search.steps()[&high].is_client_limited());
    }

    #[test]
    fn a_search_without_noise_takes_few_windows() {
        let found = search(1000, |rate| rate < 77_000);
        let windows: usize = found.steps().values().map(|step| step.windows.len()).sum();
        assert!(windows <= 3 * 15 + 4, "{windows}");
    }

    #[test]
    fn a_rate_that_turns_out_not_to_hold_is_searched_again() {
        // Rates below 50,000 hold for a while, and from then on only rates below 40,000.
        let mut windows = 0;
        let found = search(1000, |rate| {
            windows += 1;
            rate < if windows < 40 { 50_000 } else { 40_000 }
        });
        let low = found.holds_at().unwrap() as f64;
        assert!((38_000.0..=40_000.0).contains(&low), "{low}");
    }

    #[test]
    fn no_rate_any_rate_and_no_decision_end_too() {
        let none = search(1000, |_| false);
        assert_eq!((none.holds_at(), none.fails_at(), none.is_settled()), (None, Some(1), true));
        let any = search(1000, |_| true);
        assert_eq!((any.holds_at(), any.fails_at()), (Some(RATE_MAX), None));
        let mut random = fastrand::Rng::with_seed(1);
        search(1000, |_| random.bool());
    }

    #[test]
    fn the_client_is_the_limit_of_a_rate_if_it_is_in_most_windows() {
        let mut step = Step::default();
        for (is_client_limited, expected) in [(true, true), (false, false), (true, true)] {
            step.windows.push(Window { is_client_limited, ..window(false) });
            assert_eq!(step.is_client_limited(), expected);
        }
    }
}
