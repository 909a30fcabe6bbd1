//! The view of four upstreams after answers, failures, probes and reports.

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

fn order(upstreams: &Upstreams, class: TrafficClass, now: Duration) -> Vec<usize> {
    upstreams.ranked(class, now).iter().map(|candidate| candidate.id).collect()
}

#[track_caller]
fn check(upstreams: &Upstreams, now: Duration, want: [usize; 4]) {
    assert_eq!(order(upstreams, TrafficClass::Write, now), want);
}

/// All of them answered sends in this time.
fn answering(now: Duration, took: Duration) -> Upstreams {
    let mut four = four();
    (0..4).for_each(|id| four.answered(id, TrafficClass::Write, now, Some(took)));
    four
}

#[test]
fn among_equals_the_first_stays_the_first() {
    let mut four = four();
    check(&four, S, [0, 1, 2, 3]);
    four.answered(0, TrafficClass::Write, S, Some(4 * MS));
    four.answered(1, TrafficClass::Write, S, Some(MS));
    check(&four, S, [0, 1, 2, 3]);
}

#[test]
fn a_clearly_slower_one_is_asked_later_until_that_is_long_ago() {
    let mut four = four();
    four.hedged(0, TrafficClass::Write, S, 300 * MS);
    four.answered(2, TrafficClass::Write, S, Some(20 * MS));
    check(&four, S, [1, 3, 2, 0]);
    four.answered(0, TrafficClass::Write, S, Some(MS));
    check(&four, S, [1, 3, 2, 0]);
    check(&four, 60 * S, [0, 1, 2, 3]);
}

#[test]
fn a_busy_one_is_asked_later() {
    let mut four = four();
    four.request_started(0, TrafficClass::Write);
    four.request_started(0, TrafficClass::Write);
    four.request_started(1, TrafficClass::Write);
    check(&four, S, [2, 3, 0, 1]);
    four.request_ended(0, TrafficClass::Write);
    four.request_ended(0, TrafficClass::Write);
    four.request_ended(1, TrafficClass::Write);
    check(&four, S, [0, 1, 2, 3]);
}

/// Upstream 0 waits from `since` on, and after `waited` another one answers that took `latency`.
fn lose_hedge(four: &mut Upstreams, since: Duration, waited: Duration, latency: Duration) {
    four.answered(1, TrafficClass::Write, since + waited, Some(latency));
    four.hedge_lost(0, TrafficClass::Write, since, since + waited);
}

#[test]
fn a_slow_writer_is_ejected_for_sends_alone_and_no_probe_makes_it_fast() {
    let mut four = answering(S, MS);
    let ready = Readiness::ready();
    for round in 1..=3 {
        four.probe_answered(0, S, MS, &ready);
        lose_hedge(&mut four, S + 50 * MS * round, 40 * MS, 5 * MS);
        assert_eq!(four.is_ejected(0, TrafficClass::Write, 2 * S), round == 3);
    }
    check(&four, 2 * S, [1, 2, 3, 0]);
    assert_eq!(order(&four, TrafficClass::Read, 2 * S), [0, 1, 2, 3]);
    four.probe_answered(0, 2 * S, MS, &ready);
    check(&four, 2 * S, [1, 2, 3, 0]);
    assert_eq!(four.status(20 * S)[0].state, NodeState::Suspect, "it has not been fast since");
}

#[test]
fn a_hedge_is_lost_only_where_there_was_time_to_answer() {
    let mut four = answering(S, MS);
    (1..10).for_each(|round| lose_hedge(&mut four, S + 50 * MS * round, 40 * MS, 30 * MS));
    assert!(!four.is_ejected(0, TrafficClass::Write, 2 * S));
}

