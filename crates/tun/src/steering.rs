//! Which queue a packet takes: a tiny program in the kernel.
//!
//! By itself the kernel answers on the queue on which the reverse flow was last written, so that
//! a flow wanders with whoever wrote last, and packets of a flow that wanders overtake each
//! other. This program looks at nothing but the packet: addresses, protocol, and the ports of TCP
//! and UDP where they are at hand, that is without fragments and without extension headers. What
//! is alike there stays on one queue for good.
//!
//! Fragments of a flow take their own way, since the later ones show no ports. The program
//! returns a number, of whose low 16 bits the kernel takes the remainder by the number of queues.

use crate::sys::Instruction;

const R0: u8 = 0;
const R1: u8 = 1;
/// Where the instructions that load from a packet look for it.
const CONTEXT: u8 = 6;
const HASH: u8 = 7;
const PROTOCOL: u8 = 8;
const TRANSPORT: u8 = 9;

const MULTIPLIER: i32 = 0x5bd1_e995;

/// Sizes of a load.
const BYTE: u8 = 0x10;
const HALF: u8 = 0x08;
const WORD: u8 = 0x00;

/// Where a jump goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Label {
    V4,
    V6,
    Ports,
    LoadPorts,
    Finish,
    Exit,
}

/// A line of the program: an instruction, a jump, or the place of a label.
#[derive(Debug, Clone, Copy)]
enum Line {
    Do(Instruction),
    /// `if R0-like register == number goto label`.
    JumpIfEqual(u8, i32, Label),
    JumpIfNotEqual(u8, i32, Label),
    Jump(Label),
    Here(Label),
}

use Line::{Do, Here, Jump, JumpIfEqual, JumpIfNotEqual};

/// `R0 = packet[at]`, from network order. A packet that is too short ends the program with 0.
const fn load(size: u8, at: i32) -> Line {
    const LD_ABS: u8 = 0x20;
    Do(Instruction::new(LD_ABS | size, R0, 0, 0, at))
}

/// `R0 = packet[register]`, likewise.
const fn load_at(size: u8, register: u8) -> Line {
    const LD_IND: u8 = 0x40;
    Do(Instruction::new(LD_IND | size, R0, register, 0, 0))
}

const fn copy(to: u8, from: u8) -> Line {
    Do(Instruction::new(0xbf, to, from, 0, 0))
}

const fn set(to: u8, number: i32) -> Line {
    Do(Instruction::new(0xb7, to, 0, 0, number))
}

const fn and(register: u8, number: i32) -> Line {
    Do(Instruction::new(0x57, register, 0, 0, number))
}

const fn shift_left(register: u8, bits: i32) -> Line {
    Do(Instruction::new(0x67, register, 0, 0, bits))
}

const fn shift_right(register: u8, bits: i32) -> Line {
    Do(Instruction::new(0x77, register, 0, 0, bits))
}

const fn multiply(register: u8, number: i32) -> Line {
    Do(Instruction::new(0x27, register, 0, 0, number))
}

const fn add(to: u8, from: u8) -> Line {
    Do(Instruction::new(0x0f, to, from, 0, 0))
}

const fn xor(to: u8, from: u8) -> Line {
    Do(Instruction::new(0xaf, to, from, 0, 0))
}

const fn exit() -> Line {
    Do(Instruction::new(0x95, 0, 0, 0, 0))
}

/// `HASH = HASH * MULTIPLIER + R0`.
const MIX: [Line; 2] = [multiply(HASH, MULTIPLIER), add(HASH, R0)];

/// The program.
pub(crate) fn program() -> Vec<Instruction> {
    let mut lines = vec![
        copy(CONTEXT, R1),
        set(HASH, 0),
        load(BYTE, 0),
        shift_right(R0, 4),
        JumpIfEqual(R0, 4, Label::V4),
        JumpIfEqual(R0, 6, Label::V6),
        set(R0, 0),
        Jump(Label::Exit),
    ];

    lines.push(Here(Label::V4));
    for address in [12, 16] {
        lines.push(load(WORD, address));
        lines.extend(MIX);
    }
    lines.extend([
        load(BYTE, 9),
        copy(PROTOCOL, R0),
        // More fragments, or an offset.
        load(HALF, 6),
        and(R0, 0x3fff),
        JumpIfNotEqual(R0, 0, Label::Finish),
        load(BYTE, 0),
        and(R0, 0x0f),
        shift_left(R0, 2),
        copy(TRANSPORT, R0),
        Jump(Label::Ports),
    ]);

    lines.push(Here(Label::V6));
    for address in (8..40).step_by(4) {
        lines.push(load(WORD, address));
        lines.extend(MIX);
    }
    lines.extend([load(BYTE, 6), copy(PROTOCOL, R0), set(TRANSPORT, 40)]);

    lines.extend([
        Here(Label::Ports),
        JumpIfEqual(PROTOCOL, 6, Label::LoadPorts),
        JumpIfNotEqual(PROTOCOL, 17, Label::Finish),
        Here(Label::LoadPorts),
        load_at(WORD, TRANSPORT),
    ]);
    lines.extend(MIX);

    lines.push(Here(Label::Finish));
    lines.push(copy(R0, PROTOCOL));
    lines.extend(MIX);
    // Multiplying mixes upwards: what is returned is the middle of the hash, bits 32 to 47.
    lines.extend([
        copy(R0, HASH),
        shift_right(R0, 32),
        xor(HASH, R0),
        multiply(HASH, MULTIPLIER),
        copy(R0, HASH),
        shift_right(R0, 32),
        Here(Label::Exit),
        exit(),
    ]);
    assemble(&lines)
}

/// Replace labels by distances.
fn assemble(lines: &[Line]) -> Vec<Instruction> {
    let place = |label: Label| {
        lines
            .iter()
            .take_while(|line| !matches!(line, Here(here) if *here == label))
            .filter(|line| !matches!(line, Here(_)))
            .count()
    };
    let mut program: Vec<Instruction> = Vec::new();
    for line in lines {
        // A jump counts from the instruction behind it.
        let distance = |label| (place(label) as i64 - program.len() as i64 - 1) as i16;
        let instruction = match *line {
            Here(_) => continue,
            Do(instruction) => instruction,
            Jump(label) => Instruction::new(0x05, 0, 0, distance(label), 0),
            JumpIfEqual(register, number, label) => {
                Instruction::new(0x15, register, 0, distance(label), number)
            }
            JumpIfNotEqual(register, number, label) => {
                Instruction::new(0x55, register, 0, distance(label), number)
            }
        };
        program.push(instruction);
    }
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_lead_to_their_labels() {
        let program = assemble(&[
            JumpIfEqual(R0, 4, Label::V4),
            Jump(Label::Exit),
            Here(Label::V4),
            set(R0, 1),
            Here(Label::Exit),
            exit(),
        ]);
        let offsets: Vec<i16> = program.iter().map(|i| i.offset).collect();
        assert_eq!(offsets, [1, 1, 0, 0]);
    }

    #[test]
    fn every_jump_leads_forward_and_into_the_program() {
        let program = program();
        for (at, instruction) in program.iter().enumerate() {
            // The class of jumps, without exit.
            if instruction.code & 7 == 5 && instruction.code != 0x95 {
                assert!(instruction.offset >= 0);
                assert!(at + 1 + (instruction.offset as usize) < program.len());
            }
        }
        assert_eq!(program.last().map(|i| i.code), Some(0x95));
    }
}
