//! The report as lines of text.

use super::{
    ClientRow, CpuSource, HELD_MIN, Latency, OpenLoop, Report, SERVER_CPU_MIN, ServerCost, Unit,
};
use crate::doctor::CpuUse;
use crate::load::Profile;
use crate::load::numbers::{counted, grouped, rounded, time};
use crate::load::thresholds::Checked;
use crate::load::verdict::Verdict;
use anstyle::{AnsiColor, Style};
use std::fmt::Write as _;

/// The colors of words. They are stripped when the text is printed if the output is not a terminal.
const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// The number of bytes in a MiB.
const MIB: f64 = 1048576.0;

/// A statement of the report, on one or more lines.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) lines: Vec<String>,
}

impl Report {
    /// Returns the report as a few lines, with colors.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        let verdict = self.verdict.word();
        let style = if self.verdict == Verdict::Exact { GOOD } else { BAD };
        for Row { name, lines } in self.rows() {
            for (index, line) in lines.iter().enumerate() {
                let name = if index == 0 { name } else { "" };
                let line = match line.strip_prefix(verdict) {
                    Some(rest) if name == "verdict" => format!("{style}{verdict}{style:#}{rest}"),
                    _ => line.clone(),
                };
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{name:<10}{line}");
            }
        }
        text
    }

    /// Returns the lines of the report: the measurements, their cost, and the verdict.
    pub(super) fn rows(&self) -> Vec<Row> {
        let mut rows = vec![
            Row { name: self.unit().many(), lines: self.speed() },
            Row { name: "latency", lines: self.latency_us.lines(self.unit()) },
        ];
        let mut row = |name, lines: Vec<String>| {
            if !lines.is_empty() {
                rows.push(Row { name, lines });
            }
        };
        if let Some(open_loop) = &self.open_loop {
            row("from send", open_loop.service_time_us.lines(self.unit()));
            row("schedule", open_loop.lines(self.unit(), self.client_limited));
        }
        row("warm-up", self.warm_up_lines());
        row("refused", self.refusals());
        row("trouble", self.trouble());
        row("server", self.cost.as_ref().map(|cost| cost.lines(self.unit())).unwrap_or_default());
        row("client", self.client());
        row("watch", self.watch_lines());
        row("machine", self.machine());
        row("warning", self.warnings.clone());
        row("threshold", self.check_thresholds().iter().map(threshold_line).collect());
        let totals = self.server.map_or("unknown".into(), |totals| totals.to_string());
        row("totals", vec![totals]);
        row("verdict", self.verdict_lines());
        rows
    }

    fn speed(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{} over {} in {:.2} s: {} {}",
            self.unit().batched(self.requests, self.batches),
            self.connections(),
            self.elapsed_s,
            rounded(self.requests_per_s),
            self.unit().per_second()
        )];
        if let Some(address) = &self.setup.address {
            lines.push(format!("sent to {address}, the first address of the name that listened"));
        }
        if self.interrupted {
            lines.push("interrupted before it was over".into());
        }
        if let Some(threshold) = &self.aborted_by {
            lines.push(format!("ended early: --abort-if {threshold} could no longer pass"));
        }
        if self.setup.one_request_per_connection {
            lines.push("one request per connection: the server closes it after a response".into());
        }
        lines
    }

    /// Returns the number of requested connections, and how many of them were open if some were not.
    fn connections(&self) -> String {
        let asked = self.setup.connections as u64;
        let of = match self.connections_open == asked {
            true => String::new(),
            false => format!("{} of ", grouped(self.connections_open)),
        };
        let over_time = self.setup.connections_over_time.as_ref();
        let over_time = over_time.map_or(String::new(), |profile| format!(" ({profile})"));
        of + &counted(asked, "connection", "connections") + &over_time
    }

    fn warm_up_lines(&self) -> Vec<String> {
        let line = |warm_up: &super::WarmUp| {
            format!(
                "{} of {} acknowledged, not part of the result",
                grouped(warm_up.acknowledged),
                self.unit().count(warm_up.requests),
            )
        };
        self.warm_up.iter().map(line).collect()
    }

    fn refusals(&self) -> Vec<String> {
        let line = |(status, count): (&u16, &u64)| {
            format!("{} with status {status}", self.unit().count(*count))
        };
        self.refused_by_status.iter().map(line).collect()
    }

    /// Returns the problems with requests and connections.
    fn trouble(&self) -> Vec<String> {
        let of_unit = [(self.unknown, "sent without a response"), (self.unsent, "not sent")];
        let of_unit = of_unit
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{} {what}", self.unit().count(count)));
        let kinds = [
            (
                self.rejected,
                "connection turned away by the server",
                "connections turned away by the server",
            ),
            (self.timeouts, "connection timed out", "connections timed out"),
            (self.reconnects, "reconnect", "reconnects"),
            (
                self.resent,
                "request sent again: the server closed before it",
                "requests sent again: the server closed before them",
            ),
            (self.connect_failures, "failed attempt to connect", "failed attempts to connect"),
            (
                self.broken_keep_alives,
                "connection closed by the server without notice",
                "connections closed by the server without notice",
            ),
            (
                self.malformed,
                "malformed or unexpected response",
                "malformed or unexpected responses",
            ),
        ];
        let found = kinds.into_iter().filter(|(count, _, _)| *count > 0);
        of_unit.chain(found.map(|(count, one, many)| counted(count, one, many))).collect()
    }

    fn client(&self) -> Vec<String> {
        let threads = counted(self.setup.threads as u64, "thread", "threads");
        let of_clients = match self.clients.len() {
            0 => format!(
                "{threads}{} on CPU{} {}",
                if self.setup.pinned { "" } else { ", not pinned," },
                if self.setup.cpus.contains([',', '-']) { "s" } else { "" },
                self.setup.cpus
            ),
            clients => format!("{} with {threads}", counted(clients as u64, "client", "clients")),
        };
        let mut lines =
            vec![format!("{of_clients}, the busiest {:.0}% busy", self.client_busy * 100.0)];
        lines.extend(self.clients.iter().map(ClientRow::line));
        let unit = self.unit();
        let polling = match self.open_loop {
            Some(_) => {
                let us = unit.cpu_us(self.client_poll_us_per_request);
                format!(", {us} µs polling for the next due time")
            }
            None => String::new(),
        };
        let us = unit.cpu_us(self.client_cpu_us_per_request);
        lines.push(format!("{us} µs CPU time per {}{polling}", unit.one()));
        if let Some(CpuUse { steal, softirq, .. }) = self.client_cpus {
            let (steal, softirq) = (steal * 100.0, softirq * 100.0);
            let line = format!("{softirq:.1}% of its CPUs' time in softirq, {steal:.1}% stolen");
            lines.push(line);
        }
        lines.extend(self.client_limited_by.iter().cloned());
        lines.extend(self.limit().map(str::to_owned));
        lines
    }

    fn watch_lines(&self) -> Vec<String> {
        let line = |watch: &crate::load::watch::Watched| {
            format!(
                "{} from /stats during the run, {} without one",
                counted(watch.answers, "response", "responses"),
                counted(watch.unanswered, "request", "requests")
            )
        };
        self.watch.iter().map(line).collect()
    }

    fn machine(&self) -> Vec<String> {
        match self.environment.warnings() as u64 {
            0 => Vec::new(),
            warnings => vec![format!(
                "{} about what results depend on: run ringtally doctor",
                counted(warnings, "warning", "warnings")
            )],
        }
    }

    fn verdict_lines(&self) -> Vec<String> {
        let meaning = match self.verdict {
            Verdict::Exact => "every acknowledged event was counted once",
            Verdict::Wrong => "the totals are not those of the acknowledged events",
            Verdict::Undecided => {
                "nothing is known to be wrong, but not everything could be checked"
            }
        };
        let verdict = format!("{}: {meaning}", self.verdict.word());
        let stayed = self.quiet_ms.filter(|_| self.verdict != Verdict::Wrong);
        let stayed =
            stayed.map(|ms| format!("the totals did not change for another {:.1} s", ms / 1e3));
        let rest = self.reasons.iter().chain(&self.remarks).cloned();
        std::iter::once(verdict).chain(stayed).chain(rest).collect()
    }
}

