//! What the components of a process show of themselves at `/metrics`, in the Prometheus text format.
//!
//! A component registers a page once; whoever serves `/metrics` in this process appends [`text`]. So a server shows what
//! runs beside it without knowing what that is. Families of different pages must not have the same name.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

type Page = fn() -> String;

static PAGES: Mutex<BTreeMap<&'static str, Page>> = Mutex::new(BTreeMap::new());

/// Shows a page from now on; the same name again replaces it.
pub fn register(name: &'static str, page: Page) {
    PAGES.lock().unwrap_or_else(PoisonError::into_inner).insert(name, page);
}

/// All pages, one after the other.
pub fn text() -> String {
    let pages: Vec<Page> = PAGES.lock().unwrap_or_else(PoisonError::into_inner).values().copied().collect();
    pages.into_iter().map(|page| page()).collect()
}
