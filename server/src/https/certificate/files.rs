//! A certificate and its key in files of the owner, for example those of certbot.

use std::{
    fs::Metadata,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use common::machine::{
    process,
    report::{Exit, Failure},
};
use rustls::{
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use zeroize::Zeroizing;

use crate::outside;

/// The longest file that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// Where a certificate and its key are.
#[derive(Debug, Clone)]
pub(super) struct Files {
    /// The certificate and those of its CAs, in PEM.
    pub(super) cert: PathBuf,
    /// The private key, in PEM.
    pub(super) key: PathBuf,
}

/// What changes when a file is replaced or written.
pub(super) type Stamp = [Option<(u64, u64, i64, i64, u64)>; 2];

impl Files {
    /// How the files are now, to notice changes.
    pub(super) fn stamp(&self) -> Stamp {
        [&self.cert, &self.key].map(|path| {
            let file = std::fs::metadata(path).ok()?;
            Some((file.dev(), file.ino(), file.mtime(), file.mtime_nsec(), file.len()))
        })
    }

    /// Reads both files.
    ///
    /// # Errors
    /// What is wrong with one of them, or that they do not belong together.
    pub(super) fn read(&self) -> Result<Arc<CertifiedKey>, Failure> {
        let pem = read(&self.cert, |_| None)?;
        let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|e| wrong(&self.cert, "is not in PEM", e))?;
        if chain.is_empty() {
            return Err(usage(format!("`{}` has no certificate", self.cert.display()))
                .hint("it begins with `-----BEGIN CERTIFICATE-----`; of certbot it is the file fullchain.pem"));
        }
        let pem = read(&self.key, |file| {
            (file.mode() & 0o007 != 0).then(|| {
                usage(format!(
                    "every user of this machine may read the private key `{}`",
                    self.key.display()
                ))
                .hint(format!("close it: `chmod o-rwx '{}'`", self.key.display()))
            })
        })?;
        let der = PrivateKeyDer::from_pem_slice(&pem)
            .map_err(|e| wrong(&self.key, "has no private key in PEM", e))?;
        let key = any_supported_type(&der)
            .map_err(|e| wrong(&self.key, "has a key that can't be used", e))?;
        let pair = CertifiedKey::new(chain, key);
        pair.keys_match().map_err(|e| {
            usage(format!(
                "`{}` and `{}` do not belong together",
                self.cert.display(),
                self.key.display()
            ))
            .source(e)
            .hint("name the key for which this certificate was issued")
        })?;
        Ok(Arc::new(pair))
    }
}

fn read(
    path: &Path,
    refused: impl FnOnce(&Metadata) -> Option<Failure>,
) -> Result<Zeroizing<Vec<u8>>, Failure> {
    use std::io::Read;
    let failed = |e: io::Error| {
        let failure = usage(format!("cannot read `{}`", path.display()));
        let hint = match e.kind() {
            io::ErrorKind::PermissionDenied => format!(
                "aditd runs as the user with the number {}: let that user read the file, or copy it to where it may",
                process::uid()
            ),
            _ => "name the files with --tls-cert and --tls-key".to_owned(),
        };
        let failure = failure.source(e);
        // At a renewal; at the start nothing was given up yet.
        let hint = outside::cure(&failure).map_or(hint, str::to_owned);
        failure.hint(hint)
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if let Some(refused) = refused(&metadata) {
        return Err(refused);
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(
        usize::try_from(metadata.len().min(LONGEST)).unwrap_or(0),
    ));
    file.take(LONGEST).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn wrong(path: &Path, what: &str, why: impl std::error::Error + Send + Sync + 'static) -> Failure {
    usage(format!("`{}` {what}", path.display()))
        .source(why)
        .hint("name the files in PEM with --tls-cert and --tls-key")
}

fn usage(what: String) -> Failure {
    Failure::new(what).exit(Exit::Usage)
}
