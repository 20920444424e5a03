//! Image collection: when the image file system fills up, images no container uses go, the longest unused first.

use std::collections::HashSet;
use std::sync::PoisonError;
use std::time::{Duration, Instant, SystemTime};

use crate::agent::Context;
use crate::config::ImageGc;
use crate::cri::v1;
use crate::metrics::families;

/// How often the file system is looked at; as upstream.
const EVERY: Duration = Duration::from_secs(300);

/// Runs until the agent stops.
pub async fn run(context: &Context, policy: ImageGc) {
    loop {
        tokio::time::sleep(EVERY).await;
        if let Err(error) = collect(context, &policy).await {
            tracing::warn!("image collection failed: {error:#}");
        }
    }
}

async fn collect(context: &Context, policy: &ImageGc) -> anyhow::Result<()> {
    let info = context.engine.image_fs_info(v1::ImageFsInfoRequest {}).await?;
    let Some(mountpoint) =
        info.image_filesystems.first().and_then(|f| f.fs_id.as_ref()).map(|id| id.mountpoint.clone())
    else {
        return Ok(());
    };
    let stat = nix::sys::statvfs::statvfs(mountpoint.as_str())?;
    let capacity = stat.blocks() * stat.fragment_size();
    let used = capacity - stat.blocks_available() * stat.fragment_size();
    let to_free = if capacity == 0 || used * 100 / capacity < policy.high_percent {
        0
    } else {
        used.saturating_sub(capacity * policy.low_percent / 100)
    };
    if to_free == 0 && policy.max_age.is_none() {
        return Ok(());
    }
    let freed = remove(context, to_free, policy.min_age, policy.max_age).await?;
    if freed < to_free {
        let message = format!(
            "Failed to garbage collect required amount of images. Attempted to free {to_free} bytes, but only found {freed} bytes eligible to free."
        );
        context.events.warning(&context.events.about_node(), "FreeDiskSpaceFailed", &message);
    }
    Ok(())
}

/// Removes all images that no container uses.
pub async fn remove_unused(context: &Context) -> anyhow::Result<()> {
    remove(context, u64::MAX, Duration::ZERO, None).await.map(drop)
}

/// Removes unused images, the longest unused first, until so many bytes are free; those beyond `max_age` in any case.
/// How many bytes that were.
async fn remove(context: &Context, to_free: u64, min_age: Duration, max_age: Option<Duration>) -> anyhow::Result<u64> {
    let containers = context.engine.list_containers(v1::ListContainersRequest::default()).await?.containers;
    let in_use: HashSet<String> = containers
        .into_iter()
        .flat_map(|c| [c.image_ref, c.image_id, c.image.map(|i| i.image).unwrap_or_default()])
        .collect();
    let listed = SystemTime::now();
    let images = context.engine.list_images(v1::ListImagesRequest::default()).await?.images;
    context.images.forget_all_but(&images, listed);
    let now = Instant::now();
    let mut idle: Vec<(Option<Instant>, v1::Image)> = {
        let mut seen = context.images.used.lock().unwrap_or_else(PoisonError::into_inner);
        images
            .into_iter()
            .filter(|i| {
                !i.pinned
                    && !in_use.contains(&i.id)
                    && !i.repo_tags.iter().chain(&i.repo_digests).any(|n| in_use.contains(n))
            })
            .map(|i| {
                // Age counts from when this agent first saw the image.
                let last = *seen.entry(i.id.clone()).or_insert(now);
                (Some(last), i)
            })
            .collect()
    };
    idle.retain(|(last, _)| last.is_none_or(|l| now.duration_since(l) >= min_age));
    idle.sort_by_key(|(last, _)| *last);
    let mut freed = 0u64;
    for (last, image) in idle {
        let old = max_age.is_some_and(|m| last.is_some_and(|l| now.duration_since(l) >= m));
        if freed >= to_free && !old {
            continue;
        }
        let spec = v1::ImageSpec { image: image.id.clone(), ..Default::default() };
        context.engine.remove_image(v1::RemoveImageRequest { image: Some(spec) }).await?;
        tracing::info!(image = %image.id, bytes = image.size, "unused image removed");
        context.metrics.count(&families::IMAGES_COLLECTED, &[if freed < to_free { "space" } else { "age" }]);
        freed = freed.saturating_add(image.size);
    }
    Ok(freed)
}
