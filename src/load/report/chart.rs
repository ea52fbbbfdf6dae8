//! The charts of the HTML page, as SVG. The `title` of a point or a cell explains its meaning, and browsers show it
//! without a script when the pointer is on the element.

mod axis;

use super::Unit;
use crate::failure::Failure;
use crate::load::latency::Bound;
use crate::load::markup::escape;
use crate::load::numbers::{rounded, time, time_in_full};
use crate::load::timeline::{Heat, Second};
use axis::Axis;
use hdrhistogram::Histogram;
use plotters::coord::Shift;
use plotters::prelude::*;
use std::collections::BTreeMap;

/// The size of a chart and of its labels, in its own units. The page scales the chart, so that the labels can be read
/// on a phone of 360 pixels and are not huge on a desktop.
const SIZE: (u32, u32) = (600, 280);
const FONT: (&str, u32) = ("sans-serif", 15);
const INK: RGBColor = RGBColor(0x1f, 0x6f, 0xb2);
const SECOND_INK: RGBColor = RGBColor(0xb2, 0x5a, 0x1f);
const LIMIT_INK: RGBColor = RGBColor(0x77, 0x77, 0x77);
const GRID: RGBColor = RGBColor(0xd8, 0xd8, 0xd8);

/// The shortest part of a second, in seconds, that gets its own point. A rate over less time is mostly chance.
const PART_MIN_S: f64 = 0.2;

/// Steps of the spectrum per halving of the remaining distance to 100%.
const TICKS_PER_HALF_DISTANCE: u32 = 8;

/// The most points of a line, and the most columns of a heat map, that have a title.
const TOLD_MAX: usize = 120;

/// The points of a line.
type Points = Vec<(f64, f64)>;

/// A line that is drawn, in one color.
#[derive(Default)]
struct Line {
    points: Points,
    ink: RGBColor,
    /// The titles of some of its points.
    told: Vec<((f64, f64), String)>,
}

impl Line {
    /// Creates a line, with titles made by `tell` for some of its points.
    fn new(points: Points, ink: RGBColor, tell: impl Fn((f64, f64)) -> String) -> Line {
        let step = points.len().div_ceil(TOLD_MAX).max(1);
        let told = points.iter().step_by(step).map(|point| (*point, tell(*point))).collect();
        Line { points, ink, told }
    }
}

/// A rectangle of a heat map.
struct Cell {
    from: (f64, f64),
    to: (f64, f64),
    /// The opacity, from 0 to 1.
    opacity: f64,
    says: String,
}

type Drawn = Result<String, DrawingAreaErrorKind<std::io::Error>>;

/// Draws lines and cells into an SVG.
fn draw(x: Axis, y: Axis, lines: &[Line], cells: &[Cell]) -> Result<String, Failure> {
    let mut svg = String::new();
    let drawn = {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        plot(&area, x, y, lines, cells).and_then(|marks| area.present().map(|()| marks))
    };
    match drawn {
        Ok(marks) => {
            let end = svg.rfind("</svg>").unwrap_or(svg.len());
            svg.insert_str(end, &marks);
            Ok(svg)
        }
        Err(error) => {
            Err(Failure::Wrong(format!("a chart of the report cannot be drawn: {error}")))
        }
    }
}

/// Draws axes and lines, and returns the elements on top of them.
fn plot(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    x: Axis,
    y: Axis,
    lines: &[Line],
    cells: &[Cell],
) -> Drawn {
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
    let mut marks = String::new();
    let RGBColor(red, green, blue) = INK;
    for Cell { from, to, opacity, says } in cells {
        let ((left, bottom), (right, top)) = (chart.backend_coord(from), chart.backend_coord(to));
        let (width, height) = ((right - left).max(1), (bottom - top).max(1));
        marks += &format!(
            "<rect class=\"cell\" x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" \
             fill=\"#{red:02X}{green:02X}{blue:02X}\" fill-opacity=\"{opacity:.2}\">\
             <title>{}</title></rect>\n",
            escape(says)
        );
    }
    for Line { points, ink, told } in lines {
        chart.draw_series(LineSeries::new(points.iter().copied(), ink.stroke_width(2)))?;
        let RGBColor(red, green, blue) = ink;
        for (point, says) in told {
            let (x, y) = chart.backend_coord(point);
            marks += &format!(
                "<circle class=\"point\" cx=\"{x}\" cy=\"{y}\" r=\"6\" \
                 fill=\"#{red:02X}{green:02X}{blue:02X}\"><title>{}</title></circle>\n",
                escape(says)
            );
        }
    }
    Ok(marks)
}

