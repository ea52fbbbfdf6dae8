//! An exact accumulator of `f64` values that is rounded only when it is read.
//!
//! The design is the "small superaccumulator" of R. M. Neal, "Fast exact summation using small and large superaccumulators"
//! (arXiv 1505.05571): one wide fixed-point number covers every bit that a finite `f64` can have. It is held in overlapping
//! limbs, so an addition touches only a few limbs, and carries are rarely propagated. Neal spreads a value over two limbs and
//! propagates carries every 2^11 additions. Here, a value is spread over three limbs, and each limb grows by less than 2^32 per
//! addition, so carries can wait for 2^20 additions, and shards can be merged without propagating them.

/// The number of bits that one limb represents. A limb has 64 bits; the rest is headroom for carries.
const LIMB_BITS: usize = 32;

/// The number of limbs of the accumulator: bit 0 is 2^-1074 (the smallest subnormal), the largest
/// finite value ends below bit 2098, and 2^64 additions carry at most 64 bits further.
pub(crate) const LIMBS: usize = 68;
const _: () = assert!(LIMBS * LIMB_BITS > 1074 + 1024 + 64);

/// The maximum number of accumulators that may be merged into one without propagating carries in between.
pub(crate) const MERGES_MAX: u64 = 1024;

/// The number of additions before carries are propagated. An addition changes a limb by less than 2^32.
const ADDITIONS_BETWEEN_CARRIES: u32 = 1 << 20;
const _: () = assert!((ADDITIONS_BETWEEN_CARRIES as u64 + 1) * MERGES_MAX <= 1 << 31);

/// The number of sums that [`ExactSum::add_all`] computes in parallel.
const LANES: usize = 2;

/// The number of bytes of a limb.
const LIMB_BYTES: usize = 8;

const FRACTION_BITS: usize = 52;
const EXPONENT_MASK: u64 = 0x7ff;
const FRACTION_MASK: u64 = (1 << FRACTION_BITS) - 1;
const LIMB_MASK: u64 = (1 << LIMB_BITS) - 1;

/// The range of the limbs that can differ from zero, or that have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The first limb.
    pub(crate) start: usize,
    /// One past the last limb.
    pub(crate) end: usize,
}

impl Extent {
    pub(crate) const EMPTY: Extent = Extent { start: LIMBS, end: 0 };
    pub(crate) const ALL: Extent = Extent { start: 0, end: LIMBS };

    /// Returns the smallest range that includes both ranges.
    pub(crate) fn hull(self, other: Extent) -> Extent {
        Extent { start: self.start.min(other.start), end: self.end.max(other.end) }
    }

    /// Returns the indices of the limbs. For any extent, the range is ordered or empty.
    pub(crate) fn range(self) -> std::ops::Range<usize> {
        self.start.min(self.end)..self.end
    }

    /// Returns the range packed into one word, for an atomic.
    pub(crate) fn to_word(self) -> u64 {
        (self.start as u64) << 32 | self.end as u64
    }

    /// Returns the range that [`Extent::to_word`] packed, limited to the number of limbs.
    pub(crate) fn from_word(word: u64) -> Extent {
        Extent { start: (word >> 32) as usize, end: ((word & LIMB_MASK) as usize).min(LIMBS) }
    }
}

/// The exact sum of finite `f64` values, independent of their order and grouping.
#[derive(Clone, Debug)]
pub struct ExactSum {
    limbs: [i64; LIMBS],
    /// The range of limbs that can differ from zero.
    extent: Extent,
    /// The number of additions since carries were propagated.
    additions: u32,
}

impl Default for ExactSum {
    fn default() -> Self {
        ExactSum { limbs: [0; LIMBS], extent: Extent::EMPTY, additions: 0 }
    }
}

impl FromIterator<f64> for ExactSum {
    /// Returns the sum of finite values.
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut sum = ExactSum::default();
        for value in values {
            sum.add(value);
        }
        sum
    }
}

impl PartialEq for ExactSum {
    /// Returns whether the exact sums are equal, whichever carries are pending.
    fn eq(&self, other: &ExactSum) -> bool {
        self.to_bytes() == other.to_bytes()
    }
}

impl ExactSum {
    /// The number of bytes that [`ExactSum::to_bytes`] returns.
    pub const BYTES: usize = LIMBS * LIMB_BYTES;

