//! The frames between the server and its worker process.
//!
//! A frame is a 4-byte little-endian length and that many bytes. A request is a 13-byte header (call id, lane, time left)
//! and a postcard-encoded [`Op`]; a reply is the 8-byte call id and a postcard-encoded [`Reply`]. Call id 0 carries what
//! belongs to no call: [`Hello`] from the server at the start, [`Event`] from the worker at any time. Byte strings are
//! borrowed from the frame on both sides, and frames are overwritten when dropped: they carry PINs, keys and plaintexts.

use std::io::{self, Read};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

use super::{DownReason, HsmError, KeyId, KeyKind, Mechanism, SignScheme, TokenFacts};

/// Longest frame: the longest plaintext with room for a batch's framing.
pub const MAX_FRAME: usize = 96 << 20;

/// How long a call of several items works on them. What is not done by then is asked for again: other calls get their turn,
/// and a long batch is told from a hang.
pub const SLICE: Duration = Duration::from_millis(50);

/// Call id, lane, milliseconds left.
pub const HEADER: usize = 8 + 1 + 4;

/// A frame's bytes without the length.
pub type Frame = Zeroizing<Vec<u8>>;

/// Which threads of the worker take a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Uses of keys.
    Fast,
    /// What makes, finds, wraps or destroys objects: some of it takes milliseconds or writes to the token.
    Slow,
    /// The generation of RSA keys, which takes seconds on some tokens.
    Long,
    /// Answered at once by the reading thread, without touching the module.
    Control,
}

/// The first message to the worker.
#[derive(Serialize, Deserialize)]
pub struct Hello {
    /// The module.
    pub lib: String,
    /// Slot number.
    pub slot: Option<u64>,
    /// Token label.
    pub token_label: Option<String>,
    /// Token serial number.
    pub token_serial: Option<String>,
    /// Sessions.
    pub max_sessions: Option<usize>,
    /// Mechanism of new seal keys.
    pub seal_mechanism: Option<Mechanism>,
    /// For C_Initialize.
    pub reserved: Option<String>,
    /// Loaded keys.
    pub key_cache: usize,
    /// Waiting calls.
    pub queue: usize,
}

/// The second message to the worker, after the server has seen the token's serial number and whether this PIN may be
/// tried on it.
#[derive(Serialize, Deserialize)]
pub struct Pin<'a> {
    /// The PIN.
    pub pin: &'a str,
}

/// What the worker says on its own.
#[derive(Debug, Serialize, Deserialize)]
pub enum Event {
    /// The module is loaded and the token found; the worker waits for the PIN.
    Token {
        /// Serial number.
        serial: String,
    },
    /// Logged in and tested.
    Ready {
        /// What was found out.
        facts: TokenFacts,
        /// Into how many calls a batch is best split.
        ways: usize,
    },
    /// The worker cannot go on and ends.
    Down {
        /// Why.
        reason: DownReason,
        /// For the log.
        detail: String,
    },
}

/// Bytes that postcard moves in one piece and hands out without a copy.
#[derive(Clone, Copy)]
pub struct Bytes<'a>(pub &'a [u8]);

impl Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Bytes<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&'a [u8]>::deserialize(deserializer).map(Bytes)
    }
}

/// A [`KeyId`] in its short form.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Id([u8; 16]);

impl From<KeyId> for Id {
    fn from(id: KeyId) -> Self {
        Self(id.0)
    }
}

impl From<Id> for KeyId {
    fn from(id: Id) -> Self {
        Self(id.0)
    }
}

/// A wrapped key. It travels with every use: 40 bytes for an AES key cost less than asking whether it is loaded.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Wrapped<'a> {
    /// Identity.
    pub id: Id,
    /// Kind.
    pub kind: KeyKind,
    /// How it was wrapped.
    pub mechanism: Mechanism,
    /// By which key.
    pub wrapped_by: Id,
    /// The wrapped bytes.
    #[serde(borrow)]
    pub blob: Bytes<'a>,
}

