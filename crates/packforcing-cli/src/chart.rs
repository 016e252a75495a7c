//! Panels of lines over time, in colours that everyone can tell apart (Okabe and Ito).

use std::sync::Once;

use anyhow::{Result, anyhow};
use plotters::backend::BitMapBackend;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::media::png::Image;

pub const BLUE: RGBColor = RGBColor(0, 114, 178);
pub const ORANGE: RGBColor = RGBColor(213, 94, 0);
pub const GREEN: RGBColor = RGBColor(0, 158, 115);
pub const INK: RGBColor = RGBColor(40, 40, 40);
const FAINT: RGBColor = RGBColor(225, 225, 225);
const FONT: &str = "sans-serif";

/// A line of a panel.
pub struct Line {
    pub points: Vec<(f64, f64)>,
    pub style: Style,
}

/// How a line is drawn.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    pub color: RGBColor,
    pub dashed: bool,
    /// A circle at each point: full, or hollow where the line is dashed.
    pub marked: bool,
}

/// Lines over time.
pub struct Panel {
    pub title: String,
    pub x: String,
    pub lines: Vec<Line>,
    /// Where the axis of time ends.
    pub end: f64,
    pub log: bool,
    /// The top of the axis, where it is known.
    pub top: Option<f64>,
}

/// A rectangle of a map, from and to along both axes.
pub struct Rectangle {
    pub x: (f64, f64),
    pub y: (f64, f64),
    pub color: RGBColor,
}

/// What stands beside the panels: lines of text, each behind the line it explains.
pub type Legend = Vec<(Option<Style>, String)>;

type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

/// Draws panels in two columns, rows of this height. The legend takes the place after the last, or where there is none
/// as many lines below as it has.
pub fn draw(panels: &[Panel], legend: &Legend, width: usize, row: usize) -> Result<Image> {
    let rows = panels.len().div_ceil(2);
    let below = match panels.len().is_multiple_of(2) {
        true => 2 * LEGEND_TOP + LEGEND_LINE * legend.len() as i32,
        false => 0,
    };
    let mut image = Image::white(width, rows * row + below as usize);
    {
        let (above, below) = area(&mut image).split_vertically((rows * row) as i32);
        let places = above.split_evenly((rows, 2));
        for (panel, place) in panels.iter().zip(&places) {
            draw_panel(panel, place).map_err(|e| anyhow!("chart: {}: {e}", panel.title))?;
        }
        let place = places.get(panels.len()).unwrap_or(&below);
        draw_legend(legend, place).map_err(|e| anyhow!("chart: {e}"))?;
    }
    Ok(image)
}

/// Draws one panel alone.
pub fn one(panel: &Panel, width: usize, height: usize) -> Result<Image> {
    let mut image = Image::white(width, height);
    draw_panel(panel, &area(&mut image)).map_err(|e| anyhow!("chart: {}: {e}", panel.title))?;
    Ok(image)
}

/// Draws rectangles, the last on top, over two axes from 0 to `end`; the legend in the upper left.
pub fn map(
    title: &str,
    axes: [&str; 2],
    end: f64,
    rectangles: &[Rectangle],
    legend: &[(RGBColor, &str)],
    (width, height): (usize, usize),
) -> Result<Image> {
    let mut image = Image::white(width, height);
    draw_map(title, axes, end, rectangles, legend, &area(&mut image)).map_err(|e| anyhow!("{title}: {e}"))?;
    Ok(image)
}

/// A number as people write it: thousands apart, no zeros behind the point, none that is only how a sum was rounded.
fn number(x: f64) -> String {
    if x != 0.0 && x.abs() < 1e-4 {
        return format!("{x:e}");
    }
    let text = format!("{:.4}", x.abs());
    let (whole, rest) = text.split_once('.').unwrap_or((&text, ""));
    let mut out = String::from(if x < 0.0 { "-" } else { "" });
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    match rest.trim_end_matches('0') {
        "" => out,
        rest => format!("{out}.{rest}"),
    }
}

