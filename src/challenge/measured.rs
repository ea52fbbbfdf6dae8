//! The figures of one run of one row on one server, and the reasons why they may be void.

use super::rows::Row;
use super::usage::CpuTime;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use std::time::Duration;

/// The share of a rate that must be reached.
const HELD_MIN: f64 = 0.98;
/// If a server's processes use this share of its CPUs, or of one CPU, the server is the limit.
const BUSY_MIN: f64 = 0.9;
/// If they use less than this of one CPU, and the client was not the limit either, nothing was saturated.
const SATURATED_MIN: f64 = 0.5;
/// The shortest CPU time of a server that is worth reporting.
const CPU_MIN: Duration = Duration::from_millis(20);

/// The result of a run.
#[derive(Debug)]
pub(super) enum Seen {
    /// The report of a load, and what it cost the server.
    Load(Box<SeenLoad>),
    /// The median, the 99th percentile, and the mean of first responses, or the reason why they are missing.
    Pause(Result<[f64; 3], String>),
    /// No report, for this reason.
    Nothing(String),
}

/// A load that ended with a report.
#[derive(Debug)]
pub(super) struct SeenLoad {
    report: Value,
    cpu: Option<CpuTime>,
}

impl Seen {
    pub(super) fn load(report: Value, cpu: Option<CpuTime>) -> Seen {
        Seen::Load(Box::new(SeenLoad { report, cpu }))
    }
}

impl SeenLoad {
    pub(super) fn number(&self, place: &str) -> Option<f64> {
        self.report.pointer(place)?.as_f64()
    }

    fn is(&self, place: &str) -> bool {
        self.report.pointer(place) == Some(&true.into())
    }

    pub(super) fn is_client_limited(&self) -> bool {
        self.is("/client_limited")
    }

    fn texts(&self, place: &str) -> Vec<String> {
        let texts = self.report.pointer(place).and_then(Value::as_array).into_iter().flatten();
        texts.filter_map(|text| text.as_str().map(str::to_owned)).collect()
    }
}

/// The limit of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "ServerLimit")]
pub(super) enum Limit {
    /// The client: requests per second are a lower bound, and latencies an upper one.
    Client,
    /// The server's CPUs.
    Server,
    /// A single thread of the server.
    Thread,
    /// The requested rate.
    Rate,
    /// Waiting, by the server or because there are few connections.
    Waiting,
}

impl Limit {
    /// Returns its word in tables.
    pub(super) fn word(self) -> &'static str {
        match self {
            Limit::Client => "client",
            Limit::Server => "server",
            Limit::Thread => "thread",
            Limit::Rate => "rate",
            Limit::Waiting => "waiting",
        }
    }
}

/// One run of one row on one server.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "ServerRun")]
pub(super) struct Run {
    /// The number of the server, counted from 0.
    pub(super) server: usize,
    /// The number of the row, counted from 0.
    pub(super) row: usize,
    /// The number of the round, counted from 0.
    pub(super) round: u32,
    /// Acknowledged requests per second; with batches, acknowledged events per second.
    pub(super) requests_per_s: Option<f64>,
    /// The mean latency in microseconds.
    pub(super) mean_us: Option<f64>,
    /// The median latency in microseconds.
    pub(super) p50_us: Option<f64>,
    /// The 99th percentile of the latency in microseconds.
    pub(super) p99_us: Option<f64>,
    /// The 99.9th percentile of the latency in microseconds.
    pub(super) p99_9_us: Option<f64>,
    /// CPU time per request of the server and its children in microseconds; null if the run was too short.
    pub(super) cpu_us: Option<f64>,
    /// CPU time per request in user mode, in microseconds.
    pub(super) user_us: Option<f64>,
    /// Requests that were acknowledged.
    pub(super) acknowledged: Option<f64>,
    /// The share of the rate that was reached, in an open loop.
    pub(super) held: Option<f64>,
    /// Whether the server counted what it acknowledged: `exact`, `wrong`, or `undecided`; null if that was not checked.
    pub(super) verdict: Option<String>,
    /// The reasons for the verdict, one sentence each.
    pub(super) reasons: Vec<String>,
    /// The limit of its figures; null if nothing was measured.
    pub(super) limit: Option<Limit>,
    /// The reason why its figures are void; null if they are not.
    pub(super) void: Option<String>,
    /// The number of responses to `/stats` during the run; null if it was not polled.
    pub(super) stats_responses: Option<u64>,
}

