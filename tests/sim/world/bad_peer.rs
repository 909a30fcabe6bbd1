//! Owns a bad peer: a machine that has the key of the network and sends well-formed messages that lie.
//!
//! It knows what nodes send it, answers their requests and sends requests of its own. Each message is drawn from its
//! attacks. An entry that a node may admit, because it follows the entries before it, is told to the ledger; any other
//! forged entry that a node admits is a violation. While it rests, it changes no log: it claims, asks and is silent.

use std::collections::BTreeMap;

use chatchain::chain::clock::Stamp;
use chatchain::chain::ids::{ChainHash, EntryKey, Origin};
use chatchain::chain::kind::{EntryKind, LogType};
use chatchain::chain::message::{Digest, Message, UncheckedMessage};
use chatchain::chain::record::{Entry, EntryBody};
use chatchain::chain::sync::wire::{EntryRange, Heads, Hello, Run, SyncMessage, short};
use chatchain::chain::vector::{Head, LogSpan, Vector};
use uuid::Uuid;

use super::network::Packet;
use super::node::hello;
use super::{BASE_MS, Event, World, index};
use crate::disk::Dice;

const YEAR_MS: u64 = 365 * 86_400_000;
/// Entries that it forges in one world; more of the same kind only cost time.
const FORGED_MAX: usize = 1_000;
/// Ranges that it asks for in one message.
const WANTS_MAX: u64 = 40;
/// Ranges of one request that it answers.
const DELIVERIES_MAX: usize = 8;
/// The longest pause between two requests, and before an answer.
const ASKS_EVERY_MS: u64 = 1_000;
const ANSWERS_WITHIN_MS: u64 = 600;
/// Pauses between messages that change logs, while there are faults and in the calm phase. Nodes that never rest from
/// new entries never have equal digests.
const CHANGE_EVERY_MS: [u64; 2] = [100, 1_000];
const CALM_CHANGE_EVERY_MS: u64 = 15_000;

/// The kinds of lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// Other entries at the seqs of honest logs, or after them, correctly chained.
    Fork,
    /// As a fork, from the first entry on and with another type of the log.
    LogTypes,
    /// Cuts of honest and invented logs.
    Cut,
    /// Heads that it never delivers.
    ClaimMore,
    /// Fewer entries than it has.
    ClaimLess,
    /// It has exactly what the other one has.
    ClaimEqual,
    /// Floors above 0.
    Floors,
    /// An honest log is its own.
    ClaimOwn,
    /// Runs with a wrong hash before or after their entries.
    BrokenRuns,
    /// Many logs of one entry.
    ManyLogs,
    /// Control logs, unknown kinds and content that no node can decode.
    Unreadable,
    /// Stamps that are a year ahead or 0.
    Stamps,
    /// Honest messages again in its own logs, and other content with their ids.
    Copies,
    /// Logs with the names that branches of honest logs will have.
    BranchNames,
    /// Everything again and again, and entries that do not exist.
    Wants,
    /// There is always more.
    More,
    /// It never knows the other's vector.
    NeedFull,
    /// Other incarnations and stores.
    Incarnations,
    /// No answer.
    Silence,
    /// Forged records for entries that a node asks for.
    FalseAnswers,
}

impl Attack {
    pub const ALL: [Attack; 20] = [
        Attack::Fork,
        Attack::LogTypes,
        Attack::Cut,
        Attack::ClaimMore,
        Attack::ClaimLess,
        Attack::ClaimEqual,
        Attack::Floors,
        Attack::ClaimOwn,
        Attack::BrokenRuns,
        Attack::ManyLogs,
        Attack::Unreadable,
        Attack::Stamps,
        Attack::Copies,
        Attack::BranchNames,
        Attack::Wants,
        Attack::More,
        Attack::NeedFull,
        Attack::Incarnations,
        Attack::Silence,
        Attack::FalseAnswers,
    ];

    /// Whether nodes store something because of it.
    fn changes_logs(self) -> bool {
        use Attack::{BranchNames, Cut, Fork, LogTypes, ManyLogs};
        matches!(self, Fork | LogTypes | Cut | ManyLogs | BranchNames)
    }
}