fn draw_map(
    title: &str,
    axes: [&str; 2],
    end: f64,
    rectangles: &[Rectangle],
    legend: &[(RGBColor, &str)],
    place: &Area<'_>,
) -> Result<(), Box<dyn std::error::Error>> {
    place.draw(&Text::new(title.to_string(), (16, 12), font(19)))?;
    let mut chart = ChartBuilder::on(place)
        .margin_top(44)
        .margin_right(24)
        .margin_bottom(6)
        .margin_left(12)
        .x_label_area_size(42)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..end, 0.0..end)?;
    chart
        .configure_mesh()
        .disable_mesh()
        .axis_style(INK)
        .x_labels(7)
        .y_labels(7)
        .x_desc(axes[0])
        .y_desc(axes[1])
        .x_label_formatter(&|x| number(*x))
        .y_label_formatter(&|y| number(*y))
        .label_style(font(15))
        .axis_desc_style(font(15))
        .draw()?;
    let cells = rectangles.iter();
    chart.draw_series(
        cells.map(|r| plotters::element::Rectangle::new([(r.x.0, r.y.0), (r.x.1, r.y.1)], r.color.filled())),
    )?;
    for (row, (color, text)) in legend.iter().enumerate() {
        let y = 74 + 27 * row as i32;
        place.draw(&plotters::element::Rectangle::new(
            [(124, y - 8), (140, y + 8)],
            color.filled(),
        ))?;
        let anchored = font(16).pos(Pos::new(HPos::Left, VPos::Center));
        place.draw(&Text::new((*text).to_string(), (152, y), anchored))?;
    }
    Ok(())
}

/// Writes a text into a picture, its upper left corner at (x, y).
pub fn write(image: &mut Image, text: &str, x: usize, y: usize, size: usize) -> Result<()> {
    area(image)
        .draw(&Text::new(text.to_string(), (x as i32, y as i32), font(size)))
        .map_err(|e| anyhow!("picture: {e}"))
}

/// The font at this size.
fn font(size: usize) -> TextStyle<'static> {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        let font = include_bytes!("../assets/DejaVuSans-ascii.ttf");
        // A font that is refused is an error as soon as something is written.
        let _ = plotters::style::register_font(FONT, FontStyle::Normal, font);
    });
    (FONT, size as f64).into_font().color(&INK)
}

fn area(image: &mut Image) -> Area<'_> {
    let size = (image.width as u32, image.height as u32);
    BitMapBackend::with_buffer(&mut image.rgb, size).into_drawing_area()
}

fn draw_panel(panel: &Panel, place: &Area<'_>) -> Result<(), Box<dyn std::error::Error>> {
    let points = || panel.lines.iter().flat_map(|line| &line.points);
    let highest = points().map(|p| p.1).fold(0.0, f64::max);
    let lowest = points().map(|p| p.1).filter(|&y| y > 0.0).fold(f64::INFINITY, f64::min);
    let top = panel.top.unwrap_or(1.15 * highest.max(1e-9));

    place.draw(&Text::new(panel.title.clone(), (16, 12), font(19)))?;
    let mut builder = ChartBuilder::on(place);
    builder
        .margin_top(44)
        .margin_right(24)
        .margin_bottom(6)
        .x_label_area_size(42)
        .y_label_area_size(92);
    // The two kinds of axis are different types.
    macro_rules! on_axis {
        ($y:expr) => {{
            let mut chart = builder.build_cartesian_2d(0.0..panel.end, $y)?;
            chart
                .configure_mesh()
                .disable_x_mesh()
                .bold_line_style(FAINT)
                .light_line_style(TRANSPARENT)
                .axis_style(INK)
                .x_labels(7)
                .y_labels(6)
                .x_desc(&panel.x)
                .y_label_formatter(&|y| number(*y))
                .x_label_formatter(&|x| number(*x))
                .label_style(font(15))
                .axis_desc_style(font(15))
                .draw()?;
            for Line { points, style } in &panel.lines {
                let stroke = style.color.stroke_width(2);
                let points = points.iter().copied();
                if style.dashed {
                    chart.draw_series(DashedLineSeries::new(points.clone(), 7, 5, stroke))?;
                } else {
                    chart.draw_series(LineSeries::new(points.clone(), stroke))?;
                }
                if style.marked {
                    chart.draw_series(points.clone().map(|p| Circle::new(p, 4, WHITE.filled())))?;
                    let ring: ShapeStyle = if style.dashed { stroke } else { style.color.filled() };
                    chart.draw_series(points.map(|p| Circle::new(p, 4, ring)))?;
                }
            }
        }};
    }
    if panel.log && lowest.is_finite() {
        on_axis!((lowest / 2.0..top * 2.0).log_scale());
    } else {
        on_axis!(0.0..top);
    }
    Ok(())
}

