//! Conditions on a change: `p99>+5%`, `rps<-3%`.

use crate::load::{Condition, Figure, Operator};
use crate::statistics::Interval;
use schemars::JsonSchema;
use serde::Serialize;
use std::str::FromStr;

/// A condition on the change of a figure.
#[derive(Clone, Debug, PartialEq)]
pub struct ChangeLimit {
    /// The text, as it was typed.
    text: String,
    pub(super) figure: Figure,
    is_upper: bool,
    /// The logarithm of the ratio beyond which it holds.
    log_ratio: f64,
}

/// The possible positions of a true value relative to the measured one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Beyond {
    pub(super) below: bool,
    pub(super) above: bool,
}

impl Beyond {
    /// Returns the positions that are possible for either value.
    pub(super) fn or(self, other: Beyond) -> Beyond {
        Beyond { below: self.below || other.below, above: self.above || other.above }
    }

    /// Returns the positions that are possible for the reciprocal.
    pub(super) fn inverted(self) -> Beyond {
        Beyond { below: self.above, above: self.below }
    }
}

/// The verdict on whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Holds {
    /// It holds for the whole interval.
    Yes,
    /// It holds for no part of the interval.
    No,
    /// It holds for a part of the interval.
    Undecided,
    /// There are too few runs for an interval.
    Inconclusive,
    /// It may hold, because the figure of a run is only a bound.
    Bound,
    /// A run lacks the figure, or it is zero.
    Unknown,
}

impl FromStr for ChangeLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<ChangeLimit, String> {
        let Condition { figure: name, operator, limit } = Condition::parse(text, "p99>+5%")?;
        let figure = Figure::named(name, &Figure::all_compared())?;
        let is_upper = match operator {
            Operator::Greater | Operator::GreaterOrEqual => true,
            Operator::Less | Operator::LessOrEqual => false,
            Operator::Equal | Operator::NotEqual => {
                return Err("a change has noise: compare it with < or >".into());
            }
        };
        let percent =
            limit.strip_suffix('%').and_then(|number| number.trim_end().parse::<f64>().ok());
        let percent = percent.filter(|percent| percent.is_finite() && *percent > -100.0);
        let percent = percent.ok_or_else(|| {
            "a change is a number of percent above -100, such as +5% or -3%".to_owned()
        })?;
        Ok(ChangeLimit {
            text: text.into(),
            figure,
            is_upper,
            log_ratio: (percent / 100.0).ln_1p(),
        })
    }
}

impl ChangeLimit {
    /// Returns the text, as it was typed.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Returns whether it holds for a change, which is `None` if there are too few runs for an interval. `beyond` shows whether
    /// the true change may lie below or above the measured one.
    pub(super) fn check(&self, change: Option<&Interval>, beyond: Beyond) -> Holds {
        let is_beyond = |value: f64| match self.is_upper {
            true => value > self.log_ratio,
            false => value < self.log_ratio,
        };
        let Some(change) = change else { return Holds::Inconclusive };
        let [below, above] = [is_beyond(change.low), is_beyond(change.high)];
        // A change greater than measured can only make an upper condition hold, and a lower condition stop holding.
        let (may_begin, may_end) = match self.is_upper {
            true => (beyond.above, beyond.below),
            false => (beyond.below, beyond.above),
        };
        match (below, above) {
            (true, true) if !may_end => Holds::Yes,
            (false, false) if !may_begin => Holds::No,
            (true, true) | (false, false) => Holds::Bound,
            _ if may_begin => Holds::Bound,
            _ => Holds::Undecided,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, low: f64, high: f64, beyond: Beyond) -> Holds {
        let [low, high] = [low, high].map(|percent| (percent / 100.0).ln_1p());
        let median = f64::midpoint(low, high);
        let limit: ChangeLimit = text.parse().unwrap();
        assert_eq!(limit.check(None, Beyond::default()), Holds::Inconclusive);
        limit.check(Some(&Interval { low, median, high }), beyond)
    }

    #[test]
    fn a_condition_holds_if_the_whole_interval_is_beyond_its_limit() {
        for (text, low, high, holds) in [
            ("p99>+5%", 5.1, 9.0, Holds::Yes),
            ("p99>+5%", 4.9, 9.0, Holds::Undecided),
            ("p99 > 5 %", 1.0, 4.9, Holds::No),
            ("rps<-3%", -9.0, -3.1, Holds::Yes),
            ("rps<-3%", -9.0, -2.9, Holds::Undecided),
            ("rps<=-3%", -2.9, 1.0, Holds::No),
            ("p50>=0%", -1.0, 1.0, Holds::Undecided),
        ] {
            let found = check(text, low, high, Beyond::default());
            assert_eq!(found, holds, "{text} [{low}, {high}]");
        }
    }

    #[test]
    fn a_bound_decides_only_on_its_own_side() {
        let below = Beyond { below: true, above: false };
        let above = below.inverted();
        for (text, low, high, beyond, holds) in [
            ("p99>+5%", 1.0, 4.0, above, Holds::Bound),
            ("p99>+5%", 1.0, 4.0, below, Holds::No),
            ("p99>+5%", 6.0, 9.0, above, Holds::Yes),
            ("p99>+5%", 6.0, 9.0, below, Holds::Bound),
            ("p99>+5%", 1.0, 9.0, above, Holds::Bound),
            ("p99>+5%", 1.0, 9.0, below, Holds::Undecided),
            ("rps<-3%", -1.0, 1.0, below, Holds::Bound),
            ("rps<-3%", -1.0, 1.0, above, Holds::No),
            ("rps<-3%", -9.0, -4.0, below, Holds::Yes),
            ("rps<-3%", -9.0, -4.0, above.or(below), Holds::Bound),
        ] {
            assert_eq!(check(text, low, high, beyond), holds, "{text} [{low}, {high}] {beyond:?}");
        }
    }

    #[test]
    fn what_is_no_condition_is_refused_with_what_to_write() {
        for (text, says) in [
            ("p99", "such as p99>+5%"),
            ("p98>5%", "use rps, mean, p50"),
            ("p99>5ms", "a number of percent"),
            ("p99>5", "a number of percent"),
            ("p99<-100%", "a number of percent"),
            ("p99>NaN%", "a number of percent"),
            ("p99==5%", "with < or >"),
        ] {
            let said = text.parse::<ChangeLimit>().unwrap_err();
            assert!(said.contains(says), "{text}: {said}");
        }
    }
}
