//! Walks over JSON of a known protocol: elements and members one after the other, as raw text, without a tree.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::check::{Name, in_column};
use crate::text::{Sanitized, unescape};

/// Passes each element of the array `text` to `each`.
///
/// # Errors
/// `text` is not an array, or an error of `each`.
pub fn elements<'a>(text: &'a str, each: impl FnMut(&'a str) -> Result<(), String>) -> Result<(), String> {
    let mut json = serde_json::Deserializer::from_str(text);
    let walk = Elements(each, PhantomData);
    json.deserialize_seq(walk).and_then(|()| json.end()).map_err(|error| in_column(&error))
}

/// Passes each member of the object `text` to `each`, with its name.
///
/// # Errors
/// `text` is not an object, or an error of `each`.
pub fn members<'a>(text: &'a str, each: impl FnMut(Cow<'a, str>, &'a str) -> Result<(), String>) -> Result<(), String> {
    let mut json = serde_json::Deserializer::from_str(text);
    let walk = Members(each, PhantomData);
    json.deserialize_map(walk).and_then(|()| json.end()).map_err(|error| in_column(&error))
}

/// Returns the members of the object `text` with these names as raw JSON, empty if absent. Each has two names; the last
/// member present wins. An absent object has no members.
///
/// # Errors
/// `text` is not an object.
pub fn pick<'a, const N: usize>(text: &'a str, names: [[&str; 2]; N]) -> Result<[&'a str; N], String> {
    let mut found = [""; N];
    if !is_present(text) {
        return Ok(found);
    }
    let mut put = |name: &str, value: &'a str| {
        if is_present(value)
            && let Some(at) = names.iter().position(|names| names.contains(&name))
        {
            found[at] = value;
        }
    };
    // The usual case takes one pass; if that gives up, everything is read again.
    if !crate::json::members::members(text, |member| put(member.name, member.value)) {
        members(text, |name, value| {
            put(&name, value);
            Ok(())
        })?;
    }
    Ok(found)
}

/// The text of the JSON string `value`, unescaped into `buffer`; `None` if it is not a string.
pub fn string<'b>(value: &str, buffer: &'b mut String, counts: &mut Sanitized) -> Option<&'b str> {
    let raw = value.strip_prefix('"')?.strip_suffix('"')?;
    buffer.clear();
    unescape(raw, buffer, counts);
    Some(buffer)
}

/// Whether `value` is present: an absent member and `null` are equivalent.
pub fn is_present(value: &str) -> bool {
    !matches!(value, "" | "null")
}

struct Elements<'a, F>(F, PhantomData<&'a ()>);

impl<'a, F: FnMut(&'a str) -> Result<(), String>> Visitor<'a> for Elements<'a, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON array")
    }

    fn visit_seq<A: SeqAccess<'a>>(mut self, mut seq: A) -> Result<(), A::Error> {
        while let Some(element) = seq.next_element::<&'a RawValue>()? {
            (self.0)(element.get()).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}

struct Members<'a, F>(F, PhantomData<&'a ()>);

impl<'a, F: FnMut(Cow<'a, str>, &'a str) -> Result<(), String>> Visitor<'a> for Members<'a, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'a>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key_seed(Name)? {
            let value = map.next_value::<&'a RawValue>()?.get();
            (self.0)(name, value).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}
