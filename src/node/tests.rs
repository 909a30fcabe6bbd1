//! A node as a confused or hostile peer meets it: what may come with `POST /sync`, and what must not come of it.

use bytes::Bytes;
use futures_util::StreamExt;
use tempfile::TempDir;
use uuid::Uuid;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::chain::clock::Stamp;
use crate::chain::frontier::SnapshotContent;
use crate::chain::ids::{ChainHash, EntryKey, Leaf, Origin};
use crate::chain::kind::{EntryKind, LogType};
use crate::chain::members::Member;
use crate::chain::message::{Digest, Message, UncheckedMessage};
use crate::chain::record::Entry;
use crate::chain::sync::wire::{EntryRange, Heads, Hello, Run, SyncMessage, short};
use crate::chain::vector::{Head, LogSpan, Vector};
use crate::node::cluster::{answer, sync};
use crate::replica::write_ops::{Maintenance, NewMessage, Rejection, SendOutcome};
use crate::store::index::fake::hold_writes;
use crate::store::log::fake::overwrite;

mod hostile;

const X: Origin = Origin([7; 16]);
const STAMP: u64 = 1_700_000_000_000 << 16;

/// A node without tasks of its own, and its directory.
struct Bench {
    node: Node,
    serving: tokio::task::JoinSet<()>,
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self::with_peers(Vec::new())
    }

    fn with_peers(peers: Vec<crate::config::ConfiguredPeer>) -> Self {
        let dir = tempfile::tempdir().expect("temp dir");
        let addr: crate::api::address::Addr = "127.0.0.1:0".parse().expect("an address");
        let config = NodeConfig {
            node_id: 1,
            network: "test".into(),
            listen: addr.clone(),
            advertise: addr,
            peers,
            store_dir: dir.path().to_owned(),
            sync_interval: std::time::Duration::from_secs(1),
            scrub_interval: std::time::Duration::from_hours(1),
            keys: None,
        };
        let (store, logs) = Store::open(dir.path(), "test", now_ms()).expect("opens");
        let (writer, _thread) = Writer::start(store.clone(), logs).expect("starts");
        let mut hello = hello(1);
        // No two of them run with copies of one store, or at one address.
        (hello.store_id, hello.incarnation_id) = (Uuid::new_v4().into_bytes(), Uuid::new_v4().into_bytes());
        hello.address = format!("{}:1", Uuid::new_v4());
        let cluster = Arc::new(Cluster::new(
            &config,
            hello,
            store.log().membership(),
            std::time::Instant::now(),
            incidents::Incidents::default(),
        ));
        let node = Node {
            config: Arc::new(config),
            store,
            writer,
            cluster,
            live_feed: Arc::new(LiveFeed::new(CancellationToken::new())),
            limits: Limits::new(),
        };
        Bench { node, serving: tokio::task::JoinSet::new(), dir }
    }

    async fn answer(&self, request: SyncMessage) -> SyncMessage {
        let bytes = Bytes::from(request.encode());
        let request = SyncMessage::decode(&bytes).expect("well-formed");
        answer::answer(&self.node, request, bytes).await.expect("answers")
    }

    /// What the node says to these entries, and to a peer that claims to have `claimed` of them.
    async fn push(&self, log: &Log, first: u64, last: u64, claimed: u64) -> SyncMessage {
        let mut request = quiet();
        let heads = Heads { base: None, changes: vec![(log.origin, log.span(claimed))], cuts: Vec::new() };
        request.digest = digest_of(&heads);
        request.heads = Some(heads);
        request.runs = vec![log.run(first, last)];
        self.answer(request).await
    }

    /// Serves it until the test ends.
    async fn serve(&mut self) -> crate::config::ConfiguredPeer {
        self.serve_at(&slot::NodeSlot::new(slot::SlotState::Open(self.node.clone()))).await
    }

    async fn serve_at(&mut self, slot: &slot::NodeSlot) -> crate::config::ConfiguredPeer {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("is bound").into();
        let stop = tokio_util::sync::CancellationToken::new();
        self.serving.spawn(crate::serve::serve(listener, http::routes(slot.clone()), None, 1, stop));
        crate::config::ConfiguredPeer { node_id: None, addr }
    }

    fn seq(&self, origin: Origin) -> u64 {
        self.node.logs().vector().seq(origin)
    }

    /// Has it store these entries of another node.
    async fn store(&self, stamps: impl IntoIterator<Item = Stamp>) {
        let mut run = Run {
            origin: X,
            before: Log::new(X, 0, 0, "").head(0),
            entries: Vec::new(),
            log_type: LogType::MESSAGES,
            is_damaged: false,
        };
        for (seq, stamp) in (1..).zip(stamps) {
            let content = content(u128::from(seq) + 100, "theirs");
            let key = EntryKey { stamp, origin: X, seq };
            run.entries.push(Entry::new(
                key,
                EntryKind::Message,
                Digest::of(EntryKind::Message, &content),
                &content,
            ));
        }
        for piece in crate::replica::runs::pieces(&run, None, None) {
            assert_eq!(self.node.writer.admit(piece).await.refused, None);
        }
    }

    async fn send(&self, id: u128) -> EntryKey {
        let content = content(id, "mine");
        let new =
            NewMessage { id: Uuid::from_u128(id), digest: Digest::of(EntryKind::Message, &content), content };
        match self.node.writer.send(vec![new]).await[..] {
            [SendOutcome::Stored { key, .. }] => key,
            ref other => panic!("not stored: {other:?}"),
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.node.writer.stop();
    }
}

