//! From text to tokens.

use super::{Position, Problem};

/// The smallest parts of a document.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// A bare name such as `listener`.
    Name(String),
    /// A quoted text, escapes resolved, or a heredoc.
    Text {
        text: String,
        heredoc: bool,
    },
    Int(i64),
    Float(f64),
    Bool(bool),
    Assign,
    Comma,
    OpenBrace,
    CloseBrace,
    OpenBracket,
    CloseBracket,
    End,
}

impl Token {
    /// The token in words, for error messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Name(name) => format!("the name {name}"),
            Self::Text { heredoc: true, .. } => "a heredoc".into(),
            Self::Text { .. } => "a string".into(),
            Self::Int(_) | Self::Float(_) => "a number".into(),
            Self::Bool(value) => format!("{value}"),
            Self::Assign => "'='".into(),
            Self::Comma => "','".into(),
            Self::OpenBrace => "'{'".into(),
            Self::CloseBrace => "'}'".into(),
            Self::OpenBracket => "'['".into(),
            Self::CloseBracket => "']'".into(),
            Self::End => "the end of the document".into(),
        }
    }
}

/// A cursor over the characters that knows line and column.
pub(super) struct Scanner<'a> {
    rest: &'a str,
    at: Position,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { rest: text, at: Position::START }
    }

    pub(super) fn position(&self) -> Position {
        self.at
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn peek_second(&self) -> Option<char> {
        self.rest.chars().nth(1)
    }

    pub(super) fn bump(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.rest = &self.rest[next.len_utf8()..];
        if next == '\n' {
            self.at = Position { line: self.at.line + 1, column: 1 };
        } else {
            self.at.column += 1;
        }
        Some(next)
    }

    pub(super) fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let start = self.rest;
        while self.peek().is_some_and(&wanted) {
            self.bump();
        }
        &start[..start.len() - self.rest.len()]
    }

    fn problem<T>(&self, message: impl Into<String>) -> Result<T, Problem> {
        Err(Problem::new(self.at, message))
    }

    /// The next token of an HCL document and where it begins.
    pub(super) fn token(&mut self) -> Result<(Token, Position), Problem> {
        self.skip_blanks()?;
        let at = self.at;
        let Some(first) = self.peek() else { return Ok((Token::End, at)) };
        let token = match first {
            '=' => self.single(Token::Assign),
            ',' => self.single(Token::Comma),
            '{' => self.single(Token::OpenBrace),
            '}' => self.single(Token::CloseBrace),
            '[' => self.single(Token::OpenBracket),
            ']' => self.single(Token::CloseBracket),
            '"' => self.quoted()?,
            '<' => self.heredoc()?,
            '0'..='9' => self.number(at)?,
            '-' | '.' if self.starts_number() => self.number(at)?,
            letter if letter == '_' || letter.is_alphabetic() => self.name(),
            other => {
                return self.problem(format!(
                    "unexpected character {other:?}: write name = value, or name \"label\" {{ ... }}; texts need double quotes"
                ));
            }
        };
        Ok((token, at))
    }

    fn single(&mut self, token: Token) -> Token {
        self.bump();
        token
    }

    fn skip_blanks(&mut self) -> Result<(), Problem> {
        loop {
            self.take_while(|c| matches!(c, ' ' | '\t' | '\r' | '\n'));
            match (self.peek(), self.peek_second()) {
                (Some('#'), _) | (Some('/'), Some('/')) => {
                    self.take_while(|c| c != '\n');
                }
                (Some('/'), Some('*')) => self.block_comment()?,
                _ => return Ok(()),
            }
        }
    }

    fn block_comment(&mut self) -> Result<(), Problem> {
        let start = self.at;
        let Some(length) = self.rest.get(2..).and_then(|inside| inside.find("*/")) else {
            return Err(Problem::new(start, "this comment is not closed: write */ at its end"));
        };
        let end = self.rest.len() - (2 + length + 2);
        while self.rest.len() > end {
            self.bump();
        }
        Ok(())
    }

    fn name(&mut self) -> Token {
        let name = self.take_while(|c| c == '_' || c == '-' || c == '.' || c.is_alphanumeric());
        match name {
            "true" => Token::Bool(true),
            "false" => Token::Bool(false),
            _ => Token::Name(name.to_string()),
        }
    }

    fn starts_number(&self) -> bool {
        let digits = self.rest.trim_start_matches(['-', '.']);
        self.rest.len() - digits.len() <= 2 && digits.starts_with(|c: char| c.is_ascii_digit())
    }

    fn number(&mut self, at: Position) -> Result<Token, Problem> {
        let start = self.rest;
        if self.peek() == Some('-') {
            self.bump();
        }
        let mut previous = ' ';
        let hex = self.rest.starts_with("0x") || self.rest.starts_with("0X");
        while let Some(next) = self.peek() {
            let exponent_sign = !hex && matches!(previous, 'e' | 'E') && matches!(next, '+' | '-');
            if !(next.is_ascii_alphanumeric() || next == '.' || exponent_sign) {
                break;
            }
            previous = next;
            self.bump();
        }
        let text = &start[..start.len() - self.rest.len()];
        number(text).ok_or_else(|| Problem::new(at, format!("{text} is not a number; a text needs double quotes: \"{text}\"")))
    }

    /// A quoted text. Escapes are resolved outside `${...}`; inside, everything stays as it is, quotes included.
    fn quoted(&mut self) -> Result<Token, Problem> {
        let start = self.at;
        self.bump();
        let mut bytes = Vec::new();
        let mut braces = 0_usize;
        loop {
            let at = self.at;
            let next = self.bump().ok_or_else(|| Problem::new(start, "this string is not closed: write \" at its end"))?;
            match next {
                '"' if braces == 0 => break,
                '\n' if braces == 0 => {
                    return Err(Problem::new(
                        start,
                        "a string must end on its line: close it with \", or write \\n for a new line",
                    ));
                }
                '\\' if braces == 0 => self.escape(at, &mut bytes)?,
                '$' if braces == 0 && self.peek() == Some('{') => {
                    self.bump();
                    bytes.extend_from_slice(b"${");
                    braces = 1;
                }
                other => {
                    match other {
                        '{' if braces > 0 => braces += 1,
                        '}' if braces > 0 => braces -= 1,
                        _ => {}
                    }
                    bytes.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes());
                }
            }
        }
        let text = String::from_utf8(bytes).map_err(|_| {
            Problem::new(start, "the escapes in this string do not make up UTF-8 text: use \\uXXXX for a character")
        })?;
        Ok(Token::Text { text, heredoc: false })
    }

    fn escape(&mut self, at: Position, bytes: &mut Vec<u8>) -> Result<(), Problem> {
        let unknown = || Problem::new(at, "unknown escape in a string: a backslash itself is written \\\\");
        let next = self.bump().ok_or_else(unknown)?;
        match next {
            'a' => bytes.push(7),
            'b' => bytes.push(8),
            'f' => bytes.push(12),
            'n' => bytes.push(b'\n'),
            'r' => bytes.push(b'\r'),
            't' => bytes.push(b'\t'),
            'v' => bytes.push(11),
            '\\' | '"' => bytes.push(next as u8),
            '0'..='7' => {
                let high = next.to_digit(8).ok_or_else(unknown)?;
                let low = self.digits(2, 8).ok_or_else(unknown)?;
                bytes.push(u8::try_from(high * 64 + low).map_err(|_| unknown())?);
            }
            'x' => bytes.push(self.digits(2, 16).and_then(|value| u8::try_from(value).ok()).ok_or_else(unknown)?),
            'u' | 'U' => {
                let value = self.digits(if next == 'u' { 4 } else { 8 }, 16).ok_or_else(unknown)?;
                let character = char::from_u32(value).ok_or_else(unknown)?;
                bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
            _ => return Err(unknown()),
        }
        Ok(())
    }

    /// Exactly `count` digits in `radix` as a number.
    pub(super) fn digits(&mut self, count: usize, radix: u32) -> Option<u32> {
        let mut value = 0_u32;
        for _ in 0..count {
            let digit = self.peek()?.to_digit(radix)?;
            value = value.checked_mul(radix)?.checked_add(digit)?;
            self.bump();
        }
        Some(value)
    }

    /// `<<MARK` up to a line that holds only `MARK`; `<<-MARK` also takes the mark's own indentation off every line.
    fn heredoc(&mut self) -> Result<Token, Problem> {
        let start = self.at;
        if !self.rest.starts_with("<<") {
            return self.problem("unexpected character '<': a heredoc begins with << and a name, as in <<EOF");
        }
        self.bump();
        self.bump();
        let strip = self.peek() == Some('-');
        if strip {
            self.bump();
        }
        let mark = self.take_while(|c| c == '_' || c.is_alphanumeric());
        self.take_while(|c| c == '\r');
        if mark.is_empty() || self.bump() != Some('\n') {
            return Err(Problem::new(start, "a heredoc begins with << and a name on the same line, as in <<EOF"));
        }
        let begin = self.rest;
        loop {
            if self.rest.is_empty() {
                let message = format!("this heredoc is not closed: write {mark} alone on a line");
                return Err(Problem::new(start, message));
            }
            let read = begin.len() - self.rest.len();
            let line = self.take_while(|c| c != '\n');
            if let Some(indent) = line.trim_end_matches('\r').strip_suffix(mark).filter(|indent| indent.trim().is_empty()) {
                let text = if strip { unindent(&begin[..read], indent) } else { format!("{}{indent}", &begin[..read]) };
                return Ok(Token::Text { text, heredoc: true });
            }
            self.bump();
        }
    }
}

/// Takes `indent` off every line, when every line has it; else leaves the text as it is.
fn unindent(text: &str, indent: &str) -> String {
    if !text.split_inclusive('\n').all(|line| line.starts_with(indent)) {
        return text.to_string();
    }
    text.split_inclusive('\n').map(|line| &line[indent.len()..]).collect()
}

/// Decimal, `0x` hexadecimal, `0` octal, fractions and exponents, each with an optional minus sign.
pub(super) fn number(text: &str) -> Option<Token> {
    let (sign, digits) = text.strip_prefix('-').map_or(("", text), |digits| ("-", digits));
    let whole = |digits: &str, radix| i64::from_str_radix(&format!("{sign}{digits}"), radix).ok().map(Token::Int);
    if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        return if hex.bytes().all(|b| b.is_ascii_hexdigit()) { whole(hex, 16) } else { None };
    }
    if digits.bytes().all(|b| b.is_ascii_digit()) {
        let octal = digits.len() > 1 && digits.starts_with('0');
        return whole(digits, if octal { 8 } else { 10 });
    }
    if !digits.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-')) {
        return None;
    }
    text.parse::<f64>().ok().filter(|value| value.is_finite()).map(Token::Float)
}
