//! A quantity over the time of a run, stage by stage: events per second, or connections.
//!
//! Within a stage, it changes evenly, so both the number of events that are due by a time and the due time of an event
//! have a closed form. All results are exact, because they are computed in integers: amounts are in thousandths, times
//! are in nanoseconds, and [`EVENT`] is the number of their units that make up one event.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The highest possible rate in events per second: one per nanosecond.
pub const RATE_MAX: u64 = 1_000_000_000;

/// The number of decimals of an amount, and the number of its units in one.
const DECIMALS: u32 = 3;
const PER_ONE: u64 = 1000;

/// The units of one event: amounts are in thousandths and times in nanoseconds, and both are doubled.
const EVENT: u128 = 2 * PER_ONE as u128 * 1_000_000_000;

/// The shortest stage; the longest stage, which is also the longest run of stages; and the most stages of a profile.
const STAGE_MIN: Duration = Duration::from_millis(1);
const STAGE_MAX: Duration = Duration::from_hours(24);
const STAGES_MAX: usize = 1000;

/// A number with up to three decimals, at most [`RATE_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount(u64);

impl Amount {
    /// Returns a whole number, or the greatest amount if the number is above that.
    pub fn whole(number: u64) -> Amount {
        Amount(number.min(RATE_MAX) * PER_ONE)
    }

    /// Returns it as a whole number; `None` if it has decimals.
    pub fn as_whole(self) -> Option<u64> {
        self.0.is_multiple_of(PER_ONE).then_some(self.0 / PER_ONE)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.0 / PER_ONE, self.0 % PER_ONE);
        match part {
            0 => write!(f, "{whole}"),
            part => f.write_str(format!("{whole}.{part:03}").trim_end_matches('0')),
        }
    }
}

impl FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> Result<Amount, String> {
        decimal(text, DECIMALS)
            .map(Amount)
            .filter(|amount| *amount <= Amount::whole(RATE_MAX))
            .ok_or_else(|| {
                format!(
                    "'{text}' is not a number from 0 to 1e9 with at most {DECIMALS} decimals, such as 1000, 10k, or 0.5"
                )
            })
    }
}

/// Reads a number, with a suffix (`75k`, `1.5M`, `2G`) or in scientific notation (`1e6`), times ten to the power of
/// `decimals`. Nothing is rounded: without decimals, `2.5k` is 2,500, and `1.5` is invalid.
pub(crate) fn decimal(text: &str, decimals: u32) -> Option<u64> {
    let (text, mut zeros) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 3),
        b'm' | b'M' => (&text[..text.len() - 1], 6),
        b'g' | b'G' => (&text[..text.len() - 1], 9),
        _ => (text, 0),
    };
    let mantissa = match text.split_once(['e', 'E']) {
        // An exponent followed by a suffix, such as 1e3k, is more likely a mistake than intended.
        Some(_) if zeros > 0 => return None,
        Some((mantissa, exponent)) => {
            zeros = exponent.strip_prefix('+').unwrap_or(exponent).parse::<u8>().ok()?.into();
            mantissa
        }
        None => text,
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !is_digits(whole) || !is_digits(fraction) {
        return None;
    }
    let fraction = fraction.trim_end_matches('0');
    let zeros = u32::checked_sub(zeros + decimals, u32::try_from(fraction.len()).ok()?)?;
    let digits: u64 = format!("{whole}{fraction}").parse().ok()?;
    match digits {
        0 => Some(0),
        _ => digits.checked_mul(10u64.checked_pow(zeros)?),
    }
}

/// A period of time with an amount that is constant or changes evenly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    lasts: Duration,
    from: Amount,
    to: Amount,
}

/// An amount over the time of a run, in the notation of a flag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(into = "Written", try_from = "Written")]
pub enum Profile {
    /// Constant: `1000`.
    Fixed(Amount),
    /// From the first to the second, evenly over the whole run: `1000:20000`.
    Ramp(Amount, Amount),
    /// One stage after another, at least one: `10s@1000,30s@5000:20000`.
    Stages(Vec<Stage>),
}

