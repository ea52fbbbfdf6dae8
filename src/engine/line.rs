//! The line of connections that have work left after their turn.

use crate::http::Budget;
use std::collections::VecDeque;

/// Connections that have work to do, on a batch or because their budget was spent, in order of arrival.
#[derive(Debug)]
pub struct Line<K> {
    keys: VecDeque<K>,
}

impl<K> Default for Line<K> {
    fn default() -> Line<K> {
        Line::new()
    }
}

impl<K> Line<K> {
    /// Creates an empty line.
    pub fn new() -> Line<K> {
        Line { keys: VecDeque::new() }
    }

    /// Returns whether no connection is in line.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Puts a connection at the end of the line.
    pub fn join(&mut self, key: K) {
        self.keys.push_back(key);
    }

    /// Calls `work` with the connections in line, one after another, until all of them together have spent one budget; then the
    /// others get their turn. `work` returns the cost, in units of a budget. Returns whether any connection was in line.
    pub fn advance(&mut self, mut work: impl FnMut(K) -> u32) -> bool {
        let (mut turn, mut has_worked) = (Budget::FULL, false);
        while !turn.is_spent()
            && let Some(key) = self.keys.pop_front()
        {
            turn.charge(work(key));
            has_worked = true;
        }
        has_worked
    }
}
