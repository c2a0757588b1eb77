//! A real `ghtap serve` between real clients and a stand-in for GitHub.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "in a test, a panic is the message")]

mod support;

mod cache;
mod cli;
mod clients;
mod dashboard;
mod deploy;
mod errors;
mod graphql;
mod hostile;
mod messages;
mod mirrors;
mod offline;
mod packit;
mod pages;
mod pool;
mod redis;
mod registry;
mod reverse;
mod spending;
mod store;
mod users;
mod ways;
