//! The demo from its start to its several ends.

use std::fs;
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::Signal;
use serde_json::Value;
use warren_tests_demo::{AT_ONCE, Copy, Demo, patiently};

/// How it exits when it is interrupted.
const INTERRUPTED: i32 = 130;

/// What the demo promises to show, in order.
const SHOWN: &[&str] = &[
    "hut sends 5 packets to 10.77.0.2: a wiretap on the switch reads 5, in the clear",
    "three daemons run it",
    "the mesh's prefixes are closed",
    "hut ⇄ barn: ",
    "barn ⇄ mill: ",
    "mill ⇄ hut: ",
    "through the tunnel: ",
    "the same path without a tunnel: ",
    "encrypted packets",
    "nothing but ciphertext",
    "it reaches all three, and hut reaches it",
    "all were answered",
    "in 7 ways to send into the mesh: nothing left in the clear",
    "that pretend to be barn's: none came in",
    "started again, hut has barn's answer",
    "pings all the while, and lost none",
    "4 daemons, 5 network namespaces and all files are gone",
];

#[test]
fn it_shows_all_that_it_promises_and_leaves_nothing() {
    let _alone = alone();
    let copy = Copy::new();
    let (status, said) = copy.demo(&[]).end();
    assert!(status.success(), "{said}");
    shows_everything(&said);
    assert!(!said.contains('\x1b'), "colour without a terminal: {said}");
    nothing_is_left(&copy);
}

#[test]
fn without_root_it_plays_as_a_user_of_its_own() {
    let _alone = alone();
    let copy = Copy::new();
    let (status, said) = as_nobody(&copy, "666").end();
    // Where a host grants no user namespace that is what it says.
    if said.contains("lets you make no user namespace") {
        assert_eq!(status.code(), Some(1), "{said}");
    } else {
        assert!(status.success(), "{said}");
        assert!(said.contains("as a user of its own"), "{said}");
        shows_everything(&said);
    }
    nothing_is_left(&copy);
}

#[test]
fn where_a_user_may_not_open_a_tun_it_says_what_to_do() {
    let copy = Copy::new();
    let (status, said) = as_nobody(&copy, "600").end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(
        said.contains("you may not open /dev/net/tun; run the demo as root"),
        "{said}"
    );
    nothing_is_left(&copy);
}

#[test]
fn interrupted_anywhere_it_cleans_up() {
    let _alone = alone();
    let copy = Copy::new();
    for (words, signal) in [
        ("One mesh file", Signal::INT),
        ("Move bulk data", Signal::TERM),
        ("Kill hut's daemon", Signal::INT),
    ] {
        let mut demo = copy.demo(&[]);
        demo.wait_for(words);
        demo.signal(signal);
        let (status, said) = demo.end();
        assert_eq!(status.code(), Some(INTERRUPTED), "{said}");
        assert!(said.contains("Interrupted; clean up"), "{said}");
        assert!(said.contains("and all files are gone"), "{said}");
        nothing_is_left(&copy);
    }
}

#[test]
fn killed_it_takes_its_daemons_along() {
    let _alone = alone();
    let copy = Copy::new();
    let mut demo = copy.demo(&[]);
    demo.wait_for("Move bulk data");
    assert!(copy.processes().len() > 3, "{:?}", copy.processes());
    demo.signal(Signal::KILL);
    demo.end();
    nothing_is_left(&copy);
}

