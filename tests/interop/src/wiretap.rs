//! What passes the interfaces of a host, by the headers alone.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use crate::Host;

/// Records, until it is stopped, what passes any interface of a host.
#[derive(Debug)]
pub struct Wiretap {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

/// A packet that passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Of IP.
    pub version: u8,
    /// The number of what IP carries: 17 is UDP, 1 and 58 are ICMP.
    pub protocol: u8,
    /// Type of service of IPv4, traffic class of IPv6.
    pub tos: u8,
    /// The first byte of the payload of UDP, the type of ICMP.
    pub kind: u8,
}

impl Wiretap {
    /// Begins to record. `program` is where `wiretap` of this package was built.
    pub fn start(host: &Host, program: &str) -> Self {
        let mut child = host
            .command(Path::new(program))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("nsenter is installed");
        let stdin = child.stdin.take().expect("a pipe");
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut ready = String::new();
        stdout.read_line(&mut ready).expect("a pipe");
        assert_eq!(ready, "ready\n");
        Self {
            child,
            stdin,
            stdout,
        }
    }

    /// Ends, after all that has passed so far was seen.
    pub fn stop(mut self) -> Vec<Seen> {
        drop(self.stdin);
        let lines = self.stdout.lines().map(|line| line.expect("text"));
        let seen = lines.map(|line| Seen::parse(&line)).collect();
        assert!(self.child.wait().expect("a child").success());
        seen
    }
}

impl Seen {
    /// Whether it is a message of the tunnel: 1 initiation, 2 response, 3 cookie reply, 4 data.
    pub fn is_outer(&self, kind: u8) -> bool {
        self.protocol == 17 && self.kind == kind
    }

    /// Whether it is an echo request.
    pub fn is_echo(&self) -> bool {
        matches!((self.protocol, self.kind), (1, 8) | (58, 128))
    }

    fn parse(line: &str) -> Self {
        let words = line.split(' ').map(|word| word.parse().expect("a number"));
        let numbers: Vec<u8> = words.collect();
        let [version, protocol, tos, kind] = numbers[..] else {
            panic!("the wiretap wrote {line}");
        };
        Self {
            version,
            protocol,
            tos,
            kind,
        }
    }
}
