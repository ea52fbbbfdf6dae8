//! The charts of the HTML page, as SVG.

use super::text::{rounded, time_in_full};
use crate::failure::Failure;
use crate::load::timeline::Second;
use hdrhistogram::Histogram;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;
use std::ops::Range;

/// The size of a chart and of its labels, in its own units. The page scales it, so that the labels can
/// be read on a phone of 360 pixels and are not huge on a desktop.
const SIZE: (u32, u32) = (600, 280);
const FONT: (&str, u32) = ("sans-serif", 15);
const INK: RGBColor = RGBColor(0x1f, 0x6f, 0xb2);
const SECOND_INK: RGBColor = RGBColor(0xb2, 0x5a, 0x1f);
const LIMIT_INK: RGBColor = RGBColor(0x77, 0x77, 0x77);
const GRID: RGBColor = RGBColor(0xd8, 0xd8, 0xd8);

/// The least part of a second, in seconds, that has a point of its own: a rate over less is mostly
/// chance.
const PART_MIN_S: f64 = 0.2;

/// About how many labels an axis has.
const LABELS: f64 = 6.0;

/// Steps per halving of what is left to 100 % in the spectrum.
const TICKS_PER_HALF_DISTANCE: u32 = 8;

/// A line that is drawn, in one color.
type Line = (Vec<(f64, f64)>, RGBColor);
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// An axis, with the positions and texts of its labels.
struct Axis {
    from: f64,
    to: f64,
    labels: Vec<(f64, String)>,
}

impl Axis {
    /// From zero to a little above `most`, with labels that are multiples of a round number, which
    /// is a whole one if `step_min` is 1.
    fn linear(most: f64, step_min: f64, label: fn(f64) -> String) -> Axis {
        let to = most * 1.1;
        let labels = multiples(0.0, to, round_step(to / LABELS).max(step_min));
        Axis { from: 0.0, to, labels: labels.map(|value| (value, label(value))).collect() }
    }

    /// The seconds of a run: whole ones, unless it took less than one.
    fn seconds(elapsed_s: f64) -> Axis {
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

    /// Times on a logarithmic scale: a position is the logarithm of the microseconds.
    fn log_times(least: f64, most: f64) -> Axis {
        Axis::logarithmic(least, most, time_in_full)
    }

    /// A logarithmic scale: a position is the logarithm of the value.
    fn logarithmic(least: f64, most: f64, label: fn(f64) -> String) -> Axis {
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
            // Less than a decade: multiples of one number are close enough to even.
            values = multiples(least, most, round_step((most - least) / LABELS)).collect();
        }
        let labels = values.into_iter().map(|value| (value.log10(), label(value)));
        Axis { from, to, labels: labels.collect() }
    }