/// A profile in a file: a number if it is fixed.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Written {
    Whole(u64),
    Number(f64),
    Text(String),
}

impl From<Profile> for Written {
    fn from(profile: Profile) -> Written {
        match &profile {
            Profile::Fixed(amount) => match amount.as_whole() {
                Some(whole) => Written::Whole(whole),
                None => Written::Number(amount.0 as f64 / PER_ONE as f64),
            },
            Profile::Ramp(..) | Profile::Stages(_) => Written::Text(profile.to_string()),
        }
    }
}

impl TryFrom<Written> for Profile {
    type Error = String;

    fn try_from(written: Written) -> Result<Profile, String> {
        match written {
            Written::Whole(number) => number.to_string().parse(),
            Written::Number(number) => number.to_string().parse(),
            Written::Text(text) => text.parse(),
        }
    }
}

/// Formats it in the notation of the flag.
impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stages = match self {
            Profile::Fixed(amount) => return write!(f, "{amount}"),
            Profile::Ramp(from, to) => return write!(f, "{from}:{to}"),
            Profile::Stages(stages) => stages,
        };
        for (index, Stage { lasts, from, to }) in stages.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            // Remove spaces, so that it is one word on a command line.
            let lasts = humantime::format_duration(*lasts).to_string().replace(' ', "");
            write!(f, "{comma}{lasts}@{from}")?;
            if to != from {
                write!(f, ":{to}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Profile, String> {
        let amounts = |text: &str| -> Result<(Amount, Option<Amount>), String> {
            match text.split_once(':') {
                None => Ok((text.trim().parse()?, None)),
                Some((from, to)) => Ok((from.trim().parse()?, Some(to.trim().parse()?))),
            }
        };
        if !text.contains('@') {
            return amounts(text).map(|(from, to)| match to {
                None => Profile::Fixed(from),
                Some(to) => Profile::Ramp(from, to),
            });
        }
        let stage = |text: &str| -> Result<Stage, String> {
            let (lasts, amount) = text.split_once('@').ok_or_else(|| {
                format!("'{text}' is not a stage: write TIME@RATE, such as 10s@1000 or 30s@0:5000")
            })?;
            let duration = humantime::parse_duration(lasts.trim()).ok();
            let is_possible = |lasts: &Duration| (STAGE_MIN..=STAGE_MAX).contains(lasts);
            let lasts = duration.filter(is_possible).ok_or_else(|| {
                format!(
                    "'{lasts}' is not the length of a stage: pass a time from 1ms to 24h with its unit, such as \
                     10s; a jump does not need a stage"
                )
            })?;
            let (from, to) = amounts(amount)?;
            Ok(Stage { lasts, from, to: to.unwrap_or(from) })
        };
        let stages: Vec<Stage> = text.split(',').map(stage).collect::<Result<_, _>>()?;
        if stages.len() > STAGES_MAX {
            let many = stages.len();
            return Err(format!("there are {many} stages, and at most {STAGES_MAX} may be"));
        }
        let lasts: Duration = stages.iter().map(|stage| stage.lasts).sum();
        match lasts <= STAGE_MAX {
            true => Ok(Profile::Stages(stages)),
            false => Err(format!(
                "the stages last {} together, and a run lasts at most 24h: use shorter ones",
                humantime::format_duration(lasts)
            )),
        }
    }
}

impl Profile {
    /// Returns it as a whole number; `None` if it changes or has decimals.
    pub fn as_whole(&self) -> Option<u64> {
        match self {
            Profile::Fixed(amount) => amount.as_whole(),
            Profile::Ramp(..) | Profile::Stages(_) => None,
        }
    }

    /// Reports whether it is above zero at any time.
    pub fn is_rate(&self) -> bool {
        self.amounts().iter().any(|amount| amount.0 > 0)
    }

    /// Returns the length of all stages together; `None` if it does not have stages.
    pub fn lasts(&self) -> Option<Duration> {
        match self {
            Profile::Stages(stages) => Some(stages.iter().map(|stage| stage.lasts).sum()),
            Profile::Fixed(_) | Profile::Ramp(..) => None,
        }
    }

