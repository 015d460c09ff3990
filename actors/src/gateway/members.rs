//! Who the processors are: what the names were last looked up to, and how each address has answered. Pure.
//!
//! - A name that cannot be looked up keeps its addresses for a while: a name server that is away for a moment must not make
//!   the processors vanish. After [`FORGET`] they go, since a scaled-down service has no addresses, and that reads the same.
//! - An address keeps its breaker as long as some name stands for it.
//! - No more than [`MEMBERS_MAX`] addresses are kept; what is left out is told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::breaker::{Allow, Breaker, BreakerSettings, BreakerSnapshot, BreakerState};
use crate::config::HostPort;

/// How long the addresses of a name that cannot be looked up any more are kept.
pub const FORGET: Duration = Duration::from_secs(60);
/// Most addresses.
pub const MEMBERS_MAX: usize = 256;

const BREAKER: BreakerSettings = BreakerSettings { failures_max: 3, open_ms_min: 1000, open_ms_max: 30_000 };

/// What is known of one configured name.
#[derive(Debug)]
struct Name {
    name: HostPort,
    addresses: Vec<SocketAddr>,
    /// When the last lookup succeeded, and what the last one said if it failed.
    known_at: Instant,
    error: Option<String>,
}

/// A processor to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The name that stands for it.
    pub name: HostPort,
    /// Where it is.
    pub address: SocketAddr,
}

/// All processors.
#[derive(Debug)]
pub struct Members {
    names: Vec<Name>,
    breakers: BTreeMap<SocketAddr, Breaker>,
    left_out: usize,
}

impl Members {
    /// Nothing is known yet at `now`.
    #[must_use]
    pub fn new(names: &[HostPort], now: Instant) -> Self {
        let name = |name: &HostPort| Name { name: name.clone(), addresses: Vec::new(), known_at: now, error: None };
        Self { names: names.iter().map(name).collect(), breakers: BTreeMap::new(), left_out: 0 }
    }

    /// The configured names.
    #[must_use]
    pub fn names(&self) -> Vec<HostPort> {
        self.names.iter().map(|name| name.name.clone()).collect()
    }

    /// What looking up `name` said at `now`.
    pub fn looked_up(&mut self, name: &HostPort, found: Result<Vec<SocketAddr>, String>, now: Instant) {
        let Some(known) = self.names.iter_mut().find(|known| known.name == *name) else { return };
        match found {
            Ok(mut addresses) => {
                addresses.sort_unstable();
                addresses.dedup();
                (known.addresses, known.known_at, known.error) = (addresses, now, None);
            }
            Err(error) => {
                known.error = Some(error);
                if now.saturating_duration_since(known.known_at) >= FORGET {
                    known.addresses.clear();
                }
            }
        }
        self.complete_round();
    }

    /// One breaker for each address, and none for what is gone.
    fn complete_round(&mut self) {
        let mut addresses: Vec<SocketAddr> = self.names.iter().flat_map(|name| name.addresses.clone()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        self.left_out = addresses.len().saturating_sub(MEMBERS_MAX);
        addresses.truncate(MEMBERS_MAX);
        self.breakers.retain(|address, _| addresses.binary_search(address).is_ok());
        for address in addresses {
            self.breakers.entry(address).or_insert_with(|| Breaker::new(BREAKER));
        }
    }

    /// Every address once, in the order of the names.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        let mut left: Vec<SocketAddr> = self.breakers.keys().copied().collect();
        let mut members = Vec::with_capacity(left.len());
        for name in &self.names {
            for &address in &name.addresses {
                if let Some(at) = left.iter().position(|other| *other == address) {
                    left.remove(at);
                    members.push(Member { name: name.name.clone(), address });
                }
            }
        }
        members
    }

    /// What is wrong with the names: those that stand for nobody, and addresses that are one too many.
    #[must_use]
    pub fn troubles(&self) -> Vec<(HostPort, String)> {
        let trouble = |name: &Name| match (&name.error, name.addresses.is_empty()) {
            (Some(error), true) => Some((name.name.clone(), format!("the name cannot be looked up: {error}"))),
            (None, true) => Some((name.name.clone(), "the name stands for no address".to_owned())),
            (_, false) => None,
        };
        let mut troubles: Vec<_> = self.names.iter().filter_map(trouble).collect();
        if let (1.., Some(last)) = (self.left_out, self.names.last()) {
            let what = format!("{} addresses above {MEMBERS_MAX} are left out", self.left_out);
            troubles.push((last.name.clone(), what));
        }
        troubles
    }

