//! `ghtap health`: whether the tap is ready, for a container's health check.

use std::process::ExitCode;

use http::Method;

use super::{Failure, place, small_runtime};
use crate::admin::client::ask;
use crate::config::Health;

pub fn run(config: &Health) -> Result<ExitCode, Failure> {
    let tap =
        place::running(&config.places.data_dir()).ok_or_else(|| Failure::new("no tap runs on this data directory"))?;
    small_runtime()?.block_on(ask(&tap.admin()?, Method::GET, "/readyz")).map_err(Failure::new)?;
    Ok(ExitCode::SUCCESS)
}
