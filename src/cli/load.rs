//! `ringtally load`, and the client's flags that `challenge` has too.

use super::serve::read_token;
use super::shape::{PACING, Shape, ShapeArgs, WORKLOAD};
use super::values::{CpuList, count, cpu_list, duration, time};
use crate::challenge::Places;
use crate::failure::Failure;
use crate::load::{
    self, BATCH_MAX, EVENTS_MAX, Export, FindConfig, LatencyLimit, Output, Part, Participation,
    Show, Threshold, UserPrefix, Values, Windows,
};
use crate::topology;
use clap::{Args, ValueEnum};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

pub(super) const LONG_ABOUT: &str = "\
Send the challenge's events to a server and check what it counted

Works with any server written for the challenge: it needs POST /event (or POST
/events, with --batch) and GET /stats, and uses POST /reset if there is one.

A run is judged by the server's totals before it (zero after a reset) and after
it. Each event is sent once. It is acknowledged, refused, or, if its connection
broke, unknown. Requests pipelined behind an HTTP/1.1 response with Connection:
close are sent again. The totals must equal those before plus the acknowledged
events, with or without the unknown ones. They are read when the last request
has ended, and must be right immediately. They must stay right for half a
second, or for twice the time of the slowest response, up to 10 s, in which
nothing is sent. The verdict is one of:
  exact      every acknowledged event was counted once
  wrong      it was not; the report says by how much, or that the totals became
             right only after the last acknowledgement, or did not stay right
  undecided  something could not be checked, such as unknown requests
The exit code is 0 if the verdict is exact, every event was acknowledged, all
connections were opened, no response was malformed, and no threshold failed.

The client needs Linux 6.1 and io_uring. Its threads keep off the cores of a
server on this machine if they can, and the report warns if they share. If a
thread was busy for 90% of the time, or an open loop was late by a millisecond
at the 99th percentile, the client was the limit and not the server. Requests
that were due while the client did not run (a suspension, or other work on its
CPU) are late because of the client.";

pub(super) const EXAMPLES: &str = "\
Examples:
  ringtally load
  ringtally load 100k 64 --url http://127.0.0.1:9000 --values half --pipeline 4
  ringtally load 300k 64 --rate 30k --warmup 20k --html report.html
  ringtally load --watch --values one --json report.json --hdr latency.hgrm
  ringtally load --fail-if 'p99>5ms' --fail-if 'rps<100k'
  ringtally load --duration 30s -c 64 --abort-if 'refused>0'
  ringtally load --stages 10s@1000,30s@5000:20000,5s@0 -c 64
  ringtally load --duration 1m -c 100:5000
  ringtally load -c 10s@100,5s@100:5000,30s@5000,5s@5000:100
  ringtally load 1M 64 --find-rate 'p99<5ms' --html curve.html
  ringtally load --fail-if 'p99>5ms' --export junit=load.xml --export markdown=-
  ringtally load 100M 4 --batch 1000
  ringtally load 30M 3k --part 2/3 --start-at $start --json part-2.json

The two with -c are load profiles published for the challenge: a ramp from 100
to 5,000 connections, and a spike from 100 to 5,000 and back.

Exit codes: 0 the totals are exact, every event was acknowledged, and no
threshold failed, 1 otherwise, 2 bad usage, 3 no server responds, or the client
cannot run here.";

