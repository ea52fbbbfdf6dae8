//! Reads numbers of any length in the grammar of JSON as the nearest `f64`, ties to even.
//!
//! The standard library reads every decimal of up to 19 digits fast. A longer number lies between two such numbers, which
//! usually have the same nearest value. If they do not, the standard library decides by shifting up to 768 digits hundreds of
//! times, which takes 14 to 17 µs per number, however short it is. Here, the number is instead compared once, using integers,
//! with the midpoint between the two values (W. Clinger, "How to Read Floating Point Numbers Accurately", 1990).

use std::cmp::Ordering;
use std::io::Write as _;

/// The largest number of digits that always fits in a `u64`.
pub(super) const DIGITS_MAX: usize = 19;

/// The maximum number of digits that are compared. The midpoint between two neighboring values has at most 767 digits, so the
/// digits after these decide only whether the number is above it.
const COMPARED_DIGITS_MAX: usize = 768;

/// Exponents beyond this limit give zero or infinity, whatever the digits, for any number shorter than 2^60 bytes.
const EXPONENT_MAX: i64 = 1 << 61;

/// Returns the value nearest to the number in `text`, or infinity if it is too large. Returns `None` if `text` as a whole
/// is not a JSON number.
pub(super) fn read(text: &[u8]) -> Option<f64> {
    let (is_negative, magnitude) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let (whole, rest) = split_digits(magnitude);
    if whole.is_empty() || (whole.len() > 1 && whole[0] == b'0') {
        return None;
    }
    let (fraction, rest) = match rest {
        [b'.', rest @ ..] => match split_digits(rest) {
            ([], _) => return None,
            parts => parts,
        },
        _ => (&[][..], rest),
    };
    let exponent = match rest {
        [] => 0,
        [b'e' | b'E', rest @ ..] => exponent(rest)?,
        _ => return None,
    };
    if whole.len() + fraction.len() <= DIGITS_MAX {
        // Everything that the standard library accepts but JSON does not was refused above.
        return std::str::from_utf8(text).ok()?.parse().ok();
    }
    let magnitude = Decimal::new(whole, fraction, exponent).nearest();
    Some(if is_negative { -magnitude } else { magnitude })
}

/// Returns the digits at the start of `bytes`, and the bytes after them.
fn split_digits(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(bytes.len());
    bytes.split_at(end)
}

/// Returns the exponent in `text`, which is everything after the letter `e`, limited to a distance of
/// [`EXPONENT_MAX`] from zero.
fn exponent(text: &[u8]) -> Option<i64> {
    let (is_negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    let (digits, rest) = split_digits(digits);
    if digits.is_empty() || !rest.is_empty() {
        return None;
    }
    let append = |exponent: i64, digit: &u8| {
        exponent.saturating_mul(10).saturating_add(i64::from(digit - b'0')).min(EXPONENT_MAX)
    };
    let magnitude = digits.iter().fold(0, append);
    Some(if is_negative { -magnitude } else { magnitude })
}

/// The digits of two consecutive parts of a number.
#[derive(Clone, Copy)]
struct Digits<'a>(&'a [u8], &'a [u8]);

impl<'a> Digits<'a> {
    fn len(&self) -> usize {
        self.0.len() + self.1.len()
    }

    fn iter(&self) -> impl DoubleEndedIterator<Item = u64> + 'a {
        self.0.iter().chain(self.1).map(|digit| u64::from(digit - b'0'))
    }

    /// Returns the digits without the first `first` and the last `last` digits.
    fn without(self, first: usize, last: usize) -> Digits<'a> {
        let Digits(one, two) = self;
        let (from_one, from_two) = (first.min(one.len()), first.saturating_sub(one.len()));
        let (one, two) = (&one[from_one..], &two[from_two..]);
        let (off_one, off_two) = (last.saturating_sub(two.len()), last.min(two.len()));
        Digits(&one[..one.len() - off_one], &two[..two.len() - off_two])
    }
}

/// A decimal: the integer that the digits represent, times a power of ten, without leading or trailing zeros.
struct Decimal<'a> {
    digits: Digits<'a>,
    exponent: i64,
}

impl<'a> Decimal<'a> {
    fn new(whole: &'a [u8], fraction: &'a [u8], exponent: i64) -> Self {
        let places = |digits: usize| i64::try_from(digits).unwrap_or(EXPONENT_MAX);
        let digits = Digits(whole, fraction);
        let is_zero = |digit: &u64| *digit == 0;
        let first = digits.iter().take_while(is_zero).count();
        let last = digits.without(first, 0).iter().rev().take_while(is_zero).count();
        let exponent = exponent - places(fraction.len()) + places(last);
        Decimal { digits: digits.without(first, last), exponent }
    }

