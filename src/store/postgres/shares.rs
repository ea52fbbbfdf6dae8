//! The contributions of the servers' rows to the totals of the group.

use super::error::StoreError;
use crate::store::{Group, ServerShare};
use crate::tally::{ExactSum, SHARDS_MAX, Totals};
use std::time::Duration;

/// The contribution of one row.
#[derive(Clone, Debug)]
pub struct Share {
    /// Whether it belongs to the requesting server.
    pub is_this: bool,
    /// The name of the server.
    pub name: String,
    /// Its events.
    pub events: u64,
    /// The users that it was the first to insert.
    pub users: u64,
    /// The sum of its events.
    pub sum: ExactSum,
    /// Whether it has ended.
    pub has_ended: bool,
    /// The time since it was seen.
    pub age: Duration,
}

pub(super) fn count(number: i64) -> Result<u64, StoreError> {
    u64::try_from(number).map_err(|_| damaged())
}

pub(super) fn damaged() -> StoreError {
    StoreError::Lasting(
        "a row of ringtally.servers is damaged: restore the schema from a backup".into(),
    )
}

/// Returns the totals of some rows. Servers that have ended are listed as one.
pub(super) fn add_up(shares: Vec<Share>) -> Group {
    let (mut events, mut users, mut sum) = (0, 0, ExactSum::default());
    let mut servers = Vec::new();
    let mut ended: Option<ServerShare> = None;
    for (row, share) in shares.into_iter().enumerate() {
        if row % SHARDS_MAX == SHARDS_MAX - 1 {
            // The most sums that can be merged before carries must be propagated.
            sum = ExactSum::from_bytes(&sum.to_bytes()).expect("these are the bytes of a sum");
        }
        events += share.events;
        users += share.users;
        sum.merge(&share.sum);
        let Share { is_this, name, events, users, age, .. } = share;
        if !share.has_ended {
            servers.push(ServerShare { name, events, users, age, is_this });
        } else if let Some(ended) = &mut ended {
            ended.events += events;
            ended.users += users;
            ended.age = ended.age.min(age);
        } else {
            let name = "servers that have ended".into();
            ended = Some(ServerShare { name, events, users, age, is_this });
        }
    }
    servers.extend(ended.filter(|ended| ended.events > 0));
    let totals = Totals { total_requests: events, unique_users: users, sum: sum.round() };
    Group { totals, servers }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(name: &str, events: u64, has_ended: bool) -> Share {
        let sum = std::iter::repeat_n(0.1, usize::try_from(events).unwrap()).collect();
        let (users, age) = (events / 2, Duration::from_secs(events));
        Share { is_this: name == "b", name: name.into(), events, users, sum, has_ended, age }
    }

    #[test]
    fn the_totals_are_those_of_all_rows_and_the_ended_ones_are_one() {
        let rows = vec![share("a", 4, true), share("b", 7, false), share("c", 10, true)];
        let Group { totals, servers } = add_up(rows);
        assert_eq!((totals.total_requests, totals.unique_users, totals.sum), (21, 10, 2.1));
        let [own, ended] = servers.as_slice() else { panic!("{servers:?}") };
        assert_eq!((own.name.as_str(), own.events, own.users, own.is_this), ("b", 7, 3, true));
        assert_eq!((ended.events, ended.users, ended.age), (14, 7, Duration::from_secs(4)));
        let empty = add_up(vec![share("b", 0, false), share("old", 0, true)]);
        assert_eq!((empty.totals.sum, empty.servers.len()), (0.0, 1));
    }
}