    /// Percentiles on a logarithmic scale: a position is the logarithm of 1 / (1 - q), so that steps
    /// from 90 % to 99 % and from 99 % to 99.9 % are equal.
    fn percentiles(to: f64) -> Axis {
        let nines = multiples(0.0, to, 1.0).map(|nines| (nines, percentile(nines)));
        let mut labels: Vec<(f64, String)> = nines.collect();
        labels.insert(1.min(labels.len()), (2_f64.log10(), "50 %".into()));
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

    /// Labels, each with a line of the grid, and no lines between them.
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

/// The smallest of 1, 2, and 5 times a power of ten that is not below `step`.
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    let found = [1.0, 2.0, 5.0].into_iter().map(|digit| digit * power);
    found.into_iter().find(|round| *round >= step).unwrap_or(10.0 * power)
}

/// The multiples of `step` within a range.
fn multiples(from: f64, to: f64, step: f64) -> impl Iterator<Item = f64> {
    let first = (from / step).ceil();
    (0..).map(move |index: u32| (first + f64::from(index)) * step).take_while(move |at| *at <= to)
}

/// The percentile with this many nines: 99 % for 2.
fn percentile(nines: f64) -> String {
    #[allow(clippy::cast_possible_truncation, reason = "a whole number of about ten at most")]
    let decimals = (nines as usize).saturating_sub(2);
    format!("{:.decimals$} %", 100.0 - 100.0 / 10_f64.powf(nines))
}

/// Draws lines into an SVG.
fn draw(x: Axis, y: Axis, lines: &[Line]) -> Result<String, Failure> {
    let mut svg = String::new();
    let drawn = {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        plot(&area, x, y, lines).and_then(|()| area.present())
    };
    match drawn {
        Ok(()) => Ok(svg),
        Err(error) => {
            Err(Failure::Wrong(format!("a chart of the report cannot be drawn: {error}")))
        }
    }
}

fn plot(area: &DrawingArea<SVGBackend<'_>, Shift>, x: Axis, y: Axis, lines: &[Line]) -> Drawn {
    let mut chart = ChartBuilder::on(area)
        .margin(14)
        .x_label_area_size(32)
        .y_label_area_size(78)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .label_style(FONT)
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (points, ink) in lines {
        chart.draw_series(LineSeries::new(points.iter().copied(), ink.stroke_width(2)))?;
    }
    Ok(())
}

/// Latency by percentile: from the intended send time in blue, from the actual one in brown.
pub(super) fn spectrum(
    histogram: &Histogram<u64>,
    from_send: Option<&Histogram<u64>>,
) -> Result<String, Failure> {
    let points = |histogram: &Histogram<u64>| -> Vec<(f64, f64)> {
        let steps = histogram.iter_quantiles(TICKS_PER_HALF_DISTANCE);
        // The last step is 100 %, which has no place on the axis.
        let steps = steps.filter(|step| step.quantile_iterated_to() < 1.0);
        let point = |quantile: f64, ns: u64| (-(1.0 - quantile).log10(), ns as f64 / 1e3);
        steps.map(|step| point(step.quantile_iterated_to(), step.value_iterated_to())).collect()
    };
    let mut lines = vec![(points(histogram), INK)];
    lines.extend(from_send.map(|from_send| (points(from_send), SECOND_INK)));
    let all = || lines.iter().flat_map(|(points, _)| points);
    let nines = all().map(|point| point.0).fold(1.0, f64::max);
    let least = all().map(|point| point.1).min_by(f64::total_cmp).unwrap_or(1.0);
    let most = all().map(|point| point.1).max_by(f64::total_cmp).unwrap_or(10.0);
    for (points, _) in &mut lines {
        points.iter_mut().for_each(|point| point.1 = point.1.log10());
    }
    draw(Axis::percentiles(nines), Axis::log_times(least, most), &lines)
}

/// Responses per second over the run.
pub(super) fn rates(seconds: &[Second], elapsed_s: f64) -> Result<String, Failure> {
    by_second(&rate_points(seconds, elapsed_s), elapsed_s, 1.0, rounded)
}

/// The 99th percentile of each second over the run.
pub(super) fn p99s(seconds: &[Second], elapsed_s: f64) -> Result<String, Failure> {
    by_second(&p99_points(seconds, elapsed_s), elapsed_s, 0.0, time_in_full)
}

/// Latencies in microseconds over the rate: the median in blue, and the one that has a limit in brown,
/// with the limit in gray.
pub(super) fn curve(
    median: &[(f64, f64)],
    limited: &[(f64, f64)],
    limit_us: Option<f64>,
) -> Result<String, Failure> {
    let all = || median.iter().chain(limited).copied();
    let extremes = |values: &mut dyn Iterator<Item = f64>, or: [f64; 2]| {
        values
            .fold(None, |extremes: Option<[f64; 2]>, value| {
                let [least, most] = extremes.unwrap_or([value; 2]);
                Some([least.min(value), most.max(value)])
            })
            .unwrap_or(or)
    };
    let [slowest, fastest] = extremes(&mut all().map(|point| point.0), [1.0, 10.0]);
    let [least, most] = extremes(&mut all().map(|point| point.1).chain(limit_us), [1.0, 10.0]);
    let place = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
        points.iter().map(|(rate, us)| (rate.log10(), us.log10())).collect()
    };
    let mut lines = vec![(place(median), INK), (place(limited), SECOND_INK)];
    lines.extend(limit_us.map(|us| (place(&[(slowest, us), (fastest, us)]), LIMIT_INK)));
    draw(Axis::logarithmic(slowest, fastest, rounded), Axis::log_times(least, most), &lines)
}

