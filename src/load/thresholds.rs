//! Conditions that make a run fail: `p99>5ms`, `rps<100k`, `verdict!=exact`.

use super::figures::{FIGURES, Figure, Measured, Quantity};
use super::latency::Bound;
use schemars::JsonSchema;
use serde::Serialize;
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// A condition that makes a run fail.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    /// The condition as it was typed.
    text: String,
    figure: Figure,
    operator: Operator,
    limit: Limit,
}

/// The comparison of a figure with its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operator {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
    NotEqual,
}

impl Operator {
    /// Reports whether the operator holds for a figure that compares to the limit in this order; `None` if a value is
    /// not a number.
    fn holds(self, order: Option<Ordering>) -> bool {
        match self {
            Operator::Less => order == Some(Ordering::Less),
            Operator::LessOrEqual => matches!(order, Some(Ordering::Less | Ordering::Equal)),
            Operator::Greater => order == Some(Ordering::Greater),
            Operator::GreaterOrEqual => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
            Operator::Equal => order == Some(Ordering::Equal),
            Operator::NotEqual => order != Some(Ordering::Equal),
        }
    }
}

/// The unchecked parts of a condition such as `p99>5ms`.
pub(crate) struct Condition<'a> {
    pub(crate) figure: &'a str,
    pub(crate) operator: Operator,
    pub(crate) limit: &'a str,
}

impl<'a> Condition<'a> {
    /// Splits a condition into its parts; `example` shows what to write.
    pub(crate) fn parse(text: &'a str, example: &str) -> Result<Condition<'a>, String> {
        let at = text.find(['<', '>', '=', '!']).unwrap_or(text.len());
        let (figure, rest) = (text[..at].trim(), &text[at..]);
        let operator = OPERATORS.into_iter().find(|(sign, _)| rest.starts_with(sign));
        let (sign, operator) = operator.ok_or_else(|| {
            let signs = OPERATORS.map(|(sign, _)| sign).join(" ");
            format!("write a figure, an operator ({signs}), and a limit, such as {example}")
        })?;
        Ok(Condition { figure, operator, limit: rest[sign.len()..].trim() })
    }
}

/// All comparisons, in the order that they are tried: longer signs first.
const OPERATORS: [(&str, Operator); 6] = [
    ("<=", Operator::LessOrEqual),
    (">=", Operator::GreaterOrEqual),
    ("!=", Operator::NotEqual),
    ("==", Operator::Equal),
    ("<", Operator::Less),
    (">", Operator::Greater),
];

#[derive(Clone, Debug, PartialEq)]
enum Limit {
    /// A number, in microseconds for a time.
    Number(f64),
    Word(String),
}

/// The units of a time, in microseconds.
const TIME_UNITS: [(&str, f64); 7] =
    [("ns", 1e-3), ("us", 1.0), ("µs", 1.0), ("ms", 1e3), ("s", 1e6), ("m", 60e6), ("min", 60e6)];

/// The suffixes of a number.
const NUMBER_SUFFIXES: [(&str, f64); 5] =
    [("", 1.0), ("k", 1e3), ("K", 1e3), ("M", 1e6), ("G", 1e9)];

/// A threshold, and whether the run passed it.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub(super) struct Checked {
    /// The threshold as it was typed.
    pub(super) fail_if: String,
    /// The name of its figure.
    pub(super) figure: &'static str,
    /// The value of the figure; times are in microseconds.
    pub(super) value: Measured,
    /// Whether the value is a lower bound.
    pub(super) is_lower_bound: bool,
    /// Whether the run passed: it is certain that the condition does not hold.
    pub(super) passed: bool,
    /// The value of the figure, as a sentence.
    #[serde(skip)]
    pub(super) sentence: String,
}

/// Formats the threshold as it was typed.
impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Threshold, String> {
        let Condition { figure: name, operator, limit } = Condition::parse(text, "p99>5ms")?;
        let figure = Figure::named(name, &FIGURES)?;
        let limit = match figure.quantity {
            Quantity::Latency => Limit::Number(scaled(limit, &TIME_UNITS).ok_or_else(|| {
                format!("{name} is a time: write a number and its unit, such as 300us or 1.5s")
            })?),
            Quantity::Word(_) if !matches!(operator, Operator::Equal | Operator::NotEqual) => {
                return Err(format!("{name} is a word: compare it with == or !="));
            }
            Quantity::Word(words) if !words.contains(&limit) => {
                return Err(format!("{name} is one of {}", words.join(", ")));
            }
            Quantity::Word(_) => Limit::Word(limit.to_owned()),
            _ => Limit::Number(scaled(limit, &NUMBER_SUFFIXES).ok_or_else(|| {
                format!("{name} is a number: write one such as 100000, 100k, 1e5, or 0.99")
            })?),
        };
        Ok(Threshold { text: text.to_owned(), figure, operator, limit })
    }
}

