//! The certificate of a server: read from its files, and again when they change.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

/// Largest file of a certificate or a key, in bytes. A chain has some KiB.
const TLS_FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages explain the fields
pub enum TlsError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: no PEM file of {expected}: {reason}", path.display())]
    Pem { path: PathBuf, expected: &'static str, reason: String },
    #[error("certificate {} and key {}: {source}", cert.display(), key.display())]
    Pair { cert: PathBuf, key: PathBuf, source: rustls::Error },
}

/// A certificate chain with its key, and the files they come from.
pub(super) struct Certificate {
    cert: PathBuf,
    key: PathBuf,
    current: RwLock<Arc<CertifiedKey>>,
}

/// The content of both files.
type Files = (Vec<u8>, Vec<u8>);

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("cert", &self.cert).field("key", &self.key).finish_non_exhaustive()
    }
}

impl Certificate {
    pub(super) fn read(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let current = certified(cert, key, &(read_file(cert)?, read_file(key)?))?;
        Ok(Self { cert: cert.into(), key: key.into(), current: RwLock::new(Arc::new(current)) })
    }

    /// What handshakes are made with. Follows the certificate by itself.
    pub(super) fn acceptor(self: &Arc<Self>) -> Result<TlsAcceptor, rustls::Error> {
        let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let mut config = config.with_no_client_auth().with_cert_resolver(Arc::new(Resolver(self.clone())));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config).into())
    }

    /// Reads both files every `interval`, and uses them from then on. For ever.
    ///
    /// They are two, so for a moment they may not fit each other; what was used before stays then.
    pub(super) async fn watch(self: Arc<Self>, interval: Duration) {
        let mut last: Option<Files> = None;
        let mut has_failed = false;
        loop {
            let (this, seen) = (self.clone(), last.clone());
            let read = tokio::task::spawn_blocking(move || {
                let files = (read_file(&this.cert)?, read_file(&this.key)?);
                if seen.as_ref() == Some(&files) {
                    return Ok(None);
                }
                let certified = certified(&this.cert, &this.key, &files);
                Ok::<_, TlsError>(Some((files, certified)))
            });
            match read.await {
                Ok(Ok(None)) => has_failed = false,
                Ok(Ok(Some((files, certified)))) => {
                    has_failed = false;
                    let is_first = last.replace(files).is_none();
                    match certified {
                        Ok(certified) => {
                            *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certified);
                            if !is_first {
                                info!(cert = %self.cert.display(), "the certificate was read again");
                            }
                        }
                        Err(error) => warn!(%error, "the certificate cannot be used, the one before stays"),
                    }
                }
                // Said once, not every time.
                Ok(Err(_)) if has_failed => {}
                Ok(Err(error)) => {
                    has_failed = true;
                    warn!(%error, "the certificate cannot be read, the one before stays");
                }
                Err(error) => warn!(%error, "reading the certificate failed"),
            }
            tokio::time::sleep(interval).await;
        }
    }
}

struct Resolver(Arc<Certificate>);

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn read_file(path: &Path) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(TLS_FILE_BYTES_MAX).read_to_end(&mut bytes));
    read.map_err(|source| TlsError::Io { path: path.into(), source })?;
    Ok(bytes)
}

fn certified(cert: &Path, key: &Path, (cert_pem, key_pem): &Files) -> Result<CertifiedKey, TlsError> {
    let not_certs = |reason: String| TlsError::Pem { path: cert.into(), expected: "certificates", reason };
    let chain = CertificateDer::pem_slice_iter(cert_pem).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| not_certs(error.to_string()))?;
    if chain.is_empty() {
        return Err(not_certs("it has none".to_owned()));
    }
    let private = PrivateKeyDer::from_pem_slice(key_pem).map_err(|error| TlsError::Pem {
        path: key.into(),
        expected: "a private key",
        reason: error.to_string(),
    })?;
    CertifiedKey::from_der(chain, private, &provider()).map_err(|source| TlsError::Pair {
        cert: cert.into(),
        key: key.into(),
        source,
    })
}