/// The flags of `load`.
#[derive(Args, Debug)]
pub struct LoadArgs {
    /// URL of the server
    ///
    /// It is http://HOST:PORT, without a path.
    #[arg(long, help_heading = TARGET, default_value = "http://127.0.0.1:8000")]
    url: String,
    /// CPUs to run on, such as 0-3,8
    ///
    /// Threads are pinned to them in turn. By default, the client uses all allowed CPUs, except for the cores of a
    /// server on this machine.
    #[arg(long, help_heading = TARGET, value_name = "LIST", value_parser = cpu_list)]
    cpus: Option<CpuList>,
    /// Measure from the server's current totals
    ///
    /// The server is not reset first.
    #[arg(long, help_heading = TARGET)]
    no_reset: bool,
    /// File with the token for POST /reset
    ///
    /// It is sent as "Authorization: Bearer TOKEN", as a server with --admin-token-file expects.
    #[arg(long, help_heading = TARGET, value_name = "FILE", conflicts_with = "no_reset")]
    token_file: Option<PathBuf>,
    /// Send part K of N of a common run
    ///
    /// Clients on other machines send the other parts. All clients get the same flags except for K, and
    /// together send exactly what one client would: each has every Nth event, connection, and part of the rate.
    /// Start them with ssh, a job array, or whatever starts processes. Each writes a part report (--json), and
    /// ringtally merge makes one report and one verdict of all. They start together: --start-at is the same time on
    /// all machines, whose clocks must agree; --start-in is for clients that are launched at the same moment. With
    /// --start-at, all clients must be connected and warm 2 s before that time, and part 1 resets the server in the
    /// last second. With --start-in, they have the first third of the time, and the reset is in the last third.
    #[arg(long, help_heading = DISTRIBUTED, value_name = "K/N", requires = "json",
        conflicts_with_all = ["hdr", "html", "export", "fail_if", "abort_if", "tui"])]
    part: Option<Part>,
    /// Common start of all parts
    ///
    /// A time such as 2026-11-24T12:00:00Z, or seconds since 1970 (date +%s).
    #[arg(long, help_heading = DISTRIBUTED, value_name = "TIME", value_parser = time, requires = "part", conflicts_with = "start_in")]
    start_at: Option<SystemTime>,
    /// Time from launch to start, at least 3s
    #[arg(long, help_heading = DISTRIBUTED, value_name = "TIME", value_parser = duration, requires = "part")]
    start_in: Option<Duration>,
    /// Common name of the parts [default: --start-at]
    ///
    /// A job id, for example. Merge refuses parts with different names, or with different parameters.
    #[arg(long, help_heading = DISTRIBUTED, value_name = "TEXT", requires = "part")]
    run_id: Option<String>,
    /// Find the highest rate that meets this
    ///
    /// The condition is an upper limit of a latency, such as p99<5ms. The rate starts at --rate, or 1000 requests/s,
    /// doubles until the condition does not hold, and is then narrowed down to 2%. Each rate is tried in 3 to 5
    /// windows, each its own open loop after a warm-up. The last two, the highest that holds and the lowest that does
    /// not, get 5 to 12. A rate holds if 99% of it is sent, every request is acknowledged, and the backlog does not
    /// grow: over the windows of a rate, it may grow by less than 1% of it, with a certainty of 95%. A window that
    /// fails while the client was the limit is repeated. The search ends if totals are wrong or responses malformed,
    /// or if some connections never opened and no threshold is on connections_open. The report has the latencies over
    /// the rate, and names the client if it was the limit first. REQUESTS is not used: the rate and length of a
    /// window decide its requests, with at most one connection per request. --fail-if applies to the rate that was
    /// found, with the medians over its windows, and to the figure rate, which is that rate.
    #[arg(long, help_heading = SEARCH, value_name = "CONDITION",
        conflicts_with_all = ["part", "watch", "hdr", "tui", "warmup", "abort_if"])]
    find_rate: Option<LatencyLimit>,
    /// Length of a window [default: by its rate]
    ///
    /// At least twice the latency of the condition, and as long as 100 requests take, or as many as the percentile needs: 1,000
    /// for p99.9. By default, it is at least 1s, four times the limit, and as long as 2,000 requests take, but no
    /// longer than 10s for these. Rates at which it would have too few requests are not tried.
    #[arg(long, help_heading = SEARCH, value_name = "TIME", value_parser = duration, requires = "find_rate")]
    window: Option<Duration>,
    /// The flags that `challenge` has too
    #[command(flatten)]
    tuning: LoadTuning,
}

/// The headings of the flags.
const TARGET: &str = "Target";
const DISTRIBUTED: &str = "Distributed";
const SEARCH: &str = "Search";
const OUTPUT: &str = "Output";
pub(super) const HEADINGS: [&str; 6] = [TARGET, WORKLOAD, PACING, DISTRIBUTED, SEARCH, OUTPUT];

