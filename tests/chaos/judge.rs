//! The judge: compares the sent messages and their answers with the listings, and reports every broken promise.
//!
//! Pure: knows no processes, files or clocks; times are milliseconds since the start of the episode. It recognizes a
//! message by the token at the start of its text, because some are sent without an id. An acknowledged message may be
//! missing only if every disk that is known to have held it has lost it (a `Loss`). Every listed message must have been
//! sent, unchanged, and is listed once, at any time and whatever the state of the disks.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;

use serde::Deserialize;

/// Identifies a message: the number of the client, and the number of the message within the client.
pub type Token = (u16, u32);

/// All messages: by client, in the order of sending.
pub type Attempts<'a> = &'a [&'a [Attempt]];

/// The fields of a message that the client sets.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Sent {
    /// None: the node chooses it.
    pub id: Option<String>,
    pub sender: String,
    pub recipient: String,
    pub text: String,
    pub timestamp: Option<u64>,
}

/// A message and the answers to it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Attempt {
    pub sent: Sent,
    /// When it was recorded, before it was sent.
    pub invoked: u64,
    pub acked: Option<Ack>,
    /// At least one try had no clear answer.
    pub maybe: bool,
}

/// The first acknowledgment.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Ack {
    pub at: u64,
    /// The nodes that had the message on disk according to the answer.
    pub on: Vec<usize>,
}

/// A message as a server lists it.
#[derive(Debug, Clone, Deserialize)]
pub struct Listed {
    pub id: String,
    pub sender: String,
    pub recipient: String,
    pub text: String,
    pub timestamp: u64,
    pub accepted_at: String,
    pub origin: String,
    pub seq: u64,
}

/// A loss of data on one or several disks at the same time.
#[derive(Debug, Clone)]
pub struct Loss {
    /// A time at which the nodes were already down and nothing was lost yet.
    pub at: u64,
    pub nodes: Vec<usize>,
    /// The messages that other disks, or the remains of these, still held after the loss.
    pub kept: HashSet<Token>,
}

/// The kinds of broken promises.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ViolationKind {
    /// Acknowledged, held by an intact disk, and listed by no server.
    Lost,
    /// Acknowledged, and not listed by all servers.
    Missing,
    /// Listed twice.
    Twice,
    /// Listed, and never sent.
    NeverSent,
    /// Listed with other content than was sent.
    Changed,
    /// Definitely refused, and listed.
    Refused,
    /// Of unknown outcome, and listed by some servers but not by all.
    Partial,
    /// Not in the order of acceptance, or two messages with one seq of a log.
    OutOfOrder,
    /// Two final listings with different bytes.
    ListingsDiffer,
    /// An answer or a behavior of a server that breaks the contract.
    Contract,
}

/// One broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub kind: ViolationKind,
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.detail)
    }
}

impl Violation {
    pub fn new(kind: ViolationKind, detail: impl Into<String>) -> Self {
        Violation { kind, detail: detail.into() }
    }
}

/// The outcome of all messages of an episode.
#[derive(Debug, Default)]
pub struct Verdict {
    pub attempted: usize,
    pub acknowledged: usize,
    /// Messages without a clear answer.
    pub unknown: usize,
    /// Messages without a clear answer that are listed by all servers.
    pub recovered: usize,
    /// Acknowledged messages that were lost with every disk that is known to have held them.
    pub excused: usize,
    pub violations: Vec<Violation>,
}

impl Verdict {
    pub fn count(&self, kind: &ViolationKind) -> usize {
        self.violations.iter().filter(|violation| violation.kind == *kind).count()
    }
}

impl Attempt {
    pub fn new(sent: Sent, invoked: u64) -> Self {
        Attempt { sent, invoked, acked: None, maybe: false }
    }

    fn matches(&self, listed: &Listed) -> bool {
        let Sent { id, sender, recipient, text, timestamp } = &self.sent;
        id.as_ref().is_none_or(|id| *id == listed.id)
            && (sender, recipient, text) == (&listed.sender, &listed.recipient, &listed.text)
            && timestamp.is_none_or(|timestamp| timestamp == listed.timestamp)
    }

