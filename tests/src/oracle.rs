//! Checks a database's contents against what the clients sent and what was acknowledged. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use serde_json::Value;

use crate::ledger::{Key, Outcome, Post, checksum, key_of};

/// A stored record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// `lane_id << 44 | ordinal`.
    pub id: i64,
    /// The message.
    pub message: String,
    /// The attributes as JSON text.
    pub attributes: String,
}

/// A lane's row in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneTotals {
    /// The number in its records' ids.
    pub lane_id: i64,
    /// Its count of rows.
    pub rows: i64,
    /// Its count of dead letters.
    pub dead: i64,
    /// Its count of lost records.
    pub lost: i64,
    /// Earlier records that another copy of its journal stored under other ids.
    pub inherited: i64,
}

/// The compared contents of a store.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// The rows.
    pub rows: Vec<Stored>,
    /// The dead letters.
    pub dead: Vec<Stored>,
    /// The lanes.
    pub lanes: Vec<LaneTotals>,
}

/// A violation of the contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Acknowledged, but not stored.
    Lost(Vec<Key>),
    /// Stored more than once.
    Doubled(Vec<Key>),
    /// Stored, but never sent, or changed.
    Altered(Vec<String>),
    /// Only part of a post is stored.
    Torn(Vec<Key>),
    /// Records of one client that are stored in their lane in another order than they were sent.
    Disordered(Vec<(Key, Key)>),
    /// Two records with the same id.
    IdTwice(Vec<i64>),
    /// Inconsistent counts.
    Accounting(String),
    /// A response that the contract does not allow.
    Answer(String),
    /// `logweir verify` reported a problem or failed.
    Verify(String),
    /// The system did not recover.
    Stuck(String),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(keys) => list(f, "acknowledged, but not stored", keys),
            Self::Doubled(keys) => list(f, "stored more than once", keys),
            Self::Altered(what) => list(f, "stored, but not as sent", what),
            Self::Torn(keys) => list(f, "missing, although the rest of the same post is stored", keys),
            Self::Disordered(pairs) => {
                let pairs: Vec<_> = pairs.iter().map(|(first, second)| format!("{first} before {second}")).collect();
                list(f, "stored in another order than sent", &pairs)
            }
            Self::IdTwice(ids) => list(f, "ids used twice", ids),
            Self::Accounting(what) => write!(f, "inconsistent accounting: {what}"),
            Self::Answer(what) => write!(f, "a response that violates the contract: {what}"),
            Self::Verify(what) => write!(f, "logweir verify: {what}"),
            Self::Stuck(what) => write!(f, "stuck: {what}"),
        }
    }
}

fn list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, what: &str, items: &[T]) -> fmt::Result {
    write!(f, "{} {what}:", items.len())?;
    items.iter().take(20).try_for_each(|item| write!(f, " {item}"))?;
    if items.len() > 20 { f.write_str(" …") } else { Ok(()) }
}

/// Compares the store with the ledger. Returns all violations.
#[must_use]
pub fn examine(posts: &[Post], contents: &Contents) -> Vec<Violation> {
    examine_damaged(posts, contents, &HashSet::new())
}

