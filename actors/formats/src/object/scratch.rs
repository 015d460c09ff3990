//! Buffers that the records of a body share.

use super::member::Members;

/// Buffers shared by the objects of one body.
#[derive(Default)]
pub struct Scratch<'a> {
    pub(super) members: Members<'a>,
    pub(super) nested: Members<'a>,
    /// Attributes of the current record.
    pub attributes: String,
    /// Message with escapes, unescaped.
    pub message: String,
    pub(super) service: String,
    pub(super) host: String,
}

impl Scratch<'_> {
    /// Returns the same buffers for texts of another lifetime.
    pub fn recycle<'b>(self) -> Scratch<'b> {
        let Self { members, nested, attributes, message, service, host } = self;
        Scratch { members: members.recycle(), nested: nested.recycle(), attributes, message, service, host }
    }
}
