//! Stage batcher: gives a chunk its place in the journal, and lingers batches.
