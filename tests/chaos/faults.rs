//! Carries out the steps of a plan, and writes down which disks lost what.
//!
//! A step that does not fit (its node is down, this machine does not let us) is passed over with the reason. Before a
//! disk loses something, its node is killed, and the others that answer are asked what they hold: that is what the judge
//! may demand. A disk that alone holds more than a few acknowledged messages is spared.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::Door;
use crate::damage;
use crate::history::History;
use crate::judge::{Loss, Sent, Token, at_risk, mark, token};
use crate::pace;
use crate::reader;
use crate::schedule::{Action, End, Kind, Need, Step, Wound};
use crate::site::{READS, SYNCS, Site};
use crate::support::http::Connection;
use crate::support::network::Network;

const LOG: &str = "log.redb";
const INDEX: &str = "index.redb";
/// A disk that alone holds more acknowledged messages than this is not taken: the judge should have something to demand.
const RISKED_MAX: usize = 200;
/// Before all disks are damaged, nobody sends until all have the same.
const QUIET_TIMEOUT: Duration = Duration::from_secs(10);
/// The promise: a node takes messages again so soon after its disk does.
const RESUME_TIMEOUT: Duration = Duration::from_secs(5);
const STEP_TIMEOUT: Duration = Duration::from_secs(2);

pub struct Faults<'a> {
    pub site: Site,
    history: &'a History,
    seed: u64,
    can: &'a dyn Fn(Need) -> bool,
    /// The client number of the probes sent here, and how many there were.
    prober: u16,
    probes: u32,
    /// Nodes that ended by themselves.
    ended: BTreeSet<usize>,
    pub losses: Vec<Loss>,
    pub done: BTreeMap<Kind, u32>,
    pub passed_over: Vec<String>,
}

impl<'a> Faults<'a> {
    pub fn new(
        site: Site,
        history: &'a History,
        seed: u64,
        prober: u16,
        can: &'a dyn Fn(Need) -> bool,
    ) -> Self {
        let (losses, done, passed_over) = (Vec::new(), BTreeMap::new(), Vec::new());
        Faults {
            site,
            history,
            seed,
            can,
            prober,
            probes: 0,
            ended: BTreeSet::new(),
            losses,
            done,
            passed_over,
        }
    }

    /// Keeps to the plan until it is through or the run is interrupted.
    pub fn run(&mut self, steps: &[Step]) {
        for step in steps {
            pace::rest_until(self.history.began() + step.at);
            if pace::is_interrupted() {
                return;
            }
            self.look_for_ended();
            // Said once, before the first episode.
            if step.kind.needs().is_some_and(|need| !(self.can)(need)) {
                continue;
            }
            let at = self.history.now();
            match self.step(step) {
                Ok(true) => *self.done.entry(step.kind).or_default() += 1,
                Ok(false) => {}
                Err(why) => self.passed_over.push(format!("{at} ms, {} {:?}: {why}", step.kind, step.action)),
            }
        }
    }

    /// A node that nobody ended must run. Said once for each, however often it is started again.
    pub fn look_for_ended(&mut self) {
        for (i, how) in self.site.reap() {
            if self.ended.insert(i) {
                self.history.misconduct(format!("after {} ms: {how}", self.history.now()));
            }
        }
    }

    /// Answers whether a fault began.
    fn step(&mut self, step: &Step) -> Result<bool, String> {
        match &step.action {
            Action::Kill(i) => self.kill(*i)?,
            Action::KillAll => {
                let all: Vec<_> = (0..self.site.nodes.len()).collect();
                self.site.kill_many(&all);
            }
            Action::Freeze(i) => {
                self.up(*i)?;
                self.site.freeze(*i, true);
            }
            Action::RestartLoop(i, pauses) => {
                for pause in pauses {
                    self.site.kill(*i);
                    self.site.start(*i);
                    pace::rest(*pause);
                }
            }
            Action::KillProxy => self.site.kill_proxy(),
            Action::LinkDown(i) => self.net(|net| net.link(*i, false))?,
            Action::Block(ways) => self.net(|net| ways.iter().try_for_each(|(a, b)| net.block(*a, *b)))?,
            Action::Fill(i, free) => {
                self.up(*i)?;
                self.site.fill(*i, *free).map_err(|e| e.to_string())?;
            }
            Action::SlowSync(i, delay) => {
                self.up(*i)?;
                self.site.trace(*i, &[(SYNCS, &format!("delay_enter={}", delay.as_micros()))])?;
            }
            Action::FailSync(i) => {
                self.up(*i)?;
                self.site.trace(*i, &[(SYNCS, "error=EIO")])?;
            }
            Action::FailRead(i) => {
                self.up(*i)?;
                // What is open has its pages in memory, until it is closed.
                self.site.trace(*i, &[(READS, "error=EIO"), (SYNCS, "error=EIO:when=1")])?;
            }
            Action::ReadOnly(i) => {
                self.up(*i)?;
                self.site.make_read_only(*i)?;
            }
            Action::Wipe(i) => self.wipe(*i)?,
            Action::BackUp(i, frozen) => self.back_up(*i, *frozen)?,
            Action::Copy(i, frozen) => self.copy(*i, *frozen)?,
            Action::DamageIndex(i, wounds) => {
                self.kill(*i)?;
                let wounded = damage::wound(&self.site.store(*i).join(INDEX), wounds);
                self.site.start(*i);
                wounded.map_err(|e| e.to_string())?;
            }
            Action::DamageLog(i, end, wounds) => self.damage(*end, &[(*i, wounds)])?,
            Action::DamageAll(end, wounds) => self.damage_all(*end, wounds)?,
            undo => return self.undo(undo).map(|()| false),
        }
        Ok(true)
    }