    /// Returns the nearest value.
    fn nearest(&self) -> f64 {
        let head = self.digits.iter().take(DIGITS_MAX).fold(0, |head, digit| head * 10 + digit);
        let Some(cut @ 1..) = self.digits.len().checked_sub(DIGITS_MAX) else {
            return nearest_short(head, self.exponent);
        };
        // The number is above the decimal with these digits, and below the decimal with the next higher digits.
        let exponent = self.exponent.saturating_add(i64::try_from(cut).unwrap_or(EXPONENT_MAX));
        let below = nearest_short(head, exponent);
        let above = match head + 1 {
            // The sum has one more digit.
            10_000_000_000_000_000_000 => nearest_short(1_000_000_000_000_000_000, exponent + 1),
            next => nearest_short(next, exponent),
        };
        if below.to_bits() == above.to_bits() {
            return below;
        }
        // The two values are neighbors, because the 19-digit decimals are closer together than the values of `f64`.
        match self.compare_with_middle_above(below) {
            Ordering::Less => below,
            Ordering::Equal if below.to_bits() & 1 == 0 => below,
            Ordering::Equal | Ordering::Greater => below.next_up(),
        }
    }

    /// Compares the number with the midpoint between a finite value and the next value, whose exponent is
    /// in the range of `f64`.
    fn compare_with_middle_above(&self, value: f64) -> Ordering {
        // In units of half the distance between the two, the value is even, and the midpoint is one more.
        let bits = value.to_bits();
        let (binary_exponent, fraction) = ((bits >> 52) as i64, bits & ((1 << 52) - 1));
        let value = if binary_exponent == 0 { fraction } else { fraction | 1 << 52 };
        let (middle, binary_exponent) = (2 * value + 1, binary_exponent.max(1) - 1076);
        let compared =
            self.digits.without(0, self.digits.len().saturating_sub(COMPARED_DIGITS_MAX));
        let cut = self.digits.len() - compared.len();
        let mut number = Integer::from_digits(compared.iter(), compared.len());
        let mut exponent = self.exponent + i64::try_from(cut).unwrap_or(EXPONENT_MAX);
        if cut > 0 {
            // Whatever the remaining digits are, the last is not zero.
            number.multiply_and_add(10, 1);
            exponent -= 1;
        }
        let mut middle = Integer::from(middle);
        // Powers of ten are split into fives and twos. Negative powers on one side become positive powers on the other.
        if exponent >= 0 {
            number.multiply_by_power_of_five(exponent);
        } else {
            middle.multiply_by_power_of_five(-exponent);
        }
        let shift = binary_exponent - exponent;
        if shift >= 0 {
            middle.shift_left(shift);
        } else {
            number.shift_left(-shift);
        }
        number.compare(&middle)
    }
}

/// Returns the value nearest to a number of at most 19 digits. The standard library finds it without comparing digits (N.
/// Mushtak and D. Lemire, "Fast Number Parsing Without Fallback", 2023).
fn nearest_short(digits: u64, exponent: i64) -> f64 {
    let mut text = [0; 48];
    let mut rest = &mut text[..];
    // Both numbers have at most 20 characters, so the text fits. Truncated text would not be read as a number.
    let _ = write!(rest, "{digits}e{exponent}");
    let unused = rest.len();
    let text = std::str::from_utf8(&text[..48 - unused]);
    text.ok().and_then(|text| text.parse().ok()).expect("digits and an exponent are a number")
}

/// A natural number: 64 bits per limb, the lowest limb first, without zero limbs at the end.
///
/// The compared numbers have fewer than 3,000 bits: 769 digits take 2,555 bits, and the two numbers differ by less
/// than a factor of two.
struct Integer(Vec<u64>);

impl Integer {
    const LIMBS: usize = 48;

    fn from(value: u64) -> Integer {
        let mut limbs = Vec::with_capacity(Self::LIMBS);
        limbs.push(value);
        Integer(limbs)
    }

    fn from_digits(mut digits: impl Iterator<Item = u64>, mut count: usize) -> Integer {
        let mut number = Integer::from(0);
        while count > 0 {
            let taken = count.min(DIGITS_MAX);
            let (mut limb, mut scale) = (0, 1);
            for digit in digits.by_ref().take(taken) {
                (limb, scale) = (limb * 10 + digit, scale * 10);
            }
            number.multiply_and_add(scale, limb);
            count -= taken;
        }
        number
    }

    fn multiply_and_add(&mut self, factor: u64, summand: u64) {
        let mut carry = summand;
        for limb in &mut self.0 {
            let wide = u128::from(*limb) * u128::from(factor) + u128::from(carry);
            #[expect(clippy::cast_possible_truncation, reason = "the low half")]
            let low = wide as u64;
            (*limb, carry) = (low, (wide >> 64) as u64);
        }
        if carry > 0 {
            self.0.push(carry);
        }
    }

    fn multiply_by_power_of_five(&mut self, mut power: i64) {
        /// The largest power of five that a limb holds.
        const STEP: u32 = 27;
        const FACTOR: u64 = 5u64.pow(STEP);
        while power >= i64::from(STEP) {
            self.multiply_and_add(FACTOR, 0);
            power -= i64::from(STEP);
        }
        self.multiply_and_add((0..power).fold(1, |product, _| product * 5), 0);
    }

    fn shift_left(&mut self, bits: i64) {
        let (limbs, bits) = (bits / 64, bits % 64);
        self.multiply_and_add(1 << bits, 0);
        self.0.splice(0..0, (0..limbs).map(|_| 0));
    }

    fn compare(&self, other: &Integer) -> Ordering {
        let by_length = self.0.len().cmp(&other.0.len());
        by_length.then_with(|| self.0.iter().rev().cmp(other.0.iter().rev()))
    }
}