/// The client's flags, except the server's address.
#[derive(Args, Debug)]
pub(super) struct LoadTuning {
    #[command(flatten)]
    shape: ShapeArgs,
    /// Values: integer, half, or one [default: integer]
    ///
    /// integer counts from 0 to 999, half adds 0.5, and with one, all are 1.
    #[arg(long, help_heading = WORKLOAD, value_enum, default_value = "integer", hide_default_value = true, hide_possible_values = true)]
    values: Values,
    /// Number of distinct users
    #[arg(long, help_heading = WORKLOAD, default_value = "75000", value_name = "N", value_parser = count::<u64>(1..=u64::MAX))]
    users: u64,
    /// Prefix of the users' ids [default: user_]
    ///
    /// Users with another prefix must not have been sent to the server since its totals were zero: the verdict
    /// relies on it. The default is user_, as published. If the server already has users and cannot be reset, it
    /// is a unique prefix, so that uniqueUsers can be checked. Pass user_ to send the same users again.
    #[arg(long, help_heading = WORKLOAD, value_name = "TEXT")]
    user_prefix: Option<UserPrefix>,
    /// Events per POST /events [default: no batches]
    ///
    /// Without this flag, each event is a POST /event. A batch has one JSON object per line; the last one may be
    /// shorter. A server that acknowledges another number of events than the batch had is wrong. All events of
    /// a batch share its outcome: acknowledged, refused with its status, or unknown if there was no response.
    /// Requests, --rate, and rps count events; latency is the batch's, from when its first event was due. Up
    /// to the maximum, a batch fits the default of serve --max-batch; the batches of all connections must fit
    /// its --max-batch-memory.
    #[arg(long, help_heading = WORKLOAD, value_name = "N", value_parser = count::<u64>(1..=BATCH_MAX))]
    batch: Option<u64>,
    /// Requests in flight per connection
    #[arg(long, help_heading = WORKLOAD, default_value = "1", value_name = "D", value_parser = count::<usize>(1..=PIPELINE_MAX))]
    pipeline: usize,
    /// Client threads [default: one per CPU]
    #[arg(long, help_heading = TARGET, value_name = "T", value_parser = count::<usize>(1..=THREADS_MAX))]
    threads: Option<usize>,
    /// Unmeasured requests to send first
    ///
    /// They are sent on the same connections. Then the server is reset, or, if it cannot be,
    /// measured from the totals it has.
    #[arg(long, help_heading = WORKLOAD, default_value = "0", value_name = "N", value_parser = count::<u64>(0..=EVENTS_MAX))]
    warmup: u64,
    /// Poll /stats and report impossible responses
    ///
    /// It polls a hundred times per second during the run. A response is impossible if a total went down, if it counts more
    /// than was sent or less than was acknowledged, or if its numbers do not belong together. With
    /// --values one, the sum must be the count, so that every torn response is found. Of clients with
    /// --part, part 1 polls; it only knows that the others send no more than their parts.
    #[arg(long, help_heading = OUTPUT)]
    watch: bool,
    /// Exit with 1 if this holds, such as p99>5ms
    ///
    /// May be given more than once. A threshold is a figure, an operator
    /// (< <= > >= == !=), and a limit. A figure that is known only as a
    /// bound fails the run unless the bound decides. The figures are:
    ///   mean, p50, p90, p95, p99, p99.9, p99.99, max
    ///       latency, with its unit: p99>5ms, max>=300us
    ///   rps, acked_per_s
    ///       acknowledged requests per second, with --batch events: rps<100k
    ///   rate  the rate that --find-rate found: rate<50k
    ///   held  share of --rate that was reached: held<0.99
    ///   refused, unknown, unsent, reconnects, timeouts
    ///       number of requests: refused>0
    ///   connections_open
    ///       connections that were open; all must be, unless a threshold
    ///       has this figure
    ///   connect_failures, rejected
    ///       connections that failed to open, and that a full server refused
    ///   malformed
    ///       responses that were malformed or unsolicited
    ///   client_cpu_us, client_poll_us, server_cpu_us
    ///       CPU time per request in µs: of the client without polling,
    ///       of its polling, and of the server (challenge only)
    ///   verdict  exact, wrong, or undecided: verdict!=exact
    ///   client_limited  whether the client was the limit: true or false
    #[arg(long, help_heading = OUTPUT, value_name = "THRESHOLD", verbatim_doc_comment)]
    fail_if: Vec<Threshold>,
    /// Same, and end the run as soon as it is certain
    ///
    /// Takes the thresholds of --fail-if, and ends the run once one can no longer pass, whatever the rest of
    /// the run brings: refused>0 with the first refusal, max>1s with the first such request, p99>5ms once more
    /// than 1% of all requests took longer. The mean, percentiles, and rps are certain early only if the number
    /// of requests is known, which it is not with --duration in a closed loop. verdict, client_limited, held,
    /// unsent, connections_open, and CPU time are known at the end. The totals are checked as always. May be
    /// given more than once.
    #[arg(long, help_heading = OUTPUT, value_name = "THRESHOLD")]
    abort_if: Vec<Threshold>,
    /// Time to wait for a response
    ///
    /// Connections have the same time to open. A request without a response in that time is in the percentiles
    /// with the time that the client waited; a percentile that depends on one is a lower bound, printed with >=.
    #[arg(long, help_heading = TARGET, default_value = "10s", value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
    timeout: Duration,
    #[command(flatten)]
    report: ReportFiles,
    /// Show the run on the whole terminal
    #[arg(long, help_heading = OUTPUT, conflicts_with = "quiet")]
    tui: bool,
    /// Show neither progress nor a summary
    #[arg(long, help_heading = OUTPUT)]
    quiet: bool,
}

