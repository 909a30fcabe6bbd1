//! Owns the queries and actions of scenarios on a world, beyond its random events.

use chatchain::replica::write_ops::Space;

use super::World;
use super::machine::Key;

impl World {
    /// The message count of a node.
    pub fn messages(&self, node: usize) -> usize {
        let messages = self.machines[node].up.as_ref().expect("is up").store.counts().messages;
        usize::try_from(messages).expect("few")
    }

    pub fn conflicts(&self, node: usize) -> u64 {
        self.machines[node].up.as_ref().expect("is up").store.counts().conflicts
    }

    /// The messages that a node lists.
    pub fn listed(&self, node: usize) -> Vec<Key> {
        self.machines[node].held.copies.keys().copied().collect()
    }

    /// The number of messages that were acknowledged.
    pub fn acknowledged(&self) -> usize {
        usize::try_from(self.tally.acknowledged).expect("few")
    }

    /// The number of messages that were lost with all disks that had them.
    pub fn lost(&self) -> usize {
        usize::try_from(self.tally.lost).expect("few")
    }

    pub fn cuts(&self, node: usize) -> usize {
        self.machines[node].up.as_ref().expect("is up").committer.logs().vector().cuts().count()
    }

    /// The number of entries after gaps at a node.
    pub fn detached(&self, node: usize) -> u64 {
        let logs = self.machines[node].up.as_ref().expect("is up").committer.logs();
        logs.detached().map(|(origin, last)| last - logs.vector().seq(origin) - 1).sum()
    }

    /// The number of damaged entries and of gaps that a node has found.
    pub fn damaged(&self, node: usize) -> usize {
        let run = self.machines[node].up.as_ref().expect("is up");
        run.store.log().damage().count() + run.committer.logs().detached().count()
    }

    /// The next opening of this machine's store checks every page.
    pub fn check_all_pages_at_next_start(&mut self, node: usize) {
        self.machines[node].trusts_pages = false;
    }

    pub fn logs(&self, node: usize) -> usize {
        self.machines[node].up.as_ref().expect("is up").committer.logs().vector().origins()
    }

    /// Lists the whole history of a node, which finds damaged entries.
    pub fn list_all(&mut self, node: usize) {
        let _met_damage = self.list_and_check(node);
    }

    /// The disk of a node is full.
    pub fn fill(&mut self, node: usize) {
        self.say(format!("the disk of node {node} is full"));
        self.machines[node].space = Space { clients: false, peers: false };
    }

    /// No machine reaches any other.
    pub fn isolate_all(&mut self) {
        for from in 0..self.machines.len() {
            for to in (0..self.machines.len()).filter(|to| *to != from) {
                self.network.block(from, to);
            }
        }
        self.say("all machines are cut off");
    }

    /// A node can be reached but cannot connect to others.
    pub fn only_answers(&mut self, node: usize) {
        self.say(format!("node {node} only answers"));
        self.machines[node].cannot_connect = true;
    }

    /// Restores the link between two machines.
    pub fn connect(&mut self, one: usize, other: usize) {
        self.network.join(one, other);
        self.say(format!("{one} and {other} reach each other"));
    }

    /// Sends one id with a different content to each of these nodes.
    pub fn conflict(&mut self, nodes: &[usize]) {
        let (id, _) = self.invent(None);
        for node in nodes {
            let key = self.invent(Some(id));
            self.send(*node, &[key]);
        }
    }

    /// Damages this entry of the longest log on the disk of a stopped machine.
    pub fn damage_seq(&mut self, node: usize, seq: u64) {
        let entries = self.machines[node].held.entries.keys();
        let (origin, _) = entries.copied().max_by_key(|(_, seq)| *seq).expect("holds something");
        self.damage_entry(node, (origin, seq));
        self.excuse_lost_messages();
    }
}
