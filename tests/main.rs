//! The one integration binary: who may come in and who decides ([`access`]), API scenarios against a server in this process
//! ([`api`]), controllers that lose their server,
//! their watches and their lives ([`chaos`]), whole clusters with real containers ([`cluster`]), pods that only go together
//! ([`gangs`]), what the program says to words it cannot use ([`refusals`]), mutated input ([`fuzz`]), and the care of its
//! store ([`storage`]).

mod access;
mod api;
mod chaos;
mod cluster;
#[path = "../fuzz/src/lib.rs"]
mod fuzz;
mod gangs;
mod refusals;
mod storage;
