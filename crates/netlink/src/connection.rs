//! Asking the kernel over a netlink socket: single requests, dumps, and nftables transactions.
//!
//! Every answer is in the socket's queue when `send` returns, since the kernel works in the
//! sender's context. So nothing here waits, and a missing answer is an error at once.

use std::fmt;
use std::io;

use libc::{
    MSG_DONTWAIT, MSG_TRUNC, NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END, NLM_F_ACK, NLM_F_DUMP,
    NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
};
use netlink_sys::{Socket, SocketAddr, protocols};

use crate::wire::{self, Message, Received};

/// Datagrams of a dump are at most 32 KiB.
const BUFFER: usize = 64 * 1024;
/// `NLM_F_DUMP_INTR`: the table changed during the dump.
const DUMP_INTERRUPTED: u16 = 0x10;
/// `NLM_F_CAPPED`, `NLM_F_ACK_TLVS`: what follows the error code of an acknowledgement.
const CAPPED: u16 = 0x100;
const ACK_ATTRIBUTES: u16 = 0x200;
/// `NLMSGERR_ATTR_MSG`: the kernel's own words.
const ACK_MESSAGE: u16 = 1;
/// A table that changes under every dump is read at last as it is found.
const DUMP_ATTEMPTS: usize = 8;

/// Why the kernel refused.
#[derive(Debug)]
pub struct KernelError {
    source: io::Error,
    words: Option<String>,
}

impl KernelError {
    /// The number of the error, as in `errno(3)`; 0 when it is not the kernel's.
    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(0)
    }
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.words {
            Some(words) => write!(f, "{} ({words})", self.source),
            None => self.source.fmt(f),
        }
    }
}

impl std::error::Error for KernelError {}

impl From<io::Error> for KernelError {
    fn from(source: io::Error) -> Self {
        Self {
            source,
            words: None,
        }
    }
}

