//! Owns the network between machines, which loses, delays and duplicates packets, and both sides of every exchange.
//!
//! Works as the exchanges of a real node: a link starts an exchange because of its timer, a change, or a message of the
//! peer; it reads, sends a request, and carries out the actions that the answer requires. A request is admitted and
//! answered in two events, between which other events happen, as between threads.

use std::cell::Cell;

use bytes::Bytes;
use chatchain::chain::ids::Origin;
use chatchain::chain::sync::wire::{Run, SyncDecoder, SyncMessage};
use chatchain::chain::sync::{NextExchange, Responder};
use chatchain::chain::vector::Vector;
use chatchain::replica::exchange::{self, PlannedRequest, Reply, Trigger};
use chatchain::replica::repair::{AskedIn, PeerAnswer};
use chatchain::replica::write_ops::{Admitted, Maintenance, PeerRecords};
use chatchain::replica::{forks, pace, runs};

use super::link_quality::{HalfOpen, LinkQuality, SILENCE_MS};
use super::machine::Pause;
use super::node::member;
use super::{Event, World, index};

const IDLE_ROUNDS_MAX: u32 = 8;
const BACK_OFF_MIN_MS: u64 = 250;
const BACK_OFF_MAX_MS: u64 = 30_000;

/// Which machines can reach each other, and the quality of the network.
pub struct Network {
    blocked: Vec<Vec<bool>>,
    qualities: Vec<Vec<LinkQuality>>,
    /// Packets lost, per thousand; as many are duplicated.
    pub loss: u64,
    pub delay_ms: u64,
    exchanges: u64,
}

impl Network {
    pub fn new(machines: usize, loss: u64, delay_ms: u64) -> Self {
        let blocked = vec![vec![false; machines]; machines];
        let qualities = vec![vec![LinkQuality::default(); machines]; machines];
        Network { blocked, qualities, loss, delay_ms, exchanges: 0 }
    }

    pub fn block(&mut self, from: usize, to: usize) {
        self.blocked[from][to] = true;
    }

    pub fn join(&mut self, one: usize, other: usize) {
        (self.blocked[one][other], self.blocked[other][one]) = (false, false);
    }

    pub fn set_quality(&mut self, from: usize, to: usize, quality: LinkQuality) {
        self.qualities[from][to] = quality;
    }

    pub fn join_all(&mut self) {
        self.blocked.iter_mut().flatten().for_each(|blocked| *blocked = false);
        self.qualities.iter_mut().flatten().for_each(|quality| *quality = LinkQuality::default());
    }

    pub fn calm(&mut self) {
        self.join_all();
        (self.loss, self.delay_ms) = (0, 20);
    }
}

/// A request or an answer in transit.
pub struct Packet {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) exchange: u64,
    pub(super) bytes: Bytes,
    /// When it was sent.
    pub(super) said: u64,
    pub(super) is_reply: bool,
    /// An answer with an error.
    pub(super) is_refusal: bool,
    /// The connection was reset after these bytes of a longer message.
    pub(super) is_part: bool,
}

impl Packet {
    /// A request, without its bytes.
    pub(super) fn request(from: usize, to: usize, exchange: u64, said: u64) -> Self {
        Packet {
            from,
            to,
            exchange,
            bytes: Bytes::new(),
            said,
            is_reply: false,
            is_refusal: false,
            is_part: false,
        }
    }
}

/// A request that was admitted and is not answered yet.
pub struct Answering {
    packet: Packet,
    request: SyncMessage,
    responder: Responder,
    refused: bool,
}

/// What can be used of an answer that was cut off: its head and the runs that came whole. `None`: no run did.
fn decode_part(bytes: &[u8]) -> Option<SyncMessage> {
    let (mut decoder, mut runs) = (SyncDecoder::default(), Vec::new());
    decoder.push(bytes);
    while let Some(run) = decoder.next_run().expect("bytes are not damaged on the way") {
        runs.push(run);
    }
    let head = decoder.head().ok().filter(|_| !runs.is_empty())?;
    Some(SyncMessage { runs, ..head })
}

