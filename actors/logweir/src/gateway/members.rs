//! The set of processors: the addresses that their names resolved to last, and a circuit breaker per address. Pure.
//!
//! - A name whose lookup fails keeps its addresses for a while: a name server that is briefly unavailable must not make
//!   the processors disappear. They are dropped after [`FORGET_AFTER`], because a service that was scaled down has no
//!   addresses and looks the same.
//! - An address keeps its breaker for as long as a name resolves to it.
//! - At most [`MEMBERS_MAX`] addresses are used; the number of ignored ones is reported.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::HostPort;
use crate::limits::breaker::{Allow, Breaker, BreakerSettings, BreakerSnapshot, BreakerState};

/// How long addresses are kept after the lookup of their name has started to fail.
pub const FORGET_AFTER: Duration = Duration::from_secs(60);
/// Maximum number of addresses.
pub const MEMBERS_MAX: usize = 256;

const BREAKER: BreakerSettings = BreakerSettings { failures_max: 3, open_ms_min: 1000, open_ms_max: 30_000 };

/// The state of one configured name.
#[derive(Debug)]
struct Name {
    name: HostPort,
    addresses: Vec<SocketAddr>,
    /// When the last successful lookup was; the error of the latest lookup if it failed.
    known_at: Instant,
    error: Option<String>,
}

/// A processor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The name that resolves to it.
    pub name: HostPort,
    /// Its address.
    pub address: SocketAddr,
}

/// All processors.
#[derive(Debug)]
pub struct Members {
    names: Vec<Name>,
    breakers: BTreeMap<SocketAddr, Breaker>,
    ignored: usize,
}

impl Members {
    /// No addresses are known at `now`.
    #[must_use]
    pub fn new(names: &[HostPort], now: Instant) -> Self {
        let name = |name: &HostPort| Name { name: name.clone(), addresses: Vec::new(), known_at: now, error: None };
        Self { names: names.iter().map(name).collect(), breakers: BTreeMap::new(), ignored: 0 }
    }

    /// The configured names.
    #[must_use]
    pub fn names(&self) -> Vec<HostPort> {
        self.names.iter().map(|name| name.name.clone()).collect()
    }

    /// Applies the result of looking up `name` at `now`.
    pub fn set_addresses(&mut self, name: &HostPort, found: Result<Vec<SocketAddr>, String>, now: Instant) {
        let Some(known) = self.names.iter_mut().find(|known| known.name == *name) else { return };
        match found {
            Ok(mut addresses) => {
                addresses.sort_unstable();
                addresses.dedup();
                (known.addresses, known.known_at, known.error) = (addresses, now, None);
            }
            Err(error) => {
                known.error = Some(error);
                if now.saturating_duration_since(known.known_at) >= FORGET_AFTER {
                    known.addresses.clear();
                }
            }
        }
        self.complete_round();
    }

    /// Keeps exactly one breaker per address.
    fn complete_round(&mut self) {
        let mut addresses: Vec<SocketAddr> = self.names.iter().flat_map(|name| name.addresses.clone()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        self.ignored = addresses.len().saturating_sub(MEMBERS_MAX);
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

    /// The problems with the names: those without an address, and addresses above the limit.
    #[must_use]
    pub fn problems(&self) -> Vec<(HostPort, String)> {
        let problem = |name: &Name| match (&name.error, name.addresses.is_empty()) {
            (Some(error), true) => Some((name.name.clone(), format!("DNS lookup failed: {error}"))),
            (None, true) => Some((name.name.clone(), "DNS lookup returned no address".to_owned())),
            (_, false) => None,
        };
        let mut problems: Vec<_> = self.names.iter().filter_map(problem).collect();
        if let (1.., Some(last)) = (self.ignored, self.names.last()) {
            let what = format!("ignoring {} addresses above the limit of {MEMBERS_MAX}", self.ignored);
            problems.push((last.name.clone(), what));
        }
        problems
    }

    /// Whether a request to `address` is allowed at `now`.
    pub fn allow(&mut self, address: SocketAddr, now: Instant) -> Allow {
        // Requests to an address that has just been removed may finish.
        self.breakers.get_mut(&address).map_or(Allow::Yes, |breaker| breaker.allow(now))
    }

    /// Records the outcome of a request to `address`.
    pub fn record_outcome(&mut self, address: SocketAddr, succeeded: bool, now: Instant) {
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

    /// The number of processors, and how many of them have an open breaker.
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
    fn a_name_has_the_addresses_of_its_last_lookup() {
        let now = Instant::now();
        let mut members = Members::new(&[name("a"), name("b")], now);
        members.set_addresses(&name("a"), Ok(addresses(1..4)), now);
        members.set_addresses(&name("b"), Ok(addresses(3..5)), now);
        assert_eq!(seen(&members), [1, 2, 3, 4]);
        members.set_addresses(&name("a"), Ok(addresses(2..3)), now);
        assert_eq!(seen(&members), [2, 3, 4], "3 belongs to b now");
        members.set_addresses(&name("c"), Ok(addresses(9..10)), now);
        assert_eq!(seen(&members), [2, 3, 4], "c is not configured");
    }

    #[test]
    fn a_failed_lookup_keeps_the_addresses_for_a_while() {
        let now = Instant::now();
        let mut members = Members::new(&[name("a")], now);
        members.set_addresses(&name("a"), Ok(addresses(1..3)), now);
        members.set_addresses(&name("a"), Err("no server".to_owned()), now + FORGET_AFTER - Duration::from_millis(1));
        assert_eq!((seen(&members), members.problems()), (vec![1, 2], vec![]));
        members.set_addresses(&name("a"), Err("no server".to_owned()), now + FORGET_AFTER);
        assert_eq!(seen(&members), [0; 0]);
        assert_eq!(members.problems(), [(name("a"), "DNS lookup failed: no server".to_owned())]);
    }

    #[test]
    fn a_breaker_exists_for_as_long_as_its_address() {
        let now = Instant::now();
        let mut members = Members::new(&[name("a")], now);
        members.set_addresses(&name("a"), Ok(addresses(1..3)), now);
        let broken = addresses(1..2)[0];
        (0..3).for_each(|_| members.record_outcome(broken, false, now));
        assert!(matches!(members.allow(broken, now), Allow::No { .. }));
        members.set_addresses(&name("a"), Ok(addresses(1..4)), now);
        assert!(matches!(members.allow(broken, now), Allow::No { .. }), "it is still the same processor");
        assert_eq!(members.count(), (3, 1));
        members.set_addresses(&name("a"), Ok(addresses(2..4)), now);
        members.set_addresses(&name("a"), Ok(addresses(1..4)), now);
        assert_eq!(members.allow(broken, now), Allow::Yes, "a new processor may have the address");
    }

    #[test]
    fn addresses_above_the_limit_are_ignored_and_reported() {
        let now = Instant::now();
        let mut members = Members::new(&[name("a")], now);
        members.set_addresses(&name("a"), Ok(addresses(1..300)), now);
        assert_eq!(members.members().len(), MEMBERS_MAX);
        assert_eq!(members.problems(), [(name("a"), "ignoring 43 addresses above the limit of 256".to_owned())]);
    }
}
