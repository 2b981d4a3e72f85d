//! Metrics and probes, from their clients' side.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use warren_control::status::Status;
use warren_control::{Limits, Server, http};

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn probes_say_what_speaks_against_the_node() {
    let daemon = Daemon::start();
    assert_eq!(daemon.get("/readyz"), (200, "ok\n".to_owned()));
    assert_eq!(daemon.get("/healthz"), (200, "ok\n".to_owned()));

    daemon.status.lock().expect("no panic").unready = Some("there is no TUN device".to_owned());
    let unready = (503, "there is no TUN device\n".to_owned());
    assert_eq!(daemon.get("/readyz"), unready);
    assert_eq!(daemon.get("/healthz").0, 200, "a restart would not help");

    daemon.status.lock().expect("no panic").control_idle_s = Some(120);
    assert_eq!(daemon.get("/healthz").0, 200);
    daemon.status.lock().expect("no panic").control_idle_s = Some(121);
    let hanging = "the control loop has not come round for 121 s\n";
    assert_eq!(daemon.get("/healthz"), (503, hanging.to_owned()));
}

#[test]
fn problems_and_unready_peers_do_not_make_a_node_unready() {
    let daemon = Daemon::start();
    let mut status = daemon.status.lock().expect("no panic");
    status.problems.push("barn cannot be reached".to_owned());
    status.peers.push(warren_control::status::Peer {
        ready: Some(false),
        ..Default::default()
    });
    drop(status);
    assert_eq!(daemon.get("/readyz").0, 200);
}

#[test]
fn metrics_are_text_that_prometheus_reads() {
    let daemon = Daemon::start();
    daemon.status.lock().expect("no panic").node.name = Some("hut".to_owned());
    let answer = daemon.say("GET /metrics?x=1 HTTP/1.1\r\nHost: hut\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(
        head.contains("\r\nContent-Type: text/plain; version=0.0.4\r\n"),
        "{head}"
    );
    assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())));
    assert!(body.contains("\nwarren_ready{node=\"hut\"} 1\n"), "{body}");
}

#[test]
fn a_head_alone_is_answered_without_a_body() {
    let daemon = Daemon::start();
    let answer = daemon.say("HEAD /metrics HTTP/1.0\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
}

#[test]
fn what_is_not_understood_or_not_done_is_told_so_and_harms_nobody() {
    let daemon = Daemon::start();
    let many: String = (0..100).map(|n| format!("f{n}: x\r\n")).collect();
    let long = "x".repeat(10_000);
    for (request, status) in [
        ("GET /secrets HTTP/1.1\r\n\r\n".to_owned(), 404),
        ("GET //metrics HTTP/1.1\r\n\r\n".to_owned(), 404),
        ("POST /metrics HTTP/1.1\r\n\r\n".to_owned(), 405),
        ("DELETE /metrics HTTP/1.1\r\n\r\n".to_owned(), 405),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 400),
        ("\x16\x03\x01\x02\0\x01\0\x01\r\n\r\n".to_owned(), 400),
        ("GET /metrics\r\n\r\n".to_owned(), 400),
        ("GET /metrics HTTP/1.1\r\nno colon\r\n\r\n".to_owned(), 400),
        (format!("GET /metrics HTTP/1.1\r\n{many}\r\n"), 431),
        (format!("GET /metrics HTTP/1.1\r\nf: {long}\r\n\r\n"), 431),
        (format!("GET /{long} HTTP/1.1\r\n\r\n"), 431),
    ] {
        assert_eq!(status_of(&daemon.say(&request)), status, "{request:?}");
    }
    assert_eq!(daemon.get("/healthz").0, 200);
}