impl Run {
    /// Returns the figures of a server's run, in a row and a round, on this number of CPUs.
    pub(super) fn new(at: (usize, usize, u32), row: Row, seen: &Seen, cpus: usize) -> Run {
        let (server, number, round) = at;
        let empty = Run {
            server,
            row: number,
            round,
            requests_per_s: None,
            mean_us: None,
            p50_us: None,
            p99_us: None,
            p99_9_us: None,
            cpu_us: None,
            user_us: None,
            acknowledged: None,
            held: None,
            verdict: None,
            reasons: Vec::new(),
            limit: None,
            void: None,
            stats_responses: None,
        };
        match seen {
            // Not every server accepts batches. In any other row, a missing report leaves the verdict undecided.
            Seen::Nothing(why) if row.batch().is_some() => Run { void: Some(why.clone()), ..empty },
            Seen::Nothing(why) => Run {
                verdict: Some("undecided".into()),
                reasons: vec![why.clone()],
                void: Some(why.clone()),
                ..empty
            },
            Seen::Pause(Err(why)) => {
                Run { void: Some(format!("it did not respond: {why}")), ..empty }
            }
            Seen::Pause(Ok([p50, p99, mean])) => Run {
                p50_us: Some(*p50),
                p99_us: Some(*p99),
                mean_us: Some(*mean),
                limit: Some(Limit::Waiting),
                ..empty
            },
            Seen::Load(load) => of_load(empty, row, load, cpus),
        }
    }

    pub(super) fn is_exact(&self) -> bool {
        self.verdict.as_deref().is_none_or(|verdict| verdict == "exact")
    }
}

fn of_load(empty: Run, row: Row, load: &SeenLoad, cpus: usize) -> Run {
    let answered =
        load.number("/acknowledged").unwrap_or(0.0) + load.number("/refused").unwrap_or(0.0);
    let cpu = load.cpu.filter(|cpu| cpu.all() >= CPU_MIN && answered > 0.0);
    let per_request = |time: Duration| time.as_secs_f64() * 1e6 / answered;
    let verdict = load.report.get("verdict").and_then(Value::as_str).unwrap_or("undecided");
    let elapsed_s = load.number("/elapsed_s").unwrap_or(0.0);
    let used = load.cpu.filter(|_| elapsed_s > 0.0).map(|cpu| cpu.all().as_secs_f64() / elapsed_s);
    let limit = limit(row, load.is_client_limited(), used, cpus);
    Run {
        requests_per_s: load.number("/requests_per_s"),
        mean_us: load.number("/latency_us/mean"),
        p50_us: load.number("/latency_us/p50"),
        p99_us: load.number("/latency_us/p99"),
        p99_9_us: load.number("/latency_us/p99_9"),
        cpu_us: cpu.map(|cpu| per_request(cpu.all())),
        user_us: cpu.map(|cpu| per_request(cpu.user)),
        acknowledged: load.number("/acknowledged"),
        held: load.number("/open_loop/held"),
        verdict: Some(verdict.into()),
        reasons: load.texts("/reasons"),
        limit: Some(limit),
        void: void(row, load, used),
        stats_responses: load.report.pointer("/watch/answers").and_then(Value::as_u64),
        ..empty
    }
}

/// Returns the limit of a run whose server has used this number of CPUs.
fn limit(row: Row, is_client_limited: bool, used: Option<f64>, cpus: usize) -> Limit {
    match used {
        _ if is_client_limited => Limit::Client,
        _ if row.is_open_loop() => Limit::Rate,
        Some(used) if used >= BUSY_MIN * cpus as f64 => Limit::Server,
        Some(used) if used >= BUSY_MIN => Limit::Thread,
        _ => Limit::Waiting,
    }
}

