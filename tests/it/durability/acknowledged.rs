//! Acknowledged messages survive `kill -9`, a directory restored from a backup, and a lost index.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::cluster::{Cluster, copy_dir};
use crate::support::http::{self, Connection};
use crate::support::measure;
use crate::support::messages::{
    Sent, assert_holds, common_history, history, id, lines, listing, numbered, outcome, parse, send,
    send_all, tally,
};
use crate::support::rng::SeededRng;

const LONG: Duration = Duration::from_secs(60);
const ROUNDS: u64 = 50;
/// The senders: each sends one request after the other over one connection, with this many messages per request.
const BATCH_SIZES: [u64; 4] = [1, 1, 1, 20];
/// A node is killed within this time after its senders have started.
const KILLED_AFTER_MAX: Duration = Duration::from_millis(300);
/// A node that is killed during its start is killed within this time.
const KILLED_AT_START_MAX: Duration = Duration::from_millis(60);

/// The messages that a sender sent until its node was gone, and those that were acknowledged.
#[derive(Default)]
struct Attempts {
    tried: Vec<u64>,
    acked: Vec<u64>,
}

/// Sends batch after batch until one gets no answer.
fn send_until_gone(
    addr: SocketAddr,
    mut numbers: impl Iterator<Item = u64>,
    batch: u64,
    acks: &SyncSender<u64>,
) -> Attempts {
    let mut attempts = Attempts::default();
    let Ok(mut connection) = Connection::open(addr) else { return attempts };
    loop {
        let next: Vec<u64> = (0..batch).filter_map(|_| numbers.next()).collect();
        attempts.tried.extend(&next);
        if attempt(&mut connection, addr, &next).is_err() {
            return attempts;
        }
        attempts.acked.extend(&next);
        // The channel only wakes the receiver, so a full channel may drop the value.
        let _full = acks.try_send(batch);
    }
}

/// Sends new messages in one request. No answer is an error; a wrong answer fails the test.
fn attempt(connection: &mut Connection, addr: SocketAddr, numbers: &[u64]) -> io::Result<()> {
    let (media, body) = match numbers {
        [one] => ("application/json", numbered(*one).to_string().into_bytes()),
        many => ("application/x-ndjson", lines(many.iter().copied())),
    };
    connection.send(&http::encode(addr, "POST", "/messages", &[("content-type", media)], &body))?;
    let answer = connection.receive("POST")?;
    if numbers.len() == 1 {
        assert_eq!(outcome(&answer), Sent::New);
    } else {
        let want = json!({"accepted": numbers.len(), "duplicates": 0, "rejected": []});
        assert_eq!((answer.status(), answer.json()), (200, want));
    }
    Ok(())
}

/// Waits for this time, to the microsecond, while acknowledgements arrive.
fn until(moment: Duration, acks: &Receiver<u64>) {
    let began = Instant::now();
    while acks.recv_timeout(moment.saturating_sub(began.elapsed())).is_ok() {}
}

/// Kills the node while all senders run. Gives the messages of all senders.
fn kill_amid_sends(cluster: &mut Cluster, round: u64, moment: Duration) -> Attempts {
    let addr = cluster.node(0);
    std::thread::scope(|scope| {
        let (ack, acks) = sync_channel(1_024);
        let senders: Vec<_> = (1..)
            .zip(BATCH_SIZES)
            .map(|(sender, batch)| {
                let (numbers, ack) = ((round * 100 + sender) * 1_000_000.., ack.clone());
                scope.spawn(move || send_until_gone(addr, numbers, batch, &ack))
            })
            .collect();
        until(moment, &acks);
        cluster.kill9(0);
        let mut all = Attempts::default();
        for sender in senders {
            let attempts = sender.join().expect("the answers were right");
            all.tried.extend(attempts.tried);
            all.acked.extend(attempts.acked);
        }
        all
    })
}

/// The listing of the node after this message, or from its start.
fn listed_after(addr: SocketAddr, last: Option<&Value>) -> Vec<u8> {
    let query = last.map(|message| format!("?after={}", message["id"].as_str().expect("an id")));
    listing(addr, &query.unwrap_or_default())
}

#[test]
fn acknowledged_messages_survive_kill9_at_random_moments_and_are_listed_once() {
    let mut rng = SeededRng::new();
    let mut cluster = Cluster::start(1);
    let addr = cluster.node(0);
    let (mut everything, mut acked, mut last) = (Vec::new(), 0, None);
    for round in 0..ROUNDS {
        let sent = kill_amid_sends(&mut cluster, round, rng.duration(KILLED_AFTER_MAX));
        if round % 3 == 0 {
            let (_ack, acks) = sync_channel(0);
            cluster.spawn_node(0);
            until(rng.duration(KILLED_AT_START_MAX), &acks);
            cluster.kill9(0);
        }
        cluster.restart(0);

        let mut listed = tally(&listed_after(addr, last.as_ref()));
        let missing: Vec<_> = sent.acked.iter().filter(|number| !listed.contains_key(number)).collect();
        assert!(
            missing.is_empty(),
            "round {round}: {} acknowledged messages are missing: {:?}",
            missing.len(),
            missing.first()
        );
        assert!(listed.values().all(|count| *count == 1), "round {round}: listed twice: {listed:?}");

        // A sender without an answer repeats its send. If the message was stored, the repeat is a duplicate.
        let acknowledged: BTreeSet<_> = sent.acked.iter().collect();
        for number in sent.tried.iter().filter(|number| !acknowledged.contains(number)) {
            let want = if listed.contains_key(number) { Sent::Duplicate } else { Sent::New };
            assert_eq!(send(addr, &numbered(*number)), want, "repeat of message {number}");
        }
        for number in &sent.tried {
            listed.remove(number);
        }
        assert!(listed.is_empty(), "round {round}: listed but never sent: {listed:?}");
        acked += sent.acked.len();
        everything.extend(sent.tried);
        last = parse(&listing(addr, "?limit=1")).pop();
    }
    assert_holds(&history(addr), everything.iter().copied());
    assert!(acked as u64 > ROUNDS * 10, "only {acked} acknowledged, which tests too little");
    measure::say(&format!(
        "{ROUNDS} kills amid sends, {acked} messages acknowledged, {} tried, none lost or listed twice",
        everything.len()
    ));
}