/// Which key to use.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub enum Key<'a> {
    /// A token object.
    Token(Id),
    /// A wrapped key.
    Wrapped(#[serde(borrow)] Wrapped<'a>),
}

/// One AEAD operation.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Item<'a> {
    /// 12-byte IV.
    pub iv: [u8; 12],
    /// Associated data.
    #[serde(borrow)]
    pub aad: Bytes<'a>,
    /// Plaintext or ciphertext.
    #[serde(borrow)]
    pub input: Bytes<'a>,
}

/// What the worker is asked to do; see [`super::Hsm`] for the meaning.
#[derive(Serialize, Deserialize)]
#[allow(missing_docs)] // the fields are the parameters of the trait's functions
pub enum Op<'a> {
    /// For how long has the call with this id been executing? Tells a stuck module from a long queue.
    Running {
        call: u64,
    },
    /// Is the token still there?
    Probe,
    /// What `sos hsm doctor` shows.
    Inspect,
    Find {
        label_prefix: &'a str,
    },
    Destroy {
        id: Id,
    },
    CreateSealKey {
        label: &'a str,
        id: Id,
    },
    Seal {
        id: Id,
        #[serde(borrow)]
        plaintext: Bytes<'a>,
        #[serde(borrow)]
        aad: Bytes<'a>,
    },
    Unseal {
        key: Id,
        mechanism: Mechanism,
        #[serde(borrow)]
        blob: Bytes<'a>,
        #[serde(borrow)]
        aad: Bytes<'a>,
    },
    CreateMasterKey {
        label: &'a str,
        id: Id,
        #[serde(borrow)]
        recipients: Vec<Bytes<'a>>,
    },
    ImportMasterKey {
        label: &'a str,
        id: Id,
        #[serde(borrow)]
        material: Bytes<'a>,
    },
    CreateTransportKey {
        label: &'a str,
        id: Id,
    },
    AcceptMasterKey {
        transport: Id,
        label: &'a str,
        id: Id,
        mechanism: Mechanism,
        #[serde(borrow)]
        blob: Bytes<'a>,
    },
    CheckValue {
        id: Id,
    },
    GenerateWrapped {
        master: Id,
        kind: KeyKind,
    },
    GenerateOnToken {
        label: &'a str,
        id: Id,
        kind: KeyKind,
    },
    WrapMaterial {
        master: Id,
        kind: KeyKind,
        #[serde(borrow)]
        material: Bytes<'a>,
    },
    UnwrapMaterial {
        #[serde(borrow)]
        wrapped: Wrapped<'a>,
    },
    Rewrap {
        #[serde(borrow)]
        wrapped: Wrapped<'a>,
        new_master: Id,
    },
    Encrypt {
        #[serde(borrow)]
        key: Key<'a>,
        #[serde(borrow)]
        items: Vec<Item<'a>>,
    },
    Decrypt {
        #[serde(borrow)]
        key: Key<'a>,
        #[serde(borrow)]
        items: Vec<Item<'a>>,
    },
    Sign {
        #[serde(borrow)]
        key: Key<'a>,
        scheme: SignScheme,
        #[serde(borrow)]
        input: Bytes<'a>,
    },
    RsaDecrypt {
        #[serde(borrow)]
        key: Key<'a>,
        #[serde(borrow)]
        ciphertext: Bytes<'a>,
    },
}

impl Op<'_> {
    /// Who takes it.
    pub fn lane(&self) -> Lane {
        match self {
            Op::Running { .. } => Lane::Control,
            Op::Seal { .. }
            | Op::Unseal { .. }
            | Op::Encrypt { .. }
            | Op::Decrypt { .. }
            | Op::Sign { .. }
            | Op::RsaDecrypt { .. } => Lane::Fast,
            Op::GenerateWrapped { kind, .. } | Op::GenerateOnToken { kind, .. } if kind.is_rsa() => Lane::Long,
            _ => Lane::Slow,
        }
    }

    /// Whether it may be sent again when the worker died over it: it changes nothing on the token.
    pub fn repeatable(&self) -> bool {
        !matches!(
            self,
            Op::Destroy { .. }
                | Op::CreateSealKey { .. }
                | Op::CreateMasterKey { .. }
                | Op::ImportMasterKey { .. }
                | Op::CreateTransportKey { .. }
                | Op::AcceptMasterKey { .. }
                | Op::GenerateOnToken { .. }
        )
    }
}

