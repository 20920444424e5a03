//! `--token-auth-file`: tokens for ever, each with its user. Its lines are token, user, uid and, quoted, groups.

use std::collections::HashMap;

use super::User;

/// Tokens and whom they name.
#[derive(Debug, Default)]
pub struct Tokens(HashMap<String, User>);

/// The fields of one line: quotes keep commas, and a doubled quote is one.
fn fields(line: &str) -> Vec<String> {
    let mut out = vec![String::new()];
    let (mut quoted, mut chars) = (false, line.chars().peekable());
    while let Some(c) = chars.next() {
        let Some(last) = out.last_mut() else { break };
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                last.push('"');
            }
            '"' if quoted || last.is_empty() => quoted = !quoted,
            ',' if !quoted => out.push(String::new()),
            c => last.push(c),
        }
    }
    out
}

impl Tokens {
    /// Of a file's text; `file` is its name in what is said of it.
    pub fn parse(text: &str, file: &str) -> Result<Self, String> {
        let mut tokens = HashMap::new();
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let fields = fields(line.trim_end_matches('\r'));
            let [token, name, uid, rest @ ..] = &fields[..] else {
                return Err(format!(
                    "token file {file:?} must have at least 3 columns (token, user name, user uid), found {}",
                    fields.len()
                ));
            };
            if token.is_empty() {
                tracing::warn!(file, line = at + 1, "empty token has been found in token file");
                continue;
            }
            let groups = rest.first().map_or("", |groups| groups);
            let groups = groups.split(',').filter(|g| !g.is_empty()).map(String::from).collect();
            let user = User { name: name.clone(), uid: uid.clone(), groups, ..User::default() };
            if tokens.insert(token.clone(), user).is_some() {
                tracing::warn!(file, line = at + 1, "duplicate token has been found in token file");
            }
        }
        Ok(Self(tokens))
    }

    pub fn user(&self, token: &str) -> Option<User> {
        self.0.get(token).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_tokens() {
        let tokens = Tokens::parse("t1,jane,1,\"a,b\"\n\nt2,joe,2\r\n,nobody,3\nt3,\"d\"\"q\",4,c\n", "f").unwrap();
        for (token, expect) in [("t1", "jane 1 a+b"), ("t2", "joe 2 "), ("t3", "d\"q 4 c"), ("", "")] {
            let found = tokens.user(token).map(|u| format!("{} {} {}", u.name, u.uid, u.groups.join("+")));
            assert_eq!(found.unwrap_or_default(), expect, "{token}");
        }
        let why = Tokens::parse("a,b\n", "f").unwrap_err();
        assert_eq!(why, "token file \"f\" must have at least 3 columns (token, user name, user uid), found 2");
    }
}
