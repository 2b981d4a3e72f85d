//! The ciphers beside each other, and beside a model taken word by word from RFC 8439.

mod lanes;
mod model;
mod wide;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Clear bytes in front of the text in a WireGuard data message.
const PREFIX: usize = 16;

#[test]
fn a_key_is_absent_from_debug() {
    let key = Key::new([0xab; KEY_LEN]);
    assert_eq!(format!("{key:?}"), "Key(secret)");
    assert_eq!(key.bytes(), &[0xab; KEY_LEN]);
}

#[test]
fn counters_are_little_endian_behind_four_zero_bytes() {
    let expected = [0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1];
    assert_eq!(nonce(0x0102_0304_0506_0708), expected);
}

#[test]
fn the_ciphers_encrypt_as_rfc_8439_section_2_8_2_does() {
    let mut key = [0; KEY_LEN];
    key.iter_mut().zip(0x80..).for_each(|(byte, n)| *byte = n);
    let nonce = [7, 0, 0, 0, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47];
    let mut text = *model::SUNSCREEN;
    Cipher::new(&key).seal(nonce, &mut text);
    assert_eq!(text, model::SUNSCREEN_SEALED);
    let mut text = *model::SUNSCREEN;
    portable::Cipher::new(&key).seal(nonce, &mut text);
    assert_eq!(text, model::SUNSCREEN_SEALED);
}

#[test]
fn a_forged_record_is_refused_and_its_neighbours_open() {
    let key = Key::new([1; KEY_LEN]);
    let stride = PREFIX + 100 + TAG_LEN;
    let (sealed, counters) = sealed_run(&key, 7, 5, stride);
    for byte in [0, 99, 100, 100 + TAG_LEN - 1] {
        let mut run = sealed.clone();
        run[2 * stride + PREFIX + byte] ^= 0x10;
        let mut opened = Vec::new();
        key.open_run(&counters, &mut run, stride, PREFIX, &mut opened);
        assert_eq!(opened, [Ok(()), Ok(()), Err(Forged), Ok(()), Ok(())]);
        for record in [0, 1, 3, 4] {
            let text = &run[record * stride + PREFIX..][..100];
            assert_eq!(text, text_of(record, 100));
        }
    }
}

#[test]
fn a_record_under_another_counter_or_key_is_forged() {
    let key = Key::new([1; KEY_LEN]);
    let stride = PREFIX + 32 + TAG_LEN;
    let (sealed, counters) = sealed_run(&key, 0, 2, stride);
    let mut opened = Vec::new();
    key.open_run(&[1, 0], &mut sealed.clone(), stride, PREFIX, &mut opened);
    assert_eq!(opened, [Err(Forged); 2]);
    let other = Key::new([2; KEY_LEN]);
    other.open_run(&counters, &mut sealed.clone(), stride, PREFIX, &mut opened);
    assert_eq!(opened, [Err(Forged); 2]);
}

#[test]
fn a_truncated_last_record_is_forged_at_every_length() {
    let key = Key::new([3; KEY_LEN]);
    let stride = PREFIX + 40 + TAG_LEN;
    let (sealed, counters) = sealed_run(&key, 0, 2, stride);
    for len in 0..stride {
        let mut run = sealed[..stride + len].to_vec();
        let mut opened = Vec::new();
        key.open_run(&counters, &mut run, stride, PREFIX, &mut opened);
        assert_eq!(opened, [Ok(()), Err(Forged)], "{len} bytes left");
    }
}

#[test]
fn a_stride_without_room_for_a_record_opens_nothing() {
    let key = Key::new([3; KEY_LEN]);
    for stride in 0..PREFIX + TAG_LEN {
        let mut opened = vec![Ok(())];
        key.open_run(&[0, 1, 2], &mut [0; 64], stride, PREFIX, &mut opened);
        assert_eq!(opened, [Err(Forged); 3], "stride {stride}");
    }
}

#[test]
fn a_keepalive_is_a_record_of_prefix_and_tag_alone() {
    let key = Key::new([4; KEY_LEN]);
    let stride = PREFIX + TAG_LEN;
    let (mut run, counters) = sealed_run(&key, 9, 3, stride);
    let mut opened = Vec::new();
    key.open_run(&counters, &mut run, stride, PREFIX, &mut opened);
    assert_eq!(opened, [Ok(()); 3]);
}

#[test]
#[should_panic(expected = "counters are exhausted")]
fn a_counter_never_wraps() {
    let mut run = [0; 2 * (PREFIX + TAG_LEN)];
    Key::new([0; KEY_LEN]).seal_run(u64::MAX - 1, &mut run, PREFIX + TAG_LEN, PREFIX);
}

