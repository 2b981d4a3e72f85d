//! Who gets a path, and what happens to the file.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Barrier;
use std::thread;

use crate::scratch::Scratch;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use warren_control::{ClaimError, Listener};

#[test]
fn the_socket_is_its_owners_alone_in_a_directory_that_all_may_enter() {
    let scratch = Scratch::new();
    let listener = Listener::claim(&scratch.socket()).expect("a free path");
    assert_eq!(listener.path(), Some(scratch.socket().as_path()));
    assert_eq!(mode(&scratch.socket()), 0o600);
    assert_eq!(mode(&scratch.path().join("wireguard")), 0o755);
}

#[test]
fn a_socket_on_which_somebody_listens_is_refused_with_a_sentence() {
    let scratch = Scratch::new();
    let _first = Listener::claim(&scratch.socket()).expect("a free path");
    let error = Listener::claim(&scratch.socket()).expect_err("the path is taken");
    assert!(matches!(error, ClaimError::InUse(_)));
    let sentence = error.to_string();
    assert!(
        sentence.contains("wg0.sock is in use: another daemon"),
        "{sentence}"
    );
    assert!(scratch.socket().exists(), "it is the other's");
}

#[test]
fn a_listener_that_does_not_answer_is_still_a_listener() {
    let scratch = Scratch::new();
    let _first = Listener::claim(&scratch.socket()).expect("a free path");
    // Nobody accepts, so at some point the backlog is full and connecting would wait for ever.
    let address = SocketAddrUnix::new(scratch.socket()).expect("a short path");
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let mut waiting = Vec::new();
    loop {
        let client = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let client = client.expect("a socket");
        match connect(&client, &address) {
            Ok(()) => waiting.push(client),
            Err(errno) => break assert_eq!(errno, Errno::AGAIN),
        }
    }
    let error = Listener::claim(&scratch.socket()).expect_err("the path is taken");
    assert!(matches!(error, ClaimError::InUse(_)), "{error}");
}

#[test]
fn a_socket_that_a_killed_daemon_left_behind_is_replaced() {
    let scratch = Scratch::new();
    let path = scratch.path().join("wg0.sock");
    drop(UnixListener::bind(&path).expect("a free path"));
    assert!(path.exists(), "std leaves the file behind");
    let _listener = Listener::claim(&path).expect("a stale socket");
    UnixStream::connect(&path).expect("the new listener");
    assert_eq!(mode(&path), 0o600);
}

#[test]
fn what_is_no_socket_is_refused_and_left_alone() {
    let scratch = Scratch::new();
    let path = scratch.path().join("wg0.sock");
    fs::write(&path, "precious").expect("a writable directory");
    let error = Listener::claim(&path).expect_err("a file is in the way");
    assert!(matches!(error, ClaimError::InTheWay(_)), "{error}");
    assert_eq!(fs::read_to_string(&path).expect("the file"), "precious");
}

#[test]
fn of_many_who_claim_a_path_at_once_exactly_one_gets_it() {
    let scratch = Scratch::new();
    let path = scratch.path().join("wg0.sock");
    // A stale socket makes it harder: each of them may take it for the others' remains.
    drop(UnixListener::bind(&path).expect("a free path"));
    let start = Barrier::new(8);
    let claims: Vec<_> = thread::scope(|scope| {
        let claim = || {
            start.wait();
            Listener::claim(&path)
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(claim)).collect();
        let claims = threads.into_iter().map(|it| it.join().expect("no panic"));
        claims.collect()
    });
    let claimed = claims.iter().filter(|claim| claim.is_ok()).count();
    assert_eq!(claimed, 1, "{claims:?}");
}

#[test]
fn the_file_goes_with_its_listener() {
    let scratch = Scratch::new();
    drop(Listener::claim(&scratch.socket()).expect("a free path"));
    assert!(!scratch.socket().exists());
}

#[test]
fn a_file_that_another_daemon_put_there_since_is_not_removed() {
    let scratch = Scratch::new();
    let first = Listener::claim(&scratch.socket()).expect("a free path");
    fs::remove_file(scratch.socket()).expect("the file");
    let _second = Listener::claim(&scratch.socket()).expect("the path is free again");
    drop(first);
    UnixStream::connect(scratch.socket()).expect("the second listener");
}

#[test]
fn a_socket_that_was_passed_to_us_is_treated_as_if_it_were_claimed() {
    let scratch = Scratch::new();
    let path = scratch.path().join("passed.sock");
    let passed = UnixListener::bind(&path).expect("a free path");
    let listener = Listener::from_fd(OwnedFd::from(passed)).expect("a listening socket");
    assert_eq!(listener.path(), Some(path.as_path()));
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let scratch = Scratch::new();
    fs::write(scratch.path().join("wireguard"), "").expect("a writable directory");
    let error = Listener::claim(&scratch.socket()).expect_err("no directory");
    let sentence = error.to_string();
    assert!(sentence.starts_with("cannot listen on "), "{sentence}");
    assert!(sentence.contains("wireguard/wg0.sock"), "{sentence}");
}

fn mode(path: &Path) -> u32 {
    let metadata = fs::symlink_metadata(path).expect("it exists");
    metadata.permissions().mode() & 0o7777
}
