//! What a run must not be: `p99>5ms`, `rps<100000`, `verdict!=exact`.

use super::latency::Bound;
use std::cmp::Ordering;
use std::str::FromStr;

/// A condition under which a run fails.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    /// As it was typed.
    text: String,
    figure: String,
    operator: Operator,
    limit: Limit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
    NotEqual,
}

/// In the order that they are looked for: the longer ones first.
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
    Number(f64),
    Word(String),
}

/// A figure of a run that thresholds may name.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Measured {
    /// A number, which may be a lower bound.
    Number(Bound),
    Word(&'static str),
}

/// The figures that are times; their limits have a unit.
pub(super) const TIMES: [&str; 6] = ["mean", "p50", "p90", "p99", "p99.9", "max"];
/// Those that are counts and rates.
pub(super) const NUMBERS: [&str; 8] = [
    "rps",
    "refused",
    "unknown",
    "unsent",
    "reconnects",
    "timeouts",
    "client_cpu_us",
    "server_cpu_us",
];
/// Those that are words.
pub(super) const WORDS: [&str; 2] = ["verdict", "client_limited"];

impl FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Threshold, String> {
        let at = text.find(['<', '>', '=', '!']).unwrap_or(text.len());
        let (figure, rest) = (text[..at].trim(), &text[at..]);
        let (sign, operator) = OPERATORS
            .into_iter()
            .find(|(sign, _)| rest.starts_with(sign))
            .ok_or_else(|| "write a figure, an operator and a limit, such as p99>5ms".to_owned())?;
        let limit = rest[sign.len()..].trim();
        let limit = if TIMES.contains(&figure) {
            let time = humantime::parse_duration(limit)
                .map_err(|_| format!("{figure} is a time: write a limit such as 5ms or 300us"))?;
            Limit::Number(time.as_secs_f64() * 1e6)
        } else if NUMBERS.contains(&figure) {
            let number = limit.parse().ok().filter(|limit: &f64| limit.is_finite());
            Limit::Number(number.ok_or_else(|| format!("{figure} is a number: write one"))?)
        } else if WORDS.contains(&figure) {
            if !matches!(operator, Operator::Equal | Operator::NotEqual) {
                return Err(format!("{figure} is a word: compare it with == or !="));
            }
            let words: &[&str] = match figure {
                "verdict" => &["exact", "wrong", "undecided"],
                _ => &["true", "false"],
            };
            if !words.contains(&limit) {
                return Err(format!("{figure} is one of {}", words.join(", ")));
            }
            Limit::Word(limit.to_owned())
        } else {
            let known = [&TIMES[..], &NUMBERS, &WORDS].concat().join(", ");
            return Err(format!("there is no figure '{figure}': use {known}"));
        };
        Ok(Threshold { text: text.to_owned(), figure: figure.to_owned(), operator, limit })
    }
}

impl Threshold {
    /// The name of the figure.
    pub(super) fn figure(&self) -> &str {
        &self.figure
    }

    /// Whether the run fails for it, in words. A figure that is not there, or is known as a bound
    /// that does not decide, fails: a gate is passed where it is known to be.
    pub(super) fn failure(&self, measured: Option<&Measured>) -> Option<String> {
        let text = &self.text;
        let Some(measured) = measured else {
            return Some(format!("{text}: {} is not known of this run", self.figure));
        };
        match (measured, &self.limit) {
            (Measured::Word(word), Limit::Word(limit)) => {
                let fails = (word == limit) == (self.operator == Operator::Equal);
                fails.then(|| format!("{text}: it is {word}"))
            }
            (Measured::Number(Bound { micros: value, is_at_least }), Limit::Number(limit)) => {
                let sign = if *is_at_least { ">= " } else { "" };
                let unit = if TIMES.contains(&self.figure.as_str()) { " µs" } else { "" };
                let said = format!("{text}: it is {sign}{value:.2}{unit}");
                let order = value.partial_cmp(limit);
                let is_so = match self.operator {
                    Operator::Less => order == Some(Ordering::Less),
                    Operator::LessOrEqual => {
                        matches!(order, Some(Ordering::Less | Ordering::Equal))
                    }
                    Operator::Greater => order == Some(Ordering::Greater),
                    Operator::GreaterOrEqual => {
                        matches!(order, Some(Ordering::Greater | Ordering::Equal))
                    }
                    Operator::Equal => order == Some(Ordering::Equal),
                    Operator::NotEqual => order != Some(Ordering::Equal),
                };
                // What is at least the value is above the limit, or nobody knows.
                let is_above = order == Some(Ordering::Greater);
                let fails_below = matches!(
                    self.operator,
                    Operator::Less | Operator::LessOrEqual | Operator::Equal
                );
                let is_undecided = *is_at_least && !(is_above && fails_below);
                (is_so || is_undecided).then_some(said)
            }
            (Measured::Number(_), Limit::Word(_)) | (Measured::Word(_), Limit::Number(_)) => {
                unreachable!("a figure is always of one kind")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(gate: &str, micros: f64, is_at_least: bool) -> bool {
        let gate: Threshold = gate.parse().unwrap();
        gate.failure(Some(&Measured::Number(Bound { micros, is_at_least }))).is_some()
    }

    #[test]
    fn gates_fail_at_their_edges() {
        for (gate, below, at, above) in [
            ("p99>5ms", false, false, true),
            ("p99>=5ms", false, true, true),
            ("p99<5ms", true, false, false),
            ("p99 <= 5ms", true, true, false),
            ("p99==5ms", false, true, false),
            ("p99!=5000us", true, false, true),
            ("rps<5000", true, false, false),
        ] {
            let found = [4999.0, 5000.0, 5001.0].map(|value| fails(gate, value, false));
            assert_eq!(found, [below, at, above], "{gate}");
        }
    }

    #[test]
    fn a_lower_bound_passes_only_where_it_decides() {
        assert!(fails("p99>5ms", 1.0, true), "it may be longer");
        assert!(fails("p99>5ms", 6000.0, true));
        assert!(!fails("p99<5ms", 6000.0, true), "it is longer for sure");
        assert!(fails("p99<5ms", 4000.0, true));
        assert!(fails("p99!=5ms", 6000.0, true));
    }

    #[test]
    fn words_are_compared_for_equality() {
        let of = |gate: &str, word| {
            gate.parse::<Threshold>().unwrap().failure(Some(&Measured::Word(word))).is_some()
        };
        assert!(of("verdict!=exact", "wrong") && !of("verdict!=exact", "exact"));
        assert!(of("client_limited==true", "true") && !of("client_limited==true", "false"));
        assert!("rps<1".parse::<Threshold>().unwrap().failure(None).is_some());
    }

    #[test]
    fn what_is_no_gate_is_refused_with_what_to_write() {
        for (gate, says) in [
            ("", "such as p99>5ms"),
            ("p99", "such as p99>5ms"),
            ("p98>5ms", "use mean, p50"),
            ("p99>5", "5ms"),
            ("p99>fast", "5ms"),
            ("rps<1k", "number"),
            ("rps<NaN", "number"),
            ("verdict>exact", "== or !="),
            ("verdict!=good", "exact, wrong"),
            ("p99=5ms", "such as"),
        ] {
            let said = gate.parse::<Threshold>().unwrap_err();
            assert!(said.contains(says), "{gate}: {said}");
        }
    }
}
