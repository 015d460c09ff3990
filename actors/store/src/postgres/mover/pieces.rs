//! How many records move per statement: fewer when they are large, when a statement takes too long, or when one of them
//! is refused, down to that one. Pure.

use std::ops::Range;

/// Records of a statement, and their bytes as they are stored.
pub(super) const ROWS_MAX: usize = 10_000;
const BYTES_MAX: u64 = 16 << 20;

/// How many records a statement may have after some took too long. A process keeps it from round to round, so that not
/// each round begins with statements that run into their limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace(usize);

impl Default for Pace {
    fn default() -> Self {
        Self(ROWS_MAX)
    }
}

impl Pace {
    /// A statement with so many records was too much.
    pub(super) fn slow_down(&mut self, rows: usize) {
        self.0 = (rows / 2).clamp(1, self.0);
    }

    /// Another round begins.
    pub(super) fn speed_up(&mut self) {
        self.0 = (self.0 * 2).min(ROWS_MAX);
    }
}

/// The records of a list that have not been tried yet, as pieces of it, the last one first.
#[derive(Debug)]
pub(super) struct Pieces(Vec<Range<usize>>);

impl Pieces {
    /// Divides a list of records of these sizes.
    pub(super) fn of(sizes: impl IntoIterator<Item = u64>) -> Self {
        let (mut pieces, mut bytes) = (Vec::<Range<usize>>::new(), 0);
        for (index, size) in sizes.into_iter().enumerate() {
            bytes += size;
            match pieces.last_mut() {
                Some(piece) if bytes <= BYTES_MAX && piece.len() < ROWS_MAX => piece.end = index + 1,
                _ => {
                    pieces.push(index..index + 1);
                    bytes = size;
                }
            }
        }
        pieces.reverse();
        Self(pieces)
    }

    /// The next piece.
    pub(super) fn next(&mut self, pace: Pace) -> Option<Range<usize>> {
        let piece = self.0.pop()?;
        let end = piece.end.min(piece.start + pace.0);
        if end < piece.end {
            self.0.push(end..piece.end);
        }
        Some(piece.start..end)
    }

    /// Divides a piece of which a record is at fault, or which is too much.
    pub(super) fn halve(&mut self, piece: Range<usize>) {
        let middle = piece.start.midpoint(piece.end);
        self.0.extend([middle..piece.end, piece.start..middle]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(pieces: &mut Pieces, pace: Pace) -> Vec<Range<usize>> {
        std::iter::from_fn(|| pieces.next(pace)).collect()
    }

    #[test]
    fn pieces_are_bounded_by_rows_and_bytes_and_hold_each_record_once() {
        let of = |sizes: &[u64]| all(&mut Pieces::of(sizes.iter().copied()), Pace::default());
        assert!(of(&[]).is_empty());
        assert_eq!(of(&vec![100; 2 * ROWS_MAX + 1]), [0..ROWS_MAX, ROWS_MAX..2 * ROWS_MAX, 20_000..20_001]);
        assert_eq!(of(&[BYTES_MAX, 1, BYTES_MAX - 1, 3 * BYTES_MAX, 1]), [0..1, 1..3, 3..4, 4..5]);
    }

    #[test]
    fn a_record_that_is_refused_is_isolated_and_all_others_are_taken() {
        let bad = 6_789;
        let mut pieces = Pieces::of(vec![1; ROWS_MAX]);
        let (mut taken, mut tried) = (vec![false; ROWS_MAX], 0);
        while let Some(piece) = pieces.next(Pace::default()) {
            tried += 1;
            match piece.contains(&bad) {
                true if piece.len() > 1 => pieces.halve(piece),
                true => assert_eq!(piece, bad..bad + 1),
                false => piece.for_each(|index| assert!(!std::mem::replace(&mut taken[index], true))),
            }
        }
        assert_eq!(taken.iter().filter(|taken| **taken).count(), ROWS_MAX - 1);
        assert!(tried <= 30, "{tried} statements");
    }

    #[test]
    fn what_is_too_slow_is_tried_with_fewer_records_from_then_on() {
        let mut pace = Pace::default();
        let mut pieces = Pieces::of(vec![1; ROWS_MAX]);
        // The server takes a thousand within its limit.
        let (mut taken, mut ended) = (0, 0);
        while let Some(piece) = pieces.next(pace) {
            if piece.len() > 1_000 {
                pace.slow_down(piece.len());
                pieces.halve(piece);
                ended += 1;
            } else {
                taken += piece.len();
            }
        }
        assert_eq!((taken, ended), (ROWS_MAX, 4));
        pace.speed_up();
        assert_eq!(Pieces::of(vec![1; ROWS_MAX]).next(pace), Some(0..1_250));
        for _ in 0..9 {
            pace.speed_up();
        }
        assert_eq!(Pieces::of(vec![1; ROWS_MAX]).next(pace), Some(0..ROWS_MAX));
        pace.slow_down(1);
        assert_eq!(Pieces::of(vec![1; ROWS_MAX]).next(pace), Some(0..1));
    }
}
