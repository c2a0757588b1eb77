//! The subcommands, one file each; `tap` puts the parts of a running tap together, `place` keeps its directory.

mod apis;
mod ca;
mod cache;
mod certs;
mod child;
mod doctor;
mod env;
mod health;
mod logging;
mod place;
mod report;
mod run;
mod serve;
mod store;
mod tap;

use std::fmt::Display;
use std::process::ExitCode;

use crate::config::{Cli, Command};

/// One plain line that says what was wrong, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Failure(String);

impl Failure {
    fn new(what: impl Display) -> Failure {
        Failure(what.to_string())
    }
}

/// Runs a subcommand.
///
/// # Errors
/// What stopped it; `main` prints it.
pub fn run(cli: Cli) -> Result<ExitCode, Failure> {
    match cli.command {
        Command::Serve(config) => serve::run(&config),
        Command::Run(config) => run::run(&config),
        Command::Env(config) => env::run(&config),
        Command::Ca(config) => ca::run(&config),
        Command::Report(config) => report::run(&config),
        Command::Cache(config) => cache::run(&config),
        Command::Doctor(config) => doctor::run(&config),
        Command::Health(config) => health::run(&config),
    }
}

/// A runtime for the subcommands that ask something over the network.
fn small_runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::new)
}

/// Writes to stderr; nobody may be listening.
fn say(text: &str) {
    use std::io::Write;
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Writes to stdout; a reader that has gone away is no failure.
fn print(text: impl AsRef<[u8]>) -> Result<(), Failure> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_ref()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::new(error)),
        _ => Ok(()),
    }
}
