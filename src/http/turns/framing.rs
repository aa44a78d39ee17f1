//! Where requests end in what a client sends: RFC 9112, as far as actix's decoder follows it.
//!
//! actix decides what a request is and refuses those that are none; here it is only found out what may be handed to it together. Where
//! both could disagree actix answers 400 and closes.

/// A header's line of interest is no longer than that where it comes in pieces.
const LONGEST_LINE: usize = 1 << 10;

/// Follows a client's requests, one at a time.
#[derive(Debug, Default)]
pub(super) struct Framing {
    place: Place,
    head: Head,
    /// How much of the head has come.
    length: usize,
}

/// What comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// A head, of which nothing has come.
    #[default]
    Before,
    Head,
    /// So much of a body.
    Body(u64),
    Chunks(Chunk),
    /// A body that ends with the connection.
    Endless,
    /// Nothing of this request.
    Whole,
    /// Nobody knows.
    Unknown,
}

/// What comes next of a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    /// Digits of a chunk's size, of which this is known.
    Size(u64),
    /// The rest of the line with the size.
    Extension(u64),
    Data(u64),
    /// The line's end after the data.
    End,
    /// A line of trailers, or the empty one that ends all of it.
    Trailer {
        empty: bool,
    },
}

/// What a head has said so far.
#[derive(Debug, Default)]
struct Head {
    /// The line so far, where it came in pieces and says something about the body.
    line: Vec<u8>,
    /// Whether anything of this line has come, and whether more than a carriage return.
    begun: bool,
    text: bool,
    /// Whether the request's first line is over.
    headers: bool,
    connect: bool,
    length: u64,
    chunked: bool,
    upgrade: bool,
}

impl Framing {
    /// How much of this belongs to the request under way. What is left belongs to later ones.
    pub fn take(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let taken = match self.place {
                Place::Whole | Place::Unknown => break,
                Place::Endless => rest.len(),
                Place::Before | Place::Head => self.head(rest),
                Place::Body(left) => {
                    let (taken, left) = skip(rest, left);
                    self.place = if left == 0 { Place::Whole } else { Place::Body(left) };
                    taken
                }
                Place::Chunks(chunk) => self.chunk(chunk, rest),
            };
            at += taken;
        }
        at
    }

    /// The request is answered: the next one may come.
    pub fn next(&mut self) {
        if self.place == Place::Whole {
            *self = Self::default();
        }
    }

    /// Whether all of the request has come.
    pub fn is_whole(&self) -> bool {
        self.place == Place::Whole
    }

    /// Whether nobody can tell where the request ends.
    pub fn is_unknown(&self) -> bool {
        self.place == Place::Unknown
    }

    /// Whether the request's head is not there, or not all of it.
    pub fn is_head(&self) -> bool {
        matches!(self.place, Place::Before | Place::Head)
    }

    /// Whether a request has begun, and not only empty lines before one.
    pub fn is_asking(&self) -> bool {
        self.is_head() && (self.head.headers || self.head.text)
    }

    /// How many bytes of the request's head have come.
    pub fn head_length(&self) -> usize {
        self.length
    }

    /// Takes one line of a head, or what is there of it.
    fn head(&mut self, bytes: &[u8]) -> usize {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (piece, taken) = match end {
            Some(end) => (bytes.get(..end).unwrap_or_default(), end + 1),
            None => (bytes, bytes.len()),
        };
        self.length += taken;
        let head = &mut self.head;
        let begun = head.begun;
        head.text |= match piece {
            [] => false,
            [b'\r'] => begun,
            _ => true,
        };
        if end.is_none() {
            head.begun = true;
            if !head.keep(piece, begun) {
                self.place = Place::Unknown;
                return taken;
            }
        } else if head.text {
            if begun {
                if !head.keep(piece, true) {
                    self.place = Place::Unknown;
                    return taken;
                }
                let line = std::mem::take(&mut head.line);
                head.read(&line);
            } else {
                head.read(piece);
            }
            head.headers = true;
        }
        let head = &mut self.head;
        if end.is_none() || head.text {
            if end.is_some() {
                (head.begun, head.text) = (false, false);
            }
            self.place = Place::Head;
        } else {
            (head.begun, head.text) = (false, false);
            head.line.clear();
            // Empty lines before a request say nothing.
            self.place = if head.headers { head.body() } else { Place::Head };
        }
        taken
    }

    fn chunk(&mut self, chunk: Chunk, bytes: &[u8]) -> usize {
        let Some(first) = bytes.first() else { return 0 };
        let after_size = |size| if size == 0 { Chunk::Trailer { empty: true } } else { Chunk::Data(size) };
        let (next, taken) = match chunk {
            Chunk::Size(size) => match char::from(*first).to_digit(16) {
                // Too large a size is refused by actix.
                Some(digit) => (Chunk::Size(size.saturating_mul(16).saturating_add(u64::from(digit))), 1),
                None if *first == b'\n' => (after_size(size), 1),
                None => (Chunk::Extension(size), 1),
            },
            Chunk::Extension(size) => line(bytes).map_or((chunk, bytes.len()), |taken| (after_size(size), taken)),
            Chunk::Data(left) => match skip(bytes, left) {
                (taken, 0) => (Chunk::End, taken),
                (taken, left) => (Chunk::Data(left), taken),
            },
            Chunk::End => line(bytes).map_or((chunk, bytes.len()), |taken| (Chunk::Size(0), taken)),
            Chunk::Trailer { empty } => match first {
                b'\n' if empty => {
                    self.place = Place::Whole;
                    return 1;
                }
                b'\n' => (Chunk::Trailer { empty: true }, 1),
                byte => (Chunk::Trailer { empty: empty && *byte == b'\r' }, 1),
            },
        };
        self.place = Place::Chunks(next);
        taken
    }
}

