//! Owns the faults of a world, and their effects on the models of its disks.

use std::collections::BTreeSet;

use chatchain::chain::record::{Entry, MAGIC};
use chatchain::replica::committer::Committer;
use chatchain::replica::write_ops::Space;
use chatchain::store::engine::files::{INDEX, LOG};
use chatchain::store::{OpenPolicy, Store};

use super::link_quality::{HalfOpen, LinkQuality};
use super::machine::{Backup, Stop};
use super::network::name;
use super::{Event, World, index};
use crate::disk::{Dice, DurabilityModel, Unsynced};
use chatchain::chain::ids::Origin;

/// The kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The power of a machine fails.
    Power,
    /// A process is killed.
    Kill,
    /// A disk fails after some more writes.
    Disk,
    /// A machine loses its disk and starts with an empty one.
    Wipe,
    /// A machine is restored from a backup of its disk.
    Restore,
    /// A running machine is copied with its memory, and the copy replaces another machine.
    Clone,
    /// Records on a disk are damaged.
    DamageRecords,
    /// Random bits in the files of a store are flipped.
    FlipBits,
    /// Some machines cannot reach some others.
    Partition,
    /// Some links are slow, cut in the middle of messages, or half-open.
    BadLinks,
    /// A clock is set.
    Clock,
    /// A disk is full.
    Full,
}

impl Fault {
    pub const ALL: [Fault; 12] = [
        Fault::Power,
        Fault::Kill,
        Fault::Disk,
        Fault::Wipe,
        Fault::Restore,
        Fault::Clone,
        Fault::DamageRecords,
        Fault::FlipBits,
        Fault::Partition,
        Fault::BadLinks,
        Fault::Clock,
        Fault::Full,
    ];
}

impl World {
    pub(super) fn fault(&mut self) {
        if self.calm {
            return;
        }
        let fault = self.plan.faults[index(self.dice.roll()) % self.plan.faults.len()];
        let node = self.any();
        self.inject(fault, node);
        let delay = self.below(2 * self.plan.fault_every_ms);
        self.after(delay, Event::Fault);
    }

    /// Schedules the start of a stopped machine.
    fn start_later(&mut self, node: usize) {
        let delay = self.below(8_000);
        self.after(delay, Event::Start { node });
    }

    /// Injects a fault into a machine.
    pub fn inject(&mut self, fault: Fault, node: usize) {
        self.tally.faults += 1;
        match fault {
            Fault::Power => {
                let seed = self.dice.roll();
                let all = [Unsynced::Kept, Unsynced::Lost, Unsynced::Some(seed), Unsynced::Torn(seed)];
                let loss = all[index(self.dice.roll() % 4)];
                self.switch_off(node, Stop::Power(loss));
                self.start_later(node);
            }
            Fault::Kill => {
                self.switch_off(node, Stop::Kill);
                self.start_later(node);
            }
            Fault::Disk => {
                let changes = self.below(40);
                self.say(format!("the disk of node {node} fails after {changes} more changes"));
                self.machines[node].disk.fail_after(Some(changes));
            }
            Fault::Wipe => self.wipe(node),
            Fault::Restore => self.restore_or_copy(node),
            Fault::Clone => {
                let onto = self.any();
                self.copy_running(node, onto);
            }
            Fault::DamageRecords | Fault::FlipBits => {
                if self.machines[node].up.is_none() {
                    return;
                }
                self.machines[node].disk.fail_after(None);
                let is_clean = !self.dice.one_in(3);
                self.switch_off(node, if is_clean { Stop::Cleanly } else { Stop::Kill });
                let count = 1 + self.below(4);
                if fault == Fault::DamageRecords {
                    self.damage_records(node, count);
                } else {
                    self.flip_bits(node, count);
                }
                if !is_clean {
                    let machine = &mut self.machines[node];
                    (machine.may_fall_back, machine.trusts_pages) = (true, false);
                }
                self.start_later(node);
            }
            Fault::Partition => self.partition(node),
            Fault::BadLinks => self.worsen_links(),
            Fault::Clock => self.set_clock(node),
            Fault::Full => {
                let space = Space { clients: self.dice.one_in(3), peers: self.dice.one_in(2) };
                self.say(format!("node {node}: {space:?}"));
                self.machines[node].space = space;
            }
        }
    }

    /// Stops a node, if it is up.
    pub fn switch_off(&mut self, node: usize, how: Stop) {
        if self.machines[node].up.is_some() {
            self.say(format!("node {node} stops: {how:?}"));
            self.tally.crashes += 1;
            self.stop(node, how);
        }
    }

    /// Starts a stopped machine.
    pub fn switch_on(&mut self, node: usize) {
        self.start(node);
    }

    /// Replaces the disk of a machine by an empty one.
    pub fn wipe(&mut self, node: usize) {
        self.switch_off(node, Stop::Kill);
        self.say(format!("node {node} has an empty disk"));
        let now = self.now;
        self.machines[node].replace_disk(Backup::default(), now);
        self.excuse_lost_messages();
        self.start_later(node);
    }

