//! TLS for connections we open. It must not know what they carry.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls_platform_verifier::BuilderVerifierExt;

/// A client configuration that trusts what the machine trusts (`SSL_CERT_FILE` is honoured on
/// Linux).
///
/// # Errors
/// When the machine's trust store cannot be used.
pub fn client_config() -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_platform_verifier()?;
    Ok(builder.with_no_client_auth())
}
