//! `chatchain node`: one node as a process.

use color_eyre::eyre::Result;

use super::{
    Exit,
    serving::{bind, until_stopped},
};
use crate::{cli, config::Sources, node};

pub async fn run(args: &cli::NodeArgs, sources: &Sources) -> Result<Exit> {
    let mut config = sources.node(args)?;
    let (listener, listen) = bind(&config.listen).await?;
    if config.advertise.port() == 0 {
        config.advertise = config.advertise.with_port(listen.port());
    }
    config.listen = listen;
    until_stopped(args.exit_with_parent, async |stop| node::run(config, listener, stop).await).await
}
