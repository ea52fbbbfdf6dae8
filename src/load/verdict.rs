//! Decides whether the server counted what it acknowledged. Totals must be equal; there is never a tolerance.

use super::event_set::UserSet;
use super::watch::Watched;
use super::workload::{AvgPrecision, Share, Totals};
use schemars::JsonSchema;
use serde::Serialize;
use std::time::Duration;

/// The verdict on the server's totals after the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every acknowledged event was counted once, and nothing else was counted.
    Exact,
    /// A total is not what it must be.
    Wrong,
    /// Something could not be checked, and nothing that was checked is wrong.
    Undecided,
}

/// A verdict, with one line for each problem or open question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Judgement {
    /// The verdict.
    pub(super) verdict: Verdict,
    /// The differences or the open questions.
    pub(super) reasons: Vec<String>,
    /// Remarks that do not affect the verdict.
    pub(super) remarks: Vec<String>,
}

/// The result of reading correct totals repeatedly while nothing was sent.
#[derive(Clone, Debug)]
pub(super) struct Stayed {
    /// The length of the quiet time.
    pub(super) quiet: Duration,
    /// The time from the last response to the first wrong totals, if there were any.
    pub(super) changed_after: Option<Duration>,
    /// The reason why they could not be read at the end, if that failed.
    pub(super) unreadable: Option<String>,
}

impl Verdict {
    /// Returns the verdict as a word for programs.
    pub(super) fn word(self) -> &'static str {
        match self {
            Verdict::Exact => "exact",
            Verdict::Wrong => "wrong",
            Verdict::Undecided => "undecided",
        }
    }
}

impl Judgement {
    /// Adds observations beyond the last totals: acknowledgements that contradict their batches, totals that were wrong
    /// at first or did not stay correct, impossible responses during the run, and the time that the client did not run.
    pub(super) fn with(
        mut self,
        contradiction: Option<String>,
        settled: Option<Duration>,
        stayed: Option<&Stayed>,
        watched: Option<&Watched>,
        suspended: Duration,
    ) -> Judgement {
        let mut wrong: Vec<String> = contradiction.into_iter().collect();
        if let Some(after) = settled {
            let ms = after.as_secs_f64() * 1e3;
            wrong.push(format!(
                "the totals were wrong at first and right {ms:.1} ms after the last \
                 acknowledgement: events are acknowledged before they are counted"
            ));
        }
        if let Some(after) = stayed.and_then(|stayed| stayed.changed_after) {
            let ms = after.as_secs_f64() * 1e3;
            wrong.push(format!(
                "the totals were right when the last request had ended, and wrong {ms:.1} ms later, \
                 although nothing was sent: events are counted again, or by others"
            ));
        }
        wrong.extend(watched.map(Watched::reasons).unwrap_or_default());
        if !wrong.is_empty() {
            self.verdict = Verdict::Wrong;
            self.reasons.extend(wrong);
        }
        let mut open = Vec::new();
        if let Some(why) = stayed.and_then(|stayed| stayed.unreadable.as_ref()) {
            open.push(format!("whether the totals stayed could not be checked: {why}"));
        }
        open.extend(watched.and_then(Watched::gap));
        if self.verdict != Verdict::Wrong && !open.is_empty() {
            self.verdict = Verdict::Undecided;
            self.reasons.extend(open);
        }
        if self.verdict == Verdict::Undecided && !suspended.is_zero() {
            self.reasons.push(format!(
                "the client itself did not run for {:.1} s, which may be why",
                suspended.as_secs_f64()
            ));
        }
        self
    }
}

/// Everything known about a run.
#[derive(Clone, Debug)]
pub(super) struct Evidence {
    /// The server's totals before the run: zero after a reset.
    pub(super) before: Totals,
    /// The totals of the acknowledged events.
    pub(super) acknowledged: Share,
    /// The totals including events with an unknown outcome.
    pub(super) possible: Share,
    /// The users that the server must have.
    pub(super) users: Users,
    /// The users that the server must have if the prefix of their ids was used before, although it was declared new.
    pub(super) users_if_known: Option<Users>,
    /// Whether lost clients may have sent any number of events.
    pub(super) is_unbounded: bool,
    /// The server's totals after the run, or the reason why they are missing.
    pub(super) after: Result<Totals, String>,
}

/// The number of users that a server must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Users {
    /// The number of users with acknowledged events, and the number including events that may have been counted.
    pub(super) least: u64,
    pub(super) most: u64,
    /// Users that the server had before and that the client does not know. They may or may not be among the run's own users.
    pub(super) strangers: u64,
}

