//! `chatchain send`: one message, from what was typed to its id; files of them are in [`mod@file`].

mod file;
mod import;

use color_eyre::eyre::{Report, Result, WrapErr, eyre};
use tokio::io::AsyncReadExt;
use uuid::Uuid;

use super::{Exit, last_writes::LastWrites, room, servers};
use crate::{
    api::message::SendRequest,
    chain::message::TEXT_BYTES_MAX,
    cli::{self, CommonArgs, OutputFormat},
    client::ClientError,
    config::Sources,
    output::Output,
};

/// Typed instead of a text or a file name, it means standard input.
const STDIN: &str = "-";

pub async fn run(
    args: &cli::SendArgs,
    common: &CommonArgs,
    sources: &Sources,
    output: &Output,
) -> Result<Exit> {
    let servers = servers(common, sources)?;
    if let Some(path) = &args.file {
        return file::run(path, args.acks.as_deref(), &servers, &LastWrites::of(sources), output).await;
    }
    let recipient = args.to.clone().or_else(|| args.room.as_deref().map(room));
    let id = args.id.unwrap_or_else(Uuid::now_v7);
    let message = SendRequest {
        sender: sources.sender(args.from.as_deref())?,
        recipient: recipient.expect("the command line asks for one"),
        text: text(args.text.as_deref().expect("the command line asks for it")).await?,
        timestamp: args.timestamp,
        id: Some(id),
    };
    let sent = servers.send(message, args.acks.as_deref()).await.map_err(|error| with_advice(error, id))?;
    if let Some(position) = &sent.position {
        LastWrites::of(sources).add(position).await;
    }
    match output.format() {
        OutputFormat::Table => output.line(&sent.answer.message.id.to_string())?,
        OutputFormat::Json | OutputFormat::Ndjson => output.json(&sent.answer)?,
    }
    Ok(acked(sent.below_acks, output))
}

/// The text itself, or standard input without one newline at its end.
async fn text(typed: &str) -> Result<String> {
    if typed != STDIN {
        return Ok(typed.to_owned());
    }
    let mut bytes = Vec::new();
    let most = u64::try_from(TEXT_BYTES_MAX).expect("a small number") + 2; // a newline, and one too many
    tokio::io::stdin().take(most).read_to_end(&mut bytes).await.wrap_err("cannot read standard input")?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    if bytes.len() > TEXT_BYTES_MAX {
        return Err(eyre!("standard input is longer than the {TEXT_BYTES_MAX} bytes that a text may have"));
    }
    String::from_utf8(bytes).map_err(|_| eyre!("standard input is not UTF-8 text"))
}

/// If the message may be stored all the same, says how to try again without a second one.
fn with_advice(error: ClientError, id: Uuid) -> Report {
    let may_be_stored = may_be_stored(&error);
    let report = Report::from(error);
    if may_be_stored {
        report.wrap_err(format!(
            "the message may or may not be stored; sending it again with --id {id} is safe"
        ))
    } else {
        report
    }
}

fn may_be_stored(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } => false,
        ClientError::Lost { .. } | ClientError::Timeout { .. } | ClientError::Malformed { .. } => true,
        ClientError::Problem { problem, .. } => !problem.code.surely_no_effect(),
        ClientError::NoAnswer { tried } => tried.iter().any(may_be_stored),
    }
}

fn acked(below_acks: bool, output: &Output) -> Exit {
    if below_acks {
        output.warn("stored, but fewer nodes than asked have confirmed it so far");
        return Exit::BelowAcks;
    }
    Exit::Done
}