impl Head {
    /// Keeps a piece of a line that is not there as a whole; `begun` says whether it is not the first one. Whether there was room.
    fn keep(&mut self, piece: &[u8], begun: bool) -> bool {
        let first = self.line.first().or(piece.first());
        let wanted = !self.headers || first.is_some_and(|first| says_something(*first));
        // A line whose beginning was not kept says nothing.
        if !wanted || (begun && self.line.is_empty()) {
            return true;
        }
        if self.headers && self.line.len() + piece.len() > LONGEST_LINE {
            return false;
        }
        // Of the first line the method is enough.
        let room = LONGEST_LINE - self.line.len().min(LONGEST_LINE);
        self.line.extend_from_slice(piece.get(..room).unwrap_or(piece));
        true
    }

    fn read(&mut self, line: &[u8]) {
        if !self.headers {
            self.connect = line.starts_with(b"CONNECT ");
            return;
        }
        if !line.first().is_some_and(|first| says_something(*first)) {
            return;
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return };
        let (name, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if name.eq_ignore_ascii_case(b"content-length") {
            self.length = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok()).unwrap_or(0);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.chunked |= value.eq_ignore_ascii_case(b"chunked");
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            self.upgrade |= value.eq_ignore_ascii_case(b"websocket");
        }
    }

    /// What comes after this head.
    fn body(&self) -> Place {
        if self.chunked {
            Place::Chunks(Chunk::Size(0))
        } else if self.upgrade {
            Place::Endless
        } else if self.length > 0 {
            Place::Body(self.length)
        } else if self.connect {
            Place::Endless
        } else {
            Place::Whole
        }
    }
}

/// Whether headers whose names begin like this can say something about the body.
fn says_something(first: u8) -> bool {
    matches!(first.to_ascii_lowercase(), b'c' | b't' | b'u')
}

/// How much of this is among the next `left` bytes, and how many of those are still to come.
fn skip(bytes: &[u8], left: u64) -> (usize, u64) {
    let there = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    match usize::try_from(left) {
        Ok(left) if left <= bytes.len() => (left, 0),
        _ => (bytes.len(), left - there.min(left)),
    }
}

