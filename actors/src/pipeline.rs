//! The wiring of all stages on one screen.
