//! A real `ghtap serve` between real clients and a stand-in for GitHub.

mod support;

mod cache;
mod cli;
mod clients;
mod errors;
mod hostile;
mod messages;
mod packit;
mod pages;
mod store;
mod ways;
