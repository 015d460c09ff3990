//! Seeded chaos: whatever the database, its people, the machine and its disks do, in any mix, everything that was
//! acknowledged is in the table or among the dead letters, once, or in what was damaged in the journal on purpose.
//!
//! ```text
//! slot         what can be in force only once at a time
//! operator     what an operator may do with SQL
//! damage       damages a closed segment of the journal
//! act          one act: its kind, its parameters, what it excludes
//! plan         what happens when, from a seed
//! held         sessions that hold something
//! certificate  certificates of the server
//! world        begins and ends acts
//! run          carries a plan out under load, and judges
//! ```

mod slot;
mod operator;
mod damage;
mod act;
mod plan;
mod held;
mod certificate;
mod world;
mod run;

pub use self::held::Held;
pub use self::plan::Kinds;
pub use self::run::{Chaos, Report, chaos};
