//! The center of noisy ratios, and how precisely it is known. Ratios are kept as natural logarithms,
//! in which twice as much and half as much are equally far from no change.

/// How often the values are resampled. With 2,000 resamples, 50 medians lie beyond each bound.
const RESAMPLES: usize = 2_000;
/// The share of resampled medians that lie below the interval, and above it.
const TAIL: f64 = 0.025;

/// A median of logarithms of ratios, and the bounds of its 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Interval {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

impl Interval {
    /// Percentile bootstrap of the median of `log_ratios`. It assumes nothing about their distribution,
    /// and a block that something else on the machine disturbed moves it little. The same values in
    /// another order give the same interval. Returns `None` if there are no values.
    pub(crate) fn of(log_ratios: &[f64], seed: u64) -> Option<Interval> {
        let mut sorted = log_ratios.to_vec();
        sorted.sort_by(f64::total_cmp);
        let mut random = fastrand::Rng::with_seed(seed);
        let mut drawn = sorted.clone();
        let mut medians = Vec::with_capacity(RESAMPLES);
        for _ in 0..RESAMPLES {
            drawn.fill_with(|| sorted[random.usize(..sorted.len())]);
            medians.push(median(&mut drawn)?);
        }
        medians.sort_by(f64::total_cmp);
        #[allow(clippy::cast_possible_truncation, reason = "a share of a small number")]
        let beyond = (RESAMPLES as f64 * TAIL) as usize;
        Some(Interval {
            low: medians[beyond],
            median: median(&mut sorted)?,
            high: medians[RESAMPLES - 1 - beyond],
        })
    }

    /// Half the distance between the bounds.
    pub(crate) fn half_width(&self) -> f64 {
        (self.high - self.low) / 2.0
    }

    /// How far the farther bound is from no change.
    pub(crate) fn reach(&self) -> f64 {
        self.low.abs().max(self.high.abs())
    }
}

/// The logarithm of B's mean over A's in a block A B B A. What grows evenly during a block affects
/// both alike.
pub(crate) fn log_ratio([a_first, b_first, b_second, a_second]: [f64; 4]) -> f64 {
    ((b_first + b_second) / (a_first + a_second)).ln()
}

/// The middle value, or the mean of the two in the middle. Reorders `values`.
pub(crate) fn median(values: &mut [f64]) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    let is_odd = values.len() % 2 == 1;
    let (below, upper, _) = values.select_nth_unstable_by(values.len() / 2, f64::total_cmp);
    if is_odd {
        return Some(*upper);
    }
    let lower = below.iter().copied().max_by(f64::total_cmp)?;
    Some((lower + *upper) / 2.0)
}
