//! Owns a node on its machine: start, writer, index, repair and stop.
//!
//! Every entry that a commit makes visible is checked against the ledger at once.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use chatchain::chain::ids::Origin;
use chatchain::chain::members::MemberId;
use chatchain::chain::sync::wire::Hello;
use chatchain::chain::vector::Vector;
use chatchain::replica::committer::Committer;
use chatchain::replica::repair::Repair;
use chatchain::replica::scrub::Scrub;
use chatchain::replica::write_ops::{Admitted, Maintenance, PeerRecords, WriteOps};
use chatchain::store::{self, Store};

use super::clients::Before;
use super::machine::{PeerLink, Request, Running, Stop};
use super::network::name;
use super::roster::Roster;
use super::{Event, World, index};
use crate::disk::{Dice, Unsynced};

const NETWORK: &str = "sim";

/// No log of a world has this many entries.
const LOG_COUNT_MAX: u64 = 1_000_000;

impl World {
    /// 16 random bytes.
    pub(super) fn bytes(&mut self) -> [u8; 16] {
        let number = (u128::from(self.dice.roll()) << 64) | u128::from(self.dice.roll());
        number.to_be_bytes()
    }

    fn any_loss(&mut self) -> Unsynced {
        let seed = self.dice.roll();
        [Unsynced::Kept, Unsynced::Lost, Unsynced::Some(seed), Unsynced::Torn(seed)]
            [index(self.dice.roll() % 4)]
    }

    /// Starts a stopped machine.
    pub(super) fn start(&mut self, node: usize) {
        if self.machines[node].up.is_some() || self.is_bad(node) {
            return;
        }
        let now_ms = self.machines[node].read_clock(self.now);
        let trusts_pages = std::mem::take(&mut self.machines[node].trusts_pages) && !self.dice.one_in(3);
        self.machines[node].disk.seems_large(trusts_pages);
        let policy = if self.dice.one_in(4) && !trusts_pages {
            store::OpenPolicy::FullCheck
        } else {
            store::OpenPolicy::Default
        };
        let opened = Store::open_in(&self.machines[node].disk, NETWORK, now_ms, policy);
        let (store, logs) = match opened {
            Ok(opened) => opened,
            Err(error) if self.machines[node].disk.fails() => {
                self.say(format!("the disk of node {node} fails during the start: {error}"));
                let how = Stop::Power(self.any_loss());
                self.machines[node].stop(how);
                if !self.machines[node].held.damaged.is_empty() {
                    // A salvage may have happened before the failure, which the next opening cannot know.
                    self.machines[node].advertised = Vector::default();
                }
                let delay = self.below(2_000);
                return self.after(delay, Event::Start { node });
            }
            Err(error) => self.violation(format!("node {node} cannot open its store: {error}")),
        };
        let logs = std::sync::Arc::new(logs);
        let mut names = Dice(self.dice.roll());
        let new_origin = Box::new(move || {
            Origin(((u128::from(names.roll()) << 64) | u128::from(names.roll())).to_be_bytes())
        });
        let committer = Committer::new(store, (*logs).clone(), new_origin);
        self.run_node(node, committer);
        self.check_opened(node);
        let run = self.machines[node].up.as_ref().expect("was put there");
        let (heads, counts) = (run.committer.logs().vector().origins(), run.store.counts());
        self.say(format!("node {node} is up: {} messages in {heads} logs", counts.messages));
    }