#[test]
fn a_slow_upstream_comes_back_after_ever_longer_pauses() {
    let mut four = answering(S, MS);
    let is_ejected = |four: &Upstreams, now| four.is_ejected(0, TrafficClass::Write, now);
    (0..3).for_each(|round| lose_hedge(&mut four, 2 * S + 50 * MS * round, 40 * MS, MS));
    assert!(is_ejected(&four, 3 * S) && !is_ejected(&four, 4 * S));
    check(&four, 60 * S, [0, 1, 2, 3]);
    four.request_started(0, TrafficClass::Write);
    check(&four, 60 * S, [1, 2, 3, 0]);
    assert!(!is_ejected(&four, 60 * S), "one request at a time");
    four.request_ended(0, TrafficClass::Write);
    lose_hedge(&mut four, 4 * S, 40 * MS, MS);
    assert!(is_ejected(&four, 6 * S) && !is_ejected(&four, 7 * S), "one more is enough, and counts double");
    lose_hedge(&mut four, 7 * S, 40 * MS, MS);
    assert!(is_ejected(&four, 11 * S) && !is_ejected(&four, 12 * S));
    four.answered(0, TrafficClass::Write, 12 * S, Some(2 * S));
    lose_hedge(&mut four, 12 * S + MS, 40 * MS, MS);
    assert!(is_ejected(&four, 13 * S), "it answered, but slowly");
    four.answered(0, TrafficClass::Write, 13 * S, Some(20 * MS));
    assert!(!is_ejected(&four, 13 * S));
    assert_eq!(four.status(13 * S)[0].state, NodeState::Up);
    lose_hedge(&mut four, 14 * S, 40 * MS, MS);
    assert!(!is_ejected(&four, 15 * S), "after a prompt answer one lost hedge is not enough");
}

#[test]
fn a_silent_upstream_is_ejected_if_others_answer_but_never_the_last() {
    let mut four = answering(S, 5 * MS);
    let class = TrafficClass::Write;
    let wait = |four: &mut Upstreams, id, now| {
        four.still_waiting(id, class, S, now, 500 * MS);
        four.is_ejected(id, class, now)
    };
    assert!(!wait(&mut four, 0, 2 * S), "no other answered meanwhile");
    four.answered(1, class, S + 100 * MS, Some(5 * MS));
    assert!(!wait(&mut four, 0, S + 400 * MS), "not for long enough");
    assert!(wait(&mut four, 0, S + 500 * MS));
    four.answered(2, class, S + 100 * MS, Some(400 * MS));
    four.failed(1, 2 * S, "refused".into());
    assert!(!wait(&mut four, 3, 2 * S), "the other needs nearly as long");
    four.failed(2, 2 * S, "refused".into());
    four.failed(0, 2 * S, "refused".into());
    assert!(!wait(&mut four, 3, 9 * S), "the last one");
    (0..9).for_each(|_| four.hedge_lost(3, class, S, 9 * S));
    assert!(!four.is_ejected(3, class, 9 * S), "the last one");
}

#[test]
fn where_all_are_slow_none_is_ejected() {
    let mut four = answering(S, 5 * MS);
    for id in 0..4 {
        four.answered(id, TrafficClass::Write, 3 * S + 10 * MS, Some(2 * S));
        (0..4).for_each(|id| four.still_waiting(id, TrafficClass::Write, S, 4 * S, 500 * MS));
    }
    assert!((0..4).all(|id| !four.is_ejected(id, TrafficClass::Write, 4 * S)));
}

#[test]
fn a_failing_upstream_is_asked_last_but_is_asked() {
    let mut four = four();
    four.failed(0, S, "refused".into());
    four.refused(1, TrafficClass::Write, S, "full".into());
    check(&four, S, [2, 3, 1, 0]);
    assert!(
        four.ranked(TrafficClass::Write, S)[3].is_ejected
            && !four.ranked(TrafficClass::Write, S)[2].is_ejected
    );
    assert_eq!(order(&four, TrafficClass::Read, S), [1, 2, 3, 0], "a full disk is read as well as any");
    check(&four, 3 * S, [1, 2, 3, 0]);
    four.answered(0, TrafficClass::Write, 9 * S, Some(MS));
    check(&four, 9 * S, [0, 1, 2, 3]);
    assert!(four.recovered_since(0, 8 * S) && !four.recovered_since(0, 9 * S) && !four.recovered_since(1, S));
}