/// The state of a bad peer.
pub struct BadPeer {
    dice: Dice,
    attacks: Vec<Attack>,
    hello: Hello,
    /// Honest logs as nodes sent them, each from its first entry on.
    known: BTreeMap<Origin, Vec<Entry>>,
    /// The last seq of each log that any node named.
    named: BTreeMap<Origin, u64>,
    /// Its own versions of logs, each from its first entry on.
    forged: BTreeMap<Origin, Vec<Entry>>,
    /// Entries that nodes may admit and that the ledger was not told of.
    admissible: Vec<Entry>,
    forged_count: usize,
    /// Runs of the next message are spoiled: the hash after their entries is wrong.
    spoils: Vec<ChainHash>,
    /// The longest pause between two messages that change logs.
    change_every_ms: u64,
    /// Before this time it changes no log.
    rests_until: u64,
    pub is_calm: bool,
}

/// A message while it is composed.
struct Draft {
    message: SyncMessage,
    vector: Vector,
    now: u64,
    may_change: bool,
}

fn head(entries: &[Entry], seq: usize) -> Head {
    let (origin, log_type) = (entries[0].origin(), entries[0].log_type());
    entries[..seq].iter().fold(Head::genesis(origin, log_type), Head::followed_by)
}

/// The entries of a log after the first `before`, as a run.
fn run(entries: &[Entry], before: usize) -> Run {
    let (origin, log_type) = (entries[0].origin(), entries[0].log_type());
    let (before, entries) = (head(entries, before), entries[before..].to_vec());
    Run { origin, log_type, before, entries, is_damaged: false }
}

fn span(entries: &[Entry]) -> LogSpan {
    LogSpan::whole(entries[0].origin(), entries[0].log_type(), head(entries, entries.len()))
}

impl BadPeer {
    pub fn new(hello: Hello, attacks: Vec<Attack>, seed: u64) -> Self {
        let mut dice = Dice(seed);
        BadPeer {
            change_every_ms: CHANGE_EVERY_MS[index(dice.roll() % 2)],
            dice,
            attacks,
            hello,
            known: BTreeMap::new(),
            named: BTreeMap::new(),
            forged: BTreeMap::new(),
            admissible: Vec::new(),
            forged_count: 0,
            spoils: Vec::new(),
            rests_until: 0,
            is_calm: false,
        }
    }

