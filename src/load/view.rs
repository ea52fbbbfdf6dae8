//! The display during a run: one line, or the whole screen. It is drawn on its own thread, from values that the client
//! threads publish for other purposes.

mod screen;

use super::abort::Abort;
use super::latency::Slice;
use super::numbers::{counted, grouped, rounded, time};
use super::report::Unit;
use super::shared::{Progress, Run};
use super::timeline::{Second, Timeline};
use super::workload::Workload;
use super::{Config, Show};
use rustix::termios::tcgetwinsize;
use screen::Screen;
use std::io::{IsTerminal, Write, stderr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The interval between updates of the progress display.
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// The activity of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It looks for the server and opens connections.
    Connecting,
    /// It sends events that are not measured.
    WarmingUp,
    /// It waits for the common start of all clients.
    Waiting,
    /// It sends the measured events.
    Measuring,
}

/// The phase of a run, and the time when it began. The main thread sets it, and the view reads it.
pub(super) struct Stage(Mutex<(Phase, Instant)>);

impl Stage {
    /// Creates the stage of a run that is about to connect.
    pub(super) fn new() -> Stage {
        Stage(Mutex::new((Phase::Connecting, Instant::now())))
    }

    /// Begins a phase.
    pub(super) fn begin(&self, phase: Phase) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (phase, Instant::now());
    }

    fn get(&self) -> (Phase, Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The progress of a run.
struct Status {
    phase: Phase,
    unit: Unit,
    /// The time since the phase began.
    elapsed: Duration,
    /// The number of events that have ended in this phase, and the total number of its events.
    ended: u64,
    of: u64,
    /// The length of the phase, if it ends by the clock.
    until: Option<Duration>,
    connect_failures: u64,
    latest: Option<Second>,
}

impl Status {
    fn events_per_s(&self) -> f64 {
        self.ended as f64 / self.elapsed.as_secs_f64().max(1e-3)
    }

    /// Returns the share of the phase that is over.
    fn share(&self) -> f64 {
        match self.until {
            Some(until) if self.phase == Phase::Measuring => {
                (self.elapsed.as_secs_f64() / until.as_secs_f64()).min(1.0)
            }
            _ => self.ended as f64 / self.of.max(1) as f64,
        }
    }

    /// Returns the progress without the speed.
    fn progress(&self) -> String {
        let (ended, of) = (grouped(self.ended), self.unit.count(self.of));
        if let (Phase::Measuring, Some(until)) = (self.phase, self.until) {
            let [passed, until] = [self.elapsed.min(until), until].map(|time| time.as_secs_f64());
            return format!("{} in {passed:.0} of {until:.0} s", self.unit.count(self.ended));
        }
        match self.phase {
            Phase::Connecting => format!("connecting ({:.0} s)", self.elapsed.as_secs_f64()),
            Phase::WarmingUp => format!("warming up: {ended} of {of}"),
            Phase::Waiting => "waiting for the common start".into(),
            Phase::Measuring => format!("{ended} of {of}"),
        }
    }

    /// Returns one line of text that fits into a number of columns. The least important parts are left out first.
    fn line(&self, columns: usize) -> String {
        let mut parts = vec![self.progress()];
        if self.phase == Phase::Measuring {
            parts[0] = format!("{:3.0}%  {}", (self.share() * 100.0).floor(), parts[0]);
            parts.push(format!("{} {}", rounded(self.events_per_s()), self.unit.per_second()));
        }
        if self.connect_failures > 0 {
            parts.push(self.failures());
        }
        if let Some(p99) = self.latest.as_ref().and_then(|second| second.p99_us) {
            parts.push(format!("p99 {}", time(p99)));
        }
        while parts.len() > 1 && parts.join(", ").chars().count() > columns {
            parts.pop();
        }
        parts.join(", ").chars().take(columns).collect()
    }

    fn failures(&self) -> String {
        counted(self.connect_failures, "failed attempt to connect", "failed attempts to connect")
    }
}

/// The progress of a run, on standard error.
pub(super) struct View {
    form: Form,
    unit: Unit,
    requests: u64,
    until: Option<Duration>,
    warm_up: u64,
}

enum Form {
    Nothing,
    Line,
    Screen(Box<Screen>),
}

impl View {
    /// Begins to show a run that is about to connect.
    pub(super) fn open(config: &Config) -> View {
        let form = match config.progress {
            Show::Screen if has_escapes() => {
                Screen::open(config).map_or(Form::Line, |s| Form::Screen(Box::new(s)))
            }
            Show::Line if stderr().is_terminal() && has_escapes() => Form::Line,
            Show::Line | Show::Screen | Show::Nothing => Form::Nothing,
        };
        let part = config.part;
        let earlier = Workload { events: config.warm_up, ..config.workload };
        let [requests, warm_up] =
            [config.workload, earlier].map(|workload| workload.len_of(part.rest(0)));
        let unit = Unit::of(config.workload.batch);
        let until = config.duration.filter(|_| config.rate.is_none());
        let mut view = View { form, unit, requests, until, warm_up };
        view.draw(|| Status {
            phase: Phase::Connecting,
            unit,
            elapsed: Duration::ZERO,
            ended: 0,
            of: requests,
            until,
            connect_failures: 0,
            latest: None,
        });
        view
    }

    /// Adds up the slices of the client threads and shows the progress, until all threads have ended.
    pub(super) fn follow(
        mut self,
        run: &Run,
        stage: &Stage,
        slices: &Receiver<Box<Slice>>,
        abort: &Abort<'_>,
    ) -> Timeline {
        let mut timeline = Timeline::new(run.pace.is_some());
        let mut next_draw = Instant::now();
        loop {
            if Instant::now() >= next_draw {
                self.show(run, stage, &timeline);
                if let (Phase::Measuring, since) = stage.get() {
                    abort.check(run, timeline.latencies(), since.elapsed());
                }
                next_draw = Instant::now() + DRAW_EVERY;
            }
            match slices.recv_timeout(next_draw.saturating_duration_since(Instant::now())) {
                Ok(slice) => timeline.add(&slice),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return timeline,
            }
        }
    }

    fn show(&mut self, run: &Run, stage: &Stage, timeline: &Timeline) {
        let sum = |of: fn(&Progress) -> &AtomicU64| -> u64 {
            run.progress.iter().map(|thread| of(thread).load(Ordering::Relaxed)).sum()
        };
        let View { unit, requests, until, warm_up, .. } = *self;
        self.draw(|| {
            let (phase, since) = stage.get();
            Status {
                phase,
                unit,
                elapsed: since.elapsed(),
                ended: sum(|progress| &progress.ended),
                of: if phase == Phase::WarmingUp { warm_up } else { requests },
                until,
                connect_failures: sum(|progress| &progress.connect_failures),
                latest: timeline.latest(),
            }
        });
    }

    /// Draws the progress. A failure to draw is not worth ending the run.
    fn draw(&mut self, status: impl FnOnce() -> Status) {
        match &mut self.form {
            Form::Nothing => {}
            Form::Line => {
                let _ = write!(stderr(), "\r\x1b[K{}", status().line(columns()));
            }
            Form::Screen(screen) => screen.show(&status()),
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if matches!(self.form, Form::Line) {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}

/// Reports whether the terminal supports the sequences that move its cursor.
pub(crate) fn has_escapes() -> bool {
    std::env::var_os("TERM").is_none_or(|terminal| terminal != "dumb")
}

/// Returns the number of columns of a line that does not wrap. It is one less than the terminal has, because some
/// terminals wrap at the last column.
fn columns() -> usize {
    match tcgetwinsize(stderr()) {
        Ok(size) if size.ws_col > 1 => usize::from(size.ws_col) - 1,
        // Terminals of unknown width have at least 80 columns.
        _ => 79,
    }
}

#[cfg(test)]
mod tests {
    use super::super::latency::Bound;
    use super::super::timeline::Heat;
    use super::*;

    fn status(phase: Phase) -> Status {
        let p99_us = Some(Bound::exactly(1230.0));
        Status {
            phase,
            unit: Unit::Request,
            elapsed: Duration::from_secs(2),
            ended: 1_000_000,
            of: 4_000_000,
            until: None,
            connect_failures: 0,
            latest: Some(Second {
                second: 1,
                requests: 1,
                p50_us: p99_us,
                p99_us,
                max_us: p99_us,
                lower_bounds: Vec::new(),
                heat: Heat::default(),
            }),
        }
    }

    #[test]
    fn the_line_names_what_goes_wrong_before_how_fast_it_is() {
        let mut status = status(Phase::Measuring);
        let rest = "1,000,000 of 4,000,000 requests, 500,000 requests/s";
        assert_eq!(status.line(200), format!(" 25%  {rest}, p99 1.23 ms"));
        status.connect_failures = 1;
        let failed = format!(" 25%  {rest}, 1 failed attempt to connect");
        assert_eq!(status.line(200), format!("{failed}, p99 1.23 ms"));
        assert_eq!(status.line(failed.len()), failed);
    }

    #[test]
    fn the_line_is_never_wider_than_the_terminal() {
        for phase in [Phase::Connecting, Phase::WarmingUp, Phase::Waiting, Phase::Measuring] {
            for columns in 0..120 {
                let line = status(phase).line(columns);
                assert!(line.chars().count() <= columns, "{columns}: {line}");
            }
        }
        let line = status(Phase::Measuring).line(59);
        assert_eq!(line, " 25%  1,000,000 of 4,000,000 requests, 500,000 requests/s");
    }

    #[test]
    fn a_run_that_ends_by_the_clock_shows_the_time() {
        let status = Status {
            until: Some(Duration::from_secs(30)),
            of: u64::MAX,
            ..status(Phase::Measuring)
        };
        let line = "  6%  1,000,000 requests in 2 of 30 s, 500,000 requests/s, p99 1.23 ms";
        assert_eq!(status.line(200), line);
        let late = Status { elapsed: Duration::from_secs(31), ..status };
        assert!(late.line(200).starts_with("100%  1,000,000 requests in 30 of 30 s"));
    }

    #[test]
    fn connecting_and_warming_up_are_shown() {
        let mut connecting = Status { ended: 0, latest: None, ..status(Phase::Connecting) };
        assert_eq!(connecting.line(80), "connecting (2 s)");
        connecting.connect_failures = 7;
        assert_eq!(connecting.line(80), "connecting (2 s), 7 failed attempts to connect");
        let warm_up = Status { ended: 1000, of: 4000, latest: None, ..status(Phase::WarmingUp) };
        assert_eq!(warm_up.line(80), "warming up: 1,000 of 4,000 requests");
    }
}
