//! TLS for connections we open. It must not know what they carry.

use std::error::Error;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_platform_verifier::Verifier;

/// Whom a connection of ours trusts: what the machine trusts (`SSL_CERT_FILE` is honoured on Linux), and
/// what is added.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    added: Vec<CertificateDer<'static>>,
    anyone: bool,
}

/// A text that holds no certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it holds no certificate in PEM form")]
pub struct NoCertificate;

impl Trust {
    /// Anyone, whatever certificate they show.
    pub fn anyone() -> Self {
        Self {
            added: Vec::new(),
            anyone: true,
        }
    }

    /// The certificates of a PEM text (RFC 7468) too.
    ///
    /// # Errors
    /// When there is none in it.
    pub fn with_pem(mut self, pem: &[u8]) -> Result<Self, NoCertificate> {
        let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
        let certificates = certificates.map_err(|_| NoCertificate)?;
        if certificates.is_empty() {
            return Err(NoCertificate);
        }
        self.added.extend(certificates);
        Ok(self)
    }
}

/// A client configuration.
///
/// # Errors
/// When the machine's trust store cannot be used, or what was added is no certificate.
pub fn client_config(trust: &Trust) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous();
    let verifier: Arc<dyn ServerCertVerifier> = if trust.anyone {
        Arc::new(Anyone(provider))
    } else {
        Arc::new(Known {
            chains: Verifier::new_with_extra_roots(trust.added.iter().cloned(), provider)?,
            added: trust.added.clone(),
        })
    };
    let config = builder.with_custom_certificate_verifier(verifier);
    Ok(config.with_no_client_auth())
}

/// Believes what the machine believes, and certificates that were added: as roots, and as themselves. What
/// `openssl req -x509` makes for a server says of itself that it is a root.
#[derive(Debug)]
struct Known {
    chains: Verifier,
    added: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Known {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let by_chain = self
            .chains
            .verify_server_cert(shown, intermediates, name, ocsp, now);
        match by_chain {
            // Its time was looked at before that, its name was not.
            Err(error) if self.added.contains(shown) && is_root_itself(&error) => {
                verify_server_name(&ParsedCertificate::try_from(shown)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            settled => settled,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

/// Whether all that speaks against a server's certificate is that it is a root's.
fn is_root_itself(error: &rustls::Error) -> bool {
    let rustls::Error::InvalidCertificate(CertificateError::Other(why)) = error else {
        return false;
    };
    let why = why.0.downcast_ref::<webpki::Error>();
    why == Some(&webpki::Error::CaUsedAsEndEntity)
}

/// Believes every certificate, also one that nothing here can read, such as of X.509 version 1: who shows it may be
/// anyone in any case.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// What is wrong with a connection's TLS, in words, if an error is about that.
pub fn explained(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    let mut causes = std::iter::from_fn(|| {
        let this = cause?;
        cause = this.source();
        Some(this)
    });
    causes.find_map(error_in).map(explain)
}

/// The error of TLS in another one: rustls wraps its own as an error of input and output.
pub(crate) fn error_in<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let io = error.downcast_ref::<std::io::Error>();
    let wrapped = io.and_then(std::io::Error::get_ref);
    let wrapped = wrapped.and_then(|inner| inner.downcast_ref::<rustls::Error>());
    wrapped.or_else(|| error.downcast_ref::<rustls::Error>())
}

/// What is wrong with a connection's TLS, in words.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kinds of rustls can grow"
)]
pub(crate) fn explain(error: &rustls::Error) -> String {
    use rustls::Error as Tls;
    let certificate = match error {
        Tls::InvalidCertificate(why) => why,
        Tls::InvalidMessage(_) => {
            return "no TLS is spoken there: is this an http address?".to_owned();
        }
        Tls::AlertReceived(alert) => {
            return format!("the server ended the TLS handshake: {alert:?}");
        }
        Tls::PeerIncompatible(_) => {
            return "the server speaks neither TLS 1.2 nor 1.3 with a cipher that is known here"
                .to_owned();
        }
        other => return format!("the TLS handshake failed: {other}"),
    };
    let trusts = "--ca-file FILE trusts it, --insecure every certificate";
    match certificate {
        CertificateError::UnknownIssuer => {
            format!("nobody that this machine trusts vouches for its certificate: {trusts}")
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet: is the clock right?".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "its certificate is for another name".to_owned()
        }
        CertificateError::Revoked => "its certificate was revoked".to_owned(),
        other => match self_signed(other) {
            true => format!("its certificate is self-signed: {trusts}"),
            false => format!("its certificate cannot be used: {}; {trusts}", plain(other)),
        },
    }
}

/// Whether a certificate speaks for itself alone.
fn self_signed(error: &CertificateError) -> bool {
    let CertificateError::Other(why) = error else {
        return false;
    };
    let why = why.0.downcast_ref::<webpki::Error>();
    matches!(
        why,
        Some(webpki::Error::CaUsedAsEndEntity | webpki::Error::UnknownIssuer)
    )
}

/// An error without the names of types.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kinds of rustls can grow"
)]
fn plain(error: &CertificateError) -> String {
    match error {
        CertificateError::BadEncoding => "it is not written as X.509 version 3".to_owned(),
        CertificateError::BadSignature => "its signature is not right".to_owned(),
        CertificateError::Other(why) => {
            let why = why.0.downcast_ref::<webpki::Error>();
            match why {
                Some(webpki::Error::UnsupportedCertVersion) => {
                    "it is of an older version than X.509 version 3".to_owned()
                }
                _ => "it breaks the rules for certificates".to_owned(),
            }
        }
        _ => "it breaks the rules for certificates".to_owned(),
    }
}