#[test]
fn when_all_failed_all_are_still_asked() {
    let mut four = four();
    for id in 0..4 {
        assert!(!four.all_down(9 * S));
        four.failed(id, S, "refused".into());
    }
    check(&four, S, [0, 1, 2, 3]);
    assert!(four.all_down(9 * S) && !four.all_down(2 * S));
    assert!(four.error_summary().starts_with("127.0.0.1:1, 127.0.0.1:2, "));
    assert!(four.error_summary().ends_with(": refused"));
}

#[test]
fn states_follow_what_is_known() {
    let mut four = four();
    four.answered(0, TrafficClass::Read, S, Some(2 * MS));
    four.refused(1, TrafficClass::Write, S, "full".into());
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
    let due = |four: &mut Upstreams, now| four.take_due_probes(now, 0.5).into_iter().map(|(id, _)| id);
    assert_eq!(due(&mut four, Duration::ZERO).count(), 4);
    assert_eq!(due(&mut four, 900 * MS).count(), 0);
    four.failed(3, 900 * MS, "refused".into());
    assert_eq!(due(&mut four, S).count(), 3);
    let mut probes = 0;
    for tick in 12..=10_000 {
        four.probe_answered(0, tick * 100 * MS, MS, &Readiness::ready());
        probes += due(&mut four, tick * 100 * MS).filter(|id| *id == 3).count();
    }
    assert!((200..=300).contains(&probes), "{probes} in a thousand seconds");
}

#[test]
fn a_silent_probe_counts_where_others_answer_theirs_or_after_a_while() {
    let mut four = four();
    let late = |four: &mut Upstreams, id, at| four.probe_timed_out(id, at, at + S, "silent".into());
    (0..4).for_each(|id| late(&mut four, id, S));
    assert!(
        (0..4).all(|id| !four.is_ejected(id, TrafficClass::Write, 2 * S)),
        "the cause may be the proxy's own network"
    );
    four.probe_answered(1, 2 * S + MS, MS, &Readiness::ready());
    late(&mut four, 0, 2 * S);
    assert!(four.is_ejected(0, TrafficClass::Read, 3 * S));
    late(&mut four, 1, 2 * S);
    assert!(!four.is_ejected(1, TrafficClass::Read, 3 * S), "it answered after the probe started");
    late(&mut four, 1, 5 * S);
    assert!(
        four.is_ejected(1, TrafficClass::Read, 6 * S),
        "after a while it counts although no other answers"
    );
}

