//! Two files in memory whose every write and sync is remembered, so that a power failure can be cut in anywhere.
//!
//! A sync makes one file durable. Of what was written since then a power failure may keep all, nothing, some writes,
//! or some sectors of them. What a crash leaves is a new [`Disk`], on which a store can be opened again.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use chatchain::store::OpenError;
use chatchain::store::files::{Files, INDEX, LOG};
use redb::{Builder, Database, StorageBackend};

/// Disks write sectors whole; what lies between may be torn.
const SECTOR_BYTES: usize = 512;

/// Random numbers that mean the same for ever: SplitMix64 (Steele, Lea, Flood 2014).
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

    /// True once in so many times.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.roll().is_multiple_of(times)
    }
}

/// What happened, in order.
#[derive(Debug, Clone)]
pub enum Step {
    /// Bytes went to a file.
    Write { file: usize, offset: usize, bytes: Vec<u8> },
    /// A file's length changed.
    SetLen { file: usize, len: usize },
    /// A file became durable.
    Sync { file: usize },
    /// A file was put in place as a whole, durably, as renaming does it.
    Made { file: usize, bytes: Vec<u8> },
    /// The store was asked to commit these messages.
    Attempted(Vec<u128>),
    /// It answered that they are committed.
    Acknowledged(Vec<u128>),
}

/// What a power failure leaves of writes that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsynced {
    Kept,
    Lost,
    /// Each write whole or not at all.
    Some(u64),
    /// Each sector of each write.
    Torn(u64),
}

#[derive(Debug, Default)]
struct State {
    live: [Vec<u8>; 2],
    steps: Vec<Step>,
}

/// The files `log.redb` and `index.redb`. Clones are the same disk.
#[derive(Debug, Default, Clone)]
pub struct Disk(Arc<Mutex<State>>);

impl Disk {
    fn new(live: [Vec<u8>; 2]) -> Self {
        Disk(Arc::new(Mutex::new(State { live, steps: Vec::new() })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics while it holds a disk")
    }

    /// Adds what only the test knows.
    pub fn note(&self, step: Step) {
        self.lock().steps.push(step);
    }

    /// Everything that happened since the disk was made.
    pub fn steps(&self) -> Vec<Step> {
        self.lock().steps.clone()
    }

    /// What is on it, as a copy.
    pub fn bytes(&self) -> [Vec<u8>; 2] {
        self.lock().live.clone()
    }
}

impl Files for Disk {
    fn database(&self, name: &str, cache_bytes: usize, afresh: bool) -> Result<Database, OpenError> {
        let file = usize::from(name == INDEX);
        assert!(file == 1 || name == LOG, "a store has two files, and {name} is none of them");
        let open = |disk: &Disk| {
            let backend = Backend { disk: disk.clone(), file };
            let opened = Builder::new().set_cache_size(cache_bytes).create_with_backend(backend);
            opened.map_err(|error| OpenError::Broken { path: self.path(name), why: error.to_string() })
        };
        if afresh || self.lock().live[file].is_empty() {
            let beside = Disk::default();
            drop(open(&beside)?);
            let bytes = beside.lock().live[file].clone();
            let mut state = self.lock();
            state.live[file].clone_from(&bytes);
            state.steps.push(Step::Made { file, bytes });
        }
        open(self)
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(name)
    }
}

/// One file, as redb sees it.
#[derive(Debug)]
struct Backend {
    disk: Disk,
    file: usize,
}

fn position(offset: u64) -> usize {
    usize::try_from(offset).expect("simulated files are small")
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.lock().live[self.file].len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let (state, offset) = (self.disk.lock(), position(offset));
        let bytes = state.live[self.file].get(offset..offset + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let (mut state, len) = (self.disk.lock(), position(len));
        state.live[self.file].resize(len, 0);
        state.steps.push(Step::SetLen { file: self.file, len });
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.lock().steps.push(Step::Sync { file: self.file });
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (mut state, offset) = (self.disk.lock(), position(offset));
        if offset + data.len() > state.live[self.file].len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        put(&mut state.live[self.file], offset, data);
        state.steps.push(Step::Write { file: self.file, offset, bytes: data.to_vec() });
        Ok(())
    }
}

/// Writes into an image as far as it lies within it: what lies behind a length that was lost is lost with it.
fn put(image: &mut [u8], offset: usize, bytes: &[u8]) {
    if let Some(part) = image.get_mut(offset..) {
        let fits = part.len().min(bytes.len());
        part[..fits].copy_from_slice(&bytes[..fits]);
    }
}

/// What is durable, and what is not yet, as steps are taken one after the other.
#[derive(Debug, Default, Clone)]
pub struct Platter {
    durable: [Vec<u8>; 2],
    pending: [Vec<Step>; 2],
}

impl Platter {
    /// A disk on which everything is durable.
    pub fn new(durable: [Vec<u8>; 2]) -> Self {
        Platter { durable, pending: Default::default() }
    }

    /// Takes one step.
    pub fn take(&mut self, step: &Step) {
        match step {
            Step::Write { file, .. } | Step::SetLen { file, .. } => self.pending[*file].push(step.clone()),
            Step::Sync { file } => {
                for step in std::mem::take(&mut self.pending[*file]) {
                    apply(&mut self.durable[*file], &step, |_| true);
                }
            }
            Step::Made { file, bytes } => {
                self.pending[*file].clear();
                self.durable[*file].clone_from(bytes);
            }
            Step::Attempted(_) | Step::Acknowledged(_) => {}
        }
    }

    /// The disk that a power failure now would leave.
    pub fn after_power_failure(&self, unsynced: Unsynced) -> Disk {
        let mut images = self.durable.clone();
        let (Unsynced::Some(seed) | Unsynced::Torn(seed)) = unsynced else {
            if unsynced == Unsynced::Kept {
                for (image, pending) in images.iter_mut().zip(&self.pending) {
                    for step in pending {
                        apply(image, step, |_| true);
                    }
                }
            }
            return Disk::new(images);
        };
        let mut dice = Dice(seed);
        for (image, pending) in images.iter_mut().zip(&self.pending) {
            for step in pending {
                let whole = dice.one_in(2);
                match unsynced {
                    Unsynced::Torn(_) => apply(image, step, |_| dice.one_in(2)),
                    _ if whole => apply(image, step, |_| true),
                    _ => {}
                }
            }
        }
        Disk::new(images)
    }
}

/// Applies a step to an image; of a write those sectors that are `kept`.
fn apply(image: &mut Vec<u8>, step: &Step, mut kept: impl FnMut(usize) -> bool) {
    match step {
        Step::SetLen { len, .. } => {
            if kept(0) {
                image.resize(*len, 0);
            }
        }
        Step::Write { offset, bytes, .. } => {
            for (number, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                if kept(number) {
                    put(image, offset + number * SECTOR_BYTES, sector);
                }
            }
        }
        Step::Sync { .. } | Step::Made { .. } | Step::Attempted(_) | Step::Acknowledged(_) => {}
    }
}
