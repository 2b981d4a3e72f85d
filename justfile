# Short names for what is run by hand; ./check is what CI runs.

# List what there is.
default:
    @just --list

# Everything that CI checks, or the named stages of it.
check *stages:
    ./check {{stages}}

# Programs, units, manual pages and completions, below PREFIX (/usr/local) in DESTDIR; build before.
install:
    deploy/install

# Unit and protocol tests: no root, no network.
test *arguments:
    cargo test {{arguments}}

# What CI leaves out for want of time, in every mode: hours, as root.
matrix:
    ./check matrix

# Criterion benches of every stage of the data path.
bench *arguments:
    cargo bench --package warren-benches {{arguments}}

# Beside wireguard-go, gotatun and boringtun-cli, as root.
compare *arguments:
    cargo run --release --package warren-compare -- {{arguments}}

# Each fuzz target for a while.
fuzz *arguments:
    fuzz/run {{arguments}}
