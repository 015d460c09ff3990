//! Stage db-flusher.
