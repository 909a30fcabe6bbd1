//! The store as its callers see it: commits, re-opens, look-ups, history.

use std::path::Path;
use std::sync::atomic::AtomicU64;

use uuid::Uuid;

use super::log::{NewRow, WriteBatch};
use super::*;
use crate::chain::clock::Stamp;
use crate::chain::filter::Filter;
use crate::chain::ids::Leaf;
use crate::chain::kind::{EntryKind, LogType};
use crate::chain::message::{Content, Message, UncheckedMessage};
use crate::chain::record::Entry;
use crate::chain::vector::Head;
use crate::store::engine::files;
use crate::store::history::listing::{Listing, Skips, damaged_between};
use crate::store::index::IndexOverlay;
use crate::store::index::fake::unindexed_count;

const NOW: u64 = 1_700_000_000_000;

/// A store with the state a writer would have.
pub(super) struct Bench {
    pub(super) store: Arc<Store>,
    pub(super) logs: Logs,
    pub(super) now_ms: u64,
}

pub(super) fn message(id: u128, sender: &str, recipient: &str, text: &str) -> Message {
    let draft = UncheckedMessage {
        id: Uuid::from_u128(id),
        sender: sender.into(),
        recipient: recipient.into(),
        text: text.into(),
        timestamp: None,
    };
    Message::new(draft).expect("valid")
}

impl Bench {
    pub(super) fn open(dir: &Path) -> Self {
        let (store, logs) = Store::open(dir, "test", NOW).expect("opens");
        Bench { store, logs, now_ms: NOW }
    }

    /// The next message begins another log.
    pub(super) fn begin_log(&mut self) {
        self.logs.own().into_iter().for_each(|own| self.logs.abandon(own));
    }

    fn assign(&mut self, overlay: &mut IndexOverlay<'_>, message: &Message) -> NewRow {
        let content = message.encode();
        let digest = Digest::of(EntryKind::Message, &content);
        let key = self.logs.assign(Leaf::of(EntryKind::Message, "", digest), self.now_ms, || {
            Origin(Uuid::now_v7().into_bytes())
        });
        let entry = Entry::new(key, EntryKind::Message, digest, &content);
        overlay.append(entry, self.logs.vector().hash(key.origin, LogType::MESSAGES)).expect("reads")
    }

    fn first(&self, id: u128) -> Option<StoredCopy> {
        self.store.first_copy(Uuid::from_u128(id), &self.logs).expect("reads")
    }

    pub(super) fn send(&mut self, messages: &[Message]) -> Vec<EntryKey> {
        let store = self.store.clone();
        let mut overlay = store.index().overlay();
        let entries: Vec<_> = messages.iter().map(|message| self.assign(&mut overlay, message)).collect();
        let keys = entries.iter().map(|row| row.entry.key()).collect();
        self.store.commit(WriteBatch { entries, ..WriteBatch::default() }, &self.logs).expect("commits");
        keys
    }

    /// What another node would take in from this one.
    pub(super) fn copy_to(&self, other: &mut Bench) {
        for (origin, span) in self.logs.vector().iter() {
            let (mut entries, mut overlay) = (Vec::new(), other.store.index().overlay());
            for seq in 1..=span.head.seq {
                let entry = self.store.log().read().expect("reads").get(origin, seq).expect("is there");
                if other.logs.admit(&entry, NOW).expect("follows") {
                    let hash = other.logs.vector().hash(origin, LogType::MESSAGES);
                    entries.push(overlay.append(entry, hash).expect("reads"));
                }
            }
            other
                .store
                .commit(WriteBatch { entries, ..WriteBatch::default() }, &other.logs)
                .expect("commits");
        }
    }

    /// What is listed, whether the listing is put down between its chunks or not.
    pub(super) fn list(&self, filter: Filter, from: Option<EntryKey>, backward: bool) -> Vec<String> {
        let listed = self.list_chunks(filter.clone(), from, backward, |_| {});
        assert_eq!(self.list_chunks(filter, from, backward, Listing::release_buffers), listed);
        listed
    }

    fn list_chunks(
        &self,
        filter: Filter,
        from: Option<EntryKey>,
        backward: bool,
        between: impl Fn(&mut Listing),
    ) -> Vec<String> {
        let logs = Arc::new(self.logs.clone());
        let mut listing = Listing::new(&self.store, logs, filter, from, backward).expect("starts");
        let mut texts = Vec::new();
        while !listing.is_done() {
            for entry in listing.next_chunk(7).expect("reads") {
                texts.push(Content::decode(entry.content()).expect("readable").text.to_owned());
            }
            between(&mut listing);
        }
        texts
    }

    fn index_everything(&self) {
        while self.store.flush_index().expect("indexes") {}
    }
}

pub(super) fn numbered(range: std::ops::Range<u128>) -> Vec<Message> {
    range.map(|n| message(n, &format!("user{}", n % 3), "#room", &format!("text {n}"))).collect()
}

