//! What is shown while a run goes on: a line, or the whole screen. It reads what the threads hand
//! over anyway, on a thread of its own.

mod screen;

use super::report::grouped;
use super::timeline::{Second, Timeline};
use super::worker::{Progress, Run};
use super::{Config, Show};
use screen::Screen;
use std::io::{IsTerminal, Write, stderr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How far a run is.
struct Status {
    elapsed: Duration,
    ended: u64,
    of: u64,
    connect_failures: u64,
    latest: Option<Second>,
}

impl Status {
    fn requests_per_s(&self) -> f64 {
        self.ended as f64 / self.elapsed.as_secs_f64().max(1e-3)
    }

    /// One line of text.
    fn line(&self) -> String {
        let p99 = self.latest.as_ref().map_or(String::new(), |second| {
            format!(", p99 {}", super::report::time(second.p99_us))
        });
        let failures = match self.connect_failures {
            0 => String::new(),
            failures => format!(", {} failures to connect", grouped(failures)),
        };
        format!(
            "{:3} %  {} of {} requests, {} requests/s{p99}{failures}",
            self.ended * 100 / self.of.max(1),
            grouped(self.ended),
            grouped(self.of),
            grouped(self.requests_per_s() as u64),
        )
    }
}

/// The progress of a run, on standard error.
pub(super) struct View<'a> {
    run: &'a Run,
    started: Instant,
    form: Form,
}

enum Form {
    Nothing,
    Line,
    Screen(Box<Screen>),
}

impl View<'_> {
    pub(super) fn new<'a>(config: &Config, run: &'a Run, started: Instant) -> View<'a> {
        let form = match config.progress {
            Show::Screen => Screen::open(config).map_or(Form::Line, |s| Form::Screen(Box::new(s))),
            Show::Line if stderr().is_terminal() => Form::Line,
            Show::Line | Show::Nothing => Form::Nothing,
        };
        View { run, started, form }
    }

    /// Shows how far the run is.
    pub(super) fn show(&mut self, timeline: &Timeline) {
        let sum = |of: fn(&Progress) -> &AtomicU64| -> u64 {
            self.run.progress.iter().map(|thread| of(thread).load(Ordering::Relaxed)).sum()
        };
        let status = || Status {
            elapsed: self.started.elapsed(),
            ended: sum(|progress| &progress.ended),
            of: self.run.workload.events,
            connect_failures: sum(|progress| &progress.connect_failures),
            latest: timeline.latest(),
        };
        match &mut self.form {
            Form::Nothing => {}
            Form::Line => {
                // Progress that cannot be shown is not worth an error.
                let _ = write!(stderr(), "\r\x1b[K{}", status().line());
            }
            Form::Screen(screen) => screen.show(&status()),
        }
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        if matches!(self.form, Form::Line) {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_what_goes_wrong_at_once() {
        let mut status = Status {
            elapsed: Duration::from_secs(2),
            ended: 1000,
            of: 4000,
            connect_failures: 0,
            latest: None,
        };
        assert_eq!(status.line(), " 25 %  1,000 of 4,000 requests, 500 requests/s");
        status.connect_failures = 7;
        assert!(status.line().ends_with(", 7 failures to connect"));
    }
}
