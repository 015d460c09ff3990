//! Stage parser: bodies to columnar chunks.
