//! The store's side door: a socket in its directory, through which its care works while a process has it open.
//!
//! One request a connection, one line: `status`, `save PATH`, `defragment`. The answer is a line `ok` or `error`, then text.
//! Whoever may read the directory's files may ask; the socket is its owner's alone, as they are. Serves only when
//! [`serve`] is called; gives no access to keys.

use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::StoreError;
use crate::embedded::Embedded;

/// The socket's name in the store's directory.
pub const SOCKET_NAME: &str = "door";

/// The longest request in bytes: a path, and a word.
const MAX_REQUEST_BYTES: u64 = 8 << 10;

/// The longest answer in bytes.
const MAX_ANSWER_BYTES: u64 = 64 << 10;

/// How long a caller may take to say what it wants.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a caller waits: saving a large store takes its time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);

/// Wait after the system refused a connection, so that a shortage of files does not make the door spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What may be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Sizes and positions.
    Status,
    /// Write the state as it is to a file.
    Save(PathBuf),
    /// Give back what the log holds without need.
    Defragment,
}

impl Ask {
    fn parse(line: &str) -> Option<Self> {
        match line.split_once(' ') {
            None if line == "status" => Some(Ask::Status),
            None if line == "defragment" => Some(Ask::Defragment),
            Some(("save", path)) if path.starts_with('/') => Some(Ask::Save(path.into())),
            _ => None,
        }
    }

    fn line(&self) -> Result<String, StoreError> {
        match self {
            Ask::Status => Ok("status\n".into()),
            Ask::Defragment => Ok("defragment\n".into()),
            Ask::Save(path) => match path.to_str() {
                Some(text) if path.is_absolute() && !text.contains('\n') => Ok(format!("save {text}\n")),
                _ => Err(StoreError::Invalid(format!("{} must be absolute and text", path.display()))),
            },
        }
    }
}

/// Answers requests until the returned task is aborted or the store closes. A directory whose path is too long for a socket
/// has no door; the store works without it.
pub fn serve(store: &Arc<Embedded>) -> Result<tokio::task::JoinHandle<()>, StoreError> {
    let path = store.dir().join(SOCKET_NAME);
    let error = |e: io::Error| StoreError::io(format_args!("listening on {}", path.display()), &e);
    // The store's lock is ours: a socket that is there was left by a process that is gone.
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(error(e)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(error)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(error)?;
    let store = Arc::downgrade(store);
    Ok(tokio::spawn(async move {
        loop {
            let mut stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the store's door cannot take a caller");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(store) = store.upgrade() else { return };
            // One caller at a time: care is rare, and two saves at once help nobody.
            if let Err(error) = answer(store, &mut stream).await {
                tracing::debug!(%error, "a caller at the store's door went away");
            }
        }
    }))
}

async fn answer(store: Arc<Embedded>, stream: &mut UnixStream) -> io::Result<()> {
    let mut line = String::new();
    let (read, mut write) = stream.split();
    let mut reader = tokio::io::BufReader::new(read.take(MAX_REQUEST_BYTES));
    let read = tokio::io::AsyncBufReadExt::read_line(&mut reader, &mut line);
    tokio::time::timeout(REQUEST_TIMEOUT, read).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let answer = match Ask::parse(line.trim_end_matches('\n')) {
        Some(ask) => perform(store, ask).await,
        None => Err(StoreError::Invalid(format!("{:?} is not a request", line.trim_end()))),
    };
    let text = match answer {
        Ok(text) => format!("ok\n{text}"),
        Err(error) => format!("error\n{error}"),
    };
    write.write_all(text.as_bytes()).await?;
    write.shutdown().await
}

async fn perform(store: Arc<Embedded>, ask: Ask) -> Result<String, StoreError> {
    match ask {
        Ask::Status => Ok(store.status()?.to_string()),
        Ask::Defragment => {
            let freed = store.defragment().await?;
            Ok(format!("freed bytes: {freed}\n"))
        }
        Ask::Save(path) => {
            let saved = tokio::task::spawn_blocking(move || store.save(&path)).await;
            let (revision, bytes) = saved.map_err(|e| StoreError::Unavailable(e.to_string()))??;
            Ok(format!("revision: {revision}\nbytes: {bytes}\n"))
        }
    }
}

/// Asks the process that has the store in `dir` open. None when nobody listens there.
pub fn ask(dir: &Path, ask: &Ask) -> Result<Option<String>, StoreError> {
    let path = dir.join(SOCKET_NAME);
    let error = |e: io::Error| StoreError::io(format_args!("asking at {}", path.display()), &e);
    let line = ask.line()?;
    let mut stream = match BlockingStream::connect(&path) {
        Ok(stream) => stream,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => return Ok(None),
        Err(e) => return Err(error(e)),
    };
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(error)?;
    stream.write_all(line.as_bytes()).map_err(error)?;
    let mut text = String::new();
    (&mut stream).take(MAX_ANSWER_BYTES).read_to_string(&mut text).map_err(error)?;
    match text.split_once('\n') {
        Some(("ok", answer)) => Ok(Some(answer.to_owned())),
        Some(("error", what)) => Err(StoreError::Unavailable(what.to_owned())),
        _ => Err(StoreError::Unavailable(format!("{} gave no answer", path.display()))),
    }
}
