//! Executes the steps of a plan, and records which disks lost what.
//!
//! A step that is not possible (its node is down, this machine does not allow it) is skipped with the reason. Before a
//! disk loses data, its node is killed and the other running nodes are listed: the judge demands what they hold. A disk
//! that holds the only copy of more than a few acknowledged messages is spared.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::Server;
use crate::damage;
use crate::history::History;
use crate::judge::{Loss, Sent, Token, at_risk, mark, token};
use crate::pace;
use crate::processes::{Processes, READS, SYNCS};
use crate::reader;
use crate::schedule::{Action, Damage, Kind, Need, Step, StopMode};
use crate::support::http::Connection;
use crate::support::network::Network;

const LOG: &str = "log.redb";
const INDEX: &str = "index.redb";
/// A disk with the only copy of more acknowledged messages than this is spared, so that the judge has messages to
/// demand.
const RISKED_MAX: usize = 200;
/// Time limit for the nodes to converge, without sends, before all disks are damaged.
const QUIET_TIMEOUT: Duration = Duration::from_secs(10);
/// The promise: a node accepts messages within this time after its disk works again.
const RESUME_TIMEOUT: Duration = Duration::from_secs(5);
const STEP_TIMEOUT: Duration = Duration::from_secs(2);

pub struct Faults<'a> {
    pub processes: Processes,
    history: &'a History,
    seed: u64,
    can: &'a dyn Fn(Need) -> bool,
    /// The client number of the probes, and the number of probes so far.
    prober: u16,
    probes: u32,
    /// Nodes that ended without a fault that ends them.
    ended: BTreeSet<usize>,
    pub losses: Vec<Loss>,
    pub done: BTreeMap<Kind, u32>,
    pub skipped: Vec<String>,
}

impl<'a> Faults<'a> {
    pub fn new(
        processes: Processes,
        history: &'a History,
        seed: u64,
        prober: u16,
        can: &'a dyn Fn(Need) -> bool,
    ) -> Self {
        let (losses, done, skipped) = (Vec::new(), BTreeMap::new(), Vec::new());
        Faults {
            processes,
            history,
            seed,
            can,
            prober,
            probes: 0,
            ended: BTreeSet::new(),
            losses,
            done,
            skipped,
        }
    }

    /// Executes all steps at their times, or until an interruption.
    pub fn run(&mut self, steps: &[Step]) {
        for step in steps {
            pace::pause_until(self.history.began() + step.at);
            if pace::is_interrupted() {
                return;
            }
            self.check_ended();
            // `main` has already reported the kinds of faults that are not possible here.
            if step.kind.needs().is_some_and(|need| !(self.can)(need)) {
                continue;
            }
            let at = self.history.now();
            match self.step(step) {
                Ok(true) => *self.done.entry(step.kind).or_default() += 1,
                Ok(false) => {}
                Err(why) => self.skipped.push(format!("{at} ms, {} {:?}: {why}", step.kind, step.action)),
            }
        }
    }

    /// A node must not end by itself. Reports each such node once.
    pub fn check_ended(&mut self) {
        for (i, how) in self.processes.reap() {
            if self.ended.insert(i) {
                self.history.broke_contract(format!("after {} ms: {how}", self.history.now()));
            }
        }
    }

