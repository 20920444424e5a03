//! JSON posted to a web server that is no API server: what components ask of others' extensions.
//!
//! One address, its own TLS settings, a time limit and a limit on answers. Nothing is tried twice.

use std::time::Duration;

use bytes::Bytes;
use http::header;
use http_body_util::BodyExt;
use kube::client::Body;
use kube::config::{
    AuthInfo, Cluster, Context, KubeConfigOptions, Kubeconfig, NamedAuthInfo, NamedCluster, NamedContext,
};
use meta::{Reason, Status};

/// Bytes of an answer: a list of ten thousand large nodes.
const MAX_ANSWER: usize = 1 << 28;

/// How a site's identity is checked, and ours shown. Data is base64, as in a kubeconfig.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    pub insecure: bool,
    pub server_name: Option<String>,
    pub certificate_file: Option<String>,
    pub certificate_data: Option<String>,
    pub key_file: Option<String>,
    pub key_data: Option<String>,
    pub authority_file: Option<String>,
    pub authority_data: Option<String>,
}

/// See the module.
pub struct Site {
    client: kube::Client,
    within: Duration,
}

fn wrong(why: impl std::fmt::Display) -> Status {
    Status::bad_request(why.to_string())
}

impl Site {
    /// A site by the address below which it is asked.
    pub async fn new(address: &str, tls: &Tls, within: Duration) -> Result<Self, Status> {
        let name = "site".to_string();
        let cluster = Cluster {
            server: Some(address.trim_end_matches('/').into()),
            insecure_skip_tls_verify: tls.insecure.then_some(true),
            certificate_authority: tls.authority_file.clone(),
            certificate_authority_data: tls.authority_data.clone(),
            tls_server_name: tls.server_name.clone(),
            ..Cluster::default()
        };
        let user = AuthInfo {
            client_certificate: tls.certificate_file.clone(),
            client_certificate_data: tls.certificate_data.clone(),
            client_key: tls.key_file.clone(),
            client_key_data: tls.key_data.clone().map(Into::into),
            ..AuthInfo::default()
        };
        let context = Context { cluster: name.clone(), user: Some(name.clone()), ..Context::default() };
        let kubeconfig = Kubeconfig {
            clusters: vec![NamedCluster { name: name.clone(), cluster: Some(cluster), ..NamedCluster::default() }],
            auth_infos: vec![NamedAuthInfo { name: name.clone(), auth_info: Some(user), ..NamedAuthInfo::default() }],
            contexts: vec![NamedContext { name: name.clone(), context: Some(context), ..NamedContext::default() }],
            current_context: Some(name),
            ..Kubeconfig::default()
        };
        let mut config =
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(wrong)?;
        config.default_retry = false;
        config.connect_timeout = Some(within);
        Ok(Self { client: kube::Client::try_from(config).map_err(wrong)?, within })
    }

    /// Posts a body to a path below the address; the answer must be a 200.
    pub async fn post(&self, path: &str, body: Vec<u8>) -> Result<Bytes, Status> {
        let request = http::Request::post(format!("/{path}")).header(header::CONTENT_TYPE, "application/json");
        let request = request.body(Body::from(body)).map_err(wrong)?;
        let exchange = async {
            let unavailable = |why: String| Status::new(Reason::ServiceUnavailable, why);
            let response = self.client.send(request).await.map_err(|e| unavailable(e.to_string()))?;
            let code = response.status().as_u16();
            if code != 200 {
                return Err(unavailable(format!("code {code}")));
            }
            let body = http_body_util::Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            Ok(body.map_err(|e| unavailable(e.to_string()))?.to_bytes())
        };
        let late = |_| Err(Status::timeout("the extension gave no answer in time", 0));
        tokio::time::timeout(self.within, exchange).await.unwrap_or_else(late)
    }
}
