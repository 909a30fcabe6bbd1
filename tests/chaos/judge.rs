//! The judge: compares what was sent and answered with what is listed, and names whatever breaks a promise.
//!
//! Pure: knows no processes, files or clocks; times are milliseconds since the episode began. A message is recognised by
//! the token that its text begins with, because some are sent without an id. Fair: an acknowledged message may be
//! missing only if every disk that is known to have held it lost it (a `Loss`). Whatever is served, at any time and
//! however broken the disks, must be something that was sent, unchanged and once.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;

use serde::Deserialize;

/// Which client sent it, and which of its messages it is.
pub type Token = (u16, u32);

/// All that was sent: by client, in order.
pub type Attempts<'a> = &'a [&'a [Attempt]];

/// What a client decided.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Sent {
    /// None: chosen by whoever took it.
    pub id: Option<String>,
    pub sender: String,
    pub recipient: String,
    pub text: String,
    pub timestamp: Option<u64>,
}

/// A message and what its sender knows of it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Attempt {
    pub sent: Sent,
    /// Before anybody could have stored it.
    pub invoked: u64,
    pub acked: Option<Ack>,
    /// Some try of it had no clear answer.
    pub maybe: bool,
}

/// The first answer that said it is stored.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Ack {
    pub at: u64,
    /// The nodes that had it on disk then, as far as the answer shows.
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

/// Disks that lost something, all at once.
#[derive(Debug, Clone)]
pub struct Loss {
    /// When their nodes were down already, and nothing was lost yet.
    pub at: u64,
    pub nodes: Vec<usize>,
    /// What other disks, or what is left of these, provably held after that.
    pub kept: HashSet<Token>,
}

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Wrong {
    /// Acknowledged, held by a disk that is intact, and listed by nobody.
    Lost,
    /// Acknowledged, and not listed by all.
    Missing,
    /// Listed twice.
    Twice,
    /// Listed, and nobody sent it.
    Alien,
    /// Listed with other content than was sent.
    Changed,
    /// Definitely refused, and listed.
    Refused,
    /// Of unknown outcome, and listed by some, not by all.
    Partly,
    /// Not in the order of acceptance, or two at one place of a log.
    Disorder,
    /// Two final listings that are not the same bytes.
    Unequal,
    /// Something a server answered, or did, against the contract.
    Conduct,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub wrong: Wrong,
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.wrong, self.detail)
    }
}

impl Violation {
    pub fn new(wrong: Wrong, detail: impl Into<String>) -> Self {
        Violation { wrong, detail: detail.into() }
    }
}

/// What became of everything that was sent.
#[derive(Debug, Default)]
pub struct Verdict {
    pub attempted: usize,
    pub acknowledged: usize,
    /// Nobody knows whether they were stored when they were sent.
    pub unknown: usize,
    /// Of these, stored after all.
    pub recovered: usize,
    /// Acknowledged and gone, with every disk that is known to have held them.
    pub excused: usize,
    pub violations: Vec<Violation>,
}

