//! A disk in memory that fails as disks do. Everything random follows from a seed.
//!
//! - **Crash.** A killed process loses nothing that it has written; a power failure keeps, drops or tears what was not
//!   synced: sectors of 512 bytes each on their own, sizes, and each name on its own.
//! - **Failed sync.** A part of the bytes reaches the disk. All of them are still read until the next crash, but no
//!   later sync makes the rest durable: the system takes its pages for clean.
//! - **Errors** of any kind, at the next operation of a kind; ranges that cannot be read; no space.
//! - **Slow disk.** A sync waits until it is released: others go on meanwhile, or the power fails in it.
//!
//! It is one file system whose top is `/`. Handles of a process that was killed fail.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::{Component, Path};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::operations::{Directory, File, FileId, FileSystem, Metadata, OpenMode};

const SECTOR_BYTES: u64 = 512;
const DEVICE: u64 = 1;
const TOP: usize = 0;

/// Random numbers that follow from a seed (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    /// True this often out of a hundred times.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// An operation on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Opening a file or directory.
    Open,
    /// Reading from a file.
    Read,
    /// Writing to a file.
    Write,
    /// Syncing a file.
    Sync,
    /// Syncing a directory.
    SyncDir,
    /// Changing a file's size.
    SetLen,
    /// Renaming a file.
    Rename,
    /// Removing a file.
    Remove,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process alone: what it has written stays.
    Kill,
    /// The machine: only what was synced is sure to stay.
    PowerLoss,
}

/// A disk in memory. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimulatedDisk(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    disk: Mutex<Disk>,
    released: Condvar,
}