fn hello(node_id: u16) -> Hello {
    let name = [u8::try_from(node_id).expect("few nodes"); 16];
    let network = Hello::network_hash("test");
    // Any time before now: a later incarnation is not believed.
    let (incarnation_id, address) = ([1; 16], format!("127.0.0.1:{node_id}"));
    Hello { network, node_id, store_id: name, incarnation_id, address, is_guest: false }
}

/// A message of another node without anything in it.
fn quiet() -> SyncMessage {
    SyncMessage::quiet(hello(2), [0; 16], 0)
}

fn digest_of(heads: &Heads) -> [u8; 16] {
    let mut vector = Vector::default();
    heads.changes.iter().for_each(|(origin, head)| vector.insert(*origin, *head));
    short(vector.digest())
}

fn content(id: u128, text: &str) -> Vec<u8> {
    let (sender, recipient, text) = ("a".into(), "b".into(), text.into());
    let draft = UncheckedMessage { id: Uuid::from_u128(id), sender, recipient, text, timestamp: None };
    Message::new(draft).expect("valid").encode()
}

/// A log as its owner has it.
struct Log {
    origin: Origin,
    contents: Vec<Vec<u8>>,
    /// The entry that is a snapshot, if one is.
    snapshot: Option<u64>,
}

impl Log {
    /// Entry n says "`text` n" from `fork` on, before that "n".
    fn new(origin: Origin, count: u64, fork: u64, text: &str) -> Self {
        let say = |n: u64| if n >= fork { format!("{text} {n}") } else { n.to_string() };
        let contents = (1..=count).map(|n| content(u128::from(n), &say(n))).collect();
        Log { origin, contents, snapshot: None }
    }

    fn kind(&self, seq: u64) -> EntryKind {
        if self.snapshot == Some(seq) { EntryKind::Snapshot } else { EntryKind::Message }
    }

    fn head(&self, seq: u64) -> Head {
        let chain = |hash: ChainHash, (seq, content): (u64, &Vec<u8>)| {
            let (kind, digest) = (self.kind(seq), Digest::of(self.kind(seq), content));
            hash.next(seq, Stamp(STAMP + seq), Leaf::of(kind, "", digest))
        };
        let hash =
            (1..=seq).zip(&self.contents).fold(ChainHash::genesis(self.origin, LogType::MESSAGES), chain);
        Head { seq, hash }
    }

    fn span(&self, seq: u64) -> LogSpan {
        LogSpan::whole(self.origin, LogType::MESSAGES, self.head(seq))
    }

    fn run(&self, first: u64, last: u64) -> Run {
        let entry = |seq: u64| {
            let content = &self.contents[usize::try_from(seq - 1).expect("small")];
            let key = EntryKey { stamp: Stamp(STAMP + seq), origin: self.origin, seq };
            let kind = self.kind(seq);
            Entry::new(key, kind, Digest::of(kind, content), content)
        };
        let entries = (first..=last).map(entry).collect();
        let (origin, before) = (self.origin, self.head(first - 1));
        Run { origin, log_type: LogType::MESSAGES, before, entries, is_damaged: false }
    }
}

fn origin(number: u16) -> Origin {
    let mut name = [9; 16];
    name[..2].copy_from_slice(&number.to_be_bytes());
    Origin(name)
}

#[tokio::test]
async fn thousands_of_small_logs_come_with_one_exchange() {
    let bench = Bench::new();
    let mut request = quiet();
    request.runs = (0..3000).map(|n| Log::new(origin(n), 1, 1, "old").run(1, 1)).collect();
    bench.answer(request).await;
    assert_eq!(bench.node.logs().vector().origins(), 3000);
}

#[tokio::test]
async fn heads_beyond_everything_that_exists_do_not_upset_the_status() {
    let bench = Bench::new();
    let head = Head { seq: u64::MAX, hash: ChainHash([1; 32]) };
    let heads = (0..3).map(|n| (origin(n), LogSpan::whole(origin(n), LogType::MESSAGES, head)));
    let heads = Heads { base: None, changes: heads.collect(), cuts: Vec::new() };
    let request = SyncMessage { digest: digest_of(&heads), heads: Some(heads), ..quiet() };
    bench.answer(request).await;
    let status = status::status(&bench.node);
    assert_eq!(status.peers[0].behind, Some(0));
    let all = bench.node.cluster.union(bench.node.logs().vector());
    assert_eq!(all.ahead_of(bench.node.logs().vector()), u64::MAX);
}

/// Two holders of a forked log meet. The run begins below the fork, so its start agrees with what is here; and it ends
/// below the peer's head, so there is no claim to hold its end against.
#[tokio::test]
async fn a_run_that_overlaps_a_fork_adds_nothing() {
    for (ours, fork, first, last) in [(10, 7, 5, 15), (1500, 1200, 11, 3000)] {
        let bench = Bench::new();
        let (left, right) = (Log::new(X, ours, fork, "left"), Log::new(X, last + 5, fork, "right"));
        bench.push(&left, 1, ours, ours).await;
        assert_eq!(bench.seq(X), ours);
        bench.push(&right, first, last, last + 5).await;
        assert_eq!(bench.seq(X), ours, "entries of one branch stand on another");
    }
}

