//! The `apiserver` room.
