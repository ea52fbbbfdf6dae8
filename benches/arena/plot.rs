//! A chart of requests/s and CPU time per request.

use plotters::coord::Shift;
use plotters::prelude::*;
use serde_json::Value;

const WIDTH: u32 = 960;
const ROW_HEIGHT: u32 = 26;
const HEADING_HEIGHT: u32 = 60;
const INK: RGBColor = RGBColor(0x1f, 0x6f, 0xb2);
const SECOND_INK: RGBColor = RGBColor(0xb2, 0x5a, 0x1f);
const TEXT: RGBColor = RGBColor(0x22, 0x26, 0x2b);

/// Returns bars for the first row that does not fix the requests per second: requests per second, and CPU time per request.
pub(crate) fn svg(found: &Value) -> String {
    let rows = || found["rows"].as_array().into_iter().flatten();
    let is_open = |row: &&Value| {
        let name = row["name"].as_str().unwrap_or_default();
        !["rate:", "near:", "pause"].iter().any(|start| name.starts_with(start))
    };
    let Some(row) = rows().find(is_open) else { return String::new() };
    let title = row["title"].as_str().unwrap_or_default();
    let bars: Vec<(String, f64, f64)> = row["servers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| {
            let number = usize::try_from(one["server"].as_u64()?).ok()?;
            let name = found["servers"][number]["name"].as_str()?.to_owned();
            let median = |figure: &str| one[figure]["median"].as_f64();
            Some((name, median("requests_per_s")?, median("cpu_us")?))
        })
        .collect();
    let mut text = String::new();
    let height = HEADING_HEIGHT + ROW_HEIGHT * bars.len() as u32 + 12;
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        // Drawing into a string cannot fail.
        draw(&area, &bars, title).unwrap();
        area.present().unwrap();
    }
    text
}

fn draw(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    rows: &[(String, f64, f64)],
    title: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    area.fill(&WHITE)?;
    let plain = ("sans-serif", 13).into_font().color(&TEXT);
    let bold = ("sans-serif", 15).into_font().style(FontStyle::Bold).color(&TEXT);
    let (names, left, right) = (150, 170, 570);
    area.draw_text(&format!("{title}: medians"), &bold, (10, 8))?;
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
        // The bars begin at a tenth of the width, so that the cheapest entry has one, too.
        let scale = (dearest / cheapest).ln().max(1e-9);
        let share = 0.1 + 0.9 * (cpu_us.max(0.1) / cheapest).ln() / scale;
        area.draw(&bar(right, share, SECOND_INK))?;
        let end = right + 6 + (share * 300.0) as i32;
        area.draw_text(&format!("{cpu_us:.2}"), &plain, (end, top + 3))?;
    }
    Ok(())
}