fn texts(range: impl Iterator<Item = u128>) -> Vec<String> {
    range.map(|n| format!("text {n}")).collect()
}

/// Files that claim to be too large to check at every opening. Opened unchecked, they may fail as redb does after an
/// earlier read failed, for example where a damaged page leads beyond the end of its file; or they fail always, as a
/// broken disk. Their disk may claim to be full.
#[derive(Debug, Clone)]
struct LargeFiles {
    files: Directory,
    fails: Latched,
    free_bytes: Arc<AtomicU64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Latched {
    Never,
    Unchecked,
    Always,
}

impl LargeFiles {
    fn new(dir: &Path, fails: Latched) -> Self {
        LargeFiles { files: Directory(dir.to_owned()), fails, free_bytes: Arc::new(AtomicU64::new(u64::MAX)) }
    }
}

impl Files for LargeFiles {
    fn boxed(&self) -> Box<dyn Files> {
        Box::new(self.clone())
    }

    fn database(
        &self,
        name: &str,
        cache: usize,
        how: files::OpenMode,
    ) -> Result<files::OpenedFile, OpenError> {
        let is_unchecked = self.fails == Latched::Unchecked && how == files::OpenMode::Unchecked;
        if is_unchecked || self.fails == Latched::Always {
            return Err(files::classify_error(self.path(name), redb::Error::PreviousIo));
        }
        self.files.database(name, cache, how)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path(name)
    }

    fn identity(&self, name: &str) -> std::io::Result<files::FileIdentity> {
        self.files.identity(name)
    }

    fn lock(&self) -> Result<Option<File>, OpenError> {
        self.files.lock()
    }

    fn free_bytes(&self) -> u64 {
        self.free_bytes.load(Ordering::Relaxed)
    }

    fn names(&self) -> std::io::Result<Vec<String>> {
        self.files.names()
    }

    fn len(&self, name: &str) -> std::io::Result<Option<u64>> {
        Ok(self.files.len(name)?.map(|len| if len == 0 { 0 } else { len + (1 << 40) }))
    }

