//! The model of the screen: the two latest samples of a server's status, and the rates between them. Pure.

use std::collections::{BTreeMap, VecDeque};

use serde::Deserialize;
use serde_json::Value;

/// Number of rates kept for the sparkline.
const HISTORY_MAX: usize = 512;

/// The displayed part of `/api/v1/status`.
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
    #[serde(default)]
    pub maintenance_failing: Vec<FailingStep>,
    pub journal: Option<Journal>,
    #[serde(default)]
    pub actors: Vec<Actor>,
}

/// A step of the database's maintenance that fails.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct FailingStep {
    pub step: String,
}

/// One lane.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Lane {
    pub lane: u64,
    pub accepted: u64,
    pub committed: u64,
    pub dead_lettered: u64,
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
    pub reject_reason: Option<String>,
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
    pub rejected: u64,
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

/// The displayed part of an alert.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Alert {
    pub name: String,
    pub state: String,
}

/// The status at one time.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Seconds since an arbitrary time.
    pub at_s: f64,
    pub status: Status,
    pub alerts: Vec<Alert>,
}

/// Everything that is displayed.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub now: Option<Sample>,
    before: Option<Sample>,
    /// Why the latest request failed.
    pub error: Option<String>,
    /// Records accepted per second, latest last.
    pub history: VecDeque<u64>,
}

impl Model {
    /// Adds the next sample, or why it failed.
    pub fn update(&mut self, sample: Result<Sample, String>) {
        match sample {
            Ok(sample) => {
                self.error = None;
                // The counters of another process start at zero.
                let same = self.now.as_ref().is_some_and(|now| now.status.instance == sample.status.instance);
                self.before = self.now.take().filter(|_| same);
                self.now = Some(sample);
                if let Some(rate) = self.rate(|status| sum(status, |lane| lane.accepted)) {
                    self.history.push_back(rate.round() as u64);
                    if self.history.len() > HISTORY_MAX {
                        self.history.pop_front();
                    }
                }
            }
            Err(why) => self.error = Some(why),
        }
    }

    /// Increase of `of` per second; `None` before the second sample.
    pub fn rate(&self, of: impl Fn(&Status) -> u64) -> Option<f64> {
        self.growth(|status| Some(of(status) as f64))
    }

    /// Increase of `of` per second for one stage.
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

/// A human-readable number: `950`, `12.3 k`, `4.1 M`.
pub fn short(number: f64) -> String {
    let units = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")];
    match units.iter().find(|(size, _)| number >= *size) {
        Some((_, "k")) => format!("{:.1} k", number / 1e3),
        Some((size, unit)) => format!("{:.1} {unit}", number / size),
        None if number > 0.0 && number < 10.0 && number.fract() != 0.0 => format!("{number:.1}"),
        None => format!("{number:.0}"),
    }
}

/// A human-readable size.
pub fn bytes(number: u64) -> String {
    let units = [(1_u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(size, _)| number >= *size) {
        Some((size, unit)) => format!("{:.1} {unit}", number as f64 / *size as f64),
        None => format!("{number} B"),
    }
}

/// A human-readable duration.
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

    fn sample(at_s: f64, instance: &str, accepted: u64, busy_seconds: f64) -> Sample {
        let lanes = vec![Lane { accepted, ..Lane::default() }, Lane { accepted: 5, ..Lane::default() }];
        let actors = vec![Actor { name: "parser-0".into(), busy_seconds, ..Actor::default() }];
        Sample {
            at_s,
            status: Status { instance: instance.into(), lanes, actors, ..Status::default() },
            alerts: vec![],
        }
    }

    #[test]
    fn rates_are_computed_between_two_samples_of_the_same_process() {
        let mut model = Model::default();
        model.update(Ok(sample(0.0, "a", 10, 0.0)));
        assert_eq!((model.rate(|status| sum(status, |lane| lane.accepted)), model.history.len()), (None, 0));
        model.update(Ok(sample(2.0, "a", 50, 1.0)));
        assert_eq!(model.rate(|status| sum(status, |lane| lane.accepted)), Some(20.0));
        assert_eq!(model.rate_of("parser-0", |actor| actor.busy_seconds), Some(0.5));
        assert_eq!(model.rate_of("parser-1", |actor| actor.busy_seconds), None);
        model.update(Err("gone".into()));
        assert!(model.error.is_some() && model.now.is_some(), "the latest sample is kept");
        model.update(Ok(sample(4.0, "b", 3, 0.0)));
        assert_eq!((model.rate(|status| sum(status, |lane| lane.accepted)), &model.error), (None, &None));
        assert_eq!(model.history, [20]);
    }

    #[test]
    fn numbers_are_human_readable() {
        assert_eq!([0.0, 0.5, 9999.0, 12_345.0, 4_100_000.0].map(short), ["0", "0.5", "9999", "12.3 k", "4.1 M"]);
        assert_eq!([5, 2048, 3 << 30].map(bytes), ["5 B", "2.0 KiB", "3.0 GiB"]);
        assert_eq!([5, 65, 3700, 90_000].map(span), ["5 s", "1 min 5 s", "1 h 1 min", "1 d 1 h"]);
    }
}
