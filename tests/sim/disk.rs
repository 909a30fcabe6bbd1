//! Files in memory that record every write and sync, so that a power failure can be simulated at any step.
//!
//! A sync makes one file durable. A power failure may keep all later writes, none, some of them, or some of their
//! sectors. It leaves a new [`Disk`], on which a store can be opened again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use chatchain::store::OpenError;
use chatchain::store::engine::files::{FileBytes, FileIdentity, Files, OpenMode, OpenedFile, classify_error};
use redb::{Builder, StorageBackend};

/// A file's name.
pub type FileName = Arc<str>;
/// The content of each file.
pub type Images = BTreeMap<FileName, Vec<u8>>;

/// A disk writes each sector whole; a longer write can be torn between sectors.
const SECTOR_BYTES: usize = 512;
/// The system error for a sector that cannot be read.
const EIO: i32 = 5;

/// A random number generator whose sequence never changes: SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Debug, Clone)]
pub struct Dice(pub u64);

impl Dice {
    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// True with probability 1/`times`.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.roll().is_multiple_of(times)
    }
}

/// A change of the disk, or a note of the test.
#[derive(Debug, Clone)]
pub enum Step {
    /// Bytes were written to a file.
    Write { file: FileName, offset: usize, bytes: Vec<u8> },
    /// A file's length changed.
    SetLen { file: FileName, len: usize },
    /// A file became durable.
    Sync { file: FileName },
    /// A whole file was put in place durably, as a rename does.
    Made { file: FileName, bytes: Vec<u8> },
    /// A file was renamed durably. Its unsynced writes stay unsynced.
    Renamed { file: FileName, to: FileName },
    /// A file was removed durably.
    Removed { file: FileName },
    /// The store was asked to commit these messages.
    Attempted(Vec<u128>),
    /// The store reported that these messages are committed.
    Acknowledged(Vec<u128>),
}

/// What a power failure keeps of unsynced writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsynced {
    Kept,
    Lost,
    /// Each write is kept whole or lost.
    Some(u64),
    /// Each sector of each write is kept or lost.
    Torn(u64),
}

#[derive(Debug, Default)]
struct State {
    /// Each file with a number that stays the same over renames; open handles refer to the number.
    live: BTreeMap<FileName, (u64, Vec<u8>)>,
    last_number: u64,
    steps: Vec<Step>,
    /// The number of further changes that succeed before all fail. `None`: all succeed.
    changes_left: Option<u64>,
    /// The engine caches no pages.
    uncached: bool,
    /// Files claim to be too large to check every page of them at each opening.
    seems_large: bool,
    /// Byte ranges that cannot be read, each with the number of its file.
    bad: Vec<(u64, Range<usize>)>,
}

impl State {
    /// Fails with the system's error if one of these bytes cannot be read.
    fn read(&self, number: u64, wanted: &Range<usize>) -> io::Result<()> {
        let meets = |bad: &Range<usize>| bad.start < wanted.end && wanted.start < bad.end;
        let is_bad = self.bad.iter().any(|(of, bad)| *of == number && meets(bad));
        if is_bad { Err(io::Error::from_raw_os_error(EIO)) } else { Ok(()) }
    }

