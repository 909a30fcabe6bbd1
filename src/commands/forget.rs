//! `chatchain forget`: removes a node that is gone for good from the members, so that nothing waits for it.

use color_eyre::eyre::Result;

use super::{Context, Exit};
use crate::cli;

pub async fn run(args: &cli::ForgetArgs, context: &Context<'_>) -> Result<Exit> {
    let forgotten = context.servers()?.forget(args.node_id).await?;
    context.output.answer(&format!("node {} is forgotten", forgotten.node_id), &forgotten)?;
    Ok(Exit::Done)
}