/// The destinations of a report, except the terminal.
#[derive(Args, Clone, Debug)]
pub(super) struct ReportFiles {
    /// JSON report; - is standard output
    #[arg(long, help_heading = OUTPUT, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Percentiles for HdrHistogram's plotter
    #[arg(long, help_heading = OUTPUT, value_name = "FILE")]
    hdr: Option<PathBuf>,
    /// Report as one offline HTML page
    #[arg(long, help_heading = OUTPUT, value_name = "FILE")]
    html: Option<PathBuf>,
    /// File for a tool, such as junit=report.xml
    ///
    /// May be given more than once. The formats are bmf (Bencher Metric Format), github-action-benchmark (its
    /// customSmallerIsBetter) and github-action-benchmark-bigger (customBiggerIsBetter), junit (a test
    /// case for the verdict and for each threshold), markdown (for a job's summary), and csv (a row
    /// per second; of --find-rate, per rate).
    #[arg(long, help_heading = OUTPUT, value_name = "FORMAT=FILE")]
    export: Vec<Export>,
}

impl ReportFiles {
    /// Opens every requested destination.
    pub(super) fn output(&self, quiet: bool) -> Result<Output, Failure> {
        let ReportFiles { json, hdr, html, export } = self.clone();
        Output::open(json, hdr, html, export, quiet)
    }
}

/// The most requests in flight per connection.
const PIPELINE_MAX: u64 = 1024;
/// The most bytes of batches in flight: four times the default limit of a ringtally server.
const BATCHES_BYTES_MAX: u64 = 1 << 30;
/// The most client threads.
const THREADS_MAX: u64 = 1024;

/// The shortest time before a common start, and the part of that time for each preparation.
const START_IN_MIN: Duration = Duration::from_secs(3);
const GUARD: Duration = Duration::from_secs(1);
const _: () = assert!(START_IN_MIN.as_nanos() == 3 * GUARD.as_nanos());

/// The task of `load`.
#[derive(Debug)]
pub enum LoadCommand {
    /// The whole run.
    Whole(load::Config, Output),
    /// One part of a run that other clients share.
    Part(load::Config, Participation, Output),
    /// A search for the highest rate.
    FindRate(FindConfig, Output),
}

impl LoadArgs {
    /// Checks the flags against the machine and the clock.
    pub fn into_command(self) -> Result<LoadCommand, Failure> {
        let shape = self.tuning.shape.check()?;
        let participation = self.participation(&shape, SystemTime::now())?;
        let (limit, window) = (self.find_rate.clone(), self.window);
        let first_rate = match limit {
            None => None,
            Some(_) => self.tuning.shape.first_rate()?,
        };
        let quiet = self.tuning.quiet;
        self.tuning.check_thresholds(&shape, limit.is_some(), false)?;
        let (config, output) = self.into_config(shape)?;
        if let Some(limit) = limit {
            let windows = Windows::new(&limit, window, first_rate, config.workload.batch)?;
            let config = FindConfig { load: config, limit, windows, quiet };
            return Ok(LoadCommand::FindRate(config, output));
        }
        Ok(match participation {
            None => LoadCommand::Whole(config, output),
            Some(participation) => {
                let config = load::Config { part: participation.part, ..config };
                LoadCommand::Part(config, participation, output)
            }
        })
    }

