//! Text to tokens.

use std::sync::Arc;

use crate::ast::Literal;
use crate::issue::Issue;

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    Ident(Arc<str>),
    Literal(Literal),
    /// An operator, bracket or the word `in`.
    Sign(&'static str),
    /// A whole number without its sign, as written: `-` may belong to it.
    Number(String),
    End,
}

#[derive(Clone, Debug)]
pub struct Spanned {
    pub token: Token,
    pub at: u32,
    /// As written, for complaints.
    pub text: String,
}

const SIGNS: [&str; 27] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "!", "+", "-", "*", "/", "%", "?", ":", ".", ",", "(", ")", "[", "]",
    "{", "}", "in", "=", ";",
];

struct Lexer<'t> {
    chars: &'t [char],
    at: usize,
    issues: Vec<Issue>,
}

pub fn tokens(text: &str) -> Result<Vec<Spanned>, Vec<Issue>> {
    let chars: Vec<char> = text.chars().collect();
    let mut lexer = Lexer { chars: &chars, at: 0, issues: Vec::new() };
    let mut out = Vec::new();
    loop {
        lexer.at = lexer.at.min(chars.len());
        lexer.blank();
        let start = lexer.at;
        let token = if start >= chars.len() { Some(Token::End) } else { lexer.token() };
        if let Some(token) = token {
            lexer.at = lexer.at.min(chars.len());
            let text: String = chars[start..lexer.at].iter().collect();
            let end = token == Token::End;
            out.push(Spanned { token, at: start as u32, text: if end { "<EOF>".into() } else { text } });
            if end {
                break;
            }
        }
    }
    if lexer.issues.is_empty() { Ok(out) } else { Err(lexer.issues) }
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn starts(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(i, c)| self.peek(i) == c)
    }

    fn blank(&mut self) {
        loop {
            if self.starts("//") {
                while self.at < self.chars.len() && self.peek(0) != '\n' {
                    self.at += 1;
                }
            } else if self.at < self.chars.len() && matches!(self.peek(0), ' ' | '\t' | '\n' | '\r' | '\u{c}') {
                self.at += 1;
            } else {
                return;
            }
        }
    }

    fn complain(&mut self, at: usize, message: String) -> Option<Token> {
        self.issues.push(Issue { at: at as u32, message });
        None
    }

    fn token(&mut self) -> Option<Token> {
        let c = self.peek(0);
        if c.is_ascii_digit() || (c == '.' && self.peek(1).is_ascii_digit()) {
            return self.number();
        }
        let prefix = (0..3).find(|n| matches!(self.peek(*n), '"' | '\''));
        if let Some(n) = prefix {
            let letters: String = (0..n).map(|i| self.peek(i).to_ascii_lowercase()).collect();
            if matches!(&*letters, "" | "r" | "b" | "rb" | "br") {
                self.at += n;
                return self.string(letters.contains('r'), letters.contains('b'));
            }
        }
        if c.is_ascii_alphabetic() || c == '_' {
            let start = self.at;
            while self.peek(0).is_ascii_alphanumeric() || self.peek(0) == '_' {
                self.at += 1;
            }
            let word: String = self.chars[start..self.at].iter().collect();
            return Some(match &*word {
                "true" => Token::Literal(Literal::Bool(true)),
                "false" => Token::Literal(Literal::Bool(false)),
                "null" => Token::Literal(Literal::Null),
                "in" => Token::Sign("in"),
                _ => Token::Ident(word.into()),
            });
        }
        if let Some(sign) =
            SIGNS.iter().find(|s| s.chars().next().is_some_and(|c| !c.is_alphabetic()) && self.starts(s))
            && !matches!(*sign, "=" | ";")
        {
            self.at += sign.len();
            return Some(Token::Sign(sign));
        }
        let at = self.at;
        self.at += 1;
        self.complain(at, format!("Syntax error: token recognition error at: '{c}'"))
    }

    fn digits(&mut self) {
        while self.peek(0).is_ascii_digit() {
            self.at += 1;
        }
    }

    fn number(&mut self) -> Option<Token> {
        let start = self.at;
        if self.peek(0) == '0' && matches!(self.peek(1), 'x' | 'X') && self.peek(2).is_ascii_hexdigit() {
            self.at += 2;
            while self.peek(0).is_ascii_hexdigit() {
                self.at += 1;
            }
        } else {
            self.digits();
            let mut float = false;
            if self.peek(0) == '.' && self.peek(1).is_ascii_digit() {
                float = true;
                self.at += 1;
                self.digits();
            }
            let sign = usize::from(matches!(self.peek(1), '+' | '-'));
            if matches!(self.peek(0), 'e' | 'E') && self.peek(1 + sign).is_ascii_digit() {
                float = true;
                self.at += 1 + sign;
                self.digits();
            }
            if float {
                let text: String = self.chars[start..self.at].iter().collect();
                return match text.parse::<f64>() {
                    Ok(value) if value.is_finite() => Some(Token::Literal(Literal::Double(value))),
                    _ => self.complain(start, "invalid double literal".into()),
                };
            }
        }
        let text: String = self.chars[start..self.at].iter().collect();
        if matches!(self.peek(0), 'u' | 'U') {
            self.at += 1;
            let value = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
                Some(hex) => u64::from_str_radix(hex, 16),
                None => text.parse(),
            };
            return match value {
                Ok(value) => Some(Token::Literal(Literal::Uint(value))),
                Err(_) => self.complain(start, "invalid uint literal".into()),
            };
        }
        Some(Token::Number(text))
    }

    fn string(&mut self, raw: bool, bytes: bool) -> Option<Token> {
        let (start, quote) = (self.at, self.peek(0));
        let triple = self.peek(1) == quote && self.peek(2) == quote;
        let wide = if triple { 3 } else { 1 };
        self.at += wide;
        let (mut text, mut octets) = (String::new(), Vec::new());
        loop {
            let c = self.peek(0);
            if self.at >= self.chars.len() || (!triple && matches!(c, '\n' | '\r')) {
                let shown: String = self.chars[start..self.at].iter().collect();
                return self.complain(start, format!("Syntax error: token recognition error at: '{shown}'"));
            }
            if c == quote && (!triple || (self.peek(1) == quote && self.peek(2) == quote)) {
                self.at += wide;
                break;
            }
            if c == '\\' && !raw {
                match self.escape(bytes) {
                    Some(Escaped::Char(c)) => push(&mut text, &mut octets, bytes, c),
                    Some(Escaped::Byte(b)) => octets.push(b),
                    None => {
                        let (at, shown) = (self.at, self.peek(1));
                        self.at += 2;
                        return self.complain(at, format!("Syntax error: token recognition error at: '\\{shown}'"));
                    }
                }
                continue;
            }
            if c == '\\' && self.peek(1) == quote && !triple {
                // A raw string keeps the backslash and does not end here.
                push(&mut text, &mut octets, bytes, c);
                self.at += 1;
            }
            push(&mut text, &mut octets, bytes, self.peek(0));
            self.at += 1;
        }
        Some(Token::Literal(if bytes { Literal::Bytes(octets.into()) } else { Literal::String(text.into()) }))
    }

    fn escape(&mut self, bytes: bool) -> Option<Escaped> {
        let c = self.peek(1);
        let plain = match c {
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            '\\' | '\'' | '"' | '`' | '?' => c,
            _ => '\0',
        };
        if plain != '\0' {
            self.at += 2;
            return Some(Escaped::Char(plain));
        }
        let (skip, count, radix) = match c {
            'x' | 'X' => (2, 2, 16),
            'u' if !bytes => (2, 4, 16),
            'U' if !bytes => (2, 8, 16),
            '0'..='3' => (1, 3, 8),
            _ => return None,
        };
        let text: String = (0..count).map(|i| self.peek(skip + i)).collect();
        let value = u32::from_str_radix(&text, radix).ok()?;
        let escaped =
            if bytes { Escaped::Byte(u8::try_from(value).ok()?) } else { Escaped::Char(char::from_u32(value)?) };
        self.at += skip + count;
        Some(escaped)
    }
}

enum Escaped {
    Char(char),
    Byte(u8),
}

fn push(text: &mut String, octets: &mut Vec<u8>, bytes: bool, c: char) {
    if bytes {
        octets.extend(c.encode_utf8(&mut [0; 4]).as_bytes());
    } else {
        text.push(c);
    }
}
