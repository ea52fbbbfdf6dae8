//! Exact sums as the database stores them. Most of an accumulator's bytes are zeros at both ends, which would cost log space,
//! bandwidth, and time with every commit and read.

use crate::tally::ExactSum;

/// The number of bytes that hold the position of the rest.
const PREFIX: usize = 2;

/// Returns the bytes of a sum: the number of zeros at the beginning, and the bytes between them and the zeros at the end.
pub(super) fn pack(sum: &ExactSum) -> Vec<u8> {
    let bytes = sum.to_bytes();
    let start = bytes.iter().take_while(|byte| **byte == 0).count();
    let end = bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count();
    let prefix = u16::try_from(start).expect("an accumulator has fewer bytes");
    let mut packed = prefix.to_le_bytes().to_vec();
    packed.extend_from_slice(bytes.get(start..end).unwrap_or(&[]));
    packed
}

/// Returns the sum that [`pack`] wrote; `None` if it did not write such bytes.
pub(super) fn unpack(packed: &[u8]) -> Option<ExactSum> {
    let (start, rest) = packed.split_first_chunk::<PREFIX>()?;
    let start = usize::from(u16::from_le_bytes(*start));
    let mut bytes = [0; ExactSum::BYTES];
    bytes.get_mut(start..start + rest.len())?.copy_from_slice(rest);
    ExactSum::from_bytes(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_is_as_it_was_and_short() {
        for values in [&[][..], &[1.0], &[499.5, 0.1], &[-3.0], &[f64::MAX, 5e-324, f64::MAX]] {
            let sum: ExactSum = values.iter().copied().collect();
            let packed = pack(&sum);
            let again = unpack(&packed).unwrap();
            assert_eq!(again.to_bytes(), sum.to_bytes(), "{values:?}");
        }
        let sum: ExactSum = (0..1000).map(f64::from).collect();
        assert!(pack(&sum).len() < 20);
    }

    #[test]
    fn other_bytes_are_no_sum() {
        for bytes in [&[][..], &[1], &[255, 255, 1], &[0, 0, 0, 0, 0, 0, 0, 0, 0, 255]] {
            assert!(unpack(bytes).is_none(), "{bytes:?}");
        }
    }
}
