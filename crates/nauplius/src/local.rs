//! The in-process transport: the same pipeline without sockets and encoding.
//!
//! A component in the API server's process calls it directly under its own identity. Authorization and admission stand
//! behind the call exactly as behind HTTPS.

use std::sync::Arc;

use apiserver::{ApiServer, User};
use async_trait::async_trait;
use bytes::Bytes;
use client::Transport;
use meta::{Reply, Request, Status};

pub struct Local {
    server: Arc<ApiServer>,
    user: Arc<User>,
    user_agent: String,
}

impl Local {
    /// Calls under `user`, whom every authenticated caller's group is added to.
    pub fn new(server: Arc<ApiServer>, user: &str, groups: &[&str], user_agent: &str) -> Self {
        let mut user = User::new(user, groups);
        user.groups.push(apiserver::authn::AUTHENTICATED.into());
        Self { server, user: Arc::new(user), user_agent: user_agent.into() }
    }

    /// A client over this transport, its writes recorded under the user agent's name.
    pub fn client(self) -> client::Client {
        let agent = self.user_agent.clone();
        client::Client::new(self).with_field_manager(&agent)
    }
}

#[async_trait]
impl Transport for Local {
    async fn call(&self, request: Request) -> Result<Reply, Status> {
        self.server.call_within(&self.user, &self.user_agent, request).await
    }

    async fn get_path(&self, path_and_query: &str) -> Result<Bytes, Status> {
        apiserver::http::get_path(&self.server, &self.user, path_and_query).await
    }
}
