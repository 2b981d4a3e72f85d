#!/usr/bin/env python3
"""Records handshake.txt, beside which the protocol is tested.

The Noise pattern is run by the `noiseprotocol` package, an implementation that shares no code with
this one; what WireGuard puts around it (message layout, macs, cookies) is written out here from the
paper. All keys are made from the number of the case, so that a run gives the same file again:

    pip install noiseprotocol cryptography && ./record.py > handshake.txt
"""

import hashlib
import struct

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from noise.connection import Keypair, NoiseConnection

PATTERN = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
PROLOGUE = b"WireGuard v1 zx2c4 Jason@zx2c4.com"


def derived(case, name):
    return hashlib.blake2s(f"case {case}, {name}".encode()).digest()


def public(private):
    key = X25519PrivateKey.from_private_bytes(private).public_key()
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def mac(key, data):
    return hashlib.blake2s(data, key=key, digest_size=16).digest()


def mac1(to, data):
    return mac(hashlib.blake2s(b"mac1----" + to).digest(), data)


def hchacha20(key, nonce):
    """draft-irtf-cfrg-xchacha, section 2.2."""
    state = list(struct.unpack("<4I", b"expand 32-byte k") + struct.unpack("<8I", key))
    state += struct.unpack("<4I", nonce)

    def quarter(a, b, c, d):
        for x, y, z, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            state[x] = (state[x] + state[y]) & 0xFFFFFFFF
            mixed = state[z] ^ state[x]
            state[z] = (mixed << bits | mixed >> (32 - bits)) & 0xFFFFFFFF

    for _ in range(10):
        for i in range(4):
            quarter(i, 4 + i, 8 + i, 12 + i)
        for i in range(4):
            quarter(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return struct.pack("<8I", *state[:4], *state[12:])


def xchacha20poly1305(key, nonce, text, aad):
    inner = ChaCha20Poly1305(hchacha20(key, nonce[:16]))
    return inner.encrypt(bytes(4) + nonce[16:], text, aad)


def party(initiator, case, psk, remote):
    noise = NoiseConnection.from_name(PATTERN)
    noise.set_as_initiator() if initiator else noise.set_as_responder()
    noise.set_prologue(PROLOGUE)
    noise.set_psks(psk)
    name = "initiator" if initiator else "responder"
    static, ephemeral = derived(case, f"{name} static"), derived(case, f"{name} ephemeral")
    noise.set_keypair_from_private_bytes(Keypair.STATIC, static)
    noise.set_keypair_from_private_bytes(Keypair.EPHEMERAL, ephemeral)
    if remote is not None:
        noise.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, remote)
    noise.start_handshake()
    return noise


def record(case):
    psk = bytes(32) if case % 2 == 0 else derived(case, "preshared")
    timestamp = struct.pack(">QI", 0x4000000065000000 + case, case << 24)
    i_index, r_index = (int.from_bytes(derived(case, f"{x} index")[:4], "little") for x in "ir")
    i_public = public(derived(case, "initiator static"))
    r_public = public(derived(case, "responder static"))
    initiator = party(True, case, psk, r_public)
    responder = party(False, case, psk, None)

    body = bytes(initiator.write_message(timestamp))
    assert responder.read_message(body) == timestamp
    initiation = struct.pack("<II", 1, i_index) + body
    initiation += mac1(r_public, initiation)
    cookie_key = hashlib.blake2s(b"cookie--" + r_public).digest()
    nonce, cookie = derived(case, "cookie nonce")[:24], derived(case, "cookie")[:16]
    cookie_reply = struct.pack("<II", 3, i_index) + nonce
    cookie_reply += xchacha20poly1305(cookie_key, nonce, cookie, initiation[-16:])
    with_cookie = initiation + mac(cookie, initiation)
    initiation += bytes(16)

    body = bytes(responder.write_message(b""))
    assert initiator.read_message(body) == b""
    response = struct.pack("<III", 2, r_index, i_index) + body
    response += mac1(i_public, response) + bytes(16)

    def data(sender, index, counter, text):
        return struct.pack("<IIQ", 4, index, counter) + sender.encrypt(text)

    yield "initiator_static", derived(case, "initiator static")
    yield "initiator_ephemeral", derived(case, "initiator ephemeral")
    yield "responder_static", derived(case, "responder static")
    yield "responder_ephemeral", derived(case, "responder ephemeral")
    yield "preshared", psk
    yield "timestamp", timestamp
    yield "initiation", initiation
    yield "cookie_reply", cookie_reply
    yield "initiation_with_cookie", with_cookie
    yield "response", response
    yield "from_initiator_0", data(initiator, r_index, 0, b"")
    yield "from_initiator_1", data(initiator, r_index, 1, b"from the initiator")
    yield "from_responder_0", data(responder, i_index, 0, b"from the responder")


print("# Made by record.py. One case after the other; values in hexadecimal.")
for case in range(4):
    print()
    for name, value in record(case):
        print(name, value.hex())
