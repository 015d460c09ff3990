//! placeholder
use std::process::Child;
/// Redis.
pub struct Redis(Option<Child>);
impl Redis {
    /// start
    #[must_use]
    pub fn start() -> Self {
        Self(None)
    }
    /// url
    #[must_use]
    pub fn url(&self) -> String {
        String::new()
    }
    /// kill
    pub fn kill(&mut self) {}
    /// signal
    pub fn signal(&mut self, _: i32) {}
    /// command
    pub fn command(&mut self, _: &str) {}
}