impl Latency {
    /// Returns two lines, because one line would be wider than a terminal of 80 columns.
    fn lines(&self, unit: Unit) -> Vec<String> {
        let (Some(p50), Some(p90), Some(p95), Some(p99)) = (self.p50, self.p90, self.p95, self.p99)
        else {
            return vec!["not known: no request ended".into()];
        };
        let first =
            format!("p50 {}, p90 {}, p95 {}, p99 {}", time(p50), time(p90), time(p95), time(p99));
        let rest = [("p99.9", self.p99_9), ("p99.99", self.p99_99), ("max", self.max)];
        let mut rest: Vec<String> = rest
            .into_iter()
            .filter_map(|(name, figure)| Some(format!("{name} {}", time(figure?))))
            .collect();
        if unit == Unit::Event {
            rest.push("per batch".into());
        }
        vec![first, rest.join(", ")]
    }
}

impl OpenLoop {
    fn lines(&self, unit: Unit, client_limited: bool) -> Vec<String> {
        let asked = format!("{} {}", rate_in_words(&self.rate), unit.per_second());
        let mut lines = vec![match (self.achieved_rate, self.held) {
            (Some(achieved), Some(held)) => {
                format!("{asked} asked for, {} sent ({:.1}%)", rounded(achieved), held * 100.0)
            }
            _ => format!("{asked} asked for, too short to tell whether they were sent"),
        }];
        let lag = &self.schedule_lag_us;
        if let (Some(p99), Some(max)) = (lag.p99, lag.max) {
            lines.push(format!("the client sent late by p99 {}, max {}", time(p99), time(max)));
        }
        if self.queued > 0 {
            let waited = unit.count_requests(self.queued);
            lines.push(format!("{waited} waited for a free connection"));
        }
        if self.due_in_stalls > 0 {
            let due = unit.count_requests(self.due_in_stalls);
            lines.push(format!("{due} came due while the client did not run, and were late"));
        }
        if self.held.is_some_and(|held| held < HELD_MIN) && self.queued > 0 && !client_limited {
            lines.push("the rate was not held: use more connections or a lower --rate".into());
        }
        lines
    }
}

