//! Owns who the other nodes are: the members of the network as this node knows them, and one peer for each address it
//! asks.
//!
//! - Every configured address has a peer and is always asked.
//! - A member has a peer of its own at the address that it advertised last, unless a configured peer stands for it
//!   already: by its address, or because that member answered there.
//! - What a member says of itself overrides what others say of it: while a store answers at its address, no other store
//!   of its node is believed to be there. A forgotten member is neither asked nor shown.
//! - A peer may invent members, but not incarnations that no later one outranks: an incarnation that begins far in the
//!   future is not believed, and a node raises its own above what is claimed of it.
//! - The number of a peer is never used twice, so a task that outlives its peer finds none.
//!
//! When peers are asked, and what they hold, is not known here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::api::address::Addr;
use crate::api::network::{NodeId, NodeState};
use crate::chain::members::{self, Member, MemberId, Members, Membership};
use crate::chain::sync::wire::{Hello, SyncMessage};
use crate::chain::vector::Vector;
use crate::config;
use crate::node::cluster::peer::Peer;

/// An incarnation that begins later than this after now is not believed. Otherwise a peer could claim one of a member
/// that no true one ever outranks.
const AHEAD_MAX_MS: u64 = 24 * 60 * 60 * 1_000;
/// 2020 in Unix milliseconds. A clock before it was never set, and says nothing of the clocks of others.
const CLOCK_SET_MS: u64 = 1_577_836_800_000;
/// A node raises its incarnation id above claims about its own store or address at most this often.
const RAISE_INTERVAL_MS: u64 = 60_000;
/// Heads that are kept of all peers together. Beyond it the longest vectors are dropped, until their peers send the next
/// message. It limits the memory that peers can take by claiming logs that do not exist to some 150 MB.
const PEER_HEADS_MAX: usize = 1 << 20;
/// Nodes that are shown although they are no members. Further ones are not shown.
const NON_MEMBERS_MAX: usize = 16;
/// A node that is no member is shown for this long after its last message.
const NON_MEMBER_TIME: Duration = Duration::from_secs(60);

pub struct Roster {
    own: Hello,
    /// The same at the start. The incarnation id in `own` may have been raised since.
    own_at_start: Hello,
    peers: BTreeMap<usize, Peer>,
    next_number: usize,
    members: Members,
    /// When the own incarnation id was last raised above a claim about the own store.
    raised_ms: Option<u64>,
    /// Nodes that send messages and are no members: why, and when the last message came.
    non_members: BTreeMap<MemberId, (String, Instant)>,
}

/// Whether its incarnation may have begun: clocks differ, but not by more than a day.
fn is_plausible(incarnation_id: [u8; 16], now_ms: u64) -> bool {
    let began_ms = u64::try_from(u128::from_be_bytes(incarnation_id) >> 80).expect("48 bits");
    now_ms < CLOCK_SET_MS || began_ms <= now_ms.saturating_add(AHEAD_MAX_MS)
}

/// The last incarnation id of a store, or of other stores of its node at its address, that peers may believe. 0: none.
pub fn last_incarnation_id(known: &Members, of: MemberId, address: &str, now_ms: u64) -> u128 {
    let believed = known.iter().filter(|(_, member)| is_plausible(member.incarnation_id, now_ms));
    members::latest(believed, of, address).map_or(0, u128::from_be_bytes)
}

