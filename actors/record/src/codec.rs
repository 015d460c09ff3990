//! Encodes a chunk as the payload of a journal frame and decodes it. The only user of bincode.
//!
//! - The codec id is stored in the frame header. A change of [`Chunk`]'s fields needs a new id and a new decoder next
//!   to the old one, never an appended field: bincode is not self-describing, so an older type decodes a newer payload
//!   without an error.
//! - Bytes are decoded only after their CRC has matched, with a size limit (9 bytes of input can claim 2^40 elements;
//!   without the limit the allocator aborts the process), and must be consumed to the last byte.
//! - The bytes are frozen by a golden file in `tests/golden`.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};

use crate::chunk::{Chunk, InvalidChunk};

/// Largest payload that is encoded or decoded, in bytes: 16 MiB.
pub const PAYLOAD_BYTES_MAX: usize = 16 << 20;

/// Codec id of a bincode 2, fixed-width, little-endian [`Chunk`].
pub const CHUNK_V1: u8 = 1;

/// Why a payload cannot be encoded or decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The chunk is larger than a frame's payload may be.
    #[error("chunk of {bytes} bytes exceeds the limit of {PAYLOAD_BYTES_MAX} bytes")]
    TooLarge {
        /// Size of the chunk, in bytes.
        bytes: usize,
    },
    /// This version does not know the codec id.
    #[error("unknown codec {0}: this version reads codec {CHUNK_V1}")]
    UnknownCodec(u8),
    /// bincode rejected the bytes.
    #[error("cannot decode the payload: {0}")]
    Malformed(#[from] bincode::error::DecodeError),
    /// bincode failed to encode. Not expected: the target is memory.
    #[error("cannot encode the chunk: {0}")]
    Encode(#[from] bincode::error::EncodeError),
    /// Bytes follow the chunk.
    #[error("{0} trailing bytes after the chunk")]
    LeftOver(usize),
    /// The decoded columns are inconsistent.
    #[error(transparent)]
    Invalid(#[from] InvalidChunk),
}

fn config() -> Configuration<LittleEndian, Fixint, Limit<PAYLOAD_BYTES_MAX>> {
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<PAYLOAD_BYTES_MAX>()
}

/// Encodes `chunk` with the latest codec. Returns the codec id and the payload.
///
/// # Errors
/// [`CodecError::TooLarge`] if the chunk exceeds [`PAYLOAD_BYTES_MAX`].
pub fn encode(chunk: &Chunk) -> Result<(u8, Vec<u8>), CodecError> {
    // `bytes()` includes the struct itself, the encoding five length prefixes: the capacity is never too small.
    let bytes = chunk.bytes();
    if bytes > PAYLOAD_BYTES_MAX {
        return Err(CodecError::TooLarge { bytes });
    }
    let mut payload = Vec::with_capacity(bytes);
    bincode::encode_into_std_write(chunk, &mut payload, config())?;
    Ok((CHUNK_V1, payload))
}

/// Decodes a payload whose CRC has matched.
///
/// # Errors
/// [`CodecError`] describes the first problem. Never allocates more than [`PAYLOAD_BYTES_MAX`].
pub fn decode(codec: u8, payload: &[u8]) -> Result<Chunk, CodecError> {
    if codec != CHUNK_V1 {
        return Err(CodecError::UnknownCodec(codec));
    }
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(CodecError::TooLarge { bytes: payload.len() });
    }
    let (chunk, consumed): (Chunk, usize) = bincode::decode_from_slice(payload, config())?;
    if consumed != payload.len() {
        return Err(CodecError::LeftOver(payload.len() - consumed));
    }
    chunk.validate()?;
    Ok(chunk)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Record, Severity};

    #[test]
    fn a_chunk_survives_the_round_trip() {
        let mut chunk = Chunk::with_capacity(5, 1, 16);
        chunk.push(Record {
            ts_us: -1,
            severity: Severity::WARN,
            service: "s",
            host: "h",
            message: "m\u{0}",
            attributes: "",
        });
        let (codec, payload) = encode(&chunk).expect("encodes");
        assert!(payload.len() <= chunk.bytes());
        assert_eq!(decode(codec, &payload).expect("decodes"), chunk);
    }

    #[test]
    fn nine_hostile_bytes_do_not_abort_the_process() {
        // received_us, then a Vec<i64> that claims 2^40 elements.
        let mut hostile = 0_i64.to_le_bytes().to_vec();
        hostile.extend((1_u64 << 40).to_le_bytes());
        for end in 0..=hostile.len() {
            assert!(decode(CHUNK_V1, &hostile[..end]).is_err());
        }
        assert!(decode(CHUNK_V1, &[0xff; 9]).is_err());
        assert!(matches!(decode(9, &[]), Err(CodecError::UnknownCodec(9))));
    }

    #[test]
    fn trailing_bytes_are_an_error() {
        let (codec, mut payload) = encode(&Chunk::default()).expect("encodes");
        payload.push(0);
        assert!(matches!(decode(codec, &payload), Err(CodecError::LeftOver(1))));
    }
}