    fn open_raw(&self, name: &str) -> std::io::Result<Box<dyn files::FileBytes>> {
        self.files.open_raw(name)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> std::io::Result<()> {
        self.files.replace(name, bytes)
    }

    fn rename(&self, from: &str, to: &str) -> std::io::Result<()> {
        self.files.rename(from, to)
    }

    fn remove(&self, name: &str) -> std::io::Result<()> {
        self.files.remove(name)
    }

    fn drop_page_cache(&self, name: &str) {
        self.files.drop_page_cache(name);
    }
}

/// After a write that fails, redb does not even read.
#[test]
fn the_index_is_not_written_on_a_full_disk_and_everything_is_read() {
    const COUNT: usize = 20_000;
    let dir = tempfile::tempdir().expect("temp dir");
    let files = LargeFiles::new(dir.path(), Latched::Never);
    let set_free_bytes = |bytes| files.free_bytes.store(bytes, Ordering::Relaxed);
    let open = || {
        let (store, logs) = Store::open_in(&files, "test", NOW, OpenPolicy::Default).expect("opens");
        Bench { store, logs, now_ms: NOW }
    };
    let mut bench = open();
    bench.send(&numbered(0..COUNT as u128));
    set_free_bytes(0);
    for _ in 0..2 {
        bench.index_everything();
        assert_eq!(bench.store.index().memtable().len(), COUNT);
        assert_eq!(bench.list(Filter::default(), None, false), texts(0..COUNT as u128));
        drop(bench);
        bench = open();
    }
    set_free_bytes((16 << 20) + 10 * (16 << 10));
    assert!(bench.store.flush_index().expect("indexes"));
    assert_eq!(bench.store.index().memtable().len(), COUNT - 10, "no more than there is space for");
    set_free_bytes(u64::MAX);
    bench.index_everything();
    assert_eq!(bench.store.index().memtable().len(), 0);
    assert_eq!(bench.list(Filter::default(), None, false), texts(0..COUNT as u128));
}

#[test]
fn an_unexplained_io_error_leads_to_a_page_check_before_it_counts_as_a_disk_error() {
    let dir = tempfile::tempdir().expect("temp dir");
    Bench::open(dir.path()).send(&numbered(0..20));
    let mut files = LargeFiles::new(dir.path(), Latched::Unchecked);
    let (store, logs) = Store::open_in(&files, "test", NOW, OpenPolicy::Default).expect("opens");
    assert_eq!((store.recovery(), logs.vector().entries()), (None, 20));
    drop(store);
    files.fails = Latched::Always;
    let error = Store::open_in(&files, "test", NOW, OpenPolicy::Default).expect_err("does not");
    assert!(matches!(error, OpenError::Io { .. }), "{error}");
    assert_eq!(Bench::open(dir.path()).logs.vector().entries(), 20);
}

/// A log that crashes the process that opens it is not opened, and nothing of it is lost.
#[test]
fn a_log_that_crashes_its_opener_is_salvaged_and_kept() {
    let dir = tempfile::tempdir().expect("temp dir");
    Bench::open(dir.path()).send(&numbered(0..20));
    let (store, logs) = Store::open_with(dir.path(), "test", NOW, OpenPolicy::RebuildIndex).expect("opens");
    assert!(store.index().is_new() && store.recovery().is_none());
    assert_eq!(logs.vector().entries(), 20);
    drop(store);
    let (store, logs) = Store::open_with(dir.path(), "test", NOW, OpenPolicy::SalvageLog).expect("opens");
    assert_eq!((logs.vector().entries(), store.damaged_files().len()), (20, 1));
    assert!(
        store.recovery().is_some_and(|recovery| recovery.why.contains("a process that opens it crashes"))
    );
}

/// The first row that is read at once and the one behind it are found by the last of the former.
#[test]
fn an_index_row_out_of_order_ends_a_listing_and_the_index_is_rebuilt() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut bench = Bench::open(dir.path());
    let keys = bench.send(&numbered(0..2_000));
    bench.index_everything();
    drop(bench);
    for (damaged, backward) in [(511, false), (2_000 - 512, true), (511, true)] {
        let EntryKey { stamp, origin, seq } = keys[damaged];
        let lies = if backward { u64::MAX } else { 0 };
        // As it stands in the file: the engine keeps numbers with their last byte first.
        let name = index::memtable::NameHash::of("#room").0;
        let key = |stamp: u64| [&name, &stamp.to_le_bytes()[..], &origin.0, &seq.to_le_bytes()].concat();
        let path = dir.path().join(files::INDEX);
        let mut bytes = std::fs::read(&path).expect("reads");
        let found: Vec<_> =
            (0..bytes.len() - 40).filter(|at| bytes[*at..].starts_with(&key(stamp.0))).collect();
        assert!(!found.is_empty(), "{damaged}");
        for at in found {
            bytes[at..at + 40].copy_from_slice(&key(lies));
        }
        std::fs::write(&path, &bytes).expect("writes");

        let files = LargeFiles::new(dir.path(), Latched::Never);
        let (store, logs) = Store::open_in(&files, "test", NOW, OpenPolicy::Default).expect("opens");
        let filter = Filter { recipient: Some("#room".into()), ..Filter::default() };
        let mut listing =
            Listing::new(&store, Arc::new(logs), filter.clone(), None, backward).expect("starts");
        let mut listed = 0;
        let error = loop {
            match listing.next_chunk(100) {
                Ok(chunk) => listed += chunk.len(),
                Err(error) => break error,
            }
            assert!(!listing.is_done() && listed <= 2_000, "{damaged}, {backward}: {listed}");
        };
        assert!(matches!(error, StoreError::IndexRowMisplaced), "{error}");
        assert!(store.read_failure().is_some());
        drop(listing);
        drop(store);
        let bench = Bench::open(dir.path());
        assert!(bench.store.index().is_new());
        assert_eq!(bench.list(filter, None, false), texts(0..2_000));
        bench.index_everything();
    }
}

#[test]
fn an_opening_changes_no_permissions_of_what_a_link_leads_to() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let (dir, elsewhere) = (tempfile::tempdir().expect("temp dir"), tempfile::tempdir().expect("temp dir"));
    let shared = elsewhere.path().join("shared");
    std::fs::write(&shared, "x").expect("written");
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o664)).expect("our own file");
    symlink(&shared, dir.path().join("note")).expect("a link");
    Bench::open(dir.path());
    assert_eq!(std::fs::metadata(&shared).expect("is there").permissions().mode() & 0o777, 0o664);
}

#[test]
fn what_was_committed_is_there_after_reopening() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut bench = Bench::open(dir.path());
    bench.send(&numbered(0..3000));
    let digest = bench.logs.vector().digest();
    drop(bench);
    let bench = Bench::open(dir.path());
    assert_eq!(bench.logs.vector().digest(), digest);
    assert_eq!(bench.list(Filter::default(), None, false), texts(0..3000));
    assert_eq!(bench.store.counts().messages, 3000);
}

#[test]
fn a_reopened_store_begins_a_new_log() {
    let dir = tempfile::tempdir().expect("temp dir");
    let first = Bench::open(dir.path()).send(&numbered(0..1))[0];
    let second = Bench::open(dir.path()).send(&numbered(1..2))[0];
    assert_ne!(first.origin, second.origin);
    assert_eq!(second.seq, 1);
}

