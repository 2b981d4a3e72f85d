//! From text to requests, in whatever pieces the text arrives.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use ipnet::IpNet;
use zeroize::{Zeroize, Zeroizing};

use super::{Errno, Refusal, Request};
use crate::{AllowedIpChange, DeviceChange, PeerChange, PresharedKey, PrivateKey, PublicKey};

/// Bound of a line in bytes, without its newline. The longest that means anything is an endpoint
/// with a scope, well below.
pub const LINE_MAX: usize = 1024;

/// Bound of a message in bytes: more than a million prefixes, and not what a client likes to send.
pub const MESSAGE_MAX: usize = 64 << 20;

/// Finds the index of a network interface by its name.
///
/// `wg(8)` writes the scope of a link-local endpoint as a name, `[fe80::1%eth0]:51820`, and this
/// crate asks no system for anything.
pub type ScopeId = fn(&str) -> Option<u32>;

/// Reads messages from the bytes of one connection.
///
/// Feed it with [`read`](Self::read) until it returns `None`, which means that it has used up its
/// input. What it holds of unfinished lines and messages is zeroized on drop.
pub struct Parser {
    scope_id: ScopeId,
    /// The line so far. Its room is taken once: a growing buffer leaves copies of keys behind.
    line: Zeroizing<Vec<u8>>,
    /// The message so far.
    message: Option<Message>,
}

impl Parser {
    /// A parser at the beginning of a connection.
    pub fn new(scope_id: ScopeId) -> Self {
        Self {
            scope_id,
            line: Zeroizing::new(Vec::with_capacity(LINE_MAX)),
            message: None,
        }
    }

    /// Consumes `input` up to the end of the next message, or all of it when no message ends in it.
    ///
    /// An error cannot be recovered from, since where the next message begins is unknown: answer
    /// with its number and close the connection.
    pub fn read(&mut self, input: &mut &[u8]) -> Result<Option<Request>, Refusal> {
        while !input.is_empty() {
            let Some(end) = input.iter().position(|byte| *byte == b'\n') else {
                self.extend_line(input)?;
                *input = &[];
                return Ok(None);
            };
            self.extend_line(&input[..end])?;
            *input = &input[end + 1..];
            let request = self.line_read();
            self.line.as_mut_slice().zeroize();
            self.line.clear();
            if let Some(request) = request? {
                return Ok(Some(request));
            }
        }
        Ok(None)
    }

    /// Whether a message has begun and not ended.
    pub fn is_within_message(&self) -> bool {
        self.message.is_some() || !self.line.is_empty()
    }

    fn extend_line(&mut self, piece: &[u8]) -> Result<(), Refusal> {
        if self.line.len() + piece.len() > LINE_MAX {
            return Err(self.broken(Errno::TOO_LONG, "a line is longer than any that is known"));
        }
        self.line.extend_from_slice(piece);
        Ok(())
    }

    fn line_read(&mut self) -> Result<Option<Request>, Refusal> {
        // As wireguard-go does, a carriage return before the newline is forgiven.
        let line = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        let Some(message) = &mut self.message else {
            let operation = match line {
                b"get=1" => Operation::Get,
                b"set=1" => Operation::Set(Change::default()),
                _ => return Err(self.broken(Errno::PROTOCOL, "expected get=1 or set=1")),
            };
            self.message = Some(Message {
                operation,
                lines: 1,
                bytes: line.len(),
                refusal: None,
            });
            return Ok(None);
        };
        message.lines += 1;
        message.bytes += line.len() + 1;
        if line.is_empty() {
            return Ok(self.message.take().map(Message::end));
        }
        if message.bytes > MESSAGE_MAX {
            return Err(self.broken(Errno::TOO_LONG, "the message is too long"));
        }
        // The first fault is what is answered; the rest is read for where it ends.
        if message.refusal.is_none()
            && let Err(Fault(errno, reason)) = message.operation.take_line(line, self.scope_id)
        {
            message.refusal = Some(Refusal {
                errno,
                line: message.lines,
                reason,
            });
        }
        Ok(None)
    }

    fn broken(&self, errno: Errno, reason: &'static str) -> Refusal {
        Refusal {
            errno,
            line: self.message.as_ref().map_or(1, |message| message.lines),
            reason,
        }
    }
}

/// A message whose blank line has not arrived yet.
struct Message {
    operation: Operation,
    lines: usize,
    bytes: usize,
    refusal: Option<Refusal>,
}

