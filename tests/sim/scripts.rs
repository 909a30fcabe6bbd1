//! Named scenarios in a few lines each: which faults hit which nodes, and what must hold in the end.
//!
//! Every scenario ends alike: without further faults the nodes converge, and all of them list every acknowledged
//! message once, unless every disk with it was lost. Other expectations of a scenario are its own assertions.

use crate::world::{Attack, Fault, HalfOpen, LinkQuality, Op, Plan, Stop, Trace, World};

/// A world of this many nodes without random faults.
fn world(machines: usize) -> World {
    World::new(Plan::quiet(1, machines), Trace::default())
}

/// A world of this many nodes and a bad peer with these attacks.
fn attacked_world(machines: usize, attacks: &[Attack]) -> World {
    World::new(Plan { attacks: attacks.to_vec(), ..Plan::quiet(1, machines) }, Trace::default())
}

/// Sends this many messages through these nodes in turn.
fn send_messages(world: &mut World, nodes: &[usize], messages: usize) {
    for node in nodes.iter().cycle().take(messages) {
        world.act(Op::Fresh, *node);
        world.pass(20);
    }
}

const SECOND: u64 = 1_000;

#[test]
fn both_sides_of_a_partition_accept_messages_and_converge_afterwards() {
    let mut world = world(4);
    send_messages(&mut world, &[0, 1, 2, 3], 20);
    world.divide(1);
    send_messages(&mut world, &[0, 1, 2, 3], 20);
    world.pass(5 * SECOND);
    assert_eq!(world.messages(0), world.messages(1));
    assert_ne!(world.listed(0), world.listed(2), "the sides do not exchange");
    world.converge();
    assert_eq!(world.messages(0), 44, "all messages, and one final message to each node");
}

/// Node 1 starts after node 0 has these messages, over links of this quality. How many node 1 has after five minutes.
fn stored_over(quality: LinkQuality, messages: usize) -> usize {
    let mut world = world(2);
    world.switch_off(1, Stop::Cleanly);
    send_messages(&mut world, &[0], messages);
    world.set_link(0, 1, quality);
    world.set_link(1, 0, LinkQuality { half_open: None, ..quality });
    world.switch_on(1);
    world.pass(300 * SECOND);
    let stored = world.messages(1);
    world.converge();
    stored
}

#[test]
fn links_that_carry_each_message_whole_are_enough() {
    assert_eq!(stored_over(LinkQuality { rate: Some(2_000), ..LinkQuality::default() }, 50), 50);
    assert_eq!(stored_over(LinkQuality { cut_after: Some(20_000), ..LinkQuality::default() }, 50), 50);
}

#[test]
fn a_link_that_is_half_open_from_one_side_is_used_from_the_other() {
    for half_open in [HalfOpen::Unanswered, HalfOpen::Swallowed] {
        let quality = LinkQuality { half_open: Some(half_open), ..LinkQuality::default() };
        assert_eq!(stored_over(quality, 50), 50, "{half_open:?}");
    }
}

#[test]
fn a_backlog_crosses_links_that_carry_no_message_whole() {
    for quality in [
        LinkQuality { rate: Some(2_000), ..LinkQuality::default() },
        LinkQuality { cut_after: Some(20_000), ..LinkQuality::default() },
    ] {
        assert_eq!(stored_over(quality, 500), 500, "{quality:?}");
    }
}

#[test]
fn a_restored_backup_recovers_its_messages_and_reuses_no_seq() {
    let mut world = world(3);
    send_messages(&mut world, &[0, 1, 2], 10);
    world.back_up(0);
    send_messages(&mut world, &[0, 1, 2], 10);
    world.pass(2 * SECOND);
    world.restore(0);
    world.switch_on(0);
    send_messages(&mut world, &[0], 5);
    world.converge();
    assert_eq!((world.messages(0), world.lost()), (28, 0));
}