#[test]
fn kept_it_stands_and_its_nodes_can_be_entered_asked_and_verified() {
    let _alone = alone();
    let copy = Copy::new();
    let mut demo = copy.demo(&["--keep"]);
    demo.wait_for("The mesh file is /run/warren-demo/mesh.toml in there");

    let status = inside(&demo, " status", &["--json"]);
    assert!(status.status.success(), "{status:?}");
    let statuses: Value = serde_json::from_slice(&status.stdout).expect("it is JSON");
    assert_eq!(statuses[0]["node"]["name"], "hut");
    assert_eq!(statuses[0]["peers"].as_array().map(Vec::len), Some(3));
    // What the demo tried to leak, and what it forged.
    for counter in ["fence_out_mesh", "fence_out_source", "fence_in_mesh"] {
        let dropped = &statuses[0]["drops"][counter];
        assert!(dropped.as_u64() > Some(0), "{counter}: {dropped}");
    }

    let table = inside(&demo, " status", &[]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains("192.0.2.2:51820"), "{table}");

    let verified = inside(&demo, " verify", &["--json"]);
    let verdict: Value = serde_json::from_slice(&verified.stdout).expect("it is JSON");
    assert!(verified.status.success(), "{verdict:#}");
    assert_eq!(verdict["passed"], true, "{verdict:#}");
    assert_eq!(verdict["leaks"], Value::Object(Default::default()));
    let barn = &verdict["peers"][0];
    assert_eq!(barn["name"], "barn", "{verdict:#}");
    for (field, expected) in [("answered", 4), ("records", 4), ("elsewhere", 0)] {
        assert_eq!(barn[field], expected, "{field}: {verdict:#}");
    }

    demo.signal(Signal::INT);
    let (status, said) = demo.end();
    assert!(status.success(), "{said}");
    nothing_is_left(&copy);
}

#[test]
fn without_a_tun_it_says_how_to_get_one() {
    let copy = Copy::new();
    let script = "mount -t tmpfs none /dev/net && exec \"$0\" demo";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", script])
        .arg(copy.warren());
    let (status, said) = copy.start(command).end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert_eq!(
        said,
        "error: there is no /dev/net/tun; load it with `modprobe tun`, and give a container the \
         device with `--device /dev/net/tun`\n"
    );
    nothing_is_left(&copy);
}

#[test]
fn without_a_daemon_beside_it_it_says_how_to_build_one() {
    let copy = Copy::new();
    fs::remove_file(copy.directory().join("warrend")).expect("it was there");
    let (status, said) = copy.demo(&[]).end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(
        said.contains("build both with `cargo build --release -p warrend -p warren`"),
        "{said}"
    );
}

/// The demo as nobody in particular, where `/dev/net/tun` has these rights, which are not the same on
/// every host.
fn as_nobody<'a>(copy: &'a Copy, rights: &str) -> Demo<'a> {
    let script = format!(
        "mount -t tmpfs none /dev/net && mknod -m {rights} /dev/net/tun c 10 200 && \
         exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$0\" demo"
    );
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", &script])
        .arg(copy.warren());
    copy.start(command)
}

/// The demo measures and loses no packet; two at once on two cores would.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn shows_everything(said: &str) {
    let mut rest = said;
    for words in SHOWN {
        let Some((_, after)) = rest.split_once(words) else {
            panic!("no {words:?}, or not in its place, in: {said}");
        };
        rest = after;
    }
    assert!(!said.contains('✗'), "{said}");
}

fn nothing_is_left(copy: &Copy) {
    copy.wait_until_gone();
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("there is /proc");
    assert!(!mounts.contains("warren-demo"), "{mounts}");
    assert!(!fs::exists("/run/warren-demo").expect("/run can be read"));
    let strays: Vec<_> = (fs::read_dir(copy.directory())
        .expect("it is ours")
        .flatten())
    .map(|entry| entry.file_name())
    .filter(|name| name != "warren" && name != "warrend")
    .collect();
    assert!(strays.is_empty(), "{strays:?}");
}

/// Runs what the demo says to type, the line that ends with `command`, with more arguments.
fn inside(demo: &Demo<'_>, command: &str, more: &[&str]) -> Output {
    let line = demo.said().lines().find(|line| line.ends_with(command));
    let line = line.expect("the demo says how to enter hut").trim();
    let mut words = line.split_whitespace().chain(more.iter().copied());
    let mut entered = Command::new(words.next().expect("nsenter"));
    entered.args(words);
    let mut output = None;
    patiently("hut can be entered", AT_ONCE, || {
        output = entered.output().ok();
        output.is_some()
    });
    output.expect("just waited for")
}
