//! Runs of any shape, anywhere in memory, sealed and opened by everything that the processor has, AWS-LC
//! included: the results are those of RustCrypto's library, byte for byte, and of records that were
//! changed on the way none opens.
#![no_main]

use std::sync::LazyLock;

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Tag};
use libfuzzer_sys::fuzz_target;
use warren_aead::{Forged, Implementation, Key, TAG_LEN};

/// As they are used, and AVX2 also for long texts, for which it is used by name only.
static IMPLEMENTATIONS: LazyLock<Vec<Implementation>> = LazyLock::new(|| {
    Implementation::all()
        .chain(Implementation::named("avx2"))
        .collect()
});

fuzz_target!(|data: &[u8]| {
    let Some((key, rest)) = data.split_first_chunk::<32>() else {
        return;
    };
    let Some((shape, rest)) = rest.split_first_chunk::<11>() else {
        return;
    };
    let [c0, c1, c2, c3, records, t0, t1, l0, l1, prefix, offset] = *shape;
    let first_counter = u64::from(u32::from_le_bytes([c0, c1, c2, c3])) << 16;
    let records = usize::from(records % 64) + 1;
    let text_len = usize::from(u16::from_le_bytes([t0, t1]) % 2048);
    let last_len = usize::from(u16::from_le_bytes([l0, l1])).min(text_len);
    let prefix = usize::from(prefix % 32);
    let offset = usize::from(offset % 64);
    let stride = prefix + text_len + TAG_LEN;
    let len = (records - 1) * stride + prefix + last_len + TAG_LEN;
    // The texts are what comes after the shape, again and again.
    let texts = if rest.is_empty() { &[0] } else { rest };
    let plain: Vec<u8> = texts.iter().copied().cycle().take(len).collect();
    let counters: Vec<u64> = (first_counter..).take(records).collect();

    let other = ChaCha20Poly1305::new(key.into());
    let mut sealed = plain.clone();
    for (record, &counter) in sealed.chunks_mut(stride).zip(&counters) {
        let (text, tag) = text_and_tag(record, prefix);
        let made = other.encrypt_inout_detached(&nonce(counter).into(), &[], text.into());
        *tag = made.expect("it is short enough").into();
    }
    let mut arrived = sealed.clone();
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
    }
    let mut expected = Vec::new();
    let mut run = arrived.clone();
    let whole = arrived.chunks(stride).zip(sealed.chunks(stride));
    for ((record, &counter), (arrived, sealed)) in run.chunks_mut(stride).zip(&counters).zip(whole)
    {
        let (text, tag) = text_and_tag(record, prefix);
        let tag = Tag::from(*tag);
        let verdict = other.decrypt_inout_detached(&nonce(counter).into(), &[], text.into(), &tag);
        assert_eq!(verdict.is_ok(), arrived == sealed, "opened by the other");
        expected.push(verdict.map_err(|_| Forged));
    }

    // The run is not where an allocation begins, and nothing around it is touched.
    let mut memory = vec![0xee; offset + len + 64];
    let inside = offset..offset + len;
    for implementation in IMPLEMENTATIONS.iter() {
        let key = Key::with(*key, *implementation);
        let run = &mut memory[inside.clone()];
        run.copy_from_slice(&plain);
        key.seal_run(first_counter, run, stride, prefix);
        assert!(*run == sealed, "sealed by {}", implementation.name());

        run.copy_from_slice(&arrived);
        let mut opened = Vec::new();
        key.open_run(&counters, run, stride, prefix, &mut opened);
        assert_eq!(opened, expected, "opened by {}", implementation.name());
        let texts = run.chunks(stride).zip(plain.chunks(stride)).zip(opened);
        for ((run, plain), opened) in texts {
            let text = prefix..plain.len() - TAG_LEN;
            assert!(opened.is_err() || run[text.clone()] == plain[text]);
        }
        let mut outside = memory[..inside.start].iter().chain(&memory[inside.end..]);
        assert!(outside.all(|&byte| byte == 0xee));
    }
});

fn text_and_tag(record: &mut [u8], prefix: usize) -> (&mut [u8], &mut [u8; TAG_LEN]) {
    let secret = record[prefix..].split_last_chunk_mut();
    secret.expect("a record has room for its tag")
}

fn nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}
