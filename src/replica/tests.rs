//! Stores with logs that no program writes yet: logs with a floor, control logs, entries of unknown kinds. Two stores
//! exchange without a network between them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use tempfile::TempDir;
use uuid::Uuid;

use super::committer::Committer;
use super::exchange::{self, Exchange, Trigger};
use super::scrub::Scrub;
use super::write_ops::{Admitted, Maintenance, Space, WriteOps};
use super::{forks, runs};
use crate::chain::clock::Stamp;
use crate::chain::cursor::ReadState;
use crate::chain::filter::Filter;
use crate::chain::frontier::Frontier;
use crate::chain::ids::{EntryKey, Origin};
use crate::chain::kind::{EntryKind, LogType};
use crate::chain::message::{Content, Digest, Message, UncheckedMessage};
use crate::chain::record::{Entry, EntryBody};
use crate::chain::sync::wire::{EntryRange, Hello, Run, SyncMessage};
use crate::chain::sync::{NextExchange, Responder};
use crate::chain::vector::Head;
use crate::store::engine::files::{Directory, Files, INDEX};
use crate::store::history::feed_scan::FeedScan;
use crate::store::history::listing::Listing;
use crate::store::log::fake::{overwrite, raise_floor};
use crate::store::recovery::verify::{Verified, VerifyReport, verify};
use crate::store::{Store, StoreError};

const NOW: u64 = 1_700_000_000_000;
const A: Origin = Origin([7; 16]);
const B: Origin = Origin([8; 16]);
const CONTROL: LogType = LogType { is_control: true, ..LogType::MESSAGES };
/// In the tests below, log A begins after this entry.
const FLOOR: u64 = 1_024;

fn message(n: u64) -> Vec<u8> {
    let (sender, recipient, text) = (format!("user{}", n % 3), "#room".into(), format!("text {n}"));
    let draft = UncheckedMessage { id: Uuid::from_u128(n.into()), sender, recipient, text, timestamp: None };
    Message::new(draft).expect("valid").encode()
}

fn entry_of(origin: Origin, log_type: LogType, seq: u64, kind: EntryKind, content: &[u8]) -> Entry {
    let key = EntryKey { stamp: Stamp::at(NOW + seq), origin, seq };
    let body = EntryBody { kind, account: "", digest: Digest::of(kind, content), content };
    assert!(body.fits(log_type));
    Entry::encode(key, log_type, &body)
}

fn with_account(entry: &Entry, account: &str) -> Entry {
    Entry::encode(entry.key(), entry.log_type(), &EntryBody { account, ..entry.body() })
}

/// The messages `1..=last` as log A has them.
fn messages(last: u64) -> Vec<Entry> {
    let entry = |seq| entry_of(A, LogType::MESSAGES, seq, EntryKind::Message, &message(seq));
    (1..=last).map(entry).collect()
}

fn texts(range: impl Iterator<Item = u64>) -> Vec<String> {
    range.map(|n| format!("text {n}")).collect()
}

fn text(entry: &Entry) -> String {
    Content::decode(entry.content()).expect("readable").text.to_owned()
}

/// A store and both sides of its exchanges with one peer.
struct Replica {
    dir: TempDir,
    committer: Committer,
    exchange: Exchange,
    responder: Responder,
}

/// The number of logs that tests began: two stores of a test must not begin logs of one name.
static LOGS: AtomicU64 = AtomicU64::new(0);

impl Replica {
    fn new() -> Self {
        Self::open(tempfile::tempdir().expect("temp dir"))
    }

    fn open(dir: TempDir) -> Self {
        let (store, logs) = Store::open(dir.path(), "test", NOW).expect("opens");
        assert!(store.recovery().is_none(), "{:?}", store.recovery());
        let new_origin = || Origin(Uuid::from_u64_pair(u64::MAX, LOGS.fetch_add(1, Relaxed)).into_bytes());
        let committer = Committer::new(store, logs, Box::new(new_origin));
        Replica { dir, committer, exchange: Exchange::default(), responder: Responder::default() }
    }

    /// A store that has these entries of one log.
    fn with(entries: &[Entry]) -> Self {
        let mut replica = Self::new();
        replica.admit(entries);
        replica
    }

    /// A store that has the messages after the floor up to `last`.
    fn with_floor(last: u64) -> Self {
        let replica = Self::with(&messages(last));
        while replica.store().flush_index().expect("flushes") {}
        raise_floor(replica.store().log(), A, FLOOR);
        replica.reopen()
    }