impl Users {
    /// Returns the number of users for a run whose events come from `ours`, on a server that had `before` users.
    /// Earlier users are known if the client sent their events.
    pub(super) fn of(ours: [&UserSet; 2], before: u64, earlier: Option<[&UserSet; 2]>) -> Users {
        let [least, most] = ours;
        match earlier {
            Some([earlier_least, earlier_most]) => Users {
                least: least.union(earlier_least).least(),
                most: most.union(earlier_most).most(),
                strangers: 0,
            },
            None => Users { least: least.least(), most: most.most(), strangers: before },
        }
    }

    /// Adds `others` more users.
    pub(super) fn beside(self, others: u64) -> Users {
        let [least, most] = [self.least, self.most].map(|users| users.saturating_add(others));
        Users { least, most, ..self }
    }

    fn range(self) -> (u64, u64) {
        let least = self.least.max(self.strangers);
        (least, self.most.saturating_add(self.strangers).max(least))
    }
}

impl Evidence {
    /// Returns the totals that the server must report if no unknown event was counted.
    pub(super) fn expected(&self) -> Totals {
        let (unique_users, _) = self.users.range();
        let ours = self.acknowledged.totals(unique_users);
        let total_requests = self.before.total_requests.saturating_add(ours.total_requests);
        let sum = self.before.sum + ours.sum;
        let avg = if total_requests == 0 { 0.0 } else { sum / total_requests as f64 };
        Totals { total_requests, unique_users, sum, avg }
    }

    /// Judges the totals.
    pub(super) fn judge(&self) -> Judgement {
        let judged = self.judge_users();
        let Some(users) = self.users_if_known.filter(|_| judged.verdict == Verdict::Wrong) else {
            return judged;
        };
        let mut other = Evidence { users, users_if_known: None, ..self.clone() }.judge_users();
        if other.verdict == Verdict::Wrong {
            return judged;
        }
        other.verdict = Verdict::Undecided;
        other.reasons.push(
            "uniqueUsers is too low if all ids are new: pass a --user-prefix that no run had, or none".into(),
        );
        other
    }

    fn judge_users(&self) -> Judgement {
        let unknown = self.possible.events - self.acknowledged.events;
        let (mut wrong, mut open) = (Vec::new(), Vec::new());
        match &self.after {
            Ok(after) => self.compare(*after, unknown, &mut wrong),
            Err(why) => open.push(format!("the totals could not be checked: {why}")),
        }
        let remarks = self.after.iter().filter_map(remark_on_avg).collect();
        if !wrong.is_empty() {
            return Judgement { verdict: Verdict::Wrong, reasons: wrong, remarks };
        }
        if self.is_unbounded {
            open.push(
                "how many events the lost clients sent is not known, because the run ended by the clock: the totals \
                 have at least what the others were acknowledged, which is all that could be checked"
                    .into(),
            );
        } else if unknown > 0 {
            open.push(format!(
                "{} no response: whether {} counted is unknown",
                plural(unknown, "event got", "events got"),
                if unknown == 1 { "it was" } else { "they were" }
            ));
        }
        if self.acknowledged.events == 0 {
            open.push("no event was acknowledged, so there was nothing to check".into());
        }
        let (least, most) = self.users.range();
        if least < most && self.users.strangers > 0 {
            open.push(format!(
                "uniqueUsers could only be checked to be from {least} to {most}, because the server \
                 had {} before the run that may be among the run's own",
                plural(self.users.strangers, "user", "users")
            ));
        } else if least < most && unknown == 0 {
            open.push(format!(
                "uniqueUsers could only be checked to be from {least} to {most}, because more events \
                 failed than the client can remember the users of"
            ));
        }
        if !self.before.sum_is_exact() {
            open.push(format!(
                "the sum could not be checked, because the server started from {:?}, which does not \
                 add up exactly",
                self.before.sum
            ));
        }
        let verdict = if open.is_empty() { Verdict::Exact } else { Verdict::Undecided };
        Judgement { verdict, reasons: open, remarks }
    }

