//! The work that a connection may cause before others have their turn.

/// The cost that a connection may cause before others have their turn, in units of about a nanosecond of CPU time (see
/// `units`). Whatever a shard does for a connection is charged here by what it costs: requests by their kind, bytes by
/// what is done with them. A connection that has spent its budget waits until the others had their turn.
///
/// It does not read a clock: charging is a subtraction. The last request may cost more than what is left, so a
/// connection takes one request more than fits at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    left: i64,
}

impl Budget {
    /// Less than the 100 µs that are promised: on a slower machine a unit takes longer, and the last request may exceed it.
    pub const UNITS: u32 = 80_000;
    /// A budget that was not used yet.
    pub const FULL: Budget = Budget { left: Budget::UNITS as i64 };

    /// Uses up a part of it.
    #[inline(always)]
    pub fn charge(&mut self, units: u32) {
        self.left -= i64::from(units);
    }

    /// Uses up a part of it for bytes; `per_unit` of them cost a unit.
    #[inline(always)]
    pub fn charge_bytes(&mut self, bytes: usize, per_unit: usize) {
        self.left -= (bytes / per_unit) as i64;
    }

    /// Charges a receive, or another turn of what waits.
    #[inline(always)]
    pub fn charge_receive(&mut self) {
        self.charge(units::RECEIVE);
    }

    /// Charges bytes that are moved within a buffer.
    #[inline(always)]
    pub fn charge_moved(&mut self, bytes: usize) {
        self.charge_bytes(bytes, units::MOVED_BYTES);
    }

    /// Whether nothing is left.
    #[inline(always)]
    pub fn is_spent(&self) -> bool {
        self.left <= 0
    }

    /// Returns the number of bytes that it covers, if `per_unit` of them cost a unit.
    pub fn room(&self, per_unit: usize) -> usize {
        usize::try_from(self.left).unwrap_or(0).saturating_mul(per_unit)
    }

    /// Returns the units used so far.
    pub fn used(&self) -> u32 {
        u32::try_from(i64::from(Budget::UNITS) - self.left).unwrap_or(u32::MAX)
    }
}

/// The costs of HTTP itself, in units of a nanosecond. `what_attacks_cost` in `tests/it/simulation/stalls.rs` made the
/// measurements, on an EPYC of family 26; each number has room for a slower machine and cold caches.
pub(super) mod units {
    /// A receive, or another turn of what waits, with the kernel's part: its completion, its copy, and a send.
    pub(in crate::http) const RECEIVE: u32 = 1_500;
    /// The parser of a head that is not known yet, and per byte of the head: measured 1.7 µs for 92 fields in 3.6 kB.
    pub(in crate::http) const HEAD: u32 = 300;
    pub(in crate::http) const HEAD_BYTE: u32 = 1;
    /// The response to a request that HTTP refuses, mostly its JSON: measured 0.2 µs.
    pub(in crate::http) const REFUSAL: u32 = 400;
    /// A byte of a chunked body, as its framing takes longer than its data: measured 3.3 ns.
    pub(in crate::http) const CHUNKED_BYTE: u32 = 4;
    /// Bytes of a request that are compared with a known head, or read as an event in the usual shape, per unit.
    pub(in crate::http) const READ_BYTES: usize = 1;
    /// Bytes of a batch that are copied, from a buffer or from the socket with the first touch of their page, per unit.
    pub(in crate::http) const COPIED_BYTES: usize = 2;
    /// Bytes that are moved within a buffer or discarded, per unit.
    pub(in crate::http) const MOVED_BYTES: usize = 16;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_spent_by_what_it_is_charged() {
        let mut budget = Budget::FULL;
        assert_eq!((budget.used(), budget.is_spent()), (0, false));
        budget.charge_receive();
        assert_eq!(budget.used(), units::RECEIVE);
        budget.charge_bytes(99, 10);
        assert_eq!(budget.used(), units::RECEIVE + 9, "a part of a unit is free");
        budget.charge_moved(units::MOVED_BYTES * 5);
        assert_eq!(budget.used(), units::RECEIVE + 14);
        let left = Budget::UNITS - budget.used();
        assert_eq!(budget.room(3), left as usize * 3);
        budget.charge(left - 1);
        assert_eq!((budget.room(1), budget.is_spent()), (1, false), "one unit is left");
        budget.charge(1);
        assert_eq!((budget.room(1), budget.is_spent()), (0, true));
        budget.charge(7);
        assert_eq!((budget.room(1), budget.used()), (0, Budget::UNITS + 7));
    }
}