    fn reopen(self) -> Self {
        self.reopen_after(|_| ())
    }

    /// Opens the store again. `change` is what happens to its directory while it is closed.
    fn reopen_after(self, change: impl FnOnce(&Path)) -> Self {
        let Replica { dir, committer, .. } = self;
        drop(committer);
        change(dir.path());
        Self::open(dir)
    }

    fn verify(self) -> (VerifyReport, Self) {
        let mut report = None;
        let replica = self.reopen_after(|dir| match verify(dir).expect("reads") {
            Verified::Read(read) => report = Some(read),
            other @ Verified::NotOpened { .. } => panic!("{other:?}"),
        });
        (report.expect("was read"), replica)
    }

    fn store(&self) -> &Arc<Store> {
        self.committer.store()
    }

    fn seq(&self, origin: Origin) -> u64 {
        self.committer.logs().vector().seq(origin)
    }

    fn admit(&mut self, entries: &[Entry]) {
        let first = &entries[0];
        let before = Head::genesis(first.origin(), first.log_type());
        let (log_type, entries) = (first.log_type(), entries.to_vec());
        let run = Run { origin: first.origin(), log_type, before, entries, is_damaged: false };
        let admitted = self.take(&[run], None);
        assert_eq!(admitted[0].1.refused, None);
    }

    fn take(
        &mut self,
        runs: &[Run],
        theirs: Option<&crate::chain::vector::Vector>,
    ) -> Vec<(Origin, Admitted)> {
        let mut all = Vec::new();
        for run in runs {
            let pieces = runs::pieces(run, theirs, None);
            let ops = WriteOps { admits: pieces.iter().collect(), ..WriteOps::default() };
            let committed = self.committer.commit(&ops, Space::ALL, NOW).expect("commits");
            all.push((run.origin, runs::admitted(run, committed.admits)));
        }
        all
    }

    /// Commits these, and all work that follows from them.
    fn maintain(&mut self, maintenance: &[Maintenance]) {
        let ops = WriteOps { maintenance: maintenance.iter().collect(), ..WriteOps::default() };
        self.committer.commit(&ops, Space::ALL, NOW).expect("commits");
        while self.committer.has_more() {
            self.committer.commit(&WriteOps::default(), Space::ALL, NOW).expect("commits");
            self.committer.purge(Space::ALL, false).expect("purges");
        }
    }

    fn try_list(
        &self,
        filter: Filter,
        from: Option<EntryKey>,
        backward: bool,
    ) -> Result<Vec<String>, StoreError> {
        let logs = Arc::new(self.committer.logs().clone());
        let mut listing = Listing::new(self.store(), logs, filter, from, backward)?;
        let mut listed = Vec::new();
        while !listing.is_done() {
            listed.extend(listing.next_chunk(700)?.iter().map(text));
            listing.release_buffers();
        }
        Ok(listed)
    }

    /// What is listed, in display order.
    fn list(&self, from: Option<EntryKey>, backward: bool) -> Vec<String> {
        let mut by_log = self.try_list(Filter::default(), from, backward).expect("lists");
        let room = Filter { recipient: Some("#room".into()), ..Filter::default() };
        assert_eq!(self.try_list(room, from, backward).expect("lists"), by_log);
        if backward {
            by_log.reverse();
        }
        by_log
    }

    /// What a feed brings after `before`, whether it is blocked at its end, and where the reader then is.
    fn feed(&self, before: ReadState) -> (Vec<String>, bool, ReadState) {
        let logs = Arc::new(self.committer.logs().clone());
        let until = Frontier::of(logs.vector());
        let mut scan = FeedScan::new(self.store(), logs, before, until).expect("begins");
        let mut given = Vec::new();
        while !scan.is_done() {
            given.extend(
                scan.next_chunk(700, usize::MAX).expect("reads").iter().map(|item| text(&item.entry)),
            );
        }
        (given, scan.is_blocked(), scan.state_at_end())
    }

    /// The next message of a feed at most, and where the reader then is.
    fn feed_one(&self, before: &ReadState) -> (Vec<String>, ReadState) {
        let logs = Arc::new(self.committer.logs().clone());
        let until = Frontier::of(logs.vector());
        let mut scan = FeedScan::new(self.store(), logs, before.clone(), until).expect("begins");
        while !scan.is_done() {
            let found = scan.next_chunk(1, usize::MAX).expect("reads");
            if let Some(item) = found.first() {
                return (vec![text(&item.entry)], scan.state_at(item.entry.key()));
            }
        }
        (Vec::new(), scan.state_at_end())
    }

