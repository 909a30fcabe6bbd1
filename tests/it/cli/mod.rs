//! Does the program do what an operator or a script expects at the command line: output, exit codes, error messages?

mod commands;
mod config_files;
mod environment;
mod limits;
mod list_all;
mod read_your_writes;
mod server_start;
mod terminal;
mod up;