#[test]
#[should_panic(expected = "room for its tag")]
fn a_record_without_room_for_its_tag_is_not_sealed() {
    Key::new([0; KEY_LEN]).seal_run(0, &mut [0; 40], 32, PREFIX);
}

proptest! {
    #[test]
    fn a_run_is_sealed_as_the_pure_rust_library_seals_its_records(
        bytes: [u8; KEY_LEN],
        first_counter in 0..u64::MAX - 100,
        records in 1..20usize,
        text_len in 0..1600usize,
        last_len in 0..1600usize,
        prefix in 0..40usize,
    ) {
        let stride = prefix + text_len + TAG_LEN;
        let last = prefix + last_len.min(text_len) + TAG_LEN;
        let plain: Vec<u8> = (0..(records - 1) * stride + last).map(|i| i as u8).collect();
        let mut expected = plain.clone();
        let portable = portable::Cipher::new(&bytes);
        for (i, record) in expected.chunks_mut(stride).enumerate() {
            let (text, tag) = text_and_tag(record, prefix);
            *tag = portable.seal(nonce(first_counter + i as u64), text);
        }

        let counters: Vec<u64> = (first_counter..).take(records).collect();
        for implementation in Implementation::all() {
            let key = Key::with(bytes, implementation);
            let mut run = plain.clone();
            key.seal_run(first_counter, &mut run, stride, prefix);
            prop_assert_eq!(&run, &expected, "{}", implementation.name());

            let mut opened = Vec::new();
            key.open_run(&counters, &mut run, stride, prefix, &mut opened);
            prop_assert_eq!(opened, vec![Ok(()); records], "{}", implementation.name());
            for (opened, plain) in run.chunks(stride).zip(plain.chunks(stride)) {
                let len = plain.len() - TAG_LEN;
                prop_assert_eq!(&opened[..len], &plain[..len]);
            }
        }
    }

    #[test]
    fn both_ciphers_agree_with_the_model(
        key: [u8; KEY_LEN],
        nonce: [u8; NONCE_LEN],
        plain in vec(any::<u8>(), 0..300),
        flipped: prop::sample::Index,
    ) {
        let (expected, expected_tag) = model::seal(&key, &nonce, &[], &plain);
        let library = Cipher::new(&key);
        let portable = portable::Cipher::new(&key);

        let mut text = plain.clone();
        prop_assert_eq!(library.seal(nonce, &mut text), expected_tag);
        prop_assert_eq!(&text, &expected);
        prop_assert_eq!(library.open(nonce, &mut text, &expected_tag), Ok(()));
        prop_assert_eq!(&text, &plain);
        prop_assert_eq!(portable.seal(nonce, &mut text), expected_tag);
        prop_assert_eq!(&text, &expected);

        let mut forged = expected.clone();
        let mut forged_tag = expected_tag;
        match flipped.index(plain.len() + TAG_LEN) {
            byte if byte < plain.len() => forged[byte] ^= 1,
            byte => forged_tag[byte - plain.len()] ^= 1,
        }
        prop_assert_eq!(library.open(nonce, &mut forged.clone(), &forged_tag), Err(Forged));
        prop_assert_eq!(portable.open(nonce, &mut forged, &forged_tag), Err(Forged));
    }

    #[test]
    fn arbitrary_bytes_in_arbitrary_shape_are_forged(
        counters in vec(any::<u64>(), 0..10),
        mut run in vec(any::<u8>(), 0..500),
        stride in 0..200usize,
        prefix in 0..200usize,
    ) {
        let mut opened = Vec::new();
        Key::new([5; KEY_LEN]).open_run(&counters, &mut run, stride, prefix, &mut opened);
        prop_assert_eq!(opened, vec![Err(Forged); counters.len()]);
    }
}

/// A sealed run of `records` full records, and its counters.
fn sealed_run(key: &Key, first_counter: u64, records: usize, stride: usize) -> (Vec<u8>, Vec<u64>) {
    let mut run = vec![0; records * stride];
    for (i, record) in run.chunks_mut(stride).enumerate() {
        let text = record.len() - TAG_LEN;
        record[PREFIX..text].copy_from_slice(&text_of(i, text - PREFIX));
    }
    key.seal_run(first_counter, &mut run, stride, PREFIX);
    (run, (first_counter..).take(records).collect())
}

/// What record `i` of a [`sealed_run`] says.
fn text_of(i: usize, len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + i) as u8).collect()
}
