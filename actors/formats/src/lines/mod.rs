//! One line becomes one record.

mod access_log;
mod application;
mod attributes;
mod container;
mod custom;
mod database;
mod glog;
mod line_format;
mod logcat;
mod logfmt;
pub mod parser;
mod plain;
mod supercomputer;
mod syslog;
pub mod table;
mod web_error;