#[test]
fn a_directory_restored_from_a_backup_loses_no_message() {
    let mut cluster = Cluster::start(3);
    let send_each = |cluster: &Cluster, from: u64| {
        for i in 0..3 {
            send_all(cluster.node(i), from + i as u64 * 100..from + i as u64 * 100 + 100);
        }
    };
    send_each(&cluster, 0);
    cluster.converge(LONG, 300);
    // As a disk snapshot: the copy ends in the middle of a log that the process continues to write.
    let older = cluster.dir().join("older");
    cluster.process(0).freeze();
    copy_dir(&cluster.node_dir(0), &older);
    cluster.process(0).thaw();
    send_each(&cluster, 300);
    cluster.converge(LONG, 600);

    for i in 0..3 {
        cluster.kill9(i);
    }
    std::fs::remove_dir_all(cluster.node_dir(0)).expect("removed");
    copy_dir(&older, &cluster.node_dir(0));
    // Alone, so that the node cannot learn from the others how far its log went.
    cluster.start_node(0);
    assert_holds(&history(cluster.node(0)), 0..300);
    send_all(cluster.node(0), 600..700);
    cluster.start_all();
    send_all(cluster.node(0), 700..750);
    send_all(cluster.node(1), 750..800);
    cluster.converge(LONG, 800);
    assert_holds(&common_history(&cluster), 0..800);
    for status in cluster.statuses() {
        assert_eq!((&status["warnings"], &status["conflicts"]), (&json!([]), &json!(0)), "{status}");
    }
}

/// A node's answers to all requests that use the index. Without `durable_on`, which depends on the peers.
fn answers(addr: SocketAddr, ids: &[u64]) -> Vec<Value> {
    let queries = [
        "",
        "?limit=10",
        "?user=user3",
        "?sender=user1&limit=7",
        "?user=user1&with=user2",
        "?text=9%20%C3%84",
    ];
    let anchors = ids.iter().flat_map(|number| {
        [format!("?after={}&limit=5", id(*number)), format!("?user=user2&before={}", id(*number))]
    });
    let queries = queries.into_iter().map(str::to_owned).chain(anchors);
    let mut answers: Vec<_> = queries.map(|query| Value::from(parse(&listing(addr, &query)))).collect();
    for number in ids {
        let mut one = http::get(addr, &format!("/messages/{}", id(*number))).expect("answered").json();
        one.as_object_mut().expect("an object").remove("durable_on");
        answers.push(one);
    }
    let status = http::get(addr, "/nodes").expect("answered").json();
    answers
        .push(["messages", "conflicts", "origins", "digest"].map(|key| status[key].clone()).to_vec().into());
    answers
}

#[test]
fn a_deleted_stale_or_garbage_index_is_rebuilt_with_the_same_answers() {
    let mut cluster = Cluster::prepare(2);
    let addr = cluster.node(0);
    let other_content = |number| {
        let mut message = numbered(number);
        message["text"] = "something else".into();
        message
    };
    // While the other is down, each node accepts its messages: 100 are the same, and one id has two contents.
    cluster.start_node(0);
    send_all(addr, 0..300);
    let older = cluster.dir().join("older-index");
    cluster.stop(0);
    std::fs::copy(cluster.node_dir(0).join("index.redb"), &older).expect("copied");
    cluster.start_node(1);
    send_all(cluster.node(1), 200..500);
    assert_eq!(send(cluster.node(1), &other_content(7)), Sent::New);
    cluster.start_node(0);
    cluster.converge(LONG, 501);
    // Alone, so that the node cannot get anything from its peer.
    cluster.kill9(1);

    let ids = [0, 7, 250, 499];
    let before = answers(addr, &ids);
    assert_eq!(before.last().expect("a status")[1], 1, "the conflict is counted");
    let index = cluster.node_dir(0).join("index.redb");
    let garbage = vec![0x5A; 70_000];
    let losses: [(&str, &dyn Fn() -> io::Result<()>); 4] = [
        ("deleted", &|| std::fs::remove_file(&index)),
        ("older", &|| std::fs::copy(&older, &index).map(drop)),
        ("garbage", &|| std::fs::write(&index, &garbage)),
        ("empty", &|| std::fs::write(&index, "")),
    ];
    for (what, lose) in losses {
        cluster.kill9(0);
        lose().expect("changed");
        cluster.start_node(0);
        let after = answers(addr, &ids);
        for (before, after) in before.iter().zip(&after) {
            assert_eq!(before, after, "the index is {what}");
        }
        let again = [0, 7, 250, 499].map(|number| send(addr, &numbered(number)));
        assert_eq!(again, [Sent::Duplicate; 4], "the index is {what}");
        assert_eq!(send(addr, &other_content(7)), Sent::Duplicate, "the index is {what}");
        assert_eq!(send(addr, &other_content(250)), Sent::Conflict, "the index is {what}");
    }
}
