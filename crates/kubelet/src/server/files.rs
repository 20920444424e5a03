//! `/logs`: files below the log directory.

use std::path::Path;

use http::{Response, StatusCode};

use super::{Body, full, text};

/// Bytes of a file served; larger ones are cut, the end being what matters.
const MAX_FILE: u64 = 8 << 20;

/// A file, or a directory's entries.
pub fn logs(root: &Path, parts: &[&str]) -> Response<Body> {
    let mut path = root.to_path_buf();
    path.extend(parts.iter().filter(|p| !p.is_empty()));
    let (Ok(root), Ok(path)) = (root.canonicalize(), path.canonicalize()) else {
        return text(StatusCode::NOT_FOUND, "404 page not found");
    };
    if !path.starts_with(&root) {
        return text(StatusCode::FORBIDDEN, "outside the log directory");
    }
    if path.is_dir() {
        let mut names: Vec<String> = std::fs::read_dir(&path)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| {
                let name = e.file_name().to_string_lossy().into_owned();
                if e.path().is_dir() { format!("{name}/") } else { name }
            })
            .collect();
        names.sort();
        let lines: String = names.iter().map(|n| format!("<a href=\"{n}\">{n}</a>\n")).collect();
        let mut response = Response::new(full(format!("<pre>\n{lines}</pre>\n")));
        response.headers_mut().insert("content-type", http::HeaderValue::from_static("text/html; charset=utf-8"));
        return response;
    }
    use std::io::{Read, Seek, SeekFrom};
    let read = std::fs::File::open(&path).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(MAX_FILE)))?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    match read {
        Ok(bytes) => Response::new(full(bytes)),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
