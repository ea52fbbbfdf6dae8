//! The axes of charts: the place of a value, and the values that get labels.

use crate::load::numbers::{rounded, time_in_full};
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use std::ops::Range;

/// The approximate number of labels on an axis.
const LABELS: f64 = 6.0;

/// An axis, with the positions and texts of its labels.
pub(super) struct Axis {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) labels: Vec<(f64, String)>,
}

impl Axis {
    /// Creates an axis from zero to a little above `most`. The labels are multiples of a round number, which is a whole
    /// number if `step_min` is 1.
    pub(super) fn linear(most: f64, step_min: f64, label: fn(f64) -> String) -> Axis {
        let to = most * 1.1;
        let labels = multiples(0.0, to, round_step(to / LABELS).max(step_min));
        Axis { from: 0.0, to, labels: labels.map(|value| (value, label(value))).collect() }
    }

    /// Creates an axis for the seconds of a run. The labels are whole seconds, unless the run took less than one second.
    pub(super) fn seconds(elapsed_s: f64) -> Axis {
        let to = if elapsed_s > 0.0 { elapsed_s } else { 1.0 };
        let step = round_step(to / LABELS).max(if to < 1.0 { 0.0 } else { 1.0 });
        let label = |second: f64| match second {
            1.0.. => format!("{} s", rounded(second)),
            0.0 => "0 s".into(),
            _ => time_in_full(second * 1e6),
        };
        let labels = multiples(0.0, to, step).map(|second| (second, label(second))).collect();
        Axis { from: 0.0, to, labels }
    }

    /// Creates a logarithmic axis for times: a position is the logarithm of the microseconds.
    pub(super) fn log_times(least: f64, most: f64) -> Axis {
        Axis::logarithmic(least, most, time_in_full)
    }

    /// Creates a logarithmic axis: a position is the logarithm of the value.
    pub(super) fn logarithmic(least: f64, most: f64, label: fn(f64) -> String) -> Axis {
        let (least, most) = (least * 0.9, most * 1.1);
        let (from, to) = (least.log10(), most.log10());
        let digits: &[f64] = if to - from > 2.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let mut values = Vec::new();
        let mut decade = 10_f64.powf(from.floor());
        while decade <= most {
            values.extend(digits.iter().map(|digit| digit * decade));
            decade *= 10.0;
        }
        values.retain(|value| (least..=most).contains(value));
        if values.len() < 3 {
            // Within less than a decade, multiples of one number are close enough to even.
            values = multiples(least, most, round_step((most - least) / LABELS)).collect();
        }
        let labels = values.into_iter().map(|value| (value.log10(), label(value)));
        Axis { from, to, labels: labels.collect() }
    }

    /// Creates a logarithmic axis for percentiles: a position is the logarithm of 1 / (1 - q), so that steps from 90%
    /// to 99% and from 99% to 99.9% are equal.
    pub(super) fn percentiles(to: f64) -> Axis {
        let nines = multiples(0.0, to, 1.0).map(|nines| (nines, percentile(nines)));
        let mut labels: Vec<(f64, String)> = nines.collect();
        labels.insert(1.min(labels.len()), (2_f64.log10(), "50%".into()));
        Axis { from: 0.0, to, labels }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, at: &f64, (start, end): (i32, i32)) -> i32 {
        let share = (at - self.from) / (self.to - self.from);
        #[allow(clippy::cast_possible_truncation, reason = "pixels of a chart")]
        let pixels = (share * f64::from(end - start)).round() as i32;
        start + pixels
    }

    /// Returns the positions of the labels, each with a line of the grid, and no lines between them.
    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match hint.weight().allow_light_points() {
            true => Vec::new(),
            false => self.labels.iter().map(|(position, _)| *position).collect(),
        }
    }

    fn range(&self) -> Range<f64> {
        self.from..self.to
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, at: &f64) -> String {
        let found = self.labels.iter().find(|(position, _)| position == at);
        found.map_or(String::new(), |(_, label)| label.clone())
    }
}

/// Returns the smallest number that is not below `step` and is 1, 2, or 5 times a power of ten.
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    let found = [1.0, 2.0, 5.0].into_iter().map(|digit| digit * power);
    found.into_iter().find(|round| *round >= step).unwrap_or(10.0 * power)
}

/// Returns the multiples of `step` within a range.
fn multiples(from: f64, to: f64, step: f64) -> impl Iterator<Item = f64> {
    let first = (from / step).ceil();
    (0..).map(move |index: u32| (first + f64::from(index)) * step).take_while(move |at| *at <= to)
}

/// Formats the percentile with this many nines: 99% for 2.
pub(super) fn percentile(nines: f64) -> String {
    #[allow(clippy::cast_possible_truncation, reason = "a whole number of about ten at most")]
    let decimals = (nines as usize).saturating_sub(2);
    format!("{:.decimals$}%", 100.0 - 100.0 / 10_f64.powf(nines))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_told_apart() {
        let labels: Vec<String> =
            Axis::percentiles(6.0).labels.into_iter().map(|(_, label)| label).collect();
        assert_eq!(labels, ["0%", "50%", "90%", "99%", "99.9%", "99.99%", "99.999%", "99.9999%"]);
    }

    #[test]
    fn steps_are_round() {
        for (step, round) in [(0.03, 0.05), (1.0, 1.0), (1.1, 2.0), (2.1, 5.0), (5.1, 10.0)] {
            assert!((round_step(step) - round).abs() < 1e-9, "{step}");
        }
    }
}