/// What a running machine that was cloned does: both copies append to the same log.
#[tokio::test]
async fn a_process_that_meets_its_own_log_grown_by_another_begins_a_new_one() {
    let bench = Bench::new();
    let first = bench.send(1).await;
    let before = bench.node.logs().vector().head(first.origin).expect("has entries");
    let content = content(2, "the clone's");
    let key = EntryKey { stamp: Stamp(first.stamp.0 + 1), origin: first.origin, seq: 2 };
    let entry = Entry::new(key, EntryKind::Message, Digest::of(EntryKind::Message, &content), &content);
    let (origin, log_type, entries) = (first.origin, LogType::MESSAGES, vec![entry]);
    let run = Run { origin, log_type, before, entries, is_damaged: false };
    bench.answer(SyncMessage { runs: vec![run], ..quiet() }).await;
    assert_eq!(bench.seq(first.origin), 2, "its entries are messages like any other");
    assert_ne!(bench.send(3).await.origin, first.origin);
}

#[tokio::test]
async fn forks_that_a_peer_invents_do_not_pile_up() {
    let bench = Bench::new();
    for round in 0..3 {
        let mut request = quiet();
        let forged = |n: u16| {
            let run = Log::new(origin(n + 300 * round), 1, 1, "no").run(1, 1);
            Run { before: Head { seq: 0, hash: ChainHash([1; 32]) }, ..run }
        };
        request.runs = (0..300).map(forged).collect();
        bench.answer(request).await;
    }
    assert!(bench.node.cluster.warnings(&bench.node).len() < 100);
}

#[tokio::test]
async fn many_small_wants_of_one_peer_do_not_keep_a_reader_busy_for_long() {
    let bench = Bench::new();
    let log = Log::new(X, 1023, 1, "long");
    bench.push(&log, 1, 1023, 1023).await;
    let began = std::time::Instant::now();
    let wants = (0..20_000).map(|n| EntryRange { origin: X, first: 1000 + n % 20, last: 1000 + n % 20 });
    let reply = bench.answer(SyncMessage { wants: wants.collect(), ..quiet() }).await;
    assert!(reply.more);
    assert!(began.elapsed() < std::time::Duration::from_secs(6), "{:?}", began.elapsed());
}

/// The log `origin(1)` is whole, and so is X before entry 40.
#[tokio::test]
async fn one_damaged_entry_keeps_nothing_else_from_a_peer() {
    let bench = Bench::new();
    bench.push(&Log::new(X, 60, 1, "long"), 1, 60, 60).await;
    bench.push(&Log::new(origin(1), 3, 1, "other"), 1, 3, 3).await;
    overwrite(bench.node.store.log(), X, 40, b"damage");
    let wants = [(X, 1, 60), (X, 50, 60), (Origin(origin(1).0), 1, 3)];
    let wants = wants.map(|(origin, first, last)| EntryRange { origin, first, last }).to_vec();
    let reply = bench.answer(SyncMessage { wants, ..quiet() }).await;
    let got: Vec<_> = reply.runs.iter().map(|run| (run.origin, run.entries.len())).collect();
    assert_eq!(got, [(X, 39), (origin(1), 3)]);
}

/// The peer has another first entry in our own log, and a log that we lack.
#[tokio::test]
async fn a_fork_does_not_hold_up_the_other_logs_and_ends_in_branches() {
    let mut peer = Bench::new();
    let bench = Bench::with_peers(vec![peer.serve().await]);
    let own = bench.send(1).await.origin;
    bench.send(2).await;
    peer.push(&Log::new(own, 1, 1, "forged"), 1, 1, 1).await;
    let mut client = sync::SyncClient::new(0);
    client.exchange(&bench.node, false).await.expect("goes well");
    peer.push(&Log::new(X, 3, 1, "other"), 1, 3, 3).await;
    for _ in 0..3 {
        client.exchange(&bench.node, true).await.expect("goes well");
    }
    assert_eq!(bench.seq(X), 3);
    for _ in 0..5 {
        client.exchange(&bench.node, true).await.expect("goes well");
    }
    let (mine, theirs) = (bench.node.logs(), peer.node.logs());
    assert_eq!((mine.vector().cut_of(own), theirs.vector().cut_of(own)), (Some(1), Some(1)));
    assert_eq!((bench.seq(own), peer.seq(own)), (0, 0));
    assert_eq!(mine.vector().digest(), theirs.vector().digest());
    assert_eq!((mine.vector().origins(), mine.vector().entries()), (3, 3 + 2 + 1), "two branches beside X");
}

/// A node whose store is closed answers with its last status, whose digest may be equal to ours.
#[tokio::test]
async fn a_node_with_a_closed_store_is_neither_up_nor_writable_in_the_network() {
    let mut peer = Bench::new();
    let slot = slot::NodeSlot::new(slot::SlotState::Open(peer.node.clone()));
    let bench = Bench::with_peers(vec![peer.serve_at(&slot).await]);
    sync::SyncClient::new(0).exchange(&bench.node, false).await.expect("goes well");
    slot.set(slot::SlotState::Closed("its disk is gone".into(), Box::new(status::status(&peer.node))));
    bench.node.writer.fault.raise("ours is gone as well".into());
    let answer =
        http::status::network(bench.node.clone(), axum::extract::RawQuery(None)).await.expect("answers");
    let bytes = axum::body::to_bytes(answer.into_body(), 1 << 20).await.expect("is short");
    let network: crate::api::network::NetworkStatus = serde_json::from_slice(&bytes).expect("parses");
    assert_eq!((network.up, network.total, network.writable), (1, 2, false), "{network:?}");
}

