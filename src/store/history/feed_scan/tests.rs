//! Readers that move between stores: each is given everything once.

use std::collections::BTreeMap;
use std::path::Path;

use super::*;
use crate::chain::filter::Filter;
use crate::chain::message::Content;
use crate::store::tests::{Bench, message, numbered, spoil};

/// A reader, and how often it was given each text.
#[derive(Default)]
struct Reader {
    seen: ReadState,
    given: BTreeMap<String, u32>,
}

impl Reader {
    /// Reads on at this node, at most so many messages, and keeps what it has seen by then.
    fn read(&mut self, bench: &Bench, most: usize) -> Vec<String> {
        let (logs, until) = (Arc::new(bench.logs.clone()), Frontier::of(bench.logs.vector()));
        let mut scan = FeedScan::new(&bench.store, logs, self.seen.clone(), until).expect("begins");
        let mut texts = Vec::new();
        while !scan.is_done() && texts.len() < most {
            for next in scan.next_chunk((most - texts.len()).min(7), usize::MAX).expect("reads") {
                let text = Content::decode(next.entry.content()).expect("readable").text.to_owned();
                *self.given.entry(text.clone()).or_default() += 1;
                texts.push(text);
            }
        }
        let at_end = scan.is_done();
        self.seen = match scan.at() {
            Some(at) if !at_end => scan.state_at(at),
            None if !at_end => self.seen.clone(),
            _ => scan.state_at_end(),
        };
        texts
    }

    #[track_caller]
    fn was_given(&self, count: usize, times: u32) {
        assert_eq!(self.given.len(), count, "{:?}", self.given);
        assert!(self.given.values().all(|given| *given == times), "{:?}", self.given);
    }
}

/// A node with messages in several logs whose stamps interleave.
fn node(dir: &Path, from: u128) -> Bench {
    let mut bench = Bench::open(dir);
    for part in 0..4 {
        bench.begin_log();
        bench.now_ms += 5;
        bench.send(&numbered(from + part * 25..from + (part + 1) * 25));
    }
    bench
}

#[test]
fn a_reader_from_the_start_gets_history_and_then_nothing() {
    let dir = tempfile::tempdir().expect("temp dir");
    let bench = node(dir.path(), 0);
    let mut reader = Reader::default();
    let texts = reader.read(&bench, usize::MAX);
    assert_eq!(texts, bench.list(Filter::default(), None, false));
    assert_eq!(reader.read(&bench, usize::MAX), Vec::<String>::new());
    assert_eq!(reader.seen.scans, []);
}

#[test]
fn a_reader_that_moves_between_nodes_gets_everything_once() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().expect("temp dir"));
    let mut one = node(dirs[0].path(), 0);
    let mut two = node(dirs[1].path(), 1_000);
    one.copy_to(&mut two);
    two.copy_to(&mut one);
    for step in [1, 3, 7, 60] {
        let mut reader = Reader::default();
        loop {
            let texts = [&one, &two].map(|bench| reader.read(bench, step).len());
            assert!(reader.seen.scans.len() <= 2, "{:?}", reader.seen.scans.len());
            if texts == [0, 0] {
                break;
            }
        }
        reader.was_given(200, 1);
    }
}

/// The second node lacks a part of what the reader saw at the first one, and gets it later, and more.
#[test]
fn what_a_node_gets_later_is_neither_missed_nor_repeated() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().expect("temp dir"));
    let mut one = node(dirs[0].path(), 0);
    let mut two = node(dirs[1].path(), 1_000);
    one.copy_to(&mut two);
    let mut readers = [0, 20, 60, 130].map(|first| (first, Reader::default()));
    one.send(&numbered(10_000..10_050));
    for (first, reader) in &mut readers {
        reader.read(&one, *first);
        assert!(!reader.read(&two, 30).is_empty());
        reader.read(&two, usize::MAX);
    }
    one.copy_to(&mut two);
    two.copy_to(&mut one);
    for (first, reader) in &mut readers {
        reader.read(&two, 5);
        reader.read(&one, usize::MAX);
        reader.read(&two, usize::MAX);
        reader.was_given(250, 1);
        assert_eq!(reader.seen.scans, [], "after {first}");
    }
}

#[test]
fn a_damaged_entry_blocks_its_log_and_no_other_until_it_is_repaired() {
    let dir = tempfile::tempdir().expect("temp dir");
    let bench = node(dir.path(), 0);
    let (origin, _) = bench.logs.vector().iter().nth(1).expect("four logs");
    let mut reading = bench.store.log().read().expect("reads");
    let entry = reading.get(origin, 10).expect("is there");
    drop((reading, bench));
    spoil(dir.path(), entry.key());

    let bench = Bench::open(dir.path());
    let mut reader = Reader::default();
    while !reader.read(&bench, 11).is_empty() {}
    reader.was_given(100 - 16, 1);
    let repaired = vec![bench.store.index().overlay().repair(entry).expect("reads")];
    let change = crate::store::log::WriteBatch { repaired, ..Default::default() };
    bench.store.commit(change, &bench.logs).expect("commits");
    assert_eq!(reader.read(&bench, usize::MAX).len(), 16);
    reader.was_given(100, 1);
}

#[test]
fn a_second_copy_goes_only_to_a_reader_without_the_first() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut bench = Bench::open(dir.path());
    let same = message(7, "user1", "#room", "the same");
    let first = bench.send(std::slice::from_ref(&same))[0];
    bench.begin_log();
    bench.now_ms += 5;
    let mut reader = Reader::default();
    reader.read(&bench, usize::MAX);
    let second = bench.send(&[same])[0];
    assert_eq!(reader.read(&bench, usize::MAX), Vec::<String>::new());
    assert_eq!(Reader::default().read(&bench, usize::MAX), ["the same"]);
    let seen = |key: EntryKey| ReadState::all([(key.origin, key.seq)].into_iter().collect(), key.stamp);
    for key in [first, second] {
        let mut reader = Reader { seen: seen(key), ..Reader::default() };
        assert_eq!(reader.read(&bench, usize::MAX), Vec::<String>::new(), "{key:?}");
    }
}
