//! An import of 303,895 real messages with the command line through a proxy to four nodes, which are killed meanwhile.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::support::cluster::Cluster;
use crate::support::corpus::{MESSAGES, corpus};
use crate::support::eventually::eventually_blocking;
use crate::support::measure;
use crate::support::messages::{common_history, history};
use crate::support::process::{Finished, Process};

/// An import that takes longer fails the test. Takes well under a minute on an idle machine.
const IMPORT: Duration = Duration::from_secs(600);
/// The nodes must have converged within this time after the import.
const CATCH_UP: Duration = Duration::from_secs(120);

/// The output of `send --file -o json`.
#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Tally {
    sent: u64,
    accepted: u64,
    duplicates: u64,
    rejected: u64,
}

/// The fields of a message that the sender sets. Other fields of a listing are ignored.
#[derive(Debug, Deserialize, PartialEq, Eq, Hash)]
struct Content {
    sender: String,
    recipient: String,
    text: String,
    timestamp: u64,
}

#[derive(Deserialize)]
struct Listed {
    id: String,
    #[serde(flatten)]
    content: Content,
}

#[test]
fn an_import_amid_node_kills_stores_every_message_once_on_all_nodes() {
    let Some(file) = corpus() else { return };
    let mut cluster = Cluster::start_with_proxy(4);
    std::fs::write(cluster.dir().join("irc.ndjson"), &file).expect("written");

    let began = Instant::now();
    let mut importing = import(&cluster, &["-o", "json"]);
    kill_one_after_the_other(&mut cluster, &mut importing);
    let done = importing.finish(IMPORT);
    let (imported, began) = (began.elapsed(), Instant::now());
    assert_eq!(done.code, Some(0), "{done:?}");
    let tally: Tally = serde_json::from_str(&done.stdout).expect("a tally");
    assert_eq!((tally.sent, tally.accepted + tally.duplicates, tally.rejected), (MESSAGES, MESSAGES, 0));

    let digest = cluster.converge(CATCH_UP, MESSAGES);
    let converged = began.elapsed();
    let all = common_history(&cluster);
    assert!(history(cluster.proxy()) == all, "the proxy lists another history than the nodes");
    assert_holds_the_file(&all, &file);

    let began = Instant::now();
    let Finished { code, stdout, stderr } = import(&cluster, &[]).finish(IMPORT);
    let again = began.elapsed();
    let want = "303,895 sent: 0 accepted, 303,895 duplicates, 0 rejected\n";
    assert_eq!((code, stdout.as_str()), (Some(0), want), "{stderr}");
    assert_eq!(cluster.converge(CATCH_UP, MESSAGES), digest, "importing again changed something");

    let rate = |took: Duration| u128::from(MESSAGES) * 1_000 / took.as_millis();
    measure::say(&format!(
        "{MESSAGES} real messages imported in {imported:.1?} ({}/s) while each node was killed once, converged on four \
         nodes {converged:.1?} later; importing again found only duplicates in {again:.1?} ({}/s)",
        rate(imported),
        rate(again)
    ));
}

fn import(cluster: &Cluster, args: &[&str]) -> Process {
    let mut command = cluster.command();
    command.args(["send", "--file", "irc.ndjson", "--server", &cluster.proxy().to_string()]).args(args);
    Process::spawn("import", command)
}

/// Kills every node once, so that the proxy's preferred node is among them, and restarts each after further messages.
fn kill_one_after_the_other(cluster: &mut Cluster, importing: &mut Process) {
    let wait_for = |cluster: &Cluster, part: u64| {
        let count = MESSAGES / 10 * part;
        eventually_blocking(IMPORT, &format!("{count} messages"), || {
            let counts = cluster.statuses().into_iter().filter_map(|status| status["messages"].as_u64());
            counts.max().filter(|max| *max >= count)
        });
    };
    for victim in 0..4 {
        wait_for(cluster, 2 * victim as u64 + 1);
        cluster.kill9(victim);
        wait_for(cluster, 2 * victim as u64 + 2);
        assert!(importing.ended().is_none(), "the import ended before node {victim} was started again");
        cluster.start_node(victim);
    }
}

/// Compares as multisets: some lines occur more than once in the file, and each is a separate message.
#[track_caller]
fn assert_holds_the_file(listing: &[u8], file: &[u8]) {
    let listed: Vec<Listed> = serde_json::from_slice(listing).expect("a listing");
    let ids: HashSet<_> = listed.iter().map(|message| &message.id).collect();
    assert_eq!((listed.len() as u64, ids.len() as u64), (MESSAGES, MESSAGES), "one message per id");
    let mut balance: HashMap<Content, i64> = HashMap::new();
    for line in file.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        *balance.entry(serde_json::from_slice(line).expect("a message")).or_default() += 1;
    }
    for message in listed {
        *balance.entry(message.content).or_default() -= 1;
    }
    balance.retain(|_, count| *count != 0);
    assert!(balance.is_empty(), "{} differ, among them {:?}", balance.len(), balance.iter().next());
}