    /// Executes a step. True if a fault began.
    fn step(&mut self, step: &Step) -> Result<bool, String> {
        match &step.action {
            Action::Kill(i) => self.kill(*i)?,
            Action::KillAll => {
                let all: Vec<_> = (0..self.processes.nodes.len()).collect();
                self.processes.kill_many(&all);
            }
            Action::Freeze(i) => {
                self.up(*i)?;
                self.processes.freeze(*i, true);
            }
            Action::RestartLoop(i, pauses) => {
                for pause in pauses {
                    self.processes.kill(*i);
                    self.processes.start(*i);
                    pace::pause(*pause);
                }
            }
            Action::KillProxy => self.processes.kill_proxy(),
            Action::LinkDown(i) => self.net(|net| net.link(*i, false))?,
            Action::Block(ways) => self.net(|net| ways.iter().try_for_each(|(a, b)| net.block(*a, *b)))?,
            Action::Fill(i, free) => {
                self.up(*i)?;
                self.processes.fill(*i, *free).map_err(|e| e.to_string())?;
            }
            Action::SlowSync(i, delay) => {
                self.up(*i)?;
                self.processes.trace(*i, &[(SYNCS, &format!("delay_enter={}", delay.as_micros()))])?;
            }
            Action::FailSync(i) => {
                self.up(*i)?;
                self.processes.trace(*i, &[(SYNCS, "error=EIO")])?;
            }
            Action::FailRead(i) => {
                self.up(*i)?;
                // An open file is read from the page cache, so a failing fsync first makes the node close it.
                self.processes.trace(*i, &[(READS, "error=EIO"), (SYNCS, "error=EIO:when=1")])?;
            }
            Action::ReadOnly(i) => {
                self.up(*i)?;
                self.processes.make_read_only(*i)?;
            }
            Action::Wipe(i) => self.wipe(*i)?,
            Action::BackUp(i, frozen) => self.back_up(*i, *frozen)?,
            Action::Copy(i, frozen) => self.copy(*i, *frozen)?,
            Action::DamageIndex(i, damage) => {
                self.kill(*i)?;
                let damaged = damage::damage_file(&self.processes.store(*i).join(INDEX), damage);
                self.processes.start(*i);
                damaged.map_err(|e| e.to_string())?;
            }
            Action::DamageLog(i, end, damage) => self.damage(*end, &[(*i, damage)])?,
            Action::DamageAll(end, damage) => self.damage_all(*end, damage)?,
            undo => return self.undo(undo).map(|()| false),
        }
        Ok(true)
    }

    fn undo(&mut self, action: &Action) -> Result<(), String> {
        match action {
            Action::Start(i) => self.processes.start(*i),
            Action::StartAll => self.processes.start_all(),
            Action::Thaw(i) => self.processes.freeze(*i, false),
            Action::StartProxy => self.processes.start_proxy(),
            Action::LinkUp(i) => self.net(|net| net.link(*i, true))?,
            Action::Unblock(ways) => {
                self.net(|net| ways.iter().try_for_each(|(a, b)| net.unblock(*a, *b)))?;
            }
            Action::Free(i) => {
                self.processes.free(*i);
                self.must_resume(*i);
            }
            Action::Writable(i) => {
                self.processes.make_writable(*i)?;
                self.must_resume(*i);
            }
            Action::Untrace(i) => {
                self.processes.untrace(*i);
                self.must_resume(*i);
            }
            Action::Restore(i) => self.restore(*i)?,
            other => unreachable!("{other:?} undoes nothing"),
        }
        Ok(())
    }

    /// Ends all faults that no step has ended.
    pub fn end_all_faults(&mut self, nodes: usize) {
        for i in 0..self.processes.nodes.len() {
            self.processes.untrace(i);
            self.processes.freeze(i, false);
            drop(self.processes.make_writable(i)); // fails unless the step that makes it writable was skipped
            self.processes.free(i);
            if let Some(net) = self.processes.net() {
                drop(net.link(i, true));
                // The routes exist only if the step that removes them was skipped.
                (0..nodes).filter(|to| *to != i && i < nodes).for_each(|to| drop(net.unblock(i, to)));
            }
        }
        self.check_ended();
        self.processes.start_all();
        self.processes.start_proxy();
    }

    fn up(&self, i: usize) -> Result<(), String> {
        if self.processes.answers(i) { Ok(()) } else { Err(format!("node {i} does not run")) }
    }

    fn kill(&mut self, i: usize) -> Result<(), String> {
        if self.processes.kill(i) { Ok(()) } else { Err(format!("node {i} is down")) }
    }