/// Draws latency by percentile: from the intended send time in blue, and from the actual send time in brown.
pub(super) fn spectrum(
    histogram: &Histogram<u64>,
    from_send: Option<&Histogram<u64>>,
) -> Result<String, Failure> {
    let points = |histogram: &Histogram<u64>| -> Points {
        let steps = histogram.iter_quantiles(TICKS_PER_HALF_DISTANCE);
        // The last step is 100%, which does not have a place on the axis.
        let steps = steps.filter(|step| step.quantile_iterated_to() < 1.0);
        let point = |quantile: f64, ns: u64| (-(1.0 - quantile).log10(), ns as f64 / 1e3);
        steps.map(|step| point(step.quantile_iterated_to(), step.value_iterated_to())).collect()
    };
    let groups =
        [(vec![points(histogram)], INK), (from_send.map(points).into_iter().collect(), SECOND_INK)];
    draw_spectra(&groups)
}

/// Draws latency by percentile for several runs: the base in blue, and the head in brown. A point is a quantile and its
/// latency in microseconds.
pub(crate) fn overlay(
    base: &[Vec<(f64, f64)>],
    head: &[Vec<(f64, f64)>],
) -> Result<String, Failure> {
    let in_nines = |runs: &[Points]| -> Vec<Points> {
        let point = |(quantile, us): &(f64, f64)| (-(1.0 - quantile).log10(), *us);
        runs.iter().map(|points| points.iter().map(point).collect()).collect()
    };
    draw_spectra(&[(in_nines(base), INK), (in_nines(head), SECOND_INK)])
}

/// Draws lines of latency in microseconds by the number of nines of a percentile.
fn draw_spectra(groups: &[(Vec<Points>, RGBColor)]) -> Result<String, Failure> {
    let all = || groups.iter().flat_map(|(runs, _)| runs.iter().flatten());
    let nines = all().map(|point| point.0).fold(1.0, f64::max);
    let least = all().map(|point| point.1).min_by(f64::total_cmp).unwrap_or(1.0);
    let most = all().map(|point| point.1).max_by(f64::total_cmp).unwrap_or(10.0);
    let line = |points: &Points, ink: RGBColor| {
        let points = points.iter().map(|(nines, us)| (*nines, us.log10())).collect();
        let tell = |(nines, log_us): (f64, f64)| {
            let share = 100.0 - 100.0 / 10_f64.powf(nines);
            format!("{share:.4}%: {}", time(Bound::exactly(10_f64.powf(log_us))))
        };
        Line::new(points, ink, tell)
    };
    let lines = groups.iter().flat_map(|(runs, ink)| runs.iter().map(|run| line(run, *ink)));
    let lines: Vec<Line> = lines.collect();
    // The axis has room for the last label.
    draw(Axis::percentiles(nines + 0.15), Axis::log_times(least, most), &lines, &[])
}

/// Draws responses per second over the run, or events per second with batches.
pub(super) fn rates(seconds: &[Second], elapsed_s: f64, unit: Unit) -> Result<String, Failure> {
    let tell: fn(f64) -> String = match unit {
        Unit::Request => |rate| format!("{} responses/s", rounded(rate)),
        Unit::Event => |rate| format!("{} events/s", rounded(rate)),
    };
    by_second(&rate_points(seconds, elapsed_s), elapsed_s, 1.0, rounded, tell)
}