/// Spoils an entry's bytes in the file of a store that is not open.
pub(super) fn spoil(dir: &Path, key: EntryKey) {
    let db = redb::Database::open(dir.join(files::LOG)).expect("opens");
    let tx = db.begin_write().expect("begins");
    let name = format!("log/{}", Uuid::from_bytes(key.origin.0).simple());
    let table = redb::TableDefinition::<u64, &[u8]>::new(&name);
    tx.open_table(table).expect("is there").insert(key.seq, b"spoilt".as_slice()).expect("writes");
    tx.commit().expect("commits");
}

/// What the index cannot read when it catches up, it must not forget when it passes it.
#[test]
fn an_entry_that_was_damaged_before_it_was_indexed_is_found_once_it_is_repaired() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut bench = Bench::open(dir.path());
    let key = bench.send(&numbered(0..3))[1];
    let entry = bench.store.log().read().expect("reads").get(key.origin, 2).expect("is there");
    drop(bench);
    spoil(dir.path(), key);

    let bench = Bench::open(dir.path());
    bench.index_everything(); // up to the third
    assert_eq!((bench.first(1), bench.store.counts().messages), (None, 2));
    assert_eq!(unindexed_count(&bench.store), 1);
    drop(bench);

    let bench = Bench::open(dir.path());
    let repaired = vec![bench.store.index().overlay().repair(entry).expect("reads")];
    bench.store.commit(WriteBatch { repaired, ..WriteBatch::default() }, &bench.logs).expect("commits");
    drop(bench); // before it is indexed

    for _ in 0..2 {
        let bench = Bench::open(dir.path());
        assert_eq!(bench.first(1).map(|copy| copy.key), Some(key));
        assert_eq!(bench.store.counts().messages, 3);
        bench.index_everything();
        assert_eq!(unindexed_count(&bench.store), 0);
    }
}

#[test]
fn two_copies_of_a_message_that_are_repaired_together_are_both_marked() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut bench = Bench::open(dir.path());
    let store = bench.store.clone();
    let mut overlay = store.index().overlay();
    let first = bench.assign(&mut overlay, &message(7, "user1", "#room", "the same"));
    bench.begin_log(); // two logs
    let second = bench.assign(&mut overlay, &message(7, "user1", "#room", "the same"));
    let both = [first.entry.clone(), second.entry.clone()];
    let change = WriteBatch { entries: vec![first, second], ..WriteBatch::default() };
    bench.store.commit(change, &bench.logs).expect("commits");
    drop(overlay);
    drop((store, bench));
    for entry in &both {
        spoil(dir.path(), entry.key());
    }

    let bench = Bench::open(dir.path());
    let mut overlay = bench.store.index().overlay();
    let repaired = both.map(|entry| overlay.repair(entry).expect("reads")).into();
    let change = WriteBatch { repaired, ..WriteBatch::default() };
    bench.store.commit(change, &bench.logs).expect("commits");
    assert_eq!(bench.list(Filter::default(), None, false), ["the same"]);
    assert_eq!(bench.store.counts().messages, 1);
}

/// A peer can send a log of nothing but one message.
#[test]
fn a_copy_of_a_message_costs_the_same_however_many_there_are() {
    const PARTS: u64 = 40;
    const PART: u64 = 100;
    let dir = tempfile::tempdir().expect("temp dir");
    let mut bench = Bench::open(dir.path());
    let content = message(7, "user1", "#room", "again and again").encode();
    let digest = Digest::of(EntryKind::Message, &content);
    let (origin, mut times) = (Origin([77; 16]), Vec::new());
    for part in 0..PARTS {
        let began = std::time::Instant::now();
        let (mut entries, mut overlay) = (Vec::new(), bench.store.index().overlay());
        for seq in PART * part + 1..=PART * (part + 1) {
            let key = EntryKey { stamp: Stamp((NOW << 16) + seq), origin, seq };
            let entry = Entry::new(key, EntryKind::Message, digest, &content);
            assert!(bench.logs.admit(&entry, NOW).expect("follows"));
            let hash = bench.logs.vector().hash(origin, LogType::MESSAGES);
            entries.push(overlay.append(entry, hash).expect("reads"));
        }
        bench.store.commit(WriteBatch { entries, ..WriteBatch::default() }, &bench.logs).expect("commits");
        times.push(began.elapsed());
        if part % 5 == 4 {
            bench.index_everything();
        }
    }
    let fastest = |times: &[std::time::Duration]| *times.iter().min().expect("some");
    // The first parts find no copy in the file.
    let (early, late) = (fastest(&times[5..15]), fastest(&times[30..]));
    assert!(late < 3 * early, "{times:?}");
    assert_eq!(bench.store.counts().messages, 1);
    assert_eq!(bench.list(Filter::default(), None, false), ["again and again"]);
    assert_eq!(bench.first(7).expect("is there").key.seq, 1);
}

