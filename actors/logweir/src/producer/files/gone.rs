//! Positions of files that are not found any more. One that comes back within an hour is read on from its position: a
//! volume that was not mounted, a file that was moved away and back. Later ones are forgotten, so that neither the
//! checkpoint nor the journal remembers every file that there ever was.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use super::checkpoint::{Head, Position};

/// How long a position is kept.
const KEPT: Duration = Duration::from_secs(3600);
/// Maximum number of them; beyond it the one that has been gone for longest is forgotten.
pub const GONE_MAX: usize = 1000;

/// The positions, those that have been gone for longest first.
#[derive(Debug, Default)]
pub struct Gone(VecDeque<(Instant, Position)>);

impl Gone {
    /// Keeps the position of a file that is gone since `now`. Returns whether one is forgotten: this one, if nothing of
    /// the file was read and if it could not be recognized, or another one.
    pub fn add(&mut self, position: Position, now: Instant) -> bool {
        if position.foot.is_none() {
            return true;
        }
        self.0.push_back((now, position));
        self.0.len() > GONE_MAX && self.0.pop_front().is_some()
    }

    /// Forgets what has been gone for too long. Returns whether there was something.
    pub fn forget(&mut self, now: Instant) -> bool {
        let before = self.0.len();
        self.0.retain(|(since, _)| now.saturating_duration_since(*since) <= KEPT);
        self.0.len() < before
    }

    /// Takes out the position of the file at `path`, if it is back.
    ///
    /// The system gives the inode of a removed file to a new one. So the content must begin as it did, and the last bytes
    /// before the position must be the same: many logs begin alike.
    pub fn take(&mut self, path: &Path) -> Option<Position> {
        let file = File::open(path).ok()?;
        let metadata = file.metadata().ok()?;
        let is_it = |(_, position): &(Instant, Position)| position.is(&metadata);
        let (_, position) = self.0.remove(self.0.iter().position(is_it)?)?;
        let foot = position.foot?;
        let is_same = metadata.size() >= position.offset
            && Head::read(&file, position.head.len).ok()? == position.head
            && Head::before(&file, position.offset).ok()? == foot;
        is_same.then_some(position)
    }

    /// The positions.
    pub fn positions(&self) -> impl Iterator<Item = &Position> {
        self.0.iter().map(|(_, position)| position)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io};

    use uuid::Uuid;

    use super::*;

    /// The position at the end of a file.
    fn at_end(path: &Path) -> io::Result<Position> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        let offset = metadata.size();
        let (head, foot) = (Head::read(&file, offset)?, Some(Head::before(&file, offset)?));
        let (dev, ino, incarnation) = (metadata.dev(), metadata.ino(), Uuid::new_v4());
        Ok(Position { dev, ino, incarnation, offset, head, foot, ..Position::default() })
    }

    #[test]
    fn only_the_same_content_is_read_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.log");
        let banner = "the same banner\n".repeat(100);
        for (after, is_same) in [
            (format!("{banner}one\ntwo\nthree\n"), true),
            (format!("{banner}one\n"), true),
            (format!("{banner}uno\ndue\n"), false),
            (banner.clone(), false),
            (String::new(), false),
        ] {
            fs::write(&path, format!("{banner}one\n")).unwrap();
            let (mut gone, position) = (Gone::default(), at_end(&path).unwrap());
            assert!(!gone.add(position.clone(), Instant::now()));
            assert_eq!(gone.take(&dir.path().join("missing")), None);
            fs::write(&path, &after).unwrap();
            assert_eq!(gone.take(&path), is_same.then_some(position), "{after}");
            assert_eq!((gone.take(&path), gone.positions().count()), (None, 0), "it is looked for once");
        }
        fs::write(&path, "x\n").unwrap();
        let other_inode = Position { ino: 1, ..at_end(&path).unwrap() };
        let mut gone = Gone::default();
        gone.add(other_inode, Instant::now());
        assert_eq!(gone.take(&path), None);
    }

    #[test]
    fn positions_are_forgotten_by_age_and_by_number() {
        let head = Head { len: 1, crc: 2 };
        let position = |ino| Position { ino, foot: Some(head), ..Position::default() };
        let (mut gone, start) = (Gone::default(), Instant::now());
        gone.add(position(1), start);
        gone.add(position(2), start + Duration::from_secs(1));
        assert!(!gone.forget(start + KEPT));
        assert!(gone.forget(start + KEPT + Duration::from_millis(1)));
        assert_eq!(gone.positions().map(|position| position.ino).collect::<Vec<_>>(), [2]);
        for ino in 3..3 + GONE_MAX as u64 {
            assert_eq!(gone.add(position(ino), start), ino == 2 + GONE_MAX as u64, "{ino}");
        }
        assert_eq!(gone.positions().count(), GONE_MAX);
        assert!(gone.add(Position::default(), start), "nothing was read of it");
    }
}