/// Draws the 99th percentile of each second over the run.
pub(super) fn p99s(seconds: &[Second], elapsed_s: f64) -> Result<String, Failure> {
    let tell = |us: f64| format!("p99 {}", time(Bound::exactly(us)));
    by_second(&p99_points(seconds, elapsed_s), elapsed_s, 0.0, time_in_full, tell)
}

/// Draws latencies in microseconds over the rate: the median in blue, and the limited one in brown, with the limit in
/// gray.
pub(in crate::load) fn curve(
    median: &[(f64, f64)],
    limited: &[(f64, f64)],
    limit_us: Option<f64>,
    unit: Unit,
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
    let place = |points: &[(f64, f64)]| -> Points {
        points.iter().map(|(rate, us)| (rate.log10(), us.log10())).collect()
    };
    let line = |points: &[(f64, f64)], ink| {
        Line::new(place(points), ink, |(rate, us)| {
            let us = time(Bound::exactly(10_f64.powf(us)));
            format!("{} {}: {us}", rounded(10_f64.powf(rate)), unit.per_second())
        })
    };
    let mut lines = vec![line(median, INK), line(limited, SECOND_INK)];
    lines.extend(limit_us.map(|us| line(&[(slowest, us), (fastest, us)], LIMIT_INK)));
    draw(Axis::logarithmic(slowest, fastest, rounded), Axis::log_times(least, most), &lines, &[])
}

/// Draws the number of requests of each second by latency. A stronger color means more requests.
pub(super) fn heat_map(seconds: &[Second], elapsed_s: f64, unit: Unit) -> Result<String, Failure> {
    let end = seconds.last().map_or(0, |last| last.second + 1);
    let per_column = end.div_ceil(TOLD_MAX as u64).max(1);
    let mut columns: BTreeMap<u64, Heat> = BTreeMap::new();
    for second in seconds {
        columns.entry(second.second / per_column).or_default().merge(&second.heat);
    }
    let all = || columns.values().flat_map(Heat::cells);
    let most = all().map(|cell| cell.requests).max().unwrap_or(1) as f64;
    let least_us = all().map(|cell| cell.from_us).min_by(f64::total_cmp).unwrap_or(1.0);
    let most_us = all().map(|cell| cell.to_us).max_by(f64::total_cmp).unwrap_or(10.0);
    let mut cells = Vec::new();
    for (column, heat) in &columns {
        let from_s = (column * per_column) as f64;
        let to_s = (from_s + per_column as f64).min(elapsed_s);
        if to_s <= from_s {
            continue;
        }
        for cell in heat.cells() {
            cells.push(Cell {
                from: (from_s, cell.from_us.log10()),
                to: (to_s, cell.to_us.log10()),
                // Even the smallest number must be visible.
                opacity: 0.15 + 0.85 * (cell.requests as f64).ln() / most.ln().max(1.0),
                says: format!(
                    "{} s, {} to {}: {}",
                    rounded(from_s),
                    time(Bound::exactly(cell.from_us)),
                    time(Bound::exactly(cell.to_us)),
                    unit.count_requests(cell.requests)
                ),
            });
        }
    }
    draw(Axis::seconds(elapsed_s), Axis::log_times(least_us, most_us), &[], &cells)
}

/// Returns the seconds of a run from its start to its end, each with its length, and with its figures if a request
/// ended in it. The last second may be partial, and is left out if it is too short.
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

/// Returns the rate of each second, at its middle. The rate is zero if no request ended in the second. If the run ended
/// during the second, the rate is over the part before the end.
fn rate_points(seconds: &[Second], elapsed_s: f64) -> Vec<Points> {
    let rate = |second: Option<&Second>| second.map_or(0.0, |second| second.requests as f64);
    let points = each_second(seconds, elapsed_s)
        .map(|(start, length, second)| (start + length / 2.0, rate(second) / length));
    vec![points.collect()]
}

