//! Named cases, each told in a few lines: what happens to whom, and that all is well in the end.
//!
//! The ends of all stories are the same: in calm the nodes become equal, and what was acknowledged is shown once
//! everywhere unless every disk with it is gone. What a case is about beyond that, it checks itself.

use crate::world::{Fault, Op, Plan, Stop, Trace, World};

/// A quiet world of so many nodes.
fn world(machines: usize) -> World {
    World::new(Plan::quiet(1, machines), Trace::default())
}

/// So many clients send a message each, through these nodes in turn.
fn chat(world: &mut World, nodes: &[usize], messages: usize) {
    for node in nodes.iter().cycle().take(messages) {
        world.act(Op::Fresh, *node);
        world.pass(20);
    }
}

const SECOND: u64 = 1_000;

#[test]
fn a_divided_network_goes_on_on_both_sides_and_becomes_one_again() {
    let mut world = world(4);
    chat(&mut world, &[0, 1, 2, 3], 20);
    world.divide(1);
    chat(&mut world, &[0, 1, 2, 3], 20);
    world.pass(5 * SECOND);
    assert_eq!(world.messages(0), world.messages(1));
    assert_ne!(world.listed(0), world.listed(2), "the sides do not hear of each other");
    world.converge();
    assert_eq!(world.messages(0), 44, "all that was sent, and one last word of each node");
}

#[test]
fn a_restored_backup_gets_back_what_it_lacks_and_uses_no_place_twice() {
    let mut world = world(3);
    chat(&mut world, &[0, 1, 2], 10);
    world.back_up(0);
    chat(&mut world, &[0, 1, 2], 10);
    world.pass(2 * SECOND);
    world.restore(0);
    world.switch_on(0);
    chat(&mut world, &[0], 5);
    world.converge();
    assert_eq!((world.messages(0), world.lost()), (28, 0));
}

#[test]
fn a_restored_node_that_can_ask_nobody_is_given_what_it_lacks() {
    let mut world = world(2);
    chat(&mut world, &[0], 10);
    world.pass(3 * SECOND);
    world.back_up(1);
    chat(&mut world, &[0], 5);
    world.pass(3 * SECOND);
    assert_eq!(world.messages(1), 15);
    world.restore(1);
    world.only_answers(1);
    world.switch_on(1);
    world.pass(20 * SECOND);
    assert_eq!(world.messages(1), 15, "what it had before it was restored is not what it has");
}

#[test]
fn a_wiped_node_is_filled_again() {
    let mut world = world(3);
    chat(&mut world, &[0, 1, 2], 20);
    world.pass(3 * SECOND);
    world.wipe(1);
    world.pass(10 * SECOND);
    world.converge();
    assert_eq!((world.messages(1), world.lost()), (23, 0));
}

#[test]
fn a_node_that_was_alone_with_its_messages_when_it_was_wiped_loses_only_them() {
    let mut world = world(2);
    chat(&mut world, &[0, 1], 10);
    world.pass(3 * SECOND);
    world.divide(0);
    chat(&mut world, &[0], 5);
    world.wipe(0);
    world.converge();
    assert_eq!((world.messages(0), world.lost()), (12, 5));
}

#[test]
fn a_copy_of_a_running_node_forks_its_log_and_nothing_is_lost() {
    for machines in 3..=7 {
        let mut world = world(machines);
        chat(&mut world, &[0, 1], 10);
        world.pass(2 * SECOND);
        world.divide(1);
        world.copy_running(0, machines - 1);
        chat(&mut world, &[0, machines - 1], 12);
        world.pass(SECOND);
        world.converge();
        assert_eq!((world.messages(0), world.lost()), (22 + machines, 0));
        assert_eq!(world.cuts(0), 1, "the forked log is cut once, in a world of {machines}");
    }
}

