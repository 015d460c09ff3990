//! Turns a panic or a stall into an exit with a name and rebuilds the stage.
