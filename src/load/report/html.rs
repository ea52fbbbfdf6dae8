//! The report as one HTML page: it loads nothing from elsewhere and runs no scripts.

use super::text::{Row, rate_in_words};
use super::{Report, Unit, chart, word};
use crate::doctor::{Check, Environment};
use crate::failure::Failure;
use crate::load::latency::Latencies;
use crate::load::markup::escape;
use crate::load::numbers::{counted, rounded};

/// The security policy: no script may run, and nothing may be fetched.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

const STYLE: &str = "
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.verdict { padding: .6rem 1rem; border-radius: .4rem; border: 2px solid; }
.exact { border-color: #2e8b57; } .wrong, .undecided { border-color: #c0392b; }
table { border-collapse: collapse; }
th, td { padding: .15rem 1rem .15rem 0; text-align: left; vertical-align: top; }
th { overflow-wrap: normal; }
.wide { overflow-x: auto; overflow-wrap: normal; } .wide td { white-space: nowrap; }
figure { margin: 1rem 0; } figcaption { font-size: .9rem; }
svg { width: 100%; max-width: 48rem; height: auto; background: #fff; border-radius: .4rem; }
.point { fill-opacity: 0; } .point:hover { fill-opacity: 1; }
.cell:hover { stroke: currentColor; }
summary { font-size: 1.1rem; font-weight: bold; margin-top: 2rem; cursor: pointer; }
@media screen and (prefers-color-scheme: dark) {
  svg { background: #16191d; } svg text { fill: #c9ced6; }
  svg [stroke='#000000'] { stroke: #8a9099; } svg [stroke='#D8D8D8'] { stroke: #343a42; }
  svg [stroke='#1F6FB2'] { stroke: #6cb2f0; } svg [fill='#1F6FB2'] { fill: #6cb2f0; }
  svg [stroke='#B25A1F'] { stroke: #f0a26c; } svg [fill='#B25A1F'] { fill: #f0a26c; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 11pt; }
  h2, summary { break-after: avoid; } figure, tr { break-inside: avoid; }
  details::details-content { content-visibility: visible; height: auto; }
}
";

impl Report {
    /// Returns the report as one HTML page without external assets or scripts.
    pub fn html(&self) -> Result<String, Failure> {
        let title = format!(
            "{} {}, {}: {}",
            rounded(self.requests_per_s),
            self.unit().per_second(),
            self.verdict.word(),
            escape(&self.setup.url)
        );
        let mut body = String::new();
        let (verdict, rows): (Vec<Row>, Vec<Row>) =
            self.rows().into_iter().partition(|row| row.name == "verdict");
        for row in verdict {
            let class = self.verdict.word();
            put(&mut body, &format!("<p class=\"verdict {class}\">{}</p>", lines(&row.lines)));
        }
        put(&mut body, "<h2>Result</h2>\n<table>");
        rows.iter().for_each(|row| put_row(&mut body, row.name, &row.lines));
        put(&mut body, "</table>");
        self.put_charts(&mut body)?;
        self.put_setup(&mut body);
        put_environment(&mut body, &self.environment);
        Ok(page(&title, &body))
    }

    fn put_charts(&self, page: &mut String) -> Result<(), Failure> {
        let from_send = self.service_time_histogram.as_ref().map(Latencies::histogram);
        let caption = match from_send {
            Some(_) => {
                "Latency by percentile, on logarithmic axes: from the intended send time (blue) and \
                 from the actual send time (brown)."
            }
            None => "Latency by percentile, on logarithmic axes.",
        };
        put(page, "<h2>Latency spectrum</h2>");
        figure(page, &chart::spectrum(self.latency_histogram.histogram(), from_send)?, caption);
        put(page, "<h2>Second by second</h2>");
        let what = match self.unit() {
            Unit::Request => "Responses",
            Unit::Event => "Events of the batches that got a response,",
        };
        let caption = format!(
            "{what} per second. If the run ended within a second, the last point is the rate over that \
             part of it."
        );
        figure(page, &chart::rates(&self.seconds, self.elapsed_s, self.unit())?, &caption);
        let caption = "99th percentile of the latency of the requests that ended in each second.";
        figure(page, &chart::p99s(&self.seconds, self.elapsed_s)?, caption);
        let caption = "Latency of the requests that ended in each second: the stronger the color, the \
                       more of them, on logarithmic scales.";
        figure(page, &chart::heat_map(&self.seconds, self.elapsed_s, self.unit())?, caption);
        Ok(())
    }

    fn put_setup(&self, page: &mut String) {
        let setup = &self.setup;
        let load = setup.rate.as_ref().map_or("closed loop".into(), |rate| {
            format!("open loop at {} {}", rate_in_words(rate), self.unit().per_second())
        });
        let load =
            setup.duration_s.map_or(load.clone(), |seconds| format!("{load} for {seconds} s"));
        let engine = setup.engine.clone().unwrap_or_else(|| "not known".into());
        let was_reset = if setup.was_reset { "yes" } else { "no" };
        put(page, "<h2>Setup</h2>\n<table>");
        for (name, value) in [
            ("server", setup.url.clone()),
            ("engine", engine),
            ("load", format!("{load}, {} in flight per connection", setup.pipeline)),
            ("each request", setup.per_request()),
            ("users", rounded(setup.users as f64)),
            ("values", word(setup.values).to_owned()),
            ("reset before the run", was_reset.to_owned()),
            ("expected totals", self.expected.to_string()),
        ] {
            put_row(page, name, &[value]);
        }
        put(page, "</table>");
    }
}

/// Returns a page with a title. Both the title and the body are HTML.
pub(crate) fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n\
         {body}</body>\n</html>\n"
    )
}

/// Appends the description of the machine.
pub(crate) fn put_environment(page: &mut String, environment: &Environment) {
    put(
        page,
        &format!(
            "<details>\n<summary>Environment: {}</summary>\n<p>{} on {}, Linux {}, {}, CPUs {} of {}, ringtally {}.</p>\n\
             <table>",
            counted(environment.warnings() as u64, "warning", "warnings"),
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
            &format!("<tr><td>{verdict}</td><th scope=\"row\">{name}</th><td>{value}</td></tr>"),
        );
    }
    put(page, "</table>\n</details>");
}

/// Appends a table of text with column heads.
pub(crate) fn put_table<const N: usize>(
    page: &mut String,
    heads: &[&str; N],
    rows: impl Iterator<Item = [String; N]>,
) {
    let cells = |tag: &str, cells: &[String]| -> String {
        cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect()
    };
    // The table may be wider than a phone, so it scrolls there and no number is broken.
    let heads = cells("th", &heads.map(str::to_owned));
    put(page, &format!("<div class=\"wide\"><table>\n<tr>{heads}</tr>"));
    for row in rows {
        put(page, &format!("<tr>{}</tr>", cells("td", &row)));
    }
    put(page, "</table></div>");
}

pub(crate) fn put(page: &mut String, line: &str) {
    page.push_str(line);
    page.push('\n');
}

pub(crate) fn put_row(page: &mut String, name: &str, values: &[String]) {
    let values = lines(values);
    put(page, &format!("<tr><th scope=\"row\">{}</th><td>{values}</td></tr>", escape(name)));
}

/// Converts lines of text to HTML.
pub(crate) fn lines(lines: &[String]) -> String {
    lines.iter().map(|line| escape(line)).collect::<Vec<_>>().join("<br>")
}

pub(crate) fn figure(page: &mut String, svg: &str, caption: &str) {
    let text = escape(caption);
    // Screen readers read the caption instead of the picture.
    let svg = svg.replacen("<svg ", &format!("<svg role=\"img\" aria-label=\"{text}\" "), 1);
    put(page, &format!("<figure>{svg}<figcaption>{text}</figcaption></figure>"));
}

#[cfg(test)]
mod tests {
    use super::super::tests::open_loop;
    use super::super::{CpuSource, ServerUse};
    use super::*;
    use crate::load::watch::Watched;
    use std::time::Duration;

    #[test]
    fn the_page_has_everything_that_the_text_has() {
        let mut outcome = open_loop(9000);
        outcome.warm_up = 20;
        outcome.run.watched = Some(Watched { answers: 12, ..Watched::default() });
        outcome.thresholds = vec!["p99>5ms".parse().unwrap(), "held<0.99".parse().unwrap()];
        outcome.run.work.ledger.refused_by_status.insert(507, 0);
        outcome.setup.url = "http://<script>".into();
        let mut report = Report::new(outcome);
        report.add_server(Some(ServerUse {
            user: Duration::from_secs(1),
            system: Duration::ZERO,
            cpu_source: CpuSource::Proc,
            peak_rss_bytes: None,
            cpus: "0".into(),
        }));
        let page = report.html().unwrap();
        for row in report.rows() {
            for line in row.lines {
                assert!(page.contains(&escape(&line)), "{line}");
            }
        }
        for words in [
            "12 responses from /stats",
            "0 of 20 requests acknowledged",
            "passed held&lt;0.99",
            "(99.9%)",
            "&lt;model&gt;",
            "open loop at 500 requests/s",
            "ring",
        ] {
            assert!(page.contains(words), "{words}");
        }
        assert!(!page.contains("<script"), "{page}");
        assert_eq!(page.matches("<svg ").count(), 4);
        // Every point and cell has a title, and the colors for dark mode are in use.
        let marks =
            page.matches("class=\"point\"").count() + page.matches("class=\"cell\"").count();
        assert!(marks > 0 && page.matches("<title>").count() == marks + 1);
        for color in ["#1F6FB2", "#B25A1F", "#D8D8D8", "#000000"] {
            assert!(page.contains(&format!("stroke=\"{color}\"")), "{color}");
        }
        assert!(page.contains("<details>") && page.contains("Environment: 0 warnings"));
    }
}
