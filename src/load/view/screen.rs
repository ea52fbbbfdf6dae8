//! A run on the whole terminal.

use super::super::report::{grouped, time};
use super::super::timeline::Second;
use super::super::{Config, Server};
use super::Status;
use ratatui::Frame;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::layout::{Constraint, Layout};
use ratatui::text::Line;
use ratatui::widgets::{Block, Gauge, Paragraph, Sparkline};
use std::io::{self, Stderr, stderr};
use std::time::Duration;

/// The exit code of a program that Ctrl-C has ended, as shells have it.
const INTERRUPTED: i32 = 130;

/// The terminal, until it is dropped.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stderr>>,
    title: String,
    /// The seconds that were seen, oldest first.
    seconds: Vec<Second>,
}

impl Screen {
    /// Takes the terminal.
    pub(super) fn open(config: &Config) -> io::Result<Screen> {
        let Server { host, .. } = &config.server;
        let rate = config.rate.map_or("closed loop".into(), |rate| {
            format!("open loop at {} requests/s", grouped(rate))
        });
        let title =
            format!(" ringtally load: http://{host}, {} connections, {rate} ", config.workers);
        enable_raw_mode()?;
        let taken = execute!(stderr(), EnterAlternateScreen)
            .and_then(|()| Terminal::new(CrosstermBackend::new(stderr())));
        if taken.is_err() {
            give_back();
        }
        Ok(Screen { terminal: taken?, title, seconds: Vec::new() })
    }

    /// Draws how far the run is. Ctrl-C and q end the program, as a terminal in raw mode leaves that
    /// to it.
    pub(super) fn show(&mut self, status: &Status) {
        if let Some(latest) = &status.latest {
            match self.seconds.last_mut() {
                Some(last) if last.second == latest.second => *last = latest.clone(),
                _ => self.seconds.push(latest.clone()),
            }
        }
        let (title, seconds) = (self.title.as_str(), self.seconds.as_slice());
        // A screen that cannot be drawn on is not worth an error.
        let _ = self.terminal.draw(|frame| draw(frame, title, status, seconds));
        while event::poll(Duration::ZERO).unwrap_or(false) {
            let Ok(Event::Key(key)) = event::read() else { continue };
            let is_interrupt =
                key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if is_interrupt || key.code == KeyCode::Char('q') {
                give_back();
                std::process::exit(INTERRUPTED);
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Gives the terminal back. What fails here cannot be mended here.
fn give_back() {
    let _ = execute!(stderr(), LeaveAlternateScreen);
    let _ = disable_raw_mode();
}

fn draw(frame: &mut Frame<'_>, title: &str, status: &Status, seconds: &[Second]) {
    let rows = [3, 4].map(Constraint::Length).into_iter().chain([Constraint::Fill(1); 2]);
    let [progress, figures, rate, p99] = Layout::vertical(rows).areas(frame.area());
    let share = status.ended as f64 / status.of.max(1) as f64;
    let label = format!("{} of {}", grouped(status.ended), grouped(status.of));
    let gauge = Gauge::default().ratio(share.clamp(0.0, 1.0)).label(label);
    frame.render_widget(gauge.block(Block::bordered().title(title)), progress);

    let latest = status.latest.as_ref().map_or("no second is over yet".into(), |second| {
        format!(
            "second {}: {} requests, p50 {}, p99 {}, max {}",
            second.second,
            grouped(second.requests),
            time(second.p50_us),
            time(second.p99_us),
            time(second.max_us)
        )
    });
    let lines = vec![
        Line::from(format!(
            "{} requests/s on average, {:.0} s, {} failures to connect",
            grouped(status.requests_per_s() as u64),
            status.elapsed.as_secs_f64(),
            grouped(status.connect_failures)
        )),
        Line::from(latest),
        Line::from("q or Ctrl-C ends the run without a report"),
    ];
    frame.render_widget(Paragraph::new(lines), figures);

    let width = frame.area().width.saturating_sub(2) as usize;
    let recent = &seconds[seconds.len().saturating_sub(width)..];
    let rates: Vec<u64> = recent.iter().map(|second| second.requests).collect();
    let p99s: Vec<u64> = recent.iter().map(|second| second.p99_us.micros as u64).collect();
    for (area, name, values) in
        [(rate, " requests in each second ", rates), (p99, " p99 of each second ", p99s)]
    {
        let chart = Sparkline::default().data(&values).block(Block::bordered().title(name));
        frame.render_widget(chart, area);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::latency::Bound;
    use ratatui::backend::TestBackend;

    #[test]
    fn a_screen_of_any_size_shows_the_run() {
        let bound = Bound { micros: 1234.0, is_at_least: false };
        let second = |second| Second {
            second,
            requests: 100 * second,
            p50_us: bound,
            p99_us: bound,
            max_us: bound,
        };
        let seconds: Vec<Second> = (0..200).map(second).collect();
        for (width, height) in [(80, 24), (200, 60), (20, 5), (1, 1)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            for (ended, latest) in [(0, None), (500_000, Some(second(3))), (1_000_001, None)] {
                let status = Status {
                    elapsed: Duration::from_secs(5),
                    ended,
                    of: 1_000_000,
                    connect_failures: 0,
                    latest,
                };
                terminal.draw(|frame| draw(frame, " title ", &status, &seconds)).unwrap();
            }
            let shown: String =
                terminal.backend().buffer().content().iter().map(|cell| cell.symbol()).collect();
            if width >= 80 {
                assert!(shown.contains("1,000,001 of 1,000,000"), "{shown}");
                assert!(shown.contains("p99 of each second"), "{shown}");
            }
        }
    }
}
