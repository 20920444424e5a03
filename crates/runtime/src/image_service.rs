//! CRI's ImageService, and the import of archives beside it.

use std::io::Read;
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt, stream};
use tonic::{Request, Response, Status, Streaming};

use crate::engine::Engine;
use crate::images::import;
use crate::images::store::Image;
use crate::runtime_service::failed;
use crate::transfer::image_transfer_server::ImageTransfer;
use crate::transfer::{ImportChunk, ImportSummary, ImportedImage};
use cri::v1::image_service_server::ImageService;
use cri::v1::{
    FilesystemIdentifier, FilesystemUsage, Image as CriImage, ImageFilter, ImageFsInfoRequest, ImageFsInfoResponse,
    ImageSpec, ImageStatusRequest, ImageStatusResponse, Int64Value, ListImagesRequest, ListImagesResponse,
    PullImageRequest, PullImageResponse, RemoveImageRequest, RemoveImageResponse, StreamImagesRequest,
    StreamImagesResponse, UInt64Value,
};

type Answer<T> = Result<Response<T>, Status>;
/// Items of one message of a streamed list.
const STREAM_CHUNK: usize = 256;
/// Chunks of an archive that wait for the disk.
const IMPORT_BACKLOG: usize = 8;

/// The services.
#[derive(Clone)]
pub struct ImageServer {
    /// What they serve.
    pub engine: Arc<Engine>,
}

fn shown(image: &Image) -> CriImage {
    let user = image.parsed_config().ok().and_then(|c| c.config).and_then(|c| c.user).unwrap_or_default();
    let name = user.split(':').next().unwrap_or_default();
    let uid = if name.is_empty() { Some(0) } else { name.parse().ok() };
    CriImage {
        id: image.id.clone(),
        repo_tags: image.tags.iter().cloned().collect(),
        repo_digests: image.digests.iter().cloned().collect(),
        size: image.size,
        username: if uid.is_some() { String::new() } else { name.to_string() },
        uid: uid.map(|value| Int64Value { value }),
        spec: Some(ImageSpec { image: image.id.clone(), ..ImageSpec::default() }),
        pinned: image.pinned,
    }
}

impl ImageServer {
    fn list(&self, filter: Option<ImageFilter>) -> Vec<CriImage> {
        let wanted = filter.and_then(|f| f.image).map(|s| s.image).filter(|n| !n.is_empty());
        match wanted {
            Some(name) => self.engine.images.find(&name).iter().map(|i| shown(i)).collect(),
            None => self.engine.images.list().iter().map(|i| shown(i)).collect(),
        }
    }
}

#[tonic::async_trait]
impl ImageService for ImageServer {
    async fn list_images(&self, request: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        Ok(Response::new(ListImagesResponse { images: self.list(request.into_inner().filter) }))
    }

    type StreamImagesStream = Pin<Box<dyn Stream<Item = Result<StreamImagesResponse, Status>> + Send>>;
    async fn stream_images(&self, request: Request<StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        let all = self.list(request.into_inner().filter);
        let messages: Vec<_> =
            all.chunks(STREAM_CHUNK).map(|c| Ok(StreamImagesResponse { images: c.to_vec() })).collect();
        Ok(Response::new(stream::iter(messages).boxed()))
    }

    async fn image_status(&self, request: Request<ImageStatusRequest>) -> Answer<ImageStatusResponse> {
        let ImageStatusRequest { image, verbose } = request.into_inner();
        let found = self.engine.images.find_whole(&image.unwrap_or_default().image);
        let mut info = std::collections::HashMap::new();
        if let (Some(image), true) = (&found, verbose) {
            let about = format!("{{\"imageSpec\":{}}}", image.config);
            info.insert("info".to_string(), about);
        }
        Ok(Response::new(ImageStatusResponse { image: found.as_deref().map(shown), info }))
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        let PullImageRequest { image, auth, .. } = request.into_inner();
        let name = image.unwrap_or_default().image;
        let image = crate::images::pull::pull(&self.engine, &name, auth.unwrap_or_default())
            .await
            .map_err(|e| e.into_status(&name))?;
        Ok(Response::new(PullImageResponse { image_ref: image.id.clone() }))
    }

    async fn remove_image(&self, request: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        let name = request.into_inner().image.unwrap_or_default().image;
        let engine = self.engine.clone();
        tokio::task::spawn_blocking(move || engine.images.remove(&name))
            .await
            .map_err(|e| Status::internal(e.to_string()))?
            .map_err(failed)?;
        Ok(Response::new(RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Answer<ImageFsInfoResponse> {
        let engine = self.engine.clone();
        let (images, containers) = tokio::task::spawn_blocking(move || {
            let usage = |dir: &std::path::Path, (bytes, inodes): (u64, u64)| FilesystemUsage {
                timestamp: crate::shim::sys::now(),
                fs_id: Some(FilesystemIdentifier { mountpoint: dir.display().to_string() }),
                used_bytes: Some(UInt64Value { value: bytes }),
                inodes_used: Some(UInt64Value { value: inodes }),
            };
            let containers = engine.config.root.join("containers");
            let written = crate::stats::disk_usage(&containers);
            (usage(&engine.config.root.join("images"), engine.images.usage()), usage(&containers, written))
        })
        .await
        .map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(ImageFsInfoResponse {
            image_filesystems: vec![images],
            container_filesystems: vec![containers],
        }))
    }
}

/// The chunks of an incoming archive as something to read from.
struct Incoming {
    chunks: tokio::sync::mpsc::Receiver<Vec<u8>>,
    current: std::io::Cursor<Vec<u8>>,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let n = self.current.read(buffer)?;
            if n > 0 || buffer.is_empty() {
                return Ok(n);
            }
            match self.chunks.blocking_recv() {
                Some(next) => self.current = std::io::Cursor::new(next),
                None => return Ok(0),
            }
        }
    }
}

#[tonic::async_trait]
impl ImageTransfer for ImageServer {
    async fn import(&self, request: Request<Streaming<ImportChunk>>) -> Answer<ImportSummary> {
        let mut incoming = request.into_inner();
        let place = self.engine.images.ingest_path();
        let (sender, receiver) = tokio::sync::mpsc::channel(IMPORT_BACKLOG);
        let spool = {
            let place = place.clone();
            tokio::task::spawn_blocking(move || {
                import::spool(Incoming { chunks: receiver, current: std::io::Cursor::default() }, &place)
            })
        };
        let mut names = Vec::new();
        let mut broken = None;
        while let Some(chunk) = incoming.next().await {
            match chunk {
                Ok(chunk) => {
                    names.extend(chunk.names);
                    if sender.send(chunk.data).await.is_err() {
                        break;
                    }
                }
                Err(status) => {
                    broken = Some(status);
                    break;
                }
            }
        }
        drop(sender);
        let spooled = spool.await.map_err(|e| Status::internal(e.to_string()))?;
        let outcome = match (broken, spooled) {
            (Some(status), _) => Err(status),
            (None, Err(error)) => Err(failed(error)),
            (None, Ok(())) => {
                let (engine, place) = (self.engine.clone(), place.clone());
                tokio::task::spawn_blocking(move || import::import(&engine.images, &place, &names))
                    .await
                    .map_err(|e| Status::internal(e.to_string()))?
                    .map_err(|e| Status::invalid_argument(format!("{e:#}")))
            }
        };
        let _ = std::fs::remove_file(&place);
        let images = outcome?
            .into_iter()
            .map(|i| ImportedImage { id: i.image.id.clone(), names: i.names, size: i.image.size })
            .collect();
        Ok(Response::new(ImportSummary { images }))
    }
}