    fn restore_or_copy(&mut self, node: usize) {
        if self.machines[node].backup.is_none() || self.dice.one_in(3) {
            self.back_up(node);
        } else {
            self.restore(node);
            self.start_later(node);
        }
    }

    /// Takes a backup of a disk.
    pub fn back_up(&mut self, node: usize) {
        self.say(format!("the disk of node {node} is backed up"));
        let machine = &mut self.machines[node];
        machine.backup = Some(machine.copy_of_disk());
    }

    /// Restores the disk from its backup.
    pub fn restore(&mut self, node: usize) {
        self.switch_off(node, Stop::Kill);
        let Some(backup) = self.machines[node].backup.clone() else { return };
        self.say(format!("node {node} is restored from its backup"));
        let now = self.now;
        self.machines[node].replace_disk(backup, now);
        self.excuse_lost_messages();
    }

    /// Copies a running node with its memory onto another machine: both continue the same log.
    pub fn copy_running(&mut self, node: usize, onto: usize) {
        if node == onto || self.machines[node].up.is_none() || self.machines[node].disk.fails() {
            return;
        }
        self.switch_off(onto, Stop::Kill);
        self.was_cloned = true;
        self.say(format!("node {onto} is a copy of the running node {node}"));
        let backup = self.machines[node].copy_of_disk();
        let now = self.now;
        self.machines[onto].replace_disk(backup, now);
        self.excuse_lost_messages();
        let logs = self.machines[node].up.as_ref().expect("is up").committer.logs().clone();
        self.ledger.forked.extend(logs.own());
        self.ledger.cloned = true;
        let opened = Store::open_in(
            &self.machines[onto].disk,
            "sim",
            self.machines[onto].read_clock(now),
            OpenPolicy::Default,
        );
        let store = match opened {
            Ok((store, _)) => store,
            Err(error) => self.violation(format!("the copied disk cannot be opened: {error}")),
        };
        if store.recovery().is_some() {
            self.say("its disk is damaged: it starts from the disk alone");
            drop(store);
            return self.start(onto);
        }
        let mut names = Dice(self.dice.roll());
        let new_origin = Box::new(move || {
            Origin(((u128::from(names.roll()) << 64) | u128::from(names.roll())).to_be_bytes())
        });
        self.run_node(onto, Committer::new(store, logs, new_origin));
        // A machine that is copied while it runs keeps its incarnation id.
        if self.dice.one_in(2) {
            let opening = self.machines[node].up.as_ref().expect("is up").hello.incarnation_id;
            self.machines[onto].up.as_mut().expect("is up").hello.incarnation_id = opening;
        }
        self.observe(onto);
    }

    /// Damages some records on the disk of a stopped machine, in all places where its files have them.
    pub fn damage_records(&mut self, node: usize, count: u64) {
        for _ in 0..count {
            let entries = self.machines[node].held.entries.len() as u64;
            if entries == 0 {
                break;
            }
            let at = index(self.below(entries));
            let (place, _) = self.machines[node].held.entries.iter().nth(at).expect("is within");
            let place = *place;
            self.damage_entry(node, place);
        }
        self.excuse_lost_messages();
    }

    pub(super) fn damage_entry(&mut self, node: usize, place: (Origin, u64)) {
        let mut dice = Dice(self.dice.roll());
        let mut damaged = 0;
        self.machines[node].disk.corrupt(LOG, |file| {
            for start in copies_of(file, place) {
                let length = record_length(&file[start..]);
                let bit = index(dice.roll()) % (length * 8);
                file[start + bit / 8] ^= 1 << (bit % 8);
                damaged += 1;
            }
        });
        let (log, seq) = (name(place.0), place.1);
        self.say(format!(
            "on the disk of node {node} entry {seq} of log {log} is damaged ({damaged} copies)"
        ));
        let now = self.now;
        let machine = &mut self.machines[node];
        // The machine is off, so all bytes of the files are durable.
        machine.durability = DurabilityModel::new(machine.disk.bytes());
        machine.held.remove(place);
        machine.held.damaged.insert(place);
        machine.trusts_pages = true;
        machine.destroyed = Some(now);
    }

    /// Flips random bits in the files of a stopped machine, where a byte is not zero.
    fn flip_bits(&mut self, node: usize, count: u64) {
        let mut dice = Dice(self.dice.roll());
        for _ in 0..count {
            let file = if dice.one_in(4) { INDEX } else { LOG };
            let mut place = None;
            self.machines[node].disk.corrupt(file, |bytes| {
                let starts = (0..100).map(|_| index(dice.roll()) % bytes.len().max(1));
                let mut starts = starts.collect::<Vec<_>>().into_iter();
                place = starts.find(|at| bytes.get(*at).is_some_and(|byte| *byte != 0));
                if let Some(at) = place {
                    bytes[at] ^= 1 << (dice.roll() % 8);
                }
            });
            self.say(format!("on the disk of node {node} a bit of {file} is flipped: byte {place:?}"));
        }
        self.note_lost_entries(node);
        self.excuse_lost_messages();
    }

