//! Owns the way between machines: what is lost, late, doubled or cut off, and both sides of every exchange.
//!
//! As `node::replicate`: a link starts an exchange by its timer, a change or a word of the peer, reads, asks, and
//! carries out what the answer leads to. A request is taken in and answered in two steps, between which other things
//! happen, as they do between threads.

use std::cell::Cell;

use bytes::Bytes;
use chatchain::chain::ids::Origin;
use chatchain::chain::sync::wire::{Run, SyncMessage};
use chatchain::chain::sync::{NextExchange, Responder};
use chatchain::chain::vector::Vector;
use chatchain::replica::exchange::{self, PlannedRequest, ReplyActions, Trigger};
use chatchain::replica::write_ops::{Admitted, PeerRecords};
use chatchain::replica::{forks, runs};

use super::machine::Pause;
use super::{Event, World, index};

const EXCHANGE_MS: u64 = 10_000;
const IDLE_ROUNDS_MAX: u32 = 8;
const BACK_OFF_MIN_MS: u64 = 250;
const BACK_OFF_MAX_MS: u64 = 30_000;

/// Who can reach whom, and how well.
pub struct Network {
    blocked: Vec<Vec<bool>>,
    /// Of a thousand messages so many are lost, and as many come twice.
    pub loss: u64,
    pub delay_ms: u64,
    exchanges: u64,
}

impl Network {
    pub fn new(machines: usize, loss: u64, delay_ms: u64) -> Self {
        Network { blocked: vec![vec![false; machines]; machines], loss, delay_ms, exchanges: 0 }
    }

    pub fn block(&mut self, from: usize, to: usize) {
        self.blocked[from][to] = true;
    }

    pub fn join(&mut self, one: usize, other: usize) {
        (self.blocked[one][other], self.blocked[other][one]) = (false, false);
    }

    pub fn join_all(&mut self) {
        self.blocked.iter_mut().flatten().for_each(|blocked| *blocked = false);
    }

    pub fn calm(&mut self) {
        self.join_all();
        (self.loss, self.delay_ms) = (0, 20);
    }
}

/// Bytes on their way.
pub struct Letter {
    from: usize,
    to: usize,
    exchange: u64,
    bytes: Bytes,
    /// When it was said.
    said: u64,
    is_reply: bool,
    /// An answer that says no.
    is_refusal: bool,
}

/// A request that was taken in.
pub struct Answering {
    letter: Letter,
    request: SyncMessage,
    door: Responder,
    refused: bool,
}

impl World {
    fn send_letter(&mut self, letter: Letter) {
        let (from, to, exchange) = (letter.from, letter.to, letter.exchange);
        let asker = if letter.is_reply { to } else { from };
        let other = if letter.is_reply { from } else { to };
        let life = self.machines[asker].lives;
        let fails = |why| Event::Fails { node: asker, life, peer: other, exchange, why };
        if self.network.blocked[from][to] || self.below(1_000) < self.network.loss {
            return; // the asker's patience ends some time
        }
        if !letter.is_reply && self.machines[to].up.is_none() {
            return self.after(1, fails("refused"));
        }
        let mut delay = 1 + self.below(self.network.delay_ms);
        if !self.calm && self.dice.one_in(200) {
            delay += self.below(2 * EXCHANGE_MS); // it comes when nobody waits any more
        }
        if self.below(1_000) < self.network.loss && !letter.is_reply {
            let (bytes, said) = (letter.bytes.clone(), letter.said);
            let again = Letter { from, to, exchange, bytes, said, is_reply: false, is_refusal: false };
            let later = delay + self.below(3_000);
            self.after(later, Event::Letter(again));
        }
        self.after(delay, Event::Letter(letter));
    }

    pub(super) fn arrives(&mut self, letter: Letter) {
        if self.machines[letter.to].up.is_none() {
            return;
        }
        if letter.is_reply { self.reply_arrives(&letter) } else { self.request_arrives(letter) }
    }

    /// The link is idle: until when?
    fn wait(&mut self, node: usize, peer: usize) {
        let jitter = 750 + self.below(500);
        let run = self.machines[node].up.as_mut().expect("lives");
        let talk = &mut run.talks[peer];
        let at_once = talk.exchange.has_own_to_push(run.pen.logs()) || std::mem::take(&mut talk.permit);
        talk.pause = Pause::Wait;
        talk.token += 1;
        let (token, life) = (talk.token, self.machines[node].lives);
        let delay = if at_once { 0 } else { jitter };
        self.after(delay, Event::Exchange { node, life, peer, token, on_timer: !at_once });
    }

