//! The screen: header, totals with a sparkline of intake, journal, lanes, stages. Depends on the model only, not on a clock.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Gauge, Paragraph, Row, Sparkline, Table};
use serde_json::Value;

use super::model::{Actor, Journal, Lane, Model, Sample, Status, bytes, short, span, sum};
use crate::output::count;

/// What is drawn besides the model.
#[derive(Clone, Copy, Debug)]
pub struct Screen<'a> {
    /// The server's address.
    pub url: &'a str,
    /// The first row of the table of stages.
    pub first_stage: usize,
    /// Whether the footer lists the keys.
    pub keys: bool,
    /// Whether it is colored.
    pub colors: bool,
}

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, model: &Model, screen: &Screen<'_>) {
    draw_all(frame, model, screen);
    if !screen.colors {
        for cell in &mut frame.buffer_mut().content {
            (cell.fg, cell.bg) = (Color::Reset, Color::Reset);
        }
    }
}

fn draw_all(frame: &mut Frame<'_>, model: &Model, screen: &Screen<'_>) {
    let Screen { url, first_stage, keys, .. } = *screen;
    let Some(sample) = &model.now else {
        let why = model.error.as_deref().unwrap_or("connecting …");
        frame.render_widget(Paragraph::new(format!("{url}: {why}")).red(), frame.area());
        return;
    };
    let lanes = shown_lanes(&sample.status);
    let [head, figures, journal, lane_table, stages, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(5),
        Constraint::Length(3),
        Constraint::Length(lanes + 3),
        Constraint::Min(4),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(head_lines(model, sample)), head);
    draw_figures(frame, figures, model, sample);
    if let Some(stats) = &sample.status.journal {
        draw_journal(frame, journal, stats);
    }
    draw_lanes(frame, lane_table, &sample.status.lanes);
    draw_stages(frame, stages, model, sample, first_stage);
    let footer = if keys { format!("q quit   ↑ ↓ scroll stages   {url}") } else { url.to_owned() };
    frame.render_widget(Line::from(footer).dim(), foot);
}

/// Height that shows everything.
pub fn height(status: &Status) -> u16 {
    let stages = u16::try_from(status.actors.len()).unwrap_or(u16::MAX);
    (2 + 5 + 3 + 3 + 3 + 1 + shown_lanes(status)).saturating_add(stages)
}

/// Number of lanes listed; the totals include all.
fn shown_lanes(status: &Status) -> u16 {
    u16::try_from(status.lanes.len()).unwrap_or(u16::MAX).min(8)
}

fn head_lines(model: &Model, sample: &Sample) -> Vec<Line<'static>> {
    let status = &sample.status;
    let phase = if status.phase == "accepting" { status.phase.clone().green() } else { status.phase.clone().yellow() };
    let mut first = vec![
        Span::from(format!("logweir {} ", status.version)).bold(),
        Span::from(format!("{}  ", status.instance)),
        phase,
        Span::from(format!("  up {}", span(status.uptime_s))),
        // A gateway has neither.
        Span::from(if status.store.is_empty() {
            String::new()
        } else {
            format!("  {} + {}", status.store, status.cache)
        }),
    ];
    for (name, state) in &status.breakers {
        if text(state) != "closed" {
            first.push(format!("  breaker {name} {}", text(state)).red());
        }
    }
    if !status.maintenance_failing.is_empty() {
        let steps: Vec<&str> = status.maintenance_failing.iter().map(|failing| &*failing.step).collect();
        first.push(format!("  maintenance fails: {}", steps.join(", ")).yellow());
    }
    let second = match &model.error {
        Some(why) => Line::from(format!("unreachable: {why}")).red().bold(),
        None => alerts_line(sample),
    };
    vec![Line::from(first), second]
}

fn alerts_line(sample: &Sample) -> Line<'static> {
    if sample.alerts.is_empty() {
        return Line::default();
    }
    let named = |state: &str| {
        let names: Vec<&str> =
            sample.alerts.iter().filter(|alert| alert.state == state).map(|alert| &*alert.name).collect();
        names.join(", ")
    };
    let (firing, pending) = (named("firing"), named("pending"));
    let mut spans = vec![Span::from(count(sample.alerts.len() as u64, "alert")).dim()];
    if !firing.is_empty() {
        spans.push(format!("  firing: {firing}").red().bold());
    }
    if !pending.is_empty() {
        spans.push(format!("  pending: {pending}").yellow());
    }
    Line::from(spans)
}