/// Parses a number such as `1.5`, `1e6`, or `-3`, followed by a unit from the list.
fn scaled(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    // The text after the last digit is the unit: the exponent of 1e6 belongs to the number.
    let end = text.rfind(|character: char| character.is_ascii_digit())? + 1;
    let (_, factor) = units.iter().find(|(unit, _)| *unit == text[end..].trim_start())?;
    let number: f64 = text[..end].parse().ok()?;
    Some(number * factor).filter(|value| value.is_finite())
}

impl Threshold {
    /// Returns why the figure is never known, if it is among those that a run `lacks`.
    pub(crate) fn absence(&self, lacks: &[&str]) -> Option<&'static str> {
        let figure = self.figure();
        lacks.contains(&figure.name).then_some(figure.absent)
    }

    /// Returns the figure of the condition.
    pub(super) fn figure(&self) -> Figure {
        self.figure
    }

    /// Reports whether it is an upper limit on a latency.
    pub(super) fn is_upper_limit_of_latency(&self) -> bool {
        self.figure.quantity == Quantity::Latency
            && matches!(self.operator, Operator::Less | Operator::LessOrEqual)
    }

    /// Returns the limit on a latency in microseconds; `None` for any other figure.
    pub(super) fn limit_us(&self) -> Option<f64> {
        match self.limit {
            Limit::Number(limit_us) if self.figure.quantity == Quantity::Latency => Some(limit_us),
            Limit::Number(_) | Limit::Word(_) => None,
        }
    }

    /// Returns the least number of requests whose percentile is not just the longest latency.
    pub(super) fn requests_to_tell(&self) -> f64 {
        match self.figure.share_above() {
            share if share > 0.0 && share < 0.5 => (1.0 / share).round(),
            _ => 1.0,
        }
    }

    /// Reports whether an upper limit certainly holds. It does not if the value is a lower bound, because the true
    /// value may be above the limit.
    pub(super) fn surely_holds(&self, value: &Measured) -> bool {
        match (value, &self.limit) {
            (Measured::Number(Bound { micros, is_at_least: false }), Limit::Number(limit)) => {
                self.operator.holds(micros.partial_cmp(limit))
            }
            _ => false,
        }
    }

    /// Reports whether the condition holds for every number from `least` on.
    pub(super) fn fails_from(&self, least: f64) -> bool {
        let Limit::Number(limit) = self.limit else { return false };
        match self.operator {
            Operator::Greater | Operator::NotEqual => least > limit,
            Operator::GreaterOrEqual => least >= limit,
            Operator::Less | Operator::LessOrEqual | Operator::Equal => false,
        }
    }

    /// Reports whether the condition holds for every number up to `most`.
    pub(super) fn fails_up_to(&self, most: f64) -> bool {
        let Limit::Number(limit) = self.limit else { return false };
        match self.operator {
            Operator::Less | Operator::NotEqual => most < limit,
            Operator::LessOrEqual => most <= limit,
            Operator::Greater | Operator::GreaterOrEqual | Operator::Equal => false,
        }
    }

    /// Checks whether a run passes, given the value of the figure. A run does not pass if the value is not known.
    pub(super) fn check(&self, value: Measured) -> Checked {
        let name = self.figure.name;
        let (holds, sentence) = match (&value, &self.limit) {
            (Measured::Unknown(why), _) => (true, format!("{name} is not known: {why}")),
            (Measured::Word(word), Limit::Word(limit)) => {
                let holds = (word == limit) == (self.operator == Operator::Equal);
                (holds, format!("{name} is {word}"))
            }
            (Measured::Number(bound), Limit::Number(limit)) => {
                let is = if bound.is_at_least { "is at least" } else { "is" };
                let value = self.figure.in_words(bound.micros);
                (self.may_hold(*bound, *limit), format!("{name} {is} {value}"))
            }
            (Measured::Number(_), Limit::Word(_)) | (Measured::Word(_), Limit::Number(_)) => {
                unreachable!("{name} is always of one kind")
            }
        };
        Checked {
            fail_if: self.text.clone(),
            figure: name,
            is_lower_bound: matches!(value, Measured::Number(Bound { is_at_least: true, .. })),
            value,
            passed: !holds,
            sentence,
        }
    }

    /// Reports whether the condition holds, or may hold because the value is only a lower bound.
    fn may_hold(&self, Bound { micros: value, is_at_least }: Bound, limit: f64) -> bool {
        let order = value.partial_cmp(&limit);
        let holds = self.operator.holds(order);
        // A lower bound decides only if it is above the limit and the condition requires less.
        let is_above = order == Some(Ordering::Greater);
        let asks_for_less =
            matches!(self.operator, Operator::Less | Operator::LessOrEqual | Operator::Equal);
        holds || (is_at_least && !(is_above && asks_for_less))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(threshold: &str, value: Measured) -> Checked {
        threshold.parse::<Threshold>().unwrap().check(value)
    }

    fn fails(threshold: &str, micros: f64, is_at_least: bool) -> bool {
        !check(threshold, Measured::Number(Bound { micros, is_at_least })).passed
    }

    #[test]
    fn thresholds_fail_at_their_edges() {
        for (threshold, below, at, above) in [
            ("p99>5ms", false, false, true),
            ("p99>=5ms", false, true, true),
            ("p99<5ms", true, false, false),
            ("p99 <= 5ms", true, true, false),
            ("p99==5ms", false, true, false),
            ("p99!=5000us", true, false, true),
            ("rps<5000", true, false, false),
            ("p95>5ms", false, false, true),
            ("p99.99>5ms", false, false, true),
        ] {
            let found = [4999.0, 5000.0, 5001.0].map(|value| fails(threshold, value, false));
            assert_eq!(found, [below, at, above], "{threshold}");
        }
        assert!(fails("held<0.99", 0.9899, false) && !fails("held<0.99", 0.99, false));
    }

    #[test]
    fn limits_are_read_as_people_write_them() {
        for (threshold, limit) in [
            ("rps<100k", 1e5),
            ("rps<1e6", 1e6),
            ("rps<1E6", 1e6),
            ("rps<1.5M", 1.5e6),
            ("rps<0.2M", 2e5),
            ("held<0.99", 0.99),
            ("p99>1.5s", 1.5e6),
            ("p99>1e3us", 1e3),
            ("p99>2500ns", 2.5),
            ("p99>300µs", 300.0),
            ("p99> 5 ms", 5e3),
            ("max>1m", 60e6),
            ("max>2min", 120e6),
        ] {
            let read = threshold.parse::<Threshold>().unwrap().limit;
            assert_eq!(read, Limit::Number(limit), "{threshold}");
        }
    }

    #[test]
    fn a_lower_bound_passes_only_if_it_decides() {
        assert!(fails("p99>5ms", 1.0, true), "it may be longer");
        assert!(fails("p99>5ms", 6000.0, true));
        assert!(!fails("p99<5ms", 6000.0, true), "it is certainly longer");
        assert!(fails("p99<5ms", 4000.0, true));
        assert!(fails("p99!=5ms", 6000.0, true));
    }

    #[test]
    fn words_are_compared_for_equality() {
        let fails = |threshold: &str, word| !check(threshold, Measured::Word(word)).passed;
        assert!(fails("verdict!=exact", "wrong") && !fails("verdict!=exact", "exact"));
        assert!(fails("client_limited==true", "true") && !fails("client_limited==true", "false"));
    }

    #[test]
    fn what_is_not_known_passes_nothing() {
        let checked = check("held<0.99", Measured::Unknown("it needs --rate"));
        assert!(!checked.passed);
        assert_eq!(checked.sentence, "held is not known: it needs --rate");
        let json = serde_json::to_value(&checked).unwrap();
        assert_eq!(json["value"], serde_json::Value::Null);
    }

    #[test]
    fn a_result_says_what_the_figure_was() {
        let number = |micros, is_at_least| Measured::Number(Bound { micros, is_at_least });
        for (threshold, value, sentence) in [
            ("p99>5ms", number(5001.215, false), "p99 is 5.001215 ms"),
            ("p99>5ms", number(7.5e6, true), "p99 is at least 7.5 s"),
            ("rps<1k", number(205_262.5, false), "rps is 205,262.5"),
            ("refused>0", number(12_345.0, false), "refused is 12,345"),
            ("held<0.99", number(0.98994, false), "held is 0.9899"),
            ("verdict!=exact", Measured::Word("wrong"), "verdict is wrong"),
        ] {
            assert_eq!(check(threshold, value).sentence, sentence);
        }
    }

    #[test]
    fn what_is_not_a_threshold_is_refused_with_what_to_write() {
        for (threshold, says) in [
            ("", "an operator (<= >= != == < >)"),
            ("p99", "such as p99>5ms"),
            (
                "p98>5ms",
                "use mean, p50, p90, p95, p99, p99.9, p99.99, max, rps, acked_per_s, rate, held",
            ),
            ("p99>5", "a number and its unit"),
            ("p99>fast", "such as 300us or 1.5s"),
            ("p99>5k", "a number and its unit"),
            ("rps<1q", "is a number"),
            ("rps<5ms", "is a number"),
            ("rps<NaN", "is a number"),
            ("rps<1e999", "is a number"),
            ("verdict>exact", "== or !="),
            ("verdict!=good", "exact, wrong"),
            ("p99=5ms", "such as"),
        ] {
            let said = threshold.parse::<Threshold>().unwrap_err();
            assert!(said.contains(says), "{threshold}: {said}");
        }
    }
}
