//! Netlink messages as bytes: headers, attributes, and nothing that knows what they mean.
//!
//! Layouts are those of `include/uapi/linux/netlink.h`. Numbers are in host order but where the
//! nfnetlink family says otherwise. Reading never panics and never fails: what does not parse is
//! not there, which the caller sees as a host that is not as it should be.

/// Length of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;

/// `NLA_F_NESTED`, `NLA_F_NET_BYTEORDER`: flags in the type of an attribute.
const NESTED: u16 = 1 << 15;
const TYPE_MASK: u16 = !(NESTED | 1 << 14);

/// An attribute to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attr {
    kind: u16,
    value: Value,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Bytes(Vec<u8>),
    Nest(Vec<Attr>),
}

pub(crate) fn bytes(kind: u16, value: &[u8]) -> Attr {
    Attr {
        kind,
        value: Value::Bytes(value.to_vec()),
    }
}

/// A number in host order, as rtnetlink has them.
pub(crate) fn u32(kind: u16, value: u32) -> Attr {
    bytes(kind, &value.to_ne_bytes())
}

/// A number in network order, as nftables has them.
pub(crate) fn be32(kind: u16, value: u32) -> Attr {
    bytes(kind, &value.to_be_bytes())
}

/// A string with the NUL that the kernel expects.
pub(crate) fn text(kind: u16, value: &str) -> Attr {
    let mut value = value.as_bytes().to_vec();
    value.push(0);
    Attr {
        kind,
        value: Value::Bytes(value),
    }
}

pub(crate) fn nest(kind: u16, value: Vec<Attr>) -> Attr {
    Attr {
        kind,
        value: Value::Nest(value),
    }
}

/// One message to be sent; its sequence number is filled in by the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    kind: u16,
    flags: u16,
    /// The family's fixed header, then the attributes.
    payload: Vec<u8>,
}

impl Message {
    pub(crate) fn new(kind: u16, flags: i32, header: &[u8], attrs: &[Attr]) -> Self {
        let mut payload = header.to_vec();
        encode(attrs, &mut payload);
        Self {
            kind,
            flags: u16::try_from(flags).expect("the flags of a message are 16 bits"),
            payload,
        }
    }

    /// Appends the message with its header to `out`.
    pub(crate) fn write(&self, sequence: u32, extra_flags: i32, out: &mut Vec<u8>) {
        let extra = u16::try_from(extra_flags).expect("the flags of a message are 16 bits");
        let length =
            u32::try_from(HEADER + self.payload.len()).expect("a message is far below 4 GiB");
        out.extend_from_slice(&length.to_ne_bytes());
        out.extend_from_slice(&self.kind.to_ne_bytes());
        out.extend_from_slice(&(self.flags | extra).to_ne_bytes());
        out.extend_from_slice(&sequence.to_ne_bytes());
        out.extend_from_slice(&0u32.to_ne_bytes());
        out.extend_from_slice(&self.payload);
        pad(out);
    }

    /// What the kernel would say of this message's object: header and attributes without `nlmsghdr`.
    #[cfg(test)]
    pub(crate) fn payload(&self) -> &[u8] {
        &self.payload
    }
}

fn encode(attrs: &[Attr], out: &mut Vec<u8>) {
    for attr in attrs {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        let kind = match &attr.value {
            Value::Bytes(value) => {
                out.extend_from_slice(value);
                attr.kind
            }
            Value::Nest(inner) => {
                encode(inner, out);
                attr.kind | NESTED
            }
        };
        let length = u16::try_from(out.len() - start).expect("callers keep nests below 64 KiB");
        out[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        out[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        pad(out);
    }
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

/// One message as it came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// Of a notification: the socket whose request it follows from; 0 where that is the kernel's own doing.
    pub(crate) port: u32,
    pub(crate) payload: &'a [u8],
}

/// The messages of one datagram. Ends at the first that does not parse.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*datagram.first_chunk()?) as usize;
        let message = datagram
            .get(..length)
            .filter(|message| message.len() >= HEADER)?;
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
        Some(Received {
            kind: read_u16(&message[4..])?,
            flags: read_u16(&message[6..])?,
            sequence: read_u32(&message[8..])?,
            port: read_u32(&message[12..])?,
            payload: &message[HEADER..],
        })
    })
}