    /// Counts a change. Fails if the disk accepts no more changes.
    fn change(&mut self) -> io::Result<()> {
        match &mut self.changes_left {
            None => Ok(()),
            Some(0) => Err(io::Error::other("the simulated disk fails")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    /// A bad range that is overwritten as a whole becomes readable.
    fn written(&mut self, number: u64, bytes: Range<usize>) {
        self.bad.retain(|(of, bad)| *of != number || bad.start < bytes.start || bytes.end < bad.end);
    }

    fn put(&mut self, name: FileName, bytes: Vec<u8>) {
        self.last_number += 1;
        self.live.insert(name, (self.last_number, bytes));
    }
}

/// The files of a store. Clones share one disk.
#[derive(Debug, Default, Clone)]
pub struct Disk(Arc<Mutex<State>>);

impl Disk {
    /// A disk with these files.
    pub fn new(live: Images) -> Self {
        let mut state = State::default();
        for (name, bytes) in live {
            state.put(name, bytes);
        }
        Disk(Arc::new(Mutex::new(state)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics while it holds a disk")
    }

    /// Adds a note of the test to the steps.
    pub fn note(&self, step: Step) {
        self.lock().steps.push(step);
    }

    /// All steps since the disk was made, or since the last `take_steps`.
    pub fn steps(&self) -> Vec<Step> {
        self.lock().steps.clone()
    }

    /// After this many more changes every change fails, until this is called again.
    pub fn fail_after(&self, changes: Option<u64>) {
        self.lock().changes_left = changes;
    }

    /// Whether changes fail now.
    pub fn fails(&self) -> bool {
        self.lock().changes_left == Some(0)
    }

    /// Removes and gives all steps recorded so far.
    pub fn take_steps(&self) -> Vec<Step> {
        std::mem::take(&mut self.lock().steps)
    }

    /// Changes the bytes of a file without a step and without the knowledge of its users.
    pub fn corrupt(&self, file: &str, change: impl FnOnce(&mut [u8])) {
        if let Some((_, bytes)) = self.lock().live.get_mut(file) {
            change(bytes);
        }
    }

    /// Whether files claim a length of a terabyte more than they have, so that a store trusts their pages.
    pub fn seems_large(&self, is_so: bool) {
        self.lock().seems_large = is_so;
    }

    /// Files that are opened from now on are read without a page cache.
    pub fn disable_cache(&self) {
        self.lock().uncached = true;
    }

    /// From now on these bytes of a file cannot be read, even after a rename, until they are overwritten as a whole:
    /// then a drive remaps the sector.
    pub fn make_unreadable(&self, file: &str, bytes: Range<usize>) {
        let mut state = self.lock();
        let number = state.live[file].0;
        state.bad.push((number, bytes));
    }

    /// Makes all bytes readable again.
    pub fn fix_bad_sectors(&self) {
        self.lock().bad.clear();
    }

    /// A copy of all files.
    pub fn bytes(&self) -> Images {
        self.lock().live.iter().map(|(name, (_, bytes))| (name.clone(), bytes.clone())).collect()
    }
}

impl Files for Disk {
    fn boxed(&self) -> Box<dyn Files> {
        Box::new(self.clone())
    }

    fn database(&self, name: &str, cache_bytes: usize, how: OpenMode) -> Result<OpenedFile, OpenError> {
        let file: FileName = name.into();
        let open = |disk: &Disk, check: bool| {
            let number = disk.lock().live[&file].0;
            let backend = Backend { disk: disk.clone(), number };
            let cache_bytes = if disk.lock().uncached { 0 } else { cache_bytes };
            let mut builder = Builder::new();
            builder.set_cache_size(cache_bytes).set_check_integrity_on_open(check);
            let opened = builder.create_with_backend(backend);
            let db = opened.map_err(|error| classify_error(self.path(name), error.into()))?;
            Ok(OpenedFile { db, identity: FileIdentity { device: 0, inode: number } })
        };
        if how == OpenMode::Replace || !self.lock().live.contains_key(&file) {
            let beside = Disk::new(Images::from([(file.clone(), Vec::new())]));
            drop(open(&beside, false)?);
            let bytes = beside.lock().live[&file].1.clone();
            let mut state = self.lock();
            state.change().map_err(|error| classify_error(self.path(name), error.into()))?;
            state.put(file.clone(), bytes.clone());
            state.steps.push(Step::Made { file: file.clone(), bytes });
        }
        open(self, how == OpenMode::Checked)
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(name)
    }

    fn identity(&self, name: &str) -> io::Result<FileIdentity> {
        let inode = self.lock().live.get(name).map(|(number, _)| *number);
        Ok(FileIdentity { device: 0, inode: inode.ok_or(io::ErrorKind::NotFound)? })
    }

    fn lock(&self) -> Result<Option<File>, OpenError> {
        Ok(None)
    }

    fn free_bytes(&self) -> u64 {
        u64::MAX
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().live.keys().map(ToString::to_string).collect())
    }

    fn len(&self, name: &str) -> io::Result<Option<u64>> {
        let state = self.lock();
        let extra = if state.seems_large { 1 << 40 } else { 0 };
        let len = |bytes: &Vec<u8>| if bytes.is_empty() { 0 } else { bytes.len() as u64 + extra };
        Ok(state.live.get(name).map(|(_, bytes)| len(bytes)))
    }

    fn open_raw(&self, name: &str) -> io::Result<Box<dyn FileBytes>> {
        let file = self.lock().live.get(name).map(|(number, _)| *number);
        Ok(Box::new(Backend { disk: self.clone(), number: file.ok_or(io::ErrorKind::NotFound)? }))
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let (mut state, file): (_, FileName) = (self.lock(), name.into());
        state.change()?;
        state.put(file.clone(), bytes.to_vec());
        state.steps.push(Step::Made { file, bytes: bytes.to_vec() });
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (mut state, file, to): (_, FileName, FileName) = (self.lock(), from.into(), to.into());
        assert!(!state.live.contains_key(&to), "{to} would be lost");
        state.change()?;
        let bytes = state.live.remove(&file).ok_or(io::ErrorKind::NotFound)?;
        state.live.insert(to.clone(), bytes);
        state.steps.push(Step::Renamed { file, to });
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.change()?;
        if state.live.remove(name).is_some() {
            state.steps.push(Step::Removed { file: name.into() });
        }
        Ok(())
    }

    fn drop_page_cache(&self, _name: &str) {}
}

/// One file, as redb sees it.
#[derive(Debug)]
struct Backend {
    disk: Disk,
    number: u64,
}

impl FileBytes for Backend {
    fn len(&self) -> io::Result<u64> {
        StorageBackend::len(self)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        let left = StorageBackend::len(self)?.saturating_sub(offset);
        let count = position(left).min(out.len());
        StorageBackend::read(self, offset, &mut out[..count])?;
        Ok(count)
    }
}

fn position(offset: u64) -> usize {
    usize::try_from(offset).expect("simulated files are small")
}

impl Backend {
    fn with<T>(
        &self,
        changes: bool,
        work: impl FnOnce(&FileName, &mut Vec<u8>) -> io::Result<(T, Option<Step>)>,
    ) -> io::Result<T> {
        let mut state = self.disk.lock();
        if changes {
            state.change()?;
        }
        let file = state.live.iter_mut().find(|(_, (number, _))| *number == self.number);
        let (name, (_, image)) = file.ok_or(io::ErrorKind::NotFound)?;
        let (done, step) = work(name, image)?;
        state.steps.extend(step);
        Ok(done)
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.with(false, |_, image| Ok((image.len() as u64, None)))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = position(offset);
        self.disk.lock().read(self.number, &(start..start.saturating_add(out.len())))?;
        self.with(false, |_, image| {
            let offset = position(offset);
            let bytes = offset.checked_add(out.len()).and_then(|end| image.get(offset..end));
            out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(((), None))
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(true, |name, image| {
            image.resize(position(len), 0);
            Ok(((), Some(Step::SetLen { file: name.clone(), len: position(len) })))
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(true, |name, _| Ok(((), Some(Step::Sync { file: name.clone() }))))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.lock().written(self.number, position(offset)..position(offset) + data.len());
        self.with(true, |name, image| {
            let offset = position(offset);
            if offset + data.len() > image.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            put(image, offset, data);
            Ok(((), Some(Step::Write { file: name.clone(), offset, bytes: data.to_vec() })))
        })
    }
}

/// Writes into an image. Bytes past the end of the image are dropped: the change of length before them was lost.
fn put(image: &mut [u8], offset: usize, bytes: &[u8]) {
    if let Some(part) = image.get_mut(offset..) {
        let fits = part.len().min(bytes.len());
        part[..fits].copy_from_slice(&bytes[..fits]);
    }
}

/// Tracks step by step which bytes are durable and which are still unsynced.
#[derive(Debug, Default, Clone)]
pub struct DurabilityModel {
    durable: Images,
    pending: BTreeMap<FileName, Vec<Step>>,
}

impl DurabilityModel {
    /// Starts with these files, all of them durable.
    pub fn new(durable: Images) -> Self {
        DurabilityModel { durable, pending: BTreeMap::new() }
    }

    /// Applies one step.
    pub fn take(&mut self, step: &Step) {
        match step {
            Step::Write { file, .. } | Step::SetLen { file, .. } => {
                self.pending.entry(file.clone()).or_default().push(step.clone());
            }
            Step::Sync { file } => {
                let image = self.durable.entry(file.clone()).or_default();
                for step in self.pending.remove(file).unwrap_or_default() {
                    apply(image, &step, |_| true);
                }
            }
            Step::Made { file, bytes } => {
                self.pending.remove(file);
                self.durable.insert(file.clone(), bytes.clone());
            }
            Step::Renamed { file, to } => {
                let image = self.durable.remove(file).unwrap_or_default();
                self.durable.insert(to.clone(), image);
                if let Some(pending) = self.pending.remove(file) {
                    self.pending.insert(to.clone(), pending);
                }
            }
            Step::Removed { file } => {
                self.durable.remove(file);
                self.pending.remove(file);
            }
            Step::Attempted(_) | Step::Acknowledged(_) => {}
        }
    }

    /// The disk that a power failure at this point leaves.
    pub fn after_power_failure(&self, unsynced: Unsynced) -> Disk {
        let mut images = self.durable.clone();
        let mut dice = Dice(match unsynced {
            Unsynced::Some(seed) | Unsynced::Torn(seed) => seed,
            Unsynced::Kept | Unsynced::Lost => 0,
        });
        for (file, pending) in &self.pending {
            let image = images.entry(file.clone()).or_default();
            for step in pending {
                let whole = dice.one_in(2);
                match unsynced {
                    Unsynced::Torn(_) => apply(image, step, |_| dice.one_in(2)),
                    Unsynced::Lost => {}
                    Unsynced::Some(_) if !whole => {}
                    Unsynced::Kept | Unsynced::Some(_) => apply(image, step, |_| true),
                }
            }
        }
        Disk::new(images)
    }
}

/// Applies a step to an image; of a write, only the sectors for which `kept` is true.
fn apply(image: &mut Vec<u8>, step: &Step, mut kept: impl FnMut(usize) -> bool) {
    match step {
        Step::SetLen { len, .. } if kept(0) => image.resize(*len, 0),
        Step::Write { offset, bytes, .. } => {
            for (number, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                if kept(number) {
                    put(image, offset + number * SECTOR_BYTES, sector);
                }
            }
        }
        _ => {}
    }
}
