//! Runs of any shape, sealed and opened by everything that the processor has: the results are the
//! library's, byte for byte, and of records that were changed on the way none opens.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_aead::{Forged, Implementation, Key, TAG_LEN};

fuzz_target!(|data: &[u8]| {
    let Some((key, rest)) = data.split_first_chunk::<32>() else {
        return;
    };
    let Some((shape, rest)) = rest.split_first_chunk::<10>() else {
        return;
    };
    let [c0, c1, c2, c3, records, t0, t1, l0, l1, prefix] = *shape;
    let first_counter = u64::from(u32::from_le_bytes([c0, c1, c2, c3])) << 16;
    let records = usize::from(records % 64) + 1;
    let text_len = usize::from(u16::from_le_bytes([t0, t1]) % 2048);
    let last_len = usize::from(u16::from_le_bytes([l0, l1])).min(text_len);
    let prefix = usize::from(prefix % 32);
    let stride = prefix + text_len + TAG_LEN;
    let len = (records - 1) * stride + prefix + last_len + TAG_LEN;
    // The texts are what comes after the shape, again and again.
    let texts = if rest.is_empty() { &[0] } else { rest };
    let plain: Vec<u8> = texts.iter().copied().cycle().take(len).collect();
    let counters: Vec<u64> = (first_counter..).take(records).collect();

    let library = Key::with(*key, Implementation::LIBRARY);
    let mut sealed = plain.clone();
    library.seal_run(first_counter, &mut sealed, stride, prefix);
    let mut arrived = sealed.clone();
    let mut expected = vec![Ok(()); records];
    // Each three bytes of it are a record and a byte therein that is changed on the way.
    let (changes, _) = rest.as_chunks::<3>();
    for &[record, b0, b1] in changes.iter().take(8) {
        let record = usize::from(record) % records;
        let byte = u16::from_le_bytes([b0, b1]);
        let bytes = arrived.chunks_mut(stride).nth(record);
        let bytes = bytes.expect("it is one of the records");
        let secret = &mut bytes[prefix..];
        let byte = usize::from(byte) % secret.len();
        secret[byte] = !sealed[record * stride + prefix + byte];
        expected[record] = Err(Forged);
    }

    for implementation in Implementation::all() {
        let key = Key::with(*key, implementation);
        let mut run = plain.clone();
        key.seal_run(first_counter, &mut run, stride, prefix);
        assert_eq!(run, sealed, "sealed by {}", implementation.name());

        let mut run = arrived.clone();
        let mut opened = Vec::new();
        key.open_run(&counters, &mut run, stride, prefix, &mut opened);
        assert_eq!(opened, expected, "opened by {}", implementation.name());
        let texts = run.chunks(stride).zip(plain.chunks(stride)).zip(opened);
        for ((run, plain), opened) in texts {
            let text = prefix..plain.len() - TAG_LEN;
            assert!(opened.is_err() || run[text.clone()] == plain[text]);
        }
    }
});