    /// A whole round of the scrub: what it wants to be committed.
    fn scrub(&self) -> Vec<Maintenance> {
        let (mut scrub, mut wanted) = (Scrub::default(), Vec::new());
        loop {
            let step = scrub.step(self.store(), self.committer.logs()).expect("reads");
            assert_eq!(step.index_lacks, None);
            wanted.extend(step.maintenance);
            if step.round_ends {
                return wanted;
            }
        }
    }

    fn hello(&self, node_id: u16) -> Hello {
        let (network, store_id) = (Hello::network_hash("test"), self.store().id().0);
        let (incarnation_id, address) = ([1; 16], format!("127.0.0.1:{node_id}"));
        Hello { network, node_id, store_id, incarnation_id, address, is_guest: false }
    }

    /// The answer to a request of the peer.
    fn answer(&mut self, mut request: SyncMessage) -> SyncMessage {
        let (store, logs) = (self.store().clone(), self.committer.logs().clone());
        let (maintenance, runs) =
            exchange::on_request(&mut self.responder, &logs, store.log().damage(), &mut request);
        self.maintain(&maintenance);
        let theirs = self.responder.theirs().cloned();
        self.take(&runs, theirs.as_ref());
        let logs = self.committer.logs().clone();
        let wanted = exchange::reads_for(&request, &logs, theirs.as_ref());
        let read = runs::read(&store, &logs, &wanted, 1 << 20, || true).expect("reads");
        let hello = (self.hello(2), NOW);
        exchange::answer(&mut self.responder, &logs, &request, read, Vec::new(), hello)
    }

    /// One exchange with `peer`, at this time. Returns what follows, and how many entries crossed the link.
    fn exchange_once(
        &mut self,
        peer: &mut Replica,
        now_ms: u64,
        repair: Vec<EntryRange>,
    ) -> (NextExchange, usize) {
        let (store, logs) = (self.store().clone(), self.committer.logs().clone());
        let trigger = Trigger { on_timer: true, now_ms, skip: &|_| false, peer_has: &|_| 0, repair };
        let planned = self.exchange.plan(&logs, trigger);
        let read = runs::read(&store, &logs, &planned.reads, 1 << 20, || true).expect("reads");
        let request = self.exchange.request(self.hello(1), NOW, &planned, read);
        let request = SyncMessage::decode(&Bytes::from(request.encode())).expect("ours");
        let pushed = request.runs.iter().map(|run| run.entries.len()).sum::<usize>();
        let mut message = SyncMessage::decode(&Bytes::from(peer.answer(request).encode())).expect("ours");
        let runs = std::mem::take(&mut message.runs);
        let pulled = runs.iter().map(|run| run.entries.len()).sum::<usize>();
        let (mut reply, cuts) = self.exchange.on_reply(planned, &message, &logs);
        self.maintain(&cuts);
        let actions = self.exchange.on_runs(&mut reply, runs, self.committer.logs(), store.log().damage());
        self.maintain(actions.repair.as_slice());
        let theirs = self.exchange.theirs().cloned();
        let admitted = self.take(&actions.runs, theirs.as_ref());
        self.exchange.on_admitted(&admitted, now_ms);
        for (origin, bisection, run) in actions.probes {
            let outcome = forks::judge(&store, self.committer.logs(), origin, bisection, &run, &|| true)
                .expect("reads");
            let cut = self.exchange.on_bisected(origin, outcome, now_ms);
            self.maintain(cut.as_slice());
        }
        (self.exchange.on_reply_end(&reply, true, now_ms), pushed + pulled)
    }

    /// Exchanges with `peer` until both have waited for the timer a few times. Returns how many entries crossed the
    /// link.
    fn exchange(&mut self, peer: &mut Replica) -> usize {
        let (mut entries, mut waits, mut exchanges) = (0, 0, 0);
        while waits < 4 {
            let (next, crossed) = self.exchange_once(peer, exchanges, Vec::new());
            (entries, exchanges) = (entries + crossed, exchanges + 1);
            waits += u64::from(next == NextExchange::Wait && crossed == 0);
            assert!(exchanges < 100, "the exchanges do not end");
        }
        entries
    }