impl World {
    pub(super) fn send_packet(&mut self, mut packet: Packet) {
        let (from, to, exchange) = (packet.from, packet.to, packet.exchange);
        let asker = if packet.is_reply { to } else { from };
        let other = if packet.is_reply { from } else { to };
        let incarnation = self.machines[asker].incarnations;
        let fails = |why| Event::Fails { node: asker, incarnation, peer: other, exchange, why };
        if self.network.blocked[from][to] || self.below(1_000) < self.network.loss {
            return; // the initiator times out later
        }
        match self.network.qualities[asker][other].half_open {
            Some(HalfOpen::Swallowed) => return,
            Some(HalfOpen::Unanswered) if packet.is_reply => return,
            _ => {}
        }
        if !packet.is_reply && self.machines[to].up.is_none() && !self.is_bad(to) {
            return self.after(1, fails("refused"));
        }
        let carried = self.network.qualities[from][to].carry(packet.bytes.len() as u64);
        let mut delay = 1 + self.below(self.network.delay_ms) + carried.ms;
        if carried.bytes < packet.bytes.len() as u64 {
            packet.bytes.truncate(index(carried.bytes));
            packet.is_part = true;
            self.after(delay, Event::Packet(packet)); // before the reset
            return self.after(delay, fails("the connection was reset"));
        }
        if !self.calm && self.dice.one_in(200) {
            delay += self.below(2 * SILENCE_MS); // arrives after the initiator's timeout
        }
        if self.below(1_000) < self.network.loss && !packet.is_reply {
            let (bytes, said) = (packet.bytes.clone(), packet.said);
            let again = Packet { bytes, ..Packet::request(from, to, exchange, said) };
            let later = delay + self.below(3_000);
            self.after(later, Event::Packet(again));
        }
        self.after(delay, Event::Packet(packet));
    }

    pub(super) fn arrives(&mut self, packet: Packet) {
        if self.is_bad(packet.to) {
            return self.bad_peer_hears(packet);
        }
        if self.machines[packet.to].up.is_none() || (packet.is_part && !packet.is_reply) {
            return; // a request is decoded whole
        }
        if packet.is_reply { self.reply_arrives(&packet) } else { self.request_arrives(packet) }
    }

    /// The link is idle: schedules its next exchange.
    fn wait(&mut self, node: usize, peer: usize) {
        let jitter = 750 + self.below(500);
        let run = self.machines[node].up.as_mut().expect("is up");
        let link = &mut run.links[peer];
        let at_once =
            link.exchange.has_own_to_push(run.committer.logs(), |_| 0) || std::mem::take(&mut link.permit);
        link.pause = Pause::Wait;
        link.token += 1;
        let (token, incarnation) = (link.token, self.machines[node].incarnations);
        let delay = if at_once { 0 } else { jitter };
        self.after(delay, Event::Exchange { node, incarnation, peer, token, on_timer: !at_once });
    }

    /// Starts the next exchange of a link now.
    fn wake(&mut self, node: usize, peer: usize, on_timer: bool) {
        let incarnation = self.machines[node].incarnations;
        let run = self.machines[node].up.as_mut().expect("is up");
        let link = &mut run.links[peer];
        link.token += 1;
        let token = link.token;
        self.after(0, Event::Exchange { node, incarnation, peer, token, on_timer });
    }

    /// After a commit: starts an exchange on each idle link that has something to push.
    pub(super) fn wake_links(&mut self, node: usize) {
        for peer in (0..self.machines.len()).filter(|peer| *peer != node) {
            let run = self.machines[node].up.as_ref().expect("is up");
            let link = &run.links[peer];
            if !link.exchange.has_own_to_push(run.committer.logs(), |_| 0) {
                continue;
            }
            match link.pause {
                Pause::Wait => self.wake(node, peer, false),
                Pause::Busy if self.dice.one_in(2) => self.begin_side_push(node, peer),
                Pause::Busy | Pause::BackOff => {}
            }
        }
    }

    /// The peer has sent a request: wakes the link to it.
    fn notify(&mut self, node: usize, peer: usize) {
        let link = &mut self.machines[node].up.as_mut().expect("is up").links[peer];
        match link.pause {
            Pause::Busy => link.permit = true,
            Pause::Wait => self.wake(node, peer, false),
            Pause::BackOff => {
                link.failures = 0;
                self.wake(node, peer, true);
            }
        }
    }