/// The watermark passes a damaged entry before the entry is flushed after its repair.
#[test]
fn an_entry_that_was_damaged_while_the_index_was_built_is_indexed_after_its_repair_even_after_a_crash() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut bench = Bench::open(dir.path());
    let keys = bench.send(&numbered(0..40));
    let store = bench.store.clone();
    let entry = |key: &EntryKey| store.log().read().expect("reads").get(key.origin, key.seq).expect("intact");
    let damaged: Vec<Entry> = keys[5..10].iter().map(entry).collect();
    drop((store, bench));
    std::fs::remove_file(dir.path().join(files::INDEX)).expect("removes");
    for entry in &damaged {
        spoil(dir.path(), entry.key());
    }

    let files = LargeFiles::new(dir.path(), Latched::Never);
    let (store, logs) = Store::open_in(&files, "test", NOW, OpenPolicy::Default).expect("opens");
    let mut overlay = store.index().overlay();
    let repaired = damaged.into_iter().map(|entry| overlay.repair(entry).expect("reads")).collect();
    drop(overlay);
    store.commit(WriteBatch { repaired, ..WriteBatch::default() }, &logs).expect("commits");
    files.free_bytes.store((16 << 20) + 35 * (16 << 10), Ordering::Relaxed);
    assert!(store.flush_index().expect("indexes"), "all but the repaired entries");
    drop((store, logs)); // the rest of the memtable is lost, as in a crash
    let bench = Bench::open(dir.path());
    assert!((0..40).all(|id| bench.first(id).is_some()));
    assert_eq!(bench.store.counts().messages, 40);
}

#[test]
fn comparing_a_log_with_its_chain_ends_once_nobody_waits_for_it() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut bench = Bench::open(dir.path());
    bench.send(&numbered(0..1_500));
    let origin = bench.first(0).expect("is there").key.origin;
    let log = bench.store.log();
    let floor = Head::genesis(origin, LogType::MESSAGES);
    let pieces = std::cell::Cell::new(0);
    let matches = |most| {
        log.matches_chain(origin, floor, 1_500, &|| {
            pieces.set(pieces.get() + 1);
            pieces.get() <= most
        })
    };
    assert!(matches(2).expect("reads"));
    assert!(matches!(matches(3), Err(StoreError::Closed)));
}

#[test]
fn a_log_that_is_missing_beside_its_index_is_reported() {
    let dir = tempfile::tempdir().expect("temp dir");
    assert!(Bench::open(dir.path()).store.recovery().is_none());
    std::fs::remove_file(dir.path().join(files::LOG)).expect("removes");
    let mut bench = Bench::open(dir.path());
    assert!(bench.store.recovery().is_none(), "the store was empty");
    bench.send(&numbered(0..5));
    bench.index_everything();
    drop(bench);
    std::fs::remove_file(dir.path().join(files::LOG)).expect("removes");
    let store = Store::open(dir.path(), "test", NOW).expect("opens").0;
    let recovery = store.recovery().expect("reported");
    assert!(recovery.why.contains("missing, although its index is there"), "{}", recovery.why);
    assert_eq!((recovery.salvaged.records, store.counts().messages), (0, 0));
    drop(store);
    assert!(Bench::open(dir.path()).store.recovery().is_none(), "once");
}

#[test]
fn a_log_that_is_put_back_is_settled_once_it_does_not_change() {
    let dir = tempfile::tempdir().expect("temp dir");
    let known = Bench::open(dir.path()).store.log_identity();
    let log = dir.path().join(files::LOG);
    std::fs::copy(&log, dir.path().join("copy")).expect("copies");
    let file = std::fs::File::options().write(true).open(dir.path().join("copy")).expect("opens");
    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_millis(NOW)).expect("sets");
    let check = |now_ms| Store::check_settled(dir.path(), Some(known), now_ms);
    assert!(check(NOW).is_ok(), "the same file");
    std::fs::remove_file(&log).expect("removes");
    assert!(check(NOW).is_ok(), "opening says that it is gone");
    std::fs::rename(dir.path().join("copy"), &log).expect("renames");
    let settling = check(NOW + SETTLED_SECONDS * 1_000 - 1).expect_err("is new");
    assert!(settling.is_transient() && settling.to_string().contains("is being written"), "{settling}");
    assert!(check(NOW + SETTLED_SECONDS * 1_000).is_ok());
}

#[test]
fn a_link_to_nothing_is_not_replaced() {
    for name in [files::LOG, files::INDEX] {
        let (dir, disk) = (tempfile::tempdir().expect("temp dir"), tempfile::tempdir().expect("temp dir"));
        let mut bench = Bench::open(dir.path());
        bench.send(&numbered(0..5));
        drop(bench);
        let (link, target) = (dir.path().join(name), disk.path().join(name));
        std::fs::copy(&link, &target).expect("copies");
        std::fs::remove_file(&link).expect("removes");
        std::os::unix::fs::symlink(&target, &link).expect("links");
        let unmounted = disk.path().join("unmounted");
        std::fs::rename(&target, &unmounted).expect("renames");
        let refused = Store::open(dir.path(), "test", NOW).expect_err("leads to nothing");
        assert!(refused.is_transient() && refused.to_string().contains("mount the disk"), "{refused}");
        std::fs::rename(&unmounted, &target).expect("renames");
        assert_eq!(Bench::open(dir.path()).store.counts().messages, 5);
        assert!(link.is_symlink());
    }
}

