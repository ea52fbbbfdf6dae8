//! Shows a run on the whole terminal.

use super::super::latency::Bound;
use super::super::numbers::{counted, grouped, rounded, time};
use super::super::report::{Unit, rate_in_words};
use super::super::taken_terminal::{self, Taken};
use super::super::timeline::Second;
use super::super::{Config, Server, interrupt};
use super::{Phase, Status};
use ratatui::Frame;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::Line;
use ratatui::widgets::{Block, Gauge, Paragraph, Sparkline, Wrap};
use std::io::{self, Stderr, stderr};
use std::sync::Arc;
use std::time::Duration;

/// The terminal, until it is dropped.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stderr>>,
    taken: Arc<Taken>,
    title: String,
    /// The seconds that were seen, oldest first.
    seconds: Vec<Second>,
}

impl Screen {
    /// Takes the terminal.
    pub(super) fn open(config: &Config) -> io::Result<Screen> {
        let Server { host, .. } = &config.server;
        let unit = Unit::of(config.workload.batch);
        let rate = config.rate.as_ref().map_or("closed loop".into(), |rate| {
            format!("{} {}", rate_in_words(rate), unit.per_second())
        });
        let connections = counted(config.connections as u64, "connection", "connections");
        let title = format!(" http://{host}, {connections}, {rate} ");
        enable_raw_mode()?;
        // From here on, every way out restores the terminal.
        let taken = taken_terminal::take(give_back);
        let opened = execute!(stderr(), EnterAlternateScreen)
            .and_then(|()| Terminal::new(CrosstermBackend::new(stderr())));
        if opened.is_err() {
            taken.give_back();
        }
        Ok(Screen { terminal: opened?, taken, title, seconds: Vec::new() })
    }

    /// Draws the progress of the run. A terminal in raw mode leaves Ctrl-C to the program, which restores the terminal
    /// and interrupts the run as in any other mode. The key q does the same.
    pub(super) fn show(&mut self, status: &Status) {
        if let Some(latest) = &status.latest {
            match self.seconds.last_mut() {
                Some(last) if last.second == latest.second => *last = latest.clone(),
                _ => self.seconds.push(latest.clone()),
            }
        }
        let (title, seconds) = (self.title.as_str(), self.seconds.as_slice());
        let terminal = &mut self.terminal;
        self.taken.draw(|| {
            // A frame that cannot be drawn is not worth ending the run.
            let _ = terminal.draw(|frame| draw(frame, title, status, seconds));
        });
        while self.taken.is_taken() && event::poll(Duration::ZERO).unwrap_or(false) {
            let Ok(Event::Key(key)) = event::read() else { continue };
            let is_interrupt =
                key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if is_interrupt || key.code == KeyCode::Char('q') {
                self.taken.give_back();
                interrupt::ask();
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.taken.give_back();
    }
}

/// Restores the terminal. A failure is ignored, because nothing else can be tried.
fn give_back() {
    let _ = execute!(stderr(), LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
}

fn draw(frame: &mut Frame<'_>, title: &str, status: &Status, seconds: &[Second]) {
    let rows = [3, 5].map(Constraint::Length).into_iter().chain([Constraint::Fill(1); 2]);
    let [progress, figures, rate, p99] = Layout::vertical(rows).areas(frame.area());
    let share = match status.phase {
        Phase::Connecting | Phase::Waiting => 0.0,
        Phase::WarmingUp | Phase::Measuring => status.share(),
    };
    let gauge = Gauge::default().ratio(share.clamp(0.0, 1.0)).label(status.progress());
    frame.render_widget(gauge.block(Block::bordered().title(title)), progress);

    let mut lines = Vec::new();
    if status.phase == Phase::Measuring {
        let per_s = rounded(status.events_per_s());
        let elapsed = status.elapsed.as_secs_f64();
        let unit = status.unit.per_second();
        lines.push(Line::from(format!("{per_s} {unit} on average over {elapsed:.0} s")));
        let latest = status.latest.as_ref();
        lines.extend(latest.map(|second| Line::from(of_second(second, status.unit))));
    }
    if status.connect_failures > 0 {
        lines.push(Line::from(status.failures()));
    }
    lines.push(Line::from("press q or Ctrl-C to end the run"));
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: true }), figures);

