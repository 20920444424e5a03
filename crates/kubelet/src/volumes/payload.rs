//! What configMap, secret, downwardAPI and projected volumes contain. Reading the API happens in `references` and
//! `tokens`; this puts the files together.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret};

use super::atomic::{File, Payload};
use crate::spec::downward::{self, Surroundings};

const DEFAULT_MODE: i32 = 0o644;

/// Mode and owner of files that say nothing themselves.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    pub mode: i32,
    pub user: Option<i64>,
}

impl Defaults {
    pub fn new(mode: Option<i32>, user: Option<i64>) -> Self {
        Self { mode: mode.unwrap_or(DEFAULT_MODE), user }
    }

    fn file(&self, data: Vec<u8>, mode: Option<i32>, user: Option<i64>) -> File {
        File {
            data,
            mode: mode.unwrap_or(self.mode) as u32,
            user: user.or(self.user).and_then(|u| u32::try_from(u).ok()),
        }
    }
}

/// Keys to files, all of them or those named.
fn select(
    data: &BTreeMap<String, Vec<u8>>,
    items: Option<&Vec<KeyToPath>>,
    optional: bool,
    defaults: Defaults,
    what: &str,
    out: &mut Payload,
) -> Result<(), String> {
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        out.extend(data.iter().map(|(k, v)| (k.clone(), defaults.file(v.clone(), None, None))));
        return Ok(());
    };
    for item in items {
        match data.get(&item.key) {
            Some(value) => {
                out.insert(item.path.clone(), defaults.file(value.clone(), item.mode, item.user));
            }
            None if optional => {}
            None => return Err(missing(what, &item.key)),
        }
    }
    Ok(())
}

/// The files of a ConfigMap.
pub fn config_map(
    map: &Arc<ConfigMap>,
    items: Option<&Vec<KeyToPath>>,
    optional: bool,
    defaults: Defaults,
    out: &mut Payload,
) -> Result<(), String> {
    let mut data: BTreeMap<String, Vec<u8>> =
        map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes())).collect();
    data.extend(map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())));
    select(&data, items, optional, defaults, "configmap", out)
}

/// The files of a Secret.
pub fn secret(
    secret: &Arc<Secret>,
    items: Option<&Vec<KeyToPath>>,
    optional: bool,
    defaults: Defaults,
    out: &mut Payload,
) -> Result<(), String> {
    let data: BTreeMap<String, Vec<u8>> = secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect();
    select(&data, items, optional, defaults, "secret", out)
}

fn missing(what: &str, key: &str) -> String {
    match what {
        "configmap" => format!("configmap references non-existent config key: {key}"),
        _ => format!("references non-existent secret key: {key}"),
    }
}

/// The files of a downward API volume.
pub fn downward_api(
    pod: &Pod,
    items: Option<&Vec<DownwardAPIVolumeFile>>,
    defaults: Defaults,
    around: &Surroundings,
    out: &mut Payload,
) -> Result<(), String> {
    for item in items.into_iter().flatten() {
        let text = if let Some(field) = &item.field_ref {
            downward::field(pod, &field.field_path, around)?
        } else if let Some(resource) = &item.resource_field_ref {
            downward::resource(downward::named_container(pod, resource)?, resource, around)?
        } else {
            String::new()
        };
        out.insert(item.path.clone(), defaults.file(text.into_bytes(), item.mode, item.user));
    }
    Ok(())
}

/// One file.
pub fn single(path: &str, data: Vec<u8>, mode: Option<i32>, user: Option<i64>, defaults: Defaults, out: &mut Payload) {
    out.insert(path.into(), defaults.file(data, mode, user));
}