    /// Returns this client's part in a run with others, if it has one.
    fn participation(
        &self,
        shape: &Shape,
        now: SystemTime,
    ) -> Result<Option<Participation>, Failure> {
        let Some(part) = self.part else { return Ok(None) };
        let requests = self.tuning.workload(shape).requests();
        let usable = requests.min(shape.connections_least as u64);
        if usable < part.of() {
            let what = if self.tuning.batch.is_some() { "batches" } else { "events" };
            return Err(Failure::Usage(format!(
                "--part {part}: {usable} of the connections would be used, and each part needs one: use \
                 fewer parts, or more connections and {what}"
            )));
        }
        let (start, guard) = match (self.start_at, self.start_in) {
            (Some(start), _) => (start, GUARD),
            (None, Some(start_in)) => (now + start_in, start_in / 3),
            (None, None) => {
                return Err(Failure::Usage(format!(
                    "--part {part}: say when all parts start, with --start-at or --start-in"
                )));
            }
        };
        let left = start.duration_since(now).unwrap_or(Duration::ZERO);
        if left < START_IN_MIN {
            return Err(Failure::Usage(format!(
                "--part {part}: the start is {:.1} s from now, and clients need at least {} s to \
                 connect and reset the server: choose a later one",
                left.as_secs_f64(),
                START_IN_MIN.as_secs()
            )));
        }
        let named_by_time =
            || self.start_at.map(|at| humantime::format_rfc3339_millis(at).to_string());
        let run_id = self.run_id.clone().or_else(named_by_time);
        Ok(Some(Participation { part, start, guard, run_id }))
    }

    /// Returns the command that repeats this run, without the destinations of its reports.
    fn command(&self) -> Vec<String> {
        let mut command = vec!["ringtally".to_owned(), "load".to_owned()];
        command.extend(self.tuning.to_flags());
        let mut add = |flag: &str, value: Option<String>| {
            command.extend(value.into_iter().flat_map(|value| [flag.to_owned(), value]));
        };
        let time = |time: Duration| humantime::format_duration(time).to_string();
        add("--url", Some(self.url.clone()));
        add("--cpus", self.cpus.as_ref().map(|list| topology::format_cpu_list(&list.0)));
        add("--token-file", self.token_file.as_ref().map(|file| file.display().to_string()));
        add("--part", self.part.map(|part| part.to_string()));
        add("--start-at", self.start_at.map(|at| humantime::format_rfc3339_nanos(at).to_string()));
        add("--start-in", self.start_in.map(time));
        add("--run-id", self.run_id.clone());
        add("--find-rate", self.find_rate.as_ref().map(ToString::to_string));
        add("--window", self.window.map(time));
        command.extend(self.no_reset.then(|| "--no-reset".to_owned()));
        command
    }

    fn into_config(self, shape: Shape) -> Result<(load::Config, Output), Failure> {
        let server = load::Server::parse(&self.url)?;
        let command = self.command();
        let output = self.tuning.output()?;
        self.tuning.check_batches(&shape)?;
        let allowed = topology::allowed_cpus();
        let choose = |list: CpuList| topology::choose(Some(&list.0), &allowed);
        let cpus = self.cpus.map(choose).transpose()?;
        let read = |file: &Path| read_token("--token-file", file);
        let reset_token = self.token_file.as_deref().map(read).transpose()?;
        let config = self.tuning.into_config(shape, server, cpus, None);
        Ok((load::Config { reset: !self.no_reset, reset_token, command, ..config }, output))
    }
}

impl LoadTuning {
    /// Opens every destination of the report.
    pub(super) fn output(&self) -> Result<Output, Failure> {
        if self.tui && !(std::io::stderr().is_terminal() && load::has_escapes()) {
            let message = "--tui needs a terminal on standard error, and not TERM=dumb";
            return Err(Failure::Usage(message.into()));
        }
        self.report.output(self.quiet)
    }

    /// Opens every destination of a comparison of servers.
    pub(super) fn places(&self) -> Result<Places, Failure> {
        let ReportFiles { json, hdr, html, export } = self.report.clone();
        if hdr.is_some() || self.tui {
            return Err(Failure::Usage(
                "--hdr and --tui are for one run, and several servers or rows are several: leave them out".into(),
            ));
        }
        Places::open(json, html, export, self.quiet)
    }