    /// Bytes of entries in one message: as on a fast link or on a slow one.
    fn message_bytes(&mut self) -> usize {
        if self.dice.one_in(3) { index(self.below(4_000)) } else { pace::BYTES_MAX }
    }

    pub(super) fn begin_exchange(&mut self, node: usize, peer: usize, token: u64, on_timer: bool) {
        let now = self.now;
        let ranges = if self.dice.one_in(8) { 1 + self.below(3) } else { u64::MAX };
        let bytes = self.message_bytes();
        let run = self.machines[node].up.as_mut().expect("is up");
        if run.links[peer].token != token {
            return;
        }
        if self.machines[node].cannot_connect {
            return self.link_fails(node, peer, "it cannot connect");
        }
        let run = self.machines[node].up.as_mut().expect("is up");
        let logs = run.committer.logs().clone();
        let damage = run.store.log().damage();
        run.repair.update(damage, &logs, now - run.started);
        let link = &mut run.links[peer];
        let damaged = run.repair.ranges(AskedIn::Request(peer), logs.vector(), link.exchange.theirs());
        let (roster, started) = (&run.roster, run.started);
        let skip = |origin| {
            roster.borrow().owner_pushes(origin, now, started)
                || !roster.borrow_mut().claim(origin, peer, now)
        };
        let now_ms = now - started;
        let trigger = Trigger { on_timer, now_ms, skip: &skip, peer_has: &|_| 0, repair: damaged };
        let planned = link.exchange.plan(&logs, trigger);
        let left = Cell::new(ranges);
        let go_on = || left.replace(left.get().saturating_sub(1)) > 0;
        let read = match runs::read(&run.store, &logs, &planned.reads, bytes, go_on) {
            Ok(read) => read,
            Err(error) => return self.storage_fails(node, &error.to_string()),
        };
        let request = link.exchange.request(run.hello.clone(), now, &planned, read);
        self.tally.exchanges += 1;
        self.network.exchanges += 1;
        let exchange = self.network.exchanges;
        link.in_flight = Some((exchange, planned));
        link.asked = (request.wants.clone(), now - started);
        link.pause = Pause::Busy;
        self.machines[node].advertised = logs.vector().clone();
        self.trace_message(node, peer, &request, "asks");
        let bytes = request.encode().into();
        let incarnation = self.machines[node].incarnations;
        let patience = self.patience_ms(node, peer);
        self.after(patience, Event::Fails { node, incarnation, peer, exchange, why: "no answer" });
        self.send_packet(Packet { bytes, ..Packet::request(node, peer, exchange, now) });
    }

    /// Traces a request or an answer that has any content.
    pub(super) fn trace_message(&self, from: usize, to: usize, body: &SyncMessage, verb: &str) {
        let records: usize = body.runs.iter().map(|run| run.entries.len()).sum();
        let heads = body.heads.as_ref().map_or(0, |heads| heads.changes.len() + heads.cuts.len());
        if records + heads + body.wants.len() > 0 || body.need_full {
            let full = if body.need_full { ", needs all heads" } else { "" };
            let wants = body.wants.len();
            self.say(format!(
                "node {from} {verb} node {to}: {heads} heads, {wants} wants, {records} records{full}"
            ));
        }
    }

    /// The number of a new exchange.
    pub(super) fn next_exchange(&mut self) -> u64 {
        self.network.exchanges += 1;
        self.network.exchanges
    }

    /// How long an initiator waits for an answer.
    pub(super) fn patience_ms(&self, node: usize, peer: usize) -> u64 {
        let ways = [self.network.qualities[node][peer], self.network.qualities[peer][node]];
        ways.iter().map(LinkQuality::patience_ms).max().expect("two")
    }

