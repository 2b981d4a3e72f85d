//! A client of the configuration socket that may be anybody: it is understood or refused, and the
//! same however its bytes are cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_config::uapi::{Parser, parse_all};

fuzz_target!(|data: &[u8]| {
    let (requests, refusal) = parse_all(data, scope);

    let mut parser = Parser::new(scope);
    let mut one_by_one = Vec::new();
    let mut refused = None;
    'bytes: for byte in data {
        let mut input = std::slice::from_ref(byte);
        loop {
            match parser.read(&mut input) {
                Ok(Some(request)) => one_by_one.push(request),
                Ok(None) => break,
                Err(refusal) => {
                    refused = Some(refusal);
                    break 'bytes;
                }
            }
        }
    }
    assert_eq!(requests, one_by_one);
    assert_eq!(refusal, refused);
});

fn scope(name: &str) -> Option<u32> {
    (name == "eth0").then_some(2)
}