    /// Refuses conditions on figures that only a search or only a challenge has, and on those of a rate without one.
    pub(super) fn check_thresholds(
        &self,
        shape: &Shape,
        is_search: bool,
        is_challenge: bool,
    ) -> Result<(), Failure> {
        let figures = [
            ("rate", is_search),
            ("held", is_search || shape.rate.is_some()),
            ("server_cpu_us", is_challenge),
        ];
        let lacks: Vec<&str> =
            figures.into_iter().filter(|(_, has)| !has).map(|(name, _)| name).collect();
        let of = |flag, thresholds| std::iter::zip(std::iter::repeat(flag), thresholds);
        let all = of("--fail-if", &self.fail_if).chain(of("--abort-if", &self.abort_if));
        for (flag, threshold) in all {
            if let Some(why) = threshold.absence(&lacks) {
                return Err(Failure::Usage(format!("{flag} {threshold} can never pass: {why}")));
            }
        }
        Ok(())
    }

    /// Sets the run's duration and connections unless the flags set them.
    pub(super) fn default_shape(&mut self, duration: Duration, connections: u64) {
        self.shape.default_to(duration, connections);
    }

    /// Refuses flags that rows decide, and flags that a comparison does not support.
    pub(super) fn check_comparable(&self, shape: &Shape) -> Result<(), Failure> {
        let refused = [
            ("--rate and --stages", shape.rate.is_some(), "--rows rate:N"),
            ("connections that change", shape.connections_over_time.is_some(), "a number"),
            ("--pipeline", self.pipeline > 1, "--rows pipeline:N"),
            ("--batch", self.batch.is_some(), "--rows batch:N"),
            ("--watch", self.watch, "--rows stats"),
            (
                "--warmup",
                self.warmup > 0,
                "nothing, because each server is warmed up until it gets no faster",
            ),
            (
                "--fail-if and --abort-if",
                !(self.fail_if.is_empty() && self.abort_if.is_empty()),
                "what --json reports",
            ),
        ];
        match refused.into_iter().find(|(_, is_given, _)| *is_given) {
            None => Ok(()),
            Some((flag, _, instead)) => Err(Failure::Usage(format!(
                "{flag} cannot be used to compare servers: use {instead}"
            ))),
        }
    }

    /// Returns the arguments that repeat this run.
    pub(super) fn to_flags(&self) -> Vec<String> {
        let mut flags = self.shape.to_flags();
        let mut add = |flag: &str, value: Option<String>| {
            flags.extend(value.into_iter().flat_map(|value| [flag.to_owned(), value]));
        };
        let values = self.values.to_possible_value();
        add("--values", values.map(|values| values.get_name().to_owned()));
        add("--users", Some(self.users.to_string()));
        add("--user-prefix", self.user_prefix.as_ref().map(ToString::to_string));
        add("--batch", self.batch.map(|batch| batch.to_string()));
        add("--pipeline", Some(self.pipeline.to_string()));
        add("--threads", self.threads.map(|threads| threads.to_string()));
        add("--warmup", (self.warmup > 0).then(|| self.warmup.to_string()));
        add("--timeout", Some(humantime::format_duration(self.timeout).to_string()));
        self.fail_if.iter().for_each(|threshold| add("--fail-if", Some(threshold.to_string())));
        self.abort_if.iter().for_each(|threshold| add("--abort-if", Some(threshold.to_string())));
        flags.extend(self.watch.then(|| "--watch".to_owned()));
        flags
    }

    /// Returns the shape of the run.
    pub(super) fn shape(&self) -> Result<Shape, Failure> {
        self.shape.check()
    }

    fn workload(&self, shape: &Shape) -> load::Workload {
        load::Workload {
            events: shape.events,
            users: self.users,
            values: self.values,
            batch: self.batch,
        }
    }

    /// Returns the most bytes of a batch; 0 without batches.
    pub(super) fn batch_bytes_max(&self, shape: &Shape) -> u64 {
        self.bytes_max(self.workload(shape))
    }

    fn bytes_max(&self, workload: load::Workload) -> u64 {
        let prefix = self.user_prefix.clone().unwrap_or_default();
        workload.batch.map_or(0, |_| workload.request_bytes_max(&prefix))
    }

    /// Checks that the batches in flight fit this client's memory.
    pub(super) fn check_batches(&self, shape: &Shape) -> Result<(), Failure> {
        self.check_batches_of(self.batch, shape)
    }