    /// Records each impossible total.
    fn compare(&self, after: Totals, unknown: u64, wrong: &mut Vec<String>) {
        let expected = self.expected();
        let counted = after.total_requests;
        let least = expected.total_requests;
        let most = least.saturating_add(unknown);
        if counted < least {
            let lost = plural(least - counted, "event was", "events were");
            wrong.push(format!("totalRequests is {counted}: {lost} lost"));
        } else if counted > most {
            let extra = plural(counted - most, "event", "events");
            wrong.push(format!(
                "totalRequests is {counted}: {extra} too many, counted twice, counted although refused, or sent by \
                 another client"
            ));
        }
        let (least, most) = self.users.range();
        let most = if self.is_unbounded { u64::MAX } else { most };
        let users = after.unique_users;
        if !(least..=most).contains(&users) {
            let off = i128::from(users) - i128::from(users.clamp(least, most));
            wrong.push(format!(
                "uniqueUsers is {users} and must be {}: off by {off:+}",
                if self.is_unbounded { format!("at least {least}") } else { span(least, most) }
            ));
        }
        if self.before.sum_is_exact() {
            let (least, most) = (expected.sum, self.before.sum + self.possible.totals(0).sum);
            let most = if self.is_unbounded { f64::INFINITY } else { most };
            if !(least..=most).contains(&after.sum) {
                let off = after.sum - after.sum.clamp(least, most);
                let must = match self.is_unbounded {
                    true => format!("at least {least:?}"),
                    false => span(format!("{least:?}"), format!("{most:?}")),
                };
                wrong.push(format!("sum is {:?} and must be {must}: off by {off:+?}", after.sum));
            }
        }
        if after.avg_precision() == AvgPrecision::Off {
            let quotient = after.quotient();
            wrong.push(format!("avg is {:?}, but sum / totalRequests is {quotient:?}", after.avg));
        }
    }
}

/// Returns a remark if an average is rounded but not wrong.
fn remark_on_avg(totals: &Totals) -> Option<String> {
    let AvgPrecision::Rounded(decimals) = totals.avg_precision() else { return None };
    Some(format!(
        "avg is rounded to {decimals} decimals: it is {:?}, and sum / totalRequests is {:?}",
        totals.avg,
        totals.quotient()
    ))
}

