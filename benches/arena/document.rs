//! The tables, and what is unfair about the comparison.

use super::Absent;
use super::entry::Entry;
use serde_json::Value;
use std::fmt::Write;

/// Everything that the tables are made from.
pub(crate) struct Document<'a> {
    /// The comparison of `ringtally challenge`.
    pub(crate) found: &'a Value,
    pub(crate) entries: &'a [Entry],
    pub(crate) absent: &'a [Absent],
}

/// Returns the command that was run.
fn command() -> String {
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
        for row in self.found["rows"].as_array().into_iter().flatten() {
            self.put_row(&mut text, row);
        }
        self.put_entries(&mut text);
        put(&mut text, UNFAIR);
        text
    }

    fn put_heading(&self, text: &mut String) {
        let environment = &self.found["environment"];
        let of = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
        put(
            text,
            &format!(
                "`{}` at {:.10} on {}: {}, CPUs {} online, Linux {}, over loopback with an MTU of {}; server on CPUs {}, \
                 client on CPUs {}. Figures are medians [lowest-highest] of {} rounds; a ratio is the median of the \
                 entry's figure by that of {} in the same round. The order is that of CPU time per request.\n",
                command(),
                of(&environment["revision"]),
                of(&environment["date"]).split('T').next().unwrap_or_default(),
                of(&environment["cpu_model"]),
                of(&environment["cpus_online"]),
                of(&environment["kernel"]),
                self.found["loopback_mtu"],
                of(&self.found["server_cpus"]),
                of(&self.found["client_cpus"]),
                self.found["rounds"],
                of(&self.found["servers"][0]["name"]),
            ),
        );
    }

    /// A table of a row.
    fn put_row(&self, text: &mut String, row: &Value) {
        put(text, &format!("**{}**\n", row["title"].as_str().unwrap_or_default()));
        put(
            text,
            "| entry | requests/s | ratio | p50 µs | p99 µs | p99.9 µs | CPU µs per request | ratio | peak RSS MiB | \
             start ms | counted | limit | HttpArena score |\n\
             |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|---|--:|",
        );
        for one in row["servers"].as_array().into_iter().flatten() {
            let number = one["server"].as_u64().and_then(|number| usize::try_from(number).ok());
            let Some((number, entry)) =
                number.and_then(|number| Some((number, self.entries.get(number)?)))
            else {
                continue;
            };
            let server = &self.found["servers"][number];
            let ratio = |name: &str| {
                one[name]["median"].as_f64().map_or("-".into(), |ratio| format!("{ratio:.2}"))
            };
            let mib = server["peak_rss_bytes"]
                .as_f64()
                .map_or("-".into(), |bytes| format!("{:.1}", bytes / f64::from(1 << 20)));
            let cells = [
                entry.name.clone(),
                spread(&one["requests_per_s"], 0),
                ratio("requests_ratio"),
                spread(&one["p50_us"], 0),
                spread(&one["p99_us"], 0),
                spread(&one["p99_9_us"], 0),
                spread(&one["cpu_us"], 2),
                ratio("cpu_ratio"),
                mib,
                spread(&server["start_up_ms"], 0),
                counted(entry, one),
                cell(one["limit"].as_str().unwrap_or("-")),
                one["httparena_score"].as_f64().map_or("-".into(), |score| format!("{score:.3}")),
            ];
            put(text, &format!("| {} |", cells.join(" | ")));
        }
        text.push('\n');
    }

    fn put_entries(&self, text: &mut String) {
        put(text, "**Entries**\n");
        for entry in self.entries {
            put(text, &format!("- {}: {} ({})", entry.name, entry.stands_for, entry.version()));
        }
        for Absent { name, reason, has_failed } in self.absent {
            let word = if *has_failed { "failed" } else { "skipped" };
            put(text, &format!("- {name}: {word}, {}", cell(reason)));
        }
        text.push('\n');
    }
}

/// Returns a median, and how far the runs spread.
fn spread(figure: &Value, digits: usize) -> String {
    let of = |name: &str| figure[name].as_f64();
    match (of("median"), of("lowest"), of("highest")) {
        (Some(median), Some(lowest), Some(highest)) if lowest < highest => {
            format!("{median:.digits$} [{lowest:.digits$}-{highest:.digits$}]")
        }
        (Some(median), ..) => format!("{median:.digits$}"),
        _ => "-".into(),
    }
}

/// Returns whether an entry counted correctly in every run of a row, or the first thing that was wrong or made it void.
fn counted(entry: &Entry, one: &Value) -> String {
    let why = cell(one["why"].as_str().unwrap_or_default());
    match one["verdict"].as_str() {
        _ if !entry.counts() => "does not count".into(),
        Some("exact") | None if why.is_empty() => "exact".into(),
        Some("exact") | None => format!("void: {why}"),
        Some(verdict) => format!("{verdict}: {why}"),
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
- floor reads no request and counts nothing: it is the limit that the kernel sets, not an entry.
";
