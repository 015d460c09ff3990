//! Bounded decompression of bodies.
//!
//! - The limit applies to the output, since a few kilobytes can expand to gigabytes. Reading stops one byte past it.
//! - zstd allocates its window before it yields a byte: windows above 8 MiB (the highest regular level's) are rejected.
//! - A snappy block states its length in its first bytes, which is checked before anything is allocated.
//! - deflate is the zlib format by specification and raw deflate in practice: the first two bytes distinguish them.
//! - Several concatenated gzip members or zstd frames are one body: `cat a.gz b.gz` is a valid file.

#[cfg(feature = "compression")]
use std::io::Read;

use bytes::Bytes;

use crate::message::{Encoding, Rejection, RejectionKind};

#[cfg(feature = "compression")]
/// Maximum zstd window, as a power of two: 8 MiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

#[cfg(feature = "compression")]
/// Header of a snappy stream (a sequence of frames); anything else is a single block.
const SNAPPY_STREAM: &[u8] = b"\xff\x06\x00\x00sNaPpY";

/// Returns the contents of `body`, up to `bytes_max`.
///
/// # Errors
/// [`RejectionKind::Malformed`] for a damaged body, [`RejectionKind::TooLarge`] above the limit.
pub fn decompress(body: &Bytes, encoding: Encoding, bytes_max: usize) -> Result<Bytes, Rejection> {
    match encoding {
        Encoding::Identity if body.len() > bytes_max => Err(too_large(bytes_max)),
        Encoding::Identity => Ok(body.clone()),
        #[cfg(not(feature = "compression"))]
        _ => Err(Rejection {
            kind: RejectionKind::Malformed,
            reason: "unsupported_encoding",
            detail: "this program was built without the feature `compression`: send uncompressed bodies".to_owned(),
        }),
        #[cfg(feature = "compression")]
        Encoding::Gzip => {
            let reader = flate2::bufread::MultiGzDecoder::new(&**body);
            read_up_to(reader, body.len(), bytes_max, "bad_gzip", "gzip")
        }
        #[cfg(feature = "compression")]
        Encoding::Zstd => {
            let bad = |error| malformed("bad_zstd", "zstd", &error);
            let mut reader = zstd::stream::read::Decoder::with_buffer(&**body).map_err(bad)?;
            reader.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(bad)?;
            read_up_to(reader, body.len(), bytes_max, "bad_zstd", "zstd")
        }
        #[cfg(feature = "compression")]
        Encoding::Deflate if is_zlib(body) => {
            let reader = flate2::bufread::ZlibDecoder::new(&**body);
            read_up_to(reader, body.len(), bytes_max, "bad_deflate", "deflate")
        }
        #[cfg(feature = "compression")]
        Encoding::Deflate => {
            let reader = flate2::bufread::DeflateDecoder::new(&**body);
            read_up_to(reader, body.len(), bytes_max, "bad_deflate", "deflate")
        }
        #[cfg(feature = "compression")]
        Encoding::Snappy if body.starts_with(SNAPPY_STREAM) => {
            let reader = snap::read::FrameDecoder::new(&**body);
            read_up_to(reader, body.len(), bytes_max, "bad_snappy", "snappy")
        }
        #[cfg(feature = "compression")]
        Encoding::Snappy => snappy_block(body, bytes_max),
    }
}

#[cfg(feature = "compression")]
/// Checks for a zlib header: the method is deflate, and its two bytes are a multiple of 31.
fn is_zlib(body: &[u8]) -> bool {
    matches!(body, [first, second, ..] if first & 0x0f == 8 && (u16::from(*first) << 8 | u16::from(*second)) % 31 == 0)
}

#[cfg(feature = "compression")]
fn snappy_block(body: &[u8], bytes_max: usize) -> Result<Bytes, Rejection> {
    let bad = |error: snap::Error| malformed("bad_snappy", "snappy", &error.into());
    if snap::raw::decompress_len(body).map_err(bad)? > bytes_max {
        return Err(too_large(bytes_max));
    }
    snap::raw::Decoder::new().decompress_vec(body).map(Bytes::from).map_err(bad)
}

#[cfg(feature = "compression")]
fn read_up_to(
    reader: impl Read,
    compressed: usize,
    bytes_max: usize,
    reason: &'static str,
    name: &str,
) -> Result<Bytes, Rejection> {
    // Logs compress to about a sixth; a wrong guess costs a copy.
    let mut plain = Vec::with_capacity((compressed * 6).min(bytes_max));
    let past_the_limit = bytes_max as u64 + 1;
    reader.take(past_the_limit).read_to_end(&mut plain).map_err(|error| malformed(reason, name, &error))?;
    if plain.len() > bytes_max {
        return Err(too_large(bytes_max));
    }
    Ok(plain.into())
}

#[cfg(feature = "compression")]
fn malformed(reason: &'static str, name: &str, error: &std::io::Error) -> Rejection {
    Rejection {
        kind: RejectionKind::Malformed,
        reason,
        detail: format!("the body is not a valid {name} stream: {error}; none of it was stored"),
    }
}

fn too_large(bytes_max: usize) -> Rejection {
    Rejection {
        kind: RejectionKind::TooLarge,
        reason: "decompressed_too_large",
        detail: format!(
            "the decompressed body exceeds http.decompressed_bytes_max ({bytes_max} bytes): send smaller bodies"
        ),
    }
}

