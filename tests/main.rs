//! The one integration binary: API scenarios against a server in this process ([`api`]), whole clusters with real
//! containers ([`cluster`]), and what the program says to words it cannot use ([`refusals`]).

mod api;
mod cluster;
mod refusals;
