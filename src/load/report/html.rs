//! The report as one page: nothing of it comes from elsewhere, and nothing in it runs.

use super::super::latency::Bound;
use super::super::timeline::Second;
use super::super::verdict::Verdict;
use super::{Report, grouped, time};
use crate::doctor::Check;
use hdrhistogram::Histogram;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;

/// The size of a chart, in its own units; the page scales it.
const CHART: (u32, u32) = (900, 300);
const INK: RGBColor = RGBColor(0x1f, 0x6f, 0xb2);
const SECOND_INK: RGBColor = RGBColor(0xb2, 0x5a, 0x1f);

/// No script may run, nothing may be fetched.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

const STYLE: &str = "
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.verdict { padding: .6rem 1rem; border-radius: .4rem; border: 2px solid; }
.exact { border-color: #2e8b57; } .wrong, .undecided { border-color: #c0392b; }
table { border-collapse: collapse; } .wide { overflow-x: auto; }
th, td { padding: .15rem 1rem .15rem 0; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; } figcaption { font-size: .9rem; }
svg { width: 100%; height: auto; background: #fff; border-radius: .4rem; }
";

impl Report {
    /// The report as one HTML page without outside assets and without scripts.
    pub fn html(&self) -> String {
        let mut page = String::new();
        let verdict = self.verdict.word();
        let title = format!(
            "{} requests/s, {verdict}: {}",
            grouped(self.requests_per_s.round() as u64),
            escape(&self.setup.url)
        );
        put(
            &mut page,
            &format!(
                "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
                 <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
                 <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
                 <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>"
            ),
        );
        self.put_verdict(&mut page);
        self.put_figures(&mut page);
        put(&mut page, "<h2>Latency spectrum</h2>");
        let from_send = self.histogram_from_send.as_ref();
        figure(
            &mut page,
            &spectrum(&self.histogram, from_send),
            match from_send {
                Some(_) => {
                    "Latency by percentile, both on logarithmic axes: from the intended send time \
                     (blue) and from the actual one (brown)."
                }
                None => "Latency by percentile, both on logarithmic axes.",
            },
        );
        put(&mut page, "<h2>Second by second</h2>");
        let rates: Vec<f64> = self.seconds.iter().map(|second| second.requests as f64).collect();
        let caption = "Requests answered in each second. The last one may be a part of a second.";
        figure(
            &mut page,
            &by_second(&self.seconds, &rates, &|rate| grouped(*rate as u64)),
            caption,
        );
        let p99: Vec<f64> = self.seconds.iter().map(|second| second.p99_us.micros).collect();
        let caption = "99th percentile of the latency of the requests that ended in each second.";
        figure(&mut page, &by_second(&self.seconds, &p99, &|micros| exactly(*micros)), caption);
        self.put_environment(&mut page);
        put(&mut page, "</body>\n</html>");
        page
    }

    fn put_verdict(&self, page: &mut String) {
        let sentence = match self.verdict {
            Verdict::Exact => "exact: every acknowledged event was counted once",
            Verdict::Wrong => "wrong: the server did not count what it acknowledged",
            Verdict::Undecided => "undecided: some requests have no known outcome",
        };
        let verdict = self.verdict.word();
        put(page, &format!("<div class=\"verdict {verdict}\"><strong>{sentence}</strong>"));
        for line in self.reasons.iter().chain(&self.warnings) {
            put(page, &format!("<br>{}", escape(line)));
        }
        if self.client_limited {
            put(page, "<br>The client was the limit: the result is a lower bound.");
        }
        put(page, "</div>");
    }

    fn put_figures(&self, page: &mut String) {
        let rate = self.setup.rate.map_or("closed loop".into(), |rate| {
            format!("open loop at {} requests/s", grouped(rate))
        });
        let mut rows = vec![
            ("requests", grouped(self.requests)),
            ("connections", grouped(self.setup.workers as u64)),
            ("load", format!("{rate}, {} in flight on a connection", self.setup.pipeline)),
            ("elapsed", format!("{:.2} s", self.elapsed_s)),
            ("acknowledged", grouped(self.acknowledged)),
            ("refused", grouped(self.refused)),
            ("unknown", grouped(self.unknown)),
            ("not sent", grouped(self.unsent)),
            ("reconnects", grouped(self.reconnects)),
            ("timeouts", grouped(self.timeouts)),
            ("latency", self.latency_us.line()),
        ];
        if let Some(open_loop) = &self.open_loop {
            rows.push(("from send", open_loop.latency_from_send_us.line()));
            let lag = &open_loop.schedule_lag_us;
            rows.push(("client's lag", format!("p99 {}, max {}", time(lag.p99), time(lag.max))));
        }
        if let Some(cost) = &self.cost {
            let (us, cpus) = (cost.server_cpu_us_per_request, &cost.server_cpus);
            rows.push(("server", format!("{us:.2} µs CPU a request, CPUs {cpus}")));
        }
        let (busy, us) = (self.client_busy * 100.0, self.client_cpu_us_per_request);
        rows.push(("client", format!("{busy:.0} % busy, {us:.2} µs CPU a request")));
        rows.push(("server's totals", self.server.to_string()));
        rows.push(("expected totals", self.expected.to_string()));
        put(page, "<h2>Result</h2>\n<div class=\"wide\"><table>");
        for (name, value) in rows {
            put(
                page,
                &format!("<tr><th scope=\"row\">{name}</th><td>{}</td></tr>", escape(&value)),
            );
        }
        put(page, "</table></div>");
    }

    fn put_environment(&self, page: &mut String) {
        let environment = &self.environment;
        put(
            page,
            &format!(
                "<h2>Environment</h2>\n<p>{} on {}, Linux {}, {}, CPUs {} of {}, ringtally {}.</p>\n\
                 <div class=\"wide\"><table>",
                escape(&environment.date),
                escape(&environment.host),
                escape(&environment.kernel),
                escape(&environment.cpu_model),
                escape(&environment.cpus_allowed),
                escape(&environment.cpus_online),
                escape(&environment.version),
            ),
        );
        for Check { name, verdict, value, fix, .. } in &environment.checks {
            let fix = fix.as_deref().map_or(String::new(), |fix| format!("; fix: {fix}"));
            let value = escape(&format!("{value}{fix}"));
            let name = escape(name);
            put(
                page,
                &format!(
                    "<tr><td>{verdict}</td><th scope=\"row\">{name}</th><td>{value}</td></tr>"
                ),
            );
        }
        put(page, "</table></div>");
    }
}

fn put(page: &mut String, line: &str) {
    page.push_str(line);
    page.push('\n');
}

fn exactly(micros: f64) -> String {
    time(Bound { micros, is_at_least: false })
}

fn figure(page: &mut String, svg: &str, caption: &str) {
    let text = escape(caption);
    // The caption is the picture's text for who does not see it, too.
    let svg = svg.replacen("<svg ", &format!("<svg role=\"img\" aria-label=\"{text}\" "), 1);
    put(page, &format!("<figure>{svg}<figcaption>{text}</figcaption></figure>"));
}

/// Text that stands for itself in HTML.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// Draws into an SVG. Drawing into a string fails for no size that is used here.
fn draw(plot: impl FnOnce(&Area<'_>) -> Drawn) -> String {
    let mut svg = String::new();
    let drawn = {
        let area = SVGBackend::with_string(&mut svg, CHART).into_drawing_area();
        plot(&area).and_then(|()| area.present())
    };
    debug_assert!(drawn.is_ok(), "{drawn:?}");
    svg
}

/// A chart with axes whose labels are words of ours, and lines.
fn chart<X, Y>(
    area: &Area<'_>,
    (x, y): (X, Y),
    x_label: &dyn Fn(&f64) -> String,
    y_label: &dyn Fn(&f64) -> String,
    lines: &[(Vec<(f64, f64)>, RGBColor)],
) -> Drawn
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(28)
        .y_label_area_size(84)
        .build_cartesian_2d(x, y)?;
    chart.configure_mesh().x_label_formatter(x_label).y_label_formatter(y_label).draw()?;
    for (points, ink) in lines {
        chart.draw_series(LineSeries::new(points.iter().copied(), ink.stroke_width(2)))?;
    }
    Ok(())
}

/// Latency by percentile. The axis of percentiles is that of 1 / (1 - q): equal steps from 90 % to
/// 99 % and from 99 % to 99.9 %.
fn spectrum(histogram: &Histogram<u64>, from_send: Option<&Histogram<u64>>) -> String {
    let points = |histogram: &Histogram<u64>| -> Vec<(f64, f64)> {
        let steps = histogram.iter_quantiles(8);
        let known = steps.filter(|step| step.quantile_iterated_to() < 1.0);
        known
            .map(|step| {
                let odds = 1.0 / (1.0 - step.quantile_iterated_to());
                (odds, (step.value_iterated_to() as f64 / 1e3).max(0.1))
            })
            .collect()
    };
    let mut lines = vec![(points(histogram), INK)];
    lines.extend(from_send.map(|from_send| (points(from_send), SECOND_INK)));
    let all = || lines.iter().flat_map(|(points, _)| points);
    let most = |of: fn(&(f64, f64)) -> f64| all().map(of).fold(0.0, f64::max);
    let least = all().map(|point| point.1).fold(f64::MAX, f64::min).min(1e12);
    let (odds, micros) = (most(|point| point.0).max(10.0), most(|point| point.1).max(least * 2.0));
    draw(|area| {
        chart(
            area,
            ((1.0..odds).log_scale(), (least * 0.9..micros * 1.1).log_scale()),
            &|odds| percentile(*odds),
            &|micros| exactly(*micros),
            &lines,
        )
    })
}

/// The percentile at 1 / (1 - q), with the digits that tell it from its neighbours.
fn percentile(odds: f64) -> String {
    let digits = odds.log10().ceil().max(1.0) as usize;
    let text = format!("{:.digits$}", 100.0 - 100.0 / odds);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

/// A figure for each second, from zero on.
fn by_second(seconds: &[Second], values: &[f64], label: &dyn Fn(&f64) -> String) -> String {
    let points: Vec<(f64, f64)> = seconds
        .iter()
        .zip(values)
        .map(|(second, value)| (second.second as f64 + 0.5, *value))
        .collect();
    let end = points.iter().map(|point| point.0 + 0.5).fold(1.0, f64::max);
    let most = values.iter().copied().fold(1.0, f64::max);
    // A single second is a line too.
    let points = match points.as_slice() {
        [(_, value)] => vec![(0.0, *value), (1.0, *value)],
        _ => points,
    };
    draw(|area| {
        let axes = (0.0..end, 0.0..most * 1.1);
        chart(area, axes, &|second| format!("{second:.0} s"), label, &[(points, INK)])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::latency::Latencies;

    #[test]
    fn text_from_outside_cannot_become_markup() {
        assert_eq!(
            escape("<a href='x'>&\"</a>"),
            "&lt;a href=&#39;x&#39;&gt;&amp;&quot;&lt;/a&gt;"
        );
    }

    #[test]
    fn percentiles_are_told_apart() {
        let labels = [1.0, 10.0, 20.0, 100.0, 200.0, 1e4, 1e6].map(percentile);
        assert_eq!(labels, ["0 %", "90 %", "95 %", "99 %", "99.5 %", "99.99 %", "99.9999 %"]);
    }

    #[test]
    fn charts_are_drawn_of_nothing_of_one_and_of_many() {
        for count in [0, 1, 2, 10_000] {
            let mut latencies = Latencies::new();
            (0..count).for_each(|index| latencies.record(1 + index * 1_000_000));
            let svg = spectrum(latencies.histogram(), Some(latencies.histogram()));
            assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN"), "{count}");
        }
        let bound = Bound { micros: 1.0, is_at_least: false };
        let second =
            |second| Second { second, requests: 7, p50_us: bound, p99_us: bound, max_us: bound };
        for seconds in [vec![], vec![second(0)], vec![second(0), second(3)]] {
            let values = vec![7.0; seconds.len()];
            assert!(by_second(&seconds, &values, &|value| exactly(*value)).contains("<polyline"));
        }
    }
}