impl Message {
    fn end(self) -> Request {
        match (self.refusal, self.operation) {
            (Some(refusal), _) => Request::Refused(refusal),
            (None, Operation::Get) => Request::Get,
            (None, Operation::Set(change)) => Request::Set(change.end()),
        }
    }
}

enum Operation {
    Get,
    Set(Change),
}

impl Operation {
    fn take_line(&mut self, line: &[u8], scope_id: ScopeId) -> Result<(), Fault> {
        let Self::Set(change) = self else {
            return Err(invalid("get=1 is followed by a blank line"));
        };
        let line = str::from_utf8(line).map_err(|_| invalid("not UTF-8"))?;
        let (key, value) = line
            .split_once('=')
            .ok_or(Fault(Errno::PROTOCOL, "expected key=value"))?;
        if key == "public_key" {
            let key = PublicKey::from_hex(value).map_err(|_| invalid(HEX_KEY))?;
            change.begin_peer(PeerChange::new(key));
            return Ok(());
        }
        match &mut change.peer {
            None => device_line(&mut change.device, key, value),
            Some(peer) if key == "replace_allowed_ips" => {
                is_true(value)?;
                if !peer.allowed_ips.is_empty() {
                    // Prefixes named before this line have left their former peers all the same,
                    // so what follows is a change of its own.
                    let next = PeerChange {
                        update_only: peer.update_only,
                        remove: peer.remove,
                        ..PeerChange::new(peer.public_key)
                    };
                    change.begin_peer(next);
                }
                if let Some(peer) = &mut change.peer {
                    peer.replace_allowed_ips = true;
                }
                Ok(())
            }
            Some(peer) => peer_line(peer, key, value, scope_id),
        }
    }
}

/// A `set` message so far.
#[derive(Default)]
struct Change {
    device: DeviceChange,
    /// The peer whose lines are being read.
    peer: Option<PeerChange>,
}

impl Change {
    fn begin_peer(&mut self, next: PeerChange) {
        let done = self.peer.replace(next);
        self.device.peers.extend(done);
    }

    fn end(mut self) -> DeviceChange {
        self.device.peers.extend(self.peer);
        self.device
    }
}

/// What is wrong with a line.
struct Fault(Errno, &'static str);

const HEX_KEY: &str = "a key is 64 hexadecimal digits";

fn invalid(reason: &'static str) -> Fault {
    Fault(Errno::INVALID, reason)
}

fn device_line(change: &mut DeviceChange, key: &str, value: &str) -> Result<(), Fault> {
    match key {
        "private_key" => {
            let key = PrivateKey::from_hex(value).map_err(|_| invalid(HEX_KEY))?;
            change.private_key = Some(key);
        }
        "listen_port" => {
            let port = decimal(value).ok_or(invalid("a port is a number from 0 to 65535"))?;
            change.listen_port = Some(port);
        }
        "fwmark" => {
            let mark = decimal(value).ok_or(invalid("a mark is a decimal number of 32 bits"))?;
            change.fwmark = Some(mark);
        }
        "replace_peers" => {
            is_true(value)?;
            change.replace_peers = true;
        }
        _ => return Err(invalid("no key of a device has this name")),
    }
    Ok(())
}

fn peer_line(
    change: &mut PeerChange,
    key: &str,
    value: &str,
    scope_id: ScopeId,
) -> Result<(), Fault> {
    match key {
        "remove" => {
            is_true(value)?;
            change.remove = true;
        }
        "update_only" => {
            is_true(value)?;
            change.update_only = true;
        }
        "preshared_key" => {
            let key = PresharedKey::from_hex(value).map_err(|_| invalid(HEX_KEY))?;
            change.preshared_key = Some(key);
        }
        "endpoint" => {
            let endpoint = endpoint(value, scope_id).ok_or(invalid(
                "an endpoint is ADDRESS:PORT or [ADDRESS]:PORT, with an interface that exists",
            ))?;
            change.endpoints = Some(vec![endpoint]);
        }
        "persistent_keepalive_interval" => {
            let seconds =
                decimal(value).ok_or(invalid("an interval is a number from 0 to 65535"))?;
            change.persistent_keepalive = Some(seconds);
        }
        "allowed_ip" => {
            let step = match value.strip_prefix('-') {
                Some(value) => prefix(value).map(AllowedIpChange::Remove),
                None => prefix(value).map(AllowedIpChange::Add),
            };
            let step = step.ok_or(invalid("an allowed IP is [-]ADDRESS/LENGTH"))?;
            change.allowed_ips.push(step);
        }
        "protocol_version" => {
            if value != "1" {
                return Err(invalid("the protocol's version is 1"));
            }
        }
        _ => return Err(invalid("no key of a peer has this name")),
    }
    Ok(())
}

fn is_true(value: &str) -> Result<(), Fault> {
    match value {
        "true" => Ok(()),
        _ => Err(invalid("this key's only value is true")),
    }
}

/// Digits alone: `FromStr` would take a sign as well.
fn decimal<T: TryFrom<u64>>(text: &str) -> Option<T> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = digits.then(|| text.parse().ok())??;
    T::try_from(number).ok()
}

