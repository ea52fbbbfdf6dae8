//! A chart of requests/s and CPU time per request.

use super::measure::{Run, Workload};
use super::statistics::spread;
use plotters::coord::Shift;
use plotters::prelude::*;

const WIDTH: u32 = 960;
const ROW_HEIGHT: u32 = 26;
const HEADING_HEIGHT: u32 = 60;
const INK: RGBColor = RGBColor(0x1f, 0x6f, 0xb2);
const SECOND_INK: RGBColor = RGBColor(0xb2, 0x5a, 0x1f);
const TEXT: RGBColor = RGBColor(0x22, 0x26, 0x2b);

/// Bars for the first closed-loop workload: requests per second, and CPU time per request.
pub(crate) fn svg(runs: &[Run]) -> String {
    let Some(workload) = runs.iter().map(|run| run.workload).find(|w| w.rate.is_none()) else {
        return String::new();
    };
    let mut rows = rows(runs, workload);
    rows.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut text = String::new();
    let height = HEADING_HEIGHT + ROW_HEIGHT * rows.len() as u32 + 12;
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        // Drawing into a string cannot fail.
        draw(&area, &rows, workload).unwrap();
        area.present().unwrap();
    }
    text
}

/// The name, requests/s and CPU time of each entry.
fn rows(runs: &[Run], workload: Workload) -> Vec<(String, f64, f64)> {
    let mut names: Vec<&str> = Vec::new();
    for run in runs.iter().filter(|run| run.workload == workload) {
        if !names.contains(&run.entry.as_str()) {
            names.push(&run.entry);
        }
    }
    let figure = |name: &str, of: fn(&Run) -> f64| {
        let own = runs.iter().filter(|run| run.entry == name && run.workload == workload);
        spread(own.map(of)).map_or(0.0, |spread| spread.median)
    };
    names
        .into_iter()
        .map(|name| {
            (name.to_owned(), figure(name, |run| run.requests_per_s), figure(name, Run::cpu_us))
        })
        .collect()
}

fn draw(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    rows: &[(String, f64, f64)],
    workload: Workload,
) -> Result<(), Box<dyn std::error::Error>> {
    area.fill(&WHITE)?;
    let plain = ("sans-serif", 13).into_font().color(&TEXT);
    let bold = ("sans-serif", 15).into_font().style(FontStyle::Bold).color(&TEXT);
    let (names, left, right) = (150, 170, 570);
    area.draw_text(&format!("{workload}: medians"), &bold, (10, 8))?;
    area.draw_text("requests/s", &plain, (left, 36))?;
    area.draw_text("server CPU µs per request, on a logarithmic axis", &plain, (right, 36))?;
    let most = rows.iter().map(|row| row.1).fold(1.0, f64::max);
    let costs = || rows.iter().map(|row| row.2.max(0.1));
    let (cheapest, dearest) = (costs().fold(f64::MAX, f64::min), costs().fold(1.0, f64::max));
    for (index, (name, per_s, cpu_us)) in rows.iter().enumerate() {
        let top = (HEADING_HEIGHT + ROW_HEIGHT * index as u32) as i32;
        area.draw_text(name, &plain, (names - 140, top + 3))?;
        let bar = |from: i32, share: f64, ink: RGBColor| {
            let width = (share * 300.0).max(1.0) as i32;
            Rectangle::new([(from, top), (from + width, top + 18)], ink.filled())
        };
        let share = per_s / most;
        area.draw(&bar(left, share, INK))?;
        area.draw_text(
            &format!("{per_s:.0}"),
            &plain,
            (left + 6 + (share * 300.0) as i32, top + 3),
        )?;
        // The bars begin at a tenth of the width, so that the cheapest entry has one too.
        let scale = (dearest / cheapest).ln().max(1e-9);
        let share = 0.1 + 0.9 * (cpu_us.max(0.1) / cheapest).ln() / scale;
        area.draw(&bar(right, share, SECOND_INK))?;
        let end = right + 6 + (share * 300.0) as i32;
        area.draw_text(&format!("{cpu_us:.2}"), &plain, (end, top + 3))?;
    }
    Ok(())
}
