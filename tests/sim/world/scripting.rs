//! Owns what stories ask of a world, and do to it, beyond what happens by itself.

use chatchain::replica::write_ops::Space;

use super::World;
use super::machine::Key;

impl World {
    /// How many messages a node counts.
    pub fn messages(&self, node: usize) -> usize {
        let messages = self.machines[node].up.as_ref().expect("is up").store.counts().messages;
        usize::try_from(messages).expect("few")
    }

    pub fn conflicts(&self, node: usize) -> u64 {
        self.machines[node].up.as_ref().expect("is up").store.counts().conflicts
    }

    /// What a node shows.
    pub fn listed(&self, node: usize) -> Vec<Key> {
        self.machines[node].held.copies.keys().copied().collect()
    }

    /// Messages that went with all disks that had them.
    pub fn lost(&self) -> usize {
        usize::try_from(self.tally.lost).expect("few")
    }

    pub fn cuts(&self, node: usize) -> usize {
        self.machines[node].up.as_ref().expect("is up").pen.logs().vector().cuts().count()
    }

    /// How many entries stand behind gaps at a node.
    pub fn loose(&self, node: usize) -> u64 {
        let logs = self.machines[node].up.as_ref().expect("is up").pen.logs();
        logs.detached().map(|(origin, last)| last - logs.vector().seq(origin) - 1).sum()
    }

    /// The next opening of this machine's store checks every page.
    pub fn opens_carefully(&mut self, node: usize) {
        self.machines[node].opens_carelessly = false;
    }

    pub fn logs(&self, node: usize) -> usize {
        self.machines[node].up.as_ref().expect("is up").pen.logs().vector().origins()
    }

    /// Somebody lists everything at a node, which finds what is damaged.
    pub fn list_all(&mut self, node: usize) {
        let _met_damage = self.look_at(node);
    }

    /// A disk has room for nothing.
    pub fn fill(&mut self, node: usize) {
        self.say(format!("the disk of node {node} is full"));
        self.machines[node].room = Space { clients: false, peers: false };
    }

    /// Nobody reaches anybody.
    pub fn isolate_all(&mut self) {
        for from in 0..self.machines.len() {
            for to in (0..self.machines.len()).filter(|to| *to != from) {
                self.network.block(from, to);
            }
        }
        self.say("everybody is cut off");
    }

    /// This node is reached, and reaches nobody by itself.
    pub fn only_answers(&mut self, node: usize) {
        self.say(format!("node {node} only answers"));
        self.machines[node].reaches_nobody = true;
    }

    /// These two reach each other.
    pub fn connect(&mut self, one: usize, other: usize) {
        self.network.join(one, other);
        self.say(format!("{one} and {other} reach each other"));
    }

    /// The same id with other content at each of these nodes.
    pub fn conflict(&mut self, nodes: &[usize]) {
        let (id, _) = self.invent(None);
        for node in nodes {
            let key = self.invent(Some(id));
            self.send(*node, &[key]);
        }
    }

    /// Spoils this entry of the log that has most of them on the disk of a machine that is off.
    pub fn spoil_seq(&mut self, node: usize, seq: u64) {
        let entries = self.machines[node].held.entries.keys();
        let (origin, _) = entries.copied().max_by_key(|(_, seq)| *seq).expect("holds something");
        self.spoil_entry(node, (origin, seq));
        self.excuse_what_is_lost();
    }
}