    fn undo(&mut self, action: &Action) -> Result<(), String> {
        match action {
            Action::Start(i) => self.site.start(*i),
            Action::StartAll => self.site.start_all(),
            Action::Thaw(i) => self.site.freeze(*i, false),
            Action::StartProxy => self.site.start_proxy(),
            Action::LinkUp(i) => self.net(|net| net.link(*i, true))?,
            Action::Unblock(ways) => {
                self.net(|net| ways.iter().try_for_each(|(a, b)| net.unblock(*a, *b)))?;
            }
            Action::Free(i) => {
                self.site.free(*i);
                self.must_resume(*i);
            }
            Action::Writable(i) => {
                self.site.make_writable(*i)?;
                self.must_resume(*i);
            }
            Action::Untrace(i) => {
                self.site.untrace(*i);
                self.must_resume(*i);
            }
            Action::Restore(i) => self.restore(*i)?,
            other => unreachable!("{other:?} undoes nothing"),
        }
        Ok(())
    }

    /// Ends all faults, whatever was not undone.
    pub fn calm_down(&mut self, nodes: usize) {
        for i in 0..self.site.nodes.len() {
            self.site.untrace(i);
            self.site.freeze(i, false);
            drop(self.site.make_writable(i)); // it is, unless a step that would have made it so was cut short
            self.site.free(i);
            if let Some(net) = self.site.net() {
                drop(net.link(i, true));
                // They are there only if a step that would have removed them was cut short.
                (0..nodes).filter(|to| *to != i && i < nodes).for_each(|to| drop(net.unblock(i, to)));
            }
        }
        self.look_for_ended();
        self.site.start_all();
        self.site.start_proxy();
    }

    fn up(&self, i: usize) -> Result<(), String> {
        if self.site.answers(i) { Ok(()) } else { Err(format!("node {i} does not run")) }
    }

    fn kill(&mut self, i: usize) -> Result<(), String> {
        if self.site.kill(i) { Ok(()) } else { Err(format!("node {i} is down")) }
    }

    fn net(&self, change: impl FnOnce(&Network) -> Result<(), String>) -> Result<(), String> {
        self.site.net().map_or(Err("no namespaces".into()), change)
    }

    /// Kills a node and finds out what would be lost with its disk. Gives up, and starts it, if that is too much.
    fn kill_to_destroy(&mut self, i: usize) -> Result<(), String> {
        self.kill(i)?;
        let loss = Loss { at: self.history.now(), nodes: vec![i], kept: self.held_elsewhere(&[i]) };
        self.losses.push(loss);
        let risked = self.history.show(|attempts| at_risk(attempts, &self.losses));
        if risked > RISKED_MAX {
            self.losses.pop();
            self.site.start(i);
            return Err(format!("node {i} alone may hold {risked} acknowledged messages"));
        }
        Ok(())
    }

    /// What the other nodes that answer list.
    fn held_elsewhere(&self, besides: &[usize]) -> HashSet<Token> {
        let others = (0..self.site.nodes.len()).filter(|i| !besides.contains(i) && self.site.answers(*i));
        let readings = others.filter_map(|i| reader::read(self.site.nodes[i].addr, "").ok());
        readings.flat_map(|r| r.messages).filter_map(|message| token(&message.text)).collect()
    }

    fn wipe(&mut self, i: usize) -> Result<(), String> {
        self.kill_to_destroy(i)?;
        let removed = fs::remove_dir_all(self.site.store(i));
        self.site.start(i);
        removed.map_err(|e| e.to_string())
    }

    /// Runs while the files of a node do not change: it is frozen, or else killed and started again.
    fn held_still<T>(
        &mut self,
        i: usize,
        frozen: bool,
        work: impl FnOnce(&mut Self) -> T,
    ) -> Result<T, String> {
        self.up(i)?;
        if frozen {
            self.site.freeze(i, true);
        } else {
            self.site.kill(i);
        }
        let done = work(self);
        if frozen {
            self.site.freeze(i, false);
        } else {
            self.site.start(i);
        }
        Ok(done)
    }

    fn back_up(&mut self, i: usize, frozen: bool) -> Result<(), String> {
        let copied = self.held_still(i, frozen, |this| replace(&this.site.store(i), &this.site.backup(i)))?;
        copied.map_err(|e| e.to_string())
    }

