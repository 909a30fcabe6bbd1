//! `chatchain forget`: removes a node that is gone for good from the members, so that nothing waits for it.

use color_eyre::eyre::Result;

use super::{Context, Exit};
use crate::cli;

pub async fn run(args: &cli::ForgetArgs, context: &Context<'_>) -> Result<Exit> {
    let forgotten = context.servers()?.forget(args.node_id).await?;
    context.output.answer(&format!("node {} is forgotten", forgotten.node_id), &forgotten)?;
    if !forgotten.stored {
        context.output.warn(
            "that is not on disk yet at the node that answered, whose disk is nearly full or fails; if it ends before \
             it has told the others, forget the node again",
        );
    }
    Ok(Exit::Done)
}
