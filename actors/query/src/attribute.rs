//! Finds an attribute value in JSON text without building a tree. Follows `jsonb`: of duplicate members the last one
//! counts, and numbers are written without an exponent.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Limits the digits of a number; `PostgreSQL` has a limit of this kind, too.
const ZEROS_MAX: i64 = 20_000;

/// The JSON text of the value that `name` refers to in the object `attributes`.
pub(crate) fn find<'a>(attributes: &'a str, name: &str) -> Option<&'a str> {
    if attributes.is_empty() {
        return None;
    }
    paths(name).find_map(|path| path.into_iter().try_fold(attributes, member))
}

/// The interpretations of `name`, by precedence: `a.b.c` is the name of a member; otherwise `c` is inside the member
/// `a.b`; otherwise `c` is inside `b` inside `a`.
pub fn paths(name: &str) -> impl Iterator<Item = Vec<&str>> {
    let cuts = std::iter::once(name.len()).chain(name.rmatch_indices('.').map(|(at, _)| at).take(DOTS_MAX));
    cuts.map(move |cut| {
        let rest = name.get(cut + 1..).into_iter().flat_map(|rest| rest.split('.'));
        std::iter::once(&name[..cut]).chain(rest).collect()
    })
}

/// Maximum number of dots at which a name is split.
const DOTS_MAX: usize = 8;

fn member<'a>(object: &'a str, name: &str) -> Option<&'a str> {
    if !object.starts_with('{') {
        return None;
    }
    let mut json = serde_json::Deserializer::from_str(object);
    json.deserialize_map(Member(name)).ok().flatten()
}

/// Finds the last member with this name.
struct Member<'n>(&'n str);

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Visitor<'de> for Member<'_> {
    type Value = Option<&'de str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(Name(name)) = map.next_key()? {
            if name == self.0 {
                found = Some(map.next_value::<&RawValue>()?.get());
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Passes the name of each member of the object `attributes` to `visit`.
pub(crate) fn names(attributes: &str, visit: &mut dyn FnMut(&str)) {
    if !attributes.is_empty() {
        let mut json = serde_json::Deserializer::from_str(attributes);
        // A value other than an object has no names.
        let _ = json.deserialize_map(Each(visit));
    }
}

struct Each<'s>(&'s mut dyn FnMut(&str));

impl<'de> Visitor<'de> for Each<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((Name(name), IgnoredAny)) = map.next_entry()? {
            (self.0)(&name);
        }
        Ok(())
    }
}

/// The text of a JSON value; `None` for null, objects and arrays.
pub(crate) fn text(json: &str) -> Option<Cow<'_, str>> {
    match json.as_bytes().first()? {
        b'"' => serde_json::from_str::<Name<'_>>(json).ok().map(|Name(text)| text),
        b'{' | b'[' | b'n' => None,
        b't' | b'f' => Some(json.into()),
        _ => Some(digits(json)),
    }
}

/// Formats a JSON number like `numeric`: all digits, no exponent, and no sign for zero.
fn digits(json: &str) -> Cow<'_, str> {
    let unsigned = json.strip_prefix('-').unwrap_or(json);
    let sign = if unsigned.len() < json.len()
        && unsigned.bytes().take_while(|b| !b"eE".contains(b)).any(|b| matches!(b, b'1'..=b'9'))
    {
        "-"
    } else {
        ""
    };
    let Some((mantissa, exponent)) = unsigned.split_once(['e', 'E']) else {
        return if sign.is_empty() { unsigned.into() } else { json.into() };
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let Some(exponent) = exponent.parse::<i64>().ok().filter(|exponent| exponent.abs() <= ZEROS_MAX) else {
        return json.into();
    };
    // The decimal point moves right by the exponent, which reduces the number of fraction digits accordingly.
    let behind = usize::try_from(fraction.len() as i64 - exponent).unwrap_or(0);
    let mut all = format!("{whole}{fraction}");
    let zeros = usize::try_from(exponent - fraction.len() as i64).unwrap_or(0);
    all.extend(std::iter::repeat_n('0', zeros));
    if all.len() <= behind {
        all.insert_str(0, &"0".repeat(behind + 1 - all.len()));
    }
    let (whole, fraction) = all.split_at(all.len() - behind);
    let trimmed = whole.trim_start_matches('0');
    let whole = if trimmed.is_empty() { "0" } else { trimmed };
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{whole}{point}{fraction}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_member_or_a_path_through_members() {
        let json = r#"{"a.b":1,"a":{"b":2,"c":{"d":3},"e":null},"x.y":{"z":4},"twice":1,"twice":2,"\u0061\"":5}"#;
        for (name, found) in [
            ("a.b", Some("1")),
            ("a.c.d", Some("3")),
            ("x.y.z", Some("4")),
            ("twice", Some("2")),
            ("a\"", Some("5")),
            ("a.e", Some("null")),
            ("a.q", None),
            ("a.b.c", None),
            ("", None),
        ] {
            assert_eq!(find(json, name), found, "{name}");
        }
        assert_eq!(find("", "a"), None);
        let interpretations: Vec<_> = paths("a.b.c").collect();
        assert_eq!(interpretations, [vec!["a.b.c"], vec!["a.b", "c"], vec!["a", "b", "c"]]);
    }

    #[test]
    fn numbers_are_formatted_like_numeric() {
        for (json, text) in [
            ("12", "12"),
            ("-12.50", "-12.50"),
            ("1e3", "1000"),
            ("1.50e1", "15.0"),
            ("1E-7", "0.0000001"),
            ("-0", "0"),
            ("-0.0", "0.0"),
            ("0e5", "0"),
            ("-1.25e+1", "-12.5"),
            ("0.00e1", "0.0"),
            ("12e-1", "1.2"),
        ] {
            assert_eq!(digits(json), text, "{json}");
        }
    }
}
