//! Exchanges between nodes that keep their logs in memory only.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::*;
use crate::chain::ids::{ChainHash, Leaf};
use crate::chain::kind::{EntryKind, LogType};
use crate::chain::logs::Logs;
use crate::chain::message::Digest;
use crate::chain::record::Entry;
use crate::chain::sync::wire::{Hello, Run};
use crate::chain::vector::{Head, LogSpan};

const NOW: u64 = 1_700_000_000_000;

/// What an exchange sent over one link.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Traffic {
    exchanges: usize,
    entries: usize,
    bytes: usize,
}

type Entries = BTreeMap<(Origin, u64), Entry>;

struct TestNode {
    id: u8,
    opened: u8,
    logs: Logs,
    entries: Entries,
    initiators: BTreeMap<u8, Initiator>,
    responders: BTreeMap<(u8, u8), Responder>,
}

impl TestNode {
    fn new(id: u8) -> Self {
        let (initiators, responders) = (BTreeMap::new(), BTreeMap::new());
        TestNode { id, opened: 0, logs: Logs::default(), entries: BTreeMap::new(), initiators, responders }
    }

    fn hello(&self) -> Hello {
        Hello {
            network: [0; 8],
            node_id: self.id.into(),
            store_id: [self.id; 16],
            incarnation_id: [self.opened; 16],
            address: "127.0.0.1:8081".into(),
            is_guest: false,
        }
    }

    fn send(&mut self, text: &'static str) {
        let (digest, name) =
            (Digest::of(EntryKind::Message, text.as_bytes()), [self.id + 16 * self.opened; 16]);
        let key = self.logs.assign(Leaf::of(EntryKind::Message, "", digest), NOW, || Origin(name));
        let entry = Entry::new(key, EntryKind::Message, digest, text.as_bytes());
        self.entries.insert((key.origin, key.seq), entry);
    }

    /// Begins a new incarnation, over a backup if there is one.
    fn reopen(&mut self, restored: Option<(Logs, Entries)>) {
        self.opened += 1;
        (self.initiators, self.responders) = (BTreeMap::new(), BTreeMap::new());
        if let Some((logs, entries)) = restored {
            (self.logs, self.entries) = (logs, entries);
        }
        self.logs.own().into_iter().for_each(|own| self.logs.abandon(own));
    }

    fn run(&self, range: EntryRange) -> Run {
        let EntryRange { origin, first, last } = range;
        let mut hash = ChainHash::genesis(origin, LogType::MESSAGES);
        for seq in 1..first {
            let entry = &self.entries[&(origin, seq)];
            hash = hash.next(seq, entry.stamp(), entry.leaf());
        }
        let entries = (first..=last).map(|seq| self.entries[&(origin, seq)].clone()).collect();
        let before = Head { seq: first - 1, hash };
        Run { origin, log_type: LogType::MESSAGES, before, entries, is_damaged: false }
    }

    fn admit(&mut self, runs: &[Run]) {
        for entry in runs.iter().flat_map(|run| &run.entries) {
            if self.logs.admit(entry, NOW).expect("follows") {
                self.entries.insert((entry.origin(), entry.seq()), entry.clone());
            }
        }
    }

    fn answer(&mut self, request: &SyncMessage) -> SyncMessage {
        let key = (request.hello.store_id[0], request.hello.incarnation_id[0]);
        let mut responder = self.responders.remove(&key).unwrap_or_default();
        responder.on_request(self.logs.vector(), request);
        self.admit(&request.runs);
        let mut reply = SyncMessage::quiet(self.hello(), [0; 16], NOW);
        reply.runs = request.wants.iter().map(|range| self.run(*range)).collect();
        responder.answer(self.logs.vector(), request, &mut reply);
        self.responders.insert(key, responder);
        reply
    }
}

/// `from` exchanges with `to` until it wants to wait. `skip`: as in [`Initiator::start`].
fn exchange(nodes: &mut [TestNode], from: usize, to: usize, on_timer: bool, skip: bool) -> Traffic {
    let mut traffic = Traffic::default();
    loop {
        let peer = nodes[to].id;
        let node = &mut nodes[from];
        let mut initiator = node.initiators.remove(&peer).unwrap_or_default();
        let own = node.logs.own();
        let on_timer = on_timer && traffic.exchanges == 0;
        let plan = initiator.start(node.logs.vector(), own, on_timer, |_| skip);
        let mut request = SyncMessage::quiet(node.hello(), short(node.logs.vector().digest()), NOW);
        (request.heads, request.need_full) = (plan.heads.clone(), plan.need_full);
        request.runs = plan.push.iter().map(|range| node.run(*range)).collect();
        request.wants.clone_from(&plan.wants);
        let sent = Bytes::from(request.encode());
        let received = Bytes::from(nodes[to].answer(&SyncMessage::decode(&sent).expect("ours")).encode());
        let reply = SyncMessage::decode(&received).expect("ours");
        let runs = request.runs.iter().chain(&reply.runs);
        traffic.exchanges += 1;
        traffic.entries += runs.map(|run| run.entries.len()).sum::<usize>();
        traffic.bytes += sent.len() + received.len();
        assert!(traffic.exchanges < 10, "the exchange does not end");
        let next = initiator.on_reply(plan, &reply);
        nodes[from].initiators.insert(peer, initiator);
        nodes[from].admit(&reply.runs);
        if next == NextExchange::Wait && reply.runs.is_empty() {
            return traffic;
        }
    }
}

fn nodes(count: u8) -> Vec<TestNode> {
    (1..=count).map(TestNode::new).collect()
}

