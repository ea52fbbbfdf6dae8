//! Whether the server counted what it acknowledged: equality, never a tolerance.

use super::watch::Watched;
use super::workload::{Share, Totals};
use serde::Serialize;
use std::time::Duration;

/// What the server's totals say about the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every acknowledged event was counted once, and nothing else.
    Exact,
    /// A total is not what it must be.
    Wrong,
    /// Some requests have no known outcome, and the totals are possible.
    Undecided,
}

/// A verdict, and one line for each thing that is off or open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Judgement {
    /// The verdict.
    pub(super) verdict: Verdict,
    /// What is off, by how much, or what is not known.
    pub(super) reasons: Vec<String>,
}

impl Verdict {
    /// As programs read it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Verdict::Exact => "exact",
            Verdict::Wrong => "wrong",
            Verdict::Undecided => "undecided",
        }
    }
}

impl Judgement {
    /// The judgement with what was seen besides the last totals: that they were wrong at first, and
    /// answers during the run that cannot be.
    pub(super) fn with(
        mut self,
        settled: Option<Duration>,
        watched: Option<&Watched>,
    ) -> Judgement {
        let mut wrong = Vec::new();
        if let Some(after) = settled {
            let ms = after.as_secs_f64() * 1e3;
            wrong.push(format!(
                "the totals were wrong at first and right {ms:.1} ms after the last \
                 acknowledgement: events are acknowledged before they are counted"
            ));
        }
        wrong.extend(watched.map(Watched::reasons).unwrap_or_default());
        if !wrong.is_empty() {
            self.verdict = Verdict::Wrong;
            self.reasons.extend(wrong);
        }
        self
    }
}

/// What is known of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evidence {
    /// What the server reported before the run: zero after a reset.
    pub(super) before: Totals,
    /// What the acknowledged events add up to.
    pub(super) acknowledged: Share,
    /// The same with the events whose outcome is not known.
    pub(super) possible: Share,
    /// What the server reports after the run.
    pub(super) after: Totals,
}

impl Evidence {
    /// What the server has to report, if every unknown event was not counted.
    pub(super) fn expected(&self) -> Totals {
        let ours = self.acknowledged.totals();
        let total_requests = self.before.total_requests.saturating_add(ours.total_requests);
        let sum = self.before.sum + ours.sum;
        Totals {
            total_requests,
            unique_users: self.before.unique_users.max(ours.unique_users),
            sum,
            avg: if total_requests == 0 { 0.0 } else { sum / total_requests as f64 },
        }
    }

    /// Judges the totals.
    pub(super) fn judge(&self) -> Judgement {
        let unknown = self.possible.events - self.acknowledged.events;
        let expected = self.expected();
        let mut wrong = Vec::new();
        let counted = self.after.total_requests;
        let (least, most) =
            (expected.total_requests, expected.total_requests.saturating_add(unknown));
        if counted < least {
            wrong.push(format!("totalRequests is {counted}: {} events were lost", least - counted));
        } else if counted > most {
            wrong.push(format!(
                "totalRequests is {counted}: {} events too many, counted twice or not ours",
                counted - most
            ));
        }
        // Users that were there before may or may not be among ours.
        let most_users = match self.before.unique_users {
            0 => self.possible.users,
            before => before.saturating_add(self.possible.users),
        };
        range_of(
            "uniqueUsers",
            self.after.unique_users as f64,
            expected.unique_users as f64,
            most_users as f64,
            &mut wrong,
        );
        let base_is_exact = self.before.sum_is_exact();
        if base_is_exact {
            let most_sum = self.before.sum + self.possible.totals().sum;
            range_of("sum", self.after.sum, expected.sum, most_sum, &mut wrong);
        }
        let quotient = match counted {
            0 => 0.0,
            _ => self.after.sum / counted as f64,
        };
        if self.after.avg != quotient {
            wrong.push(format!(
                "avg is {:?}, but sum / totalRequests is {quotient:?}",
                self.after.avg
            ));
        }
        if !wrong.is_empty() {
            return Judgement { verdict: Verdict::Wrong, reasons: wrong };
        }
        let mut open = Vec::new();
        if unknown > 0 {
            open.push(format!("{unknown} requests were sent and not answered: counted or not, the totals are possible"));
        }
        if !base_is_exact {
            open.push(format!(
                "the sum cannot be checked, because the server started from {:?}",
                self.before.sum
            ));
        }
        let verdict = if open.is_empty() { Verdict::Exact } else { Verdict::Undecided };
        Judgement { verdict, reasons: open }
    }
}

/// Notes a total that is outside of what is possible.
fn range_of(name: &str, is: f64, least: f64, most: f64, wrong: &mut Vec<String>) {
    let off = if is < least {
        is - least
    } else if is > most {
        is - most
    } else {
        return;
    };
    let must = match least == most {
        true => format!("{least:?}"),
        false => format!("between {least:?} and {most:?}"),
    };
    wrong.push(format!("{name} is {is:?} and must be {must}: off by {off:+?}"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::workload::{Values, Workload};

    fn evidence(unknown: &[u64]) -> Evidence {
        let workload = Workload { events: 2000, users: 500, values: Values::Half };
        let acknowledged = workload.share_without(unknown.iter().copied());
        Evidence {
            before: Totals::ZERO,
            acknowledged,
            possible: workload.share_without(std::iter::empty()),
            after: acknowledged.totals(),
        }
    }

    fn with(change: impl FnOnce(&mut Totals)) -> Judgement {
        let mut evidence = evidence(&[]);
        change(&mut evidence.after);
        evidence.judge()
    }

    #[test]
    fn equal_totals_are_exact_and_any_other_is_wrong() {
        assert_eq!(with(|_| {}), Judgement { verdict: Verdict::Exact, reasons: vec![] });
        let lost = with(|after| {
            after.total_requests -= 1;
            after.avg = after.sum / after.total_requests as f64;
        });
        assert_eq!(lost.reasons, ["totalRequests is 1999: 1 events were lost"]);
        for wrong in [
            with(|after| after.total_requests += 1),
            with(|after| after.unique_users -= 1),
            with(|after| after.unique_users += 1),
            with(|after| after.sum += 0.5),
            with(|after| after.sum = f64::NAN),
            with(|after| after.avg += 1e-12),
        ] {
            assert_eq!(wrong.verdict, Verdict::Wrong, "{:?}", wrong.reasons);
        }
    }

    #[test]
    fn an_unknown_outcome_leaves_exactly_its_own_room() {
        let mut evidence = evidence(&[7]);
        assert_eq!(evidence.judge().verdict, Verdict::Undecided);
        evidence.after = evidence.possible.totals();
        assert_eq!(evidence.judge().verdict, Verdict::Undecided);
        evidence.after.total_requests += 1;
        assert_eq!(evidence.judge().verdict, Verdict::Wrong);
    }

    #[test]
    fn totals_that_were_there_before_are_added() {
        let mut evidence = evidence(&[]);
        evidence.before = Totals { total_requests: 10, unique_users: 3, sum: 5.5, avg: 0.55 };
        evidence.after = evidence.expected();
        assert_eq!(evidence.judge().verdict, Verdict::Exact);
        evidence.after.unique_users += 3;
        assert_eq!(evidence.judge().verdict, Verdict::Exact);
        evidence.after.unique_users += 1;
        assert_eq!(evidence.judge().verdict, Verdict::Wrong);
        evidence.before.sum = 0.1;
        evidence.after = evidence.expected();
        assert_eq!(evidence.judge().verdict, Verdict::Undecided);
    }
}
