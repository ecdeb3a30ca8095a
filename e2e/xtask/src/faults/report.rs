//! The report: a page with the sums and, for each round, a picture of what was acknowledged when.

use std::fmt::Write;
use std::path::Path;

use super::Measured;
use super::round::{BAR, Round};
use super::summary::Sum;
use crate::error::Result;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 150.0;
/// Room for the scale at the left and below.
const LEFT: f64 = 44.0;
const BELOW: f64 = 18.0;
const STYLE: &str = "body{font:14px sans-serif;margin:2em;max-width:1040px}table{border-collapse:collapse}\
    td,th{padding:2px 10px;text-align:right;border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}\
    .bad{color:#b00020}figure{margin:1.5em 0}figcaption{color:#444}ol{color:#444;font-size:12px}";

/// The page's file.
pub const PAGE: &str = "index.html";

/// Writes the page, and each picture as a file of its own.
pub fn save(dir: &Path, measured: &[Measured]) -> Result<()> {
    let mut page = format!("<!doctype html><meta charset=\"utf-8\"><title>Fault tests</title><style>{STYLE}</style>");
    page += "<h1>Fault tests</h1><p>Gaps are the longest times without an acknowledged write, in milliseconds, in the \
             prefix that waited longest.</p>";
    page += &table(measured.iter().map(|m| &m.sum));
    for (number, round) in measured.iter().flat_map(|m| &m.rounds).enumerate() {
        let picture = picture(round);
        let name = format!("{:03}-{}-{}.svg", number + 1, round.kind.name(), round.mode.name());
        crate::error::write(&dir.join(&name), &picture)?;
        page += &figure(round, &picture, &name);
    }
    crate::error::write(&dir.join(PAGE), page)
}

fn table<'a>(sums: impl Iterator<Item = &'a Sum>) -> String {
    let head =
        ["kind", "mode", "rounds", "acknowledged", "lost", "gap p50", "p99", "max", "moved", "reads", "receipt", "bad"];
    let mut text = format!("<table><tr>{}</tr>", head.map(|h| format!("<th>{h}</th>")).concat());
    for s in sums {
        let cells = [
            s.kind.name(),
            s.mode.name().to_owned(),
            s.rounds.to_string(),
            s.acked.to_string(),
            s.lost.to_string(),
            format!("{:.0}", s.gap_ms.p50),
            format!("{:.0}", s.gap_ms.p99),
            format!("{:.0}", s.gap_ms.max),
            s.moved.to_string(),
            format!("{}, {} failed", s.reads, s.failed_reads),
            escape(&s.receipt),
            s.bad.to_string(),
        ];
        let class = if s.bad > 0 { " class=\"bad\"" } else { "" };
        text += &format!("<tr{class}>{}</tr>", cells.map(|c| format!("<td>{c}</td>")).concat());
    }
    text + "</table>"
}

fn figure(round: &Round, picture: &str, name: &str) -> String {
    let mut text = format!(
        "<figure>{picture}<figcaption><b>{} {}</b>, store {}: {} acknowledged, {} unknown, {} lost, {} reads judged, {} \
         never answered and not there, gap {:.0} ms, receipt {} ({} records named, {} of the load exported){}. <a href=\"{name}\">picture</a></figcaption><ol>",
        round.kind.name(),
        round.mode.name(),
        round.store,
        round.acked,
        round.unknown,
        round.lost,
        round.seen.reads,
        round.unanswered,
        round.seen.gap.ms(),
        escape(&round.receipt.word),
        round.receipt.records,
        round.receipt.exported,
        round.receipt.phases.iter().map(|(phase, ms)| format!(", {phase} {ms} ms")).collect::<String>(),
    );
    for (at, what) in &round.marks {
        text += &format!("<li value=\"{:.0}\">{at:.3} s: {}</li>", at * 1000.0, escape(what));
    }
    for problem in &round.problems {
        text += &format!("<li class=\"bad\">{}</li>", escape(&problem.to_string()));
    }
    text + "</ol></figure>"
}

/// Acknowledged writes per bar over time; a red line where something happened, a grey one for each step of a reign.
pub fn picture(round: &Round) -> String {
    let span = (round.timeline.len() as f64 * BAR.as_secs_f64()).max(1.0);
    let most = f64::from(round.timeline.iter().copied().max().unwrap_or(0).max(1));
    let x = |seconds: f64| LEFT + (WIDTH - LEFT) * (seconds / span).min(1.0);
    let (base, top) = (HEIGHT - BELOW, 14.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"10\">"
    );
    let wide = (x(BAR.as_secs_f64()) - x(0.0)).max(0.5);
    for (index, count) in round.timeline.iter().enumerate().filter(|(_, count)| **count > 0) {
        let high = (base - top) * f64::from(*count) / most;
        let (left, up) = (x(index as f64 * BAR.as_secs_f64()), base - high);
        add(
            &mut svg,
            format_args!(
                "<rect x=\"{left:.1}\" y=\"{up:.1}\" width=\"{wide:.1}\" height=\"{high:.1}\" fill=\"#3b7dd8\"/>"
            ),
        );
    }
    for (at, what) in &round.marks {
        let colour = if what.starts_with("epoch ") { "#999" } else { "#c62828" };
        let x = x(*at);
        add(
            &mut svg,
            format_args!(
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{base}\" stroke=\"{colour}\"><title>{at:.3} s: {}</title></line>",
                escape(what)
            ),
        );
    }
    let step = if span > 120.0 {
        30
    } else if span > 40.0 {
        10
    } else {
        2
    };
    for second in (0..=span as u32).step_by(step) {
        add(
            &mut svg,
            format_args!("<text x=\"{:.1}\" y=\"{:.1}\">{second} s</text>", x(f64::from(second)), HEIGHT - 5.0),
        );
    }
    add(
        &mut svg,
        format_args!(
            "<line x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{base}\" y2=\"{base}\" stroke=\"#333\"/>\
             <text x=\"0\" y=\"{top}\">{most}</text><text x=\"0\" y=\"{base}\">0</text>\
             <text x=\"{LEFT}\" y=\"10\">acknowledged writes per {} ms: {} {}, gap {:.0} ms</text></svg>",
            BAR.as_millis(),
            round.kind.name(),
            round.mode.name(),
            round.seen.gap.ms()
        ),
    );
    svg
}

fn add(text: &mut String, more: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = text.write_fmt(more);
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