/// A socket of one netlink family.
pub(crate) struct Connection {
    socket: Socket,
    /// What the kernel knows the socket by.
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) fn route() -> Result<Self, KernelError> {
        let connection = Self::open(protocols::NETLINK_ROUTE)?;
        // Lets a dump be of one table (Linux 4.20). Older kernels send all, and the caller filters.
        let _ = connection.socket.set_netlink_get_strict_chk(true);
        Ok(connection)
    }

    pub(crate) fn netfilter() -> Result<Self, KernelError> {
        Self::open(protocols::NETLINK_NETFILTER)
    }

    fn open(protocol: isize) -> Result<Self, KernelError> {
        let mut socket = Socket::new(protocol)?;
        let port = socket.bind_auto()?.port_number();
        socket.connect(&SocketAddr::new(0, 0))?;
        // The kernel's words to its refusals (Linux 4.12); without them there is the number.
        let _ = socket.set_ext_ack(true);
        Ok(Self {
            socket,
            port,
            sequence: 0,
            buffer: vec![0; BUFFER],
        })
    }

    /// The socket, for whoever is told things without having asked.
    pub(crate) fn into_socket(self) -> Socket {
        self.socket
    }

    /// What notifications name that follow from its requests.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// Sends one request and waits for its acknowledgement.
    pub(crate) fn request(&mut self, message: &Message) -> Result<(), KernelError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut out = Vec::new();
        message.write(self.sequence, NLM_F_REQUEST | NLM_F_ACK, &mut out);
        self.send(&out)?;
        let mut answered = false;
        while let Some(length) = self.receive()? {
            for answer in wire::messages(&self.buffer[..length]) {
                if answer.sequence == self.sequence && i32::from(answer.kind) == NLMSG_ERROR {
                    acknowledged(answer)?;
                    answered = true;
                }
            }
        }
        if answered { Ok(()) } else { Err(unanswered()) }
    }

    /// The payloads of everything that a dump yields.
    pub(crate) fn dump(&mut self, message: &Message) -> Result<Vec<Vec<u8>>, KernelError> {
        let mut attempts = 0..DUMP_ATTEMPTS;
        loop {
            let (found, interrupted) = self.dump_once(message, usize::MAX)?;
            if !interrupted || attempts.next().is_none() {
                return Ok(found);
            }
        }
    }

    /// The payloads of a dump that yields no more than `bound`; `None` where it yields more. What is left
    /// of such a dump is in the way of the next one: this connection is of no use any more.
    pub(crate) fn dump_within(
        mut self,
        message: &Message,
        bound: usize,
    ) -> Result<Option<Vec<Vec<u8>>>, KernelError> {
        let (found, _) = self.dump_once(message, bound)?;
        Ok((found.len() <= bound).then_some(found))
    }

    /// Leaves off when there are more than `bound`.
    fn dump_once(
        &mut self,
        message: &Message,
        bound: usize,
    ) -> Result<(Vec<Vec<u8>>, bool), KernelError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut out = Vec::new();
        message.write(self.sequence, NLM_F_REQUEST | NLM_F_DUMP, &mut out);
        self.send(&out)?;
        let mut found = Vec::new();
        let mut interrupted = false;
        while let Some(length) = self.receive()? {
            for answer in wire::messages(&self.buffer[..length]) {
                if answer.sequence != self.sequence {
                    continue;
                }
                interrupted |= answer.flags & DUMP_INTERRUPTED != 0;
                match i32::from(answer.kind) {
                    NLMSG_ERROR => acknowledged(answer)?,
                    NLMSG_DONE => {
                        acknowledged(answer)?;
                        return Ok((found, interrupted));
                    }
                    _ => found.push(answer.payload.to_vec()),
                }
            }
            if found.len() > bound {
                return Ok((found, interrupted));
            }
        }
        Err(unanswered())
    }

    /// Carries out messages of nftables as one transaction: all of them or none.
    pub(crate) fn transaction(&mut self, messages: &[Message]) -> Result<(), KernelError> {
        let [_, _, subsystem_high, subsystem_low] = u32::try_from(libc::NFNL_SUBSYS_NFTABLES)
            .unwrap_or_default()
            .to_be_bytes();
        // `struct nfgenmsg`: no family, version 0, the subsystem.
        let envelope = [0, 0, subsystem_high, subsystem_low];
        let kind = |kind: i32| u16::try_from(kind).expect("types of messages are 16 bits");
        let mut out = Vec::new();
        let begin = self.sequence.wrapping_add(1);
        self.sequence = begin;
        Message::new(kind(NFNL_MSG_BATCH_BEGIN), 0, &envelope, &[]).write(
            begin,
            NLM_F_REQUEST,
            &mut out,
        );
        for message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            message.write(self.sequence, NLM_F_REQUEST | NLM_F_ACK, &mut out);
        }
        self.sequence = self.sequence.wrapping_add(1);
        Message::new(kind(NFNL_MSG_BATCH_END), 0, &envelope, &[]).write(
            self.sequence,
            NLM_F_REQUEST,
            &mut out,
        );
        self.send(&out)?;
        let mut acknowledgements = 0;
        let mut refused = None;
        while let Some(length) = self.receive()? {
            for answer in wire::messages(&self.buffer[..length]) {
                let ours = answer.sequence.wrapping_sub(begin) <= self.sequence.wrapping_sub(begin);
                if !ours || i32::from(answer.kind) != NLMSG_ERROR {
                    continue;
                }
                match acknowledged(answer) {
                    Ok(()) => acknowledgements += 1,
                    Err(error) => {
                        refused.get_or_insert(error);
                    }
                }
            }
        }
        match refused {
            Some(error) => Err(error),
            None if acknowledgements < messages.len() => Err(unanswered()),
            None => Ok(()),
        }
    }

    fn send(&mut self, out: &[u8]) -> Result<(), KernelError> {
        // What an earlier, failed exchange left behind.
        while self.receive()?.is_some() {}
        let sent = self.socket.send(out, 0)?;
        if sent == out.len() {
            Ok(())
        } else {
            Err(io::Error::other("the request was cut short").into())
        }
    }

    /// The next datagram from the kernel, in the buffer; `None` when there is none.
    fn receive(&mut self) -> Result<Option<usize>, KernelError> {
        loop {
            let mut space = &mut self.buffer[..];
            match self.socket.recv_from(&mut space, MSG_DONTWAIT | MSG_TRUNC) {
                // Port 0 is the kernel; nobody else is believed.
                Ok((_, from)) if from.port_number() != 0 => {}
                Ok((length, _)) if length > self.buffer.len() => self.buffer.resize(length, 0),
                Ok((length, _)) => return Ok(Some(length)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// What an acknowledgement, or the end of a dump, says.
fn acknowledged(answer: Received<'_>) -> Result<(), KernelError> {
    let code = answer
        .payload
        .first_chunk()
        .copied()
        .map_or(0, i32::from_ne_bytes);
    if code >= 0 {
        return Ok(());
    }
    let words = (answer.flags & ACK_ATTRIBUTES != 0).then(|| {
        // The request comes back before the attributes; its payload only when it is not capped.
        let request = answer.payload.get(4..)?;
        let length = if answer.flags & CAPPED != 0 {
            wire::HEADER
        } else {
            (wire::read_u32(request)? as usize).next_multiple_of(4)
        };
        let words = wire::find(request.get(length..)?, ACK_MESSAGE)?;
        wire::read_text(words).map(str::to_owned)
    });
    Err(KernelError {
        source: io::Error::from_raw_os_error(code.saturating_neg()),
        words: words.flatten(),
    })
}

fn unanswered() -> KernelError {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the kernel did not answer").into()
}