/// Returns the reason why the figures of a run are void, if they are.
fn void(row: Row, load: &SeenLoad, used: Option<f64>) -> Option<String> {
    let troubles = [
        ("/refused", "refused"),
        ("/unknown", "without a response"),
        ("/unsent", "not sent"),
        ("/malformed", "with a malformed response"),
    ];
    for (place, what) in troubles {
        let count = load.number(place).unwrap_or(0.0);
        if count > 0.0 {
            return Some(format!("{count} requests {what}"));
        }
    }
    let closes = load.is("/setup/one_request_per_connection");
    if row == Row::Close && !closes {
        return Some("it ignores Connection: close".into());
    }
    let connections = load.number("/setup/connections");
    // No connection was opened to replace another, so none is known to have been closed.
    if row == Row::Close && load.number("/acknowledged") <= connections {
        return Some("it has not sent enough responses to show that it closes connections".into());
    }
    if row.is_open_loop() {
        let held = load.number("/open_loop/held").filter(|held| *held < HELD_MIN)?;
        return Some(format!("it held {:.0}% of the rate", held * 100.0));
    }
    let used = used.filter(|used| *used < SATURATED_MIN && !load.is_client_limited())?;
    Some(format!(
        "not saturated: the server used {:.0}% of a CPU, and the client was not the limit",
        used * 100.0
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report() -> Value {
        json!({
            "acknowledged": 1000, "refused": 0, "unknown": 0, "unsent": 0, "malformed": 0, "elapsed_s": 1.0,
            "requests_per_s": 1000.0, "verdict": "exact", "reasons": [], "client_limited": false,
            "latency_us": {"mean": 1.0, "p50": 2.0, "p99": 3.0, "p99_9": 4.0},
            "setup": {"one_request_per_connection": false, "connections": 4},
        })
    }

    fn run(row: Row, used_ms: u64, change: impl Fn(&mut Value)) -> Run {
        let mut report = report();
        change(&mut report);
        let used = Duration::from_millis(used_ms / 2);
        Run::new((0, 0, 0), row, &Seen::load(report, Some(CpuTime { user: used, system: used })), 2)
    }

    #[test]
    fn figures_are_those_of_the_report_and_of_the_server() {
        let run = run(Row::Saturated, 1900, |_| {});
        assert_eq!((run.requests_per_s, run.p99_us), (Some(1000.0), Some(3.0)));
        assert_eq!((run.cpu_us, run.user_us), (Some(1900.0), Some(950.0)));
        assert!(run.is_exact() && run.void.is_none());
    }

    #[test]
    fn what_limited_a_run_is_whoever_was_busy() {
        for (row, used_ms, client, limit) in [
            (Row::Saturated, 1800, false, Limit::Server),
            (Row::Saturated, 1798, false, Limit::Thread),
            (Row::Saturated, 900, false, Limit::Thread),
            (Row::Saturated, 898, false, Limit::Waiting),
            (Row::Saturated, 1800, true, Limit::Client),
            (Row::Rate(9), 1800, false, Limit::Rate),
            (Row::Near(9), 1800, true, Limit::Client),
        ] {
            let run = run(row, used_ms, |report| report["client_limited"] = client.into());
            assert_eq!(run.limit, Some(limit), "{row} {used_ms} {client}");
        }
    }

    #[test]
    fn a_run_that_says_nothing_is_void_and_says_why() {
        type Change = fn(&mut Value);
        let held: Change = |report| report["open_loop"] = json!({"held": 0.979});
        let enough: Change = |report| report["open_loop"] = json!({"held": 0.98});
        let limited: Change = |report| report["client_limited"] = true.into();
        let closes: Change = |report| report["setup"]["one_request_per_connection"] = true.into();
        let kept: Change = |report| {
            report["setup"]["one_request_per_connection"] = true.into();
            (report["acknowledged"], report["client_limited"]) = (4.into(), true.into());
        };
        let one_more: Change = |report| {
            report["setup"]["one_request_per_connection"] = true.into();
            report["acknowledged"] = 5.into();
        };
        let cases: [(Row, u64, Change, Option<&str>); 13] = [
            (Row::Saturated, 500, |_| {}, None),
            (Row::Saturated, 498, |_| {}, Some("not saturated: the server used 50% of a CPU")),
            (Row::Saturated, 498, limited, None),
            (
                Row::Saturated,
                900,
                |report| report["refused"] = 1.into(),
                Some("1 requests refused"),
            ),
            (
                Row::Saturated,
                900,
                |report| report["unknown"] = 2.into(),
                Some("2 requests without"),
            ),
            (Row::Saturated, 900, |report| report["malformed"] = 1.into(), Some("malformed")),
            (Row::Rate(5), 1, held, Some("it held 98% of the rate")),
            (Row::Rate(5), 1, enough, None),
            (Row::Close, 900, |_| {}, Some("ignores Connection: close")),
            (Row::Close, 900, closes, None),
            (Row::Close, 900, kept, Some("enough responses")),
            (Row::Close, 900, one_more, None),
            (Row::Pipeline(2), 10, |_| {}, Some("not saturated")),
        ];
        for (row, used_ms, change, says) in cases {
            let run = run(row, used_ms, change);
            match says {
                None => assert_eq!(run.void, None, "{row}"),
                Some(says) => {
                    assert!(run.void.as_ref().is_some_and(|why| why.contains(says)), "{run:?}");
                }
            }
        }
        let nothing = Run::new((0, 0, 0), Row::Batch(9), &Seen::Nothing("no batches".into()), 1);
        assert_eq!(nothing.void.as_deref(), Some("no batches"));
        assert!(nothing.is_exact());
        let unread = Seen::Nothing("/stats cannot be read".into());
        let unread = Run::new((0, 0, 0), Row::Saturated, &unread, 1);
        assert!(!unread.is_exact() && unread.void.is_some(), "{unread:?}");
    }
}