impl Verdict {
    pub fn count(&self, wrong: &Wrong) -> usize {
        self.violations.iter().filter(|violation| violation.wrong == *wrong).count()
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

    /// Whether this loss may have taken the only copy. `losses` are all there were.
    fn is_at_risk(&self, token: Token, ack: &Ack, loss: &Loss, losses: &[Loss]) -> bool {
        // What was sent after the nodes were down was never on their disks.
        let was_there = self.invoked <= loss.at;
        // A copy that the answer named counts as long as its disk has lost nothing since it was sent.
        let lost_since = |other: &Loss, node: &usize| {
            other.nodes.contains(node) && (self.invoked..=loss.at).contains(&other.at)
        };
        let whole = |node: &usize| !losses.iter().any(|other| lost_since(other, node));
        was_there && !loss.kept.contains(&token) && !ack.on.iter().any(whole)
    }
}

/// The start of a text, by which its message is recognised.
pub fn mark(token: Token) -> String {
    format!("{}.{}:", token.0, token.1)
}

/// The token that a text begins with.
pub fn token(text: &str) -> Option<Token> {
    let (mark, _) = text.split_once(':')?;
    let (client, number) = mark.split_once('.')?;
    Some((client.parse().ok()?, number.parse().ok()?))
}

fn find(attempts: Attempts<'_>, (client, number): Token) -> Option<&Attempt> {
    attempts.get(usize::from(client))?.get(usize::try_from(number).ok()?)
}

/// Checks what a server listed, whenever that was. Gives the messages that were recognised.
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
            None => wrong(Wrong::Alien, name.clone()),
            Some((_, attempt)) if !attempt.matches(message) => {
                wrong(Wrong::Changed, format!("{name}: sent {:?}", attempt.sent));
            }
            Some((token, _)) if !seen.insert(token) => wrong(Wrong::Twice, name.clone()),
            Some(_) => {}
        }
        let head = heads.entry(origin).or_insert(0);
        if *seq <= *head || accepted_at.as_str() < last {
            wrong(Wrong::Disorder, format!("{name} comes after {origin}.{head}, {last}"));
        }
        *head = *seq;
        last = accepted_at;
    }
    (seen, wrongs)
}

/// How many acknowledged messages may be gone with these losses, as far as is known.
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

/// Judges an episode by its last listings, each with the name of who gave it.
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
            verdict.settle((client, number), attempt, &tokens, losses);
        }
    }
    verdict
}

