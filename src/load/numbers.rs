//! Formats numbers, counts, and times.

use super::latency::Bound;

/// Formats a number with its digits in groups of three.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a rounded rate with its digits in groups of three. A rate below 10 has up to two decimals.
pub(crate) fn rounded(rate: f64) -> String {
    if rate < 9.995 {
        let text = format!("{rate:.2}");
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    #[allow(
        clippy::cast_possible_truncation,
        reason = "rates are far below 2^64, and a cast clamps"
    )]
    let whole = rate.round() as u64;
    grouped(whole)
}

/// Formats a count with its noun.
pub(super) fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{} {}", grouped(count), if count == 1 { one } else { many })
}

/// Formats a time with its unit, marked if it is a lower bound.
pub(super) fn time(Bound { micros, is_at_least }: Bound) -> String {
    let sign = if is_at_least { ">= " } else { "" };
    match micros {
        ..1e3 => format!("{sign}{micros:.0} µs"),
        ..1e6 => format!("{sign}{:.2} ms", micros / 1e3),
        _ => format!("{sign}{:.2} s", micros / 1e6),
    }
}

/// Formats a time with its unit and every digit down to a nanosecond.
pub(crate) fn time_in_full(micros: f64) -> String {
    let (text, unit) = match micros {
        ..1e3 => (format!("{micros:.3}"), "µs"),
        ..1e6 => (format!("{:.6}", micros / 1e3), "ms"),
        _ => (format!("{:.9}", micros / 1e6), "s"),
    };
    format!("{} {unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_agree_with_their_nouns() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
        for (count, text) in [(0, "0 events"), (1, "1 event"), (2000, "2,000 events")] {
            assert_eq!(counted(count, "event", "events"), text);
        }
        assert_eq!(rounded(205_261.5), "205,262");
    }

    #[test]
    fn times_have_the_unit_that_suits_them() {
        for (micros, short, full) in [
            (0.25, "0 µs", "0.25 µs"),
            (999.0, "999 µs", "999 µs"),
            (1000.0, "1.00 ms", "1 ms"),
            (5001.215, "5.00 ms", "5.001215 ms"),
            (1.5e6, "1.50 s", "1.5 s"),
        ] {
            assert_eq!(time(Bound::exactly(micros)), short);
            assert_eq!(time_in_full(micros), full);
        }
        assert_eq!(time(Bound { micros: 2e6, is_at_least: true }), ">= 2.00 s");
    }
}
