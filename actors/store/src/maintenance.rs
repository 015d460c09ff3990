//! Maintenance: steps that keep the tables in order beside the flushes. Each may fail alone; none decides whether records
//! are stored.

use crate::error::StoreError;

/// The outcome of one step of a round of maintenance.
#[derive(Debug)]
pub struct MaintenanceStep {
    /// The step's name: a value of the metrics' label `step`.
    pub name: &'static str,
    /// Whether it is done, or why not.
    pub result: Result<(), StoreError>,
}

impl MaintenanceStep {
    /// The outcome of the step `name`.
    #[must_use]
    pub fn new(name: &'static str, result: Result<(), StoreError>) -> Self {
        Self { name, result }
    }
}
