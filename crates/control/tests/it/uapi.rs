//! Conversations on the socket of `wg(8)`, with a device that only remembers.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use crate::scratch::Scratch;
use warren_config::{DeviceChange, PeerChange, PublicKey};
use warren_control::{Device, End, Limits, Listener, Memory, Server, uapi};

const KEY: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";

#[test]
fn what_is_set_is_told() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    let set = format!("set=1\nlisten_port=51820\npublic_key={KEY}\nallowed_ip=10.0.0.0/24\n\n");
    assert_eq!(client.ask(&set), "errno=0\n");
    let told = client.ask("get=1\n\n");
    assert!(
        told.starts_with("listen_port=51820\npublic_key=b85996"),
        "{told}"
    );
    assert!(
        told.ends_with("allowed_ip=10.0.0.0/24\nerrno=0\n"),
        "{told}"
    );
}

#[test]
fn several_requests_in_one_breath_are_answered_in_order() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    client.send("set=1\nfwmark=1\n\nget=1\n\nset=1\nfwmark=x\n\nset=1\nfwmark=2\n\nget=1\n\n");
    assert_eq!(client.answer(), "errno=0\n");
    assert_eq!(client.answer(), "fwmark=1\nerrno=0\n");
    assert_eq!(client.answer(), "errno=-22\n");
    assert_eq!(client.answer(), "errno=0\n");
    assert_eq!(client.answer(), "fwmark=2\nerrno=0\n");
}

#[test]
fn a_set_that_is_cut_off_carries_nothing_out() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    client.send("set=1\nfwmark=1\nlisten_port=51820\n");
    client.finish();
    assert_eq!(client.rest(), "");
    assert_eq!(daemon.device.config().fwmark, 0);
}

#[test]
fn a_change_that_is_refused_leaves_everything_as_it_was() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    let set = format!("set=1\nfwmark=1\nlisten_port=53\npublic_key={KEY}\n\n");
    assert_eq!(client.ask(&set), "errno=-98\n");
    assert_eq!(client.ask("get=1\n\n"), "errno=0\n");
}

#[test]
fn what_is_not_the_protocol_is_answered_and_sent_away() {
    let daemon = Daemon::start();
    for (text, errno) in [
        ("hello\n".to_owned(), "errno=-71\n\n"),
        (format!("set=1\n{}", "x".repeat(2000)), "errno=-90\n\n"),
    ] {
        let mut client = daemon.connect();
        client.send(&text);
        assert_eq!(client.rest(), errno);
    }
}

#[test]
fn many_clients_converse_at_once() {
    let daemon = Daemon::start();
    let mut clients: Vec<_> = (0..8).map(|_| daemon.connect()).collect();
    for client in &mut clients {
        client.send("get=1\n");
    }
    for client in &mut clients {
        assert_eq!(client.ask("\n"), "errno=0\n");
    }
}

#[test]
fn a_client_in_need_of_a_place_gets_that_of_a_silent_one() {
    let daemon = Daemon::with_limits(Limits {
        connections: 2,
        ..Limits::default()
    });
    let mut silent = [daemon.connect(), daemon.connect()];
    for client in &mut silent {
        assert_eq!(client.ask("get=1\n\n"), "errno=0\n");
    }
    let mut third = daemon.connect();
    assert_eq!(third.ask("get=1\n\n"), "errno=0\n");
}

#[test]
fn clients_that_do_not_end_their_messages_hold_a_place_only_for_so_long() {
    let daemon = Daemon::with_limits(Limits {
        connections: 2,
        message: Duration::from_millis(200),
    });
    let mut stuck = [daemon.connect(), daemon.connect()];
    for client in &mut stuck {
        client.send("set=1\nfwmark=1\n");
    }
    let mut patient = daemon.connect();
    assert_eq!(patient.ask("get=1\n\n"), "errno=0\n");
    for client in &mut stuck {
        assert_eq!(client.rest(), "");
    }
}

#[test]
fn a_client_that_does_not_read_its_answer_is_sent_away() {
    let daemon = Daemon::with_limits(Limits {
        connections: 1,
        message: Duration::from_millis(200),
    });
    let peers = (0..20_000u32).map(|n| {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        PeerChange::new(PublicKey::from_bytes(bytes))
    });
    let many = DeviceChange {
        peers: peers.collect(),
        ..DeviceChange::default()
    };
    daemon.device.apply(&many).expect("the memory takes all");

    let mut deaf = daemon.connect();
    deaf.send("get=1\n\n");
    let mut other = daemon.connect();
    other.send("set=1\nreplace_peers=true\n\n");
    assert_eq!(other.answer(), "errno=0\n");
    assert!(!deaf.rest().ends_with("errno=0\n\n"), "it was cut off");
}

