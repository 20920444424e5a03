//! Label selectors as text: words and signs, then requirements. Complaints are upstream's, which tell what was found and
//! what could have been.
//!
//! Follows the lexer and parser of `k8s.io/apimachinery/pkg/labels`; it knows nothing of matching.

use std::collections::BTreeSet;

use super::{Operator, Requirement};
use crate::formats;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    End,
    Error,
    Word,
    In,
    NotIn,
    Not,
    Equals,
    NotEquals,
    Greater,
    Less,
    Comma,
    Open,
    Close,
}

/// Words that are operators where an operator can be, and names everywhere else.
const SIGNS: [(&str, Token); 9] = [
    (")", Token::Close),
    (",", Token::Comma),
    ("!", Token::Not),
    ("==", Token::Equals),
    ("=", Token::Equals),
    (">", Token::Greater),
    ("<", Token::Less),
    ("!=", Token::NotEquals),
    ("(", Token::Open),
];
const OPERATORS: &str = "in, notin, =, ==, !=, gt, lt";

fn sign(text: &str) -> Option<Token> {
    SIGNS.iter().find(|(sign, _)| *sign == text).map(|(_, token)| *token)
}

fn is_sign(c: char) -> bool {
    matches!(c, '=' | '!' | '(' | ')' | ',' | '>' | '<')
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

/// The next token of a text, what it was made of, and what follows.
fn next(text: &str) -> (Token, String, &str) {
    let text = text.trim_start_matches(is_space);
    // Upstream's reader takes a NUL for the end.
    let Some(first) = text.chars().next().filter(|c| *c != '\0') else { return (Token::End, String::new(), "") };
    if !is_sign(first) {
        let end = text.find(|c| is_sign(c) || is_space(c) || c == '\0').unwrap_or(text.len());
        let token = match &text[..end] {
            "in" => Token::In,
            "notin" => Token::NotIn,
            _ => Token::Word,
        };
        return (token, text[..end].to_string(), &text[end..]);
    }
    // Signs are ASCII, and the longest is two of them.
    for length in [2, 1] {
        if let Some(token) = text.get(..length).and_then(sign) {
            return (token, text[..length].to_string(), &text[length..]);
        }
    }
    (Token::Error, format!("error expected: keyword found '{first}'"), "")
}

struct Parser<'t> {
    rest: &'t str,
}

impl Parser<'_> {
    fn take_operator(&mut self) -> (Token, String) {
        let (token, literal, rest) = next(self.rest);
        self.rest = rest;
        (token, literal)
    }

    /// Where no operator can be, `in` is a name.
    fn take(&mut self) -> (Token, String) {
        let (token, literal) = self.take_operator();
        (if matches!(token, Token::In | Token::NotIn) { Token::Word } else { token }, literal)
    }

    fn look(&self) -> (Token, String) {
        Parser { rest: self.rest }.take()
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let (mut token, mut key) = self.take();
        let not = token == Token::Not;
        if not {
            (token, key) = self.take();
        }
        if token != Token::Word {
            return Err(format!("found '{key}', expected: identifier"));
        }
        let complaints = formats::qualified_name(&key);
        if !complaints.is_empty() {
            return Err(format!("<nil>: Invalid value: {key:?}: {}", complaints.join("; ")));
        }
        if not || matches!(self.look().0, Token::End | Token::Comma) {
            let operator = if not { Operator::DoesNotExist } else { Operator::Exists };
            return Ok(Requirement { key: key.into(), operator, values: Vec::new() });
        }
        let (token, literal) = self.take_operator();
        let values = match token {
            Token::In | Token::NotIn => self.values()?,
            Token::Equals | Token::NotEquals | Token::Greater | Token::Less => [self.value()?].into(),
            _ => return Err(format!("found '{literal}', expected: {OPERATORS}")),
        };
        let number = || {
            let text = values.first().map(String::as_str).unwrap_or_default();
            let why = "for 'Gt', 'Lt' operators, the value must be an integer";
            text.parse().map_err(|_| format!("values[0]: Invalid value: {text:?}: {why}"))
        };
        let operator = match token {
            Token::Greater => Operator::GreaterThan(number()?),
            Token::Less => Operator::LessThan(number()?),
            Token::NotIn | Token::NotEquals => Operator::NotIn,
            _ => Operator::In,
        };
        let wrong = values.iter().enumerate().filter_map(|(at, value)| {
            let complaints = formats::label_value(value);
            let said = || format!("values[{at}][{key}]: Invalid value: {value:?}: {}", complaints.join("; "));
            (!complaints.is_empty()).then(said)
        });
        let wrong: Vec<String> = wrong.collect();
        match &wrong[..] {
            [] => {}
            [one] => return Err(one.clone()),
            several => return Err(format!("[{}]", several.join(", "))),
        }
        let compares = matches!(operator, Operator::GreaterThan(_) | Operator::LessThan(_));
        let values = if compares { Vec::new() } else { values.into_iter().map(Into::into).collect() };
        Ok(Requirement { key: key.into(), operator, values })
    }

    /// One value, perhaps none, which is the empty one.
    fn value(&mut self) -> Result<String, String> {
        if matches!(self.look().0, Token::End | Token::Comma) {
            return Ok(String::new());
        }
        match self.take() {
            (Token::Word, value) => Ok(value),
            (_, literal) => Err(format!("found '{literal}', expected: identifier")),
        }
    }

    /// `(a,b)`; between two commas and beside a parenthesis is an empty value.
    fn values(&mut self) -> Result<BTreeSet<String>, String> {
        let (token, literal) = self.take();
        if token != Token::Open {
            return Err(format!("found '{literal}' expected: '('"));
        }
        let mut values = BTreeSet::new();
        match self.look() {
            (Token::Word | Token::Comma, _) => {}
            (Token::Close, _) => {
                self.take();
                values.insert(String::new());
                return Ok(values);
            }
            (_, literal) => return Err(format!("found '{literal}', expected: ',', ')' or identifier")),
        }
        loop {
            match self.take() {
                (Token::Word, value) => {
                    values.insert(value);
                    match self.look() {
                        (Token::Comma, _) => {}
                        (Token::Close, _) => break,
                        (_, literal) => return Err(format!("found '{literal}', expected: ',' or ')'")),
                    }
                }
                (Token::Comma, _) => {
                    if values.is_empty() {
                        values.insert(String::new());
                    }
                    match self.look().0 {
                        Token::Close => {
                            values.insert(String::new());
                            break;
                        }
                        Token::Comma => {
                            self.take();
                            values.insert(String::new());
                        }
                        _ => {}
                    }
                }
                (_, literal) => return Err(format!("found '{literal}', expected: ',', or identifier")),
            }
        }
        self.take();
        Ok(values)
    }
}

