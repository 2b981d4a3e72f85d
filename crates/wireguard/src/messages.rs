//! The four messages, as views over the bytes that arrived (the paper's section 5.4).
//!
//! [`parse`] is the only door: behind it lengths and types are right. Everything else in a message
//! is a claim until it is authenticated.

/// Bytes in front of a data message's payload.
pub const DATA_HEADER: usize = 16;
/// Bytes behind every sealed payload.
pub const TAG: usize = 16;
/// Length of an initiation in bytes.
pub const INITIATION_LEN: usize = 148;
/// Length of a response in bytes.
pub const RESPONSE_LEN: usize = 92;
/// Length of a cookie reply in bytes.
pub const COOKIE_REPLY_LEN: usize = 64;
/// Payloads are padded to a multiple of this, see [`padded_len`].
pub const PADDING_MULTIPLE: usize = 16;

const MAC: usize = 16;
const TYPE_INITIATION: [u8; 4] = [1, 0, 0, 0];
const TYPE_RESPONSE: [u8; 4] = [2, 0, 0, 0];
const TYPE_COOKIE_REPLY: [u8; 4] = [3, 0, 0, 0];
const TYPE_DATA: [u8; 4] = [4, 0, 0, 0];

/// A well-formed message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// One that the control thread handles.
    Handshake(Handshake<'a>),
    /// A sealed packet, or a keepalive.
    Data {
        /// The index under which the session is known here.
        receiver: u32,
        /// The counter with which it was sealed.
        counter: u64,
        /// Payload and tag.
        sealed: &'a [u8],
    },
}

/// A message of the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake<'a> {
    /// The first message, from initiator to responder.
    Initiation(Initiation<'a>),
    /// The second, from responder to initiator.
    Response(Response<'a>),
    /// What a responder under load sends instead.
    CookieReply(CookieReply<'a>),
}

/// Bytes that are no message: of a type or length that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a WireGuard message")]
pub struct Malformed;

macro_rules! views {
    ($($(#[doc = $doc:literal])+ $name:ident, $len:ident {
        $($field:ident: $start:expr, $size:expr;)+
    })+) => {$(
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name<'a>(&'a [u8; $len]);

        impl<'a> $name<'a> {
            /// The whole message.
            pub const fn bytes(self) -> &'a [u8; $len] {
                self.0
            }

            $(pub(crate) fn $field(self) -> &'a [u8; $size] {
                const { assert!($start + $size <= $len) };
                self.0[$start..].first_chunk().expect("asserted above")
            })+
        }
    )+};
}

views! {
    /// An initiation: who wants to talk, sealed for the responder.
    Initiation, INITIATION_LEN {
        sender_bytes: 4, 4;
        ephemeral: 8, 32;
        sealed_static: 40, 48;
        sealed_timestamp: 88, 28;
    }
    /// A response: the responder's half of the new keys.
    Response, RESPONSE_LEN {
        sender_bytes: 4, 4;
        receiver_bytes: 8, 4;
        ephemeral: 12, 32;
        sealed_nothing: 44, 16;
    }
    /// A cookie reply: a proof of address for the sender's next try.
    CookieReply, COOKIE_REPLY_LEN {
        receiver_bytes: 4, 4;
        nonce: 8, 24;
        sealed_cookie: 32, 32;
    }
}

impl Initiation<'_> {
    /// The index under which the initiator will know the session.
    pub fn sender(self) -> u32 {
        u32::from_le_bytes(*self.sender_bytes())
    }
}

impl Response<'_> {
    /// The index under which the responder will know the session.
    pub fn sender(self) -> u32 {
        u32::from_le_bytes(*self.sender_bytes())
    }

    /// The index of the initiation that is answered.
    pub fn receiver(self) -> u32 {
        u32::from_le_bytes(*self.receiver_bytes())
    }
}

impl CookieReply<'_> {
    /// The index of the message that is answered.
    pub fn receiver(self) -> u32 {
        u32::from_le_bytes(*self.receiver_bytes())
    }
}

impl<'a> Handshake<'a> {
    /// The whole message.
    pub fn bytes(self) -> &'a [u8] {
        match self {
            Self::Initiation(message) => message.bytes(),
            Self::Response(message) => message.bytes(),
            Self::CookieReply(message) => message.bytes(),
        }
    }
}