impl ServerCost {
    fn lines(&self, unit: Unit) -> Vec<String> {
        let cpu = match (
            self.server_cpu_us_per_request,
            self.server_user_us_per_request,
            self.server_system_us_per_request,
        ) {
            (Some(all), Some(user), Some(system)) => {
                let [all, user, system] = [all, user, system].map(|us| unit.cpu_us(us));
                let one = unit.one();
                format!("{all} µs CPU time per {one} (user {user}, system {system})")
            }
            _ => {
                format!("CPU time too short to tell (less than {} ms)", SERVER_CPU_MIN.as_millis())
            }
        };
        let memory = self
            .server_peak_rss_bytes
            .map_or(String::new(), |bytes| format!("peak memory {:.1} MiB, ", bytes as f64 / MIB));
        let plural = if self.server_cpus.contains([',', '-']) { "s" } else { "" };
        let source = match self.server_cpu_source {
            CpuSource::Cgroup => ", CPU time from its cgroup",
            CpuSource::Proc => "",
        };
        vec![cpu, format!("{memory}on CPU{plural} {}{source}", self.server_cpus)]
    }
}

pub(in crate::load) fn threshold_line(checked: &Checked) -> String {
    let Checked { fail_if, sentence, passed, .. } = checked;
    format!("{} {fail_if}: {sentence}", if *passed { "passed" } else { "failed" })
}

