//! The program: parses the command line, sets up logs and error reports, runs the command, and ends with its exit code.
//!
//! Knows no command. What ends before the runtime starts (help, usage, a wrong log filter, too few threads) ends here.

use std::{env, process::ExitCode, thread};

use chatchain::{
    api::explain_invalid::quote,
    cli::{Cli, Command},
    commands::{self, Exit, preflight},
    config::ConfigError,
    output::{self, LogOutput, Output, PrintError},
};
use clap::{ColorChoice, CommandFactory, FromArgMatches};
use color_eyre::config::{HookBuilder, Theme};
use tracing_subscriber::EnvFilter;

/// The variable with a filter of log lines, of `tracing`.
const LOG_FILTER: &str = "RUST_LOG";
/// The name of the first thread. Its panic ends a server as well.
const MAIN: &str = "main";

fn main() -> ExitCode {
    let cli = match parse() {
        Ok(cli) => cli,
        Err(no_command) => return answer_or_usage(&no_command),
    };
    let output = Output::new(&cli.common);
    report_errors(&cli);
    if let Err(error) = log_to_stderr(&cli, &output) {
        output.error(&error.to_string());
        return ExitCode::from(Exit::Usage as u8);
    }
    let ended = preflight::runtime(is_server(&cli)).and_then(|runtime| {
        let ended = runtime.block_on(commands::run(&cli, &output));
        runtime.shutdown_background(); // a thread may still wait for standard input
        ended
    });
    let exit = ended.unwrap_or_else(|report| {
        if !commands::is_closed_pipe(&report) {
            output.error(&commands::error_sentence(&report));
            if reports_in_full(&cli) {
                output.report(&format!("{report:?}"));
            }
        }
        Exit::of(&report)
    });
    ExitCode::from(exit as u8)
}

/// Parses the command line. Alone, clap takes an empty TERM for a terminal with escape codes.
fn parse() -> Result<Cli, clap::Error> {
    let command = Cli::command();
    let command = if output::has_escapes() { command } else { command.color(ColorChoice::Never) };
    Cli::from_arg_matches(&command.try_get_matches()?)
}

/// Prints help, the version, or what is wrong with the command line.
fn answer_or_usage(answer: &clap::Error) -> ExitCode {
    let usage = ExitCode::from(Exit::Usage as u8);
    match answer.print() {
        Ok(()) => u8::try_from(answer.exit_code()).map_or(usage, ExitCode::from),
        Err(_) if answer.use_stderr() => usage, // there is no place left to report it
        Err(error) => {
            let report = PrintError::from(error).into();
            if !commands::is_closed_pipe(&report) {
                output::eprint_line(&format!("error: {}", commands::error_sentence(&report)));
            }
            ExitCode::from(Exit::of(&report) as u8)
        }
    }
}

fn is_server(cli: &Cli) -> bool {
    matches!(cli.command, Command::Node(_) | Command::Proxy(_))
}

/// A panic is a bug of ChatChain, and is always reported in full. An error is reported in full only with `-vv`, since
/// resolving a backtrace takes longer than most commands.
fn report_errors(cli: &Cli) {
    let builder = HookBuilder::default()
        .theme(Theme::new()) // without colors: standard error may be a file
        .display_env_section(false)
        .panic_section("This is a mistake in ChatChain. Nothing that was acknowledged is lost by it.");
    let (panics, errors) = builder.into_hooks();
    let is_server = is_server(cli);
    // A hook that panics aborts the process, and `eprintln!` panics if standard error is closed. A server must outlive
    // a panic: it answers 500, or takes the panic as a damaged page of the store.
    std::panic::set_hook(Box::new(move |panic| {
        if commands::panic_becomes_error() {
            tracing::debug!("{}", panics.panic_report(panic));
        } else if preflight::is_thread_missing(panic)
            && (!is_server || thread::current().name() == Some(MAIN))
        {
            preflight::exit_without_threads();
        } else {
            output::eprint_line(&panics.panic_report(panic).to_string());
        }
    }));
    if reports_in_full(cli) {
        errors.install().expect("the hook is installed once");
    }
}

fn reports_in_full(cli: &Cli) -> bool {
    cli.common.verbose > 1
}

/// Servers log what they do; other commands log warnings only. `RUST_LOG` wins over `-q` and `-v`, unless it is empty.
fn log_to_stderr(cli: &Cli, output: &Output) -> Result<(), ConfigError> {
    let level = match (cli.common.quiet, cli.common.verbose, is_server(cli)) {
        (true, ..) | (_, 0, false) => "warn",
        (_, 0, true) => "info",
        (_, 1, _) => "info,chatchain=debug",
        _ => "debug,chatchain=trace",
    };
    let named = env::var_os(LOG_FILTER).filter(|filter| !filter.is_empty());
    let filter = match &named {
        Some(named) => {
            named.to_str().and_then(|text| EnvFilter::builder().parse(text).ok()).ok_or_else(|| {
                let why =
                    "is no filter of log lines; give a level such as `debug`, or `warn,chatchain=trace`";
                ConfigError::new(format!("{LOG_FILTER} is {}: this {why}", quote(&named.to_string_lossy())))
            })?
        }
        None => EnvFilter::new(level),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| LogOutput)
        .log_internal_errors(false) // it panics where standard error is closed
        .with_ansi(output.colors_errors)
        .with_target(cli.common.verbose > 0)
        .init();
    Ok(())
}