    /// Starts the link's exchange now, if it waits.
    fn wake(&mut self, node: usize, peer: usize, on_timer: bool) {
        let life = self.machines[node].lives;
        let run = self.machines[node].up.as_mut().expect("lives");
        let talk = &mut run.talks[peer];
        talk.token += 1;
        let token = talk.token;
        self.after(0, Event::Exchange { node, life, peer, token, on_timer });
    }

    /// After a commit: who has something to push?
    pub(super) fn wake_links(&mut self, node: usize) {
        for peer in (0..self.machines.len()).filter(|peer| *peer != node) {
            let run = self.machines[node].up.as_ref().expect("lives");
            let talk = &run.talks[peer];
            if talk.pause == Pause::Wait && talk.exchange.has_own_to_push(run.pen.logs()) {
                self.wake(node, peer, false);
            }
        }
    }

    /// The peer spoke to us.
    fn notify(&mut self, node: usize, peer: usize) {
        let talk = &mut self.machines[node].up.as_mut().expect("lives").talks[peer];
        match talk.pause {
            Pause::Busy => talk.permit = true,
            Pause::Wait => self.wake(node, peer, false),
            Pause::BackOff => {
                talk.failures = 0;
                self.wake(node, peer, true);
            }
        }
    }

    pub(super) fn begin_exchange(&mut self, node: usize, peer: usize, token: u64, on_timer: bool) {
        let now = self.now;
        let ranges = if self.dice.one_in(8) { 1 + self.below(3) } else { u64::MAX };
        let run = self.machines[node].up.as_mut().expect("lives");
        if run.talks[peer].token != token {
            return;
        }
        if self.machines[node].reaches_nobody {
            return self.link_fails(node, peer, "its way out is blocked");
        }
        let run = self.machines[node].up.as_mut().expect("lives");
        let logs = run.pen.logs().clone();
        let wounds = run.store.log().damage();
        run.heal.update(wounds, &logs, now - run.started);
        let talk = &mut run.talks[peer];
        let mend = run.heal.ranges(logs.vector(), talk.exchange.theirs());
        let (book, started) = (&run.book, run.started);
        let leave = |origin| {
            book.borrow().owner_pushes(origin, now, started) || !book.borrow_mut().claim(origin, peer, now)
        };
        let occasion = Trigger { on_timer, now_ms: now - started, skip: &leave, repair: mend };
        let planned = talk.exchange.plan(&logs, occasion);
        let left = Cell::new(ranges);
        let go_on = || left.replace(left.get().saturating_sub(1)) > 0;
        let read = match runs::read(&run.store, &planned.reads, go_on) {
            Ok(read) => read,
            Err(error) => return self.storage_fails(node, &error.to_string()),
        };
        let request = talk.exchange.request(run.hello.clone(), &planned, read);
        self.network.exchanges += 1;
        self.tally.exchanges += 1;
        let exchange = self.network.exchanges;
        talk.in_flight = Some((exchange, planned));
        talk.pause = Pause::Busy;
        self.machines[node].advertised = logs.vector().clone();
        self.say_body(node, peer, &request, "asks");
        let bytes = request.encode().into();
        let life = self.machines[node].lives;
        self.after(EXCHANGE_MS, Event::Fails { node, life, peer, exchange, why: "no answer" });
        let (is_reply, is_refusal) = (false, false);
        self.send_letter(Letter { from: node, to: peer, exchange, bytes, said: now, is_reply, is_refusal });
    }