impl SimulatedDisk {
    /// An empty disk without faults and with unlimited space.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let disk = Disk {
            random: Random::new(seed),
            process: 0,
            inodes: vec![Inode::Dir(Dir::default())],
            name_changes: Vec::new(),
            locks: BTreeMap::new(),
            capacity: u64::MAX,
            errors: Vec::new(),
            partial: false,
            operations: 0,
            crash_at: u64::MAX,
            hangs: false,
            hanging: 0,
        };
        Self(Arc::new(Shared { disk: Mutex::new(disk), released: Condvar::new() }))
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The names in a directory, empty if it does not exist. Does not count as an operation of the process.
    #[must_use]
    pub fn names(&self, dir: &Path) -> Vec<OsString> {
        let mut disk = self.disk();
        let Ok(inode) = disk.find(dir) else { return Vec::new() };
        disk.dir(inode).map(|dir| dir.names.keys().cloned().collect()).unwrap_or_default()
    }

    /// Limits the size of all files together.
    pub fn set_capacity(&self, bytes: u64) {
        self.disk().capacity = bytes;
    }

    /// Size of all files together.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.disk().used_bytes()
    }

    /// Lets the next `times` operations of a kind on files whose name contains `name` fail with an error of the system.
    pub fn fail(&self, operation: Operation, name: &str, error: Errno, times: u32) {
        self.disk().errors.push(Failure { operation, name: name.to_owned(), error, times });
    }

    /// Removes the errors of [`Self::fail`] that have not occurred yet. Returns whether there were any.
    pub fn heal(&self) -> bool {
        !std::mem::take(&mut self.disk().errors).is_empty()
    }

    /// Whether reads and writes sometimes stop half-way or are interrupted.
    pub fn set_partial(&self, partial: bool) {
        self.disk().partial = partial;
    }

    /// Makes a range of a file unreadable, for the next `times` reads that meet it, until it is written again.
    ///
    /// # Errors
    /// The file does not exist.
    pub fn make_unreadable(&self, path: &Path, range: Range<u64>, times: u32) -> io::Result<()> {
        let mut disk = self.disk();
        let inode = disk.find(path)?;
        disk.file(inode)?.unreadable.push((range, times));
        Ok(())
    }

    /// Changes bytes of a file without the file system's knowledge.
    ///
    /// # Errors
    /// The file or the byte in it does not exist.
    pub fn flip(&self, path: &Path, bit: u64) -> io::Result<()> {
        let mut disk = self.disk();
        let inode = disk.find(path)?;
        let file = disk.file(inode)?;
        let (at, mask) = (to_usize(bit / 8), 1 << (bit % 8));
        *file.bytes.get_mut(at).ok_or(ErrorKind::UnexpectedEof)? ^= mask;
        if let Some(byte) = file.stored.get_mut(at) {
            *byte ^= mask;
        }
        Ok(())
    }

    /// Number of operations so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.disk().operations
    }

    /// Ends the process in the operation that follows the next `operations`: all later ones fail.
    pub fn crash_after(&self, operations: u64) {
        let mut disk = self.disk();
        disk.crash_at = disk.operations + operations + 1;
    }

    /// Whether the process has ended: nothing that it says from now on was said.
    #[must_use]
    pub fn is_down(&self) -> bool {
        let disk = self.disk();
        disk.operations >= disk.crash_at
    }

    /// Ends the process and starts the next one: open handles fail, locks are released.
    pub fn restart(&self, crash: Crash) {
        let mut disk = self.disk();
        disk.process += 1;
        disk.crash_at = u64::MAX;
        disk.locks.clear();
        disk.errors.clear();
        match crash {
            Crash::Kill => disk.evict_pages(),
            Crash::PowerLoss => disk.lose_power(),
        }
    }

    /// Lets each sync of a file wait, from now on until it is called with `false`.
    pub fn hang_syncs(&self, hangs: bool) {
        self.disk().hangs = hangs;
        self.0.released.notify_all();
    }

    /// Number of syncs that hang.
    #[must_use]
    pub fn hanging(&self) -> u32 {
        self.disk().hanging
    }

    /// Starts an operation of the process `process`.
    fn begin(&self, process: u64, operation: Operation, name: &OsStr) -> io::Result<MutexGuard<'_, Disk>> {
        let mut disk = self.disk();
        if disk.process != process || disk.operations >= disk.crash_at {
            return Err(Errno::IO.into());
        }
        disk.operations += 1;
        let name = name.to_string_lossy();
        let met = |failure: &Failure| failure.operation == operation && name.contains(&failure.name);
        if let Some(index) = disk.errors.iter().position(met) {
            let failure = &mut disk.errors[index];
            let error = failure.error;
            failure.times -= 1;
            if failure.times == 0 {
                disk.errors.remove(index);
            }
            return Err(error.into());
        }
        // The operation in which the process ends may be done or not.
        if disk.operations >= disk.crash_at && disk.random.percent(50) {
            return Err(Errno::IO.into());
        }
        Ok(disk)
    }

    fn handle(&self, disk: &Disk, inode: usize, name: &OsStr) -> Handle {
        Handle { disk: self.clone(), process: disk.process, inode, name: name.to_owned() }
    }
}

#[derive(Debug)]
struct Failure {
    operation: Operation,
    name: String,
    error: Errno,
    times: u32,
}

#[derive(Debug)]
struct Disk {
    random: Random,
    process: u64,
    inodes: Vec<Inode>,
    /// Not durable yet, in order. Each is done as a whole or not at all.
    name_changes: Vec<Vec<NameChange>>,
    /// Number of locks of each file; `u32::MAX` for an exclusive one.
    locks: BTreeMap<usize, u32>,
    capacity: u64,
    errors: Vec<Failure>,
    partial: bool,
    operations: u64,
    crash_at: u64,
    hangs: bool,
    hanging: u32,
}

#[derive(Debug)]
enum Inode {
    File(Content),
    Dir(Dir),
}

#[derive(Debug, Default)]
struct Dir {
    names: BTreeMap<OsString, usize>,
    /// After a power failure that drops everything.
    durable: BTreeMap<OsString, usize>,
}

/// A name in a directory now stands for this inode.
#[derive(Clone, Debug)]
struct NameChange {
    dir: usize,
    name: OsString,
    inode: Option<usize>,
}

