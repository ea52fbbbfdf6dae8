//! The center of noisy figures and ratios, and its precision. Ratios are natural logarithms, so that twice as much and half as
//! much are equally far from no change.

/// The number of resamples. With 2,000 resamples, 50 medians lie beyond each bound.
const RESAMPLES: usize = 2_000;
/// The share of resampled medians that lie below the interval, and above it.
const TAIL: f64 = 0.025;

/// A median of logarithms of ratios, and the bounds of its 95% confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The lower bound.
    pub low: f64,
    /// The median itself.
    pub median: f64,
    /// The upper bound.
    pub high: f64,
}

impl Interval {
    /// Returns the percentile bootstrap of the median of `log_ratios`. It assumes nothing about their distribution, and a value
    /// that something else on the machine disturbed barely moves it. The order of the values does not change the interval.
    /// Returns `None` without values.
    pub fn of(log_ratios: &[f64], seed: u64) -> Option<Interval> {
        let mut sample = Sample::new(log_ratios);
        Interval::bootstrap(seed, |random| match random {
            None => sample.median(),
            Some(random) => sample.resampled_median(random),
        })
    }

    /// Returns the ratio of two medians, `head` to `base`, from positive figures that were not measured in pairs: both sides
    /// are resampled. Returns `None` if either side is empty or contains a value that is not positive and finite.
    pub fn between(base: &[f64], head: &[f64], seed: u64) -> Option<Interval> {
        if base.iter().chain(head).any(|value| *value <= 0.0 || !value.is_finite()) {
            return None;
        }
        let logarithms = |values: &[f64]| values.iter().map(|v| v.ln()).collect::<Vec<_>>();
        let mut base = Sample::new(&logarithms(base));
        let mut head = Sample::new(&logarithms(head));
        Interval::bootstrap(seed, |random| match random {
            None => Some(head.median()? - base.median()?),
            Some(random) => Some(head.resampled_median(random)? - base.resampled_median(random)?),
        })
    }

    /// Returns the interval of a statistic, which is called for the values as they are, and for values drawn from them.
    fn bootstrap(
        seed: u64,
        mut statistic: impl FnMut(Option<&mut fastrand::Rng>) -> Option<f64>,
    ) -> Option<Interval> {
        let median = statistic(None)?;
        let mut random = fastrand::Rng::with_seed(seed);
        let drawn = (0..RESAMPLES).map(|_| statistic(Some(&mut random)));
        let mut drawn = drawn.collect::<Option<Vec<f64>>>()?;
        drawn.sort_by(f64::total_cmp);
        #[allow(clippy::cast_possible_truncation, reason = "a share of a small number")]
        let beyond = (RESAMPLES as f64 * TAIL) as usize;
        Some(Interval { low: drawn[beyond], median, high: drawn[RESAMPLES - 1 - beyond] })
    }

    /// Returns half the distance between the bounds.
    pub fn half_width(&self) -> f64 {
        (self.high - self.low) / 2.0
    }

    /// Returns the distance of the farther bound from no change.
    pub fn reach(&self) -> f64 {
        self.low.abs().max(self.high.abs())
    }
}

/// Values, and space for an equal number of values drawn from them.
struct Sample {
    sorted: Vec<f64>,
    drawn: Vec<f64>,
}

impl Sample {
    fn new(values: &[f64]) -> Sample {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Sample { drawn: sorted.clone(), sorted }
    }

    fn median(&mut self) -> Option<f64> {
        median(&mut self.sorted.clone())
    }

    fn resampled_median(&mut self, random: &mut fastrand::Rng) -> Option<f64> {
        let sorted = &self.sorted;
        if sorted.is_empty() {
            return None;
        }
        self.drawn.fill_with(|| sorted[random.usize(..sorted.len())]);
        median(&mut self.drawn)
    }
}

/// Returns the middle value, or the mean of the two in the middle. Reorders `values`.
pub fn median(values: &mut [f64]) -> Option<f64> {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns values around one with a tail, like latencies.
    fn runs(random: &mut fastrand::Rng, times: f64, count: usize) -> Vec<f64> {
        (0..count).map(|_| times * (0.1 * random.f64() * random.f64()).exp()).collect()
    }

    #[test]
    fn the_interval_between_two_groups_has_the_truth_nearly_always() {
        for (count, times) in [(9, 1.05), (25, 0.9)] {
            let holds = (0..400).filter(|seed| {
                let mut random = fastrand::Rng::with_seed(*seed);
                let (base, head) = (runs(&mut random, 1.0, count), runs(&mut random, times, count));
                let interval = Interval::between(&base, &head, 1).unwrap();
                (interval.low..=interval.high).contains(&f64::ln(times))
            });
            let share = holds.count() as f64 / 400.0;
            assert!((0.93..=0.995).contains(&share), "{share} of {count}");
        }
    }

    #[test]
    fn one_run_each_has_a_ratio_and_none_has_none() {
        let one = Interval::between(&[2.0], &[3.0], 1).unwrap();
        assert!(
            (one.low, one.median) == (one.high, one.high)
                && (one.high - 1.5_f64.ln()).abs() < 1e-12
        );
        for (base, head) in
            [(&[][..], &[1.0][..]), (&[1.0], &[]), (&[0.0], &[1.0]), (&[1.0], &[-1.0])]
        {
            assert_eq!(Interval::between(base, head, 1), None);
        }
        assert_eq!(Interval::between(&[f64::INFINITY], &[1.0], 1), None);
    }
}