#[test]
fn three_versions_of_one_log_end_in_one_cut_whoever_finds_them_first() {
    for machines in 3..=7 {
        for order in 0..machines {
            let mut world = world(machines);
            chat(&mut world, &[0], 6);
            world.pass(2 * SECOND);
            world.isolate_all();
            world.copy_running(0, 1);
            chat(&mut world, &[0], 3);
            world.copy_running(0, 2);
            chat(&mut world, &[1, 2, 0], 9);
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
fn one_id_with_two_contents_on_two_sides_is_kept_twice_and_counted() {
    let mut world = world(2);
    chat(&mut world, &[0], 1);
    world.pass(2 * SECOND);
    world.divide(0);
    world.conflict(&[0, 1]);
    world.pass(SECOND);
    world.converge();
    assert_eq!((world.messages(0), world.conflicts(0), world.conflicts(1)), (5, 1, 1));
}

#[test]
fn damage_is_mended_from_who_has_a_good_copy_and_nothing_is_cut() {
    let mut world = world(3);
    chat(&mut world, &[0, 1, 2], 30);
    world.pass(3 * SECOND);
    world.switch_off(1, Stop::Cleanly);
    world.spoil(1, 6);
    world.switch_on(1);
    world.converge();
    assert_eq!((world.messages(1), world.lost(), world.cuts(1)), (33, 0, 0));
}

#[test]
fn damage_without_a_good_copy_costs_that_message_and_no_other() {
    let mut world = world(2);
    chat(&mut world, &[0], 10);
    world.pass(3 * SECOND);
    world.divide(0);
    chat(&mut world, &[0], 10);
    world.switch_off(0, Stop::Cleanly);
    world.spoil_seq(0, 15);
    world.switch_on(0);
    world.converge();
    assert_eq!((world.messages(1), world.lost(), world.cuts(1)), (21, 1, 1));
}

#[test]
fn a_salvaged_store_gets_what_is_missing_from_who_has_it_and_nothing_is_cut() {
    let mut world = world(3);
    chat(&mut world, &[0], 20);
    world.pass(3 * SECOND);
    world.switch_off(0, Stop::Cleanly);
    world.spoil_seq(0, 15);
    world.opens_carefully(0);
    world.switch_on(0);
    assert_eq!((world.messages(0), world.loose(0)), (14, 5), "five stand behind a gap");
    world.converge();
    assert_eq!((world.messages(0), world.lost(), world.cuts(0), world.loose(0)), (23, 0, 0, 0));
}

#[test]
fn what_stands_behind_a_gap_that_nobody_can_fill_moves_to_a_branch() {
    let mut world = world(2);
    world.divide(0);
    chat(&mut world, &[0], 20);
    world.switch_off(0, Stop::Cleanly);
    world.spoil_seq(0, 15);
    world.opens_carefully(0);
    world.switch_on(0);
    world.converge();
    assert_eq!((world.messages(1), world.lost(), world.cuts(1), world.loose(0)), (21, 1, 1, 0));
}

#[test]
fn the_same_damage_on_two_nodes_does_not_make_them_ask_each_other_without_end() {
    let mut world = world(2);
    chat(&mut world, &[0], 10);
    world.pass(3 * SECOND);
    for node in [0, 1] {
        world.switch_off(node, Stop::Cleanly);
        world.spoil_seq(node, 4);
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
fn a_full_disk_refuses_and_takes_everything_once_there_is_room() {
    let mut world = world(3);
    chat(&mut world, &[0, 1, 2], 10);
    world.fill(1);
    chat(&mut world, &[0, 2], 10);
    world.act(Op::Fresh, 1);
    world.pass(5 * SECOND);
    assert_eq!(world.messages(1), 10, "nothing more fits");
    world.converge();
    assert_eq!(world.messages(1), 23, "the one that was refused was never acknowledged");
}

#[test]
fn a_clock_set_far_back_begins_a_new_log_and_harms_nobody() {
    let mut world = world(2);
    chat(&mut world, &[0, 1], 10);
    world.shift_clock(0, -100_000_000);
    chat(&mut world, &[0, 1], 10);
    world.shift_clock(1, 100_000_000);
    chat(&mut world, &[0, 1], 10);
    world.converge();
    assert_eq!((world.messages(0), world.lost()), (32, 0));
    assert!(world.logs(0) >= 3, "one log more than nodes");
}

#[test]
fn a_power_failure_in_the_middle_of_a_commit_takes_nothing_that_was_acknowledged() {
    let mut world = world(2);
    for _ in 0..30 {
        world.befall(Fault::Disk, 0);
        chat(&mut world, &[0, 1], 20);
        world.pass(4 * SECOND);
    }
    world.converge();
    assert_eq!(world.lost(), 0);
}