    fn net(&self, change: impl FnOnce(&Network) -> Result<(), String>) -> Result<(), String> {
        self.processes.net().map_or(Err("no namespaces".into()), change)
    }

    /// Kills a node and records what the loss of its disk would lose. If that is too much, restarts the node and fails.
    fn kill_before_loss(&mut self, i: usize) -> Result<(), String> {
        self.kill(i)?;
        let loss = Loss { at: self.history.now(), nodes: vec![i], kept: self.held_elsewhere(&[i]) };
        self.losses.push(loss);
        let risked = self.history.show(|attempts| at_risk(attempts, &self.losses));
        if risked > RISKED_MAX {
            self.losses.pop();
            self.processes.start(i);
            return Err(format!("node {i} alone may hold {risked} acknowledged messages"));
        }
        Ok(())
    }

    /// The messages that the other running nodes list.
    fn held_elsewhere(&self, besides: &[usize]) -> HashSet<Token> {
        let others =
            (0..self.processes.nodes.len()).filter(|i| !besides.contains(i) && self.processes.answers(*i));
        let readings = others.filter_map(|i| reader::read(self.processes.nodes[i].addr, "").ok());
        readings.flat_map(|r| r.messages).filter_map(|message| token(&message.text)).collect()
    }

    fn wipe(&mut self, i: usize) -> Result<(), String> {
        self.kill_before_loss(i)?;
        let removed = fs::remove_dir_all(self.processes.store(i));
        self.processes.start(i);
        removed.map_err(|e| e.to_string())
    }

    /// Runs `work` while the files of a node cannot change: the node is frozen, or killed and started again.
    fn while_unchanged<T>(
        &mut self,
        i: usize,
        frozen: bool,
        work: impl FnOnce(&mut Self) -> T,
    ) -> Result<T, String> {
        self.up(i)?;
        if frozen {
            self.processes.freeze(i, true);
        } else {
            self.processes.kill(i);
        }
        let done = work(self);
        if frozen {
            self.processes.freeze(i, false);
        } else {
            self.processes.start(i);
        }
        Ok(done)
    }

    fn back_up(&mut self, i: usize, frozen: bool) -> Result<(), String> {
        let copied = self.while_unchanged(i, frozen, |this| {
            replace(&this.processes.store(i), &this.processes.backup(i))
        })?;
        copied.map_err(|e| e.to_string())
    }

    fn restore(&mut self, i: usize) -> Result<(), String> {
        if !self.processes.backup(i).exists() {
            return Err("there is no copy".into());
        }
        self.kill_before_loss(i)?;
        let replaced = replace(&self.processes.backup(i), &self.processes.store(i));
        self.processes.start(i);
        replaced.map_err(|e| e.to_string())
    }

    fn copy(&mut self, i: usize, frozen: bool) -> Result<(), String> {
        let further = self.processes.extend().map_err(|e| e.to_string())?;
        let copied = self.while_unchanged(i, frozen, |this| {
            replace(&this.processes.store(i), &this.processes.store(further))
        });
        self.processes.start(further);
        copied?.map_err(|e| e.to_string())
    }

    fn damage(&mut self, mode: StopMode, damage: &[(usize, &Vec<Damage>)]) -> Result<(), String> {
        let nodes: Vec<_> = damage.iter().map(|(i, _)| *i).collect();
        nodes.iter().try_for_each(|i| self.up(*i))?;
        match mode {
            StopMode::Killed => {
                self.processes.kill_many(&nodes);
            }
            StopMode::Stopped => self.processes.stop_many(&nodes),
        }
        let at = self.history.now();
        let mut kept = self.held_elsewhere(&nodes);
        for (i, damage) in damage {
            let log = self.processes.store(*i).join(LOG);
            damage::damage_file(&log, damage).map_err(|e| e.to_string())?;
            kept.extend(damage::intact(&log).map_err(|e| e.to_string())?);
        }
        self.losses.push(Loss { at, nodes: nodes.clone(), kept });
        for i in nodes {
            self.processes.start(i);
        }
        Ok(())
    }

