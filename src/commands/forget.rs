//! `chatchain forget`: a node that is gone for good is no longer waited for.

use color_eyre::eyre::Result;

use super::{Exit, servers};
use crate::{
    cli::{self, Common, Format},
    config::Sources,
    output::Output,
};

pub async fn run(args: &cli::Forget, common: &Common, sources: &Sources, output: &Output) -> Result<Exit> {
    let forgotten = servers(common, sources)?.forget(args.node_id).await?;
    match output.format() {
        Format::Table => output.line(&format!("node {} is forgotten", forgotten.node_id))?,
        Format::Json | Format::Ndjson => output.json(&forgotten)?,
    }
    Ok(Exit::Done)
}
