//! The figures of a run, in one table for thresholds, comparisons, searches, and exports. Each has a name, a place in a
//! report, and a direction of improvement.

use super::latency::Bound;
use super::numbers::{grouped, time_in_full};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};
use serde_json::Value;
use std::borrow::Cow;

/// A figure of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Figure {
    /// Its name in conditions.
    pub(crate) name: &'static str,
    /// Its place in a report, as a JSON pointer.
    pub(crate) place: &'static str,
    pub(crate) quantity: Quantity,
    pub(crate) better: Better,
    /// Whether runs are compared by it.
    is_compared: bool,
    /// The reason why a report may lack it.
    pub(super) absent: &'static str,
}

/// The quantity of a figure, with its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quantity {
    /// Time that requests took, in microseconds.
    Latency,
    /// CPU time per request, in microseconds.
    CpuTime,
    /// Requests per second, or events per second with batches.
    Rate,
    /// A share from 0 to 1.
    Share,
    Count,
    /// A word from this list.
    Word(&'static [&'static str]),
}

/// The direction of improvement of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    Lower,
    Higher,
    /// The figure describes a run but does not judge it.
    Neither,
}

const fn figure(
    name: &'static str,
    place: &'static str,
    quantity: Quantity,
    better: Better,
) -> Figure {
    let absent = "the report does not have it";
    Figure { name, place, quantity, better, is_compared: false, absent }
}

const fn latency(name: &'static str, place: &'static str) -> Figure {
    figure(name, place, Quantity::Latency, Better::Lower).compared()
}

const fn trouble(name: &'static str, place: &'static str) -> Figure {
    figure(name, place, Quantity::Count, Better::Lower)
}

/// Every figure.
pub(crate) const FIGURES: [Figure; 26] = [
    latency("mean", "/latency_us/mean"),
    latency("p50", "/latency_us/p50"),
    latency("p90", "/latency_us/p90"),
    latency("p95", "/latency_us/p95"),
    latency("p99", "/latency_us/p99"),
    latency("p99.9", "/latency_us/p99_9"),
    latency("p99.99", "/latency_us/p99_99"),
    latency("max", "/latency_us/max"),
    figure("rps", "/requests_per_s", Quantity::Rate, Better::Higher).compared(),
    figure("acked_per_s", "/requests_per_s", Quantity::Rate, Better::Higher),
    figure("rate", "/rate", Quantity::Rate, Better::Higher).absent("only --find-rate finds one"),
    figure("held", "/open_loop/held", Quantity::Share, Better::Higher)
        .absent("a closed loop has no rate to hold, pass --rate"),
    trouble("refused", "/refused"),
    trouble("rejected", "/rejected"),
    trouble("unknown", "/unknown"),
    trouble("unsent", "/unsent"),
    trouble("reconnects", "/reconnects"),
    trouble("timeouts", "/timeouts"),
    figure(CONNECTIONS_OPEN, "/connections_open", Quantity::Count, Better::Neither),
    trouble("connect_failures", "/connect_failures"),
    trouble("malformed", "/malformed"),
    figure("client_cpu_us", "/client_cpu_us_per_request", Quantity::CpuTime, Better::Lower)
        .compared(),
    figure("client_poll_us", "/client_poll_us_per_request", Quantity::CpuTime, Better::Neither),
    figure("server_cpu_us", "/server_cpu_us_per_request", Quantity::CpuTime, Better::Lower)
        .compared()
        .absent("only the challenge command measures its server"),
    figure(
        "verdict",
        "/verdict",
        Quantity::Word(&["exact", "wrong", "undecided"]),
        Better::Neither,
    ),
    figure(
        "client_limited",
        "/client_limited",
        Quantity::Word(&["true", "false"]),
        Better::Neither,
    ),
];

/// The name of the figure that counts the connections that were open.
pub(super) const CONNECTIONS_OPEN: &str = "connections_open";

/// The value of a figure in a run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Measured {
    /// A number, which may be a lower bound. Times are in microseconds.
    Number(Bound),
    Word(&'static str),
    /// The run lacks the figure, for this reason.
    Unknown(&'static str),
}

/// Serializes the number or the word alone, or null if the value is not known.
impl Serialize for Measured {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Measured::Number(bound) => bound.serialize(serializer),
            Measured::Word(word) => serializer.serialize_str(word),
            Measured::Unknown(_) => serializer.serialize_none(),
        }
    }
}

impl JsonSchema for Measured {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Measured".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["number", "string", "null"] })
    }
}

impl Figure {
    const fn compared(mut self) -> Figure {
        self.is_compared = true;
        self
    }

    const fn absent(mut self, why: &'static str) -> Figure {
        self.absent = why;
        self
    }