/// The answer to an [`Op`].
#[derive(Serialize, Deserialize)]
#[allow(missing_docs)] // the fields are the results of the trait's functions
pub enum Reply<'a> {
    Done,
    Running {
        millis: Option<u64>,
    },
    Inspection(Inspection),
    Objects(Vec<(Option<Id>, String)>),
    Blob {
        mechanism: Mechanism,
        #[serde(borrow)]
        bytes: Bytes<'a>,
    },
    Master {
        check_value: [u8; 32],
        exported: Vec<(Mechanism, Vec<u8>)>,
    },
    CheckValue([u8; 32]),
    NewKey {
        #[serde(borrow)]
        wrapped: Option<Wrapped<'a>>,
        public_key: Option<Vec<u8>>,
    },
    Wrapped(#[serde(borrow)] Wrapped<'a>),
    Bytes(#[serde(borrow)] Bytes<'a>),
    /// The first items, as many as fit into [`SLICE`], and the time that they took.
    Many {
        #[serde(borrow)]
        outputs: Vec<Bytes<'a>>,
        micros: u64,
    },
    /// As [`Reply::Many`].
    Each {
        #[serde(borrow)]
        outputs: Vec<Result<Bytes<'a>, Failure>>,
        micros: u64,
    },
    Failed(Failure),
}

/// What the worker finds out for `sos hsm doctor`, besides the self-test.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Inspection {
    /// Slot number.
    pub slot: u64,
    /// Token manufacturer and model.
    pub model: String,
    /// Name under which the module's peculiarities are known.
    pub vendor: String,
    /// Most read-write sessions that the token says it gives; `None` when unlimited or not said.
    pub session_limit: Option<u64>,
    /// Sessions that this worker uses.
    pub sessions: usize,
    /// CKF_USER_PIN_COUNT_LOW: a PIN was wrong lately.
    pub pin_count_low: bool,
    /// CKF_USER_PIN_TO_BE_CHANGED.
    pub pin_to_be_changed: bool,
    /// Mechanism numbers.
    pub mechanisms: Vec<u64>,
    /// AES-GCM encryptions of 32 bytes per second, in one session.
    pub small_per_second: Option<u64>,
    /// AES-GCM throughput on 64 KiB texts in bytes per second, in one session.
    pub bytes_per_second: Option<u64>,
}

/// [`HsmError`] on the wire.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)] // one variant per variant of HsmError
pub enum Failure {
    BadInput(String),
    Unsupported(String),
    KeyMissing(KeyId),
    KeyExists(KeyId),
    Unavailable { reason: DownReason, detail: String },
    Overloaded,
}

impl From<Failure> for HsmError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::BadInput(text) => HsmError::BadInput(text),
            Failure::Unsupported(text) => HsmError::Unsupported(text),
            Failure::KeyMissing(id) => HsmError::KeyMissing(id),
            Failure::KeyExists(id) => HsmError::KeyExists(id),
            Failure::Unavailable { reason, detail } => HsmError::Unavailable { reason, detail },
            Failure::Overloaded => HsmError::Timeout,
        }
    }
}

/// A request's header.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Call id.
    pub call: u64,
    /// Who takes it.
    pub lane: Lane,
    /// Milliseconds until nobody waits for the answer any more.
    pub millis: u32,
}

/// A request as it goes over the socket, length included.
pub fn request(header: Header, op: &Op<'_>) -> Result<Frame, postcard::Error> {
    let mut buffer = Vec::with_capacity(4 + HEADER + 256);
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(&header.call.to_le_bytes());
    buffer.push(match header.lane {
        Lane::Fast => 0,
        Lane::Slow => 1,
        Lane::Control => 2,
        Lane::Long => 3,
    });
    buffer.extend_from_slice(&header.millis.to_le_bytes());
    finish(buffer, op)
}