    /// Has the writer admit runs, in pieces. `None`: the node has ended because of a disk failure.
    pub(super) fn admit_runs(
        &mut self,
        node: usize,
        theirs: Option<&Vector>,
        runs: &[Run],
    ) -> Option<Vec<(Origin, Admitted)>> {
        let mut pieces: Vec<(usize, PeerRecords)> = Vec::new();
        for (at, run) in runs.iter().enumerate() {
            pieces.extend(runs::pieces(run, theirs, None).into_iter().map(|piece| (at, piece)));
        }
        let mut admitted: Vec<Vec<Admitted>> = vec![Vec::new(); runs.len()];
        while !pieces.is_empty() {
            let count = index(1 + self.below(8)).min(pieces.len());
            let (ats, admits): (Vec<usize>, Vec<PeerRecords>) = pieces.drain(..count).unzip();
            let written = self.write(node, &[], &admits)?;
            for (at, piece) in ats.into_iter().zip(written) {
                admitted[at].push(piece);
            }
        }
        let of_run = |(run, pieces): (&Run, _)| (run.origin, runs::admitted(run, pieces));
        Some(runs.iter().zip(admitted).map(of_run).collect())
    }

    pub(super) fn say_refused(&self, node: usize, peer: usize, admitted: &[(Origin, Admitted)]) {
        for (origin, admitted) in admitted {
            if let Some(why) = &admitted.refused {
                self.say(format!("node {node} refuses of node {peer}, log {}: {why}", name(*origin)));
            }
        }
    }

    fn request_arrives(&mut self, packet: Packet) {
        let (node, peer, now) = (packet.to, packet.from, self.now);
        let mut request = SyncMessage::decode(&packet.bytes).expect("bytes are not damaged on the way");
        if request.entries_only {
            return self.side_push_arrives(&packet, &request);
        }
        let run = self.machines[node].up.as_mut().expect("is up");
        let opening = (request.hello.store_id, request.hello.incarnation_id);
        if request.hello == run.hello {
            let bytes = SyncMessage::quiet(run.hello.clone(), [0; 16], now).encode().into();
            return self.send_packet(Packet {
                from: node,
                to: peer,
                bytes,
                is_reply: true,
                said: now,
                ..packet
            });
        }
        let mut responder = run.responders.remove(&opening).unwrap_or_default();
        let damage = run.store.log().damage();
        let (maintenance, runs) =
            exchange::on_request(&mut responder, run.committer.logs(), damage, &mut request);
        let mut roster = run.roster.borrow_mut();
        let at = roster.index_of(&request);
        let known = &mut roster.peers[at];
        known.met(&request);
        if responder.theirs().is_some() {
            (known.theirs, known.said) = (responder.theirs().cloned(), packet.said);
        }
        known.heard = Some(now);
        let is_awaited = known.failed || known.answered.is_none();
        drop(roster);
        if is_awaited && at != node {
            self.notify(node, at);
        }
        for maintenance in maintenance {
            if self.write(node, &[maintenance], &[]).is_none() {
                return;
            }
        }
        let Some(admitted) = self.admit_runs(node, responder.theirs(), &runs) else { return };
        self.say_refused(node, peer, &admitted);
        let refused = admitted.iter().any(|(_, admitted)| admitted.not_stored.is_some());
        let answer = Box::new(Answering { packet, request, responder, refused });
        let (incarnation, delay) = (self.machines[node].incarnations, self.dice.roll() % 10);
        self.after(delay, Event::Answer { node, incarnation, answer });
    }

    pub(super) fn answer(&mut self, node: usize, answering: Answering) {
        let Answering { packet, request, mut responder, refused } = answering;
        let (peer, now, most) = (packet.from, self.now, self.message_bytes());
        let run = self.machines[node].up.as_mut().expect("is up");
        let opening = (request.hello.store_id, request.hello.incarnation_id);
        if refused {
            run.responders.insert(opening, responder);
            let (is_reply, is_refusal) = (true, true);
            let bytes = Bytes::new();
            return self.send_packet(Packet {
                from: node,
                to: peer,
                bytes,
                is_reply,
                is_refusal,
                said: now,
                ..packet
            });
        }
        let logs = run.committer.logs().clone();
        let wanted = exchange::reads_for(&request, &logs, responder.theirs());
        let read = match runs::read(&run.store, &logs, &wanted, most, || true) {
            Ok(read) => read,
            Err(error) => return self.storage_fails(node, &error.to_string()),
        };
        run.repair.update(run.store.log().damage(), &logs, now - run.started);
        let damaged =
            run.repair.ranges(AskedIn::Answer(request.hello.member_id()), logs.vector(), responder.theirs());
        let reply =
            exchange::answer(&mut responder, &logs, &request, read, damaged, (run.hello.clone(), now));
        run.responders.insert(opening, responder);
        self.machines[node].advertised = logs.vector().clone();
        self.trace_message(node, peer, &reply, "answers");
        let bytes = reply.encode().into();
        self.send_packet(Packet { from: node, to: peer, bytes, is_reply: true, said: now, ..packet });
    }

