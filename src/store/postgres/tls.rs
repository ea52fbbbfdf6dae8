//! TLS to PostgreSQL by rustls, with libpq's levels of trust (PostgreSQL documentation, section 34.19.1).

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256, Sha384, Sha512};
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::Socket;
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The protection of a connection: `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// No protection.
    Disable,
    /// Protection against eavesdropping, if the server supports it.
    Prefer,
    /// Protection against eavesdropping.
    Require,
    /// Protection against a server whose certificate was not signed by a trusted root, too.
    VerifyCa,
    /// Protection against a server that does not match the name in the URL, too.
    VerifyFull,
}

/// The certificates that are trusted: `sslrootcert`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Roots {
    /// None are known.
    None,
    /// The certificates in a file.
    File(PathBuf),
    /// The machine's certificates.
    System,
}

impl Roots {
    /// Returns the file that the parameter names or, without one, the file in the home directory, if it exists.
    pub(super) fn new(parameter: Option<&str>, of_home: Option<PathBuf>) -> Roots {
        match parameter {
            Some("system") => Roots::System,
            Some(path) => Roots::File(path.into()),
            None => of_home.filter(|file| file.exists()).map_or(Roots::None, Roots::File),
        }
    }

    fn load(&self) -> Result<RootCertStore, String> {
        let mut store = RootCertStore::empty();
        match self {
            Roots::None => return Err("no root certificate is known: pass sslrootcert".into()),
            Roots::System => {
                let (added, _) =
                    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if added == 0 {
                    return Err(
                        "this machine has no root certificates: install ca-certificates".into()
                    );
                }
            }
            Roots::File(path) => {
                let shown = path.display();
                let cannot = |error: &dyn std::fmt::Display| {
                    format!("sslrootcert {shown} cannot be read ({error})")
                };
                let certificates =
                    CertificateDer::pem_file_iter(path).map_err(|error| cannot(&error))?;
                for certificate in certificates {
                    let certificate = certificate.map_err(|error| cannot(&error))?;
                    store.add(certificate).map_err(|error| cannot(&error))?;
                }
                if store.is_empty() {
                    return Err(format!("sslrootcert {shown} holds no certificate in PEM format"));
                }
            }
        }
        Ok(store)
    }
}

impl Mode {
    /// Returns the mode that the parameter sets, with libpq's default.
    pub(super) fn new(parameter: Option<&str>, roots: &Roots) -> Result<Mode, String> {
        let mode = match parameter {
            Some("disable") => Mode::Disable,
            None if *roots == Roots::System => Mode::VerifyFull,
            None | Some("prefer") => Mode::Prefer,
            // If a root certificate is at hand, it is checked, as in libpq.
            Some("require") if *roots != Roots::None => Mode::VerifyCa,
            Some("require") => Mode::Require,
            Some("verify-ca") => Mode::VerifyCa,
            Some("verify-full") => Mode::VerifyFull,
            Some(_) => {
                return Err("has an sslmode other than disable, prefer, require, verify-ca, and \
                            verify-full"
                    .into());
            }
        };
        Ok(mode)
    }

    /// Returns the mode for the PostgreSQL client.
    pub(super) fn negotiation(self) -> SslMode {
        match self {
            Mode::Disable => SslMode::Disable,
            Mode::Prefer => SslMode::Prefer,
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => SslMode::Require,
        }
    }

    /// Returns a connector for this mode.
    ///
    /// # Errors
    ///
    /// A sentence, if the root certificates cannot be read.
    pub(super) fn connector(self, roots: &Roots) -> Result<Connector, String> {
        let provider = Arc::new(ring::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = match self {
            Mode::Disable | Mode::Prefer | Mode::Require => {
                Arc::new(Lenient { roots: None, provider: Arc::clone(&provider) })
            }
            Mode::VerifyCa => {
                Arc::new(Lenient { roots: Some(roots.load()?), provider: Arc::clone(&provider) })
            }
            Mode::VerifyFull => {
                let (roots, provider) = (Arc::new(roots.load()?), Arc::clone(&provider));
                WebPkiServerVerifier::builder_with_provider(roots, provider)
                    .build()
                    .map_err(|error| error.to_string())?
            }
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        Ok(Connector(TlsConnector::from(Arc::new(config))))
    }
}

/// Checks less than rustls does, for modes that require less: it does not check the name, and without roots, it checks only
/// that the server has the key of its certificate.
#[derive(Debug)]
struct Lenient {
    roots: Option<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(roots) = &self.roots {
            let certificate = ParsedCertificate::try_from(end_entity)?;
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(
                &certificate,
                roots,
                intermediates,
                now,
                algorithms,
            )?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Makes TLS connections.
#[derive(Clone)]
pub(super) struct Connector(TlsConnector);

/// Makes one TLS connection, to a server of this name.
pub(super) struct Handshake(TlsConnector, ServerName<'static>);

impl MakeTlsConnect<Socket> for Connector {
    type Stream = Stream;
    type TlsConnect = Handshake;
    type Error = io::Error;

    fn make_tls_connect(&mut self, name: &str) -> io::Result<Handshake> {
        // Unix sockets do not have a host name and never use TLS.
        let name = if name.is_empty() { "localhost" } else { name };
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| io::Error::other("the name of the host is none that a certificate has"))?;
        Ok(Handshake(self.0.clone(), name))
    }
}

impl TlsConnect<Socket> for Handshake {
    type Stream = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        Box::pin(async move { Ok(Stream(Box::new(self.0.connect(self.1, socket).await?))) })
    }
}

/// A TLS connection.
pub(super) struct Stream(Box<TlsStream<Socket>>);

impl tokio_postgres::tls::TlsStream for Stream {
    fn channel_binding(&self) -> ChannelBinding {
        let certificates = self.0.get_ref().1.peer_certificates();
        let end_point = certificates.and_then(|certificates| end_point(certificates.first()?));
        end_point.map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

/// Returns the digest of a certificate, which reveals a server in the middle, because its certificate differs
/// (tls-server-end-point, RFC 5929, section 4.1). The hash function is taken from the certificate's signature, except that
/// SHA-256 replaces MD5 and SHA-1. Returns `None` for signatures without a separate hash.
fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    // Object identifiers of RFC 4055, section 5, and of RFC 5758, section 3.2.
    let digest = match signature_algorithm(certificate)? {
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 4 | 5 | 11]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2] => Sha256::digest(certificate).to_vec(),
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 12]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3] => Sha384::digest(certificate).to_vec(),
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 13]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4] => Sha512::digest(certificate).to_vec(),
        _ => return None,
    };
    Some(digest)
}

/// Returns the object identifier of the algorithm that has signed a certificate: the first element of the second of its
/// three parts (RFC 5280, section 4.1).
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    let (_, certificate, _) = element(certificate)?;
    let (_, _, after_signed) = element(certificate)?;
    let (_, algorithm, _) = element(after_signed)?;
    let (tag, identifier, _) = element(algorithm)?;
    (tag == 6).then_some(identifier)
}

/// Splits the first element off some DER (X.690, section 8.1). Returns its tag, its content, and the bytes after it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = der.split_first_chunk::<2>()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns an element of DER.
    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag, 0x82];
        bytes.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
        [bytes.as_slice(), content].concat()
    }

    #[test]
    fn a_certificate_is_hashed_as_it_is_signed() {
        let rsa = |last: u8| vec![0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, last];
        let ecdsa = |last: u8| vec![0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, last];
        for (algorithm, bytes) in [
            (rsa(5), Some(32)),
            (rsa(11), Some(32)),
            (rsa(12), Some(48)),
            (rsa(13), Some(64)),
            (ecdsa(2), Some(32)),
            (ecdsa(3), Some(48)),
            (ecdsa(4), Some(64)),
            // RSASSA-PSS names its hash elsewhere, and Ed25519 does not have one.
            (rsa(10), None),
            (vec![0x2b, 0x65, 0x70], None),
        ] {
            let signed = der(0x30, &[2, 1, 1].repeat(100));
            let algorithm = der(0x30, &[der(6, &algorithm), vec![5, 0]].concat());
            let certificate = der(0x30, &[signed, algorithm, der(3, &[0; 300])].concat());
            let digest = end_point(&certificate);
            assert_eq!(digest.as_ref().map(Vec::len), bytes);
            for cut in 0..certificate.len() {
                assert_eq!(end_point(&certificate[..cut]), None, "{cut}");
            }
        }
    }

    #[test]
    fn a_mode_asks_for_what_libpq_asks_for() {
        let file = Roots::new(Some("root.crt"), None);
        for (parameter, roots, expected) in [
            (None, &Roots::None, Mode::Prefer),
            (None, &file, Mode::Prefer),
            (None, &Roots::System, Mode::VerifyFull),
            (Some("disable"), &file, Mode::Disable),
            (Some("require"), &Roots::None, Mode::Require),
            (Some("require"), &file, Mode::VerifyCa),
            (Some("verify-ca"), &file, Mode::VerifyCa),
            (Some("verify-full"), &Roots::None, Mode::VerifyFull),
        ] {
            assert_eq!(Mode::new(parameter, roots), Ok(expected), "{parameter:?} {roots:?}");
        }
        assert!(Mode::new(Some("allow"), &file).unwrap_err().contains("prefer"));
    }

    #[test]
    fn who_verifies_needs_roots() {
        for mode in [Mode::VerifyCa, Mode::VerifyFull] {
            let said = mode.connector(&Roots::None).err().unwrap();
            assert!(said.contains("pass sslrootcert"), "{said}");
            let said = mode.connector(&Roots::File("/nowhere".into())).err().unwrap();
            assert!(said.contains("/nowhere"), "{said}");
        }
        assert!(Mode::Require.connector(&Roots::None).is_ok());
    }
}
