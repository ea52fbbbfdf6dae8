//! Polls `/stats` during a run, and finds answers that cannot be.

use super::control::Server;
use super::worker::Progress;
use super::workload::{Totals, Values};
use crossbeam_utils::CachePadded;
use serde::Serialize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

/// How often the totals are asked for.
const WATCH_EVERY: Duration = Duration::from_millis(10);
/// How many wrong answers are shown in words.
const EXAMPLES_MAX: usize = 5;

/// What the watch has seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Watched {
    /// Answers with totals.
    pub answers: u64,
    /// Requests for totals without such an answer.
    pub unanswered: u64,
    /// Answers with a total below an earlier one's.
    pub went_down: u64,
    /// Answers that counted more than was sent.
    pub above_sent: u64,
    /// Answers that lacked what was acknowledged before they were asked for.
    pub below_acknowledged: u64,
    /// Answers whose numbers do not belong together.
    pub torn: u64,
    /// The first wrong answers, in words.
    pub examples: Vec<String>,
}

impl Watched {
    /// A line for each kind of answer that cannot be.
    pub(super) fn reasons(&self) -> Vec<String> {
        let kinds = [
            (self.went_down, "totals went down"),
            (self.above_sent, "more was counted than was sent"),
            (self.below_acknowledged, "acknowledged events were missing"),
            (self.torn, "the numbers did not belong together"),
        ];
        let of = self.answers;
        let found = kinds.into_iter().filter(|(count, _)| *count > 0);
        let lines = found.map(|(count, what)| format!("in {count} of {of} answers {what}"));
        lines.chain(self.examples.iter().cloned()).collect()
    }
}

/// Judges answers as they come.
struct Watch {
    before: Totals,
    values: Values,
    last: Totals,
    watched: Watched,
}

impl Watch {
    fn new(before: Totals, values: Values) -> Watch {
        Watch { before, values, last: before, watched: Watched::default() }
    }

    /// Judges an answer. So many events were acknowledged before it was asked for, and so many sent
    /// by the time it had come.
    fn judge(&mut self, is: Totals, acknowledged: u64, sent: u64) {
        let Watch { before, values, last, watched } = self;
        watched.answers += 1;
        let ours = is.total_requests.saturating_sub(before.total_requests);
        let mut note = |is_wrong: bool, count: fn(&mut Watched) -> &mut u64, why: String| {
            if is_wrong {
                *count(watched) += 1;
                if watched.examples.len() < EXAMPLES_MAX {
                    watched.examples.push(why);
                }
            }
        };
        let went_down = is.total_requests < last.total_requests
            || is.unique_users < last.unique_users
            || is.sum < last.sum;
        note(went_down, |w| &mut w.went_down, format!("went down from {last} to {is}"));
        let (least, most) = (acknowledged, sent);
        let above = format!("{ours} counted of {most} sent: {is}");
        note(ours > most, |w| &mut w.above_sent, above);
        let below = format!("{ours} counted of {least} acknowledged: {is}");
        note(ours < least, |w| &mut w.below_acknowledged, below);
        let quotient = match is.total_requests {
            0 => 0.0,
            count => is.sum / count as f64,
        };
        let torn = is.avg != quotient
            || is.unique_users.saturating_sub(before.unique_users) > ours
            || (*values == Values::One
                && before.sum_is_exact()
                && is.sum - before.sum != ours as f64);
        note(torn, |w| &mut w.torn, format!("torn: {is}"));
        *last = is;
    }
}

/// Polls until told to stop. `before` is what the server had counted before the run.
pub(super) fn watch(
    server: &Server,
    timeout: Duration,
    before: Totals,
    values: Values,
    progress: &[CachePadded<Progress>],
    is_over: &AtomicBool,
) -> Watched {
    let mut watch = Watch::new(before, values);
    let mut kept = None;
    while !is_over.load(Ordering::Acquire) {
        let acknowledged =
            progress.iter().map(|thread| thread.acknowledged.load(Ordering::Acquire)).sum();
        let figures = server.totals_over(&mut kept, timeout);
        let sent = progress.iter().map(|thread| thread.sent.load(Ordering::Acquire)).sum();
        match figures {
            Some(figures) => watch.judge(figures, acknowledged, sent),
            None => watch.watched.unanswered += 1,
        }
        sleep(WATCH_EVERY);
    }
    watch.watched
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ones(count: u64, users: u64) -> Totals {
        let sum = count as f64;
        let avg = if count == 0 { 0.0 } else { 1.0 };
        Totals { total_requests: count, unique_users: users, sum, avg }
    }

    /// What a watch finds in one answer after a good one of ten events.
    fn found(is: Totals) -> [u64; 4] {
        let mut watch = Watch::new(Totals::ZERO, Values::One);
        watch.judge(ones(10, 5), 10, 12);
        watch.judge(is, 10, 12);
        let Watched { went_down, above_sent, below_acknowledged, torn, .. } = watch.watched;
        [went_down, above_sent, below_acknowledged, torn]
    }

    #[test]
    fn each_answer_that_cannot_be_is_found_at_its_edge() {
        assert_eq!(found(ones(10, 5)), [0, 0, 0, 0]);
        assert_eq!(found(ones(12, 5)), [0, 0, 0, 0]);
        assert_eq!(found(ones(13, 5)), [0, 1, 0, 0]);
        assert_eq!(found(ones(9, 5)), [1, 0, 1, 0]);
        assert_eq!(found(ones(10, 4)), [1, 0, 0, 0]);
        assert_eq!(found(ones(11, 12)), [0, 0, 0, 1]);
        assert_eq!(found(Totals { sum: 11.0, avg: 1.1, ..ones(10, 5) }), [0, 0, 0, 1]);
        assert_eq!(found(Totals { avg: 1.1, ..ones(10, 5) }), [0, 0, 0, 1]);
    }

    #[test]
    fn totals_from_before_the_run_are_nobodys_fault() {
        let before = Totals { total_requests: 4, unique_users: 2, sum: 9.0, avg: 2.25 };
        let mut watch = Watch::new(before, Values::One);
        watch.judge(before, 0, 0);
        let grown = Totals { total_requests: 5, unique_users: 2, sum: 10.0, avg: 2.0 };
        watch.judge(grown, 1, 1);
        assert_eq!(watch.watched.reasons(), Vec::<String>::new());
        watch.judge(grown, 2, 2);
        assert_eq!(watch.watched.below_acknowledged, 1);
    }
}
