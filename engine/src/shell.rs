//! The one actix actor.