#[test]
fn a_client_that_sends_more_than_is_read_hears_the_answer_all_the_same() {
    let daemon = Daemon::start();
    let body = "x".repeat(60_000);
    let request = format!(
        "POST /metrics HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(status_of(&daemon.say(&request)), 405);
}

#[test]
fn a_probe_is_answered_while_others_hold_all_connections() {
    let daemon = Daemon::with_limits(Limits {
        connections: 4,
        message: PATIENCE,
    });
    let mut held: Vec<TcpStream> = (0..4).map(|_| daemon.connect()).collect();
    for stream in &mut held[..2] {
        write!(stream, "GET /metrics HTTP/1.1\r\nf: ").expect("the daemon reads");
    }
    for _ in 0..8 {
        assert_eq!(daemon.get("/healthz").0, 200);
    }
}

/// Whatever does not come from the address that it goes to comes from another host.
#[test]
fn probes_are_answered_while_another_host_connects_as_often_as_it_can() {
    let daemon = Daemon::with_limits(Limits {
        connections: 8,
        message: PATIENCE,
    });
    let stop = Arc::new(AtomicBool::new(false));
    let connected = Arc::new(AtomicU32::new(0));
    let floods: Vec<_> = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
        .into_iter()
        .map(|from| {
            let (stop, connected) = (stop.clone(), connected.clone());
            let address = daemon.address;
            let from = SocketAddr::new(from.parse().expect("an address"), 0);
            thread::spawn(move || {
                let mut held = VecDeque::new();
                while !stop.load(Ordering::Relaxed) {
                    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
                    socket.bind(&from.into()).expect("the loopback is wide");
                    let is_in = socket.connect(&address.into()).is_ok();
                    connected.fetch_add(is_in.into(), Ordering::Relaxed);
                    held.push_back(socket);
                    if held.len() > 64 {
                        held.pop_front();
                    }
                }
            })
        })
        .collect();
    while connected.load(Ordering::Relaxed) < 1000 {
        assert_eq!(daemon.get("/healthz").0, 200);
    }
    stop.store(true, Ordering::Relaxed);
    for flood in floods {
        flood.join().expect("it does not panic");
    }
}

#[test]
fn a_request_that_does_not_end_holds_a_connection_only_for_so_long() {
    let daemon = Daemon::with_limits(Limits {
        connections: 4,
        message: Duration::from_millis(200),
    });
    let mut silent = daemon.connect();
    let mut slow = daemon.connect();
    write!(slow, "GET /metrics HTTP/1.1\r\n").expect("the daemon reads");
    assert_eq!(rest(&mut silent), "");
    assert_eq!(rest(&mut slow), "");
}

#[test]
fn an_address_that_is_taken_is_a_sentence() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = taken.local_addr().expect("it has one");
    let error = http::serve(address, Arc::new(Status::default)).expect_err("it is taken");
    let sentence = error.to_string();
    assert!(
        sentence.starts_with(&format!(
            "metrics and probes cannot be served at {address}: "
        )) && sentence.contains("--http"),
        "{sentence}"
    );
}

struct Daemon {
    status: Arc<Mutex<Status>>,
    address: SocketAddr,
    _server: Server,
}

impl Daemon {
    fn start() -> Self {
        Self::with_limits(Limits::default())
    }

    fn with_limits(limits: Limits) -> Self {
        let status = Arc::new(Mutex::new(Status::default()));
        let told = Arc::clone(&status);
        let source = move || told.lock().expect("no panic").clone();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("it has one");
        let server = http::serve_at(listener, Arc::new(source), limits).expect("a server");
        Self {
            status,
            address,
            _server: server,
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the daemon listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        stream
    }

    fn say(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream
            .write_all(request.as_bytes())
            .expect("the daemon reads");
        rest(&mut stream)
    }

    fn get(&self, path: &str) -> (u16, String) {
        let answer = self.say(&format!("GET {path} HTTP/1.1\r\nHost: hut\r\n\r\n"));
        let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
        (status_of(&answer), body.to_owned())
    }
}

fn status_of(answer: &str) -> u16 {
    let status = answer.split(' ').nth(1).and_then(|it| it.parse().ok());
    status.unwrap_or_else(|| panic!("no answer: {answer:?}"))
}

/// Everything until the daemon ends the connection.
fn rest(stream: &mut TcpStream) -> String {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the connection does not end: {error}"),
    }
    String::from_utf8(rest).expect("text")
}
