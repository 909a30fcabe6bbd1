//! Owns a node's life on its machine: opening, the writer, the index, what is done about damage, and its end.
//!
//! Whatever a commit makes visible is looked at at once and held against the ledger.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use chatchain::chain::ids::Origin;
use chatchain::chain::sync::wire::Hello;
use chatchain::chain::vector::Vector;
use chatchain::replica::committer::Committer;
use chatchain::replica::repair::Repair;
use chatchain::replica::scrub::Scrub;
use chatchain::replica::write_ops::{Admitted, Maintenance, PeerRecords, WriteOps};
use chatchain::store::{self, Store};

use super::book::Book;
use super::clients::Before;
use super::machine::{Request, Running, Stop, Talk};
use super::network::name;
use super::{Event, World, index};
use crate::disk::{Dice, Unsynced};

const NETWORK: &str = "sim";

/// No log of a world grows that long.
const LOG_COUNT_MAX: u64 = 1_000_000;

impl World {
    /// 16 bytes of chance.
    pub(super) fn bytes(&mut self) -> [u8; 16] {
        let number = (u128::from(self.dice.roll()) << 64) | u128::from(self.dice.roll());
        number.to_be_bytes()
    }

    fn any_loss(&mut self) -> Unsynced {
        let seed = self.dice.roll();
        [Unsynced::Kept, Unsynced::Lost, Unsynced::Some(seed), Unsynced::Torn(seed)]
            [index(self.dice.roll() % 4)]
    }

    /// Switches a machine on.
    pub(super) fn start(&mut self, node: usize) {
        if self.machines[node].up.is_some() {
            return;
        }
        let now_ms = self.machines[node].clock_says(self.now);
        let is_careless = std::mem::take(&mut self.machines[node].opens_carelessly) && !self.dice.one_in(3);
        self.machines[node].disk.seems_large(is_careless);
        let is_checked = self.dice.one_in(4) && !is_careless;
        let care = if is_checked { store::OpenPolicy::FullCheck } else { store::OpenPolicy::Default };
        let opened = Store::open_in(&self.machines[node].disk, NETWORK, now_ms, care);
        let (store, logs) = match opened {
            Ok(opened) => opened,
            Err(error) if self.machines[node].disk.fails() => {
                self.say(format!("node {node} fails while it starts: {error}"));
                let how = Stop::Power(self.any_loss());
                self.machines[node].stop(how);
                if !self.machines[node].held.spoilt.is_empty() {
                    // It may have been salvaged before it failed: the next opening does not know.
                    self.machines[node].advertised = Vector::default();
                }
                let delay = self.below(2_000);
                return self.after(delay, Event::Start { node });
            }
            Err(error) => self.wrong(format!("node {node} does not open its store: {error}")),
        };
        let logs = std::sync::Arc::new(logs);
        let mut names = Dice(self.dice.roll());
        let mint = Box::new(move || {
            Origin(((u128::from(names.roll()) << 64) | u128::from(names.roll())).to_be_bytes())
        });
        let pen = Committer::new(store, (*logs).clone(), mint);
        self.put_to_work(node, pen);
        self.check_found(node);
        let run = self.machines[node].up.as_ref().expect("was put there");
        let (heads, counts) = (run.pen.logs().vector().origins(), run.store.counts());
        self.say(format!("node {node} is up: {} messages in {heads} logs", counts.messages));
    }

    /// A node runs with this pen from now on.
    pub(super) fn put_to_work(&mut self, node: usize, pen: Committer) {
        let hello = Hello {
            network: Hello::network_hash(NETWORK),
            node_id: u16::try_from(node).expect("few"),
            store_id: pen.store().id().0,
            open_id: self.bytes(),
            address: format!("127.0.0.1:{}", 8081 + node),
        };
        let count = self.machines.len();
        let run = Running {
            store: pen.store().clone(),
            seen: Vector::default(),
            pen,
            hello,
            started: self.now,
            talks: (0..count).map(|_| Talk::default()).collect(),
            book: RefCell::new(Book::new(count)),
            doors: BTreeMap::new(),
            heal: Repair::default(),
            scrub: Scrub::default(),
            inbox: Vec::new(),
            listed: BTreeSet::new(),
            write_is_due: false,
        };
        let machine = &mut self.machines[node];
        machine.up = Some(run);
        machine.lives += 1;
        let life = machine.lives;
        for peer in (0..count).filter(|peer| *peer != node) {
            let delay = self.below(50);
            self.after(delay, Event::Exchange { node, life, peer, token: 0, on_timer: true });
        }
        self.after(1_000, Event::Heal { node, life });
        let delay = 500 + self.below(2_000);
        self.after(delay, Event::Index { node, life });
        if self.machines[node].up.as_ref().expect("is up").pen.has_more() {
            self.write_soon(node);
        }
    }

