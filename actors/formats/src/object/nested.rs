//! Members of nested objects: merged, flattened to dotted names, or mapped by the sender.

use std::borrow::Cow;

use super::field::{FIELDS, Field, field, slot};
use super::member::{Member, Members, read_members};
use crate::format::FieldMap;

/// Objects nested deeper than this are not flattened: each level needs another pass.
const FLAT_DEPTH_MAX: usize = 6;

/// Objects with longer names are not flattened: the name is repeated for each member.
pub const FLAT_NAME_BYTES_MAX: usize = 96;

/// Applies the sender's field mapping, which takes precedence over the usual names. It may refer to members of nested
/// objects; returns whether there were any.
#[cold]
pub fn map_fields<'a>(members: &mut Members<'a>, nested: &mut Members<'a>, fields: &FieldMap) -> bool {
    let lists = [
        (Field::Time, &fields.time),
        (Field::Level, &fields.level),
        (Field::Message, &fields.message),
        (Field::Service, &fields.service),
        (Field::Host, &fields.host),
    ];
    let map = |member: &mut Member<'_>| {
        member.role = member.role.map(|(field, rank)| (field, rank + USUAL_RANK));
        for (field, names) in lists {
            if let Some(rank) = names.iter().position(|name| *name == member.name) {
                member.role = Some((field, u8::try_from(rank).unwrap_or(USUAL_RANK).min(USUAL_RANK)));
            }
        }
        member.consumed |= fields.ignore.iter().any(|name| is_ignored(&member.name, name));
    };
    members.list.iter_mut().for_each(map);
    // A message may be an object, unless a mapped name is inside it; the others are flattened.
    let has_mapped = |outer: &str| {
        let inner = |name: &String| name.strip_prefix(outer).is_some_and(|rest| rest.starts_with('.'));
        lists.iter().any(|(_, names)| names.iter().any(inner))
    };
    let is_message = |member: &Member<'_>| {
        matches!(member.role, Some((Field::Message, _))) && member.name != "log" && !has_mapped(&member.name)
    };
    let top = members.list.len();
    let flattened = flatten(members, nested, |member| !is_message(member));
    members.list[top..].iter_mut().for_each(map);
    members.find_fields();
    flattened
}

/// Whether `ignore` is `name`, an object that contains it, or a prefix (`tmp_*`).
fn is_ignored(name: &str, ignore: &str) -> bool {
    match ignore.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name.strip_prefix(ignore).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')),
    }
}

/// Rank of the first usual name where the sender mapped others: above every rank of those.
const USUAL_RANK: u8 = 50;

/// Appends the members of the objects `attributes` and `fields` in place of these; returns whether there were any.
#[inline] // its caller is in another module: 3 % of the instructions without link-time optimization
pub fn merge<'a>(members: &mut Members<'a>, nested: &mut Members<'a>) -> Result<bool, String> {
    let is_object = |member: &Member<'a>| !member.consumed && member.value.starts_with('{');
    let mut merged = false;
    // The appended members never denote attributes themselves, so they are not visited again.
    let next =
        |members: &Members<'a>| members.of(Field::Attributes).find(|(_, member)| is_object(member)).map(|(at, _)| at);
    while let Some(at) = next(members) {
        merged = true;
        let member = &mut members.list[at];
        member.consumed = true;
        let from_fields = member.role == Some((Field::Attributes, FIELDS));
        read_members(member.value, nested)?;
        for mut member in nested.list.drain(..) {
            member.role = match member.role {
                Some((Field::Message, rank)) if from_fields => Some((Field::Message, rank + 100)),
                _ => None,
            };
            members.push(member);
        }
    }
    Ok(merged)
}

/// Replaces the nested objects selected by `wanted` by their members, under dotted names; returns whether there were
/// any.
#[inline] // its caller is in another module: 3 % of the instructions without link-time optimization
pub fn flatten<'a>(members: &mut Members<'a>, nested: &mut Members<'a>, wanted: impl Fn(&Member<'a>) -> bool) -> bool {
    let (mut level, mut flattened) = (0, false);
    for _ in 0..FLAT_DEPTH_MAX {
        let end = members.list.len();
        for at in level..end {
            let outer = &members.list[at];
            if !outer.value.starts_with('{')
                || outer.consumed
                || outer.name.len() > FLAT_NAME_BYTES_MAX
                || !wanted(outer)
            {
                continue;
            }
            if read_members(outer.value, nested).is_err() || nested.list.is_empty() {
                continue;
            }
            flattened = true;
            members.list[at].consumed = true;
            for inner in nested.list.drain(..) {
                let name = format!("{}.{}", members.list[at].name, inner.name);
                let role = field(&name);
                let slot = slot(&name, role);
                members.push(Member { name: Cow::Owned(name), slot, role, ..inner });
            }
        }
        if members.list.len() == end {
            break;
        }
        level = end;
    }
    flattened
}
