//! `chatchain forget`: a node that is gone for good is no longer waited for.

use color_eyre::eyre::Result;

use super::{Exit, servers};
use crate::{
    cli::{self, CommonArgs, OutputFormat},
    config::Sources,
    output::Output,
};

pub async fn run(
    args: &cli::ForgetArgs,
    common: &CommonArgs,
    sources: &Sources,
    output: &Output,
) -> Result<Exit> {
    let forgotten = servers(common, sources)?.forget(args.node_id).await?;
    match output.format() {
        OutputFormat::Table => output.line(&format!("node {} is forgotten", forgotten.node_id))?,
        OutputFormat::Json | OutputFormat::Ndjson => output.json(&forgotten)?,
    }
    Ok(Exit::Done)
}