#[derive(Debug, Default)]
struct Content {
    /// What a read returns: the page cache.
    bytes: Vec<u8>,
    /// What is on the disk.
    stored: Vec<u8>,
    /// Not synced yet, in order.
    changes: Vec<Change>,
    /// Sectors that a failed sync has not stored: they differ, and no sync will change that.
    lost: BTreeSet<u64>,
    /// Ranges that cannot be read, and how many more reads fail.
    unreadable: Vec<(Range<u64>, u32)>,
}

#[derive(Debug)]
struct Change {
    offset: u64,
    /// Written bytes; zeros for the bytes that a truncation removed.
    bytes: Vec<u8>,
    /// The file's size afterwards.
    len: u64,
}

impl Change {
    fn sectors(&self) -> Range<u64> {
        self.offset / SECTOR_BYTES..(self.offset + self.bytes.len() as u64).div_ceil(SECTOR_BYTES)
    }
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).expect("a simulated file fits into memory")
}

/// Appends zeros up to `len`: far cheaper than `Vec::resize` without optimization.
fn extend(bytes: &mut Vec<u8>, len: u64) {
    bytes.extend_from_slice(&vec![0; to_usize(len).saturating_sub(bytes.len())]);
}

impl Content {
    fn change(&mut self, offset: u64, bytes: Vec<u8>, len: u64) {
        let end = offset + bytes.len() as u64;
        extend(&mut self.bytes, len.max(end));
        self.bytes[to_usize(offset)..to_usize(end)].copy_from_slice(&bytes);
        self.bytes.truncate(to_usize(len));
        let change = Change { offset, bytes, len };
        for sector in change.sectors() {
            self.lost.remove(&sector);
            let written = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
            self.unreadable = std::mem::take(&mut self.unreadable)
                .into_iter()
                .flat_map(|(range, times)| {
                    [
                        (range.start..range.end.min(written.start), times),
                        (range.start.max(written.end)..range.end, times),
                    ]
                })
                .filter(|(range, _)| !range.is_empty())
                .collect();
        }
        self.changes.push(change);
    }

    fn dirty(&self) -> BTreeSet<u64> {
        self.changes.iter().flat_map(Change::sectors).collect()
    }

    fn store(&mut self, sector: u64) {
        let range = to_usize(sector * SECTOR_BYTES)..to_usize((sector + 1) * SECTOR_BYTES);
        let range = range.start.min(self.bytes.len())..range.end.min(self.bytes.len());
        self.stored[range.clone()].copy_from_slice(&self.bytes[range]);
    }

    /// Syncs; `stores` says for each sector whether it reaches the disk.
    fn sync(&mut self, mut stores: impl FnMut() -> bool) {
        extend(&mut self.stored, self.bytes.len() as u64);
        self.stored.truncate(self.bytes.len());
        for sector in self.dirty() {
            if stores() {
                self.store(sector);
            } else {
                self.lost.insert(sector);
            }
        }
        self.changes.clear();
    }

    /// The system forgets clean pages: what is not on the disk is gone.
    fn evict_pages(&mut self) {
        for sector in std::mem::take(&mut self.lost) {
            let range = to_usize(sector * SECTOR_BYTES)..to_usize((sector + 1) * SECTOR_BYTES);
            let end = range.end.min(self.bytes.len()).min(self.stored.len());
            if range.start < end {
                self.bytes[range.start..end].copy_from_slice(&self.stored[range.start..end]);
            }
        }
    }

    /// Each sector keeps what it was after any number of the changes, and so does the size.
    fn lose_power(&mut self, random: &mut Random) {
        let count = self.changes.len() as u64 + 1;
        let mode = random.below(4);
        let kept = |random: &mut Random| match mode {
            0 => 0,
            1 => count - 1,
            _ => random.below(count),
        };
        let len = match kept(random) {
            0 => self.stored.len() as u64,
            kept => self.changes[to_usize(kept) - 1].len,
        };
        let until: BTreeMap<u64, u64> = self.dirty().into_iter().map(|sector| (sector, kept(random))).collect();
        for (number, change) in (1..).zip(&self.changes) {
            for sector in change.sectors().filter(|sector| until[sector] >= number) {
                let from = change.offset.max(sector * SECTOR_BYTES);
                let to = (change.offset + change.bytes.len() as u64).min((sector + 1) * SECTOR_BYTES);
                extend(&mut self.stored, to);
                let bytes = &change.bytes[to_usize(from - change.offset)..to_usize(to - change.offset)];
                self.stored[to_usize(from)..to_usize(to)].copy_from_slice(bytes);
            }
        }
        extend(&mut self.stored, len);
        self.stored.truncate(to_usize(len));
        self.bytes.clone_from(&self.stored);
        self.changes.clear();
        self.lost.clear();
    }
}