fn prefix(text: &str) -> Option<IpNet> {
    let (address, len) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    Some(IpNet::new(address, decimal(len)?).ok()?.trunc())
}

fn endpoint(text: &str, scope_id: ScopeId) -> Option<SocketAddr> {
    let Some(rest) = text.strip_prefix('[') else {
        let (address, port) = text.split_once(':')?;
        return Some(SocketAddr::V4(std::net::SocketAddrV4::new(
            address.parse().ok()?,
            decimal(port)?,
        )));
    };
    let (address, port) = rest.split_once("]:")?;
    let port = decimal(port)?;
    let (address, scope) = match address.split_once('%') {
        None => (address, 0),
        // An interface may have a number for a name, so the name comes first, as in getaddrinfo(3).
        Some((address, scope)) => (address, scope_id(scope).or_else(|| decimal(scope))?),
    };
    let address: Ipv6Addr = address.parse().ok()?;
    Some(match address.to_ipv4_mapped() {
        // The socket for IPv6 is for IPv6 alone.
        Some(address) => (address, port).into(),
        None => SocketAddrV6::new(address, port, 0, scope).into(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::parse_all;
    use super::*;

    const KEY: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";
    const OTHER: &str = "58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376";

    #[test]
    fn the_example_of_the_specification_is_understood() {
        // https://www.wireguard.com/xplatform/#example-dialog
        let change = set(&format!(
            "private_key=e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a\n\
             fwmark=0\n\
             listen_port=12912\n\
             replace_peers=true\n\
             public_key={KEY}\n\
             preshared_key=188515093e952f5f22e865cef3012e72f8b5f0b598ac0309d5dacce3b70fcf52\n\
             replace_allowed_ips=true\n\
             allowed_ip=192.168.4.4/32\n\
             endpoint=[abcd:23::33%2]:51820\n\
             public_key={OTHER}\n\
             replace_allowed_ips=true\n\
             allowed_ip=192.168.4.6/32\n\
             persistent_keepalive_interval=111\n\
             endpoint=182.122.22.19:3233\n\
             public_key=662e14fd594556f522604703340351258903b64f35553763f19426ab2a515c58\n\
             remove=true\n"
        ));
        assert!(matches!(change.private_key, Some(Some(_))));
        assert_eq!(change.fwmark, Some(0));
        assert_eq!(change.listen_port, Some(12912));
        assert!(change.replace_peers);
        let [first, second, third] = &change.peers[..] else {
            panic!("{:?}", change.peers);
        };
        assert_eq!(first.public_key.to_hex(), KEY);
        assert!(matches!(first.preshared_key, Some(Some(_))));
        assert!(first.replace_allowed_ips);
        assert_eq!(
            first.endpoints.as_ref().map(|all| all[0].to_string()),
            Some("[abcd:23::33%2]:51820".to_owned())
        );
        assert_eq!(first.allowed_ips, [add("192.168.4.4/32")]);
        assert_eq!(second.persistent_keepalive, Some(111));
        assert!(third.remove);
    }

    #[test]
    fn a_get_is_a_line_and_a_blank_line() {
        assert_eq!(requests("get=1\n\nget=1\n\n"), [Request::Get, Request::Get]);
        assert_eq!(requests("get=1\n"), []);
        assert_eq!(refusal("get=1\nprivate_key=\n\n").errno, Errno::INVALID);
    }

    #[test]
    fn a_message_cut_off_before_its_blank_line_asks_for_nothing() {
        let whole = format!("set=1\nlisten_port=7\npublic_key={KEY}\nremove=true\n\n");
        for len in 0..whole.len() {
            assert_eq!(requests(&whole[..len]), [], "{:?}", &whole[..len]);
        }
        assert_eq!(requests(&whole).len(), 1);
    }

    #[test]
    fn one_bad_line_refuses_the_message_and_leaves_the_next_one_alone() {
        let text = "set=1\nlisten_port=7\nfwmark=x\nlisten_port=y\n\nset=1\nlisten_port=8\n\n";
        let expected = DeviceChange {
            listen_port: Some(8),
            ..DeviceChange::default()
        };
        let refusal = Refusal {
            errno: Errno::INVALID,
            line: 3,
            reason: "a mark is a decimal number of 32 bits",
        };
        assert_eq!(
            requests(text),
            [Request::Refused(refusal), Request::Set(expected)]
        );
    }

    #[test]
    fn values_that_mean_nothing_are_invalid() {
        for line in [
            "private_key=",
            "private_key=00",
            "private_key=zz",
            "listen_port=",
            "listen_port=65536",
            "listen_port=-1",
            "listen_port=+1",
            "listen_port=1 ",
            "listen_port=0x10",
            "fwmark=4294967296",
            "fwmark=0x1",
            "fwmark=off",
            "replace_peers=false",
            "replace_peers=",
            "public_key=",
            "endpoint=192.0.2.1:1",
            "allowed_ip=10.0.0.0/8",
            "color=blue",
            "=",
            " listen_port=1",
        ] {
            let refusal = refusal(&format!("set=1\n{line}\n\n"));
            assert_eq!(refusal.errno, Errno::INVALID, "{line}");
        }
        for line in [
            "preshared_key=",
            "endpoint=",
            "endpoint=192.0.2.1",
            "endpoint=192.0.2.1:",
            "endpoint=192.0.2.1:65536",
            "endpoint=192.0.2.256:1",
            "endpoint=example.org:1",
            "endpoint=2001:db8::1:51820",
            "endpoint=[192.0.2.1]:1",
            "endpoint=[2001:db8::1]",
            "endpoint=[2001:db8::1]:",
            "endpoint=[fe80::1%]:1",
            "endpoint=[fe80::1%nowhere]:1",
            "endpoint=[fe80::1%4294967296]:1",
            "persistent_keepalive_interval=65536",
            "persistent_keepalive_interval=off",
            "replace_allowed_ips=1",
            "remove=false",
            "update_only=",
            "protocol_version=2",
            "allowed_ip=",
            "allowed_ip=-",
            "allowed_ip=10.0.0.0",
            "allowed_ip=10.0.0.0/",
            "allowed_ip=10.0.0.0/33",
            "allowed_ip=10.0.0.0/-1",
            "allowed_ip=--10.0.0.0/8",
            "allowed_ip=2001:db8::/129",
            "allowed_ip=fe80::%1/64",
            "listen_port=1",
            "private_key=0000000000000000000000000000000000000000000000000000000000000000",
        ] {
            let refusal = refusal(&format!("set=1\npublic_key={KEY}\n{line}\n\n"));
            assert_eq!(refusal.errno, Errno::INVALID, "{line}");
            assert_eq!(refusal.line, 3);
        }
    }

    #[test]
    fn a_line_without_an_equals_sign_is_no_line_of_the_protocol() {
        assert_eq!(refusal("set=1\nlisten_port\n\n").errno, Errno::PROTOCOL);
    }

    #[test]
    fn keys_of_zeros_take_keys_away() {
        let zero = "0".repeat(64);
        let change = set(&format!(
            "private_key={zero}\npublic_key={zero}\npreshared_key={zero}\n"
        ));
        assert_eq!(change.private_key, Some(None));
        assert_eq!(change.peers[0].public_key, PublicKey::from_bytes([0; 32]));
        assert_eq!(change.peers[0].preshared_key, Some(None));
    }

    #[test]
    fn upper_case_digits_and_carriage_returns_are_forgiven() {
        let text = format!("set=1\nprivate_key={}\r\n\r\n", KEY.to_uppercase());
        let lower = format!("set=1\nprivate_key={KEY}\n\n");
        assert_eq!(requests(&text), requests(&lower));
        assert_eq!(requests(&text).len(), 1);
    }

    #[test]
    fn endpoints_of_both_families_are_read() {
        for (text, expected) in [
            ("192.0.2.1:51820", "192.0.2.1:51820"),
            ("192.0.2.1:0", "192.0.2.1:0"),
            ("192.0.2.1:00080", "192.0.2.1:80"),
            ("[2001:db8::1]:51820", "[2001:db8::1]:51820"),
            ("[fe80::1%eth0]:51820", "[fe80::1%7]:51820"),
            ("[fe80::1%12]:51820", "[fe80::1%12]:51820"),
            ("[::ffff:192.0.2.1]:51820", "192.0.2.1:51820"),
        ] {
            let change = set(&format!("public_key={KEY}\nendpoint={text}\n"));
            let endpoints = change.peers[0].endpoints.clone().expect("an endpoint");
            assert_eq!(endpoints.len(), 1);
            assert_eq!(endpoints[0].to_string(), expected);
        }
    }

    #[test]
    fn allowed_ips_come_and_go_without_their_host_bits() {
        let change = set(&format!(
            "public_key={KEY}\nallowed_ip=10.1.2.3/8\nallowed_ip=-2001:db8::1/32\nallowed_ip=0.0.0.0/0\n"
        ));
        assert_eq!(
            change.peers[0].allowed_ips,
            [add("10.0.0.0/8"), remove("2001:db8::/32"), add("0.0.0.0/0")]
        );
    }

    #[test]
    fn allowed_ips_named_before_they_are_replaced_still_leave_their_former_peer() {
        let mut device = crate::DeviceConfig::default();
        device.apply(&set(&format!(
            "public_key={OTHER}\nallowed_ip=10.0.0.0/24\nallowed_ip=10.0.1.0/24\n"
        )));
        device.apply(&set(&format!(
            "public_key={KEY}\nallowed_ip=10.0.0.0/24\nreplace_allowed_ips=true\nallowed_ip=10.0.2.0/24\n"
        )));
        let of = |hex: &str| {
            let key = PublicKey::from_hex(hex).expect("a key");
            let all: Vec<_> = device.peers[&key].allowed_ips.iter().collect();
            format!("{all:?}")
        };
        assert_eq!(of(OTHER), "[10.0.1.0/24]");
        assert_eq!(of(KEY), "[10.0.2.0/24]");
    }

    #[test]
    fn the_same_peer_twice_in_one_message_is_changed_twice() {
        let change = set(&format!(
            "public_key={KEY}\nallowed_ip=10.0.0.0/24\npublic_key={OTHER}\n\
             public_key={KEY}\nremove=true\npublic_key={KEY}\npersistent_keepalive_interval=5\n"
        ));
        assert_eq!(change.peers.len(), 4);
        let mut device = crate::DeviceConfig::default();
        device.apply(&change);
        let peer = &device.peers[&PublicKey::from_hex(KEY).expect("a key")];
        assert_eq!(peer.persistent_keepalive, 5);
        assert!(peer.allowed_ips.is_empty(), "removed in between");
    }

    #[test]
    fn an_unknown_operation_ends_the_conversation() {
        for text in ["\n", "get=2\n\n", "set=0\n\n", "GET / HTTP/1.1\r\n", "\0\n"] {
            let (requests, refusal) = parse_all(text.as_bytes(), scope_id);
            assert_eq!(requests, [], "{text:?}");
            assert_eq!(refusal.map(|refusal| refusal.errno), Some(Errno::PROTOCOL));
        }
    }

    #[test]
    fn a_line_without_end_is_refused_when_it_is_too_long_and_not_before() {
        let longest = format!("set=1\n{}=\n\n", "k".repeat(LINE_MAX - 1));
        assert_eq!(refusal(&longest).errno, Errno::INVALID);
        let endless = format!("set=1\n{}", "k".repeat(LINE_MAX + 1));
        let (requests, refusal) = parse_all(endless.as_bytes(), scope_id);
        assert_eq!(requests, []);
        assert_eq!(refusal.map(|refusal| refusal.errno), Some(Errno::TOO_LONG));
    }

    #[test]
    fn a_message_without_end_is_refused_and_takes_no_more_room_than_its_bound() {
        let mut parser = Parser::new(scope_id);
        let mut head: &[u8] = b"set=1\n";
        assert_eq!(parser.read(&mut head), Ok(None));
        let block = "listen_port=1\n".repeat(1 << 16);
        let mut sent = 0;
        let refusal = loop {
            assert!(sent <= MESSAGE_MAX + block.len(), "never refused");
            match parser.read(&mut block.as_bytes()) {
                Ok(request) => assert_eq!(request, None),
                Err(refusal) => break refusal,
            }
            sent += block.len();
        };
        assert_eq!(refusal.errno, Errno::TOO_LONG);
        assert!(sent + block.len() > MESSAGE_MAX, "refused too early");
    }

    #[test]
    fn a_refusal_says_nothing_of_the_text() {
        let refusal = refusal(&format!("set=1\nprivate_key={KEY}00\n\n"));
        assert!(!refusal.to_string().contains(&KEY[..8]), "{refusal}");
    }

    proptest! {
        #[test]
        fn it_does_not_matter_in_which_pieces_a_message_arrives(
            text in conversation(), cuts in prop::collection::vec(1..40usize, 1..60),
        ) {
            let mut parser = Parser::new(scope_id);
            let mut pieces = Vec::new();
            let mut rest = text.as_bytes();
            let mut end = None;
            'outer: for len in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (mut piece, later) = rest.split_at((*len).min(rest.len()));
                rest = later;
                loop {
                    match parser.read(&mut piece) {
                        Ok(Some(request)) => pieces.push(request),
                        Ok(None) => break,
                        Err(refusal) => {
                            end = Some(refusal);
                            break 'outer;
                        }
                    }
                }
            }
            prop_assert_eq!((pieces, end), parse_all(text.as_bytes(), scope_id));
        }

        #[test]
        fn no_bytes_cause_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_all(&bytes, scope_id);
            let mut set = b"set=1\n".to_vec();
            set.extend(bytes);
            let _ = parse_all(&set, scope_id);
        }

        #[test]
        fn what_is_accepted_is_what_was_written(numbers in (any::<u16>(), any::<u32>(), 0..=32u8)) {
            let (port, mark, len) = numbers;
            let change = set(&format!(
                "listen_port={port}\nfwmark={mark}\npublic_key={KEY}\n\
                 persistent_keepalive_interval={port}\nallowed_ip=255.255.255.255/{len}\n"
            ));
            prop_assert_eq!(change.listen_port, Some(port));
            prop_assert_eq!(change.fwmark, Some(mark));
            prop_assert_eq!(change.peers[0].persistent_keepalive, Some(port));
            let AllowedIpChange::Add(prefix) = change.peers[0].allowed_ips[0] else {
                panic!("not added");
            };
            prop_assert_eq!(prefix.prefix_len(), len);
        }
    }

    /// Conversations of lines that are mostly right.
    fn conversation() -> impl Strategy<Value = String> {
        let line = prop::sample::select(vec![
            "get=1".to_owned(),
            "set=1".to_owned(),
            String::new(),
            String::new(),
            "listen_port=51820".to_owned(),
            "fwmark=9".to_owned(),
            "fwmark=".to_owned(),
            "nothing".to_owned(),
            format!("public_key={KEY}"),
            format!("public_key={OTHER}"),
            format!("preshared_key={OTHER}"),
            "endpoint=[fe80::1%eth0]:1".to_owned(),
            "replace_allowed_ips=true".to_owned(),
            "allowed_ip=10.0.0.0/8".to_owned(),
            "allowed_ip=-10.0.0.0/8".to_owned(),
        ]);
        prop::collection::vec(line, 0..30).prop_map(|lines| {
            let mut text = String::from("set=1\n");
            for line in lines {
                text.push_str(&line);
                text.push('\n');
            }
            text
        })
    }

    fn scope_id(name: &str) -> Option<u32> {
        (name == "eth0").then_some(7)
    }

    fn requests(text: &str) -> Vec<Request> {
        let (requests, refusal) = parse_all(text.as_bytes(), scope_id);
        assert_eq!(refusal, None, "{text:?}");
        requests
    }

    fn set(lines: &str) -> DeviceChange {
        let text = format!("set=1\n{lines}\n");
        match requests(&text).pop() {
            Some(Request::Set(change)) => change,
            other => panic!("{text:?} became {other:?}"),
        }
    }

    fn refusal(text: &str) -> Refusal {
        match requests(text).pop() {
            Some(Request::Refused(refusal)) => refusal,
            other => panic!("{text:?} became {other:?}"),
        }
    }

    fn add(prefix: &str) -> AllowedIpChange {
        AllowedIpChange::Add(prefix.parse().expect("a prefix"))
    }

    fn remove(prefix: &str) -> AllowedIpChange {
        AllowedIpChange::Remove(prefix.parse().expect("a prefix"))
    }
}