    /// Checks that batches of this number of events, if there are any, fit this client's memory.
    pub(super) fn check_batches_of(
        &self,
        batch: Option<u64>,
        shape: &Shape,
    ) -> Result<(), Failure> {
        let in_flight = (shape.connections * self.pipeline) as u64;
        let workload = load::Workload { batch, ..self.workload(shape) };
        let bytes = self.bytes_max(workload) * in_flight.min(workload.requests());
        if bytes > BATCHES_BYTES_MAX {
            return Err(Failure::Usage(format!(
                "batches of {} MiB would be in flight at once, and at most {} MiB may be: use fewer \
                 connections, or a smaller --batch or --pipeline",
                bytes >> 20,
                BATCHES_BYTES_MAX >> 20
            )));
        }
        Ok(())
    }

    /// Returns the configuration of a run that may reset the server.
    pub(super) fn into_config(
        self,
        shape: Shape,
        server: load::Server,
        cpus: Option<Vec<usize>>,
        server_cpus: Option<Vec<usize>>,
    ) -> load::Config {
        load::Config {
            server,
            workload: self.workload(&shape),
            users: match self.user_prefix {
                None => load::Users::Published,
                Some(prefix) if prefix.is_published() => load::Users::Known(prefix),
                Some(prefix) => load::Users::New(prefix),
            },
            connections: shape.connections,
            connections_over_time: shape.connections_over_time,
            warm_up: self.warmup,
            threads: self.threads,
            cpus,
            server_cpus,
            one_request_per_connection: false,
            pipeline: self.pipeline,
            rate: shape.rate,
            duration: shape.duration,
            timeout: self.timeout,
            quiet: load::QUIET,
            reset: true,
            reset_token: None,
            part: Part::WHOLE,
            watch: self.watch,
            thresholds: self.fail_if,
            abort_if: self.abort_if,
            sample_every: None,
            command: Vec::new(),
            server_command: Vec::new(),
            server_settings: None,
            progress: match (self.quiet, self.tui) {
                (true, _) => Show::Nothing,
                (false, false) => Show::Line,
                (false, true) => Show::Screen,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    #[derive(Debug, Parser)]
    struct Load {
        #[command(flatten)]
        args: LoadArgs,
    }

    /// Flags that affect only the report of a run, and not the run itself.
    const NOT_OF_THE_RUN: [&str; 6] = ["--json", "--hdr", "--html", "--export", "--tui", "--quiet"];

    #[test]
    fn the_command_of_a_run_has_every_flag_as_it_was_typed() {
        let typed = [
            "--requests 1k --connections 7 --url http://h:1 --cpus 0-1 --no-reset --values half --users 5 --user-prefix other_ --batch 3 --pipeline 2 --threads 1 \
             --rate 10k --warmup 9 --watch --timeout 1500ms --part 2/3 \
             --start-at 2030-01-01T00:00:00Z --run-id name --json part.json",
            "1k 7 --token-file token --find-rate p99<5ms --window 2s --rate 500 --fail-if p99>5ms --fail-if rps<1k",
            "1k 7 --part 1/2 --start-in 5s --json part.json --quiet",
            "--connections 7:1000 --stages 1m@1000,90s@0.5:20k,5s@0",
            "--connections 10s@7,1s@7:1000 --rate 0.5:20",
            "-c 1000 --duration 7s --abort-if refused>0",
        ];
        let mut tested = Vec::new();
        for text in typed {
            let words = || std::iter::once("load").chain(text.split_whitespace());
            let first = Load::try_parse_from(words()).unwrap();
            let command = first.args.command();
            assert_eq!(command[..2], ["ringtally", "load"]);
            // A part needs a place for its report.
            let place = ["--json", "-"].map(str::to_owned);
            let again = Load::try_parse_from(command[1..].iter().chain(&place)).unwrap();
            assert_eq!(again.args.command(), command);
            for word in words().filter(|word| word.starts_with("--")) {
                let is_told = command.iter().any(|own| own == word);
                assert_eq!(is_told, !NOT_OF_THE_RUN.contains(&word), "{word} in {command:?}");
                tested.push(word.to_owned());
            }
            for value in ["1000", "7"] {
                assert!(command.iter().any(|own| own.contains(value)), "{command:?}");
            }
        }
        for argument in Load::command().get_arguments() {
            let Some(name) = argument.get_long() else { continue };
            let flag = format!("--{name}");
            let is_known = NOT_OF_THE_RUN.contains(&flag.as_str()) || tested.contains(&flag);
            assert!(is_known || name == "help", "{flag} is not tested here");
        }
    }
}
