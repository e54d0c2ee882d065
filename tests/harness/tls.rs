//! Certificates of tests, and what takes the TLS off before a server that has none.

use std::sync::Arc;

use rcgen::{CertificateParams, IsCa, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A certificate that vouches for itself.
pub struct Identity {
    /// The certificate.
    pub pem: String,
    /// A server that has it.
    pub config: Arc<ServerConfig>,
}

impl Identity {
    /// Of a host or an address, until the end of a year.
    pub fn new(host: &str, last_year: i32, is_ca: IsCa) -> Self {
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.is_ca = is_ca;
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(last_year, 12, 31);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let secret = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], secret)
            .unwrap();
        Self {
            pem: certificate.pem(),
            config: Arc::new(config),
        }
    }

    /// Takes the TLS off what comes, and passes it on to a server.
    pub fn terminate(
        &self,
        listener: TcpListener,
        server: String,
    ) -> impl Future<Output = ()> + Send + use<> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.config));
        async move {
            while let Ok((near, _)) = listener.accept().await {
                let (acceptor, server) = (acceptor.clone(), server.clone());
                tokio::spawn(async move {
                    // A client that does not trust us goes away here, and one whose server is gone.
                    let Ok(mut near) = acceptor.accept(near).await else {
                        return;
                    };
                    if let Ok(mut far) = TcpStream::connect(server).await {
                        let _ = copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        }
    }
}
