//! From JSON text to [`Body`]. A reader of our own, because errors must name line and column.
//!
//! `null` counts as "not given": such a member is left out.

use super::scan::{Scanner, Token, number};
use super::{Body, Entry, Key, Kind, MAX_DEPTH, Position, Problem, Value};

/// Reads a whole JSON document, whose top level is an object.
pub(super) fn document(text: &str) -> Result<Body, Problem> {
    let mut parser = Parser { scanner: Scanner::new(text), depth: 0 };
    parser.blanks();
    let at = parser.scanner.position();
    let body = parser.object(at)?;
    parser.blanks();
    match parser.scanner.peek() {
        None => Ok(body),
        Some(other) => Err(parser.problem(format!("unexpected {other:?} after the end of the document"))),
    }
}

struct Parser<'a> {
    scanner: Scanner<'a>,
    depth: usize,
}

impl Parser<'_> {
    fn problem(&self, message: impl Into<String>) -> Problem {
        Problem::new(self.scanner.position(), message)
    }

    fn blanks(&mut self) {
        self.scanner.take_while(|c| matches!(c, ' ' | '\t' | '\r' | '\n'));
    }

    /// Takes `wanted` if it comes next.
    fn takes(&mut self, wanted: char) -> bool {
        self.blanks();
        let found = self.scanner.peek() == Some(wanted);
        if found {
            self.scanner.bump();
        }
        found
    }

    fn found(&self) -> String {
        self.scanner.peek().map_or("the end of the document".into(), |next| format!("{next:?}"))
    }

    fn object(&mut self, at: Position) -> Result<Body, Problem> {
        self.deeper(at)?;
        if !self.takes('{') {
            return Err(self.problem("a JSON document begins with {"));
        }
        let mut body = Body { entries: Vec::new(), at };
        while !self.takes('}') {
            let at = self.scanner.position();
            if self.scanner.peek() != Some('"') {
                return Err(self.problem(format!("expected a name in double quotes or '}}', found {}", self.found())));
            }
            let name = self.string()?;
            if !self.takes(':') {
                return Err(self.problem(format!("expected ':' after \"{name}\", found {}", self.found())));
            }
            if let Some(value) = self.value()? {
                body.entries.push(Entry { key: Key { name, at }, labels: Vec::new(), value });
            }
            if !self.takes(',') && self.scanner.peek() != Some('}') {
                return Err(self.problem(format!("expected ',' or '}}', found {}", self.found())));
            }
        }
        self.depth -= 1;
        Ok(body)
    }

    fn list(&mut self, at: Position) -> Result<Vec<Value>, Problem> {
        self.deeper(at)?;
        self.scanner.bump();
        let mut values = Vec::new();
        while !self.takes(']') {
            values.extend(self.value()?);
            if !self.takes(',') && self.scanner.peek() != Some(']') {
                return Err(self.problem(format!("expected ',' or ']', found {}", self.found())));
            }
        }
        self.depth -= 1;
        Ok(values)
    }

    /// The next value; nothing for `null`.
    fn value(&mut self) -> Result<Option<Value>, Problem> {
        self.blanks();
        let at = self.scanner.position();
        let kind = match self.scanner.peek() {
            Some('{') => Kind::Object(self.object(at)?),
            Some('[') => Kind::List(self.list(at)?),
            Some('"') => Kind::Text(self.string()?),
            Some(_) => {
                let word = self.scanner.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
                match word {
                    "true" => Kind::Bool(true),
                    "false" => Kind::Bool(false),
                    "null" => return Ok(None),
                    _ => match number(word) {
                        Some(Token::Int(value)) if !word.is_empty() => Kind::Int(value),
                        Some(Token::Float(value)) => Kind::Float(value),
                        _ => return Err(Problem::new(at, "expected a JSON value: a text needs double quotes")),
                    },
                }
            }
            None => return Err(Problem::new(at, "expected a value, found the end of the document")),
        };
        Ok(Some(Value { kind, at }))
    }

    fn string(&mut self) -> Result<String, Problem> {
        let start = self.scanner.position();
        self.scanner.bump();
        let mut text = String::new();
        loop {
            match self.scanner.bump() {
                Some('"') => return Ok(text),
                Some('\\') => text.push(self.escape()?),
                Some(control) if control < ' ' => {
                    return Err(Problem::new(start, "a control character in a JSON string: write it as an escape such as \\n"));
                }
                Some(other) => text.push(other),
                None => return Err(Problem::new(start, "this string is not closed: write \" at its end")),
            }
        }
    }

    fn escape(&mut self) -> Result<char, Problem> {
        let unknown = self.problem("unknown escape in a JSON string: a backslash itself is written \\\\");
        Ok(match self.scanner.bump() {
            Some(same @ ('"' | '\\' | '/')) => same,
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => return self.unicode().ok_or(unknown),
            _ => return Err(unknown),
        })
    }

    /// The rest of `\uXXXX`, with its second half when it is a surrogate pair.
    fn unicode(&mut self) -> Option<char> {
        let first = self.scanner.digits(4, 16)?;
        if !(0xd800..0xdc00).contains(&first) {
            return char::from_u32(first);
        }
        if self.scanner.bump()? != '\\' || self.scanner.bump()? != 'u' {
            return None;
        }
        let second = self.scanner.digits(4, 16)?.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
        char::from_u32(0x10000 + ((first - 0xd800) << 10) + second)
    }

    fn deeper(&mut self, at: Position) -> Result<(), Problem> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Problem::new(at, format!("more than {MAX_DEPTH} objects or lists inside each other")));
        }
        Ok(())
    }
}