    fn digest(&self) -> crate::chain::vector::VectorDigest {
        self.committer.logs().vector().digest()
    }
}

#[test]
fn a_log_with_a_floor_is_read_from_there_on() {
    let last = FLOOR + 1_500;
    let mut replica = Replica::with_floor(last);
    let key = |seq: u64| EntryKey { stamp: Stamp::at(NOW + seq), origin: A, seq };
    let rebuilt = |replica: Replica| {
        replica.reopen_after(|dir| {
            Directory(dir.to_owned()).remove(INDEX).expect("removes");
        })
    };
    let all = || FLOOR + 1..=last;
    for round in 0..2 {
        for backward in [false, true] {
            assert_eq!(replica.list(None, backward), texts(all()), "round {round}");
            for seq in [1, FLOOR, FLOOR + 1, FLOOR + 700, last] {
                let listed = all().filter(|n| if backward { *n < seq } else { *n > seq });
                assert_eq!(replica.list(Some(key(seq)), backward), texts(listed), "from {seq}, {backward}");
            }
        }
        let (given, is_blocked, at_end) = replica.feed(ReadState::default());
        assert_eq!((given, is_blocked), (texts(all()), false));
        assert_eq!(replica.feed(at_end.clone()).0, texts(0..0));
        for seq in [10, FLOOR, FLOOR + 9] {
            let mut full = Frontier::default();
            full.raise(A, seq);
            let before = ReadState { full, last: at_end.last, scans: Vec::new() };
            assert_eq!(replica.feed(before).0, texts(all().filter(|n| *n > seq)), "from {seq}");
        }
        assert!(replica.scrub().is_empty());
        let mut reader = replica.store().log().read().expect("reads");
        let floor = replica.committer.logs().vector().get(A).expect("is there").floor;
        let mut head = Head::genesis(A, LogType::MESSAGES);
        for entry in messages(last) {
            head = head.followed_by(&entry);
            if [FLOOR, FLOOR + 1, 2 * FLOOR - 1, 2 * FLOOR, last].contains(&head.seq) {
                assert_eq!(reader.hash_at(A, floor, head.seq).expect("computes"), head.hash);
            }
        }
        drop(reader);
        assert_eq!(replica.store().log().damage().all(), [], "what is before the floor is no damage");
        let (report, again) = replica.verify();
        assert!(report.is_whole() && report.entries == last - FLOOR, "{report:?}");
        replica = rebuilt(again);
        assert_eq!(replica.store().counts().messages, last - FLOOR);
    }
}

#[test]
fn a_damaged_entry_just_after_the_floor_is_repaired_by_a_peer() {
    let last = FLOOR + 10;
    let (mut replica, mut peer) = (Replica::with_floor(last), Replica::with_floor(last));
    replica.exchange(&mut peer);
    for seq in [FLOOR + 1, FLOOR + 2] {
        overwrite(replica.store().log(), A, seq, b"damage");
    }
    replica.scrub();
    assert_eq!(replica.store().log().damage().count(), 2);
    let wants = vec![EntryRange { origin: A, first: FLOOR + 1, last: FLOOR + 2 }];
    replica.exchange_once(&mut peer, 0, wants);
    assert_eq!(replica.store().log().damage().count(), 0);
    assert_eq!(replica.list(None, false), texts(FLOOR + 1..=last));
}

/// The branch begins with the first entry that is cut off, so both stores choose the same id for it.
#[test]
fn a_log_with_a_floor_can_be_cut_after_before_and_at_it() {
    let last = FLOOR + 10;
    for seq in [FLOOR + 5, FLOOR + 1, FLOOR, 7] {
        let (mut replica, mut peer) = (Replica::with_floor(last), Replica::with_floor(last));
        replica.exchange(&mut peer);
        replica.maintain(&[Maintenance::Cut(A, seq)]);
        replica.exchange(&mut peer);
        assert_eq!(replica.digest(), peer.digest(), "a cut at {seq}");
        for replica in [replica.reopen(), peer.reopen()] {
            assert_eq!(replica.list(None, false), texts(FLOOR + 1..=last), "a cut at {seq}");
            assert_eq!(replica.seq(A), if seq > FLOOR { seq - 1 } else { 0 });
            assert!(replica.scrub().is_empty());
        }
    }
}