/// The seconds of a run from its start to its end, each with its length, and with what is known of it
/// if a request ended in it. The last one is part of a second, and is left out if it is too short.
fn each_second(
    seconds: &[Second],
    elapsed_s: f64,
) -> impl Iterator<Item = (f64, f64, Option<&Second>)> {
    let mut known = seconds.iter().peekable();
    (0..).map_while(move |index: u32| {
        let start = f64::from(index);
        let length = (elapsed_s - start).min(1.0);
        let is_shown = length >= PART_MIN_S || (index == 0 && length > 0.0);
        let found = known.next_if(|second| second.second == u64::from(index));
        is_shown.then_some((start, length, found))
    })
}

/// The rate of each second, at its middle: zero if no request ended in it, and over the part that
/// there was if the run ended in it.
fn rate_points(seconds: &[Second], elapsed_s: f64) -> Vec<Vec<(f64, f64)>> {
    let rate = |second: Option<&Second>| second.map_or(0.0, |second| second.requests as f64);
    let points = each_second(seconds, elapsed_s)
        .map(|(start, length, second)| (start + length / 2.0, rate(second) / length));
    vec![points.collect()]
}

/// The 99th percentile of each second, at its middle, with a gap where no request ended.
fn p99_points(seconds: &[Second], elapsed_s: f64) -> Vec<Vec<(f64, f64)>> {
    let mut runs = vec![Vec::new()];
    for (start, length, second) in each_second(seconds, elapsed_s) {
        match (second.and_then(|second| second.p99_us), runs.last_mut()) {
            (Some(p99), Some(run)) => run.push((start + length / 2.0, p99.micros)),
            _ => runs.push(Vec::new()),
        }
    }
    runs
}