    /// Removes the entries from the disk model that have no intact record in any file any more.
    fn note_lost_entries(&mut self, node: usize) {
        let now = self.now;
        let machine = &mut self.machines[node];
        let images = machine.disk.bytes();
        let intact: BTreeSet<(Origin, u64)> = images.values().flat_map(|file| places_in(file)).collect();
        let held = machine.held.entries.keys().chain(machine.held.detached.keys());
        let gone: Vec<(Origin, u64)> = held.copied().filter(|place| !intact.contains(place)).collect();
        for place in gone {
            machine.held.remove(place);
            machine.held.damaged.insert(place);
        }
        machine.durability = DurabilityModel::new(images);
        (machine.destroyed, machine.trusts_pages) = (Some(now), false);
    }

    fn partition(&mut self, node: usize) {
        let count = self.machines.len();
        let what = self.below(4);
        let mut cut_off = Vec::new();
        for from in 0..count {
            for to in 0..count {
                let is_cut = match what {
                    0 => (from <= node) != (to <= node), // two sides
                    1 => from == node,                   // it cannot send
                    2 => from == node || to == node,     // it is isolated
                    _ => self.dice.one_in(3),            // anything
                };
                if is_cut && from != to {
                    self.network.block(from, to);
                    cut_off.push(format!("{from}->{to}"));
                }
            }
        }
        self.say(format!("cut off: {}", cut_off.join(" ")));
        let delay = self.below(20_000);
        self.after(delay, Event::NetworkRestored);
    }

    fn worsen_links(&mut self) {
        let count = self.machines.len();
        for (from, to) in (0..count).flat_map(|from| (0..count).map(move |to| (from, to))) {
            if from == to || self.dice.one_in(2) {
                continue;
            }
            let slow = 200 + self.below(20_000);
            let cut = self.below(8_000);
            let quality = LinkQuality {
                rate: self.dice.one_in(2).then_some(slow),
                cut_after: self.dice.one_in(3).then_some(cut),
                half_open: [None, None, Some(HalfOpen::Unanswered), Some(HalfOpen::Swallowed)]
                    [index(self.dice.roll() % 4)],
            };
            self.set_link(from, to, quality);
        }
        let delay = self.below(30_000);
        self.after(delay, Event::NetworkRestored);
    }

    /// Sets the quality of a link in one direction. It lasts until the network is restored.
    pub fn set_link(&mut self, from: usize, to: usize, quality: LinkQuality) {
        self.say(format!("the link {from}->{to} is bad: {quality:?}"));
        self.network.set_quality(from, to, quality);
    }

    /// Splits the network into the machines up to this one and the rest.
    pub fn divide(&mut self, last: usize) {
        for left in 0..=last {
            for right in last + 1..self.machines.len() {
                self.network.block(left, right);
                self.network.block(right, left);
            }
        }
        self.say(format!("cut off: 0..={last} from the others"));
    }

    fn set_clock(&mut self, node: usize) {
        let by = [1_000, 60_000, 240_000, 400_000, 100_000_000][index(self.dice.roll() % 5)];
        let by = if self.dice.one_in(2) { by } else { -by };
        self.shift_clock(node, by);
        self.machines[node].drift = i64::try_from(self.below(2_000)).expect("small") - 1_000;
    }

    /// Moves a clock by this many milliseconds.
    pub fn shift_clock(&mut self, node: usize, by: i64) {
        self.say(format!("the clock of node {node} is set by {by} ms"));
        self.machines[node].clock += by;
    }
}

fn record_length(bytes: &[u8]) -> usize {
    Entry::check(bytes).map_or(MAGIC.len(), |entry| entry.size())
}

/// The records in a file, each with its offset.
fn records_in(file: &[u8]) -> impl Iterator<Item = (usize, Entry)> {
    let mut from = 0;
    std::iter::from_fn(move || {
        loop {
            let rest = &file[from..];
            let at = rest.windows(MAGIC.len()).position(|window| window == MAGIC)?;
            let start = from + at;
            from = start + 1;
            if let Ok(entry) = Entry::check(&file[start..]) {
                return Some((start, entry));
            }
        }
    })
}

fn places_in(file: &[u8]) -> impl Iterator<Item = (Origin, u64)> {
    records_in(file).map(|(_, entry)| (entry.origin(), entry.seq()))
}

/// The offsets in a file of the records of this entry.
fn copies_of(file: &[u8], place: (Origin, u64)) -> Vec<usize> {
    let records = records_in(file).filter(|(_, entry)| (entry.origin(), entry.seq()) == place);
    records.map(|(start, _)| start).collect()
}
