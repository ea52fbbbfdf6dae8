//! Merges the reports of all parts into one report with one verdict.

use super::document::{Before, Parameters, PartReport};
use crate::failure::Failure;
use crate::load::account::{Account, Novelty};
use crate::load::clock::ms_between;
use crate::load::control::{Control, Server, parse_totals};
use crate::load::origin::{Origin, Time};
use crate::load::part::Part;
use crate::load::report::{Outcome, Report, Setup};
use crate::load::run_record::ClientRun;
use crate::load::thresholds::Threshold;
use crate::load::verdict::{Evidence, Stayed};
use crate::load::workload::{Totals, Workload};
use crate::load::{QUIET, quiet};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The greatest allowed difference between clocks. If clocks differ by more, the parts did not start together.
const CLOCK_DIFFERENCE_MS_MAX: f64 = 500.0;
/// The greatest difference between start times that does not cause a warning.
const START_DIFFERENCE_MS_MAX: f64 = 100.0;

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct MergeConfig {
    /// The reports of the parts.
    pub reports: Vec<PathBuf>,
    /// Parts whose clients ended without a report.
    pub lost: Vec<u64>,
    /// A file with the totals that the server had after the run; `None` to ask the server.
    pub server_totals: Option<PathBuf>,
    /// The server to ask; `None` for part 1's.
    pub server: Option<Server>,
    /// The time that the server may take to respond.
    pub timeout: Duration,
    /// The conditions that make the run fail.
    pub thresholds: Vec<Threshold>,
}

/// Merges the reports of all parts of a run.
///
/// # Errors
///
/// Fails if a file is not the report of a part, if the parts do not belong together, or if a part is missing or given twice.
pub fn merge(config: &MergeConfig) -> Result<Report, Failure> {
    let read = |path: &PathBuf| Ok((path.display().to_string(), PartReport::read(path)?));
    let reports = config.reports.iter().map(read).collect::<Result<Vec<_>, Failure>>()?;
    let run = Parts::check(reports, &config.lost).map_err(Failure::Usage)?;
    if config.server.is_none() && config.server_totals.is_none() {
        run.check_url().map_err(Failure::Usage)?;
    }
    let thresholds = config.thresholds.clone();
    let record = run.run().map_err(Failure::Usage)?;
    Ok(match &config.server_totals {
        Some(path) => {
            let read_once = "the totals were read once: whether they changed later is not known";
            run.report(record, Ok(read_totals(path)?), |_| None, thresholds).remark(read_once)
        }
        None => {
            let (server, asked_at) = (run.server(config)?, Instant::now());
            let mut control = Control::new(&server, config.timeout, true);
            if let Some(address) = run.address().filter(|_| config.server.is_none()) {
                control = control.at(address);
            }
            let mut totals = || control.totals().map_err(|error| error.sentence(&server));
            let (after, quiet) = (totals(), quiet::time(QUIET, &record.total));
            let stay = |evidence: &mut Evidence| quiet::stay(quiet, asked_at, totals, evidence);
            run.report(record, after, stay, thresholds)
        }
    })
}

fn read_totals(path: &Path) -> Result<Totals, Failure> {
    let unusable = |why: String| {
        Failure::Usage(format!(
            "cannot read the server's totals from {}: {why}: save what GET /stats responds",
            path.display()
        ))
    };
    let text = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
    parse_totals(&text).map_err(unusable)
}

/// The parts of one run, in their order; some may be lost.
pub(super) struct Parts {
    parameters: Parameters,
    lost: Vec<Part>,
    before: Before,
    /// The reports, at least one. The first is part 1's.
    reports: Vec<PartReport>,
}

impl Parts {
    /// Checks that the reports belong to all parts of one run, except for the lost parts. Each report comes with the
    /// name of its file.
    pub(super) fn check(reports: Vec<(String, PartReport)>, lost: &[u64]) -> Result<Parts, String> {
        let Some((first_file, first)) = reports.first() else {
            return Err("there is nothing to merge: pass the reports of the parts".into());
        };
        let (of, parameters) = (first.part.of(), first.parameters.clone());
        let mut by_number: BTreeMap<u64, &(String, PartReport)> = BTreeMap::new();
        for entry in &reports {
            let (file, report) = entry;
            if let Some(why) = difference(first, report) {
                return Err(format!(
                    "{first_file} and {file} are not of one run: {why}: pass the parts of one run"
                ));
            }
            if let Some((other, _)) = by_number.insert(report.part.number(), entry) {
                return Err(format!(
                    "part {} is there twice, in {other} and in {file}: leave one out",
                    report.part
                ));
            }
        }
        let mut lost_parts = Vec::new();
        for number in 1..=of {
            match (by_number.contains_key(&number), lost.contains(&number)) {
                (true, false) => {}
                (false, true) => lost_parts.push(Part::new(number, of)),
                (true, true) => {
                    return Err(format!(
                        "part {number}/{of} is there, and --lost says that it is not"
                    ));
                }
                (false, false) => {
                    return Err(format!(
                        "part {number}/{of} is missing: pass its report, or --lost {number} if its \
                         client ended without one"
                    ));
                }
            }
        }
        if let Some(number) = lost.iter().find(|number| !(1..=of).contains(*number)) {
            return Err(format!("--lost {number}: the run had parts 1 to {of}"));
        }
        let before = by_number.get(&1).and_then(|(_, first)| first.before).ok_or_else(|| {
            "part 1 is lost, and with it the totals that the run started from: without them nothing \
             can be checked"
                .to_owned()
        })?;
        let in_order: Vec<&(String, PartReport)> = by_number.into_values().collect();
        check_times(&in_order, before)?;
        let reports = in_order.into_iter().map(|(_, report)| report.clone()).collect();
        Ok(Parts { parameters, lost: lost_parts, before, reports })
    }