/// The requirements of a selector, in the order they were written in.
pub(super) fn requirements(text: &str) -> Result<Vec<Requirement>, String> {
    let (mut parser, mut out) = (Parser { rest: text }, Vec::new());
    loop {
        match parser.look() {
            (Token::Word | Token::Not, _) => {}
            (Token::End, _) => return Ok(out),
            (_, literal) => return Err(format!("found '{literal}', expected: !, identifier, or 'end of string'")),
        }
        out.push(parser.requirement().map_err(|why| format!("unable to parse requirement: {why}"))?);
        match parser.take() {
            (Token::End, _) => return Ok(out),
            (Token::Comma, _) => {}
            (_, literal) => return Err(format!("found '{literal}', expected: ',' or 'end of string'")),
        }
        let (token, literal) = parser.look();
        if !matches!(token, Token::Word | Token::Not) {
            return Err(format!("found '{literal}', expected: identifier after ','"));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::LabelSelector;

    /// What upstream answers to each.
    #[test]
    fn complaints_are_worded_as_upstream_words_them() {
        const NAME: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
        for (text, expect) in [
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
            (
                "a>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
            ("=b", "found '=', expected: !, identifier, or 'end of string'"),
            ("a=b=c", "found '=', expected: ',' or 'end of string'"),
            ("a,,b", "found ',', expected: identifier after ','"),
            (",", "found ',', expected: !, identifier, or 'end of string'"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("(a)", "found '(', expected: !, identifier, or 'end of string'"),
            ("!", "unable to parse requirement: found '', expected: identifier"),
            ("!a=b", "found '=', expected: ',' or 'end of string'"),
            ("!!a", "unable to parse requirement: found '!', expected: identifier"),
            ("a=b!", "found '!', expected: ',' or 'end of string'"),
            ("a notin", "unable to parse requirement: found '' expected: '('"),
            ("a gt 1", "unable to parse requirement: found 'gt', expected: in, notin, =, ==, !=, gt, lt"),
            ("/z=1", "unable to parse requirement: <nil>: Invalid value: \"/z\": prefix part must be non-empty"),
            ("-a=b", &format!("unable to parse requirement: <nil>: Invalid value: \"-a\": {NAME}")),
            (
                &format!("a in (x,{})", "y".repeat(64)),
                &format!(
                    "unable to parse requirement: values[1][a]: Invalid value: \"{}\": must be no more than 63 bytes",
                    "y".repeat(64)
                ),
            ),
        ] {
            assert_eq!(LabelSelector::parse(text), Err(expect.to_string()), "{text}");
        }
        for (text, expect) in [
            ("in in (in)", "in=in"),
            ("notin=in", "notin=in"),
            ("a in ()", "a="),
            ("a in (b,,c)", "a in (,b,c)"),
            ("a=", "a="),
            ("\0", ""),
            ("a=b, c in (d),!e", "a=b,c=d,!e"),
            ("n>1,n<5", "n>1,n<5"),
        ] {
            assert_eq!(LabelSelector::parse(text).map(|s| s.to_string()), Ok(expect.to_string()), "{text}");
        }
    }
}
