use std::time::Duration;

use logweir_query::page::{Direction, Range};
use tokio::time::Instant;

use super::gate::{BEHIND, QueryThrottle, READING_MAX};
use super::pieces::{LENGTH_US_MIN, adapted};

const HOUR_US: i64 = 3_600_000_000;
const HOUR: Range = Range { start_us: 7, end_us: 7 + HOUR_US };

fn behind() -> QueryThrottle {
    let throttle = QueryThrottle::default();
    throttle.set_backlog_age(BEHIND * 2);
    throttle
}

#[test]
fn pieces_are_adjacent_and_cover_the_range() {
    for direction in [Direction::Backward, Direction::Forward] {
        let throttle = behind();
        let mut pieces = throttle.pieces(HOUR, direction);
        let mut all: Vec<Range> = std::iter::from_fn(|| pieces.next()).collect();
        assert_eq!(all.len(), 1024);
        if direction == Direction::Backward {
            all.reverse();
        }
        assert_eq!((all[0].start_us, all[1023].end_us), (HOUR.start_us, HOUR.end_us));
        assert!(all.windows(2).all(|two| two[0].end_us == two[1].start_us));
    }
}

#[test]
fn a_range_is_one_piece_once_the_database_has_caught_up() {
    let throttle = behind();
    let mut pieces = throttle.pieces(HOUR, Direction::Forward);
    let first = pieces.next().expect("a piece");
    throttle.set_backlog_age(BEHIND);
    let rest = pieces.next();
    assert_eq!(rest, Some(Range { start_us: first.end_us, ..HOUR }));
    assert_eq!(pieces.next(), None);
}

#[test]
fn unbounded_and_empty_ranges_are_split_as_well() {
    let ever = Range { start_us: i64::MIN, end_us: i64::MAX };
    let throttle = behind();
    let mut pieces = throttle.pieces(ever, Direction::Backward);
    assert_eq!(pieces.next().map(|piece| piece.end_us), Some(i64::MAX));
    assert!(std::iter::from_fn(|| pieces.next()).count() < 3000);
    assert_eq!(throttle.pieces(Range { start_us: 5, end_us: 5 }, Direction::Forward).next(), None);
}

#[test]
fn pieces_grow_while_reads_are_fast_and_shrink_when_they_are_slow() {
    let length = |millis| adapted(HOUR_US, Duration::from_millis(millis));
    assert_eq!([length(10), length(100), length(500)], [2 * HOUR_US, HOUR_US, HOUR_US / 2]);
    assert_eq!(adapted(LENGTH_US_MIN, Duration::from_secs(9)), LENGTH_US_MIN);
    assert_eq!(adapted(i64::MAX, Duration::ZERO), i64::MAX);
}

#[tokio::test(start_paused = true)]
async fn a_long_query_is_rejected_only_while_the_database_is_behind() {
    let throttle = behind();
    let mut pieces = throttle.pieces(HOUR, Direction::Forward);
    let mut read = async || pieces.read(async { tokio::time::sleep(READING_MAX).await }).await;
    assert_eq!(read().await, Some(()));
    assert_eq!(read().await, None);
    throttle.set_backlog_age(Duration::ZERO);
    assert_eq!(read().await, Some(()));
}

#[tokio::test(start_paused = true)]
async fn a_running_query_is_notified_when_the_database_falls_behind() {
    let throttle = QueryThrottle::default();
    let mut falls = std::pin::pin!(throttle.throttled());
    assert!(tokio::time::timeout(BEHIND, &mut falls).await.is_err());
    throttle.set_backlog_age(BEHIND * 2);
    falls.await;
    behind().throttled().await;
}

#[tokio::test(start_paused = true)]
async fn while_the_database_is_behind_reads_take_turns_with_pauses() {
    const READING: Duration = Duration::from_millis(100);
    let took = async |throttle: &QueryThrottle| {
        let start = Instant::now();
        let one = || throttle.whole(async { tokio::time::sleep(READING).await });
        tokio::join!(one(), one(), one());
        start.elapsed()
    };
    assert_eq!(took(&QueryThrottle::default()).await, READING);
    assert_eq!(took(&behind()).await, READING * 21, "three reads and two pauses");
}