impl Disk {
    fn dir(&mut self, inode: usize) -> io::Result<&mut Dir> {
        match &mut self.inodes[inode] {
            Inode::Dir(dir) => Ok(dir),
            Inode::File(_) => Err(Errno::NOTDIR.into()),
        }
    }

    fn file(&mut self, inode: usize) -> io::Result<&mut Content> {
        match &mut self.inodes[inode] {
            Inode::File(file) => Ok(file),
            Inode::Dir(_) => Err(Errno::ISDIR.into()),
        }
    }

    fn find(&mut self, path: &Path) -> io::Result<usize> {
        let mut inode = TOP;
        for component in path.components() {
            if let Component::Normal(name) = component {
                inode = *self.dir(inode)?.names.get(name).ok_or(Errno::NOENT)?;
            }
        }
        Ok(inode)
    }

    fn parent(&mut self, path: &Path) -> io::Result<(usize, OsString)> {
        let name = path.file_name().ok_or(Errno::INVAL)?.to_owned();
        Ok((self.find(path.parent().ok_or(Errno::INVAL)?)?, name))
    }

    fn change_names(&mut self, changes: Vec<NameChange>) -> io::Result<()> {
        for NameChange { dir, name, inode } in changes.clone() {
            let names = &mut self.dir(dir)?.names;
            match inode {
                Some(inode) => _ = names.insert(name, inode),
                None => _ = names.remove(&name),
            }
        }
        self.name_changes.push(changes);
        Ok(())
    }

    fn make_durable(&mut self, changes: Vec<NameChange>) {
        for NameChange { dir, name, inode } in changes {
            let Inode::Dir(dir) = &mut self.inodes[dir] else { continue };
            match inode {
                Some(inode) => _ = dir.durable.insert(name, inode),
                None => _ = dir.durable.remove(&name),
            }
        }
    }

    fn create(&mut self, path: &Path, inode: Inode) -> io::Result<usize> {
        let (dir, name) = self.parent(path)?;
        self.inodes.push(inode);
        let inode = self.inodes.len() - 1;
        self.change_names(vec![NameChange { dir, name, inode: Some(inode) }])?;
        Ok(inode)
    }

    fn used_bytes(&self) -> u64 {
        let mut used = 0;
        let mut dirs = vec![TOP];
        while let Some(dir) = dirs.pop() {
            let Inode::Dir(dir) = &self.inodes[dir] else { continue };
            for &inode in dir.names.values() {
                match &self.inodes[inode] {
                    Inode::File(file) => used += file.bytes.len() as u64,
                    Inode::Dir(_) => dirs.push(inode),
                }
            }
        }
        used
    }

    fn evict_pages(&mut self) {
        for index in 0..self.inodes.len() {
            let evicts = self.random.percent(50);
            if let Inode::File(file) = &mut self.inodes[index]
                && evicts
            {
                file.evict_pages();
            }
        }
    }

    fn lose_power(&mut self) {
        let mode = self.random.below(4);
        for changes in std::mem::take(&mut self.name_changes) {
            let kept = match mode {
                0 => false,
                1 => true,
                _ => self.random.percent(50),
            };
            if kept {
                self.make_durable(changes);
            }
        }
        for inode in &mut self.inodes {
            match inode {
                Inode::File(file) => file.lose_power(&mut self.random),
                Inode::Dir(dir) => dir.names.clone_from(&dir.durable),
            }
        }
    }
}