    fn reply_arrives(&mut self, packet: &Packet) {
        let (node, peer, said) = (packet.to, packet.from, packet.said);
        let now = self.now;
        let run = self.machines[node].up.as_mut().expect("is up");
        let link = &mut run.links[peer];
        if link.side_push == Some(packet.exchange) {
            return self.side_push_is_answered(packet);
        }
        if link.in_flight.as_ref().is_none_or(|(number, _)| *number != packet.exchange) {
            return;
        }
        // Of a part, the runs that arrived whole; without one, nothing of it can be used.
        let (reply, is_whole) = if packet.is_part {
            let Some(reply) = decode_part(&packet.bytes) else { return };
            (Some(reply), false)
        } else {
            (SyncMessage::decode(&packet.bytes).ok(), true)
        };
        let (_, planned) = link.in_flight.take().expect("looked at just now");
        if packet.is_refusal {
            return self.link_fails(node, peer, "the peer could not store it");
        }
        let reply = reply.expect("bytes are not damaged on the way");
        if reply.hello == run.hello {
            run.roster.borrow_mut().peers[peer].is_self = true;
            link.pause = Pause::Wait;
            link.token += 1;
            let (token, incarnation) = (link.token, self.machines[node].incarnations);
            let delay = 20_000 + self.below(20_000);
            return self.after(delay, Event::Exchange { node, incarnation, peer, token, on_timer: true });
        }
        let quiet = SyncMessage::quiet(reply.hello.clone(), reply.digest, reply.clock_ms);
        let met = SyncMessage { own: reply.own, ..quiet };
        let logs = run.committer.logs().clone();
        let more = reply.more;
        let mut reply = reply;
        let runs = std::mem::take(&mut reply.runs);
        let (reply, cuts) = link.exchange.on_reply(planned, &reply, &logs);
        let mut roster = run.roster.borrow_mut();
        let known = &mut roster.peers[peer];
        known.met(&met);
        (known.theirs, known.said) = (link.exchange.theirs().cloned(), said);
        (known.answered, known.failed, known.is_self) = (Some(now), false, false);
        drop(roster);
        let ((wants, asked_ms), theirs) = (std::mem::take(&mut link.asked), link.exchange.theirs());
        if is_whole {
            run.repair.on_answer(&PeerAnswer { member: member(peer), asked_ms, wants: &wants, theirs, more });
        }
        self.carry_out(node, peer, reply, is_whole, cuts, runs);
    }

    /// Carries out an answer, whose runs arrive in two parts.
    fn carry_out(
        &mut self,
        node: usize,
        peer: usize,
        mut reply: Reply,
        is_whole: bool,
        cuts: Vec<Maintenance>,
        mut runs: Vec<Run>,
    ) {
        for cut in cuts {
            if self.write(node, &[cut], &[]).is_none() {
                return;
            }
        }
        let later = runs.split_off(index(self.below(runs.len() as u64 + 1)));
        let mut progress = false;
        for runs in [runs, later] {
            match self.take_runs(node, peer, &mut reply, runs) {
                Some(new) => progress |= new,
                None => return,
            }
        }
        let running = self.now - self.machines[node].up.as_ref().expect("is up").started;
        let next = self.link(node, peer).exchange.on_reply_end(&reply, is_whole, running);
        if !is_whole && !progress {
            return self.link_fails(node, peer, "the connection was reset");
        }
        self.exchange_ends(node, peer, next, progress);
    }

