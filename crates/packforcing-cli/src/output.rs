//! What a run leaves: lines for whoever reads them, and files that are there whole or not at all.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{Write, stdout};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Prints a line. A reader that has gone (`| head`) ends no work: what is made lies in files.
macro_rules! say {
    ($($text:tt)*) => { $crate::output::line(format_args!($($text)*)) };
}
pub(crate) use say;

pub fn line(text: fmt::Arguments<'_>) {
    let _ = writeln!(stdout().lock(), "{text}");
}

/// A folder that no other run of the program writes into, for as long as this is there.
#[must_use = "another run may write into the folder once this drops"]
pub struct Lock {
    _folder: Option<File>,
}

/// Makes the folder, or tells why files cannot be written into it.
pub fn prepare(folder: &Path) -> Result<Lock> {
    let prepared = fs::create_dir_all(folder).and_then(|()| {
        let probe = temporary(folder, "probe");
        File::create(&probe)?;
        fs::remove_file(&probe)
    });
    prepared.with_context(|| format!("cannot write into {}", folder.display()))?;
    // Not every system opens folders, or locks them; then two runs have to be told apart by their user.
    let Ok(opened) = File::open(folder) else {
        return Ok(Lock { _folder: None });
    };
    if let Err(TryLockError::WouldBlock) = opened.try_lock() {
        bail!("{}: another run writes into this folder", folder.display());
    }
    Ok(Lock { _folder: Some(opened) })
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
        let deep = prepare(&folder.join("deep")).unwrap();
        if cfg!(target_os = "linux") {
            let refused = prepare(&folder.join("deep")).err().unwrap();
            assert!(
                refused.to_string().contains("another run writes into this folder"),
                "{refused}"
            );
        }
        drop(deep);
        drop(prepare(&folder.join("deep")).unwrap());
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
