//! The members of one object, in order.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::field::{Field, field, slot};
use crate::json::check::{Name, in_column, out_of_range};
use crate::json::members::{RawMember, members};
use crate::text::Sanitized;

/// Above this number of members, duplicates are found by sorting: 40,000 names in one line must not take seconds.
const LINEAR_MAX: usize = 32;

/// A member of an object.
pub struct Member<'a> {
    /// Borrowed if it contains no escape, so that it can be written back unchanged.
    pub name: Cow<'a, str>,
    /// Raw JSON.
    pub value: &'a str,
    /// The value may contain an escape.
    pub escaped: bool,
    /// See [`slot`].
    pub slot: u8,
    /// The field that it may be used for, and its rank among the names of that field.
    pub role: Option<(Field, u8)>,
    /// Used, superseded by a later duplicate, or merged: not written.
    pub consumed: bool,
}

/// The members of one object.
#[derive(Default)]
pub struct Members<'a> {
    pub list: Vec<Member<'a>>,
    /// For each field, a bit for each member that may be used for it, as far as the bits go.
    of_field: [u64; 6],
    /// A bit for each name that denotes a field, one for the hash of each other name, and whether two names shared a
    /// bit: only then can a name be a duplicate.
    names: [u64; 2],
    alike: bool,
    /// Whether a value is an object or an array.
    pub has_nested: bool,
}

impl Members<'_> {
    pub fn recycle<'b>(mut self) -> Members<'b> {
        self.list.clear();
        // Nothing is moved: an empty vector is collected into its own allocation.
        let list = self.list.into_iter().map(|_| unreachable!("it was cleared")).collect();
        Members { list, ..Members::default() }
    }
}

impl<'a> Members<'a> {
    pub fn clear(&mut self) {
        self.list.clear();
        self.of_field = [0; 6];
        self.names = [0; 2];
        self.alike = false;
        self.has_nested = false;
    }

    pub fn push(&mut self, member: Member<'a>) {
        if let Some((field, _)) = member.role {
            self.of_field[field as usize] |= 1_u64.checked_shl(self.list.len() as u32).unwrap_or(0);
        }
        let bit = 1 << (member.slot % 64);
        let names = &mut self.names[usize::from(member.slot / 64)];
        self.alike |= *names & bit != 0;
        *names |= bit;
        self.has_nested |= member.escaped && matches!(member.value.as_bytes(), [b'{' | b'[', ..]);
        self.list.push(member);
    }

    /// Finds the members of each field again, after their roles have changed.
    pub fn find_fields(&mut self) {
        self.of_field = [0; 6];
        for (at, member) in self.list.iter().enumerate() {
            if let Some((field, _)) = member.role {
                self.of_field[field as usize] |= 1_u64.checked_shl(at as u32).unwrap_or(0);
            }
        }
    }

    /// The members that may be used for `field`, in order.
    pub fn of(&self, field: Field) -> impl Iterator<Item = (usize, &Member<'a>)> {
        let mut bits = self.of_field[field as usize];
        let mut rest = 64..self.list.len();
        let next = move || {
            if bits != 0 {
                let at = bits.trailing_zeros() as usize;
                bits &= bits - 1;
                return Some(at);
            }
            rest.find(|&at| self.list[at].role.is_some_and(|(of, _)| of == field))
        };
        std::iter::from_fn(next).map(|at| (at, &self.list[at]))
    }
}

/// Reads the members of the object `text`, in order, into `into`.
pub fn read_members<'a>(text: &'a str, into: &mut Members<'a>) -> Result<(), String> {
    into.clear();
    let mut push = |member: RawMember<'a>| {
        let RawMember { name, value, escaped } = member;
        let role = field(name);
        let slot = slot(name, role);
        into.push(Member { name: Cow::Borrowed(name), value, escaped, slot, role, consumed: false });
    };
    if members(text, &mut push) {
        return Ok(());
    }
    read_by_serde(text, into)
}

#[cold]
fn read_by_serde<'a>(text: &'a str, into: &mut Members<'a>) -> Result<(), String> {
    into.clear();
    let mut json = serde_json::Deserializer::from_str(text);
    AnyMembers(into).deserialize(&mut json).and_then(|()| json.end()).map_err(|error| in_column(&error))
}

struct AnyMembers<'s, 'a>(&'s mut Members<'a>);

impl<'a> DeserializeSeed<'a> for AnyMembers<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for AnyMembers<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key_seed(Name)? {
            let value = map.next_value::<&'a RawValue>()?.get();
            if let Some(number) = out_of_range(value) {
                return Err(serde::de::Error::custom(format_args!("number out of range: {number}")));
            }
            let role = field(&name);
            let slot = slot(&name, role);
            self.0.push(Member { name, value, escaped: true, slot, role, consumed: false });
        }
        Ok(())
    }
}

/// Marks each member whose name occurs again later as consumed.
pub fn drop_duplicates(members: &mut Members<'_>, counts: &mut Sanitized) {
    if members.alike {
        drop_duplicates_pairwise(&mut members.list, counts);
    }
}

#[cold]
fn drop_duplicates_pairwise(members: &mut [Member<'_>], counts: &mut Sanitized) {
    if members.len() > LINEAR_MAX {
        return drop_duplicates_by_sorting(members, counts);
    }
    for index in 0..members.len() {
        let (member, later) = members[index..].split_first_mut().expect("index is below len");
        if !member.consumed && later.iter().any(|other| !other.consumed && other.name == member.name) {
            member.consumed = true;
            counts.duplicate_key += 1;
        }
    }
}

fn drop_duplicates_by_sorting(members: &mut [Member<'_>], counts: &mut Sanitized) {
    let mut order: Vec<usize> = (0..members.len()).filter(|&index| !members[index].consumed).collect();
    order.sort_by(|&a, &b| members[a].name.cmp(&members[b].name)); // stable: equal names stay in order
    for pair in order.windows(2) {
        if members[pair[0]].name == members[pair[1]].name {
            members[pair[0]].consumed = true;
            counts.duplicate_key += 1;
        }
    }
}
