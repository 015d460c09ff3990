//! One line becomes one record.

mod line_format;
mod attributes;
mod application;
mod access_log;
mod web_error;
mod syslog;
mod glog;
mod logcat;
mod logfmt;
mod database;
mod supercomputer;
mod plain;
mod container;
mod custom;
pub mod table;
pub mod parser;
