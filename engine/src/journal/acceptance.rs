//! Whether appends are accepted, and who may accept them again. Pure.
//!
//! A full disk is handled by two threads: the writer fails what is queued and rolls the sequence numbers back, and the
//! housekeeper makes space. A frame that is accepted before the roll-back gets a position behind frames that are void: it
//! would be written to another place than where it is acknowledged, behind a hole, and the next open would take it for
//! a torn write. So space can be given back only in [`Acceptance::NoSpace`], and only the writer's roll-back leads there
//! from [`Acceptance::RollingBack`]. `full_disk_tests` tries every order of their steps.

use super::error::AppendError;

/// Whether appends are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Acceptance {
    Open,
    /// The quota is reached, until a segment has been removed.
    Quota,
    /// The disk is full, and nothing has to be rolled back: until there is space for the next segment.
    NoSpace,
    /// A write found the disk full, and the writer has not rolled back yet.
    RollingBack,
    /// Final: sealed or poisoned.
    Ended(AppendError),
}

impl Acceptance {
    /// Why appends are rejected; `None` if they are accepted.
    pub(super) fn reject_reason(&self) -> Option<AppendError> {
        match self {
            Self::Open => None,
            Self::Quota => Some(AppendError::Quota),
            Self::NoSpace | Self::RollingBack => Some(AppendError::DiskFull),
            Self::Ended(reason) => Some(reason.clone()),
        }
    }

    /// A frame does not fit: rejects it and what follows.
    pub(super) fn reject(&mut self, reason: &AppendError) {
        *self = match (&*self, reason) {
            (Self::Open, AppendError::Quota) => Self::Quota,
            (Self::Open, AppendError::DiskFull) => Self::NoSpace,
            _ => return,
        }
    }

    /// The quota has space again.
    pub(super) fn quota_released(&mut self) {
        if *self == Self::Quota {
            *self = Self::Open;
        }
    }

    /// A write has failed because the disk is full. The writer fails everything that is queued, then rolls back.
    pub(super) fn write_failed(&mut self) {
        if !matches!(self, Self::Ended(_)) {
            *self = Self::RollingBack;
        }
    }

    /// The writer has rolled back.
    pub(super) fn rolled_back(&mut self) {
        if *self == Self::RollingBack {
            *self = Self::NoSpace;
        }
    }

    /// The disk has space again. Returns whether appends are accepted now; the writer may still have to roll back.
    pub(super) fn space_made(&mut self) -> bool {
        if *self == Self::NoSpace {
            *self = Self::Open;
        }
        *self == Self::Open
    }

    pub(super) fn seal(&mut self) {
        if !matches!(self, Self::Ended(_)) {
            *self = Self::Ended(AppendError::Sealed);
        }
    }

    /// Also a sealed journal can fail: its last frames may not be durable yet.
    pub(super) fn poison(&mut self, reason: String) {
        *self = Self::Ended(AppendError::Poisoned(reason));
    }
}