    /// What is found at an opening: all that was there, unless it was spoilt, and all that was told to others.
    fn check_found(&mut self, node: usize) {
        let machine = &mut self.machines[node];
        let run = machine.up.as_mut().expect("is up");
        let before = std::mem::take(&mut machine.held);
        let vector = run.pen.logs().vector().clone();
        machine.held.spoilt.clone_from(&before.spoilt);
        let advertised = std::mem::take(&mut machine.advertised);
        let recovery = run.store.recovery().cloned();
        let mut gone = advertised.leads(&vector);
        let fell_back = std::mem::take(&mut machine.may_fall_back);
        if fell_back {
            gone.clear();
            // The commit that is gone may have mended something.
            let machine = &mut self.machines[node];
            let mended = std::mem::take(&mut machine.mended_last);
            machine.held.spoilt.extend(mended);
        }
        if let Some(recovery) = &recovery {
            gone.clear(); // it is another store now; what is behind gaps comes back
            self.tally.salvages += 1;
            self.say(format!("node {node} is salvaged: {:?}", recovery.salvaged));
        }
        if !gone.is_empty() {
            self.wrong(format!("node {node} told others of entries that are gone: {gone:?}"));
        }
        self.observe(node);
        self.observe_loose(node);
        if fell_back {
            self.excuse_what_is_lost();
            self.machines[node].destroyed = Some(self.now);
            self.machines[node].advertised = vector;
            return;
        }
        let held = &self.machines[node].held;
        if let Some((id, _)) = before.copies.keys().chain(before.loose.values()).find(|key| !held.keeps(key))
        {
            self.wrong(format!("node {node} had message {id} on its disk, and after opening it is gone"));
        }
        self.machines[node].advertised = vector;
    }

    /// Looks at what stands behind gaps.
    fn observe_loose(&mut self, node: usize) {
        let machine = &mut self.machines[node];
        let run = machine.up.as_ref().expect("is up");
        let logs = run.pen.logs();
        let mut reader = run.store.log().read().expect("a running store can be read");
        let mut wrong = None;
        for (origin, last) in logs.detached() {
            if last > LOG_COUNT_MAX {
                wrong = Some(format!("something is believed to be entry {last} of {origin}"));
                continue;
            }
            for seq in logs.vector().seq(origin) + 1..=last {
                if let Some(entry) = reader.peek(origin, seq).expect("a running store can be read")
                    && let Ok(key) = self.ledger.observe(&entry)
                {
                    machine.held.loose.insert((origin, seq), key);
                }
            }
        }
        if let Some(why) = wrong {
            self.wrong(format!("at node {node}: {why}"));
        }
    }

    /// Looks at everything that became visible at a node.
    pub(super) fn observe(&mut self, node: usize) {
        let machine = &mut self.machines[node];
        let run = machine.up.as_mut().expect("is up");
        let now = run.pen.logs().vector().clone();
        for (origin, seq) in now.cuts_since(&run.seen) {
            machine.held.cut(origin, seq);
            self.tally.cuts += 1;
        }
        let mut reader = run.store.log().read().expect("a running store can be read");
        let mut places: Vec<(Origin, u64)> = machine.held.spoilt.iter().copied().collect();
        for (origin, head) in now.changes_since(&run.seen) {
            places.extend((run.seen.seq(origin) + 1..=head.seq).map(|seq| (origin, seq)));
        }
        let mut wrong = None;
        for (origin, seq) in places {
            match reader.peek(origin, seq).expect("a running store can be read") {
                Some(entry) if now.seq(origin) >= seq => match self.ledger.observe(&entry) {
                    Ok(key) => machine.held.insert((origin, seq), key),
                    Err(why) => wrong = wrong.or(Some(why)),
                },
                Some(_) => {}
                None if machine.held.spoilt.contains(&(origin, seq)) => {}
                None => wrong = Some(format!("entry {seq} of {origin} is damaged, and nobody damaged it")),
            }
        }
        run.seen = now;
        if let Some(why) = wrong {
            self.wrong(format!("at node {node}: {why}"));
        }
    }

