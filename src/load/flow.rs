//! Decides whether a server completes the requests that it is sent, from the growth of the backlog over a window.
//!
//! Latencies alone do not show that a server falls behind, because the window may end before the backlog has grown to
//! the limit. The backlog, which consists of the events that were due and are not acknowledged, must therefore not grow.

use super::shared::Progress;
use crossbeam_utils::CachePadded;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The number of samples per window.
pub(super) const SAMPLES: u32 = 64;
/// The least number of samples for a trend. If there are fewer, the thread that takes them did not get its CPU.
const SAMPLES_MIN: usize = 8;
/// The least share of a window that connections and caches get to warm up.
const START_SHARE: f64 = 0.125;
/// The least growth of the backlog, as a share of the rate, that fails a single window. Less growth may be chance, and
/// is judged over several windows.
const GROWTH_MAX: f64 = 0.1;
/// Growth up to this share of the rate is an artifact of sampling and of counting whole events.
const GROWTH_NOISE: f64 = 0.002;
/// A rate holds if the backlog grows by less than this share of the rate. The remaining share must be sent.
pub(super) const GROWTH_HELD: f64 = 0.01;

/// The 95% quantiles of Student's t distribution for 1 to 12 degrees of freedom. The last quantile, which is slightly
/// too great, is also used for more degrees of freedom.
const T95: [f64; 12] =
    [6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782];

/// The number of acknowledged events at some moments of a run, with the seconds since the start for each.
#[derive(Clone, Debug, Default)]
pub(super) struct Flow {
    samples: Vec<(f64, u64)>,
}

impl Flow {
    /// Samples the threads' progress until `is_over` is set.
    pub(super) fn watch(
        every: Duration,
        progress: &[CachePadded<Progress>],
        is_over: &AtomicBool,
    ) -> Flow {
        let started = Instant::now();
        let mut flow = Flow::default();
        while !is_over.load(Ordering::Acquire) {
            let at_s = started.elapsed().as_secs_f64();
            let acknowledged =
                |thread: &CachePadded<Progress>| thread.acknowledged.load(Ordering::Acquire);
            flow.samples.push((at_s, progress.iter().map(acknowledged).sum()));
            std::thread::sleep(every);
        }
        flow
    }

    /// Creates a flow from samples.
    #[cfg(test)]
    pub(super) fn of(samples: Vec<(f64, u64)>) -> Flow {
        Flow { samples }
    }

    /// Returns the growth of the backlog as a share of the rate: the slope of a straight line through it, by least
    /// squares. Returns `None` if there are too few samples. The start of a window at `rate` events per second that
    /// lasts `window_s` is left out, because the backlog grows in any case until requests have had the longest time
    /// that they may take.
    pub(super) fn growth(&self, rate: f64, window_s: f64, limit_s: f64) -> Option<f64> {
        let start_s = limit_s.max(window_s * START_SHARE);
        let points: Vec<(f64, f64)> = self
            .samples
            .iter()
            .filter(|(at_s, _)| (start_s..=window_s).contains(at_s))
            .map(|(at_s, acknowledged)| (*at_s, rate * at_s - *acknowledged as f64))
            .collect();
        if points.len() < SAMPLES_MIN {
            return None;
        }
        let count = points.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
        let (mean_s, mean_backlog) = (mean(|point| point.0), mean(|point| point.1));
        let (mut covariance, mut variance) = (0.0, 0.0);
        for (at_s, backlog) in points {
            covariance += (at_s - mean_s) * (backlog - mean_backlog);
            variance += (at_s - mean_s).powi(2);
        }
        Some(covariance / variance / rate)
    }

    /// Reports whether this growth of the backlog fails a single window.
    pub(super) fn falls_behind(growth: Option<f64>) -> bool {
        growth.is_some_and(|growth| growth >= GROWTH_MAX)
    }

    /// Returns the reason why this growth of the backlog fails a single window, if it does.
    pub(super) fn why_not(growth: Option<f64>) -> Option<String> {
        match growth {
            None => Some("too few samples of the backlog: the client was kept from its CPU".into()),
            Some(growth) if Flow::falls_behind(Some(growth)) => Some(format!(
                "{:.1}% of the rate was completed, and the rest added to the backlog",
                (1.0 - growth) * 100.0
            )),
            Some(_) => None,
        }
    }
}

