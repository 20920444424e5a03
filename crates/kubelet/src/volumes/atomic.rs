//! Files that change all at once: written to a fresh directory, then made visible by renaming one symbolic link, so
//! that a reader never sees half an update. The layout (`..data`, dated directories, links beside them) is upstream's
//! and applications watch it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::ownership;

/// One file of a payload.
#[derive(Clone, Debug, PartialEq)]
pub struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    pub user: Option<u32>,
}

/// Files by path relative to the volume.
pub type Payload = BTreeMap<String, File>;

const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";

/// Refuses paths that leave the volume or collide with the layout.
fn check(path: &str) -> io::Result<()> {
    let bad = path.is_empty()
        || path.starts_with('/')
        || path.starts_with("..")
        || path.split('/').any(|p| p == ".." || p.is_empty());
    if bad {
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path {path:?} in volume")))
    } else {
        Ok(())
    }
}

/// What lies there now, with the modes it was given.
fn current(dir: &Path) -> Payload {
    fn walk(base: &Path, at: &Path, out: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(at).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => walk(base, &path, out),
                Ok(_) => {
                    if let (Ok(data), Ok(name)) = (fs::read(&path), path.strip_prefix(base)) {
                        out.insert(name.to_string_lossy().into_owned(), data);
                    }
                }
                Err(_) => {}
            }
        }
    }
    let mut files = BTreeMap::new();
    walk(dir, dir, &mut files);
    files.into_iter().map(|(name, data)| (name, File { data, mode: 0, user: None })).collect()
}

fn write_all(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<()> {
    for (name, file) in payload {
        let path = dir.join(name);
        if let Some(parent) = path.parent().filter(|p| *p != dir) {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        fs::write(&path, &file.data)?;
        // The umask must not have its say.
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode & 0o7777))?;
        if file.user.is_some() {
            std::os::unix::fs::chown(&path, file.user, None)?;
        }
    }
    if let Some(group) = group {
        ownership::give_group(dir, group, true)?;
    }
    Ok(())
}

/// Makes the volume hold exactly this payload; returns whether anything changed.
pub fn write(volume: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    payload.keys().try_for_each(|path| check(path))?;
    let link = volume.join(DATA);
    let old: Option<PathBuf> = fs::read_link(&link).ok().map(|name| volume.join(name));
    if let Some(old) = &old {
        let now = current(old);
        if now.len() == payload.len()
            && now.iter().all(|(name, file)| payload.get(name).is_some_and(|f| f.data == file.data))
        {
            return Ok(false);
        }
    }
    let dated = Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S.%9f").to_string();
    let fresh = volume.join(&dated);
    fs::DirBuilder::new().mode(0o755).create(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
    let result = write_all(&fresh, payload, group).and_then(|()| {
        let next = volume.join(DATA_NEXT);
        let _ = fs::remove_file(&next);
        symlink(&dated, &next)?;
        fs::rename(&next, &link)
    });
    if let Err(error) = result {
        let _ = fs::remove_dir_all(&fresh);
        return Err(error);
    }
    let visible: std::collections::BTreeSet<&str> = payload.keys().map(|p| p.split('/').next().unwrap_or(p)).collect();
    for name in &visible {
        let at = volume.join(name);
        if fs::symlink_metadata(&at).is_err() {
            symlink(Path::new(DATA).join(name), &at)?;
        }
    }
    for entry in fs::read_dir(volume)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !visible.contains(name.as_str()) {
            fs::remove_file(entry.path())?;
        }
    }
    if let Some(old) = old {
        fs::remove_dir_all(old)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_are_atomic_and_complete() {
        let dir = std::env::temp_dir().join(format!("atomic-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let payload = |files: &[(&str, &str)]| -> Payload {
            files
                .iter()
                .map(|(n, d)| (n.to_string(), File { data: d.as_bytes().to_vec(), mode: 0o640, user: None }))
                .collect()
        };
        assert!(write(&dir, &payload(&[("a", "1"), ("d/b", "2")]), None).unwrap());
        assert!(!write(&dir, &payload(&[("a", "1"), ("d/b", "2")]), None).unwrap());
        assert_eq!(fs::read_to_string(dir.join("d/b")).unwrap(), "2");
        assert_eq!(fs::metadata(dir.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(write(&dir, &payload(&[("a", "3")]), None).unwrap());
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "3");
        assert!(!dir.join("d").exists());
        assert!(write(&dir, &payload(&[("../x", "3")]), None).is_err());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 3);
        fs::remove_dir_all(&dir).unwrap();
    }
}