/// Otherwise the records are read and written each second, until the disk is full.
#[test]
fn a_salvage_begins_only_if_the_disk_may_have_room_for_it() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut bench = Bench::open(dir.path());
    bench.send(&numbered(0..50));
    drop(bench);
    let path = dir.path().join(files::LOG);
    let mut bytes = std::fs::read(&path).expect("reads");
    bytes[..4_096].fill(0);
    std::fs::write(&path, bytes).expect("writes");
    let files = LargeFiles::new(dir.path(), Latched::Never);
    let open = || Store::open_in(&files, "test", NOW, OpenPolicy::Default);
    files.free_bytes.store(1 << 30, Ordering::Relaxed);
    let error = open().map(|_| ()).expect_err("has no room");
    assert!(error.is_transient() && error.is_unwritable(), "{error}");
    assert!(error.to_string().contains(&(1 << 30).to_string()), "{error}");
    files.free_bytes.store(u64::MAX, Ordering::Relaxed);
    assert_eq!(open().expect("salvages").0.counts().messages, 50);
}

#[test]
fn the_index_answers_the_same_from_memtable_and_file_and_after_a_rebuild() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut bench = Bench::open(dir.path());
    bench.send(&numbered(0..500));
    bench.index_everything();
    bench.send(&numbered(500..900));
    let answers = |bench: &Bench| {
        let of =
            |user: &str| bench.list(Filter { user: Some(user.into()), ..Filter::default() }, None, false);
        let keys: Vec<_> = (0..900).map(|n| bench.first(n).expect("is there").key).collect();
        (of("user0"), of("user1"), of("#room"), keys, bench.store.counts())
    };
    let before = answers(&bench);
    assert_eq!(before.0, texts((0..900).filter(|n| n % 3 == 0)));
    assert_eq!(before.2, texts(0..900));
    bench.index_everything();
    assert_eq!(answers(&bench), before);
    drop(bench);
    std::fs::remove_file(dir.path().join("index.redb")).expect("removes");
    assert_eq!(answers(&Bench::open(dir.path())), before);
}

#[test]
fn an_index_that_covers_more_than_the_log_is_rebuilt() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut bench = Bench::open(dir.path());
    bench.send(&numbered(0..5));
    let Bench { store, .. } = bench;
    drop(store);
    let backup = std::fs::read(dir.path().join("log.redb")).expect("reads");
    let mut bench = Bench::open(dir.path());
    bench.send(&numbered(5..9));
    bench.index_everything();
    drop(bench);
    std::fs::write(dir.path().join("log.redb"), backup).expect("writes");
    let bench = Bench::open(dir.path());
    assert_eq!(bench.store.counts().messages, 5);
    assert!(bench.first(7).is_none());
}

#[test]
fn listings_go_both_ways_from_any_key() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut bench = Bench::open(dir.path());
    let mut keys = Vec::new();
    for part in 0..4 {
        bench.begin_log(); // four logs
        bench.now_ms += 5;
        keys.extend(bench.send(&numbered(part * 25..(part + 1) * 25)));
    }
    for by_user in [false, true] {
        let filter = Filter { recipient: by_user.then(|| "#room".into()), ..Filter::default() };
        for at in [0, 1, 24, 25, 60, 99] {
            let from = Some(keys[at]);
            let after = bench.list(filter.clone(), from, false);
            assert_eq!(after, texts(at as u128 + 1..100), "after {at}");
            let before = bench.list(filter.clone(), from, true);
            assert_eq!(before, texts((0..at as u128).rev()), "before {at}");
        }
        assert_eq!(bench.list(filter, None, true), texts((0..100).rev()));
    }
}

#[test]
fn a_message_in_two_logs_is_shown_once_and_first() {
    let (left_dir, right_dir) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
    let (mut left, mut right) = (Bench::open(left_dir.path()), Bench::open(right_dir.path()));
    right.now_ms += 10;
    left.send(&numbered(0..10));
    right.send(&numbered(5..15));
    right.send(&[message(3, "user0", "#room", "other content")]);
    left.copy_to(&mut right);
    right.copy_to(&mut left);
    let mut want = texts(0..15);
    want.push("other content".into());
    for bench in [&left, &right] {
        for _ in ["from the memtable", "from the file"] {
            assert_eq!(bench.list(Filter::default(), None, false), want);
            let of_room = Filter { recipient: Some("#room".into()), ..Filter::default() };
            assert_eq!(bench.list(of_room, None, false), want);
            assert_eq!(bench.store.counts(), Counts { messages: 16, conflicts: 1, unreadable: 0 });
            bench.index_everything();
        }
    }
    let first = left.first(3).expect("is there");
    let again = right.first(3).expect("is there");
    assert_eq!(first, again);
}

