//! The tables, and what is unfair about them.

use super::Absent;
use super::entry::Entry;
use super::measure::{Bench, Exactness, Run, Workload};
use super::statistics::{Spread, spread};
use ringtally::topology::format_cpu_list;
use serde_json::Value;
use std::fmt::Write;

/// What every pair is compared with.
const REFERENCE: &str = "ringtally-ring";

/// Everything that is written down.
pub(crate) struct Document<'a> {
    pub(crate) environment: &'a Value,
    pub(crate) versions: &'a [(String, String)],
    pub(crate) entries: &'a [Entry],
    pub(crate) runs: &'a [Run],
    pub(crate) exactness: &'a [(String, Exactness)],
    pub(crate) absent: &'a [Absent],
    pub(crate) bench: &'a Bench,
}

/// The command as it was given.
pub(crate) fn command() -> String {
    let flags: Vec<String> = std::env::args().skip(1).filter(|flag| flag != "--bench").collect();
    match flags.as_slice() {
        [] => "cargo bench --bench arena".into(),
        flags => format!("cargo bench --bench arena -- {}", flags.join(" ")),
    }
}

impl Document<'_> {
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        self.put_heading(&mut text);
        let mut workloads: Vec<Workload> = Vec::new();
        for run in self.runs {
            if !workloads.contains(&run.workload) {
                workloads.push(run.workload);
            }
        }
        for workload in workloads {
            self.put_table(&mut text, workload);
        }
        self.put_exactness(&mut text);
        self.put_entries(&mut text);
        put(&mut text, UNFAIR);
        text
    }

    fn put_heading(&self, text: &mut String) {
        let of = |name: &str| self.environment[name].as_str().unwrap_or("unknown").to_owned();
        put(
            text,
            &format!(
                "`{}` on {}: {}, CPUs {} online, Linux {}, over loopback; server on CPUs {}, client on \
                 CPUs {}. Figures are medians [lowest-highest]; a ratio is the median of the \
                 entry's figure by that of {REFERENCE} in the same round.\n",
                command(),
                of("date").split('T').next().unwrap_or_default(),
                of("cpu_model"),
                of("cpus_online"),
                of("kernel"),
                format_cpu_list(&self.bench.server_cpus),
                format_cpu_list(&self.bench.client_cpus),
            ),
        );
    }

    fn runs_of<'b>(&'b self, entry: &'b str, workload: Workload) -> impl Iterator<Item = &'b Run> {
        self.runs.iter().filter(move |run| run.entry == entry && run.workload == workload)
    }

    fn figure(&self, entry: &str, workload: Workload, of: fn(&Run) -> f64) -> Option<Spread> {
        spread(self.runs_of(entry, workload).map(of))
    }

    /// The median of the ratios to the reference, round by round.
    fn ratio(&self, entry: &str, workload: Workload, of: fn(&Run) -> f64) -> Option<f64> {
        let in_round = |round| self.runs_of(REFERENCE, workload).find(|run| run.round == round);
        let ratios = self
            .runs_of(entry, workload)
            .filter_map(|run| Some(of(run) / of(in_round(run.round)?)));
        spread(ratios).map(|spread| spread.median)
    }

    /// A table of a workload, the fastest first; of an open loop, the cheapest.
    fn put_table(&self, text: &mut String, workload: Workload) {
        let is_open_loop = workload.rate.is_some();
        let order: fn(&Run) -> f64 =
            if is_open_loop { Run::cpu_us } else { |run| -run.requests_per_s };
        let mut rows: Vec<(&Entry, f64)> = self
            .entries
            .iter()
            .filter_map(|entry| Some((entry, self.figure(&entry.name, workload, order)?.median)))
            .collect();
        rows.sort_by(|a, b| a.1.total_cmp(&b.1));
        put(text, &format!("**{workload}**\n"));
        put(
            text,
            "| entry | requests/s | ratio | p50 µs | p99 µs | p99.9 µs | CPU µs a request (user + system) \
             | ratio | peak RSS MiB | start ms | counted | limit |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|---|",
        );
        for (entry, _) in rows {
            self.put_row(text, entry, workload);
        }
        text.push('\n');
    }

    fn put_row(&self, text: &mut String, entry: &Entry, workload: Workload) {
        let name = &entry.name;
        if let Some(held) = self.runs_of(name, workload).find(|run| run.is_void()) {
            let percent = held.rate_held.unwrap_or(0.0) * 100.0;
            put(
                text,
                &format!("| {name} | void: {percent:.0} % of the rate | | | | | | | | | | |"),
            );
            return;
        }
        let number = |of: fn(&Run) -> f64, digits: usize| {
            self.figure(name, workload, of).map_or("-".into(), |spread| {
                let Spread { median, lowest, highest } = spread;
                match lowest == highest {
                    true => format!("{median:.digits$}"),
                    false => format!("{median:.digits$} [{lowest:.digits$}-{highest:.digits$}]"),
                }
            })
        };
        let middle = |of: fn(&Run) -> f64| {
            self.figure(name, workload, of).map_or(0.0, |spread| spread.median)
        };
        let ratio =
            |of| self.ratio(name, workload, of).map_or("-".into(), |ratio| format!("{ratio:.2}"));
        let limited = self.runs_of(name, workload).filter(|run| run.client_limited).count();
        put(
            text,
            &format!(
                "| {name} | {} | {} | {} | {} | {} | {} ({:.2} + {:.2}) | {} | {:.1} | {:.0} | {} | {} |",
                number(|run| run.requests_per_s, 0),
                ratio(|run| run.requests_per_s),
                number(|run| run.p50_us, 0),
                number(|run| run.p99_us, 0),
                number(|run| run.p99_9_us, 0),
                number(Run::cpu_us, 2),
                middle(|run| run.user_us),
                middle(|run| run.system_us),
                ratio(Run::cpu_us),
                middle(|run| run.peak_rss_bytes as f64) / f64::from(1 << 20),
                middle(|run| run.start_up_ms),
                self.counted(entry, workload),
                if limited > 0 { "the client" } else { "" },
            ),
        );
    }

    /// Whether an entry counted right in every run of a workload, or what was wrong first.
    fn counted(&self, entry: &Entry, workload: Workload) -> String {
        if !entry.counts() {
            return "does not count".into();
        }
        let wrong = self.runs_of(&entry.name, workload).find(|run| run.verdict != "exact");
        wrong.map_or("exact".into(), |run| {
            cell(&format!("{}: {}", run.verdict, run.reasons.join("; ")))
        })
    }

    fn put_exactness(&self, text: &mut String) {
        put(
            text,
            "**`/stats` under load, and system calls** (64 connections, runs of their own)\n",
        );
        put(text, "| entry | answers that cannot be | system calls a request |\n|---|---|--:|");
        for (name, exactness) in self.exactness {
            let Exactness { answers, torn, went_down, behind, ahead, verdict, .. } = exactness;
            let counts = self.entries.iter().any(|entry| entry.name == *name && entry.counts());
            let kinds = [
                (torn, "torn"),
                (went_down, "going down"),
                (behind, "behind what was acknowledged"),
                (ahead, "ahead of what was sent"),
            ];
            let found: Vec<String> = kinds
                .iter()
                .filter(|(count, _)| **count > 0)
                .map(|(count, kind)| format!("{count} {kind}"))
                .collect();
            let seen = match (counts, found.as_slice()) {
                (false, _) => "does not count".into(),
                (true, []) if *answers == 0 => format!("it gave no answer; {verdict}"),
                (true, []) => format!("none of {answers}; {verdict}"),
                (true, found) => format!("{} of {answers}", found.join(", ")),
            };
            let calls = match &exactness.syscalls_per_request {
                Ok(calls) => format!("{calls:.2}"),
                Err(reason) => format!("- ({})", cell(reason)),
            };
            put(text, &format!("| {name} | {seen} | {calls} |"));
        }
        text.push('\n');
    }

    fn put_entries(&self, text: &mut String) {
        put(text, "**Entries**\n");
        for entry in self.entries {
            let version = self.versions.iter().find(|(name, _)| *name == entry.name);
            let version = version.map_or("", |(_, version)| version);
            put(text, &format!("- {}: {} ({version})", entry.name, entry.stands_for));
        }
        for Absent { name, reason, has_failed } in self.absent {
            let word = if *has_failed { "failed" } else { "skipped" };
            put(text, &format!("- {name}: {word}, {}", cell(reason)));
        }
        text.push('\n');
    }
}