/// The attributes of a message or nest, as (type, value). Ends at the first that does not parse.
pub(crate) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(read_u16(rest)?);
        let kind = read_u16(rest.get(2..)?)? & TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of a type.
pub(crate) fn find(attrs: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(attrs)
        .find(|(found, _)| *found == kind)
        .map(|(_, value)| value)
}

pub(crate) fn read_u16(value: &[u8]) -> Option<u16> {
    value.first_chunk().copied().map(u16::from_ne_bytes)
}

pub(crate) fn read_u32(value: &[u8]) -> Option<u32> {
    value.first_chunk().copied().map(u32::from_ne_bytes)
}

pub(crate) fn read_text(value: &[u8]) -> Option<&str> {
    let end = value
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(value.len());
    std::str::from_utf8(&value[..end]).ok()
}

/// Whether `found` says everything that `wanted` says.
///
/// Every wanted attribute must be there with the same value, lists with the same entries in the
/// same order and no others. What the kernel adds of its own (handles, use counts, padding) is
/// of types that are never sent, and is passed over.
pub(crate) fn says(found: &[u8], wanted: &[Attr]) -> bool {
    wanted.iter().enumerate().all(|(index, attr)| {
        let same_kind = |other: &&Attr| other.kind == attr.kind;
        let position = wanted[..index].iter().filter(same_kind).count();
        let mut values = attributes(found).filter(|(kind, _)| *kind == attr.kind);
        let Some((_, value)) = values.nth(position) else {
            return false;
        };
        let is_last = !wanted[index + 1..]
            .iter()
            .any(|other| other.kind == attr.kind);
        if is_last && values.next().is_some() {
            return false;
        }
        match &attr.value {
            Value::Bytes(bytes) => value == bytes,
            Value::Nest(inner) => says(value, inner),
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_reads_back_as_it_was_written() {
        let message = Message::new(
            7,
            1,
            &[1, 2, 3, 4],
            &[
                u32(1, 5),
                text(2, "warren"),
                nest(3, vec![be32(1, 9), bytes(1, &[8])]),
            ],
        );
        let mut out = Vec::new();
        message.write(42, 4, &mut out);
        message.write(43, 0, &mut out);

        let read: Vec<_> = messages(&out).collect();

        assert_eq!(read.len(), 2);
        assert_eq!((read[0].kind, read[0].flags, read[0].sequence), (7, 5, 42));
        assert_eq!((read[1].flags, read[1].sequence), (1, 43));
        let attrs = &read[0].payload[4..];
        assert_eq!(find(attrs, 1).and_then(read_u32), Some(5));
        assert_eq!(find(attrs, 2).and_then(read_text), Some("warren"));
        let inner: Vec<_> = attributes(find(attrs, 3).expect("was written")).collect();
        assert_eq!(inner, [(1, &[0, 0, 0, 9][..]), (1, &[8])]);
    }

    #[test]
    fn says_is_true_of_itself_and_of_more_but_not_of_less_or_other() {
        let wanted = [u32(1, 5), nest(3, vec![be32(1, 9), be32(1, 8)])];
        let raw = |attrs: &[Attr]| {
            let mut out = Vec::new();
            encode(attrs, &mut out);
            out
        };

        assert!(says(&raw(&wanted), &wanted));
        let more = [u32(9, 9), wanted[0].clone(), wanted[1].clone()];
        assert!(says(&raw(&more), &wanted));

        assert!(!says(&raw(&wanted[1..]), &wanted));
        assert!(!says(&raw(&[u32(1, 6), wanted[1].clone()]), &wanted));
        let shorter = nest(3, vec![be32(1, 9)]);
        assert!(!says(&raw(&[u32(1, 5), shorter]), &wanted));
        let longer = nest(3, vec![be32(1, 9), be32(1, 8), be32(1, 7)]);
        assert!(!says(&raw(&[u32(1, 5), longer]), &wanted));
        let turned = nest(3, vec![be32(1, 8), be32(1, 9)]);
        assert!(!says(&raw(&[u32(1, 5), turned]), &wanted));
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_panic_or_run_on(datagram in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut count = 0;
            for message in messages(&datagram) {
                for (_, value) in attributes(message.payload) {
                    count += attributes(value).count();
                }
                count += 1;
            }
            prop_assert!(count <= datagram.len());
        }
    }
}
