//! A datagram of anybody: it is a message of one of four shapes, or none.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_wireguard::messages::{DATA_HEADER, Handshake, Message, TAG, parse, write_data_header};

fuzz_target!(|data: &[u8]| {
    match parse(data) {
        Ok(Message::Data {
            receiver,
            counter,
            sealed,
        }) => {
            assert!(sealed.len() >= TAG);
            let mut header = [0; DATA_HEADER];
            write_data_header(&mut header, receiver, counter);
            assert_eq!(
                [&header, sealed].concat(),
                data,
                "a data message is its parts"
            );
        }
        Ok(Message::Handshake(message)) => {
            let (kind, length) = match message {
                Handshake::Initiation(_) => (1, 148),
                Handshake::Response(_) => (2, 92),
                Handshake::CookieReply(_) => (3, 64),
            };
            assert_eq!(data.len(), length);
            assert_eq!(data[..4], [kind, 0, 0, 0]);
        }
        Err(_) => {
            let kind = data.first_chunk::<4>();
            let known = matches!(
                (kind, data.len()),
                (Some([1, 0, 0, 0]), 148)
                    | (Some([2, 0, 0, 0]), 92)
                    | (Some([3, 0, 0, 0]), 64)
                    | (Some([4, 0, 0, 0]), 32..)
            );
            assert!(!known, "a message of a known shape was refused");
        }
    }
});
