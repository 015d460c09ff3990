//! `logweir top`: the pipeline of a running server, on a terminal.
//!
//! One thread asks, so that a server that does not answer never freezes the screen. Where standard output is no terminal
//! (or with `--once`) the screen is written once as text.

mod draw;
mod model;

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use serde::Deserialize;

use super::remote::{Remote, RemoteArgs, Trouble};
use super::{Failure, Outcome, exit};
use crate::config::keys::Unit;
use crate::config::value::quantity;
use model::{Alert, Look, Model, Status};

/// How often the keys are looked at.
const KEYS_EVERY: Duration = Duration::from_millis(50);
/// The width of the screen where there is none.
const PAPER_WIDTH: u16 = 120;

#[derive(Debug, Args)]
pub(super) struct TopArgs {
    #[command(flatten)]
    remote: RemoteArgs,
    /// How often it looks
    #[arg(long, default_value = "1s", value_name = "TIME", value_parser = interval)]
    every: Duration,
    /// Write the screen once, as text
    #[arg(long)]
    once: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let millis = quantity(text, Unit::Millis).filter(|millis| (100..=60_000).contains(millis));
    millis.map(Duration::from_millis).ok_or("write a time such as 500ms or 2s, from 100ms to 1m".into())
}

pub(super) fn top(args: &TopArgs) -> Outcome {
    let remote = args.remote.remote();
    let url = remote.url().to_owned();
    // What cannot be asked at all is said before the screen is taken over.
    let mut model = Model::default();
    let began = Instant::now();
    model.take(Ok(look(&remote, began)?));
    let looks = looks(remote, began, args.every);
    if args.once || !io::stdout().is_terminal() {
        if let Ok(look) = looks.recv() {
            model.take(look);
        }
        return once(&model, &url);
    }
    let mut terminal = ratatui::try_init()?;
    let outcome = watch(&mut terminal, &mut model, &looks, &url);
    ratatui::restore();
    outcome?;
    Ok(exit::OK.into())
}

/// Asks again and again; ends when nobody listens.
fn looks(remote: Remote, began: Instant, every: Duration) -> Receiver<Result<Look, String>> {
    let (sender, looks) = sync_channel(1);
    thread::spawn(move || {
        loop {
            thread::sleep(every);
            let look = look(&remote, began).map_err(|trouble| match trouble {
                Trouble::Away(why) | Trouble::Refused(_, why) => why,
            });
            if sender.send(look).is_err() {
                return;
            }
        }
    });
    looks
}

#[derive(Deserialize)]
struct Alerts {
    alerts: Vec<Alert>,
}

fn look(remote: &Remote, began: Instant) -> Result<Look, Trouble> {
    let response = remote.get("/api/v1/status", &[], &[])?;
    let status: Status = serde_json::from_reader(response.into_body().into_reader())
        .map_err(|error| Trouble::Refused(exit::FAILED, format!("{} has no status: {error}", remote.url())))?;
    // While it starts there are none yet.
    let alerts = remote.get("/api/v1/alerts", &[], &[]).ok();
    let alerts =
        alerts.and_then(|response| serde_json::from_reader::<_, Alerts>(response.into_body().into_reader()).ok());
    let alerts = alerts.map(|alerts| alerts.alerts).unwrap_or_default();
    Ok(Look { at_s: began.elapsed().as_secs_f64(), status, alerts })
}

fn watch(
    terminal: &mut ratatui::DefaultTerminal,
    model: &mut Model,
    looks: &Receiver<Result<Look, String>>,
    url: &str,
) -> io::Result<()> {
    let mut first_stage = 0_usize;
    loop {
        while let Ok(look) = looks.try_recv() {
            model.take(look);
        }
        terminal.draw(|frame| draw::draw(frame, model, url, first_stage))?;
        if !event::poll(KEYS_EVERY)? {
            continue;
        }
        let Event::Key(key) = event::read()? else { continue };
        let stages = model.now.as_ref().map_or(0, |look| look.status.actors.len());
        match key.code {
            _ if key.kind == KeyEventKind::Release => {}
            KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
            KeyCode::Down | KeyCode::Char('j') => first_stage = (first_stage + 1).min(stages.saturating_sub(1)),
            KeyCode::Up | KeyCode::Char('k') => first_stage = first_stage.saturating_sub(1),
            _ => {}
        }
    }
}

/// The screen as text, without the empty lines at its end.
fn once(model: &Model, url: &str) -> Outcome {
    let width = PAPER_WIDTH;
    let height = model.now.as_ref().map_or(1, |look| draw::height(&look.status));
    let mut terminal = Terminal::new(TestBackend::new(width, height)).map_err(never)?;
    terminal.draw(|frame| draw::draw(frame, model, url, 0)).map_err(never)?;
    let buffer = terminal.backend().buffer();
    let mut out = io::stdout().lock();
    for line in buffer.content().chunks(usize::from(width)) {
        let line: String = line.iter().map(ratatui::buffer::Cell::symbol).collect();
        if !line.trim().is_empty() {
            writeln!(out, "{}", line.trim_end())?;
        }
    }
    Ok(exit::OK.into())
}

/// A screen in memory takes everything.
fn never(error: impl std::fmt::Display) -> Failure {
    Failure::told(exit::FAILED, error)
}
