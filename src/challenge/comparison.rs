//! The result of all runs: medians over the rounds, ratios to the first server round by round, ranks, and scores.

use super::command::ServerCommand;
use super::measured::{Limit, Run};
use super::rounds::{Found, Known};
use super::rows::Row;
use super::score::{Scored, scores};
use crate::compare::RUNS_MIN;
use crate::load::CpuSource;
use crate::statistics::{Interval, median};
use schemars::JsonSchema;
use serde::Serialize;

/// The seed of the bootstrap: the same runs always give the same intervals.
const SEED: u64 = 1;
/// Two servers count as the same if their ratio may be within this factor of 1. Two runs of one server differ by more than this
/// on a machine that others use, too.
const CHANGE: f64 = 1.03;

/// The spread of a figure over several runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "ServerSpread")]
pub(super) struct Spread {
    /// The median.
    pub(super) median: f64,
    /// The lowest value.
    pub(super) lowest: f64,
    /// The highest value.
    pub(super) highest: f64,
}

impl Spread {
    /// Returns `None` if there are no values.
    fn of(values: impl Iterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.collect();
        let lowest = values.iter().copied().reduce(f64::min)?;
        let highest = values.iter().copied().reduce(f64::max)?;
        Some(Spread { median: median(&mut values)?, lowest, highest })
    }
}

/// The meaning of a ratio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "ServerOutcome")]
pub(super) enum Outcome {
    /// The whole interval is on the better side of what counts as the same.
    Better,
    /// It may be the same.
    Same,
    /// The whole interval is on the worse side.
    Worse,
    /// There are too few rounds for an interval.
    Unknown,
}

impl Outcome {
    pub(super) fn word(self) -> &'static str {
        match self {
            Outcome::Better => "better",
            Outcome::Same => "same",
            Outcome::Worse => "worse",
            Outcome::Unknown => "unknown",
        }
    }
}

/// A server's figure divided by the first server's in the same round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "ServerRatio")]
pub(super) struct Ratio {
    /// The median over the rounds.
    pub(super) median: f64,
    /// The lower bound of its 95% interval; null with too few rounds.
    pub(super) low: Option<f64>,
    /// The upper bound of that interval.
    pub(super) high: Option<f64>,
    /// Its meaning.
    pub(super) outcome: Outcome,
}

impl Ratio {
    /// Returns the ratio from pairs of a figure of the first server and of another, round by round.
    fn of(pairs: &[(f64, f64)], is_higher_better: bool) -> Option<Ratio> {
        let logs: Vec<f64> = pairs
            .iter()
            .map(|(base, head)| (head / base).ln())
            .filter(|log| log.is_finite())
            .collect();
        let Interval { low, median, high } = Interval::of(&logs, SEED)?;
        let (low, median, high) = (low.exp(), median.exp(), high.exp());
        if logs.len() < RUNS_MIN {
            return Some(Ratio { median, low: None, high: None, outcome: Outcome::Unknown });
        }
        let outcome = match (low > CHANGE, high < 1.0 / CHANGE) {
            (true, _) if is_higher_better => Outcome::Better,
            (_, true) if !is_higher_better => Outcome::Better,
            (false, false) => Outcome::Same,
            _ => Outcome::Worse,
        };
        Some(Ratio { median, low: Some(low), high: Some(high), outcome })
    }
}

