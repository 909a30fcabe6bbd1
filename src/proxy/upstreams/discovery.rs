//! Owns what nodes say of themselves and of others: who there is besides those configured, and who lacks messages.
//!
//! Pure, as all of `upstreams`. Nodes are asked for their word in rounds. A learned upstream is set aside until a probe finds
//! it; configured ones are never dropped. Nobody becomes an upstream twice, under whatever address.

use std::{collections::BTreeMap, time::Duration};

use tracing::info;

use super::{Health, Upstream, Upstreams};
use crate::api::{
    address::Addr,
    network::{NodeId, NodeState, NodeStatus},
};

/// Between two rounds where nothing changes: so late may a new node be found.
const ROUND_EVERY: Duration = Duration::from_secs(5);
/// Between two rounds while a node lacks something, or has just come back.
const ROUND_SOON: Duration = Duration::from_secs(1);
/// Further nodes are not learned: a network is a handful of nodes, and one that names more is mistaken.
const LEARNED_MAX: usize = 64;
/// A learned upstream that does not answer, and that nobody has named for so long, is dropped.
const FORGET_AFTER: Duration = Duration::from_secs(300);

/// What an upstream said of itself, and what was concluded from it.
#[derive(Debug)]
pub(super) struct StatusReport {
    /// Learned; when it was named last.
    learned: Option<Duration>,
    said: Option<(NodeId, Addr)>,
    /// It lacks messages, or some of its own are damaged: reads are better elsewhere.
    pub(super) is_behind: bool,
    /// It is new or came back: its word should be heard soon.
    pub(super) is_asked_for: bool,
}

impl Default for StatusReport {
    fn default() -> Self {
        Self { learned: None, said: None, is_behind: false, is_asked_for: true }
    }
}

/// The rounds.
#[derive(Debug, Default)]
pub(super) struct DiscoveryRounds {
    at: Duration,
    /// The most messages that any node had in the last round. Who has fewer now lacks something that is not new.
    most: u64,
}

impl Upstreams {
    /// Whose word should be heard now; none if no round is due.
    pub(in crate::proxy) fn take_round(&mut self, now: Duration) -> Vec<(usize, Addr)> {
        let is_pressing = |word: &StatusReport| word.is_behind || word.is_asked_for;
        let soon = self.all.values().any(|upstream| is_pressing(&upstream.word));
        let pause = if soon { ROUND_SOON } else { ROUND_EVERY };
        let up = self.all.iter_mut().filter(|(_, upstream)| upstream.health == Health::Up);
        let mut asked: Vec<_> = up.map(|(place, upstream)| (*place, upstream.addr.clone())).collect();
        if now < self.round.at + pause {
            asked.clear();
        } else if !asked.is_empty() {
            self.round.at = now;
            self.all.values_mut().for_each(|upstream| upstream.word.is_asked_for = false);
        }
        asked
    }

    /// What they said in one round.
    pub(in crate::proxy) fn heard(&mut self, now: Duration, words: &[(usize, NodeStatus)]) {
        for (place, word) in words {
            let Some(upstream) = self.all.get_mut(place) else { continue };
            upstream.word.said = Some((word.node_id, word.address.clone()));
            upstream.word.is_behind = word.messages < self.round.most || word.damaged > 0;
        }
        self.round.most = words.iter().map(|(_, word)| word.messages).max().unwrap_or_default();
        self.drop_doubles();
        for peer in words.iter().flat_map(|(_, word)| &word.peers) {
            let known = self.all.values_mut().find(|upstream| upstream.addr == peer.address);
            match (known, peer.node_id) {
                (Some(known), _) => {
                    known.word.learned = known.word.learned.map(|_| now);
                }
                (None, Some(id)) if peer.state == NodeState::Up => self.learn(now, id, &peer.address),
                (None, _) => {}
            }
        }
        let is_over = |upstream: &Upstream| {
            let named = upstream.word.learned;
            upstream.is_gone() && named.is_some_and(|named| now.saturating_sub(named) > FORGET_AFTER)
        };
        self.all.retain(|_, upstream| !is_over(upstream));
    }

    fn learn(&mut self, now: Duration, id: NodeId, addr: &Addr) {
        let is_same = |upstream: &Upstream| {
            let said = upstream.word.said.as_ref();
            said.is_some_and(|(said, own)| own == addr || *said == id && !upstream.is_gone())
        };
        let learned = self.all.values().filter(|upstream| upstream.word.learned.is_some()).count();
        let is_nowhere = addr.is_wildcard() || addr.port() == 0 || *addr == self.own;
        if is_nowhere || learned >= LEARNED_MAX || self.all.values().any(is_same) {
            return;
        }
        info!(node = %addr, "learned of a node");
        let mut upstream = Upstream::new(addr.clone(), Health::Aside { since: now });
        upstream.word.learned = Some(now);
        self.all.insert(self.next_place, upstream);
        self.next_place += 1;
    }

    /// A learned one that turns out to be a node which answers under another address as well, or has moved there.
    fn drop_doubles(&mut self) {
        let mut answers: BTreeMap<NodeId, usize> = BTreeMap::new();
        for (place, upstream) in self.all.iter().filter(|(_, upstream)| !upstream.is_gone()) {
            if let Some((id, _)) = upstream.word.said {
                answers.entry(id).or_insert(*place);
            }
        }
        self.all.retain(|place, upstream| match &upstream.word.said {
            Some((id, _)) if upstream.word.learned.is_some() => {
                answers.get(id).is_none_or(|other| other == place)
            }
            _ => true,
        });
    }
}
