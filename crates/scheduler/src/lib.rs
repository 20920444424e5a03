//! The `scheduler` room.
