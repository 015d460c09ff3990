//! Stage cache-writer.