    /// Runs a node on this store.
    pub(super) fn run_node(&mut self, node: usize, committer: Committer) {
        let hello = hello(node, committer.store().id().0, self.bytes());
        let count = self.machines.len();
        let run = Running {
            store: committer.store().clone(),
            seen: Vector::default(),
            committer,
            hello,
            started: self.now,
            links: (0..count).map(|_| PeerLink::default()).collect(),
            roster: RefCell::new(Roster::new(count)),
            responders: BTreeMap::new(),
            repair: Repair::default(),
            scrub: Scrub::default(),
            inbox: Vec::new(),
            listed: BTreeSet::new(),
            write_is_due: false,
        };
        let machine = &mut self.machines[node];
        machine.up = Some(run);
        machine.incarnations += 1;
        let incarnation = machine.incarnations;
        for peer in (0..count).filter(|peer| *peer != node) {
            let delay = self.below(50);
            self.after(delay, Event::Exchange { node, incarnation, peer, token: 0, on_timer: true });
        }
        self.after(1_000, Event::Repair { node, incarnation });
        let delay = 500 + self.below(2_000);
        self.after(delay, Event::Index { node, incarnation });
        if self.machines[node].up.as_ref().expect("is up").committer.has_more() {
            self.write_soon(node);
        }
    }

    /// Checks an opening: all messages of the disk model and all entries advertised to peers must be there, unless
    /// damaged.
    fn check_opened(&mut self, node: usize) {
        let machine = &mut self.machines[node];
        let run = machine.up.as_mut().expect("is up");
        let before = std::mem::take(&mut machine.held);
        let vector = run.committer.logs().vector().clone();
        machine.held.damaged.clone_from(&before.damaged);
        let advertised = std::mem::take(&mut machine.advertised);
        let recovery = run.store.recovery().cloned();
        let mut gone = advertised.leads(&vector);
        let fell_back = std::mem::take(&mut machine.may_fall_back);
        if fell_back {
            gone.clear();
            // The lost commit may have repaired entries.
            let machine = &mut self.machines[node];
            let repaired = std::mem::take(&mut machine.repaired_last);
            machine.held.damaged.extend(repaired);
        }
        if let Some(recovery) = &recovery {
            gone.clear(); // the salvaged store has a new id; entries after gaps come back later
            self.tally.salvages += 1;
            self.say(format!("node {node} is salvaged: {:?}", recovery.salvaged));
        }
        if !gone.is_empty() {
            self.violation(format!("node {node} advertised entries that are lost: {gone:?}"));
        }
        self.observe(node);
        self.observe_detached(node);
        if fell_back {
            self.excuse_lost_messages();
            self.machines[node].destroyed = Some(self.now);
            self.machines[node].advertised = vector;
            return;
        }
        let held = &self.machines[node].held;
        if let Some((id, _)) =
            before.copies.keys().chain(before.detached.values().flatten()).find(|key| !held.keeps(key))
        {
            self.violation(format!("node {node} had message {id} on its disk, and lacks it after opening"));
        }
        self.machines[node].advertised = vector;
    }

    /// Records the entries after gaps.
    fn observe_detached(&mut self, node: usize) {
        let machine = &mut self.machines[node];
        let run = machine.up.as_ref().expect("is up");
        let logs = run.committer.logs();
        let mut reader = run.store.log().read().expect("a running store can be read");
        let mut wrong = None;
        for (origin, last) in logs.detached() {
            if last > LOG_COUNT_MAX {
                wrong = Some(format!("a log cannot have an entry {last}: {origin}"));
                continue;
            }
            for seq in logs.vector().seq(origin) + 1..=last {
                if let Some(entry) = reader.peek(origin, seq).expect("a running store can be read")
                    && let Ok(key) = self.ledger.observe(&entry)
                {
                    machine.held.detached.insert((origin, seq), key);
                }
            }
        }
        if let Some(why) = wrong {
            self.violation(format!("at node {node}: {why}"));
        }
    }