fn member_record(hello: &Hello) -> Member {
    Member { incarnation_id: hello.incarnation_id, forget_count: 0, address: hello.address.clone() }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForgetOutcome {
    /// The node is forgotten now; it may have been before.
    Done,
    /// The node is up, so it was not forgotten.
    IsUp,
    /// No member has that id.
    Unknown,
}

impl Roster {
    /// `own`: this node. `configured`: the peers of the configuration. `membership`: the members as the store has them.
    pub fn new(
        own: Hello,
        configured: &[config::ConfiguredPeer],
        Membership { mut members, last_seen_at }: Membership,
    ) -> Self {
        // What is left here of a later incarnation is not believed: the clock was wrong then, or a peer invented it.
        members.drop_at(own.member_id(), &own.address, |_, _| true);
        members.learn(own.member_id(), member_record(&own));
        let peer = |peer: &config::ConfiguredPeer| {
            let last_seen = || last_seen_at.get(&peer.addr.to_string()).copied();
            Peer::new(peer.addr.clone(), true, peer.node_id.or_else(last_seen))
        };
        let peers: BTreeMap<usize, Peer> = configured.iter().map(peer).enumerate().collect();
        let (own_at_start, next_number) = (own.clone(), peers.len());
        let (raised_ms, non_members) = (None, BTreeMap::new());
        let mut roster = Roster { own, own_at_start, peers, next_number, members, raised_ms, non_members };
        roster.reconcile();
        roster
    }

    pub fn own(&self) -> &Hello {
        &self.own
    }

    /// Whether this very process said this, before or after its incarnation id was raised.
    pub fn is_own(&self, hello: &Hello) -> bool {
        *hello == self.own || *hello == self.own_at_start
    }

    /// All members, those that were forgotten included.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// What outlives this process: the members, and which node was seen last at each configured address.
    pub fn membership(&self) -> Membership {
        let is_member = |node_id: NodeId| self.members.iter().any(|(id, _)| id.node_id == node_id);
        let last_seen = |peer: &Peer| {
            let id = peer.node_id.filter(|id| peer.configured && is_member(*id))?;
            Some((peer.addr.to_string(), id))
        };
        let last_seen_at = self.peers.values().filter_map(last_seen).collect();
        Membership { members: self.members.clone(), last_seen_at }
    }

    /// The numbers of the peers that are asked.
    pub fn numbers(&self) -> BTreeSet<usize> {
        self.peers.keys().copied().collect()
    }

    /// One of them, if it is still asked.
    pub fn peer(&mut self, number: usize) -> Option<&mut Peer> {
        self.peers.get_mut(&number)
    }

    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.peers.values()
    }

    /// Takes in what a peer says of itself and of other members. True if that changed the members. A guest is none and
    /// speaks for none.
    pub fn learn_members(&mut self, body: &SyncMessage, now_ms: u64) -> bool {
        if body.hello.is_guest {
            return false;
        }
        let own = self.own.member_id();
        let listed = body.members.iter().filter(|(id, _)| *id != own).cloned();
        let mut changed = self.raise_own_incarnation_id(body, now_ms);
        for (id, member) in listed.chain([(body.hello.member_id(), member_record(&body.hello))]) {
            let is_usable = id != own
                && member.address.parse().is_ok_and(|addr| !self.is_rival(id, &member.address, &addr))
                && is_plausible(member.incarnation_id, now_ms);
            if is_usable {
                let is_believed = |known: &Member| is_plausible(known.incarnation_id, now_ms);
                changed |= self.members.drop_at(id, &member.address, |_, known| !is_believed(known));
                changed |= self.members.learn(id, member);
            }
        }
        self.note_non_member(&body.hello, now_ms);
        // If this very incarnation was forgotten somewhere, a newer mark says that it is a member.
        let mut of_own = body.members.iter().filter(|(id, _)| *id == own).map(|(_, member)| member);
        if let Some(listed) = of_own.find(|listed| listed.incarnation_id == self.own.incarnation_id) {
            let address = self.own.address.clone();
            changed |= self.members.learn(own, Member { address, ..listed.clone() });
            changed |= self.members.set_forgotten(own, false);
            if self.members.get(own).is_some_and(Member::is_forgotten) {
                changed |= self.raise_above(listed.incarnation_id); // the mark is at its largest value
            }
        }
        if changed {
            self.reconcile();
        }
        changed
    }

    /// Whether another store of that node is known to be at this address: that of this node, or one that answers there.
    /// What a store itself answers counts more than what others say of it.
    fn is_rival(&self, id: MemberId, address: &str, addr: &Addr) -> bool {
        let answering = self.peers().filter(|peer| peer.addr == *addr).filter_map(|peer| peer.answering);
        let own = (address == self.own.address).then_some(self.own.member_id());
        answering.chain(own).any(|at| at.node_id == id.node_id && at != id)
    }

    /// A peer was asked and answered. If it answers at the address that it advertises, other stores of its node at that
    /// address are dropped, whatever peers say of them. True if there was one.
    pub fn on_answered(&mut self, number: usize, hello: &Hello, now_ms: u64) -> bool {
        let Some(peer) = self.peers.get_mut(&number) else { return false };
        let is_there = !hello.is_guest
            && hello.address == peer.addr.to_string()
            && is_plausible(hello.incarnation_id, now_ms);
        let member = hello.member_id();
        peer.answering = is_there.then_some(member);
        is_there && self.members.drop_at(member, &hello.address, |id, _| id != member)
    }

    /// Peers ignore a smaller incarnation id than the one that they know at this address, for example after a clock ran
    /// ahead, or because a peer claims one. So this node raises its own above it, once in a while: two nodes with one id
    /// and one address do so for ever. True if it was raised.
    fn raise_own_incarnation_id(&mut self, body: &SyncMessage, now_ms: u64) -> bool {
        let own = self.own.member_id();
        let is_believed = |(_, member): &(MemberId, &Member)| {
            member.address == self.own.address && is_plausible(member.incarnation_id, now_ms)
        };
        let here = || body.members.iter().map(|(id, member)| (*id, member)).filter(is_believed);
        let Some(last) = members::latest(here(), own, &self.own.address) else { return false };
        let is_due = self.raised_ms.is_none_or(|raised| now_ms >= raised.saturating_add(RAISE_INTERVAL_MS));
        if !is_due || last <= self.own.incarnation_id {
            return false;
        }
        self.raised_ms = Some(now_ms);
        self.raise_above(last)
    }

    fn raise_above(&mut self, incarnation_id: [u8; 16]) -> bool {
        let next = u128::from_be_bytes(incarnation_id).saturating_add(1);
        self.own.incarnation_id = next.to_be_bytes();
        self.members.learn(self.own.member_id(), member_record(&self.own))
    }

    /// Remembers the sender of a message if it cannot be a member, so that an operator learns why.
    fn note_non_member(&mut self, hello: &Hello, now_ms: u64) {
        let (id, address) = (hello.member_id(), &hello.address);
        let why = if !is_plausible(hello.incarnation_id, now_ms) {
            "its clock, or that of this node, is wrong by more than a day: set it and start the node again"
        } else if self.members.get(id).is_none() && self.members.count() >= members::MEMBERS_MAX {
            "there are as many members as there can be: forget nodes that are gone for good"
        } else {
            self.non_members.remove(&id);
            return;
        };
        self.non_members.retain(|_, (_, last)| last.elapsed() < NON_MEMBER_TIME);
        if id != self.own.member_id() && self.non_members.len() < NON_MEMBERS_MAX {
            let what = format!("node {} ({address}) exchanges messages and is no member: {why}", id.node_id);
            self.non_members.insert(id, (what, Instant::now()));
        }
    }

    /// What an operator should know of the nodes that are no members.
    pub fn non_members(&self) -> impl Iterator<Item = String> {
        let current = self.non_members.values().filter(|(_, last)| last.elapsed() < NON_MEMBER_TIME);
        current.map(|(what, _)| what.clone())
    }

    /// Where another process runs with a copy of this node's store under its node id, if a message lists it. This node
    /// must take a new store id: to the others both are one member, so the two may never meet.
    pub fn clone_address(&self, body: &SyncMessage, now_ms: u64) -> Option<String> {
        let is_clone = |(id, member): &&(MemberId, Member)| {
            *id == self.own.member_id()
                && is_plausible(member.incarnation_id, now_ms)
                && member.incarnation_id > self.own.incarnation_id
                && member.address != self.own.address
                && !member.is_forgotten()
        };
        let mut members = body.members.iter().filter(|_| !body.hello.is_guest);
        members.find(is_clone).map(|(_, member)| member.address.clone())
    }

    /// The peer that sent a request, if it is one of those that are asked. A guest is never asked.
    pub fn peer_of_sender(&mut self, hello: &Hello) -> Option<&mut Peer> {
        if hello.is_guest {
            return None;
        }
        let sender = hello.member_id();
        let addr = hello.address.parse::<Addr>().ok();
        let is_sender = |peer: &Peer| peer.member_id() == Some(sender);
        let is_rival = addr.as_ref().is_some_and(|addr| self.is_rival(sender, &hello.address, addr));
        let is_there = |peer: &Peer| peer.configured && !is_rival && Some(&peer.addr) == addr.as_ref();
        let number = self.number_of(is_sender).or_else(|| self.number_of(is_there))?;
        self.peers.get_mut(&number)
    }

    /// Drops what was said of logs, the longest first, while it is too much together. The next message says it again.
    pub fn bound_heads(&mut self) {
        let heads = |peer: &Peer| peer.vector.as_ref().map_or(0, Vector::origins);
        let mut sum: usize = self.peers().map(heads).sum();
        while sum > PEER_HEADS_MAX
            && let Some(longest) = self.peers.values_mut().max_by_key(|peer| heads(peer))
        {
            sum -= heads(longest);
            longest.vector = None;
        }
    }

    fn number_of(&self, test: impl Fn(&Peer) -> bool) -> Option<usize> {
        self.peers.iter().find(|(_, peer)| test(peer)).map(|(number, _)| *number)
    }

    /// A peer answered as this member. A configured peer that stood for the member and fails is reset: the member has
    /// moved. True if other peers are asked from now on.
    pub fn on_identified(&mut self, number: usize, hello: &Hello) -> bool {
        let member = hello.member_id();
        for (other, peer) in &mut self.peers {
            if *other != number && peer.configured && peer.error.is_some() && peer.member_id() == Some(member)
            {
                peer.reset();
            }
        }
        self.reconcile()
    }

    /// Adds, moves and removes learned peers until each member that must be asked has one, and presumes which member is
    /// at each configured address that has not answered yet. True if other peers are asked from now on.
    pub fn reconcile(&mut self) -> bool {
        let before = self.numbers();
        let wanted = self.members_to_ask();
        for (member, addr) in &wanted {
            let is_asked = |peer: &Peer| peer.expected_member == Some(*member);
            // The node has another store at the same address: the peer stays, and reports that.
            let is_replaced = |peer: &Peer| {
                peer.addr == *addr
                    && peer
                        .expected_member
                        .is_some_and(|of| of.node_id == member.node_id && !wanted.contains_key(&of))
            };
            let number =
                self.number_of(is_asked).or_else(|| self.number_of(is_replaced)).unwrap_or(self.next_number);
            self.next_number = self.next_number.max(number + 1);
            let added = || Peer::new(addr.clone(), false, Some(member.node_id));
            let peer = self.peers.entry(number).or_insert_with(added);
            peer.expected_member = Some(*member);
            if peer.addr != *addr {
                peer.addr = addr.clone();
                peer.wake.notify_one();
            }
        }
        self.peers.retain(|_, peer| peer.expected_member.is_none_or(|member| wanted.contains_key(&member)));
        let unanswered = self.peers.iter().filter(|(_, peer)| peer.configured && peer.incarnation.is_none());
        let presumed = unanswered.map(|(number, peer)| (*number, self.presumed_member(peer)));
        for (number, member) in presumed.collect::<Vec<_>>() {
            let peer = self.peers.get_mut(&number).expect("looked up just now");
            peer.node_id = member.map(|id| id.node_id).or(peer.expected_id);
            // If the member moves to another address, it is still known that it was here.
            peer.expected_id = peer.expected_id.or(peer.node_id);
        }
        before != self.numbers()
    }

    /// Which member is at a configured address while no node has answered there: the one that advertised this address.
    /// Of several, the one whose id is configured there, else the one that opened its store last.
    fn presumed_member(&self, peer: &Peer) -> Option<MemberId> {
        let addr = peer.addr.to_string();
        let is_there = |(id, member): &(MemberId, &Member)| {
            *id != self.own.member_id() && !member.is_forgotten() && member.address == addr
        };
        let rank = |(id, member): &(MemberId, &Member)| {
            (Some(id.node_id) == peer.expected_id, member.incarnation_id)
        };
        self.members.iter().filter(is_there).max_by_key(rank).map(|(id, _)| id)
    }

    /// Which member a peer is, as far as is known or presumed.
    fn member_of(&self, peer: &Peer) -> Option<MemberId> {
        peer.member_id().or_else(|| self.presumed_member(peer))
    }

    /// Members that no configured peer stands for, with their addresses.
    fn members_to_ask(&self) -> BTreeMap<MemberId, Addr> {
        let asked_at = |id: MemberId, member: &Member| {
            // A node with the id and the address of this one had another store before: it is not asked.
            let had_other_store = id.node_id == self.own.node_id && member.address == self.own.address;
            let is_here = id == self.own.member_id() || had_other_store;
            let addr = member.address.parse().ok().filter(|_| !is_here && !member.is_forgotten())?;
            (!self.is_covered(id, &addr)).then_some((id, addr))
        };
        self.members.iter().filter_map(|(id, member)| asked_at(id, member)).collect()
    }

    /// Whether a configured peer stands for this member.
    fn is_covered(&self, id: MemberId, addr: &Addr) -> bool {
        let covers = |peer: &Peer| match peer.member_id() {
            Some(of) => {
                let has_new_store = of.node_id == id.node_id && peer.addr == *addr;
                (of == id && peer.error.is_none()) || has_new_store
            }
            None => self.presumed_member(peer) == Some(id),
        };
        self.peers().any(|peer| peer.configured && !peer.is_self && covers(peer))
    }

    /// Peers that were not forgotten. One node may be among them under two addresses.
    pub fn visible(&self) -> impl Iterator<Item = &Peer> {
        self.peers().filter(|peer| !self.is_hidden(peer))
    }

    /// The peers as they count and are shown: each node once, preferably where it is up, and no forgotten one.
    pub fn nodes(&self) -> Vec<(usize, &Peer)> {
        self.numbered_nodes().into_iter().map(|(_, number, peer)| (number, peer)).collect()
    }

    /// The same, each with the member that it is, as far as is known or presumed.
    pub fn others(&self) -> Vec<(Option<MemberId>, &Peer)> {
        self.numbered_nodes().into_iter().map(|(member, _, peer)| (member, peer)).collect()
    }

    fn numbered_nodes(&self) -> Vec<(Option<MemberId>, usize, &Peer)> {
        let mut nodes: Vec<(Option<MemberId>, usize, &Peer)> = Vec::new();
        for (number, peer) in self.peers.iter().filter(|(_, peer)| !self.is_hidden(peer)) {
            let member = self.member_of(peer);
            let twin = member.and_then(|_| nodes.iter().position(|(of, ..)| *of == member));
            match twin {
                Some(at) if peer.state() == NodeState::Up => nodes[at] = (member, *number, peer),
                Some(_) => {}
                None => nodes.push((member, *number, peer)),
            }
        }
        nodes
    }

    fn is_hidden(&self, peer: &Peer) -> bool {
        if peer.is_self {
            return true;
        }
        if let Some(id) = self.member_of(peer) {
            return self.members.get(id).is_some_and(Member::is_forgotten);
        }
        // The node that is expected here is a member at another address, or was forgotten.
        let addr = peer.addr.to_string();
        let mut members = self.members.iter();
        members.any(|(id, member)| {
            peer.expected_id.map_or(member.address == addr, |node_id| id.node_id == node_id)
        })
    }

    /// How many nodes there are, this one included. A configured peer that never answered counts as one.
    pub fn node_count(&self) -> usize {
        let nodes = self.nodes();
        let ids = nodes.iter().filter_map(|(_, peer)| peer.node_id).chain([self.own.node_id]);
        let unidentified = nodes.iter().filter(|(_, peer)| peer.node_id.is_none()).count();
        ids.collect::<BTreeSet<_>>().len() + unidentified
    }

    /// Forgets all stores of a node that are not up.
    pub fn forget(&mut self, node_id: NodeId) -> ForgetOutcome {
        let of_node = self.members.iter().map(|(id, _)| id).filter(|id| id.node_id == node_id);
        let is_up = |id: &MemberId| {
            *id == self.own.member_id()
                || self.peers().any(|peer| peer.member_id() == Some(*id) && peer.state() == NodeState::Up)
        };
        let (up, away): (Vec<MemberId>, Vec<MemberId>) = of_node.partition(is_up);
        let mut marked = false;
        for id in &away {
            marked |= self.members.set_forgotten(*id, true);
        }
        self.reconcile();
        match (up.is_empty(), away.is_empty()) {
            (true, true) => ForgetOutcome::Unknown,
            (false, _) if !marked => ForgetOutcome::IsUp,
            _ => ForgetOutcome::Done,
        }
    }

    /// Node ids that several live nodes use, with their addresses.
    pub fn duplicate_ids(&self) -> Vec<(NodeId, Vec<String>)> {
        let mut up: BTreeMap<NodeId, Vec<String>> = BTreeMap::new();
        up.entry(self.own.node_id).or_default().push(self.own.address.clone());
        for (_, peer) in self.nodes() {
            if let (Some(id), NodeState::Up) = (peer.node_id, peer.state()) {
                up.entry(id).or_default().push(peer.addr.to_string());
            }
        }
        for addrs in up.values_mut() {
            addrs.sort(); // so that all nodes print the same warning, and it is shown once
        }
        up.into_iter().filter(|(_, addrs)| addrs.len() > 1).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::ids::{ChainHash, Origin};
    use crate::chain::kind::LogType;
    use crate::chain::vector::Head;
    use crate::node::incidents::Incidents;

    /// Later than all incarnations of these tests.
    const NOW: u64 = 1 << 47;

    fn hello(node_id: u16, store: u8, open: u8, port: u16) -> Hello {
        let address = format!("127.0.0.1:{port}");
        let (store_id, incarnation_id) = ([store; 16], [open; 16]);
        Hello { network: [0; 8], node_id, store_id, incarnation_id, address, is_guest: false }
    }

    fn message_from(hello: Hello) -> SyncMessage {
        SyncMessage::quiet(hello, [0; 16], 0)
    }

    fn configured(port: u16) -> config::ConfiguredPeer {
        config::ConfiguredPeer {
            node_id: None,
            addr: format!("127.0.0.1:{port}").parse().expect("an address"),
        }
    }

    fn shown(roster: &Roster) -> Vec<(Option<NodeId>, u16)> {
        let mut shown: Vec<_> =
            roster.nodes().into_iter().map(|(_, peer)| (peer.node_id, peer.addr.port())).collect();
        shown.sort_unstable();
        shown
    }

    #[test]
    fn a_member_at_a_configured_address_is_asked_once() {
        let mut roster = Roster::new(hello(0, 1, 1, 1), &[configured(2)], Membership::default());
        assert_eq!(
            (shown(&roster), roster.node_count()),
            (vec![(None, 2)], 2),
            "it never answered, and counts all the same"
        );
        assert!(roster.learn_members(&message_from(hello(7, 2, 1, 2)), NOW));
        assert_eq!((shown(&roster), roster.node_count()), (vec![(Some(7), 2)], 2));
        assert!(roster.learn_members(&message_from(hello(8, 3, 1, 3)), NOW), "it is a new member");
        assert!(!roster.learn_members(&message_from(hello(8, 3, 1, 3)), NOW));
        assert_eq!((shown(&roster), roster.numbers().len()), (vec![(Some(7), 2), (Some(8), 3)], 2));
    }

    #[test]
    fn a_configured_peer_that_moved_is_asked_at_both_addresses_and_shown_at_the_new_one() {
        let mut roster = Roster::new(hello(0, 1, 1, 1), &[configured(2)], Membership::default());
        let incidents = Incidents::default();
        roster.peer(0).expect("configured").on_message(
            &message_from(hello(7, 2, 1, 2)),
            None,
            &Vector::default(),
            &incidents,
        );
        roster.peer(0).expect("configured").error = Some("refused".into());
        let moved = hello(7, 2, 2, 9);
        roster.learn_members(&message_from(moved.clone()), NOW);
        let learned = *roster.numbers().last().expect("two");
        roster.peer(learned).expect("learned").on_message(
            &message_from(moved.clone()),
            None,
            &Vector::default(),
            &incidents,
        );
        roster.on_identified(learned, &moved);
        assert_eq!((shown(&roster), roster.numbers().len()), (vec![(Some(7), 9)], 2));
    }

    fn numbered(node_id: NodeId, port: u16) -> config::ConfiguredPeer {
        config::ConfiguredPeer { node_id: Some(node_id), ..configured(port) }
    }

    #[test]
    fn two_configured_nodes_that_swapped_their_addresses_are_shown_where_they_are() {
        let configured = [numbered(7, 2), numbered(8, 3)];
        let mut roster = Roster::new(hello(0, 1, 1, 1), &configured, Membership::default());
        assert_eq!((shown(&roster), roster.node_count()), (vec![(Some(7), 2), (Some(8), 3)], 3));
        roster.learn_members(&message_from(hello(7, 2, 1, 3)), NOW);
        roster.learn_members(&message_from(hello(8, 3, 1, 2)), NOW);
        assert_eq!((shown(&roster), roster.node_count()), (vec![(Some(7), 3), (Some(8), 2)], 3));
        assert_eq!(roster.numbers().len(), 2);
    }

    #[test]
    fn the_node_that_took_over_an_address_and_the_one_before_it_both_count() {
        let mut roster = Roster::new(hello(0, 1, 1, 1), &[configured(2)], Membership::default());
        roster.learn_members(&message_from(hello(7, 2, 1, 2)), NOW);
        roster.learn_members(&message_from(hello(8, 3, 2, 2)), NOW);
        assert_eq!((shown(&roster), roster.node_count()), (vec![(Some(7), 2), (Some(8), 2)], 3));
    }

    #[test]
    fn the_node_that_had_the_address_of_this_node_before_counts() {
        let mut roster = Roster::new(hello(0, 1, 2, 1), &[], Membership::default());
        roster.learn_members(&message_listing(hello(8, 3, 1, 1).member_id(), 1, 1), NOW);
        assert_eq!((shown(&roster), roster.node_count()), (vec![(Some(7), 2), (Some(8), 1)], 3));
        assert_eq!(roster.forget(8), ForgetOutcome::Done);
        assert_eq!((shown(&roster), roster.node_count()), (vec![(Some(7), 2)], 2));
    }

    fn restarted(roster: &Roster, configured: &[config::ConfiguredPeer]) -> Roster {
        Roster::new(hello(0, 1, 1, 1), configured, roster.membership())
    }

    #[test]
    fn a_node_that_moved_from_a_configured_address_is_known_after_a_restart() {
        let peers = [configured(2)];
        let mut roster = Roster::new(hello(0, 1, 1, 1), &peers, Membership::default());
        roster.learn_members(&message_from(hello(7, 2, 1, 2)), NOW);
        roster.learn_members(&message_from(hello(7, 2, 2, 9)), NOW);
        for _ in 0..2 {
            roster = restarted(&roster, &peers);
            assert_eq!((shown(&roster), roster.node_count()), (vec![(Some(7), 9)], 2));
        }
        roster.learn_members(&message_from(hello(8, 3, 1, 2)), NOW);
        roster = restarted(&roster, &peers);
        assert_eq!(
            (shown(&roster), roster.node_count()),
            (vec![(Some(7), 9), (Some(8), 2)], 3),
            "node 8 took over the address"
        );
        roster.learn_members(&message_from(hello(8, 3, 2, 4)), NOW);
        roster.forget(8);
        roster = restarted(&roster, &peers);
        assert_eq!(
            (shown(&roster), roster.node_count()),
            (vec![(Some(7), 9)], 2),
            "node 8 moved, too, and was forgotten"
        );
        roster.forget(7);
        assert_eq!((shown(&restarted(&roster, &peers)), roster.node_count()), (vec![], 1));
    }

    /// The configuration has a host name, the node itself tells an IP address.
    #[test]
    fn one_node_under_two_spellings_is_shown_once_after_a_restart() {
        let peers =
            [config::ConfiguredPeer { node_id: None, addr: "localhost:2".parse().expect("an address") }];
        let mut roster = Roster::new(hello(0, 1, 1, 1), &peers, Membership::default());
        roster.learn_members(&message_from(hello(7, 2, 1, 2)), NOW);
        roster.peer(0).expect("configured").on_message(
            &message_from(hello(7, 2, 1, 2)),
            None,
            &Vector::default(),
            &Incidents::default(),
        );
        roster.on_identified(0, &hello(7, 2, 1, 2));
        assert_eq!((shown(&roster), roster.node_count()), (vec![(Some(7), 2)], 2));
        roster = restarted(&roster, &peers);
        assert_eq!((shown(&roster), roster.node_count()), (vec![(Some(7), 2)], 2));
    }

    #[test]
    fn another_node_at_an_address_is_not_reported_as_a_new_store() {
        let mut roster = Roster::new(hello(0, 1, 1, 1), &[configured(2)], Membership::default());
        let incidents = Incidents::default();
        let mut spoke = |hello| {
            roster.peer(0).expect("configured").on_message(
                &message_from(hello),
                None,
                &Vector::default(),
                &incidents,
            )
        };
        spoke(hello(7, 2, 1, 2));
        spoke(hello(8, 3, 1, 2));
        assert_eq!(incidents.lines(), Vec::<String>::new());
        spoke(hello(8, 4, 1, 2));
        assert_eq!(incidents.lines().len(), 1);
    }

    #[test]
    fn a_forgotten_node_is_neither_asked_nor_shown_until_it_speaks_again() {
        let mut roster = Roster::new(hello(0, 1, 1, 1), &[], Membership::default());
        roster.learn_members(&message_from(hello(7, 2, 1, 2)), NOW);
        assert_eq!(roster.forget(0), ForgetOutcome::IsUp);
        assert_eq!(roster.forget(9), ForgetOutcome::Unknown);
        assert_eq!((roster.forget(7), roster.forget(7)), (ForgetOutcome::Done, ForgetOutcome::Done));
        assert_eq!((shown(&roster), roster.numbers().len(), roster.node_count()), (vec![], 0, 1));
        assert!(
            !roster.learn_members(&message_from(hello(7, 2, 1, 2)), NOW),
            "that incarnation is forgotten"
        );
        assert!(roster.learn_members(&message_from(hello(7, 2, 2, 2)), NOW));
        assert_eq!(shown(&roster), [(Some(7), 2)]);
    }

    fn message_listing(id: MemberId, open: u8, port: u16) -> SyncMessage {
        let member =
            Member { incarnation_id: [open; 16], forget_count: 0, address: format!("127.0.0.1:{port}") };
        SyncMessage { members: vec![(id, member)], ..message_from(hello(7, 2, 1, 2)) }
    }

    #[test]
    fn the_store_that_is_open_at_an_address_outranks_every_earlier_one() {
        let mut roster = Roster::new(hello(0, 1, 5, 1), &[], Membership::default());
        let before = hello(0, 9, 8, 1);
        roster.learn_members(&message_listing(before.member_id(), 4, 1), NOW);
        assert_eq!(roster.own(), &hello(0, 1, 5, 1), "it was opened before ours");
        roster.learn_members(&message_listing(hello(0, 6, 8, 2).member_id(), 8, 2), NOW);
        assert_eq!(roster.own(), &hello(0, 1, 5, 1), "it is at another address");
        assert!(roster.learn_members(&message_listing(before.member_id(), 8, 1), NOW));
        let later = roster.own().clone();
        assert!(later.incarnation_id > [8; 16] && roster.is_own(&later) && roster.is_own(&hello(0, 1, 5, 1)));
        assert_eq!(
            roster.members().get(later.member_id()).map(|member| member.incarnation_id),
            Some(later.incarnation_id)
        );
        assert_eq!(roster.members().get(before.member_id()), None);
        roster.learn_members(&message_listing(before.member_id(), 9, 1), NOW);
        assert_eq!(roster.own(), &later, "the other store may be alive: it is raised once in a while");
        assert!(
            shown(&roster).iter().all(|(_, port)| *port != 1),
            "the store before is not shown beside this node"
        );
    }

    #[test]
    fn a_store_that_others_claim_at_the_own_address_is_outranked_every_time() {
        let mut own = Roster::new(hello(0, 1, 5, 1), &[], Membership::default());
        let mut other = Roster::new(hello(8, 3, 1, 3), &[], Membership::default());
        let (id, mut now) = (own.own().member_id(), NOW);
        for store in 20..23_u8 {
            let mut invented = message_listing(hello(0, store, 5, 1).member_id(), store, 1);
            invented.members[0].1.forget_count = u16::from(store % 2);
            other.learn_members(&invented, now);
            assert_eq!(other.members().get(id), None, "it believes the later one");
            own.learn_members(&invented, now);
            assert!(own.members().get(id).is_some(), "no claim replaces the own store");
            now += RAISE_INTERVAL_MS;
            own.learn_members(&invented, now);
            other.learn_members(&message_from(own.own().clone()), now);
            assert!(other.members().get(id).is_some(), "store {store} is outranked");
        }
    }

    /// The clock was set to 2100 once. Peers ignore that incarnation, so the next one begins at the time of today.
    #[test]
    fn an_incarnation_that_is_not_believed_is_not_outranked() {
        let own = hello(0, 1, 5, 1);
        let row = |open: u8| Member { incarnation_id: [open; 16], ..member_record(&own) };
        let known = |open: u8| Members::from_iter([(own.member_id(), row(open))]);
        let last = |open: u8| last_incarnation_id(&known(open), own.member_id(), &own.address, CLOCK_SET_MS);
        assert_eq!((last(1), last(0xff)), (u128::from_be_bytes([1; 16]), 0));
        let membership = Membership { members: known(0xff), ..Membership::default() };
        let roster = Roster::new(own.clone(), &[], membership);
        assert_eq!(roster.members().get(own.member_id()), Some(&row(5)));
    }

    #[test]
    fn a_stored_incarnation_that_is_not_believed_any_more_is_replaced() {
        let ahead = Member { incarnation_id: [0xff; 16], ..member_record(&hello(7, 2, 1, 2)) };
        let members = Members::from_iter([
            (hello(7, 2, 1, 2).member_id(), ahead.clone()),
            (hello(8, 3, 1, 3).member_id(), Member { address: "127.0.0.1:3".into(), ..ahead }),
        ]);
        let mut roster = Roster::new(hello(0, 1, 1, 1), &[], Membership { members, ..Membership::default() });
        for after in [hello(7, 2, 1, 2), hello(8, 4, 1, 3)] {
            assert!(roster.learn_members(&message_from(after.clone()), CLOCK_SET_MS), "{after:?}");
            assert_eq!(roster.members().get(after.member_id()), Some(&member_record(&after)));
        }
        assert_eq!(roster.members().count(), 3);
    }

    #[test]
    fn a_restored_store_outranks_what_is_known_of_it() {
        let mut roster = Roster::new(hello(0, 1, 5, 1), &[], Membership::default());
        assert!(
            !roster.learn_members(&message_listing(hello(0, 1, 5, 1).member_id(), 5, 1), NOW)
                || roster.own().incarnation_id == [5; 16]
        );
        assert!(
            roster.learn_members(&message_listing(hello(0, 1, 5, 1).member_id(), 8, 1), NOW)
                && roster.own().incarnation_id > [8; 16]
        );
    }

    #[test]
    fn a_store_with_our_id_that_was_opened_later_elsewhere_is_a_clone() {
        let roster = Roster::new(hello(0, 1, 5, 1), &[], Membership::default());
        let own = hello(0, 1, 5, 1).member_id();
        assert_eq!(roster.clone_address(&message_listing(own, 6, 3), NOW), Some("127.0.0.1:3".into()));
        assert_eq!(roster.clone_address(&message_listing(own, 6, 1), NOW), None);
        assert_eq!(roster.clone_address(&message_listing(own, 4, 3), NOW), None, "ours was opened later");
        assert_eq!(roster.clone_address(&message_listing(hello(0, 2, 5, 1).member_id(), 6, 3), NOW), None);
    }

    #[test]
    fn a_running_node_that_was_forgotten_says_that_it_is_a_member() {
        let mut roster = Roster::new(hello(0, 1, 1, 1), &[], Membership::default());
        let mark = Member { incarnation_id: [1; 16], forget_count: 1, address: "127.0.0.1:1".into() };
        let members = vec![(hello(0, 1, 1, 1).member_id(), mark)];
        assert!(roster.learn_members(&SyncMessage { members, ..message_from(hello(7, 2, 1, 2)) }, NOW));
        let own = roster.members().get(hello(0, 1, 1, 1).member_id()).expect("a member");
        assert_eq!((own.forget_count, own.is_forgotten()), (2, false));
    }

    #[test]
    fn a_peer_cannot_make_a_node_ask_more_addresses_than_there_may_be_members() {
        let mut roster = Roster::new(hello(0, 1, 1, 1), &[], Membership::default());
        for port in 2..2_000 {
            roster.learn_members(&message_from(hello(port, 9, 1, port)), NOW);
        }
        assert_eq!(roster.numbers().len(), crate::chain::members::MEMBERS_MAX - 1);
    }

    /// Each message may name 65,536 logs, and each of 255 members may send one.
    #[test]
    fn the_heads_of_all_peers_together_are_bounded() {
        const LONG: usize = 1 << 16;
        let mut roster = Roster::new(hello(0, 1, 1, 1), &[], Membership::default());
        let vector = |count: usize| {
            let name = |n: usize| Origin((n as u128 + 1).to_be_bytes());
            let head = Head { seq: 1, hash: ChainHash([1; 32]) };
            let mut vector = Vector::default();
            (0..count).for_each(|n| vector.set_head(name(n), LogType::MESSAGES, head));
            vector
        };
        let (long, short) = (vector(LONG), vector(9));
        for port in 2..22 {
            roster.learn_members(&message_from(hello(port, 2, 1, port)), NOW);
            let number = *roster.numbers().last().expect("some");
            let vector = if port == 2 { &short } else { &long };
            roster.peer(number).expect("is asked").vector = Some(vector.clone());
            roster.bound_heads();
        }
        let mut kept: Vec<usize> =
            roster.peers().filter_map(|peer| Some(peer.vector.as_ref()?.origins())).collect();
        kept.sort_unstable();
        assert_eq!((kept[0], kept[1], kept.len()), (9, LONG, PEER_HEADS_MAX / LONG));
    }

    /// A message of node 7 that claims this of the store 1 of node 0.
    fn claim(incarnation_id: [u8; 16], forget_count: u16, port: u16) -> SyncMessage {
        let address = format!("127.0.0.1:{port}");
        let id = hello(0, 1, 1, 1).member_id();
        let members = vec![(id, Member { incarnation_id, forget_count, address })];
        SyncMessage { members, ..message_from(hello(7, 2, 1, 2)) }
    }

    #[test]
    fn no_claim_about_a_node_outranks_its_own_word_for_ever() {
        let mut own = Roster::new(hello(0, 1, 1, 1), &[], Membership::default());
        let mut other = Roster::new(hello(8, 3, 1, 3), &[], Membership::default());
        let id = own.own().member_id();
        let mut now = CLOCK_SET_MS;
        for round in 0..3_u64 {
            now += RAISE_INTERVAL_MS;
            // The largest that is believed.
            let largest = ((u128::from(now + AHEAD_MAX_MS) << 80) | (u128::MAX >> 48)).to_be_bytes();
            let claim = claim(largest, 1, 1);
            other.learn_members(&claim, now);
            assert!(other.members().get(id).is_some_and(Member::is_forgotten), "round {round}");
            assert!(own.learn_members(&claim, now), "it raises its own");
            assert!(own.own().incarnation_id > largest);
            now += 1;
            other.learn_members(&message_from(own.own().clone()), now);
            assert!(other.members().get(id).is_some_and(|member| !member.is_forgotten()), "round {round}");
        }
        now += RAISE_INTERVAL_MS;
        for roster in [&mut own, &mut other] {
            let before = roster.members().digest();
            roster.learn_members(&claim([0xff; 16], 1, 1), now);
            assert_eq!(roster.members().digest(), before, "it has not begun");
            assert_eq!(roster.clone_address(&claim([0xff; 16], 0, 9), now), None);
        }
    }

    #[test]
    fn a_mark_that_cannot_be_withdrawn_is_outranked_by_a_new_incarnation() {
        let mut own = Roster::new(hello(0, 1, 1, 1), &[], Membership::default());
        let id = own.own().member_id();
        own.learn_members(&claim([1; 16], u16::MAX, 1), NOW);
        assert!(own.own().incarnation_id > [1; 16]);
        assert!(own.members().get(id).is_some_and(|member| !member.is_forgotten()));
    }

    #[test]
    fn a_node_that_cannot_be_a_member_is_reported() {
        let mut roster = Roster::new(hello(0, 1, 1, 1), &[], Membership::default());
        let ahead = Hello { incarnation_id: [0xff; 16], ..hello(9, 4, 1, 4) };
        assert!(!roster.learn_members(&message_from(ahead), CLOCK_SET_MS));
        assert!(roster.non_members().next().is_some_and(|what| what.contains("node 9 (127.0.0.1:4)")));
        roster.learn_members(&message_from(hello(9, 4, 1, 4)), NOW);
        assert_eq!(roster.non_members().count(), 0);
        for node_id in 10..300 {
            roster.learn_members(&message_from(hello(node_id, 5, 1, node_id)), NOW);
        }
        assert_eq!((roster.members().count(), roster.non_members().count()), (256, NON_MEMBERS_MAX));
    }
}