    /// Whether `address` may be asked at `now`.
    pub fn allow(&mut self, address: SocketAddr, now: Instant) -> Allow {
        // Who has left meanwhile may be asked to the end of what was begun.
        self.breakers.get_mut(&address).map_or(Allow::Yes, |breaker| breaker.allow(now))
    }

    /// How asking `address` went.
    pub fn asked(&mut self, address: SocketAddr, succeeded: bool, now: Instant) {
        match self.breakers.get_mut(&address) {
            Some(breaker) if succeeded => breaker.succeeded(now),
            Some(breaker) => breaker.failed(now),
            None => {}
        }
    }

    /// The breaker of `address` at `now`.
    #[must_use]
    pub fn breaker(&self, address: SocketAddr, now: Instant) -> Option<BreakerSnapshot> {
        self.breakers.get(&address).map(|breaker| breaker.snapshot(now))
    }

    /// How many there are, and how many of them are not asked for now.
    #[must_use]
    pub fn count(&self) -> (usize, usize) {
        let open = self.breakers.values().filter(|breaker| breaker.state() == BreakerState::Open).count();
        (self.breakers.len(), open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(host: &str) -> HostPort {
        HostPort { host: host.to_owned(), port: 8080 }
    }

    fn addresses(last: std::ops::Range<u16>) -> Vec<SocketAddr> {
        last.map(|port| SocketAddr::from(([10, 0, 0, 1], port))).collect()
    }

    fn seen(members: &Members) -> Vec<u16> {
        members.members().iter().map(|member| member.address.port()).collect()
    }

    #[test]
    fn a_name_stands_for_what_it_was_last_looked_up_to() {
        let now = Instant::now();
        let mut members = Members::new(&[name("a"), name("b")], now);
        members.looked_up(&name("a"), Ok(addresses(1..4)), now);
        members.looked_up(&name("b"), Ok(addresses(3..5)), now);
        assert_eq!(seen(&members), [1, 2, 3, 4]);
        members.looked_up(&name("a"), Ok(addresses(2..3)), now);
        assert_eq!(seen(&members), [2, 3, 4], "3 is b's now");
        members.looked_up(&name("c"), Ok(addresses(9..10)), now);
        assert_eq!(seen(&members), [2, 3, 4], "nobody asked for c");
    }

    #[test]
    fn a_failed_lookup_keeps_the_addresses_for_a_while() {
        let now = Instant::now();
        let mut members = Members::new(&[name("a")], now);
        members.looked_up(&name("a"), Ok(addresses(1..3)), now);
        members.looked_up(&name("a"), Err("no server".to_owned()), now + FORGET - Duration::from_millis(1));
        assert_eq!((seen(&members), members.troubles()), (vec![1, 2], vec![]));
        members.looked_up(&name("a"), Err("no server".to_owned()), now + FORGET);
        assert_eq!(seen(&members), [0; 0]);
        assert_eq!(members.troubles(), [(name("a"), "the name cannot be looked up: no server".to_owned())]);
    }

    #[test]
    fn a_breaker_lives_as_long_as_its_address() {
        let now = Instant::now();
        let mut members = Members::new(&[name("a")], now);
        members.looked_up(&name("a"), Ok(addresses(1..3)), now);
        let broken = addresses(1..2)[0];
        (0..3).for_each(|_| members.asked(broken, false, now));
        assert!(matches!(members.allow(broken, now), Allow::No { .. }));
        members.looked_up(&name("a"), Ok(addresses(1..4)), now);
        assert!(matches!(members.allow(broken, now), Allow::No { .. }), "it is the same processor still");
        assert_eq!(members.count(), (3, 1));
        members.looked_up(&name("a"), Ok(addresses(2..4)), now);
        members.looked_up(&name("a"), Ok(addresses(1..4)), now);
        assert_eq!(members.allow(broken, now), Allow::Yes, "somebody new may have the address");
    }

    #[test]
    fn addresses_above_the_most_are_left_out_and_told() {
        let now = Instant::now();
        let mut members = Members::new(&[name("a")], now);
        members.looked_up(&name("a"), Ok(addresses(1..300)), now);
        assert_eq!(members.members().len(), MEMBERS_MAX);
        assert_eq!(members.troubles(), [(name("a"), "43 addresses above 256 are left out".to_owned())]);
    }
}
