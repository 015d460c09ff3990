//! The plan: what happens when, from a seed alone.
//!
//! A plan is a sequence of rounds. In a round, a few acts overlap for seconds; after it the program must recover, before
//! what is harmless is undone and after it. So a failure belongs to a handful of acts, and not to half an hour of them.
//! The kinds are dealt like cards: each comes once before one comes again.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::chaos::act::{Abilities, Act, one_of_each};

/// An act with its time in the round.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// When it begins.
    pub at: Duration,
    /// How long it lasts. `None`: until the program has recovered in spite of it.
    pub lasts: Option<Duration>,
    /// What happens.
    pub act: Act,
}

/// A round begins no act later than this.
const ROUND: Duration = Duration::from_secs(3);
/// No act lasts longer.
const LONGEST: Duration = Duration::from_secs(3);
/// Acts in a round, at most.
const ACTS_MAX: usize = 9;

/// Which kinds of acts are done: all, only some, or all but some.
#[derive(Clone, Debug, Default)]
pub struct Kinds {
    only: Vec<String>,
    not: Vec<String>,
}

impl Kinds {
    /// Parses names separated by commas; a `-` before a name excludes it.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let names = text.split(',').filter(|name| !name.is_empty());
        let (not, only): (Vec<_>, Vec<_>) = names.partition(|name| name.starts_with('-'));
        Self {
            only: only.into_iter().map(str::to_owned).collect(),
            not: not.into_iter().map(|name| name.trim_start_matches('-').to_owned()).collect(),
        }
    }

    fn contain(&self, kind: &str) -> bool {
        (self.only.is_empty() || self.only.iter().any(|name| name == kind)) && !self.not.iter().any(|name| name == kind)
    }
}

/// All rounds, in order.
pub struct Plan {
    random: StdRng,
    abilities: Abilities,
    kinds: Kinds,
    deck: Vec<Act>,
}

impl Plan {
    /// Plans with these kinds.
    ///
    /// # Panics
    /// If none of them is possible.
    #[must_use]
    pub fn new(seed: u64, abilities: Abilities, kinds: &Kinds) -> Self {
        let mut plan = Self { random: StdRng::seed_from_u64(seed), abilities, kinds: kinds.clone(), deck: Vec::new() };
        plan.shuffle();
        assert!(!plan.deck.is_empty(), "no kind of act is left of {kinds:?} on this machine");
        plan
    }

    fn shuffle(&mut self) {
        let mut deck = one_of_each(&mut self.random, self.abilities);
        deck.retain(|act| self.kinds.contain(act.kind()));
        deck.shuffle(&mut self.random);
        // What is left of the last deck comes first.
        self.deck.splice(0..0, deck);
    }

    /// The steps of the next round, by the time of their beginning.
    pub fn round(&mut self) -> Vec<Step> {
        let acts = self.random.random_range(3..=ACTS_MAX);
        if self.deck.len() < acts {
            self.shuffle();
        }
        let mut steps: Vec<Step> = Vec::new();
        for _ in 0..acts {
            let Some(act) = self.deck.pop() else { break };
            let mut millis = |most: Duration| {
                Duration::from_millis(self.random.random_range(0..u64::try_from(most.as_millis()).unwrap_or(0)))
            };
            let (at, lasts) = (millis(ROUND), millis(if act.is_alone() { LONGEST / 2 } else { LONGEST }));
            let step = Step { at, lasts: (!act.is_harmless()).then_some(lasts), act };
            if steps.iter().any(|other| other.overlaps(&step)) {
                // Dealt in a later round.
                self.deck.insert(0, act);
            } else {
                steps.push(step);
            }
        }
        self.start_again(&mut steps);
        steps.sort_by_key(|step| step.at);
        steps
    }
}

impl Plan {
    /// In every second round the program is also killed and started again while other acts are in force: much of what
    /// it does, it does only at its start.
    fn start_again(&mut self, steps: &mut Vec<Step>) {
        let act = Act::Ended("program_killed", libc::SIGKILL);
        let is_wanted = self.kinds.contain(act.kind());
        let at = ROUND / 2 + Duration::from_millis(self.random.random_range(0..1500));
        if is_wanted && self.random.random() && steps.iter().all(|step| step.act.slot() != act.slot()) {
            steps.push(Step { at, lasts: Some(Duration::ZERO), act });
        }
    }
}

impl Step {
    fn overlaps(&self, other: &Self) -> bool {
        let begins_within = |one: &Self, other: &Self| one.lasts.is_none_or(|lasts| other.at < one.at + lasts);
        let (first, second) = if self.at <= other.at { (self, other) } else { (other, self) };
        first.act.slot() == second.act.slot() && begins_within(first, second)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const ALL: Abilities = Abilities { disk: true, clock: true, pooler: false, slow_disk: true, failing_disk: true };

    fn shown(plan: &mut Plan) -> String {
        (0..50).flat_map(|_| plan.round()).map(|step| format!("{step:?}")).collect()
    }

    #[test]
    fn a_seed_names_one_plan() {
        assert_eq!(shown(&mut Plan::new(7, ALL, &Kinds::default())), shown(&mut Plan::new(7, ALL, &Kinds::default())));
        assert_ne!(shown(&mut Plan::new(7, ALL, &Kinds::default())), shown(&mut Plan::new(8, ALL, &Kinds::default())));
    }

    #[test]
    fn every_kind_comes_and_acts_of_a_slot_never_overlap() {
        let mut plan = Plan::new(1, ALL, &Kinds::default());
        let mut seen = HashSet::new();
        for _ in 0..60 {
            let steps = plan.round();
            for (number, step) in steps.iter().enumerate() {
                seen.insert(step.act.kind());
                for other in &steps[number + 1..] {
                    assert!(!step.overlaps(other), "{step:?} and {other:?}");
                }
            }
        }
        let all: HashSet<_> = one_of_each(&mut StdRng::seed_from_u64(0), ALL).iter().map(Act::kind).collect();
        assert_eq!(seen, all);
    }

    #[test]
    fn a_plan_of_one_kind_repeats_it() {
        let mut plan = Plan::new(1, ALL, &Kinds::of("commit_late"));
        let acts: Vec<_> = (0..10).flat_map(|_| plan.round()).map(|step| step.act.kind()).collect();
        assert!(acts.len() >= 10 && acts.iter().all(|kind| *kind == "commit_late"), "{acts:?}");
    }

    #[test]
    fn kinds_can_be_excluded() {
        let mut plan = Plan::new(1, ALL, &Kinds::of("-snapshot,-disk_full,-program_killed"));
        let mut steps = (0..60).flat_map(|_| plan.round());
        assert!(!steps.any(|step| ["snapshot", "disk_full", "program_killed"].contains(&step.act.kind())));
    }

    #[test]
    fn what_is_impossible_here_is_not_planned() {
        let none = Abilities { disk: false, clock: false, pooler: true, slow_disk: false, failing_disk: false };
        let kinds: HashSet<_> = one_of_each(&mut StdRng::seed_from_u64(0), none).iter().map(Act::kind).collect();
        assert!(
            ["disk_full", "clock_step", "failover", "slow_disk", "journal_disk_full", "journal_sync_error"]
                .iter()
                .all(|kind| !kinds.contains(kind)),
            "{kinds:?}"
        );
        assert!(["pooler", "failover_behind_pooler"].iter().all(|kind| kinds.contains(kind)), "{kinds:?}");
    }
}