fn by_second(
    runs: &[Vec<(f64, f64)>],
    elapsed_s: f64,
    step_min: f64,
    label: fn(f64) -> String,
) -> Result<String, Failure> {
    let most = runs.iter().flatten().map(|point| point.1).fold(1.0, f64::max);
    let line = |points: &Vec<(f64, f64)>| match points.as_slice() {
        // A line of one point could not be seen.
        [(at, value)] => vec![((at - 0.5).max(0.0), *value), ((at + 0.5).min(elapsed_s), *value)],
        points => points.to_vec(),
    };
    let lines: Vec<Line> = runs.iter().map(|points| (line(points), INK)).collect();
    draw(Axis::seconds(elapsed_s), Axis::linear(most, step_min, label), &lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::latency::{Bound, Latencies};
    use std::collections::HashSet;

    fn second(second: u64, requests: u64) -> Second {
        let p99_us = (requests > 0).then(|| Bound::exactly(1234.0));
        Second { second, requests, p50_us: p99_us, p99_us, max_us: p99_us }
    }

    #[test]
    fn percentiles_are_told_apart() {
        let labels: Vec<String> =
            Axis::percentiles(6.0).labels.into_iter().map(|(_, label)| label).collect();
        assert_eq!(
            labels,
            ["0 %", "50 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %", "99.9999 %"]
        );
    }

    #[test]
    fn steps_are_round() {
        for (step, round) in [(0.03, 0.05), (1.0, 1.0), (1.1, 2.0), (2.1, 5.0), (5.1, 10.0)] {
            assert!((round_step(step) - round).abs() < 1e-9, "{step}");
        }
    }

    #[test]
    fn no_axis_repeats_a_label() {
        let mut axes = Vec::new();
        for elapsed_s in [0.016, 0.3, 1.0, 1.4, 2.37, 3.0, 9.9, 61.0, 4000.0] {
            axes.push(Axis::seconds(elapsed_s));
        }
        for most in [1.0, 2.0, 7.0, 999.0, 205_262.0, 1e7] {
            axes.push(Axis::linear(most, 1.0, rounded));
            axes.push(Axis::linear(most, 0.0, time_in_full));
        }
        for (least, most) in [(0.1, 1e9), (100.0, 110.0), (310.0, 3400.0), (5.0, 5.0), (20.0, 90.0)]
        {
            axes.push(Axis::log_times(least, most));
        }
        for axis in axes {
            let labels: Vec<&str> = axis.labels.iter().map(|(_, label)| label.as_str()).collect();
            let distinct: HashSet<&str> = labels.iter().copied().collect();
            assert_eq!(distinct.len(), labels.len(), "{labels:?}");
            assert!((2..16).contains(&labels.len()), "{labels:?}");
            assert!(axis.labels.iter().all(|(at, _)| (axis.from..=axis.to).contains(at)));
        }
        let svg = rates(&[second(0, 7), second(1, 7), second(2, 3)], 2.37).unwrap();
        for label in ["0 s", "1 s", "2 s"] {
            assert_eq!(svg.matches(label).count(), 1, "{svg}");
        }
    }

    #[test]
    fn the_last_part_of_a_second_is_no_drop() {
        let seconds = [second(0, 1000), second(1, 1000), second(2, 500)];
        let [points] = <[_; 1]>::try_from(rate_points(&seconds, 2.5)).unwrap();
        assert_eq!(points, [(0.5, 1000.0), (1.5, 1000.0), (2.25, 1000.0)]);
        // Of less than a fifth of a second there is no rate.
        let [points] = <[_; 1]>::try_from(rate_points(&seconds, 2.1)).unwrap();
        assert_eq!(points, [(0.5, 1000.0), (1.5, 1000.0)]);
        let [points] = <[_; 1]>::try_from(rate_points(&seconds[..1], 0.1)).unwrap();
        assert_eq!(points, [(0.05, 10_000.0)]);
    }

    #[test]
    fn a_second_without_a_response_is_a_rate_of_zero_and_a_gap_in_latency() {
        let seconds = [second(0, 5), second(2, 7)];
        assert_eq!(rate_points(&seconds, 3.0), [[(0.5, 5.0), (1.5, 0.0), (2.5, 7.0)]]);
        assert_eq!(p99_points(&seconds, 3.0), [vec![(0.5, 1234.0)], vec![(2.5, 1234.0)]]);
    }

    #[test]
    fn charts_are_drawn_of_nothing_of_one_and_of_many() {
        for count in [0, 1, 2, 10_000] {
            let mut latencies = Latencies::new();
            (0..count).for_each(|index| latencies.record(1 + index * 1_000_000));
            let svg = spectrum(latencies.histogram(), Some(latencies.histogram())).unwrap();
            assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN"), "{count}");
        }
        for points in [&[][..], &[(5.0, 100.0)], &[(5.0, 100.0), (80_000.0, 9e6)]] {
            for limit_us in [None, Some(5000.0)] {
                let svg = curve(points, points, limit_us).unwrap();
                assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN"), "{svg}");
            }
        }
        for (seconds, elapsed_s) in
            [(vec![], 0.0), (vec![second(0, 7)], 0.5), (vec![second(0, 7), second(3, 7)], 4.0)]
        {
            for svg in [rates(&seconds, elapsed_s), p99s(&seconds, elapsed_s)] {
                let svg = svg.unwrap();
                assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN"), "{svg}");
            }
        }
    }
}
