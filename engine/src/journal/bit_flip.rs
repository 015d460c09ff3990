//! Finds a single flipped bit by its CRC: what a disk or memory does most often to bytes that it damages.

/// Returns the index of the bit that is flipped in `bytes`, if one is and `crc` is their CRC without that.
///
/// A CRC is linear: a flipped bit changes it by the CRC, started at zero, of that bit and the zeros behind it. So one pass
/// from the end finds the bit. Other damage passes for a flipped bit with a probability of one in 2³² per bit: use it
/// for a few KiB, and check what comes out.
pub(super) fn find(bytes: &[u8], crc: u32) -> Option<usize> {
    let difference = crc32c::crc32c(bytes) ^ crc;
    // The CRC of bytes behind `before`, without the inversions at its start and its end.
    let plain = |before: u32, byte: u8| !crc32c::crc32c_append(!before, &[byte]);
    let mut changes: [u32; 8] = std::array::from_fn(|bit| plain(0, 1 << bit));
    for at in (0..bytes.len()).rev() {
        if let Some(bit) = changes.iter().position(|change| *change == difference) {
            return Some(at * 8 + bit);
        }
        changes = changes.map(|change| plain(change, 0));
    }
    None
}

/// Flips a bit.
pub(super) fn flip(bytes: &mut [u8], bit: usize) {
    bytes[bit / 8] ^= 1 << (bit % 8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_flipped_bit_is_found_and_nothing_else_is() {
        let bytes: Vec<u8> = (0..200_u8).collect();
        let crc = crc32c::crc32c(&bytes);
        assert_eq!(find(&bytes, crc), None);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flip(&mut flipped, bit);
            assert_eq!(find(&flipped, crc), Some(bit));
            flip(&mut flipped, (bit + 7) % 1600);
            assert_eq!(find(&flipped, crc), None, "two bits");
        }
        assert_eq!(find(&[], 5), None);
    }
}
