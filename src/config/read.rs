//! Reading the configuration: flags, then `GHTAP_…` variables, then the file that `--config` names, then the variables of
//! github-mirror and github-proxy.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches};

use super::{Cli, mirrors};
use crate::pool;

/// Reads the command line, the environment, and the file that `--config` names.
///
/// # Errors
/// What clap says of the command line, or one line about the file.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let mut command = without_empty_variables(Cli::command());
    let matches = command.try_get_matches_from_mut(&args)?;
    let Some((name, given)) = matches.subcommand() else { return Cli::from_arg_matches(&matches) };
    let file = given.try_get_one::<PathBuf>("config").ok().flatten().cloned();
    let mut table = toml::Table::new();
    let named = file.as_deref().map_or_else(|| "the configuration".into(), |f| f.display().to_string());
    let wrong = |what: String| clap::Error::raw(clap::error::ErrorKind::InvalidValue, format!("{named}: {what}\n"));
    if let Some(file) = &file {
        let text = std::fs::read_to_string(file).map_err(|e| wrong(e.to_string()))?;
        table = text.parse().map_err(|e: toml::de::Error| wrong(e.to_string()))?;
    }
    // The pool's credentials may stand in the same file: they are read by who needs them.
    table.retain(|key, _| !pool::KEYS.contains(&key));
    if name == "serve" {
        // Elsewhere, a variable that is set to nothing is not set. Here it would let everybody in.
        for name in ["GITHUB_USERS", "GHTAP_ALLOW_USER"] {
            if std::env::var_os(name).is_some_and(|v| v.to_string_lossy().trim().is_empty()) {
                let what = format!("{name} is set and names nobody; name who is served, or unset it\n");
                return Err(clap::Error::raw(clap::error::ErrorKind::InvalidValue, what));
            }
        }
        let variable = |name: &str| std::env::var(name).ok();
        let known = mirrors::options(variable)
            .map_err(|e| clap::Error::raw(clap::error::ErrorKind::InvalidValue, format!("{e}\n")))?;
        for (option, value) in known {
            table.entry(option).or_insert(toml::Value::String(value));
        }
    }
    if table.is_empty() {
        return Cli::from_arg_matches(&matches);
    }
    // The innermost: `ca rotate` has options of its own.
    let (mut known, mut given) = (command.find_subcommand(name).expect("it was just parsed"), given);
    let mut last = name;
    while let Some((inner, matches)) = given.subcommand() {
        (known, given, last) = (known.find_subcommand(inner).expect("it was just parsed"), matches, inner);
    }
    let mut more = Vec::new();
    for (key, value) in &table {
        let Some(argument) = known.get_arguments().find(|a| a.get_long() == Some(key) && key != "config") else {
            // One file may serve all subcommands; but a key that none of them has is a mistake.
            let elsewhere = command.get_subcommands().any(|s| has_option(s, key));
            if elsewhere && key != "config" {
                continue;
            }
            return Err(wrong(format!("there is no option {key:?}")));
        };
        let source = given.value_source(argument.get_id().as_str());
        if !matches!(source, None | Some(clap::parser::ValueSource::DefaultValue)) {
            continue;
        }
        let values = match value {
            toml::Value::Array(all) => all.iter().collect(),
            one => vec![one],
        };
        for value in values {
            match value {
                toml::Value::Boolean(true) if !argument.get_action().takes_values() => {
                    more.push(format!("--{key}").into())
                }
                toml::Value::Boolean(false) if !argument.get_action().takes_values() => {}
                toml::Value::String(text) => more.push(OsString::from(format!("--{key}={text}"))),
                toml::Value::Integer(number) => more.push(format!("--{key}={number}").into()),
                other => return Err(wrong(format!("{key}: a {} is not expected here", other.type_str()))),
            }
        }
    }
    let at = args.iter().position(|a| a == last).map_or(args.len(), |i| i + 1);
    args.splice(at..at, more);
    Cli::from_arg_matches(&without_empty_variables(Cli::command()).try_get_matches_from(args)?)
}

fn has_option(command: &clap::Command, key: &str) -> bool {
    command.get_arguments().any(|a| a.get_long() == Some(key)) || command.get_subcommands().any(|s| has_option(s, key))
}

/// A variable that is set to nothing is not set: compose files have many such.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let empty = |argument: &clap::Arg| {
        argument.get_env().is_some_and(|name| std::env::var_os(name).is_some_and(|v| v.is_empty()))
    };
    let command = command.mut_args(|a| if empty(&a) { a.env(clap::builder::Resettable::Reset) } else { a });
    command.mut_subcommands(without_empty_variables)
}
