//! What is shown: two looks at a server's status, and what went on between them. Pure.

use std::collections::{BTreeMap, VecDeque};

use serde::Deserialize;
use serde_json::Value;

/// Samples of the rate that are kept for the curve.
const HISTORY_MAX: usize = 512;

/// `/api/v1/status`, as far as it is shown.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Status {
    pub version: String,
    pub instance: String,
    pub uptime_s: u64,
    pub phase: String,
    #[serde(default)]
    pub store: String,
    #[serde(default)]
    pub cache: String,
    #[serde(default)]
    pub lanes: Vec<Lane>,
    #[serde(default)]
    pub breakers: BTreeMap<String, Value>,
    pub journal: Option<Journal>,
    #[serde(default)]
    pub actors: Vec<Actor>,
}

/// One lane.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Lane {
    pub lane: u64,
    pub accepted: u64,
    pub committed: u64,
    pub dead: u64,
    pub lost: u64,
    pub backlog: u64,
    #[serde(default)]
    pub store: Value,
}

/// The journal.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Journal {
    pub bytes: u64,
    pub quota_bytes: u64,
    pub segments: u64,
    pub seq_last: u64,
    pub queue_bytes: u64,
    pub refuses: Option<String>,
    pub damaged_frames: u64,
}

/// One stage.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Actor {
    pub name: String,
    pub depth_messages: u64,
    pub bound: Bound,
    pub handled: u64,
    pub discarded: u64,
    pub refused: u64,
    pub wait_seconds: f64,
    pub busy_seconds: f64,
    pub restarts: u64,
    pub state: String,
}

/// A mailbox's bound.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Bound {
    pub messages_max: u64,
}

/// One alert, as far as it is shown.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Alert {
    pub name: String,
    pub state: String,
}

/// One look.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// When, in seconds after any moment.
    pub at_s: f64,
    pub status: Status,
    pub alerts: Vec<Alert>,
}

/// Everything that is shown.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub now: Option<Look>,
    before: Option<Look>,
    /// Why the last look saw nothing.
    pub away: Option<String>,
    /// Records accepted in a second, newest last.
    pub history: VecDeque<u64>,
}

impl Model {
    /// Takes the next look, or why there is none.
    pub fn take(&mut self, look: Result<Look, String>) {
        match look {
            Ok(look) => {
                self.away = None;
                // Another process counts anew.
                let same = self.now.as_ref().is_some_and(|now| now.status.instance == look.status.instance);
                self.before = self.now.take().filter(|_| same);
                self.now = Some(look);
                if let Some(rate) = self.rate(|status| sum(status, |lane| lane.accepted)) {
                    self.history.push_back(rate.round() as u64);
                    if self.history.len() > HISTORY_MAX {
                        self.history.pop_front();
                    }
                }
            }
            Err(why) => self.away = Some(why),
        }
    }

    /// By how much what `of` counts grew in a second; none before the second look.
    pub fn rate(&self, of: impl Fn(&Status) -> u64) -> Option<f64> {
        self.growth(|status| Some(of(status) as f64))
    }

    /// The same of one stage.
    pub fn rate_of(&self, actor: &str, of: impl Fn(&Actor) -> f64) -> Option<f64> {
        self.growth(|status| status.actors.iter().find(|known| known.name == actor).map(&of))
    }

    fn growth(&self, of: impl Fn(&Status) -> Option<f64>) -> Option<f64> {
        let (before, now) = (self.before.as_ref()?, self.now.as_ref()?);
        let seconds = now.at_s - before.at_s;
        let grown = of(&now.status)? - of(&before.status)?;
        (seconds > 0.0).then(|| (grown / seconds).max(0.0))
    }
}

/// The sum over all lanes.
pub fn sum(status: &Status, of: impl Fn(&Lane) -> u64) -> u64 {
    status.lanes.iter().map(of).sum()
}

/// A number as people read it: `950`, `12.3 k`, `4.1 M`.
pub fn short(number: f64) -> String {
    let units = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")];
    match units.iter().find(|(size, _)| number >= *size) {
        Some((_, "k")) => format!("{:.1} k", number / 1e3),
        Some((size, unit)) => format!("{:.1} {unit}", number / size),
        None if number > 0.0 && number < 10.0 && number.fract() != 0.0 => format!("{number:.1}"),
        None => format!("{number:.0}"),
    }
}

/// Bytes as people read them.
pub fn bytes(number: u64) -> String {
    let units = [(1_u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(size, _)| number >= *size) {
        Some((size, unit)) => format!("{:.1} {unit}", number as f64 / *size as f64),
        None => format!("{number} B"),
    }
}

/// A time span as people read it.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(at_s: f64, instance: &str, accepted: u64, busy_seconds: f64) -> Look {
        let lanes = vec![Lane { accepted, ..Lane::default() }, Lane { accepted: 5, ..Lane::default() }];
        let actors = vec![Actor { name: "parser-0".into(), busy_seconds, ..Actor::default() }];
        Look { at_s, status: Status { instance: instance.into(), lanes, actors, ..Status::default() }, alerts: vec![] }
    }

    #[test]
    fn rates_are_what_went_on_between_two_looks_at_the_same_process() {
        let mut model = Model::default();
        model.take(Ok(look(0.0, "a", 10, 0.0)));
        assert_eq!((model.rate(|status| sum(status, |lane| lane.accepted)), model.history.len()), (None, 0));
        model.take(Ok(look(2.0, "a", 50, 1.0)));
        assert_eq!(model.rate(|status| sum(status, |lane| lane.accepted)), Some(20.0));
        assert_eq!(model.rate_of("parser-0", |actor| actor.busy_seconds), Some(0.5));
        assert_eq!(model.rate_of("parser-1", |actor| actor.busy_seconds), None);
        model.take(Err("gone".into()));
        assert!(model.away.is_some() && model.now.is_some(), "the last look stays");
        model.take(Ok(look(4.0, "b", 3, 0.0)));
        assert_eq!((model.rate(|status| sum(status, |lane| lane.accepted)), &model.away), (None, &None));
        assert_eq!(model.history, [20]);
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([0.0, 0.5, 9999.0, 12_345.0, 4_100_000.0].map(short), ["0", "0.5", "9999", "12.3 k", "4.1 M"]);
        assert_eq!([5, 2048, 3 << 30].map(bytes), ["5 B", "2.0 KiB", "3.0 GiB"]);
        assert_eq!([5, 65, 3700, 90_000].map(span), ["5 s", "1 min 5 s", "1 h 1 min", "1 d 1 h"]);
    }
}