    let width = usize::from(frame.area().width.saturating_sub(2));
    let recent = &seconds[seconds.len().saturating_sub(width)..];
    let rates: Vec<u64> = recent.iter().map(|second| second.requests).collect();
    let p99s: Vec<u64> = recent.iter().map(whole_p99_us).collect();
    let of_rates = match status.unit {
        Unit::Request => " responses per second ",
        Unit::Event => " events per second ",
    };
    let in_micros = |micros: u64| time(Bound::exactly(micros as f64));
    draw_chart(frame, rate, of_rates, &rates, recent, grouped);
    draw_chart(frame, p99, " p99 of each second ", &p99s, recent, in_micros);
}

/// Draws bars from zero up to the greatest value, which the title names, over the seconds; the first and last second
/// are labeled below.
fn draw_chart(
    frame: &mut Frame<'_>,
    area: Rect,
    name: &str,
    values: &[u64],
    seconds: &[Second],
    in_words: impl Fn(u64) -> String,
) {
    let mut block = Block::bordered().title(name);
    let highest = values.iter().copied().max().unwrap_or(0);
    if let (Some(first), Some(last)) = (seconds.first(), seconds.last()) {
        let scale = Line::from(format!(" bars from 0 to {} ", in_words(highest)));
        block = block
            .title_top(scale.right_aligned())
            .title_bottom(format!(" second {} ", first.second))
            .title_bottom(Line::from(format!(" second {} ", last.second)).right_aligned());
    }
    frame.render_widget(Sparkline::default().data(values).max(highest.max(1)).block(block), area);
}

fn of_second(second: &Second, unit: Unit) -> String {
    let ended = match unit {
        Unit::Request => counted(second.requests, "response", "responses"),
        Unit::Event => unit.count(second.requests),
    };
    let mut parts = vec![format!("second {}: {ended}", second.second)];
    let latencies = [("p50", second.p50_us), ("p99", second.p99_us), ("max", second.max_us)];
    parts.extend(
        latencies.into_iter().filter_map(|(name, us)| Some(format!("{name} {}", time(us?)))),
    );
    parts.join(", ")
}

/// Returns the 99th percentile for a bar, in whole microseconds; zero if no request ended in the second.
fn whole_p99_us(second: &Second) -> u64 {
    #[allow(clippy::cast_possible_truncation, reason = "at most an hour in microseconds")]
    second.p99_us.map_or(0, |p99| p99.micros as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::timeline::Heat;
    use ratatui::backend::TestBackend;

    fn shown(width: u16, height: u16, status: &Status, seconds: &[Second]) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, " title ", status, seconds)).unwrap();
        terminal.backend().buffer().content().iter().map(|cell| cell.symbol()).collect()
    }

    fn second(second: u64) -> Second {
        let us = Some(Bound::exactly(1234.0));
        Second {
            second,
            requests: 100 * second,
            p50_us: us,
            p99_us: us,
            max_us: us,
            lower_bounds: Vec::new(),
            heat: Heat::default(),
        }
    }

    fn status(phase: Phase, ended: u64, latest: Option<Second>) -> Status {
        let elapsed = Duration::from_secs(5);
        let unit = Unit::Request;
        Status {
            phase,
            unit,
            elapsed,
            ended,
            of: 1_000_000,
            until: None,
            connect_failures: 3,
            latest,
        }
    }

    #[test]
    fn a_screen_of_any_size_shows_the_run() {
        let seconds: Vec<Second> = (0..200).map(second).collect();
        for (width, height) in [(80, 24), (60, 24), (200, 60), (20, 5), (1, 1)] {
            for (ended, latest) in [(0, None), (500_000, Some(second(3))), (1_000_001, None)] {
                let shown =
                    shown(width, height, &status(Phase::Measuring, ended, latest), &seconds);
                if width >= 60 {
                    assert!(shown.contains("of 1,000,000 requests"), "{shown}");
                    assert!(shown.contains("p99 of each second"), "{shown}");
                    assert!(shown.contains("to end the run"), "{shown}");
                    assert!(shown.contains("bars from 0 to 19,900"), "{shown}");
                    assert!(shown.contains("bars from 0 to 1.23 ms"), "{shown}");
                    assert!(shown.contains("second 199"), "{shown}");
                }
            }
        }
    }

    #[test]
    fn connecting_and_warming_up_are_shown() {
        let connecting = shown(80, 24, &status(Phase::Connecting, 0, None), &[]);
        assert!(connecting.contains("connecting (5 s)"), "{connecting}");
        assert!(connecting.contains("3 failed attempts to connect"), "{connecting}");
        let warm_up = shown(80, 24, &status(Phase::WarmingUp, 1000, None), &[]);
        assert!(warm_up.contains("warming up: 1,000 of 1,000,000 requests"), "{warm_up}");
    }
}
