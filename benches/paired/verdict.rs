//! The verdict of the ratios on the head, and the end of a run.

use ringtally::statistics::Interval;

/// The change that matters, as a ratio: 3% more, or the same distance less on a logarithmic scale.
pub(crate) const CHANGE: f64 = 1.03;
/// Nothing is decided while the half-width of the interval exceeds this.
pub(crate) const HALF_WIDTH_MAX: f64 = 0.02;
/// Nothing is decided with fewer blocks of base and head: the bootstrap of a median of few values is
/// too confident.
pub(crate) const HEAD_BLOCKS_MIN: usize = 10;
/// Nothing is decided with fewer blocks of the base against itself.
pub(crate) const FLOOR_BLOCKS_MIN: usize = 5;
/// Blocks of base and head per block of the base against itself: the noise floor need not be known as
/// precisely as the change.
const HEAD_BLOCKS_PER_FLOOR_BLOCK: usize = 2;

const _: () = assert!(FLOOR_BLOCKS_MIN * HEAD_BLOCKS_PER_FLOOR_BLOCK <= HEAD_BLOCKS_MIN);

/// The logarithm of B's mean over A's in a block A B B A. An even trend during a block affects both alike.
pub(crate) fn log_ratio([a_first, b_first, b_second, a_second]: [f64; 4]) -> f64 {
    ((b_first + b_second) / (a_first + a_second)).ln()
}

/// The result of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The whole interval lies below -3% and below the noise floor.
    Faster,
    /// The whole interval lies within 3%, and so does the noise floor.
    Same,
    /// The whole interval lies above 3% and above the noise floor.
    Slower,
    /// None of these.
    Inconclusive,
}

impl Verdict {
    /// Its word in reports.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Verdict::Faster => "faster",
            Verdict::Same => "same",
            Verdict::Slower => "slower",
            Verdict::Inconclusive => "inconclusive",
        }
    }

    /// The exit code of the process. Other failures of the program have 1, 2, and 3.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Verdict::Faster | Verdict::Same => 0,
            Verdict::Slower => 1,
            Verdict::Inconclusive => 4,
        }
    }
}

/// The servers that a block compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pair {
    /// Base and head.
    Head,
    /// The base against itself, which shows what the setup makes of no change.
    Floor,
}

/// The logarithms of the blocks' ratios so far.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    pub(crate) head: Vec<f64>,
    pub(crate) floor: Vec<f64>,
}

impl Evidence {
    /// Returns the next block to compare, so that both kinds are spread over the whole run.
    pub(crate) fn next(&self) -> Pair {
        if self.floor.len() * HEAD_BLOCKS_PER_FLOOR_BLOCK < self.head.len() {
            Pair::Floor
        } else {
            Pair::Head
        }
    }

    /// Adds the logarithm of a block's ratio.
    pub(crate) fn add(&mut self, pair: Pair, log_ratio: f64) {
        match pair {
            Pair::Head => self.head.push(log_ratio),
            Pair::Floor => self.floor.push(log_ratio),
        }
    }

    /// Returns the verdict so far. `Inconclusive` asks for more blocks, if there is time for them.
    pub(crate) fn verdict(&self, seed: u64) -> Verdict {
        if self.head.len() < HEAD_BLOCKS_MIN || self.floor.len() < FLOOR_BLOCKS_MIN {
            return Verdict::Inconclusive;
        }
        match (Interval::of(&self.head, seed), Interval::of(&self.floor, seed)) {
            (Some(head), Some(floor)) => judge(&head, &floor),
            _ => Verdict::Inconclusive,
        }
    }
}

/// The noise floor is the reach of the interval of the base against itself: a difference that a program shows against
/// itself is not a change.
fn judge(head: &Interval, floor: &Interval) -> Verdict {
    let beyond = CHANGE.ln().max(floor.reach());
    if head.half_width() > HALF_WIDTH_MAX {
        Verdict::Inconclusive
    } else if head.low > beyond {
        Verdict::Slower
    } else if head.high < -beyond {
        Verdict::Faster
    } else if head.reach().max(floor.reach()) < CHANGE.ln() {
        Verdict::Same
    } else {
        Verdict::Inconclusive
    }
}