#[track_caller]
fn assert_equal(nodes: &[TestNode]) {
    for node in nodes {
        assert_eq!(node.logs.vector().digest(), nodes[0].logs.vector().digest(), "node {}", node.id);
        assert_eq!(node.entries, nodes[0].entries);
    }
}

#[test]
fn one_initiator_makes_both_sides_equal() {
    let mut nodes = nodes(2);
    nodes[0].send("from 1");
    nodes[1].send("from 2");
    exchange(&mut nodes, 0, 1, false, false);
    assert_equal(&nodes);
}

#[test]
fn equal_nodes_need_one_small_exchange() {
    let mut nodes = nodes(2);
    nodes[0].send("hello");
    exchange(&mut nodes, 0, 1, false, false);
    exchange(&mut nodes, 1, 0, false, false);
    for _ in 0..3 {
        let traffic = exchange(&mut nodes, 0, 1, true, true);
        assert_eq!((traffic.exchanges, traffic.entries), (1, 0));
        assert!(traffic.bytes <= 200, "{traffic:?}");
    }
}

#[test]
fn in_a_full_mesh_each_message_crosses_each_link_once() {
    let mut nodes = nodes(4);
    let mut entries = 0;
    for round in 0..10 {
        for from in 0..4 {
            nodes[from].send("a message");
            for to in (0..4).filter(|to| *to != from) {
                let on_timer = round % 3 == 2;
                entries += exchange(&mut nodes, from, to, on_timer, true).entries;
            }
        }
    }
    assert_equal(&nodes);
    assert_eq!(entries, 10 * 4 * 3);
}

#[test]
fn a_push_costs_little_more_than_its_entries() {
    let mut nodes = nodes(2);
    for _ in 0..500 {
        nodes[0].reopen(None);
        if nodes[0].opened == 12 {
            nodes[0].opened = 0;
        }
        nodes[0].send("an old log");
    }
    exchange(&mut nodes, 1, 0, false, false);
    exchange(&mut nodes, 0, 1, false, false);
    nodes[0].send("new");
    let traffic = exchange(&mut nodes, 0, 1, false, false);
    assert_eq!(traffic.entries, 1);
    assert!(traffic.bytes < 800, "{traffic:?}");
}

#[test]
fn entries_that_the_owner_cannot_send_are_passed_on_after_two_rounds() {
    // 1 reaches 2, 2 reaches 3, nothing else; 3 asks nobody.
    let mut nodes = nodes(3);
    nodes[0].send("from 1");
    exchange(&mut nodes, 0, 1, false, false);
    let rounds = (1..=5)
        .find(|_| exchange(&mut nodes, 1, 2, true, true).entries == 1)
        .expect("node 2 passes on the entry that node 3 lacks");
    assert!((2..=3).contains(&rounds), "after {rounds} rounds");
    assert_equal(&nodes);
}

#[test]
fn a_restored_node_pulls_its_own_former_entries() {
    let mut nodes = nodes(2);
    nodes[0].send("one");
    let backup = (nodes[0].logs.clone(), nodes[0].entries.clone());
    nodes[0].send("two");
    exchange(&mut nodes, 0, 1, false, false);
    nodes[0].reopen(Some(backup));
    nodes[0].send("three");
    exchange(&mut nodes, 0, 1, false, false);
    assert_equal(&nodes);
    assert_eq!(nodes[0].entries.len(), 3);
    // The other way round: the peer notices that what it knew of node 1 is outdated.
    exchange(&mut nodes, 1, 0, true, false);
    assert_equal(&nodes);
}

#[test]
fn a_lost_answer_costs_a_full_vector_not_an_entry() {
    let mut nodes = nodes(2);
    nodes[0].send("one");
    exchange(&mut nodes, 0, 1, false, false);
    nodes[1].send("two");
    let before = nodes[0].initiators.clone();
    exchange(&mut nodes, 0, 1, false, false);
    nodes[0].initiators = before; // as if no answer had come
    nodes[1].send("three");
    nodes[0].send("four");
    exchange(&mut nodes, 0, 1, false, false);
    assert_equal(&nodes);
}

#[test]
fn a_fork_is_seen_in_the_heads() {
    let mut nodes = nodes(2);
    nodes[0].send("one");
    nodes[1].logs.assign(Leaf([9; 32]), NOW, || Origin([1; 16]));
    let forked = forks(nodes[0].logs.vector(), nodes[1].logs.vector());
    assert_eq!(forked, [(Origin([1; 16]), 1)]);
}

/// Control logs say who may read and write, so they come first; senders wait for the own log.
#[test]
fn control_logs_come_before_the_own_log_and_newer_logs_before_older_ones() {
    let span = |n: u8| {
        let (origin, head) = (Origin([n; 16]), Head { seq: 1, hash: ChainHash([1; 32]) });
        (origin, LogSpan::whole(origin, LogType { is_control: n <= 2, ..LogType::MESSAGES }, head))
    };
    let mut full = Vector::default();
    for (origin, span) in [1, 2, 3, 5, 9].map(span) {
        full.insert(origin, span);
    }
    let order = |ranges: &[EntryRange]| ranges.iter().map(|range| range.origin.0[0]).collect::<Vec<_>>();
    let (mut pushes, mut pulls) = (Initiator::default(), Initiator::default());
    pushes.learn(&Vector::default());
    pulls.learn(&full);
    let own = Some(Origin([5; 16]));
    pushes.start(&full, own, true, |_| false);
    assert_eq!(order(&pushes.start(&full, own, true, |_| false).push), [2, 1, 5, 9, 3]);
    assert_eq!(order(&pulls.start(&Vector::default(), None, true, |_| false).wants), [2, 1, 9, 5, 3]);
    assert_eq!(order(&missing_ranges(&full, &Vector::default())), [2, 1, 9, 5, 3]);
}
