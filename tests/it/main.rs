//! A real `ghtap serve` between real clients and a stand-in for GitHub.

mod support;

mod cache;
