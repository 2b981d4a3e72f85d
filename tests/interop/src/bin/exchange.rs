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

/// Bytes without a period that a segment could share: xorshift64, a byte of each step.
struct Stuff(u64);

impl Stuff {
    fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    fn fill<'a>(&mut self, buffer: &'a mut [u8], at_most: u64) -> &'a [u8] {
        let len = usize::try_from(at_most).map_or(buffer.len(), |len| len.min(buffer.len()));
        let piece = &mut buffer[..len];
        for byte in piece.iter_mut() {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            *byte = (self.0 >> 24) as u8;
        }
        piece
    }
}
