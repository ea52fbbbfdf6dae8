//! A comparison of servers as text: the tables for a terminal, and the cells that the page and Markdown share.

use super::Compared;
use super::comparison::{InRow, Ratio, RowFound, Spread};
use crate::load::{grouped, rounded};
use std::fmt::Write as _;

/// Bytes per MiB.
const MIB: f64 = 1048576.0;

/// The heads of a row's table.
pub(super) const HEADS: [&str; 11] = [
    "server",
    "requests/s",
    "p50 µs",
    "p99 µs",
    "CPU µs",
    "MiB",
    "start ms",
    "verdict",
    "limit",
    "ratio to the first",
    "HttpArena score",
];
/// The number of them that are columns in a terminal. The others are lines below the table.
const COLUMNS: usize = 9;

impl Compared {
    /// Returns a table per row for a terminal.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            self.put_table(&mut text, row);
        }
        for line in self.remarks() {
            let _ = writeln!(text, "{line}");
        }
        text
    }

    fn put_table(&self, text: &mut String, row: &RowFound) {
        let _ = writeln!(text, "{}", row.title);
        let cells: Vec<[String; 11]> =
            row.servers.iter().map(|server| self.cells(server)).collect();
        let width = |column: usize| {
            let cells = cells.iter().map(|cells| cells[column].chars().count());
            cells.chain([HEADS[column].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
        let mut line = |cells: &[String]| {
            let mut line = String::from(" ");
            for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
                // Words on the left, and numbers on the right.
                let _ = match column {
                    0 | 7 | 8 => write!(line, " {cell:<width$}"),
                    _ => write!(line, " {cell:>width$}"),
                };
            }
            let _ = writeln!(text, "{}", line.trim_end());
        };
        line(&HEADS.map(str::to_owned));
        cells.iter().for_each(|cells| line(cells));
        for (server, cells) in row.servers.iter().zip(&cells) {
            let name = &cells[0];
            if !cells[9].is_empty() {
                let _ = writeln!(text, "  {name} to {}: {}", self.servers[0].name, cells[9]);
            }
            if !cells[10].is_empty() {
                let _ = writeln!(text, "  {name}: HttpArena score {}", cells[10]);
            }
            if let Some(why) = &server.why {
                let _ = writeln!(text, "  {name}: {why}");
            }
        }
        text.push('\n');
    }

    /// Returns the cells of a server in a row, one for each of [`HEADS`].
    pub(super) fn cells(&self, server: &InRow) -> [String; 11] {
        let own = &self.servers[server.server];
        let number = |spread: Option<Spread>, digits: usize| match spread {
            Some(Spread { median, .. }) if digits == 0 => rounded(median),
            Some(Spread { median, .. }) => format!("{median:.digits$}"),
            None => "-".into(),
        };
        let verdict = match (&server.verdict, server.void_runs) {
            (Some(verdict), _) if !server.is_exact() => verdict.clone(),
            (_, void) if void == server.runs => "void".into(),
            (Some(verdict), 0) => verdict.clone(),
            (Some(verdict), void) => format!("{verdict} ({void} of {} void)", server.runs),
            (None, _) => "-".into(),
        };
        let mib =
            own.peak_rss_bytes.map_or("-".into(), |bytes| format!("{:.1}", bytes as f64 / MIB));
        [
            own.name.clone(),
            number(server.requests_per_s, 0),
            number(server.p50_us, 0),
            number(server.p99_us, 0),
            number(server.cpu_us, 2),
            mib,
            number(own.start_up_ms, 0),
            verdict,
            server.limit.map_or("-", |limit| limit.word()).into(),
            ratios(server),
            server.httparena_score.map_or(String::new(), |score| format!("{score:.3}")),
        ]
    }

    /// Returns the lines that readers need in addition to the tables.
    pub(super) fn remarks(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for server in &self.servers {
            if let Some(why) = &server.failure {
                lines.push(format!("{} failed: {why}", server.name));
            }
            if server.kills > 0 {
                let (name, kills) = (&server.name, server.kills);
                let times = if kills == 1 { "once".into() } else { format!("{kills} times") };
                lines.push(format!(
                    "{name} did not end within 5 s of SIGTERM, and was killed {times}"
                ));
            }
            if server.capacity_is_clients {
                lines.push(format!(
                    "the client was saturated before {}, whose capacity is a lower bound: give the client more CPUs",
                    server.name
                ));
            }
            if let Some(outcome) = server.outcome {
                let (name, first) = (&server.name, &self.servers[0].name);
                lines.push(match outcome.word() {
                    "same" => format!("{name} is the same as {first}"),
                    word => format!("{name} is {word} than {first}"),
                });
            }
        }
        lines.push(format!(
            "{} round{}; server on CPUs {}, client on CPUs {}; loopback MTU {}; CPU time from {}",
            self.rounds,
            if self.rounds == 1 { "" } else { "s" },
            self.server_cpus,
            self.client_cpus,
            self.loopback_mtu.map_or("unknown".into(), grouped),
            self.cpu_source()
        ));
        if self.interrupted {
            lines.push("interrupted: what was measured until then".into());
        }
        lines
    }
}

/// Returns the ratios of a server to the first one, in words.
fn ratios(server: &InRow) -> String {
    let named = [
        ("requests/s", server.requests_ratio, true),
        ("CPU", server.cpu_ratio, true),
        ("p99", server.p99_ratio, false),
    ];
    let words = named.into_iter().filter_map(|(name, ratio, is_judged)| {
        let Ratio { median, low, high, outcome } = ratio?;
        Some(match low.zip(high) {
            None => format!("{name} {median:.2}"),
            Some((low, high)) if is_judged => {
                format!("{name} {median:.2} [{low:.2} to {high:.2}] {}", outcome.word())
            }
            Some((low, high)) => format!("{name} {median:.2} [{low:.2} to {high:.2}]"),
        })
    });
    words.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::tests::compared;

    #[test]
    fn the_tables_have_every_server_with_its_ratio_and_its_verdict() {
        let text = compared().table();
        for line in [
            "saturated, 64 connections\n",
            "  server requests/s p50 µs p99 µs CPU µs MiB start ms verdict limit\n",
            "  a         100,000     50    100  10.00 1.0        5 exact   server\n",
            "  c           9,000    100    200  20.00 1.0        5 wrong   server\n",
            "  b to a: requests/s 0.50 [0.50 to 0.50] worse, CPU 2.00 [2.00 to 2.00] worse, p99 2.00 [2.00 to 2.00]\n",
            "  c: totalRequests is 3 less\n",
            "b is worse than a\n",
            "d failed: it ended\n",
            "5 rounds; server on CPUs 0, client on CPUs 1; loopback MTU 65,536; CPU time from ",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
