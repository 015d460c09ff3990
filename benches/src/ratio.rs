//! Compares a part with a bare limit, alternately, so that the drift of a shared machine affects both equally.

use std::time::{Duration, Instant};

/// Rounds of each; the first is a warm-up and is dropped.
const ROUNDS: usize = 12;

/// Runs both alternately and prints how many times as long as `bare` `ours` takes: median, minimum and maximum of the
/// rounds.
pub fn ratio(name: &str, mut ours: impl FnMut(), mut bare: impl FnMut()) {
    timed_ratio(name, || time(&mut ours), || time(&mut bare));
}

/// As [`ratio`], for closures that measure their own duration.
pub fn timed_ratio(name: &str, mut ours: impl FnMut() -> Duration, mut bare: impl FnMut() -> Duration) {
    let mut ratios: Vec<f64> = (0..ROUNDS).map(|_| ours().as_secs_f64() / bare().as_secs_f64()).skip(1).collect();
    ratios.sort_by(f64::total_cmp);
    let (min, max) = (ratios[0], ratios[ratios.len() - 1]);
    println!("ratio {name}: {:.2} ({min:.2}..{max:.2})", ratios[ratios.len() / 2]);
}

fn time(run: &mut impl FnMut()) -> Duration {
    let started = Instant::now();
    run();
    started.elapsed()
}
