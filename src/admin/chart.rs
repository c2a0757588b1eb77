//! Calls per minute, as SVG.

use plotters::prelude::*;

use crate::calls::report::Point;

const WIDTH: u32 = 900;
const HEIGHT: u32 = 220;
const GRAY: RGBColor = RGBColor(134, 142, 150);
const CALLS: RGBColor = RGBColor(77, 121, 199);
const SAVED: RGBColor = RGBColor(43, 150, 86);
const CHARGED: RGBColor = RGBColor(222, 97, 36);

/// The calls, the saved and the charged ones of each minute. Nothing if it cannot be drawn.
pub(super) fn calls_per_minute(points: &[Point]) -> String {
    let mut svg = String::new();
    match draw(points, &mut svg) {
        Ok(()) => svg,
        Err(error) => {
            tracing::warn!(%error, "the chart could not be drawn");
            String::new()
        }
    }
}

fn draw(points: &[Point], svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, (WIDTH, HEIGHT)).into_drawing_area();
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return Ok(()) };
    let most = points.iter().map(|p| p.calls.max(p.charged)).max().unwrap_or(0).max(4);
    // A little air above, and room for a line's own width.
    let mut chart = ChartBuilder::on(&root)
        .margin(6)
        .x_label_area_size(24)
        .y_label_area_size(48)
        .build_cartesian_2d(first.at..last.at.max(first.at + 60), 0..most + most.div_ceil(10))?;
    let style = ("sans-serif", 13).into_font().color(&GRAY);
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRAY.mix(0.25))
        .axis_style(GRAY.mix(0.5))
        .label_style(style)
        .x_labels(7)
        .y_labels(5)
        .x_label_formatter(&|at| format!("{:02}:{:02}", at % 86_400 / 3600, at % 3600 / 60))
        .draw()?;
    chart.draw_series(
        AreaSeries::new(points.iter().map(|p| (p.at, p.calls)), 0, CALLS.mix(0.15)).border_style(CALLS.stroke_width(2)),
    )?;
    chart.draw_series(LineSeries::new(points.iter().map(|p| (p.at, p.saved)), SAVED.stroke_width(2)))?;
    chart.draw_series(LineSeries::new(points.iter().map(|p| (p.at, p.charged)), CHARGED.stroke_width(2)))?;
    root.present()?;
    drop(chart);
    drop(root);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_what_there_is() {
        let points: Vec<Point> =
            (0..60).map(|i| Point { at: i * 60, calls: i, charged: i / 2, ..Point::default() }).collect();
        let svg = calls_per_minute(&points);
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        assert!(svg.contains("#DE6124") && svg.contains("00:50"), "{svg}");
        assert_eq!(calls_per_minute(&[]).matches("<text").count(), 0);
        assert!(calls_per_minute(&[Point::default()]).contains("<svg"));
    }
}