    /// Checks that all parts went to one URL and address. Otherwise, the server that has the totals of all parts is not known.
    pub(super) fn check_url(&self) -> Result<(), String> {
        let [first, others @ ..] = self.reports.as_slice() else { return Ok(()) };
        let place = |report: &PartReport| {
            let url = report.setup.url.clone();
            report
                .setup
                .address
                .as_ref()
                .map_or(url.clone(), |address| format!("{url} at {address}"))
        };
        match others.iter().find(|other| place(other) != place(first)) {
            None => Ok(()),
            Some(other) => Err(format!(
                "part {} went to {} and part {} to {}, which need not have the same totals: if they do, pass --url \
                 with the one to ask",
                first.part,
                place(first),
                other.part,
                place(other)
            )),
        }
    }

    /// Returns the server to ask for the totals.
    fn server(&self, config: &MergeConfig) -> Result<Server, Failure> {
        match &config.server {
            Some(server) => Ok(server.clone()),
            None => Server::parse(&self.reports[0].setup.url),
        }
    }

    /// Returns the address that part 1 used, if the server's name has several.
    fn address(&self) -> Option<SocketAddr> {
        self.reports[0].setup.address.as_ref()?.parse().ok()
    }

    /// Returns the time from the earliest start of a part to the start of this part.
    fn started_after(&self, report: &PartReport) -> Duration {
        let earliest = self.reports.iter().map(|report| report.started.0).min();
        let earliest = earliest.unwrap_or(report.started.0);
        report.started.0.duration_since(earliest).unwrap_or(Duration::ZERO)
    }

    /// Returns one record of all clients, on one clock.
    pub(super) fn run(&self) -> Result<ClientRun, String> {
        let records = self.reports.iter().map(|report| {
            let record = report.run.clone().delayed(self.started_after(report));
            record.named(&format!("part {}", report.part))
        });
        let lost = self.lost.iter().map(|part| ClientRun::lost(*part));
        let workload = self.parameters.workload();
        let warm_up = Workload { events: self.parameters.warm_up, ..workload };
        ClientRun::merged(records.chain(lost).collect(), &workload, &warm_up)
    }

    /// Returns the report on all parts with the record `run` and the server's totals after it; `stay` checks that
    /// correct totals stay correct.
    pub(super) fn report(
        &self,
        mut run: ClientRun,
        after: Result<Totals, String>,
        stay: impl FnOnce(&mut Evidence) -> Option<Stayed>,
        thresholds: Vec<Threshold>,
    ) -> Report {
        let first = self.reports.iter().map(|report| report.first_totals);
        let first = first.min_by_key(|totals| totals.total_requests).unwrap_or(Totals::ZERO);
        let account = Account {
            workload: self.parameters.workload(),
            warm_up: self.parameters.warm_up,
            first,
            before: self.before.totals,
            was_reset: self.before.was_reset,
            novelty: match self.parameters.user_prefix.is_published() {
                true => Novelty::Unknown,
                false => Novelty::Claimed,
            },
            ledger: &run.work.ledger,
            warm_up_ledger: &run.warm_up,
            is_unbounded: self.parameters.is_open_ended() && !self.lost.is_empty(),
            after,
        };
        let mut evidence = account.evidence();
        let stayed = stay(&mut evidence);
        let first_client = &self.reports[0];
        let started = self.reports.iter().map(|report| report.started.0).min();
        let started = started.unwrap_or(first_client.started.0);
        let (started, ended) = (Time(started), Time(started + run.elapsed));
        // The CPUs of several machines cannot be added up.
        run.cpus.clear();
        run.warnings.extend(self.warnings());
        let held = self.parameters.pace();
        let held = held.and_then(|pace| pace.held(run.work.events(), run.work.last_sent));
        Report::new(Outcome {
            run,
            workload: self.parameters.workload(),
            warm_up: self.parameters.warm_up,
            held,
            evidence,
            settled_after: None,
            stayed,
            remarks: Vec::new(),
            setup: self.setup(),
            thresholds,
            abort_if: Vec::new(),
            aborted_by: None,
            clients: self.reports.iter().map(|report| report.row(first_client)).collect(),
            origin: Origin { started, ended, ..first_client.origin.clone() },
            environment: first_client.environment.clone(),
            flow: None,
        })
    }

