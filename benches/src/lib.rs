//! Shared code of the benchmarks, and the end-to-end harness of `logweir-bench`:
//!
//! ```text
//! corpus ──> load ──HTTP──> logweir (process) ──> PostgreSQL, Redis        subject, meter
//!    └─────> bare ─────────COPY────────────────>      │                    probe: bare fdatasync
//!                                scenario ────────────┴──> report
//! ```

/// The same allocator as in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub mod corpus;
pub mod load;
pub mod meter;
pub mod probe;
pub mod bare;
pub mod subject;
pub mod scenario;
pub mod report;
pub mod ratio;
