//! The machinery of logweir: bounded mailboxes, supervised stages, a durable journal and an
//! ordered drain. It knows actix, a disk and a clock; it knows no store, no HTTP and no
//! environment variable, so that it can be embedded alone.
//!
//! ```text
//!                 ┌─ Mailbox ─> Stage ─┐ ┌─ Mailbox ─> Stage ─┐
//!  records ─────> │  one generic actor │>│  one generic actor │ ─> ...
//!                 └────────────────────┘ └─────────┬──────────┘
//!            supervisor: panic and stall become    │ append, group-commit fsync
//!            an exit with a name, the stage is     ▼
//!            rebuilt, queue and address stay    Journal (one OS thread) ─> reader, recovery
//! ```
//!
//! A pipeline of three stages that drains:
//!
//! ```
//! use logweir_engine::drain::DrainControl;
//! use logweir_engine::mailbox::{Bound, Mailbox, Message};
//! use logweir_engine::stage::{Exit, Stage, StageContext};
//! use logweir_engine::topology::{StageSpec, Supervision, Topology};
//! use std::sync::mpsc;
//!
//! struct Line(String);
//! struct Lines(Vec<String>);
//!
//! impl Message for Line {
//!     fn bytes(&self) -> usize {
//!         self.0.len()
//!     }
//! }
//! impl Message for Lines {
//!     fn bytes(&self) -> usize {
//!         self.0.iter().map(String::len).sum()
//!     }
//! }
//!
//! /// Makes each line clean, one message after the other.
//! struct Trim { ctx: StageContext, next: Mailbox<Line> }
//! /// Gathers lines and hands them on by the pair; the last one may stay alone.
//! struct Pair { ctx: StageContext, next: Mailbox<Lines>, open: Vec<String> }
//! struct Sink(mpsc::Sender<Vec<String>>);
//!
//! impl Stage for Trim {
//!     type Message = Line;
//!     async fn receive(&mut self, line: Line) -> Result<(), Exit> {
//!         let line = Line(line.0.trim().to_owned());
//!         Ok(self.ctx.waiting(self.next.send(line)).await?)
//!     }
//! }
//! impl Stage for Pair {
//!     type Message = Line;
//!     async fn receive(&mut self, line: Line) -> Result<(), Exit> {
//!         self.open.push(line.0);
//!         if self.open.len() == 2 { self.hand_on().await } else { Ok(()) }
//!     }
//!     async fn on_drain(&mut self) -> Result<(), Exit> {
//!         if self.open.is_empty() { Ok(()) } else { self.hand_on().await }
//!     }
//! }
//! impl Pair {
//!     async fn hand_on(&mut self) -> Result<(), Exit> {
//!         let lines = Lines(std::mem::take(&mut self.open));
//!         Ok(self.ctx.waiting(self.next.send(lines)).await?)
//!     }
//! }
//! impl Stage for Sink {
//!     type Message = Lines;
//!     async fn receive(&mut self, lines: Lines) -> Result<(), Exit> {
//!         self.0.send(lines.0).map_err(|_| Exit::new(Exit::SOFTWARE, "nobody reads the sink"))
//!     }
//! }
//!
//! actix_rt::System::new().block_on(async {
//!     let supervision = Supervision { stall_ms: 5_000, restarts_max: 3, restart_window_ms: 60_000 };
//!     let control = DrainControl::default();
//!     let mut topology = Topology::new("lines", supervision, control.watch());
//!     let spec = |name: &str| StageSpec {
//!         name: name.to_owned(),
//!         arbiter: name.to_owned(), // a thread for each
//!         bound: Bound { messages_max: 2, bytes_max: 64 },
//!         tick_ms: None,
//!     };
//!     // Downstream first: who sends must know where to.
//!     let (out, stored) = mpsc::channel();
//!     let sink = topology.spawn(spec("sink"), move |_| Sink(out.clone()));
//!     let pair = topology.spawn(spec("pair"), move |ctx| Pair { ctx, next: sink.clone(), open: Vec::new() });
//!     let trim = topology.spawn(spec("trim"), move |ctx| Trim { ctx, next: pair.clone() });
//!     assert_eq!(topology.bytes_max(), 3 * 64);
//!
//!     for line in [" a ", "b", " c"] {
//!         trim.send(Line(line.to_owned())).await.unwrap();
//!     }
//!     let late = topology.drain().await;
//!     assert!(late.is_empty());
//!     assert_eq!(stored.iter().collect::<Vec<_>>(), [vec!["a", "b"], vec!["c"]]);
//!     assert!(trim.send(Line("late".to_owned())).await.is_err());
//! });
//! ```
//!
//! The `mod` lines stand in the order of a record's way.

pub mod record;
pub mod chunk;
mod semaphore;
pub mod mailbox;
pub mod stage;
pub mod window;
mod actor_host;
pub mod supervisor;
pub mod codec;
pub mod journal;
pub mod topology;
pub mod drain;
pub mod observe;
pub mod clock;
pub mod fault;