    /// Returns the figure with this name.
    ///
    /// # Errors
    ///
    /// Fails if none of `figures` has the name, with an error that lists the names to use instead.
    pub(crate) fn named(name: &str, figures: &[Figure]) -> Result<Figure, String> {
        figures.iter().find(|figure| figure.name == name).copied().ok_or_else(|| {
            let names: Vec<&str> = figures.iter().map(|figure| figure.name).collect();
            format!("there is no figure '{name}': use {}", names.join(", "))
        })
    }

    /// Returns the figures that runs are compared by, in the order of a table.
    pub(crate) fn all_compared() -> Vec<Figure> {
        let mut figures: Vec<Figure> =
            FIGURES.into_iter().filter(|figure| figure.is_compared).collect();
        figures.sort_by_key(|figure| figure.quantity != Quantity::Rate);
        figures
    }

    /// Returns the value of the figure in a run, from its report.
    pub(crate) fn of(&self, report: &Value) -> Measured {
        let word = |found: &str| match self.quantity {
            Quantity::Word(words) => words.iter().find(|word| **word == found),
            _ => None,
        };
        let found = match report.pointer(self.place) {
            Some(Value::String(found)) => word(found).map(|word| Measured::Word(word)),
            Some(Value::Bool(found)) => word(&found.to_string()).map(|word| Measured::Word(word)),
            Some(Value::Null) => Some(Measured::Unknown(match self.quantity {
                Quantity::Latency => "no request ended",
                _ => "the run was too short to tell",
            })),
            found => found.and_then(Value::as_f64).map(|micros| {
                Measured::Number(Bound { micros, is_at_least: self.is_lower_bound(report) })
            }),
        };
        found.unwrap_or(Measured::Unknown(self.absent))
    }

    /// Reports whether a report lists the figure among the latencies that may be longer.
    fn is_lower_bound(&self, report: &Value) -> bool {
        let name = self.place.rsplit('/').next().unwrap_or_default();
        let bounds = report.pointer("/latency_us/lower_bounds").and_then(Value::as_array);
        self.quantity == Quantity::Latency
            && bounds.is_some_and(|bounds| bounds.iter().any(|bound| bound == name))
    }

    /// Returns the quantile of a percentile, such as 0.99 for `p99`; `None` for any other figure.
    pub(crate) fn quantile(&self) -> Option<f64> {
        // A hundredth of the double nearest to 99.9 is not the double nearest to the quantile.
        Some((self.percent()? * 100.0).round() / 1e4)
    }

    /// Returns the share of the requests whose latency the figure leaves out: 1% for p99, and none for the mean and
    /// the maximum.
    pub(crate) fn share_above(&self) -> f64 {
        self.percent().map_or(0.0, |percent| (100.0 - percent) / 100.0)
    }

    fn percent(&self) -> Option<f64> {
        self.name.strip_prefix('p')?.parse().ok()
    }

    /// Formats a value of the figure, with its unit.
    pub(super) fn in_words(&self, value: f64) -> String {
        match self.quantity {
            Quantity::Latency => time_in_full(value),
            _ => number(value),
        }
    }
}

/// Formats a number with up to four decimals, with its digits in groups of three.
fn number(value: f64) -> String {
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    let (whole, decimals) = text.split_at(text.find('.').unwrap_or(text.len()));
    // A negative number, or one beyond 64 bits, stays as it is.
    whole.parse().map_or_else(|_| text.to_owned(), |whole| grouped(whole) + decimals)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_figure_is_read_from_its_place_or_is_unknown_for_a_reason() {
        let report = json!({
            "latency_us": {"p99": 5.5, "p50": null, "max": 7.0, "lower_bounds": ["max"]},
            "verdict": "exact", "client_limited": true,
        });
        let of = |name| Figure::named(name, &FIGURES).unwrap().of(&report);
        assert_eq!(of("p99"), Measured::Number(Bound::exactly(5.5)));
        assert_eq!(of("max"), Measured::Number(Bound { micros: 7.0, is_at_least: true }));
        assert_eq!(of("p50"), Measured::Unknown("no request ended"));
        assert_eq!(
            (of("verdict"), of("client_limited")),
            (Measured::Word("exact"), Measured::Word("true"))
        );
        assert_eq!(of("rate"), Measured::Unknown("only --find-rate finds one"));
    }

    #[test]
    fn percentiles_have_the_quantile_of_their_name() {
        let quantiles = FIGURES.iter().filter_map(Figure::quantile);
        assert_eq!(quantiles.collect::<Vec<_>>(), [0.5, 0.9, 0.95, 0.99, 0.999, 0.9999]);
    }
}
