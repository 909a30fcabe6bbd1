//! Owns who the others are: the members of the network as this node knows them, and a peer for each address it asks.
//!
//! The configured addresses are always asked. A member is asked besides where its last word says it is, unless that is a
//! configured address or one of those has answered as it. What a member says of itself is the truth about it; what was
//! forgotten is neither asked nor shown. Numbers of peers are never used twice, so a task that outlives its peer meets nobody.

use std::collections::{BTreeMap, BTreeSet};

use crate::api::address::Addr;
use crate::api::network::{NodeId, NodeState};
use crate::chain::members;
use crate::chain::members::{LastSeenAt, Member, MemberId, Members, Membership};
use crate::chain::sync::wire::{Hello, SyncMessage};
use crate::config;
use crate::node::cluster::peer::Peer;

/// See the head of this file.
pub struct Roster {
    own: Hello,
    /// As which opening it began.
    first_open_id: [u8; 16],
    peers: BTreeMap<usize, Peer>,
    next_number: usize,
    members: Members,
}

fn member_record(hello: &Hello) -> Member {
    Member { open_id: hello.open_id, marks: 0, address: hello.address.clone() }
}

/// What came of forgetting a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForgetOutcome {
    /// It is forgotten, and may have been before.
    Done,
    /// It is up.
    IsUp,
    /// No member has that id.
    Unknown,
}

impl Roster {
    /// A book of the configured peers and of who was a member before. `own`: this node.
    pub fn new(
        own: Hello,
        configured: &[config::ConfiguredPeer],
        Membership { mut members, met }: Membership,
    ) -> Self {
        members.take(own.name(), member_record(&own));
        let peer = |peer: &config::ConfiguredPeer| {
            let was = || met.get(&peer.addr.to_string()).copied();
            Peer::new(peer.addr.clone(), true, peer.node_id.or_else(was))
        };
        let peers: BTreeMap<usize, Peer> = configured.iter().map(peer).enumerate().collect();
        let mut book = Roster { first_open_id: own.open_id, own, next_number: peers.len(), peers, members };
        book.reconcile();
        book
    }

    /// This node.
    pub fn own(&self) -> &Hello {
        &self.own
    }

    /// Whether this is the word of this very process.
    pub fn is_own(&self, hello: &Hello) -> bool {
        let now = if hello.open_id == self.first_open_id { self.own.open_id } else { hello.open_id };
        Hello { open_id: now, ..hello.clone() }.is_ours(&self.own)
    }

    /// All members, and marks of those that were forgotten.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// What outlives this process.
    pub fn membership(&self) -> Membership {
        let is_member = |id: NodeId| self.members.iter().any(|(name, _)| name.node_id == id);
        let met = |peer: &Peer| {
            let id = peer.node_id.filter(|id| peer.configured && is_member(*id))?;
            Some((peer.addr.to_string(), id))
        };
        let met: LastSeenAt = self.peers.values().filter_map(met).collect();
        Membership { members: self.members.clone(), met }
    }

    /// The peers that are asked.
    pub fn numbers(&self) -> BTreeSet<usize> {
        self.peers.keys().copied().collect()
    }

    /// One of them, if it still is.
    pub fn peer(&mut self, number: usize) -> Option<&mut Peer> {
        self.peers.get_mut(&number)
    }

    /// Whether this holds for any of them.
    pub fn any(&self, of: impl Fn(&Peer) -> bool) -> bool {
        self.peers.values().any(of)
    }

    /// Has all of them asked soon.
    pub fn wake_all(&self) {
        self.peers.values().for_each(|peer| peer.wake.notify_one());
    }

    /// Takes in what a peer says of itself and of others. Whether that is news of members.
    pub fn learn_members(&mut self, body: &SyncMessage) -> bool {
        let own = self.own.name();
        let said = body.members.iter().filter(|(name, _)| *name != own).cloned();
        let mut is_news = self.advance_own_open_id(body);
        for (name, member) in said.chain([(body.hello.name(), member_record(&body.hello))]) {
            let is_usable = name != own && member.address.parse::<Addr>().is_ok();
            is_news |= is_usable && self.members.take(name, member);
        }
        // Somebody had this very opening of ours forgotten.
        let marked = body.members.iter().find(|(name, of)| *name == own && of.open_id == self.own.open_id);
        if let Some((name, marked)) = marked {
            is_news |=
                self.members.take(*name, Member { address: self.own.address.clone(), ..marked.clone() });
            is_news |= self.members.mark(*name, false);
        }
        if is_news {
            self.reconcile();
        }
        is_news
    }

