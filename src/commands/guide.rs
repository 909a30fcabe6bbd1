//! `chatchain guide`: the list of topics, or one topic.
//!
//! Needs no server and no configuration: a user whose configuration is refused must be able to read about it.

use color_eyre::eyre::Result;

use super::Exit;
use crate::{
    cli, config,
    guide::{self, TOPICS},
    output::{Output, Tone},
};

pub fn run(args: &cli::GuideArgs, output: &Output) -> Result<Exit> {
    let Some(name) = &args.topic else { return list(output) };
    let topic = guide::topic(name).ok_or_else(|| {
        let names: Vec<_> = TOPICS.iter().map(|topic| topic.name).collect();
        config::ConfigError::new(format!(
            "the guide has no topic {name:?}; did you mean `{}`? The topics are {}",
            guide::nearest(name).name,
            names.join(", ")
        ))
    })?;
    output.page(topic.text)?;
    Ok(Exit::Done)
}

fn list(output: &Output) -> Result<Exit> {
    let rows: Vec<_> =
        TOPICS.iter().map(|topic| (Tone::Plain, vec![topic.name.into(), topic.title().into()])).collect();
    output.table(&["TOPIC", "WHAT"], &rows)?;
    output.line(
        "`chatchain guide TOPIC` prints a topic; a name in brackets, such as [feed], is another topic.",
    )?;
    output.line("`chatchain help COMMAND` explains the flags of a command.")?;
    Ok(Exit::Done)
}
