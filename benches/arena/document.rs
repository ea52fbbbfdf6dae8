//! The tables, and what is unfair about the comparison.

use super::Absent;
use super::entry::Entry;
use super::measure::{Bench, Exactness, Run, Workload};
use super::pause::RESPONSES;
use super::statistics::{Spread, spread};
use ringtally::topology::format_cpu_list;
use serde_json::Value;
use std::fmt::Write;

/// The entry that every other is compared with.
const REFERENCE: &str = "ringtally-ring";

/// Everything that the tables are made from.
pub(crate) struct Document<'a> {
    pub(crate) environment: &'a Value,
    pub(crate) versions: &'a [(String, String)],
    pub(crate) entries: &'a [Entry],
    pub(crate) runs: &'a [Run],
    pub(crate) exactness: &'a [(String, Exactness)],
    pub(crate) absent: &'a [Absent],
    pub(crate) bench: &'a Bench,
}

/// The command that was run.
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

    /// The table of a workload: the fastest entry first, or in an open loop the cheapest.
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
            "| entry | requests/s | ratio | p50 µs | p99 µs | p99.9 µs | CPU µs per request (user + system) \
             | ratio | peak RSS MiB | start ms | counted | limit |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|---|",
        );
        for (entry, _) in rows {
            self.put_row(text, entry, workload);
        }
        text.push('\n');
    }

    fn put_row(&self, text: &mut String, entry: &Entry, workload: Workload) {
        let name = &entry.name;
        if let Some(reason) = self.runs_of(name, workload).find_map(Run::void) {
            put(text, &format!("| {name} | void: {reason} | | | | | | | | | | |"));
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

    /// Whether an entry counted correctly in every run of a workload, or the first thing that was wrong.
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
            &format!(
                "**`/stats` under load, the first response after a pause, and system calls** (64 connections, \
                 after {RESPONSES} pauses of 20 to 200 ms on new and held ones, and 64 connections; separate \
                 runs)\n"
            ),
        );
        put(
            text,
            "| entry | impossible responses | first response after a pause, p99 µs | system calls per request |\n\
             |---|---|--:|--:|",
        );
        for (name, exactness) in self.exactness {
            let Exactness {
                responses,
                torn,
                went_down,
                behind,
                ahead,
                verdict,
                after_pause_p99_us,
                ..
            } = exactness;
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
                (true, []) if *responses == 0 => format!("no response; {verdict}"),
                (true, []) => format!("none of {responses}; {verdict}"),
                (true, found) => format!("{} of {responses}", found.join(", ")),
            };
            let calls = match &exactness.syscalls_per_request {
                Ok(calls) => format!("{calls:.2}"),
                Err(reason) => format!("- ({})", cell(reason)),
            };
            put(text, &format!("| {name} | {seen} | {after_pause_p99_us:.0} | {calls} |"));
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

/// Another program's text on one line, with nothing in it that ends a table cell.
fn cell(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}

fn put(text: &mut String, line: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{line}");
}

const UNFAIR: &str = "\
**What is unfair about it**

- Client and server share one machine and its loopback device: there is no network card and no wire, and both use the
  same caches and memory bandwidth. Where `limit` says so, the client was the bottleneck, and the entry's requests/s are a
  lower bound.
- The client is ringtally's own. It sends the challenge's events and waits for each response; it favors no entry, but it is
  the one that ringtally was developed with. CPU time per request depends on it least.
- Every entry has as many threads as the server has CPUs; with one CPU, no entry shows how it scales.
- ringtally is made for this challenge alone. The others are what users of a general framework would write, and do more
  than the challenge asks for: routing, extractors, header maps.
- Of the others, only those that count on a single thread (actix-aggregator, fastapi-uvicorn, java-activej, node) can report
  `/stats` at one moment. The rest keep their totals in separate atomics, as their users would, and are exact only while no
  event is in flight. Their sums are plain floats.
- The Rust peers read the body as bytes with serde, and share one DashSet and one float that is updated by compare and
  swap. may-minihttp accepts 16 headers at most. Go's encoding/json ignores case in member names.
- cpp-epoll was written by hand for this arena, sends no Date header, and has no timeouts: it is the closest to a rival built
  for the job. cpp-threads closes each connection, so it pays for a connection and a thread per request.
- fastapi-uvicorn is one process with one loop, whatever number of threads it is given, and so is java-activej;
  fastapi-granian uses its threads only for its Rust side; node is one process.
- actix-aggregator acknowledges an event once it is in the channel of the thread that counts, which is one more than the
  threads it is given. Nothing bounds that channel, so it grows whenever events arrive faster than they are counted.
- The JVMs were warmed up for seconds only, and run compiler and collector threads besides those that they are given.
  Spring's limits on kept connections were raised. java-vertx decodes each event on one of 20 workers.
- CPU time is counted in nanoseconds, but for children that have ended; only its parts, user and system, are in ticks of 10 ms.
- floor reads no request and counts nothing: it is the limit that the kernel sets, not an entry.
";
