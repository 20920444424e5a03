//! Subresources that act: a POST of one object that changes or makes another.
//!
//! Streams and proxied calls are in [`connect`]; they are not answered with objects.

pub mod binding;
pub mod connect;
mod eviction;
mod rewrite;
pub mod scale;
mod token;

use meta::{Reply, Status};

use crate::admission::{Attributes, NAMESPACE_LIFECYCLE, Operation};
use crate::pipeline::{Target, body};
use crate::server::ApiServer;
use crate::webhook::admission::admit_body;

/// Serves a POST to an acting subresource.
pub async fn act(server: &ApiServer, target: Target<'_>) -> Result<Reply, Status> {
    let sub = target.served.resource.subresource(&target.request.subresource).ok_or_else(Status::unknown_path)?;
    let mut object = body::decode_options(&target.request.body, &sub.body.kind)?;
    let attributes = Attributes::new(&target, Operation::Create)?;
    NAMESPACE_LIFECYCLE.admit(server, &attributes, &target.request.name).await?;
    admit_body(server, &attributes, sub.body.clone(), &mut object).await?;
    if &*target.request.subresource == "binding" {
        if crate::pipeline::metadata::text(&object, "name") != target.request.name {
            return Err(Status::bad_request("name in URL does not match name in Binding object"));
        }
        return binding::bind(server, target, &object).await;
    }
    let mut request = target.request.clone();
    request.body = meta::RequestBody::Value { content_type: "application/json", value: object };
    let target = Target { request: &request, ..target };
    match &*target.request.subresource {
        "eviction" => Box::pin(eviction::evict(server, target)).await,
        "token" => Box::pin(token::create(server, target)).await,
        _ => Err(Status::unknown_path()),
    }
}

fn created() -> Reply {
    let mut status = Status::success();
    status.code = 201;
    Reply::Value { value: status.to_value(), code: 201 }
}
