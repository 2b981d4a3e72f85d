//! Moves bytes both ways at once over one TCP connection and compares each with what it should be.
//!
//!     exchange serve ADDRESS BYTES
//!     exchange call ADDRESS BYTES

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [role, address, bytes] = &arguments[..] else {
        return Err("expected serve or call, an address and a number of bytes".into());
    };
    let bytes = bytes.parse()?;
    let stream = match role.as_str() {
        "serve" => TcpListener::bind(address)?.accept()?.0,
        "call" => TcpStream::connect(address)?,
        _ => return Err("expected serve or call".into()),
    };
    let sending = stream.try_clone()?;
    let sender = thread::spawn(move || send(sending, bytes));
    receive(stream, bytes)?;
    sender.join().map_err(|_| "the sender panicked")??;
    Ok(())
}

fn send(mut stream: TcpStream, bytes: u64) -> io::Result<()> {
    let mut stuff = Stuff::new();
    let mut buffer = vec![0; 1 << 16];
    let mut left = bytes;
    while left > 0 {
        let piece = stuff.fill(&mut buffer, left);
        stream.write_all(piece)?;
        left -= piece.len() as u64;
    }
    stream.shutdown(std::net::Shutdown::Write)
}

fn receive(mut stream: TcpStream, bytes: u64) -> Result<(), Box<dyn Error>> {
    let mut stuff = Stuff::new();
    let (mut buffer, mut expected) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut received = 0;
    loop {
        let len = stream.read(&mut buffer)?;
        if len == 0 {
            break;
        }
        if stuff.fill(&mut expected, len as u64) != &buffer[..len] {
            return Err(format!("wrong bytes after {received}").into());
        }
        received += len as u64;
    }
    if received != bytes {
        return Err(format!("{received} bytes of {bytes} arrived").into());
    }
    Ok(())
}

/// Bytes without a period that a segment could share: word n is n, mixed as splitmix64 does. A word
/// at a time, so that making them takes no longer than moving them.
struct Stuff {
    /// How many bytes were taken so far.
    at: u64,
}

impl Stuff {
    fn new() -> Self {
        Self { at: 0 }
    }

    fn fill<'a>(&mut self, buffer: &'a mut [u8], at_most: u64) -> &'a [u8] {
        let len = usize::try_from(at_most).map_or(buffer.len(), |len| len.min(buffer.len()));
        let piece = &mut buffer[..len];
        // What is left of the word in which the last piece ended.
        let begun = (self.at % 8) as usize;
        let (head, body) = piece.split_at_mut(((8 - begun) % 8).min(len));
        head.copy_from_slice(&word(self.at / 8)[begun..][..head.len()]);
        let first = self.at.div_ceil(8);
        for (chunk, n) in body.chunks_mut(8).zip(first..) {
            chunk.copy_from_slice(&word(n)[..chunk.len()]);
        }
        self.at += len as u64;
        piece
    }
}

fn word(n: u64) -> [u8; 8] {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_make_the_same_bytes() {
        let mut whole = [0; 1000];
        Stuff::new().fill(&mut whole, 1000);
        for size in 1..40 {
            let (mut stuff, mut pieces) = (Stuff::new(), Vec::new());
            let mut buffer = vec![0; size];
            while pieces.len() < whole.len() {
                let left = (whole.len() - pieces.len()) as u64;
                pieces.extend_from_slice(stuff.fill(&mut buffer, left));
            }
            assert_eq!(pieces, whole, "in pieces of {size}");
        }
    }
}