/// It had entries from a third node, and was killed before it could say so in an exchange.
#[tokio::test]
async fn what_a_peer_had_when_its_status_was_asked_for_is_shown_after_it_is_gone() {
    let mut peer = Bench::new();
    let bench = Bench::with_peers(vec![peer.serve().await]);
    sync::SyncClient::new(0).exchange(&bench.node, false).await.expect("goes well");
    let log = Log::new(X, 3, 1, "theirs");
    for node in [&peer, &bench] {
        node.push(&log, 1, 3, 3).await;
    }
    let cluster = &bench.node.cluster;
    let behind = || {
        let mut shown = cluster.peers(bench.node.logs().vector()).into_iter().map(|peer| peer.status);
        let up = |peer: &crate::api::network::PeerStatus| peer.state == crate::api::network::NodeState::Up;
        shown.find(up).expect("answered").behind
    };
    assert_eq!(behind(), Some(3));
    http::status::network(bench.node.clone(), axum::extract::RawQuery(None)).await.expect("answers");
    assert_eq!(behind(), Some(0));
    let all = [crate::chain::sync::wire::EntryRange { origin: X, first: 1, last: 3 }];
    let holders = cluster.holders(&all, false);
    assert_eq!(holders, [2], "the one that said so in an exchange; a status alone counts as no copy");
    let mut restarted = SyncMessage::quiet(peer.node.cluster.hello(), [0; 16], 0);
    restarted.hello.incarnation_id = [0xff; 16];
    bench.answer(restarted).await;
    assert_eq!(behind(), None, "nothing is known of another incarnation");
}

/// A peer may send anything, such as an answer to a probe at a seq that cannot exist.
#[tokio::test]
async fn a_run_beyond_all_numbers_is_no_answer_to_a_probe() {
    let bench = Bench::new();
    bench.push(&Log::new(X, 2, 1, "ours"), 1, 2, 2).await;
    let (logs, damage) = (bench.node.logs(), bench.node.store.log().damage());
    let mut exchange = crate::replica::exchange::Exchange::default();
    let other = Log::new(X, 2, 1, "theirs");
    for _ in 0..2 {
        let trigger = crate::replica::exchange::Trigger {
            on_timer: false,
            now_ms: 0,
            skip: &|_| false,
            peer_has: &|_| 0,
            repair: vec![],
        };
        let planned = exchange.plan(&logs, trigger);
        let heads = Heads { base: None, changes: vec![(X, other.span(2))], cuts: Vec::new() };
        let before = Head { seq: u64::MAX, hash: ChainHash([0; 32]) };
        let (log_type, entries) = (LogType::MESSAGES, Vec::new());
        let runs = vec![Run { origin: X, log_type, before, entries, is_damaged: false }];
        let reply =
            SyncMessage { heads: Some(heads.clone()), ..SyncMessage::quiet(hello(2), digest_of(&heads), 0) };
        let (mut reply, _) = exchange.on_reply(planned, &reply, &logs);
        let actions = exchange.on_runs(&mut reply, runs, &logs, damage);
        assert_eq!(actions.probes.len(), 0);
    }
}

/// A request that arrives slowly keeps the store open for a while; other requests are answered meanwhile.
#[tokio::test]
async fn the_address_answers_while_a_store_waits_to_be_closed() {
    let bench = Bench::new();
    let dir = tempfile::tempdir().expect("temp dir");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let at = listener.local_addr().expect("is bound");
    let config = NodeConfig { store_dir: dir.path().to_owned(), ..NodeConfig::clone(&bench.node.config) };
    let stop = tokio_util::sync::CancellationToken::new();
    let mut running = tokio::task::JoinSet::new();
    running.spawn(run::run(config, listener, stop.clone()));
    let (client, addr) = (crate::client::Client::new(None), at.into());
    let second = std::time::Duration::from_secs(1);
    while client.readyz(&addr, second).await.is_ok_and(|ready| !ready.writable) {
        tokio::task::yield_now().await; // its store is being opened
    }
    let answer =
        client.sync(&addr, quiet().encode().into(), 10 * second, second, false).await.expect("answers");
    let parts: Vec<_> = answer.map(|part| part.expect("arrives")).collect().await;
    let first = parts.concat();
    let mut slow = tokio::net::TcpStream::connect(at).await.expect("connects");
    let head =
        "POST /messages HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut slow, head.as_bytes()).await.expect("writes");
    // A process that claims to have opened a copy of this store before makes the node close it.
    let mut copied = SyncMessage::decode(&first).expect("well-formed");
    (copied.hello.incarnation_id, copied.hello.address) = ([0; 16], "127.0.0.1:9".into());
    client
        .sync(&addr, copied.encode().into(), 10 * second, second, false)
        .await
        .err()
        .expect("is told to wait");
    let request = crate::client::Request::get(crate::api::path::LIVEZ);
    client.forward(&addr, &request, 5 * second).await.expect("answers on a connection of before");
    let fresh = crate::client::Client::new(None);
    fresh.forward(&addr, &request, 5 * second).await.expect("answers on a new connection");
    drop(slow);
    stop.cancel();
    running.join_next().await.expect("runs").expect("does not panic").expect("ends well");
}

