//! The `resources` room.
