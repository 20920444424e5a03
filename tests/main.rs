//! The one integration binary: API scenarios against a server in this process ([`api`]), and whole clusters with real
//! containers ([`cluster`]).

mod api;
mod cluster;
