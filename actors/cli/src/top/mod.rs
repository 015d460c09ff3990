//! `logweir top`: the pipeline of a running server, on a terminal.
//!
//! One thread polls the server, so that one that does not respond never freezes the screen, and one reads the keys; the screen
//! is drawn when either has something new. Where standard output is not a terminal (or with `--once`) the screen is written
//! once as text.

mod draw;
mod model;

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use serde::Deserialize;
use serde_json::Value;

use crate::exit;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Color, Output};
use crate::remote::{Access, Remote, RemoteArgs, RemoteError};
use logweir::config::{Unit, quantity};
use model::{Alert, Model, Sample, Status};

/// Width of the text with `--once`.
const TEXT_WIDTH: u16 = 120;

#[derive(Debug, Args)]
pub(super) struct TopArgs {
    /// Time between updates, from 100ms to 1m
    #[arg(long, short, default_value = "1s", value_name = "TIME", value_parser = interval)]
    interval: Duration,
    /// Print the screen once as text and exit, as without a terminal; rates are those of one interval
    #[arg(long)]
    once: bool,
    /// Output format; json prints the server's status and alerts once
    #[arg(long, short, value_name = "FORMAT", default_value = "text", value_parser = output::among([Output::Text, Output::Json]))]
    output: Output,
    /// Color the screen
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    color: Color,
    #[command(flatten)]
    pub(super) remote: RemoteArgs,
}

/// What changes the screen.
enum Input {
    Sample(Box<Result<Sample, String>>),
    Terminal(io::Result<Event>),
}

fn interval(text: &str) -> Result<Duration, String> {
    let millis = quantity(text, Unit::Millis).filter(|millis| (100..=60_000).contains(millis));
    millis.map(Duration::from_millis).ok_or("expected a time such as 500ms or 2s, from 100ms to 1m".into())
}

pub(super) fn top(args: &TopArgs) -> Outcome {
    let remote = args.remote.remote(Access::Query)?;
    if args.output == Output::Json {
        return snapshot(&remote);
    }
    let url = remote.url().to_owned();
    // A server that cannot be reached is reported before the screen is cleared.
    let mut model = Model::default();
    let began = Instant::now();
    model.update(Ok(sample(&remote, began)?));
    let (sender, inputs) = sync_channel(1);
    send_samples(remote, began, args.interval, sender.clone());
    let dumb = std::env::var("TERM").is_ok_and(|terminal| terminal == "dumb");
    if args.once || dumb || !io::stdout().is_terminal() {
        if let Ok(Input::Sample(sample)) = inputs.recv() {
            model.update(*sample);
        }
        return once(&model, &url);
    }
    let screen = draw::Screen { url: &url, first_stage: 0, keys: true, colors: args.color.is_on() };
    let mut terminal = ratatui::try_init()?;
    send_terminal_events(sender);
    let outcome = watch(&mut terminal, &mut model, &inputs, screen);
    ratatui::restore();
    outcome?;
    Ok(exit::OK.into())
}

/// Prints the status as the server returned it, with its alerts.
fn snapshot(remote: &Remote) -> Outcome {
    let response = remote.get("/api/v1/status", &[], &[])?;
    let mut status: Value =
        serde_json::from_reader(response.into_body().into_reader()).map_err(|error| not_a_status(remote, &error))?;
    if let (Value::Object(status), Ok(alerts)) = (&mut status, remote.get("/api/v1/alerts", &[], &[])) {
        let alerts = serde_json::from_reader::<_, Value>(alerts.into_body().into_reader());
        let alerts = alerts.ok().and_then(|mut alerts| Some(alerts.get_mut("alerts")?.take()));
        status.insert("alerts".to_owned(), alerts.unwrap_or_default());
    }
    output::json(&mut io::stdout().lock(), &status)?;
    Ok(exit::OK.into())
}

fn not_a_status(remote: &Remote, error: &serde_json::Error) -> RemoteError {
    RemoteError::Rejected(exit::FAILED, format!("{}: unexpected response: not a status ({error})", remote.url()))
}

/// Polls the server until the receiver is dropped.
fn send_samples(remote: Remote, began: Instant, interval: Duration, inputs: SyncSender<Input>) {
    thread::spawn(move || {
        loop {
            thread::sleep(interval);
            let sample = sample(&remote, began).map_err(|error| match error {
                RemoteError::Unavailable(why) | RemoteError::Rejected(_, why) => why,
            });
            if inputs.send(Input::Sample(Box::new(sample))).is_err() {
                return;
            }
        }
    });
}

/// Reads keys and changes of the size. The thread is not joined: it waits for the next key.
fn send_terminal_events(inputs: SyncSender<Input>) {
    thread::spawn(move || {
        loop {
            let event = event::read();
            let failed = event.is_err();
            if inputs.send(Input::Terminal(event)).is_err() || failed {
                return;
            }
        }
    });
}

#[derive(Deserialize)]
struct Alerts {
    alerts: Vec<Alert>,
}

fn sample(remote: &Remote, began: Instant) -> Result<Sample, RemoteError> {
    let response = remote.get("/api/v1/status", &[], &[])?;
    let status: Status =
        serde_json::from_reader(response.into_body().into_reader()).map_err(|error| not_a_status(remote, &error))?;
    // Unavailable while the server starts.
    let alerts = remote.get("/api/v1/alerts", &[], &[]).ok();
    let alerts =
        alerts.and_then(|response| serde_json::from_reader::<_, Alerts>(response.into_body().into_reader()).ok());
    let alerts = alerts.map(|alerts| alerts.alerts).unwrap_or_default();
    Ok(Sample { at_s: began.elapsed().as_secs_f64(), status, alerts })
}

fn watch(
    terminal: &mut ratatui::DefaultTerminal,
    model: &mut Model,
    inputs: &Receiver<Input>,
    mut screen: draw::Screen<'_>,
) -> io::Result<()> {
    loop {
        terminal.draw(|frame| draw::draw(frame, model, &screen))?;
        let key = match inputs.recv().map_err(io::Error::other)? {
            Input::Sample(sample) => {
                model.update(*sample);
                continue;
            }
            Input::Terminal(event) => match event? {
                Event::Key(key) => key,
                _ => continue, // a new size
            },
        };
        let stages = model.now.as_ref().map_or(0, |sample| sample.status.actors.len());
        match key.code {
            _ if key.kind == KeyEventKind::Release => {}
            KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
            KeyCode::Down | KeyCode::Char('j') => {
                screen.first_stage = (screen.first_stage + 1).min(stages.saturating_sub(1));
            }
            KeyCode::Up | KeyCode::Char('k') => {
                screen.first_stage = screen.first_stage.saturating_sub(1);
            }
            _ => {}
        }
    }
}

/// Prints the screen as text, without empty lines.
fn once(model: &Model, url: &str) -> Outcome {
    let width = TEXT_WIDTH;
    let height = model.now.as_ref().map_or(1, |sample| draw::height(&sample.status));
    let mut terminal = Terminal::new(TestBackend::new(width, height)).map_err(never)?;
    let screen = draw::Screen { url, first_stage: 0, keys: false, colors: false };
    terminal.draw(|frame| draw::draw(frame, model, &screen)).map_err(never)?;
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

/// Drawing to memory does not fail.
fn never(error: impl std::fmt::Display) -> Failure {
    Failure::new(exit::FAILED, error)
}