/// A reply (or with call 0 an event or the first messages), length included.
pub fn message<T: Serialize>(call: u64, body: &T) -> Result<Frame, postcard::Error> {
    let mut buffer = Vec::with_capacity(4 + 8 + 256);
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(&call.to_le_bytes());
    finish(buffer, body)
}

fn finish<T: Serialize>(buffer: Vec<u8>, body: &T) -> Result<Frame, postcard::Error> {
    // `to_extend` may grow the buffer and leave unwiped copies behind, so the size is computed first.
    let size = postcard::experimental::serialized_size(body)?;
    let mut whole = Vec::with_capacity(buffer.len() + size);
    whole.extend_from_slice(&buffer);
    let mut whole = Frame::new(postcard::to_extend(body, whole)?);
    let len = whole.len() - 4;
    if len > MAX_FRAME {
        return Err(postcard::Error::SerializeBufferFull);
    }
    if let Some(place) = whole.first_chunk_mut::<4>() {
        *place = u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
    }
    Ok(whole)
}

/// Splits a request frame into header and encoded [`Op`].
pub fn split_request(frame: &[u8]) -> Option<(Header, &[u8])> {
    let (call, rest) = frame.split_first_chunk::<8>()?;
    let (lane, rest) = rest.split_first()?;
    let (millis, body) = rest.split_first_chunk::<4>()?;
    let lane = match lane {
        0 => Lane::Fast,
        1 => Lane::Slow,
        2 => Lane::Control,
        3 => Lane::Long,
        _ => return None,
    };
    Some((Header { call: u64::from_le_bytes(*call), lane, millis: u32::from_le_bytes(*millis) }, body))
}

/// Splits a message frame into call id and encoded body.
pub fn split_message(frame: &[u8]) -> Option<(u64, &[u8])> {
    let (call, body) = frame.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*call), body))
}

/// Reads one frame; `None` at the end of the stream.
pub fn read_frame(stream: &mut impl Read) -> io::Result<Option<Frame>> {
    let mut len = [0; 4];
    match stream.read_exact(&mut len) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let len = u32::from_le_bytes(len) as usize;
    if len > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too long"));
    }
    let mut frame = Frame::new(vec![0; len]);
    stream.read_exact(&mut frame)?;
    Ok(Some(frame))
}

/// For encoded bodies that do not decode: the two ends are the same program, so this is a defect or an attack.
pub fn decode<'a, T: de::Deserialize<'a>>(body: &'a [u8]) -> io::Result<T> {
    postcard::from_bytes(body).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "frame does not decode"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_comes_back_as_it_was_sent() {
        let item = Item { iv: [7; 12], aad: Bytes(b"aad"), input: Bytes(b"text") };
        let op = Op::Encrypt { key: Key::Token(KeyId([9; 16]).into()), items: vec![item] };
        let frame = request(Header { call: 5, lane: op.lane(), millis: 100 }, &op).unwrap();
        let read = read_frame(&mut frame.as_slice()).unwrap().unwrap();
        let (header, body) = split_request(&read).unwrap();
        assert_eq!((header.call, header.lane, header.millis), (5, Lane::Fast, 100));
        let Op::Encrypt { items, .. } = decode(body).unwrap() else { panic!("another operation") };
        assert_eq!((items[0].iv, items[0].aad.0, items[0].input.0), ([7; 12], &b"aad"[..], &b"text"[..]));
    }

    #[test]
    fn nonsense_is_an_error_and_the_end_is_the_end() {
        assert!(read_frame(&mut &[255, 255, 255, 255][..]).is_err());
        assert!(read_frame(&mut &[9, 0, 0, 0, 1][..]).is_err());
        assert!(read_frame(&mut &[][..]).unwrap().is_none());
        assert!(split_request(&[0; 12]).is_none());
        assert!(decode::<Op<'_>>(&[200]).is_err());
    }
}
