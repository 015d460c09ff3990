//! The fields of a protobuf message, borrowed one after the other: no tree is built, however many fields a body claims.

use prost::encoding::{WireType, decode_key, decode_varint};

/// Maximum nesting depth of values: JSON is processed again for each level, and real attributes are never that deep.
pub const DEPTH_MAX: usize = 32;

/// A field value, as on the wire.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Integers, booleans, enums.
    Varint(u64),
    /// fixed64, double.
    Fixed64(u64),
    /// fixed32, float.
    Fixed32(u32),
    /// Strings, bytes, messages.
    Bytes(&'a [u8]),
}

/// Iterates over the fields of `message` with their tags. Ends after the first error.
pub fn fields(message: &[u8]) -> impl Iterator<Item = Result<(u32, Value<'_>), String>> {
    let mut rest = message;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let next = field(&mut rest).map_err(|what| {
            rest = &[];
            format!("invalid protobuf: {what}")
        });
        Some(next)
    })
}

fn field<'a>(rest: &mut &'a [u8]) -> Result<(u32, Value<'a>), String> {
    let in_words = |error: prost::DecodeError| error.to_string();
    let (tag, wire_type) = decode_key(rest).map_err(in_words)?;
    let value = match wire_type {
        WireType::Varint => Value::Varint(decode_varint(rest).map_err(in_words)?),
        WireType::SixtyFourBit => Value::Fixed64(u64::from_le_bytes(*first_chunk(rest)?)),
        WireType::ThirtyTwoBit => Value::Fixed32(u32::from_le_bytes(*first_chunk(rest)?)),
        WireType::LengthDelimited => {
            let length = usize::try_from(decode_varint(rest).map_err(in_words)?).map_err(|_| TRUNCATED)?;
            let (bytes, after) = rest.split_at_checked(length).ok_or(TRUNCATED)?;
            *rest = after;
            Value::Bytes(bytes)
        }
        WireType::StartGroup | WireType::EndGroup => return Err("a group, which is not supported".to_owned()),
    };
    Ok((tag, value))
}

const TRUNCATED: &str = "a field is longer than the rest of the message";

fn first_chunk<'a, const N: usize>(rest: &mut &'a [u8]) -> Result<&'a [u8; N], String> {
    let (chunk, after) = rest.split_first_chunk().ok_or(TRUNCATED)?;
    *rest = after;
    Ok(chunk)
}

/// The last field `tag` that holds bytes: of a non-repeated field the last one wins.
pub fn last_bytes(message: &[u8], tag: u32) -> Result<&[u8], String> {
    let mut last: &[u8] = &[];
    for field in fields(message) {
        if let (found, Value::Bytes(bytes)) = field?
            && found == tag
        {
            last = bytes;
        }
    }
    Ok(last)
}

/// Passes each field `tag` that holds bytes to `each`.
pub fn each_bytes<'a>(
    message: &'a [u8],
    tag: u32,
    mut each: impl FnMut(&'a [u8]) -> Result<(), String>,
) -> Result<(), String> {
    for field in fields(message) {
        match field? {
            (found, Value::Bytes(bytes)) if found == tag => each(bytes)?,
            _ => {}
        }
    }
    Ok(())
}
