//! Conversations on the status socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use crate::scratch::Scratch;
use warren_control::status::{self, AskError, Peer, Status};
use warren_control::{Limits, Listener, Server};

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn the_status_arrives_as_it_is() {
    let (scratch, _server) = daemon();
    let status = status::ask(&scratch.socket(), PATIENCE).expect("an answer");
    assert_eq!(status, told());
}

#[test]
fn no_daemon_is_a_sentence() {
    let scratch = Scratch::new();
    let error = status::ask(&scratch.socket(), PATIENCE).expect_err("nobody listens");
    assert!(matches!(error, AskError::NoDaemon { .. }));
    assert!(
        error.to_string().starts_with("no daemon answers at "),
        "{error}"
    );
}

#[test]
fn requests_that_are_not_understood_are_told_so() {
    let (scratch, _server) = daemon();
    for (request, sentence) in [
        (r#"{"version":2,"ask":"status"}"#, "speaks version 1, not 2"),
        (r#"{"version":1,"ask":"weather"}"#, "not understood"),
        ("status please", "not understood"),
        (&"x".repeat(5000), "too long"),
    ] {
        let mut stream = UnixStream::connect(scratch.socket()).expect("the daemon listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        writeln!(stream, "{request}").expect("the daemon reads");
        let mut answer = String::new();
        let mut reader = BufReader::new(stream);
        reader.read_line(&mut answer).expect("the daemon answers");
        assert!(answer.starts_with(r#"{"version":1,"error":""#), "{answer}");
        assert!(answer.contains(sentence), "{answer}");
    }
}

fn daemon() -> (Scratch, Server) {
    let scratch = Scratch::new();
    let listener = Listener::claim(&scratch.socket()).expect("a free path");
    let server = status::serve(listener, Arc::new(told), Limits::default());
    (scratch, server.expect("a server"))
}

fn told() -> Status {
    let mut status = Status {
        peers: vec![Peer {
            name: Some("laptop".to_owned()),
            endpoint: Some("[2001:db8::1]:51820".parse().expect("an address")),
            allowed_ips: ["10.0.0.0/24".parse().expect("a prefix")].into(),
            ..Peer::default()
        }],
        problems: vec!["laptop and phone cannot reach each other".to_owned()],
        ..Status::default()
    };
    status.features.insert("tcp_offload".to_owned(), true);
    status.drops.insert("forged".to_owned(), 7);
    status
}
