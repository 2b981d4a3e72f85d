//! Whatever a TUN may hand over with whatever offload header: it is refused, or cut into packets
//! that have all of the payload, each within its length.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_packet::ip::Packet;
use warren_packet::segment::Segments;
use warren_packet::vnet::{self, Header};

fuzz_target!(|data: &[u8]| {
    let Some((header, packet)) = data.split_first_chunk::<{ vnet::LEN }>() else {
        return;
    };
    let header = Header::decode(header);
    assert_eq!(Header::decode(&header.encode()), header);
    let Ok(segments) = Segments::new(header, packet) else {
        return;
    };
    let count = segments.count();
    assert!(count > 0);
    let mut out = vec![0; packet.len() + 1];
    let mut payload = Vec::new();
    for index in 0..count {
        let length = segments.len(index);
        out.fill(0xee);
        assert_eq!(segments.copy_into(index, &mut out), length);
        assert!(
            out[length..].iter().all(|byte| *byte == 0xee),
            "written beyond the length"
        );
        assert!(length <= segments.len(0));
        if header.gso_type != vnet::GSO_NONE {
            let piece = Packet::parse(&out[..length]).expect("a segment is a packet");
            assert_eq!(piece.bytes().len(), length);
            let size = usize::from(header.gso_size);
            let headers = if index + 1 < count {
                length - size
            } else {
                segments.len(0).min(length)
            };
            if index + 1 < count {
                payload.extend_from_slice(&out[headers..length]);
            }
        }
    }
    if header.gso_type != vnet::GSO_NONE && count > 1 {
        let whole = Packet::parse(packet).expect("it was cut");
        let headers = segments.len(0) - usize::from(header.gso_size);
        let last = segments.len(count - 1) - headers;
        let all = &whole.bytes()[headers..];
        assert_eq!(payload.len() + last, all.len());
        assert_eq!(payload, all[..payload.len()]);
    }
});