#[test]
fn a_restored_node_that_cannot_connect_is_sent_what_it_lacks() {
    let mut world = world(2);
    send_messages(&mut world, &[0], 10);
    world.pass(3 * SECOND);
    world.back_up(1);
    send_messages(&mut world, &[0], 5);
    world.pass(3 * SECOND);
    assert_eq!(world.messages(1), 15);
    world.restore(1);
    world.only_answers(1);
    world.switch_on(1);
    world.pass(20 * SECOND);
    assert_eq!(world.messages(1), 15, "its peers notice that it has less than before");
}

#[test]
fn a_wiped_node_recovers_all_messages() {
    let mut world = world(3);
    send_messages(&mut world, &[0, 1, 2], 20);
    world.pass(3 * SECOND);
    world.wipe(1);
    world.pass(10 * SECOND);
    world.converge();
    assert_eq!((world.messages(1), world.lost()), (23, 0));
}

#[test]
fn a_wipe_loses_only_messages_that_no_other_node_had() {
    let mut world = world(2);
    send_messages(&mut world, &[0, 1], 10);
    world.pass(3 * SECOND);
    world.divide(0);
    send_messages(&mut world, &[0], 5);
    world.wipe(0);
    world.converge();
    assert_eq!((world.messages(0), world.lost()), (12, 5));
}

#[test]
fn a_copy_of_a_running_node_forks_its_log_and_no_message_is_lost() {
    for machines in 3..=7 {
        let mut world = world(machines);
        send_messages(&mut world, &[0, 1], 10);
        world.pass(2 * SECOND);
        world.divide(1);
        world.copy_running(0, machines - 1);
        send_messages(&mut world, &[0, machines - 1], 12);
        world.pass(SECOND);
        world.converge();
        assert_eq!((world.messages(0), world.lost()), (22 + machines, 0));
        assert_eq!(world.cuts(0), 1, "the forked log is cut once, in a world of {machines}");
    }
}

#[test]
fn three_versions_of_one_log_converge_in_any_order_of_discovery() {
    for machines in 3..=7 {
        for order in 0..machines {
            let mut world = world(machines);
            send_messages(&mut world, &[0], 6);
            world.pass(2 * SECOND);
            world.isolate_all();
            world.copy_running(0, 1);
            send_messages(&mut world, &[0], 3);
            world.copy_running(0, 2);
            send_messages(&mut world, &[1, 2, 0], 9);
            world.pass(SECOND);
            for step in 0..machines {
                world.connect((order + step) % machines, (order + step + 1) % machines);
                world.pass(3 * SECOND);
            }
            world.converge();
            assert_eq!((world.messages(0), world.lost()), (18 + machines, 0));
        }
    }
}

#[test]
fn conflicting_contents_of_one_id_are_both_kept_and_counted() {
    let mut world = world(2);
    send_messages(&mut world, &[0], 1);
    world.pass(2 * SECOND);
    world.divide(0);
    world.conflict(&[0, 1]);
    world.pass(SECOND);
    world.converge();
    assert_eq!((world.messages(0), world.conflicts(0), world.conflicts(1)), (5, 1, 1));
}

#[test]
fn damaged_entries_are_repaired_from_a_peer_without_a_cut() {
    let mut world = world(3);
    send_messages(&mut world, &[0, 1, 2], 30);
    world.pass(3 * SECOND);
    world.switch_off(1, Stop::Cleanly);
    world.damage_records(1, 6);
    world.switch_on(1);
    world.converge();
    assert_eq!((world.messages(1), world.lost(), world.cuts(1)), (33, 0, 0));
}

#[test]
fn a_damaged_entry_without_another_copy_loses_only_that_message() {
    let mut world = world(2);
    send_messages(&mut world, &[0], 10);
    world.pass(3 * SECOND);
    world.divide(0);
    send_messages(&mut world, &[0], 10);
    world.switch_off(0, Stop::Cleanly);
    world.damage_seq(0, 15);
    world.switch_on(0);
    world.converge();
    assert_eq!((world.messages(1), world.lost(), world.cuts(1)), (21, 1, 1));
}