/// The length of the line at the beginning, with its end, where it is there.
fn line(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == b'\n').map(|end| end + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// How requests are told apart that come in pieces of such a size.
    fn requests(sent: &[u8], size: usize) -> Vec<String> {
        let (mut framing, mut found, mut now) = (Framing::default(), Vec::new(), Vec::new());
        for mut piece in sent.chunks(size) {
            while !piece.is_empty() {
                let taken = framing.take(piece);
                assert!(taken > 0 || framing.is_whole(), "{}", String::from_utf8_lossy(piece));
                now.extend_from_slice(&piece[..taken]);
                piece = &piece[taken..];
                if framing.is_whole() {
                    found.push(String::from_utf8(std::mem::take(&mut now)).unwrap());
                    framing.next();
                }
            }
        }
        if !now.is_empty() {
            found.push(format!("... {}", String::from_utf8(now).unwrap()));
        }
        found
    }

    const REQUESTS: [&str; 14] = [
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET / HTTP/1.1\nHost: x\n\n",
        "\r\n\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n\r\n\r\nx",
        "PUT / HTTP/1.1\r\nCONTENT-LENGTH:    007 \t\r\nHost: x\r\n\r\n\n\n\n\n\n\n\n",
        "PUT / HTTP/1.1\r\nHost: x\r\ncontent-length: 0\r\n\r\n",
        "PUT / HTTP/1.1\r\nHost: x\r\ncontent-type: 5\r\ncookie: 6\r\n\r\n",
        "POST / HTTP/1.0\r\ncontent-length: 2\r\n\r\n\r\n",
        "PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n\r\n\r\n\n\r\n0\r\n\r\n",
        "PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:CHUNKED\r\n\r\n0a;b=\"c\" \r\n0123456789\r\n00\r\n\r\n",
        "PUT / HTTP/1.1\r\nHost: x\r\ntransfer-encoding: chunked\r\n\r\n1 \r\nx\r\n0\r\nA: b\r\nC: d\r\n\r\n",
        "PUT / HTTP/1.1\r\nHost: x\r\nupgrade: h2c\r\ncontent-length: 1\r\n\r\n\n",
        "CONNECT x HTTP/1.1\r\nHost: x\r\ncontent-length: 1\r\n\r\n\n",
        "CONNECTED / HTTP/1.1\r\nHost: x\r\n\r\n",
    ];

    #[test]
    fn requests_end_where_their_bodies_do() {
        let all: String = REQUESTS.concat();
        for size in [1, 2, 3, 7, 64, 1 << 20] {
            assert_eq!(requests(all.as_bytes(), size), REQUESTS, "pieces of {size}");
        }
        for endless in ["CONNECT x HTTP/1.1\r\nHost: x\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: WebSocket\r\n\r\n"] {
            let sent = format!("{endless}{}", REQUESTS[0].repeat(3));
            assert_eq!(requests(sent.as_bytes(), 5), [format!("... {sent}")]);
        }
    }

    #[test]
    fn a_line_about_the_body_may_be_padded_but_not_without_end() {
        let padded = |spaces: usize| {
            let mut framing = Framing::default();
            let sent = format!("PUT / HTTP/1.1\r\nContent-Length:{}1\r\n\r\nx", " ".repeat(spaces));
            sent.as_bytes().chunks(100).for_each(|piece| {
                framing.take(piece);
            });
            (framing.is_whole(), framing.is_unknown())
        };
        assert_eq!(padded(900), (true, false));
        assert_eq!(padded(5000), (false, true));
        let mut framing = Framing::default();
        let long = format!("PUT /{} HTTP/1.1\r\ncontent-length: 1\r\nx: {}\r\n\r\nx", "x".repeat(5000), "x".repeat(5000));
        long.as_bytes().chunks(100).for_each(|piece| {
            framing.take(piece);
        });
        assert!(framing.is_whole() && framing.head_length() == long.len() - 1);
    }

    proptest! {
        #[test]
        fn however_they_are_cut(order in proptest::collection::vec(0..REQUESTS.len(), 1..20), size in 1..200_usize) {
            let sent: Vec<&str> = order.iter().map(|number| REQUESTS[*number]).collect();
            prop_assert_eq!(requests(sent.concat().as_bytes(), size), sent);
        }

        #[test]
        fn whatever_is_sent_comes_to_an_end(sent in "[\r\n:;0-9a-fx ]{0,300}", size in 1..50_usize) {
            let mut framing = Framing::default();
            for piece in sent.as_bytes().chunks(size) {
                let taken = framing.take(piece);
                prop_assert!(taken == piece.len() || framing.is_whole() || framing.is_unknown());
                framing.next();
            }
        }
    }
}
