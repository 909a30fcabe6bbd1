//! What is thought of four nodes after this and that.

use super::*;
use crate::api::network::{NodeStatus, PeerStatus, ScrubStatus};

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn addr(port: usize) -> Addr {
    format!("127.0.0.1:{port}").parse().expect("valid")
}

fn four() -> Upstreams {
    Upstreams::new((1..=4).map(addr).collect(), addr(9))
}

fn order(upstreams: &Upstreams, lane: Lane, now: Duration) -> Vec<usize> {
    upstreams.order(lane, now).iter().map(|candidate| candidate.place).collect()
}

#[track_caller]
fn check(upstreams: &Upstreams, now: Duration, want: [usize; 4]) {
    assert_eq!(order(upstreams, Lane::Write, now), want);
}

/// All of them answered sends in this time.
fn answering(now: Duration, took: Duration) -> Upstreams {
    let mut four = four();
    (0..4).for_each(|place| four.answered(place, Lane::Write, now, Some(took)));
    four
}

#[test]
fn among_equals_the_first_stays_the_first() {
    let mut four = four();
    check(&four, S, [0, 1, 2, 3]);
    four.answered(0, Lane::Write, S, Some(4 * MS));
    four.answered(1, Lane::Write, S, Some(MS));
    check(&four, S, [0, 1, 2, 3]);
}

#[test]
fn a_clearly_slower_one_is_asked_later_until_that_is_long_ago() {
    let mut four = four();
    four.late(0, Lane::Write, S, 300 * MS);
    four.answered(2, Lane::Write, S, Some(20 * MS));
    check(&four, S, [1, 3, 2, 0]);
    four.answered(0, Lane::Write, S, Some(MS));
    check(&four, S, [1, 3, 2, 0]);
    check(&four, 60 * S, [0, 1, 2, 3]);
}

#[test]
fn a_busy_one_is_asked_later() {
    let mut four = four();
    four.began(0, Lane::Write);
    four.began(0, Lane::Write);
    four.began(1, Lane::Write);
    check(&four, S, [2, 3, 0, 1]);
    four.ended(0, Lane::Write);
    four.ended(0, Lane::Write);
    four.ended(1, Lane::Write);
    check(&four, S, [0, 1, 2, 3]);
}

#[test]
fn a_slow_writer_is_asked_last_for_sends_alone_and_no_probe_makes_it_fast() {
    let mut four = answering(S, MS);
    let ready = Readiness { readable: true, writable: true };
    for round in 1..=3 {
        four.probed(0, S, MS, ready);
        four.lost(0, Lane::Write, S, 40 * MS, 5 * MS);
        assert_eq!(four.is_aside(0, Lane::Write), round == 3);
    }
    check(&four, 20 * S, [1, 2, 3, 0]);
    assert_eq!(order(&four, Lane::Read, 20 * S), [0, 1, 2, 3]);
    four.probed(0, 20 * S, MS, ready);
    check(&four, 20 * S, [1, 2, 3, 0]);
    assert_eq!(four.status(20 * S)[0].state, NodeState::Suspect);
}

#[test]
fn a_hedge_is_lost_only_where_there_was_time_to_answer() {
    let mut four = answering(S, MS);
    (0..9).for_each(|_| four.lost(0, Lane::Write, S, 40 * MS, 30 * MS));
    assert!(!four.is_aside(0, Lane::Write));
}

#[test]
fn a_slow_one_is_tried_with_one_request_after_ever_longer_pauses() {
    let mut four = answering(S, MS);
    (0..3).for_each(|_| four.lost(0, Lane::Write, S, S, MS));
    let tried = |four: &mut Upstreams, now| four.take_trial(Lane::Write, now).map(|trial| trial.place);
    assert_eq!(tried(&mut four, S + 900 * MS), None);
    assert_eq!(tried(&mut four, 2 * S), Some(0));
    assert_eq!(tried(&mut four, 2 * S), None, "one request at a time");
    assert_eq!(tried(&mut four, 4 * S), Some(0));
    assert_eq!(tried(&mut four, 7 * S), None);
    assert_eq!(tried(&mut four, 8 * S), Some(0));
    four.answered(0, Lane::Write, 8 * S, Some(2 * S));
    assert!(four.is_aside(0, Lane::Write), "an answer, but a slow one");
    four.answered(0, Lane::Write, 8 * S, Some(20 * MS));
    assert!(!four.is_aside(0, Lane::Write));
    assert_eq!(four.status(8 * S)[0].state, NodeState::Up);
}