impl FileSystem for SimulatedDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn File>> {
        let name = path.file_name().unwrap_or_default();
        let process = self.disk().process;
        let mut disk = self.begin(process, Operation::Open, name)?;
        let creates = matches!(mode, OpenMode::CreateIfMissing | OpenMode::Replace);
        let inode = match disk.find(path) {
            Err(error) if error.kind() == ErrorKind::NotFound && creates => {
                disk.create(path, Inode::File(Content::default()))?
            }
            found => found?,
        };
        let file = disk.file(inode)?;
        if mode == OpenMode::Replace && !file.bytes.is_empty() {
            file.change(0, vec![0; file.bytes.len()], 0);
        }
        Ok(Box::new(OpenFile { handle: self.handle(&disk, inode, name), lock: Mutex::new(false) }))
    }

    fn open_dir(&self, path: &Path) -> io::Result<Box<dyn Directory>> {
        let name = path.file_name().unwrap_or_default();
        let process = self.disk().process;
        let mut disk = self.begin(process, Operation::Open, name)?;
        let inode = disk.find(path)?;
        disk.dir(inode)?;
        Ok(Box::new(OpenDir(self.handle(&disk, inode, name))))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let process = self.disk().process;
        let mut disk = self.begin(process, Operation::Open, path.file_name().unwrap_or_default())?;
        if disk.find(path).is_ok() {
            return Err(Errno::EXIST.into());
        }
        disk.create(path, Inode::Dir(Dir::default())).map(|_| ())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let process = self.disk().process;
        let mut disk = self.begin(process, Operation::Open, dir.file_name().unwrap_or_default())?;
        let inode = disk.find(dir)?;
        Ok(disk.dir(inode)?.names.keys().cloned().collect())
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        let mut disk = self.disk();
        let inode = disk.find(path)?;
        Ok(disk.metadata(inode))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let process = self.disk().process;
        let mut disk = self.begin(process, Operation::Rename, from.file_name().unwrap_or_default())?;
        let inode = Some(disk.find(from)?);
        let ((dir, name), (to_dir, to_name)) = (disk.parent(from)?, disk.parent(to)?);
        disk.change_names(vec![NameChange { dir, name, inode: None }, NameChange { dir: to_dir, name: to_name, inode }])
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let process = self.disk().process;
        let mut disk = self.begin(process, Operation::Remove, path.file_name().unwrap_or_default())?;
        let inode = disk.find(path)?;
        disk.file(inode)?;
        let (dir, name) = disk.parent(path)?;
        disk.change_names(vec![NameChange { dir, name, inode: None }])
    }
}

impl Disk {
    fn metadata(&self, inode: usize) -> Metadata {
        let (bytes, is_dir) = match &self.inodes[inode] {
            Inode::File(file) => (file.bytes.len() as u64, false),
            Inode::Dir(_) => (0, true),
        };
        Metadata { bytes, is_dir, id: (DEVICE, inode as u64) }
    }
}

/// An open inode.
#[derive(Debug)]
struct Handle {
    disk: SimulatedDisk,
    process: u64,
    inode: usize,
    /// The name under which it was opened.
    name: OsString,
}

impl Handle {
    fn begin(&self, operation: Operation) -> io::Result<MutexGuard<'_, Disk>> {
        self.disk.begin(self.process, operation, &self.name)
    }
}

#[derive(Debug)]
struct OpenFile {
    handle: Handle,
    lock: Mutex<bool>,
}

impl OpenFile {
    fn sync(&self) -> io::Result<()> {
        {
            let mut disk = self.handle.disk.disk();
            disk.hanging += 1;
            while disk.hangs && disk.process == self.handle.process {
                disk = self.handle.disk.0.released.wait(disk).unwrap_or_else(PoisonError::into_inner);
            }
            disk.hanging -= 1;
        }
        let failed = match self.handle.begin(Operation::Sync) {
            Ok(mut disk) => {
                disk.file(self.handle.inode)?.sync(|| true);
                return Ok(());
            }
            Err(error) => error,
        };
        let mut disk = self.handle.disk.disk();
        if disk.process == self.handle.process && disk.operations < disk.crash_at {
            let mut random = Random::new(disk.random.number());
            disk.file(self.handle.inode)?.sync(|| random.percent(50));
        }
        Err(failed)
    }
}