/// Returns the 99th percentile of each second, at its middle, with a gap if no request ended.
fn p99_points(seconds: &[Second], elapsed_s: f64) -> Vec<Points> {
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
    runs: &[Points],
    elapsed_s: f64,
    step_min: f64,
    label: fn(f64) -> String,
    tell: fn(f64) -> String,
) -> Result<String, Failure> {
    let most = runs.iter().flatten().map(|point| point.1).fold(1.0, f64::max);
    let line = |points: &Points| match points.as_slice() {
        // A line with a single point would be invisible.
        [(at, value)] => vec![((at - 0.5).max(0.0), *value), ((at + 0.5).min(elapsed_s), *value)],
        points => points.to_vec(),
    };
    let tell = |(at, value): (f64, f64)| format!("{} s: {}", rounded(at.floor()), tell(value));
    let line =
        |points: &Points| Line { points: line(points), ..Line::new(points.clone(), INK, tell) };
    let lines: Vec<Line> = runs.iter().map(line).collect();
    draw(Axis::seconds(elapsed_s), Axis::linear(most, step_min, label), &lines, &[])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::latency::Latencies;
    use std::collections::HashSet;

    fn second(second: u64, requests: u64) -> Second {
        let p99_us = (requests > 0).then(|| Bound::exactly(1234.0));
        let mut latencies = Latencies::new();
        (0..requests).for_each(|request| latencies.record(1_234_000 << (request % 5)));
        let heat = Heat::of(&latencies);
        Second {
            second,
            requests,
            p50_us: p99_us,
            p99_us,
            max_us: p99_us,
            lower_bounds: Vec::new(),
            heat,
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
        let svg = rates(&[second(0, 7), second(1, 7), second(2, 3)], 2.37, Unit::Request).unwrap();
        for label in ["0 s", "1 s", "2 s"] {
            assert_eq!(svg.matches(&format!("\n{label}\n")).count(), 1, "{svg}");
        }
    }

    #[test]
    fn the_last_part_of_a_second_is_no_drop() {
        let seconds = [second(0, 1000), second(1, 1000), second(2, 500)];
        let [points] = <[_; 1]>::try_from(rate_points(&seconds, 2.5)).unwrap();
        assert_eq!(points, [(0.5, 1000.0), (1.5, 1000.0), (2.25, 1000.0)]);
        // A part shorter than a fifth of a second does not get a rate.
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
                let svg = curve(points, points, limit_us, Unit::Request).unwrap();
                assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN"), "{svg}");
            }
        }
        for (seconds, elapsed_s) in
            [(vec![], 0.0), (vec![second(0, 7)], 0.5), (vec![second(0, 7), second(3, 7)], 4.0)]
        {
            for svg in [
                rates(&seconds, elapsed_s, Unit::Request),
                p99s(&seconds, elapsed_s),
                heat_map(&seconds, elapsed_s, Unit::Request),
            ] {
                let svg = svg.unwrap();
                assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN"), "{svg}");
            }
        }
    }

    #[test]
    fn each_request_is_in_the_heat_map_and_each_point_says_what_it_is() {
        let seconds: Vec<Second> = (0..400).map(|index| second(index, 10)).collect();
        let svg = heat_map(&seconds, 400.0, Unit::Event).unwrap();
        let requests: u64 = svg
            .split("<title>")
            .skip(1)
            .map(|says| says.split(": ").nth(1).unwrap().split(' ').next().unwrap())
            .map(|requests| requests.parse::<u64>().unwrap())
            .sum();
        assert_eq!(requests, 4000);
        assert!(svg.matches("<rect class=\"cell\"").count() <= TOLD_MAX * 5);
        let svg = rates(&seconds[..3], 3.0, Unit::Request).unwrap();
        assert!(svg.contains("<title>1 s: 10 responses/s</title>"), "{svg}");
        let svg = curve(&[(20_000.0, 1200.0)], &[], None, Unit::Request).unwrap();
        assert!(svg.contains("<title>20,000 requests/s: 1.20 ms</title>"), "{svg}");
        let runs = [vec![(0.5, 100.0), (0.99, 1000.0)]];
        let svg = overlay(&runs, &runs).unwrap();
        assert_eq!(svg.matches("<title>99.0000%: 1.00 ms</title>").count(), 2, "{svg}");
    }
}
