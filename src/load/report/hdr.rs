//! The latencies as a percentile table, in the format that HdrHistogram's plotter reads.

use super::Report;
use hdrhistogram::Histogram;
use std::fmt::Write as _;

/// Lines per halving of the remaining distance to 100%.
const TICKS_PER_HALF_DISTANCE: u32 = 5;
/// The values per bucket that three significant digits need, rounded up as in HdrHistogram.
const SUB_BUCKETS: u32 = 2048;

impl Report {
    /// Writes the latencies as a percentile table, in milliseconds.
    pub fn percentile_table(&self) -> String {
        let clients = self.clients.iter().map(|client| format!("#[Client = {}]\n", client.line()));
        table(self.latency_histogram.histogram(), self.latency_histogram.bounds_from_ns())
            + &clients.collect::<String>()
    }
}

/// Formats a percentile table. Values from `bounds_from_ns` on are lower bounds. A comment in the table states this,
/// because the plotter reads only numbers.
fn table(histogram: &Histogram<u64>, bounds_from_ns: Option<u64>) -> String {
    let mut table = String::from("       Value     Percentile TotalCount 1/(1-Percentile)\n\n");
    let millis = |nanos: u64| nanos as f64 / 1e6;
    let mut count = 0;
    for step in histogram.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        count += step.count_since_last_iteration();
        let (quantile, value) = (step.quantile_iterated_to(), millis(step.value_iterated_to()));
        // The last line lacks this quotient, because no request is slower.
        let quotient = match quantile < 1.0 {
            true => format!(" {:14.2}", 1.0 / (1.0 - quantile)),
            false => String::new(),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(table, "{value:12.6} {quantile:14.12} {count:10}{quotient}");
    }
    let _ = write!(
        table,
        "#[Mean    = {:12.6}, StdDeviation   = {:12.6}]\n#[Max     = {:12.6}, Total count    = {:12}]\n\
         #[Buckets = {:12}, SubBuckets     = {:12}]\n",
        histogram.mean() / 1e6,
        histogram.stdev() / 1e6,
        millis(histogram.max()),
        histogram.len(),
        histogram.buckets(),
        SUB_BUCKETS
    );
    if let Some(from) = bounds_from_ns {
        let _ = writeln!(
            table,
            "#[LowerBounds = values from {:.6} on, and the mean: requests were given up or took longer]",
            millis(from)
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::super::latency::Latencies;
    use super::*;

    #[test]
    fn the_table_ends_with_every_request() {
        let mut latencies = Latencies::new();
        (1..=5000).for_each(|us| latencies.record(us * 1000));
        let table = table(latencies.histogram(), latencies.bounds_from_ns());
        assert!(!table.contains("LowerBounds"), "{table}");
        let last = table.lines().rfind(|line| !line.starts_with('#')).unwrap();
        assert!(last.ends_with("1.000000000000       5000"), "{last}");
        let columns = table.lines().nth(2).unwrap().split_whitespace().count();
        assert_eq!(columns, 4, "{table}");
    }

    #[test]
    fn values_that_are_bounds_are_marked() {
        let mut latencies = Latencies::new();
        latencies.record(1_000_000);
        latencies.record_at_least(300_000_000);
        let table = table(latencies.histogram(), latencies.bounds_from_ns());
        let marked = table.lines().find(|line| line.starts_with("#[LowerBounds")).unwrap();
        let from: f64 = marked.split_whitespace().nth(4).unwrap().parse().unwrap();
        assert!((299.0..=300.0).contains(&from), "{marked}");
    }
}
