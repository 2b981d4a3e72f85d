//! Metrics and probes over HTTP: what a Prometheus server and a kubelet ask for.
//!
//! - `GET /metrics`: the [`metrics`] of this moment.
//! - `GET /healthz`: 200 while the control loop comes round. What a restart would cure, and nothing else.
//! - `GET /readyz`: 200 while the node can carry traffic, else 503 and why not. Neither a peer that does
//!   not answer nor an API server that is away makes a node unready: all nodes would be at once.
//!
//! A connection carries one request. No body is read, nothing can be set, nothing told is secret. The
//! bounds are those of [`Server`]: whoever speaks too slowly makes room for the next, and other hosts have
//! half of the places, so that the kubelet's probes are answered whatever comes from there.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use crate::metrics;
use crate::server::{Connection, Door, Handler, Visitor, Watch};
use crate::status::Source;
use crate::{Limits, Server};

/// Bound of a request's head in bytes.
const HEAD_MAX: usize = 8192;
/// Bound of its header fields. Prometheus sends about ten.
const FIELDS_MAX: usize = 64;
/// How much of what a client sends beyond its head is read, so that it still hears the answer.
const REST_MAX: usize = 64 << 10;
/// From when on a control loop that does not come round is taken for one that hangs. It comes round
/// every 15 s at least, and nothing that it does takes a minute.
const CONTROL_IDLE_MAX_S: u64 = 120;

/// What clients may take: a kubelet gives up after a second, a Prometheus server after ten.
const LIMITS: Limits = Limits {
    connections: 16,
    message: Duration::from_secs(10),
};

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened at.
    #[error("metrics and probes cannot be served at {address}: {source}{}", hint(.source))]
    Listen {
        /// Which one.
        address: SocketAddr,
        /// What the host said.
        r#source: io::Error,
    },
    /// There is no thread for it.
    #[error("metrics and probes cannot be served: {0}")]
    Thread(io::Error),
}

/// Serves what `source` knows at `address`, until the server is stopped.
pub fn serve(address: SocketAddr, source: Arc<dyn Source>) -> Result<Server, ServeError> {
    let listener = TcpListener::bind(address);
    let listener = listener.map_err(|source| ServeError::Listen { address, source })?;
    serve_at(listener, source, LIMITS).map_err(ServeError::Thread)
}

/// Serves what `source` knows to the clients of a socket that listens already.
pub fn serve_at(
    listener: TcpListener,
    source: Arc<dyn Source>,
    limits: Limits,
) -> io::Result<Server> {
    // A client that has gone before it was accepted must not make the thread wait.
    listener.set_nonblocking(true)?;
    let handler = Arc::new(Teller { source });
    Server::start_at(Port(listener), Watch::Needless, handler, limits)
}

struct Port(TcpListener);

impl Door for Port {
    fn accept(&self) -> io::Result<Visitor> {
        let (stream, from) = self.0.accept()?;
        stream.set_nonblocking(false)?;
        // To an address of its own a host speaks from that address.
        let is_own = stream.local_addr()?.ip() == from.ip();
        Ok(Visitor {
            stream: OwnedFd::from(stream).into(),
            from: (!is_own).then_some(from.ip()),
        })
    }

    fn is_reachable(&self) -> bool {
        true
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

struct Teller {
    source: Arc<dyn Source>,
}

impl Handler for Teller {
    fn converse(&self, connection: &mut Connection) -> io::Result<()> {
        let mut head = [0; HEAD_MAX];
        let mut len = 0;
        let answer = loop {
            // Always within a message: from being accepted to the end of its head a client has the time
            // of one, and it may be sent away at any moment for another.
            match connection.receive(&mut head[len..], true)? {
                0 => return Ok(()),
                received => len += received,
            }
            match Asked::read(&head[..len]) {
                Asked::More if len == HEAD_MAX => {
                    break Answer::in_words(431, "the request is too long");
                }
                Asked::More => {}
                Asked::For { path, with_body } => {
                    let answer = self.answer(path);
                    break Answer {
                        with_body,
                        ..answer
                    };
                }
                Asked::Wrong(answer) => break answer,
            }
        };
        connection.begin_answer();
        connection.send(&answer.to_bytes())?;
        connection.finish(REST_MAX)
    }
}

impl Teller {
    fn answer(&self, path: &str) -> Answer {
        match path {
            "/metrics" => Answer {
                status: 200,
                kind: metrics::CONTENT_TYPE,
                body: metrics::text(&self.source.status()),
                with_body: true,
            },
            "/healthz" => Answer::of_probe(hang(self.source.control_idle_s())),
            "/readyz" => Answer::of_probe(self.source.unready()),
            _ => Answer::in_words(404, "there are /metrics, /healthz and /readyz"),
        }
    }
}

/// That the control loop hangs, if it does.
fn hang(control_idle_s: Option<u64>) -> Option<String> {
    let idle = control_idle_s?;
    (idle > CONTROL_IDLE_MAX_S).then(|| format!("the control loop has not come round for {idle} s"))
}

/// What a client wants.
enum Asked<'a> {
    /// It has not said all yet.
    More,
    /// The answer at a path.
    For { path: &'a str, with_body: bool },
    /// What is not done here.
    Wrong(Answer),
}

impl<'a> Asked<'a> {
    fn read(head: &'a [u8]) -> Self {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut request = httparse::Request::new(&mut fields);
        match request.parse(head) {
            Ok(httparse::Status::Partial) => return Self::More,
            Ok(httparse::Status::Complete(_)) => {}
            Err(httparse::Error::TooManyHeaders) => {
                return Self::Wrong(Answer::in_words(431, "the request has too many fields"));
            }
            Err(error) => {
                let sentence = format!("the request is not understood: {error}");
                return Self::Wrong(Answer::in_words(400, &sentence));
            }
        }
        let with_body = match request.method {
            Some("GET") => true,
            Some("HEAD") => false,
            _ => return Self::Wrong(Answer::in_words(405, "only GET and HEAD are done here")),
        };
        let target = request.path.unwrap_or_default();
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        Self::For { path, with_body }
    }
}

struct Answer {
    status: u16,
    kind: &'static str,
    body: String,
    with_body: bool,
}

impl Answer {
    fn in_words(status: u16, sentence: &str) -> Self {
        Self {
            status,
            kind: "text/plain; charset=utf-8",
            body: format!("{sentence}\n"),
            with_body: true,
        }
    }

    /// The answer to a probe, given what speaks against it.
    fn of_probe(why_not: Option<String>) -> Self {
        match why_not {
            None => Self::in_words(200, "ok"),
            Some(why) => Self::in_words(503, &why),
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            431 => "Request Header Fields Too Large",
            _ => "Service Unavailable",
        };
        let allow = match self.status {
            405 => "Allow: GET, HEAD\r\n",
            _ => "",
        };
        let mut bytes = format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nContent-Length: {}\r\n{allow}\
             Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n",
            self.status,
            self.kind,
            self.body.len(),
        )
        .into_bytes();
        if self.with_body {
            bytes.extend_from_slice(self.body.as_bytes());
        }
        bytes
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; end the program that listens there, or choose another with --http"
        }
        io::ErrorKind::AddrNotAvailable => "; this host does not have that address",
        _ => "",
    }
}