    /// Checks all entries that became visible at a node.
    pub(super) fn observe(&mut self, node: usize) {
        let machine = &mut self.machines[node];
        let run = machine.up.as_mut().expect("is up");
        let now = run.committer.logs().vector().clone();
        for (origin, seq) in now.cuts_since(&run.seen) {
            machine.held.cut(origin, seq);
            self.tally.cuts += 1;
        }
        let mut reader = run.store.log().read().expect("a running store can be read");
        let mut places: Vec<(Origin, u64)> = machine.held.damaged.iter().copied().collect();
        for (origin, span) in now.changes_since(&run.seen) {
            places.extend((run.seen.seq(origin) + 1..=span.head.seq).map(|seq| (origin, seq)));
        }
        let mut wrong = None;
        for (origin, seq) in places {
            match reader.peek(origin, seq).expect("a running store can be read") {
                Some(entry) if now.seq(origin) >= seq => match self.ledger.observe(&entry) {
                    Ok(key) => {
                        machine.held.insert((origin, seq), key);
                        self.tally.forged += u64::from(self.ledger.is_invented(&entry));
                    }
                    Err(why) => wrong = wrong.or(Some(why)),
                },
                Some(_) => {}
                None if machine.held.damaged.contains(&(origin, seq)) => {}
                None => wrong = Some(format!("entry {seq} of {origin} is damaged without a fault")),
            }
        }
        run.seen = now;
        if let Some(why) = wrong {
            self.violation(format!("at node {node}: {why}"));
        }
    }

    /// Has the writer commit this, perhaps together with waiting client requests. `None`: the node has ended because of
    /// a disk failure.
    pub(super) fn write(
        &mut self,
        node: usize,
        maintenance: &[Maintenance],
        admits: &[PeerRecords],
    ) -> Option<Vec<Admitted>> {
        let with_clients = self.dice.one_in(2) || (maintenance.is_empty() && admits.is_empty());
        let machine = &mut self.machines[node];
        let now_ms = machine.read_clock(self.now);
        let run = machine.up.as_mut().expect("is up");
        let requests: Vec<Request> = if with_clients { std::mem::take(&mut run.inbox) } else { Vec::new() };
        let batch = WriteOps {
            maintenance: maintenance.iter().collect(),
            sends: requests.iter().map(|request| request.messages.as_slice()).collect(),
            admits: admits.iter().collect(),
        };
        let committed = run.committer.commit(&batch, machine.space, now_ms);
        let purged = committed.and_then(|written| {
            run.committer.purge(machine.space, !requests.is_empty())?;
            Ok(written)
        });
        let written = match purged {
            Ok(written) => written,
            Err(error) => {
                self.no_answer(requests);
                self.storage_fails(node, &error.to_string());
                return None;
            }
        };
        let before = Before { copies: machine.held.copies.clone(), vector: run.seen.clone() };
        let has_more = run.committer.has_more() && machine.space.peers;
        machine.record_steps();
        for maintenance in maintenance {
            self.say(format!("node {node} maintains its logs: {}", in_words(maintenance)));
        }
        let damaged = self.machines[node].held.damaged.clone();
        self.observe(node);
        let machine = &mut self.machines[node];
        if written.changed {
            machine.repaired_last = damaged.difference(&machine.held.damaged).copied().collect();
        }
        self.outcomes(node, &before, &requests, &written.sends);
        if written.changed {
            self.wake_links(node);
        }
        if has_more {
            self.write_soon(node);
        }
        Some(written.admits)
    }

    /// Schedules the writer within a few milliseconds.
    pub(super) fn write_soon(&mut self, node: usize) {
        let (incarnation, delay) = (self.machines[node].incarnations, self.dice.roll() % 5);
        let run = self.machines[node].up.as_mut().expect("is up");
        if !std::mem::replace(&mut run.write_is_due, true) {
            self.after(delay, Event::Write { node, incarnation });
        }
    }

    pub(super) fn write_due(&mut self, node: usize) {
        self.machines[node].up.as_mut().expect("is up").write_is_due = false;
        self.write(node, &[], &[]);
    }

    pub(super) fn write_index(&mut self, node: usize) {
        let run = self.machines[node].up.as_ref().expect("is up");
        let settles = self.dice.one_in(3);
        if run.store.flush_index().is_err() || (settles && run.store.commit_for_fast_open().is_err()) {
            return self.storage_fails(node, "after the acknowledgment");
        }
        self.machines[node].record_steps();
        let (incarnation, delay) = (self.machines[node].incarnations, 500 + self.below(4_000));
        self.after(delay, Event::Index { node, incarnation });
    }