    /// Returns the amounts at both ends of each stage.
    pub fn amounts(&self) -> Vec<Amount> {
        match self {
            Profile::Fixed(amount) => vec![*amount],
            Profile::Ramp(from, to) => vec![*from, *to],
            Profile::Stages(stages) => stages.iter().flat_map(|s| [s.from, s.to]).collect(),
        }
    }

    /// Returns the time that a ramp takes to send a number of events; `None` if it is not a ramp, or if the time would
    /// be centuries.
    pub fn ramp_for(&self, events: u64) -> Option<Duration> {
        let Profile::Ramp(from, to) = self else { return None };
        let sum = u128::from(from.0) + u128::from(to.0);
        let ns = (u128::from(events) * EVENT).checked_div(sum)?;
        u64::try_from(ns).ok()?.checked_add(1).map(Duration::from_nanos)
    }

    /// Returns the curve of a run that lasts for this time. Only a ramp depends on it.
    pub(super) fn over(&self, lasts: Duration) -> Curve {
        match self {
            Profile::Fixed(amount) => Curve::new([(u64::MAX, *amount, *amount)]),
            Profile::Ramp(from, to) => Curve::new([(nanos(lasts), *from, *to)]),
            Profile::Stages(stages) => {
                Curve::new(stages.iter().map(|stage| (nanos(stage.lasts), stage.from, stage.to)))
            }
        }
    }

    /// Returns the number of events that are due at this rate in the first `lasts` of a run.
    pub fn events_in(&self, lasts: Duration) -> u64 {
        self.over(lasts).due_before(nanos(lasts))
    }
}

/// Returns the nanoseconds of a duration, at least one.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).max(1)
}

/// A profile whose length is known.
#[derive(Clone, Debug)]
pub(super) struct Curve {
    /// At least one piece. Each starts at the end of the piece before it.
    pieces: Vec<Piece>,
}

/// A stage, in nanoseconds and thousandths.
#[derive(Clone, Copy, Debug)]
struct Piece {
    starts_ns: u64,
    lasts_ns: u64,
    from: u64,
    to: u64,
    /// The events up to its start, in units. [`EVENT`] units make one event.
    before: u128,
}

impl Piece {
    fn ends_ns(&self) -> u64 {
        self.starts_ns.saturating_add(self.lasts_ns)
    }

    /// Returns the events in the whole piece, in the same units.
    fn whole(&self) -> u128 {
        (u128::from(self.from) + u128::from(self.to)) * u128::from(self.lasts_ns)
    }

    /// Returns the events in its first `ns` nanoseconds, rounded up to a unit. Comparisons with whole numbers of units
    /// are therefore exact.
    fn reached(&self, ns: u64) -> u128 {
        let (ns, lasts_ns) = (u128::from(ns), u128::from(self.lasts_ns));
        let steady = 2 * u128::from(self.from) * ns;
        if self.from == self.to {
            return steady;
        }
        // The slope times ns², divided by the length, in steps that do not overflow.
        let product = u128::from(self.from.abs_diff(self.to)) * ns;
        let (quotient, rest) = (product / lasts_ns * ns, product % lasts_ns * ns);
        match self.to > self.from {
            true => steady + quotient + rest.div_ceil(lasts_ns),
            false => steady - quotient - rest / lasts_ns,
        }
    }

