//! `chatchain proxy`: the proxy as a process.

use color_eyre::eyre::Result;

use super::{
    Context, Exit,
    serving::{bind, run_until_stopped},
};
use crate::{cli, proxy};

pub async fn run(args: &cli::ProxyArgs, context: &Context<'_>) -> Result<Exit> {
    let mut config = context.sources.proxy(args)?;
    let (listener, listen) = bind(&config.listen).await?;
    config.listen = listen;
    run_until_stopped(args.exit_with_parent, async |stop| proxy::run(config, listener, stop).await).await
}