/// The trend of the backlog over several windows of one rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Trend {
    /// The backlog does not grow, or grows by less than [`GROWTH_HELD`].
    Steady,
    Grows {
        share: f64,
    },
    /// Neither case is certain at 95%.
    Unclear {
        share: f64,
        most: f64,
    },
}

impl Trend {
    /// Determines the trend from the growth in each window. The windows are independent of each other, unlike the
    /// samples of a single window.
    pub(super) fn of(growths: &[f64]) -> Trend {
        let count = growths.len() as f64;
        let share = growths.iter().sum::<f64>() / count.max(1.0);
        let Some(quantile) = growths.len().checked_sub(2).map(|at| T95[at.min(T95.len() - 1)])
        else {
            return Trend::Unclear { share, most: f64::INFINITY };
        };
        let variance =
            growths.iter().map(|growth| (growth - share).powi(2)).sum::<f64>() / (count - 1.0);
        let error = quantile * (variance / count).sqrt();
        if share - error > GROWTH_NOISE {
            Trend::Grows { share }
        } else if share + error < GROWTH_HELD {
            Trend::Steady
        } else {
            Trend::Unclear { share, most: share + error }
        }
    }

    /// Returns the reason why a rate with this trend does not hold.
    pub(super) fn why_not(self) -> Option<String> {
        let percent = |share: f64| share * 100.0;
        match self {
            Trend::Steady => None,
            Trend::Grows { share } => Some(format!(
                "over all windows, the backlog grew by {:.1}% of the rate",
                percent(share)
            )),
            Trend::Unclear { most, .. } => Some(format!(
                "the windows are too short to tell whether the backlog grows: by up to {:.1}% of the rate",
                percent(most)
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the flow of a server that completes `capacity` events per second, after `latency_s`.
    fn flow(rate: f64, capacity: f64, latency_s: f64) -> Flow {
        #[allow(clippy::cast_possible_truncation, reason = "events of a test are few")]
        let acknowledged = |at_s: f64| (rate.min(capacity) * (at_s - latency_s).max(0.0)) as u64;
        let at = |sample: u32| f64::from(sample) / f64::from(SAMPLES) * 1.2;
        Flow::of((0..=SAMPLES).map(|sample| (at(sample), acknowledged(at(sample)))).collect())
    }

    #[test]
    fn the_backlog_grows_by_what_is_not_completed() {
        for (rate, capacity, latency_s, expected) in [
            (500.0, 1000.0, 0.0, 0.0),
            (500.0, 500.0, 0.2, 0.0),
            (750.0, 500.0, 0.0, 1.0 / 3.0),
            (510.0, 500.0, 0.1, 1.0 / 51.0),
            (500.0, 0.0, 0.0, 1.0),
        ] {
            let growth = flow(rate, capacity, latency_s).growth(rate, 1.0, 0.25).unwrap();
            assert!((growth - expected).abs() < 0.002, "{rate} of {capacity}: {growth}");
            assert_eq!(Flow::why_not(Some(growth)).is_some(), expected > 0.1);
        }
        // The server takes all of the window to fill up.
        let filling = flow(500.0, 500.0, 1.0).growth(500.0, 1.0, 0.5).unwrap();
        assert!(filling > 0.9, "{filling}");
        assert_eq!(Flow::of(vec![(0.5, 1); 7]).growth(1.0, 1.0, 0.1), None);
        assert!(Flow::why_not(None).is_some());
    }

    #[test]
    fn a_trend_is_told_once_it_is_certain() {
        assert_eq!(Trend::of(&[0.001, 0.0, -0.001, 0.0]), Trend::Steady);
        assert!(matches!(Trend::of(&[0.02, 0.021, 0.019]), Trend::Grows { .. }));
        assert!(matches!(Trend::of(&[0.05, -0.04, 0.02]), Trend::Unclear { .. }));
        // The noise is the same, but there are more windows.
        let many: Vec<f64> = [0.05, -0.05].repeat(100);
        assert_eq!(Trend::of(&many), Trend::Steady);
        assert!(matches!(Trend::of(&[0.5]), Trend::Unclear { .. }));
        assert!(matches!(Trend::of(&[]), Trend::Unclear { .. }));
    }
}
