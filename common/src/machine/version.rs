//! What `--version` prints.

use std::sync::LazyLock;

use proto::wire::ALPN_TUNNEL;

/// The version, the commit that the program was built from, and the protocol that it speaks:
/// `0.1.0 (abc1234, protocol 1)`. A debug build does not know its commit.
pub fn version() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let alpn = String::from_utf8_lossy(ALPN_TUNNEL);
        let protocol = alpn.rsplit('/').next().unwrap_or_default();
        format!("{} ({}, protocol {protocol})", env!("CARGO_PKG_VERSION"), env!("ADIT_BUILT_FROM"))
    });
    &TEXT
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_version_names_the_commit_and_the_protocol() {
        let version = super::version();
        assert!(version.starts_with(concat!(env!("CARGO_PKG_VERSION"), " (")), "{version}");
        assert!(version.ends_with(", protocol 1)"), "{version}");
    }
}