    /// Whether this loss may have taken the only copy. `losses` are all losses of the episode.
    fn is_at_risk(&self, token: Token, ack: &Ack, loss: &Loss, losses: &[Loss]) -> bool {
        // A message sent after the nodes were down was never on their disks.
        let was_there = self.invoked <= loss.at;
        // A copy named in the answer counts as long as its disk has lost nothing since the message was sent.
        let lost_since = |other: &Loss, node: &usize| {
            other.nodes.contains(node) && (self.invoked..=loss.at).contains(&other.at)
        };
        let whole = |node: &usize| !losses.iter().any(|other| lost_since(other, node));
        was_there && !loss.kept.contains(&token) && !ack.on.iter().any(whole)
    }
}

/// The start of a text, which identifies the message.
pub fn mark(token: Token) -> String {
    format!("{}.{}:", token.0, token.1)
}

/// The token at the start of a text.
pub fn token(text: &str) -> Option<Token> {
    let (mark, _) = text.split_once(':')?;
    let (client, number) = mark.split_once('.')?;
    Some((client.parse().ok()?, number.parse().ok()?))
}

fn find(attempts: Attempts<'_>, (client, number): Token) -> Option<&Attempt> {
    attempts.get(usize::from(client))?.get(usize::try_from(number).ok()?)
}

/// Checks a listing of any time. Gives the recognized messages and the violations.
pub fn check_listing(attempts: Attempts, from: &str, listed: &[Listed]) -> (HashSet<Token>, Vec<Violation>) {
    let mut seen = HashSet::new();
    let mut wrongs = Vec::new();
    let mut wrong = |wrong, detail: String| wrongs.push(Violation::new(wrong, format!("{from}: {detail}")));
    let mut heads: HashMap<&str, u64> = HashMap::new();
    let mut last = "";
    for message in listed {
        let Listed { id, origin, seq, accepted_at, text, .. } = message;
        let start: String = text.chars().take(20).collect();
        let name = format!("{id} {start:?} at {origin}.{seq}");
        match token(text).and_then(|token| Some((token, find(attempts, token)?))) {
            None => wrong(ViolationKind::NeverSent, name.clone()),
            Some((_, attempt)) if !attempt.matches(message) => {
                wrong(ViolationKind::Changed, format!("{name}: sent {:?}", attempt.sent));
            }
            Some((token, _)) if !seen.insert(token) => wrong(ViolationKind::Twice, name.clone()),
            Some(_) => {}
        }
        let head = heads.entry(origin).or_insert(0);
        if *seq <= *head || accepted_at.as_str() < last {
            wrong(ViolationKind::OutOfOrder, format!("{name} comes after {origin}.{head}, {last}"));
        }
        *head = *seq;
        last = accepted_at;
    }
    (seen, wrongs)
}

/// The number of acknowledged messages that these losses may have lost.
pub fn at_risk(attempts: Attempts, losses: &[Loss]) -> usize {
    let mut count = 0;
    for (client, list) in (0..).zip(attempts) {
        for (number, attempt) in (0..).zip(*list) {
            let gone = |ack| losses.iter().any(|l| attempt.is_at_risk((client, number), ack, l, losses));
            count += usize::from(attempt.acked.as_ref().is_some_and(gone));
        }
    }
    count
}

/// Judges an episode by its final listings, each with the name of its server.
pub fn judge(attempts: Attempts, listings: &[(String, Vec<Listed>)], losses: &[Loss]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut tokens = Vec::new();
    for (from, listed) in listings {
        let (seen, wrongs) = check_listing(attempts, from, listed);
        verdict.violations.extend(wrongs);
        tokens.push((from.as_str(), seen));
    }
    for (client, list) in (0..).zip(attempts) {
        for (number, attempt) in (0..).zip(*list) {
            verdict.count_attempt((client, number), attempt, &tokens, losses);
        }
    }
    verdict
}