/// Giving up after some time would cut the log, and all entries after the damaged one would be stored twice for ever.
#[test]
fn a_damaged_entry_whose_only_other_copy_is_away_for_an_hour_is_kept_and_repaired_on_its_return() {
    for machines in 2..=3 {
        let mut world = world(machines);
        send_messages(&mut world, &[0], 10);
        world.pass(3 * SECOND);
        (1..machines).for_each(|node| world.switch_off(node, Stop::Cleanly));
        for node in 0..machines - 1 {
            world.switch_off(node, Stop::Cleanly);
            world.damage_seq(node, 5);
            world.switch_on(node);
            world.list_all(node);
        }
        world.pass(3_600 * SECOND);
        assert_eq!((world.cuts(0), world.damaged(0)), (0, 1));
        world.switch_on(machines - 1);
        world.pass(60 * SECOND);
        assert_eq!((world.cuts(0), world.damaged(0)), (0, 0));
        world.converge();
        assert_eq!((world.messages(0), world.lost(), world.cuts(0)), (10 + machines, 0, 0));
    }
}

#[test]
fn a_salvaged_store_recovers_missing_entries_from_a_peer_without_a_cut() {
    let mut world = world(3);
    send_messages(&mut world, &[0], 20);
    world.pass(3 * SECOND);
    world.switch_off(0, Stop::Cleanly);
    world.damage_seq(0, 15);
    world.check_all_pages_at_next_start(0);
    world.switch_on(0);
    assert_eq!((world.messages(0), world.detached(0)), (14, 5), "five entries follow the gap");
    world.converge();
    assert_eq!((world.messages(0), world.lost(), world.cuts(0), world.detached(0)), (23, 0, 0, 0));
}

#[test]
fn entries_after_a_gap_that_no_peer_can_fill_move_to_a_branch() {
    let mut world = world(2);
    world.divide(0);
    send_messages(&mut world, &[0], 20);
    world.switch_off(0, Stop::Cleanly);
    world.damage_seq(0, 15);
    world.check_all_pages_at_next_start(0);
    world.switch_on(0);
    world.converge();
    assert_eq!((world.messages(1), world.lost(), world.cuts(1), world.detached(0)), (21, 1, 1, 0));
}

#[test]
fn the_same_damage_on_two_nodes_causes_no_endless_exchanges() {
    let mut world = world(2);
    send_messages(&mut world, &[0], 10);
    world.pass(3 * SECOND);
    for node in [0, 1] {
        world.switch_off(node, Stop::Cleanly);
        world.damage_seq(node, 4);
        world.switch_on(node);
        world.list_all(node);
    }
    let before = world.tally.exchanges;
    world.pass(9 * SECOND);
    let exchanges = world.tally.exchanges - before;
    assert!(exchanges < 60, "{exchanges} exchanges in 9 s");
    world.converge();
    assert_eq!((world.messages(1), world.lost(), world.cuts(1)), (11, 1, 1));
}

#[test]
fn a_full_disk_refuses_messages_and_accepts_them_once_there_is_space() {
    let mut world = world(3);
    send_messages(&mut world, &[0, 1, 2], 10);
    world.fill(1);
    send_messages(&mut world, &[0, 2], 10);
    world.act(Op::Fresh, 1);
    world.pass(5 * SECOND);
    assert_eq!(world.messages(1), 10, "the full disk accepts nothing");
    world.converge();
    assert_eq!(world.messages(1), 23, "the refused message was never acknowledged");
}