    fn restore(&mut self, i: usize) -> Result<(), String> {
        if !self.site.backup(i).exists() {
            return Err("there is no copy".into());
        }
        self.kill_to_destroy(i)?;
        let replaced = replace(&self.site.backup(i), &self.site.store(i));
        self.site.start(i);
        replaced.map_err(|e| e.to_string())
    }

    fn copy(&mut self, i: usize, frozen: bool) -> Result<(), String> {
        let further = self.site.extend().map_err(|e| e.to_string())?;
        let copied =
            self.held_still(i, frozen, |this| replace(&this.site.store(i), &this.site.store(further)));
        self.site.start(further);
        copied?.map_err(|e| e.to_string())
    }

    fn damage(&mut self, end: End, wounds: &[(usize, &Vec<Wound>)]) -> Result<(), String> {
        let nodes: Vec<_> = wounds.iter().map(|(i, _)| *i).collect();
        nodes.iter().try_for_each(|i| self.up(*i))?;
        match end {
            End::Killed => {
                self.site.kill_many(&nodes);
            }
            End::Stopped => self.site.stop_many(&nodes),
        }
        let at = self.history.now();
        let mut kept = self.held_elsewhere(&nodes);
        for (i, wounds) in wounds {
            let log = self.site.store(*i).join(LOG);
            damage::wound(&log, wounds).map_err(|e| e.to_string())?;
            kept.extend(damage::intact(&log).map_err(|e| e.to_string())?);
        }
        self.losses.push(Loss { at, nodes: nodes.clone(), kept });
        for i in nodes {
            self.site.start(i);
        }
        Ok(())
    }

    fn damage_all(&mut self, end: End, wounds: &[Vec<Wound>]) -> Result<(), String> {
        let history = self.history;
        let _quiet = history.quiet();
        let same = pace::within(QUIET_TIMEOUT, || self.digests().filter(|digests| all_equal(digests)));
        same.ok_or("they did not converge before")?;
        // A copy that joined is hit like the node it was copied from, but its file is its own.
        let all: Vec<_> = (0..self.site.nodes.len()).map(|i| (i, &wounds[i % wounds.len()])).collect();
        self.damage(end, &all)
    }

    /// What all nodes say their digests are, if all answer.
    pub fn digests(&self) -> Option<Vec<String>> {
        let digest = |node: &crate::site::Node| {
            let status = ask(node.addr, "/nodes")?;
            Some(status["digest"].as_str()?.to_owned())
        };
        self.site.nodes.iter().map(digest).collect()
    }

    /// A node whose disk is well again must take a message soon. It may need its time if it was just started.
    fn must_resume(&mut self, i: usize) {
        if !self.site.answers(i) || self.site.uptime(i) < RESUME_TIMEOUT {
            return;
        }
        let began = Instant::now();
        let mut last = String::new();
        let resumed = pace::within(RESUME_TIMEOUT, || self.probe(i).map_err(|why| last = why).ok());
        if resumed.is_none() && !pace::is_interrupted() {
            let waited = began.elapsed();
            self.history
                .misconduct(format!("node {i} has a disk again and refuses after {waited:?}: {last}"));
        }
    }

    /// Sends one message to a node.
    fn probe(&mut self, i: usize) -> Result<(), String> {
        let this = (self.prober, self.probes);
        self.probes += 1;
        let id = uuid::Uuid::from_u64_pair(self.seed, u64::MAX - u64::from(this.1)).to_string();
        let text = format!("{} probe", mark(this));
        let body = serde_json::json!({"sender": "probe", "recipient": "#probe", "text": text, "id": id});
        let (sender, recipient) = ("probe".into(), "#probe".into());
        self.history.invoke(this.0, vec![Sent { id: Some(id), sender, recipient, text, timestamp: None }]);
        self.history.unknown(this);
        let addr = self.site.nodes[i].addr;
        let door = Door { node: Some(i), addr };
        let headers = [("content-type", "application/json")];
        let body = body.to_string();
        let request = crate::support::http::encode(addr, "POST", "/messages", &headers, body.as_bytes());
        let answer = Connection::open_within(addr, STEP_TIMEOUT, STEP_TIMEOUT)
            .and_then(|mut connection| connection.send(&request).and_then(|()| connection.receive("POST")))
            .map_err(|e| format!("{door:?}: {e}"))?;
        if answer.status() != 201 {
            return Err(format!("{}: {}", answer.status(), String::from_utf8_lossy(&answer.body)));
        }
        self.history.ok(this, &[i]);
        Ok(())
    }
}

/// Asks for something that is JSON. None: no answer, or not that.
pub fn ask(addr: std::net::SocketAddr, path: &str) -> Option<Value> {
    let mut connection = Connection::open_within(addr, STEP_TIMEOUT, STEP_TIMEOUT).ok()?;
    connection.send(&crate::support::http::encode(addr, "GET", path, &[], b"")).ok()?;
    let answer = connection.receive("GET").ok().filter(|answer| answer.status() == 200)?;
    serde_json::from_slice(&answer.body).ok()
}

pub fn all_equal<T: PartialEq>(list: &[T]) -> bool {
    list.windows(2).all(|pair| pair[0] == pair[1])
}

/// Puts a copy of a directory, which holds files only, in the place of another.
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
