//! The results as a table and as JSON: median, minimum and maximum of the rounds.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// A measurement, with a value per round.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    scenario: String,
    what: String,
    unit: &'static str,
    goal: Option<&'static str>,
    median: f64,
    min: f64,
    max: f64,
    rounds: Vec<f64>,
}

/// All measurements, with a description of the machine.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    machine: BTreeMap<&'static str, String>,
    rows: Vec<Row>,
}

/// The measurements of one scenario, by round.
pub struct Rounds {
    scenario: String,
    rows: Vec<(String, &'static str, Option<&'static str>, Vec<f64>)>,
}

impl Rounds {
    /// Creates empty rounds.
    #[must_use]
    pub fn new(scenario: impl Into<String>) -> Self {
        Self { scenario: scenario.into(), rows: Vec::new() }
    }

    /// Adds this round's value of `what`.
    pub fn add(&mut self, what: impl Into<String>, unit: &'static str, value: f64) {
        self.add_with_goal(what, unit, None, value);
    }

    /// Adds this round's value of a measurement with a goal, as text.
    pub fn add_with_goal(
        &mut self,
        what: impl Into<String>,
        unit: &'static str,
        goal: impl Into<Option<&'static str>>,
        value: f64,
    ) {
        let what = what.into();
        match self.rows.iter_mut().find(|row| row.0 == what) {
            Some(row) => row.3.push(value),
            None => self.rows.push((what, unit, goal.into(), vec![value])),
        }
    }

    /// Discards the values so far, after the warm-up round.
    pub fn forget(&mut self) {
        self.rows.clear();
    }
}

impl Report {
    /// Creates an empty report for this machine.
    #[must_use]
    pub fn new() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let machine = BTreeMap::from([
            ("cpu", cpu.trim_start_matches(['\t', ' ', ':']).to_owned()),
            ("cores", cores.to_string()),
            ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ]);
        Self { machine, rows: Vec::new() }
    }

    /// Adds a parameter that the numbers depend on.
    pub fn note(&mut self, what: &'static str, value: impl ToString) {
        self.machine.insert(what, value.to_string());
    }

    /// Adds a scenario's rounds and prints them.
    pub fn take(&mut self, rounds: Rounds) {
        for (what, unit, goal, values) in rounds.rows {
            let mut sorted = values.clone();
            sorted.sort_by(f64::total_cmp);
            let (Some(&min), Some(&max)) = (sorted.first(), sorted.last()) else { continue };
            let middle = sorted.len() / 2;
            let median =
                if sorted.len() % 2 == 1 { sorted[middle] } else { sorted[middle - 1].midpoint(sorted[middle]) };
            let scenario = rounds.scenario.clone();
            let row = Row { scenario, what, unit, goal, median, min, max, rounds: values };
            println!("{row}");
            self.rows.push(row);
        }
    }

    /// Returns the report as JSON.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("numbers and texts")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, value) in &self.machine {
            writeln!(f, "{what}: {value}")?;
        }
        writeln!(f, "\n{:<10} {:<52} {:>10} {:>21}  goal", "scenario", "", "median", "min .. max")?;
        self.rows.iter().try_for_each(|row| writeln!(f, "{row}"))
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scenario, what, unit, goal, median, min, max, .. } = self;
        let label = if unit.is_empty() { what.clone() } else { format!("{what}, {unit}") };
        let range = format!("{} .. {}", short(*min), short(*max));
        write!(f, "{scenario:<10} {label:<52} {:>10} {range:>21}  {}", short(*median), goal.unwrap_or_default())
    }
}

/// Formats a number with three or four significant digits.
fn short(value: f64) -> String {
    match value.abs() {
        big if big >= 10_000_000.0 => format!("{:.1} M", value / 1e6),
        big if big >= 1_000_000.0 => format!("{:.2} M", value / 1e6),
        big if big >= 10_000.0 => format!("{:.0} k", value / 1e3),
        mid if mid >= 100.0 => format!("{value:.0}"),
        mid if mid >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
