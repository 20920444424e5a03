//! StorageVersionMigrations: every object of a resource written once more, so that it is stored in the present version.

use client::{Client, ListOptions, Patch};
use futures::FutureExt;
use k8s_openapi::api::storagemigration::v1::StorageVersionMigration;
use meta::{Object, Status};
use serde_json::json;

use crate::conditions::{self, Condition};
use crate::plan::{Action, Plan};
use crate::runner::{Ask, Controller, own_key};
use crate::{Context, decoded, status_of};

/// Objects read at a time.
const PAGE: u64 = 500;

/// Writes every object as it is; one that changed or went meanwhile was written by somebody else. How many there were.
async fn rewrite(client: &Client, migration: &StorageVersionMigration) -> Result<usize, Status> {
    let Some(spec) = &migration.spec else { return Ok(0) };
    let (group, plural) = (&spec.resource.group, &spec.resource.resource);
    let found = client.discover().await?;
    let wanted =
        |a: &&client::ApiResource| *a.resource.group == **group && *a.resource.resource == **plural && a.preferred;
    let api = found.resources.iter().find(wanted);
    let api =
        api.ok_or_else(|| Status::new(meta::Reason::NotFound, format!("resource {plural}.{group} is not served")))?;
    let mut options = ListOptions { limit: Some(PAGE), ..ListOptions::default() };
    let mut count = 0;
    loop {
        let list = client.dynamic(api.resource.clone()).list(&options).await?;
        for object in &list.items {
            let own = client.dynamic(api.resource.clone()).namespaced(&object.meta.namespace);
            let metadata = json!({"uid": &*object.meta.uid, "resourceVersion": object.resource_version.to_string()});
            match own.patch(&object.meta.name, Patch::Merge(json!({"metadata": metadata}))).await {
                Ok(_) => count += 1,
                Err(status) if status.is_conflict() || status.is_not_found() => {}
                Err(status) => return Err(status),
            }
        }
        match list.continue_token {
            Some(token) => options.continue_token = Some(token),
            None => return Ok(count),
        }
    }
}

fn ended(object: &Object) -> Result<bool, Status> {
    let status = status_of(object)?;
    Ok(["Succeeded", "Failed"].iter().any(|c| conditions::is_true(&status, c)))
}

pub fn migrator(cx: &Context) -> Controller {
    let migrations = cx.informers.get::<StorageVersionMigration>();
    let resource = client::gvr_of::<StorageVersionMigration>();
    let (of, client) = (migrations.clone(), cx.client.clone());
    let reconcile = move |ask: Ask| {
        let (of, client, resource) = (of.clone(), client.clone(), resource.clone());
        async move {
            let mut plan = Plan::nothing();
            let Some(object) = of.get(&ask.key).filter(|o| o.meta.deletion_timestamp.is_none()) else {
                return Ok(plan);
            };
            if ended(&object)? {
                return Ok(plan);
            }
            let known = status_of(&object)?;
            let mut status = if known.is_object() { known.clone() } else { json!({}) };
            if !conditions::is_true(&status, "Running") {
                let running = Condition {
                    kind: "Running",
                    status: "True",
                    reason: "StorageVersionMigrationInProgress",
                    message: "",
                };
                conditions::update(&mut status, running, ask.now);
                plan.act(Action::status(&resource, &object, status)?);
                // It goes on when this is seen.
                return Ok(plan);
            }
            let migration = decoded::<StorageVersionMigration>(&object)?;
            let (kind, reason, message) = match rewrite(&client, &migration).await {
                Ok(count) => {
                    tracing::info!(migration = %ask.key, count, "stored anew");
                    ("Succeeded", "StorageVersionMigrationSucceeded", String::new())
                }
                Err(why) if why.is_not_found() => ("Failed", "StorageVersionMigrationFailed", why.message),
                Err(why) => return Err(why),
            };
            let running = Condition { kind: "Running", status: "False", reason, message: "" };
            conditions::update(&mut status, running, ask.now);
            conditions::update(&mut status, Condition { kind, status: "True", reason, message: &message }, ask.now);
            plan.act(Action::status(&resource, &object, status)?);
            Ok(plan)
        }
        .boxed()
    };
    Controller::with_io("storage-version-migrator-controller", reconcile).watch(&migrations, own_key).workers(1)
}