    /// Returns the last nanosecond with [`Piece::reached`] at most `target`, which is less than the whole.
    fn last_ns_of(&self, target: u128) -> u64 {
        if self.from == self.to {
            return u64::try_from(target / (2 * u128::from(self.from))).unwrap_or(u64::MAX);
        }
        // The solution of the quadratic equation, in the form that avoids cancellation, is off by a few nanoseconds, or
        // by more near the end of a ramp down to zero.
        let (from, to) = (self.from as f64, self.to as f64);
        let slope = (to - from) / self.lasts_ns as f64;
        let root = (from * from + slope * target as f64).max(0.0).sqrt();
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is positive or, at zero, not a number, and a cast clamps"
        )]
        let mut ns = ((target as f64 / (from + root)) as u64).min(self.lasts_ns);
        let mut step = 1;
        while self.reached(ns) > target {
            ns = ns.saturating_sub(step);
            step *= 2;
        }
        let is_within = |ns: u64| ns <= self.lasts_ns && self.reached(ns) <= target;
        step = 1;
        while is_within(ns.saturating_add(step)) {
            ns += step;
            step *= 2;
        }
        while step > 0 {
            if is_within(ns.saturating_add(step)) {
                ns += step;
            }
            step /= 2;
        }
        ns
    }

    /// Returns the amount at `ns`, rounded down.
    fn amount(&self, ns: u64) -> u64 {
        let change = u128::from(self.from.abs_diff(self.to)) * u128::from(ns.min(self.lasts_ns));
        let lasts_ns = u128::from(self.lasts_ns);
        let amount = match self.to > self.from {
            true => u128::from(self.from) + change / lasts_ns,
            false => u128::from(self.from) - change.div_ceil(lasts_ns),
        };
        // The amount lies between two amounts of this type.
        u64::try_from(amount).unwrap_or(u64::MAX)
    }
}

impl Curve {
    fn new(stages: impl IntoIterator<Item = (u64, Amount, Amount)>) -> Curve {
        let mut pieces: Vec<Piece> = Vec::new();
        for (lasts_ns, from, to) in stages {
            let (starts_ns, before) =
                pieces.last().map_or((0, 0), |last| (last.ends_ns(), last.before + last.whole()));
            pieces.push(Piece { starts_ns, lasts_ns, from: from.0, to: to.0, before });
        }
        assert!(!pieces.is_empty(), "a profile has a stage");
        Curve { pieces }
    }

    /// Returns the last of the leading pieces that meet a condition, or the first piece if none does.
    fn last(&self, holds: impl Fn(&Piece) -> bool) -> &Piece {
        &self.pieces[self.pieces.partition_point(holds).max(1) - 1]
    }

    /// Returns the number of events that are due before a time.
    pub(super) fn due_before(&self, ns: u64) -> u64 {
        let piece = self.last(|piece| piece.starts_ns <= ns);
        let reached = piece.before + piece.reached((ns - piece.starts_ns).min(piece.lasts_ns));
        u64::try_from(reached.div_ceil(EVENT)).unwrap_or(u64::MAX)
    }

    /// Returns the due time of an event: the last nanosecond when at most the earlier events are due. The first event
    /// is therefore due as soon as the rate is above zero, and the first event after a pause is due when the pause
    /// ends. An event after the last stage is due at the end of time.
    pub(super) fn due_ns(&self, event: u64) -> u64 {
        let target = u128::from(event) * EVENT;
        let piece = self.last(|piece| piece.before <= target);
        let rest = target - piece.before;
        match rest < piece.whole() {
            true => piece.starts_ns.saturating_add(piece.last_ns_of(rest)),
            false => u64::MAX,
        }
    }

    /// Returns the least whole amount at any time.
    pub(super) fn least(&self) -> u64 {
        let ends = self.pieces.iter().map(|piece| piece.from.min(piece.to));
        ends.min().unwrap_or(0) / PER_ONE
    }

    /// Returns the greatest whole amount at any time from `from_ns` to `to_ns`.
    pub(super) fn most_between(&self, from_ns: u64, to_ns: u64) -> u64 {
        let pieces = self.pieces.iter().enumerate().filter(|(index, piece)| {
            let is_last = index + 1 == self.pieces.len();
            piece.starts_ns <= to_ns && (piece.ends_ns() >= from_ns || is_last)
        });
        let most = pieces.map(|(_, piece)| {
            let at = |ns: u64| piece.amount(ns.saturating_sub(piece.starts_ns));
            at(from_ns).max(at(to_ns))
        });
        most.max().unwrap_or(0) / PER_ONE
    }
}

#[cfg(test)]
mod tests;