/// Text of others on one line, with nothing in it that ends a cell.
fn cell(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}

fn put(text: &mut String, line: &str) {
    // A string can always be written to.
    let _ = writeln!(text, "{line}");
}

const UNFAIR: &str = "\
**What is unfair about it**

- Client and server share one machine and its loopback: no card, no wire, and caches and memory bandwidth in
  common. Where `limit` says so the client was the bottleneck, and the entry's requests/s are a lower bound.
- The client is ringtally's own. It sends the challenge's events and waits for each answer; it favours nobody, but it is
  the one that ringtally was built with. CPU a request is the figure that depends on it least.
- Every entry has as many threads as the server has CPUs; with one CPU nobody shows how it scales.
- ringtally is made for this challenge alone. The others are what users of a general framework would write, and do more
  than they are asked for here: routing, extractors, header maps.
- Of the others only those with one loop (node, fastapi-uvicorn) can answer `/stats` at one moment; the rest keep their
  totals in separate atomics, as their users do, and are exact only when nothing is under way. Sums are plain floats.
- The Rust peers read the body as bytes with serde and share one DashSet and one float that is exchanged by compare and
  swap. may-minihttp takes 16 headers at most. Go's encoding/json does not tell upper from lower case in names.
- cpp-epoll is hand-made for this arena, sends no Date and has no timeouts: the nearest to a rival built for the job.
  cpp-threads closes each connection, so it pays for a connection and a thread a request.
- fastapi-uvicorn is one process with one loop however many threads it is given; fastapi-granian gives its threads to its
  Rust side alone; node is one process.
- The JVMs were warmed up for seconds and run compiler and collector threads beside those that they are given.
  Spring's limits on kept connections were raised.
- CPU time is read in the kernel's ticks of 10 ms: at 5,000 requests/s for two seconds a step is 1 µs a request.
- floor reads no request and counts nothing: it is the limit of the kernel, not an entry.
";