#[test]
fn who_is_silent_while_others_answer_is_set_aside_but_never_the_last() {
    let mut four = answering(S, 5 * MS);
    let wait = |four: &mut Upstreams, place, now| four.waits(place, Lane::Write, S, now, 500 * MS);
    wait(&mut four, 0, 2 * S);
    assert!(!four.is_aside(0, Lane::Write), "nobody answered meanwhile");
    four.answered(1, Lane::Write, S + 100 * MS, Some(5 * MS));
    wait(&mut four, 0, S + 400 * MS);
    assert!(!four.is_aside(0, Lane::Write), "not for long enough");
    wait(&mut four, 0, S + 500 * MS);
    assert!(four.is_aside(0, Lane::Write));
    four.answered(2, Lane::Write, S + 100 * MS, Some(400 * MS));
    four.failed(1, 2 * S, "refused".into());
    wait(&mut four, 3, 2 * S);
    assert!(!four.is_aside(3, Lane::Write), "the other needs nearly as long");
    four.failed(2, 2 * S, "refused".into());
    (0..9).for_each(|_| four.lost(3, Lane::Write, 2 * S, S, MS));
    assert!(!four.is_aside(3, Lane::Write), "the last one");
}

#[test]
fn where_all_are_slow_nobody_is_set_aside() {
    let mut four = answering(S, 5 * MS);
    for place in 0..4 {
        four.answered(place, Lane::Write, 3 * S + 10 * MS, Some(2 * S));
        (0..4).for_each(|place| four.waits(place, Lane::Write, S, 4 * S, 500 * MS));
    }
    assert!((0..4).all(|place| !four.is_aside(place, Lane::Write)));
}

#[test]
fn who_failed_is_asked_last_but_is_asked() {
    let mut four = four();
    four.failed(0, S, "refused".into());
    four.refused(1, Lane::Write, S, "full".into());
    check(&four, S, [2, 3, 1, 0]);
    assert!(four.order(Lane::Write, S)[3].aside && !four.order(Lane::Write, S)[2].aside);
    assert_eq!(order(&four, Lane::Read, S), [1, 2, 3, 0], "a full disk is read as well as any");
    check(&four, 3 * S, [1, 2, 3, 0]);
    four.answered(0, Lane::Write, 9 * S, Some(MS));
    check(&four, 9 * S, [0, 1, 2, 3]);
    assert!(four.is_back_since(0, 8 * S) && !four.is_back_since(0, 9 * S) && !four.is_back_since(1, S));
}

#[test]
fn when_all_failed_all_are_still_asked() {
    let mut four = four();
    for place in 0..4 {
        assert!(!four.all_down(9 * S));
        four.failed(place, S, "refused".into());
    }
    check(&four, S, [0, 1, 2, 3]);
    assert!(four.all_down(9 * S) && !four.all_down(2 * S));
    assert!(four.complaints().starts_with("127.0.0.1:1, 127.0.0.1:2, "));
    assert!(four.complaints().ends_with(": refused"));
}

#[test]
fn states_are_told_as_they_are_known() {
    let mut four = four();
    four.answered(0, Lane::Read, S, Some(2 * MS));
    four.refused(1, Lane::Write, S, "full".into());
    four.failed(2, S, "refused".into());
    let states = |now| four.status(now).into_iter().map(|status| status.state).collect::<Vec<_>>();
    assert_eq!(states(S), [NodeState::Up, NodeState::Up, NodeState::Suspect, NodeState::Suspect]);
    assert_eq!(states(9 * S), [NodeState::Up, NodeState::Up, NodeState::Down, NodeState::Suspect]);
    assert_eq!(four.status(S)[0].rtt_ms, Some(2.0));
    assert_eq!(four.status(S)[2].error.as_deref(), Some("refused"));
}

#[test]
fn probes_are_rarer_the_longer_a_node_is_away() {
    let mut four = four();
    let due = |four: &mut Upstreams, now| four.take_due(now, 0.5).into_iter().map(|(place, _)| place);
    assert_eq!(due(&mut four, Duration::ZERO).count(), 4);
    assert_eq!(due(&mut four, 900 * MS).count(), 0);
    four.failed(3, 900 * MS, "refused".into());
    assert_eq!(due(&mut four, S).count(), 3);
    let mut probes = 0;
    for tick in 12..=10_000 {
        four.probed(0, tick * 100 * MS, MS, Readiness { readable: true, writable: true });
        probes += due(&mut four, tick * 100 * MS).filter(|place| *place == 3).count();
    }
    assert!((200..=300).contains(&probes), "{probes} in a thousand seconds");
}

#[test]
fn a_silent_probe_counts_where_others_answer_theirs_or_after_a_while() {
    let mut four = four();
    let late = |four: &mut Upstreams, place, at| four.probe_waits(place, at, at + S, "silent".into());
    (0..4).for_each(|place| late(&mut four, place, S));
    assert!((0..4).all(|place| !four.is_aside(place, Lane::Write)), "perhaps it is us");
    four.probed(1, 2 * S + MS, MS, Readiness { readable: true, writable: true });
    late(&mut four, 0, 2 * S);
    assert!(four.is_aside(0, Lane::Read));
    late(&mut four, 1, 2 * S);
    assert!(!four.is_aside(1, Lane::Read), "it answered since");
    late(&mut four, 1, 5 * S);
    assert!(four.is_aside(1, Lane::Read), "alone or not");
}