    /// Gives up damaged entries that no peer has.
    pub(super) fn repair(&mut self, node: usize) {
        // In the calm phase, an operator has forgotten the bad peer: it may claim for ever to send a damaged entry later.
        let members = if self.calm { self.honest() } else { 0..self.machines.len() };
        let run = self.machines[node].up.as_mut().expect("is up");
        let running = self.now - run.started;
        run.repair.update(run.store.log().damage(), run.committer.logs(), running);
        let roster = run.roster.borrow();
        let is_other = |peer: &usize| *peer != node && !roster.peers[*peer].is_self;
        let members: Vec<_> = members.filter(is_other).map(|peer| Some(member(peer))).collect();
        let overdue = run.repair.overdue(run.committer.logs().own(), &members, running);
        drop(roster);
        for maintenance in overdue {
            if self.write(node, &[maintenance], &[]).is_none() {
                return;
            }
        }
        self.scrub(node);
        let incarnation = self.machines[node].incarnations;
        if self.is_current(node, incarnation) {
            self.after(1_000, Event::Repair { node, incarnation });
        }
    }

    /// One step of the scrub, which checks all entries slowly.
    fn scrub(&mut self, node: usize) {
        let run = self.machines[node].up.as_mut().expect("is up");
        let logs = run.committer.logs().clone();
        let step = match run.scrub.step(&run.store, &logs) {
            Ok(step) => step,
            Err(error) => return self.storage_fails(node, &error.to_string()),
        };
        if let Some((origin, seq)) = step.index_lacks {
            self.violation(format!("the index of node {node} lacks a row of entry {seq} of log {origin}"));
        }
        for maintenance in step.maintenance {
            if self.write(node, &[maintenance], &[]).is_none() {
                return;
            }
        }
    }

    /// A read or a write failed: the store is closed, and reopened some time later.
    pub(super) fn storage_fails(&mut self, node: usize, why: &str) {
        let was_meant = self.machines[node].disk.fails();
        if !was_meant {
            self.violation(format!("node {node}: a storage error without a disk fault: {why}"));
        }
        let loss = self.any_loss();
        self.say(format!("node {node} ends, its disk failed ({why}); of what was not synced: {loss:?}"));
        self.tally.crashes += 1;
        self.stop(node, Stop::Power(loss));
        let delay = self.below(3_000);
        self.after(delay, Event::Start { node });
    }

    /// Stops a node. Its waiting requests are never answered.
    pub(super) fn stop(&mut self, node: usize, how: Stop) {
        let Some(run) = self.machines[node].up.as_mut() else { return };
        let requests = std::mem::take(&mut run.inbox);
        self.no_answer(requests);
        self.machines[node].stop(how);
    }
}

pub(super) fn hello(node: usize, store_id: [u8; 16], incarnation_id: [u8; 16]) -> Hello {
    Hello {
        network: Hello::network_hash(NETWORK),
        node_id: u16::try_from(node).expect("few"),
        store_id,
        incarnation_id,
        address: format!("127.0.0.1:{}", 8081 + node),
        is_guest: false,
    }
}

/// A machine as a member of the network. Its store is a copy of all that its peers had, whichever store it is.
pub(super) fn member(node: usize) -> MemberId {
    MemberId { node_id: u16::try_from(node).expect("few"), store_id: [0; 16] }
}

fn in_words(maintenance: &Maintenance) -> String {
    match maintenance {
        Maintenance::Cut(origin, seq) => format!("log {} is to be cut at {seq}", name(*origin)),
        Maintenance::ClaimedCut(origin, seq) => format!("a peer cut log {} at {seq}", name(*origin)),
        Maintenance::Abandon(origin) => format!("log {} is abandoned", name(*origin)),
        Maintenance::Repair(records) => format!("{} records for damaged entries", records.len()),
        Maintenance::Members(kept) => format!("{} members", kept.members.count()),
        Maintenance::Snapshots(contents) => format!("{} snapshots", contents.len()),
        Maintenance::Checkpoint(origin, seq, _) => format!("checkpoint {seq} of log {}", name(*origin)),
    }
}
