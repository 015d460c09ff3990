//! What can be in force only once at a time.

/// Acts of one slot are never in force at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    Publication,
    Check,
    Column,
    Trigger,
    DefaultPartition,
    Partition,
    ClosedPartition,
    Index,
    Right,
    Role,
    Upkeep,
    Table,
    Held,
    Sessions,
    Server,
    Network,
    Commit,
    Pooler,
    Disk,
    JournalDisk,
    Descriptors,
    Clock,
    Secret,
    Program,
}