/// Neither holds the entries in the middle of the log, where a search would begin.
#[test]
fn a_fork_after_the_floor_is_found_and_ends_in_branches() {
    let last = FLOOR + 10;
    let mut entries = messages(last);
    for seq in FLOOR + 5..=last {
        let content = message(seq + 10_000);
        entries[usize::try_from(seq - 1).expect("small")] =
            entry_of(A, LogType::MESSAGES, seq, EntryKind::Message, &content);
    }
    let forked = Replica::with(&entries);
    raise_floor(forked.store().log(), A, FLOOR);
    let (mut replica, mut forked) = (Replica::with_floor(last), forked.reopen());
    replica.exchange(&mut forked);
    assert_eq!(replica.committer.logs().vector().cut_of(A), Some(FLOOR + 5));
    assert_eq!(replica.digest(), forked.digest());
    assert_eq!(replica.list(None, false).len(), 16);
}

/// There is nothing that the two could compare.
#[test]
fn a_fork_before_the_floor_is_left_alone() {
    let mut entries = messages(FLOOR + 1);
    entries[5] = entry_of(A, LogType::MESSAGES, 6, EntryKind::Message, &message(10_000));
    let forked = Replica::with(&entries);
    raise_floor(forked.store().log(), A, FLOOR);
    let (mut replica, mut forked) = (Replica::with_floor(FLOOR + 1), forked.reopen());
    replica.exchange(&mut forked);
    assert_eq!((replica.seq(A), forked.seq(A)), (FLOOR + 1, FLOOR + 1));
}

#[test]
fn a_store_that_has_only_the_floor_is_brought_the_entries_after_it() {
    let mut owner = Replica::with_floor(FLOOR + 2_000);
    for asks in [false, true] {
        let mut replica = Replica::with_floor(FLOOR);
        assert_eq!(replica.list(None, false), texts(0..0));
        let crossed = if asks { replica.exchange(&mut owner) } else { owner.exchange(&mut replica) };
        assert_eq!((crossed, replica.digest()), (2_000, owner.digest()));
        let replica = replica.reopen();
        assert_eq!(replica.list(None, false), texts(FLOOR + 1..=FLOOR + 2_000));
        (owner.exchange, owner.responder) = (Exchange::default(), Responder::default());
    }
}

/// A peer that claims a floor could otherwise keep a log from a store that lacks its beginning.
#[test]
fn a_store_takes_no_floor_on_the_word_of_a_peer() {
    let (mut owner, mut whole) = (Replica::with_floor(FLOOR + 20), Replica::with(&messages(FLOOR + 20)));
    let mut empty = Replica::with(&[entry_of(B, LogType::MESSAGES, 1, EntryKind::Message, &message(9_999))]);
    for asks in [true, false] {
        let crossed = if asks { empty.exchange(&mut owner) } else { owner.exchange(&mut empty) };
        assert_eq!((crossed, empty.seq(A), owner.seq(B)), (usize::from(asks), 0, 1));
    }
    owner.committer.logs().vector().get(A).expect("is still there");
    assert_eq!(owner.list(None, false).len(), 21);
    (empty.exchange, empty.responder) = (Exchange::default(), Responder::default());
    assert_eq!(empty.exchange(&mut whole), 1 + usize::try_from(FLOOR).expect("small") + 20);
    assert_eq!(empty.digest(), whole.digest());
}

/// The machine was cloned while it ran, and the clone has another key: the entries have one digest and two leaves.
#[test]
fn a_fork_in_the_account_alone_ends_in_branches_and_lists_the_message_once() {
    let ours: Vec<Entry> = messages(6);
    let mut theirs = ours.clone();
    theirs[3] = with_account(&ours[3], "ana");
    assert_eq!((theirs[3].digest(), theirs[3].stamp()), (ours[3].digest(), ours[3].stamp()));
    for (ours_count, theirs_count) in [(6, 6), (4, 6), (6, 4)] {
        let (mut replica, mut peer) =
            (Replica::with(&ours[..ours_count]), Replica::with(&theirs[..theirs_count]));
        replica.exchange(&mut peer);
        assert_eq!(replica.committer.logs().vector().cut_of(A), Some(4));
        assert_eq!(replica.digest(), peer.digest());
        assert_eq!(replica.exchange(&mut peer), 0);
        let vector = replica.committer.logs().vector().clone();
        let in_branches = ours_count as u64 - 3 + theirs_count as u64 - 3;
        assert_eq!((vector.origins(), vector.entries()), (3, 3 + in_branches), "A and two branches");
        for replica in [replica, peer] {
            assert_eq!(replica.list(None, false), texts(1..=6));
            assert_eq!((replica.store().counts().messages, replica.store().counts().conflicts), (6, 0));
            assert!(replica.scrub().is_empty());
            assert_eq!(replica.reopen().list(None, false), texts(1..=6));
        }
    }
}

