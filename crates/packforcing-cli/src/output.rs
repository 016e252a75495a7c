//! Files that are there whole or not at all.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

/// Makes the folder, or tells why files cannot be written into it.
pub fn prepare(folder: &Path) -> Result<()> {
    let prepared = fs::create_dir_all(folder).and_then(|()| {
        let probe = temporary(folder, "probe");
        File::create(&probe)?;
        fs::remove_file(&probe)
    });
    prepared.with_context(|| format!("cannot write into {}", folder.display()))
}

/// Writes a file under a temporary name beside it and renames it when it is complete. After an
/// error, what stood there before still stands.
pub fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let (path, partial) = (folder.join(name), temporary(folder, name));
    let written = File::create(&partial)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&partial, &path));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&partial);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn temporary(folder: &Path, name: &str) -> std::path::PathBuf {
    folder.join(format!(".{name}.{}.partial", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_or_not_at_all() {
        let folder = std::env::temp_dir().join(format!("packforcing-output-{}", std::process::id()));
        prepare(&folder.join("deep")).unwrap();
        write(&folder, "a.txt", b"one").unwrap();
        write(&folder, "a.txt", b"two").unwrap();
        assert_eq!(fs::read(folder.join("a.txt")).unwrap(), b"two");

        // A folder stands where the file should go: the error names it, and nothing is left over.
        let error = write(&folder, "deep", b"three").unwrap_err();
        assert!(format!("{error:#}").contains("deep"), "{error:#}");
        assert!(prepare(&folder.join("a.txt")).is_err());
        let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a.txt", "deep"]);
        fs::remove_dir_all(&folder).unwrap();
    }
}