impl ClientRow {
    /// Returns the results of the client on one line.
    pub(super) fn line(&self) -> String {
        let p99 = self.latency_us.p99.map_or("unknown".into(), time);
        format!(
            "{} on {}: {} {}, p99 {p99}, {:.0}% busy{}",
            self.part,
            self.host,
            rounded(self.requests_per_s),
            Unit::of(self.batches).per_second(),
            self.client_busy * 100.0,
            if self.interrupted { ", interrupted" } else { "" }
        )
    }
}

/// Formats a rate in the notation of a flag, with the digits of a number in groups of three.
pub(in crate::load) fn rate_in_words(rate: &Profile) -> String {
    rate.as_whole().map_or_else(|| rate.to_string(), grouped)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{open_loop, outcome};
    use super::super::{Outcome, ServerUse};
    use super::*;
    use crate::load::watch::Watched;
    use crate::load::workload::{Values, Workload};
    use std::time::Duration;

    /// Returns the summary without colors.
    fn summary(report: &Report) -> String {
        anstream::adapter::strip_str(&report.summary()).to_string()
    }

    #[test]
    fn what_was_not_as_asked_is_in_the_lines_about_it() {
        let mut outcome = open_loop(1000);
        outcome.run.work.ledger.trouble.never_open = 4;
        outcome.setup.address = Some("[::1]:8000".into());
        outcome.setup.pinned = false;
        outcome.run.work.due_in_stalls = 7;
        let report = Report::new(outcome);
        let summary = summary(&report);
        for line in [
            "over 6 of 10 connections",
            "sent to [::1]:8000, ",
            "1 thread, not pinned, on CPU 1",
            "7 requests came due while the client did not run, and were late",
            "only 6 of 10 connections were open (the server did not take them in time)",
        ] {
            assert!(summary.contains(line), "{line}: {summary}");
        }
        assert!(report.check().unwrap_err().to_string().contains("only 6 of 10"));
    }

    #[test]
    fn the_summary_reads_in_order() {
        let mut outcome = outcome();
        outcome.run.work.ledger.acknowledged = 996;
        let workload = Workload { events: 1000, users: 100, values: Values::Integer, batch: None };
        (1..4).for_each(|event| outcome.run.work.ledger.note(&workload, event, 507));
        outcome.run.work.ledger.unknown.insert(&workload, 4);
        outcome.run.work.ledger.trouble.timeouts = 1;
        outcome.run.work.ledger.trouble.reconnects = 2;
        outcome.warm_up = 1;
        outcome.run.warm_up.acknowledged = 1;
        outcome.run.watched = Some(Watched { answers: 1, ..Watched::default() });
        outcome.run.warnings = vec!["client and server share CPU 1".into()];
        outcome.thresholds = vec!["p99>5ms".parse().unwrap(), "rps<1k".parse().unwrap()];
        let mut report = Report::new(outcome);
        report.add_server(Some(ServerUse {
            user: Duration::from_millis(500),
            system: Duration::from_millis(1500),
            cpu_source: CpuSource::Proc,
            peak_rss_bytes: Some(12 << 20),
            cpus: "0,2".into(),
        }));
        let text = summary(&report);
        let expected = "\
requests  1,000 over 10 connections in 2.00 s: 498 requests/s
latency   p50 1.00 ms, p90 1.00 ms, p95 1.00 ms, p99 1.00 ms
          p99.9 1.00 ms, p99.99 1.00 ms, max 1.00 ms
warm-up   1 of 1 request acknowledged, not part of the result
refused   3 requests with status 507
trouble   1 request sent without a response
          1 connection timed out
          2 reconnects
server    2002.00 µs CPU time per request (user 500.50, system 1501.50)
          peak memory 12.0 MiB, on CPUs 0,2
client    1 thread on CPU 1, the busiest 50% busy
          3.00 µs CPU time per request
          25.0% of its CPUs' time in softirq, 0.0% stolen
watch     1 response from /stats during the run, 0 requests without one
warning   client and server share CPU 1
threshold passed p99>5ms: p99 is 1.000447 ms
          failed rps<1k: rps is 498
totals    totalRequests 1000, uniqueUsers 100, sum 499500.0, avg 499.5
verdict   exact: every acknowledged event was counted once
";
        assert_eq!(text, expected);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn an_open_loop_says_what_it_sent_and_what_it_took() {
        let mut outcome = open_loop(9000);
        outcome.run.work.polling = Duration::from_secs(1);
        outcome.run.work.queued = 1;
        let text = summary(&Report::new(outcome));
        for line in [
            "from send p50 900 µs,",
            "schedule  500 requests/s asked for, 500 sent (99.9%)\n",
            "the client sent late by p99 9 µs, max 9 µs\n",
            "1 request waited for a free connection\n",
            "3.00 µs CPU time per request, 1000.00 µs polling for the next due time\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(!text.contains("not held"), "{text}");
        let mut slow = Outcome { held: Some(0.5), ..open_loop(9000) };
        slow.run.work.last_sent = Duration::from_secs(4);
        slow.run.work.queued = 9;
        let text = summary(&Report::new(slow));
        assert!(text.contains("250 sent (50.0%)") && text.contains("more connections"), "{text}");
    }

    #[test]
    fn what_makes_a_run_unlike_others_is_said_first() {
        let mut outcome = outcome();
        outcome.run.interrupted = true;
        outcome.aborted_by = Some("refused>0".parse().unwrap());
        outcome.setup.one_request_per_connection = true;
        let report = Report::new(outcome);
        let text = summary(&report);
        assert!(report.html().unwrap().contains("--abort-if refused&gt;0 could no longer pass"));
        let lines: Vec<&str> = text.lines().skip(1).take(3).collect();
        assert_eq!(
            lines,
            [
                "          interrupted before it was over",
                "          ended early: --abort-if refused>0 could no longer pass",
                "          one request per connection: the server closes it after a response"
            ]
        );
    }

    #[test]
    fn a_run_in_batches_counts_events() {
        let mut outcome = open_loop(9000);
        outcome.workload.batch = Some(300);
        outcome.setup.batch = Some(300);
        outcome.run.work.ledger.acknowledged = 400;
        outcome.run.work.ledger.note(&outcome.workload, 0, 507);
        outcome.run.work.ledger.unknown.insert(&outcome.workload, 1);
        outcome.run.work.queued = 2;
        outcome.run.limited_by = vec!["busy".into()];
        let mut report = Report::new(outcome);
        report.add_server(Some(ServerUse {
            user: Duration::from_millis(100),
            system: Duration::ZERO,
            cpu_source: CpuSource::Proc,
            peak_rss_bytes: None,
            cpus: "0".into(),
        }));
        let text = summary(&report);
        for line in [
            "events    1,000 in 4 batches over 10 connections in 2.00 s: 200 events/s\n",
            "max 1.00 ms, per batch\n",
            "schedule  500 events/s asked for,",
            "2 batches waited for a free connection\n",
            "refused   300 events with status 507\n",
            "trouble   300 events sent without a response\n",
            "142.857 µs CPU time per event (user 142.857, system 0.000)\n",
            "4.286 µs CPU time per event",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(!text.contains("requests/s") && !text.contains("per request"), "{text}");
        let page = report.html().unwrap();
        assert!(page.contains("200 events/s") && page.contains("a batch of 300 events"), "{page}");
    }

    #[test]
    fn a_short_run_is_too_short_to_tell() {
        let mut outcome = outcome();
        outcome.run.elapsed = Duration::from_millis(16);
        let mut report = Report::new(outcome);
        report.add_server(Some(ServerUse {
            user: Duration::ZERO,
            system: Duration::from_millis(10),
            cpu_source: CpuSource::Proc,
            peak_rss_bytes: None,
            cpus: "0".into(),
        }));
        let text = summary(&report);
        assert!(!text.contains("softirq") && !text.contains("memory"), "{text}");
        assert!(text.contains("server    CPU time too short to tell"), "{text}");
    }
}