/// A status report: port, node id, message count, peers.
fn report(port: usize, node_id: u16, messages: u64, peers: &[(usize, u16)]) -> NodeStatus {
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
fn nodes_that_others_name_are_discovered_once_each() {
    let mut four = four();
    // The third is configured under another name than the one it gives itself.
    let reports =
        [(0, report(1, 0, 5, &[(9, 9), (2, 1), (30, 2), (5, 4), (0, 6)])), (2, report(30, 2, 5, &[(5, 4)]))];
    four.answered(2, TrafficClass::Read, S, None);
    four.apply_reports(S, &reports);
    let addrs: Vec<_> = four.status(S).into_iter().map(|status| status.address).collect();
    assert_eq!(addrs, (1..=5).map(addr).collect::<Vec<_>>());
    assert!(four.is_ejected(4, TrafficClass::Write, 2 * S), "until it answers");
    four.answered(4, TrafficClass::Probe, 2 * S, Some(MS));
    assert!(!four.is_ejected(4, TrafficClass::Write, 2 * S));
    four.apply_reports(3 * S, &[(4, report(5, 2, 5, &[])), (2, report(30, 2, 5, &[]))]);
    assert_eq!(four.count(), 4, "it is the third upstream at one more address");
}

#[test]
fn a_discovered_node_that_moved_is_kept_at_its_new_address_only() {
    let mut four = four();
    four.apply_reports(S, &[(0, report(1, 0, 5, &[(5, 4)]))]);
    four.answered(4, TrafficClass::Probe, S, Some(MS));
    four.apply_reports(2 * S, &[(4, report(5, 4, 5, &[]))]);
    four.failed(4, 3 * S, "refused".into());
    four.apply_reports(4 * S, &[(0, report(1, 0, 5, &[(6, 4)]))]);
    assert_eq!(four.count(), 6, "until it answers there");
    four.answered(5, TrafficClass::Probe, 5 * S, Some(MS));
    four.apply_reports(6 * S, &[(0, report(1, 0, 5, &[(6, 4)])), (5, report(6, 4, 5, &[]))]);
    let addrs: Vec<_> = four.status(6 * S).into_iter().map(|status| status.address).collect();
    assert_eq!(addrs, [1, 2, 3, 4, 6].map(addr));
}

#[test]
fn discovery_has_a_bound() {
    let mut four = four();
    let many: Vec<_> = (100_u16..200).map(|id| (usize::from(id), id)).collect();
    four.apply_reports(S, &[(0, report(1, 0, 5, &many))]);
    assert_eq!(four.count(), 4 + 64);
    four.answered(10, TrafficClass::Probe, S, Some(MS));
    four.apply_reports(299 * S, &[(0, report(1, 0, 5, &many[..3]))]);
    four.apply_reports(400 * S, &[(0, report(1, 0, 5, &[]))]);
    assert_eq!(four.count(), 4 + 3 + 1, "those that are still named, and the one that answers");
    (0..4).for_each(|id| four.failed(id, S, "refused".into()));
    four.apply_reports(9_000 * S, &[]);
    assert_eq!(four.count(), 4 + 1);
}

#[test]
fn reads_go_to_nodes_that_lack_nothing() {
    let mut four = four();
    let reports = |counts: [u64; 4]| {
        let one = |(id, count)| (id, report(id + 1, u16::try_from(id).expect("few"), count, &[]));
        counts.into_iter().enumerate().map(one).collect::<Vec<_>>()
    };
    four.apply_reports(S, &reports([5, 90, 100, 70]));
    assert_eq!(order(&four, TrafficClass::Read, S), [0, 1, 2, 3], "new messages may not have spread yet");
    four.apply_reports(2 * S, &reports([60, 100, 150, 100]));
    assert_eq!(order(&four, TrafficClass::Read, S), [1, 2, 3, 0]);
    assert_eq!(order(&four, TrafficClass::Write, S), [0, 1, 2, 3]);
    four.apply_reports(3 * S, &reports([150, 150, 150, 150]));
    assert_eq!(order(&four, TrafficClass::Read, S), [0, 1, 2, 3]);
}

#[test]
fn rounds_come_soon_after_a_change() {
    let mut four = four();
    assert_eq!(four.take_due_round(S).len(), 0, "none is known to be up");
    (0..4).for_each(|id| four.answered(id, TrafficClass::Probe, S, Some(MS)));
    assert_eq!(four.take_due_round(S).len(), 4);
    assert_eq!(four.take_due_round(5 * S).len(), 0);
    assert_eq!(four.take_due_round(6 * S).len(), 4);
    four.failed(0, 6 * S, "refused".into());
    four.answered(0, TrafficClass::Probe, 6 * S, Some(MS));
    assert_eq!(four.take_due_round(6 * S).len(), 0);
    assert_eq!(four.take_due_round(7 * S).len(), 4);
}

#[test]
fn a_node_that_is_missing_is_reported_once_but_not_in_the_first_seconds() {
    let mut four = four();
    let mut is_reported = |id, now| {
        four.failed(id, now, "connection refused".into());
        four.all[&id].is_reported
    };
    assert!(!is_reported(0, 100 * MS) && !is_reported(0, 4 * S));
    assert!(is_reported(0, 5 * S));
    four.answered(1, TrafficClass::Probe, S, None);
    four.failed(1, 2 * S, "connection refused".into());
    assert!(four.all[&1].is_reported, "it was reached before");
    four.answered(0, TrafficClass::Probe, 6 * S, None);
    assert!(!four.all[&0].is_reported, "the next failure is another one");
}
