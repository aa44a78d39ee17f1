//! From tokens to [`Body`], for HCL documents.

use super::scan::{Scanner, Token};
use super::{Body, Entry, Key, Kind, MAX_DEPTH, Position, Problem, Value};

/// Reads a whole HCL document.
pub(super) fn document(text: &str) -> Result<Body, Problem> {
    let mut parser = Parser { scanner: Scanner::new(text), depth: 0 };
    let (body, end, at) = parser.body(Position::START)?;
    match end {
        Token::End => Ok(body),
        _ => Err(Problem::new(at, "this } closes nothing: remove it, or write the missing { before it")),
    }
}

struct Parser<'a> {
    scanner: Scanner<'a>,
    depth: usize,
}

impl Parser<'_> {
    /// Entries up to `}` or the end of the document; the caller judges which of the two came.
    fn body(&mut self, at: Position) -> Result<(Body, Token, Position), Problem> {
        let mut body = Body { entries: Vec::new(), at };
        let mut after_entry = false;
        loop {
            let (token, at) = self.scanner.token()?;
            match token {
                Token::End | Token::CloseBrace => return Ok((body, token, at)),
                Token::Comma if after_entry => after_entry = false,
                Token::Name(name) | Token::Text { text: name, heredoc: false } => {
                    body.entries.push(self.entry(Key { name, at })?);
                    after_entry = true;
                }
                other => {
                    let message = format!("expected a name, found {}: write name = value, or name {{ ... }}", other.describe());
                    return Err(Problem::new(at, message));
                }
            }
        }
    }

    fn entry(&mut self, key: Key) -> Result<Entry, Problem> {
        let mut labels = Vec::new();
        loop {
            let (token, at) = self.scanner.token()?;
            match token {
                Token::Name(name) | Token::Text { text: name, heredoc: false } => labels.push(Key { name, at }),
                Token::OpenBrace => {
                    let value = self.object(at)?;
                    return Ok(Entry { key, labels, value });
                }
                Token::Assign if labels.is_empty() => {
                    let (token, at) = self.scanner.token()?;
                    let value = self.value(token, at, &format!("the value of {}", key.name))?;
                    return Ok(Entry { key, labels, value });
                }
                Token::Assign => {
                    let message = format!("a block with a label has no '=': write {} \"{}\" {{ ... }}", key.name, labels[0].name);
                    return Err(Problem::new(at, message));
                }
                other => {
                    let name = &key.name;
                    let message = format!(
                        "expected '=' or '{{' after {name}, found {}: write {name} = value, or {name} {{ ... }}",
                        other.describe()
                    );
                    return Err(Problem::new(at, message));
                }
            }
        }
    }

    fn value(&mut self, token: Token, at: Position, what: &str) -> Result<Value, Problem> {
        let kind = match token {
            Token::Text { text, .. } => Kind::Text(text),
            Token::Int(value) => Kind::Int(value),
            Token::Float(value) => Kind::Float(value),
            Token::Bool(value) => Kind::Bool(value),
            Token::OpenBrace => return self.object(at),
            Token::OpenBracket => return self.list(at),
            Token::Name(name) => {
                return Err(Problem::new(at, format!("{what} needs double quotes: write \"{name}\"")));
            }
            other => {
                let message =
                    format!("{what} is missing, found {}: write a string, number, boolean, list or object", other.describe());
                return Err(Problem::new(at, message));
            }
        };
        Ok(Value { kind, at })
    }

    fn object(&mut self, at: Position) -> Result<Value, Problem> {
        self.deeper(at)?;
        let (body, end, end_at) = self.body(at)?;
        self.depth -= 1;
        match end {
            Token::CloseBrace => Ok(Value { kind: Kind::Object(body), at }),
            _ => Err(Problem::new(end_at, format!("the block that begins at {at} is not closed: write }} at its end"))),
        }
    }

    fn list(&mut self, at: Position) -> Result<Value, Problem> {
        self.deeper(at)?;
        let mut values = Vec::new();
        let mut after_value = false;
        loop {
            let (token, item_at) = self.scanner.token()?;
            match token {
                Token::CloseBracket => break,
                Token::Comma => after_value = false,
                Token::End => {
                    return Err(Problem::new(item_at, format!("the list that begins at {at} is not closed: write ] at its end")));
                }
                other if after_value => {
                    return Err(Problem::new(item_at, format!("expected ',' or ']' in a list, found {}", other.describe())));
                }
                other => {
                    values.push(self.value(other, item_at, "a value in a list")?);
                    after_value = true;
                }
            }
        }
        self.depth -= 1;
        Ok(Value { kind: Kind::List(values), at })
    }

    fn deeper(&mut self, at: Position) -> Result<(), Problem> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Problem::new(at, format!("more than {MAX_DEPTH} blocks or lists inside each other")));
        }
        Ok(())
    }
}