/// As [`examine`], after somebody has damaged these records in the journal: each may be missing, and is then counted as
/// lost. No other one is.
#[must_use]
pub fn examine_damaged(posts: &[Post], contents: &Contents, damaged: &HashSet<Key>) -> Vec<Violation> {
    let mut altered = Vec::new();
    let mut found: HashMap<Key, i64> = HashMap::with_capacity(contents.rows.len());
    let mut doubled = Vec::new();
    for stored in contents.rows.iter().chain(&contents.dead) {
        match identify(stored) {
            Ok(key) => {
                if found.insert(key, stored.id).is_some() {
                    doubled.push(key);
                }
            }
            Err(what) => altered.push(format!("id {}: {what}", stored.id)),
        }
    }
    let sent: HashSet<Key> = posts.iter().flat_map(Post::keys).collect();
    altered.extend(found.keys().filter(|key| !sent.contains(key)).map(|key| format!("{key} was never sent")));
    altered.sort();

    let mut lost = Vec::new();
    let mut torn = Vec::new();
    for post in posts {
        let is_missing = |key: &Key| !found.contains_key(key) && !damaged.contains(key);
        let missing: Vec<Key> = post.keys().filter(is_missing).collect();
        match post.outcome {
            Outcome::Acknowledged => lost.extend(missing),
            Outcome::Unknown if post.keys().any(|key| found.contains_key(&key)) => torn.extend(missing),
            Outcome::Unknown => {}
        }
    }
    let mut violations = Vec::new();
    let mut add = |empty: bool, violation: Violation| {
        if !empty {
            violations.push(violation);
        }
    };
    add(lost.is_empty(), Violation::Lost(lost));
    add(doubled.is_empty(), Violation::Doubled(doubled));
    add(altered.is_empty(), Violation::Altered(altered));
    add(torn.is_empty(), Violation::Torn(torn));
    let disordered = disordered(posts, &found);
    add(disordered.is_empty(), Violation::Disordered(disordered));
    let twice = ids_used_twice(contents);
    add(twice.is_empty(), Violation::IdTwice(twice));
    violations.extend(inconsistent_lanes(contents).into_iter().map(Violation::Accounting));
    let missing = damaged.iter().filter(|key| !found.contains_key(key)).count();
    let counted: i64 = contents.lanes.iter().map(|lane| lane.lost).sum();
    if i64::try_from(missing) != Ok(counted) {
        let what = format!("{missing} damaged records are missing, but {counted} records are counted as lost");
        violations.push(Violation::Accounting(what));
    }
    violations
}

/// Returns the key of a record that is stored as a client sent it.
fn identify(stored: &Stored) -> Result<Key, String> {
    let key = key_of(&stored.message)?;
    let attributes: Value =
        serde_json::from_str(&stored.attributes).map_err(|error| format!("attributes of {key}: {error}"))?;
    if attributes["key"] != key.to_string() || attributes["sum"] != checksum(&stored.message) {
        return Err(format!("attributes of {key}: {attributes}"));
    }
    Ok(key)
}

/// Returns consecutive records of a lane that are in the wrong order. Only acknowledged posts are ordered: a client
/// sends the next one after the response, while a post without a response can still be in flight.
fn disordered(posts: &[Post], found: &HashMap<Key, i64>) -> Vec<(Key, Key)> {
    let mut wrong = Vec::new();
    let mut last: HashMap<(u32, i64), (i64, Key)> = HashMap::new();
    for key in posts.iter().filter(|post| post.outcome == Outcome::Acknowledged).flat_map(Post::keys) {
        let Some(&id) = found.get(&key) else { continue };
        if let Some((before, other)) = last.insert((key.client, id >> 44), (id, key))
            && before >= id
        {
            wrong.push((other, key));
        }
    }
    wrong
}

fn ids_used_twice(contents: &Contents) -> Vec<i64> {
    let mut seen = HashSet::with_capacity(contents.rows.len());
    contents.rows.iter().chain(&contents.dead).map(|stored| stored.id).filter(|id| !seen.insert(*id)).collect()
}