    /// Adds a finite value and returns the limbs that may have changed. The caller must not pass
    /// other values, because they do not have an exact sum.
    #[inline]
    pub(crate) fn add(&mut self, value: f64) -> Extent {
        debug_assert!(value.is_finite());
        let bits = value.to_bits();
        let exponent = (bits >> FRACTION_BITS & EXPONENT_MASK) as usize;
        let fraction = bits & FRACTION_MASK;
        // A subnormal has the scale of exponent 1, without the implicit bit.
        let (mantissa, position) = match exponent {
            0 => (fraction, 0),
            _ => (fraction | 1 << FRACTION_BITS, exponent - 1),
        };
        let limb = position / LIMB_BITS;
        let spread = u128::from(mantissa) << (position % LIMB_BITS);
        #[expect(clippy::cast_possible_truncation, reason = "the low bits are what is wanted")]
        let parts = [
            (spread as u64 & LIMB_MASK) as i64,
            ((spread >> LIMB_BITS) as u64 & LIMB_MASK) as i64,
            (spread >> (2 * LIMB_BITS)) as i64,
        ];
        let sign = if value.is_sign_negative() { -1 } else { 1 };
        for (slot, part) in self.limbs[limb..limb + 3].iter_mut().zip(parts) {
            *slot += sign * part;
        }
        let touched = Extent { start: limb, end: limb + 3 };
        self.extent = self.extent.hull(touched);
        self.additions += 1;
        if self.additions < ADDITIONS_BETWEEN_CARRIES {
            touched
        } else {
            self.propagate_carries();
            self.extent
        }
    }

    /// Adds finite values. If their floating-point sums can be made exact, adds only these few sums.
    pub(crate) fn add_all(&mut self, values: &[f64]) {
        // There are several lanes so that the compiler uses vector instructions.
        let (mut totals, mut errors, mut lost) = ([0.0; LANES], [0.0; LANES], [0; LANES]);
        let (chunks, rest) = values.as_chunks::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                let (total, error) = add_exactly(totals[lane], chunk[lane]);
                // Errors have few digits, so their sums are usually exact, too.
                let (error, second_error) = add_exactly(errors[lane], error);
                (totals[lane], errors[lane]) = (total, error);
                // The second error is not a number if a sum is beyond the finite range.
                lost[lane] |= second_error.to_bits() << 1;
            }
        }
        if lost != [0; LANES] {
            values.iter().for_each(|value| _ = self.add(*value));
            return;
        }
        // Adding a zero would not change the sum, but would cause all limbs from the lowest on to be published.
        let sums = totals.iter().chain(&errors).filter(|sum| **sum != 0.0);
        sums.chain(rest).for_each(|value| _ = self.add(*value));
    }

    /// Adds the limbs of another accumulator within its extent. At most [`MERGES_MAX`] accumulators
    /// may be merged into an empty one.
    pub(crate) fn merge_limbs(&mut self, extent: Extent, limbs: &[i64; LIMBS]) {
        let range = extent.range();
        for (limb, other) in self.limbs[range.clone()].iter_mut().zip(&limbs[range]) {
            *limb += other;
        }
        self.extent = self.extent.hull(extent);
    }

    /// Adds another accumulator, and returns the limbs that may have changed. Can be called any number of times.
    pub(crate) fn absorb(&mut self, other: &ExactSum) -> Extent {
        // Limbs whose carries were propagated are at most as large as after one addition.
        let additions = other.additions + 1;
        let mut changed = other.extent;
        if self.additions + additions > ADDITIONS_BETWEEN_CARRIES {
            self.propagate_carries();
            changed = Extent::ALL;
        }
        self.merge(other);
        self.additions += additions;
        changed
    }

    /// Adds another accumulator.
    pub fn merge(&mut self, other: &ExactSum) {
        self.merge_limbs(other.extent, &other.limbs);
    }

    /// Returns the unique representation of the sum after carries are propagated: the limbs, little endian.
    pub fn to_bytes(&self) -> [u8; ExactSum::BYTES] {
        let mut exact = self.clone();
        exact.propagate_carries();
        let mut bytes = [0; ExactSum::BYTES];
        for (place, limb) in bytes.chunks_exact_mut(LIMB_BYTES).zip(exact.limbs) {
            place.copy_from_slice(&limb.to_le_bytes());
        }
        bytes
    }

    /// Returns the sum that [`ExactSum::to_bytes`] wrote, or `None` if it never writes such bytes.
    pub fn from_bytes(bytes: &[u8; ExactSum::BYTES]) -> Option<ExactSum> {
        let mut sum = ExactSum { extent: Extent::ALL, ..ExactSum::default() };
        for (limb, place) in sum.limbs.iter_mut().zip(bytes.as_chunks::<LIMB_BYTES>().0) {
            *limb = i64::from_le_bytes(*place);
        }
        let (last, others) = sum.limbs.split_last().expect("there are limbs");
        let carried = 0..=LIMB_MASK as i64;
        let is_written =
            others.iter().all(|limb| carried.contains(limb)) && last.unsigned_abs() < 1 << 62;
        is_written.then_some(sum)
    }

    /// Returns the limbs without propagating carries.
    pub(crate) fn limbs(&self) -> &[i64; LIMBS] {
        &self.limbs
    }

    /// Returns the range of limbs that can differ from zero.
    pub(crate) fn extent(&self) -> Extent {
        self.extent
    }

    /// Brings every limb except the last into `0..2^32`. The last limb keeps the sign.
    fn propagate_carries(&mut self) {
        self.additions = 0;
        if self.extent == Extent::EMPTY {
            return;
        }
        let mut carry = 0;
        for at in self.extent.start..LIMBS - 1 {
            if carry == 0 && at >= self.extent.end {
                // From here on, all limbs are zero.
                self.extent.end = at;
                return;
            }
            let whole = self.limbs[at] + carry;
            carry = whole >> LIMB_BITS;
            self.limbs[at] = whole & LIMB_MASK as i64;
        }
        self.limbs[LIMBS - 1] += carry;
        self.extent.end = LIMBS;
    }

    /// Returns the nearest `f64` to the exact sum, ties to even. Beyond the finite range it is the
    /// largest finite value of its sign; a sum of zero is `0.0`, never `-0.0`.
    pub fn round(&self) -> f64 {
        let mut exact = self.clone();
        exact.propagate_carries();
        let negative = exact.limbs[LIMBS - 1] < 0;
        if negative {
            for limb in &mut exact.limbs {
                *limb = -*limb;
            }
            exact.propagate_carries();
        }
        let magnitude = round_magnitude(&exact.limbs);
        if negative { -magnitude } else { magnitude }
    }
}