#[track_caller]
fn check(bench: &Bench, filter: &Filter, want: &[&str]) {
    assert_eq!(bench.list(filter.clone(), None, false), want, "{filter:?}");
}

#[test]
fn filters_mean_what_they_say() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut bench = Bench::open(dir.path());
    bench.send(&[
        message(1, "ann", "bob", "STRASSE"),
        message(2, "bob", "ann", "Σίσυφος"),
        message(3, "ann", "cid", "straße"),
        message(4, "bob", "#ops", "plain"),
        message(5, "ann", "ann", "self"),
    ]);
    let some = |text: &str| Some(text.to_owned());
    let all = Filter::default;
    for _ in ["from the memtable", "from the file"] {
        check(&bench, &Filter { sender: some("ann"), ..all() }, &["STRASSE", "straße", "self"]);
        check(&bench, &Filter { recipient: some("ann"), ..all() }, &["Σίσυφος", "self"]);
        check(&bench, &Filter { user: some("ann"), ..all() }, &["STRASSE", "Σίσυφος", "straße", "self"]);
        check(&bench, &Filter { user: some("ann"), with: some("bob"), ..all() }, &["STRASSE", "Σίσυφος"]);
        check(&bench, &Filter { text: some("Straße"), ..all() }, &["STRASSE", "straße"]);
        check(&bench, &Filter { text: some("ΣΊΣΥΦΟΣ"), ..all() }, &["Σίσυφος"]);
        check(&bench, &Filter { since: Some(NOW / 1000), text: some("plain"), ..all() }, &["plain"]);
        check(&bench, &Filter { until: Some(NOW / 1000), ..all() }, &[]);
        check(&bench, &Filter { sender: some("nobody"), ..all() }, &[]);
        bench.index_everything();
    }
}

#[test]
fn the_chain_can_be_computed_at_any_seq() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut bench = Bench::open(dir.path());
    let mut hashes = Vec::new();
    let store = bench.store.clone();
    let mut overlay = store.index().overlay();
    let entries: Vec<_> =
        numbered(0..2100).iter().map(|message| bench.assign(&mut overlay, message)).collect();
    hashes.extend(entries.iter().map(|row| (row.entry.key(), row.hash.expect("is appended"))));
    bench.store.commit(WriteBatch { entries, ..WriteBatch::default() }, &bench.logs).expect("commits");
    let mut reader = bench.store.log().read().expect("reads");
    let floor = |origin| bench.logs.vector().get(origin).expect("is there").floor;
    for at in [0, 1, 1022, 1023, 1024, 2047, 2099] {
        let (key, hash) = hashes[at];
        assert_eq!(
            reader.hash_at(key.origin, floor(key.origin), key.seq).expect("computes"),
            hash,
            "at {}",
            key.seq
        );
    }
}

#[test]
fn a_store_of_another_network_or_format_is_refused_in_words() {
    let dir = tempfile::tempdir().expect("temp dir");
    let open = Bench::open(dir.path());
    let in_use = Store::open(dir.path(), "test", NOW).expect_err("is in use");
    assert!(in_use.to_string().contains("in use by another process; stop that one"), "{in_use}");
    drop(open);
    let other = Store::open(dir.path(), "other", NOW).expect_err("another network");
    assert!(
        other.to_string().contains("belongs to the network \"test\"")
            && other.to_string().contains("`network`"),
        "{other}"
    );
    let file = dir.path().join("file");
    std::fs::write(&file, "x").expect("writes");
    assert!(matches!(Store::open(&file, "test", NOW), Err(OpenError::Io { .. })));
    log::fake::pretend_newer(&dir.path().join("log.redb"));
    let newer = Store::open(dir.path(), "test", NOW).expect_err("newer");
    assert!(newer.to_string().contains("and this program reads format 2 only"), "{newer}");
}

/// The bytes of a record of format 1, as the program before wrote it.
const FORMAT_1_RECORD: &str = "c74368617443686e010100000000000207070707070707070707070707070707000000000000001101020304\
    05060708_85052e9aab1b67b6622d94a08441b09fd5b7aca61ee360416d70de5da67d86ca_6869_5b46b346b41e4349";