/// Checks that a lane's row has the right counts of rows and dead letters, and that no ordinal is beyond its end.
fn inconsistent_lanes(contents: &Contents) -> Vec<String> {
    let mut counted: BTreeMap<i64, LaneTotals> = BTreeMap::new();
    let mut newest: BTreeMap<i64, i64> = BTreeMap::new();
    for (stored, is_row) in
        contents.rows.iter().map(|row| (row, true)).chain(contents.dead.iter().map(|dead| (dead, false)))
    {
        let lane_id = stored.id >> 44;
        let lane = counted.entry(lane_id).or_insert(LaneTotals { lane_id, ..LaneTotals::default() });
        *(if is_row { &mut lane.rows } else { &mut lane.dead }) += 1;
        let ordinal = stored.id & ((1 << 44) - 1);
        newest.entry(lane_id).and_modify(|newest| *newest = ordinal.max(*newest)).or_insert(ordinal);
    }
    let mut wrong = Vec::new();
    for claimed in &contents.lanes {
        let counted_lane = counted.remove(&claimed.lane_id).unwrap_or_default();
        if (claimed.rows, claimed.dead) != (counted_lane.rows, counted_lane.dead) {
            wrong.push(format!(
                "lane {} counts {} rows and {} dead letters, the store has {} and {}",
                claimed.lane_id, claimed.rows, claimed.dead, counted_lane.rows, counted_lane.dead
            ));
        }
        let accounted = claimed.rows + claimed.dead + claimed.lost + claimed.inherited;
        if let Some(newest) = newest.get(&claimed.lane_id)
            && *newest > accounted
        {
            wrong.push(format!("lane {} accounts for {accounted} records, but has ordinal {newest}", claimed.lane_id));
        }
    }
    wrong.extend(counted.values().map(|lane| format!("{} rows of lane {}, which has no row", lane.rows, lane.lane_id)));
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::message;

    fn post(client: u32, first: u32, count: u32, outcome: Outcome) -> Post {
        Post { client, first, count, outcome }
    }

    fn stored(client: u32, number: u32, ordinal: i64) -> Stored {
        let key = Key { client, number };
        let message = message(key, 60);
        let attributes = format!(r#"{{"key":"{key}","sum":"{}"}}"#, checksum(&message));
        Stored { id: 1 << 44 | ordinal, message, attributes }
    }

    fn contents(rows: Vec<Stored>) -> Contents {
        let lanes = vec![LaneTotals { lane_id: 1, rows: rows.len() as i64, ..LaneTotals::default() }];
        Contents { rows, dead: Vec::new(), lanes }
    }

    /// Two posts of one client, the second without a response, and a store that has both.
    fn good() -> (Vec<Post>, Contents) {
        let posts = vec![post(0, 0, 2, Outcome::Acknowledged), post(0, 2, 2, Outcome::Unknown)];
        (posts, contents((0..4).map(|n| stored(0, n, i64::from(n) + 1)).collect()))
    }

    fn findings(change: impl FnOnce(&mut Vec<Post>, &mut Contents)) -> Vec<Violation> {
        let (mut posts, mut contents) = good();
        change(&mut posts, &mut contents);
        examine(&posts, &contents)
    }

    fn key(client: u32, number: u32) -> Key {
        Key { client, number }
    }

    #[test]
    fn a_store_with_everything_once_passes_with_and_without_the_unacknowledged_post() {
        assert_eq!(findings(|_, _| {}), []);
        let without = |_: &mut Vec<Post>, store: &mut Contents| {
            store.rows.truncate(2);
            store.lanes[0].rows = 2;
        };
        assert_eq!(findings(without), []);
    }

    #[test]
    fn a_record_in_the_dead_letters_is_not_lost() {
        let moved = |_: &mut Vec<Post>, store: &mut Contents| {
            store.dead = store.rows.split_off(3);
            store.lanes[0] = LaneTotals { lane_id: 1, rows: 3, dead: 1, ..LaneTotals::default() };
        };
        assert_eq!(findings(moved), []);
    }

    #[test]
    fn an_acknowledged_record_that_is_missing_is_found() {
        let lose = |_: &mut Vec<Post>, store: &mut Contents| {
            store.rows.remove(1);
            store.lanes[0].rows = 3;
        };
        // Ordinal 4 beyond three accounted records is a second symptom of the same loss.
        assert_eq!(findings(lose)[0], Violation::Lost(vec![key(0, 1)]));
    }

    #[test]
    fn a_damaged_record_may_be_missing_if_it_is_counted_as_lost_and_no_other_one() {
        let (posts, mut store) = good();
        store.rows.remove(1);
        store.lanes[0] = LaneTotals { lane_id: 1, rows: 3, lost: 1, ..LaneTotals::default() };
        let examined =
            |store: &Contents, damaged: &[Key]| examine_damaged(&posts, store, &damaged.iter().copied().collect());
        assert_eq!(examined(&store, &[key(0, 1)]), []);
        // One that is stored nevertheless.
        assert_eq!(examined(&store, &[key(0, 1), key(0, 2)]), []);
        assert_eq!(examined(&store, &[key(0, 2)])[0], Violation::Lost(vec![key(0, 1)]));
        store.lanes[0].lost = 0;
        assert!(matches!(examined(&store, &[key(0, 1)])[..], [.., Violation::Accounting(_)]));
    }

    #[test]
    fn a_record_stored_twice_is_found() {
        let double = |_: &mut Vec<Post>, store: &mut Contents| {
            store.rows.push(stored(0, 0, 5));
            store.lanes[0].rows = 5;
        };
        assert_eq!(
            findings(double),
            [Violation::Doubled(vec![key(0, 0)]), Violation::Disordered(vec![(key(0, 0), key(0, 1))])]
        );
    }

    #[test]
    fn a_record_that_was_never_sent_and_a_changed_attribute_are_found() {
        let foreign = |posts: &mut Vec<Post>, _: &mut Contents| posts.truncate(1);
        assert!(matches!(&findings(foreign)[..], [Violation::Altered(what)] if what.len() == 2));
        let changed = |_: &mut Vec<Post>, store: &mut Contents| {
            store.rows[3].attributes = store.rows[2].attributes.clone();
        };
        assert!(matches!(findings(changed)[0], Violation::Altered(_)));
    }

    #[test]
    fn a_partially_stored_post_is_found() {
        let tear = |_: &mut Vec<Post>, store: &mut Contents| {
            store.rows.truncate(3);
            store.lanes[0].rows = 3;
        };
        assert_eq!(findings(tear), [Violation::Torn(vec![key(0, 3)])]);
    }

    #[test]
    fn a_wrong_order_within_a_lane_is_found_and_across_lanes_is_ignored() {
        let swap = |_: &mut Vec<Post>, store: &mut Contents| {
            (store.rows[0].id, store.rows[1].id) = (store.rows[1].id, store.rows[0].id);
        };
        assert_eq!(findings(swap), [Violation::Disordered(vec![(key(0, 0), key(0, 1))])]);
        let spread = |_: &mut Vec<Post>, store: &mut Contents| {
            store.rows[0].id = 2 << 44 | 9;
            store.lanes[0] = LaneTotals { lane_id: 1, rows: 3, inherited: 1, ..LaneTotals::default() };
            store.lanes.push(LaneTotals { lane_id: 2, rows: 1, inherited: 8, ..LaneTotals::default() });
        };
        assert_eq!(findings(spread), []);
    }

    #[test]
    fn a_duplicate_id_and_wrong_totals_are_found() {
        let twice = |_: &mut Vec<Post>, store: &mut Contents| store.rows[3].id = store.rows[2].id;
        assert_eq!(findings(twice), [Violation::IdTwice(vec![1 << 44 | 3])]);
        for (rows, dead, lost) in [(3, 0, 0), (4, 1, 0), (4, 0, 1)] {
            let wrong = |_: &mut Vec<Post>, store: &mut Contents| {
                store.lanes[0] = LaneTotals { lane_id: 1, rows, dead, lost, inherited: 0 };
            };
            assert!(matches!(findings(wrong)[0], Violation::Accounting(_)));
        }
        let orphan = |_: &mut Vec<Post>, store: &mut Contents| store.lanes.clear();
        assert!(matches!(findings(orphan)[..], [Violation::Accounting(_)]));
    }
}