/// Two peers that lie, or two programs: the logs have one id, and no entry in common as the chain sees it.
#[test]
fn logs_of_one_id_and_two_types_end_in_branches() {
    let log = |log_type: LogType, kind: EntryKind, count: u64| -> Vec<Entry> {
        (1..=count).map(|seq| entry_of(A, log_type, seq, kind, &message(seq))).collect()
    };
    let kept = LogType { keep_days: 30, ..LogType::MESSAGES };
    let unknown = EntryKind::Other(200);
    for (ours, theirs, listed) in [
        (log(LogType::MESSAGES, EntryKind::Message, 3), log(kept, EntryKind::Message, 3), 3),
        (log(LogType::MESSAGES, EntryKind::Message, 5), log(kept, EntryKind::Message, 3), 5),
        (log(LogType::MESSAGES, EntryKind::Message, 2), log(kept, EntryKind::Message, 3), 3),
        (log(LogType::MESSAGES, unknown, 4), log(CONTROL, unknown, 3), 0),
        (log(LogType::MESSAGES, unknown, 1), log(CONTROL, unknown, 1), 0),
    ] {
        let (mut replica, mut peer) = (Replica::with(&ours), Replica::with(&theirs));
        replica.exchange(&mut peer);
        assert_eq!(replica.committer.logs().vector().cut_of(A), Some(1));
        assert_eq!(replica.digest(), peer.digest());
        assert_eq!(replica.exchange(&mut peer), 0);
        let vector = replica.committer.logs().vector();
        assert_eq!((vector.origins(), vector.entries()), (2, (ours.len() + theirs.len()) as u64));
        for replica in [replica.reopen(), peer.reopen()] {
            assert_eq!(replica.list(None, false), texts(1..=listed));
            assert!(replica.scrub().is_empty());
        }
    }
}

/// A bad peer sends two versions of its log, one to each node. The second version has a copy of an honest message.
#[test]
fn a_copy_in_a_version_of_a_log_that_the_reader_did_not_see_hides_no_message() {
    let bad = |second: u64| -> Vec<Entry> {
        let numbers = (1..).zip([10, second]);
        numbers.map(|(seq, n)| entry_of(B, LogType::MESSAGES, seq, EntryKind::Message, &message(n))).collect()
    };
    let (mut one, mut two) = (Replica::with(&messages(4)), Replica::with(&messages(5)));
    one.admit(&bad(11));
    two.admit(&bad(5));
    let (given, _, seen) = one.feed(ReadState::default());
    assert_eq!(given.len(), 6);
    let (_, _, seen) = two.feed(seen); // the copy counts as seen, and so does the message
    one.exchange(&mut two);
    assert_eq!(one.committer.logs().vector().cut_of(B), Some(2));
    for (replica, other) in [(&one, &two), (&two, &one)] {
        let (mut given, _, seen) = replica.feed(seen.clone());
        given.sort();
        assert_eq!(given, texts([11, 5].into_iter()), "each node cuts the log and moves its entries itself");
        assert_eq!(other.feed(seen).0, texts(0..0));
    }
    let mut all = one.feed(ReadState::default()).0;
    all.sort();
    assert_eq!(all, ["text 1", "text 10", "text 11", "text 2", "text 3", "text 4", "text 5"]);
}

