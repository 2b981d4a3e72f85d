//! The socket of `wg(8)`: the text protocol of [`warren_config::uapi`] in front of a [`Device`].

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use warren_config::uapi::{Errno, LINE_MAX, Parser, Refusal, Request, write_errno, write_status};
use zeroize::Zeroizing;

use crate::server::{Connection, Handler};
use crate::{Device, Limits, Listener, Server};

/// Where `wg(8)` looks for the device that serves `interface`.
pub fn path(interface: &str) -> PathBuf {
    PathBuf::from(format!("/var/run/wireguard/{interface}.sock"))
}

/// Serves `device` to the clients of `listener`, until the server is stopped or the socket deleted.
pub fn serve(listener: Listener, device: Arc<dyn Device>, limits: Limits) -> io::Result<Server> {
    Server::start(listener, Arc::new(Uapi { device }), limits)
}

/// Room for what is received. As [`SEND_BUFFER`] it holds keys in the clear and never grows, since
/// growing would leave copies.
const RECEIVE_BUFFER: usize = 16 * LINE_MAX;
/// Room for what is sent: each sending wakes the reader, and thousands of peers take megabytes.
const SEND_BUFFER: usize = 64 << 10;

struct Uapi {
    device: Arc<dyn Device>,
}

impl Handler for Uapi {
    fn converse(&self, connection: &mut Connection) -> io::Result<()> {
        let mut parser = Parser::new(scope_id);
        let mut buffer = Zeroizing::new(vec![0; RECEIVE_BUFFER]);
        loop {
            let received = connection.receive(&mut buffer, parser.is_within_message())?;
            if received == 0 {
                return Ok(());
            }
            let mut input = &buffer[..received];
            loop {
                match parser.read(&mut input) {
                    Ok(None) => break,
                    Ok(Some(request)) => self.answer(request, connection)?,
                    Err(refusal) => {
                        connection.begin_answer();
                        return Answer::new(connection).refuse(refusal);
                    }
                }
            }
        }
    }
}

impl Uapi {
    fn answer(&self, request: Request, connection: &mut Connection) -> io::Result<()> {
        let result = match request {
            Request::Get => {
                let status = self.device.status();
                connection.begin_answer();
                return Answer::new(connection).with(|out| write_status(out, &status));
            }
            Request::Set(change) => self.device.apply(&change).map_err(|refused| {
                tracing::error!("a change was refused: {refused}");
                refused.errno
            }),
            Request::Refused(refusal) => {
                connection.begin_answer();
                return Answer::new(connection).refuse(refusal);
            }
        };
        connection.begin_answer();
        Answer::new(connection).with(|out| write_errno(out, result))
    }
}

/// An answer on its way, as text.
struct Answer<'a> {
    connection: &'a mut Connection,
    buffer: Zeroizing<Vec<u8>>,
    /// What went wrong with the connection; [`fmt::Error`] cannot say.
    error: Option<io::Error>,
}

impl<'a> Answer<'a> {
    fn new(connection: &'a mut Connection) -> Self {
        Self {
            connection,
            buffer: Zeroizing::new(Vec::with_capacity(SEND_BUFFER)),
            error: None,
        }
    }

    fn refuse(self, refusal: Refusal) -> io::Result<()> {
        tracing::error!("a message was refused: {refusal}");
        self.with(|out| write_errno(out, Err::<(), Errno>(refusal.errno)))
    }

    fn with(mut self, write: impl FnOnce(&mut Self) -> fmt::Result) -> io::Result<()> {
        if write(&mut self).is_err() {
            return Err(self.error.unwrap_or_else(|| io::ErrorKind::Other.into()));
        }
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        let sent = self.connection.send(&self.buffer);
        // What the next text does not cover is zeroized with the buffer, at the end of the answer: its
        // own time, `Limits::message`, bounds how long a reader that takes nothing keeps keys here.
        self.buffer.clear();
        sent
    }
}

impl fmt::Write for Answer<'_> {
    fn write_str(&mut self, mut text: &str) -> fmt::Result {
        while !text.is_empty() {
            let room = SEND_BUFFER - self.buffer.len();
            // Everything here is ASCII; a boundary is looked for all the same.
            let (now, later) = text.split_at(text.floor_char_boundary(room));
            self.buffer.extend_from_slice(now.as_bytes());
            text = later;
            if !text.is_empty()
                && let Err(error) = self.flush()
            {
                self.error = Some(error);
                return Err(fmt::Error);
            }
        }
        Ok(())
    }
}

/// The index of an interface, which is the scope of its link-local addresses.
fn scope_id(name: &str) -> Option<u32> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};

    let flags = SocketFlags::CLOEXEC;
    let any = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None).ok()?;
    netdevice::name_to_index(any, name).ok()
}
