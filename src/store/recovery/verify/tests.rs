//! What `verify` says of stores that are whole, damaged in one place, or no databases.

use super::*;
use crate::chain::ids::Leaf;
use crate::chain::kind::{EntryKind, LogType};
use crate::chain::logs::Logs;
use crate::chain::message::Digest;
use crate::store::log::WriteBatch;
use crate::store::{OpenPolicy, Store, log};

/// A store with a log of so many entries.
fn store(dir: &Path, entries: u64) -> (std::sync::Arc<Store>, Logs, Origin) {
    let (store, mut logs) = Store::open(dir, "test", 0).expect("opens");
    let origin = Origin([7; 16]);
    let (mut new, mut overlay) = (Vec::new(), store.index().overlay());
    for number in 0..entries {
        let content = number.to_be_bytes();
        let digest = Digest::of(EntryKind::Message, &content);
        let key = logs.assign(Leaf::of(EntryKind::Message, "", digest), 1_000, || origin);
        let entry = Entry::new(key, EntryKind::Message, digest, &content);
        new.push(overlay.append(entry, logs.vector().hash(origin, LogType::MESSAGES)).expect("reads"));
    }
    drop(overlay);
    store.commit(WriteBatch { entries: new, ..WriteBatch::default() }, &logs).expect("commits");
    (store, logs, origin)
}

fn report(dir: &Path) -> VerifyReport {
    match verify(dir).expect("looks at it") {
        Verified::Read(report) => report,
        other @ Verified::NotOpened { .. } => panic!("{other:?}"),
    }
}

#[test]
fn a_whole_store_is_whole_and_counted() {
    let dir = tempfile::tempdir().expect("temp dir");
    drop(store(dir.path(), 2500));
    let whole = report(dir.path());
    assert!(whole.is_whole());
    assert_eq!((whole.logs, whole.entries, whole.bytes), (1, 2500, 2500 * 97));
    assert_eq!(whole.unreadable, 2500, "they are intact, and nothing that this program understands");
    assert_eq!(report(dir.path()), whole, "looking changes nothing");
}

#[test]
fn the_first_damaged_entry_is_named_and_all_are_counted() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (store, _, origin) = store(dir.path(), 2500);
    let of_another = store.log().read().expect("reads").get(origin, 9).expect("is there");
    log::fake::overwrite(store.log(), origin, 1000, b"not a record");
    log::fake::overwrite(store.log(), origin, 1030, of_another.bytes());
    log::fake::take_away(store.log(), origin, 2000);
    log::fake::take_away(store.log(), origin, 2001);
    drop(store);
    let found = report(dir.path());
    assert_eq!((found.entries, found.damaged, found.missing), (2496, 2, 2));
    let why = "its record does not check".to_owned();
    assert_eq!(found.first_bad, Some(BadEntry { origin, seq: 1000, why }));
}

#[test]
fn an_entry_that_is_not_the_one_of_the_chain_is_damage() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (store, _, origin) = store(dir.path(), 1500);
    let entry = store.log().read().expect("reads").get(origin, 500).expect("is there");
    let forged = Entry::new(entry.key(), entry.kind(), Digest::of(EntryKind::Message, b"forged"), b"forged");
    log::fake::overwrite(store.log(), origin, 500, forged.bytes());
    drop(store);
    let found = report(dir.path());
    assert_eq!((found.entries, found.damaged, found.missing), (1500, 2, 0), "checkpoint and head");
    assert_eq!(found.first_bad.map(|bad| bad.seq), Some(1024));
}

#[test]
fn a_log_that_cannot_be_opened_is_searched_and_left_alone() {
    let dir = tempfile::tempdir().expect("temp dir");
    drop(store(dir.path(), 100));
    let path = dir.path().join(LOG);
    let mut bytes = std::fs::read(&path).expect("reads");
    bytes[..4096].fill(0);
    std::fs::write(&path, &bytes).expect("writes");
    let found = verify(dir.path()).expect("looks at it");
    assert!(matches!(found, Verified::NotOpened { intact: 100, .. }), "{found:?}");
    assert_eq!(std::fs::read(&path).expect("reads"), bytes);
    // The node salvages it, and then it is whole.
    drop(Store::open_with(dir.path(), "test", 0, OpenPolicy::Default).expect("opens"));
    let found = report(dir.path());
    assert_eq!((found.is_whole(), found.entries, found.set_aside.len()), (true, 100, 1));
    std::fs::remove_file(&path).expect("removes");
    let found = verify(dir.path()).expect("looks at it");
    assert!(matches!(found, Verified::NotOpened { intact: 100, .. }), "{found:?}");
}

#[test]
fn a_store_in_use_is_not_verified() {
    let dir = tempfile::tempdir().expect("temp dir");
    let open = store(dir.path(), 1);
    assert!(matches!(verify(dir.path()), Err(OpenError::InUse(_))));
    drop(open);
    assert!(report(dir.path()).is_whole());
}

#[test]
fn stores_are_found_in_the_order_of_their_numbers() {
    let dir = tempfile::tempdir().expect("temp dir");
    for name in ["node-10", "node-2", "node-x", "other", "node-3"] {
        std::fs::create_dir(dir.path().join(name)).expect("makes");
    }
    for name in ["node-10/log.redb", "node-2/log.redb", "other/log.redb", "node-3/log.redb.damaged-x"] {
        std::fs::write(dir.path().join(name), "").expect("writes");
    }
    for name in ["node-4", "node-5"] {
        std::fs::create_dir(dir.path().join(name)).expect("makes");
    }
    std::fs::write(dir.path().join("node-4/index.redb"), "").expect("writes");
    std::os::unix::fs::symlink("unmounted", dir.path().join("node-5/log.redb")).expect("links");
    let found = stores_in(dir.path()).expect("looks");
    let stores = ["node-2", "node-3", "node-4", "node-5", "node-10"];
    assert_eq!(found, stores.map(|name| dir.path().join(name)));
    assert_eq!(stores_in(&dir.path().join("other")).expect("looks"), [dir.path().join("other")]);
}
