//! What the clients sent and the responses they got: the ground truth for checking the database. It lives outside the
//! process that is killed.
//!
//! - A record's text is derived from its key, so that only the outcome of each post must be remembered, and a stored
//!   message can be compared completely.
//! - A key is used once. A retry after an unknown outcome uses new keys.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hasher};
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Unique key of a record: the client and the number of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The client's number.
    pub client: u32,
    /// Counts the client's records from 0.
    pub number: u32,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}-{}", self.client, self.number)
    }
}

impl FromStr for Key {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (client, number) = text.strip_prefix('c')?.split_once('-')?;
            Some(Self { client: client.parse().ok()?, number: number.parse().ok()? })
        };
        parse().ok_or_else(|| format!("invalid key {text:?}"))
    }
}

/// Returns the message for `key`: the key, the length, and filler up to that length.
#[must_use]
pub fn message(key: Key, bytes: usize) -> String {
    let mut text = format!("{key}/{bytes} ");
    let filler = filler();
    let mut from = (key.client as usize * 7919 + key.number as usize * 104_729) % filler.len();
    while text.len() < bytes {
        let piece = &filler[from..];
        text.push_str(&piece[..piece.len().min(bytes - text.len())]);
        from = 0;
    }
    text
}

/// Parses the key from a message and verifies the rest.
///
/// # Errors
/// The message was not created by [`message`], or was changed.
pub fn key_of(text: &str) -> Result<Key, String> {
    let shown = || text.chars().take(40).collect::<String>();
    let head = text.split(' ').next().unwrap_or_default();
    let (key, bytes) = head.split_once('/').ok_or_else(|| format!("no key in {:?}", shown()))?;
    let key: Key = key.parse()?;
    let bytes: usize = bytes.parse().map_err(|_| format!("no length in {:?}", shown()))?;
    if text == message(key, bytes) { Ok(key) } else { Err(format!("the text of {key} was changed: {:?}", shown())) }
}

/// Returns a checksum of `text` as stored in a record's attributes.
#[must_use]
pub fn checksum(text: &str) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(text.as_bytes());
    format!("{:016x}", hasher.finish())
}

/// Returns a record as a line of NDJSON.
pub fn write_line(body: &mut String, key: Key, bytes: usize, now: &str) {
    let message = message(key, bytes);
    let sum = checksum(&message);
    let Key { client, .. } = key;
    let _ = writeln!(
        body,
        r#"{{"timestamp":"{now}","level":"info","service":"chaos-{client}","host":"bench","message":"{message}","key":"{key}","sum":"{sum}"}}"#
    );
}

/// Returns text that compresses badly: repetitive filler would understate the database's work.
fn filler() -> &'static str {
    static FILLER: OnceLock<String> = OnceLock::new();
    FILLER.get_or_init(|| {
        let mut random = StdRng::seed_from_u64(0x10c);
        (0..64 << 10).map(|_| char::from(random.random_range(b'a'..=b'z'))).collect()
    })
}

/// Outcome of a post.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 200 with all records accepted: each must be in the database exactly once.
    Acknowledged,
    /// No response, or a rejection: the post is either in the database completely and exactly once, or not at all.
    Unknown,
}

/// A post: `count` records of `client` starting at number `first`.
#[derive(Clone, Copy, Debug)]
pub struct Post {
    /// The client.
    pub client: u32,
    /// Number of the first record.
    pub first: u32,
    /// Number of records.
    pub count: u32,
    /// Its outcome.
    pub outcome: Outcome,
}

impl Post {
    /// Returns the keys of its records.
    pub fn keys(&self) -> impl Iterator<Item = Key> + use<> {
        let Self { client, first, count, .. } = *self;
        (first..first + count).map(move |number| Key { client, number })
    }
}

/// All posts of all clients, in order per client.
#[derive(Debug, Default)]
pub struct Ledger {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    posts: BTreeMap<u32, Vec<Post>>,
    violations: Vec<String>,
}

impl Ledger {
    /// Registers a new client.
    pub fn new_client(&self) -> u32 {
        let mut inner = self.lock();
        let client = u32::try_from(inner.posts.len()).expect("fewer than 2^32 clients");
        inner.posts.insert(client, Vec::new());
        client
    }

    /// Records the outcome of a post.
    pub fn enter(&self, post: Post) {
        self.lock().posts.entry(post.client).or_default().push(post);
    }

    /// Records a response that the contract does not allow.
    pub fn record_violation(&self, what: String) {
        self.lock().violations.push(what);
    }

    /// Returns the responses that the contract does not allow.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// Returns all posts of all clients.
    #[must_use]
    pub fn posts(&self) -> Vec<Post> {
        self.lock().posts.values().flatten().copied().collect()
    }

    /// Returns the number of records with this outcome.
    #[must_use]
    pub fn records(&self, outcome: Outcome) -> u64 {
        self.posts().iter().filter(|post| post.outcome == outcome).map(|post| u64::from(post.count)).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The entries of a client that panicked are still valid.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_contains_its_key_and_a_changed_byte_is_detected() {
        let key = Key { client: 3, number: 17 };
        for bytes in [0, 40, 200_000] {
            assert_eq!(key_of(&message(key, bytes)), Ok(key));
        }
        let text = message(key, 100);
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] ^= 1;
            let changed = String::from_utf8(changed).unwrap();
            assert_ne!(key_of(&changed), Ok(key), "byte {at}");
        }
        assert!(key_of(&text[..99]).is_err());
    }

    #[test]
    fn messages_of_consecutive_keys_differ_beyond_the_key() {
        let [a, b] = [1, 2].map(|number| message(Key { client: 0, number }, 100));
        assert_ne!(a[12..], b[12..]);
    }
}