/// Reads one datagram. The three reserved bytes behind the type must be zero.
#[inline]
pub fn parse(datagram: &[u8]) -> Result<Message<'_>, Malformed> {
    let kind = datagram.first_chunk().ok_or(Malformed)?;
    match *kind {
        TYPE_DATA => {
            if datagram.len() < DATA_HEADER + TAG {
                return Err(Malformed);
            }
            let (header, sealed) = datagram
                .split_first_chunk::<DATA_HEADER>()
                .ok_or(Malformed)?;
            let [_, _, _, _, r0, r1, r2, r3, counter @ ..] = *header;
            Ok(Message::Data {
                receiver: u32::from_le_bytes([r0, r1, r2, r3]),
                counter: u64::from_le_bytes(counter),
                sealed,
            })
        }
        TYPE_INITIATION => exact(datagram, |bytes| Handshake::Initiation(Initiation(bytes))),
        TYPE_RESPONSE => exact(datagram, |bytes| Handshake::Response(Response(bytes))),
        TYPE_COOKIE_REPLY => exact(datagram, |bytes| Handshake::CookieReply(CookieReply(bytes))),
        _ => Err(Malformed),
    }
}

fn exact<const LEN: usize>(
    datagram: &[u8],
    view: fn(&[u8; LEN]) -> Handshake<'_>,
) -> Result<Message<'_>, Malformed> {
    let bytes = datagram.try_into().map_err(|_| Malformed)?;
    Ok(Message::Handshake(view(bytes)))
}

/// Writes the header of a data message in front of what will be sealed.
///
/// # Panics
///
/// If `out` is shorter than [`DATA_HEADER`].
#[inline]
pub fn write_data_header(out: &mut [u8], receiver: u32, counter: u64) {
    out[..4].copy_from_slice(&TYPE_DATA);
    out[4..8].copy_from_slice(&receiver.to_le_bytes());
    out[8..DATA_HEADER].copy_from_slice(&counter.to_le_bytes());
}

/// The length to which a packet of `len` bytes is padded: the next multiple of 16, but never
/// beyond the tunnel's MTU, and never less than `len`.
#[inline]
pub const fn padded_len(len: usize, mtu: usize) -> usize {
    let padded = len.next_multiple_of(PADDING_MULTIPLE);
    if padded <= mtu {
        padded
    } else if len <= mtu {
        mtu
    } else {
        len
    }
}

/// Lays out an initiation up to its two macs.
pub(crate) fn write_initiation(
    sender: u32,
    ephemeral: &[u8; 32],
    sealed_static: &[u8; 48],
    sealed_timestamp: &[u8; 28],
) -> [u8; INITIATION_LEN] {
    let mut out = [0; INITIATION_LEN];
    out[..4].copy_from_slice(&TYPE_INITIATION);
    out[4..8].copy_from_slice(&sender.to_le_bytes());
    out[8..40].copy_from_slice(ephemeral);
    out[40..88].copy_from_slice(sealed_static);
    out[88..116].copy_from_slice(sealed_timestamp);
    out
}

/// Lays out a response up to its two macs.
pub(crate) fn write_response(
    sender: u32,
    receiver: u32,
    ephemeral: &[u8; 32],
    sealed_nothing: &[u8; TAG],
) -> [u8; RESPONSE_LEN] {
    let mut out = [0; RESPONSE_LEN];
    out[..4].copy_from_slice(&TYPE_RESPONSE);
    out[4..8].copy_from_slice(&sender.to_le_bytes());
    out[8..12].copy_from_slice(&receiver.to_le_bytes());
    out[12..44].copy_from_slice(ephemeral);
    out[44..60].copy_from_slice(sealed_nothing);
    out
}

/// Lays out a cookie reply.
pub(crate) fn write_cookie_reply(
    receiver: u32,
    nonce: &[u8; 24],
    sealed_cookie: &[u8; 32],
) -> [u8; COOKIE_REPLY_LEN] {
    let mut out = [0; COOKIE_REPLY_LEN];
    out[..4].copy_from_slice(&TYPE_COOKIE_REPLY);
    out[4..8].copy_from_slice(&receiver.to_le_bytes());
    out[8..32].copy_from_slice(nonce);
    out[32..].copy_from_slice(sealed_cookie);
    out
}

/// The two macs at the end of an initiation or response, and what they cover.
pub(crate) struct Macs<'a> {
    pub(crate) covered_by_mac1: &'a [u8],
    pub(crate) mac1: &'a [u8; MAC],
    pub(crate) covered_by_mac2: &'a [u8],
    pub(crate) mac2: &'a [u8; MAC],
}

impl<'a> Macs<'a> {
    /// `None` for what is too short to have any.
    pub(crate) fn of(message: &'a [u8]) -> Option<Self> {
        let (covered_by_mac2, mac2) = message.split_last_chunk()?;
        let (covered_by_mac1, mac1) = covered_by_mac2.split_last_chunk()?;
        Some(Self {
            covered_by_mac1,
            mac1,
            covered_by_mac2,
            mac2,
        })
    }
}