#[test]
fn a_clock_set_far_back_starts_a_new_log_and_loses_nothing() {
    let mut world = world(2);
    send_messages(&mut world, &[0, 1], 10);
    world.shift_clock(0, -100_000_000);
    send_messages(&mut world, &[0, 1], 10);
    world.shift_clock(1, 100_000_000);
    send_messages(&mut world, &[0, 1], 10);
    world.converge();
    assert_eq!((world.messages(0), world.lost()), (32, 0));
    assert!(world.logs(0) >= 3, "more logs than nodes");
}

#[test]
fn a_power_failure_during_a_commit_loses_no_acknowledged_message() {
    let mut world = world(2);
    for _ in 0..30 {
        world.inject(Fault::Disk, 0);
        send_messages(&mut world, &[0, 1], 20);
        world.pass(4 * SECOND);
    }
    world.converge();
    assert_eq!(world.lost(), 0);
}

#[test]
fn a_bad_peer_that_forks_every_log_hides_no_message() {
    let attacks = [Attack::Fork, Attack::LogTypes, Attack::BranchNames, Attack::FalseAnswers];
    let mut cuts = 0;
    for machines in 2..=4 {
        let mut world = attacked_world(machines, &attacks);
        for _ in 0..10 {
            send_messages(&mut world, &[0, 1], 6);
            world.pass(3 * SECOND);
        }
        world.converge();
        assert_eq!(world.lost(), 0);
        assert_eq!(world.acknowledged(), 60 + machines, "each node accepts messages to the end");
        assert!(world.tally.forged > 20, "{:?}", world.tally);
        cuts += world.cuts(0);
    }
    assert!(cuts > 0, "no fork was found");
}

#[test]
fn cuts_that_a_bad_peer_claims_stop_no_node() {
    let mut world = attacked_world(3, &[Attack::Cut, Attack::ClaimMore, Attack::Floors]);
    for _ in 0..10 {
        send_messages(&mut world, &[0, 1, 2], 6);
        world.pass(3 * SECOND);
    }
    world.converge();
    assert_eq!((world.messages(0), world.lost(), world.conflicts(0)), (63, 0, 0));
    assert!(world.cuts(0) > 2, "{:?}", world.tally);
}

#[test]
fn forged_records_for_damaged_entries_replace_nothing() {
    let mut world = attacked_world(3, &[Attack::FalseAnswers, Attack::ClaimEqual]);
    send_messages(&mut world, &[0, 1, 2], 30);
    world.pass(3 * SECOND);
    for node in [0, 1, 2] {
        world.switch_off(node, Stop::Cleanly);
        world.damage_records(node, 6);
        world.switch_on(node);
        world.list_all(node);
        world.pass(3 * SECOND);
    }
    world.converge();
    assert_eq!((world.damaged(0), world.lost()), (0, 0));
}

#[test]
fn messages_that_a_bad_peer_repeats_are_shown_once_and_its_stamps_move_no_clock() {
    let mut world =
        attacked_world(4, &[Attack::ManyLogs, Attack::Stamps, Attack::Copies, Attack::Unreadable]);
    for _ in 0..10 {
        send_messages(&mut world, &[0, 1, 2, 3], 6);
        world.pass(3 * SECOND);
    }
    world.converge();
    assert_eq!(world.lost(), 0);
    assert!(world.conflicts(0) > 0 && world.tally.forged > 20, "{:?}", world.tally);
}

#[test]
fn a_bad_peer_that_asks_and_claims_without_end_causes_few_exchanges() {
    let claims = [Attack::More, Attack::NeedFull, Attack::Wants, Attack::ClaimLess, Attack::ClaimMore];
    let mut world = attacked_world(3, &claims);
    send_messages(&mut world, &[0, 1, 2], 30);
    world.pass(10 * SECOND);
    let before = world.tally.exchanges;
    world.pass(60 * SECOND);
    let exchanges = world.tally.exchanges - before;
    assert!(exchanges < 1_500, "{exchanges} exchanges of three nodes in 60 s");
    world.converge();
    assert_eq!((world.messages(0), world.lost(), world.cuts(0)), (33, 0, 0));
}