#[test]
fn a_deleted_socket_ends_the_server() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    assert_eq!(client.ask("get=1\n\n"), "errno=0\n");
    fs::remove_file(daemon.scratch.socket()).expect("the socket");
    assert!(matches!(daemon.server.wait(), End::SocketRemoved));
    assert_eq!(client.rest(), "", "conversations end as well");
}

#[test]
fn a_socket_moved_away_or_replaced_ends_the_server() {
    for replaced in [false, true] {
        let daemon = Daemon::start();
        let path = daemon.scratch.socket();
        let elsewhere = path.with_file_name("elsewhere");
        if replaced {
            fs::write(&elsewhere, "").expect("a writable directory");
            fs::rename(&elsewhere, &path).expect("the socket");
        } else {
            fs::rename(&path, &elsewhere).expect("the socket");
        }
        assert!(matches!(daemon.server.wait(), End::SocketRemoved));
        assert_eq!(path.exists(), replaced, "what is not ours stays");
    }
}

#[test]
fn stopping_ends_conversations_and_removes_the_socket() {
    let daemon = Daemon::start();
    let mut idle = daemon.connect();
    assert_eq!(idle.ask("get=1\n\n"), "errno=0\n");
    let mut busy = daemon.connect();
    busy.send("set=1\nfwmark=1\n");
    daemon.server.stopper().stop();
    assert!(matches!(daemon.server.wait(), End::Stopped));
    assert!(!daemon.scratch.socket().exists());
    assert_eq!(idle.rest(), "");
    assert_eq!(busy.rest(), "");
    assert_eq!(daemon.device.config().fwmark, 0);
}

#[test]
fn a_link_local_endpoint_is_read_with_the_name_of_its_interface() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    let set = format!("set=1\npublic_key={KEY}\nendpoint=[fe80::1%lo]:51820\n\n");
    assert_eq!(client.ask(&set), "errno=0\n");
    let told = client.ask("get=1\n\n");
    assert!(told.contains("endpoint=[fe80::1%1]:51820\n"), "{told}");
}

struct Daemon {
    device: Arc<Memory>,
    server: Server,
    scratch: Scratch,
}

impl Daemon {
    /// A daemon whose port 53 is taken.
    fn start() -> Self {
        Self::with_limits(Limits::default())
    }

    fn with_limits(limits: Limits) -> Self {
        let scratch = Scratch::new();
        let device = Arc::new(Memory::with_taken_ports([53]));
        let listener = Listener::claim(&scratch.socket()).expect("a free path");
        let server = uapi::serve(listener, device.clone(), limits).expect("a server");
        Self {
            device,
            server,
            scratch,
        }
    }

    fn connect(&self) -> Client {
        let stream = UnixStream::connect(self.scratch.socket()).expect("the daemon listens");
        let patience = Some(Duration::from_secs(20));
        stream.set_read_timeout(patience).expect("a time-out");
        Client(BufReader::new(stream))
    }
}

struct Client(BufReader<UnixStream>);

impl Client {
    fn ask(&mut self, text: &str) -> String {
        self.send(text);
        self.answer()
    }

    fn send(&mut self, text: &str) {
        let stream = self.0.get_mut();
        stream.write_all(text.as_bytes()).expect("the daemon reads");
    }

    /// The next answer, without its blank line.
    fn answer(&mut self) -> String {
        let mut answer = String::new();
        loop {
            let before = answer.len();
            self.0.read_line(&mut answer).expect("the daemon answers");
            match &answer[before..] {
                "" => panic!("cut off after {answer:?}"),
                "\n" => break,
                _ => {}
            }
        }
        answer.pop();
        answer
    }

    fn finish(&self) {
        let stream = self.0.get_ref();
        stream.shutdown(Shutdown::Write).expect("a connection");
    }

    /// Everything until the daemon ends the conversation.
    fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => panic!("the conversation does not end: {error}"),
        }
        String::from_utf8(rest).expect("text")
    }
}
