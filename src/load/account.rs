//! Adds up the totals that a run must lead to, from the outcome of each event.

use super::event_set::UserSet;
use super::ledger::Ledger;
use super::verdict::{Evidence, Users};
use super::workload::{Totals, Workload};

/// The client's knowledge of whether the server may have had some of the run's users before the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Novelty {
    /// The server may have had some of them.
    Unknown,
    /// All users are new, as promised by the person who chose the prefix of their ids.
    Claimed,
    /// All users are new, because the client chose a unique prefix.
    Certain,
}

/// Everything known about the events of a run, from one client or from all clients.
pub(super) struct Account<'a> {
    /// The events.
    pub(super) workload: Workload,
    /// The number of events sent before them.
    pub(super) warm_up: u64,
    /// The server's totals before the warm-up.
    pub(super) first: Totals,
    /// The server's totals before the run.
    pub(super) before: Totals,
    /// Whether the server was reset between these two readings.
    pub(super) was_reset: bool,
    /// The knowledge of whether the server may have had some of the run's users before the run.
    pub(super) novelty: Novelty,
    /// The outcomes of the events, and of the warm-up's events.
    pub(super) ledger: &'a Ledger,
    pub(super) warm_up_ledger: &'a Ledger,
    /// Whether lost clients may have sent any number of events.
    pub(super) is_unbounded: bool,
    /// The server's totals after the run, or the reason why they are unknown.
    pub(super) after: Result<Totals, String>,
}

impl Account<'_> {
    /// Returns the evidence for a verdict: the totals that are expected and the totals that the server reported.
    pub(super) fn evidence(self) -> Evidence {
        let workload = &self.workload;
        let Ledger { refused, unknown, unsent, .. } = self.ledger;
        let (without, possible) = ([refused, unsent, unknown], [refused, unsent]);
        let ours = [workload.users_without(&without), workload.users_without(&possible)];
        // The events of the warm-up and their outcomes.
        let earlier = Workload { events: self.warm_up, ..*workload };
        let Ledger { acknowledged, refused, unknown, unsent, .. } = self.warm_up_ledger;
        let late = earlier.share_of(unknown);
        // The number of the server's users that cannot be users of the run.
        let (mut apart, before) = (0, self.before.unique_users);
        let known = if self.was_reset {
            // A warm-up event that got no response may be counted at any time.
            let is_ours = self.before.total_requests <= late.events;
            is_ours.then(|| [UserSet::default(), unknown.users(&earlier)])
        } else {
            let counted = *acknowledged..=*acknowledged + late.events;
            let has_no_strangers =
                self.first.total_requests == 0 || self.novelty != Novelty::Unknown;
            let earlier_events =
                self.before.total_requests.saturating_sub(self.first.total_requests);
            let is_ours = has_no_strangers && counted.contains(&earlier_events);
            if is_ours {
                apart = self.first.unique_users;
            }
            is_ours.then(|| {
                [
                    earlier.users_without(&[refused, unsent, unknown]),
                    earlier.users_without(&[refused, unsent]),
                ]
            })
        };
        let known = known.as_ref().map(<[UserSet; 2]>::each_ref);
        let is_claimed = apart > 0 && self.novelty == Novelty::Claimed;
        let users_if_known = is_claimed.then(|| Users::of(ours.each_ref(), before, None));
        let mut possible = workload.share_without(&possible);
        possible.events += late.events;
        possible.sum_in_halves += late.sum_in_halves;
        Evidence {
            before: self.before,
            acknowledged: workload.share_without(&without),
            possible,
            users: Users::of(ours.each_ref(), before, known).beside(apart),
            users_if_known,
            is_unbounded: self.is_unbounded,
            after: self.after,
        }
    }
}