/// Where many nodes have readers, each would answer the snapshots of the others with one of its own, for ever.
#[tokio::test]
async fn snapshots_are_written_because_of_messages_and_not_of_snapshots() {
    let bench = Bench::new();
    let snapshot = SnapshotContent { base: None, changes: vec![(X, 1)] };
    let mut logs: Vec<_> = (0..20).map(|n| Log::new(origin(n), 3, 1, "old")).collect();
    for log in &mut logs {
        (log.contents[1], log.snapshot) = (snapshot.encode(), Some(2));
    }
    let entries = || bench.node.logs().vector().iter().map(|(_, span)| span.head.seq).sum::<u64>();
    let mut before = 0;
    for (seq, written) in [(1, 1), (2, 0), (3, 1)] {
        let runs = logs.iter().map(|log| log.run(seq, seq)).collect();
        bench.answer(SyncMessage { runs, ..quiet() }).await;
        for _ in 0..2 {
            bench.node.live_feed.advance(&bench.node).await.expect("reads");
        }
        assert_eq!(entries(), before + 20 + written, "{seq}");
        before = entries();
    }
}

/// A status, the number of entries left out, and the messages; `None` if the answer was aborted.
async fn list(peer: &crate::config::ConfiguredPeer, query: &str) -> Option<(u16, Option<u64>, usize)> {
    let client = crate::client::Client::new(None);
    let request = crate::client::Request::get(format!("/messages{query}"));
    let answer =
        client.forward(&peer.addr, &request, std::time::Duration::from_secs(30)).await.expect("answers");
    let missing =
        answer.headers().get("chatchain-missing").map(|count| count.to_str().expect("text").parse());
    let status = answer.status().as_u16();
    let body: serde_json::Value = answer.json(64 << 20).await.ok()?;
    Some((status, missing.transpose().expect("a number"), body.as_array().map_or(0, Vec::len)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_goes_on_without_damaged_entries_and_says_how_many() {
    let mut bench = Bench::new();
    let at = bench.serve().await;
    let mut keys = Vec::new();
    for id in 0..5 {
        keys.push(bench.send(id).await);
    }
    overwrite(bench.node.store.log(), keys[2].origin, keys[2].seq, b"not a record");
    let began = std::time::Instant::now();
    assert_eq!(list(&at, "").await, Some((200, Some(1), 4)));
    assert!(began.elapsed() >= std::time::Duration::from_secs(2), "a peer may send it meanwhile");
    let began = std::time::Instant::now();
    assert_eq!(list(&at, "?limit=4").await, Some((200, Some(1), 4)));
    assert_eq!(list(&at, "?limit=2").await, Some((200, None, 2)));
    assert_eq!(list(&at, "?recipient=nobody&limit=2").await, Some((200, Some(1), 0)));
    let one = format!("/{}", Uuid::from_u128(2));
    assert!(began.elapsed() < std::time::Duration::from_secs(1), "no further wait for the same entry");
    assert_eq!(list(&at, &one).await, Some((503, None, 0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_found_in_the_middle_of_an_answer_is_left_out_of_the_next() {
    let mut bench = Bench::new();
    let at = bench.serve().await;
    let content = |id| content(id, &"x".repeat(900));
    let new = |id| NewMessage {
        id: Uuid::from_u128(id),
        digest: Digest::of(EntryKind::Message, &content(id)),
        content: content(id),
    };
    bench.node.writer.send((0..3_000).map(new).collect()).await;
    let own = bench.node.logs().own().expect("has begun one");
    for seq in [2_000, 2_500] {
        overwrite(bench.node.store.log(), own, seq, b"not a record");
    }
    assert_eq!(list(&at, "").await, None, "half of history must not look like all of it");
    assert_eq!(list(&at, "").await, Some((200, Some(2), 2_998)));
}

#[tokio::test]
async fn members_that_are_not_on_disk_are_not_taken_for_stored() {
    let bench = Bench::new();
    bench.answer(quiet()).await;
    assert_eq!(bench.node.cluster.store_members(&bench.node).await, Ok(()));
    bench.node.writer.fault.raise("the disk fails".into());
    bench.answer(SyncMessage::quiet(hello(3), [0; 16], 0)).await;
    for _ in 0..2 {
        assert_eq!(bench.node.cluster.store_members(&bench.node).await, Err(Rejection::Failed));
    }
}

#[tokio::test]
async fn forgetting_a_node_tells_whether_that_is_on_disk() {
    let mut bench = Bench::new();
    let at = bench.serve().await;
    let (client, path) = (crate::client::Client::new(None), format!("{}3", crate::api::path::NODES_PREFIX));
    for (open, is_stored) in [(0, true), (1, false)] {
        let member = Member { incarnation_id: [open; 16], forget_count: 0, address: hello(3).address };
        bench.answer(SyncMessage { members: vec![(hello(3).member_id(), member)], ..quiet() }).await;
        if !is_stored {
            bench.node.writer.fault.raise("the disk fails".into());
        }
        let request = crate::client::Request::delete(&path);
        let answer = client.forward(&at.addr, &request, std::time::Duration::from_secs(30)).await;
        let answer: serde_json::Value = answer.expect("answers").json(1_000).await.expect("is whole");
        assert_eq!(answer, serde_json::json!({ "node_id": 3, "forgotten": true, "stored": is_stored }));
    }
}

#[tokio::test]
async fn the_status_names_a_node_that_cannot_be_a_member() {
    let bench = Bench::new();
    let is_named = || status::status(&bench.node).warnings.iter().any(|line| line.contains("is no member"));
    bench.answer(quiet()).await;
    assert!(!is_named());
    bench.answer(SyncMessage::quiet(Hello { incarnation_id: [0xff; 16], ..hello(3) }, [0; 16], 0)).await;
    assert!(is_named());
}

/// A purge writes after the answer, so a held-back purge delays no answer.
#[tokio::test]
async fn the_writer_answers_before_it_purges() {
    let bench = Bench::new();
    bench.push(&Log::new(X, 9, 1, "theirs"), 1, 9, 9).await;
    let no_purge = hold_writes(&bench.node.store);
    let cut = bench.node.writer.maintain(Maintenance::Cut(X, 2));
    tokio::time::timeout(std::time::Duration::from_secs(10), cut).await.expect("is answered");
    assert_eq!(bench.node.logs().vector().cut_of(X), Some(2));
    drop(no_purge);
    bench.send(1_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_from_the_future_can_be_listed_apart_and_are_reported() {
    let mut bench = Bench::new();
    let at = bench.serve().await;
    bench.send(1).await;
    bench.send(2).await;
    let now = now_ms();
    let hours = [1, 2, 3].map(|hours| Stamp::at(now + hours * 3_600_000));
    let is_reported =
        || status::status(&bench.node).warnings.iter().any(|line| line.contains("in the future"));
    assert!(!is_reported());
    bench.store(hours).await;
    assert!(is_reported());
    let bound = now / 1_000 + 300;
    for path in ["", "&recipient=b"] {
        assert_eq!(list(&at, &format!("?accepted_before={bound}{path}")).await, Some((200, None, 2)));
        assert_eq!(list(&at, &format!("?limit=9&accepted_before={bound}{path}")).await, Some((200, None, 2)));
        assert_eq!(list(&at, &format!("?limit=1&accepted_before={bound}{path}")).await, Some((200, None, 1)));
        assert_eq!(list(&at, &format!("?accepted_since={bound}{path}")).await, Some((200, None, 3)));
        assert_eq!(list(&at, &format!("?limit=2&accepted_since={bound}{path}")).await, Some((200, None, 2)));
    }
    let second_last = format!("{}.2", Uuid::from_bytes(X.0));
    let query = format!("?limit=9&accepted_since={bound}&before={second_last}");
    assert_eq!(list(&at, &query).await, Some((200, None, 1)));
    let query = format!("?limit=9&accepted_before={}&after={second_last}", bound + 3 * 3_600);
    assert_eq!(list(&at, &query).await, Some((200, None, 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_peer_is_in_the_same_state_in_the_network_as_in_the_exchanges() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = silent.local_addr().expect("is bound").into();
    let bench = Bench::with_peers(vec![crate::config::ConfiguredPeer { node_id: Some(5), addr }]);
    bench.node.cluster.roster().peer(0).expect("configured").last_answer = Some(std::time::Instant::now());
    let states = |network: crate::api::network::NetworkStatus| {
        network.nodes.into_iter().map(|node| (node.node_id, node.state, node.error)).collect::<Vec<_>>()
    };
    let up = crate::api::network::NodeState::Up;
    let shown = states(status::survey(&bench.node).await);
    assert_eq!(shown, [(Some(1), up, None), (Some(5), up, None)]);
    drop(silent);
    let shown = states(status::survey(&bench.node).await);
    assert_eq!(shown[1].1, crate::api::network::NodeState::Suspect, "it refuses connections");
}

/// A backup: it may be at the address of a configured peer, hold everything, and claim anything of the members.
#[tokio::test]
async fn a_guest_exchanges_and_is_never_a_member() {
    let configured =
        crate::config::ConfiguredPeer { node_id: None, addr: "127.0.0.1:9".parse().expect("one") };
    let bench = Bench::with_peers(vec![configured]);
    let (key, cluster) = (bench.send(1).await, &bench.node.cluster);
    let guest = Hello { is_guest: true, ..hello(9) };
    let own = cluster.hello().member_id();
    let clone = crate::chain::members::Member {
        incarnation_id: [2; 16],
        forget_count: 0,
        address: "127.0.0.1:99".into(),
    };
    let listed = vec![(hello(8).member_id(), clone.clone()), (own, clone)];
    let vector = bench.node.logs().vector().clone();
    let mut request = SyncMessage::quiet(guest.clone(), short(vector.digest()), 0);
    request.members = listed.clone();
    request.wants = vec![EntryRange { origin: key.origin, first: 1, last: 1 }];
    request.members_digest = Some([0; 8]);
    for hello in [guest.clone(), Hello { store_id: own.store_id, incarnation_id: [0; 16], ..guest.clone() }] {
        let reply = bench.answer(SyncMessage { hello, ..request.clone() }).await;
        assert_eq!(reply.runs.iter().map(|run| run.entries.len()).sum::<usize>(), 1, "it pulls like a node");
        assert_eq!(reply.members.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [own]);
    }
    let log = Log::new(X, 3, 1, "restored");
    let pushed = SyncMessage { hello: guest.clone(), runs: vec![log.run(1, 3)], ..quiet() };
    bench.answer(pushed).await;
    assert_eq!(bench.seq(X), 3, "it pushes like a node");
    let mut answer = SyncMessage::quiet(guest, short(vector.digest()), 0);
    answer.members = listed;
    let rtt = std::time::Duration::from_millis(1);
    cluster.on_answer(0, &answer, Some(&vector), &vector, rtt).expect_err("is no peer");
    let range = EntryRange { origin: key.origin, first: 1, last: 1 };
    assert_eq!(cluster.holders(&[range], true), [1]);
    assert_eq!(cluster.roster().members().iter().map(|(id, _)| id).collect::<Vec<_>>(), [own]);
    assert_eq!(cluster.roster().numbers().len(), 1, "the configured one");
    assert_eq!(cluster.roster().node_count(), 2, "the configured one");
    let shown = cluster.peers(&vector);
    assert_eq!(shown.iter().map(|peer| peer.status.node_id).collect::<Vec<_>>(), [None]);
    assert_eq!(cluster.roster().non_members().count(), 0, "it needs no warning");
    assert_eq!(cluster.hello().store_id, own.store_id);
    assert!(!status::status(&bench.node).warnings.iter().any(|line| line.contains("store id")));
}

#[tokio::test]
async fn a_new_store_id_says_nothing_against_the_store() {
    let bench = Bench::new();
    let copied = Hello { incarnation_id: [0; 16], ..bench.node.cluster.hello() };
    let answered = answer::answer(&bench.node, SyncMessage { hello: copied, ..quiet() }, Bytes::new()).await;
    answered.expect_err("it takes a new id");
    let fault = &bench.node.writer.fault;
    assert!(fault.is_raised() && !fault.is_suspect());
    assert!(!status::status(&bench.node).warnings.iter().any(|line| line.contains("cannot write")));
}

#[tokio::test]
async fn long_work_ends_once_nobody_waits_for_it() {
    let (ended, end) = tokio::sync::oneshot::channel();
    let work = blocking_while_awaited(move |is_awaited| {
        let began = std::time::Instant::now();
        while is_awaited() && began.elapsed() < std::time::Duration::from_secs(10) {
            std::thread::yield_now();
        }
        ended.send(is_awaited())
    });
    tokio::time::timeout(std::time::Duration::from_millis(1), work).await.expect_err("it goes on");
    assert_eq!(end.await, Ok(false));
}

#[tokio::test]
async fn a_side_push_is_stored_and_says_nothing_of_what_else_its_sender_has() {
    let bench = Bench::new();
    let log = Log::new(X, 10, 11, "");
    let whole = Heads { base: None, changes: vec![(log.origin, log.span(4))], cuts: Vec::new() };
    let request =
        SyncMessage { digest: digest_of(&whole), heads: Some(whole), runs: vec![log.run(1, 4)], ..quiet() };
    bench.answer(request).await;
    let aside = |first, last| SyncMessage { entries_only: true, runs: vec![log.run(first, last)], ..quiet() };
    let held = |reply: SyncMessage| reply.heads.expect("heads").changes;
    assert_eq!(held(bench.answer(aside(5, 6)).await), [(X, log.span(6))]);
    assert_eq!(held(bench.answer(aside(8, 9)).await), [(X, log.span(6))], "entries after a gap wait");
    assert_eq!(held(bench.answer(aside(2, 3)).await), [(X, log.span(6))], "late ones change nothing");
    let changes = vec![(X, log.span(6))];
    let base = digest_of(&Heads { base: None, changes: vec![(X, log.span(4))], cuts: Vec::new() });
    let heads = Heads { base: Some(base), changes, cuts: Vec::new() };
    let now = digest_of(&Heads { base: None, ..heads.clone() });
    let reply = bench.answer(SyncMessage { digest: now, heads: Some(heads), ..quiet() }).await;
    assert!(!reply.need_full, "what the exchanges said before still holds");
}

/// It cannot connect to this node, so this node alone can fetch what only that one has.
#[tokio::test]
async fn what_a_peer_with_a_full_disk_has_is_fetched_although_it_takes_nothing() {
    let full = Bench::new();
    full.push(&Log::new(X, 3, 1, "theirs"), 1, 3, 3).await;
    let node = full.node.clone();
    let handler = |body: Bytes| async move {
        let request = SyncMessage::decode(&body).expect("well-formed");
        if !request.runs.is_empty() {
            let full = crate::api::error::Problem::from(Rejection::Full);
            return axum::response::IntoResponse::into_response(full);
        }
        let reply = answer::answer(&node, request, body).await.expect("answers");
        let headers = [(axum::http::header::CONTENT_TYPE, crate::api::media::BINARY)];
        axum::response::IntoResponse::into_response((headers, reply.encode()))
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("is bound").into();
    let router = axum::Router::new().route(crate::api::path::SYNC, axum::routing::post(handler));
    let stop = CancellationToken::new();
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(crate::serve::serve(listener, router, None, 1, stop));
    let bench = Bench::with_peers(vec![crate::config::ConfiguredPeer { node_id: None, addr }]);
    let mut client = sync::SyncClient::new(0);
    client.exchange(&bench.node, true).await.expect("has nothing to push yet");
    bench.push(&Log::new(origin(1), 3, 1, "ours"), 1, 3, 3).await;
    bench.send(9).await;
    let mut failed = 0;
    for _ in 0..8 {
        failed += u32::from(client.exchange(&bench.node, true).await.is_err());
    }
    assert_eq!((bench.seq(X), failed), (3, 1));
    let aside = bench.node.cluster.new_own_entries(0, &bench.node.logs());
    assert_eq!(aside, None, "nothing is pushed aside either");
}

/// Peers may ask for a lot and read slowly.
#[tokio::test]
async fn answers_that_wait_for_their_readers_take_bounded_memory() {
    let mut bench = Bench::new();
    bench.node.limits.answers = Budget::new(6 << 20);
    // Random characters, which do not compress.
    let mut rng = fastrand::Rng::with_seed(1);
    let texts = (0..400).map(|_| (0..2_000).map(|_| rng.alphanumeric()).collect::<String>());
    let mut log = Log::new(X, 0, 0, "");
    log.contents = texts.enumerate().map(|(n, text)| content(n as u128, &text)).collect();
    for first in (1..=400).step_by(50) {
        bench.push(&log, first, first + 49, first + 49).await;
    }
    let ask = || async {
        let request = SyncMessage { wants_any: true, ..quiet() };
        let request = SyncMessage { wants: vec![EntryRange { origin: X, first: 1, last: 400 }], ..request };
        let headers =
            [(axum::http::header::CONTENT_TYPE, crate::api::media::BINARY.parse().expect("a value"))];
        let body = axum::body::Body::from(request.encode());
        let query = axum::extract::RawQuery(None);
        answer::post(bench.node.clone(), query, headers.into_iter().collect(), body).await
    };
    let mut waiting = Vec::new();
    for _ in 0..10 {
        waiting.extend(ask().await.ok());
    }
    let length = |answer: &axum::response::Response| {
        usize::try_from(axum::body::HttpBody::size_hint(answer.body()).exact().expect("is known"))
            .expect("fits")
    };
    let held: usize = waiting.iter().map(length).sum();
    assert_eq!(waiting.len(), 10, "every exchange goes on");
    assert!((1_000_000..=3_000_000).contains(&held), "{held} bytes wait");
    drop(waiting);
    assert!(length(&ask().await.expect("answers")) > 400_000);
}

/// A clone of this machine, or a bad peer, may have gone on with this node's own log.
#[tokio::test]
async fn a_peer_whose_copy_of_the_own_log_is_forked_is_no_holder_of_its_messages() {
    let mut honest = Bench::new();
    let bench = Bench::with_peers(vec![honest.serve().await]);
    let send = |id: u128| {
        let content = content(id, "mine");
        let digest = Digest::of(EntryKind::Message, &content);
        NewMessage { id: Uuid::from_u128(id), digest, content }
    };
    for id in 1..=5 {
        bench.node.writer.send(vec![send(id)]).await;
    }
    let own = bench.node.logs().own().expect("has begun");
    let span = *bench.node.logs().vector().get(own).expect("is here");
    let claim = |seq, hash| Heads {
        base: None,
        changes: vec![(own, LogSpan { head: Head { seq, hash }, ..span })],
        cuts: Vec::new(),
    };
    let last = EntryRange { origin: own, first: 3, last: 3 };
    for (seq, hash) in [(4, ChainHash([4; 32])), (5, ChainHash([4; 32])), (9, ChainHash([4; 32]))] {
        let heads = claim(seq, hash);
        bench.answer(SyncMessage { digest: digest_of(&heads), heads: Some(heads), ..quiet() }).await;
        assert_eq!(bench.node.durable_on(&[last]), [1], "it has {seq} entries of a fork");
    }
    let mut client = sync::SyncClient::new(0);
    for _ in 0..2 {
        client.exchange(&bench.node, true).await.expect("goes well");
    }
    assert_eq!(bench.node.durable_on(&[last]).len(), 1, "two benches have one node id");
    assert!(bench.node.cluster.roster().peer(0).expect("is asked").holds(&last), "it was sent them");
}

/// A peer can name other logs in each message.
#[tokio::test]
async fn what_a_peer_says_of_logs_that_do_not_exist_does_not_pile_up() {
    let bench = Bench::new();
    for round in 0..20 {
        let span = |n: u16| {
            let origin = origin(round * 100 + n);
            (origin, LogSpan::whole(origin, LogType::MESSAGES, Head { seq: 9, hash: ChainHash([1; 32]) }))
        };
        let heads = Heads { base: None, changes: (0..100).map(span).collect(), cuts: Vec::new() };
        bench.answer(SyncMessage { digest: digest_of(&heads), heads: Some(heads), ..quiet() }).await;
    }
    let roster = bench.node.cluster.roster();
    let kept = roster.peers().filter_map(|peer| peer.vector.as_ref()).map(Vector::origins).sum::<usize>();
    assert_eq!(kept, 100, "the last message counts");
}