/// Where it is, its number, how many messages it has, whom it knows.
fn word(port: usize, node_id: u16, messages: u64, peers: &[(usize, u16)]) -> NodeStatus {
    let peer = |(port, id): &(usize, u16)| PeerStatus {
        node_id: Some(*id),
        address: addr(*port),
        state: NodeState::Up,
        last_sync: None,
        rtt_ms: None,
        behind: None,
        error: None,
    };
    NodeStatus {
        node_id,
        address: addr(port),
        version: String::new(),
        state: NodeState::Up,
        uptime_seconds: 0,
        messages,
        digest: String::new(),
        origins: 0,
        conflicts: 0,
        damaged: 0,
        unreadable: 0,
        warnings: Vec::new(),
        peers: peers.iter().map(peer).collect(),
        scrub: ScrubStatus::default(),
    }
}

#[test]
fn nodes_that_others_name_are_learned_once_each() {
    let mut four = four();
    // The third is configured under another name than the one it gives itself.
    let words =
        [(0, word(1, 0, 5, &[(9, 9), (2, 1), (30, 2), (5, 4), (0, 6)])), (2, word(30, 2, 5, &[(5, 4)]))];
    four.answered(2, Lane::Read, S, None);
    four.heard(S, &words);
    let addrs: Vec<_> = four.status(S).into_iter().map(|status| status.address).collect();
    assert_eq!(addrs, (1..=5).map(addr).collect::<Vec<_>>());
    assert!(four.is_aside(4, Lane::Write), "until it answers");
    four.answered(4, Lane::Probe, 2 * S, Some(MS));
    assert!(!four.is_aside(4, Lane::Write));
    four.heard(3 * S, &[(4, word(5, 2, 5, &[])), (2, word(30, 2, 5, &[]))]);
    assert_eq!(four.count(), 4, "it is the third under one more name");
}

#[test]
fn a_learned_node_that_moved_is_seen_at_its_new_address_only() {
    let mut four = four();
    four.heard(S, &[(0, word(1, 0, 5, &[(5, 4)]))]);
    four.answered(4, Lane::Probe, S, Some(MS));
    four.heard(2 * S, &[(4, word(5, 4, 5, &[]))]);
    four.failed(4, 3 * S, "refused".into());
    four.heard(4 * S, &[(0, word(1, 0, 5, &[(6, 4)]))]);
    assert_eq!(four.count(), 6, "until it answers there");
    four.answered(5, Lane::Probe, 5 * S, Some(MS));
    four.heard(6 * S, &[(0, word(1, 0, 5, &[(6, 4)])), (5, word(6, 4, 5, &[]))]);
    let addrs: Vec<_> = four.status(6 * S).into_iter().map(|status| status.address).collect();
    assert_eq!(addrs, [1, 2, 3, 4, 6].map(addr));
}

#[test]
fn there_is_an_end_to_learning() {
    let mut four = four();
    let many: Vec<_> = (100_u16..200).map(|id| (usize::from(id), id)).collect();
    four.heard(S, &[(0, word(1, 0, 5, &many))]);
    assert_eq!(four.count(), 4 + 64);
    four.answered(10, Lane::Probe, S, Some(MS));
    four.heard(299 * S, &[(0, word(1, 0, 5, &many[..3]))]);
    four.heard(400 * S, &[(0, word(1, 0, 5, &[]))]);
    assert_eq!(four.count(), 4 + 3 + 1, "who is still named, and who answers");
    (0..4).for_each(|place| four.failed(place, S, "refused".into()));
    four.heard(9_000 * S, &[]);
    assert_eq!(four.count(), 4 + 1);
}

#[test]
fn reads_go_to_nodes_that_lack_nothing() {
    let mut four = four();
    let words = |counts: [u64; 4]| {
        let word = |(place, count)| (place, word(place + 1, u16::try_from(place).expect("few"), count, &[]));
        counts.into_iter().enumerate().map(word).collect::<Vec<_>>()
    };
    four.heard(S, &words([5, 90, 100, 70]));
    assert_eq!(order(&four, Lane::Read, S), [0, 1, 2, 3], "what is new has not come round yet");
    four.heard(2 * S, &words([60, 100, 150, 100]));
    assert_eq!(order(&four, Lane::Read, S), [1, 2, 3, 0]);
    assert_eq!(order(&four, Lane::Write, S), [0, 1, 2, 3]);
    four.heard(3 * S, &words([150, 150, 150, 150]));
    assert_eq!(order(&four, Lane::Read, S), [0, 1, 2, 3]);
}

#[test]
fn words_are_heard_soon_where_something_changed() {
    let mut four = four();
    assert_eq!(four.take_round(S).len(), 0, "nobody is known to be up");
    (0..4).for_each(|place| four.answered(place, Lane::Probe, S, Some(MS)));
    assert_eq!(four.take_round(S).len(), 4);
    assert_eq!(four.take_round(5 * S).len(), 0);
    assert_eq!(four.take_round(6 * S).len(), 4);
    four.failed(0, 6 * S, "refused".into());
    four.answered(0, Lane::Probe, 6 * S, Some(MS));
    assert_eq!(four.take_round(6 * S).len(), 0);
    assert_eq!(four.take_round(7 * S).len(), 4);
}
