//! Owns side pushes: entries of a node's own log, sent while an exchange of the link is under way. They overtake the
//! exchange's messages or come late, twice, or not at all.

use chatchain::chain::sync::wire::{EntryRange, Heads, SyncMessage};
use chatchain::chain::vector::LogSpan;
use chatchain::replica::runs::{self, Wanted};

use super::network::Packet;
use super::{Event, World};

/// Bytes of records in one side push.
const BYTES_MAX: usize = 4_000;

impl World {
    pub(super) fn begin_side_push(&mut self, node: usize, peer: usize) {
        let (now, exchange) = (self.now, self.next_exchange());
        let run = self.machines[node].up.as_mut().expect("is up");
        let (logs, link) = (run.committer.logs().clone(), &mut run.links[peer]);
        let (Some(origin), Some(theirs)) = (logs.own(), run.roster.borrow().peers[peer].theirs.clone())
        else {
            return;
        };
        let (first, last) = (theirs.seq(origin) + 1, logs.vector().seq(origin));
        if first > last || link.side_push.is_some() {
            return;
        }
        let wanted = Wanted::by_peer(EntryRange { origin, first, last });
        let read = match runs::read(&run.store, &logs, &[wanted], BYTES_MAX, || true) {
            Ok(read) => read,
            Err(error) => return self.storage_fails(node, &error.to_string()),
        };
        link.side_push = Some(exchange);
        let mut request = SyncMessage::quiet(run.hello.clone(), [0; 16], now);
        (request.entries_only, request.runs) = (true, read.runs);
        let incarnation = self.machines[node].incarnations;
        self.machines[node].advertised = logs.vector().clone();
        let patience = self.patience_ms(node, peer);
        self.after(patience, Event::Fails { node, incarnation, peer, exchange, why: "no answer" });
        self.say(format!("node {node} pushes aside to node {peer}: entries {first}..={last}"));
        let bytes = request.encode().into();
        self.send_packet(Packet { bytes, ..Packet::request(node, peer, exchange, now) });
    }

    pub(super) fn side_push_arrives(&mut self, packet: &Packet, request: &SyncMessage) {
        let (node, peer, now) = (packet.to, packet.from, self.now);
        let Some(admitted) = self.admit_runs(node, None, &request.runs) else { return };
        self.say_refused(node, peer, &admitted);
        if admitted.iter().any(|(_, admitted)| admitted.not_stored.is_some()) {
            return;
        }
        let run = self.machines[node].up.as_mut().expect("is up");
        let logs = run.committer.logs().clone();
        let span_here = |origin| logs.vector().get(origin).map(|span| (origin, *span));
        let heads = request.runs.iter().map(|run| (run.origin, run.after()));
        let has: Vec<_> = heads
            .filter_map(|(origin, head)| Some((origin, LogSpan { head, ..span_here(origin)?.1 })))
            .collect();
        let mut roster = run.roster.borrow_mut();
        let at = roster.index_of(request);
        let opening = (request.hello.store_id, request.hello.incarnation_id);
        roster.peers[at].heard = Some(now);
        roster.peers[at].has(opening, packet.said, has);
        drop(roster);
        let changes = request.runs.iter().filter_map(|run| span_here(run.origin)).collect();
        let mut reply = SyncMessage::quiet(run.hello.clone(), [0; 16], now);
        (reply.entries_only, reply.heads) = (true, Some(Heads { base: None, changes, cuts: Vec::new() }));
        self.machines[node].advertised = logs.vector().clone();
        let (bytes, exchange) = (reply.encode().into(), packet.exchange);
        self.send_packet(Packet { bytes, is_reply: true, ..Packet::request(node, peer, exchange, now) });
    }

    pub(super) fn side_push_is_answered(&mut self, packet: &Packet) {
        let run = self.machines[packet.to].up.as_mut().expect("is up");
        run.links[packet.from].side_push = None;
        let Ok(reply) = SyncMessage::decode(&packet.bytes) else { return }; // cut off
        let opening = (reply.hello.store_id, reply.hello.incarnation_id);
        let spans = reply.heads.map_or_else(Vec::new, |heads| heads.changes);
        run.roster.borrow_mut().peers[packet.from].has(opening, packet.said, spans);
    }
}
