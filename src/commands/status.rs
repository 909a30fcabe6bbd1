//! `chatchain status`: the whole network, one row per node, then one line for people.
//!
//! Owns the words for the state of a network, and which state `--check` accepts. It judges no node itself: which nodes
//! are up, behind or converged is what the server that was asked answers.

use std::time::Duration;

use color_eyre::eyre::Result;
use tokio::time::sleep;

use super::{Context, Exit, serving::StopSignals};
use crate::{
    api::network::{NetworkNode, NetworkStatus, NodeState},
    cli::{self, OutputFormat},
    client::servers::Servers,
    output::{Output, Row, Tone, stdout_closed},
};

const HEADER: [&str; 9] =
    ["NODE", "STATE", "ADDRESS", "VERSION", "UPTIME", "MESSAGES", "BEHIND", "LAST-SYNC", "RTT"];

const WATCH_INTERVAL: Duration = Duration::from_secs(1);

pub async fn run(args: &cli::StatusArgs, context: &Context<'_>) -> Result<Exit> {
    let servers = context.servers()?;
    if args.watch {
        return watch(&servers, context.output).await;
    }
    let network = match servers.network().await {
        Err(error) if args.check && error.is_starting() => {
            context.output.error(&error.to_string());
            return Ok(Exit::CheckFailed); // a node is not up
        }
        network => network?,
    };
    show(&network, context.output)?;
    Ok(if args.check && !is_well(&network) { Exit::CheckFailed } else { Exit::Done })
}

/// Shows the network every second until a signal. If no server answers, it shows that and goes on.
async fn watch(servers: &Servers, output: &Output) -> Result<Exit> {
    let mut stop = StopSignals::catch()?;
    let show_again = async {
        loop {
            let network = servers.network().await;
            output.begin_page()?;
            match network {
                Ok(network) => show(&network, output)?,
                Err(error) => output.error(&error.to_string()),
            }
            sleep(WATCH_INTERVAL).await;
        }
    };
    tokio::select! {
        ended = show_again => ended,
        () = stop.next() => Ok(Exit::Done),
        () = stdout_closed() => Ok(Exit::Done),
    }
}

fn show(network: &NetworkStatus, output: &Output) -> Result<()> {
    match output.format {
        OutputFormat::Json => output.json(network)?,
        OutputFormat::Ndjson => output.json_list(&network.nodes)?,
        OutputFormat::Table => {
            output.table(&HEADER, &network.nodes.iter().map(row).collect::<Vec<_>>())?;
            let tone = if is_well(network) { Tone::Good } else { Tone::Doubtful };
            output.summary(tone, &sentence(network))?;
        }
    }
    for warning in &network.warnings {
        output.warn(warning);
    }
    Ok(())
}

/// Every node is up, some node is writable, and all nodes agree.
fn is_well(network: &NetworkStatus) -> bool {
    network.up == network.total && network.writable && network.converged
}

/// `3 of 4 nodes up, writable, not converged: node 2 is 329 behind`, or `…, converged; node 3 is down and 17 behind`.
fn sentence(network: &NetworkStatus) -> String {
    let writable = if network.writable { "writable" } else { "not writable" };
    let summary = format!("{} of {} nodes up, {writable}", network.up, network.total);
    let reasons: Vec<_> = network.nodes.iter().filter_map(|node| reason(node, network.converged)).collect();
    match (network.converged, reasons.is_empty()) {
        (true, true) => format!("{summary}, converged"),
        (true, false) => format!("{summary}, converged; {}", reasons.join("; ")),
        (false, true) => format!("{summary}, not converged"),
        (false, false) => format!("{summary}, not converged: {}", reasons.join(", ")),
    }
}

/// What is not well with a node: its state, if the nodes that are up agree, and how far it is behind. The count of a
/// node that is down is from before it went down.
fn reason(node: &NetworkNode, converged: bool) -> Option<String> {
    let name = node.node_id.map_or_else(|| node.address.to_string(), |id| format!("node {id}"));
    let behind = node.behind.filter(|count| *count > 0).map(|count| format!("{count} behind"));
    match (converged, node.state.as_str(), behind) {
        (true, "up", _) | (false, _, None) => None,
        (true, state, None) => Some(format!("{name} is {state}")),
        (true, state, Some(behind)) => Some(format!("{name} is {state} and {behind}")),
        (false, _, Some(behind)) => Some(format!("{name} is {behind}")),
    }
}