/// As above, with two copies, which are accepted after the messages, and a reader that resumes after every message.
#[test]
fn a_reader_that_resumes_between_two_such_copies_misses_neither_message() {
    let entry = |seq, n, stamp| {
        let entry = entry_of(B, LogType::MESSAGES, seq, EntryKind::Message, &message(n));
        let key = EntryKey { stamp: Stamp::at(NOW + stamp), ..entry.key() };
        Entry::encode(key, LogType::MESSAGES, &entry.body())
    };
    let bad = |second, third| [entry(1, 10, 1), entry(2, second, 20), entry(3, third, 21)];
    let (mut one, mut two) = (Replica::with(&messages(4)), Replica::with(&messages(6)));
    one.admit(&bad(11, 12));
    two.admit(&bad(5, 6));
    let (_, _, seen) = one.feed(ReadState::default());
    let (_, _, mut seen) = two.feed(seen);
    one.exchange(&mut two);
    assert_eq!(one.committer.logs().vector().cut_of(B), Some(2));
    let mut given = Vec::new();
    for _ in 0..10 {
        let (texts, at) = one.feed_one(&seen);
        given.extend(texts);
        seen = at;
    }
    given.sort();
    assert_eq!(given, texts([11, 12, 5, 6].into_iter()));
}

/// A bad peer knows the id of a branch before the log is cut.
#[test]
fn a_log_with_the_id_of_a_branch_is_not_taken_for_it() {
    let entries = messages(3);
    let second = &entries[1];
    let id = Origin::branch(second.key(), second.log_type(), second.leaf());
    let key = EntryKey { origin: id, seq: 1, ..second.key() };
    for planted in [second.body(), entries[2].body()] {
        let mut replica = Replica::with(&entries);
        replica.admit(&[Entry::encode(key, LogType::MESSAGES, &planted)]);
        replica.maintain(&[Maintenance::Cut(A, 2)]);
        assert_eq!(replica.committer.logs().vector().cut_of(A), Some(2));
        let (report, replica) = replica.verify();
        assert!(report.is_whole(), "{report:?}");
        let vector = replica.committer.logs().vector();
        let branched = vector.iter().filter(|(_, span)| span.log_type.is_branch);
        assert_eq!(branched.map(|(_, span)| span.head.seq).sum::<u64>(), 2, "{planted:?}");
        let mut listed = replica.list(None, false);
        listed.sort();
        assert_eq!(listed, texts(1..=3));
    }
}

#[test]
fn a_kind_that_is_not_known_is_passed_over_or_stops_the_feed() {
    for (kind, unreadable, given) in [(200, 0, vec![1, 2, 3, 5]), (100, 1, vec![1, 2, 3])] {
        let mut entries = messages(5);
        entries[3] = entry_of(A, LogType::MESSAGES, 4, EntryKind::Other(kind), b"newer");
        let (mut replica, mut peer) = (Replica::with(&entries), Replica::new());
        replica.exchange(&mut peer);
        assert_eq!(replica.digest(), peer.digest());
        for replica in [replica, peer] {
            let (report, replica) = replica.verify();
            assert_eq!((report.unreadable, report.is_whole()), (unreadable, true));
            assert_eq!(replica.store().counts().unreadable, unreadable);
            assert_eq!(replica.list(None, false), texts([1, 2, 3, 5].into_iter()));
            assert_eq!(replica.list(None, true), texts([1, 2, 3, 5].into_iter()));
            let (texts_given, is_blocked, at_end) = replica.feed(ReadState::default());
            assert_eq!(texts_given, texts(given.iter().copied()));
            assert_eq!((is_blocked, at_end.full.seq(A)), if kind == 100 { (true, 3) } else { (false, 5) });
            assert!(replica.scrub().is_empty());
        }
    }
}

#[test]
fn a_control_log_is_exchanged_and_shown_to_no_reader() {
    let kinds = [3, 4, 5, 6, 7, 100, 200];
    let entry = |(seq, kind): (u64, u8)| entry_of(B, CONTROL, seq, EntryKind::Other(kind), &message(seq));
    let control: Vec<Entry> = (1..).zip(kinds).map(entry).collect();
    let (mut replica, mut peer) = (Replica::with(&messages(5)), Replica::with(&control));
    replica.exchange(&mut peer);
    assert_eq!(replica.digest(), peer.digest());
    for replica in [replica, peer] {
        let (report, replica) = replica.verify();
        assert!(report.is_whole());
        assert_eq!((report.unreadable, replica.store().counts().unreadable), (6, 6), "all but kind 200");
        assert_eq!(replica.store().counts().messages, 5);
        for backward in [false, true] {
            assert_eq!(replica.list(None, backward), texts(1..=5));
        }
        let (given, is_blocked, at_end) = replica.feed(ReadState::default());
        assert_eq!((given, is_blocked, at_end.full.seq(B)), (texts(1..=5), false, 7));
        assert!(replica.scrub().is_empty());
    }
}
