//! Whose certificates `authorize` is believed with.

use std::{
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use common::{
    machine::report::{Exit, Failure},
    transport::tls,
};
use proto::crypto::sha256;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

/// The longest file that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// The CAs that are trusted: those of this system, or those of one file.
#[derive(Clone)]
pub struct Trust {
    pub(super) tls: Arc<ClientConfig>,
    /// The file, and its hash, to notice that it has changed.
    file: Option<(PathBuf, [u8; 32])>,
}

impl PartialEq for Trust {
    fn eq(&self, other: &Self) -> bool {
        self.file == other.file
    }
}

impl Eq for Trust {}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trust")
    }
}

impl Trust {
    /// The file with the CAs; `None` for those of the system.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.file.as_ref().map(|(path, _)| &**path)
    }

    /// Trusts the CAs of this system, or only those in `file` (PEM).
    ///
    /// # Errors
    /// Exit code 2 if there are none.
    pub(crate) fn new(file: Option<&Path>) -> Result<Self, Failure> {
        let mut roots = RootCertStore::empty();
        let hash = match file {
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if roots.is_empty() {
                    return Err(usage("this system trusts no certificate authority")
                        .hint("install its CA certificates, for example `apt install ca-certificates`")
                        .hint("or name those of `authorize` in a file: `authorize_ca`"));
                }
                None
            }
            Some(path) => {
                let pem = read(path)?;
                for certificate in CertificateDer::pem_slice_iter(&pem) {
                    let certificate = certificate.map_err(|e| wrong(path, e))?;
                    roots.add(certificate).map_err(|e| wrong(path, e))?;
                }
                if roots.is_empty() {
                    return Err(usage(format!(
                        "`{}` (`authorize_ca`) has no certificate",
                        path.display()
                    ))
                    .hint("it begins with `-----BEGIN CERTIFICATE-----`"));
                }
                Some((path.to_owned(), sha256(&pem)))
            }
        };
        let config = ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| Failure::new("cannot use TLS").source(e))?;
        let tls = config.with_root_certificates(roots).with_no_client_auth();
        Ok(Self { tls: Arc::new(tls), file: hash })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut pem = Vec::new();
    let taken = File::open(path).and_then(|file| file.take(LONGEST).read_to_end(&mut pem));
    taken.map_err(|e| wrong(path, e))?;
    Ok(pem)
}

fn wrong(path: &Path, why: impl std::error::Error + Send + Sync + 'static) -> Failure {
    usage(format!("cannot use `{}` (`authorize_ca`)", path.display()))
        .source(why)
        .hint("name a file with certificates in PEM that the server can read")
}

fn usage(what: impl fmt::Display) -> Failure {
    Failure::new(what).exit(Exit::Usage)
}