fn draw_figures(frame: &mut Frame<'_>, area: Rect, model: &Model, sample: &Sample) {
    let [numbers, curve] = Layout::horizontal([Constraint::Length(46), Constraint::Min(10)]).areas(area);
    let status = &sample.status;
    let total = |of: fn(&Lane) -> u64| sum(status, of);
    let rate = |of: fn(&Lane) -> u64| {
        let rate = model.rate(|status| sum(status, of));
        rate.map_or("–".to_owned(), |rate| format!("{}/s", short(rate)))
    };
    let warn = |number: u64| if number > 0 { Style::new().fg(Color::Red) } else { Style::new() };
    let rows = [
        Row::new(["accepted".into(), short(total(|lane| lane.accepted) as f64), rate(|lane| lane.accepted)]),
        Row::new(["committed".into(), short(total(|lane| lane.committed) as f64), rate(|lane| lane.committed)]),
        Row::new(["backlog".into(), short(total(|lane| lane.backlog) as f64), String::new()]),
        Row::new(["dead letters".into(), short(total(|lane| lane.dead_lettered) as f64), String::new()])
            .style(warn(total(|lane| lane.dead_lettered))),
        Row::new(["lost".into(), short(total(|lane| lane.lost) as f64), String::new()])
            .style(warn(total(|lane| lane.lost))),
    ];
    frame.render_widget(
        Table::new(rows, [Constraint::Length(12), Constraint::Length(14), Constraint::Length(14)]),
        numbers,
    );
    let width = usize::from(curve.width);
    let history: Vec<u64> = model.history.iter().rev().take(width).rev().copied().collect();
    frame.render_widget(Sparkline::default().data(&history).style(Style::new().fg(Color::Cyan)), curve);
}

fn draw_journal(frame: &mut Frame<'_>, area: Rect, journal: &Journal) {
    let share = if journal.quota_bytes == 0 { 0.0 } else { journal.bytes as f64 / journal.quota_bytes as f64 };
    let color = match share {
        share if share >= 0.9 => Color::Red,
        share if share >= 0.7 => Color::Yellow,
        _ => Color::Green,
    };
    let title = match &journal.reject_reason {
        Some(why) => format!(" journal rejects records: {why} "),
        None => format!(
            " journal  {}  seq {}  queue {}  damaged {} ",
            count(journal.segments, "segment"),
            journal.seq_last,
            bytes(journal.queue_bytes),
            journal.damaged_frames
        ),
    };
    let label = format!("{} of {}", bytes(journal.bytes), bytes(journal.quota_bytes));
    let block = Block::bordered().title(title);
    frame.render_widget(
        Gauge::default().block(block).gauge_style(color).ratio(share.clamp(0.0, 1.0)).label(label),
        area,
    );
}

fn draw_lanes(frame: &mut Frame<'_>, area: Rect, lanes: &[Lane]) {
    let header = Row::new(["lane", "accepted", "committed", "dead letters", "lost", "backlog", "store"]);
    let rows = lanes.iter().map(|lane| {
        let (state, reason) = (text(&lane.store["state"]), text(&lane.store["reason"]));
        let numbers =
            [lane.accepted, lane.committed, lane.dead_lettered, lane.lost, lane.backlog].map(|n| n.to_string());
        let cells = std::iter::once(lane.lane.to_string()).chain(numbers).chain([format!("{state} {reason}")]);
        Row::new(cells).style(if state == "ok" { Style::new() } else { Style::new().fg(Color::Yellow) })
    });
    let widths = [5, 12, 12, 12, 8, 10].map(Constraint::Length).into_iter().chain([Constraint::Min(10)]);
    let table = Table::new(rows, widths).header(header.style(heading())).block(Block::bordered().title(" lanes "));
    frame.render_widget(table, area);
}

