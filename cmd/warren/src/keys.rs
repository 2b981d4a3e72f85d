//! Keys on the standard input and output, in the form of `wg genkey`, `wg pubkey` and `wg genpsk`.

use std::io::{self, Read as _};

use anyhow::Context as _;
use warren_config::{PresharedKey, PrivateKey};
use zeroize::{Zeroize as _, Zeroizing};

use crate::output;

/// Bound of what is read as a key, in bytes.
const KEY_TEXT_MAX: u64 = 4096;

pub(crate) fn genkey() -> anyhow::Result<()> {
    print_secret(private_key()?.to_base64())
}

pub(crate) fn genpsk() -> anyhow::Result<()> {
    loop {
        if let Some(key) = PresharedKey::from_bytes(*random()?) {
            return print_secret(key.to_base64());
        }
    }
}

pub(crate) fn pubkey() -> anyhow::Result<()> {
    let mut text = Zeroizing::new(String::with_capacity(KEY_TEXT_MAX as usize));
    io::stdin()
        .take(KEY_TEXT_MAX)
        .read_to_string(&mut text)
        .context("the standard input could not be read")?;
    let key: PrivateKey = text.trim().parse().context("that is no private key")?;
    Ok(output::line(key.public())?)
}

/// A new private key.
pub(crate) fn private_key() -> anyhow::Result<PrivateKey> {
    Ok(PrivateKey::from_bytes(*random()?))
}

fn random() -> anyhow::Result<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(bytes.as_mut_slice()).context("the system gave no random bytes")?;
    Ok(bytes)
}

fn print_secret(mut text: String) -> anyhow::Result<()> {
    text.push('\n');
    let printed = output::raw(text.as_bytes());
    text.zeroize();
    Ok(printed?)
}
