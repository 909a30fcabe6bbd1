//! `chatchain proxy`: the proxy as a process.

use color_eyre::eyre::Result;

use super::{
    Exit,
    serving::{bind, until_stopped},
};
use crate::{cli, config::Sources, proxy};

pub async fn run(args: &cli::ProxyArgs, sources: &Sources) -> Result<Exit> {
    let mut config = sources.proxy(args)?;
    let (listener, listen) = bind(&config.listen).await?;
    config.listen = listen;
    until_stopped(args.exit_with_parent, async |stop| proxy::run(config, listener, stop).await).await
}