/// A server in a row.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "ServerInRow")]
pub(super) struct InRow {
    /// The number of the server, counted from 0.
    pub(super) server: usize,
    /// Its place by CPU time per request, from 1 on, or by `p99_us` if the CPU time of a ranked server is unknown; null if it is not
    /// exact, or if its figures are void.
    pub(super) rank: Option<usize>,
    /// Acknowledged requests per second; with batches, acknowledged events per second.
    pub(super) requests_per_s: Option<Spread>,
    /// The mean latency in microseconds.
    pub(super) mean_us: Option<Spread>,
    /// The median latency in microseconds.
    pub(super) p50_us: Option<Spread>,
    /// The 99th percentile of the latency in microseconds.
    pub(super) p99_us: Option<Spread>,
    /// The 99.9th percentile of the latency in microseconds.
    pub(super) p99_9_us: Option<Spread>,
    /// CPU time of the server per request in microseconds.
    pub(super) cpu_us: Option<Spread>,
    /// Requests per second as a ratio to the first server's.
    pub(super) requests_ratio: Option<Ratio>,
    /// CPU time per request as a ratio to the first server's.
    pub(super) cpu_ratio: Option<Ratio>,
    /// The 99th percentile as a ratio to the first server's.
    pub(super) p99_ratio: Option<Ratio>,
    /// The worst verdict of its runs; null if none was checked.
    pub(super) verdict: Option<String>,
    /// The first reason why it is inexact or void; null if it is neither.
    pub(super) why: Option<String>,
    /// The number of its void runs, which no figure includes.
    pub(super) void_runs: usize,
    /// The number of its runs in the row.
    pub(super) runs: usize,
    /// The limit of most of its runs.
    pub(super) limit: Option<Limit>,
    /// The score of HttpArena, from 0 to 1, in a row with a fixed rate.
    pub(super) httparena_score: Option<f64>,
}

impl InRow {
    fn of(server: usize, runs: &[&Run]) -> InRow {
        let counts: Vec<&&Run> = runs.iter().filter(|run| run.void.is_none()).collect();
        let spread =
            |of: fn(&Run) -> Option<f64>| Spread::of(counts.iter().filter_map(|run| of(run)));
        let worst = ["wrong", "undecided", "exact"]
            .into_iter()
            .find(|word| runs.iter().any(|run| run.verdict.as_deref() == Some(*word)));
        let reason = runs.iter().find(|run| !run.is_exact()).and_then(|run| run.reasons.first());
        let void = runs.iter().find_map(|run| run.void.as_ref());
        let limits = counts.iter().filter_map(|run| run.limit);
        let limit =
            limits.clone().max_by_key(|limit| limits.clone().filter(|it| it == limit).count());
        InRow {
            server,
            rank: None,
            requests_per_s: spread(|run| run.requests_per_s),
            mean_us: spread(|run| run.mean_us),
            p50_us: spread(|run| run.p50_us),
            p99_us: spread(|run| run.p99_us),
            p99_9_us: spread(|run| run.p99_9_us),
            cpu_us: spread(|run| run.cpu_us),
            requests_ratio: None,
            cpu_ratio: None,
            p99_ratio: None,
            verdict: worst.map(str::to_owned),
            why: reason.or(void).cloned(),
            void_runs: runs.len() - counts.len(),
            runs: runs.len(),
            limit,
            httparena_score: None,
        }
    }

    /// Reports whether the server counted what it acknowledged in every run.
    pub(super) fn is_exact(&self) -> bool {
        self.verdict.as_deref().is_none_or(|verdict| verdict == "exact")
    }

    /// Reports whether all of its runs are void.
    pub(super) fn is_void(&self) -> bool {
        self.void_runs == self.runs
    }
}

/// A row with all servers.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "ServerRow")]
pub(super) struct RowFound {
    /// Its name in `--rows`.
    pub(super) name: String,
    /// Its description.
    pub(super) title: String,
    /// The servers by rank, then the unranked ones.
    pub(super) servers: Vec<InRow>,
}

/// A server in a comparison.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "ComparedServer")]
pub(super) struct ServerFound {
    /// Its name.
    pub(super) name: String,
    /// Its command, as it was typed.
    pub(super) command: String,
    /// The words of the command that was run in the first round.
    pub(super) words: Vec<String>,
    /// The time from its start to its first response in milliseconds; null if it was never ready.
    pub(super) start_up_ms: Option<Spread>,
    /// The most memory that its processes held in bytes: the sum of their peaks.
    pub(super) peak_rss_bytes: Option<u64>,
    /// Its capacity in requests per second, which is measured only for rows at a share of it; null without such rows.
    pub(super) capacity_per_s: Option<f64>,
    /// Whether the client was the limit of that capacity.
    pub(super) capacity_is_clients: bool,
    /// The source of its CPU time; null if it was never ready.
    pub(super) cpu_source: Option<CpuSource>,
    /// The number of times that it did not end within five seconds of SIGTERM, and was killed.
    pub(super) kills: u32,
    /// The reason why it was given up; null if it was not.
    pub(super) failure: Option<String>,
    /// Its outcome against the first server: better or worse in at least one row, or the same in all; null for the first
    /// server, with too few rounds, or if it is better in one figure and worse in another.
    pub(super) outcome: Option<Outcome>,
}

