# The everyday commands. `just` alone lists them.

_default:
    @just --list

# What a change has to pass before it is proposed, without root
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps
    cargo test --workspace

# The tests whose names contain FILTER, for example gate::limits
test FILTER:
    cargo test --package adit-tests --test suite -- {{FILTER}}

# The same in their long form: more repetitions, longer outages
long FILTER:
    ADIT_LONG_TESTS=1 cargo test --package adit-tests --test suite -- {{FILTER}}

# Everything, as root on Debian: installs what it needs
ci:
    bash .ci/run

# The demo: both programs on this machine
demo:
    cargo run --profile demo --bin adit-demo

# Write docs/reference.md anew from the programs' own help
reference:
    ADIT_UPDATE_REFERENCE=1 cargo test --package adit-tests --test suite -- readme::reference

# The benchmark, as root: all of it, or what its flags say (--quick, --rows w2, --help)
bench *FLAGS:
    cargo run --release --package adit-tests --bin adit-bench -- {{FLAGS}}

# One of the other benchmarks: outages (as root), carriers
cost NAME *ARGS:
    cargo bench --package adit-tests --bench {{NAME}} -- {{ARGS}}

# Instructions per token, request and megabyte, beside the accepted ones; --accept accepts them
instructions *FLAGS:
    cargo run --package adit-tests --bin adit-bench -- instructions {{FLAGS}}

# Cut, kill, cancel and load both programs for more than an hour (--short, --only kills, --help)
endure *FLAGS:
    cargo run --release --package adit-tests --bin adit-bench -- endure {{FLAGS}}

# Fuzz one parser: a name in common/proto/fuzz/seeds. Needs cargo-fuzz
fuzz TARGET SECONDS="120":
    bash .ci/fuzz {{SECONDS}} {{TARGET}}

# Licenses, sources and banned crates
dependencies:
    cargo deny check bans licenses sources

# Known vulnerabilities; needs the network
advisories:
    cargo deny check advisories