#[test]
fn a_store_of_format_1_is_refused_and_not_touched() {
    let dir = tempfile::tempdir().expect("temp dir");
    let hex: Vec<u8> = FORMAT_1_RECORD.bytes().filter(u8::is_ascii_hexdigit).collect();
    let digits =
        |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16).expect("digits");
    let file = [vec![0; 5_000], hex.chunks(2).map(digits).collect(), vec![0; 100]].concat();
    std::fs::write(dir.path().join(files::LOG), &file).expect("writes");
    for policy in [OpenPolicy::Default, OpenPolicy::SalvageLog] {
        let refused = Store::open_with(dir.path(), "test", NOW, policy).expect_err("is of format 1");
        assert!(
            refused.to_string().contains("has format 1, and this program reads format 2 only"),
            "{refused}"
        );
        assert!(!refused.is_transient());
    }
    let names = std::fs::read_dir(dir.path()).expect("reads").map(|file| file.expect("reads").file_name());
    assert_eq!(names.collect::<Vec<_>>(), [files::LOG]);
    assert_eq!(std::fs::read(dir.path().join(files::LOG)).expect("reads"), file);
}

#[test]
fn a_store_that_was_being_made_when_the_power_failed_is_made_again() {
    let dir = tempfile::tempdir().expect("temp dir");
    let unfinished = ["log.unfinished", "index.unfinished"].map(|name| dir.path().join(name));
    for path in &unfinished {
        std::fs::write(path, [0; 8192]).expect("writes");
    }
    Bench::open(dir.path()).send(&numbered(0..3));
    assert_eq!(Bench::open(dir.path()).list(Filter::default(), None, false), texts(0..3));
    assert!(unfinished.iter().all(|path| !path.exists()), "nothing is left lying about");
}

#[test]
fn damaged_bytes_are_never_served() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut bench = Bench::open(dir.path());
    let keys = bench.send(&numbered(0..10));
    log::fake::overwrite(&bench.store.log, keys[4].origin, keys[4].seq, b"not a record");
    let logs = Arc::new(bench.logs.clone());
    for filter in [Filter::default(), Filter { recipient: Some("#room".into()), ..Filter::default() }] {
        let mut listing = Listing::new(&bench.store, logs.clone(), filter, None, false).expect("starts");
        assert_eq!(listing.next_chunk(100).expect("reads what comes before").len(), 4);
        for _ in 0..2 {
            assert!(
                matches!(listing.next_chunk(100), Err(StoreError::Damaged { seq: 5, .. })),
                "it is not skipped"
            );
        }
    }
    assert_eq!(bench.store.log().damage().all(), [(keys[4].origin, 5)]);
}

#[test]
fn a_listing_may_leave_damaged_entries_out() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut bench = Bench::open(dir.path());
    let keys = bench.send(&numbered(0..10));
    bench.begin_log();
    bench.send(&numbered(10..20));
    bench.send(&numbered(4..5)); // a second copy of a message whose first one is damaged
    for at in [0, 4, 5, 9] {
        log::fake::overwrite(&bench.store.log, keys[at].origin, keys[at].seq, b"not a record");
    }
    let logs = Arc::new(bench.logs.clone());
    for filter in [Filter::default(), Filter { recipient: Some("#room".into()), ..Filter::default() }] {
        for (backward, from) in [(false, None), (true, None), (false, Some(keys[4])), (true, Some(keys[9]))] {
            let listing = Listing::new(&bench.store, logs.clone(), filter.clone(), from, backward);
            let mut listing = listing.expect("starts").skipping(Skips::All);
            let mut texts = Vec::new();
            while !listing.is_done() {
                for entry in listing.next_chunk(7).expect("reads") {
                    texts.push(Content::decode(entry.content()).expect("readable").text.to_owned());
                }
                listing.release_buffers();
            }
            let mut listed: Vec<u128> = (1..=3).chain(6..=8).chain(10..20).collect();
            match from {
                Some(_) if backward => listed.retain(|n| *n < 9),
                Some(_) => listed.retain(|n| *n > 4),
                None => {}
            }
            let mut want = self::texts(listed.into_iter());
            if !(from.is_some() && backward) {
                want.push("text 4".into());
            }
            if backward {
                want.reverse();
            }
            assert_eq!(texts, want, "from {from:?}, backward: {backward}");
        }
    }
    let damaged = |after, before| {
        let found = damaged_between(&bench.store, &logs, after, before).expect("reads");
        found.into_iter().map(|(_, seq)| seq).collect::<Vec<_>>()
    };
    assert_eq!(damaged(None, None), [1, 5, 6, 10]);
    assert_eq!(damaged(Some(keys[2]), None), [5, 6, 10]);
    assert_eq!(damaged(Some(keys[2]), Some(keys[7])), [5, 6]);
    assert_eq!(damaged(None, Some(keys[2])), [1]);
}

/// Rows of that table carry no check of their own.
#[test]
fn an_impossible_cut_is_damage() {
    for seq in [0, 2] {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut bench = Bench::open(dir.path());
        let keys = bench.send(&numbered(0..3));
        log::fake::put_cut(&bench.store.log, keys[0].origin, seq);
        drop(bench);
        let bench = Bench::open(dir.path());
        assert!(bench.store.recovery().is_some(), "a cut at {seq}");
        assert_eq!(bench.list(Filter::default(), None, false), texts(0..3));
    }
}