impl File for OpenFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut disk = self.handle.begin(Operation::Read)?;
        let (partial, cut) = (disk.partial && disk.random.percent(5), disk.random.number());
        let file = disk.file(self.handle.inode)?;
        let start = to_usize(offset).min(file.bytes.len());
        let mut read = buffer.len().min(file.bytes.len() - start);
        let met = |range: &Range<u64>| range.start < offset + read as u64 && offset < range.end;
        if let Some((_, times)) = file.unreadable.iter_mut().find(|(range, times)| *times > 0 && met(range)) {
            if *times != u32::MAX {
                *times -= 1;
            }
            return Err(Errno::IO.into());
        }
        if partial && cut % 3 == 0 {
            return Err(ErrorKind::Interrupted.into());
        }
        if partial && read > 1 {
            read = 1 + to_usize(cut % (read as u64 - 1));
        }
        buffer[..read].copy_from_slice(&file.bytes[start..start + read]);
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut disk = self.handle.begin(Operation::Write)?;
        let ends = disk.operations >= disk.crash_at;
        let (partial, cut) = (disk.partial && disk.random.percent(5), disk.random.number());
        let free = disk.capacity.saturating_sub(disk.used_bytes());
        let file = disk.file(self.handle.inode)?;
        let len = file.bytes.len() as u64;
        let space = to_usize((len + free).saturating_sub(offset).min(bytes.len() as u64));
        if space == 0 && !bytes.is_empty() {
            return Err(Errno::NOSPC.into());
        }
        if partial && cut % 3 == 0 {
            return Err(ErrorKind::Interrupted.into());
        }
        let written = if (partial || ends) && space > 1 { 1 + to_usize(cut % (space as u64 - 1)) } else { space };
        file.change(offset, bytes[..written].to_vec(), len.max(offset + written as u64));
        Ok(written)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync()
    }

    /// Each read is one of the disk.
    fn drop_cached(&self) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let mut disk = self.handle.begin(Operation::SetLen)?;
        let file = disk.file(self.handle.inode)?;
        let cut = (file.bytes.len() as u64).saturating_sub(bytes);
        file.change(bytes, vec![0; to_usize(cut)], bytes);
        Ok(())
    }

    fn metadata(&self) -> io::Result<Metadata> {
        Ok(self.handle.disk.disk().metadata(self.handle.inode))
    }

    fn try_lock(&self, shared: bool) -> io::Result<bool> {
        let mut disk = self.handle.disk.disk();
        let locks = disk.locks.entry(self.handle.inode).or_default();
        let free = if shared { *locks != u32::MAX } else { *locks == 0 };
        if free {
            *locks = if shared { *locks + 1 } else { u32::MAX };
            *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = true;
        }
        Ok(free)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        let mut disk = self.handle.disk.disk();
        if disk.process == self.handle.process && *self.lock.lock().unwrap_or_else(PoisonError::into_inner) {
            let locks = disk.locks.entry(self.handle.inode).or_default();
            *locks = if *locks == u32::MAX { 0 } else { locks.saturating_sub(1) };
        }
    }
}

#[derive(Debug)]
struct OpenDir(Handle);

impl Directory for OpenDir {
    fn sync(&self) -> io::Result<()> {
        let mut disk = self.0.begin(Operation::SyncDir)?;
        for changes in std::mem::take(&mut disk.name_changes) {
            if changes.iter().any(|change| change.dir == self.0.inode) {
                disk.make_durable(changes);
            } else {
                disk.name_changes.push(changes);
            }
        }
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let disk = self.0.disk.disk();
        Ok(disk.capacity.saturating_sub(disk.used_bytes()))
    }

    fn id(&self) -> io::Result<FileId> {
        Ok((DEVICE, self.0.inode as u64))
    }
}
