//! A comparison as one HTML page: the table, and the latencies of all runs in one chart.

use super::{Comparison, Run};
use crate::failure::Failure;
use crate::load::{FIGURES, Figure, chart, escape, html};

impl Comparison {
    /// Returns it as a page without external assets or scripts.
    pub(super) fn html(&self, base: &[Run], head: &[Run]) -> Result<String, Failure> {
        let [of_base, of_head] = self.heads();
        let heads = ["", &of_base, &of_head, "change (95% interval)"];
        let mut body = String::new();
        html::put_table(&mut body, &heads, self.rows());
        self.remarks()
            .iter()
            .for_each(|line| html::put(&mut body, &format!("<p>{}</p>", escape(line))));
        html::put(&mut body, "<h2>Latency of each run</h2>");
        let [base_points, head_points] =
            [base, head].map(|runs| -> Vec<_> { runs.iter().map(points).collect() });
        let caption = "Latency by percentile, on logarithmic axes, a line per run: those of the base (blue) \
                       and of the head (brown).";
        html::figure(&mut body, &chart::overlay(&base_points, &head_points)?, caption);
        html::put(&mut body, "<h2>Runs</h2>\n<table>");
        for (name, files) in [("base", &self.base), ("head", &self.head)] {
            html::put_row(&mut body, name, files);
        }
        html::put(&mut body, "</table>");
        let title = format!("{of_head}, compared with {of_base}");
        Ok(html::page(&escape(&title), &body))
    }
}

/// Returns the quantiles of a run, and their latencies in microseconds.
fn points(run: &Run) -> Vec<(f64, f64)> {
    let point = |figure: &Figure| {
        let us = run.figure(figure).map(|bound| bound.micros).filter(|us| *us > 0.0)?;
        Some((figure.quantile()?, us))
    };
    FIGURES.iter().filter_map(point).collect()
}