    /// Returns warnings about the parts together.
    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for part in &self.lost {
            warnings.push(format!(
                "part {part} is lost: whether its events were sent, and counted, is unknown"
            ));
        }
        let latest = self.reports.iter().max_by_key(|report| self.started_after(report));
        if let Some(report) = latest {
            let after_ms = self.started_after(report).as_secs_f64() * 1e3;
            if after_ms > START_DIFFERENCE_MS_MAX {
                warnings.push(format!(
                    "part {} started {:.1} s after the first: pass the same --start-at to all parts",
                    report.part,
                    after_ms / 1e3
                ));
            }
        }
        if self.reports.iter().any(|report| report.clock_ahead_of_server.is_none()) {
            let why = "the clocks of the clients could not be compared, because the server's responses \
                       have no Date";
            warnings.push(why.into());
        }
        warnings
    }

    /// Returns the combined setup of all clients.
    fn setup(&self) -> Setup {
        let all =
            |of: fn(&Setup) -> usize| self.reports.iter().map(|report| of(&report.setup)).sum();
        let closes = |report: &PartReport| report.setup.one_request_per_connection;
        let cpus =
            self.reports.iter().map(|report| format!("{}: {}", report.part, report.setup.cpus));
        Setup {
            connections: all(|setup| setup.connections),
            threads: all(|setup| setup.threads),
            cpus: cpus.collect::<Vec<_>>().join("; "),
            one_request_per_connection: self.reports.iter().any(closes),
            pinned: self.reports.iter().all(|report| report.setup.pinned),
            was_reset: self.before.was_reset,
            command: Vec::new(),
            ..self.reports[0].setup.clone()
        }
    }
}

/// Returns the reason why two reports do not belong to one run; `None` if they may.
fn difference(first: &PartReport, other: &PartReport) -> Option<String> {
    let run_id = |report: &PartReport| report.run_id.clone().unwrap_or_else(|| "none".into());
    if first.part.of() != other.part.of() {
        return Some(format!("they are of {} and of {} parts", first.part.of(), other.part.of()));
    }
    let [ours, theirs] = [first, other].map(|report| serde_json::to_value(&report.parameters).ok());
    let pairs = ours.as_ref()?.as_object()?.iter().zip(theirs.as_ref()?.as_object()?.values());
    let named =
        pairs.map(|((name, ours), theirs)| (name.as_str(), ours.to_string(), theirs.to_string()));
    let run_id = ("run id", run_id(first), run_id(other));
    let differ = std::iter::once(run_id).chain(named).find(|(_, ours, theirs)| ours != theirs);
    differ.map(|(name, ours, theirs)| format!("their {name} is {ours} and {theirs}"))
}

/// Checks that the clients' clocks agree, that nothing was sent before the server was reset, and that all parts ran at
/// the same time.
fn check_times(reports: &[&(String, PartReport)], before: Before) -> Result<(), String> {
    let Some((_, first)) = reports.first() else { return Ok(()) };
    for (_, report) in reports {
        let clocks = report.clock_ahead_of_server.zip(first.clock_ahead_of_server);
        let ahead_ms = clocks.map_or(0.0, |(own, first)| own.ahead_of_ms(first));
        if ahead_ms.abs() > CLOCK_DIFFERENCE_MS_MAX {
            return Err(format!(
                "the clock of part {}, on {}, is at least {:.1} s {} that of part {}: the parts did \
                 not start together; synchronize the clocks",
                report.part,
                report.environment.host,
                ahead_ms.abs() / 1e3,
                if ahead_ms > 0.0 { "ahead of" } else { "behind" },
                first.part
            ));
        }
        if report.started < before.at {
            return Err(format!(
                "part {} started {:.1} s before part 1 had prepared the server, so that its first \
                 events may be missing: pass the same --start-at to all parts, or a longer --start-in",
                report.part,
                ms_between(report.started.0, before.at.0) / 1e3
            ));
        }
    }
    let latest =
        reports.iter().map(|(_, report)| report).max_by(|a, b| a.started.0.cmp(&b.started.0));
    for (_, report) in reports {
        let Some(latest) = latest else { continue };
        let ended = report.started.0 + report.run.elapsed;
        if ended < latest.started.0 {
            return Err(format!(
                "part {} ended {:.1} s before part {} started: they are not of one run, or did not \
                 start together; pass the same --start-at to all parts",
                report.part,
                ms_between(ended, latest.started.0) / 1e3,
                latest.part
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
