//! The record of an episode: every attempt before it is sent, every answer, and every violation found meanwhile.
//!
//! Shared by all threads of an episode. Times are milliseconds since its start.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, RwLock, RwLockWriteGuard};
use std::time::Instant;

use crate::judge::{Ack, Attempt, Attempts, Sent, Token, Violation, ViolationKind};

/// The most violations that are recorded while the episode runs.
const FINDINGS_MAX: usize = 1_000;

pub struct History {
    began: Instant,
    attempts: Vec<RwLock<Vec<Attempt>>>,
    findings: Mutex<Vec<Violation>>,
    /// For each complete listing: the age of the oldest acknowledged message that it lacked.
    stale: Mutex<Vec<u64>>,
    /// Read-locked during each request, and write-locked to block all requests.
    request_lock: RwLock<()>,
    over: AtomicBool,
}

impl History {
    pub fn new(clients: usize) -> Self {
        History {
            began: Instant::now(),
            attempts: (0..clients).map(|_| RwLock::default()).collect(),
            findings: Mutex::default(),
            stale: Mutex::default(),
            request_lock: RwLock::new(()),
            over: AtomicBool::new(false),
        }
    }

    pub fn began(&self) -> Instant {
        self.began
    }

    pub fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).expect("a short time")
    }

    /// Records messages of a client before they are sent. Their numbers continue the client's.
    pub fn invoke(&self, client: u16, sent: Vec<Sent>) {
        let now = self.now();
        let mut list = self.list(client).write().expect("no thread panics with the lock");
        list.extend(sent.into_iter().map(|sent| Attempt::new(sent, now)));
    }

    /// Records that the message is stored. Only the first acknowledgment counts.
    pub fn ok(&self, token: Token, on: &[usize]) {
        let at = self.now();
        self.change(token, |attempt| {
            attempt.acked.get_or_insert_with(|| Ack { at, on: on.to_vec() });
        });
    }

    /// Records that the message may be stored.
    pub fn unknown(&self, token: Token) {
        self.change(token, |attempt| attempt.maybe = true);
    }

    fn change(&self, (client, number): Token, change: impl FnOnce(&mut Attempt)) {
        let mut list = self.list(client).write().expect("no thread panics with the lock");
        change(&mut list[usize::try_from(number).expect("a recorded number")]);
    }

    fn list(&self, client: u16) -> &RwLock<Vec<Attempt>> {
        &self.attempts[usize::from(client)]
    }

    /// Gives access to all attempts. No attempt changes meanwhile.
    pub fn show<T>(&self, look: impl FnOnce(Attempts) -> T) -> T {
        let lists: Vec<_> =
            self.attempts.iter().map(|list| list.read().expect("no thread panics with the lock")).collect();
        let lists: Vec<&[Attempt]> = lists.iter().map(|list| list.as_slice()).collect();
        look(&lists)
    }

    pub fn found(&self, violations: impl IntoIterator<Item = Violation>) {
        let mut findings = self.findings.lock().expect("no thread panics with the lock");
        let room = FINDINGS_MAX.saturating_sub(findings.len());
        findings.extend(violations.into_iter().take(room));
    }

    pub fn broke_contract(&self, detail: impl Into<String>) {
        self.found([Violation::new(ViolationKind::Contract, detail)]);
    }

    pub fn findings(&self) -> Vec<Violation> {
        self.findings.lock().expect("no thread panics with the lock").clone()
    }

    pub fn read_was_stale_by(&self, age: u64) {
        self.stale.lock().expect("no thread panics with the lock").push(age);
    }

    pub fn stale(&self) -> Vec<u64> {
        self.stale.lock().expect("no thread panics with the lock").clone()
    }

    /// Runs one request. Waits while requests are blocked.
    pub fn run_request<T>(&self, request: impl FnOnce() -> T) -> T {
        let _running = self.request_lock.read().expect("no thread panics with the lock");
        request()
    }

    /// Waits for all running requests, and blocks new ones while the guard is held.
    pub fn block_requests(&self) -> RwLockWriteGuard<'_, ()> {
        self.request_lock.write().expect("no thread panics with the lock")
    }

    /// Tells clients and readers to finish their current request and end.
    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed) || crate::pace::is_interrupted()
    }
}