impl Verdict {
    fn count_attempt(
        &mut self,
        token: Token,
        attempt: &Attempt,
        listings: &[(&str, HashSet<Token>)],
        losses: &[Loss],
    ) {
        let missing: BTreeSet<_> =
            listings.iter().filter(|(_, seen)| !seen.contains(&token)).map(|(from, _)| *from).collect();
        let nowhere = missing.len() == listings.len();
        let everywhere = missing.is_empty() && !nowhere; // without any listing, no message is listed
        let mut wrong = |wrong, detail: String| {
            self.violations.push(Violation::new(wrong, format!("{token:?} {detail}")));
        };
        self.attempted += 1;
        match &attempt.acked {
            Some(ack) => {
                self.acknowledged += 1;
                let gone = losses.iter().any(|loss| attempt.is_at_risk(token, ack, loss, losses));
                match (everywhere, nowhere) {
                    (true, _) => {}
                    (false, false) => {
                        wrong(ViolationKind::Missing, format!("{ack:?}: missing at {missing:?}"));
                    }
                    (false, true) if gone => self.excused += 1,
                    (false, true) => wrong(ViolationKind::Lost, format!("{ack:?}: listed by no server")),
                }
            }
            None if attempt.maybe => {
                self.unknown += 1;
                self.recovered += usize::from(everywhere);
                if !nowhere && !everywhere {
                    wrong(ViolationKind::Partial, format!("missing at {missing:?}"));
                }
            }
            None if !nowhere => wrong(ViolationKind::Refused, "was refused and is listed".into()),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(token: Token) -> Sent {
        Sent {
            id: Some(format!("id-{}-{}", token.0, token.1)),
            sender: "a".into(),
            recipient: "b".into(),
            text: format!("{} hello", mark(token)),
            timestamp: None,
        }
    }

    /// Client 0 sent four messages: one acknowledged by node 0, one by node 1, one of unknown outcome, one refused.
    fn history() -> Vec<Attempt> {
        let mut attempts: Vec<_> = (0..4).map(|n| Attempt::new(sent((0, n)), 10)).collect();
        attempts[0].acked = Some(Ack { at: 20, on: vec![0] });
        attempts[1].acked = Some(Ack { at: 20, on: vec![1] });
        attempts[2].maybe = true;
        attempts
    }

    fn listed(n: u32) -> Listed {
        let Sent { id, sender, recipient, text, .. } = sent((0, n));
        let id = id.expect("chosen");
        let accepted_at = format!("2026-01-01T00:00:00.{n:03}Z");
        Listed { id, sender, recipient, text, timestamp: 5, accepted_at, origin: "o".into(), seq: n.into() }
    }

    /// The messages by their numbers, as log "o" would list them.
    fn list(numbers: &[u32]) -> Vec<Listed> {
        (1..).zip(numbers).map(|(seq, n)| Listed { seq, ..listed(*n) }).collect()
    }

    #[track_caller]
    fn check(listings: Vec<Vec<Listed>>, losses: &[Loss], want: &[ViolationKind]) -> Verdict {
        let history = history();
        let listings: Vec<_> =
            listings.into_iter().enumerate().map(|(i, l)| (format!("node {i}"), l)).collect();
        let verdict = judge(&[&history], &listings, losses);
        let got: Vec<_> = verdict.violations.iter().map(|v| v.kind.clone()).collect();
        assert_eq!(got, want, "{:?}", verdict.violations);
        verdict
    }

    #[test]
    fn acknowledged_messages_listed_everywhere_are_fine() {
        let verdict = check(vec![list(&[0, 1]), list(&[0, 1])], &[], &[]);
        let Verdict { attempted, acknowledged, unknown, recovered, excused, .. } = verdict;
        assert_eq!((attempted, acknowledged, unknown, recovered, excused), (4, 2, 1, 0, 0));
        assert_eq!(check(vec![list(&[0, 1, 2]); 2], &[], &[]).recovered, 1);
    }

    #[test]
    fn a_lost_message_is_reported() {
        check(vec![list(&[0]), list(&[0])], &[], &[ViolationKind::Lost]);
        let verdict = check(vec![list(&[0, 1]), list(&[0])], &[], &[ViolationKind::Missing]);
        assert!(verdict.violations[0].detail.contains("node 1"), "{}", verdict.violations[0]);
    }

    #[test]
    fn without_any_listing_every_acknowledged_message_is_lost() {
        let verdict = check(vec![], &[], &[ViolationKind::Lost, ViolationKind::Lost]);
        assert_eq!(verdict.recovered, 0);
    }

    #[test]
    fn a_message_listed_twice_is_reported() {
        check(vec![list(&[0, 1, 1])], &[], &[ViolationKind::Twice]);
    }

    #[test]
    fn a_changed_message_is_reported_and_does_not_count_as_listed() {
        for change in [
            |m: &mut Listed| m.text.push('!'),
            |m: &mut Listed| m.sender.push('!'),
            |m: &mut Listed| m.recipient.push('!'),
            |m: &mut Listed| m.id.push('!'),
        ] {
            let mut listing = list(&[0, 1]);
            change(&mut listing[1]);
            check(vec![listing], &[], &[ViolationKind::Changed, ViolationKind::Lost]);
        }
        let mut history = history();
        history[1].sent.timestamp = Some(6);
        let verdict = judge(&[&history], &[("node 0".into(), list(&[0, 1]))], &[]);
        assert_eq!(verdict.count(&ViolationKind::Changed), 1, "sent with 6, listed with 5");
    }

    #[test]
    fn a_message_that_was_never_sent_is_reported() {
        let alien = |text: &str| Listed { text: text.into(), seq: 9, ..listed(9) };
        for text in ["0.9: never sent", "1.0: no such client", "no token", "0.1", ""] {
            let mut listing = list(&[0, 1]);
            listing.push(alien(text));
            check(vec![listing], &[], &[ViolationKind::NeverSent]);
        }
    }

    #[test]
    fn a_refused_message_that_is_listed_is_reported() {
        check(vec![list(&[0, 1, 3])], &[], &[ViolationKind::Refused]);
    }

    #[test]
    fn a_message_of_unknown_outcome_must_be_listed_by_all_or_none() {
        check(vec![list(&[0, 1, 2]), list(&[0, 1])], &[], &[ViolationKind::Partial]);
    }

    #[test]
    fn a_listing_is_in_order_and_uses_no_seq_twice() {
        check(vec![list(&[1, 0])], &[], &[ViolationKind::OutOfOrder]);
        let mut listing = list(&[0, 1]);
        listing[1].seq = 1;
        check(vec![listing], &[], &[ViolationKind::OutOfOrder]);
    }

    fn loss(at: u64, nodes: &[usize], kept: &[u32]) -> Loss {
        Loss { at, nodes: nodes.to_vec(), kept: kept.iter().map(|n| (0, *n)).collect() }
    }

    #[test]
    fn a_message_on_no_other_disk_is_excused() {
        let verdict = check(vec![list(&[0])], &[loss(30, &[1], &[0])], &[]);
        assert_eq!(verdict.excused, 1);
    }

    #[test]
    fn a_loss_excuses_no_message_that_others_held_or_that_was_sent_later() {
        let lost: &[ViolationKind] = &[ViolationKind::Lost];
        check(vec![list(&[0])], &[loss(30, &[1], &[0, 1])], lost); // other disks have it
        check(vec![list(&[0])], &[loss(30, &[0], &[0])], lost); // the disk of node 1 is intact
        check(vec![list(&[0])], &[loss(9, &[1], &[0])], lost); // it was sent after the loss
        // A message listed by one server must be listed by all.
        check(vec![list(&[0, 1]), list(&[0])], &[loss(30, &[1], &[0])], &[ViolationKind::Missing]);
    }

    #[test]
    fn a_copy_counts_only_while_its_disk_is_intact() {
        let mut history = history();
        history[1].acked = Some(Ack { at: 20, on: vec![1, 2] });
        let listings = [("node 0".into(), list(&[0]))];
        let lost = |losses: &[Loss]| judge(&[&history], &listings, losses).count(&ViolationKind::Lost);
        assert_eq!(lost(&[loss(30, &[1], &[0])]), 1, "node 2 still has it");
        assert_eq!(lost(&[loss(30, &[1], &[0]), loss(40, &[2], &[0])]), 0, "node 2 lost it later");
        assert_eq!(lost(&[loss(30, &[1, 2], &[0])]), 0, "both lost it at the same time");
        assert_eq!(
            lost(&[loss(9, &[2], &[]), loss(30, &[1], &[0])]),
            1,
            "node 2 lost data before the message was sent"
        );
    }

    #[test]
    fn a_token_is_parsed_back() {
        assert_eq!(token(&format!("{} text: more", mark((3, 77)))), Some((3, 77)));
    }
}