fn draw_stages(frame: &mut Frame<'_>, area: Rect, model: &Model, sample: &Sample, first: usize) {
    let header =
        Row::new(["stage", "state", "handled/s", "busy", "wait", "mailbox", "rejected", "dropped", "restarts"]);
    let rows = sample.status.actors.iter().skip(first).map(|actor| stage_row(model, actor));
    let widths = [16, 9, 10, 6, 6, 10, 9, 9, 8].map(Constraint::Length);
    let table = Table::new(rows, widths).header(header.style(heading())).block(Block::bordered().title(" stages "));
    frame.render_widget(table, area);
}

fn stage_row(model: &Model, actor: &Actor) -> Row<'static> {
    let rate = |of: fn(&Actor) -> f64| model.rate_of(&actor.name, of);
    let share = |of: fn(&Actor) -> f64| rate(of).map_or("–".to_owned(), |share| format!("{:.0}%", share * 100.0));
    let style = match () {
        () if actor.restarts > 0 || actor.discarded > 0 => Style::new().fg(Color::Red),
        () if actor.bound.messages_max > 0 && actor.depth_messages >= actor.bound.messages_max => {
            Style::new().fg(Color::Yellow)
        }
        () => Style::new(),
    };
    Row::new([
        actor.name.clone(),
        actor.state.clone(),
        rate(|actor| actor.handled as f64).map_or("–".to_owned(), short),
        share(|actor| actor.busy_seconds),
        share(|actor| actor.wait_seconds),
        format!("{}/{}", actor.depth_messages, actor.bound.messages_max),
        short(actor.rejected as f64),
        short(actor.discarded as f64),
        actor.restarts.to_string(),
    ])
    .style(style)
}

fn heading() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::model::Alert;
    use super::*;

    const STATUS: &str = r#"{"version":"0.1.0","instance":"web-1/7","uptime_s":3700,"phase":"accepting","store":"SQLite",
        "cache":"memory","breakers":{"cache-writer":"open"},
        "maintenance_failing":[{"step":"clock","since_s":1,"error":"e"},{"step":"text_index","since_s":1,"error":"e"}],
        "lanes":[{"lane":0,"accepted":12345,"committed":12000,"dead_lettered":3,"lost":0,"backlog":342,"store":{"state":"ok"}}],
        "journal":{"bytes":1073741824,"quota_bytes":4294967296,"segments":17,"seq_last":99,"seq_durable":99,
            "queue_bytes":0,"reject_reason":null,"damaged_frames":0},
        "actors":[{"name":"parser-0","depth_messages":2,"bound":{"messages_max":16},"handled":50,"discarded":0,
            "rejected":1,"wait_seconds":0.5,"busy_seconds":1.5,"restarts":0,"state":"busy"}]}"#;

    fn screen(model: &Model) -> String {
        let mut terminal = Terminal::new(TestBackend::new(120, 26)).unwrap();
        terminal
            .draw(|frame| draw(frame, model, &Screen { url: "http://x", first_stage: 0, keys: true, colors: true }))
            .unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn the_screen_shows_rates_and_problems() {
        let mut model = Model::default();
        assert!(screen(&model).contains("http://x: connecting"));
        let status: Status = serde_json::from_str(STATUS).unwrap();
        let alerts = vec![Alert { name: "declined".into(), state: "firing".into() }];
        let before = Sample { at_s: 0.0, status: status.clone(), alerts: alerts.clone() };
        let mut later = Sample { at_s: 1.0, status, alerts };
        later.status.lanes[0].accepted += 500;
        later.status.actors[0].handled += 30;
        later.status.actors[0].busy_seconds += 0.25;
        model.update(Ok(before));
        model.update(Ok(later));
        let shown = screen(&model);
        for part in [
            "logweir 0.1.0 web-1/7  accepting  up 1 h 1 min  SQLite + memory",
            "breaker cache-writer open",
            "maintenance fails: clock",
            "firing: declined",
            "12.8 k",
            "500/s",
            "1.0 GiB of 4.0 GiB",
            "parser-0",
            "25%",
            "2/16",
        ] {
            assert!(shown.contains(part), "{part} is missing in\n{shown}");
        }
        model.update(Err("connection refused".into()));
        assert!(screen(&model).contains("unreachable: connection refused"));
    }
}