    /// The entries that nodes may admit, since the last call.
    pub fn take_admissible(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.admissible)
    }

    fn has(&self, attack: Attack) -> bool {
        self.attacks.contains(&attack)
    }

    /// Whether it uses this attack now.
    fn uses(&mut self, attack: Attack, one_in: u64) -> bool {
        self.has(attack) && self.dice.one_in(one_in)
    }

    fn below(&mut self, most: u64) -> u64 {
        self.dice.roll() % most.max(1)
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.fill_with(|| self.dice.roll().to_be_bytes()[0]);
        bytes
    }

    /// Keeps what a node sent.
    pub fn hear(&mut self, message: &SyncMessage) {
        for (origin, span) in message.heads.iter().flat_map(|heads| &heads.changes) {
            self.named.insert(*origin, span.head.seq);
        }
        for run in message.runs.iter().filter(|run| !run.entries.is_empty()) {
            let log = self.known.entry(run.origin).or_default();
            let here =
                if log.is_empty() { Head::genesis(run.origin, run.log_type) } else { head(log, log.len()) };
            if run.before == here {
                log.extend(run.entries.iter().cloned());
            }
        }
        self.known.retain(|_, entries| !entries.is_empty());
    }

    /// The next message: an answer to `asked`, or a request. `None`: it is silent.
    pub fn speak(&mut self, asked: Option<&SyncMessage>, now: u64) -> Option<SyncMessage> {
        if self.uses(Attack::Silence, 6) {
            return None;
        }
        let is_rested = now >= self.rests_until && self.forged_count < FORGED_MAX;
        if self.uses(Attack::Incarnations, 5) {
            self.hello.incarnation_id = self.bytes();
            if self.dice.one_in(3) {
                self.hello.store_id = self.bytes();
            }
        }
        let mut vector = Vector::default();
        for entries in self.known.values() {
            vector.insert(entries[0].origin(), span(entries));
        }
        let message = SyncMessage::quiet(self.hello.clone(), [0; 16], BASE_MS + now);
        let mut draft = Draft { message, vector, now, may_change: is_rested };
        self.want_what_is_new(&mut draft.message);
        if let Some(asked) = asked {
            self.deliver(asked, &mut draft);
        }
        let count = 1 + self.below(3);
        for _ in 0..count {
            let attack = self.attacks[index(self.dice.roll()) % self.attacks.len()];
            if is_rested || !attack.changes_logs() {
                self.attack(attack, &mut draft);
            }
        }
        if is_rested
            && (self.attacks.iter().any(|attack| attack.changes_logs()) || self.has(Attack::FalseAnswers))
        {
            let pause = if self.is_calm { CALM_CHANGE_EVERY_MS } else { self.change_every_ms };
            self.rests_until = now + self.below(2 * pause);
        }
        Some(self.finish(draft, asked))
    }

    /// Adds heads and digest.
    fn finish(&mut self, draft: Draft, asked: Option<&SyncMessage>) -> SyncMessage {
        let Draft { mut message, vector, .. } = draft;
        message.digest = short(vector.digest());
        message.heads = Heads::since(&vector, None);
        if let (Some(asked), true) = (asked, self.uses(Attack::ClaimEqual, 3)) {
            (message.digest, message.heads) = (asked.digest, None);
        } else if self.uses(Attack::NeedFull, 6) {
            message.heads = None; // the other side does not know its vector either
        }
        if !self.spoils.is_empty() {
            message.runs.retain(|run| self.spoils.contains(&run.after().hash));
        }
        message
    }

    /// The bytes of a message. A spoiled run keeps its entries and gets another hash after them.
    pub fn encode(&mut self, message: &SyncMessage) -> Vec<u8> {
        let mut bytes = message.encode();
        for hash in std::mem::take(&mut self.spoils) {
            // Short runs are hardly ever packed, so their bytes are found. Otherwise nothing is sent.
            let Some(at) = bytes.windows(hash.0.len()).position(|window| window == hash.0) else {
                return SyncMessage { runs: Vec::new(), ..message.clone() }.encode();
            };
            bytes[at] ^= 1;
        }
        bytes
    }

    /// Asks for the entries of honest logs that it does not know: it cannot forge what it has not seen.
    fn want_what_is_new(&self, message: &mut SyncMessage) {
        for (origin, last) in &self.named {
            let first = self.known.get(origin).map_or(0, |entries| entries.len() as u64) + 1;
            if first <= *last {
                message.wants.push(EntryRange { origin: *origin, first, last: *last });
            }
        }
    }

    /// Sends entries that a request asks for: as they are, of its own version of the log, or forged for this request.
    fn deliver(&mut self, asked: &SyncMessage, draft: &mut Draft) {
        for want in asked.wants.iter().take(DELIVERIES_MAX) {
            let lies = draft.may_change && self.dice.one_in(2);
            if lies && self.has(Attack::FalseAnswers) {
                let run = self.false_answer(want, draft.now);
                draft.message.runs.push(run);
                continue;
            }
            let version = if lies { self.forged.get(&want.origin) } else { None };
            let Some(entries) = version.or_else(|| self.known.get(&want.origin)) else { continue };
            let (first, last) = (index(want.first - 1), index(want.last).min(entries.len()));
            if first < last && want.last <= FORGED_MAX as u64 {
                draft.message.runs.push(run(&entries[..last], first));
            }
        }
    }

    /// A forged entry at the first wanted seq, after the true entries or after none.
    fn false_answer(&mut self, want: &EntryRange, now: u64) -> Run {
        let before = index(want.first - 1);
        let true_entries = self.known.get(&want.origin).filter(|entries| entries.len() >= before).cloned();
        if let Some(entries) = true_entries.filter(|entries| !entries.is_empty() && self.dice.one_in(2)) {
            let forged = self.continue_log(&entries[..before], &entries[0], 1, now);
            return run(&forged, before);
        }
        let (origin, log_type) = (want.origin, LogType::MESSAGES);
        let entry = self.entry(origin, log_type, want.first, None, now);
        let before = Head { seq: want.first - 1, hash: ChainHash(self.bytes()) };
        Run { origin, log_type, before, entries: vec![entry], is_damaged: false }
    }

    fn attack(&mut self, attack: Attack, draft: &mut Draft) {
        match attack {
            Attack::Fork if !self.forged.is_empty() && self.dice.one_in(2) => self.spread(draft),
            Attack::Fork => self.fork(draft),
            Attack::LogTypes => self.change_type(draft),
            Attack::Cut => self.cut(draft),
            Attack::ClaimMore => self.claim_more(draft),
            Attack::ClaimLess if self.dice.one_in(2) => draft.vector = Vector::default(),
            Attack::ClaimLess => {
                for entries in self.known.values() {
                    let seq = 1 + index(self.dice.roll()) % entries.len();
                    draft.vector.insert(entries[0].origin(), span(&entries[..seq]));
                }
            }
            Attack::Floors => self.raise_floors(draft),
            Attack::ClaimOwn => draft.message.own = self.any_known().map(|entries| entries[0].origin()),
            Attack::BrokenRuns => self.break_run(draft),
            Attack::ManyLogs => {
                for _ in 0..=self.below(20) {
                    let origin = Origin(self.bytes());
                    self.invent_log(origin, draft);
                }
            }
            Attack::BranchNames => {
                if let Some(entries) = self.any_known() {
                    let first = &entries[index(self.dice.roll()) % entries.len()];
                    let origin = Origin::branch(first.key(), first.log_type(), first.leaf());
                    self.invent_log(origin, draft);
                }
            }
            Attack::Wants => self.want_anything(draft),
            Attack::More => draft.message.more = true,
            Attack::NeedFull => draft.message.need_full = true,
            // These change what other attacks do, or the whole message.
            Attack::ClaimEqual
            | Attack::Unreadable
            | Attack::Stamps
            | Attack::Copies
            | Attack::Incarnations
            | Attack::Silence
            | Attack::FalseAnswers => {}
        }
    }

    fn any_known(&mut self) -> Option<Vec<Entry>> {
        let at = index(self.below(self.known.len() as u64));
        self.known.values().nth(at).cloned()
    }

    /// An honest log with other entries from some seq on, near its end or anywhere.
    fn fork(&mut self, draft: &mut Draft) {
        let Some(entries) = self.any_known() else { return };
        let same = if self.dice.one_in(2) {
            entries.len() - index(self.below(2))
        } else {
            index(self.below(entries.len() as u64 + 1))
        };
        let count = 1 + self.below(4);
        let forged = self.continue_log(&entries[..same], &entries[0], count, draft.now);
        self.forged.insert(entries[0].origin(), forged);
        self.send_version(entries[0].origin(), same, draft);
    }

    /// Sends a version of a log that another node may have got before.
    fn spread(&mut self, draft: &mut Draft) {
        let at = index(self.below(self.forged.len() as u64));
        let (origin, entries) = self.forged.iter().nth(at).expect("is within");
        let (origin, count) = (*origin, entries.len());
        let before = index(self.below(count as u64));
        self.send_version(origin, before, draft);
    }

    /// Sends its version of a log, all of it or from where it is forged, and claims to have it.
    fn send_version(&mut self, origin: Origin, before: usize, draft: &mut Draft) {
        let before = if self.dice.one_in(2) { before } else { 0 };
        let entries = &self.forged[&origin];
        draft.message.runs.push(run(entries, before));
        draft.vector.insert(origin, span(entries));
    }

    fn change_type(&mut self, draft: &mut Draft) {
        let Some(entries) = self.any_known() else { return };
        let is_control = self.dice.one_in(2);
        let keep_days = if is_control { 0 } else { 7 };
        let log_type = LogType { is_control, is_branch: self.dice.one_in(2), keep_days };
        let origin = entries[0].origin();
        let count = 1 + self.below(entries.len() as u64 + 2);
        let forged = self.log(origin, log_type, count, draft.now);
        self.forged.insert(origin, forged);
        self.send_version(origin, 0, draft);
    }

    /// A log of one entry, or of a few.
    fn invent_log(&mut self, origin: Origin, draft: &mut Draft) {
        let is_control = self.uses(Attack::Unreadable, 3);
        let log_type = LogType { is_control, ..LogType::MESSAGES };
        let count = if self.dice.one_in(8) { 4 } else { 1 };
        let forged = self.log(origin, log_type, count, draft.now);
        self.forged.insert(origin, forged);
        self.send_version(origin, 0, draft);
    }

    fn cut(&mut self, draft: &mut Draft) {
        let logs = if self.dice.one_in(3) { &self.forged } else { &self.known };
        let at = index(self.dice.roll()) % logs.len().max(1);
        let entries = logs.values().nth(at).cloned();
        let origin = entries.as_ref().map_or(Origin(self.bytes()), |entries| entries[0].origin());
        let length = entries.as_ref().map_or(0, Vec::len);
        let seq = 1 + self.below(length as u64 + 3);
        let before = entries.filter(|_| seq > 1).map(|entries| head(&entries, length.min(index(seq - 1))));
        draft.vector.cut(origin, seq, before);
        self.forged_count += 1;
    }

    /// Logs that exist or not are longer than here, or have another hash.
    fn claim_more(&mut self, draft: &mut Draft) {
        for _ in 0..=self.below(3) {
            let at = index(self.below(self.named.len() as u64));
            let named = self.named.iter().nth(at).map(|(origin, last)| (*origin, *last));
            let (origin, last) = named.unwrap_or((Origin(self.bytes()), 0));
            let origin = if self.dice.one_in(4) { Origin(self.bytes()) } else { origin };
            let further = [0, 1, 1_000, u64::MAX / 2][index(self.below(4))];
            let head = Head { seq: (last + further).max(1), hash: ChainHash(self.bytes()) };
            draft.vector.insert(origin, LogSpan::whole(origin, LogType::MESSAGES, head));
        }
    }

    fn raise_floors(&mut self, draft: &mut Draft) {
        let Some(entries) = self.any_known() else { return };
        let origin = if self.dice.one_in(4) { Origin(self.bytes()) } else { entries[0].origin() };
        let seq = 1 + index(self.below(entries.len() as u64));
        let is_true = self.dice.one_in(2);
        let floor = if is_true {
            head(&entries, seq)
        } else {
            Head { seq: self.below(1_000) + 1, hash: ChainHash(self.bytes()) }
        };
        let far = Head { seq: floor.seq + self.below(9), hash: ChainHash(self.bytes()) };
        let last = head(&entries, entries.len());
        let head = if is_true && self.dice.one_in(2) { last } else { far };
        draft.vector.insert(origin, LogSpan { log_type: entries[0].log_type(), floor, head });
    }

    /// A run that no node may admit.
    fn break_run(&mut self, draft: &mut Draft) {
        let Some(entries) = self.any_known() else { return };
        let (origin, log_type) = (entries[0].origin(), entries[0].log_type());
        let true_before = head(&entries, entries.len());
        let is_spoiled = self.dice.one_in(2);
        let before = if is_spoiled {
            true_before
        } else {
            Head { seq: true_before.seq + [0, 0, 5][index(self.below(3))], hash: ChainHash(self.bytes()) }
        };
        let last = entries.last().map(Entry::stamp);
        let entry = self.entry(origin, log_type, before.seq + 1, last, draft.now);
        let run = Run { origin, log_type, before, entries: vec![entry], is_damaged: false };
        if is_spoiled {
            self.spoils.push(run.after().hash);
        }
        draft.message.runs.push(run);
    }

    fn want_anything(&mut self, draft: &mut Draft) {
        draft.message.wants_any = self.dice.one_in(2);
        draft.message.budget = self.dice.one_in(3).then_some(0);
        for _ in 0..self.below(WANTS_MAX) {
            let at = index(self.below(self.named.len() as u64));
            let named = self.named.iter().nth(at).map(|(origin, last)| (*origin, *last));
            let (origin, last) = named.unwrap_or((Origin(self.bytes()), 1));
            let first = 1 + self.below(last + 5);
            let last = if self.dice.one_in(2) { u64::MAX } else { first + self.below(5) };
            draft.message.wants.push(EntryRange { origin, first, last });
        }
    }

    /// A log of this type.
    fn log(&mut self, origin: Origin, log_type: LogType, count: u64, now: u64) -> Vec<Entry> {
        let first = self.entry(origin, log_type, 1, None, now);
        self.admissible.push(first.clone());
        self.continue_log(std::slice::from_ref(&first), &first, count - 1, now)
    }

    /// These entries of the log of `any`, and `count` forged ones after them.
    fn continue_log(&mut self, entries: &[Entry], any: &Entry, count: u64, now: u64) -> Vec<Entry> {
        let mut entries = entries.to_vec();
        for _ in 0..count {
            let (seq, before) = (entries.len() as u64 + 1, entries.last().map(Entry::stamp));
            let entry = self.entry(any.origin(), any.log_type(), seq, before, now);
            self.admissible.push(entry.clone());
            entries.push(entry);
        }
        entries
    }

    /// A forged entry, stamped after the one before it.
    fn entry(
        &mut self,
        origin: Origin,
        log_type: LogType,
        seq: u64,
        before: Option<Stamp>,
        now: u64,
    ) -> Entry {
        self.forged_count += 1;
        let now = BASE_MS + now;
        let stamp = if self.uses(Attack::Stamps, 3) {
            [Stamp(0), Stamp::at(now + 240_000), Stamp::at(now + YEAR_MS), Stamp(u64::MAX)]
                [index(self.below(4))]
        } else {
            Stamp::at(now)
        };
        let stamp = stamp.max(before.map_or(Stamp(0), |before| Stamp(before.0.saturating_add(1))));
        let (kind, content) = if log_type.is_control {
            (EntryKind::of([4, 5, 130][index(self.below(3))]).expect("a kind"), self.bytes::<20>().to_vec())
        } else {
            self.content()
        };
        let body = EntryBody { kind, account: "", digest: Digest::of(kind, &content), content: &content };
        Entry::encode(EntryKey { stamp, origin, seq }, log_type, &body)
    }

    /// What a forged entry says: a message of its own, an honest one, other content for the id of one, or nothing that
    /// can be read.
    fn content(&mut self) -> (EntryKind, Vec<u8>) {
        if self.uses(Attack::Unreadable, 5) {
            let kind = EntryKind::of([1, 2, 9, 127, 128, 200][index(self.below(6))]).expect("a kind");
            return (kind, [&[9], self.bytes::<20>().as_slice()].concat());
        }
        let honest = self.any_known().map(|entries| entries[index(self.dice.roll()) % entries.len()].clone());
        let honest = honest.filter(|entry| entry.message().is_some() && self.uses(Attack::Copies, 2));
        if let Some(honest) = honest.as_ref().filter(|_| self.dice.one_in(2)) {
            return (honest.kind(), honest.content().to_vec());
        }
        let of_honest = honest.as_ref().and_then(Entry::message).map(|content| content.id);
        let id = of_honest.unwrap_or_else(|| Uuid::from_bytes(self.bytes()));
        let (sender, recipient) = ("bad".to_owned(), "#room".to_owned());
        let text = format!("forged {}", self.dice.roll());
        let message = UncheckedMessage { id, sender, recipient, text, timestamp: None };
        (EntryKind::Message, Message::new(message).expect("valid").encode())
    }
}