#[cfg(feature = "compression")]
#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        writer.write_all(plain).unwrap();
        writer.finish().unwrap()
    }

    fn rejection(body: Vec<u8>, encoding: Encoding, bytes_max: usize) -> (RejectionKind, &'static str) {
        let rejection = decompress(&body.into(), encoding, bytes_max).unwrap_err();
        (rejection.kind, rejection.reason)
    }

    fn zlib(plain: &[u8]) -> Vec<u8> {
        let mut writer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        writer.write_all(plain).unwrap();
        writer.finish().unwrap()
    }

    fn deflate(plain: &[u8]) -> Vec<u8> {
        let mut writer = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        writer.write_all(plain).unwrap();
        writer.finish().unwrap()
    }

    fn snappy(plain: &[u8]) -> Vec<u8> {
        snap::raw::Encoder::new().compress_vec(plain).unwrap()
    }

    fn snappy_stream(plain: &[u8]) -> Vec<u8> {
        let mut writer = snap::write::FrameEncoder::new(Vec::new());
        writer.write_all(plain).unwrap();
        writer.into_inner().unwrap()
    }

    #[test]
    fn deflate_and_snappy_are_decompressed_in_both_forms() {
        let text = b"a line that is long enough\n".repeat(20);
        for (body, encoding) in [
            (zlib(&text), Encoding::Deflate),
            (deflate(&text), Encoding::Deflate),
            (snappy(&text), Encoding::Snappy),
            (snappy_stream(&text), Encoding::Snappy),
        ] {
            assert_eq!(decompress(&body.into(), encoding, text.len()).unwrap(), text);
        }
    }

    #[test]
    fn several_members_are_one_body() {
        let body = [gzip(b"one\n"), gzip(b""), gzip(b"two\n")].concat();
        assert_eq!(decompress(&body.into(), Encoding::Gzip, 8).unwrap(), "one\ntwo\n");
        let body = [zstd::encode_all(&b"one\n"[..], 3).unwrap(), zstd::encode_all(&b"two\n"[..], 3).unwrap()].concat();
        assert_eq!(decompress(&body.into(), Encoding::Zstd, 8).unwrap(), "one\ntwo\n");
        assert_eq!(decompress(&Bytes::from_static(b"plain"), Encoding::Identity, 5).unwrap(), "plain");
    }

    #[test]
    fn bombs_are_rejected_at_the_limit() {
        let zeros = vec![0; 64 << 20];
        let too_large = (RejectionKind::TooLarge, "decompressed_too_large");
        let bomb = gzip(&zeros);
        assert!(bomb.len() < 100_000);
        assert_eq!(rejection(bomb, Encoding::Gzip, 1 << 20), too_large);
        let bomb = zstd::encode_all(&zeros[..], 3).unwrap();
        assert!(bomb.len() < 10_000);
        assert_eq!(rejection(bomb, Encoding::Zstd, 1 << 20), too_large);
        for (bomb, encoding) in [
            (zlib(&zeros), Encoding::Deflate),
            (snappy(&zeros), Encoding::Snappy),
            (snappy_stream(&zeros), Encoding::Snappy),
        ] {
            assert_eq!(rejection(bomb, encoding, 1 << 20), too_large);
        }
        // It claims four gigabytes but has five bytes.
        assert_eq!(rejection(vec![0xff, 0xff, 0xff, 0xff, 0x0f], Encoding::Snappy, 1 << 20), too_large);
        assert_eq!(rejection(gzip(b"12345"), Encoding::Gzip, 4), too_large);
        assert_eq!(rejection(vec![b'x'; 5], Encoding::Identity, 4), too_large);
    }

    /// Yields bytes forever and counts them.
    struct Endless(usize);

    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            buffer.fill(b'x');
            self.0 += buffer.len();
            assert!(self.0 <= 1 << 20, "read far past the limit");
            Ok(buffer.len())
        }
    }

    #[test]
    fn at_most_one_byte_is_read_past_the_limit() {
        let mut endless = Endless(0);
        let rejection = read_up_to(&mut endless, 10, 1000, "bad", "test").unwrap_err();
        assert_eq!((rejection.reason, endless.0), ("decompressed_too_large", 1001));
    }

    #[test]
    fn a_zstd_window_above_the_limit_is_rejected_before_it_is_allocated() {
        let mut writer = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        writer.window_log(27).unwrap();
        writer.write_all(b"small").unwrap();
        assert_eq!(
            rejection(writer.finish().unwrap(), Encoding::Zstd, 1 << 20),
            (RejectionKind::Malformed, "bad_zstd")
        );
    }

    #[test]
    fn a_corrupt_body_is_rejected_with_the_reason_of_its_encoding() {
        let cut = |mut body: Vec<u8>| {
            body.truncate(body.len() - 6);
            body
        };
        let text = b"a line that is long enough\n".repeat(20);
        for (body, encoding, reason) in [
            (b"no gzip at all".to_vec(), Encoding::Gzip, "bad_gzip"),
            (cut(gzip(&text)), Encoding::Gzip, "bad_gzip"),
            (b"no zstd at all".to_vec(), Encoding::Zstd, "bad_zstd"),
            (cut(zstd::encode_all(&text[..], 3).unwrap()), Encoding::Zstd, "bad_zstd"),
            (cut(zlib(&text)), Encoding::Deflate, "bad_deflate"),
            (cut(deflate(&text)), Encoding::Deflate, "bad_deflate"),
            (cut(snappy(&text)), Encoding::Snappy, "bad_snappy"),
            (cut(snappy_stream(&text)), Encoding::Snappy, "bad_snappy"),
        ] {
            assert_eq!(rejection(body, encoding, 1 << 20), (RejectionKind::Malformed, reason));
        }
    }
}