    /// Has the writer do this, perhaps together with what waits of clients. `None`: the node has ended over it.
    pub(super) fn write(
        &mut self,
        node: usize,
        care: &[Maintenance],
        admits: &[PeerRecords],
    ) -> Option<Vec<Admitted>> {
        let with_clients = self.dice.one_in(2) || (care.is_empty() && admits.is_empty());
        let machine = &mut self.machines[node];
        let now_ms = machine.clock_says(self.now);
        let run = machine.up.as_mut().expect("lives");
        let requests: Vec<Request> = if with_clients { std::mem::take(&mut run.inbox) } else { Vec::new() };
        let batch = WriteOps {
            maintenance: care.iter().collect(),
            sends: requests.iter().map(|request| request.messages.as_slice()).collect(),
            admits: admits.iter().collect(),
        };
        let written = match run.pen.commit(&batch, machine.room, now_ms) {
            Ok(written) => written,
            Err(error) => {
                self.no_answer(requests);
                self.storage_fails(node, &error.to_string());
                return None;
            }
        };
        let before = Before { copies: machine.held.copies.clone(), vector: run.seen.clone() };
        let has_more = run.pen.has_more() && machine.room.peers;
        machine.fold();
        for care in care {
            self.say(format!("node {node} takes care: {}", in_words(care)));
        }
        let spoilt = self.machines[node].held.spoilt.clone();
        self.observe(node);
        let machine = &mut self.machines[node];
        if written.changed {
            machine.mended_last = spoilt.difference(&machine.held.spoilt).copied().collect();
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

    /// The writer gets to it within a few milliseconds.
    pub(super) fn write_soon(&mut self, node: usize) {
        let (life, delay) = (self.machines[node].lives, self.dice.roll() % 5);
        let run = self.machines[node].up.as_mut().expect("lives");
        if !std::mem::replace(&mut run.write_is_due, true) {
            self.after(delay, Event::Write { node, life });
        }
    }

    pub(super) fn write_due(&mut self, node: usize) {
        self.machines[node].up.as_mut().expect("lives").write_is_due = false;
        self.write(node, &[], &[]);
    }

    pub(super) fn write_index(&mut self, node: usize) {
        let run = self.machines[node].up.as_ref().expect("lives");
        let settles = self.dice.one_in(3);
        if run.store.flush_index().is_err() || (settles && run.store.commit_for_fast_open().is_err()) {
            return self.storage_fails(node, "behind the acknowledgement");
        }
        self.machines[node].fold();
        let (life, delay) = (self.machines[node].lives, 500 + self.below(4_000));
        self.after(delay, Event::Index { node, life });
    }

    /// Gives up what nobody has.
    pub(super) fn heal(&mut self, node: usize) {
        let peers: Vec<usize> = (0..self.machines.len()).filter(|peer| *peer != node).collect();
        let run = self.machines[node].up.as_mut().expect("lives");
        let running = self.now - run.started;
        run.heal.update(run.store.log().damage(), run.pen.logs(), running);
        // Whoever answers at this address with another store is another peer; what matters is that it was asked.
        let numbers: Vec<usize> = (0..peers.len()).collect();
        let hopeless = run.heal.given_up(&numbers, running);
        for (origin, seq) in hopeless {
            self.say(format!("node {node} gives up entry {seq} of log {}", name(origin)));
            if self.write(node, &[Maintenance::Cut(origin, seq)], &[]).is_none() {
                return;
            }
        }
        self.scrub(node);
        let life = self.machines[node].lives;
        if self.lives(node, life) {
            self.after(1_000, Event::Heal { node, life });
        }
    }

    /// A step of the slow walk over everything.
    fn scrub(&mut self, node: usize) {
        let run = self.machines[node].up.as_mut().expect("lives");
        let logs = run.pen.logs().clone();
        let step = match run.scrub.step(&run.store, &logs) {
            Ok(step) => step,
            Err(error) => return self.storage_fails(node, &error.to_string()),
        };
        if let Some((origin, seq)) = step.index_lacks {
            self.wrong(format!("the index of node {node} lacks a row of entry {seq} of log {origin}"));
        }
        for care in step.maintenance {
            if self.write(node, &[care], &[]).is_none() {
                return;
            }
        }
    }

    /// A read or a write failed: the store is closed, and opened anew some time later.
    pub(super) fn storage_fails(&mut self, node: usize, why: &str) {
        let was_meant = self.machines[node].disk.fails();
        if !was_meant {
            self.wrong(format!("node {node}: the storage fails, and the disk does not: {why}"));
        }
        let loss = self.any_loss();
        self.say(format!("node {node} ends, its disk failed ({why}); of what was not synced: {loss:?}"));
        self.tally.crashes += 1;
        self.stop(node, Stop::Power(loss));
        let delay = self.below(3_000);
        self.after(delay, Event::Start { node });
    }

    /// Ends a node; what its clients wait for is never answered.
    pub(super) fn stop(&mut self, node: usize, how: Stop) {
        let Some(run) = self.machines[node].up.as_mut() else { return };
        let requests = std::mem::take(&mut run.inbox);
        self.no_answer(requests);
        self.machines[node].stop(how);
    }
}

fn in_words(care: &Maintenance) -> String {
    match care {
        Maintenance::Cut(origin, seq) => format!("log {} is to be cut at {seq}", name(*origin)),
        Maintenance::Repair(records) => format!("{} records for damaged entries", records.len()),
        Maintenance::Members(kept) => format!("{} members", kept.members.count()),
        Maintenance::Snapshots(contents) => format!("{} milestones", contents.len()),
        Maintenance::Checkpoint(origin, seq, _) => format!("checkpoint {seq} of log {}", name(*origin)),
    }
}
