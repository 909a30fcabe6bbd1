//! `chatchain send`: one message, from the arguments to its id; [`mod@file`] sends many.

mod file;
mod import;
mod line_reader;

use color_eyre::eyre::{Report, Result, WrapErr, eyre};
use tokio::io::AsyncReadExt;
use uuid::Uuid;

use super::{Context, Exit, room_recipient};
use crate::{api::message::SendRequest, chain::message::TEXT_BYTES_MAX, cli, output::Output};

/// In place of a text or a file name, it means standard input.
const STDIN: &str = "-";

pub async fn run(args: &cli::SendArgs, context: &Context<'_>) -> Result<Exit> {
    if let Some(path) = &args.file {
        return file::run(path, args.acks.as_deref(), context).await;
    }
    let (servers, output) = (context.servers()?, context.output);
    let recipient = args.to.clone().or_else(|| args.room.as_deref().map(room_recipient));
    let id = args.id.unwrap_or_else(Uuid::now_v7);
    let message = SendRequest {
        sender: context.sources.sender(args.from.as_deref())?,
        recipient: recipient.expect("the command line requires one"),
        text: text(args.text.as_deref().expect("the command line requires one")).await?,
        timestamp: args.timestamp,
        id: Some(id),
    };
    let sent = servers.send(message, args.acks.as_deref()).await.map_err(|error| {
        let advice = format!("the message may or may not be stored; sending it again with --id {id} is safe");
        if error.surely_not_stored() { error.into() } else { Report::from(error).wrap_err(advice) }
    })?;
    if let Some(position) = &sent.position {
        context.last_writes()?.add(position).await;
    }
    let id = sent.answer.message.id;
    output
        .answer(&id.to_string(), &sent.answer)
        .inspect_err(|_| output.warn(&format!("the message is stored, with the id {id}")))?;
    Ok(exit_after_send(sent.below_acks, output))
}

/// The text of the argument, or of standard input without one newline at its end.
async fn text(argument: &str) -> Result<String> {
    if argument != STDIN {
        return Ok(argument.to_owned());
    }
    let mut bytes = Vec::new();
    let limit = u64::try_from(TEXT_BYTES_MAX).expect("a small number") + 2; // a newline, and one byte too many
    tokio::io::stdin().take(limit).read_to_end(&mut bytes).await.wrap_err("cannot read standard input")?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    if bytes.len() > TEXT_BYTES_MAX {
        return Err(eyre!("standard input is longer than the {TEXT_BYTES_MAX} bytes that a text may have"));
    }
    String::from_utf8(bytes).map_err(|_| eyre!("standard input is not UTF-8 text"))
}

fn exit_after_send(below_acks: bool, output: &Output) -> Exit {
    if below_acks {
        output.warn("stored, but fewer nodes than asked have confirmed it so far");
        return Exit::BelowAcks;
    }
    Exit::Done
}