    fn damage_all(&mut self, mode: StopMode, damage: &[Vec<Damage>]) -> Result<(), String> {
        let history = self.history;
        let _blocked = history.block_requests();
        let same = pace::within(QUIET_TIMEOUT, || self.digests().filter(|digests| all_equal(digests)));
        same.ok_or("the nodes did not converge before the damage")?;
        // A node that joined as a copy gets the same damage as the node with its index in the plan.
        let all: Vec<_> = (0..self.processes.nodes.len()).map(|i| (i, &damage[i % damage.len()])).collect();
        self.damage(mode, &all)
    }

    /// The digests of all nodes. None unless all answer.
    pub fn digests(&self) -> Option<Vec<String>> {
        let digest = |node: &crate::processes::Node| {
            let status = ask(node.addr, "/nodes")?;
            Some(status["digest"].as_str()?.to_owned())
        };
        self.processes.nodes.iter().map(digest).collect()
    }

    /// A node whose disk works again must accept a message soon, unless it was just started.
    fn must_resume(&mut self, i: usize) {
        if !self.processes.answers(i) || self.processes.uptime(i) < RESUME_TIMEOUT {
            return;
        }
        let began = Instant::now();
        let mut last = String::new();
        let resumed = pace::within(RESUME_TIMEOUT, || self.probe(i).map_err(|why| last = why).ok());
        if resumed.is_none() && !pace::is_interrupted() {
            let waited = began.elapsed();
            self.history.broke_contract(format!(
                "node {i} still refuses messages {waited:?} after its disk works again: {last}"
            ));
        }
    }

    /// Sends one probe message to a node.
    fn probe(&mut self, i: usize) -> Result<(), String> {
        let this = (self.prober, self.probes);
        self.probes += 1;
        let id = uuid::Uuid::from_u64_pair(self.seed, u64::MAX - u64::from(this.1)).to_string();
        let text = format!("{} probe", mark(this));
        let body = serde_json::json!({"sender": "probe", "recipient": "#probe", "text": text, "id": id});
        let (sender, recipient) = ("probe".into(), "#probe".into());
        self.history.invoke(this.0, vec![Sent { id: Some(id), sender, recipient, text, timestamp: None }]);
        self.history.unknown(this);
        let addr = self.processes.nodes[i].addr;
        let server = Server { node: Some(i), addr };
        let headers = [("content-type", "application/json")];
        let body = body.to_string();
        let request = crate::support::http::encode(addr, "POST", "/messages", &headers, body.as_bytes());
        let answer = Connection::open_within(addr, STEP_TIMEOUT, STEP_TIMEOUT)
            .and_then(|mut connection| connection.send(&request).and_then(|()| connection.receive("POST")))
            .map_err(|e| format!("{server:?}: {e}"))?;
        if answer.status() != 201 {
            return Err(format!("{}: {}", answer.status(), String::from_utf8_lossy(&answer.body)));
        }
        self.history.ok(this, &[i]);
        Ok(())
    }
}

/// Gets a path. None unless the answer is 200 with JSON.
pub fn ask(addr: std::net::SocketAddr, path: &str) -> Option<Value> {
    let mut connection = Connection::open_within(addr, STEP_TIMEOUT, STEP_TIMEOUT).ok()?;
    connection.send(&crate::support::http::encode(addr, "GET", path, &[], b"")).ok()?;
    let answer = connection.receive("GET").ok().filter(|answer| answer.status() == 200)?;
    serde_json::from_slice(&answer.body).ok()
}

pub fn all_equal<T: PartialEq>(list: &[T]) -> bool {
    list.windows(2).all(|pair| pair[0] == pair[1])
}

/// Replaces a directory by a copy of another one, which holds files only.
fn replace(from: &Path, to: &Path) -> io::Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}