/// Formats a count and its noun.
pub(super) fn plural(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Formats the possible values of a total.
fn span<T: PartialEq + std::fmt::Display>(least: T, most: T) -> String {
    match least == most {
        true => least.to_string(),
        false => format!("from {least} to {most}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::event_set::EventSet;
    use crate::load::workload::{Values, Workload};

    const WORKLOAD: Workload =
        Workload { events: 2000, users: 500, values: Values::Half, batch: None };

    fn evidence(unknown: &[u64]) -> Evidence {
        let mut set = EventSet::default();
        unknown.iter().for_each(|event| set.insert(&WORKLOAD, *event));
        let acknowledged = WORKLOAD.share_without(&[&set]);
        let ours = [WORKLOAD.users_without(&[&set]), WORKLOAD.users_without(&[])];
        let none = UserSet::default();
        let users = Users::of(ours.each_ref(), 0, Some([&none, &none]));
        Evidence {
            users_if_known: None,
            is_unbounded: false,
            before: Totals::ZERO,
            acknowledged,
            possible: WORKLOAD.share_without(&[]),
            users,
            after: Ok(acknowledged.totals(users.least)),
        }
    }

    const EXACT: Judgement =
        Judgement { verdict: Verdict::Exact, reasons: vec![], remarks: vec![] };

    fn after(evidence: &mut Evidence) -> &mut Totals {
        evidence.after.as_mut().unwrap()
    }

    fn with(change: impl FnOnce(&mut Totals)) -> Judgement {
        let mut evidence = evidence(&[]);
        change(after(&mut evidence));
        evidence.judge()
    }

    #[test]
    fn equal_totals_are_exact_and_any_other_is_wrong() {
        assert_eq!(with(|_| {}), EXACT);
        let lost = with(|after| {
            after.total_requests -= 1;
            after.avg = after.sum / after.total_requests as f64;
        });
        assert_eq!(lost.reasons, ["totalRequests is 1999: 1 event was lost"]);
        let users = with(|after| after.unique_users -= 2);
        assert_eq!(users.reasons, ["uniqueUsers is 498 and must be 500: off by -2"]);
        for wrong in [
            with(|after| after.total_requests += 1),
            with(|after| after.unique_users -= 1),
            with(|after| after.unique_users += 1),
            with(|after| after.sum += 0.5),
            with(|after| after.sum = f64::NAN),
            with(|after| after.avg += 1e-12),
            with(|after| after.avg += 0.01),
        ] {
            assert_eq!(wrong.verdict, Verdict::Wrong, "{:?}", wrong.reasons);
        }
    }

    /// Judges an average for 7 events that add up to 9.5. The true average is 1.35714 and so on.
    fn rounded(avg: f64) -> Judgement {
        let mut evidence = evidence(&[]);
        let totals = Totals { total_requests: 7, unique_users: 2, sum: 9.5, avg };
        evidence.acknowledged = Share { events: 7, sum_in_halves: 19 };
        evidence.possible = evidence.acknowledged;
        evidence.users = Users { least: 2, most: 2, strangers: 0 };
        evidence.after = Ok(totals);
        evidence.judge()
    }

    #[test]
    fn an_average_that_is_rounded_to_two_decimals_or_more_is_a_remark() {
        assert_eq!(rounded(9.5 / 7.0), EXACT);
        for (avg, decimals) in [(1.36, 2), (1.357, 3), (1.3571, 4), (1.357143, 6)] {
            let Judgement { verdict, reasons, remarks } = rounded(avg);
            assert_eq!((verdict, reasons.len()), (Verdict::Exact, 0), "{avg}: {reasons:?}");
            assert!(remarks[0].contains(&format!("to {decimals} decimals")), "{remarks:?}");
        }
        // These are rounded to fewer decimals, cut off, or otherwise wrong.
        for avg in [1.0, 1.4, 1.35, 1.37, 1.3572, 1.356, (9.5_f64 / 7.0).next_down()] {
            let Judgement { verdict, reasons, .. } = rounded(avg);
            assert_eq!(verdict, Verdict::Wrong, "{avg}");
            assert!(reasons[0].starts_with("avg is"), "{reasons:?}");
        }
    }

    #[test]
    fn totals_that_do_not_stay_are_wrong_and_those_that_cannot_be_read_are_undecided() {
        let stayed = |changed_after, unreadable| {
            let quiet = Duration::from_millis(500);
            let stayed = Stayed { quiet, changed_after, unreadable };
            EXACT.with(None, None, Some(&stayed), None, Duration::ZERO)
        };
        assert_eq!(stayed(None, None), EXACT);
        let changed = stayed(Some(Duration::from_millis(300)), None);
        assert_eq!(changed.verdict, Verdict::Wrong);
        assert!(changed.reasons[0].contains("wrong 300.0 ms later"), "{:?}", changed.reasons);
        let unreadable = stayed(None, Some("it is gone".into()));
        assert_eq!(unreadable.verdict, Verdict::Undecided);
        assert!(unreadable.reasons[0].contains("it is gone"), "{:?}", unreadable.reasons);
    }

    #[test]
    fn an_unknown_outcome_leaves_exactly_its_own_room() {
        let mut evidence = evidence(&[7]);
        assert_eq!(evidence.judge().verdict, Verdict::Undecided);
        evidence.after = Ok(evidence.possible.totals(evidence.users.most));
        assert_eq!(evidence.judge().verdict, Verdict::Undecided);
        after(&mut evidence).total_requests += 1;
        assert_eq!(evidence.judge().verdict, Verdict::Wrong);
    }

    /// On a server with users that the client did not send, each event can be counted as a new user without being noticed.
    #[test]
    fn users_of_strangers_leave_the_verdict_undecided() {
        let mut evidence = evidence(&[]);
        evidence.before = Totals { total_requests: 10, unique_users: 3, sum: 5.5, avg: 0.55 };
        evidence.users.strangers = 3;
        for (more, verdict) in
            [(0, Verdict::Undecided), (3, Verdict::Undecided), (4, Verdict::Wrong)]
        {
            evidence.after = Ok(evidence.expected());
            after(&mut evidence).unique_users += more;
            assert_eq!(evidence.judge().verdict, verdict, "{more}");
        }
        after(&mut evidence).unique_users = 499;
        assert_eq!(evidence.judge().verdict, Verdict::Wrong);
    }

    #[test]
    fn users_that_are_all_the_clients_own_must_be_equal() {
        let mut evidence = evidence(&[]);
        let ours = WORKLOAD.users_without(&[]);
        // The run includes all of the warm-up's users, which are fewer.
        let earlier = Workload { events: 300, ..WORKLOAD }.users_without(&[]);
        evidence.before = Totals { total_requests: 300, unique_users: 300, sum: 0.0, avg: 0.0 };
        evidence.users = Users::of([&ours, &ours], 300, Some([&earlier, &earlier]));
        evidence.after = Ok(evidence.expected());
        assert_eq!(evidence.judge(), EXACT);
        after(&mut evidence).unique_users += 300;
        assert_eq!(evidence.judge().verdict, Verdict::Wrong);
    }

    #[test]
    fn what_cannot_be_checked_is_undecided() {
        let mut unreadable = evidence(&[]);
        unreadable.after = Err("the server is gone".into());
        let Judgement { verdict, reasons, .. } = unreadable.judge();
        assert_eq!(verdict, Verdict::Undecided);
        assert!(reasons[0].contains("the server is gone"), "{reasons:?}");
        let mut inexact = evidence(&[]);
        inexact.before.sum = 0.1;
        inexact.after = Ok(inexact.expected());
        assert_eq!(inexact.judge().verdict, Verdict::Undecided);
        let all: Vec<u64> = (0..WORKLOAD.events).collect();
        let mut nothing = evidence(&all);
        nothing.possible = nothing.acknowledged;
        nothing.users.most = 0;
        let Judgement { verdict, reasons, .. } = nothing.judge();
        assert_eq!(verdict, Verdict::Undecided);
        assert!(reasons[0].contains("nothing to check"), "{reasons:?}");
    }
}
