//! A child process that has our place: its own streams, our signals, and its exit code as ours.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

use super::Failure;

/// Runs a command to its end with these variables besides ours.
///
/// Signals to us are passed on. From a terminal, the interrupt key reaches the command by itself.
pub async fn run(command: &[OsString], variables: &[(&str, String)]) -> Result<ExitStatus, Failure> {
    let mut forwarded = vec![
        (SignalKind::terminate(), Signal::TERM),
        (SignalKind::hangup(), Signal::HUP),
        (SignalKind::user_defined1(), Signal::USR1),
        (SignalKind::user_defined2(), Signal::USR2),
    ];
    let keys = [(SignalKind::interrupt(), Signal::INT), (SignalKind::quit(), Signal::QUIT)];
    let at_terminal = std::io::stdin().is_terminal();
    if !at_terminal {
        forwarded.extend(keys);
    }
    // Caught from here on, so that none ends us before the command.
    let mut streams = Vec::new();
    for (kind, number) in forwarded {
        streams.push((signal(kind).map_err(Failure::new)?, number));
    }
    let _ignored = match at_terminal {
        true => keys.iter().map(|(kind, _)| signal(*kind)).collect::<Result<Vec<_>, _>>().map_err(Failure::new)?,
        false => Vec::new(),
    };
    let mut child = tokio::process::Command::new(&command[0]);
    child.args(&command[1..]).envs(variables.iter().map(|(k, v)| (k, v)));
    let mut child = match child.spawn() {
        Ok(child) => child,
        Err(error) => {
            super::say(&format!("ghtap: {} cannot be run: {error}\n", command[0].to_string_lossy()));
            // As a shell has it.
            let code = if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
            return Ok(ExitStatus::from_raw(code << 8));
        }
    };
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let (sender, mut received) = tokio::sync::mpsc::channel(8);
    for (mut stream, number) in streams {
        let sender = sender.clone();
        tokio::spawn(async move { while stream.recv().await.is_some() && sender.send(number).await.is_ok() {} });
    }
    loop {
        tokio::select! {
            ended = child.wait() => return ended.map_err(Failure::new),
            Some(number) = received.recv() => {
                if let Some(pid) = pid {
                    let _ = kill_process(pid, number);
                }
            }
        }
    }
}

/// The exit code that a shell would give: 128 and the signal for one that was killed.
pub fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code & 0xff).unwrap_or(1)
}