fn row(node: &NetworkNode) -> Row {
    fn or_dash<T: ToString>(value: Option<T>) -> String {
        value.map_or_else(|| "-".into(), |value| value.to_string())
    }
    let tone = match node.state {
        NodeState::Up if node.behind.is_none_or(|count| count == 0) => Tone::Plain,
        NodeState::Up | NodeState::Suspect => Tone::Doubtful,
        NodeState::Down => Tone::Bad,
    };
    let cells = vec![
        node.node_id.map_or_else(|| "?".into(), |id| id.to_string()),
        node.state.as_str().into(),
        node.address.to_string(),
        or_dash(node.version.as_ref()),
        or_dash(node.uptime_seconds.map(uptime)),
        or_dash(node.messages),
        or_dash(node.behind),
        or_dash(node.last_sync),
        or_dash(node.rtt_ms.map(|ms| format!("{ms:.1} ms"))),
    ];
    (tone, cells)
}

/// The two largest units: `3d 4h`, `4h 5m`, `5m 6s`, `6s`.
fn uptime(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(json: &str) -> NetworkStatus {
        serde_json::from_str(json).expect("a network")
    }

    fn sample() -> NetworkStatus {
        network(
            r#"{"nodes":[
            {"node_id":0,"address":"127.0.0.1:8081","state":"up","version":"0.1.0","uptime_seconds":3700,"messages":1204,
             "behind":0,"digest":"9f","last_sync":"2026-11-22T12:31:14.123Z","rtt_ms":0.44,"error":null},
            {"node_id":3,"address":"127.0.0.1:8084","state":"down","version":null,"uptime_seconds":null,"messages":null,
             "behind":329,"digest":null,"last_sync":null,"rtt_ms":null,"error":"refused"}],
            "up":1,"total":2,"writable":true,"converged":false,"warnings":[]}"#,
        )
    }

    #[test]
    fn one_line_sums_up_the_network() {
        let mut network = sample();
        assert_eq!(sentence(&network), "1 of 2 nodes up, writable, not converged: node 3 is 329 behind");
        assert!(!is_well(&network));
        network.nodes[1].behind = Some(0);
        network.writable = false;
        assert_eq!(sentence(&network), "1 of 2 nodes up, not writable, not converged");
        network.converged = true;
        assert_eq!(sentence(&network), "1 of 2 nodes up, not writable, converged; node 3 is down");
        network.nodes[1].behind = Some(17);
        network.writable = true;
        assert_eq!(sentence(&network), "1 of 2 nodes up, writable, converged; node 3 is down and 17 behind");
        network.nodes[1].state = NodeState::Up;
        (network.up, network.writable, network.converged) = (2, true, true);
        assert_eq!(sentence(&network), "2 of 2 nodes up, writable, converged");
        assert!(is_well(&network));
    }

    #[test]
    fn unknown_values_are_a_dash() {
        let network = sample();
        let (tone, cells) = row(&network.nodes[0]);
        assert_eq!(tone, Tone::Plain);
        assert_eq!(
            cells,
            [
                "0",
                "up",
                "127.0.0.1:8081",
                "0.1.0",
                "1h 1m",
                "1204",
                "0",
                "2026-11-22T12:31:14.123Z",
                "0.4 ms"
            ]
        );
        let (tone, cells) = row(&network.nodes[1]);
        assert_eq!(tone, Tone::Bad);
        assert_eq!(cells, ["3", "down", "127.0.0.1:8084", "-", "-", "-", "329", "-", "-"]);
    }

    #[test]
    fn uptime_shows_its_two_largest_units() {
        for (seconds, want) in [(6, "6s"), (306, "5m 6s"), (14_700, "4h 5m"), (273_700, "3d 4h")] {
            assert_eq!(uptime(seconds), want);
        }
    }
}