/// Returns the rounded sum of two numbers and its exact rounding error (D. Knuth, "The Art of Computer Programming",
/// volume 2, section 4.2.2).
#[inline(always)]
fn add_exactly(total: f64, value: f64) -> (f64, f64) {
    let sum = total + value;
    let rounded = sum - total;
    (sum, (total - (sum - rounded)) + (value - rounded))
}

/// Returns the nearest `f64` to a number whose limbs are all in `0..2^32`.
fn round_magnitude(limbs: &[i64; LIMBS]) -> f64 {
    let Some(top) = limbs.iter().rposition(|limb| *limb != 0) else {
        return 0.0;
    };
    let highest_bit = top * LIMB_BITS + (63 - limbs[top].leading_zeros() as usize);
    // Bit 0 is the smallest subnormal, so up to 53 bits are a value as they are. As an integer,
    // they are its representation, because a set bit 52 reads as exponent 1.
    if highest_bit <= FRACTION_BITS {
        return f64::from_bits(limbs[0] as u64 | (limbs[1] as u64) << LIMB_BITS);
    }
    let shift = highest_bit - FRACTION_BITS;
    let (limb, offset) = (shift / LIMB_BITS, shift % LIMB_BITS);
    let window = (0..3).fold(0u128, |window, i| {
        let part = limbs.get(limb + i).copied().unwrap_or(0) as u128;
        window | part << (i * LIMB_BITS)
    });
    #[expect(clippy::cast_possible_truncation, reason = "the low bits are what is wanted")]
    let mantissa = (window >> offset) as u64 & (FRACTION_MASK | 1 << FRACTION_BITS);
    let half = shift - 1;
    let half_is_set = limbs[half / LIMB_BITS] >> (half % LIMB_BITS) & 1 == 1;
    let below_half = limbs[half / LIMB_BITS] & ((1i64 << (half % LIMB_BITS)) - 1);
    let exactly_half = below_half == 0 && limbs[..half / LIMB_BITS].iter().all(|limb| *limb == 0);
    let up = half_is_set && (!exactly_half || mantissa & 1 == 1);
    // A mantissa that rounds up to 2^53 carries into the exponent by itself.
    let bits = ((shift as u64) << FRACTION_BITS) + mantissa + u64::from(up);
    if bits >= f64::INFINITY.to_bits() { f64::MAX } else { f64::from_bits(bits) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use num_bigint::BigInt;
    use proptest::prelude::*;

    /// Returns the exact value in units of 2^-1074.
    fn exact(value: f64) -> BigInt {
        let bits = value.to_bits();
        let exponent = (bits >> 52 & 0x7ff) as usize;
        let fraction = bits & ((1 << 52) - 1);
        let magnitude = match exponent {
            0 => BigInt::from(fraction),
            _ => BigInt::from(fraction | 1 << 52) << (exponent - 1),
        };
        if value.is_sign_negative() { -magnitude } else { magnitude }
    }

    /// Rounds through an exact decimal and the standard library's correctly rounded parser:
    /// N * 2^-1074 is N * 5^1074 * 10^-1074.
    fn reference(values: &[f64]) -> f64 {
        let total: BigInt = values.iter().map(|value| exact(*value)).sum();
        let decimal = total * BigInt::from(5).pow(1074);
        let rounded: f64 = format!("{decimal}e-1074").parse().unwrap();
        rounded.clamp(-f64::MAX, f64::MAX) + 0.0
    }

    fn sum(values: &[f64]) -> ExactSum {
        values.iter().copied().collect()
    }

    fn any_finite() -> impl Strategy<Value = f64> {
        let bits = any::<u64>().prop_map(f64::from_bits).prop_filter("finite", |v| v.is_finite());
        let subnormal = (any::<bool>(), 0..1u64 << 52)
            .prop_map(|(sign, fraction)| f64::from_bits(u64::from(sign) << 63 | fraction));
        let edge = prop::sample::select(vec![
            0.0,
            -0.0,
            1.0,
            -1.0,
            f64::MAX,
            f64::MIN,
            f64::MIN_POSITIVE,
            f64::EPSILON,
            1e308,
            1e-308,
            5e-324,
            -5e-324,
            9007199254740993.0,
            0.5,
            (1u64 << 53) as f64,
        ]);
        prop_oneof![bits, subnormal, edge, -1e6..1e6f64]
    }

    /// Returns 2^(place - 1074).
    fn power_of_two(place: u64) -> f64 {
        f64::from_bits(if place <= 51 { 1 << place } else { (place - 51) << 52 })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn a_tie_goes_to_the_even_value_and_the_smallest_difference_decides_it(
            exponent in 3..2046u64,
            fraction in 0..1u64 << 52,
            is_negative: bool,
            below in prop_oneof![1..40u64, 1..2046u64],
        ) {
            let value = f64::from_bits(exponent << 52 | fraction);
            let half = power_of_two(exponent - 2);
            let difference = power_of_two((exponent - 2).saturating_sub(below).min(exponent - 3));
            let sign = if is_negative { -1.0 } else { 1.0 };
            let rounded = |values: &[f64]| {
                sign * values.iter().map(|value| sign * value).collect::<ExactSum>().round()
            };
            // The processor rounds a single sum correctly, ties to even.
            prop_assert_eq!(rounded(&[value, half]), value + half);
            prop_assert_eq!(rounded(&[value, half, difference]), value.next_up());
            prop_assert_eq!(rounded(&[value, half, -difference]), value);
        }

        #[test]
        fn the_sum_is_the_correctly_rounded_exact_sum(
            values in prop::collection::vec(any_finite(), 0..40)
        ) {
            prop_assert_eq!(sum(&values).round().to_bits(), reference(&values).to_bits());
        }

        #[test]
        fn order_and_splits_do_not_matter(
            values in prop::collection::vec(any_finite(), 0..60),
            shards in prop::collection::vec(0..8usize, 60),
        ) {
            let mut parts = vec![ExactSum::default(); 8];
            for (value, shard) in values.iter().zip(&shards).rev() {
                parts[*shard].add(*value);
            }
            let mut merged = ExactSum::default();
            for part in &parts {
                merged.merge(part);
            }
            prop_assert_eq!(merged.round().to_bits(), sum(&values).round().to_bits());
        }

        #[test]
        fn values_that_are_added_at_once_have_the_same_sum(
            blocks in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any_finite(), 0..8),
                    prop::collection::vec((0..2000u32).prop_map(|value| f64::from(value) / 2.0), 0..40),
                    prop::collection::vec((0..64i32).prop_map(|bit| 2f64.powi(bit)), 0..8),
                    prop::collection::vec(prop::sample::select(vec![f64::MAX, f64::MIN, 1.0]), 0..8),
                ],
                0..6,
            ),
        ) {
            let mut at_once = ExactSum::default();
            for block in &blocks {
                at_once.add_all(block);
            }
            prop_assert_eq!(at_once, sum(&blocks.concat()));
        }

        #[test]
        fn cancellation_is_exact_down_to_one_unit(
            values in prop::collection::vec(any_finite(), 0..40), unit in any_finite()
        ) {
            let negated = values.iter().map(|value| -value);
            let all: Vec<f64> = values.iter().copied().chain([unit]).chain(negated).collect();
            prop_assert_eq!(sum(&all).round().to_bits(), (unit + 0.0).to_bits());
        }

        #[test]
        fn a_sum_survives_being_written(
            values in prop::collection::vec(any_finite(), 0..40),
            later in prop::collection::vec(any_finite(), 0..10),
        ) {
            let mut read = ExactSum::from_bytes(&sum(&values).to_bytes()).unwrap();
            prop_assert_eq!(&read, &sum(&values));
            later.iter().for_each(|value| { read.add(*value); });
            prop_assert_eq!(read.round().to_bits(), sum(&[values, later].concat()).round().to_bits());
        }

        #[test]
        fn carries_can_be_propagated_at_any_moment(
            values in prop::collection::vec(any_finite(), 1..30), at in 0..30usize
        ) {
            let mut carried = ExactSum::default();
            for (i, value) in values.iter().enumerate() {
                if i == at {
                    carried.propagate_carries();
                }
                carried.add(*value);
            }
            prop_assert_eq!(carried.round().to_bits(), sum(&values).round().to_bits());
        }
    }

    #[test]
    fn more_additions_than_fit_between_carries_are_exact() {
        let mut accumulator = ExactSum::default();
        let values = [f64::MAX, -1.5, f64::MAX, 1e-300];
        let rounds = ADDITIONS_BETWEEN_CARRIES as usize / values.len() + 3;
        for _ in 0..rounds {
            for value in values {
                accumulator.add(value);
            }
        }
        assert_eq!(accumulator.round(), f64::MAX);
        for _ in 0..rounds {
            accumulator.add(-f64::MAX);
            accumulator.add(-f64::MAX);
        }
        assert_eq!(accumulator.round(), -1.5 * rounds as f64);
    }

    #[test]
    fn a_rounded_sum_and_its_error_are_the_exact_sum() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut value = || {
            let bits = random.u64(..) & FRACTION_MASK | (1023 + random.u64(..80)) << FRACTION_BITS;
            f64::from_bits(bits | random.u64(..2) << 63)
        };
        for _ in 0..1000 {
            let (total, added) = (value(), value());
            let (rounded, error) = add_exactly(total, added);
            assert_eq!(rounded, total + added);
            assert_eq!(sum(&[rounded, error]), sum(&[total, added]), "{total} + {added}");
        }
    }

    #[test]
    fn values_with_exact_sums_take_few_additions() {
        let mut accumulator = ExactSum::default();
        accumulator.add_all(&[499.5; 1001]);
        assert_eq!(accumulator.round(), 499.5 * 1001.0);
        // A sum for each lane, and the value that is left.
        assert_eq!(usize::try_from(accumulator.additions), Ok(LANES + 1));
    }

    /// A value that fills its lowest limb, so that two of them leave a carry.
    const FULL: f64 = (FRACTION_MASK | 1 << FRACTION_BITS) as f64;

    fn is_carried(sum: &ExactSum) -> bool {
        sum.limbs().iter().all(|limb| (0..=LIMB_MASK as i64).contains(limb))
    }

    #[test]
    fn carries_are_propagated_at_the_limit_of_additions() {
        let mut sum = ExactSum { additions: ADDITIONS_BETWEEN_CARRIES - 3, ..ExactSum::default() };
        let touched = sum.add(FULL);
        assert_eq!(sum.add(FULL), touched);
        assert!(!is_carried(&sum), "one below the limit");
        let changed = sum.add(FULL);
        assert!(is_carried(&sum) && changed == sum.extent(), "{changed:?}");
        assert_eq!(sum.round(), 3.0 * FULL);
        // Another sum counts as its additions and one more.
        let mut other = ExactSum::default();
        (0..2).for_each(|_| _ = other.add(FULL));
        for (additions, is_over) in
            [(ADDITIONS_BETWEEN_CARRIES - 3, false), (ADDITIONS_BETWEEN_CARRIES - 2, true)]
        {
            let mut sum = ExactSum::default();
            (0..2).for_each(|_| _ = sum.add(FULL));
            sum.additions = additions;
            let changed = sum.absorb(&other);
            assert_eq!(changed, if is_over { Extent::ALL } else { other.extent() });
            assert_eq!(sum.additions, if is_over { 3 } else { ADDITIONS_BETWEEN_CARRIES });
            assert_eq!(sum.round(), 4.0 * FULL);
        }
    }

    #[test]
    fn bytes_that_are_never_written_are_refused() {
        let with = |at: usize, limb: i64| {
            let mut bytes = ExactSum::default().to_bytes();
            bytes[at * LIMB_BYTES..][..LIMB_BYTES].copy_from_slice(&limb.to_le_bytes());
            ExactSum::from_bytes(&bytes)
        };
        let (last, most) = (LIMBS - 1, LIMB_MASK as i64);
        for (at, limb, is_possible) in [
            (0, most, true),
            (0, most + 1, false),
            (last - 1, -1, false),
            (last, (1 << 62) - 1, true),
            (last, 1 << 62, false),
            (last, 1 - (1 << 62), true),
            (last, -(1 << 62), false),
        ] {
            assert_eq!(with(at, limb).is_some(), is_possible, "{limb} at {at}");
        }
        assert_ne!(with(0, 1), with(0, 2));
    }

    #[test]
    fn an_extent_survives_its_word() {
        for extent in [Extent::EMPTY, Extent::ALL, Extent { start: 3, end: 7 }] {
            assert_eq!(Extent::from_word(extent.to_word()), extent);
        }
        let beyond = Extent { start: 3, end: LIMBS + 1 };
        assert_eq!(Extent::from_word(beyond.to_word()), Extent { start: 3, end: LIMBS });
    }

    #[test]
    fn beyond_the_finite_range_the_sum_is_the_largest_value_and_can_come_back() {
        let mut accumulator = sum(&[f64::MAX, f64::MAX]);
        assert_eq!(accumulator.round(), f64::MAX);
        accumulator.add(-f64::MAX);
        accumulator.add(1.0 - f64::MAX);
        // Rounding 1 - MAX gives -MAX: the exact rest is zero.
        assert_eq!(accumulator.round().to_bits(), 0.0f64.to_bits());
        // Half an ulp above MAX is the first value that would round beyond the finite range; smaller values round to MAX.
        let half_ulp = 2f64.powi(970);
        assert_eq!(sum(&[f64::MIN, -half_ulp]).round(), f64::MIN);
        assert_eq!(sum(&[f64::MAX, half_ulp, half_ulp, f64::MIN]).round(), 2.0 * half_ulp);
    }

    #[test]
    fn an_addition_reports_every_limb_that_it_changed() {
        let mut accumulator = ExactSum::default();
        for value in [1.0, -1e300, 5e-324, f64::MAX, 0.1] {
            let before = accumulator.limbs;
            let touched = accumulator.add(value);
            for (index, limb) in before.iter().enumerate() {
                let inside = (touched.start..touched.end).contains(&index);
                assert!(inside || *limb == accumulator.limbs[index], "{value} limb {index}");
            }
            assert_eq!(accumulator.extent.hull(touched), accumulator.extent);
        }
    }
}
