//! What is wrong with an expression, laid out as cel-go lays it out: clients show these lines as they are.

use std::fmt;

/// One complaint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// Characters before the place.
    pub at: u32,
    pub message: String,
}

/// All complaints about one text, in the order of their places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issues {
    pub text: String,
    pub issues: Vec<Issue>,
}

impl Issues {
    pub fn new(text: &str, mut issues: Vec<Issue>) -> Self {
        issues.sort_by_key(|i| i.at);
        issues.dedup();
        Self { text: text.into(), issues }
    }
}

impl fmt::Display for Issues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, issue) in self.issues.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            let before: String = self.text.chars().take(issue.at as usize).collect();
            let line = before.matches('\n').count();
            let column = before.rsplit('\n').next().unwrap_or_default().chars().count();
            let snippet = self.text.lines().nth(line).unwrap_or_default();
            writeln!(f, "ERROR: <input>:{}:{}: {}", line + 1, column + 1, issue.message)?;
            writeln!(f, " | {snippet}")?;
            write!(f, " | ")?;
            for c in snippet.chars().take(column) {
                write!(f, "{}", if c.is_ascii() { "." } else { "\u{ff0e}" })?;
            }
            let wide = snippet.chars().nth(column).is_some_and(|c| !c.is_ascii());
            write!(f, "{}", if wide { "\u{ff3e}" } else { "^" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Issues {}
