//! `chatchain node`: one node as a process.

use color_eyre::eyre::Result;

use super::{
    Context, Exit,
    serving::{bind, run_until_stopped},
};
use crate::{cli, node};

pub async fn run(args: &cli::NodeArgs, context: &Context<'_>) -> Result<Exit> {
    let mut config = context.sources.node(args)?;
    let (listener, listen) = bind(&config.listen).await?;
    if config.advertise.port() == 0 {
        config.advertise = config.advertise.with_port(listen.port());
    }
    config.listen = listen;
    run_until_stopped(args.exit_with_parent, async |stop| node::run(config, listener, stop).await).await
}