    /// Quiet ones are not worth a line.
    fn say_body(&self, from: usize, to: usize, body: &SyncMessage, verb: &str) {
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

    /// Has the writer take in runs, in pieces. `None`: the node has ended over it.
    fn admit_runs(
        &mut self,
        node: usize,
        theirs: Option<&Vector>,
        runs: &[Run],
    ) -> Option<Vec<(Origin, Admitted)>> {
        let mut pieces: Vec<(usize, PeerRecords)> = Vec::new();
        for (at, run) in runs.iter().enumerate() {
            pieces.extend(runs::pieces(run, theirs).into_iter().map(|piece| (at, piece)));
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

    fn say_refused(&self, node: usize, peer: usize, admitted: &[(Origin, Admitted)]) {
        for (origin, admitted) in admitted {
            if let Some(why) = &admitted.refused {
                self.say(format!("node {node} refuses of node {peer}, log {}: {why}", name(*origin)));
            }
        }
    }

    fn request_arrives(&mut self, letter: Letter) {
        let (node, peer, now) = (letter.to, letter.from, self.now);
        let mut request = SyncMessage::decode(&letter.bytes).expect("bytes are not damaged on the way");
        let run = self.machines[node].up.as_mut().expect("lives");
        let opening = (request.hello.store_id, request.hello.open_id);
        if request.hello == run.hello {
            let bytes = SyncMessage::quiet(run.hello.clone(), [0; 16]).encode().into();
            return self.send_letter(Letter {
                from: node,
                to: peer,
                bytes,
                is_reply: true,
                said: now,
                ..letter
            });
        }
        let mut door = run.doors.remove(&opening).unwrap_or_default();
        let wounds = run.store.log().damage();
        let (care, runs) = exchange::on_request(&mut door, run.pen.logs(), wounds, &mut request);
        let mut book = run.book.borrow_mut();
        let at = book.index_of(&request);
        let known = &mut book.peers[at];
        known.met(&request);
        if door.theirs().is_some() {
            (known.theirs, known.said) = (door.theirs().cloned(), letter.said);
        }
        known.heard = Some(now);
        let is_awaited = known.failed || known.answered.is_none();
        drop(book);
        if is_awaited && at != node {
            self.notify(node, at);
        }
        for care in care {
            if self.write(node, &[care], &[]).is_none() {
                return;
            }
        }
        let Some(admitted) = self.admit_runs(node, door.theirs(), &runs) else { return };
        self.say_refused(node, peer, &admitted);
        let refused = admitted.iter().any(|(_, admitted)| admitted.not_stored.is_some());
        let answer = Box::new(Answering { letter, request, door, refused });
        let (life, delay) = (self.machines[node].lives, self.dice.roll() % 10);
        self.after(delay, Event::Answer { node, life, answer });
    }

    pub(super) fn answer(&mut self, node: usize, answering: Answering) {
        let Answering { letter, request, mut door, refused } = answering;
        let (peer, now) = (letter.from, self.now);
        let run = self.machines[node].up.as_mut().expect("lives");
        let opening = (request.hello.store_id, request.hello.open_id);
        if refused {
            run.doors.insert(opening, door);
            let (is_reply, is_refusal) = (true, true);
            let bytes = Bytes::new();
            return self.send_letter(Letter {
                from: node,
                to: peer,
                bytes,
                is_reply,
                is_refusal,
                said: now,
                ..letter
            });
        }
        let logs = run.pen.logs().clone();
        let read = match runs::read(&run.store, &exchange::reads_for(&request, &logs), || true) {
            Ok(read) => read,
            Err(error) => return self.storage_fails(node, &error.to_string()),
        };
        run.heal.update(run.store.log().damage(), &logs, now - run.started);
        let mend = run.heal.ranges(logs.vector(), door.theirs());
        let reply = exchange::answer(&mut door, &logs, &request, read, mend, run.hello.clone());
        run.doors.insert(opening, door);
        self.machines[node].advertised = logs.vector().clone();
        self.say_body(node, peer, &reply, "answers");
        let bytes = reply.encode().into();
        self.send_letter(Letter { from: node, to: peer, bytes, is_reply: true, said: now, ..letter });
    }

    fn reply_arrives(&mut self, letter: &Letter) {
        let (node, peer, said) = (letter.to, letter.from, letter.said);
        let now = self.now;
        let run = self.machines[node].up.as_mut().expect("lives");
        let talk = &mut run.talks[peer];
        let Some((_, planned)) = talk.in_flight.take_if(|(number, _)| *number == letter.exchange) else {
            return;
        };
        if letter.is_refusal {
            return self.link_fails(node, peer, "the peer could not store it");
        }
        let reply = SyncMessage::decode(&letter.bytes).expect("bytes are not damaged on the way");
        if reply.hello == run.hello {
            run.book.borrow_mut().peers[peer].is_self = true;
            talk.pause = Pause::Wait;
            talk.token += 1;
            let (token, life) = (talk.token, self.machines[node].lives);
            let delay = 20_000 + self.below(20_000);
            return self.after(delay, Event::Exchange { node, life, peer, token, on_timer: true });
        }
        let met = SyncMessage { own: reply.own, ..SyncMessage::quiet(reply.hello.clone(), reply.digest) };
        let logs = run.pen.logs().clone();
        let heard = talk.exchange.on_reply(planned, reply, &logs, run.store.log().damage());
        let mut book = run.book.borrow_mut();
        let known = &mut book.peers[peer];
        known.met(&met);
        (known.theirs, known.said) = (talk.exchange.theirs().cloned(), said);
        (known.answered, known.failed, known.is_self) = (Some(now), false, false);
        drop(book);
        self.carry_out(node, peer, heard);
    }

    fn carry_out(&mut self, node: usize, peer: usize, mut heard: ReplyActions) {
        for care in std::mem::take(&mut heard.maintenance) {
            if self.write(node, &[care], &[]).is_none() {
                return;
            }
        }
        let theirs = self.link(node, peer).exchange.theirs().cloned();
        let runs = std::mem::take(&mut heard.runs);
        let Some(admitted) = self.admit_runs(node, theirs.as_ref(), &runs) else { return };
        self.say_refused(node, peer, &admitted);
        let running = self.now - self.machines[node].up.as_ref().expect("lives").started;
        let new = self.link(node, peer).exchange.on_committed(&heard, &admitted, running);
        if admitted.iter().any(|(_, admitted)| admitted.not_stored.is_some()) {
            return self.link_fails(node, peer, "this node cannot store what came");
        }
        let mut progress = new > 0;
        for (origin, search, run) in std::mem::take(&mut heard.probes) {
            let store = self.machines[node].up.as_ref().expect("lives").store.clone();
            let verdict = match forks::judge(&store, origin, search, &run) {
                Ok(verdict) => verdict,
                Err(error) => return self.storage_fails(node, &error.to_string()),
            };
            self.say(format!("node {node} compares log {} with node {peer}: {verdict:?}", name(origin)));
            progress = true;
            if let Some(care) = self.link(node, peer).exchange.on_verdict(origin, verdict)
                && self.write(node, &[care], &[]).is_none()
            {
                return;
            }
        }
        let now = self.now;
        let next = if progress { NextExchange::Again } else { heard.next };
        self.machines[node].up.as_ref().expect("lives").book.borrow_mut().release(peer, now);
        let talk = self.link(node, peer);
        talk.idle_rounds = if next == NextExchange::Again && !progress { talk.idle_rounds + 1 } else { 0 };
        if talk.idle_rounds > IDLE_ROUNDS_MAX {
            return self.link_fails(node, peer, "the exchange does not come to an end");
        }
        if next == NextExchange::Again {
            self.wake(node, peer, false);
        } else {
            talk.failures = 0;
            self.wait(node, peer);
        }
    }

    fn link(&mut self, node: usize, peer: usize) -> &mut super::machine::Talk {
        &mut self.machines[node].up.as_mut().expect("lives").talks[peer]
    }

    pub(super) fn exchange_fails(&mut self, node: usize, peer: usize, exchange: u64, why: &'static str) {
        let talk = self.link(node, peer);
        if talk.in_flight.as_ref().is_some_and(|(number, _): &(u64, PlannedRequest)| *number == exchange) {
            talk.in_flight = None;
            self.link_fails(node, peer, why);
        }
    }

    fn link_fails(&mut self, node: usize, peer: usize, why: &str) {
        let now = self.now;
        self.say(format!("node {node} with node {peer}: {why}"));
        let run = self.machines[node].up.as_mut().expect("lives");
        run.book.borrow_mut().peers[peer].failed = true;
        run.book.borrow_mut().release(peer, now);
        let talk = &mut run.talks[peer];
        talk.failures += 1;
        talk.idle_rounds = 0;
        talk.pause = Pause::BackOff;
        let growing = (BACK_OFF_MIN_MS << talk.failures.min(16)).min(BACK_OFF_MAX_MS);
        if std::mem::take(&mut talk.permit) {
            talk.failures = 0;
            return self.wake(node, peer, true);
        }
        talk.token += 1;
        let (token, life) = (talk.token, self.machines[node].lives);
        let delay = self.below(growing);
        self.after(delay, Event::Exchange { node, life, peer, token, on_timer: true });
    }
}

/// The beginning of a log's name.
pub fn name(origin: Origin) -> String {
    origin.to_string().chars().take(6).collect()
}