impl World {
    /// The machine of the bad peer, if there is one: the last.
    pub(super) fn is_bad(&self, node: usize) -> bool {
        self.bad_peer.is_some() && node + 1 == self.machines.len()
    }

    /// The machines that are honest nodes.
    pub(super) fn honest(&self) -> std::ops::Range<usize> {
        0..self.machines.len() - usize::from(self.bad_peer.is_some())
    }

    pub(super) fn start_bad_peer(&mut self) {
        let (node, attacks) = (self.machines.len() - 1, self.plan.attacks.clone());
        let hello = hello(node, self.bytes(), self.bytes());
        self.bad_peer = Some(BadPeer::new(hello, attacks, self.dice.roll()));
        self.after(100, Event::BadPeer { packet: None });
    }

    /// The bad peer sends a request.
    pub(super) fn bad_peer_asks(&mut self) {
        let node = self.any();
        self.bad_peer_speaks(node, None);
        let pause = self.below(ASKS_EVERY_MS);
        self.after(pause, Event::BadPeer { packet: None });
    }

    /// A packet reaches the bad peer.
    pub(super) fn bad_peer_hears(&mut self, packet: Packet) {
        let Ok(message) = SyncMessage::decode(&packet.bytes) else { return }; // a refusal or a part
        self.bad_peer.as_mut().expect("there is one").hear(&message);
        if !packet.is_reply {
            let delay = self.below(ANSWERS_WITHIN_MS);
            self.after(delay, Event::BadPeer { packet: Some(packet) });
        }
    }

    /// The bad peer answers a request.
    pub(super) fn bad_peer_answers(&mut self, request: &Packet) {
        self.bad_peer_speaks(request.from, Some(request));
    }

    fn bad_peer_speaks(&mut self, node: usize, request: Option<&Packet>) {
        let now = self.now;
        let asked = request.and_then(|packet| SyncMessage::decode(&packet.bytes).ok());
        let bad_peer = self.bad_peer.as_mut().expect("there is one");
        let Some(message) = bad_peer.speak(asked.as_ref(), now) else { return };
        let bytes = bad_peer.encode(&message).into();
        for entry in bad_peer.take_admissible() {
            self.ledger.forge(&entry);
        }
        let from = self.machines.len() - 1;
        self.trace_message(from, node, &message, if asked.is_some() { "answers" } else { "asks" });
        let exchange = request.map_or(0, |request| request.exchange);
        let packet =
            Packet { bytes, is_reply: asked.is_some(), ..Packet::request(from, node, exchange, now) };
        self.send_packet(packet);
    }
}
