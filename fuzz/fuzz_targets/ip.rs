//! Whatever arrives as an inner packet: what is read from it lies within it, and what is answered
//! to it is a packet that nobody answers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_packet::icmp::{MAX_REPLY, unreachable};
use warren_packet::ip::{Packet, destination, source};
use warren_packet::{Ecn, ecn};

fuzz_target!(|data: &[u8]| {
    if let Ok(packet) = Packet::parse(data) {
        assert!(packet.bytes().len() <= data.len());
        assert_eq!(Ok(packet.source()), source(data));
        assert_eq!(Ok(packet.destination()), destination(data));
        // A packet that was trimmed is its own packet.
        let again = Packet::parse(packet.bytes()).expect("it was checked");
        assert_eq!(again.bytes(), packet.bytes());
        if let Some(transport) = packet.transport() {
            assert!(transport.offset >= packet.header_len());
            assert!(transport.offset <= packet.bytes().len());
        }
        for mark in [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce] {
            let mut marked = packet.bytes().to_vec();
            if ecn::apply(&mut marked, mark).is_ok() {
                let marked = Packet::parse(&marked).expect("only the mark may change");
                assert_eq!(marked.addresses(), packet.addresses());
                assert_eq!(marked.bytes().len(), packet.bytes().len());
            }
        }
    }

    let mut reply = [0; MAX_REPLY];
    if let Ok(length) = unreachable(data, &mut reply) {
        let answer = Packet::parse(&reply[..length]).expect("an answer is a packet");
        assert_eq!(answer.bytes().len(), length);
        assert_eq!(Ok(answer.destination()), source(data));
        assert!(
            unreachable(&reply[..length], &mut [0; MAX_REPLY]).is_err(),
            "an error answered by an error"
        );
    }
});