    /// Gives our opening a later name than one that somebody takes for the last at this place, where a clock was ahead or
    /// a store is put back. Once: two that both say they are here would go on for ever. Whether it has another name now.
    fn advance_own_open_id(&mut self, body: &SyncMessage) -> bool {
        let said = body.members.iter().filter(|(_, member)| member.address == self.own.address);
        let said = said.map(|(name, member)| (*name, member));
        let Some(last) = members::latest(said, self.own.name(), &self.own.address) else { return false };
        let next = u128::from_be_bytes(last).saturating_add(1).to_be_bytes();
        if self.own.open_id != self.first_open_id || last <= self.own.open_id || next == last {
            return false;
        }
        self.own.open_id = next;
        self.members.take(self.own.name(), member_record(&self.own))
    }

    /// Where a store with our name was opened later than ours, by what is said: it is a copy of ours, or ours of it.
    pub fn clone_address<'a>(&self, body: &'a SyncMessage) -> Option<&'a str> {
        let is_copy = |(name, member): &&(MemberId, Member)| {
            *name == self.own.name()
                && member.open_id > self.own.open_id
                && member.address != self.own.address
                && !member.is_forgotten()
        };
        body.members.iter().find(is_copy).map(|(_, member)| member.address.as_str())
    }

    /// The peer that speaks, if it is one of those that are asked.
    pub fn peer_of_sender(&mut self, hello: &Hello) -> Option<&mut Peer> {
        let who = hello.name();
        let addr = hello.address.parse::<Addr>().ok();
        let is_named = |peer: &Peer| peer.member_id() == Some(who);
        let is_there = |peer: &Peer| peer.configured && Some(&peer.addr) == addr.as_ref();
        let find = |test: &dyn Fn(&Peer) -> bool| {
            self.peers.iter().find(|(_, peer)| test(peer)).map(|(number, _)| *number)
        };
        let number = find(&is_named).or_else(|| find(&is_there))?;
        self.peers.get_mut(&number)
    }

    /// A peer answered as this store: no other one is needed for it, and where it was found before it is no longer.
    pub fn on_identified(&mut self, number: usize, hello: &Hello) {
        let who = hello.name();
        for (other, peer) in &mut self.peers {
            if *other != number && peer.configured && peer.error.is_some() && peer.member_id() == Some(who) {
                peer.reset();
            }
        }
        self.reconcile();
    }

    /// Makes the peers those that the members ask for.
    pub fn reconcile(&mut self) {
        let wanted: BTreeMap<MemberId, Addr> = self.members_to_ask();
        let learned: Vec<usize> =
            self.peers.iter().filter(|(_, peer)| !peer.configured).map(|(number, _)| *number).collect();
        for number in learned {
            let peer = &self.peers[&number];
            if peer.expected_member.is_some_and(|name| wanted.contains_key(&name)) {
                continue;
            }
            // Its node has another store at the same address: the peer stays, and notes it.
            let replaces = |(name, addr): &(&MemberId, &Addr)| {
                Some(name.node_id) == peer.expected_member.map(|name| name.node_id) && **addr == peer.addr
            };
            match wanted.iter().find(replaces).map(|(name, _)| *name) {
                Some(name) if !self.is_expected(name) => {
                    self.peers.get_mut(&number).expect("looked up just now").expected_member = Some(name);
                }
                _ => drop(self.peers.remove(&number)),
            }
        }
        for (name, addr) in wanted {
            let known = self.peers.values_mut().find(|peer| peer.expected_member == Some(name));
            match known {
                Some(peer) if peer.addr != addr => {
                    peer.addr = addr;
                    peer.wake.notify_one();
                }
                Some(_) => {}
                None => {
                    let peer =
                        Peer { expected_member: Some(name), ..Peer::new(addr, false, Some(name.node_id)) };
                    self.peers.insert(self.next_number, peer);
                    self.next_number += 1;
                }
            }
        }
        let presume = |(number, peer): (&usize, &Peer)| {
            let id = self.presumed_member(peer).map(|name| name.node_id).or(peer.expected_id);
            (peer.configured && peer.incarnation.is_none()).then_some((*number, id))
        };
        let presumed: Vec<_> = self.peers.iter().filter_map(presume).collect();
        for (number, node_id) in presumed {
            let peer = self.peers.get_mut(&number).expect("looked up just now");
            peer.node_id = node_id;
            peer.expected_id = peer.expected_id.or(node_id); // who moves on from here is known to have been here
        }
    }

    /// Which member is at a configured address, as long as nobody answered there: who says that it is, and of several the
    /// one that is configured there, else the last.
    fn presumed_member(&self, peer: &Peer) -> Option<MemberId> {
        if !peer.configured || peer.incarnation.is_some() {
            return None;
        }
        let addr = peer.addr.to_string();
        let is_there = |(name, member): &(MemberId, &Member)| {
            *name != self.own.name() && !member.is_forgotten() && member.address == addr
        };
        let rank =
            |(name, member): &(MemberId, &Member)| (Some(name.node_id) == peer.expected_id, member.open_id);
        self.members.iter().filter(is_there).max_by_key(rank).map(|(name, _)| name)
    }

    /// Which member a peer is, as far as is known or said.
    fn member_of(&self, peer: &Peer) -> Option<MemberId> {
        peer.member_id().or_else(|| self.presumed_member(peer))
    }

    fn is_expected(&self, name: MemberId) -> bool {
        self.peers.values().any(|peer| peer.expected_member == Some(name))
    }

    /// Members for which there is no configured peer, and where they are; one of them may have been where this node is now.
    fn members_to_ask(&self) -> BTreeMap<MemberId, Addr> {
        let is_here = |name: MemberId, member: &Member| {
            name == self.own.name()
                || (name.node_id == self.own.node_id && member.address == self.own.address)
        };
        let members = self.members.iter();
        let members = members.filter(|(name, member)| !is_here(*name, member) && !member.is_forgotten());
        let found = members.filter_map(|(name, member)| Some((name, member.address.parse::<Addr>().ok()?)));
        found.filter(|(name, addr)| !self.is_covered(*name, addr)).collect()
    }

    fn is_covered(&self, name: MemberId, addr: &Addr) -> bool {
        let covers = |peer: &Peer| match peer.member_id() {
            // The same node at the same address has another store now.
            Some(of) => {
                (of == name && peer.error.is_none()) || (of.node_id == name.node_id && peer.addr == *addr)
            }
            None => self.presumed_member(peer) == Some(name),
        };
        self.peers.values().any(|peer| peer.configured && !peer.is_self && covers(peer))
    }

    /// Peers that were not forgotten; a node may be among them under two addresses.
    pub fn visible(&self) -> impl Iterator<Item = &Peer> + '_ {
        self.peers.values().filter(|peer| !self.is_hidden(peer))
    }

    /// The peers as they count and are shown: each node once, and none that was forgotten.
    pub fn nodes(&self) -> Vec<(usize, &Peer)> {
        let mut rows: Vec<(Option<MemberId>, usize, &Peer)> = Vec::new();
        for (number, peer) in self.peers.iter().filter(|(_, peer)| !self.is_hidden(peer)) {
            let who = self.member_of(peer);
            let twin = who.and_then(|_| rows.iter().position(|(of, ..)| *of == who));
            match twin {
                Some(at) if peer.state() == NodeState::Up => rows[at] = (who, *number, peer),
                Some(_) => {}
                None => rows.push((who, *number, peer)),
            }
        }
        rows.into_iter().map(|(_, number, peer)| (number, peer)).collect()
    }

    fn is_hidden(&self, peer: &Peer) -> bool {
        if peer.is_self {
            return true;
        }
        if let Some(name) = self.member_of(peer) {
            return self.members.get(name).is_some_and(Member::is_forgotten);
        }
        // Who is to be there is known by another address, or was forgotten.
        let addr = peer.addr.to_string();
        let mut members = self.members.iter();
        members.any(|(name, member)| peer.expected_id.map_or(member.address == addr, |id| name.node_id == id))
    }

    /// How many nodes there are, this one included.
    pub fn node_count(&self) -> usize {
        let mut ids = BTreeSet::from([self.own.node_id]);
        let mut unmet = 0;
        for (_, peer) in self.nodes() {
            match peer.node_id {
                Some(id) => drop(ids.insert(id)),
                None => unmet += 1,
            }
        }
        ids.len() + unmet
    }

    /// Forgets a node, but no store of it that is up.
    pub fn forget(&mut self, node_id: NodeId) -> ForgetOutcome {
        let of_node: Vec<MemberId> =
            self.members.iter().map(|(name, _)| name).filter(|name| name.node_id == node_id).collect();
        let is_up = |name: &MemberId| {
            let mut peers = self.peers.values();
            *name == self.own.name()
                || peers.any(|peer| peer.member_id() == Some(*name) && peer.state() == NodeState::Up)
        };
        let (up, away): (Vec<MemberId>, Vec<MemberId>) = of_node.into_iter().partition(is_up);
        let mut marked = false;
        for name in &away {
            marked |= self.members.mark(*name, true);
        }
        self.reconcile();
        match (up.is_empty(), away.is_empty()) {
            (true, true) => ForgetOutcome::Unknown,
            (false, _) if !marked => ForgetOutcome::IsUp,
            _ => ForgetOutcome::Done,
        }
    }

    /// Live nodes that share a number, with where they are.
    pub fn duplicate_ids(&self) -> Vec<(NodeId, Vec<String>)> {
        let mut up: BTreeMap<NodeId, Vec<String>> = BTreeMap::new();
        up.entry(self.own.node_id).or_default().push(self.own.address.clone());
        for (_, peer) in self.nodes() {
            if let (Some(id), NodeState::Up) = (peer.node_id, peer.state()) {
                up.entry(id).or_default().push(peer.addr.to_string());
            }
        }
        for addrs in up.values_mut() {
            addrs.sort(); // all say it in the same words
        }
        up.into_iter().filter(|(_, addrs)| addrs.len() > 1).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::incidents::Incidents;

    fn hello(node_id: u16, store: u8, open: u8, port: u16) -> Hello {
        let address = format!("127.0.0.1:{port}");
        Hello { network: [0; 8], node_id, store_id: [store; 16], open_id: [open; 16], address }
    }

    fn speaks(hello: Hello) -> SyncMessage {
        SyncMessage::quiet(hello, [0; 16])
    }

    fn configured(port: u16) -> config::ConfiguredPeer {
        config::ConfiguredPeer {
            node_id: None,
            addr: format!("127.0.0.1:{port}").parse().expect("an address"),
        }
    }

    fn shown(book: &Roster) -> Vec<(Option<NodeId>, u16)> {
        let mut shown: Vec<_> =
            book.nodes().into_iter().map(|(_, peer)| (peer.node_id, peer.addr.port())).collect();
        shown.sort_unstable();
        shown
    }

    #[test]
    fn a_member_at_a_configured_address_is_asked_once() {
        let mut book = Roster::new(hello(0, 1, 1, 1), &[configured(2)], Membership::default());
        assert_eq!((shown(&book), book.node_count()), (vec![(None, 2)], 2), "it never answered, and counts");
        assert!(book.learn_members(&speaks(hello(7, 2, 1, 2))));
        assert_eq!((shown(&book), book.node_count()), (vec![(Some(7), 2)], 2));
        assert!(book.learn_members(&speaks(hello(8, 3, 1, 3))), "nobody configured it");
        assert!(!book.learn_members(&speaks(hello(8, 3, 1, 3))));
        assert_eq!((shown(&book), book.numbers().len()), (vec![(Some(7), 2), (Some(8), 3)], 2));
    }

    #[test]
    fn a_configured_peer_that_moved_is_asked_at_both_addresses_and_shown_at_the_new_one() {
        let mut book = Roster::new(hello(0, 1, 1, 1), &[configured(2)], Membership::default());
        let notes = Incidents::default();
        book.peer(0).expect("configured").on_message(&speaks(hello(7, 2, 1, 2)), None, &notes);
        book.peer(0).expect("configured").error = Some("refused".into());
        let moved = hello(7, 2, 2, 9);
        book.learn_members(&speaks(moved.clone()));
        let learned = *book.numbers().last().expect("two");
        book.peer(learned).expect("learned").on_message(&speaks(moved.clone()), None, &notes);
        book.on_identified(learned, &moved);
        assert_eq!((shown(&book), book.numbers().len()), (vec![(Some(7), 9)], 2));
    }

    fn numbered(node_id: NodeId, port: u16) -> config::ConfiguredPeer {
        config::ConfiguredPeer { node_id: Some(node_id), ..configured(port) }
    }

    #[test]
    fn two_configured_nodes_that_swapped_their_addresses_are_shown_where_they_are() {
        let configured = [numbered(7, 2), numbered(8, 3)];
        let mut book = Roster::new(hello(0, 1, 1, 1), &configured, Membership::default());
        assert_eq!((shown(&book), book.node_count()), (vec![(Some(7), 2), (Some(8), 3)], 3));
        book.learn_members(&speaks(hello(7, 2, 1, 3)));
        book.learn_members(&speaks(hello(8, 3, 1, 2)));
        assert_eq!((shown(&book), book.node_count()), (vec![(Some(7), 3), (Some(8), 2)], 3));
        assert_eq!(book.numbers().len(), 2);
    }

    #[test]
    fn who_took_over_an_address_and_who_had_it_before_both_count() {
        let mut book = Roster::new(hello(0, 1, 1, 1), &[configured(2)], Membership::default());
        book.learn_members(&speaks(hello(7, 2, 1, 2)));
        book.learn_members(&speaks(hello(8, 3, 2, 2)));
        assert_eq!((shown(&book), book.node_count()), (vec![(Some(7), 2), (Some(8), 2)], 3));
    }

    #[test]
    fn who_had_the_address_of_this_node_before_counts() {
        let mut book = Roster::new(hello(0, 1, 2, 1), &[], Membership::default());
        book.learn_members(&tells(hello(8, 3, 1, 1).name(), 1, 1));
        assert_eq!((shown(&book), book.node_count()), (vec![(Some(7), 2), (Some(8), 1)], 3));
        assert_eq!(book.forget(8), ForgetOutcome::Done);
        assert_eq!((shown(&book), book.node_count()), (vec![(Some(7), 2)], 2));
    }

    fn restarted(book: &Roster, configured: &[config::ConfiguredPeer]) -> Roster {
        Roster::new(hello(0, 1, 1, 1), configured, book.membership())
    }

    #[test]
    fn who_moved_from_a_configured_address_is_known_after_a_restart() {
        let peers = [configured(2)];
        let mut book = Roster::new(hello(0, 1, 1, 1), &peers, Membership::default());
        book.learn_members(&speaks(hello(7, 2, 1, 2)));
        book.learn_members(&speaks(hello(7, 2, 2, 9)));
        for _ in 0..2 {
            book = restarted(&book, &peers);
            assert_eq!((shown(&book), book.node_count()), (vec![(Some(7), 9)], 2));
        }
        book.learn_members(&speaks(hello(8, 3, 1, 2)));
        book = restarted(&book, &peers);
        assert_eq!(
            (shown(&book), book.node_count()),
            (vec![(Some(7), 9), (Some(8), 2)], 3),
            "it took over there"
        );
        book.learn_members(&speaks(hello(8, 3, 2, 4)));
        book.forget(8);
        book = restarted(&book, &peers);
        assert_eq!(
            (shown(&book), book.node_count()),
            (vec![(Some(7), 9)], 2),
            "it moved, too, and was forgotten"
        );
        book.forget(7);
        assert_eq!((shown(&restarted(&book, &peers)), book.node_count()), (vec![], 1));
    }

    /// Under the name of a machine, where the node itself says a number.
    #[test]
    fn one_node_under_two_spellings_is_shown_once_after_a_restart() {
        let peers =
            [config::ConfiguredPeer { node_id: None, addr: "localhost:2".parse().expect("an address") }];
        let mut book = Roster::new(hello(0, 1, 1, 1), &peers, Membership::default());
        book.learn_members(&speaks(hello(7, 2, 1, 2)));
        book.peer(0).expect("configured").on_message(&speaks(hello(7, 2, 1, 2)), None, &Incidents::default());
        book.on_identified(0, &hello(7, 2, 1, 2));
        assert_eq!((shown(&book), book.node_count()), (vec![(Some(7), 2)], 2));
        book = restarted(&book, &peers);
        assert_eq!((shown(&book), book.node_count()), (vec![(Some(7), 2)], 2));
    }

    #[test]
    fn another_node_at_an_address_is_no_other_store_of_the_one_before_it() {
        let mut book = Roster::new(hello(0, 1, 1, 1), &[configured(2)], Membership::default());
        let notes = Incidents::default();
        let mut spoke = |hello| book.peer(0).expect("configured").on_message(&speaks(hello), None, &notes);
        spoke(hello(7, 2, 1, 2));
        spoke(hello(8, 3, 1, 2));
        assert_eq!(notes.lines(), Vec::<String>::new());
        spoke(hello(8, 4, 1, 2));
        assert_eq!(notes.lines().len(), 1);
    }

    #[test]
    fn a_forgotten_node_is_neither_asked_nor_shown_until_it_speaks_again() {
        let mut book = Roster::new(hello(0, 1, 1, 1), &[], Membership::default());
        book.learn_members(&speaks(hello(7, 2, 1, 2)));
        assert_eq!(book.forget(0), ForgetOutcome::IsUp);
        assert_eq!(book.forget(9), ForgetOutcome::Unknown);
        assert_eq!((book.forget(7), book.forget(7)), (ForgetOutcome::Done, ForgetOutcome::Done));
        assert_eq!((shown(&book), book.numbers().len(), book.node_count()), (vec![], 0, 1));
        assert!(!book.learn_members(&speaks(hello(7, 2, 1, 2))), "that opening is forgotten");
        assert!(book.learn_members(&speaks(hello(7, 2, 2, 2))));
        assert_eq!(shown(&book), [(Some(7), 2)]);
    }

    fn tells(name: MemberId, open: u8, port: u16) -> SyncMessage {
        let member = Member { open_id: [open; 16], marks: 0, address: format!("127.0.0.1:{port}") };
        SyncMessage { members: vec![(name, member)], ..speaks(hello(7, 2, 1, 2)) }
    }

    #[test]
    fn whoever_is_there_comes_after_every_other_store_that_was() {
        let mut book = Roster::new(hello(0, 1, 5, 1), &[], Membership::default());
        let before = hello(0, 9, 8, 1);
        book.learn_members(&tells(before.name(), 4, 1));
        assert_eq!(book.own(), &hello(0, 1, 5, 1), "it was opened before ours");
        book.learn_members(&tells(hello(0, 6, 8, 2).name(), 8, 2));
        assert_eq!(book.own(), &hello(0, 1, 5, 1), "it is elsewhere");
        assert!(book.learn_members(&tells(before.name(), 8, 1)));
        let later = book.own().clone();
        assert!(later.open_id > [8; 16] && book.is_own(&later) && book.is_own(&hello(0, 1, 5, 1)));
        assert_eq!(book.members().get(later.name()).map(|member| member.open_id), Some(later.open_id));
        assert_eq!(book.members().get(before.name()), None);
        book.learn_members(&tells(before.name(), 9, 1));
        assert_eq!(book.own(), &later, "it says so again, so it is alive, and we would never come to an end");
        assert!(shown(&book).iter().all(|(_, port)| *port != 1), "and it is not shown beside us");
    }

    #[test]
    fn a_store_that_was_put_back_comes_after_what_is_known_of_it() {
        let mut book = Roster::new(hello(0, 1, 5, 1), &[], Membership::default());
        assert!(!book.learn_members(&tells(hello(0, 1, 5, 1).name(), 5, 1)) || book.own().open_id == [5; 16]);
        assert!(book.learn_members(&tells(hello(0, 1, 5, 1).name(), 8, 1)) && book.own().open_id > [8; 16]);
    }

    #[test]
    fn a_store_of_our_name_that_was_opened_later_elsewhere_is_a_copy() {
        let book = Roster::new(hello(0, 1, 5, 1), &[], Membership::default());
        let own = hello(0, 1, 5, 1).name();
        assert_eq!(book.clone_address(&tells(own, 6, 3)), Some("127.0.0.1:3"));
        assert_eq!(book.clone_address(&tells(own, 6, 1)), None);
        assert_eq!(book.clone_address(&tells(own, 4, 3)), None, "ours was there before");
        assert_eq!(book.clone_address(&tells(hello(0, 2, 5, 1).name(), 6, 3)), None);
    }

    #[test]
    fn who_is_said_to_be_forgotten_says_that_it_is_there() {
        let mut book = Roster::new(hello(0, 1, 1, 1), &[], Membership::default());
        let mark = Member { open_id: [1; 16], marks: 1, address: "127.0.0.1:1".into() };
        let members = vec![(hello(0, 1, 1, 1).name(), mark)];
        assert!(book.learn_members(&SyncMessage { members, ..speaks(hello(7, 2, 1, 2)) }));
        let own = book.members().get(hello(0, 1, 1, 1).name()).expect("a member");
        assert_eq!((own.marks, own.is_forgotten()), (2, false));
    }

    #[test]
    fn nobody_makes_us_ask_more_addresses_than_there_may_be_members() {
        let mut book = Roster::new(hello(0, 1, 1, 1), &[], Membership::default());
        for port in 2..2_000 {
            book.learn_members(&speaks(hello(port, 9, 1, port)));
        }
        assert_eq!(book.numbers().len(), crate::chain::members::MEMBERS_MAX - 1);
    }
}
