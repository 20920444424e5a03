//! What is wrong with a file, and where, in the words upstream has for it.

use std::fmt;

/// Mistakes, in the order found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mistakes(Vec<String>);

impl Mistakes {
    pub fn say(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.0.contains(&text) {
            self.0.push(text);
        }
    }

    pub fn invalid(&mut self, path: impl fmt::Display, value: impl fmt::Display, why: impl fmt::Display) {
        self.say(format!("{path}: Invalid value: {value}: {why}"));
    }

    pub fn required(&mut self, path: impl fmt::Display, why: &str) {
        let colon = if why.is_empty() { "" } else { ": " };
        self.say(format!("{path}: Required value{colon}{why}"));
    }

    pub fn duplicate(&mut self, path: impl fmt::Display, value: &str) {
        self.say(format!("{path}: Duplicate value: {value:?}"));
    }

    pub fn forbidden(&mut self, path: impl fmt::Display, why: &str) {
        self.say(format!("{path}: Forbidden: {why}"));
    }

    /// `supported` in order.
    pub fn unsupported(&mut self, path: impl fmt::Display, value: &str, supported: &[&str]) {
        let supported: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        self.say(format!("{path}: Unsupported value: {value:?}: supported values: {}", supported.join(", ")));
    }

    /// Nothing wrong, or all of it.
    pub fn none(self) -> Result<(), super::Wrong> {
        match self.0.as_slice() {
            [] => Ok(()),
            [one] => Err(super::Wrong(one.clone())),
            several => Err(super::Wrong(format!("[{}]", several.join(", ")))),
        }
    }
}