impl Verdict {
    fn settle(
        &mut self,
        token: Token,
        attempt: &Attempt,
        listings: &[(&str, HashSet<Token>)],
        losses: &[Loss],
    ) {
        let missing: BTreeSet<_> =
            listings.iter().filter(|(_, seen)| !seen.contains(&token)).map(|(from, _)| *from).collect();
        let nowhere = missing.len() == listings.len();
        let everywhere = missing.is_empty() && !nowhere; // if nobody lists anything, nothing is anywhere
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
                    (false, false) => wrong(Wrong::Missing, format!("{ack:?}: missing at {missing:?}")),
                    (false, true) if gone => self.excused += 1,
                    (false, true) => wrong(Wrong::Lost, format!("{ack:?}: listed by nobody")),
                }
            }
            None if attempt.maybe => {
                self.unknown += 1;
                self.recovered += usize::from(everywhere);
                if !nowhere && !everywhere {
                    wrong(Wrong::Partly, format!("missing at {missing:?}"));
                }
            }
            None if !nowhere => wrong(Wrong::Refused, "was refused and is listed".into()),
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

    /// Client 0: one acknowledged by node 0, one by node 1, one of unknown outcome, one refused.
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
    fn check(listings: Vec<Vec<Listed>>, losses: &[Loss], want: &[Wrong]) -> Verdict {
        let history = history();
        let listings: Vec<_> =
            listings.into_iter().enumerate().map(|(i, l)| (format!("node {i}"), l)).collect();
        let verdict = judge(&[&history], &listings, losses);
        let got: Vec<_> = verdict.violations.iter().map(|v| v.wrong.clone()).collect();
        assert_eq!(got, want, "{:?}", verdict.violations);
        verdict
    }

    #[test]
    fn what_was_acknowledged_and_is_listed_everywhere_is_fine() {
        let verdict = check(vec![list(&[0, 1]), list(&[0, 1])], &[], &[]);
        let Verdict { attempted, acknowledged, unknown, recovered, excused, .. } = verdict;
        assert_eq!((attempted, acknowledged, unknown, recovered, excused), (4, 2, 1, 0, 0));
        assert_eq!(check(vec![list(&[0, 1, 2]); 2], &[], &[]).recovered, 1);
    }

    #[test]
    fn a_lost_message_is_reported() {
        check(vec![list(&[0]), list(&[0])], &[], &[Wrong::Lost]);
        let verdict = check(vec![list(&[0, 1]), list(&[0])], &[], &[Wrong::Missing]);
        assert!(verdict.violations[0].detail.contains("node 1"), "{}", verdict.violations[0]);
    }

    #[test]
    fn where_nobody_gives_a_listing_everything_is_lost() {
        let verdict = check(vec![], &[], &[Wrong::Lost, Wrong::Lost]);
        assert_eq!(verdict.recovered, 0);
    }

    #[test]
    fn a_doubled_message_is_reported() {
        check(vec![list(&[0, 1, 1])], &[], &[Wrong::Twice]);
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
            check(vec![listing], &[], &[Wrong::Changed, Wrong::Lost]);
        }
        let mut history = history();
        history[1].sent.timestamp = Some(6);
        let verdict = judge(&[&history], &[("node 0".into(), list(&[0, 1]))], &[]);
        assert_eq!(verdict.count(&Wrong::Changed), 1, "the sender said 6, 5 is listed");
    }

    #[test]
    fn an_alien_message_is_reported() {
        let alien = |text: &str| Listed { text: text.into(), seq: 9, ..listed(9) };
        for text in ["0.9: never sent", "1.0: no such client", "no token", "0.1", ""] {
            let mut listing = list(&[0, 1]);
            listing.push(alien(text));
            check(vec![listing], &[], &[Wrong::Alien]);
        }
    }

    #[test]
    fn a_refused_message_that_is_listed_is_reported() {
        check(vec![list(&[0, 1, 3])], &[], &[Wrong::Refused]);
    }

    #[test]
    fn an_unknown_outcome_is_the_same_everywhere() {
        check(vec![list(&[0, 1, 2]), list(&[0, 1])], &[], &[Wrong::Partly]);
    }

    #[test]
    fn a_listing_is_in_order_and_no_place_is_taken_twice() {
        check(vec![list(&[1, 0])], &[], &[Wrong::Disorder]);
        let mut listing = list(&[0, 1]);
        listing[1].seq = 1;
        check(vec![listing], &[], &[Wrong::Disorder]);
    }

    fn loss(at: u64, nodes: &[usize], kept: &[u32]) -> Loss {
        Loss { at, nodes: nodes.to_vec(), kept: kept.iter().map(|n| (0, *n)).collect() }
    }

    #[test]
    fn a_message_that_was_on_no_other_disk_is_excused() {
        let verdict = check(vec![list(&[0])], &[loss(30, &[1], &[0])], &[]);
        assert_eq!(verdict.excused, 1);
    }

    #[test]
    fn a_loss_excuses_nothing_that_others_held_or_that_was_sent_later() {
        let lost: &[Wrong] = &[Wrong::Lost];
        check(vec![list(&[0])], &[loss(30, &[1], &[0, 1])], lost); // others had it
        check(vec![list(&[0])], &[loss(30, &[0], &[0])], lost); // its own disk is whole
        check(vec![list(&[0])], &[loss(9, &[1], &[0])], lost); // it was sent afterwards
        // It is somewhere: then it must be everywhere.
        check(vec![list(&[0, 1]), list(&[0])], &[loss(30, &[1], &[0])], &[Wrong::Missing]);
    }

    #[test]
    fn a_copy_counts_only_while_its_disk_is_whole() {
        let mut history = history();
        history[1].acked = Some(Ack { at: 20, on: vec![1, 2] });
        let listings = [("node 0".into(), list(&[0]))];
        let lost = |losses: &[Loss]| judge(&[&history], &listings, losses).count(&Wrong::Lost);
        assert_eq!(lost(&[loss(30, &[1], &[0])]), 1, "node 2 still has it");
        assert_eq!(lost(&[loss(30, &[1], &[0]), loss(40, &[2], &[0])]), 0, "then node 2 lost it, too");
        assert_eq!(lost(&[loss(30, &[1, 2], &[0])]), 0, "both at once");
        assert_eq!(
            lost(&[loss(9, &[2], &[]), loss(30, &[1], &[0])]),
            1,
            "node 2 lost others, before it was sent"
        );
    }

    #[test]
    fn tokens_survive_the_trip() {
        assert_eq!(token(&format!("{} text: more", mark((3, 77)))), Some((3, 77)));
    }
}
