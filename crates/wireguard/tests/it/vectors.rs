//! Whole handshakes, byte by byte, as an independent implementation of the Noise pattern made them
//! (`tests/vectors/record.py`).

use std::collections::BTreeMap;
use std::sync::Arc;

use warren_config::{PresharedKey, PrivateKey};
use warren_wireguard::messages::{self, DATA_HEADER, Handshake, Message, TAG};
use warren_wireguard::time::{Instant, Tai64n};
use warren_wireguard::{Endpoint, Identity, Peer, Session, open_initiation};

use crate::util::{ALICE, BOB, secs};

const NOW: Instant = Instant::from_nanos(1_000_000_000_000);

struct Case(BTreeMap<&'static str, Vec<u8>>);

impl Case {
    fn all() -> Vec<Self> {
        let text = include_str!("../vectors/handshake.txt");
        let cases = text.split("\n\n").skip(1);
        let cases = cases.map(|case| {
            let values = case.lines().map(|line| {
                let (name, hex) = line.split_once(' ').expect("a name and a value");
                (name, bytes_of(hex))
            });
            Self(values.collect())
        });
        cases.collect()
    }

    fn bytes(&self, name: &str) -> &[u8] {
        &self.0[name]
    }

    fn array<const LEN: usize>(&self, name: &str) -> [u8; LEN] {
        self.bytes(name).try_into().expect(name)
    }

    fn identity(&self, name: &str) -> Arc<Identity> {
        Arc::new(Identity::new(PrivateKey::from_bytes(self.array(name))))
    }

    fn initiation(&self) -> messages::Initiation<'_> {
        let Ok(Message::Handshake(Handshake::Initiation(message))) =
            messages::parse(self.bytes("initiation"))
        else {
            panic!("an initiation");
        };
        message
    }

    fn response(&self) -> messages::Response<'_> {
        let Ok(Message::Handshake(Handshake::Response(message))) =
            messages::parse(self.bytes("response"))
        else {
            panic!("a response");
        };
        message
    }
}

#[test]
fn handshakes_match_an_independent_implementation_byte_by_byte() {
    let cases = Case::all();
    assert_eq!(cases.len(), 4);
    for case in cases {
        let timestamp = Tai64n::from_bytes(case.array("timestamp"));
        let initiator = case.identity("initiator_static");
        let responder = case.identity("responder_static");

        let mut there = peer(&case, &responder);
        there.set_endpoints(vec![BOB]);
        let ticket = there.begin_initiation(timestamp, NOW).expect("the first");
        let shared = initiator
            .shared_with(responder.public())
            .expect("a good key");
        let (in_flight, initiation) = ticket
            .create(
                &initiator,
                &shared,
                case.initiation().sender(),
                case.array("initiator_ephemeral"),
            )
            .expect("good keys");
        assert_eq!(initiation, case.bytes("initiation"));
        there.initiation_created(in_flight, NOW);

        let mut here = peer(&case, &initiator);
        let message = case.initiation();
        assert!(responder.verify(Handshake::Initiation(message)).is_some());
        let pending = open_initiation(&responder, message).expect("authentic");
        assert_eq!(pending.static_key(), initiator.public());
        let shared = responder
            .shared_with(initiator.public())
            .expect("a good key");
        let authentic = pending.authenticate(&shared).expect("authentic");
        assert_eq!(*authentic.timestamp(), timestamp);
        let ticket = here
            .initiation_received(&authentic, ALICE.into(), NOW)
            .expect("the first");
        let (session, response) = ticket
            .respond(
                authentic,
                case.response().sender(),
                case.array("responder_ephemeral"),
            )
            .expect("good keys");
        assert_eq!(response, case.bytes("response"));
        let responding = here
            .response_created(session, &response, NOW)
            .expect("running");

        assert!(
            initiator
                .verify(Handshake::Response(case.response()))
                .is_some()
        );
        let opener = there
            .in_flight(case.response().receiver())
            .expect("in flight");
        let session = opener.consume_response(case.response()).expect("authentic");
        let initiating = there
            .response_received(session, BOB.into(), NOW)
            .expect("in flight");

        for (session, counter, name, text) in [
            (&initiating, 0, "from_initiator_0", b"".as_slice()),
            (&initiating, 1, "from_initiator_1", b"from the initiator"),
            (&responding, 0, "from_responder_0", b"from the responder"),
        ] {
            assert_eq!(sealed(session, counter, text), case.bytes(name));
        }
    }
}

#[test]
fn cookies_match_an_independent_implementation_byte_by_byte() {
    for case in Case::all() {
        let identity = case.identity("initiator_static");
        let responder = case.identity("responder_static");
        let shared = identity
            .shared_with(responder.public())
            .expect("a good key");
        let mut peer = peer(&case, &responder);
        peer.set_endpoints(vec![BOB]);
        let mut now = NOW;
        for name in ["initiation", "initiation_with_cookie"] {
            let timestamp = Tai64n::from_bytes(case.array("timestamp"));
            let ticket = peer.begin_initiation(timestamp, now).expect("due");
            let ephemeral = case.array("initiator_ephemeral");
            let (in_flight, initiation) = ticket
                .create(&identity, &shared, case.initiation().sender(), ephemeral)
                .expect("good keys");
            assert_eq!(initiation, case.bytes(name));
            peer.initiation_created(in_flight, now);
            let reply = messages::parse(case.bytes("cookie_reply"));
            let Ok(Message::Handshake(Handshake::CookieReply(reply))) = reply else {
                panic!("a cookie reply");
            };
            peer.cookie_reply_received(reply, now).expect("authentic");
            now = now + secs(5);
        }
    }
}

fn peer(case: &Case, other: &Identity) -> Peer {
    let mut peer = Peer::new(*other.public(), 0);
    peer.set_preshared_key(PresharedKey::from_bytes(case.array("preshared")));
    assert_eq!(peer.endpoint(), None::<Endpoint>);
    peer
}

fn sealed(session: &Session, counter: u64, text: &[u8]) -> Vec<u8> {
    let mut record = vec![0; DATA_HEADER + text.len() + TAG];
    messages::write_data_header(&mut record, session.remote_index(), counter);
    record[DATA_HEADER..][..text.len()].copy_from_slice(text);
    let stride = record.len();
    session
        .sealing()
        .seal_run(counter, &mut record, stride, DATA_HEADER);
    record
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(digit).collect()
}
