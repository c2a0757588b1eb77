//! What the tests stand on: a stand-in for GitHub, a real `ghtap serve`, and a client that sees every byte.

pub mod client;
pub mod github;
pub mod tap;

pub use client::Client;
pub use github::{GitHub, Misbehaviour};
pub use tap::Tap;

/// A named skip: what is missing is said, and in CI it fails.
pub fn missing(test: &str, what: &str) -> bool {
    eprintln!("SKIPPED {test}: {what} is not installed");
    assert!(
        std::env::var_os("CI").is_none() && std::env::var_os("GHTAP_TEST_ALL").is_none(),
        "{what} is missing, and nothing may be skipped here"
    );
    true
}

/// Whether a program can be run.
pub fn has(program: &str, argument: &str) -> bool {
    let tried = std::process::Command::new(program)
        .arg(argument)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status();
    tried.is_ok_and(|s| s.success())
}
