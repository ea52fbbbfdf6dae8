//! Polls `/stats` during a run and finds impossible responses.

use super::control::{Control, Server};
use super::shared::Progress;
use super::workload::{AvgPrecision, Totals, Values};
use crossbeam_utils::CachePadded;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

/// The interval between requests for the totals.
const WATCH_EVERY: Duration = Duration::from_millis(10);
/// The number of wrong responses that are shown in words.
const EXAMPLES_MAX: usize = 5;
/// If a greater share of the requests did not return totals, too little was seen.
const UNANSWERED_MAX: f64 = 0.1;

/// The observations of the watch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct Watched {
    /// Responses with totals.
    pub answers: u64,
    /// Requests for totals without a usable response.
    pub unanswered: u64,
    /// Responses with a total below an earlier response's.
    pub went_down: u64,
    /// Responses that counted more events than were sent.
    pub above_sent: u64,
    /// Responses that lacked events acknowledged before the request.
    pub below_acknowledged: u64,
    /// Responses whose numbers contradict each other.
    pub torn: u64,
    /// The first wrong responses, in words.
    pub examples: Vec<String>,
}

impl Watched {
    /// Returns a sentence about missing responses, if there are too many to conclude anything.
    pub(super) fn gap(&self) -> Option<String> {
        let Watched { answers, unanswered, .. } = self;
        let asked = answers + unanswered;
        (*unanswered as f64 > asked as f64 * UNANSWERED_MAX).then(|| {
            format!(
                "the watch saw too little: {unanswered} of {asked} requests for the totals got none"
            )
        })
    }

    /// Returns every count.
    pub(super) fn counts(&self) -> [u64; 6] {
        let Watched {
            answers, unanswered, went_down, above_sent, below_acknowledged, torn, ..
        } = *self;
        [answers, unanswered, went_down, above_sent, below_acknowledged, torn]
    }

    /// Returns a line for each kind of impossible response.
    pub(super) fn reasons(&self) -> Vec<String> {
        let kinds = [
            (self.went_down, "totals went down"),
            (self.above_sent, "more was counted than was sent"),
            (self.below_acknowledged, "acknowledged events were missing"),
            (self.torn, "the numbers did not belong together"),
        ];
        let of = self.answers;
        let found = kinds.into_iter().filter(|(count, _)| *count > 0);
        let lines = found.map(|(count, what)| format!("in {count} of {of} responses {what}"));
        lines.chain(self.examples.iter().cloned()).collect()
    }
}

/// The state of a watch, which judges responses as they arrive.
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

    /// Judges a response, given the number of events acknowledged before the request and the number that may have been
    /// sent by the time of the response.
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
        let torn = is.avg_precision() == AvgPrecision::Off
            || is.unique_users.saturating_sub(before.unique_users) > ours
            || (*values == Values::One
                && before.sum_is_exact()
                && is.sum - before.sum != ours as f64);
        note(torn, |w| &mut w.torn, format!("torn: {is}"));
        *last = is;
    }
}

/// Polls until `is_over` is set. `before` has the server's totals before the run. Up to `late` earlier events may still
/// be counted.
pub(super) fn watch(
    address: SocketAddr,
    server: &Server,
    timeout: Duration,
    (before, late): (Totals, u64),
    values: Values,
    progress: &[CachePadded<Progress>],
    is_over: &AtomicBool,
) -> Watched {
    let mut watch = Watch::new(before, values);
    let mut control = Control::new(server, timeout, true).at(address);
    while !is_over.load(Ordering::Acquire) {
        let acknowledged =
            progress.iter().map(|thread| thread.acknowledged.load(Ordering::Acquire)).sum();
        let totals = control.totals();
        let sent: u64 = progress.iter().map(|thread| thread.sent.load(Ordering::Acquire)).sum();
        match totals {
            Ok(totals) => watch.judge(totals, acknowledged, sent + late),
            Err(_) => watch.watched.unanswered += 1,
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

    /// Returns the findings of a watch about one response, after a correct response with ten events.
    fn found(is: Totals) -> [u64; 4] {
        let mut watch = Watch::new(Totals::ZERO, Values::One);
        watch.judge(ones(10, 5), 10, 12);
        watch.judge(is, 10, 12);
        let Watched { went_down, above_sent, below_acknowledged, torn, .. } = watch.watched;
        [went_down, above_sent, below_acknowledged, torn]
    }

    #[test]
    fn each_response_that_cannot_be_is_found_at_its_edge() {
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
    fn a_watch_that_got_few_responses_says_so() {
        for (answers, unanswered, says) in
            [(0, 0, false), (9, 1, false), (8, 1, true), (1, 16, true), (0, 1, true)]
        {
            let watched = Watched { answers, unanswered, ..Watched::default() };
            assert_eq!(watched.gap().is_some(), says, "{answers} {unanswered}");
        }
    }

    #[test]
    fn totals_from_before_the_run_are_no_error() {
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