impl ServerFound {
    fn of(server: &ServerCommand, known: &Known) -> ServerFound {
        ServerFound {
            name: server.name.clone(),
            command: server.text().into(),
            words: known.command.clone(),
            start_up_ms: Spread::of(known.start_ups_ms.iter().copied()),
            peak_rss_bytes: known.peak_rss_bytes,
            capacity_per_s: known.capacity_per_s,
            capacity_is_clients: known.capacity_is_clients,
            cpu_source: known.cpu_source,
            kills: known.kills,
            failure: known.failure.clone(),
            outcome: None,
        }
    }
}

/// Returns the servers and the rows of a comparison.
pub(super) fn of(
    servers: &[ServerCommand],
    rows: &[Row],
    connections: usize,
    found: &Found,
) -> (Vec<ServerFound>, Vec<RowFound>) {
    let rows: Vec<RowFound> = rows
        .iter()
        .enumerate()
        .map(|(number, row)| RowFound {
            name: row.to_string(),
            title: row.title(connections),
            servers: in_row(number, *row, servers.len(), &found.runs),
        })
        .collect();
    let mut all: Vec<ServerFound> = servers
        .iter()
        .zip(&found.known)
        .map(|(server, known)| ServerFound::of(server, known))
        .collect();
    let of = |index| rows.iter().flat_map(|row| &row.servers).filter(move |it| it.server == index);
    let is_exact = |index| of(index).all(InRow::is_exact);
    for (index, server) in all.iter_mut().enumerate().skip(1) {
        // A server that loses events may be fast because of that.
        server.outcome = overall(of(index)).filter(|_| is_exact(0) && is_exact(index));
    }
    (all, rows)
}

/// Returns the outcome of a server in all rows.
fn overall<'a>(rows: impl Iterator<Item = &'a InRow>) -> Option<Outcome> {
    let ratios = rows.flat_map(|row| [row.requests_ratio, row.cpu_ratio]).flatten();
    let outcomes: Vec<Outcome> = ratios.map(|ratio| ratio.outcome).collect();
    let has = |outcome| outcomes.contains(&outcome);
    match (has(Outcome::Better), has(Outcome::Worse)) {
        _ if outcomes.is_empty() || has(Outcome::Unknown) => None,
        (false, false) => Some(Outcome::Same),
        (true, false) => Some(Outcome::Better),
        (false, true) => Some(Outcome::Worse),
        // Better in one figure and worse in another: neither.
        (true, true) => None,
    }
}

fn in_row(number: usize, row: Row, servers: usize, runs: &[Run]) -> Vec<InRow> {
    let of = |server: usize| -> Vec<&Run> {
        runs.iter().filter(|run| run.row == number && run.server == server).collect()
    };
    let base = of(0);
    let mut all: Vec<InRow> = (0..servers)
        .map(|server| (server, of(server)))
        .filter(|(_, runs)| !runs.is_empty())
        .map(|(server, runs)| {
            let ratio = |figure: fn(&Run) -> Option<f64>, is_higher_better| {
                Ratio::of(&pairs(&base, &runs, figure), is_higher_better)
            };
            let mut found = InRow::of(server, &runs);
            if server > 0 {
                found.requests_ratio =
                    ratio(|run| run.requests_per_s, true).filter(|_| !row.is_open_loop());
                found.cpu_ratio = ratio(|run| run.cpu_us, false);
                found.p99_ratio = ratio(|run| run.p99_us, false);
            }
            found
        })
        .collect();
    rank(&mut all);
    if matches!(row, Row::Rate(_)) {
        score(&mut all, runs, number);
    }
    all
}

/// Returns the figure of both servers for each round whose two runs count.
fn pairs(base: &[&Run], head: &[&Run], figure: fn(&Run) -> Option<f64>) -> Vec<(f64, f64)> {
    let value = |run: &Run| figure(run).filter(|_| run.void.is_none());
    let in_round = |round| base.iter().find(|run| run.round == round);
    head.iter().filter_map(|run| Some((value(in_round(run.round)?)?, value(run)?))).collect()
}

