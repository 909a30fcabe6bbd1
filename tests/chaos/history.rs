//! What an episode's clients and readers wrote down: every attempt before it was sent, every answer, every finding.
//!
//! Shared by all threads of an episode. Times are milliseconds since it began.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, RwLock, RwLockWriteGuard};
use std::time::Instant;

use crate::judge::{Ack, Attempt, Attempts, Sent, Token, Violation, Wrong};

/// Of each kind of finding that readers and clients make while the episode runs, so many are written down.
const FINDINGS_MAX: usize = 1_000;

pub struct History {
    began: Instant,
    attempts: Vec<RwLock<Vec<Attempt>>>,
    findings: Mutex<Vec<Violation>>,
    /// Of each whole listing that was read: the age of the oldest acknowledged message that it lacked.
    stale: Mutex<Vec<u64>>,
    /// Held by whoever sends or reads, while one request runs.
    gate: RwLock<()>,
    over: AtomicBool,
}

impl History {
    pub fn new(clients: usize) -> Self {
        History {
            began: Instant::now(),
            attempts: (0..clients).map(|_| RwLock::default()).collect(),
            findings: Mutex::default(),
            stale: Mutex::default(),
            gate: RwLock::new(()),
            over: AtomicBool::new(false),
        }
    }

    pub fn began(&self) -> Instant {
        self.began
    }

    pub fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).expect("a short time")
    }

    /// Writes down messages of a client, before they are sent. The numbers continue those it has.
    pub fn invoke(&self, client: u16, sent: Vec<Sent>) {
        let now = self.now();
        let mut list = self.list(client).write().expect("nobody panics with it");
        list.extend(sent.into_iter().map(|sent| Attempt::new(sent, now)));
    }

    /// It is stored; the first answer that says so counts.
    pub fn ok(&self, token: Token, on: &[usize]) {
        let at = self.now();
        self.change(token, |attempt| {
            attempt.acked.get_or_insert_with(|| Ack { at, on: on.to_vec() });
        });
    }

    /// It may be stored.
    pub fn unknown(&self, token: Token) {
        self.change(token, |attempt| attempt.maybe = true);
    }

    fn change(&self, (client, number): Token, change: impl FnOnce(&mut Attempt)) {
        let mut list = self.list(client).write().expect("nobody panics with it");
        change(&mut list[usize::try_from(number).expect("it was invoked")]);
    }

    fn list(&self, client: u16) -> &RwLock<Vec<Attempt>> {
        &self.attempts[usize::from(client)]
    }

    /// Shows all attempts as they stand now; nobody sends meanwhile.
    pub fn show<T>(&self, look: impl FnOnce(Attempts) -> T) -> T {
        let lists: Vec<_> =
            self.attempts.iter().map(|list| list.read().expect("nobody panics with it")).collect();
        let lists: Vec<&[Attempt]> = lists.iter().map(|list| list.as_slice()).collect();
        look(&lists)
    }

    pub fn found(&self, violations: impl IntoIterator<Item = Violation>) {
        let mut findings = self.findings.lock().expect("nobody panics with it");
        let room = FINDINGS_MAX.saturating_sub(findings.len());
        findings.extend(violations.into_iter().take(room));
    }

    pub fn misconduct(&self, detail: impl Into<String>) {
        self.found([Violation::new(Wrong::Conduct, detail)]);
    }

    pub fn findings(&self) -> Vec<Violation> {
        self.findings.lock().expect("nobody panics with it").clone()
    }

    pub fn read_was_stale_by(&self, age: u64) {
        self.stale.lock().expect("nobody panics with it").push(age);
    }

    pub fn stale(&self) -> Vec<u64> {
        self.stale.lock().expect("nobody panics with it").clone()
    }

    /// Runs one request, unless somebody has asked for quiet.
    pub fn pass<T>(&self, request: impl FnOnce() -> T) -> T {
        let _pass = self.gate.read().expect("nobody panics with it");
        request()
    }

    /// No request runs while this is held.
    pub fn quiet(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().expect("nobody panics with it")
    }

    /// Clients finish what they have begun and end; so do readers.
    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed) || crate::pace::is_interrupted()
    }
}
