//! Parse, start, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match ghtap::config::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    ghtap::cli::run(cli).unwrap_or_else(|failure| {
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "ghtap: {failure}");
        ExitCode::FAILURE
    })
}