/// Pixels above the legend, and from one of its lines to the next.
const LEGEND_TOP: i32 = 30;
const LEGEND_LINE: i32 = 23;

fn draw_legend(legend: &Legend, place: &Area<'_>) -> Result<(), Box<dyn std::error::Error>> {
    for (row, (style, text)) in legend.iter().enumerate() {
        let y = LEGEND_TOP + LEGEND_LINE * row as i32;
        let mut x = 92;
        if let Some(style) = style {
            let stroke = style.color.stroke_width(2);
            let parts: &[(i32, i32)] = if style.dashed {
                &[(0, 8), (14, 22), (28, 36)]
            } else {
                &[(0, 36)]
            };
            for (from, to) in parts {
                place.draw(&PathElement::new(vec![(x + from, y), (x + to, y)], stroke))?;
            }
            if style.marked {
                place.draw(&Circle::new((x + 18, y), 4, WHITE.filled()))?;
                let ring: ShapeStyle = if style.dashed { stroke } else { style.color.filled() };
                place.draw(&Circle::new((x + 18, y), 4, ring))?;
            }
            x += 48;
        }
        let anchored = font(16).pos(Pos::new(HPos::Left, VPos::Center));
        place.draw(&Text::new(text.clone(), (x, y), anchored))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_lines_leave_ink() {
        let mut image = Image::white(80, 30);
        write(&mut image, "packed", 4, 4, 18).unwrap();
        assert!(image.rgb.iter().filter(|&&x| x < 100).count() > 60);

        let panel = |log| Panel {
            title: "a title".into(),
            x: "time (s)".into(),
            lines: vec![Line {
                points: vec![(0.0, 1.0), (1.0, 100.0)],
                style: Style {
                    color: BLUE,
                    dashed: log,
                    marked: true,
                },
            }],
            end: 1.0,
            log,
            top: None,
        };
        let legend = vec![(None, "text".into())];
        let image = draw(&[panel(false), panel(true)], &legend, 900, 300).unwrap();
        let blue = image.rgb.chunks(3).filter(|p| p == &[BLUE.0, BLUE.1, BLUE.2]).count();
        assert!(blue > 400, "{blue}");
        // Every third of a chart has something to say, however many panels there are.
        for count in 1..6 {
            let panels: Vec<Panel> = (0..count).map(|i| panel(i % 2 > 0)).collect();
            let image = draw(&panels, &legend, 900, 300).unwrap();
            for third in image.rgb.chunks(image.rgb.len() / 3) {
                assert!(third.len() < 900 || third.iter().any(|&x| x < 100), "{count} panels");
            }
        }
    }

    #[test]
    fn numbers_are_written_as_people_write_them() {
        let written = [
            (0.0, "0"),
            (999.0, "999"),
            (1000.0, "1,000"),
            (720_000.0, "720,000"),
            (0.15000000000000002, "0.15"),
            (-1234.5, "-1,234.5"),
            (10.0, "10"),
            (0.3 - 0.1, "0.2"),
            (1e-6, "1e-6"),
        ];
        for (x, text) in written {
            assert_eq!(number(x), text);
        }
    }

    #[test]
    fn a_panel_without_points_is_drawn() {
        let panel = Panel {
            title: "nothing".into(),
            x: "time (s)".into(),
            lines: Vec::new(),
            end: 1.0,
            log: true,
            top: None,
        };
        draw(&[panel], &Vec::new(), 400, 300).unwrap();
    }
}