    /// Stores runs of an answer. Returns whether that was progress; `None`: the node or the exchange ended.
    fn take_runs(&mut self, node: usize, peer: usize, reply: &mut Reply, runs: Vec<Run>) -> Option<bool> {
        let run = self.machines[node].up.as_mut().expect("is up");
        let logs = run.committer.logs().clone();
        let actions = run.links[peer].exchange.on_runs(reply, runs, &logs, run.store.log().damage());
        if let Some(repair) = actions.repair {
            self.write(node, &[repair], &[])?;
        }
        let theirs = self.link(node, peer).exchange.theirs().cloned();
        let admitted = self.admit_runs(node, theirs.as_ref(), &actions.runs)?;
        self.say_refused(node, peer, &admitted);
        let running = self.now - self.machines[node].up.as_ref().expect("is up").started;
        let new = self.link(node, peer).exchange.on_admitted(&admitted, running);
        if admitted.iter().any(|(_, admitted)| admitted.not_stored.is_some()) {
            self.link_fails(node, peer, "this node cannot store the entries");
            return None;
        }
        let mut progress = new > 0;
        for (origin, bisection, run) in actions.probes {
            let up = self.machines[node].up.as_ref().expect("is up");
            let (store, logs) = (up.store.clone(), up.committer.logs().clone());
            let outcome = match forks::judge(&store, &logs, origin, bisection, &run, &|| true) {
                Ok(outcome) => outcome,
                Err(error) => {
                    self.storage_fails(node, &error.to_string());
                    return None;
                }
            };
            self.say(format!("node {node} compares log {} with node {peer}: {outcome:?}", name(origin)));
            progress = true;
            if let Some(maintenance) = self.link(node, peer).exchange.on_bisected(origin, outcome, running) {
                self.write(node, &[maintenance], &[])?;
            }
        }
        Some(progress)
    }

    fn exchange_ends(&mut self, node: usize, peer: usize, next: NextExchange, progress: bool) {
        let now = self.now;
        let next = if progress { NextExchange::Again } else { next };
        self.machines[node].up.as_ref().expect("is up").roster.borrow_mut().release(peer, now);
        let link = self.link(node, peer);
        link.idle_rounds = if next == NextExchange::Again && !progress { link.idle_rounds + 1 } else { 0 };
        if link.idle_rounds > IDLE_ROUNDS_MAX {
            return self.link_fails(node, peer, "the exchange does not end");
        }
        if next == NextExchange::Again {
            self.wake(node, peer, false);
        } else {
            link.failures = 0;
            self.wait(node, peer);
        }
    }

    pub(super) fn link(&mut self, node: usize, peer: usize) -> &mut super::machine::PeerLink {
        &mut self.machines[node].up.as_mut().expect("is up").links[peer]
    }

    pub(super) fn exchange_fails(&mut self, node: usize, peer: usize, exchange: u64, why: &'static str) {
        let link = self.link(node, peer);
        link.side_push.take_if(|number| *number == exchange);
        if link.in_flight.as_ref().is_some_and(|(number, _): &(u64, PlannedRequest)| *number == exchange) {
            link.in_flight = None;
            self.link_fails(node, peer, why);
        }
    }

    fn link_fails(&mut self, node: usize, peer: usize, why: &str) {
        let now = self.now;
        self.say(format!("node {node} with node {peer}: {why}"));
        let run = self.machines[node].up.as_mut().expect("is up");
        run.roster.borrow_mut().peers[peer].failed = true;
        run.roster.borrow_mut().release(peer, now);
        let link = &mut run.links[peer];
        link.failures += 1;
        link.idle_rounds = 0;
        link.pause = Pause::BackOff;
        let growing = (BACK_OFF_MIN_MS << link.failures.min(16)).min(BACK_OFF_MAX_MS);
        if std::mem::take(&mut link.permit) {
            link.failures = 0;
            return self.wake(node, peer, true);
        }
        link.token += 1;
        let (token, incarnation) = (link.token, self.machines[node].incarnations);
        let delay = self.below(growing);
        self.after(delay, Event::Exchange { node, incarnation, peer, token, on_timer: true });
    }
}

/// The first characters of a log's id, for the trace.
pub fn name(origin: Origin) -> String {
    origin.to_string().chars().take(6).collect()
}