/// Orders the servers by CPU time per request, or all by the 99th percentile if the CPU time of a ranked server is unknown.
fn rank(all: &mut [InRow]) {
    let may_rank = |one: &InRow| one.is_exact() && !one.is_void();
    let has_cpu = all.iter().filter(|one| may_rank(one)).all(|one| one.cpu_us.is_some());
    let order = move |one: &InRow| {
        let figure = if has_cpu { one.cpu_us } else { one.p99_us };
        let figure = figure.map_or(f64::INFINITY, |spread| spread.median);
        (!(may_rank(one) && figure.is_finite()), figure)
    };
    all.sort_by(|a, b| {
        let (a, b) = (order(a), order(b));
        a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
    });
    for (index, one) in all.iter_mut().enumerate() {
        one.rank = (!order(one).0).then_some(index + 1);
    }
}

/// Sets the scores of the ranked servers.
fn score(all: &mut [InRow], runs: &[Run], row: usize) {
    let held = |server: usize| {
        let own =
            runs.iter().filter(|run| run.row == row && run.server == server && run.void.is_none());
        Spread::of(own.filter_map(|run| run.held)).map(|spread| spread.median)
    };
    let scored = |one: &InRow| {
        one.rank?;
        Some(Scored {
            held: held(one.server)?,
            cpu_us: one.cpu_us?.median,
            p99_us: one.p99_us?.median,
            mean_us: one.mean_us?.median,
        })
    };
    let (places, figures): (Vec<usize>, Vec<Scored>) =
        all.iter().enumerate().filter_map(|(place, one)| Some((place, scored(one)?))).unzip();
    for (place, score) in places.into_iter().zip(scores(&figures)) {
        all[place].httparena_score = Some(score);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::challenge::measured::Seen;

    /// Returns a run that counts, with the given figures.
    pub(in crate::challenge) fn run(server: usize, round: u32, per_s: f64, cpu_us: f64) -> Run {
        let empty = Run::new((server, 0, round), Row::Saturated, &Seen::Nothing(String::new()), 1);
        Run {
            void: None,
            requests_per_s: Some(per_s),
            cpu_us: Some(cpu_us),
            p99_us: Some(cpu_us * 10.0),
            p50_us: Some(cpu_us * 5.0),
            mean_us: Some(cpu_us * 6.0),
            held: Some(1.0),
            verdict: Some("exact".into()),
            reasons: Vec::new(),
            limit: Some(Limit::Server),
            ..empty
        }
    }

    pub(in crate::challenge) fn servers(names: &[&str]) -> Vec<ServerCommand> {
        names.iter().map(|name| format!("{name}=./{name} {{port}}").parse().unwrap()).collect()
    }

    pub(in crate::challenge) fn found(runs: Vec<Run>, servers: usize) -> Found {
        let known =
            Known { start_ups_ms: vec![5.0], peak_rss_bytes: Some(1 << 20), ..Known::default() };
        Found { known: vec![known; servers], runs, is_interrupted: false }
    }

    /// Returns two servers over some rounds with noise; the second differs by a factor in CPU time.
    fn compared(factor: f64, rounds: u32, row: Row) -> (Vec<ServerFound>, Vec<RowFound>) {
        let noise = |round: u32| 1.0 + 0.01 * f64::from(round % 3);
        let runs = (0..rounds).flat_map(|round| {
            let us = 10.0 * noise(round);
            [run(0, round, 1e6 / us, us), run(1, round, 1e6 / (us * factor), us * factor)]
        });
        of(&servers(&["a", "b"]), &[row], 64, &found(runs.collect(), 2))
    }

    #[test]
    fn a_ratio_is_taken_round_by_round_and_needs_rounds_for_an_interval() {
        for (factor, outcome) in [
            (1.0, Outcome::Same),
            (1.029, Outcome::Same),
            (1.05, Outcome::Worse),
            (0.9, Outcome::Better),
        ] {
            let (servers, rows) = compared(factor, 5, Row::Saturated);
            let second = rows[0].servers.iter().find(|it| it.server == 1).unwrap();
            let (cpu, per_s) = (second.cpu_ratio.unwrap(), second.requests_ratio.unwrap());
            assert!((cpu.median - factor).abs() < 1e-9 && cpu.low.is_some());
            assert_eq!(
                (cpu.outcome, per_s.outcome, servers[1].outcome),
                (outcome, outcome, Some(outcome))
            );
            assert!(servers[0].outcome.is_none());
        }
        let (servers, rows) = compared(2.0, 4, Row::Saturated);
        let ratio = rows[0].servers[1].cpu_ratio.unwrap();
        assert_eq!((ratio.low, ratio.outcome, servers[1].outcome), (None, Outcome::Unknown, None));
    }

    #[test]
    fn a_wrong_server_is_in_the_table_and_has_no_rank() {
        let mut runs: Vec<Run> = (0..5)
            .flat_map(|round| {
                [run(0, round, 100.0, 9.0), run(1, round, 900.0, 1.0), run(2, round, 90.0, 10.0)]
            })
            .collect();
        runs[1].verdict = Some("wrong".into());
        runs[1].reasons = vec!["totalRequests is 3 less".into()];
        let (all, rows) = of(&servers(&["a", "b", "c"]), &[Row::Saturated], 64, &found(runs, 3));
        assert_eq!((all[1].outcome, all[2].outcome), (None, Some(Outcome::Worse)));
        let places: Vec<_> = rows[0].servers.iter().map(|it| (it.server, it.rank)).collect();
        assert_eq!(places, [(0, Some(1)), (2, Some(2)), (1, None)]);
        let wrong = &rows[0].servers[2];
        assert_eq!(
            (wrong.verdict.as_deref(), wrong.why.as_deref()),
            (Some("wrong"), Some("totalRequests is 3 less"))
        );
    }

    #[test]
    fn all_servers_of_a_row_are_ranked_by_one_figure() {
        let mut runs: Vec<Run> = (0..5)
            .flat_map(|round| [run(0, round, 100.0, 25.0), run(1, round, 100.0, 15.0)])
            .collect();
        for run in runs.iter_mut().filter(|run| run.server == 1) {
            // Too little CPU time to be known, and a p99 that is numerically greater than the other server's CPU time.
            (run.cpu_us, run.p99_us) = (None, Some(100.0));
        }
        runs.iter_mut().filter(|run| run.server == 0).for_each(|run| run.p99_us = Some(200.0));
        let (_, rows) = of(&servers(&["a", "b"]), &[Row::Rate(9)], 64, &found(runs, 2));
        let places: Vec<_> = rows[0].servers.iter().map(|it| (it.server, it.rank)).collect();
        assert_eq!(places, [(1, Some(1)), (0, Some(2))]);
    }

    #[test]
    fn void_runs_are_in_no_figure() {
        let mut runs: Vec<Run> = (0..5)
            .flat_map(|round| [run(0, round, 100.0, 10.0), run(1, round, 100.0, 10.0)])
            .collect();
        for run in runs.iter_mut().filter(|run| run.server == 1) {
            (run.void, run.cpu_us) = (Some("it held 50% of the rate".into()), Some(1.0));
        }
        runs[1].void = None;
        let of = |runs: Vec<Run>| {
            let (_, mut rows) = of(&servers(&["a", "b"]), &[Row::Rate(9)], 64, &found(runs, 2));
            rows.remove(0).servers.into_iter().find(|it| it.server == 1).unwrap()
        };
        let one = of(runs.clone());
        assert_eq!((one.void_runs, one.runs, one.cpu_us.unwrap().median), (4, 5, 1.0));
        assert!(one.rank.is_some() && one.httparena_score.is_some());
        runs[1].void = Some("it held 50% of the rate".into());
        let none = of(runs);
        assert!(none.rank.is_none() && none.cpu_us.is_none() && none.httparena_score.is_none());
        assert_eq!(none.why.as_deref(), Some("it held 50% of the rate"));
    }

    #[test]
    fn scores_are_in_rows_with_a_fixed_rate_only() {
        for (row, has_score) in
            [(Row::Rate(9), true), (Row::Near(80), false), (Row::Saturated, false)]
        {
            let (_, rows) = compared(2.0, 5, row);
            let scores: Vec<_> = rows[0].servers.iter().map(|it| it.httparena_score).collect();
            assert_eq!(scores.iter().all(Option::is_some), has_score, "{row}");
            assert!(!has_score || scores[0] > scores[1], "{scores:?}");
        }
    }
}
